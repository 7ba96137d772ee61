package limiter

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/limiter/limitersim"
)

// The limiter with its goroutines, timers and locks does in a bubble what it does in the laboratory without them. Which of
// two that happen in the same nanosecond is first may move a trial, and with it all that follows: on one seed
// of four, for any service, the two may part.
func TestLabInBubble(t *testing.T) {
	if labRace {
		t.Skip("as many goroutines take a minute")
	}
	const load, from, to = 3, 2 * time.Second, 12 * time.Second
	profiles := limitersim.Profiles()
	labParallel(len(profiles), func(i int) {
		svc := profiles[i]
		parted := 0
		for _, seed := range []uint64{42, 7, 8, 9} {
			sim := limitersim.New(svc, load, seed, to)
			labRun(sim, NewAdaptive())
			want := sim.Score(from, to)
			synctest.Test(t, func(t *testing.T) {
				c := NewAdaptive()
				sim := limitersim.New(svc, load, seed, to)
				sim.RunFunc(func(work func()) {
					p, err := c.Acquire(t.Context(), Request{})
					if err != nil {
						return
					}
					work()
					p.Release(Success)
				})
				got := sim.Score(from, to)
				if d := got.Goodput - want.Goodput; max(d, -d) > .03 || (got.P99-want.P99).Abs() > want.P99/5 {
					parted++
				}
				if s := c.Stats(); s.InFlight != 0 || s.Queued != 0 {
					t.Errorf("%s: left behind: %+v", svc.Name, s)
				}
				t.Logf("%-10s seed %-2d goodput and p99 with goroutines %.2f %6.1fms, without %.2f %6.1fms",
					svc.Name, seed, got.Goodput, got.P99.Seconds()*1e3, want.Goodput, want.P99.Seconds()*1e3)
			})
		}
		if parted > 1 {
			t.Errorf("%s: with goroutines it went another way on %d of 4 seeds", svc.Name, parted)
		}
	})
}

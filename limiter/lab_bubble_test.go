package limiter

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/limiter/limitersim"
)

// The limiter with its goroutines, timers and locks does in a bubble what it does in the laboratory without them.
func TestLabInBubble(t *testing.T) {
	if labRace {
		t.Skip("as many goroutines take a minute")
	}
	const load, from, to = 3, 2 * time.Second, 12 * time.Second
	profiles := limitersim.Profiles()
	out := make([]string, len(profiles))
	labParallel(len(profiles), func(i int) {
		svc := profiles[i]
		sim := limitersim.New(svc, load, 42, to)
		labRun(sim, NewAdaptive())
		want := sim.Score(from, to)
		synctest.Test(t, func(t *testing.T) {
			c := NewAdaptive()
			sim := limitersim.New(svc, load, 42, to)
			sim.RunFunc(func(work func()) {
				p, err := c.Acquire(t.Context(), Request{})
				if err != nil {
					return
				}
				work()
				p.Release(Success)
			})
			got := sim.Score(from, to)
			// Which of two that happen in the same nanosecond is first moves a trial, and with it all that follows:
			// another limit of those that are as good may stand in the end.
			if d := got.Goodput - want.Goodput; max(d, -d) > .03 || (got.P99-want.P99).Abs() > max(want.P99/5, svc.Baseline(42)/2) {
				t.Errorf("%s: with goroutines %+v, without %+v", svc.Name, got, want)
			}
			if s := c.Stats(); s.InFlight != 0 || s.Queued != 0 {
				t.Errorf("%s: left behind: %+v", svc.Name, s)
			}
			out[i] = fmt.Sprintf("%-10s %.2f %6.1fms | %.2f %6.1fms", svc.Name, got.Goodput, got.P99.Seconds()*1e3, want.Goodput, want.P99.Seconds()*1e3)
		})
	})
	t.Logf("goodput and p99 with goroutines | without\n%s", strings.Join(out, "\n"))
}

package limiter

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

// Against a list of all that is in flight: it is known how much is, of about what age, however much older some of it is than
// what is told apart.
func TestAdaptiveAges(t *testing.T) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 9))
		c := NewAdaptive(WithLimits(1000, 1000), WithQueue(0, 0))
		a := c.adapt
		now := time.Duration(1)
		type one struct {
			p    Permit
			from time.Duration
		}
		var all []one
		for i := range 30_000 {
			now += time.Duration(rnd.ExpFloat64() * 1e5)
			if p, ok := c.take(1, now); ok {
				all = append(all, one{p, now})
			}
			if len(all) == 0 {
				continue
			}
			// Most ends soon, and some is there to the end.
			if j := len(all) - 1 - int(20*rnd.ExpFloat64()); j >= 0 && rnd.IntN(20) != 0 {
				all[j].p.ReleaseAt(Outcome(rnd.IntN(3)), c.base.Add(now))
				all = append(all[:j], all[j+1:]...)
			}
			if i%1000 != 999 {
				continue
			}
			c.mu.Lock()
			a.look(now)
			c.mu.Unlock()
			var n, older, known, knownOlder float64
			var want ctrlAges
			for _, o := range all {
				want.enter(1, (now - o.from).Seconds(), (now - o.from).Seconds())
			}
			for k := range want.flying {
				n += want.flying[k]
				known += a.aged.flying[k]
			}
			if math.Abs(n-known) > 1e-6 {
				t.Fatalf("seed %d: %v in flight, %v by their ages", seed, n, known)
			}
			// A period is short: what is older than a few of them is so by both.
			for k := timesCells - 1; k > timesCell(int64(20*time.Millisecond)); k-- {
				older += want.flying[k]
				knownOlder += a.aged.flying[k]
				if math.Abs(older-knownOlder) > 3+.1*older {
					t.Fatalf("seed %d: %v in flight are of cell %d or older, %v by what is known of their ages", seed, older, k, knownOlder)
				}
			}
		}
		for _, o := range all {
			o.p.Release(Ignored)
		}
		c.mu.Lock()
		a.look(now)
		c.mu.Unlock()
		for k, n := range a.aged.flying {
			if n != 0 {
				t.Fatalf("seed %d: nothing is in flight, and %v of cell %d are", seed, n, k)
			}
		}
		if s := c.Stats(); s.InFlight != 0 {
			t.Fatalf("%d in flight", s.InFlight)
		}
	}
}

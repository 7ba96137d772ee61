package limiter

import (
	"testing"
	"time"

	"github.com/spillgate/spillgate/limiter/limitersim"
)

// A limit that stood at nine tenths of the capacity for a while has had time to grow beyond what is of
// use. When a surge comes, what is possible is served all the same from the second second on. A narrow
// service gives few answers to learn from: it takes until the fifth.
func TestLabSurge(t *testing.T) {
	if labRace {
		t.Skip("no goroutines to race")
	}
	const calm, end = 10 * time.Second, 26 * time.Second
	for _, svc := range limitersim.Profiles() {
		const least = .9
		from := calm + 2*time.Second
		if svc.Name == "narrow" {
			from = calm + 5*time.Second
		}
		base := svc.Baseline(42)
		for _, load := range []float64{1.5, 3} {
			for seed := uint64(1); seed <= 5; seed++ {
				c := NewAdaptive()
				sim := limitersim.New(svc, load, seed, end)
				sim.Rate = func(now time.Duration) float64 {
					if now < calm {
						return .9 * svc.Capacity
					}
					return load * svc.Capacity
				}
				labRun(sim, c)
				s := sim.Score(from, end)
				slower := float64(s.P99) / float64(base)
				t.Logf("%-10s .9 to %v: goodput %.2f, p99 %.1f times that at half load, limit %d", svc.Name, load, s.Goodput, slower, c.Limit())
				if s.Goodput < least || slower > 5 {
					t.Errorf("%s from .9 to %v, seed %d: goodput %.2f and p99 %.1f times that at half load, want %.1f and 5", svc.Name, load, seed, s.Goodput, slower, least)
				}
			}
		}
	}
}

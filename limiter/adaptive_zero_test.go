package limiter_test

import (
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/limiter"
)

// Work may take no time at all, by a clock that is coarse or stands still. Among others that do take some it is a kind of its own, and no time is
// a multiple of what that takes: a limit that reckoned with one panicked, with its lock held.
func TestAdaptiveWorkOfNoTime(t *testing.T) {
	for seed := range uint64(4) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			l := limiter.NewAdaptive()
			service := make(chan struct{}, 8)
			var wg sync.WaitGroup
			kinds := []time.Duration{0, 5 * time.Millisecond, 80 * time.Millisecond}
			mix := make([]float64, len(kinds))
			for i := range 40_000 {
				for k, takes := range kinds {
					if i%2000 == 0 {
						mix[k] = rnd.Float64() * rnd.Float64() * rnd.Float64()
					}
					if rnd.Float64() >= mix[k] {
						continue
					}
					wg.Go(func() {
						p, err := l.Acquire(t.Context(), limiter.Request{})
						if err != nil {
							return
						}
						if takes > 0 {
							service <- struct{}{}
							time.Sleep(takes) // in a synctest bubble
							<-service
						}
						p.Release(limiter.Success)
					})
				}
				time.Sleep(3 * time.Millisecond) // in a synctest bubble
			}
			wg.Wait()
			if s := l.Stats(); s.InFlight != 0 || s.Latency < 0 || math.IsNaN(s.Throughput) || math.IsNaN(s.Elasticity) || math.IsInf(s.Elasticity, 0) {
				t.Errorf("seed %d: %+v", seed, s)
			}
		})
	}
}

package limiter_test

import (
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/limiter"
)

// adaptKinds runs work of these kinds, in shares that change every six seconds, through an adaptive limit; what takes any time does so in one of
// eight places, for two minutes. It returns the longest time that work is said to take at any moment, and the longest that it took.
func adaptKinds(t *testing.T, seed uint64, kinds ...time.Duration) (said, took time.Duration) {
	synctest.Test(t, func(t *testing.T) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		l := limiter.NewAdaptive()
		service := make(chan struct{}, 8)
		var wg sync.WaitGroup
		mix := make([]float64, len(kinds))
		var longest atomic.Int64
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
					begun := time.Now()
					if takes > 0 {
						service <- struct{}{}
						time.Sleep(takes) // in a synctest bubble
						<-service
					}
					for took, most := int64(time.Since(begun)), longest.Load(); took > most && !longest.CompareAndSwap(most, took); {
						most = longest.Load()
					}
					p.Release(limiter.Success)
				})
			}
			time.Sleep(3 * time.Millisecond) // in a synctest bubble
			s := l.Stats()
			said = max(said, s.Latency, s.BaseLatency)
		}
		wg.Wait()
		took = time.Duration(longest.Load())
		s := l.Stats()
		if s.InFlight != 0 || s.Latency < 0 || math.IsNaN(s.Throughput) || math.IsNaN(s.Elasticity) || math.IsInf(s.Elasticity, 0) {
			t.Errorf("seed %d: %+v", seed, s)
		}
	})
	return said, took
}

// Work may take no time at all, by a clock that is coarse or stands still. Among others that do take some it is a kind of its own, and no time is
// a multiple of what that takes: a limit that reckoned with one panicked, with its lock held.
func TestAdaptiveWorkOfNoTime(t *testing.T) {
	for seed := range uint64(4) {
		adaptKinds(t, seed, 0, 5*time.Millisecond, 80*time.Millisecond)
	}
}

// Where the quick kind is itself of several that are orders of magnitude apart, such as what is known at once and what has to be looked for, another
// share of these is no reason to believe that the slow kind takes thousands of times as long: no time in service is far beyond all that there were. It
// was said to take seconds to minutes, and what was seen by that let the limit run away or kept it low. An estimate may be off by a factor of two and more
// in one of hundreds of runs, as goroutines that wake up at the same time run in any order.
func TestAdaptiveQuickKindOfSeveral(t *testing.T) {
	for seed := range uint64(8) {
		said, took := adaptKinds(t, seed, 300*time.Nanosecond, 5*time.Millisecond, 80*time.Millisecond)
		t.Logf("seed %d: %v of %v", seed, said, took)
		if said > 4*took {
			t.Errorf("seed %d: work of which none takes longer than %v takes %v in the mean", seed, took, said)
		}
	}
}

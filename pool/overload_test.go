package pool_test

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/pool"
)

// TestDeadlinesUnderOverload gives a pool three times what it can do, each task with a
// deadline: what runs is in time, the slots stay busy, and nearly all that is refused learns it at once.
func TestDeadlinesUnderOverload(t *testing.T) {
	const service = 10 * time.Millisecond
	for _, test := range []struct {
		name   string
		slots  int
		within time.Duration
		work   func(*rand.Rand) float64 // of the service time; 1 on average
		late   float64                  // how many refusals may come from the line and not at the door
	}{
		{"much the same time each", 2, 100 * time.Millisecond, func(r *rand.Rand) float64 { return 0.5 + r.Float64() }, 0.01},
		{"exponential times", 2, 150 * time.Millisecond, func(r *rand.Rand) float64 { return r.ExpFloat64() }, 0.01},
		{"one in ten is ten times as long", 4, 200 * time.Millisecond, func(r *rand.Rand) float64 {
			if r.IntN(10) == 0 {
				return 10 / 1.9
			}
			return 1 / 1.9
		}, 0.05},
		{"one slot", 1, 100 * time.Millisecond, func(r *rand.Rand) float64 { return 0.5 + r.Float64() }, 0.01},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const warm, length = time.Second, 20 * time.Second
				rate := 3 * float64(test.slots) / float64(service)
				p := pool.New(pool.WithSlots(test.slots))
				rng := rand.New(rand.NewPCG(1, 2))
				began := time.Now()
				var mu sync.Mutex
				var ran, met, refused, slow int
				var wg sync.WaitGroup
				for time.Since(began) < length {
					time.Sleep(time.Duration(rng.ExpFloat64() / rate)) // in a synctest bubble
					work := time.Duration(float64(service) * test.work(rng))
					wg.Go(func() {
						arrived := time.Now()
						did := false
						err := p.Do(context.Background(), func(context.Context) error {
							did = true
							time.Sleep(work) // in a synctest bubble
							return nil
						}, pool.WithDeadline(arrived.Add(test.within)), pool.WithKind("k"))
						took := time.Since(arrived)
						mu.Lock()
						defer mu.Unlock()
						switch {
						case arrived.Sub(began) < warm:
						case did:
							ran++
							if took <= test.within {
								met++
							}
						case err != nil:
							refused++
							if took >= time.Millisecond {
								slow++
							}
						}
					})
				}
				wg.Wait()
				want := float64((length - warm) / service * time.Duration(test.slots))
				t.Logf("%d ran (of %.0f possible), %.1f %% in time; %d refused, %d of them not at once", ran, want, 100*float64(met)/float64(ran), refused, slow)
				if float64(met) < 0.95*float64(ran) {
					t.Errorf("%d of %d that ran were in time", met, ran)
				}
				if float64(ran) < 0.95*want {
					t.Errorf("%d ran, the slots had time for %.0f", ran, want)
				}
				if float64(slow) > test.late*float64(refused) {
					t.Errorf("%d of %d refusals came late", slow, refused)
				}
			})
		})
	}
}

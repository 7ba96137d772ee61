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
// deadline: what runs is in time, the slots stay busy, and what is refused learns it at once.
func TestDeadlinesUnderOverload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const (
			slots   = 2
			service = 10 * time.Millisecond
			within  = 100 * time.Millisecond
			rate    = 3 * float64(slots) / float64(service/time.Millisecond) // a millisecond
			warm    = time.Second
			length  = 20 * time.Second
		)
		p := pool.New(pool.WithSlots(slots))
		rng := rand.New(rand.NewPCG(1, 2))
		began := time.Now()
		var mu sync.Mutex
		var ran, met, refused, slow int
		var wg sync.WaitGroup
		for time.Since(began) < length {
			time.Sleep(time.Duration(rng.ExpFloat64() / rate * float64(time.Millisecond)))
			work := time.Duration(float64(service) * (0.5 + rng.Float64()))
			wg.Go(func() {
				arrived := time.Now()
				did := false
				err := p.Do(context.Background(), func(context.Context) error {
					did = true
					time.Sleep(work)
					return nil
				}, pool.WithDeadline(arrived.Add(within)), pool.WithKind("k"))
				took := time.Since(arrived)
				mu.Lock()
				defer mu.Unlock()
				switch {
				case arrived.Sub(began) < warm:
				case did:
					ran++
					if took <= within {
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
		want := float64((length - warm) / service * slots)
		t.Logf("%d ran (of %.0f possible), %.1f %% in time; %d refused, %d of them not at once", ran, want, 100*float64(met)/float64(ran), refused, slow)
		if float64(met) < 0.95*float64(ran) {
			t.Errorf("%d of %d that ran were in time", met, ran)
		}
		if float64(ran) < 0.9*want {
			t.Errorf("%d ran, the slots had time for %.0f", ran, want)
		}
		if float64(slow) > 0.1*float64(refused) {
			t.Errorf("%d of %d refusals came late", slow, refused)
		}
	})
}

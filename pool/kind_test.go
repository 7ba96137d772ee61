package pool_test

import (
	"context"
	"errors"
	"math"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/pool"
)

func TestKindThatWasSlowIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pool.New(pool.WithSlots(1))
		ctx := context.Background()
		took := 10 * time.Second
		work := func(context.Context) error { time.Sleep(took); return nil } // in a synctest bubble
		p.Do(ctx, work, pool.WithKind("k"))
		took = 10 * time.Millisecond // what it called is well again
		began := time.Now()
		var wg sync.WaitGroup
		defer wg.Wait()
		for range 2 { // work of another kind, always: no slot is ever free
			wg.Go(func() {
				for time.Since(began) < time.Hour {
					p.Do(ctx, func(context.Context) error { time.Sleep(100 * time.Millisecond); return nil }) // in a synctest bubble
				}
			})
		}
		var tried, refused int
		for ; time.Since(began) < time.Hour; tried++ {
			time.Sleep(300 * time.Millisecond) // in a synctest bubble
			err := p.Do(ctx, work, pool.WithKind("k"), pool.WithDeadline(time.Now().Add(time.Second)))
			if errors.Is(err, limiter.ErrWouldMissDeadline) {
				refused++
			}
		}
		if refused > tried/10 {
			t.Errorf("%d of %d refused because the kind was slow an hour ago", refused, tried)
		}
	})
}

func TestKindThatIsSlowIsSeldomTried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pool.New(pool.WithSlots(1))
		ctx := context.Background()
		ran := 0
		work := func(context.Context) error { ran++; time.Sleep(10 * time.Second); return nil } // in a synctest bubble
		p.Do(ctx, work, pool.WithKind("k"))
		began := time.Now()
		var wg sync.WaitGroup
		defer wg.Wait()
		for range 2 {
			wg.Go(func() {
				for time.Since(began) < time.Hour {
					p.Do(ctx, func(context.Context) error { time.Sleep(100 * time.Millisecond); return nil }) // in a synctest bubble
				}
			})
		}
		for time.Since(began) < time.Hour {
			time.Sleep(300 * time.Millisecond) // in a synctest bubble
			p.Do(ctx, work, pool.WithKind("k"), pool.WithDeadline(time.Now().Add(time.Second)))
		}
		if ran < 10 || ran > 36 {
			t.Errorf("%d of the work that is always late ran in an hour", ran)
		}
	})
}

// Many that wait for long soon wait for more than a Duration holds in all: the sum stops there.
func TestTimingStopsAtTheLongestDuration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const century = 100 * 365 * 24 * time.Hour
		p := pool.New(pool.WithSlots(1), pool.WithQueue(10, 2*century))
		var wg sync.WaitGroup
		wg.Go(func() {
			p.Do(t.Context(), func(context.Context) error {
				time.Sleep(century) // in a synctest bubble
				return nil
			}, pool.WithKind("k"))
		})
		synctest.Wait()
		for range 4 {
			wg.Go(func() { p.Do(t.Context(), func(context.Context) error { return nil }, pool.WithKind("k")) })
		}
		wg.Wait()
		for _, k := range p.Stats().Kinds {
			if k.Kind == "k" && (k.Wait.Count != 4 || k.Wait.Total != math.MaxInt64) {
				t.Errorf("%d waited, for %v", k.Wait.Count, k.Wait.Total)
			}
		}
	})
}

package pool_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/pool"
)

func TestStreamReadsNoFurtherAtShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pool.New(pool.WithSlots(2))
		const most = 10_000
		pulled := 0
		in := func(yield func(int) bool) {
			for pulled < most && yield(pulled) {
				pulled++
			}
		}
		var last error
		var got int
		for _, err := range pool.Stream(context.Background(), p, in, func(context.Context, int) (int, error) {
			time.Sleep(time.Second) // in a synctest bubble
			return 0, nil
		}) {
			last = err
			if got++; got == 1 {
				over, cancel := context.WithCancel(context.Background())
				cancel()
				p.Shutdown(over)
			}
		}
		if !errors.Is(last, pool.ErrShutdown) {
			t.Errorf("the last error is %v", last)
		}
		if pulled > got+4 {
			t.Errorf("%d elements read for %d results", pulled, got)
		}
		if n := p.Slots(); n != 2 {
			t.Errorf("%d slots", n)
		}
		empty(t, p)
	})
}

func TestStreamIsNotRefusedByItself(t *testing.T) {
	for name, opts := range map[string][]pool.Option{
		"no line":          {pool.WithSlots(2), pool.WithQueue(0, 0)},
		"a line of one":    {pool.WithSlots(3), pool.WithQueue(1, time.Minute)},
		"a share of one":   {pool.WithSlots(3), pool.WithClientShare(1)},
		"a short patience": {pool.WithSlots(1), pool.WithQueue(10, time.Millisecond)},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := pool.New(opts...)
				const n = 50
				in := func(yield func(int) bool) {
					for i := range n {
						if !yield(i) {
							return
						}
					}
				}
				ran := make([]atomic.Int64, n)
				got := 0
				for i, err := range pool.Stream(context.Background(), p, in, func(_ context.Context, i int) (int, error) {
					time.Sleep(time.Duration(i%7+1) * 10 * time.Millisecond) // in a synctest bubble
					ran[i].Add(1)
					return i, nil
				}, pool.WithClient("c")) {
					if err != nil || i != got || ran[i].Load() != 1 {
						t.Fatalf("result %d: %d, %v, ran %d times", got, i, err, ran[i].Load())
					}
					got++
				}
				if got != n {
					t.Errorf("%d results of %d", got, n)
				}
				empty(t, p)
			})
		})
	}
}

// An element that was begun is not begun again, though what it called refused it with the errors of a pool.
func TestStreamRunsWhatIsRefusedInsideOnce(t *testing.T) {
	for _, inner := range []error{limiter.ErrSaturated, limiter.ErrRateLimited} {
		synctest.Test(t, func(t *testing.T) {
			p := pool.New(pool.WithSlots(2))
			var ran atomic.Int64
			in := func(yield func(int) bool) {
				for i := range 10 {
					if !yield(i) {
						return
					}
				}
			}
			got := 0
			for _, err := range pool.Stream(context.Background(), p, in, func(_ context.Context, i int) (int, error) {
				if i == 2 {
					ran.Add(1)
					return 0, inner
				}
				return 0, nil
			}) {
				if got++; (err == inner) != (got == 3) {
					t.Errorf("result %d: %v", got, err)
				}
			}
			if got != 3 || ran.Load() != 1 {
				t.Errorf("%d results, and the one that was refused ran %d times; want 3 and once", got, ran.Load())
			}
			empty(t, p)
		})
	}
}

package compare

import (
	"context"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/alitto/pond/v2"
	"github.com/gammazero/workerpool"
	"github.com/panjf2000/ants/v2"
	concpool "github.com/sourcegraph/conc/pool"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/spillgate/spillgate/pool"
)

// oneMakers run one function in one of n slots and wait for it.
var oneMakers = []struct {
	name string
	make func(tb testing.TB, n int) func(fn func(context.Context) error) error
}{
	{"baseline=channel", func(tb testing.TB, n int) func(func(context.Context) error) error {
		slots, ctx := make(chan struct{}, n), tb.Context()
		return func(fn func(context.Context) error) error {
			slots <- struct{}{}
			defer func() { <-slots }()
			return fn(ctx)
		}
	}},
	{"baseline=x-sync-semaphore", func(tb testing.TB, n int) func(func(context.Context) error) error {
		s := semaphore.NewWeighted(int64(n))
		ctx := tb.Context()
		return func(fn func(context.Context) error) error {
			if err := s.Acquire(ctx, 1); err != nil {
				return err
			}
			defer s.Release(1)
			return fn(ctx)
		}
	}},
	{"spillgate-Do", func(tb testing.TB, n int) func(func(context.Context) error) error {
		p := pool.New(pool.WithSlots(n), pool.WithQueue(1<<20, 1<<40))
		ctx := tb.Context()
		return func(fn func(context.Context) error) error { return p.Do(ctx, fn) }
	}},
	{"spillgate-Do,plain", func(tb testing.TB, n int) func(func(context.Context) error) error {
		p := pool.New(pool.WithSlots(n), pool.WithQueue(1<<20, 1<<40))
		ctx := tb.Context()
		return func(fn func(context.Context) error) error { return p.Do(ctx, fn, pool.WithPlainContext()) }
	}},
	{"baseline=goroutine+channel", func(tb testing.TB, n int) func(func(context.Context) error) error {
		slots, ctx := make(chan struct{}, n), tb.Context()
		return func(fn func(context.Context) error) error {
			done := make(chan error, 1)
			slots <- struct{}{}
			go func() {
				defer func() { <-slots }()
				done <- fn(ctx)
			}()
			return <-done
		}
	}},
	{"spillgate-Submit", func(tb testing.TB, n int) func(func(context.Context) error) error {
		p := pool.New(pool.WithSlots(n), pool.WithQueue(1<<20, 1<<40))
		ctx := tb.Context()
		return func(fn func(context.Context) error) error {
			f := pool.Submit(ctx, p, func(ctx context.Context) (struct{}, error) { return struct{}{}, fn(ctx) })
			_, err := f.Wait(context.Background()) // the others cannot be cancelled while they wait
			return err
		}
	}},
	{"ants", func(tb testing.TB, n int) func(func(context.Context) error) error {
		p, err := ants.NewPool(n)
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(p.Release)
		ctx := tb.Context()
		return func(fn func(context.Context) error) error {
			done := make(chan error, 1)
			if err := p.Submit(func() { done <- fn(ctx) }); err != nil {
				return err
			}
			return <-done
		}
	}},
	{"pond", func(tb testing.TB, n int) func(func(context.Context) error) error {
		p := pond.NewPool(n)
		tb.Cleanup(p.StopAndWait)
		ctx := tb.Context()
		return func(fn func(context.Context) error) error { return p.SubmitErr(func() error { return fn(ctx) }).Wait() }
	}},
	{"workerpool", func(tb testing.TB, n int) func(func(context.Context) error) error {
		p := workerpool.New(n)
		tb.Cleanup(p.StopWait)
		ctx := tb.Context()
		return func(fn func(context.Context) error) error {
			var err error
			p.SubmitWait(func() { err = fn(ctx) })
			return err
		}
	}},
}

// mapMakers square the numbers below count, at most n at a time, and return the
// squares in order.
var mapMakers = []struct {
	name string
	make func(tb testing.TB, n int) func(count int, square func(int) (int, error)) ([]int, error)
}{
	{"baseline=channel", func(_ testing.TB, n int) func(int, func(int) (int, error)) ([]int, error) {
		return func(count int, square func(int) (int, error)) ([]int, error) {
			out, slots := make([]int, count), make(chan struct{}, n)
			var wg sync.WaitGroup
			var once sync.Once
			var first error
			for i := range out {
				slots <- struct{}{}
				wg.Go(func() {
					defer func() { <-slots }()
					var err error
					if out[i], err = square(i); err != nil {
						once.Do(func() { first = err })
					}
				})
			}
			wg.Wait()
			return out, first
		}
	}},
	{"spillgate-Map", func(tb testing.TB, n int) func(int, func(int) (int, error)) ([]int, error) {
		p := pool.New(pool.WithSlots(n))
		return func(count int, square func(int) (int, error)) ([]int, error) {
			in := make([]int, count)
			for i := range in {
				in[i] = i
			}
			return pool.Map(tb.Context(), p, in, func(_ context.Context, i int) (int, error) { return square(i) })
		}
	}},
	{"errgroup", func(tb testing.TB, n int) func(int, func(int) (int, error)) ([]int, error) {
		return func(count int, square func(int) (int, error)) ([]int, error) {
			g, _ := errgroup.WithContext(tb.Context())
			g.SetLimit(n)
			out := make([]int, count)
			for i := range out {
				g.Go(func() (err error) { out[i], err = square(i); return })
			}
			return out, g.Wait()
		}
	}},
	{"conc", func(tb testing.TB, n int) func(int, func(int) (int, error)) ([]int, error) {
		return func(count int, square func(int) (int, error)) ([]int, error) {
			p := concpool.New().WithContext(tb.Context()).WithMaxGoroutines(n).WithCancelOnError()
			out := make([]int, count)
			for i := range out {
				p.Go(func(context.Context) (err error) { out[i], err = square(i); return })
			}
			return out, p.Wait()
		}
	}},
	{"pond", func(tb testing.TB, n int) func(int, func(int) (int, error)) ([]int, error) {
		p := pond.NewResultPool[int](n)
		tb.Cleanup(p.StopAndWait)
		return func(count int, square func(int) (int, error)) ([]int, error) {
			g := p.NewGroupContext(tb.Context())
			for i := range count {
				g.SubmitErr(func() (int, error) { return square(i) })
			}
			return g.Wait()
		}
	}},
	{"ants", func(tb testing.TB, n int) func(int, func(int) (int, error)) ([]int, error) {
		p, err := ants.NewPool(n)
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(p.Release)
		return func(count int, square func(int) (int, error)) ([]int, error) {
			out := make([]int, count)
			var wg sync.WaitGroup
			wg.Add(count)
			for i := range out {
				if err := p.Submit(func() { defer wg.Done(); out[i], _ = square(i) }); err != nil {
					return nil, err
				}
			}
			wg.Wait()
			return out, nil
		}
	}},
}

func TestPoolOne(t *testing.T) {
	const n = 3
	for _, m := range oneMakers {
		t.Run(m.name, func(t *testing.T) {
			run := m.make(t, n)
			var running, most, ran atomic.Int64
			var wg sync.WaitGroup
			for range 50 {
				wg.Go(func() {
					if err := run(func(context.Context) error {
						now := running.Add(1)
						for old := most.Load(); now > old && !most.CompareAndSwap(old, now); old = most.Load() {
						}
						runtime.Gosched()
						running.Add(-1)
						ran.Add(1)
						return errFailed
					}); err != errFailed {
						t.Errorf("error %v; want the function's", err)
					}
				})
			}
			wg.Wait()
			if most.Load() > n || ran.Load() != 50 {
				t.Errorf("%d ran, up to %d at once; want 50, up to %d", ran.Load(), most.Load(), n)
			}
		})
	}
}

func TestPoolMap(t *testing.T) {
	for _, m := range mapMakers {
		t.Run(m.name, func(t *testing.T) {
			got, err := m.make(t, 2)(5, func(i int) (int, error) { return i * i, nil })
			if want := []int{0, 1, 4, 9, 16}; err != nil || !slices.Equal(got, want) {
				t.Errorf("got %v, %v; want %v", got, err, want)
			}
		})
	}
}

// BenchmarkPool measures running one function that does nothing. The first rows
// run it on the caller's goroutine, the others hand it over.
func BenchmarkPool(b *testing.B) {
	nothing := func(context.Context) error { return nil }
	for _, submitters := range []int{1, 64} {
		for _, m := range oneMakers {
			b.Run("one/submitters="+strconv.Itoa(submitters)+"/"+m.name, func(b *testing.B) {
				run := m.make(b, runtime.GOMAXPROCS(0))
				b.ReportAllocs()
				if submitters == 1 {
					for b.Loop() {
						if err := run(nothing); err != nil {
							b.Fatal(err)
						}
					}
					return
				}
				b.ResetTimer()
				b.SetParallelism(max(1, submitters/runtime.GOMAXPROCS(0)))
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						if err := run(nothing); err != nil {
							b.Error(err)
							return
						}
					}
				})
			})
		}
	}
	for _, m := range mapMakers {
		b.Run("map/items=100/"+m.name, func(b *testing.B) {
			square := m.make(b, runtime.GOMAXPROCS(0))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := square(100, func(i int) (int, error) { return i * i, nil }); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

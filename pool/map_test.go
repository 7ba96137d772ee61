package pool_test

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/pool"
)

// However fast the caller is done, it waits for those that run elsewhere, and has their error.
func TestMapWaitsForItsHelpers(t *testing.T) {
	for name, c := range map[string]struct {
		last func() // the end of the last element, on another goroutine
		err  error
	}{
		"one fails":              {func() {}, errTask},
		"one ends its goroutine": {runtime.Goexit, pool.ErrGoexit},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := pool.New(pool.WithSlots(2))
				began := time.Now()
				var wg sync.WaitGroup
				wg.Go(func() {
					_, err := pool.Map(context.Background(), p, []int{0, 1}, func(_ context.Context, i int) (int, error) {
						if i == 0 {
							time.Sleep(time.Second) // in a synctest bubble
							return 0, nil
						}
						time.Sleep(time.Minute) // in a synctest bubble
						c.last()
						return 0, errTask
					})
					if d := time.Since(began); err != c.err || d != time.Minute {
						t.Errorf("got %v after %v, want %v after a minute", err, d, c.err)
					}
				})
				time.Sleep(2 * time.Second) // in a synctest bubble
				if n := p.Stats().Used; n != 1 {
					t.Errorf("%d slots are taken while one element runs", n)
				}
				wg.Wait()
				empty(t, p)
			})
		})
	}
}

// mapPlaces are the places where a Map may be called.
var mapPlaces = map[string]func(ctx context.Context, p *pool.Pool, f func(context.Context) error) error{
	"in a slot of its own": func(ctx context.Context, _ *pool.Pool, f func(context.Context) error) error { return f(ctx) },
	"inside a task": func(ctx context.Context, p *pool.Pool, f func(context.Context) error) error {
		return p.Do(ctx, f)
	},
}

// A Map whose caller's goroutine is ended by an element begins no more of them, and those that run are told.
func TestMapAfterGoexit(t *testing.T) {
	for name, run := range mapPlaces {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := pool.New(pool.WithSlots(2))
				var calls, told atomic.Int64
				var wg sync.WaitGroup
				wg.Go(func() {
					run(context.Background(), p, func(ctx context.Context) error {
						in := make([]int, 100)
						in[0] = 1 // runs on the caller's goroutine, which begins another first
						pool.Map(ctx, p, in, func(ctx context.Context, first int) (int, error) {
							calls.Add(1)
							if first == 1 {
								synctest.Wait()
								runtime.Goexit()
							}
							<-ctx.Done()
							if context.Cause(ctx) == pool.ErrGoexit {
								told.Add(1)
							}
							return 0, nil
						})
						t.Error("Map returned")
						return nil
					})
				})
				wg.Wait()
				if calls.Load() != 2 || told.Load() != 1 {
					t.Errorf("%d elements were begun, and %d told of the end; want 2 and 1", calls.Load(), told.Load())
				}
				empty(t, p)
			})
		})
	}
}

// When the caller's context ends no further element begins, also where fn does not look at it.
func TestMapEndsWithItsContext(t *testing.T) {
	for name, run := range mapPlaces {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := pool.New(pool.WithSlots(2))
				ctx, cancel := context.WithCancelCause(context.Background())
				time.AfterFunc(2500*time.Millisecond, func() { cancel(errTask) })
				var begun atomic.Int64
				out, err := []int(nil), error(nil)
				run(ctx, p, func(ctx context.Context) error {
					out, err = pool.Map(ctx, p, make([]int, 100), func(context.Context, int) (int, error) {
						begun.Add(1)
						time.Sleep(time.Second) // in a synctest bubble
						return 0, nil
					})
					return nil
				})
				if err != errTask || out != nil || begun.Load() != 6 {
					t.Errorf("got %v and %d results after %d elements, want the cause, none, and 6", err, len(out), begun.Load())
				}
				empty(t, p)
			})
		})
	}
}

// A Map that has made room between its elements has no use for a slot once one of them has failed.
func TestMapThatFailsWaitsForNoSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pool.New(pool.WithSlots(2))
		began := time.Now()
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := pool.Map(context.Background(), p, []int{0, 1, 2, 3}, func(_ context.Context, i int) (int, error) {
				if i == 1 { // on another goroutine
					time.Sleep(time.Second) // in a synctest bubble
					return 0, errTask
				}
				time.Sleep(10 * time.Millisecond) // in a synctest bubble
				return 0, nil
			})
			if d := time.Since(began); err != errTask || d != time.Second {
				t.Errorf("got %v after %v, want the error after a second", err, d)
			}
		})
		time.Sleep(5 * time.Millisecond) // in a synctest bubble
		for range 2 {                    // which then have every slot
			wg.Go(func() {
				p.Do(context.Background(), func(context.Context) error {
					time.Sleep(time.Hour) // in a synctest bubble
					return nil
				})
			})
		}
		wg.Wait()
		empty(t, p)
	})
}

// Each element is a task of its own in the books, in whatever slot it ran, and the options are its own. A goroutine that gets a slot when
// there is no element left is one more, which takes no time.
func TestMapCountsEachElement(t *testing.T) {
	for _, slots := range []int{1, 3} {
		synctest.Test(t, func(t *testing.T) {
			p := pool.New(pool.WithSlots(slots))
			var wg sync.WaitGroup
			for range 2 { // they make room for one another
				wg.Go(func() {
					pool.Map(context.Background(), p, make([]int, 30), func(context.Context, int) (int, error) {
						time.Sleep(time.Second) // in a synctest bubble
						return 0, nil
					}, pool.WithKind("element"))
				})
			}
			wg.Wait()
			s := p.Stats()
			if len(s.Kinds) != 1 || s.Kinds[0].Kind != "element" {
				t.Fatalf("%d slots: %+v", slots, s.Kinds)
			}
			if k := s.Kinds[0]; k.Begun < 60 || k.Begun > 60 && slots == 1 || int64(k.Run.Count) != k.Begun || k.Run.Total != time.Minute || k.Run.P99 > 1250*time.Millisecond {
				t.Errorf("%d slots: %d begun, run time %+v; want 60 of a second each", slots, k.Begun, k.Run)
			}
			empty(t, p)
		})
	}
}

// A Map arrives anew with each element: whoever comes while one runs, and is as urgent, is served before the next.
func TestMapIsOneTaskAmongOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pool.New(pool.WithSlots(1))
		time.Sleep(time.Hour) // in a synctest bubble
		var order []string
		var wg sync.WaitGroup
		wg.Go(func() {
			pool.Map(context.Background(), p, []string{"first", "second", "third"}, func(ctx context.Context, name string) (int, error) {
				time.Sleep(time.Second) // in a synctest bubble
				err := pool.Checkpoint(ctx)
				order = append(order, name)
				return 0, err
			})
		})
		for _, at := range []struct {
			name     string
			priority int
			after    time.Duration
		}{
			{"plain, during the first", 0, 500 * time.Millisecond},
			{"urgent, during the second", 1, time.Second},
		} {
			time.Sleep(at.after) // in a synctest bubble
			wg.Go(func() {
				p.Do(context.Background(), func(context.Context) error {
					order = append(order, at.name)
					return nil
				}, pool.WithPriority(at.priority))
			})
		}
		wg.Wait()
		want := []string{"first", "plain, during the first", "urgent, during the second", "second", "third"}
		for i := range want {
			if i >= len(order) || order[i] != want[i] {
				t.Fatalf("order %q, want %q", order, want)
			}
		}
		empty(t, p)
	})
}

// Maps have the same number of slots as long as they have a use for them, whoever came first, and no slot is idle.
func TestMapsShareTheSlots(t *testing.T) {
	const took = 10 * time.Millisecond
	brief := func(context.Context, int) error {
		time.Sleep(took) // in a synctest bubble
		return nil
	}
	for name, c := range map[string]struct {
		other        int // elements of the one that comes later, and what each does
		f            func(ctx context.Context, i int) error
		shutdown     bool
		first, later time.Duration // they take at most: 1000 elements of 10 ms in 32 slots take 320 ms alone
	}{
		"half for each": {64, brief, false, 350 * time.Millisecond, 60 * time.Millisecond},
		"half for each while the pool is shut down": {64, brief, true, 350 * time.Millisecond, 650 * time.Millisecond},
		"none where all of them have begun":         {1, func(context.Context, int) error { time.Sleep(time.Hour); return nil }, false, 340 * time.Millisecond, time.Hour + took}, // in a synctest bubble
		"none where one of them has failed": {100, func(ctx context.Context, i int) error {
			if i > 0 {
				brief(ctx, i)
				return errTask
			}
			time.Sleep(time.Hour) // in a synctest bubble
			return nil
		}, false, 350 * time.Millisecond, time.Hour + took},
	} {
		for place, run := range mapPlaces {
			t.Run(name+", "+place, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					p := pool.New(pool.WithSlots(32))
					var wg sync.WaitGroup
					start := func(n int, f func(context.Context, int) error, most time.Duration) {
						wg.Go(func() {
							began := time.Now()
							run(context.Background(), p, func(ctx context.Context) error {
								in := make([]int, n)
								for i := range in {
									in[i] = i
								}
								_, err := pool.Map(ctx, p, in, func(ctx context.Context, i int) (int, error) { return 0, f(ctx, i) })
								return err
							})
							if d := time.Since(began); d > most {
								t.Errorf("%d elements took %v, want %v at most", n, d, most)
							}
						})
					}
					start(1000, brief, c.first)
					time.Sleep(5*took + took/2) // in a synctest bubble
					start(c.other, c.f, c.later)
					if c.shutdown {
						time.Sleep(took) // in a synctest bubble
						wg.Go(func() {
							if err := p.Shutdown(context.Background()); err != nil {
								t.Error(err)
							}
						})
					}
					wg.Wait()
					empty(t, p)
				})
			})
		}
	}
}

// A helper makes room for whoever is as urgent, and is in the line with whoever is less so.
func TestMapKeepsItsSlotsFromTheLessUrgent(t *testing.T) {
	for _, c := range []struct{ priority, least, most int }{{0, 300, 400}, {-1, 0, 20}} {
		synctest.Test(t, func(t *testing.T) {
			p := pool.New(pool.WithSlots(4), pool.WithPriorityStep(time.Hour))
			var done atomic.Int64
			var wg sync.WaitGroup
			wg.Go(func() {
				pool.Map(context.Background(), p, make([]int, 400), func(context.Context, int) (int, error) {
					time.Sleep(time.Second) // in a synctest bubble
					return 0, nil
				})
				if n := int(done.Load()); n < c.least || n > c.most {
					t.Errorf("priority %d: %d others were served meanwhile, want %d to %d", c.priority, n, c.least, c.most)
				}
			})
			time.Sleep(time.Millisecond) // in a synctest bubble
			for range 4 {                // there is always one of them in the line
				wg.Go(func() {
					for range 100 {
						p.Do(context.Background(), func(context.Context) error {
							time.Sleep(time.Second) // in a synctest bubble
							done.Add(1)
							return nil
						}, pool.WithPriority(c.priority))
					}
				})
			}
			wg.Wait()
			empty(t, p)
		})
	}
}

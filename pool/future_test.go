package pool_test

import (
	"context"
	"errors"
	"iter"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/pool"
)

func TestSubmit(t *testing.T) {
	ctx := context.Background()
	p := pool.New(pool.WithSlots(1))

	t.Run("any number may wait, any number of times", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := pool.New(pool.WithSlots(1))
			f := pool.Submit(ctx, p, func(context.Context) (string, error) { time.Sleep(time.Second); return "done", errTask }) // in a synctest bubble
			var wg sync.WaitGroup
			for range 10 {
				wg.Go(func() {
					for range 2 {
						if v, err := f.Wait(ctx); v != "done" || err != errTask {
							t.Errorf("%q, %v", v, err)
						}
					}
				})
			}
			synctest.Wait()
			if f.Ready() {
				t.Error("ready before the task ended")
			}
			wg.Wait()
			if !f.Ready() {
				t.Error("not ready after it")
			}
			empty(t, p)
		})
	})
	t.Run("waiting ends with the waiter's context, the task goes on", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := pool.New(pool.WithSlots(1))
			f := pool.Submit(ctx, p, func(context.Context) (int, error) { time.Sleep(time.Minute); return 7, nil }) // in a synctest bubble
			short, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			if _, err := f.Wait(short); err != context.DeadlineExceeded {
				t.Errorf("got %v", err)
			}
			if n, err := f.Wait(ctx); n != 7 || err != nil {
				t.Errorf("%v, %v", n, err)
			}
		})
	})
	t.Run("a panic is an error with the stack, and not in its text", func(t *testing.T) {
		_, err := pool.Submit(ctx, p, func(context.Context) (int, error) { panic(errTask) }).Wait(ctx)
		var pe *pool.PanicError
		if !errors.As(err, &pe) || !errors.Is(err, errTask) {
			t.Fatalf("got %v", err)
		}
		if !strings.Contains(string(pe.Stack), "future_test.go") || strings.Contains(err.Error(), "goroutine") {
			t.Errorf("stack %s\ntext %s", pe.Stack, err)
		}
		empty(t, p)
	})
	t.Run("Goexit is an error", func(t *testing.T) {
		_, err := pool.Submit(ctx, p, func(context.Context) (int, error) { runtime.Goexit(); return 1, nil }).Wait(ctx)
		if err != pool.ErrGoexit {
			t.Errorf("got %v", err)
		}
		empty(t, p)
	})
	t.Run("a task that is cancelled in the line never runs", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := pool.New(pool.WithSlots(1))
			release := full(p)
			ctx, cancel := context.WithCancelCause(ctx)
			f := pool.Submit(ctx, p, func(context.Context) (int, error) { t.Error("ran"); return 0, nil })
			synctest.Wait()
			cancel(errTask)
			if _, err := f.Wait(context.Background()); err != errTask {
				t.Errorf("got %v", err)
			}
			release()
			empty(t, p)
		})
	})
	t.Run("inside a task, what is cancelled is not run by the one that waits", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := pool.New(pool.WithSlots(1))
			p.Do(ctx, func(ctx context.Context) error {
				sub, cancel := context.WithCancel(ctx)
				f := pool.Submit(sub, p, func(context.Context) (int, error) { t.Error("ran"); return 0, nil })
				cancel()
				if _, err := f.Wait(ctx); err != context.Canceled {
					t.Errorf("got %v", err)
				}
				return nil
			})
			synctest.Wait()
			empty(t, p)
		})
	})
	t.Run("tasks run in the order they were submitted", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := pool.New(pool.WithSlots(1))
			release := full(p)
			var order []int
			var fs []*pool.Future[int]
			for i := range 20 {
				fs = append(fs, pool.Submit(ctx, p, func(context.Context) (int, error) { order = append(order, i); return i, nil }))
				synctest.Wait()
				time.Sleep(time.Nanosecond) // in a synctest bubble
			}
			release()
			for _, f := range fs {
				f.Wait(ctx)
			}
			if !slices.IsSorted(order) || len(order) != 20 {
				t.Errorf("order %v", order)
			}
		})
	})
	t.Run("TrySubmit only where there is room", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := pool.New(pool.WithSlots(1))
			one := func(context.Context) (int, error) { return 1, nil }
			f, ok := pool.TrySubmit(ctx, p, one)
			if !ok {
				t.Fatal("refused with a free slot")
			}
			if n, err := f.Wait(ctx); n != 1 || err != nil {
				t.Errorf("%v, %v", n, err)
			}
			release := full(p)
			if f, ok := pool.TrySubmit(ctx, p, one); ok || f != nil {
				t.Error("taken without a free slot")
			}
			release()
			empty(t, p)
		})
	})
}

// What ran on the goroutine that waited for it was not refused, and its context did not end.
func TestSubmitInsideThatRanIsNoRefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pool.New(pool.WithSlots(1))
		err := p.Do(context.Background(), func(ctx context.Context) error {
			f := pool.Submit(ctx, p, func(context.Context) (int, error) { return 1, nil }, pool.WithKind("part"))
			synctest.Wait()
			_, err := f.Wait(ctx)
			return err
		})
		if err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if s := p.Stats(); s.Refused != 0 || s.Left != 0 || s.Waiting != 0 {
			t.Errorf("%d refused, of these %d left, %d wait; want none", s.Refused, s.Left, s.Waiting)
		}
		empty(t, p)
	})
}

// Whoever has no time left does not begin the work that he would wait for.
func TestWaitThatHasEndedRunsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pool.New(pool.WithSlots(1))
		gone := errors.New("gone")
		err := p.Do(context.Background(), func(ctx context.Context) error {
			ran := false
			f := pool.Submit(ctx, p, func(context.Context) (int, error) { ran = true; return 1, nil })
			over, end := context.WithCancelCause(ctx)
			end(gone)
			if n, err := f.Wait(over); n != 0 || err != gone || ran {
				t.Errorf("got %d, %v, ran %v; want the cause, and that it did not run", n, err, ran)
			}
			n, err := f.Wait(ctx)
			if n != 1 {
				t.Errorf("got %d afterwards", n)
			}
			if n, err := f.Wait(over); n != 1 || err != nil {
				t.Errorf("got %d, %v once the result is there", n, err)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// A task is let in once: what it is made of is not refused for lack of room half way.
func TestSubmitInsideIsNotRefused(t *testing.T) {
	ctx := context.Background()
	one := func(context.Context) (int, error) { return 1, nil }
	waits := func(opts ...pool.TaskOption) func(*pool.Pool) {
		return func(p *pool.Pool) { go p.Do(ctx, func(context.Context) error { return nil }, opts...) }
	}
	for name, c := range map[string]struct {
		conf    pool.Option
		busy    func(*pool.Pool)
		opts    []pool.TaskOption
		outside error // what it is refused with outside
	}{
		"no line":             {conf: pool.WithQueue(0, 0), outside: limiter.ErrSaturated},
		"a full line":         {conf: pool.WithQueue(1, time.Hour), busy: waits(), outside: limiter.ErrSaturated},
		"too long in line":    {conf: pool.WithQueue(9, time.Millisecond), outside: limiter.ErrSaturated},
		"a full client share": {conf: pool.WithClientShare(1), busy: waits(pool.WithClient("a")), opts: []pool.TaskOption{pool.WithClient("a")}, outside: limiter.ErrRateLimited},
		"draining":            {conf: pool.WithReserve(0), busy: func(p *pool.Pool) { go p.Shutdown(ctx) }, outside: pool.ErrShutdown},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := pool.New(pool.WithSlots(1), c.conf)
				var late *pool.Future[int]
				err := p.Do(ctx, func(ctx context.Context) error {
					if c.busy != nil {
						c.busy(p)
						synctest.Wait()
					}
					f := pool.Submit(ctx, p, one, c.opts...)
					late = pool.Submit(ctx, p, one, c.opts...)
					outside := pool.Submit(context.Background(), p, one, c.opts...)
					time.Sleep(time.Second) // in a synctest bubble
					if _, err := outside.Wait(ctx); !errors.Is(err, c.outside) {
						t.Errorf("outside: %v, want %v", err, c.outside)
					}
					if f.Ready() {
						t.Error("ready, and nobody has waited for it")
					}
					n, err := f.Wait(ctx)
					if n != 1 || !f.Ready() {
						t.Errorf("got %d, ready %v", n, f.Ready())
					}
					return err
				})
				if err != nil {
					t.Error(err)
				}
				if _, err := late.Wait(ctx); !errors.Is(err, c.outside) {
					t.Errorf("after the task has ended: %v, want %v", err, c.outside)
				}
				synctest.Wait()
				empty(t, p)
			})
		})
	}
	t.Run("dropped at the end of draining", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := pool.New(pool.WithSlots(1))
			p.Do(ctx, func(ctx context.Context) error {
				never := func(context.Context) (int, error) { t.Error("ran"); return 0, nil }
				waits := pool.Submit(ctx, p, never)
				synctest.Wait()
				ended, cancel := context.WithCancel(ctx)
				cancel()
				p.Shutdown(ended)
				for name, f := range map[string]*pool.Future[int]{"submitted before": waits, "submitted after": pool.Submit(ctx, p, never)} {
					if _, err := f.Wait(ctx); err != pool.ErrShutdown {
						t.Errorf("%s: %v", name, err)
					}
				}
				return nil
			})
			synctest.Wait()
			empty(t, p)
		})
	})
}

// What a task is made of is not refused for what stands in the line before it either: it can run in the slot that the task has.
func TestSubmitInsideIsNotRefusedForTheLine(t *testing.T) {
	one := func(context.Context) (int, error) { return 1, nil }
	for _, c := range []struct {
		name        string
		context     time.Duration // of the task, until its end
		own         time.Duration // of what it submits, until its deadline; 0 is none
		waits       time.Duration // what goes by until it waits for that
		n           int
		inside, out error
	}{
		{name: "by the deadline of the context", context: time.Second, waits: 800 * time.Millisecond, n: 1, out: limiter.ErrWouldMissDeadline},
		{name: "by its own", context: time.Hour, own: time.Second, waits: time.Second - 1, n: 1, out: limiter.ErrWouldMissDeadline},
		{name: "that has passed", context: time.Hour, own: time.Second, waits: time.Second, inside: limiter.ErrWouldMissDeadline, out: limiter.ErrWouldMissDeadline},
		{name: "that had passed", context: time.Hour, own: -1, inside: limiter.ErrWouldMissDeadline, out: limiter.ErrWouldMissDeadline},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := pool.New(pool.WithSlots(1), pool.WithPriorityStep(time.Hour))
				for range 40 {
					go p.Do(context.Background(), func(context.Context) error {
						time.Sleep(100 * time.Millisecond) // in a synctest bubble
						return nil
					})
				}
				time.Sleep(2 * time.Second) // in a synctest bubble
				ctx, cancel := context.WithTimeout(context.Background(), c.context)
				defer cancel()
				var opts []pool.TaskOption
				err := p.Do(ctx, func(inside context.Context) error {
					if c.own != 0 {
						opts = append(opts, pool.WithDeadline(time.Now().Add(c.own)))
					}
					f := pool.Submit(inside, p, one, opts...)
					if _, err := pool.Submit(ctx, p, one, opts...).Wait(ctx); !errors.Is(err, c.out) {
						t.Errorf("outside: %v, want %v", err, c.out)
					}
					if c.waits != 0 {
						time.Sleep(c.waits) // in a synctest bubble
					}
					n, err := f.Wait(inside)
					if n != c.n || !f.Ready() {
						t.Errorf("got %d, ready %v; want %d", n, f.Ready(), c.n)
					}
					return err
				}, pool.WithPriority(7))
				if !errors.Is(err, c.inside) {
					t.Errorf("inside: %v, want %v", err, c.inside)
				}
				time.Sleep(10 * time.Second) // in a synctest bubble
				empty(t, p)
			})
		})
	}
}

func TestMap(t *testing.T) {
	ctx := context.Background()
	t.Run("ordered, on every slot, never more", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := pool.New(pool.WithSlots(4))
			var in, most atomic.Int64
			items := make([]int, 100)
			for i := range items {
				items[i] = i
			}
			began := time.Now()
			got, err := pool.Map(ctx, p, items, func(_ context.Context, i int) (int, error) {
				most.Store(max(most.Load(), in.Add(1)))
				defer in.Add(-1)
				time.Sleep(time.Second) // in a synctest bubble
				return i, nil
			}, pool.WithKind("item"))
			if err != nil || !slices.Equal(got, items) {
				t.Errorf("%v, %v", got, err)
			}
			if most.Load() != 4 || time.Since(began) != 25*time.Second {
				t.Errorf("%d at the same time, took %v", most.Load(), time.Since(began))
			}
			empty(t, p)
		})
	})
	t.Run("the first error cancels the rest and is returned", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := pool.New(pool.WithSlots(3))
			var calls atomic.Int64
			_, err := pool.Map(ctx, p, make([]int, 100), func(ctx context.Context, i int) (int, error) {
				if calls.Add(1) == 3 {
					time.Sleep(time.Second) // in a synctest bubble
					return 0, errTask
				}
				<-ctx.Done()
				return 0, context.Cause(ctx)
			})
			if err != errTask || calls.Load() != 3 {
				t.Errorf("%v after %d calls", err, calls.Load())
			}
			empty(t, p)
		})
	})
	t.Run("a panic is an error", func(t *testing.T) {
		p := pool.New(pool.WithSlots(2))
		_, err := pool.Map(ctx, p, make([]int, 10), func(context.Context, int) (int, error) { panic("x") })
		var pe *pool.PanicError
		if !errors.As(err, &pe) || pe.Value != "x" {
			t.Errorf("got %v", err)
		}
		empty(t, p)
	})
	t.Run("Goexit ends the caller's goroutine and nothing is lost", func(t *testing.T) {
		p := pool.New(pool.WithSlots(2))
		done := make(chan struct{})
		go func() {
			defer close(done)
			pool.Map(ctx, p, make([]int, 10), func(context.Context, int) (int, error) { runtime.Goexit(); return 0, nil })
		}()
		<-done
		empty(t, p)
	})
	t.Run("nothing to do", func(t *testing.T) {
		got, err := pool.Map(ctx, pool.New(), []int{}, func(context.Context, int) (int, error) { return 0, nil })
		if len(got) != 0 || got == nil || err != nil {
			t.Errorf("%v, %v", got, err)
		}
	})
	t.Run("under load others get their turn between the elements", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := pool.New(pool.WithSlots(1))
			done := make(chan struct{})
			go func() {
				defer close(done)
				pool.Map(ctx, p, make([]int, 100), func(context.Context, int) (int, error) { time.Sleep(time.Second); return 0, nil }) // in a synctest bubble
			}()
			synctest.Wait()
			began := time.Now()
			p.Do(ctx, func(context.Context) error { return nil })
			if d := time.Since(began); d > time.Second {
				t.Errorf("waited %v behind a Map", d)
			}
			<-done
			empty(t, p)
		})
	})
	t.Run("brief elements that are not timed add no time, also where the first slot was waited for", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := pool.New(pool.WithSlots(1))
			brief := func(context.Context, int) (int, error) { time.Sleep(time.Microsecond); return 0, nil } // in a synctest bubble
			pool.Map(ctx, p, make([]int, 3), brief, pool.WithKind("brief"))
			time.Sleep(24 * time.Hour) // in a synctest bubble
			release := full(p)
			done := make(chan struct{})
			go func() {
				defer close(done)
				pool.Map(ctx, p, make([]int, 5), brief, pool.WithKind("brief"))
			}()
			synctest.Wait()
			release()
			<-done
			for _, k := range p.Stats().Kinds {
				if k.Kind == "brief" && (k.Run.Total > 8*time.Microsecond || k.Run.P99 > 2*time.Microsecond) {
					t.Errorf("8 elements of 1 us each took %+v", k.Run)
				}
			}
			empty(t, p)
		})
	})
	t.Run("no slot: the error of Do", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := pool.New(pool.WithSlots(1), pool.WithQueue(0, 0))
			release := full(p)
			if _, err := pool.Map(ctx, p, []int{1}, func(context.Context, int) (int, error) { return 0, nil }); !errors.Is(err, limiter.ErrSaturated) {
				t.Errorf("got %v", err)
			}
			release()
		})
	})
}

func TestStream(t *testing.T) {
	ctx := context.Background()
	count := func(pulled *int) iter.Seq[int] {
		return func(yield func(int) bool) {
			for i := 0; yield(i); i++ {
				*pulled = i + 1
			}
		}
	}
	t.Run("ordered, and no further ahead than the window", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := pool.New(pool.WithSlots(3))
			pulled, want := 0, 0
			for n, err := range pool.Stream(ctx, p, count(&pulled), func(_ context.Context, n int) (int, error) {
				time.Sleep(time.Duration(10-n%10) * time.Millisecond) // in a synctest bubble
				return n, nil
			}) {
				if n != want || err != nil {
					t.Fatalf("got %v, %v, want %v", n, err, want)
				}
				if want++; pulled > want+6 {
					t.Fatalf("%d read after %d were consumed", pulled, want)
				}
				if want == 50 {
					break
				}
			}
			empty(t, p)
		})
	})
	t.Run("the first error ends it and cancels the rest", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := pool.New(pool.WithSlots(3))
			var pulled, got int
			var last error
			for _, err := range pool.Stream(ctx, p, count(&pulled), func(ctx context.Context, n int) (int, error) {
				if n == 1 {
					return 0, errTask
				}
				if n > 1 {
					<-ctx.Done()
				}
				return n, context.Cause(ctx)
			}) {
				got++
				last = err
			}
			if got != 2 || last != errTask {
				t.Errorf("%d results, the last error %v", got, last)
			}
			empty(t, p)
		})
	})
}

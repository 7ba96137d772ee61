package pool_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
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

var errTask = errors.New("task failed")

// full fills every slot of p until release is called.
func full(p *pool.Pool) (release func()) {
	n := p.Slots()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			p.Do(context.Background(), func(context.Context) error { <-stop; return nil })
		})
	}
	synctest.Wait()
	return func() { close(stop); wg.Wait() }
}

// empty checks that no slot is taken and nobody waits.
func empty(t *testing.T, p *pool.Pool) {
	t.Helper()
	s := p.Stats()
	if s.Used != 0 || s.Waiting != 0 {
		t.Errorf("%d slots used and %d waiting, want none", s.Used, s.Waiting)
	}
	if waiting, clients := pool.Remembered(p); waiting != 0 || clients != 0 {
		t.Errorf("%d that wait and %d clients are remembered, want none", waiting, clients)
	}
	if n := pool.Maps(p); n != 0 {
		t.Errorf("%d Maps are remembered, want none", n)
	}
	for _, k := range s.Kinds {
		if k.Running != 0 || k.Waiting != 0 {
			t.Errorf("kind %q: %d running, %d waiting, %d begun, %d measured", k.Kind, k.Running, k.Waiting, k.Begun, k.Run.Count)
		}
	}
}

func TestDo(t *testing.T) {
	ctx := context.Background()
	p := pool.New(pool.WithSlots(1))

	t.Run("returns what fn returns, untouched", func(t *testing.T) {
		if err := p.Do(ctx, func(context.Context) error { return errTask }); err != errTask {
			t.Errorf("got %v", err)
		}
	})
	t.Run("runs on the caller's goroutine", func(t *testing.T) {
		var here, there [64]byte
		runtime.Stack(here[:], false)
		p.Do(ctx, func(context.Context) error { runtime.Stack(there[:], false); return nil })
		a, _, _ := strings.Cut(string(here[:]), " [")
		b, _, _ := strings.Cut(string(there[:]), " [")
		if a != b {
			t.Errorf("called on %q, ran on %q", a, b)
		}
	})
	t.Run("context values and deadline are the caller's", func(t *testing.T) {
		type key struct{}
		until := time.Now().Add(time.Hour)
		ctx, cancel := context.WithDeadline(context.WithValue(ctx, key{}, 7), until)
		defer cancel()
		p.Do(ctx, func(ctx context.Context) error {
			if d, ok := ctx.Deadline(); ctx.Value(key{}) != 7 || !ok || !d.Equal(until) {
				t.Errorf("value %v, deadline %v", ctx.Value(key{}), d)
			}
			return nil
		})
	})
	t.Run("a panic travels on as it is", func(t *testing.T) {
		abort := errors.New("abort handler")
		defer func() {
			if v := recover(); v != abort {
				t.Errorf("recovered %v", v)
			}
			empty(t, p)
		}()
		p.Do(ctx, func(context.Context) error { panic(abort) })
	})
	t.Run("Goexit gives the slot back", func(t *testing.T) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			p.Do(ctx, func(context.Context) error { runtime.Goexit(); return nil })
		}()
		<-done
		empty(t, p)
	})
	t.Run("a context that has ended gets no slot", func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(ctx)
		cancel(errTask)
		called := false
		if err := p.Do(ctx, func(context.Context) error { called = true; return nil }); err != errTask || called {
			t.Errorf("got %v, called %v", err, called)
		}
	})
}

func TestNestedAtSizeOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, other := pool.New(pool.WithSlots(1)), pool.New(pool.WithSlots(1))
		ctx := context.Background()
		double := func(_ context.Context, n int) (int, error) { return 2 * n, nil }
		err := p.Do(ctx, func(ctx context.Context) error {
			if err := p.Do(ctx, func(ctx context.Context) error {
				return other.Do(ctx, func(ctx context.Context) error {
					return p.Do(ctx, func(context.Context) error { return nil })
				})
			}); err != nil {
				return err
			}
			inner, slot, err := p.Enter(ctx)
			if err != nil || inner != ctx {
				t.Errorf("Enter inside a task: %v, new context %v", err, inner != ctx)
			}
			slot.Leave()
			if got, err := pool.Map(ctx, p, []int{1, 2, 3}, double); err != nil || !slices.Equal(got, []int{2, 4, 6}) {
				t.Errorf("Map inside a task: %v, %v", got, err)
			}
			f := pool.Submit(ctx, p, func(ctx context.Context) (int, error) {
				g := pool.Submit(ctx, p, func(context.Context) (int, error) { return 20, nil })
				n, err := g.Wait(ctx)
				return n + 1, err
			})
			// Also with a context that does not carry the slot.
			if n, err := f.Wait(context.Background()); n != 21 || err != nil {
				t.Errorf("Submit inside a task: %v, %v", n, err)
			}
			var sum int
			for n, err := range pool.Stream(ctx, p, slices.Values([]int{1, 2, 3, 4}), double) {
				if err != nil {
					t.Error(err)
				}
				sum += n
			}
			if sum != 20 {
				t.Errorf("Stream inside a task: %v", sum)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		synctest.Wait()
		empty(t, p)
	})
}

func TestContextOutlivesItsTask(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pool.New(pool.WithSlots(1))
		var kept context.Context
		p.Do(context.Background(), func(ctx context.Context) error { kept = ctx; return nil })
		release := full(p)
		began := false
		done := make(chan struct{})
		go func() {
			defer close(done)
			p.Do(kept, func(context.Context) error { began = true; return nil })
		}()
		synctest.Wait()
		if began {
			t.Error("a context of a finished task let another in without a slot")
		}
		release()
		<-done
		if !began {
			t.Error("did not run after a slot came free")
		}
	})
}

func TestEnterAndLeave(t *testing.T) {
	p := pool.New(pool.WithSlots(2))
	_, a, err := p.Enter(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	_, b, _ := p.Enter(context.Background())
	c := a
	a.Leave()
	a.Leave()
	c.Leave()
	pool.Slot{}.Leave()
	if n := p.Stats().Used; n != 1 {
		t.Errorf("%d slots used after one of two was left three times", n)
	}
	b.Leave()
	empty(t, p)
}

func TestLine(t *testing.T) {
	t.Run("cancelled while waiting: answered at once, place free", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := pool.New(pool.WithSlots(1), pool.WithQueue(1, time.Minute))
			release := full(p)
			ctx, cancel := context.WithCancelCause(context.Background())
			done := make(chan error)
			go func() { done <- p.Do(ctx, func(context.Context) error { t.Error("ran"); return nil }) }()
			synctest.Wait()
			before := time.Now()
			cancel(errTask)
			if err := <-done; err != errTask {
				t.Errorf("got %v", err)
			}
			if d := time.Since(before); d != 0 {
				t.Errorf("answered after %v", d)
			}
			if s := p.Stats(); s.Waiting != 0 || s.Left != 1 {
				t.Errorf("%d waiting, %d left", s.Waiting, s.Left)
			}
			release()
			empty(t, p)
		})
	})
	t.Run("full line: refused at once", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := pool.New(pool.WithSlots(1), pool.WithQueue(0, 0))
			release := full(p)
			if err := p.Do(context.Background(), func(context.Context) error { return nil }); !errors.Is(err, limiter.ErrSaturated) {
				t.Errorf("got %v", err)
			}
			release()
			empty(t, p)
		})
	})
	t.Run("waited as long as the line allows: refused", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := pool.New(pool.WithSlots(1), pool.WithQueue(8, time.Second))
			release := full(p)
			before := time.Now()
			err := p.Do(context.Background(), func(context.Context) error { return nil })
			if !errors.Is(err, limiter.ErrSaturated) {
				t.Errorf("got %v", err)
			}
			if d := time.Since(before); d < time.Second || d > time.Second+time.Millisecond {
				t.Errorf("refused after %v", d)
			}
			release()
		})
	})
	t.Run("priority first, then order of arrival", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := pool.New(pool.WithSlots(1), pool.WithPriorityStep(time.Second))
			release := full(p)
			var mu sync.Mutex
			var order []string
			var wg sync.WaitGroup
			for _, w := range []struct {
				name     string
				priority int
			}{{"low", -1}, {"first", 0}, {"second", 0}, {"high", 3}, {"lowest", -8}, {"below", -100}, {"highest", 7}, {"above", 100}} {
				wg.Go(func() {
					p.Do(context.Background(), func(context.Context) error {
						mu.Lock()
						order = append(order, w.name)
						mu.Unlock()
						return nil
					}, pool.WithPriority(w.priority))
				})
				synctest.Wait()
				time.Sleep(time.Millisecond) // in a synctest bubble
			}
			release()
			wg.Wait()
			if want := []string{"highest", "above", "high", "first", "second", "low", "lowest", "below"}; !slices.Equal(order, want) {
				t.Errorf("order %v, want %v", order, want)
			}
		})
	})
	t.Run("a low priority under a flood of high ones waits no more than its levels", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			const step, service = 100 * time.Millisecond, 10 * time.Millisecond
			p := pool.New(pool.WithSlots(1), pool.WithPriorityStep(step), pool.WithQueue(1000, time.Minute))
			ctx, cancel := context.WithCancel(context.Background())
			busy := func(context.Context) error { time.Sleep(service); return nil } // in a synctest bubble
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					for ctx.Err() == nil {
						p.Do(ctx, busy, pool.WithPriority(3))
					}
				})
			}
			synctest.Wait()
			before := time.Now()
			p.Do(context.Background(), busy, pool.WithPriority(-3))
			if waited := time.Since(before) - service; waited > 6*step+4*service {
				t.Errorf("waited %v", waited)
			}
			cancel()
			wg.Wait()
		})
	})
	t.Run("clients share the slot time, not the number of tasks", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := pool.New(pool.WithSlots(1), pool.WithQueue(1000, time.Minute))
			ctx, cancel := context.WithCancel(context.Background())
			var used [2]time.Duration
			var wg sync.WaitGroup
			client := func(i, workers int, name string, service time.Duration) {
				for range workers {
					wg.Go(func() {
						for ctx.Err() == nil {
							p.Do(ctx, func(context.Context) error {
								time.Sleep(service) // in a synctest bubble
								used[i] += service
								return nil
							}, pool.WithClient(name))
						}
					})
				}
			}
			client(0, 50, "flood", 30*time.Millisecond)
			client(1, 2, "small", 10*time.Millisecond)
			time.Sleep(20 * time.Second) // in a synctest bubble
			cancel()
			wg.Wait()
			if share := used[1].Seconds() / (used[0] + used[1]).Seconds(); share < 0.45 || share > 0.55 {
				t.Errorf("the small client had %.2f of the time", share)
			}
		})
	})
	t.Run("brief work that looks again joins the line in the end", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := pool.New(pool.WithSlots(1))
			brief := func(context.Context) error { time.Sleep(200 * time.Nanosecond); return nil } // in a synctest bubble
			p.Do(context.Background(), brief)
			var wg sync.WaitGroup
			for range 20 {
				wg.Go(func() { p.Do(context.Background(), brief) })
			}
			wg.Wait()
			if k := p.Stats().Kinds[0]; k.Begun != 21 || k.Wait.Count == 0 {
				t.Errorf("%d begun, %d of them waited", k.Begun, k.Wait.Count)
			}
			empty(t, p)
		})
	})
	t.Run("priority orders the tasks of one client, turns those of different ones", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := pool.New(pool.WithSlots(1), pool.WithPriorityStep(time.Hour))
			release := full(p)
			var order []string
			var wg sync.WaitGroup
			for _, w := range []struct {
				name, client string
				priority     int
			}{{"low", "", -4}, {"lower", "", -5}, {"a low", "a", -8}, {"a high", "a", 7}} {
				wg.Go(func() {
					p.Do(context.Background(), func(context.Context) error {
						order = append(order, w.name)
						time.Sleep(time.Millisecond) // in a synctest bubble
						return nil
					}, pool.WithClient(w.client), pool.WithPriority(w.priority))
				})
				synctest.Wait()
			}
			release()
			wg.Wait()
			if want := []string{"low", "a high", "lower", "a low"}; !slices.Equal(order, want) {
				t.Errorf("order %v, want %v", order, want)
			}
		})
	})
	t.Run("a client has its share of the line and no more", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := pool.New(pool.WithSlots(1), pool.WithQueue(10, time.Minute), pool.WithClientShare(3))
			release := full(p)
			var wg sync.WaitGroup
			var over, ran atomic.Int64
			for _, client := range []string{"a", "b", ""} {
				for range 4 {
					wg.Go(func() {
						err := p.Do(context.Background(), func(context.Context) error { ran.Add(1); return nil }, pool.WithClient(client))
						var e *limiter.Error
						if errors.Is(err, limiter.ErrRateLimited) && errors.As(err, &e) && e.Policy == "pool share" && client != "" {
							over.Add(1)
						} else if err != nil {
							t.Errorf("%q: %v", client, err)
						}
					})
				}
			}
			synctest.Wait()
			if over.Load() != 2 {
				t.Errorf("%d refused, want one of each client", over.Load())
			}
			release()
			wg.Wait()
			if ran.Load() != 10 {
				t.Errorf("%d ran", ran.Load())
			}
			if s := p.Stats(); s.Share != 2 || s.Refused != 2 {
				t.Errorf("%+v", s)
			}
			empty(t, p)
		})
	})
	t.Run("weights never exceed the slots", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := pool.New(pool.WithSlots(4))
			var in, most atomic.Int64
			var wg sync.WaitGroup
			for i := range 40 {
				k := i%6 + 1
				wg.Go(func() {
					err := p.Do(context.Background(), func(context.Context) error {
						n := in.Add(int64(min(k, 4)))
						most.Store(max(most.Load(), n))
						time.Sleep(time.Millisecond) // in a synctest bubble
						in.Add(-int64(min(k, 4)))
						return nil
					}, pool.WithWeight(k))
					if err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if most.Load() > 4 {
				t.Errorf("%d cores used of 4 slots", most.Load())
			}
			empty(t, p)
		})
	})
	t.Run("late by its own deadline: refused at the door or in the line, never run", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := pool.New(pool.WithSlots(1))
			work := func(context.Context) error { time.Sleep(100 * time.Millisecond); return nil } // in a synctest bubble
			// So that the kind's usual run time is known.
			for range 3 {
				p.Do(context.Background(), work, pool.WithKind("k"))
			}
			if err := p.Do(context.Background(), work, pool.WithDeadline(time.Now())); !errors.Is(err, limiter.ErrWouldMissDeadline) {
				t.Errorf("past it: %v", err)
			}
			release := full(p)
			soon := pool.WithDeadline(time.Now().Add(50 * time.Millisecond))
			before := time.Now()
			err := p.Do(context.Background(), func(context.Context) error { t.Error("ran"); return nil }, soon, pool.WithKind("k"))
			if !errors.Is(err, limiter.ErrWouldMissDeadline) || time.Since(before) != 0 {
				t.Errorf("at the door: %v after %v", err, time.Since(before))
			}
			done := make(chan error)
			go func() {
				done <- p.Do(context.Background(), func(context.Context) error { t.Error("ran"); return nil }, soon)
			}()
			time.Sleep(60 * time.Millisecond) // in a synctest bubble
			release()
			if err := <-done; !errors.Is(err, limiter.ErrWouldMissDeadline) {
				t.Errorf("in the line: %v", err)
			}
			empty(t, p)
		})
	})
}

// TestPlainContext holds what WithPlainContext changes, and that it changes nothing else.
func TestPlainContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pool.New(pool.WithSlots(1))
		ctx, cancel := context.WithCancelCause(context.WithValue(context.Background(), t, 1))
		plain := pool.WithPlainContext()
		same := func(inner context.Context) error {
			if inner != ctx {
				t.Error("another context")
			}
			if s := p.Stats(); s.Used != 1 {
				t.Errorf("%d slots used", s.Used)
			}
			return errTask
		}
		if err := p.Do(ctx, same, plain); err != errTask {
			t.Errorf("got %v", err)
		}
		release := full(p)
		done := make(chan error)
		go func() { done <- p.Do(ctx, same, plain, pool.WithPriority(1)) }() // waits
		synctest.Wait()
		release()
		if err := <-done; err != errTask {
			t.Errorf("after a wait: %v", err)
		}
		inner, slot, err := p.Enter(ctx, plain)
		if inner != ctx || err != nil || p.Stats().Used != 1 {
			t.Errorf("Enter: %v", err)
		}
		slot.Leave()
		slot.Leave()
		p.Do(ctx, func(ctx context.Context) error {
			return p.Do(ctx, func(inner context.Context) error {
				if inner != ctx {
					t.Error("a nested call took a slot of its own")
				}
				return nil
			}, plain)
		})
		func() {
			defer func() { recover() }()
			p.Do(ctx, func(context.Context) error { panic("bad") }, plain)
		}()
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			p.Do(ctx, func(context.Context) error { runtime.Goexit(); return nil }, plain)
		}()
		<-gone
		empty(t, p)
		cancel(errTask)
		if err := p.Do(ctx, same, plain); err != errTask {
			t.Errorf("ended context: %v", err)
		}
		if err := p.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		if err := p.Do(context.Background(), same, plain); err != pool.ErrShutdown {
			t.Errorf("after Shutdown: %v", err)
		}
	})
}

func TestResize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pool.New(pool.WithSlots(1))
		release := full(p)
		ran := make(chan struct{})
		go p.Do(context.Background(), func(context.Context) error { close(ran); return nil })
		synctest.Wait()
		if err := p.Resize(2); err != nil {
			t.Error(err)
		}
		<-ran
		release()
		for _, n := range []int{0, -1, 1 << 30, math.MaxInt} {
			if err := p.Resize(n); err == nil || !strings.HasPrefix(err.Error(), "pool: ") {
				t.Errorf("Resize(%d): %v", n, err)
			}
		}
		if p.Slots() != 2 {
			t.Errorf("%d slots after a refused Resize, want 2", p.Slots())
		}
	})
}

func TestWeightAboveTheWhole(t *testing.T) {
	const most = 1<<30 - 1
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		p := pool.New(pool.WithSlots(most))
		for range 3 {
			p.Do(ctx, func(ctx context.Context) error {
				if n := p.Stats().Used; n != most {
					t.Errorf("it takes %d slots, want %d", n, most)
				}
				time.Sleep(time.Millisecond) // in a synctest bubble
				go p.Do(context.Background(), func(context.Context) error { return nil }, pool.WithWeight(math.MaxInt), pool.WithPriority(1))
				synctest.Wait()
				return pool.Checkpoint(ctx)
			}, pool.WithWeight(math.MaxInt))
			synctest.Wait() // the other has given its slots back, and may not have returned yet
			empty(t, p)
		}
	})
}

func TestSlotsFollowGOMAXPROCS(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	runtime.GOMAXPROCS(4)
	synctest.Test(t, func(t *testing.T) {
		p, fixed := pool.New(), pool.New(pool.WithSlots(3))
		none := pool.New(pool.WithReserve(100))
		if p.Slots() != 3 || none.Slots() != 1 {
			t.Errorf("%d and %d slots, want 3 and 1", p.Slots(), none.Slots())
		}
		runtime.GOMAXPROCS(6)
		time.Sleep(1100 * time.Millisecond) // in a synctest bubble
		nop := func(context.Context) error { return nil }
		p.Do(context.Background(), nop)
		fixed.Do(context.Background(), nop)
		if p.Slots() != 5 || fixed.Slots() != 3 {
			t.Errorf("%d and %d slots, want 5 and 3", p.Slots(), fixed.Slots())
		}
	})
}

func TestCheckpoint(t *testing.T) {
	t.Run("outside a task", func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(context.Background())
		if err := pool.Checkpoint(ctx); err != nil {
			t.Error(err)
		}
		cancel(errTask)
		if err := pool.Checkpoint(ctx); err != errTask {
			t.Errorf("got %v", err)
		}
	})
	t.Run("more urgent work goes first, the same priority does not", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := pool.New(pool.WithSlots(1), pool.WithPriorityStep(time.Second))
			var order []string
			var wg sync.WaitGroup
			wg.Go(func() {
				p.Do(context.Background(), func(ctx context.Context) error {
					for range 3 {
						time.Sleep(10 * time.Millisecond) // in a synctest bubble
						if err := pool.Checkpoint(ctx); err != nil {
							t.Error(err)
						}
					}
					order = append(order, "long")
					return nil
				})
			})
			synctest.Wait()
			for _, w := range []struct {
				name     string
				priority int
			}{{"same", 0}, {"urgent", 2}} {
				wg.Go(func() {
					p.Do(context.Background(), func(context.Context) error {
						order = append(order, w.name)
						return nil
					}, pool.WithPriority(w.priority))
				})
				synctest.Wait()
			}
			wg.Wait()
			if want := []string{"urgent", "long", "same"}; !slices.Equal(order, want) {
				t.Errorf("order %v, want %v", order, want)
			}
			for _, k := range p.Stats().Kinds {
				if k.Run.Total != 30*time.Millisecond {
					t.Errorf("run time %v, want 30ms", k.Run.Total)
				}
			}
			empty(t, p)
		})
	})
	t.Run("a flood of urgent work leaves it its turns", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := pool.New(pool.WithSlots(1))
			flood, cancel := context.WithCancel(context.Background())
			var wg sync.WaitGroup
			began := time.Now()
			wg.Go(func() {
				p.Do(context.Background(), func(ctx context.Context) error {
					for range 200 {
						time.Sleep(time.Millisecond) // in a synctest bubble
						if err := pool.Checkpoint(ctx); err != nil {
							t.Error(err)
						}
					}
					return nil
				}, pool.WithPriority(-4))
				if d := time.Since(began); d < 500*time.Millisecond || d > 2*time.Second {
					t.Errorf("200 ms of work in turns of 10 ms with 50 ms of others in between took %v", d)
				}
				cancel()
			})
			synctest.Wait()
			for range 4 {
				wg.Go(func() {
					for flood.Err() == nil {
						p.Do(flood, func(context.Context) error { time.Sleep(50 * time.Millisecond); return nil }) // in a synctest bubble
					}
				})
			}
			wg.Wait()
			empty(t, p)
		})
	})
	t.Run("a part of it cancelled while it stands back: it goes on in its slot", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := pool.New(pool.WithSlots(1))
			var in atomic.Int64
			alone := func() {
				if in.Add(1) > 1 {
					t.Error("two in one slot")
				}
				time.Sleep(time.Second) // in a synctest bubble
				in.Add(-1)
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				p.Do(context.Background(), func(ctx context.Context) error {
					part, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
					defer cancel()
					time.Sleep(time.Millisecond) // in a synctest bubble
					if err := pool.Checkpoint(part); err != context.DeadlineExceeded {
						t.Errorf("got %v", err)
					}
					alone()
					return nil
				})
			}()
			synctest.Wait()
			p.Do(context.Background(), func(context.Context) error { alone(); return nil }, pool.WithPriority(1))
			<-done
			empty(t, p)
		})
	})
	t.Run("several goroutines of one task stand back together", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := pool.New(pool.WithSlots(1))
			began := time.Now()
			done := make(chan struct{})
			go func() {
				defer close(done)
				p.Do(context.Background(), func(ctx context.Context) error {
					var wg sync.WaitGroup
					for range 3 {
						wg.Go(func() {
							time.Sleep(time.Millisecond) // in a synctest bubble
							if err := pool.Checkpoint(ctx); err != nil {
								t.Error(err)
							}
							if d := time.Since(began); d != time.Second {
								t.Errorf("one goes on after %v, while another task has the slot", d)
							}
						})
					}
					wg.Wait()
					return nil
				})
			}()
			synctest.Wait()
			p.Do(context.Background(), func(context.Context) error {
				time.Sleep(time.Second - time.Millisecond) // in a synctest bubble
				return nil
			}, pool.WithPriority(1))
			<-done
			empty(t, p)
		})
	})
	t.Run("how long it stood back is known", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := pool.New(pool.WithSlots(1))
			if d := pool.StoodBack(context.Background()); d != 0 {
				t.Errorf("outside a task %v", d)
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				p.Do(context.Background(), func(ctx context.Context) error {
					for i := range 3 {
						if d, want := pool.StoodBack(ctx), time.Duration(i)*time.Second; d != want {
							t.Errorf("stood back for %v, want %v", d, want)
						}
						time.Sleep(20 * time.Millisecond) // in a synctest bubble
						go p.Do(context.Background(), func(context.Context) error {
							time.Sleep(time.Second) // in a synctest bubble
							return nil
						}, pool.WithPriority(1))
						synctest.Wait()
						if err := pool.Checkpoint(ctx); err != nil {
							t.Error(err)
						}
					}
					return nil
				})
			}()
			<-done
			empty(t, p)
		})
	})
	t.Run("cancelled while it stands back", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := pool.New(pool.WithSlots(1))
			ctx, cancel := context.WithCancel(context.Background())
			result := make(chan error)
			go func() {
				result <- p.Do(ctx, func(ctx context.Context) error {
					time.Sleep(time.Millisecond) // in a synctest bubble
					return pool.Checkpoint(ctx)
				})
			}()
			synctest.Wait()
			done := make(chan struct{})
			go func() {
				defer close(done)
				p.Do(context.Background(), func(context.Context) error { time.Sleep(time.Second); return nil }, pool.WithPriority(5)) // in a synctest bubble
			}()
			time.Sleep(10 * time.Millisecond) // in a synctest bubble
			cancel()
			if err := <-result; err != context.Canceled {
				t.Errorf("got %v", err)
			}
			<-done
			empty(t, p)
		})
	})
	t.Run("cancelled while it stands back: what it still does takes a slot of its own", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := pool.New(pool.WithSlots(1))
			var in atomic.Int64
			alone := func(context.Context) error {
				if in.Add(1) > 1 {
					t.Error("two in one slot")
				}
				time.Sleep(time.Second) // in a synctest bubble
				in.Add(-1)
				return nil
			}
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan struct{})
			go func() {
				defer close(done)
				p.Do(ctx, func(ctx context.Context) error {
					time.Sleep(time.Millisecond) // in a synctest bubble
					if err := pool.Checkpoint(ctx); err != context.Canceled {
						t.Errorf("got %v", err)
					}
					ctx = context.WithoutCancel(ctx)
					if err := pool.Checkpoint(ctx); err != nil {
						t.Errorf("without a slot: %v", err)
					}
					return p.Do(ctx, alone)
				})
			}()
			synctest.Wait()
			time.AfterFunc(10*time.Millisecond, cancel)
			p.Do(context.Background(), alone, pool.WithPriority(1))
			<-done
			empty(t, p)
		})
	})
}

func TestShutdown(t *testing.T) {
	t.Run("waits for what waits and runs", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := pool.New(pool.WithSlots(1))
			var ran atomic.Int64
			for range 5 {
				go p.Do(context.Background(), func(context.Context) error {
					time.Sleep(time.Second) // in a synctest bubble
					ran.Add(1)
					return nil
				})
			}
			synctest.Wait()
			if err := p.Shutdown(context.Background()); err != nil || ran.Load() != 5 {
				t.Errorf("%v with %d of 5 done", err, ran.Load())
			}
			if err := p.Do(context.Background(), func(context.Context) error { return nil }); err != pool.ErrShutdown {
				t.Errorf("after it: %v", err)
			}
			if err := p.Shutdown(context.Background()); err != nil {
				t.Errorf("a second time: %v", err)
			}
		})
	})
	t.Run("drops at the deadline what waits for the whole pool", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := pool.New(pool.WithSlots(2))
			release := full(p)
			waiting := make(chan error, 2)
			for _, weight := range []int{math.MaxInt, 1} {
				go func() {
					waiting <- p.Do(context.Background(), func(context.Context) error { t.Error("ran"); return nil }, pool.WithWeight(weight))
				}()
				synctest.Wait()
			}
			over, cancel := context.WithCancel(context.Background())
			cancel()
			p.Shutdown(over)
			synctest.Wait()
			if n := len(waiting); n != 2 {
				t.Errorf("%d of 2 were answered while others run", n)
			}
			release()
			for range 2 {
				if err := <-waiting; err != pool.ErrShutdown {
					t.Errorf("a waiting task got %v", err)
				}
			}
			empty(t, p)
		})
	})
	t.Run("at the deadline names what it drops", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := pool.New(pool.WithSlots(1))
			stopped := make(chan error)
			go func() {
				stopped <- p.Do(context.Background(), func(ctx context.Context) error {
					for {
						time.Sleep(time.Millisecond) // in a synctest bubble
						if err := pool.Checkpoint(ctx); err != nil {
							return err
						}
					}
				}, pool.WithKind("report"))
			}()
			synctest.Wait()
			waiting := make(chan error, 3)
			for range 2 {
				go func() {
					waiting <- p.Do(context.Background(), func(context.Context) error { t.Error("ran"); return nil }, pool.WithKind("thumb"))
				}()
			}
			go func() {
				_, err := pool.Submit(context.Background(), p, func(context.Context) (int, error) { return 1, nil }, pool.WithKind("thumb")).Wait(context.Background())
				waiting <- err
			}()
			synctest.Wait()
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			err := p.Shutdown(ctx)
			var dropped *pool.DroppedError
			if !errors.As(err, &dropped) || !errors.Is(err, pool.ErrShutdown) || !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("got %v", err)
			}
			want := []pool.Dropped{{Kind: "report", Running: 1}, {Kind: "thumb", Waiting: 3}}
			if !slices.Equal(dropped.Kinds, want) {
				t.Errorf("dropped %+v, want %+v", dropped.Kinds, want)
			}
			if want := "pool: shut down before the work was done: report: 0 waiting, 1 running, thumb: 3 waiting, 0 running"; err.Error() != want {
				t.Errorf("text %q, want %q", err, want)
			}
			for range 3 {
				if err := <-waiting; err != pool.ErrShutdown {
					t.Errorf("a waiting task got %v", err)
				}
			}
			if err := <-stopped; err != pool.ErrShutdown {
				t.Errorf("the running task got %v from Checkpoint", err)
			}
			empty(t, p)
		})
	})
	t.Run("at the deadline a Map begins no further element", func(t *testing.T) {
		for name, run := range mapPlaces {
			synctest.Test(t, func(t *testing.T) {
				p := pool.New(pool.WithSlots(2))
				var begun atomic.Int64
				result := make(chan error)
				go func() {
					result <- run(context.Background(), p, func(ctx context.Context) error {
						_, err := pool.Map(ctx, p, make([]int, 100), func(context.Context, int) (int, error) {
							begun.Add(1)
							time.Sleep(time.Second) // in a synctest bubble
							return 0, nil
						})
						return err
					})
				}()
				synctest.Wait()
				ctx, cancel := context.WithTimeout(context.Background(), 2500*time.Millisecond)
				defer cancel()
				if err := p.Shutdown(ctx); !errors.Is(err, pool.ErrShutdown) {
					t.Errorf("%s: Shutdown: %v", name, err)
				}
				if err := <-result; err != pool.ErrShutdown || begun.Load() > 6 {
					t.Errorf("%s: %v after %d elements, want 6 at most", name, err, begun.Load())
				}
				empty(t, p)
			})
		}
	})
}

// What had a slot was not refused, also when its context ends while it stands back.
func TestRefusedIsCountedOnceByReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pool.New(pool.WithSlots(1))
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		hold := func() { time.Sleep(20 * time.Millisecond) } // in a synctest bubble
		var wg sync.WaitGroup
		wg.Go(func() {
			err := p.Do(ctx, func(ctx context.Context) error {
				hold()
				return pool.Checkpoint(ctx)
			})
			if err != context.Canceled {
				t.Errorf("stood back until it was cancelled: %v", err)
			}
		})
		synctest.Wait()
		wg.Go(func() {
			p.Do(context.Background(), func(context.Context) error { hold(); return nil }, pool.WithPriority(1))
		})
		wg.Go(func() {
			if err := p.Do(ctx, func(context.Context) error { return nil }, pool.WithPriority(-1)); err != context.Canceled {
				t.Errorf("waited until it was cancelled: %v", err)
			}
		})
		time.AfterFunc(30*time.Millisecond, cancel)
		wg.Wait()
		if s := p.Stats(); s.Begun != 2 || s.Refused != 1 || s.Left != 1 {
			t.Errorf("%d begun, %d refused, of these %d left; want 2, 1, 1", s.Begun, s.Refused, s.Left)
		}
		empty(t, p)
	})
}

// What a task has aged before it came, as jobs do that the pool refused, is no time that it waited here.
func TestWaitIsFromTheCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pool.New(pool.WithSlots(1))
		time.Sleep(time.Hour) // in a synctest bubble
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() {
			p.Do(context.Background(), func(context.Context) error {
				time.Sleep(time.Second) // in a synctest bubble
				return nil
			})
		})
		synctest.Wait()
		came := pool.WithArrival(time.Now().Add(-time.Hour))
		if err := p.Do(context.Background(), func(context.Context) error { return nil }, came); err != nil {
			t.Fatal(err)
		}
		if w := p.Stats().Kinds[0].Wait; w.Count != 1 || w.Total != time.Second {
			t.Errorf("%d waited %v in all, want one and 1s", w.Count, w.Total)
		}
	})
}

func TestStats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pool.New(pool.WithSlots(1))
		for i := range 100 {
			p.Do(context.Background(), func(context.Context) error {
				time.Sleep(time.Duration(i+1) * time.Millisecond) // in a synctest bubble
				return nil
			}, pool.WithKind("work"))
		}
		s := p.Stats()
		if len(s.Kinds) != 1 || s.Kinds[0].Kind != "work" || s.Begun != 100 {
			t.Fatalf("%+v", s)
		}
		run := s.Kinds[0].Run
		if run.Total != 5050*time.Millisecond {
			t.Errorf("total %v", run.Total)
		}
		for _, q := range []struct {
			name       string
			got, exact time.Duration
		}{{"p50", run.P50, 50 * time.Millisecond}, {"p90", run.P90, 90 * time.Millisecond}, {"p99", run.P99, 99 * time.Millisecond}} {
			if q.got < q.exact || q.got > q.exact*5/4 {
				t.Errorf("%s is %v, the exact one %v", q.name, q.got, q.exact)
			}
		}
	})
	t.Run("the number of kinds is bounded", func(t *testing.T) {
		p := pool.New()
		for i := range 1000 {
			p.Do(context.Background(), func(context.Context) error { return nil }, pool.WithKind(strings.Repeat("x", i)))
		}
		s := p.Stats()
		if len(s.Kinds) > 66 || s.Begun != 1000 {
			t.Errorf("%d kinds, %d begun", len(s.Kinds), s.Begun)
		}
	})
	t.Run("the first 64 names are kept apart", func(t *testing.T) {
		p := pool.New()
		for i := range 65 {
			if err := p.Do(context.Background(), func(context.Context) error { return nil }, pool.WithKind(fmt.Sprintf("%02d", i))); err != nil {
				t.Fatal(err)
			}
		}
		s := p.Stats()
		if len(s.Kinds) != 65 {
			t.Fatalf("%d kinds, want 64 and other", len(s.Kinds))
		}
		for i, want := range map[int]string{0: "00", 63: "63", 64: "other"} {
			if k := s.Kinds[i]; k.Kind != want || k.Begun != 1 {
				t.Errorf("kind %d is %q, begun %d times; want %q, once", i, k.Kind, k.Begun, want)
			}
		}
	})
}

func TestOvercommit(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	p := pool.New()
	slots := p.Slots()
	x, err := pool.Overcommit(p, pool.WithNice(3))
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	if got := runtime.GOMAXPROCS(0); got != 2*before || p.Slots() != before {
		t.Errorf("GOMAXPROCS %d and %d slots, want %d and %d", got, p.Slots(), 2*before, before)
	}
	if _, err := pool.Overcommit(pool.New()); err == nil {
		t.Error("two at the same time")
	}
	if err := p.Resize(1); err == nil {
		t.Error("Resize while Overcommit decides")
	}
	ctx := context.Background()
	in := []int{1, 2, 3, 4, 5, 6, 7, 8}
	inc := func(_ context.Context, n int) (int, error) { return n + 1, nil }
	if got, err := pool.Map(ctx, p, in, inc); err != nil || !slices.Equal(got, []int{2, 3, 4, 5, 6, 7, 8, 9}) {
		t.Errorf("Map: %v, %v", got, err)
	}
	if n, err := pool.Submit(ctx, p, func(ctx context.Context) (int, error) { return inc(ctx, 1) }).Wait(ctx); n != 2 || err != nil {
		t.Errorf("Submit: %v, %v", n, err)
	}
	if err := p.Do(ctx, func(context.Context) error { return nil }); err != nil {
		t.Errorf("Do: %v", err)
	}
	x.Close()
	x.Close()
	if got := runtime.GOMAXPROCS(0); got != before || p.Slots() != slots {
		t.Errorf("after Close: GOMAXPROCS %d and %d slots, want %d and %d", got, p.Slots(), before, slots)
	}
	y, err := pool.Overcommit(p, pool.WithThreads(3))
	if err != nil {
		t.Fatal(err)
	}
	if p.Slots() != 3 {
		t.Errorf("%d slots, want 3", p.Slots())
	}
	y.Close()
}

// The runtime ends the program where a coroutine goes on with the thread locked otherwise than when it was made.
func TestStreamWhileThreadsAreLocked(t *testing.T) {
	ctx := context.Background()
	const n = 50 // more than are read ahead
	all := func(yield func(int) bool) {
		for i := 1; i <= n && yield(i); i++ {
		}
	}
	for name, run := range map[string]func(t *testing.T, p *pool.Pool, each func(ctx context.Context, in iter.Seq[int], then func())){
		"the slot is left in the loop": func(t *testing.T, p *pool.Pool, each func(context.Context, iter.Seq[int], func())) {
			ctx, slot, err := p.Enter(ctx)
			if err != nil {
				t.Fatal(err)
			}
			defer slot.Leave()
			each(ctx, all, slot.Leave)
		},
		"a slot is taken in the loop": func(t *testing.T, p *pool.Pool, each func(context.Context, iter.Seq[int], func())) {
			var slot pool.Slot
			defer func() { slot.Leave() }()
			each(ctx, all, func() {
				if slot != (pool.Slot{}) {
					return
				}
				var err error
				if _, slot, err = p.Enter(ctx); err != nil {
					t.Error(err)
				}
			})
		},
		"the elements are made in a task": func(t *testing.T, p *pool.Pool, each func(context.Context, iter.Seq[int], func())) {
			each(ctx, func(yield func(int) bool) {
				p.Do(ctx, func(context.Context) error { all(yield); return nil })
			}, func() {})
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := pool.New()
			x, err := pool.Overcommit(p, pool.WithThreads(8))
			if err != nil {
				t.Fatal(err)
			}
			defer x.Close()
			got := 0
			run(t, p, func(ctx context.Context, in iter.Seq[int], then func()) {
				for i, err := range pool.Stream(ctx, p, in, func(_ context.Context, i int) (int, error) { return i, nil }) {
					if got++; i != got || err != nil {
						t.Errorf("%d, %v, want %d", i, err, got)
					}
					then()
				}
			})
			if got != n {
				t.Errorf("%d results of %d", got, n)
			}
		})
	}
}

func TestMisusePanics(t *testing.T) {
	for name, f := range map[string]func(){
		"WithSlots(0)":         func() { pool.WithSlots(0) },
		"WithSlots(1<<30)":     func() { pool.WithSlots(1 << 30) },
		"WithSlots(MaxInt)":    func() { pool.WithSlots(math.MaxInt) },
		"WithReserve(-1)":      func() { pool.WithReserve(-1) },
		"WithQueue(-1)":        func() { pool.WithQueue(-1, time.Second) },
		"WithQueue without":    func() { pool.WithQueue(1, 0) },
		"WithClientShare(0)":   func() { pool.WithClientShare(0) },
		"WithPriorityStep(-1)": func() { pool.WithPriorityStep(-1) },
		"WithWeight(0)":        func() { pool.WithWeight(0) },
		"WithNice(19)":         func() { pool.WithNice(19) },
		"WithThreads(0)":       func() { pool.WithThreads(0) },
		"New(nil)":             func() { pool.New(nil) },
		"Overcommit(p, nil)":   func() { pool.Overcommit(pool.New(), nil) },
		"Overcommit(nil)":      func() { pool.Overcommit(nil) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if s, _ := recover().(string); !strings.HasPrefix(s, "pool: ") {
					t.Errorf("panic %q", s)
				}
			}()
			f()
		})
	}
}

// What comes to a pool that is shut down gets no slot, and is not for a moment counted as if it did: a count that goes down is
// taken for that of a new process.
func TestStatsBegunWhileDraining(t *testing.T) {
	p := pool.New(pool.WithSlots(4))
	if err := p.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	const each = 20_000
	for _, opts := range [][]pool.TaskOption{nil, {pool.WithPlainContext()}} {
		wg.Go(func() {
			for range each {
				if err := p.Do(t.Context(), func(context.Context) error { return nil }, opts...); !errors.Is(err, pool.ErrShutdown) {
					t.Errorf("Do: %v", err)
					return
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	for over := false; !over; {
		select {
		case <-done:
			over = true
		default:
		}
		if n := p.Stats().Begun; n != 0 {
			t.Errorf("%d begun", n)
			break
		}
	}
	<-done
	if n := p.Stats().Refused; n != 2*each {
		t.Errorf("%d refused, want %d", n, 2*each)
	}
}

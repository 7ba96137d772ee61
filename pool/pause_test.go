package pool_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/pool"
)

// entered returns the slot of a task of kind k, which waits for it behind a task of another kind or not.
func entered(t *testing.T, p *pool.Pool, waits bool, opts ...pool.TaskOption) (context.Context, pool.Slot) {
	t.Helper()
	if waits {
		_, before, err := p.Enter(t.Context(), pool.WithWeight(p.Slots()))
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(time.Second, before.Leave)
	}
	ctx, s, err := p.Enter(t.Context(), append(opts, pool.WithKind("k"))...)
	if err != nil {
		t.Fatal(err)
	}
	return ctx, s
}

// A task that pauses gives its slot to others, goes on at once when it resumes, and nobody else begins while more run than there are slots.
func TestPause(t *testing.T) {
	for name, waits := range map[string]bool{"a slot that was free": false, "one that was waited for": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := pool.New(pool.WithSlots(2))
				ctx, s := entered(t, p, waits, pool.WithWeight(5))
				s.Resume()
				if got := p.Stats().Used; got != 2 {
					t.Fatalf("%d slots used, want 2", got)
				}
				time.Sleep(time.Second) // in a synctest bubble
				if !s.Pause() || s.Pause() {
					t.Fatal("it does not pause once")
				}
				time.Sleep(time.Minute) // in a synctest bubble
				_, other, err := p.Enter(t.Context(), pool.WithWeight(2))
				if err != nil {
					t.Fatal(err)
				}
				s.Resume()
				s.Resume()
				if got := p.Stats().Used; got != 4 {
					t.Errorf("%d slots used by both, want 4", got)
				}
				if err := p.Do(ctx, func(context.Context) error { return nil }); err != nil {
					t.Errorf("the task's own: %v", err)
				}
				begun := false
				done := make(chan struct{})
				go func() {
					defer close(done)
					_ = p.Do(t.Context(), func(context.Context) error { begun = true; return nil })
				}()
				time.Sleep(time.Second) // in a synctest bubble
				other.Leave()
				synctest.Wait()
				if begun {
					t.Error("a third one has begun though the first has all slots again")
				}
				s.Leave()
				s.Resume()
				<-done
				if st := p.Stats(); !begun || st.Used != 0 || st.Waiting != 0 {
					t.Errorf("in the end the third has begun: %v, %d used, %d wait", begun, st.Used, st.Waiting)
				}
				if got := p.Stats().Kinds[1]; got.Running != 0 || got.Run.Count != 1 || got.Run.Total != 2*time.Second {
					t.Errorf("its kind: %+v, want a run of 2 s", got)
				}
				if s.Pause() {
					t.Error("what has left pauses")
				}
			})
		})
	}
}

// A task that leaves while it has paused, as one whose handler panics in a write, is over, and the pool is not shut down before.
func TestLeaveWhilePaused(t *testing.T) {
	for name, waits := range map[string]bool{"a slot that was free": false, "one that was waited for": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := pool.New(pool.WithSlots(1))
				_, s := entered(t, p, waits)
				time.Sleep(time.Second) // in a synctest bubble
				if !s.Pause() {
					t.Fatal("it does not pause")
				}
				time.Sleep(time.Minute) // in a synctest bubble
				ended := make(chan error, 1)
				go func() { ended <- p.Shutdown(t.Context()) }()
				synctest.Wait()
				if len(ended) != 0 {
					t.Error("Shutdown has not waited for a task that has paused")
				}
				s.Leave()
				if err := <-ended; err != nil {
					t.Error(err)
				}
				s.Resume()
				st := p.Stats()
				if got := st.Kinds[len(st.Kinds)-1]; st.Used != 0 || got.Running != 0 || got.Run.Total != time.Second {
					t.Errorf("%d used, %+v, want a run of 1 s", st.Used, got)
				}
			})
		})
	}
}

// A slot that a Map has a use for is used while the task that had it has paused.
func TestMapWhilePaused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pool.New(pool.WithSlots(2))
		_, s := entered(t, p, false)
		defer s.Leave()
		began := time.Now()
		time.AfterFunc(time.Second, func() { s.Pause() })
		if _, err := pool.Map(t.Context(), p, make([]int, 3), func(context.Context, int) (int, error) {
			time.Sleep(2 * time.Second) // in a synctest bubble
			return 0, nil
		}); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took != 4*time.Second {
			t.Errorf("it took %v, want 4s", took)
		}
	})
}

// How many have paused has a bound, since they go on when they like.
func TestPausesAreBounded(t *testing.T) {
	p := pool.New(pool.WithSlots(2000))
	var all []pool.Slot
	paused := 0
	for range 1005 {
		_, s := entered(t, p, false)
		if s.Pause() {
			paused++
		}
		all = append(all, s)
	}
	if paused != 1000 {
		t.Errorf("%d have paused, want 1000", paused)
	}
	all[0].Resume()
	all[1].Leave()
	if !all[1002].Pause() || !all[1003].Pause() || all[1004].Pause() {
		t.Error("two that are back or gone do not make room for two")
	}
	for _, s := range all {
		s.Leave()
	}
	if got := p.Stats().Used; got != 0 {
		t.Errorf("%d used in the end", got)
	}
}

// Whatever a task's goroutines do at the same time, its slot is given back once.
func TestPauseAtAnyMoment(t *testing.T) {
	p := pool.New(pool.WithSlots(3), pool.WithQueue(100, time.Hour))
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 1000 {
				ctx, s, err := p.Enter(t.Context(), pool.WithWeight(1+rand.N(4)), pool.WithPriority(rand.N(3)))
				if err != nil {
					t.Error(err)
					return
				}
				var own sync.WaitGroup
				if rand.N(2) == 0 {
					own.Go(func() { s.Pause(); s.Resume() })
				} else {
					own.Go(func() { s.Pause(); s.ResumeInTurn() })
				}
				own.Go(func() { _ = pool.Checkpoint(ctx) })
				switch rand.N(3) {
				case 0:
					own.Go(s.Leave)
				case 1:
					s.Leave()
				default:
					own.Wait()
				}
				own.Wait()
				s.Leave()
			}
		})
	}
	all.Wait()
	if st := p.Stats(); st.Used != 0 || st.Waiting != 0 || st.Begun != 8000 {
		t.Errorf("%+v", st)
	}
	if err := p.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

// A task that still has its work to do goes on when a slot is free, in its turn, and never beside as many as there are.
func TestResumeInTurn(t *testing.T) {
	for name, waits := range map[string]bool{"a slot that was free": false, "one that was waited for": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := pool.New(pool.WithSlots(2))
				ctx, s := entered(t, p, waits, pool.WithWeight(2))
				if err := s.ResumeInTurn(); err != nil {
					t.Error(err)
				}
				time.Sleep(time.Second) // in a synctest bubble
				if !s.Pause() {
					t.Fatal("it does not pause")
				}
				time.Sleep(time.Minute) // in a synctest bubble
				_, other, err := p.Enter(t.Context(), pool.WithWeight(2))
				if err != nil {
					t.Fatal(err)
				}
				var order []string
				var wg sync.WaitGroup
				later := func(name string, opts ...pool.TaskOption) {
					wg.Go(func() {
						_, s, err := p.Enter(t.Context(), opts...)
						if err != nil {
							t.Error(err)
						}
						order = append(order, name)
						time.Sleep(10 * time.Millisecond) // in a synctest bubble
						s.Leave()
					})
					synctest.Wait()
				}
				later("came since", pool.WithWeight(2))
				later("is more urgent", pool.WithWeight(2), pool.WithPriority(1))
				wg.Go(func() {
					if err := s.ResumeInTurn(); err != nil {
						t.Error(err)
					}
					if got := p.Stats().Used; got != 2 {
						t.Errorf("%d slots used, want 2", got)
					}
					order = append(order, "it")
					if err := p.Do(ctx, func(context.Context) error { return nil }); err != nil {
						t.Errorf("the task's own: %v", err)
					}
					time.Sleep(time.Second) // in a synctest bubble
					s.Leave()
				})
				synctest.Wait()
				time.AfterFunc(100*time.Millisecond, other.Leave)
				wg.Wait()
				if want := []string{"it", "is more urgent", "came since"}; !slices.Equal(order, want) { // it has aged for a minute
					t.Errorf("in the order %q, want %q", order, want)
				}
				if got := p.Stats().Kinds[1]; got.Running != 0 || got.Run.Count != 1 || got.Run.Total != 2*time.Second {
					t.Errorf("its kind: %+v, want a run of 2 s", got)
				}
				if st := p.Stats(); st.Used != 0 || st.Waiting != 0 {
					t.Errorf("in the end %d used, %d wait", st.Used, st.Waiting)
				}
			})
		})
	}
}

// Those that have the slots wait for a task that has paused: it goes on beside them.
func TestResumeInTurnBesideOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pool.New(pool.WithSlots(1))
		_, s := entered(t, p, false)
		s.Pause()
		_, other, err := p.Enter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		lock := make(chan struct{})
		go func() {
			<-lock
			other.Leave()
		}()
		began := time.Now()
		if err := s.ResumeInTurn(); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took != 5*time.Second {
			t.Errorf("took %v, want 5s", took)
		}
		close(lock)
		synctest.Wait()
		if got := p.Stats().Used; got != 1 {
			t.Errorf("%d slots used, want its own", got)
		}
		s.Leave()
		if st := p.Stats(); st.Used != 0 || st.Waiting != 0 {
			t.Errorf("in the end %d used, %d wait", st.Used, st.Waiting)
		}
	})
}

// A task that is over, or whose context has ended, while it waits to go on has no slot, and the pool can be shut down.
func TestResumeInTurnThatIsOver(t *testing.T) {
	for name, leaves := range map[string]bool{"it leaves": true, "its context ends": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := pool.New(pool.WithSlots(1))
				cause := errors.New("the cause")
				ctx, cancel := context.WithCancelCause(t.Context())
				_, s, err := p.Enter(ctx)
				if err != nil {
					t.Fatal(err)
				}
				s.Pause()
				_, other, err := p.Enter(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				done := make(chan error)
				go func() { done <- s.ResumeInTurn() }()
				synctest.Wait()
				if leaves {
					s.Leave()
					time.AfterFunc(100*time.Millisecond, other.Leave)
					if err := <-done; err != nil {
						t.Error(err)
					}
				} else {
					cancel(cause)
					if err := <-done; err != cause {
						t.Errorf("%v, want the cause", err)
					}
					s.ResumeInTurn()
					s.Resume()
					s.Leave()
					other.Leave()
				}
				cancel(nil)
				if err := p.Shutdown(t.Context()); err != nil {
					t.Error(err)
				}
				if st := p.Stats(); st.Used != 0 || st.Waiting != 0 {
					t.Errorf("in the end %d used, %d wait", st.Used, st.Waiting)
				}
			})
		})
	}
}

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
				own.Go(func() { s.Pause(); s.Resume() })
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

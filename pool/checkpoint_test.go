package pool_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/pool"
)

// What has stood back is in the line with the time at which it first arrived, as if it had waited from then on: behind those
// that are more urgent, before those that are not, and however old the pool is.
func TestStoodBackInOrder(t *testing.T) {
	for name, opts := range map[string][]pool.TaskOption{
		"it found a slot":  nil,
		"it waited for it": {pool.WithPriority(0)},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := pool.New(pool.WithSlots(1))
				time.Sleep(time.Hour) // in a synctest bubble
				release := func() {}
				if opts != nil {
					release = full(p)
				}
				var order []string
				var wg sync.WaitGroup
				task := func(name string, priority int, work func(context.Context) error) {
					wg.Go(func() {
						err := p.Do(context.Background(), func(ctx context.Context) error {
							err := work(ctx)
							order = append(order, name)
							return err
						}, pool.WithPriority(priority))
						if err != nil {
							t.Errorf("%s: %v", name, err)
						}
					})
					synctest.Wait()
					time.Sleep(time.Millisecond) // in a synctest bubble
				}
				brief := func(context.Context) error { time.Sleep(5 * time.Millisecond); return nil } // in a synctest bubble
				task("long", 0, func(ctx context.Context) error {
					time.Sleep(20 * time.Millisecond) // in a synctest bubble
					err := pool.Checkpoint(ctx)
					time.Sleep(20 * time.Millisecond) // in a synctest bubble
					return err
				})
				release()
				task("plain", 0, brief)
				task("urgent", 1, brief)
				task("urgent too", 1, brief)
				wg.Wait()
				if want := []string{"urgent", "urgent too", "long", "plain"}; !slices.Equal(order, want) {
					t.Errorf("order %q, want %q", order, want)
				}
				empty(t, p)
			})
		})
	}
}

// A task takes back as many slots as it gave, and what it waited for them is no run time.
func TestStoodBackWithItsWeight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pool.New(pool.WithSlots(2))
		var wg sync.WaitGroup
		wg.Go(func() {
			p.Do(context.Background(), func(ctx context.Context) error {
				time.Sleep(20 * time.Millisecond) // in a synctest bubble
				if err := pool.Checkpoint(ctx); err != nil {
					t.Error(err)
				}
				if d := pool.StoodBack(ctx); d != time.Second {
					t.Errorf("it stood back for %v while one of its two slots was taken for a second", d)
				}
				if n := p.Stats().Used; n != 2 {
					t.Errorf("it has %d slots", n)
				}
				time.Sleep(20 * time.Millisecond) // in a synctest bubble
				return nil
			}, pool.WithWeight(2), pool.WithKind("k"))
		})
		synctest.Wait()
		wg.Go(func() {
			p.Do(context.Background(), func(context.Context) error {
				time.Sleep(time.Second) // in a synctest bubble
				return nil
			}, pool.WithPriority(1))
		})
		wg.Wait()
		for _, k := range p.Stats().Kinds {
			if k.Kind == "k" && k.Run.Total != 40*time.Millisecond {
				t.Errorf("it ran for %v, want 40ms", k.Run.Total)
			}
		}
		empty(t, p)
	})
}

// The time for draining may end while a task stands back: it is told when it has its slot again.
func TestStoodBackUntilShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pool.New(pool.WithSlots(1))
		told := make(chan error, 1)
		go p.Do(context.Background(), func(ctx context.Context) error {
			time.Sleep(20 * time.Millisecond) // in a synctest bubble
			told <- pool.Checkpoint(ctx)
			return nil
		})
		synctest.Wait()
		go p.Do(context.Background(), func(context.Context) error {
			time.Sleep(time.Minute) // in a synctest bubble
			return nil
		}, pool.WithPriority(1))
		synctest.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := p.Shutdown(ctx); !errors.Is(err, pool.ErrShutdown) {
			t.Errorf("Shutdown: %v", err)
		}
		if err := <-told; err != pool.ErrShutdown {
			t.Errorf("Checkpoint: %v", err)
		}
		time.Sleep(time.Minute) // in a synctest bubble
		synctest.Wait()
		empty(t, p)
	})
}

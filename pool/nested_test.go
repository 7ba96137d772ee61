package pool_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/pool"
)

// A task that waits for others with its slot in hand must not wait for ones that wait for a slot.
func TestWhatIsWaitedForDoesNotGiveWay(t *testing.T) {
	long := func(ctx context.Context) (int, error) {
		for range 100 {
			time.Sleep(time.Millisecond) // in a synctest bubble
			if err := pool.Checkpoint(ctx); err != nil {
				return 0, err
			}
		}
		return 1, nil
	}
	for name, wait := range map[string]func(ctx context.Context, p *pool.Pool) error{
		"Submit": func(ctx context.Context, p *pool.Pool) error {
			f := pool.Submit(ctx, p, long)
			time.Sleep(time.Millisecond) // in a synctest bubble
			_, err := f.Wait(ctx)
			return err
		},
		"Submit in what was submitted": func(ctx context.Context, p *pool.Pool) error {
			f := pool.Submit(ctx, p, func(ctx context.Context) (*pool.Future[int], error) { return pool.Submit(ctx, p, long), nil })
			inner, err := f.Wait(ctx)
			if err != nil {
				return err
			}
			time.Sleep(time.Millisecond) // in a synctest bubble
			_, err = inner.Wait(ctx)
			return err
		},
		"Stream": func(ctx context.Context, p *pool.Pool) error {
			for _, err := range pool.Stream(ctx, p, slices.Values([]int{1, 2, 3}), func(ctx context.Context, _ int) (int, error) { return long(ctx) }) {
				if err != nil {
					return err
				}
			}
			return nil
		},
		"Map": func(ctx context.Context, p *pool.Pool) error {
			_, err := pool.Map(ctx, p, make([]int, 20), func(ctx context.Context, _ int) (int, error) { return long(ctx) })
			return err
		},
		"Map whose caller has no more to do": func(ctx context.Context, p *pool.Pool) error {
			_, err := pool.Map(ctx, p, []bool{false, true}, func(ctx context.Context, more bool) (int, error) {
				if more {
					return long(ctx)
				}
				time.Sleep(time.Millisecond) // in a synctest bubble: the other one is begun on another goroutine
				return 0, nil
			})
			return err
		},
	} {
		for how, urgent := range map[string]func(p *pool.Pool) error{
			"one that needs every slot": func(p *pool.Pool) error {
				return p.Do(context.Background(), func(context.Context) error { return nil }, pool.WithPriority(3), pool.WithWeight(2))
			},
			"there is one slot less by then": func(p *pool.Pool) error {
				p.Resize(1)
				return p.Do(context.Background(), func(context.Context) error { return nil }, pool.WithPriority(3))
			},
		} {
			t.Run(name+": "+how, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					p := pool.New(pool.WithSlots(2), pool.WithQueue(10, time.Hour))
					began := time.Now()
					var ended time.Duration
					done := make(chan error, 1)
					go func() {
						err := p.Do(context.Background(), func(ctx context.Context) error { return wait(ctx, p) })
						ended = time.Since(began)
						done <- err
					}()
					time.Sleep(10 * time.Millisecond) // in a synctest bubble
					if err := urgent(p); err != nil {
						t.Errorf("urgent: %v", err)
					}
					if err := <-done; err != nil {
						t.Error(err)
					}
					if ended > 10*time.Second {
						t.Errorf("it took %v", ended)
					}
					empty(t, p)
				})
			})
		}
	}
}

// What was submitted in a part of a task that has ended is run by the task that waits for it all the same.
func TestWaitForWhatAPartHasSubmitted(t *testing.T) {
	type part = func(context.Context) (*pool.Future[int], error)
	submit := func(ctx context.Context, p *pool.Pool, f part) (*pool.Future[int], error) {
		return pool.Submit(ctx, p, f).Wait(ctx)
	}
	for name, c := range map[string]struct {
		slots int // as many as two tasks and their parts take
		run   func(ctx context.Context, p *pool.Pool, f part) (*pool.Future[int], error)
	}{
		"a part": {4, submit},
		"a part of a part": {6, func(ctx context.Context, p *pool.Pool, f part) (*pool.Future[int], error) {
			return submit(ctx, p, func(ctx context.Context) (*pool.Future[int], error) { return submit(ctx, p, f) })
		}},
	} {
		for how, line := range map[string]pool.Option{
			"it waits for a slot": pool.WithQueue(10, time.Hour),
			"there is no line":    pool.WithQueue(0, 0),
		} {
			t.Run(name+": "+how, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					p := pool.New(line, pool.WithSlots(c.slots))
					began := time.Now()
					var wg sync.WaitGroup
					for range 2 {
						wg.Go(func() {
							err := p.Do(context.Background(), func(ctx context.Context) error {
								f, err := c.run(ctx, p, func(ctx context.Context) (*pool.Future[int], error) {
									time.Sleep(time.Millisecond) // in a synctest bubble: no slot is free
									f := pool.Submit(ctx, p, func(ctx context.Context) (int, error) {
										return 1, p.Do(ctx, func(context.Context) error { return nil })
									})
									time.Sleep(10 * time.Millisecond) // in a synctest bubble: nor is one afterwards
									return f, nil
								})
								if err != nil {
									return err
								}
								_, err = f.Wait(ctx)
								return err
							})
							if err != nil {
								t.Error(err)
							}
						})
					}
					time.Sleep(5 * time.Millisecond) // in a synctest bubble
					if n := p.Stats().Used; n != c.slots {
						t.Errorf("%d slots are taken, want %d", n, c.slots)
					}
					p.Resize(2)
					wg.Wait()
					if d := time.Since(began); d > time.Second {
						t.Errorf("it took %v", d)
					}
					synctest.Wait()
					empty(t, p)
				})
			})
		}
	}
}

// What a task has submitted has its own place in the line, and keeps to it when the task has ended first: whoever waits for it
// then does not run it beyond the slots.
func TestWaitForWhatATaskHasLeftBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pool.New(pool.WithSlots(1))
		var left *pool.Future[int]
		p.Do(context.Background(), func(ctx context.Context) error {
			left = pool.Submit(context.WithoutCancel(ctx), p, func(context.Context) (int, error) { return 1, nil }, pool.WithPriority(-1))
			synctest.Wait()
			go p.Do(context.Background(), func(context.Context) error {
				time.Sleep(time.Second) // in a synctest bubble
				return nil
			})
			synctest.Wait()
			return nil
		})
		synctest.Wait()
		began := time.Now()
		n, err := left.Wait(context.Background())
		if d := time.Since(began); n != 1 || err != nil || d != time.Second {
			t.Errorf("got %d, %v after %v; want 1 when the slot is free, after a second", n, err, d)
		}
		synctest.Wait()
		empty(t, p)
	})
}

// The helpers of a Map that has a slot of its own are tasks like any other: nobody waits for them with a slot in hand, and so
// they give way.
func TestHelpersGiveWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pool.New(pool.WithSlots(2))
		began := time.Now()
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := pool.Map(context.Background(), p, []int{0, 1}, func(ctx context.Context, i int) (int, error) {
				if i == 0 { // the caller's
					time.Sleep(time.Hour) // in a synctest bubble
					return 0, nil
				}
				time.Sleep(time.Second) // in a synctest bubble
				err := pool.Checkpoint(ctx)
				if d := time.Since(began); d != 2*time.Second {
					t.Errorf("it goes on after %v, want 2s", d)
				}
				return 0, err
			})
			if err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		p.Do(context.Background(), func(context.Context) error {
			if d := time.Since(began); d != time.Second {
				t.Errorf("urgent work began after %v, want a second", d)
			}
			time.Sleep(time.Second) // in a synctest bubble
			return nil
		}, pool.WithPriority(1))
		wg.Wait()
		empty(t, p)
	})
}

// Between its elements the helpers of a Map make room, also where Map was called in a task.
func TestMapMakesRoom(t *testing.T) {
	for name, run := range mapPlaces {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := pool.New(pool.WithSlots(3))
				var calls atomic.Int64
				var wg sync.WaitGroup
				wg.Go(func() {
					err := run(context.Background(), p, func(ctx context.Context) error {
						out, err := pool.Map(ctx, p, make([]int, 60), func(context.Context, int) (int, error) {
							calls.Add(1)
							time.Sleep(100 * time.Millisecond) // in a synctest bubble
							return 1, nil
						})
						if len(out) != 60 || slices.Contains(out, 0) {
							err = errors.Join(err, errors.New("elements are missing"))
						}
						return err
					})
					if err != nil || calls.Load() != 60 {
						t.Errorf("%v after %d calls", err, calls.Load())
					}
				})
				time.Sleep(time.Millisecond) // in a synctest bubble
				began := time.Now()
				for range 10 {
					p.Do(context.Background(), func(context.Context) error { return nil })
				}
				if d := time.Since(began); d > 1100*time.Millisecond {
					t.Errorf("10 tasks took %v beside a Map whose elements take 100ms", d)
				}
				wg.Wait()
				empty(t, p)
			})
		})
	}
}

package pool_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/pool"
)

// ways are the ways to have something run by a pool.
var ways = map[string]func(ctx context.Context, p *pool.Pool, fn func(context.Context) error, opts ...pool.TaskOption) error{
	"Do": func(ctx context.Context, p *pool.Pool, fn func(context.Context) error, opts ...pool.TaskOption) error {
		return p.Do(ctx, fn, opts...)
	},
	"Do with a plain context": func(ctx context.Context, p *pool.Pool, fn func(context.Context) error, opts ...pool.TaskOption) error {
		return p.Do(ctx, fn, append(opts, pool.WithPlainContext())...)
	},
	"Enter": func(ctx context.Context, p *pool.Pool, fn func(context.Context) error, opts ...pool.TaskOption) error {
		ctx, slot, err := p.Enter(ctx, opts...)
		if err != nil {
			return err
		}
		defer slot.Leave()
		return fn(ctx)
	},
	"Submit": func(ctx context.Context, p *pool.Pool, fn func(context.Context) error, opts ...pool.TaskOption) error {
		_, err := pool.Submit(ctx, p, func(ctx context.Context) (int, error) { return 0, fn(ctx) }, opts...).Wait(context.WithoutCancel(ctx))
		return err
	},
	"Map": func(ctx context.Context, p *pool.Pool, fn func(context.Context) error, opts ...pool.TaskOption) error {
		_, err := pool.Map(ctx, p, []int{1}, func(ctx context.Context, _ int) (int, error) { return 0, fn(ctx) }, opts...)
		return err
	},
	"Stream": func(ctx context.Context, p *pool.Pool, fn func(context.Context) error, opts ...pool.TaskOption) (last error) {
		for _, err := range pool.Stream(ctx, p, func(yield func(int) bool) { yield(1) }, func(ctx context.Context, _ int) (int, error) { return 0, fn(ctx) }, opts...) {
			last = err
		}
		return last
	},
}

// What comes too late is not begun, though there is a slot, neither inside a task nor outside of one.
func TestTooLateIsNotBegun(t *testing.T) {
	for why, c := range map[string]struct {
		ctx    func(context.Context) context.Context
		opts   []pool.TaskOption
		err    error
		inside bool // options have no effect there
	}{
		"its context has ended": {
			ctx: func(ctx context.Context) context.Context {
				ctx, cancel := context.WithCancelCause(ctx)
				cancel(errTask)
				return ctx
			},
			err: errTask, inside: true,
		},
		"its deadline is over": {
			ctx:  func(ctx context.Context) context.Context { return ctx },
			opts: []pool.TaskOption{pool.WithDeadline(time.Unix(0, 0))}, err: limiter.ErrWouldMissDeadline,
		},
	} {
		for how, run := range ways {
			for _, inside := range []bool{false, true} {
				if inside && !c.inside {
					continue
				}
				name := how + ": " + why
				if inside {
					name += ", inside a task"
				}
				t.Run(name, func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						p := pool.New(pool.WithSlots(3))
						try := func(ctx context.Context) error {
							err := run(c.ctx(ctx), p, func(context.Context) error { t.Error("ran"); return nil }, c.opts...)
							if !errors.Is(err, c.err) {
								t.Errorf("got %v, want %v", err, c.err)
							}
							if _, ok := pool.TrySubmit(c.ctx(ctx), p, func(context.Context) (int, error) { t.Error("ran"); return 0, nil }, c.opts...); ok {
								t.Error("TrySubmit takes it")
							}
							return nil
						}
						if inside {
							p.Do(context.Background(), try)
						} else {
							try(context.Background())
						}
						synctest.Wait()
						empty(t, p)
					})
				})
			}
		}
	}
}

// What is called inside a task gives back what it got, and is not counted.
func TestInsideIsPartOfTheTask(t *testing.T) {
	for name, run := range ways {
		if name == "Submit" || name == "Stream" {
			continue // these take slots where there are some
		}
		p := pool.New(pool.WithSlots(3))
		err := p.Do(context.Background(), func(ctx context.Context) error {
			return run(ctx, p, func(context.Context) error { return errTask })
		})
		if err != errTask {
			t.Errorf("%s: got %v", name, err)
		}
		if s := p.Stats(); s.Begun != 1 || s.Refused != 0 {
			t.Errorf("%s: %d begun and %d refused, want the task alone", name, s.Begun, s.Refused)
		}
		empty(t, p)
	}
}

// Of the two deadlines that a waiting task may have the earlier one counts, and says which it was.
func TestEarlierOfTwoDeadlines(t *testing.T) {
	for _, c := range []struct {
		name         string
		context, own time.Duration
		after        time.Duration
		err          error
	}{
		{"the context's", time.Second, time.Hour, time.Second, context.DeadlineExceeded},
		{"its own", time.Hour, time.Second, time.Second, limiter.ErrWouldMissDeadline},
	} {
		for how, run := range ways {
			t.Run(c.name+": "+how, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					p := pool.New(pool.WithSlots(1), pool.WithQueue(9, 24*time.Hour))
					release := full(p)
					began := time.Now()
					ctx, cancel := context.WithTimeout(context.Background(), c.context)
					defer cancel()
					err := run(ctx, p, func(context.Context) error { t.Error("ran"); return nil }, pool.WithDeadline(began.Add(c.own)))
					if d := time.Since(began).Round(time.Millisecond); !errors.Is(err, c.err) || d != c.after {
						t.Errorf("%v after %v, want %v after %v", err, d, c.err, c.after)
					}
					release()
					synctest.Wait()
					empty(t, p)
				})
			})
		}
	}
}

package pool_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/pool"
)

// Each refusal is counted once by its reason and once for its kind, and says by its error what a client is to be told.
func TestRefusalsByReason(t *testing.T) {
	ctx := context.Background()
	ended, end := context.WithCancel(ctx)
	end()
	never := func(context.Context) error { panic("ran") }
	waits := func(p *pool.Pool, opts ...pool.TaskOption) {
		go p.Do(ctx, func(context.Context) error { return nil }, opts...)
		synctest.Wait()
	}
	client := pool.WithClient("a")
	for name, c := range map[string]struct {
		conf   []pool.Option
		before func(p *pool.Pool) // with the only slot taken
		ctx    context.Context    // nil is one that does not end
		opts   []pool.TaskOption
		err    error
		count  func(s pool.Stats) int64
	}{
		"no line": {
			conf: []pool.Option{pool.WithQueue(0, 0)},
			err:  limiter.ErrSaturated, count: func(s pool.Stats) int64 { return s.Full },
		},
		"no line, of a client": { // whose share is not what is full
			conf: []pool.Option{pool.WithQueue(0, 0)}, opts: []pool.TaskOption{client},
			err: limiter.ErrSaturated, count: func(s pool.Stats) int64 { return s.Full },
		},
		"the line is full": {
			conf: []pool.Option{pool.WithQueue(1, time.Hour)}, before: func(p *pool.Pool) { waits(p) },
			err: limiter.ErrSaturated, count: func(s pool.Stats) int64 { return s.Full },
		},
		"the share of the client is full": {
			conf: []pool.Option{pool.WithClientShare(1)}, before: func(p *pool.Pool) { waits(p, client) }, opts: []pool.TaskOption{client},
			err: limiter.ErrRateLimited, count: func(s pool.Stats) int64 { return s.Share },
		},
		"a quarter of the line is the share": {
			conf: []pool.Option{pool.WithQueue(8, time.Hour)}, before: func(p *pool.Pool) { waits(p, client); waits(p, client) }, opts: []pool.TaskOption{client},
			err: limiter.ErrRateLimited, count: func(s pool.Stats) int64 { return s.Share },
		},
		"it gave its place to another client": {
			conf: []pool.Option{pool.WithQueue(2, time.Hour), pool.WithClientShare(2)}, opts: []pool.TaskOption{client},
			before: func(p *pool.Pool) {
				waits(p, client)
				time.AfterFunc(time.Millisecond, func() { p.Do(ctx, func(context.Context) error { return nil }, pool.WithClient("b")) })
			},
			err: limiter.ErrSaturated, count: func(s pool.Stats) int64 { return s.Evicted },
		},
		"it waited for too long": {
			conf: []pool.Option{pool.WithQueue(8, time.Second)},
			err:  limiter.ErrSaturated, count: func(s pool.Stats) int64 { return s.Expired },
		},
		"its time is over": {
			opts: []pool.TaskOption{pool.WithDeadline(time.Unix(0, 0))},
			err:  limiter.ErrWouldMissDeadline, count: func(s pool.Stats) int64 { return s.Deadline },
		},
		"its context has ended": {
			ctx: ended,
			err: context.Canceled, count: func(s pool.Stats) int64 { return s.Left },
		},
		"Shutdown": {
			before: func(p *pool.Pool) { go p.Shutdown(ctx); synctest.Wait() },
			err:    pool.ErrShutdown, count: func(s pool.Stats) int64 { return 1 - s.Full - s.Share - s.Evicted - s.Expired - s.Deadline - s.Left },
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := pool.New(append([]pool.Option{pool.WithSlots(1)}, c.conf...)...)
				release := full(p)
				if c.before != nil {
					c.before(p)
				}
				err := p.Do(cmp.Or(c.ctx, ctx), never, append([]pool.TaskOption{pool.WithKind("k")}, c.opts...)...)
				if !errors.Is(err, c.err) {
					t.Errorf("got %v, want %v", err, c.err)
				}
				for _, other := range []error{limiter.ErrSaturated, limiter.ErrRateLimited, limiter.ErrWouldMissDeadline, pool.ErrShutdown} {
					if other != c.err && errors.Is(err, other) {
						t.Errorf("%v is %v as well", err, other)
					}
				}
				s := p.Stats()
				if s.Refused != 1 || c.count(s) != 1 || s.Full+s.Share+s.Evicted+s.Expired+s.Deadline+s.Left > 1 {
					t.Errorf("%+v, want one refusal by one reason", s)
				}
				for _, k := range s.Kinds {
					if k.Kind == "k" && (k.Refused != 1 || k.Begun != 0) {
						t.Errorf("of the kind: %+v", k)
					}
				}
				release()
				synctest.Wait()
				empty(t, p)
			})
		})
	}
}

// The refusal for a full share says to come back when one of the client's tasks is likely to be done.
func TestShareSaysWhenToComeBack(t *testing.T) {
	for took, want := range map[time.Duration]time.Duration{0: time.Millisecond, 3 * time.Second: 3 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			p := pool.New(pool.WithSlots(1), pool.WithClientShare(1))
			nop := func(context.Context) error { time.Sleep(took); return nil } // in a synctest bubble
			p.Do(context.Background(), nop)
			release := full(p)
			var wg sync.WaitGroup
			wg.Go(func() { p.Do(context.Background(), nop, pool.WithClient("a")) })
			synctest.Wait()
			err := p.Do(context.Background(), nop, pool.WithClient("a"))
			if e, ok := errors.AsType[*limiter.Error](err); !ok || e.RetryAfter != want {
				t.Errorf("work that takes %v: %#v, want to come back after %v", took, err, want)
			}
			release()
			wg.Wait()
			empty(t, p)
		})
	}
}

func TestStatsOfALine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pool.New(pool.WithSlots(2))
		if b, err := json.Marshal(p.Stats()); err != nil || !strings.Contains(string(b), `"kinds":[]`) {
			t.Errorf("before the first task %s, %v", b, err)
		}
		work := func(context.Context) error { time.Sleep(time.Second); return nil } // in a synctest bubble
		var wg sync.WaitGroup
		for range 6 {
			wg.Go(func() { p.Do(context.Background(), work, pool.WithKind("k")) })
		}
		wg.Go(func() {
			synctest.Wait()
			p.Do(context.Background(), work) // of no kind, and it waits
		})
		time.Sleep(time.Second) // in a synctest bubble: two have ended
		synctest.Wait()
		s := p.Stats()
		if s.Slots != 2 || s.Used != 2 || s.Waiting != 3 || s.Begun != 4 || s.Draining {
			t.Errorf("%+v, want 2 slots, both taken, 3 that wait, 4 begun", s)
		}
		if s.RetryAfter < time.Second || s.RetryAfter > 3*time.Second {
			t.Errorf("come back after %v, with work for 2 slots of which 3 of 1s wait", s.RetryAfter)
		}
		if len(s.Kinds) != 2 || s.Kinds[0].Kind != "" || s.Kinds[0].Waiting != 1 || s.Kinds[0].Running != 0 ||
			s.Kinds[1].Waiting != 2 || s.Kinds[1].Running != 2 || s.Kinds[1].Begun != 4 {
			t.Errorf("%+v, want 1 of no kind that waits, and 2 that wait and 2 that run of k", s.Kinds)
		}
		go p.Shutdown(context.Background())
		synctest.Wait()
		if !p.Stats().Draining {
			t.Error("Shutdown was called, and it does not say so")
		}
		wg.Wait()
		empty(t, p)
	})
}

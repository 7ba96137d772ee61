package pool

import (
	"context"
	"runtime/debug"
	"sync"
	"sync/atomic"
)

// Map calls fn for every element of in and returns the results in the order of in. The
// elements run in the caller's slot, one after the other, and at the same time in
// as many other slots as are free while nobody waits for them; under load Map is one task among
// others and goes to the end of the line after each element. Inside a task Map uses the
// slot of that task, so that it cannot deadlock at any size.
//
// The first error cancels the context that fn receives and Map returns that error and no
// results, once every call of fn has returned. A panic of fn is such an error, a
// [*PanicError]; so is [ErrGoexit] on another goroutine than the caller's; and [ErrShutdown], where the
// pool's time for draining is over before the last element has begun. The errors for
// no slot are those of [Pool.Do]. opts apply to every element.
func Map[A, R any](ctx context.Context, p *Pool, in []A, fn func(context.Context, A) (R, error), opts ...TaskOption) ([]R, error) {
	m := &mapping[A, R]{pool: p, task: gather(opts), in: in, out: make([]R, len(in)), fn: fn}
	var own *slot
	if p.held(ctx) == nil {
		var err error
		if own, err = p.take(ctx, &m.task, 0); err != nil {
			return nil, err
		}
		own.lock()
		ctx = own
	} else if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	} else {
		m.inside = true
	}
	m.ctx, m.cancel = context.WithCancelCause(ctx)
	defer m.cancel(nil)
	m.all(own)
	if m.err != nil {
		return nil, m.err
	}
	return m.out, nil
}

// mapping is one call of Map.
type mapping[A, R any] struct {
	pool    *Pool
	task    task
	in      []A
	out     []R
	fn      func(context.Context, A) (R, error)
	ctx     context.Context
	cancel  context.CancelCauseFunc
	next    atomic.Int64
	helpers sync.WaitGroup
	once    sync.Once
	err     error
	failed  atomic.Bool
	inside  bool // Map was called in a task, which waits for the helpers in its slot
}

func (m *mapping[A, R]) fail(err error) {
	m.once.Do(func() {
		m.err = err
		m.failed.Store(true)
		m.cancel(err)
	})
}

// all runs the elements, here and on other goroutines, and returns when the last of them has.
func (m *mapping[A, R]) all(own *slot) {
	finished := false
	defer func() {
		if !finished { // fn ended this goroutine
			m.fail(ErrGoexit)
		}
		if own != nil {
			own.leave() // those that still run have slots of their own
		}
		m.helpers.Wait()
	}()
	m.work(m.ctx, own)
	finished = true
}

// work runs elements until there are no more. own is the slot to be given up between
// elements while others wait; nil is the slot of the task that Map was called in.
func (m *mapping[A, R]) work(ctx context.Context, own *slot) {
	for first := true; ; first = false {
		if !first && own != nil && m.inside && m.pool.waits(0) {
			return // a helper, which must not wait for a slot, makes room for those who do
		}
		i := int(m.next.Add(1)) - 1
		if i >= len(m.in) || m.failed.Load() {
			return
		}
		if !first && own != nil {
			own.next(ctx)
		}
		if ctx.Err() != nil {
			m.fail(context.Cause(ctx))
			return
		}
		if m.pool.stopped.Load() {
			m.fail(ErrShutdown)
			return
		}
		if i+1 < len(m.in) {
			m.help()
		}
		if err := m.one(ctx, i); err != nil {
			m.fail(err)
			return
		}
	}
}

// one runs element i and turns a panic into an error.
func (m *mapping[A, R]) one(ctx context.Context, i int) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &PanicError{Value: v, Stack: debug.Stack()}
		}
	}()
	r, err := m.fn(ctx, m.in[i])
	if err == nil {
		m.out[i] = r
	}
	return err
}

// help starts one more goroutine if there is a free slot that nobody waits for.
func (m *mapping[A, R]) help() {
	s := m.pool.try(nil, m.ctx, &m.task)
	if s == nil {
		return
	}
	if !m.inside {
		s.word.Store(s.word.Load() | slotApart)
	}
	m.helpers.Add(1)
	go func() {
		defer m.helpers.Done()
		if x := m.pool.extra.Load(); x != nil {
			defer x.enlist()()
		}
		finished := false
		defer func() {
			if !finished {
				m.fail(ErrGoexit)
			}
			s.leave()
		}()
		m.work(s, s)
		finished = true
	}()
}

package pool

import (
	"context"
	"runtime/debug"
	"sync"
	"sync/atomic"
)

// Map calls fn for every element of in and returns the results in the order of in. The elements run one after the other
// in the caller's slot, and at the same time in as many other slots as are free while nobody waits for them. Between
// elements, Map gives these other slots back: to tasks that wait, to a Map that has fewer, until both have the same
// number, and if the pool has become smaller ([Pool.Resize]). Under load, Map is one task among others and goes to the
// end of the queue after each element. Inside a task, Map uses the slot of that task, so that it cannot deadlock at any
// size.
//
// The first error cancels the context that fn receives. Once every call of fn has returned, Map returns that error and
// no results. A panic of fn is such an error, a [*PanicError]; so is [ErrGoexit] on a goroutine other than the
// caller's; and [ErrShutdown], if the pool's time for draining is over before the last element has begun. If there is
// no slot, the errors are those of [Pool.Do]. opts apply to every element: if one has not begun by its deadline
// ([WithDeadline]), it is refused, and the Map with it. If in is empty, Map does not wait.
func Map[A, R any](ctx context.Context, p *Pool, in []A, fn func(context.Context, A) (R, error), opts ...TaskOption) ([]R, error) {
	m := &mapping[A, R]{pool: p, task: gather(opts), in: in, out: make([]R, len(in)), fn: fn}
	if len(in) == 0 && ctx.Err() == nil {
		return m.out, nil
	}
	m.crew.count, m.crew.each, m.crew.lend = int64(len(in)), int64(m.task.weight), m.help
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
	limited, stop := m.task.limit(m.ctx)
	defer stop()
	m.limited = limited
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
	limited context.Context // ends with the deadline as well: for the queue
	cancel  context.CancelCauseFunc
	crew    crew
	helpers sync.WaitGroup
	between atomic.Int64 // goroutines that look whether anybody is more urgent
	once    sync.Once
	err     error
	failed  atomic.Bool
	inside  bool // Map was called in a task, which waits for the helpers in its slot
}

func (m *mapping[A, R]) fail(err error) {
	m.once.Do(func() {
		m.err = err
		m.failed.Store(true)
		m.crew.next.Store(m.crew.count) // nobody begins any more of them
		m.cancel(err)
	})
}

// all runs the elements, here and on other goroutines, and returns when the last of them has.
func (m *mapping[A, R]) all(own *slot) {
	finished := false
	m.crew.hands.Add(1)
	m.pool.crews.join(&m.crew)
	defer func() {
		if !finished { // fn ended this goroutine
			m.fail(ErrGoexit)
		}
		m.crew.hands.Add(-1)
		if own != nil {
			own.leave() // those that still run have slots of their own
		}
		m.pool.crews.part(&m.crew)
		m.helpers.Wait()
	}()
	m.work(m.ctx, own, false)
	finished = true
}

// work runs elements until there are no more. own is the slot to be given up between
// elements while others wait; nil is the slot of the task that Map was called in. A helper makes room for others
// and does not come back.
func (m *mapping[A, R]) work(ctx context.Context, own *slot, helper bool) {
	for first := true; ; first = false {
		if helper && !first && m.wanted(own) {
			return
		}
		i := int(m.crew.next.Add(1)) - 1
		if i >= len(m.in) || m.failed.Load() {
			return
		}
		if !first && own != nil {
			m.between.Add(1)
			own.next(m.limited)
			m.between.Add(-1)
		}
		if ctx.Err() != nil {
			m.fail(context.Cause(ctx))
			return
		}
		if m.pool.stopped.Load() {
			m.fail(ErrShutdown)
			return
		}
		if m.late() {
			m.fail(m.pool.refuseLate(m.pool.kinds.get(m.task.kind)))
			return
		}
		if i+1 < len(m.in) {
			m.help()
		} else { // there may be one that another Map has a use for
			m.pool.spare()
		}
		if err := m.one(ctx, i); err != nil {
			m.fail(err)
			return
		}
	}
}

// late reports whether no element is to begin any more. The wait in the queue may have ended by another clock than the one that is read here, and
// its slot with it.
func (m *mapping[A, R]) late() bool {
	d := m.task.deadline
	return !d.IsZero() && (passed(d) || context.Cause(m.limited) == errLate)
}

// wanted reports whether a helper's slot is of more use to others: to whoever waits and is as urgent, or to another Map; or there is none any more
// for it.
func (m *mapping[A, R]) wanted(s *slot) bool {
	level := s.level()
	if m.inside {
		level = 0 // the task that Map was called in waits for its helpers, and they must not wait for a slot
	}
	between := m.between.Load()
	return m.pool.waiters(level) > between || m.pool.exceeded() || m.pool.crews.poorer(&m.crew)
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

// help starts one more goroutine if there is a free slot that nobody waits for, and reports whether there was. That is no new
// work if the pool is being shut down.
func (m *mapping[A, R]) help() bool {
	s := m.pool.more(nil, m.ctx, &m.task)
	if s == nil {
		return false
	}
	if !m.inside {
		s.word.Store(s.word.Load() | slotApart)
	}
	m.crew.hands.Add(1)
	m.helpers.Add(1)
	go m.helper(s)
	return true
}

// helper runs elements in a slot of its own.
func (m *mapping[A, R]) helper(s *slot) {
	defer m.helpers.Done()
	defer m.pool.enlist()()
	finished := false
	defer func() {
		if !finished {
			m.fail(ErrGoexit)
		}
		m.crew.hands.Add(-1)
		s.leave() // for those who wait, or else for the Map that has the fewest
	}()
	m.work(s, s, true)
	finished = true
}

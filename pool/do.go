package pool

import (
	"context"
	"errors"
	"runtime"
	"time"

	"github.com/spillgate/spillgate/limiter"
)

// Do runs fn in a slot of the pool, on the goroutine that called it, and returns what fn returned. It waits in the queue
// until there is a slot.
//
// The context that fn receives is derived from ctx and carries the slot: calls of the pool under it need no second one.
// If ctx already carries a slot of this pool, fn runs at once and opts have no effect.
//
// If fn was not called, the error is one of these: a [limiter.Error] that says when to come back and wraps
// [limiter.ErrSaturated], [limiter.ErrWouldMissDeadline] or, if the client's own share of the queue is full,
// [limiter.ErrRateLimited]; [ErrShutdown]; or the cause of ctx if that ended before there was a slot. A panic and a
// [runtime.Goexit] of fn go on up the caller's stack untouched, and the slot is given back.
//
// Do allocates once: the context that it passes to fn. fn may keep that context for as long as it likes, so it is never
// reused for another task. See [WithPlainContext] for a Do that allocates nothing.
func (p *Pool) Do(ctx context.Context, fn func(context.Context) error, opts ...TaskOption) error {
	if p.held(ctx) != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fn(ctx)
	}
	t := gather(opts)
	if t.plain {
		return p.plain(ctx, fn, &t)
	}
	s, err := p.take(ctx, &t, 0)
	if err != nil {
		return err
	}
	s.lock()
	defer s.leave()
	return fn(s)
}

// plain is Do where the task's context does not carry the slot, so that nobody but this
// call can see it: it is these three variables.
func (p *Pool) plain(ctx context.Context, fn func(context.Context) error, t *task) error {
	k, err := p.known(ctx, t)
	if err != nil {
		return err
	}
	taken := p.line.TryTake(t.weight)
	if taken == 0 {
		taken = p.again(k, t.weight)
	}
	if taken == 0 { // waiting costs more than an allocation
		s, err := p.queue(ctx, k, t, 0)
		if err != nil {
			return err
		}
		s.lock()
		defer s.leave()
		return fn(ctx)
	}
	began := p.begin(k)
	if p.draining.Load() {
		return p.turnAway(k, taken)
	}
	if p.extra.Load() != nil {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
	}
	defer p.end(k, taken, began)
	return fn(ctx)
}

// Enter waits for a slot like [Pool.Do] and returns a context that carries it, for code that cannot be put into a func,
// such as a middleware. The caller must call [Slot.Leave] on the same goroutine when the work is done; a deferred call
// also covers panics. Where Do would not call its func, Enter returns ctx, an empty Slot and the error.
//
// If ctx already carries a slot of this pool, Enter returns ctx and an empty Slot, whose Leave does nothing. Enter
// allocates once: the context that carries the slot. With [WithPlainContext] it returns ctx instead.
func (p *Pool) Enter(ctx context.Context, opts ...TaskOption) (context.Context, Slot, error) {
	if p.held(ctx) != nil {
		if ctx.Err() != nil {
			return ctx, Slot{}, context.Cause(ctx)
		}
		return ctx, Slot{}, nil
	}
	t := gather(opts)
	s, err := p.take(ctx, &t, 0)
	if err != nil {
		return ctx, Slot{}, err
	}
	s.lock()
	if t.plain {
		return ctx, Slot{s}, nil
	}
	return s, Slot{s}, nil
}

// Slot is the right to use a core, as granted by [Pool.Enter]. It is a small value that may be copied; the zero value
// is no slot.
type Slot struct{ s *slot }

// Leave gives the slot back. A second call, also on a copy, does nothing, with one exception on Linux: if another
// goroutine has given the slot back before, a call on the goroutine of [Pool.Enter] unlocks what [Overcommit] has
// locked to its thread.
func (s Slot) Leave() {
	if s.s != nil {
		s.s.leave()
	}
}

// take returns a slot for t. arrived is when the task did, on the pool's clock; 0 is now.
func (p *Pool) take(ctx context.Context, t *task, arrived time.Duration) (*slot, error) {
	k, err := p.known(ctx, t)
	if err != nil {
		return nil, err
	}
	taken := p.line.TryTake(t.weight)
	if taken == 0 {
		taken = p.again(k, t.weight)
	}
	if taken == 0 {
		return p.queue(ctx, k, t, arrived)
	}
	s := new(slot)
	s.fill(ctx, k, t, taken)
	s.began = p.begin(k)
	if p.draining.Load() {
		return nil, p.turnAway(k, taken)
	}
	return s, nil
}

// try is take without waiting; it fills s, or a new slot if that is nil. Its refusals are not
// counted.
func (p *Pool) try(s *slot, ctx context.Context, t *task) *slot {
	if p.draining.Load() {
		return nil
	}
	s = p.more(s, ctx, t)
	if s != nil && p.draining.Load() {
		p.turnAway(s.kind, int(s.weight))
		return nil
	}
	return s
}

// more is try for what belongs to a task that runs: it may go on while the pool is shut down.
func (p *Pool) more(s *slot, ctx context.Context, t *task) *slot {
	if ctx.Err() != nil || passed(t.deadline) {
		return nil
	}
	taken := p.line.TryTake(t.weight)
	if taken == 0 {
		return nil
	}
	if s == nil {
		s = new(slot)
	}
	k := p.kinds.get(t.kind)
	s.fill(ctx, k, t, taken)
	s.began = p.begin(k)
	return s
}

// known returns the record of t's kind, or why t is refused before there is any question of a slot.
func (p *Pool) known(ctx context.Context, t *task) (*kind, error) {
	k := p.kinds.get(t.kind)
	if ctx.Err() != nil {
		err := context.Cause(ctx)
		if err != errRuns {
			p.left.Add(1)
			k.refused.Add(1)
		}
		return nil, err
	}
	if passed(t.deadline) {
		return nil, p.refuseLate(k)
	}
	if p.draining.Load() {
		k.refused.Add(1)
		return nil, ErrShutdown
	}
	return k, nil
}

// passed reports whether a deadline has passed; zero is none.
func passed(deadline time.Time) bool { return !deadline.IsZero() && time.Until(deadline) <= 0 }

// refuseLate counts a task that comes after its own deadline.
func (p *Pool) refuseLate(k *kind) error {
	p.late.Add(1)
	k.refused.Add(1)
	return errLate
}

// errLate is the refusal of what comes after its own deadline: coming back is of no use.
var errLate error = &limiter.Error{Err: limiter.ErrWouldMissDeadline}

// again gives brief work that found no slot a second chance: it comes to wait mostly because
// somebody was taken off the processor with a slot in hand, and the queue once formed makes each of
// them wait for a switch between goroutines that costs more than the work. To let the others run
// and look again costs less. It takes no one's place: while anybody waits it gets nothing.
func (p *Pool) again(k *kind, weight int) (taken int) {
	if !k.brief() {
		return 0
	}
	end := p.now() + 10*time.Microsecond
	for range 16 { // also where the clock stands still, as in a test's bubble
		runtime.Gosched()
		if taken = p.line.TryTake(weight); taken != 0 || p.now() >= end {
			break
		}
	}
	return taken
}

// begin counts a task as begun and returns when that was, or untimed. A task is counted first and
// looks then whether the pool is shut down, and Shutdown says so first and counts then, so that one of
// them sees the other.
func (p *Pool) begin(k *kind) time.Duration {
	if k.timed(k.begun.Add(1)) {
		return p.clock()
	}
	return untimed
}

// clock is now where it also serves to follow GOMAXPROCS.
func (p *Pool) clock() time.Duration {
	now := p.now()
	p.follow(now)
	return now
}

// untimed stands for the time where the clock was not read.
const untimed time.Duration = -1

// turnAway ends a task that has got its slot while Shutdown began. It stays counted as begun: a count that goes down is taken for
// that of a new process.
func (p *Pool) turnAway(k *kind, taken int) error {
	p.end(k, taken, untimed)
	return ErrShutdown
}

// end ends a task that holds what TryTake gave.
func (p *Pool) end(k *kind, taken int, began time.Duration) {
	if began != untimed {
		k.ran(p.now() - began)
	}
	if taken != 0 {
		p.line.Give(taken)
	}
	k.ended.Add(1)
	if p.draining.Load() {
		p.over()
	}
	p.spare()
}

// queue is take where there was no free slot at first.
func (p *Pool) queue(ctx context.Context, k *kind, t *task, arrived time.Duration) (*slot, error) {
	now := p.clock()
	if arrived == 0 {
		arrived = now
	}
	from := arrived
	if !t.arrival.IsZero() {
		arrived = min(arrived, max(t.arrival.Sub(p.base), 0))
	}
	w := &waited{standing: standing{arrived: arrived}}
	s := &w.slot
	s.fill(ctx, k, t, t.weight)
	s.standing.Store(&w.standing)
	level := s.level()
	k.waiting.Add(1)
	p.waiting[level].Add(1)
	permit, err := p.wait(ctx, k, t, arrived)
	switch {
	case err == nil:
		k.begun.Add(1)
	case err != errRuns:
		k.refused.Add(1)
	}
	p.waiting[level].Add(-1)
	k.waiting.Add(-1)
	p.spare()
	if err != nil {
		if p.draining.Load() {
			p.over()
		}
		if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
		}
		return nil, err
	}
	w.standing.permit, s.began = permit, p.now()
	k.wait.add(s.began - from)
	return s, nil
}

// wait waits for the permit of a task that is counted as waiting.
func (p *Pool) wait(ctx context.Context, k *kind, t *task, arrived time.Duration) (limiter.Permit, error) {
	if p.draining.Load() {
		return limiter.Permit{}, ErrShutdown
	}
	if t.client != "" {
		if !p.shares.join(t.client, p.conf.share) {
			return limiter.Permit{}, p.overShare(k)
		}
		defer p.shares.part(t.client)
	}
	usual := k.expected(p.now())
	limited, stop := t.limit(ctx)
	defer stop()
	permit, err := p.line.Acquire(limited, limiter.Request{
		Priority: t.priority, Weight: t.weight, Client: t.client, Work: usual, Arrived: p.at(arrived),
	})
	if _, refused := err.(*limiter.Error); err != nil && !refused { // what limited.Err returns
		switch {
		case err == context.DeadlineExceeded && context.Cause(limited) == errLate:
			p.late.Add(1)
			err = errLate
		case context.Cause(ctx) == errRuns:
			err = errRuns
		default:
			p.left.Add(1)
		}
	}
	if errors.Is(err, limiter.ErrWouldMissDeadline) {
		k.refusedBy(usual, p.now())
	}
	if err == nil && p.stopped.Load() {
		// Only because Shutdown opened the gate.
		permit.Release(limiter.Ignored)
		return limiter.Permit{}, ErrShutdown
	}
	return permit, err
}

// limit returns ctx with the task's own deadline, for the queue to look at, and as its cause, errLate. stop
// is to be called after the wait.
func (t *task) limit(ctx context.Context) (limited context.Context, stop context.CancelFunc) {
	if t.deadline.IsZero() {
		return ctx, func() {}
	}
	if d, ok := ctx.Deadline(); ok && d.Before(t.deadline) {
		return ctx, func() {}
	}
	return context.WithDeadlineCause(ctx, t.deadline.Add(1), errLate) // at t.deadline it is just in time
}

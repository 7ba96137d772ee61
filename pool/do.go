package pool

import (
	"context"
	"errors"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spillgate/spillgate/limiter"
)

// Do runs fn in a slot of the pool, on the goroutine that called it, and returns what fn
// returned. Until there is a slot it waits in the line.
//
// The context that fn receives is ctx and carries the slot: calls of the pool under it
// need no second one. If ctx carries a slot of this pool already, fn runs at once and opts
// have no effect.
//
// If fn was not called the error is a [limiter.Error] that wraps [limiter.ErrSaturated],
// [limiter.ErrWouldMissDeadline] or, where the client's own share of the line is full,
// [limiter.ErrRateLimited], and says when to come back; [ErrShutdown]; or the cause of ctx
// if that ended before there was a slot. A panic and a [runtime.Goexit] of fn go on up the
// caller's stack untouched, and the slot is given back.
//
// Do allocates once: the context that it passes to fn. fn may keep that context for as
// long as it likes, and so it is never used again for another task.
func (p *Pool) Do(ctx context.Context, fn func(context.Context) error, opts ...TaskOption) error {
	if p.held(ctx) != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fn(ctx)
	}
	s := new(slot)
	if err := p.take(s, ctx, gather(opts), true); err != nil {
		return err
	}
	defer s.leave()
	return fn(s)
}

// Enter waits for a slot like [Pool.Do] and returns a context that carries it, for code
// that cannot be put into a func, such as a middleware. The caller must call
// [Slot.Leave], on the same goroutine, when the work is done; a defer does that for panics
// too. Where Do would not call its func, Enter returns ctx, an empty Slot and the error.
//
// If ctx carries a slot of this pool already, Enter returns ctx and an empty Slot, whose Leave
// does nothing. Enter allocates once, the context.
func (p *Pool) Enter(ctx context.Context, opts ...TaskOption) (context.Context, Slot, error) {
	if p.held(ctx) != nil {
		if ctx.Err() != nil {
			return ctx, Slot{}, context.Cause(ctx)
		}
		return ctx, Slot{}, nil
	}
	s := new(slot)
	if err := p.take(s, ctx, gather(opts), true); err != nil {
		return ctx, Slot{}, err
	}
	return s, Slot{s}, nil
}

// Slot is the right to use a core, as given out by [Pool.Enter]. It is a small value that may be
// copied; the zero value is no slot.
type Slot struct{ s *slot }

// Leave gives the slot back. A second call, also on a copy, does nothing.
func (s Slot) Leave() {
	if s.s != nil {
		s.s.leave()
	}
}

// slot is a slot that was taken and the context that carries it. It is used for one task and
// never again, because the task may have kept the context.
type slot struct {
	context.Context
	pool    *Pool
	kind    *kind
	permit  limiter.Permit
	began   time.Duration // on the pool's clock; later if the slot was given up in between; or untimed
	resumed time.Duration // when it was last taken again after it was given up
	arrived time.Duration // set before take where that comes later
	client  string
	weight  int32
	level   int8 // index into Pool.waiting
	locked  bool // the goroutine was locked to its thread
	state   atomic.Uint32
	yield   sync.Mutex // held while the slot is given up for others
}

const (
	slotHeld    uint32 = iota // taken; nobody sees a slot before it is
	slotYielded               // given up for others; will be taken again
	slotLeft                  // given back
)

type (
	anySlot  struct{}          // key of the innermost slot
	poolSlot struct{ p *Pool } // key of the slot of one pool
)

// Value returns the slot for the keys of this package and else what the caller's context has.
func (s *slot) Value(key any) any {
	switch k := key.(type) {
	case anySlot:
		return s
	case poolSlot:
		if k.p == s.pool {
			return s
		}
	}
	return s.Context.Value(key)
}

// held returns the slot of p that ctx carries, if the task still has it.
func (p *Pool) held(ctx context.Context) *slot {
	s, _ := ctx.Value(poolSlot{p}).(*slot)
	if s == nil || !s.isHeld() {
		return nil
	}
	return s
}

func (s *slot) isHeld() bool {
	v := s.state.Load()
	return v == slotHeld || v == slotYielded
}

// level is where a priority is counted in Pool.waiting; the ends are those of package limiter.
func level(priority int) int { return min(max(priority, -8), 7) + 8 }

// take fills s with a slot for t. Inline says that the caller's goroutine will do the work.
func (p *Pool) take(s *slot, ctx context.Context, t task, inline bool) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	k := p.kinds.get(t.kind)
	if err := p.join(); err != nil {
		k.refused.Add(1)
		return err
	}
	if !t.deadline.IsZero() && time.Until(t.deadline) <= 0 {
		p.late.Add(1)
		return p.refused(k, ctx, errLate)
	}
	now := untimed
	if k.timed() {
		now = p.now()
		p.follow(now)
	}
	r := p.fill(s, ctx, k, &t, now)
	// active is counted before a permit is taken and after it was given back, so as
	// long as it is no more than the number of slots nobody can be in the way.
	if p.active.Load() <= int64(p.line.Limit()) && !p.heavy.Load() {
		permit, err := p.admitted(p.line.Acquire(ctx, r))
		if err != nil {
			return p.refused(k, ctx, err)
		}
		s.permit, s.began = permit, now
	} else {
		if now == untimed {
			now = p.now()
			p.follow(now)
		}
		if s.arrived <= 0 {
			s.arrived = now
		}
		r.Arrived = p.at(s.arrived)
		if t.client != "" {
			if !p.shares.join(t.client, p.conf.share) {
				return p.refused(k, ctx, p.overShare(k))
			}
			defer p.shares.part(t.client)
		}
		k.waiting.Add(1)
		p.waiting[s.level].Add(1)
		permit, err := p.admitted(p.line.Acquire(t.limit(ctx), r))
		p.waiting[s.level].Add(-1)
		k.waiting.Add(-1)
		if err != nil {
			return p.refused(k, ctx, err)
		}
		s.permit, s.began = permit, p.now()
		k.wait.add(s.began - s.arrived)
	}
	p.seize(s, inline)
	return nil
}

// errLate is the refusal of what comes after its own deadline: coming back is of no use.
var errLate error = &limiter.Error{Err: limiter.ErrWouldMissDeadline}

// admitted turns away who got a permit only because Shutdown opened the gate.
func (p *Pool) admitted(permit limiter.Permit, err error) (limiter.Permit, error) {
	if err == nil && p.stopped.Load() {
		permit.Release(limiter.Ignored)
		return limiter.Permit{}, ErrShutdown
	}
	return permit, err
}

// untimed stands for the time where the clock was not read.
const untimed time.Duration = -1

// free reports whether there seems to be a free slot.
func (p *Pool) free() bool { return p.active.Load() < int64(p.line.Limit()) }

// try is take without waiting; its refusals are not counted.
func (p *Pool) try(s *slot, ctx context.Context, t task, inline bool) bool {
	if ctx.Err() != nil || !t.deadline.IsZero() && time.Until(t.deadline) <= 0 {
		return false
	}
	if !p.free() || p.join() != nil {
		return false
	}
	k := p.kinds.get(t.kind)
	now := untimed
	if k.timed() {
		now = p.now()
		p.follow(now)
	}
	permit, ok := p.line.TryAcquire(p.fill(s, ctx, k, &t, now))
	if !ok {
		p.part()
		return false
	}
	s.permit, s.began = permit, now
	p.seize(s, inline)
	return true
}

func (p *Pool) fill(s *slot, ctx context.Context, k *kind, t *task, now time.Duration) limiter.Request {
	s.Context, s.pool, s.kind = ctx, p, k
	if s.arrived == 0 {
		s.arrived = now
	}
	s.client, s.level = t.client, int8(level(t.priority))
	s.weight = int32(min(t.weight, math.MaxInt32))
	if t.weight > 1 {
		p.heavy.Store(true)
	}
	return limiter.Request{Priority: t.priority, Weight: t.weight, Client: t.client, Work: k.usual()}
}

// seize marks s as taken.
func (p *Pool) seize(s *slot, inline bool) {
	s.kind.begun.Add(1)
	if inline && p.extra.Load() != nil {
		runtime.LockOSThread()
		s.locked = true
	}
}

// leave gives the slot back, once.
func (s *slot) leave() {
	if s.state.CompareAndSwap(slotHeld, slotLeft) {
		s.settle()
	} else if s.state.CompareAndSwap(slotYielded, slotLeft) {
		// The one that yielded finds that out when it gets a slot again, and settles.
	} else {
		return
	}
	if s.locked {
		runtime.UnlockOSThread()
	}
}

// settle ends the task in the books and gives its permit back.
func (s *slot) settle() {
	p := s.pool
	s.kind.ended.Add(1)
	if s.began == untimed { // and so did not wait: the line has nothing to learn from it
		s.permit.Release(limiter.Success)
	} else {
		now := p.now()
		s.kind.ran(now - s.began)
		s.permit.ReleaseAt(limiter.Success, p.at(now))
	}
	p.part()
}

// join counts a task in.
func (p *Pool) join() error {
	if p.active.Add(1)&draining != 0 {
		p.part()
		return ErrShutdown
	}
	return nil
}

// part counts a task out.
func (p *Pool) part() {
	if p.active.Add(-1) == draining {
		p.once.Do(func() { close(p.idle) })
	}
}

// refused ends a task that got no slot.
func (p *Pool) refused(k *kind, ctx context.Context, err error) error {
	k.refused.Add(1)
	p.part()
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return err
}

// limit returns ctx with the task's own deadline, for the waiting line to look at. It does
// not end at the deadline: the line drops by it what has not begun.
func (t *task) limit(ctx context.Context) context.Context {
	if t.deadline.IsZero() {
		return ctx
	}
	if d, ok := ctx.Deadline(); ok && d.Before(t.deadline) {
		return ctx
	}
	return &deadlined{ctx, t.deadline}
}

type deadlined struct {
	context.Context
	deadline time.Time
}

func (d *deadlined) Deadline() (time.Time, bool) { return d.deadline, true }

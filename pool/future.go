package pool

import (
	"context"
	"errors"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/spillgate/spillgate/limiter"
)

// Future is the result of a task that was given to [Submit] and runs on another goroutine. As long as the Future is
// kept, it keeps the context that Submit was given, and what that holds. A Future is safe for concurrent use. The zero
// value does not work.
type Future[T any] struct {
	slot   slot // where the task runs if there was one at once; it is the task's context too
	fn     func(context.Context) (T, error)
	inside *inside // set where Submit was called in a task of the same pool
	done   latch   // once open, value and err do not change
	value  T
	err    error
}

// inside is what a future knows of the task that submitted it.
type inside struct {
	outer    context.Context         // as given to Submit
	slot     *slot                   // of that task
	deadline time.Time               // of its own; zero is none
	stop     context.CancelCauseFunc // takes the place in the queue back
	state    atomic.Uint32
	refusal  error // written before state is insideRefused
}

const (
	insideFree    uint32 = iota // waits for a slot of its own
	insideRefused               // got none; it can still run in the slot of the task that submitted it, or of one around that
	insideClaimed               // somebody runs the future's task, or it has failed
)

// errRuns is the cause with which the wait for a slot of its own ends where the task runs in another's.
var errRuns = errors.New("pool: runs in the slot of the task around it")

// claim says that the caller runs the future's task, or has it fail. It returns what was so before.
func (in *inside) claim() uint32 { return in.state.Swap(insideClaimed) }

// refused says that there was no slot of its own, and reports whether it is left to whoever waits for the future.
func (in *inside) refused(err error) bool {
	p := in.slot.kind.pool
	switch {
	case err == errLate:
		return false
	case errors.Is(err, limiter.ErrSaturated), errors.Is(err, limiter.ErrRateLimited), errors.Is(err, limiter.ErrWouldMissDeadline):
	case err == ErrShutdown && !p.stopped.Load():
	default:
		return false
	}
	in.refusal = err
	in.state.CompareAndSwap(insideFree, insideRefused)
	return in.slot.held() != nil // looked at after that, as Wait looks at the state after this: one of them sees the other
}

// Submit runs fn on a goroutine of its own as soon as there is a slot, and returns at once. [Future.Wait] returns the
// result. If fn never ran, Wait returns the error that [Pool.Do] would have returned; if fn panicked, a [*PanicError];
// if fn ended its goroutine, [ErrGoexit]. A result that nobody waits for is dropped with the Future.
//
// Inside a task of the same pool, fn has its own place in the queue. If it has not begun by the time somebody waits for
// it, it runs on the goroutine that waits. A task that waits for what it submitted therefore cannot deadlock, at any
// size of the pool. Nor can the wait fail because there is no room for more, because the queue is too long for the
// deadline, or because the pool takes no more work.
//
// The context ctx stops the task, also while it waits for its slot. For work that is to go on after a request, pass
// [context.WithoutCancel] of the request's context. Use package jobs for work that must not be lost.
//
// Submit has no bound but that of the queue: each task that waits there has a goroutine, and when the queue is full, the
// Future is refused.
func Submit[T any](ctx context.Context, p *Pool, fn func(context.Context) (T, error), opts ...TaskOption) *Future[T] {
	f := &Future[T]{fn: fn}
	f.done.init()
	t := gather(opts)
	if p.try(&f.slot, ctx, &t) != nil {
		go f.run(&f.slot)
		return f
	}
	if s := p.held(ctx); s != nil {
		f.inside = &inside{outer: ctx, slot: s, deadline: t.deadline}
		ctx, f.inside.stop = context.WithCancelCause(ctx)
	}
	go f.queue(p, ctx, t, p.now())
	return f
}

// TrySubmit is [Submit] if there is a free slot and nobody waits for it; otherwise it returns nil and false.
func TrySubmit[T any](ctx context.Context, p *Pool, fn func(context.Context) (T, error), opts ...TaskOption) (*Future[T], bool) {
	f := &Future[T]{fn: fn}
	f.done.init()
	t := gather(opts)
	if p.try(&f.slot, ctx, &t) == nil {
		return nil, false
	}
	go f.run(&f.slot)
	return f, true
}

// Wait waits for the task's result and returns it. If ctx ends first, Wait returns its cause, and the task goes on:
// only the context given to [Submit] stops it. If Wait runs the task itself (see [Submit]), it returns when the task
// does; it begins none once ctx has ended. Any number of goroutines may wait, any number of times.
func (f *Future[T]) Wait(ctx context.Context) (T, error) {
	if f.inside != nil && ctx.Err() == nil {
		f.runInside(f.inside)
	}
	if k := f.slot.kind; k != nil && k.brief() && !f.done.isOpen() {
		k.makeWay()
	}
	if !f.done.wait(ctx) {
		var zero T
		return zero, context.Cause(ctx)
	}
	return f.value, f.err
}

// runInside runs the task on this goroutine if the task that submitted it holds a slot, or one around that, and it has
// none yet.
func (f *Future[T]) runInside(in *inside) {
	held := in.slot.held() != nil
	if !held && in.state.Load() == insideFree {
		return
	}
	switch was := in.claim(); {
	case was == insideClaimed:
		return
	case was == insideRefused && !held:
		f.finish(f.value, in.refusal)
		return
	}
	in.stop(errRuns)
	switch {
	case in.outer.Err() != nil:
		f.finish(f.value, context.Cause(in.outer))
	case in.slot.kind.pool.stopped.Load():
		f.finish(f.value, ErrShutdown)
	case passed(in.deadline):
		f.finish(f.value, errLate)
	default:
		f.perform(in.outer, nil)
	}
}

// makeWay lets the goroutine of a brief task run that is next on this processor: it is over
// sooner than its waiter could be put to sleep and woken. Where many others are runnable the
// waiter would stand behind them all, and not be woken by the task: one in eight looks how long
// it took, and after one such experience the next thousand do not try.
func (k *kind) makeWay() {
	crowded := &k.pool.crowded
	switch {
	case crowded.Load() > 0:
		crowded.Add(-1)
	case k.begun.Load()&7 != 0:
		runtime.Gosched()
	default:
		before := k.pool.now()
		runtime.Gosched()
		if k.pool.now()-before > 20*time.Microsecond {
			crowded.Store(1000)
		}
	}
}

// Ready reports whether the result is there, so that Wait returns at once. A task that was submitted inside another and
// found no room has no result until somebody waits for it.
func (f *Future[T]) Ready() bool { return f.done.isOpen() }

// finish stores the result and tells those who wait.
func (f *Future[T]) finish(value T, err error) {
	f.fn, f.value, f.err = nil, value, err
	f.done.open()
}

// queue waits for a slot and then runs the task, unless somebody else did.
func (f *Future[T]) queue(p *Pool, ctx context.Context, t task, arrived time.Duration) {
	s, err := p.take(ctx, &t, arrived)
	if in := f.inside; in != nil {
		in.stop(nil)
		if in.refused(err) {
			return
		}
		if in.claim() == insideClaimed {
			if err == nil {
				s.leave()
			}
			return
		}
		if err == nil {
			s.Context = in.outer // and not the one that was for the queue
		}
	}
	if err != nil {
		f.finish(f.value, err)
		return
	}
	f.run(s)
}

// run runs the task in a slot of its own.
func (f *Future[T]) run(s *slot) {
	defer s.kind.pool.enlist()()
	f.perform(s, s)
}

// perform runs the task, leaves the slot own if it has one, and stores the result,
// whatever way the task ends: returning, with a panic, or with runtime.Goexit.
func (f *Future[T]) perform(ctx context.Context, own *slot) {
	var value T
	err := ErrGoexit
	defer func() {
		if v := recover(); v != nil {
			err = &PanicError{Value: v, Stack: debug.Stack()}
		}
		if own != nil {
			own.leave()
		}
		f.finish(value, err)
	}()
	value, err = f.fn(ctx)
}

package pool

import (
	"context"
	"runtime/debug"
	"sync"
	"sync/atomic"
)

// Future is the result of a task that was given to [Submit] and runs on another goroutine.
// Safe for concurrent use. The zero value does not work.
type Future[T any] struct {
	slot  slot // where the task runs; it is the task's context too
	fn    func(context.Context) (T, error)
	outer context.Context    // as given to Submit, where that was inside a task
	in    *slot              // the slot of that task
	stop  context.CancelFunc // takes the place in the line back

	claimed atomic.Bool    // somebody runs the task, or it was refused
	ended   sync.WaitGroup // for those who wait without an end; costs no channel
	mu      sync.Mutex
	done    bool
	ready   chan struct{} // closed when done; made for the first who needs it
	value   T
	err     error
}

// Submit runs fn on a goroutine of its own as soon as there is a slot, and returns at
// once. The result is had from [Future.Wait]. If fn never ran, Wait returns the error that
// [Pool.Do] would have returned; if it panicked, a [*PanicError]; if it ended its goroutine,
// [ErrGoexit]. A result that nobody waits for is dropped with the Future.
//
// Inside a task of the same pool, fn has its own place in the line, and runs on the goroutine
// that waits for it if it has not begun by then: a task that waits for what it submitted cannot
// deadlock, at any size.
//
// Submit is bounded by the line and not by itself: each task that waits there has a
// goroutine, and when the line is full the Future is refused.
func Submit[T any](ctx context.Context, p *Pool, fn func(context.Context) (T, error), opts ...TaskOption) *Future[T] {
	f := &Future[T]{fn: fn}
	f.ended.Add(1)
	t := gather(opts)
	if p.try(&f.slot, ctx, t, false) {
		f.claimed.Store(true)
		go f.run()
		return f
	}
	if in := p.held(ctx); in != nil {
		f.in, f.outer = in, ctx
		ctx, f.stop = context.WithCancel(ctx)
	}
	f.slot.arrived = p.now()
	go f.queue(p, ctx, t)
	return f
}

// TrySubmit is [Submit] if there is a free slot and nobody waits for it; if not it returns nil
// and false.
func TrySubmit[T any](ctx context.Context, p *Pool, fn func(context.Context) (T, error), opts ...TaskOption) (*Future[T], bool) {
	f := &Future[T]{fn: fn}
	f.ended.Add(1)
	if !p.try(&f.slot, ctx, gather(opts), false) {
		return nil, false
	}
	f.claimed.Store(true)
	go f.run()
	return f, true
}

// Wait returns the task's result, when there is one. If ctx ends first it returns the
// cause of that, and the task goes on: it is the context given to [Submit] that stops it.
// Where Wait runs the task itself, see [Submit], it returns when the task does. Any number
// of goroutines may wait, any number of times.
func (f *Future[T]) Wait(ctx context.Context) (T, error) {
	if f.in != nil && f.in.isHeld() && f.claimed.CompareAndSwap(false, true) {
		// The task that submitted f holds a slot, and f has none yet: f runs in that one.
		f.stop()
		if f.outer.Err() != nil {
			f.finish(f.value, context.Cause(f.outer))
		} else {
			f.perform(f.outer, nil)
		}
	}
	f.mu.Lock()
	if f.done {
		f.mu.Unlock()
		return f.value, f.err
	}
	if ctx.Done() == nil {
		f.mu.Unlock()
		f.ended.Wait()
		return f.value, f.err
	}
	if f.ready == nil {
		f.ready = make(chan struct{})
	}
	ready := f.ready
	f.mu.Unlock()
	select {
	case <-ready:
		return f.value, f.err
	case <-ctx.Done():
		var zero T
		return zero, context.Cause(ctx)
	}
}

// Ready reports whether the result is there, so that Wait returns at once.
func (f *Future[T]) Ready() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.done
}

// finish stores the result and tells those who wait.
func (f *Future[T]) finish(value T, err error) {
	f.mu.Lock()
	f.value, f.err, f.done = value, err, true
	ready := f.ready
	f.mu.Unlock()
	f.fn, f.outer = nil, nil
	f.ended.Done()
	if ready != nil {
		close(ready)
	}
}

// queue waits for a slot and then runs the task, unless somebody else did.
func (f *Future[T]) queue(p *Pool, ctx context.Context, t task) {
	err := p.take(&f.slot, ctx, t, false)
	if f.stop != nil {
		f.stop()
	}
	if !f.claimed.CompareAndSwap(false, true) {
		if err == nil {
			f.slot.leave()
		}
		return
	}
	if err != nil {
		var zero T
		f.finish(zero, err)
		return
	}
	if f.in != nil {
		f.slot.Context = f.outer // and not the one that was for the line
	}
	f.run()
}

// run runs the task in its own slot.
func (f *Future[T]) run() {
	if x := f.slot.pool.extra.Load(); x != nil {
		defer x.enlist()()
	}
	f.perform(&f.slot, &f.slot)
}

// perform runs the task, leaves the slot own if it has one, and stores the result,
// whatever way the task ends.
func (f *Future[T]) perform(ctx context.Context, own *slot) {
	var value T
	err := ErrGoexit
	defer func() {
		if own != nil {
			own.leave()
		}
		f.finish(value, err)
	}()
	value, err = guard(ctx, f.fn)
}

// guard calls fn and turns a panic into a *PanicError. If fn calls runtime.Goexit it does not return.
func guard[T any](ctx context.Context, fn func(context.Context) (T, error)) (value T, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &PanicError{Value: v, Stack: debug.Stack()}
		}
	}()
	return fn(ctx)
}

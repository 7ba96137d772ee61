package pool

import (
	"context"
	"math"
)

// Shutdown makes the pool refuse further work with [ErrShutdown], waits until all waiting and running tasks have ended,
// and returns nil.
//
// If ctx ends first, every waiting task is dropped and answered with ErrShutdown, [Checkpoint] tells running tasks to
// stop, a [Map] begins no further element, and Shutdown returns a [*DroppedError] that names the tasks by kind. It no
// longer waits for those that run. A second Shutdown waits for the same end.
func (p *Pool) Shutdown(ctx context.Context) error {
	p.draining.Store(true)
	p.over()
	select {
	case <-p.idle:
		return nil
	default:
	}
	select {
	case <-p.idle:
		return nil
	case <-ctx.Done():
	}
	dropped := p.kinds.dropped()
	p.mu.Lock()
	if !p.stopped.Load() {
		p.had = p.line.Limit()
		p.stopped.Store(true)
	}
	p.mu.Unlock()
	// The gate is opened for all who wait; each finds on the other side that it is too late.
	p.line.SetLimit(math.MaxInt32)
	if len(dropped) == 0 {
		return nil // the last one ended while we looked
	}
	return &DroppedError{Cause: context.Cause(ctx), Kinds: dropped}
}

// over ends the wait of Shutdown if nothing waits or runs any more.
func (p *Pool) over() {
	if p.kinds.idle() {
		p.once.Do(func() { close(p.idle) })
	}
}

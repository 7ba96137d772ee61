package riverjobs

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/spillgate/spillgate/pool/jobs"
)

// Start begins to run jobs if the engine has workers ([WithWorkers]); otherwise it only checks that the database is as
// [Migrate] leaves it. It returns when that has begun, and does not use ctx after that. A second Start does nothing.
func (e *Engine) Start(ctx context.Context) error {
	if _, err := e.ids(ctx); err != nil {
		return err
	}
	e.life.Lock()
	defer e.life.Unlock()
	switch {
	case e.closed.Load():
		return jobs.ErrShutdown
	case e.stopped != nil || !e.works:
		return nil
	}
	if err := e.beat(ctx); err != nil {
		return e.fault(ctx, err)
	}
	if err := e.river.Start(context.WithoutCancel(ctx)); err != nil {
		e.beating.Close(ctx)
		return e.fault(ctx, err)
	}
	e.stopped = make(chan struct{})
	e.beats.Go(func() { e.keep(e.stopped) })
	return nil
}

// toReturn is how long Shutdown waits for handlers that were told to stop.
const toReturn = time.Second

// Shutdown accepts and begins no more jobs, waits for those that this engine runs, and returns nil. Waiting jobs stay
// in the database, for other engines or for later. What the running jobs still submit, with their contexts, is accepted
// for them as well.
//
// If ctx ends first, the contexts of running jobs end with [jobs.ErrShutdown] as their cause, and Shutdown returns a
// [*jobs.DroppedError] with their ids. Jobs whose handlers return within a second go back to the queue at once, and the
// attempt does not count; others go back when the lease of this engine is over ([WithLease]). [Engine.Close] waits for
// all handlers.
//
// Get, Cancel and Watch continue to work.
func (e *Engine) Shutdown(ctx context.Context) error {
	stopped := e.drain()
	if stopped == nil {
		return nil
	}
	select {
	case <-stopped:
		return nil
	case <-ctx.Done():
	}
	e.mu.Lock()
	running := slices.Sorted(maps.Values(e.running))
	e.mu.Unlock()
	go e.river.StopAndCancel(context.Background()) // ends the contexts, and then waits as drain does
	timer := time.NewTimer(toReturn)
	defer timer.Stop()
	select {
	case <-stopped:
	case <-timer.C:
	}
	if len(running) == 0 {
		return nil
	}
	return &jobs.DroppedError{Cause: fmt.Errorf("riverjobs: %w", context.Cause(ctx)), Running: running}
}

// drain has River fetch no more and returns what is closed when nothing runs any more, or nil if nothing ever did.
func (e *Engine) drain() <-chan struct{} {
	e.closed.Store(true)
	e.life.Lock()
	defer e.life.Unlock()
	if e.stopped == nil {
		return nil
	}
	e.stop.Do(func() {
		go func() {
			defer close(e.stopped)
			_ = e.river.Stop(context.Background()) // ends with its context only
		}()
	})
	return e.stopped
}

// Close ends everything without draining and waits until the handlers have returned. It returns what [Engine.Shutdown] returns.
func (e *Engine) Close() error {
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(jobs.ErrShutdown)
	err := e.Shutdown(ctx)
	if stopped := e.drain(); stopped != nil {
		<-stopped
	}
	e.beats.Wait()
	e.watch.Close()
	return err
}

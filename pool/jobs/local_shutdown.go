package jobs

import (
	"cmp"
	"context"
	"slices"
	"time"
)

// Shutdown accepts no more jobs, waits until all are final, and returns nil. Jobs that wait for a time after the
// deadline of ctx are dropped at once: they become Failed. Jobs that a running job submits with its context, as one
// that waits for other jobs does, are accepted and waited for as well, unless they are for later.
//
// If ctx ends first, waiting jobs are dropped, the contexts of running jobs end with [ErrShutdown] as their cause, and
// Shutdown returns a [*DroppedError] with the ids of both. It no longer waits for running jobs; [Local.Close] does. Get
// and Watch continue to work.
//
// Shut an engine down before its pool. If clients wait for its jobs over HTTP (middleware.Async), shut it down at the
// same time as the server and not after it: the server would wait for those clients. An engine whose pool is shut down
// first learns this from the next job that is to begin, which may be one that it has just accepted. As no job can begin
// any more, it then drops that job and all others that wait, and accepts no more.
func (l *Local) Shutdown(ctx context.Context) error {
	l.mu.Lock()
	l.closed = true
	now := l.now()
	if until, ok := ctx.Deadline(); ok {
		l.drained = max(after(now, time.Until(until)), 1)
		for _, e := range slices.Clone(l.delayed) {
			if e.rank > l.drained {
				l.drop(e)
			}
		}
	}
	if l.unfinished() == 0 {
		l.done()
	}
	l.goOn(now)
	l.mu.Unlock()

	select {
	case <-l.idle:
	case <-ctx.Done():
	}

	l.mu.Lock()
	defer l.mu.Unlock()
	l.stop(ErrShutdown)
	l.dropWaiting()
	var running []string
	for e := range l.running {
		running = append(running, e.id)
	}
	slices.Sort(running)
	if l.timer != nil {
		l.timer.Stop()
		l.timerAt = 0
	}
	if len(running) == 0 && len(l.dropped) == 0 {
		return nil
	}
	return &DroppedError{Cause: cmp.Or(context.Cause(ctx), ErrShutdown), Waiting: slices.Clone(l.dropped), Running: running}
}

// dropWaiting drops all jobs that wait.
func (l *Local) dropWaiting() {
	for _, e := range slices.Clone(l.delayed) {
		l.drop(e)
	}
	for l.ready.n > 0 {
		l.drop(l.ready.head())
	}
}

// drop ends a job that waits because there is no time left for it.
func (l *Local) drop(e *entry) {
	l.withdraw(e)
	l.dropped = append(l.dropped, e.id)
	l.end(e, Failed, ErrShutdown.Error(), "", nil)
}

// Close ends everything without draining and waits until the handlers have returned. It
// returns what [Local.Shutdown] returns.
func (l *Local) Close() error {
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(ErrShutdown)
	err := l.Shutdown(ctx)
	l.runs.Wait()
	return err
}

package jobs

import (
	"container/heap"
	"context"
	"iter"
	"time"
)

// view is e as the outside sees it. The lock is held. Payloads and results are never
// written to, so they can be shared.
func (l *Local) view(e *entry) Job {
	j := Job{
		ID: e.id, Kind: e.kind, State: e.state, Version: e.version,
		Attempt: e.attempt, MaxAttempts: e.attempts, Cancelling: e.cancelling && !e.state.Final(),
		Created: e.created, Started: e.started, Result: e.result, Err: e.err,
		Client: e.client, Detail: e.detail,
	}
	if e.progress != nil {
		j.Progress = *e.progress
	}
	switch {
	case e.state.Final():
		j.Finished, j.Expires = e.ended, e.next
	case e.state == Running:
		j.RetryAfter = min(max(l.mean-time.Since(e.started), time.Second), time.Minute)
	default:
		j.Next = e.next
		j.RetryAfter = l.wait(l.ready.n + 1)
		if !e.next.IsZero() {
			j.RetryAfter = max(j.RetryAfter, min(time.Until(e.next), time.Minute))
		}
	}
	return j
}

// find returns the entry of a job that is known. The lock is held.
func (l *Local) find(id string) (*entry, error) {
	now := l.now()
	l.tidy(now)
	if e := l.jobs[id]; e != nil {
		return e, nil
	}
	if l.mint.gaveOut(id) {
		return nil, ErrExpired
	}
	return nil, ErrNotFound
}

// Get implements [Engine].
func (l *Local) Get(ctx context.Context, id string) (Job, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, err := l.find(id)
	if err != nil {
		return Job{}, err
	}
	return l.view(e), nil
}

// Cancel implements [Engine].
func (l *Local) Cancel(ctx context.Context, id string) (Job, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, err := l.find(id)
	if err != nil {
		return Job{}, err
	}
	switch e.state {
	case Queued, Retrying:
		l.withdraw(e)
		l.end(e, Cancelled, ErrCancelled.Error(), "", nil)
		l.goOn(l.now())
	case Running:
		if !e.cancelling {
			e.cancelling = true
			e.cancel(ErrCancelled)
			l.change(e)
		}
	default:
		return l.view(e), ErrFinal
	}
	return l.view(e), nil
}

// withdraw takes a job that waits out of its heap.
func (l *Local) withdraw(e *entry) {
	if l.isDelayed(e) {
		heap.Remove(&l.delayed, e.place)
	} else {
		l.ready.remove(e)
	}
}

// isDelayed says that a job that waits does so for a time.
func (l *Local) isDelayed(e *entry) bool { return e.place < len(l.delayed) && l.delayed[e.place] == e }

// Watch implements [Engine]. With its own context, a job may wait here for another job of the same engine. If there may
// be no other slot for that job, it runs in the slot of the job that waits; Watch then returns no sooner than that
// attempt has ended, even if ctx has ended. While nothing runs in the slot, more urgent work uses it.
//
// A task of the same pool that is not a job, such as that of a request, lends its slot to all others while it waits
// here, however many tasks do so, and takes the slot back at once. Inside a Map or Submit of its own, such a task still
// holds another slot, and may wait for ever. What another goroutine of the task computes meanwhile has no slot: wait on
// the goroutine that would compute.
func (l *Local) Watch(ctx context.Context, id string) iter.Seq2[Job, error] {
	return func(yield func(Job, error) bool) {
		l.mu.Lock()
		e, err := l.find(id)
		h := l.helper(ctx)
		l.mu.Unlock()
		if err != nil {
			yield(Job{}, err)
			return
		}
		defer l.release(ctx, &h, e)
		var seen uint64
		for { // e is looked at also when it is forgotten: it is final then, and that is what was waited for
			l.mu.Lock()
			l.tidy(l.now())
			l.help(ctx, &h, e)
			j := l.view(e)
			if e.changed == nil && !j.State.Final() {
				e.changed = make(chan struct{})
			}
			changed := e.changed
			l.mu.Unlock()
			if j.Version != seen {
				seen = j.Version
				h.here()
				if !yield(j, nil) {
					return
				}
			}
			if j.State.Final() {
				return
			}
			if l.rest(ctx, &h, changed) {
				continue
			}
			if h.done != nil {
				l.release(ctx, &h, e)
				continue
			}
			h.here()
			yield(Job{}, context.Cause(ctx))
			return
		}
	}
}

// Requeue gives a failed job all its attempts again. The job keeps its id, and no longer has a deadline. Requeue is for
// the operator: the bound on the client's share does not apply. Errors wrap [ErrNotFound], [ErrExpired],
// [ErrNotFailed], [ErrFull] or [ErrShutdown].
func (l *Local) Requeue(ctx context.Context, id string) (Job, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, err := l.find(id)
	if err != nil {
		return Job{}, err
	}
	switch {
	case e.state != Failed:
		return l.view(e), ErrNotFailed
	case l.closed:
		return l.view(e), ErrShutdown
	case l.unfinished() >= l.conf.unfinished:
		return l.view(e), &Error{ErrFull, l.wait(1)}
	}
	l.leave(e)
	l.bytes -= int64(len(e.detail))
	e.state, e.attempt, e.progress, e.err, e.detail, e.cancelling = Queued, 0, nil, "", "", false
	e.ended, e.started, e.next, e.deadline = time.Time{}, time.Time{}, time.Time{}, time.Time{}
	now := l.now()
	l.ready.begin(e.client, len(e.payload))
	l.ready.push(e, now)
	l.change(e)
	l.goOn(now)
	return l.view(e), nil
}

// DeadLetters returns the failed jobs that are still known, the latest first, with the details that only the operator
// may see.
func (l *Local) DeadLetters() []Job {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tidy(l.now())
	var all []Job
	for at := l.ended.Back(); at != nil; at = at.Prev() {
		if e := at.Value.(*entry); e.state == Failed {
			all = append(all, l.view(e))
		}
	}
	return all
}

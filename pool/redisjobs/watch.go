package redisjobs

import (
	"context"
	"iter"
	"math/rand/v2"
	"time"

	"github.com/spillgate/spillgate/pool/jobs"
)

// How long a watcher waits before it asks: at first and at most where nobody would tell it of a change, and where somebody does. A message may be lost.
const (
	askFirst = 250 * time.Millisecond
	askLast  = 2 * time.Second
	askTold  = 10 * time.Second
)

// Watch implements [jobs.Engine]. It is told of changes, on one connection for all watchers, and asks by itself all the same: seldom while it is told, every
// 250 ms to 2 s otherwise. It ends with an error when the server fails; the job goes on all the same.
func (e *Engine) Watch(ctx context.Context, id string) iter.Seq2[jobs.Job, error] {
	return func(yield func(jobs.Job, error) bool) {
		if err := e.known(ctx, id); err != nil {
			yield(jobs.Job{}, err)
			return
		}
		told := e.watch.join(id) // before the first look, so that no change is missed
		defer e.watch.leave(told)
		timer := time.NewTimer(0)
		defer timer.Stop()
		wait := askFirst
		for seen := uint64(0); ; {
			r, err := e.find(ctx, id)
			if err != nil {
				yield(jobs.Job{}, err)
				return
			}
			// After a failover the server may know less than before, and count anew.
			if j := r.job(); j.Version != seen || j.State.Final() {
				seen, wait = j.Version, askFirst
				if !yield(j, nil) || j.State.Final() {
					return
				}
			}
			timer.Reset(r.until(e.watch.pause(&wait)))
			select {
			case <-told.changed:
			case <-timer.C:
			case <-ctx.Done():
				yield(jobs.Job{}, context.Cause(ctx))
				return
			}
		}
	}
}

// until is when to look next: at the deadline of a job that waits, if that is before.
func (r *record) until(d time.Duration) time.Duration {
	if r.deadline.After(r.now) {
		d = min(d, r.deadline.Sub(r.now)+time.Millisecond)
	}
	return d
}

// jitter is d, give or take a fifth.
func jitter(d time.Duration) time.Duration { return d*4/5 + rand.N(d*2/5) }

package redisjobs

import (
	"context"
	"iter"
	"time"

	"github.com/spillgate/spillgate/pool/internal/remote"
	"github.com/spillgate/spillgate/pool/jobs"
)

// askTold is how long a watcher waits before it asks where somebody tells it of a change. A message may be lost.
const askTold = 10 * time.Second

// Watch implements [jobs.Engine]. It is told of changes on one connection for all watchers, and also polls: seldom
// while that connection works, otherwise every 250 ms to 2 s. It ends with an error when the server fails; the job goes
// on in any case.
func (e *Engine) Watch(ctx context.Context, id string) iter.Seq2[jobs.Job, error] {
	return func(yield func(jobs.Job, error) bool) {
		if err := e.known(ctx, id); err != nil {
			yield(jobs.Job{}, err)
			return
		}
		told := e.watch.Join(id) // before the first look, so that no change is missed
		defer e.watch.Leave(told)
		timer := time.NewTimer(0)
		defer timer.Stop()
		wait := remote.AskFirst
		for seen := uint64(0); ; {
			r, err := e.find(ctx, id)
			if err != nil {
				yield(jobs.Job{}, err)
				return
			}
			// After a failover the server may know less than before, and count anew.
			if j := r.job(); j.Version != seen || j.State.Final() {
				seen, wait = j.Version, remote.AskFirst
				if !yield(j, nil) || j.State.Final() {
					return
				}
			}
			timer.Reset(r.until(e.watch.Pause(&wait)))
			select {
			case <-told.Changed():
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

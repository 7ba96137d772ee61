package riverjobs

import (
	"context"
	"errors"
	"iter"
	"time"

	"github.com/spillgate/spillgate/pool/internal/remote"
	"github.com/spillgate/spillgate/pool/jobs"
)

// askTold is how long a watcher waits before it asks where somebody tells it of a change.
const askTold = 30 * time.Second

// Watch implements [jobs.Engine]. It learns of changes by LISTEN, on one connection of the pool for all watchers, and
// polls while there is none. It ends with an error when the database fails, and polls again if the database has not
// answered for ten seconds; the job goes on in either case.
func (e *Engine) Watch(ctx context.Context, id string) iter.Seq2[jobs.Job, error] {
	return func(yield func(jobs.Job, error) bool) {
		if err := e.known(ctx, id); err != nil {
			yield(jobs.Job{}, err)
			return
		}
		var changed <-chan struct{}
		if !e.conf.pollOnly {
			told := e.watch.Join(id) // before the first look, so that no change is missed
			defer e.watch.Leave(told)
			changed = told.Changed()
		}
		timer := time.NewTimer(0)
		defer timer.Stop()
		wait := remote.AskFirst
		for seen := uint64(0); ; {
			r, err := e.look(ctx, id)
			switch {
			case err == errNoAnswer:
				timer.Reset(remote.AskFirst) // by another connection there may be one
			case err != nil:
				yield(jobs.Job{}, err)
				return
			default:
				if j := r.job(); j.Version != seen {
					seen, wait = j.Version, remote.AskFirst
					if !yield(j, nil) || j.State.Final() {
						return
					}
				}
				timer.Reset(r.until(e.watch.Pause(&wait)))
			}
			select {
			case <-changed:
			case <-timer.C:
			case <-ctx.Done():
				yield(jobs.Job{}, context.Cause(ctx))
				return
			}
		}
	}
}

var errNoAnswer = errors.New("riverjobs: the database has not answered in time")

// look is find for who may wait for ever: it is errNoAnswer where the database takes too long.
func (e *Engine) look(ctx context.Context, id string) (*record, error) {
	limited, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	r, err := e.find(limited, id)
	if err != nil && limited.Err() != nil {
		if err = errNoAnswer; ctx.Err() != nil {
			err = context.Cause(ctx)
		}
	}
	return r, err
}

// until is when to look next: at the deadline of a job that waits, if that is before.
func (r *record) until(d time.Duration) time.Duration {
	if r.deadline != nil && r.now.Before(*r.deadline) {
		d = min(d, r.deadline.Sub(r.now)+time.Millisecond)
	}
	return d
}

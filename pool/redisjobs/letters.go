package redisjobs

import (
	"context"
	"crypto/rand"
	"errors"
	"iter"

	"github.com/spillgate/spillgate/pool/jobs"
)

// Requeue gives a failed job all its attempts again. The job keeps its id, and no longer has a deadline. Requeue is for
// the operator: the bound on the client's share does not apply. Errors wrap [jobs.ErrNotFound], [jobs.ErrExpired],
// [jobs.ErrNotFailed], [jobs.ErrFull] or [jobs.ErrShutdown], or are as of Get.
func (e *Engine) Requeue(ctx context.Context, id string) (jobs.Job, error) {
	if ctx.Err() != nil {
		return jobs.Job{}, context.Cause(ctx)
	}
	if err := e.known(ctx, id); err != nil {
		return jobs.Job{}, err
	}
	closed := 0
	if e.closed.Load() {
		closed = 1
	}
	answer, err := e.run(ctx, requeueScript, id, e.conf.unfinished, closed, rand.Text()).Slice()
	if err != nil {
		return jobs.Job{}, e.fault(ctx, err)
	}
	if len(answer) == 0 {
		return jobs.Job{}, errAnswer
	}
	r, err := readRecord(answer[1:])
	if err != nil {
		return jobs.Job{}, err
	}
	switch answer[0] {
	case "ok":
		return r.job(), nil
	case "not failed":
		return r.job(), jobs.ErrNotFailed
	case "closed":
		return r.job(), jobs.ErrShutdown
	case "full":
		return r.job(), &jobs.Error{Err: jobs.ErrFull, RetryAfter: retryAfterFull}
	}
	return jobs.Job{}, errAnswer
}

// lettersAtOnce is how many failed jobs one question to the server returns.
const lettersAtOnce = 50

// DeadLetters yields the failed jobs that are still known, with the details that only the operator may see. Those that
// will be known for longest come first. It ends with an error when the server fails or ctx ends. If jobs fail or are
// queued again meanwhile, others may be left out or yielded twice.
func (e *Engine) DeadLetters(ctx context.Context) iter.Seq2[jobs.Job, error] {
	return func(yield func(jobs.Job, error) bool) {
		for from := 0; ; from += lettersAtOnce {
			if ctx.Err() != nil {
				yield(jobs.Job{}, context.Cause(ctx))
				return
			}
			answer, err := e.run(ctx, lettersScript, from, lettersAtOnce).Slice()
			if err != nil {
				yield(jobs.Job{}, e.fault(ctx, err))
				return
			}
			for _, one := range answer {
				if v, _ := one.([]any); len(v) == 0 {
					continue // expired by now
				}
				r, err := readRecord([]any{one})
				if errors.Is(err, errAnswer) {
					yield(jobs.Job{}, err)
					return
				}
				if !yield(r.job(), nil) {
					return
				}
			}
			if len(answer) < lettersAtOnce {
				return
			}
		}
	}
}

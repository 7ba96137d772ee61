package redisjobs

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/spillgate/spillgate/pool/internal/remote"
	"github.com/spillgate/spillgate/pool/jobs"
)

// attempt is a job that this engine runs.
type attempt struct {
	id, kind, payload string
	token             string // what the server knows it by
	number            int
	deadline          time.Time
	stop              context.CancelCauseFunc
}

// errLost is the cause with which the context of a job ends that another worker has by now, or nobody knows any more.
var errLost = fmt.Errorf("redisjobs: the job was taken from this worker: %w", jobs.ErrShutdown)

// claimAtOnce is how many jobs one question to the server begins, which holds up all others meanwhile.
const claimAtOnce = 16

// fetch begins jobs as long as there are places and none is drained.
func (e *Engine) fetch() {
	places := make(chan struct{}, e.conf.workers)
	pause := time.NewTimer(0)
	defer pause.Stop()
	failed := remote.AskFirst
	n, token := 0, "" // how many places are held, and by what name jobs are asked for
	told := int64(0)  // of what was cancelled when they were first
	for {
		select {
		case <-e.drained:
			return
		default:
		}
		if n == 0 {
			select {
			case places <- struct{}{}:
			case <-e.drained:
				return
			}
			n, token, told = 1, rand.Text(), e.cancelled.Load()
			for more := true; more && n < claimAtOnce; {
				select {
				case places <- struct{}{}:
					n++
				default:
					more = false
				}
			}
		}
		claimed, due, err := e.claim(n, token)
		if err != nil {
			// The places are held, and asked for again by the same name: the server may have begun jobs.
			e.conf.logger.Warn("redisjobs: the server was asked for jobs in vain", "error", err)
			due, failed = remote.Jitter(failed), min(2*failed, remote.AskLast)
		} else {
			for range n - len(claimed) {
				<-places
			}
			for _, a := range claimed {
				e.begin(a, func() { <-places })
			}
			if len(claimed) > 0 && e.cancelled.Load() != told {
				remote.Signal(e.look) // it may be one of these, which nobody knew by then
			}
			full := len(claimed) == n
			n, failed = 0, remote.AskFirst
			if full {
				continue
			}
		}
		pause.Reset(due)
		select {
		case <-e.wake:
		case <-pause.C:
		case <-e.drained:
			return
		}
	}
}

// claim asks the server for at most n jobs, and after what time the next is due.
func (e *Engine) claim(n int, token string) ([]*attempt, time.Duration, error) {
	due := e.conf.poll
	var claimed []*attempt
	err := e.timed(func(ctx context.Context) error {
		answer, err := e.run(ctx, claimScript, append([]any{n, e.name, token, e.conf.lease.Microseconds()}, e.kinds...)...).Slice()
		if err != nil {
			return err
		}
		if len(answer) != 2 {
			return errAnswer
		}
		if at := text(answer[0]); at != "" {
			due = min(due, time.Duration(number(at))*time.Microsecond)
		}
		all, _ := answer[1].([]any)
		for _, one := range all {
			v, _ := one.([]any)
			if len(v) != 5 {
				return errAnswer
			}
			claimed = append(claimed, &attempt{
				id: text(v[0]), kind: text(v[1]), payload: text(v[2]), token: token, number: int(number(v[3])), deadline: timeOf(text(v[4])),
			})
		}
		return nil
	})
	return claimed, due, err
}

// begin runs a job beside, and then calls done. Where jobs are drained by now it gives it back.
func (e *Engine) begin(a *attempt, done func()) {
	ctx, stop := context.WithCancelCause(e.base)
	a.stop = stop
	e.mu.Lock()
	e.running[a] = struct{}{}
	e.mu.Unlock()
	e.fetches.Go(func() {
		defer done()
		defer func() {
			e.mu.Lock()
			delete(e.running, a)
			e.mu.Unlock()
			stop(nil)
		}()
		select {
		case <-e.drained:
			e.finish(a, "back")
		default:
			e.work(ctx, a)
		}
	})
}

// work runs one attempt and has the server know how it ended.
func (e *Engine) work(ctx context.Context, a *attempt) {
	policy, err := e.mux.Policy(a.kind)
	if err != nil {
		e.finish(a, "back") // it is none of ours
		return
	}
	run := ctx
	if !a.deadline.IsZero() {
		var cancel context.CancelFunc
		run, cancel = context.WithDeadline(ctx, a.deadline)
		defer cancel()
	}
	progress := e.reporter(a)
	result, err := remote.Run(run, e.mux, jobs.Attempt{ID: a.id, Kind: a.kind, Number: a.number, Report: progress.Report}, []byte(a.payload))
	if err == nil && len(result) > e.conf.result {
		err = fmt.Errorf("%w: the result has %d bytes, %d are allowed", jobs.ErrTooLarge, len(result), e.conf.result)
	}
	progress.End(err != nil)
	if err == nil {
		e.finish(a, "result", result)
		return
	}
	f := remote.FailureOf(err, remote.Clip)
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, jobs.ErrShutdown) && (f.Retry || f.Shutdown), f.Shutdown && e.closed.Load():
		e.finish(a, "back")
	case f.Retry:
		e.finish(a, "retry", f.Text, f.Detail, policy.Delay(a.number).Microseconds())
	default:
		e.finish(a, "fail", f.Text, f.Detail)
	}
}

// finish tells the server how an attempt ended, as often as it takes: until it has said anything, or the time for draining is over.
func (e *Engine) finish(a *attempt, outcome string, args ...any) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for wait, last := remote.AskFirst, false; !last; wait = min(2*wait, remote.AskLast) {
		select {
		case <-timer.C:
		case <-e.base.Done():
			last = true
		}
		err := e.timed(func(ctx context.Context) error {
			return e.run(ctx, finishScript, append([]any{a.id, a.token, outcome}, args...)...).Err()
		})
		if err == nil {
			return
		}
		e.conf.logger.Warn("redisjobs: the server was not told how a job ended", "id", a.id, "outcome", outcome, "error", err)
		timer.Reset(remote.Jitter(wait))
	}
}

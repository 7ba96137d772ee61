package redisjobs

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/spillgate/spillgate/pool/internal/remote"
	"github.com/spillgate/spillgate/pool/jobs"
)

// retryAfterFull is when to come back where there was no place: nobody knows when one will be free.
const retryAfterFull = 5 * time.Second

// Submit implements [jobs.Engine]. It accepts nothing once ctx has ended. Values of ctx are not passed on to the job.
// If the server's memory is full, the error wraps [jobs.ErrFull].
func (e *Engine) Submit(ctx context.Context, kind string, payload []byte, o jobs.SubmitOptions) (jobs.Job, bool, error) {
	if ctx.Err() != nil {
		return jobs.Job{}, false, context.Cause(ctx)
	}
	policy, err := e.mux.Policy(kind)
	if err != nil {
		return jobs.Job{}, false, err
	}
	if len(payload) > e.conf.payload {
		return jobs.Job{}, false, fmt.Errorf("%w: the payload has %d bytes, %d are allowed", jobs.ErrTooLarge, len(payload), e.conf.payload)
	}
	if len(o.Key) > 255 || len(o.Client) > 255 {
		return jobs.Job{}, false, fmt.Errorf("%w: the key has %d bytes and the client's name %d, 255 are allowed", jobs.ErrTooLarge, len(o.Key), len(o.Client))
	}
	if err := e.mux.Check(kind, payload); err != nil {
		return jobs.Job{}, false, err
	}
	m, err := e.ids(ctx)
	if err != nil {
		return jobs.Job{}, false, err
	}
	for {
		answer, err := e.run(ctx, submitScript, e.submission(ctx, m, kind, payload, o, policy)...).Slice()
		if err != nil {
			return jobs.Job{}, false, e.fault(ctx, err)
		}
		if len(answer) == 2 && answer[0] == "mint" {
			m = remote.Mint(text(answer[1]))
			e.remember(m)
			continue
		}
		return accepted(answer)
	}
}

// submission is what the script is given.
func (e *Engine) submission(ctx context.Context, m remote.Mint, kind string, payload []byte, o jobs.SubmitOptions, policy jobs.Policy) []any {
	var hash []byte
	if o.Key != "" {
		h := sha256.New()
		h.Write([]byte(kind))
		h.Write([]byte{0})
		h.Write(payload)
		hash = h.Sum(nil)
	}
	deadline, closed := "", 0
	if !o.Deadline.IsZero() {
		deadline = micros(within(o.Deadline))
	}
	if e.closed.Load() && !e.runs(ctx) {
		closed = 1
	}
	// A time of the clock's is rounded up, so that no job begins before it.
	notBefore := micros(within(o.NotBefore.Add(time.Microsecond - time.Nanosecond)))
	return []any{
		string(m), m.ID(), kind, payload, o.Client, o.Key, hash,
		min(max(o.Priority, -8), 7), notBefore, deadline,
		min(cmp.Or(max(o.MaxAttempts, 0), policy.MaxAttempts), maxAttempts), cmp.Or(policy.Retain, e.conf.retain).Microseconds(),
		e.conf.unfinished, e.conf.share, e.conf.shareBytes, closed,
	}
}

// runs reports whether ctx is that of a job that this engine runs.
func (e *Engine) runs(ctx context.Context) bool {
	current, ok := jobs.Current(ctx)
	if !ok {
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for a := range e.running {
		if a.id == current.ID && a.number == current.Number {
			return true
		}
	}
	return false
}

// maxAttempts leaves room for the attempts that are lost with a worker.
const maxAttempts = 1 << 30

// within returns t, or the nearest time of the years that a script counts exactly.
func within(t time.Time) time.Time {
	switch y := t.Year(); {
	case y < 1970:
		return time.Unix(0, 0)
	case y > 2250:
		return time.Date(2250, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	return t
}

// accepted is what the script says.
func accepted(answer []any) (jobs.Job, bool, error) {
	if len(answer) == 0 {
		return jobs.Job{}, false, errAnswer
	}
	switch answer[0] {
	case "created", "known":
		r, err := readRecord(answer[1:])
		if err != nil {
			return jobs.Job{}, false, err
		}
		return r.job(), answer[0] == "created", nil
	case "reused":
		return jobs.Job{}, false, jobs.ErrKeyReused
	case "closed":
		return jobs.Job{}, false, jobs.ErrShutdown
	case "full":
		return jobs.Job{}, false, &jobs.Error{Err: jobs.ErrFull, RetryAfter: retryAfterFull}
	case "share":
		return jobs.Job{}, false, &jobs.Error{Err: jobs.ErrShareFull, RetryAfter: retryAfterFull}
	}
	return jobs.Job{}, false, errAnswer
}

package riverjobs

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"

	"github.com/spillgate/spillgate/pool/internal/remote"
	"github.com/spillgate/spillgate/pool/jobs"
)

// args is a job as River keeps it. The payload is a string, since a jsonb would put it in order, and takes no NUL.
type args struct {
	kind  string
	retry time.Time // when, if the attempt that has just ended is to be repeated

	ID       string    `json:"id"`
	Payload  string    `json:"payload"`
	Deadline time.Time `json:"deadline,omitzero"`
}

// Kind implements [river.JobArgs].
func (a args) Kind() string { return a.kind }

// worker runs the jobs of one kind for River.
type worker struct {
	river.WorkerDefaults[args]
	engine *Engine
	kind   string
	policy jobs.Policy
}

// workers returns one for each kind.
func (e *Engine) workers() *river.Workers {
	all := river.NewWorkers()
	for _, kind := range e.mux.Kinds() {
		policy, err := e.mux.Policy(kind)
		if err != nil {
			panic("riverjobs: New: " + err.Error())
		}
		river.AddWorkerArgs(all, args{kind: riverKind(kind)}, &worker{engine: e, kind: kind, policy: policy})
	}
	return all
}

// Timeout leaves it to [jobs.Mux.Run] how long an attempt may take.
func (w *worker) Timeout(*river.Job[args]) time.Duration { return -1 }

// NextRetry is when Work said, or now if that has passed meanwhile, which River would not have.
func (w *worker) NextRetry(j *river.Job[args]) time.Time {
	if now := time.Now(); j.Args.retry.Before(now) {
		return now
	}
	return j.Args.retry
}

// permanent is a failure that another attempt would not change.
type permanent string

func (p permanent) Error() string { return string(p) }

// errorHandler has River not repeat what would fail again.
type errorHandler struct{}

func (errorHandler) HandleError(_ context.Context, _ *rivertype.JobRow, err error) *river.ErrorHandlerResult {
	_, never := errors.AsType[permanent](err)
	return &river.ErrorHandlerResult{SetCancelled: never}
}

// HandlePanic is for panics of this package: those of handlers do not get here.
func (errorHandler) HandlePanic(context.Context, *rivertype.JobRow, any, string) *river.ErrorHandlerResult {
	return nil
}

// Work runs one attempt. ctx ends where the job is cancelled, or the time for draining is over.
func (w *worker) Work(ctx context.Context, j *river.Job[args]) error {
	e, a := w.engine, &j.Args
	if !a.Deadline.IsZero() && !time.Now().Before(a.Deadline) {
		return e.skip(ctx, j)
	}
	e.begin(j.ID, a.ID)
	defer e.end(j.ID)

	// What ends the context has names of River's. The deadline of a job is no timeout of River's, which would take it for stuck.
	run, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	defer context.AfterFunc(ctx, func() { stop(cause(ctx)) })()
	if !a.Deadline.IsZero() {
		var cancel context.CancelFunc
		run, cancel = context.WithDeadline(run, a.Deadline)
		defer cancel()
	}
	progress := e.reporter(j.ID, j.Attempt)
	result, err := remote.Run(run, e.mux, jobs.Attempt{ID: a.ID, Kind: w.kind, Number: j.Attempt, Report: progress.Report}, []byte(a.Payload))
	if err == nil && len(result) > e.conf.result {
		err = fmt.Errorf("%w: the result has %d bytes, %d are allowed", jobs.ErrTooLarge, len(result), e.conf.result)
	}
	progress.End(err != nil)
	if err == nil {
		return river.RecordOutput(ctx, string(result))
	}
	return w.failed(ctx, j, remote.FailureOf(err, clip))
}

// failed says to River how an attempt failed.
func (w *worker) failed(ctx context.Context, j *river.Job[args], f *remote.Failure) error {
	if ctx.Err() != nil && cause(ctx) == jobs.ErrShutdown && (f.Retry || f.Shutdown) {
		return context.Canceled // which has River put it back, as an attempt that was none
	}
	if f.Shutdown && w.engine.closed.Load() {
		return river.JobSnooze(0) // likewise, where it has not ended the context yet
	}
	if err := river.RecordOutput(ctx, failed{Error: f.Text, Detail: f.Detail}); err != nil {
		return err
	}
	delay := w.policy.Delay(j.Attempt)
	j.Args.retry = time.Now().Add(delay)
	if d := j.Args.Deadline; !f.Retry || !d.IsZero() && j.Args.retry.After(d) {
		return permanent(f.Text)
	}
	return errors.New(f.Text)
}

// cause is why River ended a job's context, as the handler is told.
func cause(ctx context.Context) error {
	if errors.Is(context.Cause(ctx), rivertype.ErrJobCancelledRemotely) {
		return jobs.ErrCancelled
	}
	return jobs.ErrShutdown
}

// skip fails a job that comes too late to begin. The attempt that River has counted was none.
func (e *Engine) skip(ctx context.Context, j *river.Job[args]) error {
	if err := e.lapse(ctx, j.Args.ID, string(rivertype.JobStateRunning)); err != nil {
		return permanent(jobs.ErrDeadline.Error())
	}
	return nil // the job does not run, which is why River leaves it as it is
}

// begin counts a job among those that run, end counts it out again.
func (e *Engine) begin(riverID int64, id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.running[riverID] = id
	delete(e.ended, riverID)
}

func (e *Engine) end(riverID int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.running, riverID)
	e.ended[riverID] = time.Now()
}

// clip returns at most the first n bytes of s as text that Postgres takes: valid UTF-8 without NUL.
func clip(s string, n int) string {
	return remote.Clip(strings.ReplaceAll(s[:min(len(s), n+utf8.UTFMax)], "\x00", "\uFFFD"), n)
}

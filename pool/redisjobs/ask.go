package redisjobs

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/spillgate/spillgate/pool/jobs"
)

// record is a job as the server has it at one moment.
type record struct {
	id, kind, client                                 string
	state                                            jobs.State
	version                                          uint64
	attempt, attempts                                int
	progress                                         jobs.Progress
	created, started, finished, next, deadline, ends time.Time
	why, err, detail, result                         string
	cancelling                                       bool
	now                                              time.Time
}

// recordFields is how many values a script returns of a job.
const recordFields = 22

// readRecord takes what a script returned in the first place of an answer. Where there is no job that is nil, and the error ErrExpired.
func readRecord(answer []any) (*record, error) {
	if len(answer) == 0 || answer[0] == nil {
		return nil, jobs.ErrExpired
	}
	v, ok := answer[0].([]any)
	if !ok || len(v) != recordFields {
		return nil, errAnswer
	}
	return &record{
		id: text(v[0]), now: timeOf(text(v[1])), state: jobs.State(text(v[2])), kind: text(v[3]), version: uint64(number(v[4])),
		attempt: int(number(v[5])), attempts: int(number(v[6])), client: text(v[7]), created: timeOf(text(v[8])), started: timeOf(text(v[9])),
		finished: timeOf(text(v[10])), next: timeOf(text(v[11])), deadline: timeOf(text(v[12])), ends: timeOf(text(v[13])),
		progress: jobs.Progress{Done: number(v[14]), Total: number(v[15]), Note: text(v[16])},
		why:      text(v[17]), err: text(v[18]), detail: text(v[19]), result: text(v[20]), cancelling: v[21] != nil,
	}, nil
}

// job is what the outside sees.
func (r *record) job() jobs.Job {
	j := jobs.Job{
		ID: r.id, Kind: r.kind, Version: r.version, State: r.state, Attempt: r.attempt, MaxAttempts: r.attempts, Progress: r.progress,
		Created: r.created, Started: r.started, Finished: r.finished, Expires: r.ends, Client: r.client, Err: r.err, Detail: r.detail,
	}
	switch r.why {
	case "deadline":
		j.Err = jobs.ErrDeadline.Error()
	case "lost":
		j.Err = "redisjobs: the worker that ran the job was lost"
	}
	switch r.state {
	case jobs.Succeeded:
		j.Result = json.RawMessage(r.result)
	case jobs.Cancelled:
		j.Err = jobs.ErrCancelled.Error()
	case jobs.Running:
		j.Cancelling = r.cancelling
		j.RetryAfter = askAgain(r.now.Sub(r.started))
	case jobs.Queued, jobs.Retrying:
		if j.RetryAfter = askAgain(r.now.Sub(r.created)); r.next.After(r.now) {
			j.Next = r.next
			j.RetryAfter = max(j.RetryAfter, min(r.next.Sub(r.now), time.Minute))
		}
	}
	if !r.state.Final() {
		j.Detail = "" // of an attempt that is repeated
	}
	return j
}

// askAgain is when to ask again about what has taken so long already: how long it will take is not known, and who asks again after half of
// that learns of the end with a delay of that part.
func askAgain(sofar time.Duration) time.Duration {
	return min(max(sofar/2, time.Second), time.Minute)
}

// late reports whether a job waits that cannot begin in time any more.
func (r *record) late() bool {
	return !r.deadline.IsZero() && !r.deadline.After(r.now) && !r.state.Final() && r.state != jobs.Running
}

// Get implements [jobs.Engine].
func (e *Engine) Get(ctx context.Context, id string) (jobs.Job, error) {
	r, err := e.find(ctx, id)
	if err != nil {
		return jobs.Job{}, err
	}
	return r.job(), nil
}

// find returns a job that is known. One that waits and has missed its deadline fails.
func (e *Engine) find(ctx context.Context, id string) (*record, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err := e.known(ctx, id); err != nil {
		return nil, err
	}
	r, err := e.read(ctx, getScript, id)
	if err == nil && r.late() {
		r, err = e.read(ctx, lapseScript, id)
	}
	return r, err
}

func (e *Engine) read(ctx context.Context, s *redis.Script, id string) (*record, error) {
	answer, err := e.run(ctx, s, id).Slice()
	if errors.Is(err, redis.Nil) {
		return nil, jobs.ErrExpired
	}
	if err != nil {
		return nil, e.fault(ctx, err)
	}
	return readRecord([]any{answer})
}

// Cancel implements [jobs.Engine]. The worker that runs the job is told, or else learns of it within a quarter of its
// lease. If a handler returns a result all the same, the job has succeeded.
func (e *Engine) Cancel(ctx context.Context, id string) (jobs.Job, error) {
	if ctx.Err() != nil {
		return jobs.Job{}, context.Cause(ctx)
	}
	if _, err := e.find(ctx, id); err != nil { // which also fails it where that is due
		return jobs.Job{}, err
	}
	answer, err := e.run(ctx, cancelScript, id, rand.Text()).Slice()
	if err != nil {
		return jobs.Job{}, e.fault(ctx, err)
	}
	if len(answer) == 0 {
		return jobs.Job{}, errAnswer
	}
	r, err := readRecord(answer[1:])
	switch {
	case err != nil:
		return jobs.Job{}, err
	case answer[0] == "ended":
		return r.job(), jobs.ErrFinal
	}
	return r.job(), nil
}

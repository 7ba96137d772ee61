package riverjobs

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/riverqueue/river/rivertype"

	"github.com/spillgate/spillgate/pool/jobs"
)

// record is a job as the database has it at one moment.
type record struct {
	id, kind, note       string
	client, hash         []byte
	version, done, total int64
	deadline, expires    *time.Time

	riverID              int64
	state                rivertype.JobState
	attempt, attempts    int
	created, scheduled   time.Time
	attempted, finalized *time.Time
	failure, output      []byte // JSON: the latest of River's errors, and what was recorded with it or as the result
	cancelling           bool
	now                  time.Time
}

const selectJob = `SELECT j.id, j.kind, j.note, j.client, j.hash, j.version, j.done, j.total, j.deadline, j.expires,
	r.id, r.state, r.attempt, r.max_attempts, r.created_at, r.scheduled_at, r.attempted_at, r.finalized_at,
	r.errors[cardinality(r.errors)], CASE WHEN r.finalized_at IS NOT NULL THEN r.metadata->'output' END,
	r.metadata ? 'cancel_attempted_at', now()
	FROM {s}spillgate_job AS j JOIN {s}river_job AS r ON r.id = j.river_id`

func scanRecord(row pgx.CollectableRow) (*record, error) {
	r := new(record)
	return r, row.Scan(&r.id, &r.kind, &r.note, &r.client, &r.hash, &r.version, &r.done, &r.total, &r.deadline, &r.expires,
		&r.riverID, &r.state, &r.attempt, &r.attempts, &r.created, &r.scheduled, &r.attempted, &r.finalized,
		&r.failure, &r.output, &r.cancelling, &r.now)
}

// of takes over what River says of a job that it has just inserted.
func (r *record) of(j *rivertype.JobRow) {
	r.riverID, r.state, r.attempt, r.attempts = j.ID, j.State, j.Attempt, j.MaxAttempts
	r.created, r.scheduled, r.now = j.CreatedAt, j.ScheduledAt, time.Now()
}

// failed is what is recorded as the output of an attempt that failed; the result of one that did not is a string there.
type failed struct {
	Error  string `json:"error"`
	Detail string `json:"detail,omitempty"`
}

// job is what the outside sees.
func (r *record) job() jobs.Job {
	j := jobs.Job{
		ID: r.id, Kind: r.kind, Version: uint64(r.version), State: r.jobState(),
		Attempt: r.attempt, MaxAttempts: r.attempts, Progress: jobs.Progress{Done: r.done, Total: r.total, Note: r.note},
		Created: r.created, Started: orZero(r.attempted), Finished: orZero(r.finalized), Client: string(r.client),
	}
	var last rivertype.AttemptError
	if r.failure != nil {
		_ = json.Unmarshal(r.failure, &last) // of our own making, or River's
	}
	switch j.State {
	case jobs.Succeeded:
		j.Progress = jobs.Progress{}
		var result string
		if json.Unmarshal(r.output, &result) == nil {
			j.Result = json.RawMessage(result)
		}
	case jobs.Failed, jobs.Cancelled:
		var f failed
		_ = json.Unmarshal(r.output, &f) // there is none where no attempt failed
		j.Err, j.Detail = last.Error, f.Detail
		if j.State == jobs.Cancelled {
			j.Err = jobs.ErrCancelled.Error()
		}
	case jobs.Running:
		j.Cancelling = r.cancelling
		j.Err = last.Error
		j.RetryAfter = askAgain(r.now.Sub(j.Started))
	default:
		j.Err = last.Error
		if j.RetryAfter = askAgain(r.now.Sub(r.created)); r.scheduled.After(r.now) {
			j.Next = r.scheduled
			j.RetryAfter = max(j.RetryAfter, min(r.scheduled.Sub(r.now), time.Minute))
		}
	}
	if j.State.Final() {
		j.Expires = orZero(r.expires)
	}
	return j
}

// jobState is the state that package jobs has for one of River. What failed for good before its last attempt is cancelled there, but without
// anybody having asked for it.
func (r *record) jobState() jobs.State {
	switch r.state {
	case rivertype.JobStateRunning:
		return jobs.Running
	case rivertype.JobStateCompleted:
		return jobs.Succeeded
	case rivertype.JobStateDiscarded:
		return jobs.Failed
	case rivertype.JobStateCancelled:
		if r.cancelling {
			return jobs.Cancelled
		}
		return jobs.Failed
	}
	if r.attempt > 0 {
		return jobs.Retrying
	}
	return jobs.Queued
}

// askAgain is when to ask again about what has taken so long already: how long it will take is not known, and who asks again after half of
// that learns of the end with a delay of that part.
func askAgain(sofar time.Duration) time.Duration {
	return min(max(sofar/2, time.Second), time.Minute)
}

func orZero(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return *t
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
	if err := e.known(ctx, id); err != nil {
		return nil, err
	}
	r, err := e.read(ctx, id)
	if err == nil && r.late() {
		if err := e.lapse(ctx, id); err != nil {
			return nil, e.fault(ctx, err)
		}
		r, err = e.read(ctx, id)
	}
	return r, err
}

// late reports whether a job waits that cannot begin in time any more.
func (r *record) late() bool {
	return r.deadline != nil && !r.deadline.After(r.now) && r.finalized == nil && r.state != rivertype.JobStateRunning
}

func (e *Engine) read(ctx context.Context, id string) (*record, error) {
	rows, err := e.pool.Query(ctx, e.sql(selectJob+" WHERE j.id = $1 AND (j.expires IS NULL OR j.expires > now())"), id)
	if err != nil {
		return nil, e.fault(ctx, err)
	}
	r, err := pgx.CollectExactlyOneRow(rows, scanRecord)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, jobs.ErrExpired
	}
	return r, e.fault(ctx, err)
}

// Cancel implements [jobs.Engine]. The worker that runs the job is notified, or else learns of it within seconds. If a
// handler returns a result all the same, the job has succeeded.
func (e *Engine) Cancel(ctx context.Context, id string) (jobs.Job, error) {
	r, err := e.find(ctx, id)
	if err != nil {
		return jobs.Job{}, err
	}
	if j := r.job(); j.State.Final() {
		return j, jobs.ErrFinal
	} else if j.Cancelling {
		return j, nil
	}
	// What it was is known under the lock of the row only, which River's statement takes: a job that has ended meanwhile it leaves alone.
	ended := false
	err = pgx.BeginTxFunc(ctx, e.pool, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		if err := tx.QueryRow(ctx, e.sql("SELECT finalized_at IS NOT NULL FROM {s}river_job WHERE id = $1 FOR UPDATE"), r.riverID).Scan(&ended); err != nil {
			return err
		}
		_, err := e.river.JobCancelTx(ctx, tx, r.riverID)
		return err
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return jobs.Job{}, jobs.ErrExpired
	}
	if err != nil {
		return jobs.Job{}, e.fault(ctx, err)
	}
	if r, err = e.find(ctx, id); err != nil {
		return jobs.Job{}, err
	}
	if ended {
		return r.job(), jobs.ErrFinal
	}
	return r.job(), nil
}

// missingTable reports whether the database said that a table does not exist.
func missingTable(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "42P01" || pg.Code == "3F000")
}

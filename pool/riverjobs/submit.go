package riverjobs

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"

	"github.com/spillgate/spillgate/pool/internal/remote"
	"github.com/spillgate/spillgate/pool/jobs"
)

// submission is a job that has been looked at and is not accepted yet.
type submission struct {
	kind    string
	payload []byte
	o       jobs.SubmitOptions
	policy  jobs.Policy
	mint    remote.Mint
	hash    []byte // where there is a key
}

// Submit implements [jobs.Engine]. It accepts nothing once ctx has ended. Values of ctx are not passed on to the job.
func (e *Engine) Submit(ctx context.Context, kind string, payload []byte, o jobs.SubmitOptions) (j jobs.Job, created bool, err error) {
	s, err := e.prepare(ctx, kind, payload, o)
	if err != nil {
		return jobs.Job{}, false, err
	}
	err = pgx.BeginTxFunc(ctx, e.pool, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		var err error
		j, created, err = e.accept(ctx, tx, s, true)
		return err
	})
	if err != nil {
		return jobs.Job{}, false, e.refusal(ctx, err)
	}
	return j, created, nil
}

// SubmitTx is [Engine.Submit] as a part of the caller's transaction: the job exists, and its id is known to others,
// exactly if the transaction commits. The transaction may be one of another pool of the same database; with
// [WithSchema], whatever its search_path. While it is open, other submissions with the same client and key wait for it.
// The client's share is checked without waiting, and simultaneous submissions may exceed it. A transaction that does
// not see what was committed since it began, as with REPEATABLE READ and SERIALIZABLE, fails with the code 23505 if
// another has submitted with the same key meanwhile: begin it again.
//
// After an error that is a refusal of package jobs, the transaction is as it was; after any other error it has failed.
func (e *Engine) SubmitTx(ctx context.Context, tx pgx.Tx, kind string, payload []byte, o jobs.SubmitOptions) (jobs.Job, bool, error) {
	s, err := e.prepare(ctx, kind, payload, o)
	if err != nil {
		return jobs.Job{}, false, err
	}
	j, created, err := e.accept(ctx, tx, s, false)
	if err != nil {
		return jobs.Job{}, false, e.refusal(ctx, err)
	}
	return j, created, nil
}

// refusal is the error of a submission: a refusal as it is, and anything else a fault.
func (e *Engine) refusal(ctx context.Context, err error) error {
	for _, known := range []error{jobs.ErrKeyReused, jobs.ErrShutdown, jobs.ErrFull, jobs.ErrShareFull} {
		if errors.Is(err, known) {
			return err
		}
	}
	return e.fault(ctx, err)
}

func (e *Engine) prepare(ctx context.Context, kind string, payload []byte, o jobs.SubmitOptions) (*submission, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	policy, err := e.mux.Policy(kind)
	if err != nil {
		return nil, err
	}
	if len(payload) > e.conf.payload {
		return nil, fmt.Errorf("%w: the payload has %d bytes, %d are allowed", jobs.ErrTooLarge, len(payload), e.conf.payload)
	}
	if len(o.Key) > 255 || len(o.Client) > 255 {
		return nil, fmt.Errorf("%w: the key has %d bytes and the client's name %d, 255 are allowed", jobs.ErrTooLarge, len(o.Key), len(o.Client))
	}
	o.NotBefore, o.Deadline = within(o.NotBefore), within(o.Deadline)
	if !o.NotBefore.After(time.Now()) {
		o.NotBefore = time.Time{} // River begins first what is due for longest
	}
	if err := e.mux.Check(kind, payload); err != nil {
		return nil, err
	}
	m, err := e.ids(ctx)
	if err != nil {
		return nil, err
	}
	s := &submission{kind: kind, payload: payload, o: o, policy: policy, mint: m}
	if o.Key != "" {
		h := sha256.New()
		h.Write([]byte(kind))
		h.Write([]byte{0})
		h.Write(payload)
		s.hash = h.Sum(nil)
	}
	return s, nil
}

// within returns t, or the nearest time of the years that JSON has.
func within(t time.Time) time.Time {
	switch y := t.Year(); {
	case t.IsZero():
		return t
	case y < 1000:
		return time.Date(1000, 1, 1, 0, 0, 0, 0, time.UTC)
	case y > 9998: // in any time zone
		return time.Date(9998, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	return t
}

// What a client has, counted up to the bounds. What has missed its deadline is no longer among it, whether or not that has been noticed.
const countOpen = `SELECT
	(SELECT count(*) FROM (SELECT FROM {s}spillgate_job WHERE open AND (deadline IS NULL OR deadline > now()) LIMIT $1) AS o),
	count(*), coalesce(sum(size), 0) FROM {s}spillgate_job WHERE open AND client = $2 AND (deadline IS NULL OR deadline > now())`

// That the job is looked for by its key is not left to the planner: to its knowledge hardly any have expired, where nobody cleans up they all have.
const forgetKey = `WITH j AS MATERIALIZED (SELECT river_id, expires FROM {s}spillgate_job WHERE client = $1 AND key = $2)
	DELETE FROM {s}river_job USING j WHERE river_job.id = j.river_id AND j.expires <= now()`

const insertJob = `INSERT INTO {s}spillgate_job (id, river_id, kind, client, key, hash, size, retain, deadline)
	VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`

// retryAfterFull is when to come back where there was no place: nobody knows when one will be free.
const retryAfterFull = 5 * time.Second

// accept puts a job into the database, or finds the one that was accepted with the same key. share says that other submissions of the client
// wait for the end of the transaction, so that none is counted too late.
func (e *Engine) accept(ctx context.Context, tx pgx.Tx, s *submission, share bool) (jobs.Job, bool, error) {
	client, key := []byte(s.o.Client), []byte(s.o.Key)
	if len(key) == 0 {
		key = nil
	}
	// Each statement sees what was committed before it begins: so the locks have one of their own.
	var b pgx.Batch
	lock := func(parts ...[]byte) {
		b.Queue("SELECT pg_advisory_xact_lock($1)", lockOf(s.mint, parts...))
	}
	var first []*record
	if key != nil { // whose lock may be somebody's for long, and so comes before the client's
		lock(client, key)
		b.Queue(e.sql(forgetKey), client, key)
		b.Queue(e.sql(selectJob+" WHERE j.client = $1 AND j.key = $2"), client, key).Query(func(rows pgx.Rows) (err error) {
			first, err = pgx.CollectRows(rows, scanRecord)
			return err
		})
	}
	if share && len(client) > 0 {
		lock(client)
	}
	whose := client
	if len(client) == 0 {
		whose = nil // is equal to none, and so there is nothing to count
	}
	var open, mine, bytes int64
	b.Queue(e.sql(countOpen), e.conf.unfinished, whose).QueryRow(func(row pgx.Row) error { return row.Scan(&open, &mine, &bytes) })
	if err := tx.SendBatch(ctx, &b).Close(); err != nil {
		return jobs.Job{}, false, err
	}
	switch {
	case len(first) > 0 && !slices.Equal(first[0].hash, s.hash):
		return jobs.Job{}, false, jobs.ErrKeyReused
	case len(first) > 0:
		return first[0].job(), false, nil
	case e.closed.Load() && !e.runs(ctx):
		return jobs.Job{}, false, jobs.ErrShutdown
	case open >= int64(e.conf.unfinished):
		return jobs.Job{}, false, &jobs.Error{Err: jobs.ErrFull, RetryAfter: retryAfterFull}
	case len(client) > 0 && (mine >= int64(e.conf.share) || bytes+int64(len(s.payload)) > e.conf.shareBytes):
		return jobs.Job{}, false, &jobs.Error{Err: jobs.ErrShareFull, RetryAfter: retryAfterFull}
	}
	return e.insert(ctx, tx, s, client, key, riverPriority(s.o.Priority, mine))
}

// runs reports whether ctx is that of a job that this engine runs.
func (e *Engine) runs(ctx context.Context) bool {
	current, ok := jobs.Current(ctx)
	if !ok {
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, id := range e.running {
		if id == current.ID {
			return true
		}
	}
	return false
}

// schedulerInterval is how often River looks for scheduled jobs. It has those available already that are due within one, and so have we.
const schedulerInterval = 5 * time.Second

func (e *Engine) insert(ctx context.Context, tx pgx.Tx, s *submission, client, key []byte, priority int) (jobs.Job, bool, error) {
	r := &record{id: s.mint.ID(), kind: s.kind, client: client, version: 1}
	if !s.o.Deadline.IsZero() {
		r.deadline = &s.o.Deadline
	}
	ins, err := e.river.InsertTx(ctx, tx, args{kind: riverKind(s.kind), ID: r.id, Payload: string(s.payload), Deadline: s.o.Deadline}, &river.InsertOpts{
		MaxAttempts: min(cmp.Or(max(s.o.MaxAttempts, 0), s.policy.MaxAttempts), maxAttempts),
		Priority:    priority,
		Queue:       e.conf.queue,
		ScheduledAt: s.o.NotBefore,
	})
	if err != nil {
		return jobs.Job{}, false, err
	}
	r.of(ins.Job)
	var b pgx.Batch
	if r.state == rivertype.JobStateScheduled && time.Until(s.o.NotBefore) <= schedulerInterval {
		b.Queue(e.sql("UPDATE {s}river_job SET state = 'available' WHERE id = $1"), r.riverID)
	}
	b.Queue(e.sql(insertJob), r.id, r.riverID, r.kind, client, key, s.hash, len(s.payload), cmp.Or(s.policy.Retain, e.conf.retain), r.deadline)
	if err := tx.SendBatch(ctx, &b).Close(); err != nil {
		return jobs.Job{}, false, err
	}
	return r.job(), true, nil
}

// maxAttempts leaves room for the attempts that are lost with a worker: River counts up to 32,767.
const maxAttempts = 32000

// turn is how many unfinished jobs a client has before the next goes behind those of others, and eight times that before it goes behind more of them.
const turn = 16

// riverPriority maps -8 to 7, of which the most is first, to 4 to 1, of which the least is. It is less urgent for a client that has many jobs already.
func riverPriority(p int, unfinished int64) int {
	level := 4 - (min(max(p, -8), 7)+8)/4
	switch {
	case unfinished >= 8*turn:
		level += 2
	case unfinished >= turn:
		level++
	}
	return min(level, 4)
}

package riverjobs

import (
	"context"
	"crypto/rand"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/spillgate/spillgate/pool/jobs"
)

// workerName is a name that no other worker has, with that of the machine for those who look.
func workerName() string {
	host, _ := os.Hostname() // there may be none
	return clip(host, 60) + "-" + rand.Text()
}

// aged is how long a job waits until it goes with the first, so that none waits for ever.
const aged = time.Minute

// A turn of each client's at a time, or who has many would have all before the others after that. What the statements here find locked they leave for the
// next time: a transaction of somebody else's may stay open for long.
const age = `UPDATE {s}river_job SET priority = 1 WHERE id IN (SELECT r.id FROM (
		SELECT o.id, j.client, row_number() OVER (PARTITION BY j.client ORDER BY o.scheduled_at, o.id) AS place
		FROM {s}river_job AS o JOIN {s}spillgate_job AS j ON j.river_id = o.id
		WHERE j.open AND o.state = 'available' AND o.queue = $1 AND o.scheduled_at < now() - $2::interval) AS w
	JOIN {s}river_job AS r ON r.id = w.id
	WHERE (w.place <= $3 OR w.client = '') AND r.priority > 1 AND r.state = 'available' FOR UPDATE OF r SKIP LOCKED)`

// Where the clock was set back, as by a replica that takes over, what had waited for its turn or was put back before that is due in a time that is to come once more. Nobody
// has asked for that: what waits for a time is not available until then.
const redate = `UPDATE {s}river_job SET scheduled_at = now() WHERE id IN (SELECT r.id FROM {s}spillgate_job AS j JOIN {s}river_job AS r ON r.id = j.river_id
	WHERE j.open AND r.state = 'available' AND r.queue = $1 AND r.scheduled_at > now() + $2::interval
		AND greatest(r.created_at, r.attempted_at) > now() + $2::interval FOR UPDATE OF r SKIP LOCKED)`

// setBack is by how much the clock has to be set back to be taken for that. Statements that run at the same time have times of their own.
const setBack = time.Second

// forgetAtOnce is how many jobs one statement forgets.
const forgetAtOnce = 1000

const forget = `DELETE FROM {s}river_job WHERE id IN (SELECT r.id FROM {s}spillgate_job AS j JOIN {s}river_job AS r ON r.id = j.river_id
	WHERE j.expires <= now() LIMIT $1 FOR UPDATE OF r SKIP LOCKED)`

// sweepTime is how long a statement may take that nobody waits for.
const sweepTime = 10 * time.Second

// What no worker that is alive says to be running has been lost: with the worker, with its answer to River, or on its way to it. A worker has a lease
// to say so, and the job an attempt more, unless it has taken three workers with it. The one who asks has to have been heard last when it knows to have been, and not long
// ago: while the question waited the others may have been silent because all did, or the clock was set, or this server lacks what they last said to another.
// What is to come, by more than a lease, was said before the clock was set back.
const reclaim = `UPDATE {s}river_job AS r SET
		state = (CASE WHEN r.metadata ? 'cancel_attempted_at' THEN 'cancelled' WHEN n.lost >= 3 THEN 'discarded' ELSE 'available' END)::{s}river_job_state,
		finalized_at = CASE WHEN n.lost >= 3 OR r.metadata ? 'cancel_attempted_at' THEN now() END,
		scheduled_at = now(), max_attempts = r.max_attempts + 1,
		metadata = jsonb_set(r.metadata, '{spillgate_lost}', to_jsonb(n.lost)),
		errors = array_append(r.errors, jsonb_build_object('at', now(), 'attempt', r.attempt, 'error', 'riverjobs: the worker that ran the job was lost', 'trace', ''))
	FROM (SELECT o.id, coalesce((o.metadata->>'spillgate_lost')::int, 0) + 1 AS lost FROM {s}river_job AS o JOIN {s}spillgate_job AS j ON j.river_id = o.id
		WHERE EXISTS (SELECT FROM {s}spillgate_worker WHERE name = $2 AND seen = $3::timestamptz AND seen >= now() - $1::interval / 2)
		AND j.open AND o.state = 'running' AND o.attempted_at NOT BETWEEN now() - $1::interval AND now() + $1::interval AND NOT EXISTS (
			SELECT FROM {s}spillgate_worker AS w
			WHERE w.name = o.attempted_by[cardinality(o.attempted_by)] AND w.seen > now() - $1::interval
				AND w.seen <= now() + $1::interval AND o.id = ANY (w.running))
		FOR UPDATE OF o SKIP LOCKED) AS n
	WHERE r.id = n.id`

const lapse = `UPDATE {s}river_job AS r SET state = 'discarded', finalized_at = now(),
		attempt = CASE WHEN r.state = 'running' THEN r.attempt - 1 ELSE r.attempt END,
		errors = array_append(r.errors, jsonb_build_object('at', now(), 'attempt', r.attempt, 'error', $1::text, 'trace', ''))
	FROM (SELECT o.id FROM {s}river_job AS o JOIN {s}spillgate_job AS j ON j.river_id = o.id
		WHERE j.open AND o.state::text = ANY ($2::text[]) AND `

const (
	lapseOne = lapse + `j.id = $3 FOR UPDATE OF o) AS n WHERE r.id = n.id`
	lapseAll = lapse + `j.deadline <= now() FOR UPDATE OF o SKIP LOCKED) AS n WHERE r.id = n.id`
)

// waiting are the states of jobs that no worker has.
var waiting = []string{"available", "pending", "retryable", "scheduled"}

// lapse fails a job that has missed its deadline and waits, by whosever clock that is; if id is empty, all that have by that of the database.
func (e *Engine) lapse(ctx context.Context, id string, states ...string) error {
	sql, args := lapseAll, []any{jobs.ErrDeadline.Error(), append(states, waiting...)}
	if id != "" {
		sql, args = lapseOne, append(args, id)
	}
	// Somebody else may do so meanwhile, or a worker take the job: where SERIALIZABLE is the default, that would be an error.
	return pgx.BeginTxFunc(ctx, e.pool, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, e.sql(sql), args...)
		return err
	})
}

// sight is since when and until when the database was there for all, by its own clock and as far as what one worker said to it shows. The zero value is never.
type sight struct{ since, last time.Time }

// add adds that a worker was heard now and before, by what stood in the database until then. Who speaks every quarter of a lease and was not heard for half of it was not
// the only one, unless the clock was set; and who was heard when it does not know of it has another server before it, or what it said was long on its way.
func (s *sight) add(now, before time.Time, lease time.Duration) {
	if gap := now.Sub(s.last); !before.Equal(s.last) || gap < 0 || gap > lease/2 {
		s.since = now
	}
	s.last = now
}

// enough reports whether all that are alive have been heard since they were last silent together.
func (s sight) enough(lease time.Duration) bool { return s.last.Sub(s.since) > lease }

// heartbeat returns the time, and what was there before: what the statement itself writes it does not see.
const heartbeat = `INSERT INTO {s}spillgate_worker (name, seen, running) VALUES ($1, now(), $2)
	ON CONFLICT (name) DO UPDATE SET seen = now(), running = excluded.running
	RETURNING seen, (SELECT w.seen FROM {s}spillgate_worker AS w WHERE w.name = $1)`

// beat says to the other workers that this one is alive, and what it runs or has run less than a lease ago: so long River may take to
// write the end of a job.
func (e *Engine) beat(ctx context.Context) (err error) {
	var now time.Time
	var before *time.Time // nil: nothing
	defer func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		switch {
		case err != nil:
			e.sight = sight{}
		case before == nil:
			e.sight.add(now, time.Time{}, e.conf.lease)
		default:
			e.sight.add(now, *before, e.conf.lease)
		}
	}()
	e.mu.Lock()
	maps.DeleteFunc(e.ended, func(_ int64, at time.Time) bool { return time.Since(at) > e.conf.lease })
	running := slices.AppendSeq([]int64{}, maps.Keys(e.running))
	running = slices.AppendSeq(running, maps.Keys(e.ended))
	e.mu.Unlock()
	// The connection is none of the pool's, which may have all of its given to handlers for longer than a lease. Where somebody has cut it while it was
	// idle, another does.
	say := func() error {
		err := e.beating.QueryRow(ctx, e.sql(heartbeat), e.name, running).Scan(&now, &before)
		if err != nil {
			e.beating.Close(ctx)
		}
		return err
	}
	if e.beating != nil && !e.beating.IsClosed() && say() == nil {
		return nil
	}
	conn, err := dial(ctx, e.pool)
	if err != nil {
		return err
	}
	e.beating = conn
	return say()
}

// keep beats and sweeps until stopped.
func (e *Engine) keep(stopped <-chan struct{}) {
	defer e.timed("saying that this worker stops", func(ctx context.Context) error {
		_, err := e.beating.Exec(ctx, e.sql("DELETE FROM {s}spillgate_worker WHERE name = $1"), e.name)
		e.beating.Close(ctx)
		return err
	})
	ticker := time.NewTicker(e.conf.lease / 4)
	defer ticker.Stop()
	sweeping := make(chan struct{}, 1) // full while a sweep goes on, which may take longer than a lease
	for {
		select {
		case <-stopped:
			return
		case <-ticker.C:
		}
		if e.timed("saying that this worker is alive", e.beat) != nil {
			continue
		}
		select {
		case sweeping <- struct{}{}:
			e.beats.Go(func() {
				e.timed("the sweep", e.sweep)
				<-sweeping
			})
		default:
		}
	}
}

// timed runs what nobody waits for, and so nobody but the log is told of what fails. It is done the next time.
func (e *Engine) timed(what string, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), sweepTime)
	defer cancel()
	err := f(ctx)
	if err != nil {
		e.conf.logger.Warn("riverjobs: "+what+" failed", "worker", e.name, "error", err)
	}
	return err
}

// reclaim takes the jobs of workers that are lost. Nobody is before this one has been heard for a whole lease: after an outage all have been silent for longer than that, and are alive.
func (e *Engine) reclaim(ctx context.Context) error {
	conn, err := e.pool.Acquire(ctx) // before it is looked when this worker was heard: handlers may have all for a while
	if err != nil {
		return err
	}
	defer conn.Release()
	e.mu.Lock()
	seen := e.sight
	e.mu.Unlock()
	if !seen.enough(e.conf.lease) {
		return nil
	}
	tag, err := conn.Exec(ctx, e.sql(reclaim), e.conf.lease, e.name, seen.last)
	if n := tag.RowsAffected(); n > 0 {
		e.conf.logger.Warn("riverjobs: jobs were running with workers that are lost", "worker", e.name, "jobs", n)
	}
	return err
}

// sweep does what time alone brings about.
func (e *Engine) sweep(ctx context.Context) error {
	if err := e.reclaim(ctx); err != nil {
		return err
	}
	if err := e.lapse(ctx, ""); err != nil {
		return err
	}
	if _, err := e.pool.Exec(ctx, e.sql(redate), e.conf.queue, setBack); err != nil {
		return err
	}
	for {
		// A few at a time, so that nobody waits for their rows for long.
		tag, err := e.pool.Exec(ctx, e.sql(forget), forgetAtOnce)
		if err != nil {
			return err
		}
		if tag.RowsAffected() < forgetAtOnce {
			break
		}
	}
	if _, err := e.pool.Exec(ctx, e.sql(age), e.conf.queue, aged, turn); err != nil {
		return err
	}
	_, err := e.pool.Exec(ctx, e.sql("DELETE FROM {s}spillgate_worker WHERE seen < now() - 10 * $1::interval"), e.conf.lease)
	return err
}

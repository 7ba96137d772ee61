package riverjobs

import (
	"context"
	"sync"
	"time"

	"github.com/spillgate/spillgate/pool/jobs"
)

// reportEvery is how long a job's progress is not written again after it was, and reportTime how long writing may take.
const (
	reportEvery = 200 * time.Millisecond
	reportTime  = 5 * time.Second
)

// reporter writes the latest progress of one attempt, beside it: the handler waits for no database.
type reporter struct {
	engine  *Engine
	riverID int64
	attempt int
	wake    chan struct{} // holds a token while there is something to write
	over    chan struct{}
	written sync.WaitGroup

	mu     sync.Mutex
	latest *jobs.Progress // not written yet
	begun  bool
	ended  bool
}

func (e *Engine) reporter(riverID int64, attempt int) *reporter {
	return &reporter{engine: e, riverID: riverID, attempt: attempt, wake: make(chan struct{}, 1), over: make(chan struct{})}
}

// report takes over p. What a handler has left running does not speak for the next attempt.
func (r *reporter) report(p jobs.Progress) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return
	}
	r.latest = &p
	if !r.begun {
		r.begun = true
		r.written.Go(r.loop)
	}
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// end stops the reporter. The last progress of an attempt that failed is kept.
func (r *reporter) end(failed bool) {
	r.mu.Lock()
	r.ended = true
	r.mu.Unlock()
	close(r.over)
	r.written.Wait()
	if failed {
		r.write()
	}
}

func (r *reporter) loop() {
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-r.over:
			return
		case <-pause.C:
		}
		select {
		case <-r.over:
			return
		case <-r.wake:
		}
		r.write()
		pause.Reset(reportEvery)
	}
}

const writeProgress = `WITH changed AS (
		UPDATE {s}spillgate_job AS j SET version = j.version + 1, done = $3, total = $4, note = $5
		FROM {s}river_job AS r WHERE j.river_id = $1 AND r.id = $1 AND r.state = 'running' AND r.attempt = $2 RETURNING j.id)
	SELECT pg_notify(coalesce(nullif($6, ''), current_schema()) || '.spillgate_job', id) FROM changed`

// write writes what is latest. Where the database fails that is lost, and what comes next may not be.
func (r *reporter) write() {
	r.mu.Lock()
	p := r.latest
	r.latest = nil
	r.mu.Unlock()
	if p == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), reportTime)
	defer cancel()
	e := r.engine
	_, _ = e.pool.Exec(ctx, e.sql(writeProgress), r.riverID, r.attempt, p.Done, p.Total, clip(p.Note, 256), e.conf.schema)
}

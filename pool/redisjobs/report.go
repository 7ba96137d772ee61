package redisjobs

import (
	"context"
	"sync"
	"time"

	"github.com/spillgate/spillgate/pool/jobs"
)

// reportEvery is how long a job's progress is not written again after it was.
const reportEvery = 200 * time.Millisecond

// reporter writes the latest progress of one attempt, beside it: the handler waits for no server.
type reporter struct {
	engine  *Engine
	attempt *attempt
	wake    chan struct{} // holds a token while there is something to write
	over    chan struct{}
	written sync.WaitGroup

	mu     sync.Mutex
	latest *jobs.Progress // not written yet
	begun  bool
	ended  bool
}

func (e *Engine) reporter(a *attempt) *reporter {
	return &reporter{engine: e, attempt: a, wake: make(chan struct{}, 1), over: make(chan struct{})}
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
	signal(r.wake)
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

// write writes what is latest. Where the server fails that is lost, and what comes next may not be.
func (r *reporter) write() {
	r.mu.Lock()
	p := r.latest
	r.latest = nil
	r.mu.Unlock()
	if p == nil {
		return
	}
	_ = r.engine.timed(func(ctx context.Context) error {
		return r.engine.run(ctx, progressScript, r.attempt.id, r.attempt.token, p.Done, p.Total, clip(p.Note, 256)).Err()
	})
}

package remote

import (
	"sync"
	"time"

	"github.com/spillgate/spillgate/pool/jobs"
)

// reportEvery is how long a job's progress is not written again after it was.
const reportEvery = 200 * time.Millisecond

// Reporter writes the latest progress of one attempt, beside it: the handler waits for no server.
type Reporter struct {
	save    func(jobs.Progress)
	wake    chan struct{} // holds a token while there is something to write
	over    chan struct{}
	written sync.WaitGroup

	mu     sync.Mutex
	latest *jobs.Progress // not written yet
	begun  bool
	ended  bool
}

// NewReporter returns one that has save write what is latest. Where that fails it is lost, and what comes next may not be.
func NewReporter(save func(jobs.Progress)) *Reporter {
	return &Reporter{save: save, wake: make(chan struct{}, 1), over: make(chan struct{})}
}

// Report takes over p. What a handler has left running does not speak for the next attempt.
func (r *Reporter) Report(p jobs.Progress) {
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
	Signal(r.wake)
}

// End stops the reporter. The last progress of an attempt that failed is kept.
func (r *Reporter) End(failed bool) {
	r.mu.Lock()
	r.ended = true
	r.mu.Unlock()
	close(r.over)
	r.written.Wait()
	if failed {
		r.write()
	}
}

func (r *Reporter) loop() {
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

func (r *Reporter) write() {
	r.mu.Lock()
	p := r.latest
	r.latest = nil
	r.mu.Unlock()
	if p != nil {
		r.save(*p)
	}
}

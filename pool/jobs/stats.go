package jobs

import (
	"time"
)

// Stats is the state of a [Local] at one moment and its counts since it was made.
type Stats struct {
	Queued   int   `json:"queued"`   // could begin now
	Delayed  int   `json:"delayed"`  // wait for a time: of their own, or for another attempt
	Running  int   `json:"running"`  // in a handler
	Finished int   `json:"finished"` // final and still known
	Bytes    int64 `json:"bytes"`    // of payloads, results and details

	Submitted int64 `json:"submitted"`
	Succeeded int64 `json:"succeeded"`
	Failed    int64 `json:"failed"`
	Cancelled int64 `json:"cancelled"`
	Retried   int64 `json:"retried"`   // attempts that failed and were to be repeated
	Panics    int64 `json:"panics"`    // attempts that panicked
	Forgotten int64 `json:"forgotten"` // expired, or gone to make room

	MeanRun time.Duration `json:"mean_run"` // of an attempt, lately
}

// Stats returns the counts and the state of the engine.
func (l *Local) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tidy(l.now())
	s := l.counts
	s.Queued, s.Delayed, s.Running, s.Finished = l.ready.n, len(l.delayed), len(l.running), len(l.finished)
	s.Bytes, s.MeanRun = l.bytes, l.mean
	return s
}

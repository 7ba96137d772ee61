package pool

import "time"

// Stats is the state of a [Pool] at one moment and its counts since it was made. The
// numbers are read one after the other while work goes on and need not add up exactly.
type Stats struct {
	Slots   int `json:"slots"`   // how many there are now
	Used    int `json:"used"`    // taken now, by weight; for a while more than Slots if these became fewer, if tasks had paused, or if a job goes on for which another waits
	Waiting int `json:"waiting"` // tasks in the queue now

	Begun   int64 `json:"begun"`   // tasks that got a slot of their own
	Refused int64 `json:"refused"` // tasks that got no slot, in all; the next six by reason, the rest came after Shutdown

	Share    int64 `json:"refused_share"`    // the client's own share of the queue was full
	Full     int64 `json:"refused_full"`     // no slot and no place in the queue
	Evicted  int64 `json:"refused_evicted"`  // lost their place in the queue to another client
	Expired  int64 `json:"refused_expired"`  // waited as long as the queue allows
	Deadline int64 `json:"refused_deadline"` // would have been late
	Left     int64 `json:"refused_left"`     // the context ended before there was a slot

	// RetryAfter is when the queue as it is now will have been served; 0 means that it is not known.
	RetryAfter time.Duration `json:"retry_after"`
	Draining   bool          `json:"draining"` // Shutdown was called

	Kinds []KindStats `json:"kinds"` // in the order of their names; at most 66
}

// KindStats is the part of [Stats] that belongs to one kind of task.
type KindStats struct {
	Kind    string `json:"kind"`
	Waiting int    `json:"waiting"`
	Running int    `json:"running"`
	Begun   int64  `json:"begun"`
	Refused int64  `json:"refused"`
	Wait    Timing `json:"wait"` // of tasks that found no free slot; measured from the call, not from WithArrival
	// Run covers all tasks, or one in sixteen while the kind usually runs for less than 10 us.
	Run Timing `json:"run"`
}

// Stats returns the counts and the state of the pool.
func (p *Pool) Stats() Stats {
	slots := p.Slots()
	l := p.line.Stats()
	s := Stats{
		Slots: slots, Used: l.InFlight, Waiting: l.Queued,
		Full: l.Full, Evicted: l.Evicted, Expired: l.Expired, Deadline: l.Deadline + p.late.Load(), Left: p.left.Load(),
		RetryAfter: l.RetryAfter,
		Draining:   p.draining.Load(),
		Kinds:      []KindStats{}, // a list in JSON before the first task, too
	}
	p.shares.mu.Lock()
	s.Share = p.shares.refused
	p.shares.mu.Unlock()
	for _, k := range p.kinds.sorted() {
		ks := KindStats{
			Kind:    k.name,
			Waiting: int(k.waiting.Load()),
			Begun:   k.begun.Load(),
			Refused: k.refused.Load(),
			Wait:    k.wait.timing(),
			Run:     k.run.timing(),
		}
		ks.Running = int(max(ks.Begun-k.ended.Load(), 0))
		s.Begun += ks.Begun
		s.Refused += ks.Refused
		if k.name == "" && ks.Begun == 0 && ks.Refused == 0 && ks.Waiting == 0 {
			continue // no task without a kind was seen
		}
		s.Kinds = append(s.Kinds, ks)
	}
	return s
}

package limiter

import "time"

// ConcurrencyStats is the state of a [Concurrency] at one moment, and its counts since it
// was made.
type ConcurrencyStats struct {
	Limit    int `json:"limit"`
	InFlight int `json:"in_flight"` // by weight
	Queued   int `json:"queued"`    // waiting now

	Admitted int64         `json:"admitted"`      // permits granted, at once or after a wait
	Waited   int64         `json:"waited"`        // of these, after a wait
	WaitTime time.Duration `json:"wait_time"`     // total of these waits; at most 292 years, the longest Duration
	Success  int64         `json:"success"`       // released as Success
	Failure  int64         `json:"failure"`       // released as Failure
	Ignored  int64         `json:"ignored"`       // released as Ignored
	Shed     int64         `json:"shed"`          // refused, in all; the next four by reason
	Full     int64         `json:"shed_full"`     // no permit and no place in the queue
	Evicted  int64         `json:"shed_evicted"`  // lost its place in the queue to another request
	Expired  int64         `json:"shed_expired"`  // waited as long as the queue allows
	Deadline int64         `json:"shed_deadline"` // could not have begun in time
	Left     int64         `json:"left"`          // the context ended while waiting; if a permit came at that moment, this is counted as Admitted and Ignored instead

	QueueLimit   int           `json:"queue_limit"`   // places in the queue now
	QueueWait    time.Duration `json:"queue_wait"`    // longest wait in the queue now
	NewestFirst  bool          `json:"newest_first"`  // the queue is last-in-first-out now
	RetryAfter   time.Duration `json:"retry_after"`   // what a refusal would say now; 0 if not known
	Shadow       bool          `json:"shadow"`        // nothing is refused; Shed counts what would have been
	Adaptive     bool          `json:"adaptive"`      // the limit is found by experiment; if false, the fields below are 0
	Phase        string        `json:"phase"`         // of the experiment: hold, or settle after the limit has moved
	Gate         int           `json:"gate"`          // how many may be between permit and work, waiting for a processor; 0 means any number
	BaseLatency  time.Duration `json:"base_latency"`  // estimated time in service without a queue of our own
	Latency      time.Duration `json:"latency"`       // recent mean time in service
	Throughput   float64       `json:"throughput"`    // recent successes a second
	Elasticity   float64       `json:"elasticity"`    // estimated elasticity of throughput to the limit: 1 is all that is added, 0 is none
	ShedFraction float64       `json:"shed_fraction"` // of about the last 128 arrivals
}

// Stats returns counts and state. They are read one after the other while work goes on, so they need not add up
// exactly.
func (c *Concurrency) Stats() ConcurrencyStats {
	s := ConcurrencyStats{
		Limit:    int(c.limit.Load()),
		InFlight: int(c.state.Load() &^ concWaiting),
		Shadow:   c.conf.shadow,
	}
	for i := range c.cells {
		cell := &c.cells[i]
		s.Success += cell.done[Success].Load()
		s.Failure += cell.done[Failure].Load()
		s.Ignored += cell.done[Ignored].Load()
		s.Admitted += cell.admitted.Load()
		if a := c.adapt; a != nil {
			s.Success += a.cells[i].total()
			s.Admitted += a.ages[i].admitted()
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s.Queued = c.line.n
	s.Waited = c.granted
	s.WaitTime = c.waited
	s.Full = c.shed[queueFull] + c.refused.Load()
	s.Evicted = c.shed[queueEvicted]
	s.Expired = c.shed[queueExpired]
	s.Deadline = c.shed[queueDeadline]
	s.Shed = s.Full + s.Evicted + s.Expired + s.Deadline
	s.Left = c.left
	s.QueueLimit = c.places
	s.QueueWait = c.bound
	s.NewestFirst = c.line.lifo
	s.RetryAfter = c.retryAfter()
	if c.adapt != nil {
		c.adapt.stats(&s)
	}
	return s
}

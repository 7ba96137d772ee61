package breaker

import (
	"math/bits"
	"time"
)

// Stats is what a [Breaker] knows. Counts of calls are those of the window, and 0 unless the breaker is [Closed] or
// [ForcedClosed]; totals count since the breaker was made.
type Stats struct {
	Name  string        `json:"name,omitempty"`
	State State         `json:"state"`
	Since time.Duration `json:"since"` // how long it has been in this state
	// RetryAfter is what [Breaker.RetryAfter] returns.
	RetryAfter time.Duration `json:"retry_after"`
	// Ramp is the share of calls that pass while the breaker is closed: 1, or less after an opening.
	Ramp float64 `json:"ramp"`

	Successes   uint64 `json:"successes"`   // without those that Call.Fail turned into failures
	Failures    uint64 `json:"failures"`    // including those that Call.Fail reported
	Slow        uint64 `json:"slow"`        // took as long as a slow call, or are overdue
	InFlight    uint64 `json:"in_flight"`   // waiting for an answer; counted with WithSlowCalls only
	Overdue     uint64 `json:"overdue"`     // in flight for longer than a slow call
	Consecutive int    `json:"consecutive"` // failures in a row
	Clients     int    `json:"clients"`     // clients that met failures; counted with WithMinClients only
	ProbesOut   int    `json:"probes_out"`  // probes under way
	Openings    uint64 `json:"openings"`    // total of times it opened, including after a probe
	Rejected    uint64 `json:"rejected"`    // total of calls refused, or that only the shadow let pass
	Ignored     uint64 `json:"ignored"`     // total of calls reported as Ignored that were not slow
	Dropped     uint64 `json:"dropped"`     // total of results that came after a change of state
	LostProbes  uint64 `json:"lost_probes"` // total of probes not reported within their lease

	Settings Settings `json:"settings"`
}

// Stats returns what the breaker knows now.
func (b *Breaker) Stats() Stats {
	now := b.now()
	b.refresh(now)
	b.mu.Lock()
	defer b.mu.Unlock()
	p, c := b.phase.Load(), b.cfg.Load()
	s := Stats{
		Name: b.name, State: p.state, Since: time.Duration(max(0, now-p.since)), Ramp: 1,
		Openings: b.openings, LostProbes: b.lost,
		Rejected: b.rejected.Load(), Ignored: b.ignored.Load(), Dropped: b.dropped.Load(),
		Settings: c.Settings,
	}
	switch p.state {
	case Open, HalfOpen:
		s.Ramp = 0
		s.RetryAfter = time.Duration(max(0, p.until.Load()-now))
		for _, l := range p.opening.leases {
			if l.done != nil {
				s.ProbesOut++
			}
		}
	case ForcedOpen:
		s.Ramp = 0
	case Closed, ForcedClosed:
		n := p.win.sum(now)
		s.Ramp = p.share(now)
		s.Failures = n.failed()
		s.Successes = n.returned() - s.Failures
		s.Slow, s.InFlight, s.Overdue = n.slow(), n.inFlight, n.overdue
		s.Consecutive = p.win.inRow()
		s.Clients = bits.OnesCount64(n.failClients)
	}
	return s
}

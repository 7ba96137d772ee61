package breaker

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"
)

// A phase is the time between two changes of state. The breaker points to the one it is in; a call
// keeps the one that let it through, so a result of another phase is told by comparing pointers.
type phase struct {
	b       *Breaker
	state   State
	since   int64
	rampEnd int64                     // closed: until when only a share of the calls passes
	until   atomic.Int64              // open, half-open: until when no call can pass
	next    atomic.Int64              // open, half-open: when the open time or the first lease ends
	opening *opening                  // open, half-open
	refusal atomic.Pointer[OpenError] // the last one, for the next
	win     window                    // closed, forced closed
}

// An opening is what goes on from closed to closed; Breaker.mu guards it.
type opening struct {
	machine *gobreaker.TwoStepCircuitBreaker[struct{}]
	state   gobreaker.State // of the machine, as it last said
	probes  int             // how many it lets through
	granted int             // how many are under way or succeeded
	leases  []lease
}

// A lease is the time that a probe has.
type lease struct {
	done     func(error) // gobreaker's; nil: free
	end      int64
	answered bool
	waits    bool    // the call has not begun
	ticket   *ticket // of the call
	seq      uint32
}

func (l *lease) of(c Call) bool { return l.done != nil && l.ticket == c.ticket && l.seq == c.seq }

func (b *Breaker) newPhase(s State, now int64) *phase {
	p := &phase{b: b, state: s, since: now}
	if s == Closed || s == ForcedClosed {
		p.win.init(&b.cfg.Load().Settings, now)
	}
	return p
}

// become makes p the phase and has the change reported. The caller holds mu and calls tell after.
func (b *Breaker) become(p *phase, cause Cause, openFor time.Duration) {
	was := b.phase.Swap(p)
	if was.state == p.state && cause == CauseManual {
		return // reset in place
	}
	if b.cfg.Load().onChange != nil {
		b.events = append(b.events, Change{Name: b.name, From: was.state, To: p.state, Cause: cause, OpenFor: openFor})
	}
}

// tell reports the changes that are not yet reported, in their order. Only one goroutine does so at a
// time; changes that come meanwhile, from f itself too, are left to it.
func (b *Breaker) tell() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.telling {
		return
	}
	b.telling = true
	defer func() { b.telling = false }() // also when f panics: the rest is told with the next change
	for len(b.events) > 0 {
		e := b.events[0]
		b.events = b.events[1:]
		if f := b.cfg.Load().onChange; f != nil {
			func() {
				b.mu.Unlock()
				defer b.mu.Lock()
				f(e)
			}()
		}
	}
	b.events = nil
}

// What gobreaker is told of a probe.
var (
	errFailed  = errors.New("failed")
	errIgnored = errors.New("ignored")
)

// newOpening returns one with a gobreaker that opens at the first failure it is told of, for d.
func newOpening(d time.Duration, probes int) *opening {
	o := &opening{probes: probes, leases: make([]lease, probes)}
	o.machine = gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		MaxRequests: uint32(probes),
		// gobreaker stays open to the end of its last nanosecond; we say when it ends.
		Timeout:       d - 1,
		ReadyToTrip:   func(gobreaker.Counts) bool { return true },
		IsExcluded:    func(err error) bool { return err == errIgnored },
		OnStateChange: func(_ string, _, to gobreaker.State) { o.state = to },
	})
	return o
}

// open opens the breaker. The caller holds mu.
func (b *Breaker) open(cause Cause) {
	c := b.cfg.Load()
	now := b.now()
	relapse := b.phase.Load().state == HalfOpen || now-b.closedAt < int64(c.Ramp+c.Window)
	if !relapse {
		b.last = 0
	}
	b.last = min(max(2*b.last, c.OpenTime), c.MaxOpenTime)
	d := jittered(b.last, c.Jitter)
	o := newOpening(d, c.Probes)
	done, err := o.machine.Allow()
	if err == nil {
		done(errFailed)
	}
	if o.state != gobreaker.StateOpen {
		panic("breaker: gobreaker did not open: this version of it is not the one that go.mod asks for")
	}
	p := b.newPhase(Open, now)
	p.opening = o
	// The clock is read again, after gobreaker read it: its time is over when ours is.
	p.until.Store(b.now() + int64(d))
	p.next.Store(p.until.Load())
	b.openings++
	b.become(p, cause, d)
}

// halfOpen follows gobreaker from open to half-open. The caller holds mu.
func (b *Breaker) halfOpen(was *phase, now int64) {
	p := b.newPhase(HalfOpen, now)
	p.opening = was.opening
	p.next.Store(never)
	b.become(p, CauseOpenOver, 0)
}

// close follows gobreaker from half-open to closed. The caller holds mu.
func (b *Breaker) close() {
	now := b.now()
	b.closedAt = now
	p := b.newPhase(Closed, now)
	p.rampEnd = now + int64(b.cfg.Load().Ramp)
	b.become(p, CauseProbesPassed, 0)
}

// refresh does what is due now: an open time that is over, a lease that ended, calls that became
// overdue.
func (b *Breaker) refresh(now int64) {
	p := b.phase.Load()
	switch p.state {
	case Closed:
		if p.win.look(now) {
			b.judge(p, now)
		}
	case Open, HalfOpen:
		if now < p.next.Load() {
			return
		}
		b.mu.Lock()
		defer b.tell()
		defer b.mu.Unlock()
		b.pass(now)
	}
}

// pass does what refresh does, for a breaker that is open or half-open. The caller holds mu.
func (b *Breaker) pass(now int64) {
	p := b.phase.Load()
	switch p.state {
	case Open:
		if now >= p.until.Load() && p.opening.machine.State() == gobreaker.StateHalfOpen {
			b.halfOpen(p, now)
		}
	case HalfOpen:
		for i := range p.opening.leases {
			l := &p.opening.leases[i]
			if l.done == nil || now < l.end {
				continue
			}
			done := l.done
			l.done = nil
			switch {
			case l.answered:
				done(nil)
			case l.waits:
				done(errIgnored)
				p.opening.granted--
			default:
				b.lost++
				done(errFailed)
			}
			if b.follow(p, CauseProbeLost) {
				return
			}
		}
	}
}

// probe lets a call pass as a probe if gobreaker does. It reports false if the breaker is neither
// open nor half-open any more. It changes no state.
func (b *Breaker) probe(now int64, waits bool) (Call, error, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.phase.Load()
	switch p.state {
	default:
		return Call{}, nil, false
	case Open:
		// A caller's clock that runs ahead of gobreaker's, or a lease that has just ended.
		return Call{}, b.refuse(p, max(1, p.until.Load()-now)), true
	case HalfOpen:
	}
	done, err := p.opening.machine.Allow()
	if err != nil {
		return Call{}, b.refuse(p, max(1, p.until.Load()-now)), true
	}
	i := 0
	for p.opening.leases[i].done != nil {
		i++
	}
	c := newCall(p, now, int16(i), 0, 0)
	p.opening.leases[i] = lease{done: done, end: now + int64(b.cfg.Load().lease()), waits: waits, ticket: c.ticket, seq: c.seq}
	p.opening.granted++
	p.gate()
	return c, nil, true
}

// beginProbe renews the lease of a probe that waited, or gives it another.
func (b *Breaker) beginProbe(c *Call) {
	b.mu.Lock()
	defer b.mu.Unlock()
	o := c.p.opening
	if b.phase.Load() != c.p || c.ticket.seq.Load() != c.seq {
		return
	}
	l := &o.leases[c.probe]
	for i := 0; !l.of(*c); i++ {
		if i == len(o.leases) {
			return // all have begun
		}
		switch other := &o.leases[i]; {
		case other.done != nil && other.waits:
		case other.done == nil && o.granted < o.probes:
			done, err := o.machine.Allow()
			if err != nil {
				return
			}
			other.done = done
			o.granted++
		default:
			continue
		}
		c.probe, l = int16(i), &o.leases[i]
		l.ticket, l.seq, l.answered = c.ticket, c.seq, false
	}
	l.waits, l.end = false, c.start+int64(b.cfg.Load().lease())
	c.p.gate()
}

// gate says from when on a call can pass: at once if a probe is left, else when the first lease ends.
// The caller of all of this holds mu.
func (p *phase) gate() {
	first := int64(never)
	for _, l := range p.opening.leases {
		if l.done != nil {
			first = min(first, l.end)
		}
	}
	p.next.Store(first)
	if p.opening.granted < p.opening.probes {
		first = 0
	}
	p.until.Store(first)
}

// settleProbe tells gobreaker what became of a probe.
func (b *Breaker) settleProbe(c Call, o Outcome, latency time.Duration) {
	b.mu.Lock()
	defer b.tell()
	defer b.mu.Unlock()
	p := c.p
	l := &p.opening.leases[c.probe]
	if b.phase.Load() != p || !l.of(c) {
		b.dropped.Add(1)
		return
	}
	done := l.done
	l.done = nil
	slow := b.cfg.Load().SlowCall
	switch {
	case o == Failure || slow > 0 && latency >= slow:
		done(errFailed)
	case o == Success:
		done(nil)
	default:
		b.ignored.Add(1)
		done(errIgnored)
		p.opening.granted--
	}
	b.follow(p, CauseProbeFailed)
}

// follow does what gobreaker did when it was told of a probe of p, and reports whether that ended p. As long as others can see p its
// gate is as it was: after the last probe it would be shut for ever. The caller holds mu.
func (b *Breaker) follow(p *phase, ifOpen Cause) bool {
	switch p.opening.state {
	case gobreaker.StateOpen:
		b.open(ifOpen)
	case gobreaker.StateClosed:
		b.close()
	default:
		p.gate()
		return false
	}
	return true
}

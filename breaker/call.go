package breaker

import (
	"sync"
	"sync/atomic"
	"time"
)

// A Call is a call that a [Breaker] let through. Report its outcome once, with [Call.Done] or [Call.DoneAt]. A Call
// is a small value that may be copied freely: the first report on any copy counts, and the others do nothing. The
// zero Call stands for one that nobody counts. A Call is safe for concurrent use.
//
// A call that is never reported leaks nothing: a probe fails when its lease ends, and any other call leaves the
// window as time passes.
type Call struct {
	p      *phase
	ticket *ticket
	start  int64 // nanoseconds since the breaker was made
	seq    uint32
	probe  int16 // the index of its lease, -1 if it is no probe
	at     uint8 // where it is counted as in flight
	client uint8 // 6 bits of a hash
}

// A ticket makes a call one-time. It holds the call's seq while the call waits for an answer, seq+1
// once it was answered, and seq+2 when it is settled; then it serves other calls, from there on.
type ticket struct{ seq atomic.Uint32 }

var tickets = sync.Pool{New: func() any { return new(ticket) }}

func newCall(p *phase, start int64, probe int16, at, client uint8) Call {
	t := tickets.Get().(*ticket)
	return Call{p: p, ticket: t, start: start, seq: t.seq.Load(), probe: probe, at: at, client: client}
}

// Done reports the outcome of the call and how long it took until that was known: for HTTP, the time to the first
// byte. A negative latency stands for the time since the call was let through.
//
// A latency of at least that of [WithSlowCalls] makes it a slow call, even if the outcome is [Ignored]: clients leave
// just when a dependency hangs. Report calls that another protection refused with a latency of 0. A result that
// arrives after the breaker has changed its state is dropped, and counted in [Stats].
func (c Call) Done(o Outcome, latency time.Duration) {
	if c.p != nil {
		c.settle(o, latency, c.p.b.now())
	}
}

// DoneAt is [Call.Done] for a caller that has read the clock: now is that time.
func (c Call) DoneAt(o Outcome, latency time.Duration, now time.Time) {
	if c.p != nil {
		c.settle(o, latency, c.p.b.at(now))
	}
}

func (c Call) settle(o Outcome, latency time.Duration, now int64) {
	waiting := c.ticket.seq.CompareAndSwap(c.seq, c.seq+2)
	if !waiting && !c.ticket.seq.CompareAndSwap(c.seq+1, c.seq+2) {
		return
	}
	tickets.Put(c.ticket)
	b, p := c.p.b, c.p
	if latency < 0 {
		latency = time.Duration(now - c.start)
	}
	if c.probe >= 0 {
		b.settleProbe(c, o, latency)
		return
	}
	if waiting {
		p.win.end(c.start, c.at, c.client)
	}
	if b.phase.Load() != p {
		b.dropped.Add(1)
		return
	}
	slow := p.win.slow > 0 && int64(latency) >= p.win.slow
	kind := good
	switch {
	case o == Success && !slow:
		p.win.endRow(c.start)
		p.win.count(good, now, c.client)
		return
	case o == Success:
		p.win.endRow(c.start)
		kind = goodSlow
	case o == Failure:
		p.win.addToRow()
		kind = bad
		if slow {
			kind = badSlow
		}
	case slow:
		kind = gone
	default:
		b.ignored.Add(1)
		return
	}
	p.win.count(kind, now, c.client)
	b.judge(p, now)
}

// Wait says that a call has to wait for something else before it goes on, such as a limiter of ours further in, and
// returns the call to go on with. Until [Call.Begin] that call is not in flight, like one that was let through with
// [Request] Waits.
func (c Call) Wait() Call {
	if c.p == nil || c.ticket.seq.Load() != c.seq { // nobody counts it, or it was answered or reported
		return c
	}
	if c.probe < 0 {
		c.p.win.end(c.start, c.at, c.client)
		c.at = uncounted
		return c
	}
	b := c.p.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if l := &c.p.opening.leases[c.probe]; l.of(c) {
		l.waits = true
	}
	return c
}

// Begin says that a call that was let through with [Request] Waits, or has waited since [Call.Wait], is made now, and
// returns the call to report. Its latency counts from now, and so does its lease if it is a probe. A probe whose
// place went to another call takes a free place, or that of a probe that has not begun.
func (c Call) Begin(now time.Time) Call {
	if c.p == nil || c.ticket.seq.Load() != c.seq { // nobody counts it, or it was answered or reported
		return c
	}
	b := c.p.b
	switch {
	case c.probe >= 0:
		c.start = b.at(now)
		b.beginProbe(&c)
	case c.at == uncounted: // otherwise it has begun
		c.start = b.at(now)
		c.at = c.p.win.begin(c.start, c.client)
	}
	return c
}

// Answered says that the dependency has begun to answer, while [Call.Done] is still due. From then on the call is not
// overdue, however long the answer takes to pass. If the call is a probe and its lease ends before it is reported,
// the probe has passed. A call that is reported when the answer begins needs no Answered.
func (c Call) Answered() {
	if c.p == nil || c.probe < 0 && c.p.win.slow == 0 || !c.ticket.seq.CompareAndSwap(c.seq, c.seq+1) {
		return
	}
	if c.probe < 0 {
		c.p.win.end(c.start, c.at, c.client)
		return
	}
	b := c.p.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if l := &c.p.opening.leases[c.probe]; l.of(c) {
		l.answered = true
	}
}

// Fail says that a call failed after it was reported as a success: the body of a response was cut off after it began
// well, or a handler panicked after it took over the connection. The call then counts as a failure, and not as one
// more call, if the breaker is still in the state that let the call through, and that is [Closed] or [ForcedClosed].
// Otherwise Fail is dropped, and counted as such.
func (c Call) Fail() {
	if c.p == nil {
		return
	}
	b, p := c.p.b, c.p
	if c.probe >= 0 || b.phase.Load() != p {
		b.dropped.Add(1)
		return
	}
	now := b.now()
	p.win.takeUpRow(c.start)
	p.win.count(broke, now, c.client)
	b.judge(p, now)
}

package breaker

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// A Breaker is a circuit breaker. Make one with [New]; the zero value does not work. It is safe for concurrent use.
// It needs no goroutine and no Close: it looks at the time when it is asked.
type Breaker struct {
	name  string
	base  time.Time // all times are nanoseconds since then
	cfg   atomic.Pointer[config]
	phase atomic.Pointer[phase]

	fixed bool // stands for all keys that found no place in a group: no method changes it

	rejected, dropped, ignored atomic.Uint64
	thin                       atomic.Uint64 // the sequence that chooses calls on the ramp

	mu       sync.Mutex // guards what follows, and all that gobreaker is told
	openings uint64
	lost     uint64
	last     time.Duration // the last open time, before jitter
	closedAt int64         // when it last closed after an opening
	events   []Change      // not yet reported
	telling  bool          // a goroutine is reporting events
}

// New returns a closed breaker. It panics if an option is out of its range.
func New(opts ...Option) *Breaker {
	c := defaultConfig()
	if err := c.apply(opts); err != nil {
		panic("breaker: New: " + err.Error())
	}
	return newBreaker(c.name, &c)
}

func newBreaker(name string, c *config) *Breaker {
	b := &Breaker{name: name, base: time.Now()}
	b.cfg.Store(c)
	b.phase.Store(b.newPhase(Closed, 0))
	return b
}

// now returns the time as nanoseconds since the breaker was made.
func (b *Breaker) now() int64 { return int64(time.Since(b.base)) }

// at returns t as nanoseconds since the breaker was made.
func (b *Breaker) at(t time.Time) int64 { return max(0, int64(t.Sub(b.base))) }

// Request describes a call to [Breaker.Admit]. The zero value is fine.
type Request struct {
	// Arrived is the time now, if the caller has read the clock; if it is zero, the breaker reads the clock.
	Arrived time.Time
	// Client is a hash of the client that the call is for, which [WithMinClients] needs. All calls with 0 count as one
	// client's.
	Client uint64
	// Long says that the call may last, such as a stream or an upgraded connection. It is not used as a probe, unless
	// the breaker has been half-open for the time of a lease (see [WithLease]) and no other call took the place.
	Long bool
	// Waits says that the call has to wait for something else before it is made, such as a limiter of ours; [Call.Begin]
	// says when it is made. Until then it is not in flight. A probe that has not begun when its lease ends gives its
	// place to the next call.
	Waits bool
}

// Allow asks whether a call may be made. If so, report its outcome to the [Call] that Allow returns; if not, the
// error is an [*OpenError]. Nothing is allocated either way, except for a probe.
func (b *Breaker) Allow() (Call, error) { return b.admit(b.now(), 0, false, false) }

// AllowAt is [Breaker.Allow] for a caller that has read the clock: now is that time.
func (b *Breaker) AllowAt(now time.Time) (Call, error) { return b.admit(b.at(now), 0, false, false) }

// Admit is [Breaker.Allow] for a caller that knows more about the call.
func (b *Breaker) Admit(r Request) (Call, error) {
	now := int64(0)
	if r.Arrived.IsZero() {
		now = b.now()
	} else {
		now = b.at(r.Arrived)
	}
	// Fibonacci hashing: the six highest bits of the product tell clients apart.
	return b.admit(now, uint8(r.Client*0x9E3779B97F4A7C15>>58), r.Long, r.Waits)
}

func (b *Breaker) admit(now int64, client uint8, long, waits bool) (Call, error) {
	for {
		p := b.phase.Load()
		switch p.state {
		case Closed:
			if now >= p.win.due.Load() && p.win.look(now) && b.judge(p, now) {
				continue
			}
			if now < p.rampEnd && !b.lucky(p, now) {
				return Call{}, b.refuse(p, p.rampEnd-now)
			}
			return p.pass(now, client, waits), nil
		case Open, HalfOpen:
			if wait := p.until.Load() - now; wait > 0 {
				return Call{}, b.refuse(p, wait)
			}
			// What is due is told before a probe is out: its time would run while f does, and where f panics nobody would report it.
			if b.refresh(now); b.phase.Load() != p {
				now = max(now, b.now())
				continue
			}
			if long {
				// It cannot tell soon whether the dependency works; others will. Where none come, it must.
				lease := int64(b.cfg.Load().lease())
				switch {
				case p.state == Open:
					return Call{}, b.refuse(p, max(p.until.Load()-now, lease))
				case now-p.since < lease:
					return Call{}, b.refuse(p, max(p.until.Load()-now, p.since+lease-now))
				}
			}
			if c, err, ok := b.probe(now, waits); ok {
				return c, err
			}
		case ForcedOpen:
			return Call{}, b.refuse(p, 0)
		case ForcedClosed:
			return p.pass(now, client, waits), nil
		default:
			return Call{}, nil
		}
	}
}

// pass lets a call through that is no probe.
func (p *phase) pass(now int64, client uint8, waits bool) Call {
	at := uint8(uncounted)
	if !waits {
		at = p.win.begin(now, client)
	}
	return newCall(p, now, -1, at, client)
}

// rampFloor is the share of calls that pass when the ramp begins.
const rampFloor = 0.1

// share is the share of calls that pass at a time on the ramp.
func (p *phase) share(now int64) float64 {
	if now >= p.rampEnd {
		return 1
	}
	return max(rampFloor, float64(now-p.since)/float64(p.rampEnd-p.since))
}

// lucky chooses the share of calls that passes, evenly spread: the multiples of the golden ratio
// fill an interval more evenly than chance does.
func (b *Breaker) lucky(p *phase, now int64) bool {
	x := b.thin.Add(1) * 0x9E3779B97F4A7C15
	return float64(x>>11)/(1<<53) < p.share(now)
}

// grain is what the wait in an error is rounded up to, so that calls refused close together share
// one error.
const grain = 10 * time.Millisecond

// refuse counts a refusal and returns its error.
func (b *Breaker) refuse(p *phase, wait int64) error {
	b.rejected.Add(1)
	if p.state != ForcedOpen && b.cfg.Load().Shadow {
		return nil
	}
	after := (time.Duration(wait) + grain - 1) / grain * grain
	e := p.refusal.Load()
	if e == nil || e.RetryAfter != after {
		e = &OpenError{Name: b.name, State: p.state, RetryAfter: after}
		p.refusal.Store(e)
	}
	return e
}

// judge opens the breaker if the window of p says so, and reports whether it did.
func (b *Breaker) judge(p *phase, now int64) bool {
	if p.state != Closed {
		return false
	}
	cause := p.win.trip(&b.cfg.Load().Settings, now)
	if cause == 0 {
		return false
	}
	b.mu.Lock()
	defer b.tell()
	defer b.mu.Unlock()
	if b.phase.Load() == p {
		b.open(cause)
	}
	return true
}

// State returns the current state. An open breaker whose open time is over is half-open.
func (b *Breaker) State() State {
	p := b.phase.Load()
	if p.state <= Open { // otherwise no time changes it
		b.refresh(b.now())
		p = b.phase.Load()
	}
	return p.state
}

// Passing reports, without reading the clock, that the breaker is neither open nor half-open: no call is a probe now.
func (b *Breaker) Passing() bool {
	s := b.phase.Load().state
	return s != Open && s != HalfOpen && s != ForcedOpen
}

// RetryAfter returns how long every call will be refused: until the open time is over, or until the first of the
// probes under way must have ended. 0 means that a call may pass now or, if the breaker is [ForcedOpen], that nobody
// knows.
func (b *Breaker) RetryAfter() time.Duration {
	now := b.now()
	b.refresh(now)
	p := b.phase.Load()
	if p.state == Open || p.state == HalfOpen {
		return time.Duration(max(0, p.until.Load()-now))
	}
	return 0
}

// Do calls fn if the breaker allows it, and returns what fn returned; otherwise it returns an [*OpenError]. If ctx is
// done already, Do returns the error of ctx without asking the breaker.
//
// An error is a failure. It is ignored if ctx was cancelled, if ctx ran into its deadline sooner than the time of a
// slow call (a caller in a hurry says nothing about the dependency), or if it is the refusal of another breaker;
// [WithClassify] replaces these rules. A panic and [runtime.Goexit] are failures and travel on untouched. No lock is
// held while fn runs.
func (b *Breaker) Do(ctx context.Context, fn func(context.Context) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	call, err := b.Allow()
	if err != nil {
		return err
	}
	outcome := Failure // unless fn returns
	defer func() { call.Done(outcome, -1) }()
	err = fn(ctx)
	outcome = Ignored // if what is asked now panics: fn has returned
	if classify := b.cfg.Load().classify; classify != nil {
		outcome = classify(ctx, err)
	} else {
		outcome = b.outcome(ctx, err, call)
	}
	return err
}

func (b *Breaker) outcome(ctx context.Context, err error, call Call) Outcome {
	if err == nil {
		return Success
	}
	if errors.Is(err, ErrOpen) {
		return Ignored
	}
	switch ctx.Err() {
	case context.Canceled:
		return Ignored
	case context.DeadlineExceeded:
		if b.now()-call.start < int64(b.cfg.Load().SlowCall) {
			return Ignored
		}
	}
	return Failure
}

// ForceOpen refuses every call until [Breaker.Reset].
func (b *Breaker) ForceOpen() { b.force(ForcedOpen) }

// ForceClosed lets every call pass until [Breaker.Reset]. The calls are counted, but only for [Stats].
func (b *Breaker) ForceClosed() { b.force(ForcedClosed) }

// Disable lets every call pass, uncounted, until [Breaker.Reset].
func (b *Breaker) Disable() { b.force(Disabled) }

// Reset closes the breaker, whatever its state, and forgets what it counted. The next open time is the first one
// again.
func (b *Breaker) Reset() { b.force(Closed) }

func (b *Breaker) force(s State) {
	if b.fixed {
		return
	}
	b.mu.Lock()
	defer b.tell()
	defer b.mu.Unlock()
	b.last, b.closedAt = 0, 0
	b.become(b.newPhase(s, b.now()), CauseManual, 0)
}

// Settings returns the current settings.
func (b *Breaker) Settings() Settings { return b.cfg.Load().Settings }

// Set applies options to a breaker that is in use. If one is out of its range, Set returns an error and changes
// nothing. Limits hold from the next call; an opening that has begun keeps its open time and its probes. A new window
// or slow-call time, and turning [WithMinClients] on or off, restarts the counts of a closed breaker. [WithName] has
// no effect.
func (b *Breaker) Set(opts ...Option) error {
	if b.fixed {
		return errors.New("breaker: Set: the key found no place in its group; give the group more by WithKeys")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	c := *b.cfg.Load()
	if err := c.apply(opts); err != nil {
		return errors.New("breaker: Set: " + err.Error())
	}
	b.set(&c)
	return nil
}

// set puts c in force. The caller holds mu.
func (b *Breaker) set(c *config) {
	was := b.cfg.Swap(c)
	if was.Window == c.Window && was.SlowCall == c.SlowCall && (was.MinClients > 0) == (c.MinClients > 0) {
		return
	}
	if p := b.phase.Load(); p.state == Closed || p.state == ForcedClosed {
		q := b.newPhase(p.state, b.now())
		q.since, q.rampEnd = p.since, p.rampEnd
		b.phase.Store(q)
	}
}

// jittered returns d made longer or shorter by up to share of it.
func jittered(d time.Duration, share float64) time.Duration {
	return time.Duration(float64(d) * (1 + share*(2*rand.Float64()-1)))
}

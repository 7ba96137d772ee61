package limiter

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// Request describes the work that a permit is wanted for. The zero value is a request of weight 1 and middle priority
// that arrives now.
type Request struct {
	// Priority decides who is next in the queue: higher is sooner. The range is -8 to 7; a value outside it counts as
	// the nearest end. A level is worth the time set with [WithPriorityStep], so that nobody waits for ever: a request
	// waits behind one of a higher priority only if that one came less than step times the difference in priority after
	// it.
	Priority int
	// Weight is how many permits the work takes; less than 1 means 1. A weight above the limit counts as the limit, so
	// the work runs alone.
	Weight int
	// Client is who asks. While requests of different clients wait, the clients share the permits evenly, however many
	// requests each of them sends; priority orders the requests of one client. The empty string is a client like any
	// other. A client that joins the queue waits until each client that is already there has had a turn. If that takes
	// longer than a request may wait, or if there are more clients than places, it is refused like the others. A few
	// clients that flood the queue are enough for that where the queue is short under overload: with [WithCoDel], and on
	// an adaptive limiter. A fixed limit shares evenly if its queue has room for a few requests of each client.
	Client string
	// Arrived is when the request arrived, with a monotonic reading; if it is zero, the clock is read if the time is
	// needed. It saves a clock read if the caller has read the clock already. On an adaptive limiter the time in service
	// of work that is admitted at once begins at Arrived, so read the clock just before Acquire. A time decades away
	// from now counts as zero.
	Arrived time.Time
	// Work is how long the work is expected to take; 0 means not known. Acquire refuses a request whose context leaves
	// less time than this with [ErrWouldMissDeadline]. It also refuses one that waits, as soon as the time left is less.
	Work time.Duration
}

// Permit is the right to do one piece of work. It is a small value that may be copied. The zero Permit is a permit
// for nothing; it may be released.
type Permit struct {
	slot *concSlot
	gen  uint64
}

// concSlot is what a permit in flight points to. Slots are used again; gen tells a
// permit from an earlier one in the same slot, which makes a second Release a no-op.
// The fields belong to the goroutine that got the slot, then to the one whose Release
// moved gen on.
//
// It fills a cache line, so that slots of different processors share none.
type concSlot struct {
	gen     atomic.Uint64
	c       *Concurrency
	cell    uint16
	born    uint8 // the place of the period in which an adaptive one admitted it
	charged bool
	lags    uint8 // for how many requests lag stands; 0 is not measured
	coming  bool  // counted in adaptive.coming
	late    bool  // something has come between Acquire and the work
	nth     uint8 // of the requests that an adaptive one admitted, about
	weight  int64 // less than 0 while what it holds is others'
	start   time.Duration
	client  *queueClient  // whom to charge; nil for work that did not wait
	cost    time.Duration // what Charge was told
	guess   float32       // what the client was charged to begin with
	lag     float32       // from start until the work began, ns; where lags is 0, how long it was at work before start
}

var (
	concSlots    = sync.Pool{New: func() any { return &concSlot{cell: uint16(concNextCell.Add(1))} }}
	concNextCell atomic.Uint32
)

// concWaiting is set in Concurrency.state while the line is not empty, so that one load
// or add tells both whether there is room and whether anybody has to be told. Only who holds the lock sets it, or takes it away.
const concWaiting = 1 << 62

// concMost is the highest limit. What thousands add at the same time to see that there is no room stays far below concWaiting.
const concMost = 1 << 50

// concCell holds the counters of some of the permits, on cache lines of its own.
type concCell struct {
	admitted atomic.Int64    // of a fixed limit
	done     [3]atomic.Int64 // of an adaptive one without the successes
	squares  atomic.Uint64   // square of the time in service of successes, in units of 1,024 ns
	lag      atomic.Int64    // time in service before the work began, ns, by sample, whatever came of it
	lags     atomic.Int64    // for how many the sample stands
	heavy    atomic.Uint64   // time in service of successes by weight, as far as that is beyond 1, in units of 1,024 ns
	lost     atomic.Uint64   // and of all else, by weight
	_        [128 - 72]byte
}

// Concurrency limits how much work is in flight, by permits. Work that finds no permit waits in a bounded queue, or
// is refused at once with an [*Error] that wraps [ErrSaturated] or [ErrWouldMissDeadline].
//
// The limit is fixed ([NewConcurrency]) or found by experiment ([NewAdaptive]). Both can be changed at run time. Work
// in flight never weighs more than the limit, except for work that was admitted before the limit was lowered, and
// work that paused and goes on ([Permit.Resume], [Concurrency.Give]).
//
// Taking a permit when there is room costs one atomic add on shared memory and allocates nothing. No lock is held
// while a hook of the caller runs. A Concurrency has no goroutine and need not be closed. The zero value does not
// work. It is safe for concurrent use.
type Concurrency struct {
	state  atomic.Int64 // weight in flight, and concWaiting
	idleAt atomic.Int64 // of an adaptive one: since when nothing is in flight; 0 is something is
	idle   atomic.Int64 // and for how long nothing was before that, in all
	paused atomic.Int64 // and how many permits are paused
	_      [32]byte
	limit  atomic.Int64
	adapt  *adaptive // nil: the limit is fixed
	cells  []concCell
	base   time.Time
	conf   concConfig

	mu      sync.Mutex
	line    queueLine
	places  int           // how many may wait
	bound   time.Duration // how long each may
	free    *queueWaiter
	nfree   int
	timer   *time.Timer
	timerAt time.Duration // when timer fires; 0 is not armed
	emptied time.Duration // when the line was last seen empty

	seen     time.Duration // when the line was last looked at
	stillAt  time.Duration // since when the process last stood still, as far as that has shown; 0 is never
	stillFor time.Duration

	// gap is the mean time between two grants to the line, per weight, over about the
	// last 32, as far as the line has been there since; service is the mean cost, per weight, of work that was granted from the line.
	gap       float64
	gapOff    float64 // mean distance from gap, likewise
	gaps      int
	lastGrant time.Duration
	service   float64

	shed     [queueReasons]int64
	left     int64
	waited   time.Duration
	granted  int64
	refused  atomic.Int64 // at once, without the lock
	lastShed atomic.Pointer[Error]
	lastMiss atomic.Pointer[Error]
}

// NewConcurrency returns a limiter that lets at most limit permits be in flight. Without [WithQueue] a request that
// finds no permit is refused at once. It panics if limit is less than 1 or more than 2^50.
//
// A fixed limit does not see work that waits for a processor before it reaches Acquire: it neither bounds that wait
// nor refuses because of it. Where the work computes more than it waits, [NewAdaptive] does (see [WithoutYield]), or
// package pool keeps a processor free.
func NewConcurrency(limit int, opts ...ConcurrencyOption) *Concurrency {
	if limit < 1 || int64(limit) > concMost {
		panic(fmt.Sprintf("limiter: NewConcurrency: limit is %d; it must be from 1 to %d", limit, int64(concMost)))
	}
	return concNew(limit, concConfig{}, opts)
}

func concNew(limit int, conf concConfig, opts []ConcurrencyOption) *Concurrency {
	conf.step = 100 * time.Millisecond
	conf.clients = 1024
	for i, o := range opts {
		if o == nil {
			panic(fmt.Sprintf("limiter: option %d of a Concurrency is nil; leave it out", i))
		}
		o.applyConcurrency(&conf)
	}
	n := 1
	for n < 2*runtime.GOMAXPROCS(0) && n < 64 {
		n *= 2
	}
	c := &Concurrency{
		conf:   conf,
		cells:  make([]concCell, n),
		base:   time.Now(),
		places: conf.places,
		bound:  conf.maxWait,
	}
	c.limit.Store(int64(limit))
	c.line.init(conf.step, conf.clients)
	return c
}

// concEra is how far from when a limiter was made no time can be that somebody has just read.
const concEra = 20 * 365 * 24 * time.Hour

// since is t as time since base; the clock is read where t is zero, and where it cannot be right.
func (c *Concurrency) since(t time.Time) time.Duration {
	if !t.IsZero() {
		if d := t.Sub(c.base); -concEra < d && d < concEra {
			return d
		}
	}
	return time.Since(c.base)
}

// arrival is when r arrived, where it is now.
func (c *Concurrency) arrival(r *Request, now time.Duration) time.Duration {
	if r.Arrived.IsZero() {
		return now
	}
	return min(c.since(r.Arrived), now)
}

func concWeight(r *Request) int64 {
	if r.Weight < 1 {
		return 1
	}
	return int64(r.Weight)
}

// Acquire takes a permit for r. If there is none and the limiter has a queue, it waits until a permit is granted, ctx
// ends, or the bound of the queue is reached.
//
// The error is an [*Error] that wraps [ErrSaturated] or [ErrWouldMissDeadline], or what ctx.Err returns if ctx ended
// before there was a permit. Acquire takes a permit that is free even if ctx has ended already. On an adaptive
// limiter Acquire lets other goroutines run before it returns (see [WithoutYield]).
func (c *Concurrency) Acquire(ctx context.Context, r Request) (Permit, error) {
	vain := r.Work > 0 && c.inVain(ctx, &r)
	if vain {
		if err := c.refuseInVain(&r); !c.conf.shadow {
			return Permit{}, err
		}
	}
	if c.conf.shadow {
		return c.shadow(&r, vain), nil
	}
	var now time.Duration
	a := c.adapt
	if a != nil {
		if a.shut() {
			return c.wait(ctx, &r)
		}
		now = c.since(r.Arrived)
	}
	p, ok := c.take(concWeight(&r), now)
	if !ok {
		return c.wait(ctx, &r)
	}
	if c.conf.trace.Admitted != nil {
		p.slot.late = true
		c.admitted(p, &r, 0)
	}
	if a != nil && a.yield {
		a.comes(p.slot)
		c.yield(p.slot)
	}
	return p, nil
}

// yield lets others run before the work in s begins. While one of several requests is enough to see
// that nobody waits, the others are spared.
func (c *Concurrency) yield(s *concSlot) {
	switch every := c.adapt.every.Load(); {
	case every > 1 && int64(s.nth)&(every-1) == 0:
		s.pause(uint8(every))
		c.adapt.saw(time.Duration(s.lag))
		s.lag /= float32(every) // the others did not wait
	case every > 1:
	case s.nth&7 == 0:
		s.pause(8) // a sample is enough to know how long it takes
	default:
		s.late = true
		runtime.Gosched()
	}
	c.begin(s)
}

// begin lets the next one come if s was on its way to a processor.
func (c *Concurrency) begin(s *concSlot) {
	if !s.coming {
		return
	}
	s.coming = false
	c.adapt.coming.Add(-1)
	if c.state.Load()&concWaiting != 0 {
		c.handOn()
	}
}

// pause lets whatever is runnable run, so that it is admitted or queued too before the
// work begins. How long that took since the permit was given tells how many of those in flight
// only wait for a processor. It stands for the wait of n requests.
func (s *concSlot) pause(n uint8) {
	s.late = true
	runtime.Gosched()
	s.lag, s.lags = float32(time.Since(s.c.base)-s.start), n
}

// TryAcquire takes a permit for r if there is one and nobody waits for it. It neither waits nor yields.
func (c *Concurrency) TryAcquire(r Request) (Permit, bool) {
	if c.conf.shadow {
		return c.shadow(&r, false), true
	}
	var now time.Duration
	if c.adapt != nil {
		now = c.since(r.Arrived)
	}
	p, ok := c.take(concWeight(&r), now)
	if ok {
		if c.conf.trace.Admitted != nil {
			c.admitted(p, &r, 0)
		}
		return p, true
	}
	c.refuseAtOnce(&r)
	return Permit{}, false
}

// refuseAtOnce refuses without a look at the line.
func (c *Concurrency) refuseAtOnce(r *Request) error {
	var err error
	if c.adapt == nil && c.places == 0 {
		c.refused.Add(1)
		err = errFull
	} else {
		c.mu.Lock()
		if c.adapt != nil {
			c.adapt.knocked(false)
		}
		err = c.refuse(queueFull)
		c.mu.Unlock()
	}
	if h := c.conf.trace.Shed; h != nil {
		h(*r, err, 0)
	}
	return err
}

// errFull is the refusal of a limiter without a line, which knows no times.
var errFull = &Error{Err: ErrSaturated}

// admitted tells the trace.
func (c *Concurrency) admitted(p Permit, r *Request, waited time.Duration) {
	p.tell(func() { c.conf.trace.Admitted(*r, waited) })
}

// tell calls a hook. If that panics nobody else will release the permit.
func (p Permit) tell(hook func()) {
	told := false
	defer func() {
		if !told {
			p.Release(Ignored)
		}
	}()
	hook()
	told = true
}

// inVain reports that ctx leaves r less than its work takes.
func (c *Concurrency) inVain(ctx context.Context, r *Request) bool {
	t, ok := ctx.Deadline()
	return ok && time.Until(t) < r.Work
}

// refuseInVain refuses whatever the room. It says nothing about the limit, so that none is learned from it.
func (c *Concurrency) refuseInVain(r *Request) error {
	c.mu.Lock()
	c.shed[queueDeadline]++
	err := c.refusal(queueDeadline)
	c.mu.Unlock()
	if h := c.conf.trace.Shed; h != nil {
		h(*r, err, 0)
	}
	return err
}

// take is the whole of Acquire when there is room and nobody waits.
func (c *Concurrency) take(weight int64, now time.Duration) (Permit, bool) {
	if weight = c.room(weight); weight == 0 {
		return Permit{}, false
	}
	return c.permit(weight, now), true
}

// permit makes a permit of weight that has been taken. The lock is not held.
func (c *Concurrency) permit(weight int64, now time.Duration) Permit {
	if a := c.adapt; a != nil && int64(now) >= a.stale.Load() {
		a.rouse(c, now)
	}
	s := c.newSlot(weight, now)
	return Permit{s, s.gen.Load()}
}

// room takes weight, or the limit if that is less, if there is room for it and nobody waits, or
// nothing is refused; it returns how much it took.
func (c *Concurrency) room(weight int64) int64 {
	limit := c.limit.Load()
	weight = min(weight, limit)
	if c.state.Load()+weight > limit && !c.conf.shadow {
		return 0
	}
	if c.state.Add(weight) > limit && !c.conf.shadow {
		c.giveBack(weight)
		return 0
	}
	return weight
}

// shadow is Acquire where nothing is refused: it counts and tells what would have been, unless r has been counted as shed already.
func (c *Concurrency) shadow(r *Request, counted bool) Permit {
	var now time.Duration
	if c.adapt != nil {
		now = c.since(r.Arrived)
	}
	limit := c.limit.Load()
	weight := min(concWeight(r), limit)
	over := c.state.Add(weight) - limit
	p := c.permit(weight, now)
	s := p.slot
	if over > 0 && !counted {
		err := c.wouldShed(over)
		if h := c.conf.trace.Shed; h != nil && err != nil {
			s.late = true
			p.tell(func() { h(*r, err, 0) })
		}
	}
	if c.conf.trace.Admitted != nil {
		s.late = true
		c.admitted(p, r, 0)
	}
	return p
}

// wouldShed counts a request that is so much over the limit where nothing is refused; it returns what it would have been
// refused with, or nil if it would have waited.
func (c *Concurrency) wouldShed(over int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.adapt != nil {
		c.adapt.knocked(false)
	}
	if over > int64(c.places) {
		return c.refuse(queueFull)
	}
	return nil
}

func (c *Concurrency) newSlot(weight int64, now time.Duration) *concSlot {
	s := concSlots.Get().(*concSlot)
	s.c, s.weight, s.start, s.client, s.charged, s.lags, s.lag, s.coming, s.late = c, weight, now, nil, false, 0, 0, false, false
	index := c.index(s)
	if c.adapt == nil {
		c.cells[index].admitted.Add(1)
		return s
	}
	c.adapt.admits(index, s)
	if c.idleAt.Load() != 0 {
		c.busy(now)
	}
	return s
}

// rests says that nothing is in flight any more.
func (c *Concurrency) rests(now time.Duration) {
	c.idleAt.Store(int64(now))
	if c.state.Load() != 0 {
		c.busy(now)
	}
}

// busy says that something is in flight again.
func (c *Concurrency) busy(now time.Duration) {
	if at := c.idleAt.Swap(0); at != 0 {
		c.idle.Add(max(int64(now)-at, 0))
	}
}

func (c *Concurrency) cell(s *concSlot) *concCell { return &c.cells[c.index(s)] }

func (c *Concurrency) index(s *concSlot) int { return int(s.cell) & (len(c.cells) - 1) }

// giveBack returns weight to the limiter and grants it to whoever waits.
func (c *Concurrency) giveBack(weight int64) {
	if c.state.Add(-weight)&concWaiting != 0 {
		c.handOn()
	}
}

// handOn grants what has come free to whoever waits.
func (c *Concurrency) handOn() {
	now := time.Since(c.base)
	c.mu.Lock()
	woken := c.dispatch(now)
	c.mu.Unlock()
	concWake(woken)
}

// Release gives the permit back and says how the work ended. Every permit must be
// released; a second Release, of this permit or of a copy, is a no-op.
func (p Permit) Release(o Outcome) { p.ReleaseAt(o, time.Time{}) }

// ReleaseAt is [Permit.Release] for a caller that has just read the clock. If the time is zero, or decades away from
// now, the clock is read if needed.
func (p Permit) ReleaseAt(o Outcome, now time.Time) {
	s := p.slot
	if s == nil || !s.gen.CompareAndSwap(p.gen, p.gen+1) {
		return
	}
	c := s.c
	var at time.Duration
	if c.adapt != nil || s.client != nil {
		at = c.since(now)
	}
	woken, from, to := c.release(s, o, at)
	concWake(woken)
	if h := c.conf.trace.Limit; h != nil && from != to {
		h(from, to)
	}
}

// AtOnce reports whether Acquire neither waited, nor yielded, nor called a trace. If so, a time that the caller read
// just before, for Request.Arrived, is still the time now. It must not be called after Release.
func (p Permit) AtOnce() bool { return p.slot != nil && !p.slot.late }

// Charge sets what the work counts as in its client's share, for example its CPU time, in place of its weight times
// the time until Release. Several charges add up. It must not be called after Release, or at the same time as
// Release. It has no effect on work that did not have to wait: while there is room for all, no shares are kept.
func (p Permit) Charge(cost time.Duration) {
	if s := p.slot; s != nil && s.gen.Load() == p.gen && s.client != nil {
		s.cost, s.charged = s.cost+cost, true
	}
}

// release is ReleaseAt for the one that won the slot; now is 0 if nothing has needed it so
// far. It returns who has to be told, and what the limit was and is.
func (c *Concurrency) release(s *concSlot, o Outcome, now time.Duration) (woken *queueWaiter, from, to int) {
	index := c.index(s)
	cell := &c.cells[index]
	o = min(o, Ignored)
	if o != Success || c.adapt == nil {
		cell.done[o].Add(1)
	}
	weight, client, born, start := s.weight, s.client, s.born, s.start
	took := max(now-start, 0)
	lag, lags := int64(s.lag), int64(s.lags)
	paused := weight < 0
	if paused {
		weight, took = -weight, 0
	}
	var cost, guess float64
	charged := s.charged
	if client != nil {
		cost, guess = s.had(took), float64(s.guess)
	}
	if s.coming { // it will not begin
		c.adapt.coming.Add(-1)
	}
	s.c, s.client = nil, nil
	concSlots.Put(s)
	due, turn := false, false
	if a := c.adapt; a != nil {
		if paused {
			c.paused.Add(-1)
		} else {
			a.ends(index, born, start)
		}
		if lags == 0 {
			took += time.Duration(lag)
		}
		if o == Success {
			a.cells[index].add(int64(took))
			u := uint64(min(took, time.Minute)) >> 10
			cell.squares.Add(u * u)
			if weight > 1 {
				cell.heavy.Add(uint64(took) >> 10 * uint64(weight-1))
			}
		} else {
			cell.lost.Add(uint64(took) >> 10 * uint64(weight))
			a.ages[index].failed[timesCell(int64(took))].Add(1)
		}
		if lags != 0 {
			cell.lag.Add(lag * lags)
			cell.lags.Add(lags)
		}
		due = int64(now) >= a.next.Load() && a.lacks.Add(-1) <= 0
		turn = int64(now) >= a.tick.Load()
	}
	waiting := false
	if !paused {
		left := c.state.Add(-weight)
		if left == 0 && c.adapt != nil {
			c.rests(now)
		}
		waiting = left&concWaiting != 0
	}
	if !waiting && client == nil {
		// A window that is due can wait for the next release if somebody else is at it.
		if !due && !turn || !c.mu.TryLock() {
			return nil, 0, 0
		}
	} else {
		if now == 0 {
			now = time.Since(c.base)
		}
		c.mu.Lock()
	}
	if c.stoodStill(now) {
		due = false
	}
	if client != nil {
		if !charged {
			cost = max(cost-float64(weight)*float64(c.stood(start)), 0)
		}
		c.line.charge(client, cost-guess)
		if o != Ignored {
			if c.service == 0 {
				c.service = cost / float64(weight) // no need to creep up on it
			}
			c.service += (cost/float64(weight) - c.service) / 16
		}
	}
	if due {
		from, to = c.adapt.close(c, now)
	}
	if turn && int64(now) >= c.adapt.tick.Load() {
		c.adapt.turn(now)
	}
	woken = c.dispatch(now)
	c.mu.Unlock()
	return woken, from, to
}

// had is what work that took so long counts as in the share of its client.
func (s *concSlot) had(took time.Duration) float64 {
	if s.charged {
		return float64(s.cost)
	}
	return float64(s.weight) * float64(took)
}

// wait is Acquire when there was no room.
func (c *Concurrency) wait(ctx context.Context, r *Request) (Permit, error) {
	var latest time.Duration
	if c.adapt == nil && c.places == 0 {
		return Permit{}, c.refuseAtOnce(r)
	}
	now := time.Since(c.base)
	if t, ok := ctx.Deadline(); ok {
		latest = t.Sub(c.base)
		if rateWall(t) { // and the clock on the wall may have been set since base
			latest = now + min(time.Until(t), math.MaxInt64/2)
		}
		latest = max(latest-r.Work, 1)
	}
	done := ctx.Err()
	c.mu.Lock()
	w, p, woken, err := c.enter(r, now, latest, done)
	c.mu.Unlock()
	concWake(woken)
	waited := time.Duration(0)
	if err == nil && w != nil {
		var vain <-chan time.Time // where that is before ctx ends
		if latest != 0 && r.Work > 0 {
			timer := time.NewTimer(latest - now + 1)
			defer timer.Stop()
			vain = timer.C
		}
		p, err = c.park(ctx, w, vain)
		if t := c.conf.trace; t.Admitted != nil || t.Shed != nil {
			waited = time.Since(c.base) - now
		}
	}
	if err == nil {
		p.slot.late = true
	}
	if err == nil && c.adapt != nil && c.adapt.yield {
		p.slot.pause(1)
		c.begin(p.slot)
		if w != nil {
			// What ran meanwhile may have seen the client leave: nobody is there to work for.
			if err = ctx.Err(); err != nil {
				p.Release(Ignored)
				p = Permit{}
			}
		}
	}
	if err == nil && c.conf.trace.Admitted != nil {
		c.admitted(p, r, waited)
	} else if h := c.conf.trace.Shed; err != nil && h != nil {
		h(*r, err, waited)
	}
	return p, err
}

// enter decides about a request that found no room at first: it gets a permit after all,
// a place in the line (the waiter), or an error. The lock is held.
func (c *Concurrency) enter(r *Request, now, latest time.Duration, done error) (w *queueWaiter, p Permit, woken *queueWaiter, err error) {
	woken = c.dispatch(now)
	weight := concWeight(r)
	if c.line.n == 0 {
		c.emptied = now
		if limit := c.limit.Load(); c.state.Load()+min(weight, limit) <= limit && !c.shut() {
			if p, ok := c.takeLocked(weight, now); ok {
				if a := c.adapt; a != nil {
					a.comes(p.slot)
				}
				return nil, p, woken, nil
			}
		}
	}
	if a := c.adapt; a != nil {
		limit := c.limit.Load()
		a.knocked(c.state.Load()&^concWaiting+min(weight, limit) <= limit)
	}
	if done != nil {
		c.left++
		return nil, Permit{}, woken, done
	}
	if c.places <= 0 || c.bound <= 0 {
		return nil, Permit{}, woken, c.refuse(queueFull)
	}
	client := c.line.clientFor(r.Client)
	level := queueLevel(r.Priority)
	size := min(weight, c.limit.Load())
	if latest != 0 && (now > latest || c.late(client, level, size, now, latest)) {
		return nil, Permit{}, woken, c.refuse(queueDeadline)
	}
	w = c.waiter()
	w.level, w.weight, w.size, w.entered, w.arrived, w.latest = level, weight, size, now, c.arrival(r, now), latest
	c.line.push(w, client)
	c.awaited(w, now)
	if c.line.n-c.line.kept > c.places {
		v := c.line.victim(client)
		if v == w {
			c.line.remove(w)
			c.recycle(w)
			err := c.refuse(queueFull)
			return nil, Permit{}, concJoin(c.dispatch(now), woken), err
		}
		woken = c.drop(v, queueEvicted, woken)
	}
	// A permit may have come back before the line was seen to have somebody in it.
	woken = concJoin(c.dispatch(now), woken)
	return w, Permit{}, woken, nil
}

// awaited sets the sign that somebody waits when w has joined the line. The lock is held.
func (c *Concurrency) awaited(w *queueWaiter, now time.Duration) {
	if c.state.Load()&concWaiting != 0 {
		return
	}
	if float64(now-c.lastGrant) > c.gap*float64(w.size) {
		c.gaps = 0 // nobody waited for as long as it was thought to take until there is room for w: that was another time
	}
	c.lastGrant = now
	c.state.Add(concWaiting)
}

// waiter returns a waiter to fill in. The lock is held.
func (c *Concurrency) waiter() *queueWaiter {
	w := c.free
	if w == nil {
		return &queueWaiter{ready: make(chan struct{}, 1)}
	}
	c.free = w.wake
	c.nfree--
	w.wake = nil
	return w
}

func (c *Concurrency) takeLocked(weight int64, now time.Duration) (Permit, bool) {
	limit := c.limit.Load()
	weight = min(weight, limit)
	if c.state.Add(weight) > limit {
		c.state.Add(-weight)
		return Permit{}, false
	}
	s := c.newSlot(weight, now)
	return Permit{s, s.gen.Load()}, true
}

// park waits for the decision about w, which waits in vain once something comes from vain.
func (c *Concurrency) park(ctx context.Context, w *queueWaiter, vain <-chan time.Time) (Permit, error) {
	var err error
	select {
	case <-w.ready:
	case <-vain:
		c.giveUp(w)
		<-w.ready
	case <-ctx.Done():
		err = ctx.Err()
		now := time.Since(c.base)
		c.mu.Lock()
		c.stoodStill(now)
		if w.queued {
			c.line.remove(w)
			c.left++
			if s := w.kept; s != nil {
				c.forget(s)
			}
			c.recycle(w)
			// With the one that held its place open gone, there may be room for the next.
			woken := c.dispatch(now)
			c.mu.Unlock()
			concWake(woken)
			return Permit{}, err
		}
		c.mu.Unlock()
		<-w.ready // decided in the meantime
	}
	c.mu.Lock()
	s, reason := w.slot, w.reason
	w.slot = nil
	c.recycle(w)
	var refusal error
	if s == nil {
		refusal = c.refusal(reason)
	}
	c.mu.Unlock()
	switch {
	case s == nil: // also where ctx ended since: it was counted as that
		return Permit{}, refusal
	case err != nil:
		Permit{s, s.gen.Load()}.Release(Ignored)
		return Permit{}, err
	}
	return Permit{s, s.gen.Load()}, nil
}

// giveUp sends w away, which could not begin in time any more, if that has not been decided yet.
func (c *Concurrency) giveUp(w *queueWaiter) {
	now := time.Since(c.base)
	c.mu.Lock()
	c.stoodStill(now)
	var woken *queueWaiter
	if w.queued {
		woken = c.drop(w, queueDeadline, nil)
		woken = concJoin(c.dispatch(now), woken)
	}
	c.mu.Unlock()
	concWake(woken)
}

// dispatch drops whoever has waited too long and grants permits to those who are next,
// as far as there is room. Nobody is granted a permit past the one who is next, however
// light: that keeps room open for heavy work. The lock is held.
func (c *Concurrency) dispatch(now time.Duration) (woken *queueWaiter) {
	c.stoodStill(now)
	if c.line.n == 0 {
		c.settled(now)
		return nil
	}
	c.regime(now)
	for w := c.line.oldest; w != nil && now-w.entered > c.bound; w = c.line.oldest {
		woken = c.drop(w, queueExpired, woken)
	}
	for c.line.n > 0 {
		w := c.line.head()
		if w.latest != 0 && now > w.latest {
			woken = c.drop(w, queueDeadline, woken)
			continue
		}
		if !c.grant(w, now) {
			break
		}
		w.wake, woken = woken, w
	}
	if c.line.n == 0 {
		c.settled(now)
	} else {
		c.arm(now)
	}
	return woken
}

// shut says that nobody is let in because enough are on their way to a processor.
func (c *Concurrency) shut() bool { return c.adapt != nil && c.adapt.shut() }

// grant gives w a permit and takes it out of the line, if there is room for it. The lock is held.
func (c *Concurrency) grant(w *queueWaiter, now time.Duration) bool {
	limit := c.limit.Load()
	weight := min(w.weight, limit)
	if c.state.Load()&^concWaiting+weight > limit || c.shut() {
		return false
	}
	if c.state.Add(weight)&^concWaiting > limit {
		// Somebody's add is in the way who will take it back and then come here.
		c.state.Add(-weight)
		return false
	}
	gap := float64(max(now-c.lastGrant, 0)) / float64(weight)
	c.gaps = min(c.gaps+1, 32)
	c.gap += (gap - c.gap) / float64(c.gaps)
	c.gapOff += (math.Abs(gap-c.gap) - c.gapOff) / float64(c.gaps)
	c.hand(w, weight, now)
	return true
}

// hand gives w, which is in the line, a permit of a weight that has been taken for it. The lock is held.
func (c *Concurrency) hand(w *queueWaiter, weight int64, now time.Duration) {
	c.lastGrant = now
	client := w.client
	c.line.remove(w)
	s := w.kept
	if s != nil {
		c.goesOn(s, weight, now)
	} else {
		s = c.newSlot(weight, now)
		c.granted++
		c.waited += min(max(now-w.entered, 0), math.MaxInt64-c.waited) // the clock may have been read long before the lock was had
		if c.adapt != nil {
			c.adapt.comes(s)
		}
	}
	s.client, s.cost, s.guess = client, 0, float32(float64(weight)*max(c.service, 1))
	c.line.serve(client, float64(s.guess))
	w.slot = s
}

// settled takes the sign away that somebody waits.
func (c *Concurrency) settled(now time.Duration) {
	c.emptied = now
	if c.state.Load()&concWaiting != 0 {
		if c.state.Add(-concWaiting) == 0 && c.adapt != nil {
			c.rests(now) // who was the last to wait got nothing
		}
		c.line.settle()
		c.regime(now)
	}
}

// regime sets how long the line may keep anybody, and from which end it is served, for a fixed
// limit. The rule is that of CoDel as used by Facebook ("Fail at Scale", 2015): a line
// that has not been empty for as long as it may keep anybody is a standing queue. Permits that stand back are none: they wait
// outside of its bounds.
func (c *Concurrency) regime(now time.Duration) {
	if c.adapt != nil || c.conf.target <= 0 {
		return
	}
	if c.line.n == c.line.kept {
		c.emptied = now
	}
	c.line.lifo = now-c.emptied > c.conf.maxWait
	c.bound = c.conf.maxWait
	if c.line.lifo {
		c.bound = c.conf.target
	}
}

// drop sends a waiter away.
func (c *Concurrency) drop(w *queueWaiter, reason queueReason, woken *queueWaiter) *queueWaiter {
	c.line.remove(w)
	w.reason = reason
	c.count(reason)
	w.wake = woken
	return w
}

func (c *Concurrency) count(reason queueReason) {
	c.shed[reason]++
	if c.adapt != nil {
		c.adapt.turned()
	}
}

// refuse counts and returns a refusal.
func (c *Concurrency) refuse(reason queueReason) error {
	c.count(reason)
	return c.refusal(reason)
}

// refusal returns the error for a reason. Errors are the same value as long as they say
// the same, so that refusing allocates next to nothing.
func (c *Concurrency) refusal(reason queueReason) error {
	sentinel, last := ErrSaturated, &c.lastShed
	if reason == queueDeadline {
		sentinel, last = ErrWouldMissDeadline, &c.lastMiss
	}
	after := c.retryAfter()
	if e := last.Load(); e != nil && e.RetryAfter == after {
		return e
	}
	e := &Error{Err: sentinel, RetryAfter: after}
	last.Store(e)
	return e
}

// retryAfter is when the line as it is now will have been served, rounded up to two
// significant binary digits; 0 if nothing has ever waited.
func (c *Concurrency) retryAfter() time.Duration {
	d := time.Duration(min(c.gap*float64(c.line.size+1), float64(time.Minute)))
	unit := time.Millisecond
	for unit*4 < d {
		unit *= 2
	}
	return min((d+unit-1)/unit*unit, time.Minute)
}

// late reports that a newcomer would begin too late, by what is ahead of it.
func (c *Concurrency) late(client *queueClient, level int, size int64, now, latest time.Duration) bool {
	if c.line.n == 0 || c.gaps < 8 {
		return false
	}
	left := float64(latest - now)
	return c.expected(c.line.size, size, now) > left && c.expected(c.line.ahead(client, level, size), size, now) > left
}

// expected is how long a newcomer has to wait, ns: until that much weight and its own have been granted.
// Under a lasting overload the line is as long as this lets it
// become, so that everybody in it is a borderline case. So as not to send one in two of them
// away after it has waited in vain, it is the mean and two and a half standard deviations (of which
// one is 1.25 of the mean distance).
func (c *Concurrency) expected(ahead, size int64, now time.Duration) float64 {
	n, own := float64(ahead), float64(size)
	mean := c.gap*n + max(c.gap*own-float64(now-c.lastGrant), 0)
	return mean + 3*c.gapOff*math.Sqrt((n+own)*own)
}

func (c *Concurrency) recycle(w *queueWaiter) {
	w.client, w.kept = nil, nil
	if c.nfree < c.places {
		w.wake, c.free = c.free, w
		c.nfree++
	}
}

// concWake tells those who were granted a permit or sent away. No lock is held.
func concWake(w *queueWaiter) {
	for w != nil {
		next := w.wake
		w.wake = nil
		w.ready <- struct{}{}
		w = next
	}
}

func concJoin(a, b *queueWaiter) *queueWaiter {
	if a == nil {
		return b
	}
	last := a
	for last.wake != nil {
		last = last.wake
	}
	last.wake = b
	return a
}

// arm makes sure that the timer fires when the oldest waiter has waited long enough.
func (c *Concurrency) arm(now time.Duration) {
	if c.line.oldest == nil {
		return // only permits that stand back, and these wait without an end
	}
	at := c.line.oldest.entered + min(c.bound, math.MaxInt64/2) + 1
	if c.timerAt != 0 && c.timerAt <= at {
		return
	}
	c.timerAt = at
	if c.timer == nil {
		c.timer = time.AfterFunc(at-now, c.expire)
	} else {
		c.timer.Reset(at - now)
	}
}

func (c *Concurrency) expire() {
	now := time.Since(c.base)
	c.mu.Lock()
	c.stoodStill(now)
	c.timerAt = 0
	woken := c.dispatch(now)
	c.mu.Unlock()
	concWake(woken)
}

// concStill is how long nobody has looked at the line since its timer was due, at least, if the process has stood still: stopped by a signal or a debugger,
// frozen with its container, or moved with its machine. The timer alone may be as late where a hundred goroutines compute: its own waits for a
// processor behind them. But of those there is always one that comes by.
const concStill = 500 * time.Millisecond

// concStirs is how many times as long as it stood still the process has to have run since for an adaptive limit to pass over the next time. If it hardly
// ever runs, that is what it is like.
const concStirs = 4

// stoodStill reports that the process has stood still, which is found out once. What shows it is that the timer of the line is overdue and nobody
// has seen that before: all else could be a service that hangs. The lock is held.
func (c *Concurrency) stoodStill(now time.Duration) bool {
	due, from := c.timerAt, max(c.timerAt, c.seen)
	c.seen = max(c.seen, now)
	if now-from < concStill || due <= c.stillAt || c.timer == nil {
		return false
	}
	again := from-c.stillAt-c.stillFor < concStirs*c.stillFor
	c.stillAt, c.stillFor = from, now-from
	c.lastGrant = max(c.lastGrant, now)
	if c.adapt == nil || again {
		return false
	}
	c.adapt.stoodStill(c)
	return true
}

// stood returns for how much of the time since start the process has stood still. The lock is held.
func (c *Concurrency) stood(start time.Duration) time.Duration {
	if start < c.stillAt {
		return c.stillFor
	}
	return 0
}

// Limit returns the current limit.
func (c *Concurrency) Limit() int { return int(c.limit.Load()) }

// SetLimit changes the limit. A higher limit is granted to waiting requests at once; a lower one is reached as work
// ends. An adaptive limiter goes on from n. SetLimit returns an error and changes nothing if n is less than 1 or more
// than 2^50, or outside the limits of an adaptive limiter.
func (c *Concurrency) SetLimit(n int) error {
	if n < 1 || int64(n) > concMost {
		return fmt.Errorf("limiter: SetLimit: limit is %d; it must be from 1 to %d", n, int64(concMost))
	}
	if a := c.adapt; a != nil && (n < a.least || n > a.most) {
		return fmt.Errorf("limiter: SetLimit: limit is %d; it must be from %d to %d, see WithLimits", n, a.least, a.most)
	}
	now := time.Since(c.base)
	c.mu.Lock()
	old := c.limit.Swap(int64(n))
	if c.adapt != nil {
		c.adapt.restart(c, n, now)
	}
	woken := c.dispatch(now)
	c.mu.Unlock()
	concWake(woken)
	if h := c.conf.trace.Limit; h != nil && int(old) != n {
		h(int(old), n)
	}
	return nil
}

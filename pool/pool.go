package pool

import (
	"fmt"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spillgate/spillgate/limiter"
)

// Pool bounds how much CPU-bound work runs at the same time. Work that finds no slot waits in a queue that is bounded in
// length and time, shared fairly between clients and ordered by priority within each. Work that would come too late is
// refused.
//
// A Pool has no goroutine of its own and needs no Close. The zero value does not work; use [New]. A Pool is safe for
// concurrent use.
type Pool struct {
	line   *limiter.Concurrency
	base   time.Time
	kinds  kinds
	conf   config
	fixed  bool                          // the number of slots was set and does not follow GOMAXPROCS; under mu
	extra  atomic.Pointer[Overcommitted] // work runs on threads of its own
	look   atomic.Int64                  // ns since base: when GOMAXPROCS is to be read again
	beyond atomic.Bool                   // more may be taken than there are slots: see exceeded
	mu     sync.Mutex                    // held to change the number of slots

	draining atomic.Bool   // Shutdown was called
	stopped  atomic.Bool   // the time for draining is over
	had      int           // the slots there were then; once stopped is set
	idle     chan struct{} // closed when nothing waits or runs any more
	once     sync.Once

	_     [64]byte
	crews crews // written by Maps alone

	_       [64]byte         // what stands below is written all the time while there is a queue
	waiting [16]atomic.Int64 // by priority, lowest first
	shares  shares
	late    atomic.Int64 // tasks that were late by their own deadline and that the queue has not counted so
	left    atomic.Int64 // tasks whose context ended before they had a slot; the queue counts those too that are late or stood back
	paused  atomic.Int32 // tasks that have given their slot up until they go on
	crowded atomic.Int32 // how many waiters are not to make way: see makeWay
}

// Option sets one thing about a [Pool].
type Option interface{ applyPool(*config) }

type config struct {
	slots   int
	reserve int
	length  int
	maxWait time.Duration
	step    time.Duration
	share   int
}

type poolOption func(*config)

func (f poolOption) applyPool(c *config) { f(c) }

// maxSlots keeps what a task takes within 32 bits, and twice the slots within an int.
const maxSlots = 1<<30 - 1

// WithSlots sets a fixed number of slots that does not follow GOMAXPROCS. It panics if n is less than 1, or 2^30 or
// more.
func WithSlots(n int) Option {
	if n < 1 || n > maxSlots {
		panic(fmt.Sprintf("pool: WithSlots(%d): a pool has from 1 to %d slots", n, maxSlots))
	}
	return poolOption(func(c *config) { c.slots = n })
}

// WithReserve sets how many of GOMAXPROCS the pool leaves to everything else; the default is 1. The pool always has at
// least 1 slot. With 0 it may take every core, which costs all other goroutines up to 10 ms each time they wait for the
// network. WithReserve panics if n is negative.
func WithReserve(n int) Option {
	if n < 0 {
		panic(fmt.Sprintf("pool: WithReserve(%d): the reserve is 0 or more", n))
	}
	return poolOption(func(c *config) { c.reserve = n })
}

// WithQueue bounds the queue: at most length tasks wait, each for at most maxWait. The default is 256 tasks and
// 30 s. With length 0, a task that finds no slot is refused. When the queue is full, the client that has more than its
// share of it loses a place. WithQueue panics if length is negative or if, with a length, maxWait is not positive.
func WithQueue(length int, maxWait time.Duration) Option {
	if length < 0 {
		panic(fmt.Sprintf("pool: WithQueue: length is %d; it must be 0 (no waiting) or more", length))
	}
	if length > 0 && maxWait <= 0 {
		panic(fmt.Sprintf("pool: WithQueue: maxWait is %v; it must be more than 0", maxWait))
	}
	return poolOption(func(c *config) { c.length, c.maxWait = length, maxWait })
}

// WithClientShare sets how many tasks of one client, as named by [WithClient], may wait at a time; the default is a
// quarter of the queue. Further tasks are refused with [limiter.ErrRateLimited], since it is the client's own share that
// is full. WithClientShare panics if n is less than 1.
func WithClientShare(n int) Option {
	if n < 1 {
		panic(fmt.Sprintf("pool: WithClientShare(%d): the share is at least 1 task", n))
	}
	return poolOption(func(c *config) { c.share = n })
}

// WithPriorityStep sets how much waiting one level of priority is worth; the default is 100 ms. A task overtakes one of
// a lower priority only if it arrived less than step, times the difference of their priorities, after it.
// WithPriorityStep panics if step is negative.
func WithPriorityStep(step time.Duration) Option {
	if step < 0 {
		panic(fmt.Sprintf("pool: WithPriorityStep(%v): the step must not be negative", step))
	}
	return poolOption(func(c *config) { c.step = step })
}

// New returns a pool of GOMAXPROCS-1 slots, at least 1, that follows GOMAXPROCS while it
// runs. See [WithSlots] for a fixed number and [Overcommit] for using every core.
func New(opts ...Option) *Pool {
	c := config{reserve: 1, length: 256, maxWait: 30 * time.Second, step: 100 * time.Millisecond}
	for i, o := range opts {
		if o == nil {
			panic(fmt.Sprintf("pool: New: option %d is nil; leave it out", i))
		}
		o.applyPool(&c)
	}
	switch {
	case c.share > 0:
	case c.length == 0:
		c.share = math.MaxInt // nobody waits, so nobody has too many waiting
	default:
		c.share = max(1, c.length/4)
	}
	p := &Pool{
		base:  time.Now(),
		idle:  make(chan struct{}),
		conf:  c,
		fixed: c.slots > 0,
	}
	slots := c.slots
	if p.fixed {
		p.look.Store(math.MaxInt64)
	} else {
		slots = p.wanted()
		p.look.Store(int64(lookEvery))
	}
	p.kinds.init(p)
	p.line = limiter.NewConcurrency(slots, limiter.WithQueue(c.length, c.maxWait), limiter.WithPriorityStep(c.step))
	return p
}

// now is the time since base: one reading of the monotonic clock only, which costs about
// half of time.Now.
func (p *Pool) now() time.Duration { return time.Since(p.base) }

// at is the time.Time for a reading of now.
func (p *Pool) at(d time.Duration) time.Time { return p.base.Add(d) }

// lookEvery is how often GOMAXPROCS is read: the runtime itself adapts it to the cgroup's
// limit at most once a second.
const lookEvery = time.Second

func (p *Pool) wanted() int { return max(1, runtime.GOMAXPROCS(0)-p.conf.reserve) }

// follow adapts the number of slots to GOMAXPROCS, at most once a second. It runs on the
// path of work with the clock that was read anyway, so that there is nothing to stop.
func (p *Pool) follow(now time.Duration) {
	if int64(now) < p.look.Load() {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fixed || p.stopped.Load() || p.extra.Load() != nil {
		p.look.Store(math.MaxInt64)
		return
	}
	p.look.Store(int64(now + lookEvery))
	if n := p.wanted(); n != p.line.Limit() {
		p.setLimit(n)
	}
}

func (p *Pool) setLimit(slots int) error {
	err := p.line.SetLimit(slots)
	p.beyond.Store(true)
	return err
}

// exceeded reports whether more is taken than there are slots, as where these became fewer. What is taken is only looked at after something that
// can have brought that about.
func (p *Pool) exceeded() bool {
	if !p.beyond.Load() {
		return false
	}
	is := func() bool { return p.line.Stats().InFlight > p.line.Limit() }
	if is() {
		return true
	}
	p.beyond.Store(false)
	if !is() {
		return false
	}
	p.beyond.Store(true) // since
	return true
}

// Resize sets the number of slots, which then no longer follows GOMAXPROCS. Additional slots go to the queue at
// once. A smaller number is reached as tasks end, or as elements of a [Map] outside its caller's slot end. If slots is
// less than 1, or 2^30 or more, or while [Overcommit] decides the number, Resize returns an error and changes nothing.
// Once [Pool.Shutdown] has dropped its tasks, it returns [ErrShutdown].
func (p *Pool) Resize(slots int) error {
	if slots < 1 || slots > maxSlots {
		return fmt.Errorf("pool: Resize: %d slots; a pool has from 1 to %d", slots, maxSlots)
	}
	if err := p.resize(slots); err != nil {
		return err
	}
	p.spare()
	return nil
}

func (p *Pool) resize(slots int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.extra.Load() != nil {
		return fmt.Errorf("pool: Resize: %d slots while Overcommit decides; close that first", slots)
	}
	if p.stopped.Load() {
		return ErrShutdown
	}
	p.fixed = true
	p.look.Store(math.MaxInt64)
	return p.setLimit(slots)
}

// Slots returns how many slots the pool has now, or had when [Pool.Shutdown] dropped its tasks.
func (p *Pool) Slots() int {
	p.follow(p.now())
	n := p.line.Limit()
	if p.stopped.Load() { // looked at after the limit, which is opened after it
		return p.had
	}
	return n
}

package pool

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// OvercommitOption sets one thing about [Overcommit].
type OvercommitOption interface{ applyOvercommit(*overConfig) }

type overConfig struct {
	slots int
	nice  int
}

type overOption func(*overConfig)

func (f overOption) applyOvercommit(c *overConfig) { f(c) }

// WithThreads sets how many tasks compute at the same time, each on a thread of its own. The default is the number of
// cores, which is what GOMAXPROCS was before. It panics if n is less than 1.
func WithThreads(n int) OvercommitOption {
	if n < 1 {
		panic(fmt.Sprintf("pool: WithThreads(%d): at least 1 thread is needed", n))
	}
	return overOption(func(c *overConfig) { c.slots = n })
}

// WithNice gives the threads of [Submit], [Stream], the helpers of [Map] and jobs a lower priority in the kernel, from
// 1 to 10. It works on Linux and has no effect elsewhere. It does not change work on the caller's goroutine ([Pool.Do],
// [Pool.Enter]): an unprivileged process can lower a thread's priority but never raise it again, so the thread has to
// end with the task, and the caller's thread is not ours to end. WithNice panics if n is out of range.
//
// The danger: any other work that wants the cores gets them, even while a niced thread holds something that the whole
// program waits for. The garbage collector's pauses were measured at up to 84 ms beside a busy neighbour, where they
// are 1 ms without this option. It is for a machine of one's own.
func WithNice(n int) OvercommitOption {
	if n < 1 || n > 10 {
		panic(fmt.Sprintf("pool: WithNice(%d): niceness is 1 to 10; beyond that the collector waits for threads that the kernel does not run", n))
	}
	return overOption(func(c *overConfig) { c.nice = n })
}

// Overcommitted is what [Overcommit] changed. It is safe for concurrent use.
type Overcommitted struct {
	pool   *Pool
	conf   overConfig
	byHand bool // GOMAXPROCS was not the runtime's own choice: it is not ours to find out anew
	mu     sync.Mutex
	cores  int
	slots  int // what a fixed pool had before
	timer  *time.Timer
	closed bool
}

// overcommitted guards GOMAXPROCS, of which the process has one.
var overcommitted atomic.Bool

// Overcommit lets a pool use every core without making the rest of the program wait for it: GOMAXPROCS becomes cores
// plus slots, the pool's slots become cores, and each task is locked to a thread. The Go scheduler then always has a P
// for a goroutine that wakes up, and the kernel, which is good at that, divides the cores between the threads. Without
// Overcommit a pool must leave one core free, see [New].
//
// It is for main, on a machine whose cores the program has for itself:
//
//	p := pool.New()
//	over, err := pool.Overcommit(p)
//	if err != nil {
//		log.Fatal(err)
//	}
//	defer over.Close()
//
// The price: GOMAXPROCS belongs to the whole process; everything that reads it sees the higher number, and each P has
// its own memory cache. Under a cgroup CPU limit, the threads together can use up the quota of a period and are then
// all stopped for the rest of it. Once GOMAXPROCS is set by hand, the runtime no longer follows the cgroup; Overcommit
// checks the limit itself, once a minute, which stops the world twice for some microseconds. Work that bypasses the
// pool can now take more than one P for each core. Create and use a coroutine ([iter.Pull]) within one task while that
// has its slot, or outside tasks: the runtime ends the program if a coroutine goes on with its thread locked
// differently from when it was created.
//
// Only one can be open in a process. The error says so, or that the pool was shut down. Overcommit panics if p or an
// option is nil.
func Overcommit(p *Pool, opts ...OvercommitOption) (*Overcommitted, error) {
	if p == nil {
		panic("pool: Overcommit: p is nil; give one made by New")
	}
	var c overConfig
	for i, o := range opts {
		if o == nil {
			panic(fmt.Sprintf("pool: Overcommit: option %d is nil; leave it out", i))
		}
		o.applyOvercommit(&c)
	}
	if !overcommitted.CompareAndSwap(false, true) {
		return nil, errors.New("pool: Overcommit: another one is open; GOMAXPROCS can be changed by one only, close that first")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.draining.Load() {
		overcommitted.Store(false)
		return nil, ErrShutdown
	}
	x := &Overcommitted{pool: p, conf: c, slots: p.line.Limit()}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.cores = runtime.GOMAXPROCS(0)
	runtime.SetDefaultGOMAXPROCS()
	x.byHand = runtime.GOMAXPROCS(0) != x.cores
	x.set()
	p.extra.Store(x)
	if !x.byHand {
		x.timer = time.AfterFunc(refresh, x.refresh)
	}
	return x, nil
}

const refresh = time.Minute

// set puts the numbers into force that follow from cores.
func (x *Overcommitted) set() {
	slots := x.conf.slots
	if slots == 0 {
		slots = x.cores
	}
	runtime.GOMAXPROCS(x.cores + slots)
	x.pool.setLimit(slots)
}

// refresh finds out how many cores there are now.
func (x *Overcommitted) refresh() {
	x.pool.mu.Lock()
	defer x.pool.mu.Unlock()
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed || x.pool.stopped.Load() {
		return
	}
	runtime.SetDefaultGOMAXPROCS()
	x.cores = runtime.GOMAXPROCS(0)
	x.set()
	x.timer.Reset(refresh)
}

// Close restores GOMAXPROCS, leaving it to the runtime if that had set it, and gives the pool its former size. Running
// tasks stay where they are. A second Close does nothing.
func (x *Overcommitted) Close() {
	p := x.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed {
		return
	}
	x.closed = true
	if x.timer != nil {
		x.timer.Stop()
	}
	if x.byHand {
		runtime.GOMAXPROCS(x.cores)
	} else {
		runtime.SetDefaultGOMAXPROCS()
	}
	p.extra.Store(nil)
	if !p.stopped.Load() {
		if p.fixed {
			p.setLimit(x.slots)
		} else {
			p.setLimit(p.wanted())
			p.look.Store(0)
		}
	}
	overcommitted.Store(false)
}

// enlist puts a goroutine of ours on a thread for the task it is about to run, where Overcommit says so. What it
// returns has to be called when the task has ended.
func (p *Pool) enlist() func() {
	x := p.extra.Load()
	if x == nil {
		return func() {}
	}
	runtime.LockOSThread()
	if x.conf.nice > 0 && setNice(x.conf.nice) {
		// The goroutine ends locked, and the niced thread with it.
		return func() {}
	}
	return runtime.UnlockOSThread
}

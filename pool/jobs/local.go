package jobs

import (
	"cmp"
	"container/list"
	"context"
	"crypto/sha256"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spillgate/spillgate/pool"
)

// Local is an [Engine] in memory. Its jobs run in the slots of a pool, beside whatever else runs there and behind it:
// by default all of them have priority -4 in the pool. If the tasks of requests have clients ([pool.WithClient]), the
// jobs together count as one more client and have its share of the slots. A handler that computes for long calls
// [pool.Checkpoint], which lets a waiting request go first.
//
// Everything is bounded: unfinished jobs, one client's share of them, finished jobs, the bytes of payloads and results,
// the time for which a finished job is kept. Jobs do not survive the process.
//
// A Local has goroutines only while jobs can run, and a timer while a job waits or is to be forgotten; [Local.Close]
// ends them. The zero value does not work; use [NewLocal]. A Local is safe for concurrent use.
type Local struct {
	mux  *Mux
	pool *pool.Pool
	conf localConfig
	base time.Time
	mint *mint

	ctx  context.Context // ends when the time for draining is over
	stop context.CancelCauseFunc
	idle chan struct{} // closed when shut down with nothing unfinished
	runs sync.WaitGroup

	mu       sync.Mutex
	jobs     map[string]*entry
	keys     map[jobKey]*entry
	ready    line
	delayed  ordered[*entry] // by the time at which they become ready
	due      ordered[*due]   // those that wait and have a deadline
	finished ordered[*entry] // by the time at which they are forgotten
	ended    list.List       // of these, as they ended
	keepers  map[string]*keeper
	most     ordered[*keeper]
	running  map[*entry]struct{}
	bytes    int64
	kept     int64 // of bytes, those of finished jobs
	number   uint64
	mean     time.Duration // of the run time, moves by 1/8
	runners  int           // goroutines that run a job or wait for a slot
	coming   int           // of these, those that wait for a slot
	timer    *time.Timer
	timerAt  time.Duration // 0: not armed
	pause    time.Duration // no runner is started before this: the pool was full
	knock    time.Duration // one that is started before this takes no place in the pool's queue: that was full
	refused  time.Time     // when the pool refused a runner first since one had a slot
	look     time.Duration // when to see whether the pool has more slots by now, for the jobs that have no runner
	closed   bool
	drained  time.Duration // when closed: what cannot begin by then is dropped
	dropped  []string
	counts   Stats
}

type jobKey struct{ client, key string }

// entry is a job as the engine keeps it. All fields belong to the engine's lock.
type entry struct {
	rank     time.Duration // the order in the heap it is in
	number   uint64
	place    int
	priority int

	seat, own *list.Element // in Local.ended and in that of its client; nil while not finished

	id, kind, client, key string
	hash                  [16]byte // of kind and payload; where key is set
	payload, result       []byte
	state                 State
	version               uint64
	attempt, attempts     int
	progress              *Progress
	err, detail           string
	cancelling            bool

	created, started, ended time.Time
	next                    time.Time // not before; of a final job, when it is forgotten
	deadline                time.Time
	due                     *due                    // set while it waits, where there is a deadline
	cancel                  context.CancelCauseFunc // while it runs
	task                    context.Context         // likewise: that of its slot
	lends                   chan struct{}           // closed when the job that it waits for has no more of that; nil: there was none
	looks                   *helper                 // of those that wait in its slot, the one that looks whether others are to have it
	lent                    time.Duration           // for how long the jobs that it waits for had the slot
	changed                 chan struct{}           // closed at the next change; made for the first who watches
	quiet                   time.Duration           // those who watch are told of progress no sooner
	later                   *time.Timer             // and will be then; nil if there is nothing to be told
}

// due is the end of a job's wait.
type due struct {
	e     *entry
	at    time.Duration
	place int
}

func (d *due) before(o *due) bool { return d.at < o.at }
func (d *due) moved(place int)    { d.place = place }

// NewLocal returns an engine that runs the kinds of m in the slots of p. It panics if either or an option is nil.
func NewLocal(m *Mux, p *pool.Pool, opts ...LocalOption) *Local {
	if m == nil || p == nil {
		panic("jobs: NewLocal: it needs a Mux with the handlers and a pool to run them in")
	}
	c := localConfig{
		unfinished: 10000, finished: 10000,
		payload: 64 << 10, result: 1 << 20, bytes: 64 << 20,
		retain: time.Hour, priority: -4,
	}
	c.share = c.unfinished / 4
	for i, o := range opts {
		if o == nil {
			panic(fmt.Sprintf("jobs: NewLocal: option %d is nil; leave it out", i))
		}
		o.applyLocal(&c)
	}
	// Of the bytes the same part as of the places, but one payload at least.
	high, low := bits.Mul64(uint64(c.bytes), uint64(c.share))
	part, _ := bits.Div64(high, low, uint64(c.unfinished))
	c.shareBytes = max(int64(part), int64(c.payload))
	l := &Local{
		mux: m, pool: p, conf: c, base: time.Now(), mint: newMint(),
		idle:    make(chan struct{}),
		jobs:    make(map[string]*entry),
		keys:    make(map[jobKey]*entry),
		keepers: make(map[string]*keeper),
		running: make(map[*entry]struct{}),
	}
	l.ctx, l.stop = context.WithCancelCause(context.Background())
	return l
}

func (l *Local) now() time.Duration { return time.Since(l.base) }

// after is now+d, or as late as can be said.
func after(now, d time.Duration) time.Duration { return now + min(d, math.MaxInt64-now) }

// Submit implements [Engine]. It accepts nothing once ctx has ended. Values of ctx are not passed on to the job.
func (l *Local) Submit(ctx context.Context, kind string, payload []byte, o SubmitOptions) (Job, bool, error) {
	if ctx.Err() != nil {
		return Job{}, false, context.Cause(ctx)
	}
	policy, err := l.mux.Policy(kind)
	if err != nil {
		return Job{}, false, err
	}
	if len(payload) > l.conf.payload {
		return Job{}, false, fmt.Errorf("%w: the payload has %d bytes, %d are allowed", ErrTooLarge, len(payload), l.conf.payload)
	}
	if len(o.Key) > 255 || len(o.Client) > 255 {
		return Job{}, false, fmt.Errorf("%w: the key has %d bytes and the client's name %d, 255 are allowed", ErrTooLarge, len(o.Key), len(o.Client))
	}
	if err := l.mux.Check(kind, payload); err != nil {
		return Job{}, false, err
	}
	e := &entry{
		// Cloned, since what comes with a request may be a small part of a string that is as long as its header.
		kind: strings.Clone(kind), client: strings.Clone(o.Client), key: strings.Clone(o.Key), payload: slices.Clone(payload),
		id: l.mint.id(), priority: o.Priority, state: Queued, attempts: cmp.Or(max(o.MaxAttempts, 0), policy.MaxAttempts),
		created: time.Now(), deadline: o.Deadline, version: 1, place: -1,
	}
	if o.Key != "" {
		h := sha256.New()
		h.Write([]byte(kind))
		h.Write([]byte{0})
		h.Write(payload)
		copy(e.hash[:], h.Sum(nil))
	}

	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	l.tidy(now)
	if o.Key != "" {
		if first := l.keys[jobKey{o.Client, o.Key}]; first != nil {
			if first.hash != e.hash {
				return Job{}, false, ErrKeyReused
			}
			return l.view(first), false, nil
		}
	}
	switch size := int64(len(payload)); {
	case l.closed && (l.ctx.Err() != nil || l.helper(ctx).by == nil || time.Until(o.NotBefore) > 0):
		return Job{}, false, ErrShutdown
	case l.unfinished() >= l.conf.unfinished, l.bytes-l.kept+size > l.conf.bytes:
		return Job{}, false, &Error{ErrFull, l.wait(1)}
	case o.Client != "" && l.shareFull(o.Client, size):
		return Job{}, false, &Error{ErrShareFull, l.wait(1)}
	default:
		l.room(size)
		l.bytes += size
	}
	l.number++
	e.number = l.number
	l.jobs[e.id] = e
	if o.Key != "" {
		l.keys[jobKey{e.client, e.key}] = e
	}
	l.ready.begin(e.client, len(e.payload))
	l.await(e, now)
	l.counts.Submitted++
	if d := time.Until(o.NotBefore); d > 0 {
		l.delay(e, after(now, d))
	} else {
		l.ready.push(e, now)
	}
	l.goOn(now)
	return l.view(e), true, nil
}

func (l *Local) unfinished() int { return l.ready.n + len(l.delayed) + len(l.running) }

// shareFull reports whether one more job with a payload of that size would be more than the client may have unfinished.
func (l *Local) shareFull(client string, size int64) bool {
	c := l.ready.clients[client]
	return c != nil && (c.unfinished >= l.conf.share || c.bytes+size > l.conf.shareBytes)
}

// wait is how long it takes until about n of the jobs have ended, between 1 s and 1 min.
func (l *Local) wait(n int) time.Duration {
	ns := float64(l.mean) * float64(n) / float64(max(1, l.pool.Slots())) // may be more than a Duration holds
	return max(time.Duration(min(ns, float64(time.Minute))), time.Second)
}

package pool

import (
	"cmp"
	"maps"
	"math"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// maxKinds bounds how many kinds of task with a name a pool keeps apart.
const maxKinds = 64

// otherKind collects the kinds beyond maxKinds.
const otherKind = "other"

// kind is the record of one kind of task. What each task writes stands on a cache line of its own.
type kind struct {
	pool    *Pool
	name    string
	waiting atomic.Int64
	refused atomic.Int64
	_       [64]byte
	begun   atomic.Int64 // tasks that got a slot
	ended   atomic.Int64 // of these, those that gave it back
	mean    atomic.Int64 // of the run time, ns; moves by 1/16 with each task
	spread  atomic.Int64 // mean distance from the mean, likewise
	doubt   atomic.Int64 // when one was first refused by the mean since one was measured, on the pool's clock; 0 if none was
	trying  atomic.Bool  // one was let through because of doubt
	run     histogram
	_       [64]byte
	wait    histogram // of those that waited
}

// ran records that a task of this kind took d.
func (k *kind) ran(d time.Duration) {
	k.run.add(d)
	if k.doubt.Load() != 0 {
		k.doubt.Store(0)
		if k.trying.Swap(false) { // what was known is old
			k.mean.Store(int64(d))
			k.spread.Store(0)
			return
		}
	}
	// A lost update among several at once does no harm to an estimate.
	m := k.mean.Load()
	if m == 0 {
		k.mean.Store(int64(d))
		return
	}
	// One task in a thousand that takes a thousand times as long must not have the others refused.
	off := min(int64(d), 4*int64(k.usual())+int64(10*time.Microsecond)) - m
	k.mean.Store(m + off/16)
	if off < 0 {
		off = -off
	}
	sp := k.spread.Load()
	k.spread.Store(sp + (off-sp)/16)
}

// timed reports whether the task that begins as number n is to be measured. Where the
// clock would cost as much as the work, one task in sixteen is enough to know it by.
func (k *kind) timed(n int64) bool {
	m := k.mean.Load()
	return n&15 == 0 || m > int64(10*time.Microsecond) || m == 0
}

// brief reports whether a task of this kind usually takes no longer than a switch between goroutines.
func (k *kind) brief() bool {
	m := k.mean.Load()
	return m != 0 && m < int64(time.Microsecond)
}

// usual is how long to allow for a task of this kind: the mean and twice the mean distance
// from it, in the manner of TCP's timeout (RFC 6298); 0 while nothing is known.
func (k *kind) usual() time.Duration {
	return time.Duration(k.mean.Load() + 2*k.spread.Load())
}

// expected is usual for a task that has to wait, by which it may be refused. Where tasks of this kind have been refused for
// ten times as long as they usually take, and none was measured since, it is 0 for one of them: a kind that
// was slow once would be refused for ever where no slot is free when it comes.
func (k *kind) expected(now time.Duration) time.Duration {
	usual := k.usual()
	since := k.doubt.Load()
	if since == 0 || now-time.Duration(since) < 10*usual || !k.doubt.CompareAndSwap(since, int64(now)) {
		return usual
	}
	k.trying.Store(true)
	return 0
}

// refusedBy says that a task was refused that was expected to take so long.
func (k *kind) refusedBy(expected, now time.Duration) {
	if expected > 0 {
		k.doubt.CompareAndSwap(0, int64(now))
	}
}

// kinds finds records by name. The map is replaced and not changed, so that finding one
// takes no lock.
type kinds struct {
	plain *kind
	known atomic.Pointer[map[string]*kind]
	mu    sync.Mutex
}

func (ks *kinds) init(p *Pool) {
	ks.plain = &kind{pool: p}
	ks.known.Store(&map[string]*kind{"": ks.plain})
}

func (ks *kinds) get(name string) *kind {
	if name == "" {
		return ks.plain
	}
	return ks.find(name)
}

func (ks *kinds) find(name string) *kind {
	if k := (*ks.known.Load())[name]; k != nil {
		return k
	}
	return ks.add(name)
}

func (ks *kinds) add(name string) *kind {
	ks.mu.Lock()
	defer ks.mu.Unlock()
	known := *ks.known.Load()
	if len(known) > maxKinds { // one of them has no name
		name = otherKind
	}
	if k := known[name]; k != nil {
		return k
	}
	k := &kind{pool: ks.plain.pool, name: name}
	more := maps.Clone(known)
	more[name] = k
	ks.known.Store(&more)
	return k
}

// sorted returns all records in the order of their names.
func (ks *kinds) sorted() []*kind {
	return slices.SortedFunc(maps.Values(*ks.known.Load()), func(a, b *kind) int {
		return cmp.Compare(a.name, b.name)
	})
}

// idle reports whether no task waits or runs, where none can begin to any more.
func (ks *kinds) idle() bool {
	for _, k := range *ks.known.Load() {
		// A task that stops waiting has begun before, and none ends before it begins: in this
		// order the sum is not zero at any moment unless it is.
		if k.waiting.Load() != 0 {
			return false
		}
		if ended := k.ended.Load(); ended != k.begun.Load() {
			return false
		}
	}
	return true
}

func (ks *kinds) dropped() []Dropped {
	var all []Dropped
	for _, k := range ks.sorted() {
		d := Dropped{Kind: k.name, Waiting: int(k.waiting.Load())}
		ended := k.ended.Load() // in the order of idle: a Map between two elements is not seen as over
		d.Running = int(k.begun.Load() - ended)
		if d.Waiting > 0 || d.Running > 0 {
			all = append(all, d)
		}
	}
	return all
}

// histogram counts durations in buckets of a quarter of a power of two, from 1 us to 1 h.
type histogram struct {
	sum     atomic.Int64
	buckets [(histTop - histLow) * 4]atomic.Int64
}

const (
	histLow = 10 // 2^10 ns, about 1 us: shorter is counted in the first bucket
	histTop = 42 // 2^42 ns, about 73 min: longer is counted in the last
)

func (h *histogram) add(d time.Duration) {
	if h.sum.Add(int64(d)) < 0 { // more than a Duration holds
		h.sum.Store(math.MaxInt64)
	}
	h.buckets[histBucket(d)].Add(1)
}

func histBucket(d time.Duration) int {
	if d < 1<<histLow {
		return 0
	}
	e := bits.Len64(uint64(d)) - 1
	if e >= histTop {
		return (histTop-histLow)*4 - 1
	}
	return (e-histLow)*4 + int(d>>(e-2))&3
}

// histUpper is the upper end of bucket i.
func histUpper(i int) time.Duration {
	e := histLow + i/4
	return time.Duration(1)<<e + time.Duration(i%4+1)<<(e-2)
}

// Timing summarises how long something took.
type Timing struct {
	Count int64         `json:"count"` // how many were measured
	Total time.Duration `json:"total"` // their sum, at most 292 years, the longest Duration
	// The quantiles are upper bounds that are at most a quarter too high. They range from 1.28 us to 73 min; shorter and
	// longer times count as these ends.
	P50 time.Duration `json:"p50"`
	P90 time.Duration `json:"p90"`
	P99 time.Duration `json:"p99"`
}

func (h *histogram) timing() Timing {
	t := Timing{Total: time.Duration(h.sum.Load())}
	var counts [len(h.buckets)]int64
	for i := range counts {
		counts[i] = h.buckets[i].Load()
		t.Count += counts[i]
	}
	quantile := func(q float64) time.Duration {
		want := max(1, int64(q*float64(t.Count)+0.999999))
		for i, n := range counts {
			if want -= n; want <= 0 {
				return histUpper(i)
			}
		}
		return 0
	}
	if t.Count > 0 {
		t.P50, t.P90, t.P99 = quantile(0.5), quantile(0.9), quantile(0.99)
	}
	return t
}

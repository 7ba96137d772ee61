package breaker

import (
	"math"
	"math/bits"
	"sync"
	"sync/atomic"
)

// slices is how many slices a window has.
const slices = 10

// Kinds of calls that a slice counts.
const (
	good = iota // succeeded
	goodSlow
	bad // failed
	badSlow
	gone  // ignored, but slow: its client left, perhaps because of that
	broke // failed after it was counted as one of the others
	kinds
)

// A window counts calls over a sliding time: those that came back in slices by the time they did,
// those in flight in spans by the time they began. Times are nanoseconds since the breaker was made.
//
// Counting takes no lock; the one that exists is for the first call in a new slice or span, which
// clears what was counted there one turn of the ring ago. A call that counts in the same instant in
// which its slice is cleared, a whole window late, may be lost or survive: off by one, once.
type window struct {
	width  int64               // of a slice
	slow   int64               // 0: nothing is slow, spans is nil, due is never
	span   int64               // the width of one of spans
	spans  []span              // a power of two of them
	spread []clientCounts      // by span; nil unless clients are told apart
	seen   *[slices]clientBits // by slice; nil unless clients are told apart
	due    atomic.Int64        // when the next span may have become overdue
	head   atomic.Int64        // the epoch of the newest slice
	row    atomic.Uint64       // failures in a row, and above bit 32 those of the row that the last success ended
	ender  atomic.Int64        // when the call began that ended that row
	turn   sync.Mutex          // held while a slice or span is cleared

	_     [64]byte // what every call writes stays off the lines that every call reads
	slice [slices]slice
}

// A slice counts what came back in its time.
type slice struct {
	epoch atomic.Int64 // which slice of time this is, plus 1; 0: none yet
	n     [kinds]atomic.Uint32
}

// clientBits has a bit for each client (hashed) whose call failed or was slow.
type clientBits struct{ failed, slow atomic.Uint64 }

// A span counts the calls that began in its time and are in flight.
type span struct {
	epoch atomic.Int64 // as in slice
	n     atomic.Int32
}

// clientCounts is the n of a span by client (hashed).
type clientCounts [64]atomic.Int32

const never = math.MaxInt64

// uncounted is the place of a call that is in no span; there are no more than 128 of them.
const uncounted = 255

// maxSlowSpans bounds the spans that SlowCall is divided into, and so their memory.
const maxSlowSpans = 100

func (w *window) init(s *Settings, now int64) {
	w.width = int64(s.Window) / slices
	w.due.Store(never)
	if s.MinClients > 0 {
		w.seen = new([slices]clientBits)
	}
	if s.SlowCall == 0 {
		return
	}
	w.slow = int64(s.SlowCall)
	w.span = max(w.width, (w.slow+maxSlowSpans-1)/maxSlowSpans)
	// A call in flight is looked at until it has been overdue for a window.
	atLeast := uint64((w.slow+int64(s.Window))/w.span + 3)
	w.spans = make([]span, 1<<bits.Len64(atLeast-1))
	if w.seen != nil {
		w.spread = make([]clientCounts, len(w.spans))
	}
	w.due.Store((now/w.span+1)*w.span + w.slow)
}

// epoch returns the number of the slice that now is in, from 1.
func (w *window) epoch(now int64) int64 {
	// Mostly it is the newest one, and a product is cheaper than a quotient.
	if e := w.head.Load(); uint64(now-(e-1)*w.width) < uint64(w.width) {
		return e
	}
	return now/w.width + 1
}

// begin counts a call that begins now, and returns where, for end.
func (w *window) begin(now int64, client uint8) uint8 {
	if w.slow == 0 {
		return 0
	}
	e := int64(0)
	if w.span == w.width {
		e = w.epoch(now)
	} else {
		e = now/w.span + 1
	}
	at := uint8(e & int64(len(w.spans)-1))
	s := &w.spans[at]
	if s.epoch.Load() != e && !w.turnSpan(at, e) {
		return uncounted // a clock that is a whole ring late
	}
	s.n.Add(1)
	if w.spread != nil {
		w.spread[at][client].Add(1)
	}
	return at
}

// end takes a call that began at start off those in flight.
func (w *window) end(start int64, at, client uint8) {
	if w.slow == 0 || at == uncounted {
		return
	}
	s := &w.spans[at]
	if uint64(start-(s.epoch.Load()-1)*w.span) >= uint64(w.span) {
		return // so long ago that its place counts others
	}
	s.n.Add(-1)
	if w.spread != nil {
		w.spread[at][client].Add(-1)
	}
}

// count counts a call that came back now.
func (w *window) count(kind int, now int64, client uint8) {
	e := w.epoch(now)
	i := e % slices
	s := &w.slice[i]
	if s.epoch.Load() != e && !w.turnSlice(i, e) {
		return
	}
	s.n[kind].Add(1)
	if w.seen == nil || kind == good {
		return
	}
	bit := uint64(1) << client
	if kind == bad || kind == badSlow || kind == broke {
		mark(&w.seen[i].failed, bit)
	}
	if kind != bad && kind != broke {
		mark(&w.seen[i].slow, bit)
	}
}

func mark(set *atomic.Uint64, bit uint64) {
	if set.Load()&bit == 0 {
		set.Or(bit)
	}
}

// turnSlice makes slice i that of epoch e, and reports false if it is of a later one already.
func (w *window) turnSlice(i, e int64) bool {
	w.turn.Lock()
	defer w.turn.Unlock()
	s := &w.slice[i]
	if was := s.epoch.Load(); was >= e {
		return was == e
	}
	s.epoch.Store(0) // whoever sums it up meanwhile leaves it out
	for k := range s.n {
		s.n[k].Store(0)
	}
	if w.seen != nil {
		w.seen[i].failed.Store(0)
		w.seen[i].slow.Store(0)
	}
	s.epoch.Store(e)
	w.head.Store(max(e, w.head.Load()))
	return true
}

// turnSpan is turnSlice for spans.
func (w *window) turnSpan(at uint8, e int64) bool {
	w.turn.Lock()
	defer w.turn.Unlock()
	s := &w.spans[at]
	if was := s.epoch.Load(); was >= e {
		return was == e
	}
	s.epoch.Store(0)
	s.n.Store(0)
	if w.spread != nil {
		for i := range w.spread[at] {
			w.spread[at][i].Store(0)
		}
	}
	s.epoch.Store(e)
	return true
}

// counts are the sums over a window.
type counts struct {
	n                        [kinds]uint64
	inFlight, overdue        uint64
	failClients, slowClients uint64
}

// returned is how many calls came back with an outcome, failed how many of them failed. One that broke
// may have come back before the window.
func (c *counts) returned() uint64 {
	return max(c.n[good]+c.n[goodSlow]+c.n[bad]+c.n[badSlow], c.failed())
}
func (c *counts) failed() uint64 { return c.n[bad] + c.n[badSlow] + c.n[broke] }

// timed is how many calls say something about slowness, slow how many of them are slow.
func (c *counts) timed() uint64 { return c.returned() + c.n[gone] + c.overdue }
func (c *counts) slow() uint64  { return c.n[goodSlow] + c.n[badSlow] + c.n[gone] + c.overdue }

// sum adds up the window that ends now.
func (w *window) sum(now int64) counts {
	var c counts
	e := now/w.width + 1
	for i := range w.slice {
		s := &w.slice[i]
		if was := s.epoch.Load(); was == 0 || was <= e-slices || was > e {
			continue
		}
		for k := range s.n {
			c.n[k] += uint64(s.n[k].Load())
		}
		if w.seen != nil {
			c.failClients |= w.seen[i].failed.Load()
			c.slowClients |= w.seen[i].slow.Load()
		}
	}
	for i := range w.spans {
		s := &w.spans[i]
		was := s.epoch.Load()
		n := s.n.Load()
		if was == 0 || n <= 0 {
			continue
		}
		c.inFlight += uint64(n)
		// The last call of the span became overdue at was*span+slow; it is looked at for a window.
		if late := was*w.span + w.slow; late > now || late <= now-w.width*slices {
			continue
		}
		c.overdue += uint64(n)
		if w.spread != nil {
			for bit := range w.spread[i] {
				if w.spread[i][bit].Load() > 0 {
					c.slowClients |= 1 << bit
				}
			}
		}
	}
	return c
}

// look reports whether calls may have become overdue since it last said so.
func (w *window) look(now int64) bool {
	due := w.due.Load()
	if now < due {
		return false
	}
	next := due + ((now-due)/w.span+1)*w.span
	return w.due.CompareAndSwap(due, next)
}

// endRow ends a row of failures: a call that began at start succeeded.
func (w *window) endRow(start int64) {
	if r := w.row.Load(); r != 0 {
		w.ender.Store(start)
		w.row.Store(r << 32)
	}
}

// addToRow is one more failure in a row.
func (w *window) addToRow() { w.row.Add(1) }

// takeUpRow is one more failure in a row, by a call that began at start and was taken for a success. If that ended
// a row, and no other call succeeded since, the row goes on.
func (w *window) takeUpRow(start int64) {
	for {
		r := w.row.Load()
		next := r + 1
		if w.ender.Load() == start {
			next = r>>32 + r&math.MaxUint32 + 1
		}
		if w.row.CompareAndSwap(r, next) {
			return
		}
	}
}

// inRow is how many calls failed with no success between them.
func (w *window) inRow() int { return int(w.row.Load() & math.MaxUint32) }

// trip says whether the window is reason enough to open.
func (w *window) trip(s *Settings, now int64) Cause {
	c := w.sum(now)
	volume := uint64(s.MinVolume)
	enough := func(clients uint64) bool { return bits.OnesCount64(clients) >= s.MinClients }
	if n := s.ConsecutiveFailures; n > 0 && w.inRow() >= n && enough(c.failClients) {
		return CauseConsecutive
	}
	if all := c.returned(); s.FailureRatio > 0 && all >= volume &&
		float64(c.failed()) >= s.FailureRatio*float64(all) && enough(c.failClients) {
		return CauseFailures
	}
	if all := c.timed(); s.SlowCall > 0 && all >= volume &&
		float64(c.slow()) >= s.SlowRatio*float64(all) && enough(c.slowClients) {
		return CauseSlow
	}
	return 0
}

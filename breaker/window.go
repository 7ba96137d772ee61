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
	gone // ignored, but slow: its client left, perhaps because of that
	kinds
)

// A window counts calls over a sliding time: those that came back in slices by the time they did,
// those in flight in spans by the time they began. Times are nanoseconds since the breaker was made.
//
// Counting takes no lock; the one that exists is for the first call in a new slice or span, which
// clears what was counted there one turn of the ring ago. A call that counts in the same instant in
// which its slice is cleared, a whole window late, may be lost or survive: off by one, once.
type window struct {
	width int64 // of a slice
	slice [slices]slice
	row   atomic.Int32 // failures in a row

	slow   int64 // 0: nothing is slow, spans is nil, due is never
	span   int64 // the width of one of spans
	spans  []span
	due    atomic.Int64 // when the next span may have become overdue
	seeing bool         // clients are told apart, also in spans

	turn sync.Mutex // held while a slice or span is cleared
}

type slice struct {
	epoch       atomic.Int64 // which slice of time this is, plus 1; 0: none yet
	n           [kinds]atomic.Uint32
	failClients atomic.Uint64 // a bit for each client (hashed) that met a failure
	slowClients atomic.Uint64
}

type span struct {
	epoch   atomic.Int64 // as in slice
	n       atomic.Int32 // calls that began in it and are in flight
	clients *[64]atomic.Int32
}

const never = math.MaxInt64

// maxSlowSpans bounds the spans that SlowCall is divided into, and so their memory.
const maxSlowSpans = 100

func (w *window) init(s *Settings, now int64) {
	w.width = int64(s.Window) / slices
	w.due.Store(never)
	if s.SlowCall == 0 {
		return
	}
	w.slow = int64(s.SlowCall)
	w.seeing = s.MinClients > 0
	w.span = max(w.width, (w.slow+maxSlowSpans-1)/maxSlowSpans)
	// A call in flight is looked at until it has been overdue for a window.
	w.spans = make([]span, (w.slow+int64(s.Window))/w.span+3)
	if w.seeing {
		for i := range w.spans {
			w.spans[i].clients = new([64]atomic.Int32)
		}
	}
	w.due.Store((now/w.span+1)*w.span + w.slow)
}

// begin counts a call that begins now.
func (w *window) begin(now int64, client uint8) {
	if w.slow == 0 {
		return
	}
	e := now/w.span + 1
	s := &w.spans[e%int64(len(w.spans))]
	if s.epoch.Load() != e && !w.turnSpan(s, e) {
		return
	}
	s.n.Add(1)
	if w.seeing {
		s.clients[client].Add(1)
	}
}

// end takes a call that began at start off those in flight.
func (w *window) end(start int64, client uint8) {
	if w.slow == 0 {
		return
	}
	e := start/w.span + 1
	s := &w.spans[e%int64(len(w.spans))]
	if s.epoch.Load() != e {
		return // so long ago that nobody looks
	}
	s.n.Add(-1)
	if w.seeing {
		s.clients[client].Add(-1)
	}
}

// count counts a call that came back now.
func (w *window) count(kind int, now int64, client uint8) {
	e := now/w.width + 1
	s := &w.slice[e%slices]
	if s.epoch.Load() != e && !w.turnSlice(s, e) {
		return
	}
	s.n[kind].Add(1)
	switch bit := uint64(1) << client; kind {
	case bad:
		mark(&s.failClients, bit)
	case badSlow:
		mark(&s.failClients, bit)
		mark(&s.slowClients, bit)
	case goodSlow, gone:
		mark(&s.slowClients, bit)
	}
}

func mark(set *atomic.Uint64, bit uint64) {
	if set.Load()&bit == 0 {
		set.Or(bit)
	}
}

// turnSlice makes s the slice of epoch e, and reports false if it is of a later one already.
func (w *window) turnSlice(s *slice, e int64) bool {
	w.turn.Lock()
	defer w.turn.Unlock()
	if was := s.epoch.Load(); was >= e {
		return was == e
	}
	s.epoch.Store(0) // whoever sums it up meanwhile leaves it out
	for i := range s.n {
		s.n[i].Store(0)
	}
	s.failClients.Store(0)
	s.slowClients.Store(0)
	s.epoch.Store(e)
	return true
}

// turnSpan is turnSlice for spans.
func (w *window) turnSpan(s *span, e int64) bool {
	w.turn.Lock()
	defer w.turn.Unlock()
	if was := s.epoch.Load(); was >= e {
		return was == e
	}
	s.epoch.Store(0)
	s.n.Store(0)
	if w.seeing {
		for i := range s.clients {
			s.clients[i].Store(0)
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

// returned is how many calls came back with an outcome, failed how many of them failed.
func (c *counts) returned() uint64 { return c.n[good] + c.n[goodSlow] + c.n[bad] + c.n[badSlow] }
func (c *counts) failed() uint64   { return c.n[bad] + c.n[badSlow] }

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
		c.failClients |= s.failClients.Load()
		c.slowClients |= s.slowClients.Load()
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
		if w.seeing {
			for bit := range s.clients {
				if s.clients[bit].Load() > 0 {
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

// trip says whether the window is reason enough to open.
func (w *window) trip(s *Settings, now int64) Cause {
	c := w.sum(now)
	volume := uint64(s.MinVolume)
	enough := func(clients uint64) bool {
		return s.MinClients == 0 || bits.OnesCount64(clients) >= s.MinClients
	}
	if n := s.ConsecutiveFailures; n > 0 && int(w.row.Load()) >= n && enough(c.failClients) {
		return CauseConsecutive
	}
	if all := c.returned(); s.FailureRatio > 0 && all >= volume &&
		float64(c.failed()) >= s.FailureRatio*float64(all) && c.failed() > 0 && enough(c.failClients) {
		return CauseFailures
	}
	if all := c.timed(); s.SlowCall > 0 && all >= volume &&
		float64(c.slow()) >= s.SlowRatio*float64(all) && c.slow() > 0 && enough(c.slowClients) {
		return CauseSlow
	}
	return 0
}

// busy reports whether calls came back in the window that ends now, or are in flight.
func (w *window) busy(now int64) bool {
	c := w.sum(now)
	return c.timed() > 0 || c.inFlight > 0
}

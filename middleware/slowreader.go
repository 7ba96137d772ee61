package middleware

import (
	"io"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/pool"
)

const (
	// patience is how long a write waits for the client before its request gives its permit back: longer than it takes a network to send a lost
	// packet again, and so short that those who do not read at all, and come again, do not hold all permits of a limit that grows.
	patience = 250 * time.Millisecond
	// slotPatience is the same for the slot of a pool, which it has back after the write: so soon that those who take a large answer as slowly as their
	// network lets them hold it about as long as its work.
	slotPatience = 50 * time.Millisecond
	// rounds is how many times as long as work waits for a processor a write waits at least: where all processors are taken, one is slow that waits for
	// no client, but to be encoded by a layer outside for example.
	rounds = 20
	// slowPlaces is how many requests of a layer have given their permit back so and are still there. What they hold besides, memory for one, has
	// no other bound.
	slowPlaces = 1000
)

// clientWait gives the permit of a request back while its client does not take what is written. The permit is not asked for again: that
// would need a place in the line for each write, and what the handler holds meanwhile, it would hold for as long. The slot of a pool is
// taken again after the write, whoever has it then.
type clientWait struct {
	permitSource // in place of the one that all requests have in common
	permit       limiter.Permit
	slot         pool.Slot // where there is no permit
	body         *bodyWait // of a request that has one
	timer        *time.Timer

	mu      sync.Mutex
	since   time.Time // when the write that is under way began; zero if none is
	due     time.Time // of the timer
	outcome limiter.Outcome
	given   chan struct{} // the permit is given back, and a place taken; closed when the hooks of the limiter have returned
	paused  bool          // the slot is given back for this write
	over    bool
	died    any // a panic of such a hook, which goes on in the request: on the goroutine of a timer it would end the process
}

// writes is called before a write that may wait for the client, with the time, and wrote after it.
func (h *holds) writes(rec *recorder, now time.Time) {
	for ; h != nil; h = h.more {
		if h.slot != (pool.Slot{}) {
			h.timeSlot()
		}
		x := &h.permit
		if !x.timed() {
			continue
		}
		w := x.from.wait
		if w == nil {
			w = &clientWait{permitSource: *x.from, permit: x.permit}
			w.wait, x.from = w, &w.permitSource
		}
		w.begin(answerOutcome(rec), now)
	}
}

// timeSlot puts a slot in the place of a permit that is none, with the wait for the client.
func (h *holds) timeSlot() *clientWait {
	x := new(struct {
		clientWait
		holds
	})
	w := &x.clientWait
	w.slot, h.slot = h.slot, pool.Slot{}
	w.wait, w.becameLong = w, slotBecameLong
	x.holds = holds{permit: permitHold{from: &w.permitSource}, more: h.more}
	h.more = &x.holds
	return w
}

func slotBecameLong(_ *recorder, x *permitHold, k streamKind) {
	if k.lasts() {
		x.from.wait.slot.Leave() // what only stays open needs no CPU slot meanwhile
		x.drop()
	}
}

// wrote is called after a write, however it ended.
func (h *holds) wrote() {
	for ; h != nil; h = h.more {
		if x := h.permit.from; x != nil && x.wait != nil {
			x.wait.end()
		}
	}
}

func (w *clientWait) begin(o limiter.Outcome, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.given != nil || w.paused || w.over {
		return
	}
	d := w.patience()
	w.since, w.outcome, w.due = now, o, now.Add(d)
	if w.timer == nil {
		w.timer = time.AfterFunc(d, w.tick)
	} else {
		w.timer.Reset(d)
	}
}

func (w *clientWait) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer != nil {
		w.since = time.Time{}
		w.timer.Stop()
	}
	if w.paused {
		w.paused = false
		w.slot.Resume()
	}
}

func (w *clientWait) ofSlot() bool { return w.slot != (pool.Slot{}) }

func (w *clientWait) patience() time.Duration {
	if w.ofSlot() {
		return slotPatience
	}
	return patience
}

// give gives back what is given back while the lock is held, and reports whether it did. A permit has only a place taken yet.
func (w *clientWait) give() bool {
	if w.ofSlot() {
		w.paused = w.slot.Pause()
		return w.paused
	}
	if b := w.body; b != nil && b.paused {
		return false // others have it already
	}
	return w.slow.take("")
}

// tick runs on the timer's goroutine.
func (w *clientWait) tick() {
	runtime.Gosched() // behind all that is ready, which the time then tells
	w.mu.Lock()
	now := time.Now()
	late := now.Sub(w.due)
	waits := w.given == nil && !w.paused && !w.over && !w.since.IsZero() && late >= 0
	if waits && (now.Sub(w.since) < rounds*late || !w.give()) {
		w.due = now.Add(w.patience())
		w.timer.Reset(w.patience()) // there may be one later
		waits = false
	}
	if !waits || w.paused {
		w.mu.Unlock()
		return
	}
	given := make(chan struct{})
	w.given = given
	p, o := w.permit, w.outcome
	w.mu.Unlock()
	defer close(given)
	defer func() { w.died = recover() }()
	p.Release(o)
}

// close is called when the request has ended, or is long-lived. It returns the permit, which may be paused.
func (w *clientWait) close() (p limiter.Permit) {
	w.mu.Lock()
	p = w.permit
	given := w.given
	if w.over {
		given = nil
	} else if b := w.body; b != nil && b.paused && !w.ofSlot() {
		w.bodies.leave(b.request.Client)
	}
	w.over = true
	if w.timer != nil {
		w.timer.Stop()
	}
	if w.body != nil && w.body.timer != nil {
		w.body.timer.Stop()
	}
	w.mu.Unlock()
	if given == nil {
		return p
	}
	<-given // a hook belongs to the request, which has not ended before it has returned
	w.slow.leave("")
	if w.died != nil {
		panic(w.died)
	}
	return p
}

// fetching is a source that is copied to the client, of which a Read may take any time: that is no wait for the client.
type fetching struct {
	io.Reader
	rec *recorder
}

// timed says that there is a permit or a slot to give back.
func (h *holds) timed() bool {
	for ; h != nil; h = h.more {
		if h.permit.timed() || h.slot != (pool.Slot{}) {
			return true
		}
	}
	return false
}

// fetched returns what to copy in place of src where a permit may be given back. The writer below may know src by its type, and do without reading from
// it: it is left as it is then, but for a pipe, which it has to read from.
func fetched(src io.Reader, rec *recorder, pipe bool) io.Reader {
	_, conn := limited(src).(syscall.Conn)
	if _, ok := src.(io.WriterTo); ok || conn && !pipe || !rec.holds.timed() {
		return src
	}
	return fetching{src, rec}
}

func (f fetching) Read(p []byte) (int, error) {
	f.rec.holds.wrote()
	n, err := f.Reader.Read(p)
	f.rec.holds.writes(f.rec, time.Now())
	return n, err
}

package middleware

import (
	"context"
	"runtime"
	"time"

	"github.com/spillgate/spillgate/limiter"
)

const (
	// bodyPatience is how long a Read waits for the body before others have the permit meanwhile: longer than it takes the rest of what a client sent at
	// once to come, and so short that few clients who send slowly hold a permit at a time.
	bodyPatience = 10 * time.Millisecond
	// bodySlow is the same once the request has waited so long: it will again, and holds up what waits for room in its connection.
	bodySlow = time.Millisecond
)

// bodyWait gives the permit of a request, or the slot of a pool, to others while a Read waits for the body. It is taken again before the
// Read returns, in the queue: all of the work may still be to come. It may be used on another goroutine than that of the handler.
type bodyWait struct {
	wait    *clientWait // with the lock
	ctx     context.Context
	request limiter.Request // for a permit
	timer   *time.Timer
	outer   *bodyWait // of a layer outside

	left   int64     // of the body is to come; less than 0 is not known
	since  time.Time // when the Read that is under way began; zero if none is
	due    time.Time // of the timer
	slow   bool
	paused bool // until it has been taken again
	taking bool // that is under way
}

// begins is called before a Read that may wait.
func (x *bodyWait) begins() {
	if x == nil {
		return
	}
	now := time.Now()
	for ; x != nil; x = x.outer {
		x.begin(now)
	}
}

func (x *bodyWait) begin(now time.Time) {
	w := x.wait
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.given != nil || w.over || x.paused || x.left == 0 {
		return
	}
	d := x.patience()
	x.since, x.due = now, now.Add(d)
	if x.timer == nil {
		x.timer = time.AfterFunc(d, x.tick)
	} else {
		x.timer.Reset(d)
	}
}

func (x *bodyWait) patience() time.Duration {
	if x.slow {
		return bodySlow
	}
	return bodyPatience
}

// tick runs on the timer's goroutine.
func (x *bodyWait) tick() {
	runtime.Gosched() // as in clientWait
	w := x.wait
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	late := now.Sub(x.due)
	if w.given != nil || w.over || x.paused || x.since.IsZero() || late < 0 {
		return
	}
	again := max(rounds*late-now.Sub(x.since), 0)
	if again == 0 {
		if x.pause() {
			x.slow, x.paused = true, true
			return
		}
		again = patience // there may be a place later
	}
	again = max(again, x.patience())
	x.due = now.Add(again)
	x.timer.Reset(again)
}

// pause reports whether others may have what the request holds. The lock is held.
func (x *bodyWait) pause() bool {
	w := x.wait
	if w.ofSlot() {
		return w.slot.Pause()
	}
	if !w.bodies.take(x.request.Client) {
		return false
	}
	w.permit = w.permit.Pause()
	return true
}

// ended is called after a Read of n bytes.
func (x *bodyWait) ended(n int) {
	if x != nil {
		x.outer.ended(n)
		x.end(n)
	}
}

func (x *bodyWait) end(n int) {
	w := x.wait
	w.mu.Lock()
	defer w.mu.Unlock()
	if x.timer != nil {
		x.timer.Stop()
	}
	if x.left > 0 {
		x.left = max(x.left-int64(n), 0)
	}
	x.since = time.Time{}
	if !x.paused || x.taking {
		return
	}
	x.taking = true
	p := w.permit
	w.permit = limiter.Permit{}
	w.mu.Unlock()
	// There is none for a request that has ended.
	if w.ofSlot() {
		w.slot.ResumeInTurn()
	} else {
		p, _ = p.Resume(x.ctx, x.request)
	}
	w.mu.Lock()
	x.paused, x.taking = false, false
	switch {
	case w.ofSlot():
	case w.over:
		p.Release(limiter.Ignored)
	default:
		w.permit = p
		w.bodies.leave(x.request.Client)
	}
}

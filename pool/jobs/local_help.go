package jobs

import (
	"context"
	"time"

	"github.com/spillgate/spillgate/pool/internal/waiting"
)

// helper is what a job that waits for another one knows of it. Where nobody else may come to run that one it runs in the slot of the one that waits:
// in a pool of one slot, or of as many as there are jobs that wait for others, none of them would ever end.
type helper struct {
	by    *entry        // nil: who waits is no job
	slot  waiting.Slot  // of the pool; nothing in it where it runs in none
	gone  bool          // others have the slot of somebody who is no job
	since time.Duration // when it began to wait
	done  chan struct{} // closed when the attempt has ended that runs in the slot; nil while none does
	other chan struct{} // likewise of another one, for which another goroutine of the job waits
}

// helpAfter is how long a job waits for another that could begin, where it may be that there is a slot for it: what has the others may go on for ever.
const helpAfter = time.Second

// helper returns one for whoever has ctx. The lock is held.
func (l *Local) helper(ctx context.Context) helper {
	if a, ok := Current(ctx); ok {
		if by := l.jobs[a.ID]; by != nil && by.task != nil && by.attempt == a.Number {
			slot, _ := waiting.Of(by.task, l.pool)
			return helper{by: by, slot: slot, since: l.now()}
		}
	}
	if slot, ok := waiting.Of(ctx, l.pool); ok && slot.Held() {
		return helper{slot: slot}
	}
	return helper{}
}

// help has e begin in the slot, if it can and if that is the time. The lock is held.
func (l *Local) help(ctx context.Context, h *helper, e *entry) {
	l.want(ctx, h, e)
	if h.done != nil {
		select {
		case <-h.done:
			h.done = nil
		default:
			return
		}
	}
	h.other = nil
	now := l.now()
	if h.by == nil || h.by.task == nil || ctx.Err() != nil || e.state != Queued && e.state != Retrying || l.isDelayed(e) ||
		len(l.running) < l.pool.Slots() && now-h.since < helpAfter {
		return
	}
	if lends := h.by.lends; lends != nil {
		select {
		case <-lends:
		default:
			h.other = lends
			return
		}
	}
	h.slot.Here()
	charged := max(l.mean, 1)
	l.ready.charge(e.client, charged)
	l.ready.remove(e)
	run := l.begin(h.by.task, e, h.by, now, charged)
	done := make(chan struct{})
	h.done, h.by.lends = done, done
	l.runs.Add(1)
	enlist := h.slot.Enlist
	go func() { // the handler may end its goroutine
		defer l.runs.Done()
		defer enlist()()
		defer func() {
			close(done)
			l.mu.Lock()
			defer l.mu.Unlock()
			l.goOn(l.now()) // there may be another attempt to wait for
		}()
		run()
	}()
}

// want has the slots taken again that e needs to go on, where they were given to others: it may be waited for with all that there are. The lock is held.
func (l *Local) want(ctx context.Context, h *helper, e *entry) {
	if h.by == nil || l.now()-h.since < helpAfter {
		return
	}
	if e.task != nil {
		if slot, ok := waiting.Of(e.task, l.pool); ok {
			slot.Back(ctx)
		}
	}
	if h.done != nil || h.other != nil {
		h.slot.Back(ctx)
	}
}

// rest waits until there may be something new, and reports false if ctx has ended before. While nothing runs in the slot that has whoever is more urgent use
// it: what is waited for may begin in an hour, or have another slot for that long. In the slot of somebody who is no job, what is waited for may run.
func (l *Local) rest(ctx context.Context, h *helper, changed <-chan struct{}) bool {
	var ticker *time.Ticker
	var look <-chan time.Time
	if h.slot.Here != nil && !h.gone {
		ticker = time.NewTicker(wayEvery)
		defer ticker.Stop()
		look = ticker.C
		defer l.looked(h)
	}
	again := h.again()
	for {
		select {
		case <-changed:
		case <-again:
		case <-h.done:
		case <-h.other:
		case <-ctx.Done():
			return false
		case <-look:
			if h.by != nil {
				if !l.away(ctx, h) { // nor will it soon
					ticker.Reset(10 * wayEvery)
				}
			} else if h.gone = h.slot.Pause(); h.gone {
				ticker.Stop()
			} else { // they have it already, for as long as another goroutine of the task waits
				ticker.Reset(10 * wayEvery)
			}
			continue
		}
		return true
	}
}

// wayEvery is how often a job that waits looks whether somebody is more urgent, and how long somebody else waits before others have his slot.
const wayEvery = 10 * time.Millisecond

// away has others use the slot if nothing runs there for all that the engine knows, and reports whether it is this helper that looks for it: of the
// goroutines of a job, which may wait for a thousand others, one is enough.
func (l *Local) away(ctx context.Context, h *helper) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h.by.task == nil || h.by.looks != nil && h.by.looks != h {
		return false
	}
	if lends := h.by.lends; lends != nil {
		select {
		case <-lends:
		default:
			return false
		}
	}
	if !h.slot.Away(ctx) {
		return false
	}
	h.by.looks = h
	return true
}

// looked leaves it to another helper of the job to look.
func (l *Local) looked(h *helper) {
	if h.by == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if h.by.looks == h {
		h.by.looks = nil
	}
}

// again is when to look whether to help.
func (h *helper) again() <-chan time.Time {
	if h.by == nil {
		return nil
	}
	return time.After(helpAfter)
}

// here has whoever waits in his own slot.
func (h *helper) here() {
	if h.by != nil || h.gone {
		h.slot.Here()
		h.gone = false
	}
}

// release returns when the slot is free for the job that has lent it.
func (l *Local) release(ctx context.Context, h *helper, e *entry) {
	for h.done != nil {
		select {
		case <-h.done:
			h.done = nil
		case <-h.again():
			l.mu.Lock()
			l.want(ctx, h, e)
			l.mu.Unlock()
		}
	}
	h.here()
}

package limiter

import (
	"context"
	"time"
)

// A resumed permit is waited for until nobody else was granted one for pauseGaps times as long as it usually takes: those that have the permits then
// wait for something themselves, perhaps for what the resumed work holds. pauseLeast and pauseMost bound that time, and it is pauseUnknown where it
// is not known what is usual.
const (
	pauseGaps    = 10
	pauseLeast   = 250 * time.Millisecond
	pauseUnknown = 5 * time.Second
	pauseMost    = time.Minute
)

// Pause gives what p holds to others while its work waits for something that takes nothing of what is limited, such
// as a request body that a client sends slowly. It returns p as a paused permit; p and its copies count as released.
// Call [Permit.Resume] before the work goes on, or Release if it does not.
//
// To an adaptive limit, the time in service is what comes before the pause and after it. A permit that is paused
// already stays so. A permit that is released, or the zero Permit, is returned as it is. Any goroutine may call Pause
// and Resume, one call at a time.
func (p Permit) Pause() Permit {
	s := p.slot
	if s == nil || !s.gen.CompareAndSwap(p.gen, p.gen+1) {
		return p
	}
	p.gen++
	if s.weight < 0 {
		return p
	}
	c := s.c
	now := time.Since(c.base)
	if s.client != nil {
		c.mu.Lock()
		c.line.charge(s.client, s.had(max(now-s.start-c.stood(s.start), 0))-float64(s.guess))
		s.client = nil
		c.mu.Unlock()
	}
	if s.coming { // it has begun, if nobody has said so
		s.coming = false
		c.adapt.coming.Add(-1)
	}
	weight := s.weight
	if s.weight = -weight; c.adapt != nil {
		s.rest(now)
		c.paused.Add(1)
	}
	left := c.state.Add(-weight)
	if left == 0 && c.adapt != nil {
		c.rests(now)
	}
	if left&concWaiting != 0 {
		c.handOn()
	}
	return p
}

// rest adds what an adaptive limit has measured of the work so far.
func (s *concSlot) rest(now time.Duration) {
	c := s.c
	index := c.index(s)
	c.adapt.ends(index, s.born, s.start)
	if n := int64(s.lags); n != 0 {
		cell := &c.cells[index]
		cell.lag.Add(int64(s.lag) * n)
		cell.lags.Add(n)
		s.lag, s.lags = 0, 0
	}
	s.lag += float32(max(now-s.start, 0))
}

// Resume takes again what a paused permit has given to others, and returns the permit, in place of p; p and its
// copies count as released. r is the request that the permit was taken for, with the time at which it arrived.
//
// If there is no room, it waits in the queue of its client, where it has the place that it would have had from the
// beginning; while the newest request is served first, it is the next of its client. Its place is none of those that
// [WithQueue] bounds, and it is neither refused nor sent away. But those that have the permits may wait for something
// that this work holds, such as a lock or a connection. So if nobody is granted a permit for ten times as long as that
// usually takes, Resume returns with one that goes beyond the limit: after 250 ms at least and a minute at most, and
// after 5 s if it is not known yet how long work takes.
//
// If ctx ends first, Resume returns what ctx.Err returns, and no permit; it is counted as [Ignored]. A permit that is
// not paused stays as it is. A permit that is released, or the zero Permit, is returned as it is.
func (p Permit) Resume(ctx context.Context, r Request) (Permit, error) {
	s := p.slot
	if s == nil || !s.gen.CompareAndSwap(p.gen, p.gen+1) {
		return p, nil
	}
	p.gen++
	if s.weight > 0 {
		return p, nil
	}
	c := s.c
	s.late = true
	if weight := c.room(-s.weight); weight != 0 {
		c.goesOn(s, weight, time.Since(c.base))
		return p, nil
	}
	now := time.Since(c.base)
	arrived := c.arrival(&r, now)
	c.mu.Lock()
	woken := c.dispatch(now)
	w := c.standing(s, &r, arrived, now)
	c.line.push(w, c.line.clientFor(r.Client))
	c.awaited(w, now)
	woken = concJoin(c.dispatch(now), woken)
	if w.queued {
		x := &pauseWait{c: c, p: p, w: w, due: now + c.stall()}
		x.timer = time.AfterFunc(x.due-now, x.tick)
		defer x.timer.Stop()
	}
	c.mu.Unlock()
	concWake(woken)
	return c.park(ctx, w, nil)
}

// pauseWait is a permit that waits to be resumed.
type pauseWait struct {
	c     *Concurrency
	p     Permit
	w     *queueWaiter
	timer *time.Timer
	due   time.Duration // of the timer
}

// stall is after how long without a grant those that have the permits are taken to wait for who waits. What is usual follows from what work
// takes that has waited: the time between two grants is short where much of it is paused, and then begins. The lock is held.
func (c *Concurrency) stall() time.Duration {
	took := c.service
	if c.adapt != nil {
		took = max(took, c.adapt.ctrl.r*1e9)
	}
	if took == 0 {
		return pauseUnknown
	}
	return time.Duration(min(max(pauseGaps*took/float64(c.limit.Load()), float64(pauseLeast)), float64(pauseMost)))
}

// tick lets paused work go on, beyond the limit, if nobody has been granted a permit for long: that which is next, or else this.
func (x *pauseWait) tick() {
	c, w := x.c, x.w
	now := time.Since(c.base)
	c.mu.Lock()
	c.stoodStill(now)
	var woken *queueWaiter
	if w.queued && w.kept == x.p.slot && w.kept.gen.Load() == x.p.gen { // it may be another's by now
		stall := c.stall()
		late := now - x.due
		switch left := stall - (now - max(w.entered, c.lastGrant)); {
		case late > stall/pauseGaps: // the processors are taken, or stood still: it is no wonder that nobody was
			x.again(now, stall)
		case left > 0:
			x.again(now, left)
		default:
			if next := c.line.head(); next.kept != nil && next.kept.weight < 0 {
				w = next
			}
			weight := min(w.weight, c.limit.Load())
			c.state.Add(weight)
			c.hand(w, weight, now)
			if woken = concJoin(c.dispatch(now), w); x.w.queued {
				x.again(now, stall)
			}
		}
	}
	c.mu.Unlock()
	concWake(woken)
}

func (x *pauseWait) again(now, after time.Duration) {
	x.due = now + after
	x.timer.Reset(after)
}

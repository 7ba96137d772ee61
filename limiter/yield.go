package limiter

import (
	"context"
	"time"
)

// Yield gives way to the request that is next in the queue, if that one is more urgent than r, and waits for the
// permit to come back. r is the request that the permit was taken for, with the time at which it arrived. A request
// is more urgent if its priority is higher, however late it came, or if it stands before r by arrival and priority. r
// then has the place in the queue that it would have had from the beginning. While the queue serves the newest first,
// nothing is more urgent, and r is next among the requests of its client.
//
// The wait is not bounded, and r is never refused nor sent away, since it is on its way already. Only if ctx ends
// first does Yield return what ctx.Err returns, and no permit; the work must end then. The permit returned takes the
// place of p. All copies of p count as released, and none of them may be released during the call. Meanwhile the
// permits in flight never weigh more than the limit. An adaptive limit learns only from the work since the permit
// came back.
//
// If nobody more urgent is next, Yield returns p. While nobody waits at all, that costs two loads of memory. A permit
// that is released or paused, or the zero Permit, is returned as it is.
func (p Permit) Yield(ctx context.Context, r Request) (Permit, error) {
	s := p.slot
	if s == nil || s.gen.Load() != p.gen {
		return p, nil
	}
	c := s.c
	if c.state.Load()&concWaiting == 0 {
		return p, nil
	}
	now := time.Since(c.base)
	arrived := c.arrival(&r, now)
	c.mu.Lock()
	woken := c.dispatch(now) // who is past its time is no reason to stand back
	if s.weight < 0 || !c.line.urgent(queueLevel(r.Priority), arrived) || !s.gen.CompareAndSwap(p.gen, p.gen+1) {
		c.mu.Unlock()
		concWake(woken)
		return p, nil
	}
	w, granted := c.standBack(s, &r, arrived, now)
	c.mu.Unlock()
	concWake(concJoin(granted, woken))
	return c.park(ctx, w, nil)
}

// standBack puts the permit in s, which belongs to the caller alone, back into the line and
// gives what it held to the head of the line. The lock is held.
func (c *Concurrency) standBack(s *concSlot, r *Request, arrived, now time.Duration) (w, woken *queueWaiter) {
	if s.client != nil {
		c.line.charge(s.client, s.had(max(now-s.start-c.stood(s.start), 0))-float64(s.guess))
		s.client = nil
	}
	if c.adapt != nil {
		c.adapt.ends(c.index(s), s.born, s.start)
	}
	s.lag = 0 // it begins anew
	w = c.standing(s, r, arrived, now)
	client := c.line.clientFor(r.Client)
	head := c.line.head()
	c.state.Add(-s.weight)
	if c.grant(head, now) {
		head.wake, woken = woken, head
	} else if head.client == client {
		// It needs more room than this. It would never get that if w went before it.
		w.arrived = max(w.arrived, head.arrived+time.Duration(w.level-head.level)*c.line.step+1)
	}
	c.line.push(w, client)
	return w, concJoin(c.dispatch(now), woken)
}

// standing returns a waiter that stands for the permit in s. The lock is held.
func (c *Concurrency) standing(s *concSlot, r *Request, arrived, now time.Duration) *queueWaiter {
	w := c.waiter()
	w.level, w.weight, w.entered, w.arrived, w.latest, w.kept = queueLevel(r.Priority), concWeight(r), now, arrived, 0, s
	w.size = min(w.weight, c.limit.Load())
	return w
}

// goesOn says that the permit in s, which stood back or was paused, holds that weight from now on.
func (c *Concurrency) goesOn(s *concSlot, weight int64, now time.Duration) {
	if a := c.adapt; a != nil {
		if s.weight < 0 {
			c.paused.Add(-1)
		}
		a.resumes(c.index(s), s)
		if c.idleAt.Load() != 0 {
			c.busy(now)
		}
	}
	s.weight, s.start, s.charged, s.lags = weight, now, false, 0
}

// forget ends a permit that holds nothing and does not get it back.
func (c *Concurrency) forget(s *concSlot) {
	c.cell(s).done[Ignored].Add(1)
	if c.adapt != nil && s.weight < 0 {
		c.paused.Add(-1)
	}
	s.c = nil
	concSlots.Put(s)
}

package limiter

import (
	"context"
	"time"
)

// Wait takes one token from each of the key's buckets, now or as soon as it flows in. See [Rate.WaitN].
func (r *Rate) Wait(ctx context.Context, key string) error { return r.WaitN(ctx, key, 1) }

// WaitN takes n tokens from each of the key's buckets, and waits until all have flowed in. Calls are served in the
// order in which they came. With [WithStore], each call asks again when it was told to come back, in no order.
//
// WaitN refuses at once what cannot be in time, with an [*Error]: [ErrWouldMissDeadline] if the deadline of ctx is
// earlier, [ErrRateLimited] if the wait is longer than [WithMaxWait] or if no wait would help because n is above the
// burst. If ctx ends during the wait, WaitN returns the error of ctx and gives the tokens back, as far as nobody is
// waiting for later ones.
func (r *Rate) WaitN(ctx context.Context, key string, n int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if r.store != nil {
		return r.waitStored(ctx, key, n)
	}
	now := time.Now()
	q := r.question(now, key, n)
	q.maxWait = r.maxWait
	deadline, hasDeadline := ctx.Deadline()
	if hasDeadline {
		q.maxWait = min(q.maxWait, max(0, deadline.Sub(now)))
	}
	var marks [ratePolicyMax]int64
	var reserved [ratePolicyMax]rateReserved
	var a tableAnswer
	if r.single != nil {
		r.single.take(&q, now, nil, &reserved, &a)
	} else {
		r.table.take(&q, nil, &marks, &a)
	}
	if a.held != nil {
		defer r.table.waited(key, a.held)
	}
	var d Decision
	r.decide(&q, &a, &d)
	switch {
	case d.Shadow:
		return nil
	case d.OK && (a.wait == 0 || q.shadow):
		return nil
	case d.OK:
	case hasDeadline && d.RetryAfter > 0 && d.RetryAfter <= r.maxWait:
		return &Error{Err: ErrWouldMissDeadline, RetryAfter: d.RetryAfter, Policy: d.Policy}
	default:
		return d.Err()
	}
	r.waiting.Add(1)
	defer r.waiting.Add(-1)
	timer := time.NewTimer(a.wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
	}
	now = time.Now()
	q.ns = r.reading(now)
	switch {
	case r.single != nil:
		r.single.giveBack(&reserved, q.n, now)
	case a.shared:
		r.table.budget.giveBack(&q, a.mark)
	default:
		r.table.giveBack(&q, &a, &marks)
	}
	return ctx.Err()
}

// waitStored asks again and again: a store keeps no reservations. Only the last answer is a decision.
func (r *Rate) waitStored(ctx context.Context, key string, n int) error {
	until := time.Now().Add(r.maxWait)
	deadline, hasDeadline := ctx.Deadline()
	r.waiting.Add(1)
	defer r.waiting.Add(-1)
	for {
		now := time.Now()
		q := r.question(now, key, n)
		var a tableAnswer
		r.takeStored(ctx, &q, now, nil, &a, false)
		if a.storeErr != nil && ctx.Err() != nil && !q.shadow {
			if a.ok { // by the local buckets alone, for one who has gone
				r.giveLocal(&q, now, &a)
			}
			a.ok, a.storeErr, q.again = false, nil, true
		}
		var d Decision
		r.answer(&q, &a, &d)
		at := now.Add(d.RetryAfter)
		err := ctx.Err()
		switch {
		case d.OK:
			err = nil
		case err != nil:
			q.again = true
		case d.Unavailable, d.RetryAfter <= 0, at.After(until):
			err = d.Err()
		case hasDeadline && at.After(deadline):
			err = &Error{Err: ErrWouldMissDeadline, RetryAfter: d.RetryAfter, Policy: d.Policy}
		default:
			q.again = true
		}
		r.store.count(&q, &a)
		r.traceDecision(&q, &a, &d)
		if d.OK || err != nil {
			return err
		}
		timer := time.NewTimer(d.RetryAfter)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

package limiter

import "time"

// TryTake takes permits as bare weight: uncounted, and without the record that makes a second Release of a [Permit] a
// no-op. It is for code that keeps such a record of its own, such as package pool, and costs one atomic add. It
// returns what it took: weight (less than 1 counts as 1), or the limit if weight is above the limit. It returns 0 if
// there is no room or somebody waits for it. That is not a refusal: it is not counted either, and the trace is not
// called.
//
// What was taken must be given back once, with [Concurrency.Give], or turned into a Permit once, with
// [Concurrency.Permit]. Until then it shows as InFlight in Stats and nowhere else; an adaptive limit learns nothing
// from it.
func (c *Concurrency) TryTake(weight int) (taken int) {
	return int(c.room(max(int64(weight), 1)))
}

// Give gives back what [Concurrency.TryTake] returned. A negative number takes that much again, even beyond the
// limit: it is for work that gave its permits back while it waited for something else, and now goes on. Until there
// is room again nobody else is given any.
func (c *Concurrency) Give(taken int) { c.giveBack(int64(taken)) }

// Permit makes a [Permit] of what [Concurrency.TryTake] returned.
func (c *Concurrency) Permit(taken int) Permit {
	var now time.Duration
	if c.adapt != nil {
		now = time.Since(c.base)
	}
	return c.permit(int64(taken), now)
}

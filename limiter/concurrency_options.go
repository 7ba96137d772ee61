package limiter

import (
	"fmt"
	"math"
	"time"
)

// ConcurrencyOption is an option of a [Concurrency].
type ConcurrencyOption interface{ applyConcurrency(*concConfig) }

type concConfig struct {
	places      int
	maxWait     time.Duration
	queueSet    bool
	target      time.Duration
	step        time.Duration
	clients     int
	shadow      bool
	noYield     bool
	least, most int
	start       int
	trace       ConcurrencyTrace
}

type concOption func(*concConfig)

func (f concOption) applyConcurrency(c *concConfig) { f(c) }

// WithQueue gives the limiter a queue for at most length requests, each of which waits at most maxWait. The queue is
// first-in-first-out unless [WithCoDel] says otherwise. When it is full, a request has to leave: the one that would
// be served last, of a client that has more than its share of the places. The newcomer's own client is chosen if it
// has more than its share.
//
// An adaptive limiter has a queue without this option. There the option sets upper bounds for what the limiter
// chooses, and length 0 takes the queue away.
//
// WithQueue panics if length is negative, or if length is positive and maxWait is not.
func WithQueue(length int, maxWait time.Duration) ConcurrencyOption {
	if length < 0 {
		panic(fmt.Sprintf("limiter: WithQueue: length is %d; it must be 0 (no waiting) or more", length))
	}
	if length > 0 && maxWait <= 0 {
		panic(fmt.Sprintf("limiter: WithQueue: maxWait is %v; it must be more than 0", maxWait))
	}
	return concOption(func(c *concConfig) { c.places, c.maxWait, c.queueSet = length, maxWait, true })
}

// WithCoDel keeps the queue short under overload (Controlled Delay, RFC 8289, as used by Facebook for servers: "Fail
// at Scale", 2015). While the queue has gone without being empty for as long as its maxWait, requests wait for at
// most target and the newest is served first: the limiter then serves those who still wait for an answer, not those
// who have given up. WithCoDel has no effect without [WithQueue], nor on an adaptive limiter, which does the same on
// better evidence.
//
// WithCoDel panics if target is not positive.
func WithCoDel(target time.Duration) ConcurrencyOption {
	if target <= 0 {
		panic(fmt.Sprintf("limiter: WithCoDel: target is %v; it must be more than 0", target))
	}
	return concOption(func(c *concConfig) { c.target = target })
}

// WithPriorityStep sets how much waiting time one level of [Request].Priority is worth; the default is 100 ms. A
// request of a higher priority overtakes a waiting one only if it came less than step, times the difference in
// priority, after it. With a step of years a higher priority always goes first.
//
// WithPriorityStep panics if step is negative.
func WithPriorityStep(step time.Duration) ConcurrencyOption {
	if step < 0 {
		panic(fmt.Sprintf("limiter: WithPriorityStep: step is %v; it must not be negative", step))
	}
	return concOption(func(c *concConfig) { c.step = min(step, math.MaxInt64/(4*queueLevels)) })
}

// WithClients sets how many clients the queue tells apart at the same time. The default is 1,024, at about 500 bytes
// for each client that waits or has waited. Beyond that number clients share records, and so their fair share.
//
// WithClients panics if n is less than 1.
func WithClients(n int) ConcurrencyOption {
	if n < 1 {
		panic(fmt.Sprintf("limiter: WithClients: n is %d; it must be at least 1", n))
	}
	return concOption(func(c *concConfig) { c.clients = n })
}

// WithLimits bounds the limit of an adaptive limiter; the default is 1 to 1,000,000. It has no effect on a fixed
// limit.
//
// WithLimits panics unless 1 <= least <= most <= 2^50.
func WithLimits(least, most int) ConcurrencyOption {
	if least < 1 || most < least || int64(most) > concMost {
		panic(fmt.Sprintf("limiter: WithLimits: limits are %d to %d; they must be from 1 to %d and in order", least, most, int64(concMost)))
	}
	return concOption(func(c *concConfig) { c.least, c.most = least, most })
}

// WithStart sets the limit that an adaptive limiter begins with; the default is 8. It spares a server that is known
// to hold hundreds in flight the first doublings. A limit outside of [WithLimits] counts as the nearest bound.
// WithStart has no effect on a fixed limit.
//
// WithStart panics if limit is less than 1.
func WithStart(limit int) ConcurrencyOption {
	if limit < 1 {
		panic(fmt.Sprintf("limiter: WithStart: limit is %d; it must be at least 1", limit))
	}
	return concOption(func(c *concConfig) { c.start = limit })
}

// WithoutYield stops Acquire on an adaptive limiter from yielding the processor after it has taken a permit.
//
// Acquire yields because a goroutine that computes without a pause keeps all others from running. Requests would then
// wait in the scheduler's run queue, in front of the limiter, which would never see more in flight than there are
// processors and would shed nothing. After the yield, whatever was runnable has passed through admission too, and is
// counted. While that takes more than a twentieth of the time in service, the limiter keeps few requests between
// their permit and their work: one for each processor, or up to eight for each beside work that computes for longer
// than 10 ms ([ConcurrencyStats].Gate). Beyond that, requests wait in the queue even if there are permits left,
// unless [WithQueue] allows the queue fewer than 12 places.
//
// Where requests do nothing but wait for something else, the yield can be spared. It is left out anyway where the
// work takes less than 50 microseconds. While nobody waits for a processor, it is left out before most of longer
// work.
func WithoutYield() ConcurrencyOption {
	return concOption(func(c *concConfig) { c.noYield = true })
}

// WithConcurrencyTrace sets hooks that are called as things happen.
func WithConcurrencyTrace(t ConcurrencyTrace) ConcurrencyOption {
	return concOption(func(c *concConfig) { c.trace = t })
}

// ConcurrencyTrace is a set of hooks; each may be nil. They are called on the goroutine that asks for the permit
// (Limit: on the one that releases a permit or calls SetLimit), with no lock held, and must be safe for concurrent
// use.
type ConcurrencyTrace struct {
	// Admitted is called when a permit was granted; waited is how long the request waited.
	Admitted func(r Request, waited time.Duration)
	// Shed is called when Acquire or TryAcquire returns without a permit; err is what Acquire returns. If the context
	// ended just as the permit came, Stats counts it as granted, and as released as Ignored. In shadow mode Shed is
	// called for a request that is admitted nevertheless.
	Shed func(r Request, err error, waited time.Duration)
	// Limit is called when the limit has changed.
	Limit func(from, to int)
}

// WithShadow makes a [Concurrency] decide and count without ever refusing or delaying anything: Stats count what
// would have been shed, and the trace is told of it. What is in flight then exceeds the limit, and an adaptive
// limiter does not yield. It shows what a limit would do before it does it: whether it would shed, and when it would
// begin to. In a lasting overload it counts far more than would be shed, up to everything that comes, since what is
// over the limit slows down the rest as it does without a limit.
//
// It cannot be switched off. A server that is to begin to refuse without a restart has two limiters, one of them with
// WithShadow, each in a layer of its own, and makes requests skip one of the two (WithSkip of package middleware).
func WithShadow() ConcurrencyOption {
	return concOption(func(c *concConfig) { c.shadow = true })
}

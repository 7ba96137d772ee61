package cache

import (
	"context"
	"sync"
	"time"
)

// fillContext is the context of a fill that others may wait for: it has the values of the leader's
// request and its deadline, but does not end with the leader's request as long as somebody reads.
//
// What that takes is made when the handler first needs it, since a layer further inside that refuses
// a request asks for no more than the deadline. Until then nothing can have ended the context but
// the leader's own.
type fillContext struct {
	client context.Context
	cache  *Cache
	f      *flight
	alone  bool // nobody is to be told that the leader's client has left: it has none

	mu     sync.Mutex
	whole  context.Context // nil until somebody needs it
	cancel context.CancelCauseFunc
	expire context.CancelFunc
	stop   func() bool
	over   bool
}

func (c *fillContext) Deadline() (time.Time, bool) { return c.client.Deadline() }

func (c *fillContext) Done() <-chan struct{} { return c.make().Done() }

func (c *fillContext) Err() error {
	if c.client.Err() == nil && !c.made() {
		return nil
	}
	return c.make().Err()
}

// Value tells a handler of the same cache further inside that the fill is under way: it
// would wait for itself.
func (c *fillContext) Value(key any) any {
	if k, ok := key.(filling); ok && k.cache == c.cache {
		return true
	}
	if c.client.Err() == nil && !c.made() {
		return context.WithoutCancel(c.client).Value(key) // the leader's values, but not its end
	}
	return c.make().Value(key)
}

// made reports whether there is more to look at than the leader's own context.
func (c *fillContext) made() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.whole != nil || c.over
}

// make makes the context that stands behind this one, once.
func (c *fillContext) make() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.whole != nil {
		return c.whole
	}
	base := context.WithoutCancel(c.client)
	if deadline, ok := c.client.Deadline(); ok {
		base, c.expire = context.WithDeadline(base, deadline)
	}
	c.whole, c.cancel = context.WithCancelCause(base)
	if c.over {
		c.end()
		return c.whole
	}
	c.f.mu.Lock()
	c.f.cancel = c.cancel
	c.f.mu.Unlock()
	if !c.alone {
		c.stop = context.AfterFunc(c.client, func() {
			if c.client.Err() != context.DeadlineExceeded { // which the fill has as well
				c.f.leave(context.Cause(c.client))
			}
		})
	}
	return c.whole
}

// release ends the context when the handler has returned.
func (c *fillContext) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	if c.whole != nil {
		c.end()
	}
}

func (c *fillContext) end() {
	if c.stop != nil {
		c.stop()
	}
	if c.expire != nil {
		c.expire()
	}
	c.cancel(nil)
}

package pool

import (
	"context"
	"sync"
	"sync/atomic"
)

// latch is something that happens once and that any number of goroutines wait for. It
// makes a channel only for those whose wait can end before.
//
// Channels are not kept for another latch: a test's bubble (testing/synctest) shares none with others.
type latch struct {
	happened atomic.Bool
	waiting  sync.WaitGroup // of one until it has happened
	ready    atomic.Value   // of chan struct{}: closed when it has happened
}

func (l *latch) init() { l.waiting.Add(1) }

// open says that it has happened. It is called once.
func (l *latch) open() {
	l.happened.Store(true)
	l.waiting.Done()
	if ready, ok := l.ready.Load().(chan struct{}); ok {
		close(ready)
	}
}

func (l *latch) isOpen() bool { return l.happened.Load() }

// wait waits for open, or until ctx ends, and reports whether it was open.
func (l *latch) wait(ctx context.Context) bool {
	if l.isOpen() {
		return true
	}
	done := ctx.Done()
	if done == nil {
		l.waiting.Wait()
		return true
	}
	ready, ok := l.ready.Load().(chan struct{})
	if !ok {
		l.ready.CompareAndSwap(nil, make(chan struct{}))
		ready = l.ready.Load().(chan struct{})
	}
	if l.isOpen() { // it may have happened before the channel was there to be closed
		return true
	}
	select {
	case <-ready:
		return true
	case <-done:
		return false
	}
}

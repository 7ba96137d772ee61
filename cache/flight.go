package cache

import (
	"context"
	"errors"
	"sync"
	"time"
)

// abandonBytes is how much of a storable response may still be missing for a fill to be worth
// finishing when nobody waits for it any more, and abandonAfter how long that may take.
const (
	abandonBytes = 64 << 10
	abandonAfter = 5 * time.Second
)

// outcome is how a flight ended.
type outcome uint8

const (
	pending  outcome = iota
	complete         // the entry is there for everybody
	released         // the response is not for sharing: everybody on his own, at once
	failed           // the handler panicked, was refused, or broke the response off
	recalled         // memory has something now: from the Store, without the handler, or from another run for the same response
)

// flight is one run of the handler that other requests for the same response wait for. The leader
// runs it on its own goroutine; readers see the body as it grows. Safe for concurrent use.
type flight struct {
	key   string
	since epoch

	mu      sync.Mutex
	wake    chan struct{} // closed at the next change; nil while nobody waits
	outcome outcome
	head    *entry  // the header, once it is known and the response may be shared
	length  int64   // declared, or -1
	body    []byte  // grows; what a reader has seen of it never changes
	entry   *entry  // the result
	unwell  bool    // failed in a way that allows stale answers
	readers int     // the leader's client and those who wait
	joined  bool    // somebody has waited
	gone    bool    // the context was cancelled
	other   outcome // of another run for the same response, which was there first: for those who wait, and not for the leader's client
	nudged  int     // counts requests to flush
	cancel  context.CancelCauseFunc

	finishing *time.Timer // runs while nobody reads
}

// join finds the flight for a key, or begins fl's own, which fl then leads. It returns neither
// if the store changed since the caller looked: then what he needs may be there.
func (s *store) join(fl *fill, flightKey string, seen *resource) (f *flight, leader, again bool) {
	hash := fl.hash
	sh := s.shard(hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.peek(hash, fl.key) != seen {
		return nil, false, true
	}
	// A flight that began before a purge must not answer a request that came after it.
	u := sh.underway[hash]
	if u != nil && u.first != nil && u.first.key == flightKey && s.current(u.first.since) && u.first.enter() {
		return u.first, false, false
	}
	if len(sh.flights) != 0 {
		if f = sh.flights[flightKey]; f != nil && s.current(f.since) && f.enter() {
			return f, false, false
		}
	}
	fl.since = s.begin(sh, hash)
	f = &fl.own
	f.key, f.since, f.length, f.readers = flightKey, fl.since, -1, 1
	if u = fl.since.key; u.first == nil || u.first.key == flightKey {
		u.first = f
	} else {
		sh.flights[flightKey] = f // there are others beside it only if the key has variants
	}
	fl.f = f
	return f, true, false
}

// land takes the flight out of the store, so that nobody joins it any more. Those who wait for the one that has taken its place since it took too
// long, if there is one, are told of an outcome that is theirs as well. That is under the lock: the other one is not over, and may not be used again.
func (s *store) land(hash uint64, f *flight, theirs outcome) {
	sh := s.shard(hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	next := f.since.key.first
	switch {
	case next == f:
		f.since.key.first = nil
		return
	case next != nil && next.key == f.key:
	case len(sh.flights) != 0:
		if next = sh.flights[f.key]; next == f {
			delete(sh.flights, f.key)
			return
		}
	default:
		return
	}
	if next != nil && theirs != pending {
		next.outrun(theirs)
	}
}

// outrun ends the wait, by an outcome of another run for the same response, of those who get no part of this one yet. For who does, as the
// client that it is for, it goes on. That the other one is not for sharing does not matter where this one is.
func (f *flight) outrun(o outcome) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.outcome == pending && f.other == pending && (f.head == nil || o != released) {
		f.other = o
		f.changed()
	}
}

// enter adds a reader. It reports false for a flight that can give nothing any more.
func (f *flight) enter() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gone || f.other != pending || f.outcome != pending && f.outcome != complete {
		return false
	}
	f.readers++
	f.joined = true
	if f.finishing != nil {
		f.finishing.Stop()
	}
	return true
}

// leave takes a reader away. When the last one goes, the handler's context is cancelled, as it
// would be without a cache: at once, or if what is missing is little and worth storing, after a while.
func (f *flight) leave(cause error) {
	f.mu.Lock()
	f.readers--
	if f.readers == 0 && f.outcome == pending && f.head != nil && f.length >= 0 && f.length-int64(len(f.body)) <= abandonBytes {
		f.finishing = time.AfterFunc(abandonAfter, func() { f.abandon(cause) })
		f.mu.Unlock()
		return
	}
	f.mu.Unlock()
	f.abandon(cause)
}

// abandon cancels the handler's context, unless somebody reads its response or all of it is there.
func (f *flight) abandon(cause error) {
	f.mu.Lock()
	if f.readers > 0 || f.outcome == complete {
		f.mu.Unlock()
		return
	}
	f.gone = true
	cancel := f.cancel
	f.mu.Unlock()
	if cancel != nil {
		cancel(cause)
	}
}

// changed wakes everybody who waits. The lock must be held.
func (f *flight) changed() {
	if f.wake != nil {
		close(f.wake)
		f.wake = nil
	}
}

// waker returns the channel of the next change. The lock must be held.
func (f *flight) waker() <-chan struct{} {
	if f.wake == nil {
		f.wake = make(chan struct{})
	}
	return f.wake
}

// end settles the flight; the first outcome stays.
func (f *flight) end(o outcome, e *entry, unwell bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.settle(o, e, unwell)
}

// settle is end for a caller who holds the lock.
func (f *flight) settle(o outcome, e *entry, unwell bool) {
	if f.outcome != pending {
		return
	}
	f.outcome, f.entry, f.unwell = o, e, unwell
	f.changed()
	if f.finishing != nil {
		f.finishing.Stop()
	}
}

// publish makes the header known.
func (f *flight) publish(head *entry, length int64) {
	f.mu.Lock()
	f.head, f.length = head, length
	if length > 0 {
		f.body = make([]byte, 0, length)
	}
	f.changed()
	f.mu.Unlock()
}

func (f *flight) append(p []byte) {
	f.mu.Lock()
	f.body = append(f.body, p...)
	f.changed()
	f.mu.Unlock()
}

// forget gives up what was recorded. The flight has ended, and everybody who reads it has it.
func (f *flight) forget() {
	f.mu.Lock()
	f.body = nil
	f.mu.Unlock()
}

var errWaited = errors.New("cache: waited long enough")

// news is what a reader learns when something changed.
type news struct {
	outcome outcome
	head    *entry
	length  int64
	body    []byte // beyond the offset asked for
	entry   *entry
	unwell  bool
}

// reader is what somebody who waits has seen, and wants.
type reader struct {
	head   bool // has seen the header
	offset int  // has seen the body up to here; -1: does not want it
	nudged int  // has seen this many requests to flush; -1: does not want them
}

// await returns as soon as there is something new for a reader, or the flight has ended. It fails
// when the context or the timer does.
func (f *flight) await(ctx context.Context, timeout <-chan time.Time, r *reader) (news, error) {
	offset := r.offset
	for {
		f.mu.Lock()
		if f.other != pending && r.offset < 0 {
			defer f.mu.Unlock()
			return news{outcome: f.other}, nil
		}
		if f.outcome != pending || f.head != nil && !r.head || offset >= 0 && len(f.body) > offset ||
			r.nudged >= 0 && f.nudged != r.nudged {
			n := news{outcome: f.outcome, head: f.head, length: f.length, entry: f.entry, unwell: f.unwell}
			if r.nudged >= 0 {
				r.nudged = f.nudged
			}
			if offset >= 0 && offset < len(f.body) {
				n.body = f.body[offset:len(f.body):len(f.body)]
			}
			f.mu.Unlock()
			return n, nil
		}
		wake := f.waker()
		f.mu.Unlock()
		select {
		case <-wake:
		case <-ctx.Done():
			return news{}, context.Cause(ctx)
		case <-timeout:
			return news{}, errWaited
		}
	}
}

// filling is the key under which a context tells that a fill of the cache is under way.
type filling struct{ cache *Cache }

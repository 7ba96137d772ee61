package cache

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Relay carries purges from one server to the others that share a cache. It is a log: each server adds messages to it,
// and reads on from the place that it had reached. Package cachetest has the tests that every Relay must pass; the
// Store of package redisstore is a Relay.
//
// An implementation must be safe for concurrent use and must return when ctx ends, or a second later at the latest. It
// keeps no slice that it is given, and must not call the cache. It may lose messages, but must then report that: see
// Receive.
type Relay interface {
	// Send appends a message to the log. It may have done so even if it returns an error.
	Send(ctx context.Context, message []byte) error
	// End returns the place behind all messages in the log. A place is never the empty string.
	End(ctx context.Context) (place string, err error)
	// Receive returns the messages behind a place. If there are none, it waits for one for as long as wait, and then
	// returns no message, a place, and no error. If it cannot be sure that every message put behind the place is still
	// there, it returns ErrGap.
	Receive(ctx context.Context, place string, wait time.Duration) (Messages, error)
}

// Messages are what a [Relay] has received.
type Messages struct {
	List [][]byte // as they were sent, in the order of the log
	Next string   // the place behind them
	More bool     // there may be more behind that now
}

// ErrGap is the error that [Relay.Receive] returns, or wraps, if messages may be gone: the log was cut off, was
// forgotten, or is another one.
var ErrGap = errors.New("cache: the relay does not have all messages any more")

// WithRelay carries purges to every server that shares a cache. What is purged here, by whichever method, by
// [Cache.PurgeHandler] or by an unsafe request (RFC 9111, section 4.4), is purged on the other servers as well, by the
// rules of their routes, and the other way round. [Cache.Follow] does all of that and has to be running; a purge
// itself, and the request that caused one, wait for nothing.
//
// A purge arrives after about two round trips to the relay; if many follow one another, they are sent together every 50
// ms. A purge that has arrived holds as if it had been made there: nothing that was stored before is left, and a fill
// that began before is not stored after it. It also removes what was filled between the purge and its arrival, but
// nothing on the server where it was made.
//
// Purges wait in memory until they are sent, and Follow keeps trying for as long as it runs. Beyond 4 MiB, one purge of
// everything stands for all of them. What a process has not sent when it dies is lost.
//
// Where the cache may have missed purges of others, it makes everything in memory stale, as [Cache.PurgeAllSoft] does,
// or removes it (see [WithRelayRemove]). It does so whenever Follow begins, when the relay reports that messages are
// gone, and when a message is one that this version does not understand. It also does so when it has not heard from the
// relay for a minute (see [WithRelayLimit]), and again after each further minute: a response that others have purged is
// served as fresh for no longer than that if their purge could not reach this server.
//
// With a [Store] as well, the cache looks in the Store for what it made stale in this way before it asks the handler.
// For 15 s after a purge it does not look there for the purged URL: in that time another server may save a response
// that it had asked for before it heard of the purge; when it hears of the purge, it deletes that response. The cache
// neither reads from the Store nor saves in it before Follow has first heard from the relay, nor after 5 s of silence.
// Two cases remain: a server that saves such a response in the moment in which it loses touch, and hears of the purge
// late or never; and a server that begins to follow, or finds messages gone, and reads such a response from the Store
// before it is deleted. A Store that goes back in time, as one restarted from a snapshot does, still has what was
// purged since. Follow raises a number in the Store, and by it notices this after 2 s; everything in the Store is then
// invalid, and everything in memory stale.
func WithRelay(r Relay) Option {
	if r == nil {
		panic("cache: WithRelay(nil): give it a Relay, or leave the option out")
	}
	return option(func(c *config) { c.relay = r })
}

// WithRelayLimit sets how long a cache serves what it has without hearing from its [Relay]; the default is a minute. A
// response that was purged elsewhere stays fresh here for no longer than that. If the limit is shorter than a failover
// of the relay takes, each server validates all that it has in each failover.
func WithRelayLimit(limit time.Duration) Option {
	atLeast("WithRelayLimit", limit, maxSilence)
	return option(func(c *config) { c.relayLimit = limit })
}

// WithRelayRemove removes everything, instead of making it stale, where the cache may have missed purges (see
// [WithRelay]). A response that should have been removed is then not served within a window for stale responses either,
// not even while the handler fails.
func WithRelayRemove() Option {
	return option(func(c *config) { c.relayRemoves = true })
}

const (
	relayWait    = time.Second // a word is expected as often as this
	relayTimeout = 5 * time.Second
	relayPace    = 50 * time.Millisecond // from one message that is not full to the next
	maxSilence   = 5 * time.Second       // of the relay, with which the Store is trusted
	maxRelayRest = 5 * time.Second

	maxMessage = 4 << 10 // bytes of purges from which on another message begins: a flood of long URLs is so much of each that a log keeps
	maxQueued  = 4 << 20
	// What was sent is kept as long as it may get lost with a server of the relay that others have not read it from.
	resendFor = 10 * time.Second

	distrustFor = 15 // seconds
	relaySlots  = 1 << 14
)

// relayed is a relay with what is needed to use it.
type relayed struct {
	relay  Relay
	limit  time.Duration
	remove bool
	began  time.Time
	id     uint64
	trace  func(error)
	queue  queue

	running                        atomic.Bool
	heard                          atomic.Bool  // something, since Follow was called
	known                          atomic.Int64 // all that others had purged at this time has arrived; in ns since the cache began
	sent, received, errors, doubts atomic.Int64

	mu     sync.Mutex
	number uint64
	past   []*sending // in the order of their numbers
	kept   int        // bytes of these

	// When a key was last purged, and saved in the Store, by hash: seconds since the cache began, and 1 more. Keys that share a
	// place are asked for and deleted in vain.
	purged, saved []atomic.Int32
}

// sending is a message that was sent, or is being.
type sending struct {
	number uint64
	purges []string
	size   int
	told   time.Time // zero as long as it is being sent
	seen   bool      // it has come back
}

func newRelayed(cfg *config, began time.Time) *relayed {
	r := &relayed{relay: cfg.relay, limit: cfg.relayLimit, remove: cfg.relayRemoves, began: began, id: rand.Uint64(), trace: cfg.trace.RelayFailed}
	r.queue.wake = make(chan struct{}, 1)
	if cfg.backing != nil {
		r.purged, r.saved = make([]atomic.Int32, relaySlots), make([]atomic.Int32, relaySlots)
	}
	return r
}

// behind is how long ago it was that all that others had purged was known here.
func (r *relayed) behind(now time.Time) time.Duration {
	return now.Sub(r.began) - time.Duration(r.known.Load())
}

// silent reports whether the Store is not to be trusted. Before the first word it is not: what was purged by then is never heard of here, so
// that what is saved after that would stay.
func (r *relayed) silent(now time.Time) bool { return !r.heard.Load() || r.behind(now) > maxSilence }

func (r *relayed) second(now time.Time) int32 { return int32(now.Sub(r.began)/time.Second) + 1 }

// purges notes that a key is purged.
func (r *relayed) purges(hash uint64) {
	r.purged[hash%relaySlots].Store(r.second(time.Now()))
}

// trusts reports whether what the Store has under a key can be used. The time may be one before the key was purged.
func (r *relayed) trusts(hash uint64, now time.Time) bool {
	at := r.purged[hash%relaySlots].Load()
	return !r.silent(now) && (at == 0 || r.second(now)-at > distrustFor)
}

// saves notes that a key is saved in the Store. It reports false if it must not be.
func (r *relayed) saves(hash uint64) bool {
	now := time.Now()
	r.saved[hash%relaySlots].Store(r.second(now))
	return !r.silent(now)
}

// savedLately reports whether a key was saved so lately that a purge which arrives now may be older.
func (r *relayed) savedLately(hash uint64) bool {
	at := r.saved[hash%relaySlots].Load()
	return at != 0 && r.second(time.Now())-at <= 2*distrustFor
}

// queue holds the purges that others are still to be told of, each once, in the form that they have in a message.
type queue struct {
	wake chan struct{}

	mu     sync.Mutex
	list   []string
	has    map[string]bool
	size   int
	flight int // purges that are being sent
}

func (q *queue) add(purges ...string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.addLocked(purges)
}

// queuedCost is what a purge costs besides its bytes: two strings, and its place in the map.
const queuedCost = 64

func (q *queue) addLocked(purges []string) {
	for _, p := range purges {
		if q.has[p] {
			continue
		}
		if q.size += len(p) + queuedCost; q.size > maxQueued && len(q.list) > 0 {
			p = one(append(q.list, p))
			q.list, q.has, q.size = nil, nil, len(p)+queuedCost
		}
		if q.has == nil {
			q.has = make(map[string]bool)
		}
		q.list, q.has[p] = append(q.list, p), true
	}
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// one is a purge that stands for several.
func one(purges []string) string {
	all := purge{what: everything, soft: true}
	for _, p := range purges {
		all.soft = all.soft && p[1]&flagSoft != 0
		all.lost = all.lost || p[1]&flagLost != 0
	}
	return string(all.append(nil))
}

// take takes as many as are sent together. What is purged from then on is another purge than those.
func (q *queue) take() (purges []string, size int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := 0
	for n < len(q.list) && (n == 0 || size+len(q.list[n]) <= maxMessage) {
		size += len(q.list[n])
		delete(q.has, q.list[n])
		n++
	}
	purges = q.list[:n:n]
	q.list = q.list[n:]
	if len(q.list) == 0 {
		q.list, q.has = nil, nil
	}
	q.size -= size + n*queuedCost
	q.flight = n
	return purges, size
}

// landed is called when what was taken has been sent, but for what has to be sent again.
func (q *queue) landed(again []string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.flight = 0
	q.addLocked(again)
}

func (q *queue) pending() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.list) + q.flight
}

// Follow keeps in touch with the other servers through the [Relay] of [WithRelay] until ctx ends. It tells them what
// was purged here since the cache was made, and purges what they have purged. It counts failures (see [Stats] and
// [Trace]) and tries again, also where a purge could not be carried out in the [Store]. When ctx has ended, it sends
// what is left, for 5 s at most, and returns an error if that did not succeed. Give it a context that ends after the
// server has been shut down. With a context that has ended already, Follow only sends what is left.
//
//	following := make(chan error, 1)
//	go func() { following <- c.Follow(ctx) }()
//
// Follow panics if the cache has no Relay, or if Follow is already running.
func (c *Cache) Follow(ctx context.Context) error {
	r := c.relayed
	if r == nil {
		panic("cache: Follow: the cache has no relay: give New the option WithRelay")
	}
	if r.running.Swap(true) {
		panic("cache: Follow: it is running already")
	}
	defer r.running.Store(false)
	defer r.heard.Store(false) // of what comes until it is called again
	var wg sync.WaitGroup
	wg.Go(func() { r.tell(ctx) })
	wg.Go(func() { c.hear(ctx) })
	if c.backing != nil {
		wg.Go(func() { c.backing.settle(ctx, false) })
		wg.Go(func() { c.keepMark(ctx) })
	}
	c.watch(ctx)
	wg.Wait()

	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), relayTimeout)
	defer cancel()
	if c.backing != nil {
		wg.Go(func() { c.backing.settle(last, true) })
	}
	var err error
	for failures := 0; r.queue.pending() > 0 && last.Err() == nil; {
		if _, err = r.send(last); err != nil {
			failures++
			pause(last, rested(failures))
		}
	}
	n := r.queue.pending()
	wg.Wait()
	if n == 0 {
		if c.backing != nil && c.backing.unsettled() != nil {
			return errors.New("cache: Follow: the Store does not know that what it has was purged")
		}
		return nil
	}
	if err == nil {
		err = last.Err()
	}
	return fmt.Errorf("cache: Follow: %d purges have reached no other server: %w", n, err)
}

// watch sees to it that nothing is served for longer than the limit without a word from the relay.
func (c *Cache) watch(ctx context.Context) {
	r := c.relayed
	var last time.Time // when everything was made stale for that
	for ctx.Err() == nil {
		now := time.Now()
		left := r.limit - min(r.behind(now), now.Sub(last))
		if left <= 0 {
			c.doubt(true)
			last, left = now, r.limit
		}
		pause(ctx, left)
	}
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// rested is how long to wait after failures in a row.
func rested(failures int) time.Duration {
	return min(100*time.Millisecond<<min(failures-1, 10), maxRelayRest)
}

// tell sends what is purged here.
func (r *relayed) tell(ctx context.Context) {
	failures := 0
	for ctx.Err() == nil {
		if r.queue.pending() == 0 {
			select {
			case <-r.queue.wake:
			case <-ctx.Done():
			}
			continue
		}
		full, err := r.send(ctx)
		switch {
		case err != nil:
			failures++
			pause(ctx, rested(failures))
			continue
		case !full:
			pause(ctx, relayPace)
		}
		failures = 0
	}
}

// send sends one message of what is in the queue, and reports whether there was as much as goes into one.
func (r *relayed) send(ctx context.Context) (full bool, err error) {
	purges, size := r.queue.take()
	r.mu.Lock()
	r.number++
	s := &sending{number: r.number, purges: purges, size: size + len(purges)*queuedCost}
	r.past = append(r.past, s)
	r.kept += s.size
	r.condense()
	r.mu.Unlock()
	call, cancel := context.WithTimeout(ctx, relayTimeout)
	defer cancel()
	if err = r.relay.Send(call, encodeMessage(r.id, s.number, purges)); err != nil {
		r.failed(ctx, err)
		r.mu.Lock()
		r.past = slices.DeleteFunc(r.past, func(p *sending) bool { return p == s })
		r.kept -= s.size
		r.mu.Unlock()
		r.queue.landed(purges)
		return false, err
	}
	r.mu.Lock()
	s.told = time.Now()
	r.mu.Unlock()
	r.queue.landed(nil)
	r.sent.Add(int64(len(purges)))
	return size >= maxMessage/2, nil
}

// failed counts and tells that a call failed, unless that is because Follow ends.
func (r *relayed) failed(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	r.errors.Add(1)
	if r.trace != nil {
		r.trace(err)
	}
}

// back notes that a message of ours has come back.
func (r *relayed) back(number uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.past {
		s.seen = s.seen || s.number == number
	}
}

// settle sends again what was sent before everything up to a time was received, and was not a part of that: a server of the relay has lost it. After a
// gap that may be so for all that was sent lately, since others may not have read it before.
func (c *Cache) settle(until time.Time, gap bool) {
	r := c.relayed
	var lost []string
	r.mu.Lock()
	r.past = slices.DeleteFunc(r.past, func(s *sending) bool {
		switch {
		case s.told.IsZero():
			return false
		case gap || !s.seen && s.told.Before(until):
			lost = append(lost, s.purges...)
		case !s.seen || time.Since(s.told) < resendFor:
			return false
		}
		r.kept -= s.size
		return true
	})
	r.mu.Unlock()
	if c.backing != nil {
		// Where the Store is in the same place it has lost as much. Generations are known to be old ones; keys are not.
		for _, text := range lost {
			p, _ := readPurge(text)
			keys, _ := c.selection(p)
			for _, key := range keys {
				hash := maphash.String(c.store.seed, key)
				r.purges(hash)
				c.unsave(hash, key)
			}
		}
	}
	r.queue.add(lost...)
}

// condense keeps of what was sent only that there was something, where it is much. What has come back goes first: it is sent again after a gap
// alone. The lock must be held.
func (r *relayed) condense() {
	for _, unseen := range [...]bool{false, true} {
		if r.kept <= maxQueued {
			return
		}
		all := &sending{seen: true}
		var purges []string
		r.past = slices.DeleteFunc(r.past, func(s *sending) bool {
			if s.told.IsZero() || !s.seen && !unseen {
				return false
			}
			purges = append(purges, s.purges...)
			all.told, all.seen = s.told, all.seen && s.seen
			r.kept -= s.size
			return true
		})
		if len(purges) > 0 {
			all.purges = []string{one(purges)}
			r.past = append(r.past, all)
		}
	}
}

// hear receives what is purged elsewhere.
func (c *Cache) hear(ctx context.Context) {
	r := c.relayed
	failures, place := 0, ""
	for first := true; ctx.Err() == nil; {
		begun := time.Now()
		var err error
		if place == "" {
			call, cancel := context.WithTimeout(ctx, relayTimeout)
			place, err = r.relay.End(call)
			cancel()
			if err == nil {
				// Only now: whatever is purged from here on will be received.
				c.doubt(!first)
				if !first {
					c.settle(begun, true)
				}
				r.known.Store(int64(begun.Sub(r.began)))
				r.heard.Store(true)
				first = false
			}
		} else {
			var m Messages
			call, cancel := context.WithTimeout(ctx, relayWait+relayTimeout)
			m, err = r.relay.Receive(call, place, relayWait)
			cancel()
			switch {
			case err == nil:
				place = m.Next
				c.obey(m.List)
				if !m.More {
					r.known.Store(int64(begun.Sub(r.began)))
					c.settle(begun, false)
					failures = 0
				}
			case errors.Is(err, ErrGap):
				place, err = "", nil
				if failures++; failures > 1 { // it is gone as soon as it is there
					pause(ctx, rested(failures))
				}
			}
		}
		if err != nil {
			r.failed(ctx, err)
			failures++
			pause(ctx, rested(failures))
		}
	}
}

// doubt makes everything in memory stale, since some of it may have been purged elsewhere.
func (c *Cache) doubt(counted bool) {
	if counted {
		c.relayed.doubts.Add(1)
	}
	if c.backing != nil {
		c.backing.outdated()
	}
	c.store.purgeFunc(!c.relayed.remove, 0, func(*resource, *entry) bool { return true })
}

// together is how many purges, besides those of tags, are done in one walk through memory, which holds up who looks for something there.
const together = 32

// obey purges what others have purged. Memory is walked once for many purges.
func (c *Cache) obey(messages [][]byte) {
	r := c.relayed
	var tags [2]map[string]bool // removed, and made stale
	var match [2][]func(*resource, *entry) bool
	walk, lost, understood := false, false, true
	size := 0
	for _, text := range messages {
		m, ok := readMessage(string(text))
		if m.sender == r.id && ok {
			r.back(m.number)
			continue
		}
		understood = understood && ok
		r.received.Add(int64(len(m.purges)))
		for _, p := range m.purges {
			kind := 0
			if p.soft {
				kind = 1
			}
			lost = lost || p.lost
			if p.what == aTag {
				if tags[kind] == nil {
					tags[kind] = make(map[string]bool)
				}
				tags[kind][p.names[0]], walk = true, true
				size += p.size()
				continue
			}
			keys, f := c.selection(p)
			for _, key := range keys {
				c.forget(key, p.soft)
			}
			if f != nil {
				match[kind], walk = append(match[kind], f), true
				size += p.size()
			}
		}
	}
	switch {
	case c.backing == nil:
	case lost:
		c.backing.clear() // who purged could not, and so none of us can know whether others have
	case walk:
		c.backing.outdated()
	}
	for kind := range 2 {
		named := tags[kind]
		for first := true; len(match[kind]) > 0 || first && named != nil; first = false {
			n := min(len(match[kind]), together)
			some := match[kind][:n]
			match[kind] = match[kind][n:]
			c.store.purgeFunc(kind == 1, size, func(res *resource, e *entry) bool {
				return first && named != nil && e.tagged(func(t string) bool { return named[t] }) ||
					slices.ContainsFunc(some, func(f func(*resource, *entry) bool) bool { return f(res, e) })
			})
		}
	}
	if !understood {
		c.doubt(true)
	}
}

// forget purges a key that was purged elsewhere. It is gone from the store by then, unless we have saved there since what we had asked for before.
func (c *Cache) forget(key string, soft bool) {
	hash := maphash.String(c.store.seed, key)
	if c.backing != nil {
		c.relayed.purges(hash)
	}
	had := c.store.purge(hash, key, soft) > 0
	if c.backing != nil && (had || c.relayed.savedLately(hash)) {
		c.unsave(hash, key)
	}
}

// unsave deletes a key from the Store alone.
func (c *Cache) unsave(hash uint64, key string) {
	b, done := c.backing, false
	b.turn(b.turnOf(hash), &b.deletes, func(ctx context.Context) { done = !b.failed(b.delete(ctx, key)) })
	if !done {
		b.clear()
	}
}

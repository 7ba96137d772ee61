package cache

import (
	"context"
	"errors"
	"hash/maphash"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// Store keeps stored responses outside the memory of this process: on a disk, or in a server that several processes
// share. A cache with a Store (see [WithStore]) asks it for what memory does not have, and tells it what is stored and
// what is purged. Package cachetest has the tests that every Store must pass; package redisstore, in its own module, is
// a Store in Redis.
//
// An implementation must be safe for concurrent use and must return no later than when ctx ends. It may forget what it
// was given at any time. It keeps no slice that it is given, and never changes one that it has returned. It must not
// call the cache.
type Store interface {
	// Get returns the value that was set under a key, or nil if there is none.
	Get(ctx context.Context, key string) ([]byte, error)
	// Set keeps a value under a key and replaces what was there. After ttl nobody has a use for the value; ttl may be less
	// than a millisecond, or more than a century. Keys are URLs as clients write them: up to 4 KiB of any bytes. Keys that
	// differ in any byte are different keys.
	Set(ctx context.Context, key string, value []byte, ttl time.Duration) error
	// Delete forgets what is under a key. It is no error if nothing is there.
	Delete(ctx context.Context, key string) error
}

// WithStore puts a [Store] behind the memory of the cache. Each call of the store may take as long as timeout. A call
// that fails is counted, and the request goes on as if the store had nothing. After five failed calls in a row the
// cache leaves the store alone for a second. Then one call tries it again; each time that call fails, the pause
// doubles, up to 32 s. Calls that were under way together and fail at once count as one. Reads, writes and deletes
// pause separately, so that a store which is full and refuses writes still forgets what is purged. Where memory has a
// URL, but not the variant that a request selects, the cache asks the store once a second, since the store may have no
// variant for that request.
//
// The store keeps all variants of a URL as one value. When the cache saves a variant and memory has others, it reads
// that value first. Variants that are no longer in it were purged by another process, and are not put back.
//
// Purging a URL deletes it from the store. The store cannot be searched, so a purge by prefix, by tag, by group, by
// path alone or of everything invalidates all that it holds. Other processes that share the store notice within a
// second, but keep what they have in memory: [WithRelay] tells them as well. A URL that could not be deleted
// invalidates the whole store, too. Until the cache has told the store so, it tries again beside requests, and once a
// second in [Cache.Follow].
func WithStore(s Store, timeout time.Duration) Option {
	if s == nil {
		panic("cache: WithStore(nil): give it a Store, or leave the option out")
	}
	atLeast("WithStore", timeout, 1)
	return option(func(c *config) { c.backing, c.backingTimeout = s, timeout })
}

// backing is a store with what is needed to use it.
type backing struct {
	store   Store
	timeout time.Duration
	errors  atomic.Int64
	hits    atomic.Int64

	// One write for a key at a time, so that a purge and the save of a fill that began before it
	// do not overtake each other. A channel and not a mutex: it is held while the store works.
	turns [64]chan struct{}

	// The generation is part of every record, and records of another one count as nothing. It is
	// kept in the store itself, and read again every second.
	generation atomic.Pointer[generation]
	reading    atomic.Bool
	renewing   chan struct{} // the turn of generations, as above

	reads, writes, deletes rest
}

// rest keeps a cache from a store that fails, where each request would else find that out anew, and pay
// with the timeout. Safe for concurrent use.
type rest struct {
	mu       sync.Mutex
	failures int           // calls that failed in a row
	failed   time.Time     // when the last of them did
	hangs    bool          // the last of them took the time it had
	pause    time.Duration // 0 as long as the store works
	until    time.Time     // when the pause ends: the first call after it tries
}

const (
	restAfter = 5
	restApart = 20 * time.Millisecond // between two failures of calls that were under way together
	minRest   = time.Second
	maxRest   = 32 * time.Second
)

var errResting = errors.New("cache: the store is left alone, since it fails")

// call makes a call of the store, unless that is left alone; one call may take as long as timeout.
func (r *rest) call(timeout time.Duration, f func() error) error {
	begun := time.Now()
	r.mu.Lock()
	tries := r.pause != 0
	if tries {
		if begun.Before(r.until) {
			r.mu.Unlock()
			return errResting
		}
		r.until = begun.Add(timeout) // the others wait for what this one finds
	}
	r.mu.Unlock()
	err := f()
	ended := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hangs = err != nil && ended.Sub(begun) >= timeout/2
	switch {
	case err == nil:
		r.failures, r.pause = 0, 0
		return nil
	case tries:
		r.pause = min(2*r.pause, maxRest)
	case r.pause != 0: // this one began before the pause
		return err
	case begun.Before(r.failed) && ended.Sub(r.failed) < restApart:
		return err
	default:
		r.failed = ended
		if r.failures++; r.failures < restAfter {
			return err
		}
		r.pause = minRest
	}
	r.until = ended.Add(r.pause)
	return err
}

// resting reports whether a call would not be made.
func (r *rest) resting() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.pause != 0 && time.Now().Before(r.until)
}

// hurry ends a pause: the next call tries.
func (r *rest) hurry() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.until = time.Time{}
}

// hanging is resting where calls are not refused but take their time.
func (r *rest) hanging() bool {
	r.mu.Lock()
	hangs := r.hangs
	r.mu.Unlock()
	return hangs && r.resting()
}

func (b *backing) get(ctx context.Context, key string) (value []byte, err error) {
	err = b.reads.call(b.timeout, func() error {
		value, err = b.store.Get(ctx, key)
		return err
	})
	return value, err
}

func (b *backing) set(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	return b.writes.call(b.timeout, func() error { return b.store.Set(ctx, key, value, ttl) })
}

func (b *backing) delete(ctx context.Context, key string) error {
	return b.deletes.call(b.timeout, func() error { return b.store.Delete(ctx, key) })
}

type generation struct {
	id      uint64
	read    time.Time
	unsaved bool // the store does not know it yet
	unknown bool // another server has begun one, and it has not been read yet
	past    []uint64
}

// maxPast is how many of the generations before are known: a store that goes back in time, as one that fails over may, has one of the newest.
const maxPast = 16

// before are the generations before one that comes after g.
func (g *generation) before(id uint64) []uint64 {
	if g == nil {
		return nil
	}
	if g.unknown || g.id == id {
		return g.past
	}
	past := append([]uint64{g.id}, g.past...)
	return past[:min(len(past), maxPast)]
}

const generationKey = "spillgate:generation"

func newBacking(s Store, timeout time.Duration) *backing {
	b := &backing{store: s, timeout: timeout, renewing: make(chan struct{}, 1)}
	for i := range b.turns {
		b.turns[i] = make(chan struct{}, 1)
	}
	return b
}

func (b *backing) failed(err error) bool {
	if err != nil && err != errResting {
		b.errors.Add(1)
	}
	return err != nil
}

func (b *backing) context() (context.Context, context.CancelFunc) {
	// Not a request's context: what is begun for one client serves the others as well.
	return context.WithTimeout(context.Background(), b.timeout)
}

// current returns the generation; false if it cannot be known now.
func (b *backing) current(now time.Time) (uint64, bool) {
	g := b.generation.Load()
	if g != nil && now.Sub(g.read) < time.Second || !b.reading.CompareAndSwap(false, true) {
		return b.known(g)
	}
	defer b.reading.Store(false)
	ctx, cancel := b.context()
	defer cancel()
	if g != nil && g.unsaved {
		return b.renew(g, rand.Uint64(), now)
	}
	v, err := b.get(ctx, generationKey)
	if b.failed(err) {
		return b.known(g)
	}
	id, err := strconv.ParseUint(string(v), 16, 64)
	switch {
	case err == nil && g != nil && slices.Contains(g.past, id):
		// What was purged since would be valid again. A new one, since others may have seen the two in the other order.
		return b.renew(g, rand.Uint64(), now)
	case err == nil:
		b.generation.CompareAndSwap(g, &generation{id: id, read: now, past: g.before(id)})
		return b.known(b.generation.Load())
	case g != nil && !g.unknown:
		return b.renew(g, g.id, now) // it was forgotten there
	}
	return b.renew(g, rand.Uint64(), now)
}

func (b *backing) known(g *generation) (uint64, bool) {
	if g == nil || g.unknown {
		return 0, false
	}
	return g.id, true
}

// renew begins a generation, in place of old. Generations are written one after the other, and none that is
// not the newest by then: what the store has in the end must be.
func (b *backing) renew(old *generation, id uint64, now time.Time) (uint64, bool) {
	return b.renewWithin(context.Background(), old, id, now)
}

// renewWithin is renew for what ends with ctx.
func (b *backing) renewWithin(ctx context.Context, old *generation, id uint64, now time.Time) (uint64, bool) {
	next := &generation{id: id, read: now, unsaved: true, past: old.before(id)}
	b.turnWithin(ctx, b.renewing, &b.writes, func(ctx context.Context) {
		if b.generation.Load() == old {
			next.unsaved = b.failed(b.set(ctx, generationKey, strconv.AppendUint(nil, id, 16), 10*365*24*time.Hour))
		}
	})
	b.generation.CompareAndSwap(old, next)
	return b.known(b.generation.Load())
}

// clear makes everything in the store invalid. It reports false if the store could not be told yet.
func (b *backing) clear() bool {
	id := rand.Uint64()
	next := &generation{id: id, read: time.Now(), unsaved: true, past: b.generation.Load().before(id)}
	b.generation.Store(next) // at once for this process, whatever the store does
	b.renew(next, id, next.read)
	g := b.generation.Load()
	return g.id != id || !g.unsaved
}

// unsettled returns the generation if the store has not been told yet that everything in it is invalid, and nil else: a server that does not know serves it.
func (b *backing) unsettled() *generation {
	if g := b.generation.Load(); g != nil && g.unsaved {
		return g
	}
	return nil
}

const settlePause = time.Second

// settle sees to it that the store is told, also where it is left alone and nobody asks it for anything, until ctx ends or, with once, the store knows.
func (b *backing) settle(ctx context.Context, once bool) {
	for ctx.Err() == nil {
		if g := b.unsettled(); g != nil {
			b.writes.hurry()
			b.renewWithin(ctx, g, rand.Uint64(), time.Now())
		}
		if once && b.unsettled() == nil {
			return
		}
		pause(ctx, settlePause)
	}
}

// remind has the store told beside a request that asks it for nothing, where it is not left alone.
func (b *backing) remind(now time.Time) {
	if g := b.unsettled(); g != nil && now.Sub(g.read) >= settlePause && !b.writes.resting() && !b.reading.Load() {
		go b.current(now)
	}
}

// outdated has the generation read before the store is used again.
func (b *backing) outdated() {
	g := b.generation.Load()
	if g != nil && g.unsaved {
		b.clear() // what was saved under the one that only we know may be older than the one that is in the store
		return
	}
	next := &generation{unknown: true}
	if g != nil {
		next.past = g.past // and not its own: it may be the newest still
	}
	b.generation.Store(next)
}

// mayRecall reports whether the store may have what memory has not: where that has nothing under a URL, not the variant that is asked for, or what others
// may have purged.
func (c *Cache) mayRecall(res *resource, e *entry, now time.Time) bool {
	switch {
	case c.backing == nil:
		return false
	case res == nil:
		return true
	case e == nil:
		return res.look(c.second(now))
	}
	return c.doubted(e)
}

// doubted reports whether an entry is one that others may have purged.
func (c *Cache) doubted(e *entry) bool { return c.relayed != nil && e.purged() }

// recallAlone is recall for a request that waits for no other one, and is waited for by none.
func (h *route) recallAlone(r *http.Request, now time.Time, hash uint64, key []byte, extra string, res *resource, e *entry) bool {
	c := h.cache
	if !c.mayRecall(res, e, now) {
		return false
	}
	fl := &fill{h: h, r: r, asked: now, hash: hash, key: string(key), extra: extra, variant: res != nil && e == nil}
	fl.since = c.store.beginAlone(hash)
	found := fl.recall()
	c.store.over(hash, fl.since)
	return found
}

// recall brings what the store has under the key of a fill into memory, and reports whether that
// was anything.
func (fl *fill) recall() bool {
	c := fl.h.cache
	b := c.backing
	done := false
	defer func() {
		if !done { // the store has panicked, and there is no run that would end the flight
			fl.end(failed, nil, false)
			c.store.over(fl.hash, fl.since)
		}
	}()
	found := fl.recallFrom(b)
	done = true
	return found
}

func (fl *fill) recallFrom(b *backing) bool {
	c := fl.h.cache
	if c.relayed != nil && !c.relayed.trusts(fl.hash, fl.asked) {
		return false
	}
	id, ok := b.current(fl.asked)
	if !ok {
		return false
	}
	ctx, cancel := b.context()
	defer cancel()
	value, err := b.get(ctx, fl.key)
	if b.failed(err) || len(value) == 0 {
		return false
	}
	entries, err := decodeRecord(value, id, time.Now())
	if b.failed(err) {
		return false
	}
	found := false
	for _, e := range slices.Backward(entries) { // the newest last, as they were stored
		if fl.variant && !e.selects(fl.extra, fl.r.Header) {
			continue // memory has its own, which are not to make room
		}
		if int64(len(e.body)) <= c.maxObject.Load() && c.store.put(fl.hash, fl.key, e, nil, fl.since) {
			found = true
		}
	}
	if found {
		b.hits.Add(1)
	}
	return found
}

// decodeRecord makes entries of a record: none of one that belongs to another generation, or makes no sense.
func decodeRecord(value []byte, generation uint64, now time.Time) ([]*entry, error) {
	rec, err := readRecord(value)
	if err != nil || rec.generation != generation {
		return nil, err
	}
	var out []*entry
	for i := range rec.variants {
		if e := rec.variants[i].entry(now); e != nil {
			out = append(out, e)
		}
	}
	return out, nil
}

// save writes the variant that a fill has made to the store, unless a purge came since the fill began, and with it those that are there already,
// where memory has them as well. What memory alone has was purged by another server, or is about to be here.
func (fl *fill) save() {
	c := fl.h.cache
	b, id := c.backing, fl.generation
	b.turn(b.turnOf(fl.hash), &b.writes, func(context.Context) {
		// Within the turn, or two that are stored at once would leave each other out.
		there := fl.othersThere()
		if c.relayed != nil && !c.relayed.saves(fl.hash) { // before it is looked whether a purge came
			return
		}
		res := c.store.get(fl.hash, []byte(fl.key))
		if res == nil || !c.store.stands(fl.hash, fl.since) {
			return
		}
		own := res.variant(fl.extra, fl.r.Header)
		rec := record{generation: id}
		now := time.Now()
		var keep time.Duration
		for _, e := range res.variants {
			if e.part != nil || e.purged() {
				continue
			}
			if e != own {
				i := slices.IndexFunc(there, e.sameVariant)
				if i < 0 {
					continue
				}
				e = there[i] // which may be a newer one
			}
			rec.variants = append(rec.variants, e.record())
			keep = max(keep, fl.h.rules.useful(e, now))
		}
		if len(rec.variants) > 0 && keep > 0 {
			ctx, cancel := b.context() // not the turn's, of which the Get may have taken most
			defer cancel()
			b.failed(b.set(ctx, fl.key, rec.encode(), keep))
		}
	})
}

// othersThere are the variants that the store has under the key of a fill, if memory has any beside that of the fill.
func (fl *fill) othersThere() []*entry {
	c := fl.h.cache
	b := c.backing
	res := c.store.get(fl.hash, []byte(fl.key))
	if res == nil {
		return nil
	}
	own := res.variant(fl.extra, fl.r.Header)
	if !slices.ContainsFunc(res.variants, func(e *entry) bool { return e != own && e.part == nil && !e.purged() }) {
		return nil
	}
	if c.relayed != nil && !c.relayed.trusts(fl.hash, time.Now()) {
		return nil // another server may have saved what it had asked for before the purge
	}
	ctx, cancel := b.context()
	defer cancel()
	value, err := b.get(ctx, fl.key)
	if b.failed(err) || len(value) == 0 {
		return nil
	}
	entries, err := decodeRecord(value, fl.generation, time.Now())
	b.failed(err)
	return entries
}

// sameVariant reports whether another entry is for the same requests.
func (e *entry) sameVariant(o *entry) bool { return e.extra == o.extra && sameChoice(e, o) }

// unsave deletes from the store what memory no longer has.
func (fl *fill) unsave() {
	b := fl.h.cache.backing
	b.turn(b.turnOf(fl.hash), &b.deletes, func(ctx context.Context) { b.failed(b.delete(ctx, fl.key)) })
}

// useful is how long an entry may still be of use: fresh, stale, or to be validated.
func (p *rules) useful(e *entry, now time.Time) time.Duration {
	window := max(e.whileStale, e.ifError, p.whileStale, p.ifError, p.ifUnreachable)
	if e.etag != "" || e.lastModified != "" {
		window = max(window, time.Hour)
	}
	return e.lifetime - e.age(now) + min(window, maxDelta*time.Second)
}

// turn runs f, which makes calls of a kind, while nobody else is in the same turn, unless the store is left alone. One that takes nothing more, since its
// memory is full, still deletes.
func (b *backing) turn(slot chan struct{}, kind *rest, f func(context.Context)) {
	b.turnWithin(context.Background(), slot, kind, f)
}

// turnWithin is turn for what ends with ctx.
func (b *backing) turnWithin(ctx context.Context, slot chan struct{}, kind *rest, f func(context.Context)) {
	if kind.resting() || kind == &b.deletes && b.writes.hanging() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, b.timeout)
	defer cancel()
	select {
	case slot <- struct{}{}:
		defer func() { <-slot }()
		f(ctx)
	case <-ctx.Done():
		b.failed(ctx.Err())
	}
}

// turnOf is the turn of those who write under a key.
func (b *backing) turnOf(hash uint64) chan struct{} { return b.turns[hash%uint64(len(b.turns))] }

// purgeOne purges a key in memory and in the store. It reports whether the store could not be told.
func (c *Cache) purgeOne(key []byte, soft bool) (n int, lost bool) {
	hash := maphash.Bytes(c.store.seed, key)
	b := c.backing
	if b == nil {
		return c.store.purge(hash, string(key), soft), false
	}
	if c.relayed != nil {
		c.relayed.purges(hash)
	}
	// The store first, so that what memory has forgotten cannot be recalled; and both in one turn,
	// so that no fill that began before saves between them.
	done := false
	b.turn(b.turnOf(hash), &b.deletes, func(ctx context.Context) {
		if b.failed(b.delete(ctx, string(key))) {
			return
		}
		n, done = c.store.purge(hash, string(key), soft), true
	})
	if !done {
		lost = !b.clear() // it must not come back, whatever that costs
		n = c.store.purge(hash, string(key), soft)
	}
	return n, lost
}

// purgeMany purges what matches in memory. The store cannot be searched, and is cleared; it is reported whether it could not be told.
func (c *Cache) purgeMany(p purge, match func(*resource, *entry) bool) (n int, lost bool) {
	if c.backing != nil {
		lost = !c.backing.clear()
	}
	return c.store.purgeFunc(p.soft, p.size(), match), lost
}

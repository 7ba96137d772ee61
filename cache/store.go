package cache

import (
	"hash/maphash"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// resource is what is stored under one primary key: its variants, newest first. It is replaced as
// a whole, and nothing of it but looked ever changed.
type resource struct {
	key      string
	hash     uint64
	variants []*entry
	looked   atomic.Int64 // when a Store was last asked for another variant, in seconds since the cache began, and 1 more
}

// look reports whether a Store is to be asked for another variant: once a second, since there may be none for whoever asks.
func (r *resource) look(second int64) bool {
	last := r.looked.Load()
	return last != second+1 && r.looked.CompareAndSwap(last, second+1)
}

func (r *resource) cost() int64 {
	n := int64(len(r.key))
	for _, e := range r.variants {
		n += e.counted
	}
	return n
}

// shard is a part of the store with a lock of its own.
type shard struct {
	mu       sync.Mutex
	lru      *simplelru.LRU[uint64, *resource] // by the seeded hash of the key, which is compared
	underway map[uint64]*underway
	spare    *underway          // the last one that ended
	flights  map[string]*flight // those that are not the first of their key
	_        [64]byte           // no two locks in one cache line
}

// store keeps resources in shards, each least recently used first, under one budget of bytes that
// all of them share.
type store struct {
	seed      maphash.Seed
	shards    []shard
	mask      uint64
	maxBytes  atomic.Int64
	bytes     atomic.Int64
	entries   atomic.Int64
	evictions atomic.Int64

	maxEntries, maxVariants int

	// Purges of many keys are counted here, those of one key beside its fills; a fill is stored
	// only if none that is about its response came since it began.
	purges atomic.Uint64

	purging sync.Mutex                              // guards what comes, and held where purges is changed
	recent  [maxRecent]func(*resource, *entry) bool // what the last ones match, by their number; nil: not known any more
}

// maxRecent is of how many purges of many keys it is known what they match, and maxMatch how many bytes that may be of each. Where there were more of
// them since a fill began, it is taken for one that they are about.
const maxRecent, maxMatch = 128, 16 << 10

// underway is what is being done for a key: how many fills, how often it was purged since the first of
// them began, and a flight that may be joined. The lock of the shard guards it.
type underway struct {
	fills  int
	purges uint64
	first  *flight
}

// epoch is the state of the purge counts when a fill began. Every fill begins and ends one.
type epoch struct {
	all, one uint64
	key      *underway
}

func newStore(maxBytes int64, shards, maxEntries, maxVariants int) *store {
	s := &store{seed: maphash.MakeSeed(), shards: make([]shard, shards), mask: uint64(shards - 1),
		maxEntries: maxEntries, maxVariants: maxVariants}
	s.maxBytes.Store(maxBytes)
	for i := range s.shards {
		lru, err := simplelru.NewLRU[uint64, *resource](math.MaxInt, nil)
		if err != nil {
			panic("cache: " + err.Error())
		}
		s.shards[i].lru = lru
		s.shards[i].underway = make(map[uint64]*underway)
		s.shards[i].flights = make(map[string]*flight)
	}
	return s
}

func (s *store) shard(hash uint64) *shard { return &s.shards[hash&s.mask] }

// begin notes that a fill for a key begins. The lock of the shard must be held.
func (s *store) begin(sh *shard, hash uint64) epoch {
	u := sh.underway[hash]
	if u == nil {
		if u = sh.spare; u == nil {
			u = new(underway)
		}
		sh.spare = nil
		sh.underway[hash] = u
	}
	u.fills++
	return epoch{s.purges.Load(), u.purges, u}
}

// current reports whether no purge came since a fill began. The lock of the shard must be held.
func (s *store) current(e epoch) bool { return e.all == s.purges.Load() && e.one == e.key.purges }

// spares reports whether the purges of many keys that came since a fill began are about others than the entry that it made, and than the one that it
// was made from, if there is one. The lock of the shard must be held.
func (s *store) spares(since epoch, r *resource, made, from *entry) bool {
	if since.all == s.purges.Load() {
		return true
	}
	s.purging.Lock()
	defer s.purging.Unlock()
	last := s.purges.Load()
	if last-since.all > maxRecent {
		return false
	}
	for n := since.all + 1; n <= last; n++ {
		if match := s.recent[n%maxRecent]; match == nil || match(r, made) || from != nil && match(r, from) {
			return false
		}
	}
	return true
}

// beginAlone is begin for a fill without a flight.
func (s *store) beginAlone(hash uint64) epoch {
	sh := s.shard(hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return s.begin(sh, hash)
}

// stands is current for a caller who does not hold the lock.
func (s *store) stands(hash uint64, e epoch) bool {
	sh := s.shard(hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return s.current(e)
}

// over ends what begin began. Its flight has landed.
func (s *store) over(hash uint64, e epoch) {
	sh := s.shard(hash)
	sh.mu.Lock()
	if e.key.fills--; e.key.fills == 0 {
		delete(sh.underway, hash)
		*e.key = underway{}
		sh.spare = e.key
	}
	sh.mu.Unlock()
}

// get returns the resource under a key, or nil, and makes it the last to be evicted.
func (s *store) get(hash uint64, key []byte) *resource {
	sh := s.shard(hash)
	sh.mu.Lock()
	r, _ := sh.lru.Get(hash)
	sh.mu.Unlock()
	if r == nil || r.key != string(key) {
		return nil
	}
	return r
}

// peek is get without the move, for a caller who holds the lock.
func (sh *shard) peek(hash uint64, key string) *resource {
	if r, _ := sh.lru.Peek(hash); r != nil && r.key == key {
		return r
	}
	return nil
}

// inUse reports whether there is a variant under a key, besides one, that is fresh, or was a short while ago.
func (s *store) inUse(hash uint64, key string, besides *entry, now time.Time) bool {
	sh := s.shard(hash)
	sh.mu.Lock()
	r := sh.peek(hash, key)
	sh.mu.Unlock()
	return r != nil && slices.ContainsFunc(r.variants, func(e *entry) bool {
		return e != besides && !e.noCache && !e.purged() && e.age(now) < e.lifetime+markFor
	})
}

// put stores a variant beside the others of its resource, in place of the one that it supersedes; the
// newest of them stay, as far as there is room. from is the entry that it was made from; nil if there is none. It
// reports false if a purge of either came since the epoch, or there is no room for the variant by itself.
func (s *store) put(hash uint64, key string, e, from *entry, since epoch) bool {
	sh := s.shard(hash)
	sh.mu.Lock()
	room := s.maxBytes.Load() - int64(len(key)) - e.counted
	next := &resource{key: key, hash: hash, variants: []*entry{e}}
	if since.one != since.key.purges || room < 0 || !s.spares(since, next, e, from) {
		sh.mu.Unlock()
		return false
	}
	most := s.maxVariants
	if s.maxEntries > 0 {
		most = min(most, s.maxEntries)
	}
	old, _ := sh.lru.Peek(hash)
	if old != nil && old.key != key {
		s.drop(sh, old) // one hash for two keys: it happens once in a lifetime
		old = nil
	}
	var before int64
	var count int
	if old == nil && e.extra != "" {
		next.key = strings.Clone(key) // it is the beginning of a flight's, and would keep all of that
	}
	if old != nil {
		next.key = old.key
		next.looked.Store(old.looked.Load())
		before, count = old.cost(), len(old.variants)
		parts := 0
		if e.part != nil {
			parts = 1
		}
		for _, v := range old.variants {
			if len(next.variants) == most {
				break
			}
			if supersedes(e, v) {
				continue
			}
			if v.part != nil {
				if parts++; parts > maxPartials {
					continue
				}
			}
			if room -= v.counted; room < 0 {
				break
			}
			next.variants = append(next.variants, v)
		}
	}
	sh.lru.Add(hash, next)
	s.bytes.Add(next.cost() - before)
	s.entries.Add(int64(len(next.variants) - count))
	s.shrinkLocked(sh, 1)
	sh.mu.Unlock()
	s.shrink(hash)
	return true
}

// supersedes reports whether a new variant answers the requests that an old one answered. A part
// supersedes the parts that it covers, and those of another representation.
func supersedes(e, old *entry) bool {
	if e.extra != old.extra {
		return false
	}
	if e.part == nil {
		return e.chosenFor(old)
	}
	return old.part != nil && sameChoice(e, old) &&
		(e.etag != old.etag || e.part.first <= old.part.first && e.part.end(e.body) >= old.part.end(old.body))
}

func (s *store) full() bool {
	return s.bytes.Load() > s.maxBytes.Load() || s.maxEntries > 0 && s.entries.Load() > int64(s.maxEntries)
}

// shrinkLocked evicts from one shard until the store is within its bounds, but leaves the newest
// keep resources of the shard.
func (s *store) shrinkLocked(sh *shard, keep int) {
	for s.full() && sh.lru.Len() > keep {
		_, r, ok := sh.lru.RemoveOldest()
		if !ok {
			return
		}
		s.forget(r)
		s.evictions.Add(int64(len(r.variants)))
	}
}

// shrink evicts from the other shards, where the own one was not enough.
func (s *store) shrink(hash uint64) {
	for i := uint64(1); i <= s.mask+1 && s.full(); i++ {
		sh := s.shard(hash + i)
		sh.mu.Lock()
		s.shrinkLocked(sh, 0)
		sh.mu.Unlock()
	}
}

func (s *store) forget(r *resource) {
	s.bytes.Add(-r.cost())
	s.entries.Add(-int64(len(r.variants)))
}

// purge removes a resource or makes it stale, and voids every fill for it that is under way. It
// returns how many variants there were.
func (s *store) purge(hash uint64, key string, soft bool) int {
	sh := s.shard(hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if u := sh.underway[hash]; u != nil {
		u.purges++
	}
	r := sh.peek(hash, key)
	if r == nil {
		return 0
	}
	return s.dropMatching(sh, r, soft, func(*resource, *entry) bool { return true })
}

// remove takes one variant out, and voids no fill.
func (s *store) remove(hash uint64, key string, gone *entry) {
	s.removeMatching(hash, key, func(e *entry) bool { return e == gone })
}

// removeMatching is remove for the variants that match.
func (s *store) removeMatching(hash uint64, key string, match func(*entry) bool) {
	sh := s.shard(hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if r := sh.peek(hash, key); r != nil {
		s.dropMatching(sh, r, false, func(_ *resource, e *entry) bool { return match(e) })
	}
}

func (s *store) drop(sh *shard, r *resource) {
	sh.lru.Remove(r.hash)
	s.forget(r)
}

// purgeFunc removes the variants that match, or makes them stale, and voids the fills under way whose response
// does. It walks the whole store, one shard at a time. The size is that of what match holds, in bytes.
func (s *store) purgeFunc(soft bool, size int, match func(*resource, *entry) bool) int {
	s.purging.Lock()
	number := s.purges.Load() + 1
	if s.recent[number%maxRecent] = match; size > maxMatch {
		s.recent[number%maxRecent] = nil
	}
	s.purges.Store(number)
	s.purging.Unlock()
	n := 0
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		for _, r := range sh.lru.Values() {
			n += s.dropMatching(sh, r, soft, match)
		}
		sh.mu.Unlock()
	}
	return n
}

func (s *store) dropMatching(sh *shard, r *resource, soft bool, match func(*resource, *entry) bool) int {
	var kept []*entry
	n := 0
	for _, e := range r.variants {
		if !match(r, e) {
			kept = append(kept, e)
			continue
		}
		n++
		if soft {
			e.expire(time.Now())
		}
	}
	switch {
	case n == 0 || soft:
	case len(kept) == 0:
		s.drop(sh, r)
	default:
		next := &resource{key: r.key, hash: r.hash, variants: kept}
		next.looked.Store(r.looked.Load())
		s.bytes.Add(next.cost() - r.cost())
		s.entries.Add(int64(-n))
		sh.lru.Add(r.hash, next)
	}
	return n
}

package cache

import (
	"sync/atomic"
	"time"
)

// markers remembers the keys whose responses are not for sharing, so that nobody waits for
// them: hit-for-miss. It is a fixed table of words without pointers; a mark costs one word,
// whatever its key, and a flood of keys only overwrites the oldest marks.
//
// A word holds 36 bits of the key's seeded hash and the second when the mark ends. Two keys that
// share both place and hash, one pair in 2^47, share a mark: the wrong one is then not cached
// for markFor.
type markers struct {
	slots []atomic.Uint64
}

const (
	markFor   = 30 * time.Second
	markSets  = 2048
	markWays  = 4
	markBits  = 28 // of seconds: eight years
	markMask  = 1<<markBits - 1
	authSalt  = 0x9e3779b97f4a7c15 // marks of requests with credentials are apart
	setShift  = 64 - 11
	tagShift  = 0
	tagLength = 36
)

func newMarkers() markers { return markers{make([]atomic.Uint64, markSets*markWays)} }

func (m *markers) set(hash uint64) []atomic.Uint64 {
	i := hash >> setShift * markWays
	return m.slots[i : i+markWays]
}

func markTag(hash uint64) uint64 { return hash << (64 - tagLength) >> (64 - tagLength) << markBits }

// live reports whether a key is marked, at a second since the cache began.
func (m *markers) live(hash uint64, second int64) bool {
	tag := markTag(hash)
	set := m.set(hash)
	for i := range set {
		if w := set[i].Load(); w&^markMask == tag && int64(w&markMask) > second {
			return true
		}
	}
	return false
}

// add marks a key.
func (m *markers) add(hash uint64, second int64) {
	tag := markTag(hash)
	until := uint64(second+int64(markFor/time.Second)) & markMask
	set := m.set(hash)
	oldest := 0
	for i := range set {
		w := set[i].Load()
		if w&^markMask == tag {
			oldest = i
			break
		}
		if w&markMask < set[oldest].Load()&markMask {
			oldest = i
		}
	}
	set[oldest].Store(tag | until)
}

// remove ends the mark of a key.
func (m *markers) remove(hash uint64) {
	tag := markTag(hash)
	set := m.set(hash)
	for i := range set {
		if w := set[i].Load(); w != 0 && w&^markMask == tag {
			set[i].CompareAndSwap(w, 0)
		}
	}
}

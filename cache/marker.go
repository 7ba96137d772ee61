package cache

import (
	"net/http"
	"strings"
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
	markAgain = 15                 // seconds left at which a mark is looked at again
	authSalt  = 0x9e3779b97f4a7c15 // marks of requests with credentials are apart,
	cookSalt  = 0xbf58476d1ce4e5b9 // and those of requests with cookies
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

// left returns for how many more seconds a key is marked, at a second since the cache began; 0 or
// less if it is not.
func (m *markers) left(hash uint64, second int64) int64 {
	tag := markTag(hash)
	set := m.set(hash)
	for i := range set {
		if w := set[i].Load(); w&^markMask == tag {
			return int64(w&markMask) - second
		}
	}
	return 0
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

// stillRefused reports whether the response that has just passed a marked key leaves no doubt that
// it was not for sharing either. It looks at what is there without taking anything apart: in doubt
// the mark ends, and the next response is judged in full.
func (p *rules) stillRefused(h http.Header) bool {
	h = canonicalFields(h)
	for _, name := range p.targets {
		if len(h[name]) != 0 {
			return false
		}
	}
	if p.surrogate != "" && len(h["Surrogate-Control"]) != 0 || p.ttl != nil {
		return false
	}
	if cc := h["Cache-Control"]; len(cc) != 0 {
		return len(cc) == 1 && (strings.Contains(cc[0], "no-store") || strings.Contains(cc[0], "private")) &&
			!strings.ContainsAny(cc[0], `"`) && !strings.Contains(cc[0], "must-understand")
	}
	return len(h["Expires"]) == 0 && (p.onlyExplicit || len(h["Last-Modified"]) == 0)
}

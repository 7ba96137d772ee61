package limiter

import (
	"crypto/sha256"
	"strings"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// tableExactKey is how long a key may be that is kept as it is: what a client may choose must not
// decide how much memory is held.
const tableExactKey = 256

// tableExact keeps keys themselves instead of their hashes, in the order of their last use.
type tableExact struct {
	size  int
	words int // of a key
	lru   *simplelru.LRU[string, []int64]
}

func newTableExact(size, words int) tableExact {
	lru, err := simplelru.NewLRU[string, []int64](size, nil)
	if err != nil {
		panic("limiter: NewRate: WithExactKeys: " + err.Error())
	}
	return tableExact{size: size, words: words, lru: lru}
}

// keyName returns what stands for a key; above tableExactKey bytes that is its SHA-256, and so it is for a key that
// looks like one.
func keyName(key string) string {
	const hashed = "sha256:"
	if len(key) <= tableExactKey && !strings.HasPrefix(key, hashed) {
		return key
	}
	sum := sha256.Sum256([]byte(key))
	return hashed + string(sum[:])
}

func (e *tableExact) find(key string) []int64 {
	cells, _ := e.lru.Get(keyName(key))
	return cells
}

// fullOfLive reports whether a new key would displace a live bucket: that of the oldest key. It spares so many oldest keys
// whose buckets are live, and looks at the next, or one key that is long in debt would keep the place of all that are full again.
func (e *tableExact) fullOfLive(rules *tableRules, ns int64, spare int) bool {
	if e.lru.Len() < e.size {
		return false
	}
	for ; ; spare-- {
		name, oldest, _ := e.lru.GetOldest()
		if rules.full(oldest, ns) == 0 {
			return false
		}
		if spare == 0 {
			return true
		}
		e.lru.Get(name) // it is the newest now
	}
}

// next returns the name of the key that a new one displaces, if there is no room.
func (e *tableExact) next() (name string, full bool) {
	if e.lru.Len() < e.size {
		return "", false
	}
	name, _, full = e.lru.GetOldest()
	return name, full
}

func (e *tableExact) insert(key string, cells []int64) {
	// The clone lets go of whatever the key was cut out of, such as a request's header.
	e.lru.Add(strings.Clone(keyName(key)), append(make([]int64, 0, e.words), cells...))
}

func (e *tableExact) remove(key string) { e.lru.Remove(keyName(key)) }

func (e *tableExact) each(fn func([]int64)) {
	for _, cells := range e.lru.Values() {
		fn(cells)
	}
}

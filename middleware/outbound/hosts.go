package outbound

import (
	"fmt"
	"hash/maphash"
	"net/http"
	"strings"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// hostOf is the default key of all layers: host and port as the URL has them, in
// lower case.
func hostOf(req *http.Request) string { return strings.ToLower(req.URL.Host) }

// maxHosts bounds what is kept by host; who can choose the hosts that are called
// must not be able to choose our memory.
const maxHosts = 1024

// maxKey bounds what is kept of a key, which a redirect or, with [WithKey], a client may have chosen: one
// that is longer is known by its beginning and a hash of it.
const maxKey = 256

var keySeed = maphash.MakeSeed()

func shorten(key string) string {
	if len(key) <= maxKey {
		return key
	}
	return key[:maxKey-17] + fmt.Sprintf("#%016x", maphash.String(keySeed, key))
}

// hosts keeps a value for each of up to maxHosts keys and forgets the one that
// was not asked for longest.
type hosts[V any] struct {
	mu  sync.Mutex
	lru *simplelru.LRU[string, V]
	new func() V
}

func newHosts[V any](fresh func() V) *hosts[V] {
	lru, err := simplelru.NewLRU[string, V](maxHosts, nil)
	if err != nil {
		panic(err) // only for a size below 1
	}
	return &hosts[V]{lru: lru, new: fresh}
}

func (h *hosts[V]) get(key string) V {
	key = shorten(key)
	if v, ok := h.known(key); ok {
		return v
	}
	fresh := h.new() // without the lock: it may be a function of the user's
	h.mu.Lock()
	defer h.mu.Unlock()
	if v, ok := h.lru.Get(key); ok {
		return v
	}
	h.lru.Add(strings.Clone(key), fresh) // key may be a part of a long URL
	return fresh
}

func (h *hosts[V]) known(key string) (V, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.lru.Get(key)
}

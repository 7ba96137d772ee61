package limiter

// tableHeld is what calls of Wait have reserved of the buckets of one key since these were last forgotten: what is in the
// slot of the key afterwards has nothing to do with it.
type tableHeld struct {
	calls     int
	forgotten bool
}

// heldHash returns the hash of a key among those held. Of exact keys that of their names, which is all that is known of one that is displaced.
func (t *table) heldHash(hash uint64, key string) uint64 {
	if t.exact {
		return t.hash(keyName(key))
	}
	return hash
}

// hold notes a reservation of a key. The shard is locked.
func (sh *tableShard) hold(hash uint64) *tableHeld {
	h := sh.held[hash]
	if h == nil {
		if sh.held == nil {
			sh.held = make(map[uint64]*tableHeld)
		}
		h = &tableHeld{}
		sh.held[hash] = h
	}
	h.calls++
	return h
}

// forget says that the buckets of a key are full now, or another key's. The shard is locked.
func (sh *tableShard) forget(hash uint64) {
	if h := sh.held[hash]; h != nil {
		h.forgotten = true
		delete(sh.held, hash)
	}
}

// waited ends hold: the wait for a reservation is over.
func (t *table) waited(key string, h *tableHeld) {
	hash := t.hash(key)
	_, sh := t.locate(hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if h.calls--; h.calls == 0 && !h.forgotten {
		delete(sh.held, t.heldHash(hash, key))
	}
}

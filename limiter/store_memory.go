package limiter

import (
	"context"
	"fmt"
	"hash/maphash"
	"math"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// MemoryStore is a [Store] in this process. It lets several Rates share their buckets, and stands in for a remote
// store in tests. Buckets are told apart by the key and the names of all policies; limits and bursts may change from
// one event to the next, and differ from key to key. At most two bursts can be spent, the second as a debt.
//
// Make one with [NewMemoryStore]. It is safe for concurrent use.
type MemoryStore struct {
	base   time.Time
	seed   maphash.Seed
	size   int // the most keys of a shard
	shards []memoryShard
}

type memoryShard struct {
	mu   sync.Mutex
	keys map[memoryKey]*memoryBuckets
	_    [64]byte // keeps neighbours off each other's cache lines
}

type memoryKey struct{ names, key string }

// memoryBuckets are the buckets of one key.
type memoryBuckets struct {
	at    time.Duration // when it was written, since base
	full  time.Duration // when the last of them is full again, since base: from then on the key is one never seen
	spent []float64     // what was spent of each then
}

const (
	memoryShards = 16
	memoryFew    = 1024 // up to so many keys are in one shard
	memorySample = 16   // how many keys are looked at for one to forget
)

// NewMemoryStore returns a MemoryStore with room for maxKeys keys, or a few more. The memory is taken as keys come.
// When there is no room left, a new key takes the place of one whose buckets are full; if none is found, it takes the
// place of the one among sixteen picked at random whose buckets will be full soonest. It panics if maxKeys is below 1
// or above 2^32.
func NewMemoryStore(maxKeys int) *MemoryStore {
	checkMaxKeys("NewMemoryStore", maxKeys)
	n := memoryShards
	if maxKeys <= memoryFew {
		n = 1
	}
	m := &MemoryStore{base: time.Now(), seed: maphash.MakeSeed(), size: (maxKeys-1)/n + 1, shards: make([]memoryShard, n)}
	for i := range m.shards {
		m.shards[i].keys = make(map[memoryKey]*memoryBuckets)
	}
	return m
}

// Take implements [Store]. It returns an error, and has taken nothing, if ctx has ended, if there is no policy, if
// states has another length, or if a limit or burst is out of range.
func (m *MemoryStore) Take(ctx context.Context, req StoreRequest, states []PolicyState) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	if len(req.Policies) == 0 || len(states) != len(req.Policies) {
		return false, fmt.Errorf("limiter: MemoryStore: %d policies and %d states: give one or more policies, and as many states", len(req.Policies), len(states))
	}
	for _, p := range req.Policies {
		if math.IsNaN(float64(p.Limit)) || p.Limit < 0 || p.Burst < 0 {
			return false, fmt.Errorf("limiter: MemoryStore: policy %q has limit %v and burst %d: give 0 or more", p.Name, p.Limit, p.Burst)
		}
	}
	name := memoryKey{req.Policies[0].Name, keyName(req.Key)}
	if len(req.Policies) > 1 {
		var b strings.Builder
		for _, p := range req.Policies {
			b.WriteString(p.Name)
			b.WriteByte('"') // in no name
		}
		name.names = b.String()
	}
	sh := &m.shards[maphash.String(m.seed, name.key)%uint64(len(m.shards))]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return sh.take(time.Since(m.base), name, &req, states, m.size), nil
}

// take decides. The shard is locked.
func (sh *memoryShard) take(now time.Duration, name memoryKey, req *StoreRequest, states []PolicyState, size int) bool {
	held := sh.keys[name]
	ok := true
	var few [ratePolicyMax]float64
	spent := few[:0]
	for i, p := range req.Policies {
		s := 0.
		if held != nil && !policyInfinite(p.Limit) {
			s = max(0, held.spent[i]-(now-held.at).Seconds()*float64(p.Limit))
		}
		ok = ok && memoryMissing(p, s, req.Cost) == 0
		spent = append(spent, s)
	}
	take, full := req.Force || ok && req.Cost > 0, now
	for i, p := range req.Policies {
		if policyInfinite(p.Limit) {
			continue
		}
		if take {
			// No debt is larger than a burst, unless it was before.
			spent[i] = max(0, min(spent[i]+float64(req.Cost), max(spent[i], 2*float64(p.Burst))))
		}
		if spent[i] > 0 {
			full = max(full, now+min(memoryAfter(spent[i], p.Limit), math.MaxInt64-now))
		}
	}
	switch {
	case take:
		sh.write(now, full, name, held, spent, size)
	case held != nil:
		held.full = max(held.full, full) // a limit may be lower than it was
	}
	for i, p := range req.Policies {
		states[i] = memoryState(p, spent[i], req.Cost, ok || req.Force)
	}
	return ok || req.Force
}

// write keeps what is spent, or forgets a key all of whose buckets are full.
func (sh *memoryShard) write(now, full time.Duration, name memoryKey, held *memoryBuckets, spent []float64, size int) {
	switch {
	case full == now:
		delete(sh.keys, name)
		return
	case held == nil:
		for len(sh.keys) >= size {
			sh.forget(now)
		}
		name.key = strings.Clone(name.key) // lets go of whatever it was cut out of
		held = &memoryBuckets{spent: make([]float64, len(spent))}
		sh.keys[name] = held
	}
	held.at, held.full = now, full
	copy(held.spent, spent)
}

// forget makes room for a key.
func (sh *memoryShard) forget(now time.Duration) {
	var soonest memoryKey
	least, n := time.Duration(-1), 0
	for name, b := range sh.keys {
		if b.full <= now {
			delete(sh.keys, name)
			least = 0
		} else if least < 0 || b.full < least {
			soonest, least = name, b.full
		}
		if n++; n == memorySample {
			break
		}
	}
	if least > 0 {
		delete(sh.keys, soonest)
	}
}

// memorySlack is a part of a token that is no more than the rounding of what is spent.
func memorySlack(p Policy) float64 { return 1e-6 + float64(p.Burst)*1e-14 }

// memoryMissing returns how many tokens are missing for an event, 0 if none.
func memoryMissing(p Policy, spent float64, cost int) float64 {
	missing := spent + float64(cost) - float64(p.Burst)
	if policyInfinite(p.Limit) || missing <= memorySlack(p) {
		return 0
	}
	return missing
}

// memoryState describes a bucket of which so much is spent, after an event of that cost.
func memoryState(p Policy, spent float64, cost int, ok bool) PolicyState {
	st := PolicyState{Limit: p.Limit, Burst: p.Burst, Remaining: policyUnbounded}
	if policyInfinite(p.Limit) {
		return st
	}
	burst := float64(p.Burst)
	st.Remaining = p.Burst
	if left := math.Floor(burst - spent + memorySlack(p)); left < burst {
		st.Remaining = max(0, int(left))
	}
	if p.Limit > 0 {
		st.ResetAfter = memoryAfter(spent, p.Limit)
	}
	if missing := memoryMissing(p, spent, cost); !ok && missing > 0 {
		st.Refused = true
		if cost <= p.Burst && p.Limit > 0 {
			st.RetryAfter = memoryAfter(missing, p.Limit)
		}
	}
	return st
}

// memoryAfter returns when so many tokens have flowed in, rounded up.
func memoryAfter(tokens float64, limit rate.Limit) time.Duration {
	ns := math.Ceil(tokens / float64(limit) * 1e9)
	if !(ns < math.MaxInt64) {
		return math.MaxInt64
	}
	return time.Duration(ns)
}

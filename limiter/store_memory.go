package limiter

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// MemoryStore is a [Store] in this process: the table that a [Rate] has without a store. It lets several Rates share
// their buckets, and stands in for a remote store in tests.
//
// What shares its buckets shares their limits: each event sets the limits of its own Rate for all, which goes over the whole table where they
// are others than those of the event before. Give Rates with different limits a MemoryStore each.
//
// Make one with [NewMemoryStore]. It is safe for concurrent use.
type MemoryStore struct {
	maxKeys int
	mu      sync.Mutex // held to make the table and to change its policies
	rate    atomic.Pointer[Rate]
}

// NewMemoryStore returns a MemoryStore with room for maxKeys keys, as in [WithMaxKeys]. Its policies are those of the first
// request; all that use it must have policies of the same names. It panics if maxKeys is below 1 or above 2^32.
func NewMemoryStore(maxKeys int) *MemoryStore {
	checkMaxKeys("NewMemoryStore", maxKeys)
	return &MemoryStore{maxKeys: maxKeys}
}

// Take implements [Store]. It returns an error if ctx has ended or the policies have other names than those of the first request.
func (m *MemoryStore) Take(ctx context.Context, req StoreRequest, states []PolicyState) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	r, err := m.table(req.Policies)
	if err != nil {
		return false, err
	}
	q := r.question(time.Now(), req.Key, req.Cost)
	if req.Force {
		q.n = req.Cost
		r.table.adjust(&q)
		q.n, q.peek = 0, true
	}
	var a tableAnswer
	r.table.take(&q, states, nil, &a)
	if req.Force {
		for i := range states {
			states[i].Refused, states[i].RetryAfter = false, 0
		}
		return true, nil
	}
	return a.ok, nil
}

// table returns the Rate whose table it is, with the present policies.
func (m *MemoryStore) table(policies []Policy) (*Rate, error) {
	if len(policies) == 0 || len(policies) > ratePolicyMax {
		return nil, fmt.Errorf("limiter: MemoryStore: %d policies: give 1 to %d", len(policies), ratePolicyMax)
	}
	r := m.rate.Load()
	if r != nil && storeSame(*r.policies.Load(), policies) {
		return r, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if r = m.rate.Load(); r == nil {
		opts := []RateOption{WithMaxKeys(m.maxKeys), WithName(policies[0].Name)}
		for _, p := range policies[1:] {
			opts = append(opts, WithPolicy(p.Name, p.Limit, p.Burst))
		}
		r = NewRate(policies[0].Limit, policies[0].Burst, opts...)
		m.rate.Store(r)
		return r, nil
	}
	have := *r.policies.Load()
	if len(have) != len(policies) {
		return nil, fmt.Errorf("limiter: MemoryStore: %d policies where the first request had %d", len(policies), len(have))
	}
	for i, p := range policies {
		if p.Name != have[i].Name {
			return nil, fmt.Errorf("limiter: MemoryStore: policy %q where the first request had %q", p.Name, have[i].Name)
		}
		if p != have[i] {
			if err := r.setPolicy(i, "MemoryStore", p.Limit, p.Burst); err != nil {
				return nil, err
			}
		}
	}
	return r, nil
}

func storeSame(a, b []Policy) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

package limiter_test

import (
	"math"
	"math/rand/v2"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"github.com/spillgate/spillgate/limiter"
)

// tableModel is the naive limiter: tokens of every key and policy in floating point, whose numbers
// the test chooses so that nothing is ever rounded.
type tableModel struct {
	policies []limiter.Policy
	now      float64 // seconds
	keys     map[string]*tableModelKey
}

type tableModelKey struct {
	spent [2]float64
	last  float64
}

func (m *tableModel) key(name string) *tableModelKey {
	k := m.keys[name]
	if k == nil {
		k = &tableModelKey{last: m.now}
		m.keys[name] = k
	}
	for i, p := range m.policies {
		k.spent[i] = math.Max(0, k.spent[i]-(m.now-k.last)*float64(p.Limit))
	}
	k.last = m.now
	return k
}

func (m *tableModel) allow(name string, n int) bool {
	k := m.key(name)
	for i, p := range m.policies {
		if k.spent[i]+float64(n) > float64(p.Burst) {
			return false
		}
	}
	for i := range m.policies {
		k.spent[i] += float64(n)
	}
	return true
}

func (m *tableModel) adjust(name string, n int) {
	k := m.key(name)
	for i, p := range m.policies {
		if n <= 0 {
			k.spent[i] = math.Max(0, k.spent[i]+float64(n))
			continue
		}
		// The bound of a debt: a burst, or a minute's flow.
		most := float64(p.Burst) + math.Max(float64(p.Burst), 60*float64(p.Limit))
		k.spent[i] = math.Max(k.spent[i], math.Min(k.spent[i]+float64(n), most))
	}
}

func (m *tableModel) setPolicy(i int, limit rate.Limit, burst int) {
	for name := range m.keys {
		m.key(name)
	}
	m.policies[i].Limit, m.policies[i].Burst = limit, burst
}

// Every operation on a table of many keys with two policies, against the model.
func FuzzRateTable(f *testing.F) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range 24 {
		ops := make([]byte, 300)
		for j := range ops {
			ops[j] = byte(rnd.Uint32())
		}
		f.Add(ops, i%2 == 0)
	}
	f.Fuzz(func(t *testing.T, ops []byte, exact bool) {
		opts := []limiter.RateOption{limiter.WithName("first"), limiter.WithPolicy("second", 0.25, 16), limiter.WithMaxKeys(1024)}
		if exact {
			opts = append(opts, limiter.WithExactKeys())
		}
		synctest.Test(t, func(t *testing.T) {
			r := limiter.NewRate(4, 8, opts...)
			m := &tableModel{policies: []limiter.Policy{{Limit: 4, Burst: 8}, {Limit: 0.25, Burst: 16}}, keys: map[string]*tableModelKey{}}
			for len(ops) >= 3 {
				op, key, n := ops[0], strconv.Itoa(int(ops[1]%32)), int(ops[2])
				ops = ops[3:]
				switch op % 16 {
				case 0, 1, 2:
					step := time.Duration(n) * time.Second / 64
					time.Sleep(step) // in a synctest bubble
					m.now += step.Seconds()
				case 3:
					r.Refund(key, n%12)
					if _, ok := m.keys[key]; ok {
						m.adjust(key, -(n % 12))
					}
				case 4:
					r.Charge(key, n%12)
					m.adjust(key, n%12)
				case 5:
					r.Reset(key)
					delete(m.keys, key)
				case 6:
					i, limit, burst := n%2, rate.Limit(math.Ldexp(1, n%8-4)), 1+n%31
					rateMust(t, r.SetPolicy([]string{"first", "second"}[i], limit, burst))
					m.setPolicy(i, limit, burst)
				default:
					d := r.AllowN(key, n%10)
					if ok := m.allow(key, n%10); d.OK != ok {
						t.Fatalf("AllowN(%q, %d): %+v, the model says %v: %+v %+v", key, n%10, d, ok, m.key(key), m.policies)
					}
				}
				var each [2]limiter.PolicyState
				r.AllowEach(time.Time{}, key, math.MaxInt, each[:])
				k := m.key(key)
				for i, p := range m.policies {
					if want := int(math.Max(0, math.Floor(float64(p.Burst)-k.spent[i]))); each[i].Remaining != want {
						t.Fatalf("op %d: %d of policy %d remaining for %q, want %d: %+v %+v", op%16, each[i].Remaining, i, key, want, *k, p)
					}
				}
			}
			if s := r.Stats(); s.EvictedLive != 0 || s.LiveKeys > len(m.keys) {
				t.Errorf("%+v with %d keys", s, len(m.keys))
			}
		})
	})
}

// A table that overflows forgets, but never admits less than is due, and never one key for another.
func FuzzRateTableOverflow(f *testing.F) {
	for seed := range uint64(6) {
		f.Add(seed, int(8<<seed))
	}
	f.Fuzz(func(t *testing.T, seed uint64, capacity int) {
		if capacity < 1 || capacity > 1<<12 {
			return
		}
		rnd := rand.New(rand.NewPCG(seed, 5))
		r := limiter.NewRate(1, 3, limiter.WithMaxKeys(capacity))
		now := time.Now()
		for range 2000 {
			now = now.Add(time.Duration(rnd.IntN(int(time.Millisecond))))
			r.AllowAt(now, strconv.Itoa(rnd.IntN(4*capacity)), 1+rnd.IntN(2))
		}
		s := r.Stats()
		if s.LiveKeys > s.Capacity || s.Capacity < capacity || s.Capacity > capacity+8 || s.Admitted+s.Rejected != 2000 {
			t.Fatalf("%+v", s)
		}
		now = now.Add(10 * time.Second)
		for i := range capacity / 4 {
			if d := r.AllowAt(now, "after "+strconv.Itoa(i), 1); !d.OK {
				t.Fatalf("a new key once all slots are free again: %+v", d)
			}
		}
	})
}

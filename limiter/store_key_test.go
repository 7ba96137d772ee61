package limiter_test

import (
	"context"
	"math"
	"math/rand/v2"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"github.com/spillgate/spillgate/limiter"
)

// storePlan is what a key may do.
type storePlan struct {
	limit rate.Limit
	burst int
}

// storePlans are Rates over one store that know the same plans.
func storePlans(s limiter.Store, plans map[string]storePlan, opts ...limiter.RateOption) func() *limiter.Rate {
	return func() *limiter.Rate {
		return limiter.NewRate(1, 1, append(opts, limiter.WithStore(s), limiter.WithKeyLimit(func(key string) (rate.Limit, int) {
			return plans[key].limit, plans[key].burst
		}))...)
	}
}

// Several processes give each key what its own plan says, together.
func TestStoreKeyLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &storeStub{Store: limiter.NewMemoryStore(1024)}
		plans := map[string]storePlan{
			"free": {1, 2}, "pro": {3, 100}, "exempt": {rate.Inf, 0}, "blocked": {0, 10}, "nan": {rate.Limit(math.NaN()), 5}, "none": {1, 0}, "slow": {rate.Every(time.Hour), 3},
		}
		newRate := storePlans(s, plans)
		rates := []*limiter.Rate{newRate(), newRate(), newRate()}
		admitted := func() map[string]int {
			got := make(map[string]int)
			for i := range 300 {
				for key := range plans {
					if d := rates[i%3].Allow(key); d.OK {
						got[key]++
					} else if d.Limit != max(plans[key].burst, 0) && plans[key].limit > 0 {
						t.Fatalf("%s: %+v", key, d)
					}
				}
			}
			return got
		}
		for after, want := range []map[string]int{
			{"free": 2, "pro": 100, "exempt": 300, "slow": 3},
			{"free": 1, "pro": 3, "exempt": 300},
		} {
			time.Sleep(time.Duration(after) * time.Second) // in a synctest bubble
			got := admitted()
			for key := range plans {
				if got[key] != want[key] {
					t.Errorf("%s after %d s: %d admitted, want %d", key, after, got[key], want[key])
				}
			}
		}
	})
}

// The store is asked by the key's own limit, and not about what that decides alone.
func TestStoreKeyLimitIsWhatItIsAskedBy(t *testing.T) {
	second := limiter.WithPolicy("second", 1000, 1000)
	open := limiter.WithPolicy("second", rate.Inf, 0)
	for name, c := range map[string]struct {
		plan  storePlan
		opts  []limiter.RateOption
		ok    bool
		calls int // by Allow, Charge and Refund
	}{
		"its own":                    {storePlan{7, 9}, nil, true, 3},
		"exempt":                     {storePlan{rate.Inf, 0}, nil, true, 0},
		"exempt, not from the other": {storePlan{rate.Inf, -1}, []limiter.RateOption{second}, true, 3},
		"exempt from both":           {storePlan{math.MaxFloat64, 3}, []limiter.RateOption{open}, true, 0},
		"refused":                    {storePlan{0, 9}, []limiter.RateOption{second}, false, 0},
		"refused by its burst":       {storePlan{7, -9}, nil, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &storeStub{Store: limiter.NewMemoryStore(1024)}
				r := storePlans(s, map[string]storePlan{"key": c.plan}, c.opts...)()
				if d := r.Allow("key"); d.OK != c.ok {
					t.Errorf("%+v", d)
				}
				if want := (limiter.Policy{Name: "default", Limit: c.plan.limit, Burst: max(c.plan.burst, 0)}); s.calls > 0 && s.asked != want {
					t.Errorf("the store is asked by %+v, want %+v", s.asked, want)
				}
				if s := r.Stats(); s.Admitted+s.Rejected != 1 || (s.Admitted == 1) != c.ok {
					t.Errorf("counted as %d admitted and %d rejected", s.Admitted, s.Rejected)
				}
				r.Charge("key", 3)
				r.Refund("key", 1)
				if s.calls != c.calls {
					t.Errorf("the store is asked %d times, want %d", s.calls, c.calls)
				}
				r.Reset("key")
				if s.calls != c.calls+1 {
					t.Error("the store is not told of a reset")
				}
			})
		})
	}
}

// A key whose plan changes has spent of the new one what it had of the old one; what the buckets of the process still hold it to is
// found out within a second.
func TestStoreKeyLimitChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		plans := map[string]storePlan{"key": {1, 100}}
		newRate := storePlans(limiter.NewMemoryStore(1024), plans)
		here, there := newRate(), newRate()
		if !here.AllowN("key", 60).OK {
			t.Fatal("refused")
		}
		plans["key"] = storePlan{100, 1000}
		if d := there.AllowN("key", 900); !d.OK || d.Remaining != 40 {
			t.Errorf("raised, elsewhere: %+v", d)
		}
		there.Reset("key")
		time.Sleep(time.Second) // in a synctest bubble
		here.Allow("key")
		time.Sleep(10 * time.Second) // in a synctest bubble
		if d := here.AllowN("key", 1000); !d.OK || d.Remaining != 0 {
			t.Errorf("raised, here: %+v", d)
		}
		plans["key"] = storePlan{1, 10}
		if d := there.Allow("key"); d.OK || d.Limit != 10 {
			t.Errorf("lowered: %+v", d)
		}
	})
}

// While the store is away each process goes by the key's own limit.
func TestStoreKeyLimitWithoutTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &storeStub{Store: limiter.NewMemoryStore(1024), err: errStoreStub}
		r := storePlans(s, map[string]storePlan{"free": {1, 2}, "pro": {3, 100}})()
		for key, want := range map[string]int{"free": 2, "pro": 100} {
			got := 0
			for range 150 {
				if r.Allow(key).OK {
					got++
				}
			}
			if got != want {
				t.Errorf("%s: %d admitted, want %d", key, got, want)
			}
		}
	})
}

// With limits that differ from key to key and change, the store decides as a Rate for each limit does.
func TestMemoryStoreAgreesWithRate(t *testing.T) {
	limits := []storePlan{{0, 3}, {rate.Every(time.Hour), 1}, {.3, 7}, {1, 1}, {10, 5}, {1000.0 / 3, 1000}, {1e6, 1e9}, {rate.Inf, 0}}
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			m := limiter.NewMemoryStore(4096)
			type bucket struct {
				at   storePlan
				rate *limiter.Rate
			}
			keys := make([]bucket, 30)
			for i := range keys {
				p := limits[rnd.IntN(len(limits))]
				keys[i] = bucket{p, limiter.NewRate(p.limit, p.burst, limiter.WithoutKeys())}
			}
			for step := range 3000 {
				i := rnd.IntN(len(keys))
				k := &keys[i]
				var states [1]limiter.PolicyState
				ask := func(cost int, force bool) bool {
					policies := []limiter.Policy{{Name: "p", Limit: k.at.limit, Burst: k.at.burst}}
					ok, err := m.Take(context.Background(), limiter.StoreRequest{Key: strconv.Itoa(i), Cost: cost, Force: force, Policies: policies}, states[:])
					if err != nil {
						t.Fatal(err)
					}
					return ok
				}
				if rnd.IntN(20) == 0 {
					p := limits[rnd.IntN(len(limits))]
					// What has no limit forgets what was spent.
					if p.limit != rate.Inf && k.at.limit != rate.Inf {
						ask(0, true) // what has flowed in so far has by the old limit
						k.at = p
						if err := k.rate.SetLimit(p.limit, p.burst); err != nil {
							t.Fatal(err)
						}
					}
				}
				cost := rnd.IntN(4)
				if rnd.IntN(10) == 0 && k.at.burst < 1000 {
					cost = rnd.IntN(2 * (k.at.burst + 1))
				}
				ok, d := ask(cost, false), k.rate.AllowN("", cost)
				wait := states[0].RetryAfter - d.RetryAfter
				if ok != d.OK || states[0].Remaining != d.Remaining || wait < -time.Microsecond || wait > time.Microsecond {
					t.Fatalf("seed %d, step %d: %d of %+v: %v, %+v; a Rate says %+v", seed, step, cost, k.at, ok, states, d)
				}
				time.Sleep(time.Duration(rnd.ExpFloat64() * float64(300*time.Millisecond))) // in a synctest bubble
			}
		})
	}
}

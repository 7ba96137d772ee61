package limiter_test

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"github.com/spillgate/spillgate/limiter"
)

// rateKinds are the ways to keep buckets; a rule of the package holds for each.
var rateKinds = map[string][]limiter.RateOption{
	"table":   nil,
	"exact":   {limiter.WithExactKeys()},
	"unkeyed": {limiter.WithoutKeys()},
}

func rateMust(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestRateAdmitsBurstThenLimit(t *testing.T) {
	for kind, opts := range rateKinds {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := limiter.NewRate(10, 5, opts...)
				for i := range 5 {
					if d := r.Allow("a"); !d.OK || d.Remaining != 4-i || d.Limit != 5 || d.Policy != "default" || d.RetryAfter != 0 {
						t.Fatalf("event %d of the burst: %+v", i, d)
					}
				}
				d := r.Allow("a")
				if d.OK || d.RetryAfter != 100*time.Millisecond || d.ResetAfter != 500*time.Millisecond || d.Remaining != 0 {
					t.Fatalf("after the burst: %+v", d)
				}
				var e *limiter.Error
				if err := d.Err(); !errors.Is(err, limiter.ErrRateLimited) || !errors.As(err, &e) || e.RetryAfter != d.RetryAfter {
					t.Fatalf("error %v", err)
				}
				// Two, as rounding moves x/time/rate itself over the edge of one.
				time.Sleep(d.RetryAfter - 2*time.Nanosecond) // in a synctest bubble
				if r.Allow("a").OK {
					t.Fatal("admitted two nanoseconds before RetryAfter")
				}
				time.Sleep(2 * time.Nanosecond) // in a synctest bubble
				if d := r.Allow("a"); !d.OK || d.Remaining != 0 {
					t.Fatalf("at RetryAfter: %+v", d)
				}
				time.Sleep(d.ResetAfter) // in a synctest bubble
				if d := r.Peek("a", 5); !d.OK || d.Remaining != 5 || d.ResetAfter != 0 {
					t.Fatalf("at ResetAfter: %+v", d)
				}
			})
		})
	}
}

func TestRateKeysAreApart(t *testing.T) {
	for _, opts := range [][]limiter.RateOption{rateKinds["table"], rateKinds["exact"]} {
		r := limiter.NewRate(1, 1, opts...)
		for i := range 1000 {
			if !r.Allow(strconv.Itoa(i)).OK {
				t.Fatalf("key %d is charged for others", i)
			}
		}
		if !r.Allow("").OK || r.Allow("").OK {
			t.Fatal("the empty key is a key like any other")
		}
	}
	r := limiter.NewRate(1, 1, limiter.WithoutKeys())
	if !r.Allow("a").OK || r.Allow("b").OK {
		t.Fatal("without keys there is one bucket")
	}
}

// Decision by decision as x/time/rate, at random limits, bursts, weights, steps and limit
// changes. Times and limits are such that whether tokens are there does not hang on less than a microsecond.
func TestRateAgreesWithTimeRate(t *testing.T) {
	for kind, opts := range rateKinds {
		t.Run(kind, func(t *testing.T) {
			seeds := uint64(300)
			if rateRaceEnabled {
				seeds = 20
			}
			for seed := range seeds {
				rateAgree(t, rand.New(rand.NewPCG(seed, 1)), 600, opts...)
			}
		})
	}
}

func FuzzRateAgreesWithTimeRate(f *testing.F) {
	for seed := range uint64(8) {
		f.Add(seed, seed%3 == 0)
	}
	f.Fuzz(func(t *testing.T, seed uint64, exact bool) {
		var opts []limiter.RateOption
		if exact {
			opts = append(opts, limiter.WithExactKeys())
		}
		rateAgree(t, rand.New(rand.NewPCG(seed, 2)), 300, opts...)
	})
}

func rateAgree(t *testing.T, rnd *rand.Rand, steps int, opts ...limiter.RateOption) {
	t.Helper()
	draw := func() (rate.Limit, int) {
		interval := time.Duration(1+rnd.IntN(1_000)) * time.Microsecond
		switch rnd.IntN(8) {
		case 0:
			return 0, 1 + rnd.IntN(20)
		case 1:
			interval *= 100_000
		case 2:
			return 1e6 / rate.Limit(1+rnd.IntN(4)), 1 + rnd.IntN(1_000_000)
		}
		return rate.Every(interval), 1 + rnd.IntN(50)
	}
	synctest.Test(t, func(t *testing.T) {
		// A change of the limit rounds what is spent to a tick of the old clock, which may
		// be much time at the new limit: closer than this to a whole token either is right.
		edge := 0.0
		limit, burst := draw()
		r := limiter.NewRate(limit, burst, opts...)
		want := rate.NewLimiter(limit, burst)
		for step := range steps {
			if limit > 0 {
				mean := float64(time.Second) / float64(limit)
				time.Sleep(time.Duration(rnd.ExpFloat64()*mean*1.5) / 1000 * 1000) // in a synctest bubble
			}
			if rnd.IntN(50) == 0 {
				// Not to 0, where tokens that rounding left just below a whole number stay so for ever.
				for limit, _ = draw(); limit == 0; limit, _ = draw() {
				}
				edge = 1e-4
				want.SetLimit(limit)
				rateMust(t, r.SetLimit(limit, burst))
			}
			n := 1 + rnd.IntN(2)
			switch rnd.IntN(10) {
			case 0:
				n = rnd.IntN(burst + 2)
			case 1:
				n = 0
			}
			if tokens := want.Tokens(); tokens < float64(burst) && math.Abs(tokens-math.Round(tokens)) < edge {
				continue
			}
			peek := r.Peek("key", n)
			d := r.AllowN("key", n)
			if ok := want.AllowN(time.Now(), n); d.OK != ok || peek.OK != ok {
				t.Fatalf("step %d, limit %v, burst %d, n %d: %+v (peek %v), x/time/rate says %v with %v tokens left",
					step, limit, burst, n, d, peek.OK, ok, want.Tokens())
			}
			if tokens := want.Tokens(); math.Abs(float64(d.Remaining)-math.Max(0, math.Floor(tokens+1e-6))) > 0 {
				t.Fatalf("step %d, limit %v, burst %d: %d remaining, x/time/rate has %v", step, limit, burst, d.Remaining, tokens)
			}
		}
	})
}

// At any limit and any nanosecond the two may differ only where the tokens are due within that nanosecond.
func TestRateAgreesWithTimeRateAtOddLimits(t *testing.T) {
	differ, decisions := 0, 0
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 3))
		limit := rate.Limit(math.Exp(rnd.Float64()*30 - 12))
		burst := 1 + rnd.IntN(20)
		r := limiter.NewRate(limit, burst)
		want := rate.NewLimiter(limit, burst)
		now := time.Now()
		for range 500 {
			mean := float64(time.Second) / float64(limit)
			now = now.Add(time.Duration(rnd.ExpFloat64() * mean))
			n := 1 + rnd.IntN(2)
			tokens := want.TokensAt(now)
			ok := want.AllowN(now, n)
			decisions++
			if d := r.AllowAt(now, "key", n); d.OK != ok {
				differ++
				due := (float64(n) - tokens) / float64(limit) * 1e9
				if n > burst || math.Abs(due) > 2 {
					t.Fatalf("limit %v, burst %d, n %d, %v tokens, due in %v ns: %+v, x/time/rate says %v", limit, burst, n, tokens, due, d, ok)
				}
				break // their buckets are a token apart now
			}
		}
	}
	if differ > decisions/1000 {
		t.Errorf("%d of %d decisions differ", differ, decisions)
	}
}

// For every interval, not only from the start: admitted <= burst + limit*t.
func TestRateNeverAdmitsMoreInAnyInterval(t *testing.T) {
	type event struct {
		at time.Duration
		n  int
	}
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 4))
		limit, burst := rate.Limit(math.Exp(rnd.Float64()*14-4)), 1+rnd.IntN(30)
		r := limiter.NewRate(limit, burst)
		start := time.Now()
		var at time.Duration
		var admitted []event
		for range 800 {
			at += time.Duration(rnd.ExpFloat64() * 0.7e9 / float64(limit))
			if n := 1 + rnd.IntN(3); r.AllowAt(start.Add(at), "key", n).OK {
				admitted = append(admitted, event{at, n})
			}
		}
		for i := range admitted {
			sum := 0
			for _, e := range admitted[i:] {
				sum += e.n
				// A nanosecond more, which is the resolution of time.
				if most := float64(burst) + float64(limit)*(e.at-admitted[i].at+1).Seconds(); float64(sum) > most+1e-6 {
					t.Fatalf("limit %v, burst %d: %d admitted in %v, at most %v are due", limit, burst, sum, e.at-admitted[i].at, most)
				}
			}
		}
	}
}

func TestRateExtremes(t *testing.T) {
	t0 := time.Now()
	type step struct {
		at time.Duration
		n  int
		ok bool
	}
	for _, c := range []struct {
		name  string
		limit rate.Limit
		burst int
		steps []step
	}{
		{"limit 0: the burst once, then nothing, ever", 0, 2, []step{{0, 1, true}, {1, 1, true}, {2, 1, false}, {100 * 365 * 24 * time.Hour, 1, false}}},
		{"limit Inf: everything", rate.Inf, 0, []step{{0, math.MaxInt, true}, {0, math.MaxInt, true}}},
		{"limit above 2^62: everything", 1e300, 1, []step{{0, 1000, true}, {0, 1000, true}}},
		{"cost above burst: never", 10, 5, []step{{0, 6, false}, {time.Hour, 6, false}, {time.Hour, 5, true}}},
		{"cost MaxInt: never", 10, 5, []step{{0, math.MaxInt, false}, {0, 5, true}}},
		{"cost 0: free", 10, 1, []step{{0, 0, true}, {0, 0, true}, {0, 1, true}, {0, 1, false}}},
		{"cost below 0: as 0", 10, 1, []step{{0, 1, true}, {0, math.MinInt, true}, {0, 1, false}}},
		{"burst MaxInt", 1, math.MaxInt, []step{{0, math.MaxInt32 / 2, true}, {0, math.MaxInt / 16, true}, {0, 1, true}}},
		{"burst MaxInt at a high limit", 1e15, math.MaxInt, []step{{0, math.MaxInt32, true}, {0, 1, true}}},
		{"a tiny limit", 1e-12, 3, []step{{0, 3, true}, {24 * time.Hour, 1, false}, {10 * 365 * 24 * time.Hour, 1, false}}},
		{"the tiniest limit", math.SmallestNonzeroFloat64, 3, []step{{0, 0, true}, {0, 3, true}, {0, 0, true}, {24 * time.Hour, 1, false}}},
		{"a limit of one a nanosecond", 1e9, 10, []step{{0, 10, true}, {0, 1, false}, {1, 1, true}, {1, 1, false}, {10, 9, true}}},
		{"a limit of a million a nanosecond", 1e15, 1_000_000_000, []step{{0, 1_000_000_000, true}, {1000, 1_000_000_000, true}}},
		{"once a year", rate.Every(365 * 24 * time.Hour), 1, []step{{0, 1, true}, {364 * 24 * time.Hour, 1, false}, {365 * 24 * time.Hour, 1, true}}},
		{"the clock stands still", 10, 2, []step{{0, 1, true}, {0, 1, true}, {0, 1, false}}},
		{"the clock steps back an hour: no more than is due, and well again in the time of a burst", 10, 5,
			[]step{{time.Hour, 5, true}, {0, 1, false}, {100 * time.Millisecond, 1, false}}},
		{"the clock steps ahead a year: full", 10, 5, []step{{0, 5, true}, {365 * 24 * time.Hour, 5, true}, {365 * 24 * time.Hour, 1, false}}},
		{"before the limiter was made", 10, 5, []step{{-50 * 365 * 24 * time.Hour, 5, true}, {-50 * 365 * 24 * time.Hour, 1, false},
			{-50*365*24*time.Hour + 100*time.Millisecond, 1, true}}},
	} {
		for kind, opts := range rateKinds {
			t.Run(c.name+"/"+kind, func(t *testing.T) {
				r := limiter.NewRate(c.limit, c.burst, opts...)
				for i, s := range c.steps {
					if d := r.AllowAt(t0.Add(s.at), "key", s.n); d.OK != s.ok || d.Remaining < 0 || d.RetryAfter < 0 || d.ResetAfter < 0 || d.Remaining > d.Limit {
						t.Errorf("step %d %+v: %+v", i, s, d)
					}
				}
			})
		}
	}
}

// The greatest burst there is overflows neither what is told nor what is charged.
func TestRateGreatestBurst(t *testing.T) {
	for kind, opts := range rateKinds {
		for _, limit := range []rate.Limit{0, 1e-300, 1, 1e15} {
			synctest.Test(t, func(t *testing.T) {
				r := limiter.NewRate(limit, math.MaxInt, opts...)
				if d := r.Peek("key", 0); d.Remaining <= 0 || d.Remaining > d.Limit || d.ResetAfter != 0 {
					t.Errorf("%s, limit %v: %+v when full", kind, limit, d)
				}
				r.Charge("key", math.MaxInt)
				if d := r.Peek("key", math.MaxInt/2); d.OK || d.Remaining < 0 {
					t.Errorf("%s, limit %v: %+v after a charge of all", kind, limit, d)
				}
				r.Charge("key", math.MaxInt)
				r.Refund("key", math.MaxInt)
				r.Refund("key", math.MaxInt)
				if d := r.Peek("key", 0); !d.OK || d.Remaining <= 0 || d.Remaining > d.Limit {
					t.Errorf("%s, limit %v: %+v with all given back", kind, limit, d)
				}
			})
		}
	}
}

func TestRateRefusesWrongNumbers(t *testing.T) {
	for _, c := range []struct {
		name  string
		limit rate.Limit
		burst int
	}{
		{"NaN", rate.Limit(math.NaN()), 1},
		{"negative limit", -1, 1},
		{"minus infinity", rate.Limit(math.Inf(-1)), 1},
		{"negative burst", 1, -1},
		{"burst 0 under a finite limit", 1, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := limiter.NewRate(1, 1)
			if err := r.SetLimit(c.limit, c.burst); err == nil {
				t.Error("SetLimit took it")
			}
			if err := r.SetPolicy("default", c.limit, c.burst); err == nil {
				t.Error("SetPolicy took it")
			}
			if p := r.Policies()[0]; p.Limit != 1 || p.Burst != 1 {
				t.Errorf("changed to %+v", p)
			}
			defer func() {
				if recover() == nil {
					t.Error("NewRate took it")
				}
			}()
			limiter.NewRate(c.limit, c.burst)
		})
	}
	if err := limiter.NewRate(1, 1).SetPolicy("daily", 1, 1); err == nil {
		t.Error("SetPolicy of an unknown name")
	}
}

func TestRatePoliciesChargeAllOrNone(t *testing.T) {
	for kind, opts := range rateKinds {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				opts := append([]limiter.RateOption{limiter.WithPolicy("daily", 0, 3)}, opts...)
				r := limiter.NewRate(1, 2, append(opts, limiter.WithName("burst"))...)
				var each [2]limiter.PolicyState
				if d := r.AllowN("a", 2); !d.OK || d.Policy != "burst" || d.Remaining != 0 {
					t.Fatalf("first: %+v", d)
				}
				d := r.AllowEach(time.Time{}, "a", 1, each[:])
				if d.OK || d.Policy != "burst" || d.RetryAfter != time.Second || !each[0].Refused || each[1].Refused || each[1].Remaining != 1 {
					t.Fatalf("refused by burst: %+v %+v", d, each)
				}
				time.Sleep(2 * time.Second) // in a synctest bubble
				d = r.AllowEach(time.Time{}, "a", 2, each[:])
				if d.OK || d.Policy != "daily" || d.RetryAfter != 0 || each[0].Refused || !each[1].Refused || each[0].Remaining != 2 {
					t.Fatalf("refused by daily, burst untouched: %+v %+v", d, each)
				}
				d = r.AllowEach(time.Time{}, "a", 1, each[:])
				if !d.OK || d.Policy != "daily" || each[0].Remaining != 1 || each[1].Remaining != 0 {
					t.Fatalf("last: %+v %+v", d, each)
				}
			})
		})
	}
}

func TestRateSetLimitKeepsWhatIsSpent(t *testing.T) {
	for kind, opts := range rateKinds {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := limiter.NewRate(1, 10, opts...)
				r.AllowN("a", 7)
				for _, c := range []struct {
					limit  rate.Limit
					burst  int
					remain int
				}{{1, 10, 3}, {1000, 10, 3}, {1000, 20, 13}, {0.001, 20, 13}, {0, 20, 13}, {3, 8, 1}, {3, 5, 0}, {7, 20, 13}} {
					rateMust(t, r.SetLimit(c.limit, c.burst))
					if d := r.Peek("a", 0); d.Remaining != c.remain || d.Limit != c.burst {
						t.Fatalf("SetLimit(%v, %d): %+v, want %d remaining", c.limit, c.burst, d, c.remain)
					}
				}
				rateMust(t, r.SetLimit(1, 5))
				if d := r.Allow("a"); d.OK || d.RetryAfter != 3*time.Second {
					t.Fatalf("2 in debt: %+v", d)
				}
				rateMust(t, r.SetLimit(rate.Inf, 0))
				if d := r.AllowN("a", 1000); !d.OK {
					t.Fatalf("infinite: %+v", d)
				}
			})
		})
	}
}

func TestRateRefundChargeReset(t *testing.T) {
	for kind, opts := range rateKinds {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := limiter.NewRate(1, 10, opts...)
				r.AllowN("a", 6)
				r.Refund("a", 2)
				if d := r.Peek("a", 0); d.Remaining != 6 {
					t.Fatalf("after a refund: %+v", d)
				}
				r.Refund("a", math.MaxInt)
				if d := r.Peek("a", 0); d.Remaining != 10 {
					t.Fatalf("a refund fills no further than the burst: %+v", d)
				}
				r.Charge("a", 13)
				if d := r.Allow("a"); d.OK || d.RetryAfter != 4*time.Second {
					t.Fatalf("3 in debt: %+v", d)
				}
				r.Charge("a", math.MaxInt)
				if d := r.Allow("a"); d.OK || d.RetryAfter != 61*time.Second {
					t.Fatalf("a debt is bounded: %+v", d)
				}
				if d := r.AllowN("a", 0); d.OK {
					t.Fatalf("cost 0 in debt: %+v", d)
				}
				r.Reset("a")
				if d := r.AllowN("a", 10); !d.OK {
					t.Fatalf("after Reset: %+v", d)
				}
				if kind != "unkeyed" {
					r.Refund("b", 5)
				}
				r.Refund("a", -5)
				r.Charge("a", -5)
				if d := r.Allow("a"); d.OK || d.RetryAfter != time.Second {
					t.Fatalf("negative n changed something: %+v", d)
				}
			})
		})
	}
}

// A decision tells the limits that it went by, whoever made it.
func TestRateStatesTellTheLimits(t *testing.T) {
	second := limiter.WithPolicy("second", rate.Inf, 7)
	for name, c := range map[string]struct {
		r    *limiter.Rate
		want []limiter.PolicyState
	}{
		"table":   {limiter.NewRate(2, 5), []limiter.PolicyState{{Limit: 2, Burst: 5}}},
		"two":     {limiter.NewRate(2, 5, second), []limiter.PolicyState{{Limit: 2, Burst: 5}, {Limit: rate.Inf, Burst: 7}}},
		"unkeyed": {limiter.NewRate(2, 5, second, limiter.WithoutKeys()), []limiter.PolicyState{{Limit: 2, Burst: 5}, {Limit: rate.Inf, Burst: 7}}},
		"exact":   {limiter.NewRate(2, 5, limiter.WithExactKeys()), []limiter.PolicyState{{Limit: 2, Burst: 5}}},
		"store":   {limiter.NewRate(2, 5, second, limiter.WithStore(limiter.NewMemoryStore(8))), []limiter.PolicyState{{Limit: 2, Burst: 5}, {Limit: rate.Inf, Burst: 7}}},
		"own":     {limiter.NewRate(1, 1, second, limiter.WithKeyLimit(func(string) (rate.Limit, int) { return 2, 5 })), []limiter.PolicyState{{Limit: 2, Burst: 5}, {Limit: rate.Inf, Burst: 7}}},
		"blocked": {limiter.NewRate(1, 1, limiter.WithKeyLimit(func(string) (rate.Limit, int) { return rate.Limit(math.NaN()), 5 })), []limiter.PolicyState{{}}},
		"budget":  {limiter.NewRate(2, 5, limiter.WithMaxKeys(1), limiter.WithNewKeyBudget(0, 1)), []limiter.PolicyState{{Limit: 2, Burst: 5}}},
	} {
		if name == "budget" {
			for i := range 20 {
				c.r.AllowN(strconv.Itoa(i), 5)
			}
		}
		for range 7 { // admitted, and then refused
			var each [2]limiter.PolicyState
			d := c.r.AllowEach(time.Time{}, "key", 1, each[:])
			for i, want := range c.want {
				if each[i].Limit != want.Limit || each[i].Burst != want.Burst {
					t.Errorf("%s: %+v: policy %d: %+v, want the limit %v and the burst %d", name, d, i, each[i], want.Limit, want.Burst)
				}
			}
		}
	}
}

func TestRateShadowRefusesNothing(t *testing.T) {
	for kind, opts := range rateKinds {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var seen []limiter.Decision
				opts := append([]limiter.RateOption{limiter.WithRateShadow(), limiter.WithRateTrace(limiter.RateTrace{
					Rejected: func(_ string, d limiter.Decision) { seen = append(seen, d) },
				})}, opts...)
				r := limiter.NewRate(1, 1, opts...)
				if d := r.Allow("a"); !d.OK || d.Shadow {
					t.Fatalf("%+v", d)
				}
				d := r.Allow("a")
				if !d.OK || !d.Shadow || d.RetryAfter != time.Second || d.Err() != nil {
					t.Fatalf("shadowed: %+v", d)
				}
				rateMust(t, r.Wait(context.Background(), "a"))
				r.SetShadow(false)
				if d := r.Allow("a"); d.OK {
					t.Fatalf("enforced: %+v", d)
				}
				s := r.Stats()
				if s.Admitted != 2 || s.Shadowed != 1 || s.Rejected != 1 || len(seen) != 2 {
					t.Fatalf("%+v, %d traced", s, len(seen))
				}
			})
		})
	}
}

// In shadow nobody is held up, with a store or without; what would have waited is charged all the same.
func TestRateShadowDoesNotWait(t *testing.T) {
	for kind, opts := range rateKinds {
		for where, store := range map[string][]limiter.RateOption{"": nil, ", store": {limiter.WithStore(limiter.NewMemoryStore(1024))}} {
			t.Run(kind+where, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					r := limiter.NewRate(1, 1, append(append([]limiter.RateOption{limiter.WithRateShadow()}, opts...), store...)...)
					start := time.Now()
					for range 5 {
						rateMust(t, r.Wait(t.Context(), "a"))
					}
					if held := time.Since(start); held != 0 {
						t.Errorf("held up for %v", held)
					}
					s := r.Stats()
					if s.Admitted+s.Shadowed != 5 || s.Rejected != 0 || s.Waiting != 0 {
						t.Errorf("%+v", s)
					}
					r.SetShadow(false)
					if d := r.Allow("a"); d.OK || store == nil && d.RetryAfter != 5*time.Second {
						t.Errorf("enforced: %+v", d)
					}
				})
			})
		}
	}
}

func TestRateWait(t *testing.T) {
	for kind, opts := range rateKinds {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := limiter.NewRate(1, 2, opts...)
				ctx := context.Background()
				start := time.Now()
				for i, want := range []time.Duration{0, 0, time.Second, 2 * time.Second} {
					rateMust(t, r.Wait(ctx, "a"))
					if got := time.Since(start); got != want {
						t.Fatalf("event %d at %v, want %v", i, got, want)
					}
				}
				short, cancel := context.WithTimeout(ctx, 999*time.Millisecond)
				defer cancel()
				start = time.Now()
				err := r.Wait(short, "a")
				var e *limiter.Error
				if !errors.Is(err, limiter.ErrWouldMissDeadline) || !errors.As(err, &e) || e.RetryAfter != time.Second || time.Since(start) != 0 {
					t.Fatalf("deadline too short: %v after %v", err, time.Since(start))
				}
				if err := r.WaitN(ctx, "a", 3); !errors.Is(err, limiter.ErrRateLimited) {
					t.Fatalf("above the burst: %v", err)
				}
				done, cancel := context.WithCancel(ctx)
				cancel()
				if err := r.Wait(done, "a"); err != context.Canceled {
					t.Fatalf("cancelled before: %v", err)
				}
				if d := r.Allow("a"); d.RetryAfter != time.Second {
					t.Fatalf("a refused wait was charged: %+v", d)
				}
			})
		})
	}
}

func TestRateWaitIsBounded(t *testing.T) {
	for kind, opts := range rateKinds {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := limiter.NewRate(1, 1, append([]limiter.RateOption{limiter.WithMaxWait(3 * time.Second)}, opts...)...)
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				refused := make(chan error, 10)
				for range 10 {
					go func() { refused <- r.Wait(ctx, "a") }()
				}
				synctest.Wait()
				if s := r.Stats(); s.Waiting != 3 {
					t.Fatalf("%+v", s)
				}
				for range 7 {
					if err := <-refused; err != nil && !errors.Is(err, limiter.ErrRateLimited) {
						t.Fatal(err)
					}
				}
				cancel()
				synctest.Wait()
				if s := r.Stats(); s.Waiting != 0 {
					t.Fatalf("%+v", s)
				}
			})
		})
	}
}

// The tokens of a wait that was given up come back, but not those that others wait behind already.
func TestRateWaitGivesBackOnCancel(t *testing.T) {
	for kind, opts := range rateKinds {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := limiter.NewRate(1, 1, opts...)
				r.Allow("a")
				last, cancelLast := context.WithCancel(context.Background())
				go r.Wait(last, "a")
				synctest.Wait()
				if d := r.Peek("a", 1); d.RetryAfter != 2*time.Second {
					t.Fatalf("one waits: %+v", d)
				}
				cancelLast()
				synctest.Wait()
				if d := r.Peek("a", 1); d.RetryAfter != time.Second {
					t.Fatalf("given back: %+v", d)
				}
				first, cancelFirst := context.WithCancel(context.Background())
				go r.Wait(first, "a")
				synctest.Wait()
				start := time.Now()
				second := make(chan time.Duration)
				go func() {
					rateMust(t, r.Wait(context.Background(), "a"))
					second <- time.Since(start)
				}()
				synctest.Wait()
				cancelFirst()
				synctest.Wait()
				if d := r.Peek("a", 1); d.RetryAfter != 3*time.Second {
					t.Fatalf("two at the same time: %+v", d)
				}
				if at := <-second; at != 2*time.Second {
					t.Fatalf("second at %v", at)
				}
			})
		})
	}
}

func TestRateKeyLimit(t *testing.T) {
	plans := map[string]struct {
		limit rate.Limit
		burst int
	}{
		"free": {1, 2}, "pro": {3, 100}, "unlimited": {rate.Inf, 0}, "blocked": {0, 10}, "nan": {rate.Limit(math.NaN()), 5}, "none": {1, 0},
	}
	synctest.Test(t, func(t *testing.T) {
		r := limiter.NewRate(5, 5, limiter.WithKeyLimit(func(key string) (rate.Limit, int) {
			p := plans[key]
			return p.limit, p.burst
		}), limiter.WithPolicy("second", 1000, 1000))
		for key, want := range map[string]int{"free": 2, "pro": 100, "unlimited": 150, "blocked": 0, "nan": 0, "none": 0, "unknown": 0} {
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
		if d := r.Allow("free"); d.Limit != 2 || d.RetryAfter != time.Second {
			t.Errorf("free: %+v", d)
		}
		if d := r.Allow("pro"); d.Limit != 100 || d.RetryAfter.Round(10) != 333333330 {
			t.Errorf("pro: %+v", d)
		}
		time.Sleep(time.Second) // in a synctest bubble
		if d := r.AllowAt(time.Now().Add(-time.Hour), "free", 1); d.OK || d.RetryAfter != time.Second {
			t.Errorf("free, an hour back: %+v", d)
		}
		for key, want := range map[string]int{"free": 1, "pro": 3, "blocked": 0} {
			if d := r.Peek(key, 0); d.Remaining != want {
				t.Errorf("%s after a second: %+v", key, d)
			}
		}
	})
}

// Of a key's own burst all is there, or what flows in within two years.
func TestRateKeyLimitLongest(t *testing.T) {
	for _, c := range []struct {
		every time.Duration
		burst int
		least int
	}{
		{24 * time.Hour, 730, 730},
		{time.Hour, 730 * 24, 730 * 24},
		{365 * 24 * time.Hour, 2, 2},
		{24 * time.Hour, 1000, 730},
		{time.Hour, 100_000, 730 * 24},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := limiter.NewRate(1, 1, limiter.WithKeyLimit(func(string) (rate.Limit, int) { return rate.Every(c.every), c.burst }))
			ok := 0
			for range c.burst + 1 {
				if r.Allow("key").OK {
					ok++
				}
			}
			if ok < c.least || ok > c.burst {
				t.Errorf("%d admitted at once of one in %v, %d at once; want %d at least", ok, c.every, c.burst, c.least)
			}
			r.Reset("key")
			if d := r.AllowN("key", ok+1); d.OK || d.RetryAfter != 0 || d.Limit != ok || d.Remaining != ok {
				t.Errorf("more than all of %d at once: %+v", ok, d)
			}
			if d := r.AllowN("key", ok); !d.OK || d.Remaining != 0 {
				t.Errorf("all of %d at once: %+v", ok, d)
			}
		})
	}
}

// A wall clock that is set back by an hour costs a key what an empty bucket costs, from the second event on; and so does one that was an
// hour ahead where the next times are from a clock that never steps.
func TestRateClockSetBack(t *testing.T) {
	for kind, opts := range rateKinds {
		for after, t0 := range map[string]time.Time{"by itself": time.Now().Round(0), "by a clock that never steps": time.Now()} {
			for _, more := range [][]limiter.RateOption{nil, {limiter.WithPolicy("second", 10, 5)}} {
				t.Run(kind+", "+after+", "+strconv.Itoa(1+len(more)), func(t *testing.T) {
					r := limiter.NewRate(10, 5, append(more, opts...)...)
					r.AllowAt(t0.Round(0).Add(time.Hour), "key", 5)
					for i := range 100 {
						d := r.AllowAt(t0.Add(time.Duration(i)*100*time.Millisecond), "key", 1)
						if d.OK && i == 0 || !d.OK && i > 1 {
							t.Fatalf("%v after the step: %+v", time.Duration(i)*100*time.Millisecond, d)
						}
					}
				})
			}
		}
	}
}

// So it does for the bucket that new keys share; and whoever was held up since he read the clock does not fill that one.
func TestRateBudgetClockSetBack(t *testing.T) {
	r := limiter.NewRate(0.001, 5, limiter.WithMaxKeys(8), limiter.WithNewKeyBudget(10, 5))
	t0 := time.Now().Round(0)
	all := func(at time.Time) {
		for i := range 8 {
			r.AllowAt(at, strconv.Itoa(i), 5)
		}
	}
	all(t0.Add(time.Hour))
	r.AllowAt(t0.Add(time.Hour), "new", 5)
	for i := range 100 {
		at := t0.Add(time.Duration(i) * 100 * time.Millisecond)
		all(at)
		d := r.AllowAt(at, "new", 1)
		if d.OK && i == 0 || !d.OK && i > 1 {
			t.Fatalf("%v after the step: %+v", time.Duration(i)*100*time.Millisecond, d)
		}
	}

	r = limiter.NewRate(0, 1, limiter.WithMaxKeys(1024), limiter.WithNewKeyBudget(1, 10), limiter.WithMaxWait(time.Second))
	t0 = time.Now()
	for i := 0; r.Stats().LiveKeys < 1024; i++ {
		r.AllowAt(t0, strconv.Itoa(i), 1)
	}
	admitted := 0
	for i := range 500 {
		late := t0.Add(10*time.Minute + time.Duration(i)*100*time.Millisecond)
		if r.AllowAt(late.Add(10*time.Minute), "prompt", 1).OK {
			admitted++
		}
		if r.AllowAt(late, "held up "+strconv.Itoa(i), 1).OK {
			admitted++
		}
	}
	if admitted > 10+50 {
		t.Errorf("%d admitted, of the 10 of the budget and 50 that flowed in", admitted)
	}
}

// Whoever was held up between reading the clock and asking, for however long, does not have the time since then twice.
func TestRateLateReadings(t *testing.T) {
	for kind, opts := range rateKinds {
		t.Run(kind, func(t *testing.T) {
			for late, maxWait := range map[time.Duration]time.Duration{time.Millisecond: time.Second, 2 * time.Second: time.Second,
				10 * time.Minute: time.Second, time.Minute: math.MaxInt64} {
				r := limiter.NewRate(1, 10, append([]limiter.RateOption{limiter.WithMaxWait(maxWait)}, opts...)...)
				t0 := time.Now()
				if late < maxWait {
					t0 = t0.Round(0) // nor on a clock that may step, where that is not taken for a step
				}
				r.AllowAt(t0, "key", 5)
				admitted := 0
				for i := range 500 {
					now := t0.Add(time.Duration(i) * 100 * time.Millisecond)
					for _, at := range []time.Time{now.Add(-late), now, now.Add(-late)} {
						if r.AllowAt(at, "key", 1).OK {
							admitted++
						}
					}
				}
				if admitted > 5+50 {
					t.Errorf("%v late: %d admitted, of 5 left and 50 that flowed in", late, admitted)
				}
			}
		})
	}
}

// A key whose limit is raised is not held to the time that its bucket took to fill before.
func TestRateKeyLimitRaised(t *testing.T) {
	for _, second := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			limit, burst := rate.Every(time.Hour), 1
			opts := []limiter.RateOption{limiter.WithKeyLimit(func(string) (rate.Limit, int) { return limit, burst })}
			if second {
				opts = append(opts, limiter.WithPolicy("second", 1000, 1000))
			}
			r := limiter.NewRate(1, 1, opts...)
			r.Allow("key")
			limit, burst = 100, 100
			r.Peek("key", 1)
			d := r.Allow("key")
			if d.OK || d.RetryAfter.Round(time.Microsecond) != 10*time.Millisecond {
				t.Fatalf("raised: %+v", d)
			}
			time.Sleep(d.RetryAfter) // in a synctest bubble
			if d := r.Allow("key"); !d.OK {
				t.Fatalf("at RetryAfter: %+v", d)
			}
			time.Sleep(time.Second) // in a synctest bubble
			if d := r.AllowN("key", 100); !d.OK {
				t.Fatalf("a second later: %+v", d)
			}
		})
	}
}

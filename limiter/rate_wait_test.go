package limiter_test

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"github.com/spillgate/spillgate/limiter"
)

// Whoever waits, gives up, or only asks: what happens in any interval is at most burst + limit*t of
// either policy, and what was given up is not lost.
func TestRateWaitsAndCancelsStayWithinTheLimit(t *testing.T) {
	for kind, opts := range rateKinds {
		t.Run(kind, func(t *testing.T) {
			for seed := range uint64(20) {
				synctest.Test(t, func(t *testing.T) { rateWaits(t, seed, opts...) })
			}
		})
	}
}

func rateWaits(t *testing.T, seed uint64, opts ...limiter.RateOption) {
	type event struct {
		at time.Duration
		n  int
	}
	rnd := rand.New(rand.NewPCG(seed, 7))
	policies := []limiter.Policy{{Limit: 10, Burst: 1 + rnd.IntN(10)}, {Limit: rate.Limit(5 + rnd.IntN(10)), Burst: 5 + rnd.IntN(20)}}
	r := limiter.NewRate(policies[0].Limit, policies[0].Burst,
		append([]limiter.RateOption{limiter.WithPolicy("second", policies[1].Limit, policies[1].Burst)}, opts...)...)
	start := time.Now()
	var mu sync.Mutex
	var events []event
	var wg sync.WaitGroup
	for range 200 {
		begin := time.Duration(rnd.Int64N(int64(10 * time.Second)))
		n, patience := 1+rnd.IntN(2), time.Duration(rnd.Int64N(int64(3*time.Second)))
		n = min(n, policies[0].Burst)
		wait := rnd.IntN(4) > 0
		wg.Go(func() {
			time.Sleep(begin) // in a synctest bubble
			// A cancel, not a deadline: that would be refused at once.
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			stop := time.AfterFunc(patience, cancel)
			defer stop.Stop()
			if wait && r.WaitN(ctx, "key", n) != nil || !wait && !r.AllowN("key", n).OK {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			events = append(events, event{time.Since(start), n})
		})
	}
	wg.Wait()
	// Impatient callers waste what nobody may act on in their place; x/time/rate loses as much.
	if len(events) < 5 {
		t.Errorf("seed %d: %d of 200 happened", seed, len(events))
	}
	for i := range events {
		sum := 0
		for _, e := range events[i:] {
			sum += e.n
			for _, p := range policies {
				// A nanosecond for each end, which is the resolution of time.
				if most := float64(p.Burst) + float64(p.Limit)*(e.at-events[i].at+2).Seconds(); float64(sum) > most {
					t.Fatalf("seed %d: %d in %v, at most %v of %+v", seed, sum, e.at-events[i].at, most, p)
				}
			}
		}
	}
	time.Sleep(time.Minute) // in a synctest bubble
	var each [2]limiter.PolicyState
	r.AllowEach(time.Time{}, "key", 0, each[:])
	for i, p := range policies {
		if each[i].Remaining != p.Burst {
			t.Errorf("seed %d: %+v of %+v at rest", seed, each[i], p)
		}
	}
}

// A new key that gives up waiting gives back what it had of the bucket that new keys share.
func TestRateWaitGivesTheBudgetBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := limiter.NewRate(0.001, 5, limiter.WithMaxKeys(8), limiter.WithNewKeyBudget(1, 1))
		for i := range 8 {
			r.Allow(strconv.Itoa(i))
		}
		r.Allow("first")
		for i := range 100 {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Millisecond, cancel)
			if err := r.Wait(ctx, "leaves"+strconv.Itoa(i)); err != context.Canceled {
				t.Fatalf("%d: %v", i, err)
			}
		}
		time.Sleep(time.Second) // in a synctest bubble
		if d := r.Allow("honest"); !d.OK {
			t.Errorf("after all others have left: %+v", d)
		}
	})
}

// Whoever gives up waiting for one policy has his tokens of the others back, whoever came after him.
func TestRateWaitGivesBackToEachPolicy(t *testing.T) {
	for kind, opts := range rateKinds {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := limiter.NewRate(1, 1, append([]limiter.RateOption{limiter.WithPolicy("daily", 0, 100)}, opts...)...)
				r.Allow("key")
				for range 20 {
					var wg sync.WaitGroup
					for i := range 3 {
						wg.Go(func() {
							ctx, cancel := context.WithCancel(t.Context())
							time.AfterFunc(time.Duration(10+i)*time.Millisecond, cancel)
							if err := r.Wait(ctx, "key"); err != context.Canceled {
								t.Errorf("wait %d: %v", i, err)
							}
						})
						synctest.Wait()
					}
					wg.Wait()
				}
				var each [2]limiter.PolicyState
				r.AllowEach(time.Time{}, "key", 1000, each[:])
				if each[1].Remaining != 99 {
					t.Errorf("%d left of 100 after one event and 60 that did not happen", each[1].Remaining)
				}
			})
		})
	}
}

// Whoever gives up waiting gives back what he had and no more, whatever changed the bucket meanwhile: the last in line all of it, the
// first, whom others wait behind, nothing, and at a policy at which nobody waits all of it.
func TestRateWaitGivesBackAfterChanges(t *testing.T) {
	for kind, opts := range rateKinds {
		for name, c := range map[string]struct {
			change func(r *limiter.Rate) error
			limit  rate.Limit
		}{
			"a refund":   {func(r *limiter.Rate) error { r.Refund("key", 2); return nil }, 1},
			"a charge":   {func(r *limiter.Rate) error { r.Charge("key", 2); return nil }, 1},
			"more burst": {func(r *limiter.Rate) error { return r.SetLimit(1, 13) }, 1},
			"less burst": {func(r *limiter.Rate) error { return r.SetLimit(1, 5) }, 1},
			"more limit": {func(r *limiter.Rate) error { return r.SetLimit(2, 10) }, 2},
			"less limit": {func(r *limiter.Rate) error { return r.SetLimit(0.25, 10) }, 0.25},
			// The clock of a bucket runs with its limit, but for powers of two.
			"triple limit": {func(r *limiter.Rate) error { return r.SetLimit(3, 10) }, 3},
			"both, thrice": {func(r *limiter.Rate) error {
				return errors.Join(r.SetLimit(2, 5), r.SetLimit(0.5, 16), r.SetLimit(1, 9))
			}, 1},
		} {
			t.Run(kind+"/"+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					r := limiter.NewRate(1, 10, append([]limiter.RateOption{limiter.WithPolicy("daily", 0, 100)}, opts...)...)
					r.AllowN("key", 10)
					var leave [6]context.CancelFunc
					for i := range leave {
						ctx, cancel := context.WithCancel(t.Context())
						leave[i] = cancel
						go r.Wait(ctx, "key")
						synctest.Wait()
					}
					states := func() (each [2]limiter.PolicyState) {
						r.AllowEach(time.Time{}, "key", 1000, each[:])
						return each
					}
					time.Sleep(250 * time.Millisecond) // in a synctest bubble
					daily := states()[1].Remaining
					rateMust(t, c.change(r))
					daily = states()[1].Remaining - daily
					time.Sleep(250 * time.Millisecond) // in a synctest bubble
					for _, who := range []struct{ i, back int }{{5, 1}, {0, 0}, {4, 1}, {3, 1}} {
						before := states()
						leave[who.i]()
						synctest.Wait()
						after := states()
						spent := (before[0].ResetAfter - after[0].ResetAfter).Seconds() * float64(c.limit)
						if name == "a charge" {
							who.back = 0 // that is behind everybody
						}
						if math.Abs(spent-float64(who.back)) > 1e-6 || after[1].Remaining-before[1].Remaining != 1 {
							t.Errorf("wait %d was given up: %v tokens came back, want %d; daily: %d left of 100 after %d",
								who.i, spent, who.back, after[1].Remaining, before[1].Remaining)
						}
					}
					for _, leave := range leave {
						leave()
					}
					synctest.Wait()
					if n := states()[1].Remaining; n != 90+daily {
						t.Errorf("%d left of 100 after 10 events", n-daily)
					}
				})
			})
		}
	}
}

// What was reserved of a bucket that has been filled since, as there was no limit for a while, is not given back.
func TestRateWaitGivesBackNothingOfWhatWasFilled(t *testing.T) {
	for kind, opts := range rateKinds {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := limiter.NewRate(1, 10, opts...)
				r.AllowN("key", 10)
				ctx, cancel := context.WithCancel(t.Context())
				go r.Wait(ctx, "key")
				synctest.Wait()
				rateMust(t, r.SetLimit(rate.Inf, 0))
				rateMust(t, r.SetLimit(1, 10))
				if d := r.AllowN("key", 10); !d.OK {
					t.Fatalf("filled: %+v", d)
				}
				cancel()
				synctest.Wait()
				if d := r.Peek("key", 1); d.OK {
					t.Errorf("more than the burst: %+v", d)
				}
			})
		})
	}
}

// What was reserved of buckets that are full since, by Reset or as another key took their place, is not given back to those that the key has
// now; what is reserved of these is.
func TestRateWaitGivesBackNothingOfWhatWasForgotten(t *testing.T) {
	displace := func(r *limiter.Rate) {
		for i := range 200 {
			r.Charge(strconv.Itoa(i), 100) // further from full than that of who waits
		}
	}
	for kind, opts := range rateKinds {
		for name, forget := range map[string]func(r *limiter.Rate){
			"Reset":     func(r *limiter.Rate) { r.Reset("key") },
			"displaced": displace,
		} {
			if kind == "unkeyed" && name == "displaced" {
				continue
			}
			t.Run(kind+"/"+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					r := limiter.NewRate(1, 10, append([]limiter.RateOption{limiter.WithMaxKeys(8)}, opts...)...)
					if kind == "unkeyed" {
						r = limiter.NewRate(1, 10, opts...)
					}
					wait := func() context.CancelFunc {
						ctx, cancel := context.WithCancel(t.Context())
						go r.Wait(ctx, "key")
						synctest.Wait()
						return cancel
					}
					r.AllowN("key", 10)
					first, second := wait(), wait()
					forget(r)
					if d := r.AllowN("key", 10); !d.OK {
						t.Fatalf("forgotten: %+v", d)
					}
					third := wait()
					for i, leave := range []struct {
						who  context.CancelFunc
						want time.Duration // until there is a token
					}{{first, 2 * time.Second}, {third, time.Second}, {second, time.Second}} {
						leave.who()
						synctest.Wait()
						if d := r.Peek("key", 1); d.OK || d.RetryAfter != leave.want {
							t.Errorf("after %d have left: %+v, want %v", i+1, d, leave.want)
						}
					}
				})
			})
		}
	}
}

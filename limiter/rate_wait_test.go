package limiter_test

import (
	"context"
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

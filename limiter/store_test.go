package limiter_test

import (
	"context"
	"errors"
	"math"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"github.com/spillgate/spillgate/limiter"
)

// storeStub is a store that can be made to fail.
type storeStub struct {
	limiter.Store
	err   error
	hang  bool
	panic bool
	calls int
	asked limiter.Policy  // the first one of the last question
	ctx   context.Context // of the last question
}

var errStoreStub = errors.New("down")

func (s *storeStub) Take(ctx context.Context, req limiter.StoreRequest, states []limiter.PolicyState) (bool, error) {
	s.calls++
	s.asked, s.ctx = req.Policies[0], ctx
	switch {
	case s.panic:
		panic(errStoreStub)
	case s.hang:
		<-ctx.Done()
		return false, ctx.Err()
	case s.err != nil:
		return false, s.err
	}
	return s.Store.Take(ctx, req, states)
}

// Both ways to keep the local buckets in front of a store.
var storeFronts = map[string][]limiter.RateOption{"table": nil, "unkeyed": {limiter.WithoutKeys()}}

func storeTest(t *testing.T, f func(t *testing.T, s *storeStub, opts ...limiter.RateOption)) {
	for front, opts := range storeFronts {
		t.Run(front, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &storeStub{Store: limiter.NewMemoryStore(1024)}
				f(t, s, append([]limiter.RateOption{limiter.WithStore(s)}, opts...)...)
			})
		})
	}
}

func TestStoreIsSharedByTwoRates(t *testing.T) {
	storeTest(t, func(t *testing.T, s *storeStub, opts ...limiter.RateOption) {
		a, b := limiter.NewRate(1, 10, opts...), limiter.NewRate(1, 10, opts...)
		if d := a.AllowN("key", 6); !d.OK || d.Remaining != 4 {
			t.Fatalf("a: %+v", d)
		}
		if d := b.AllowN("key", 3); !d.OK || d.Remaining != 1 {
			t.Fatalf("b sees what a took: %+v", d)
		}
		var each [2]limiter.PolicyState
		d := b.AllowContext(t.Context(), time.Time{}, "key", 2, each[:])
		if d.OK || d.RetryAfter != time.Second || d.Remaining != 1 || !each[0].Refused || d.Unavailable || !errors.Is(d.Err(), limiter.ErrRateLimited) {
			t.Fatalf("b is refused: %+v %+v", d, each)
		}
		if s := b.Stats(); s.Admitted != 1 || s.Rejected != 1 || s.StoreAsked != 1 {
			t.Fatalf("%+v", s)
		}
		a.Refund("key", 5)
		if d := a.AllowN("key", 6); !d.OK {
			t.Fatalf("after a refund: %+v", d)
		}
		a.Reset("key")
		if d := a.AllowN("key", 10); !d.OK {
			t.Fatalf("after a reset: %+v", d)
		}
	})
}

// What admits everything here has the one limit that a Store knows for it, however it was written.
func TestStoreKnowsInfiniteLimits(t *testing.T) {
	storeTest(t, func(t *testing.T, s *storeStub, opts ...limiter.RateOption) {
		for _, l := range []rate.Limit{1 << 62, 1e300, rate.Inf, rate.Limit(math.Inf(1))} {
			r, later := limiter.NewRate(l, 0, opts...), limiter.NewRate(1, 1, opts...)
			if err := later.SetLimit(l, 0); err != nil {
				t.Fatal(err)
			}
			for _, r := range []*limiter.Rate{r, later} {
				s.asked = limiter.Policy{}
				if !r.Allow("key").OK || s.asked.Limit != rate.Inf {
					t.Errorf("%v: the store is asked about %v", l, s.asked)
				}
			}
		}
	})
}

func TestStoreIsNotAskedWhatIsKnown(t *testing.T) {
	storeTest(t, func(t *testing.T, s *storeStub, opts ...limiter.RateOption) {
		a, b := limiter.NewRate(1, 5, opts...), limiter.NewRate(1, 5, opts...)
		a.AllowN("key", 5)
		if d := b.AllowN("key", 5); d.OK {
			t.Fatalf("%+v", d)
		}
		s.calls = 0
		for range 100 {
			if a.Allow("key").OK || b.Allow("key").OK {
				t.Fatal("admitted")
			}
		}
		if s.calls != 0 {
			t.Errorf("asked %d times about a key that is known to be spent", s.calls)
		}
		time.Sleep(time.Second) // in a synctest bubble
		if !b.Allow("key").OK {
			t.Error("refused a token that flowed in")
		}
	})
}

// What another process gives back, or resets, is found within a second, however long the local buckets would refuse.
func TestStoreThatHasMoreThanIsKnown(t *testing.T) {
	for name, give := range map[string]func(*limiter.Rate){
		"refund": func(r *limiter.Rate) { r.Refund("key", 3) },
		"reset":  func(r *limiter.Rate) { r.Reset("key") },
	} {
		for _, limit := range []rate.Limit{rate.Every(time.Hour), 0} {
			t.Run(name, func(t *testing.T) {
				storeTest(t, func(t *testing.T, s *storeStub, opts ...limiter.RateOption) {
					here, there := limiter.NewRate(limit, 3, opts...), limiter.NewRate(limit, 3, opts...)
					here.AllowN("key", 3)
					s.calls = 0
					for range 100 {
						if here.Allow("key").OK {
							t.Fatal("admitted")
						}
						time.Sleep(50 * time.Millisecond) // in a synctest bubble
					}
					if s.calls > 6 {
						t.Errorf("asked %d times in 5 s", s.calls)
					}
					give(there)
					if d := here.AllowN("key", 4); d.OK {
						t.Errorf("above the burst: %+v", d)
					}
					time.Sleep(time.Second) // in a synctest bubble
					for i := range 3 {
						if d := here.Allow("key"); !d.OK || d.Remaining != 2-i || d.Policy != "default" {
							t.Errorf("event %d after that: %+v", i, d)
						}
					}
					if d := here.Allow("key"); d.OK {
						t.Errorf("more than was given back: %+v", d)
					}
					if s := here.Stats(); s.Admitted != 4 || s.Rejected != 102 {
						t.Errorf("%+v", s)
					}
				})
			})
		}
	}
}

// A key that was reset elsewhere is found out about within a second, however many others are refused here all the time; and
// about each of those the store is asked once a second.
func TestStoreIsAskedAboutEachKey(t *testing.T) {
	for kind, opts := range map[string][]limiter.RateOption{"table": nil, "two policies": {limiter.WithPolicy("second", 1, 1)}, "exact": {limiter.WithExactKeys()}} {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &storeStub{Store: limiter.NewMemoryStore(1 << 15)}
				opts := append([]limiter.RateOption{limiter.WithMaxKeys(1 << 15), limiter.WithStore(s)}, opts...)
				here := limiter.NewRate(rate.Every(time.Hour), 1, opts...)
				there := limiter.NewRate(rate.Every(time.Hour), 1, append(opts, limiter.WithStore(s.Store))...)
				const others, seconds = 1000, 3
				time.Sleep(time.Second) // in a synctest bubble
				here.Allow("key")
				for i := range others {
					here.Allow(strconv.Itoa(i))
				}
				s.calls = 0
				found, reset := time.Duration(-1), time.Now().Add(500*time.Millisecond)
				for range seconds * 10 {
					if time.Now().Equal(reset) {
						there.Reset("key")
					}
					for i := range others {
						if here.Allow(strconv.Itoa(i)).OK {
							t.Fatalf("%d is admitted twice", i)
						}
					}
					if here.Allow("key").OK {
						found = time.Since(reset)
					}
					time.Sleep(100 * time.Millisecond) // in a synctest bubble
				}
				if found < 0 || found > time.Second {
					t.Errorf("reset elsewhere, admitted after %v", found)
				}
				if most := (others + 1) * seconds; s.calls > most {
					t.Errorf("asked %d times, at most %d are once a second for each key", s.calls, most)
				}
			})
		})
	}
}

// What the bucket of new keys refuses is no question for a store, which knows nothing of it.
func TestStoreAndNewKeyBudget(t *testing.T) {
	for _, limit := range []rate.Limit{0, rate.Every(time.Hour)} {
		synctest.Test(t, func(t *testing.T) {
			r := limiter.NewRate(0.001, 5, limiter.WithMaxKeys(8), limiter.WithNewKeyBudget(limit, 3), limiter.WithStore(limiter.NewMemoryStore(1024)))
			for i := range 8 {
				r.Allow(strconv.Itoa(i))
			}
			ok := 0
			for i := range 100 {
				if r.Allow("new" + strconv.Itoa(i)).OK {
					ok++
				}
				time.Sleep(time.Second) // in a synctest bubble
			}
			if ok != 3 {
				t.Errorf("%d new keys were admitted, the budget is 3", ok)
			}
		})
	}
}

// storeSays gives the answer that it is told to.
type storeSays struct {
	ok     bool
	states []limiter.PolicyState
}

func (s storeSays) Take(_ context.Context, _ limiter.StoreRequest, states []limiter.PolicyState) (bool, error) {
	copy(states, s.states)
	return s.ok, nil
}

// A decision has the numbers of the policy that refused, of several that for which it takes longest, or else of the one with the
// fewest tokens left. Limits and bursts are those of the Rate: a Store need not tell.
func TestStoreAnswerIsThatOfThePolicyThatDecides(t *testing.T) {
	left := func(n int) limiter.PolicyState { return limiter.PolicyState{Remaining: n, ResetAfter: time.Minute} }
	refused := func(n int, retry time.Duration) limiter.PolicyState {
		return limiter.PolicyState{Remaining: n, RetryAfter: retry, ResetAfter: time.Minute, Refused: true}
	}
	free := limiter.PolicyState{Remaining: math.MaxInt}
	for _, c := range []struct {
		name   string
		ok     bool
		states []limiter.PolicyState // of a, b, c; d is infinite
		want   int
	}{
		{"admitted: the fewest tokens left, first", true, []limiter.PolicyState{left(1), left(3), left(2), free}, 0},
		{"admitted: the fewest tokens left, amid", true, []limiter.PolicyState{left(3), left(1), left(2), free}, 1},
		{"admitted: of equals the first", true, []limiter.PolicyState{left(2), left(1), left(1), free}, 1},
		{"admitted: no word of a refusal counts", true, []limiter.PolicyState{left(1), refused(2, 0), left(3), free}, 0},
		{"refused by one that has more left", false, []limiter.PolicyState{left(1), left(0), refused(4, time.Second), free}, 2},
		{"refused by the first", false, []limiter.PolicyState{refused(4, time.Second), left(0), left(0), free}, 0},
		{"refused by two: the longer wait, first", false, []limiter.PolicyState{left(0), refused(2, 3*time.Second), refused(1, 2*time.Second), free}, 1},
		{"refused by two: the longer wait, last", false, []limiter.PolicyState{left(0), refused(1, 2*time.Second), refused(2, 3*time.Second), free}, 2},
		{"refused by two: no wait helps, first", false, []limiter.PolicyState{refused(2, 0), refused(1, 2*time.Second), left(0), free}, 0},
		{"refused by two: no wait helps, last", false, []limiter.PolicyState{left(0), refused(1, 2*time.Second), refused(2, 0), free}, 2},
		{"refused, and none says that it did", false, []limiter.PolicyState{left(2), left(1), left(3), free}, 1},
	} {
		for front, opts := range storeFronts {
			t.Run(c.name+", "+front, func(t *testing.T) {
				r := limiter.NewRate(1, 10, append(opts, limiter.WithName("a"), limiter.WithPolicy("b", 2, 20), limiter.WithPolicy("c", 3, 30),
					limiter.WithPolicy("d", rate.Inf, 0), limiter.WithStore(storeSays{c.ok, c.states}))...)
				each := make([]limiter.PolicyState, 4)
				d := r.AllowEach(time.Time{}, "key", 1, each)
				policy, state := r.Policies()[c.want], c.states[c.want]
				if want := (limiter.Decision{OK: c.ok, Policy: policy.Name, Limit: policy.Burst, Remaining: state.Remaining,
					RetryAfter: state.RetryAfter, ResetAfter: state.ResetAfter}); d != want {
					t.Errorf("decision %+v\nwant     %+v", d, want)
				}
				for i, p := range r.Policies() {
					want := c.states[i]
					want.Limit, want.Burst, want.Refused = p.Limit, p.Burst, want.Refused && !c.ok
					if each[i] != want {
						t.Errorf("state of %s %+v\nwant       %+v", p.Name, each[i], want)
					}
				}
			})
		}
	}
	r := limiter.NewRate(rate.Inf, 0, limiter.WithStore(storeSays{true, []limiter.PolicyState{free}}))
	if d := r.Allow("key"); !d.OK || d.Limit != math.MaxInt || d.Remaining != math.MaxInt {
		t.Errorf("infinite: %+v", d)
	}
}

// What the local buckets refuse stays refused, and costs nothing, where the store that is asked about it once a second does not answer.
func TestStoreFailureAdmitsNothingThatIsRefusedHere(t *testing.T) {
	for _, f := range []limiter.StoreFailure{limiter.FailLocal, limiter.FailOpen, limiter.FailClosed} {
		t.Run(f.String(), func(t *testing.T) {
			storeTest(t, func(t *testing.T, s *storeStub, opts ...limiter.RateOption) {
				r := limiter.NewRate(rate.Every(time.Hour), 3, append(opts, limiter.WithStoreFailure(f))...)
				r.AllowN("key", 3)
				time.Sleep(2 * time.Second) // in a synctest bubble
				s.err, s.calls = errStoreStub, 0
				for range 3 {
					time.Sleep(2 * time.Second) // in a synctest bubble
					if d := r.Allow("key"); d.OK || d.Unavailable || d.RetryAfter < 50*time.Minute {
						t.Errorf("%+v", d)
					}
				}
				if s.calls != 3 {
					t.Errorf("asked %d times, want 3", s.calls)
				}
			})
		})
	}
}

// What is given back, charged or reset while the store does not answer is told.
func TestStoreFailureOfWhatIsForcedIsTold(t *testing.T) {
	for name, force := range map[string]func(*limiter.Rate){
		"refund": func(r *limiter.Rate) { r.Refund("key", 1) },
		"charge": func(r *limiter.Rate) { r.Charge("key", 1) },
		"reset":  func(r *limiter.Rate) { r.Reset("key") },
	} {
		t.Run(name, func(t *testing.T) {
			storeTest(t, func(t *testing.T, s *storeStub, opts ...limiter.RateOption) {
				var told []error
				traced := limiter.NewRate(1, 10, append(opts, limiter.WithRateTrace(limiter.RateTrace{StoreFailed: func(err error) { told = append(told, err) }}))...)
				force(traced)
				if len(told) != 0 {
					t.Errorf("well: told %v", told)
				}
				s.err = errStoreStub
				force(traced)
				if len(told) != 1 || told[0] != errStoreStub {
					t.Errorf("down: told %v, want once %v", told, errStoreStub)
				}
				force(limiter.NewRate(1, 10, opts...)) // nobody to tell
			})
		})
	}
}

func TestStoreFailure(t *testing.T) {
	for _, c := range []struct {
		name    string
		failure limiter.StoreFailure
		break_  func(*storeStub)
		ok      int // of 10 events at a burst of 3
	}{
		{"local", limiter.FailLocal, func(s *storeStub) { s.err = errStoreStub }, 3},
		{"open", limiter.FailOpen, func(s *storeStub) { s.err = errStoreStub }, 10},
		{"closed", limiter.FailClosed, func(s *storeStub) { s.err = errStoreStub }, 0},
		{"local, hanging", limiter.FailLocal, func(s *storeStub) { s.hang = true }, 3},
		{"open, hanging", limiter.FailOpen, func(s *storeStub) { s.hang = true }, 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			storeTest(t, func(t *testing.T, s *storeStub, opts ...limiter.RateOption) {
				traced := 0
				r := limiter.NewRate(0.001, 3, append(opts, limiter.WithStoreFailure(c.failure), limiter.WithStoreTimeout(10*time.Millisecond),
					limiter.WithRateTrace(limiter.RateTrace{StoreFailed: func(error) { traced++ }}))...)
				c.break_(s)
				start, ok := time.Now(), 0
				var last limiter.Decision
				for range 10 {
					if last = r.Allow("key"); last.OK {
						ok++
					}
				}
				if ok != c.ok {
					t.Errorf("%d admitted, want %d", ok, c.ok)
				}
				if c.failure == limiter.FailClosed && (!last.Unavailable || !errors.Is(last.Err(), limiter.ErrStoreFailed) || last.RetryAfter <= 0) {
					t.Errorf("closed: %+v: %v", last, last.Err())
				}
				if open := c.failure == limiter.FailOpen; open && (!last.OK || !last.Unavailable || last.Err() != nil) {
					t.Errorf("open: %+v: %v", last, last.Err())
				}
				if traced == 0 || s.calls > 5 || time.Since(start) > 50*time.Millisecond {
					t.Errorf("traced %d, %d calls in %v", traced, s.calls, time.Since(start))
				}
				if st := r.Stats(); int(st.Admitted) != c.ok || int(st.Rejected) != 10-c.ok {
					t.Errorf("%+v", st)
				}
				// Well again: one event asks, and then all do.
				s.err, s.hang, s.calls = nil, false, 0
				time.Sleep(3 * time.Second) // in a synctest bubble
				r.Reset("key")
				if d := r.Allow("key"); !d.OK || s.calls != 2 {
					t.Errorf("well again: %+v after %d calls", d, s.calls)
				}
			})
		})
	}
}

// storeLate is a store that answers none of the questions that are under way before it is told to; with the error of their context then, as if the
// process had not run meanwhile.
type storeLate struct {
	limiter.Store
	late atomic.Pointer[chan struct{}]
}

func (s *storeLate) Take(ctx context.Context, req limiter.StoreRequest, states []limiter.PolicyState) (bool, error) {
	if late := s.late.Load(); late != nil {
		<-*late
		return false, context.DeadlineExceeded
	}
	return s.Store.Take(ctx, req, states)
}

// Questions that fail at once since the process was short of a processor, as in a container with a quota, do not have the store left alone.
func TestStoreFailsOnceForAllUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &storeLate{Store: limiter.NewMemoryStore(1024)}
		r := limiter.NewRate(1000, 1000, limiter.WithStore(s), limiter.WithStoreFailure(limiter.FailClosed))
		for range 10 {
			late := make(chan struct{})
			s.late.Store(&late)
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() { r.Allow("key") })
				time.Sleep(time.Millisecond) // in a synctest bubble
			}
			s.late.Store(nil)
			close(late)
			wg.Wait()
			if d := r.Allow("key"); !d.OK {
				t.Errorf("well again: %+v", d)
			}
		}
		if st := r.Stats(); st.StoreFailed != 80 || st.StoreSkipped != 0 {
			t.Errorf("%d failed, %d were not asked", st.StoreFailed, st.StoreSkipped)
		}
	})
}

// However long the store may take: one that hangs is left alone soon after the first question has failed.
func TestStoreThatHangsForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, late := &storeLate{Store: limiter.NewMemoryStore(1024)}, make(chan struct{})
		s.late.Store(&late)
		r := limiter.NewRate(1000, 1000, limiter.WithStore(s), limiter.WithStoreTimeout(time.Second))
		var wg sync.WaitGroup
		defer wg.Wait()
		defer close(late)
		for range 1200 {
			wg.Go(func() { r.Allow("key") })
			time.Sleep(time.Millisecond) // in a synctest bubble
		}
		if st := r.Stats(); st.StoreSkipped < 100 || st.StoreSkipped > 150 {
			t.Errorf("of 200 that came since the first had failed %d were not asked", st.StoreSkipped)
		}
	})
}

// What was admitted here while the store was away is not told to be left when that is back: it would be refused here.
func TestStoreRemainingAfterAnOutage(t *testing.T) {
	storeTest(t, func(t *testing.T, s *storeStub, opts ...limiter.RateOption) {
		r := limiter.NewRate(10, 10, append(opts, limiter.WithPolicy("other", 10, 20))...)
		if d := r.Allow("key"); d.Remaining != 9 {
			t.Fatalf("before: %+v", d)
		}
		s.err = errStoreStub
		for range 4 {
			r.Allow("key")
		}
		s.err = nil
		for want := 4; want >= 0; want-- {
			var each [2]limiter.PolicyState
			states := each[:]
			if want%2 == 0 {
				states = nil // who asks for none
			}
			d := r.AllowContext(t.Context(), time.Time{}, "key", 1, states)
			if !d.OK || d.Remaining != want || states != nil && (each[0].Remaining != want || each[1].Remaining != want+10) {
				t.Errorf("%d left: %+v, %+v", want, d, each)
			}
			if least := time.Duration(9-want) * 100 * time.Millisecond; d.ResetAfter < least {
				t.Errorf("%d left, and all again in %v, want %v at least", want, d.ResetAfter, least)
			}
		}
		if d := r.Allow("key"); d.OK {
			t.Errorf("more than is left: %+v", d)
		}
	})
}

// What a new key had of the bucket that new keys share comes back too, where the event did not count after all.
func TestStoreGivesTheBudgetBack(t *testing.T) {
	for _, c := range []struct {
		name    string
		failure limiter.StoreFailure
		break_  func(*storeStub)
		ok      int // of 10 new keys
	}{
		{"open", limiter.FailOpen, func(s *storeStub) { s.err = errStoreStub }, 10},
		{"closed", limiter.FailClosed, func(s *storeStub) { s.err = errStoreStub }, 0},
		{"refused", limiter.FailLocal, func(s *storeStub) { s.Store = storeFull{} }, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &storeStub{Store: limiter.NewMemoryStore(1024)}
				r := limiter.NewRate(0.001, 5, limiter.WithMaxKeys(8), limiter.WithNewKeyBudget(0, 3), limiter.WithStore(s), limiter.WithStoreFailure(c.failure))
				for i := range 8 {
					r.Allow(strconv.Itoa(i))
				}
				well := s.Store
				c.break_(s)
				ok := 0
				for range 10 {
					if r.Allow("new").OK {
						ok++
					}
				}
				if ok != c.ok {
					t.Errorf("%d admitted, want %d", ok, c.ok)
				}
				s.err, s.Store = nil, well
				time.Sleep(3 * time.Second) // in a synctest bubble
				if d := r.AllowN("newer", 3); !d.OK {
					t.Errorf("the whole budget, well again: %+v", d)
				}
				if d := r.Allow("newest"); d.OK {
					t.Errorf("more than the budget: %+v", d)
				}
			})
		})
	}
}

// storeCoarse tells times in whole seconds, rounded up.
type storeCoarse struct{ limiter.Store }

func (s storeCoarse) Take(ctx context.Context, req limiter.StoreRequest, states []limiter.PolicyState) (bool, error) {
	ok, err := s.Store.Take(ctx, req, states)
	for i := range states {
		for _, d := range []*time.Duration{&states[i].RetryAfter, &states[i].ResetAfter} {
			*d = (*d + time.Second - 1).Truncate(time.Second)
		}
	}
	return ok, err
}

// What a store says is left may be taken, however coarse the times are that it tells.
func TestStoreThatRoundsTimes(t *testing.T) {
	storeTest(t, func(t *testing.T, s *storeStub, opts ...limiter.RateOption) {
		s.Store = storeCoarse{s.Store}
		r := limiter.NewRate(1000, 1000, append(opts, limiter.WithPolicy("other", 10, 2000))...)
		for left := 999; left >= 0; left-- {
			if d := r.Allow("key"); !d.OK || d.Remaining != left {
				t.Fatalf("%d left: %+v", left, d)
			}
		}
		if d := r.Allow("key"); d.OK {
			t.Errorf("%+v", d)
		}
	})
}

// storeFull refuses every event.
type storeFull struct{}

func (storeFull) Take(_ context.Context, _ limiter.StoreRequest, states []limiter.PolicyState) (bool, error) {
	states[0] = limiter.PolicyState{Refused: true, RetryAfter: time.Second, ResetAfter: time.Minute}
	return false, nil
}

// A probe that ends in a panic is a verdict too, and one that ends with its caller's leaving leaves that to the next.
func TestStoreProbeIsNeverLost(t *testing.T) {
	storeTest(t, func(t *testing.T, s *storeStub, opts ...limiter.RateOption) {
		r := limiter.NewRate(1000, 1000, opts...)
		s.err = errStoreStub
		for range 10 {
			r.Allow("key")
		}
		time.Sleep(3 * time.Second) // in a synctest bubble
		s.panic = true
		func() {
			defer func() {
				if recover() != errStoreStub {
					t.Error("the panic did not travel on")
				}
			}()
			r.Allow("key")
		}()
		s.panic, s.err, s.hang = false, nil, true
		time.Sleep(3 * time.Second) // in a synctest bubble
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if err := r.Wait(ctx, "key"); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		s.hang = false // and the next one is the probe
		s.calls = 0
		r.Allow("key")
		r.Allow("key")
		if s.calls != 2 {
			t.Errorf("%d calls once well again, want 2", s.calls)
		}
	})
}

// storeDeaf ignores its context, as clients with timeouts of their own do.
type storeDeaf struct {
	limiter.Store
	deaf atomic.Bool
	end  chan struct{}
}

func (s *storeDeaf) Take(ctx context.Context, req limiter.StoreRequest, states []limiter.PolicyState) (bool, error) {
	if s.deaf.Load() {
		<-s.end
		panic("after everybody has left")
	}
	return s.Store.Take(ctx, req, states)
}

// A store that ignores its context holds up nobody for longer than it may take, and is asked again once it is well.
func TestStoreThatIgnoresItsContext(t *testing.T) {
	for front, opts := range storeFronts {
		t.Run(front, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &storeDeaf{Store: limiter.NewMemoryStore(1024), end: make(chan struct{})}
				r := limiter.NewRate(1000, 1000, append(opts, limiter.WithStore(s))...)
				s.deaf.Store(true)
				for range 3 { // hung from the start, and then at two probes
					for range 10 {
						start := time.Now()
						if d := r.Allow("key"); !d.OK {
							t.Fatalf("%+v", d)
						}
						if held := time.Since(start); held > 60*time.Millisecond {
							t.Fatalf("held up for %v", held)
						}
					}
					time.Sleep(3 * time.Second) // in a synctest bubble
				}
				if s := r.Stats(); s.StoreAsked != 7 || s.StoreFailed != 7 || s.StoreSkipped != 23 {
					t.Errorf("%+v", s)
				}
				s.deaf.Store(false)
				close(s.end)
				for range 10 {
					r.Allow("key")
				}
				if s := r.Stats(); s.StoreAsked != 17 || s.StoreFailed != 7 {
					t.Errorf("well again: %+v", s)
				}
			})
		})
	}
}

// Whoever waits is admitted or refused once, however often he asks: he is no offender for having waited.
func TestStoreWaitIsOneDecision(t *testing.T) {
	storeTest(t, func(t *testing.T, s *storeStub, opts ...limiter.RateOption) {
		rejected := 0
		r := limiter.NewRate(1, 1, append(opts, limiter.WithMaxWait(10*time.Second), limiter.WithRateTrace(limiter.RateTrace{
			Rejected: func(string, limiter.Decision) { rejected++ },
		}))...)
		var wg sync.WaitGroup
		for range 6 {
			wg.Go(func() {
				if err := r.Wait(t.Context(), "key"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if s := r.Stats(); s.Admitted != 6 || s.Rejected != 0 || rejected != 0 {
			t.Errorf("%d told as rejected: %+v", rejected, s)
		}
		if err := r.WaitN(t.Context(), "key", 2); !errors.Is(err, limiter.ErrRateLimited) {
			t.Errorf("above the burst: %v", err)
		}
		short, cancel := context.WithTimeout(t.Context(), time.Second/2)
		defer cancel()
		if err := r.Wait(short, "key"); !errors.Is(err, limiter.ErrWouldMissDeadline) {
			t.Errorf("deadline too short: %v", err)
		}
		if s := r.Stats(); s.Admitted != 6 || s.Rejected != 2 || rejected != 2 {
			t.Errorf("%d told as rejected: %+v", rejected, s)
		}
	})
}

// Counts never go down, whoever looks while a store has not answered yet: a monitor would take that for a restart.
func TestStoreCountsOnlyUp(t *testing.T) {
	for _, shadow := range []bool{false, true} {
		storeTest(t, func(t *testing.T, s *storeStub, opts ...limiter.RateOption) {
			there := limiter.NewRate(rate.Every(time.Hour), 3, opts...)
			slow := &storeSlow{s.Store}
			here := limiter.NewRate(rate.Every(time.Hour), 3, append(opts, limiter.WithStore(slow))...)
			here.SetShadow(shadow)
			var last limiter.RateStats
			look := func() {
				t.Helper()
				s := here.Stats()
				if s.Admitted < last.Admitted || s.Rejected < last.Rejected || s.Shadowed < last.Shadowed {
					t.Errorf("admitted %d, rejected %d, shadowed %d after %d, %d, %d",
						s.Admitted, s.Rejected, s.Shadowed, last.Admitted, last.Rejected, last.Shadowed)
				}
				last = s
			}
			ask := func() {
				done := make(chan limiter.Decision)
				go func() { done <- here.Allow("key") }()
				synctest.Wait()
				look()
				<-done
				look()
			}
			ask() // both admit
			there.AllowN("key", 2)
			ask()                       // only the local buckets do
			time.Sleep(2 * time.Second) // in a synctest bubble
			there.Reset("key")
			ask() // only the store does
			if got := last.Rejected + last.Shadowed; last.Admitted != 2 || got != 1 || (last.Shadowed == 1) != shadow {
				t.Errorf("%+v", last)
			}
		})
	}
}

// storeSlow takes a while for its answer.
type storeSlow struct{ limiter.Store }

func (s *storeSlow) Take(ctx context.Context, req limiter.StoreRequest, states []limiter.PolicyState) (bool, error) {
	time.Sleep(10 * time.Millisecond) // in a synctest bubble
	return s.Store.Take(ctx, req, states)
}

// Callers that have less time than the store are no failures of it, if it is well.
func TestStoreCallersWhoLeave(t *testing.T) {
	for front, opts := range storeFronts {
		t.Run(front, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := limiter.NewRate(1000, 1000, append(opts, limiter.WithStore(&storeSlow{limiter.NewMemoryStore(1024)}))...)
				for range 20 {
					ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
					if d := r.AllowContext(ctx, time.Time{}, "key", 1, nil); !d.OK {
						t.Errorf("%+v", d)
					}
					cancel()
				}
				if st := r.Stats(); st.StoreAsked != 20 || st.StoreFailed != 20 {
					t.Errorf("%+v, want 20 asked", st)
				}
				time.Sleep(time.Second) // in a synctest bubble
			})
		})
	}
}

// And yet a store that hangs does not take all the time that each of them has: it is left alone, and asked again when it is well.
func TestStoreThatHangsForCallersWhoLeave(t *testing.T) {
	storeTest(t, func(t *testing.T, s *storeStub, opts ...limiter.RateOption) {
		r := limiter.NewRate(1000, 1000, opts...)
		brief := func() time.Duration {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
			start := time.Now()
			if d := r.AllowContext(ctx, time.Time{}, "key", 1, nil); !d.OK {
				t.Errorf("%+v", d)
			}
			synctest.Wait()
			return time.Since(start)
		}
		s.hang = true
		took := time.Duration(0)
		for range 100 {
			took += brief()
		}
		if took > 200*time.Millisecond || s.calls > 8 {
			t.Errorf("100 events took %v, %d of them asked", took, s.calls)
		}
		s.hang = false
		time.Sleep(3 * time.Second) // in a synctest bubble
		s.calls = 0
		for range 10 {
			took = brief()
		}
		if took != 0 || s.calls != 10 {
			t.Errorf("once well again %d of 10 asked", s.calls)
		}
	})
}

// An event whose deadline comes before the answer is charged in the store all the same.
func TestStoreChargesWhoHasNoTime(t *testing.T) {
	for front, opts := range storeFronts {
		t.Run(front, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &storeSlow{limiter.NewMemoryStore(1024)}
				server := func() *limiter.Rate {
					return limiter.NewRate(rate.Every(time.Hour), 3, append(opts, limiter.WithStore(s))...)
				}
				one := server()
				for range 2 {
					ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
					if d := one.AllowContext(ctx, time.Time{}, "key", 1, nil); !d.OK {
						t.Errorf("%+v", d)
					}
					cancel()
				}
				time.Sleep(time.Second) // in a synctest bubble
				if d := server().Allow("key"); !d.OK || d.Remaining != 0 {
					t.Errorf("on another server: %+v, want none left", d)
				}
			})
		})
	}
}

// Who sends a request and hangs up at once has the same quota as everybody, and not one for each server or none at all.
func TestStoreCallersWhoHangUp(t *testing.T) {
	for _, f := range []limiter.StoreFailure{limiter.FailLocal, limiter.FailOpen, limiter.FailClosed} {
		t.Run(f.String(), func(t *testing.T) {
			storeTest(t, func(t *testing.T, s *storeStub, opts ...limiter.RateOption) {
				type key struct{}
				gone, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "value"))
				cancel()
				ok := 0
				for range 4 { // servers
					r := limiter.NewRate(rate.Every(time.Hour), 3, append(opts, limiter.WithStoreFailure(f))...)
					for range 5 {
						if r.AllowContext(gone, time.Time{}, "key", 1, nil).OK {
							ok++
						}
					}
					if st := r.Stats(); st.StoreFailed != 0 {
						t.Errorf("%d failures of a store that is well", st.StoreFailed)
					}
				}
				if ok != 3 {
					t.Errorf("%d admitted, want 3", ok)
				}
				if s.ctx.Value(key{}) != "value" {
					t.Error("the store did not get what the context holds")
				}
				s.hang = true
				start := time.Now()
				limiter.NewRate(1, 1, opts...).AllowContext(gone, time.Time{}, "key", 1, nil)
				if got := time.Since(start); got != 50*time.Millisecond {
					t.Errorf("a store that hangs: %v", got)
				}
			})
		})
	}
}

// A deadline ends the question to the store, and whoever may choose it gets nothing for that either.
func TestStoreCallersWithoutTime(t *testing.T) {
	for f, want := range map[limiter.StoreFailure]int{limiter.FailLocal: 3, limiter.FailOpen: 3, limiter.FailClosed: 0} {
		t.Run(f.String(), func(t *testing.T) {
			storeTest(t, func(t *testing.T, s *storeStub, opts ...limiter.RateOption) {
				r := limiter.NewRate(rate.Every(time.Hour), 3, append(opts, limiter.WithStoreFailure(f))...)
				s.hang = true
				ok := 0
				start := time.Now()
				for range 10 {
					ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
					if r.AllowContext(ctx, time.Time{}, "key", 1, nil).OK {
						ok++
					}
					cancel()
					synctest.Wait()
				}
				if ok != want || time.Since(start) > 10*time.Millisecond {
					t.Errorf("%d admitted in %v, want %d", ok, time.Since(start), want)
				}
				time.Sleep(time.Second) // in a synctest bubble
			})
		})
	}
}

// Who leaves while the store is asked does not get what the local buckets have meanwhile, and takes nothing of it.
func TestStoreWaitersWhoHangUp(t *testing.T) {
	for _, f := range []limiter.StoreFailure{limiter.FailLocal, limiter.FailOpen, limiter.FailClosed} {
		t.Run(f.String(), func(t *testing.T) {
			storeTest(t, func(t *testing.T, s *storeStub, opts ...limiter.RateOption) {
				r := limiter.NewRate(0.001, 3, append(opts, limiter.WithStoreFailure(f), limiter.WithRateTrace(limiter.RateTrace{
					StoreFailed: func(err error) { t.Errorf("%v is no failure of the store", err) },
				}))...)
				s.hang = true
				for range 10 {
					gone, cancel := context.WithCancel(t.Context())
					go func() { time.Sleep(time.Millisecond); cancel() }() // in a synctest bubble
					if err := r.Wait(gone, "key"); err != context.Canceled {
						t.Errorf("admitted, or %v", err)
					}
				}
				s.hang = false
				if left := r.Peek("key", 0).Remaining; left != 3 {
					t.Errorf("%d left, want 3", left)
				}
				if st := r.Stats(); st.Admitted != 0 || st.Rejected != 0 {
					t.Errorf("%+v", st)
				}
			})
		})
	}
}

func TestStoreWait(t *testing.T) {
	storeTest(t, func(t *testing.T, s *storeStub, opts ...limiter.RateOption) {
		r := limiter.NewRate(1, 2, append(opts, limiter.WithMaxWait(10*time.Second))...)
		start := time.Now()
		for i, want := range []time.Duration{0, 0, time.Second, 2 * time.Second} {
			rateMust(t, r.Wait(t.Context(), "key"))
			if got := time.Since(start); got != want {
				t.Fatalf("event %d at %v, want %v", i, got, want)
			}
		}
		short, cancel := context.WithTimeout(t.Context(), time.Second/2)
		defer cancel()
		if err := r.Wait(short, "key"); !errors.Is(err, limiter.ErrWouldMissDeadline) {
			t.Errorf("deadline too short: %v", err)
		}
		if err := r.WaitN(t.Context(), "key", 3); !errors.Is(err, limiter.ErrRateLimited) {
			t.Errorf("above the burst: %v", err)
		}
		gone, cancel := context.WithCancel(t.Context())
		go func() { time.Sleep(time.Second / 2); cancel() }() // in a synctest bubble
		if err := r.Wait(gone, "key"); err != context.Canceled {
			t.Errorf("cancelled: %v", err)
		}
	})
}

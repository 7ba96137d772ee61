// Package limitertest has the tests that a [limiter.Store] must pass.
package limitertest

import (
	"context"
	"fmt"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"github.com/spillgate/spillgate/limiter"
)

// StoreConfig says how to test a store.
type StoreConfig struct {
	// New returns a store without keys, for one subtest.
	New func(t testing.TB) limiter.Store
	// Run runs the body of one subtest; if it is nil, the body is called directly. [testing/synctest.Test] is meant for
	// stores that use the clock of this process.
	Run func(t *testing.T, body func(*testing.T))
	// Wait makes time pass for the store; nil means [time.Sleep]. Use it to move the clock of a simulated server. The
	// tests wait for whole seconds, eleven in all.
	Wait func(time.Duration)
}

// TestStore runs the tests that every [limiter.Store] must pass, as subtests of t, one after the other.
// It panics if c.New is nil.
func TestStore(t *testing.T, c StoreConfig) {
	if c.New == nil {
		panic("limitertest: TestStore: StoreConfig.New is nil: give a function that makes a store")
	}
	if c.Run == nil {
		c.Run = func(t *testing.T, body func(*testing.T)) { body(t) }
	}
	if c.Wait == nil {
		c.Wait = time.Sleep
	}
	for _, test := range []struct {
		rule string
		run  func(*suite)
	}{
		{"burst, then what flows in", (*suite).burst},
		{"parts of a token flow in, and pay debts first", (*suite).parts},
		{"all policies or none", (*suite).allOrNone},
		{"cost above the burst: never", (*suite).aboveBurst},
		{"cost 0: admitted, nothing taken", (*suite).free},
		{"infinite limit: everything", (*suite).infinite},
		{"limit 0: the burst once", (*suite).zero},
		{"keys are apart, whatever they look like", (*suite).keys},
		{"force takes what is not there", (*suite).debt},
		{"force gives back, to the burst at most", (*suite).giveBack},
		{"a changed policy: what is spent stays spent", (*suite).change},
		{"limits differ from key to key", (*suite).own},
		{"an ended context: an error, and at once", (*suite).ended},
		{"many at once: no more than is due", (*suite).concurrent},
	} {
		t.Run(test.rule, func(t *testing.T) {
			c.Run(t, func(t *testing.T) {
				test.run(&suite{T: t, store: c.New(t), wait: c.Wait})
			})
		})
	}
}

type suite struct {
	*testing.T
	store limiter.Store
	wait  func(time.Duration)
}

// policy is the one most tests use: a token a second, 5 at once.
var policy = []limiter.Policy{{Name: "default", Limit: 1, Burst: 5}}

func (s *suite) ask(req limiter.StoreRequest) (bool, []limiter.PolicyState) {
	s.Helper()
	if req.Policies == nil {
		req.Policies = policy
	}
	before := append([]limiter.Policy(nil), req.Policies...)
	states := make([]limiter.PolicyState, len(req.Policies))
	ok, err := s.store.Take(context.Background(), req, states)
	if err != nil {
		s.Fatalf("%+v: %v", req, err)
	}
	for i := range before {
		if req.Policies[i] != before[i] {
			s.Fatalf("%+v: the store changed the policies of the request", req)
		}
		if st := states[i]; st.Remaining < 0 || st.RetryAfter < 0 || st.ResetAfter < 0 || ok && (st.RetryAfter != 0 || st.Refused) {
			s.Fatalf("%+v: %v, state of %q: %+v", req, ok, before[i].Name, st)
		}
	}
	return ok, states
}

// want asks, and checks the answer and what remains of the first policies.
func (s *suite) want(req limiter.StoreRequest, ok bool, remaining ...int) []limiter.PolicyState {
	s.Helper()
	got, states := s.ask(req)
	if got != ok {
		s.Fatalf("%+v: %v, want %v; %+v", req, got, ok, states)
	}
	for i, n := range remaining {
		if states[i].Remaining != n {
			s.Fatalf("%+v: %d remaining in %+v, want %d", req, states[i].Remaining, states[i], n)
		}
	}
	return states
}

// about reports whether a time is as it should be, but for a real clock's moving on: at most a second more.
func about(got, want time.Duration) bool { return got <= want && got > want-time.Second }

func (s *suite) burst() {
	for i := range 5 {
		states := s.want(limiter.StoreRequest{Key: "a", Cost: 1}, true, 4-i)
		if d := states[0].ResetAfter; !about(d, time.Duration(i+1)*time.Second) {
			s.Fatalf("full again in %v after %d tokens", d, i+1)
		}
	}
	states := s.want(limiter.StoreRequest{Key: "a", Cost: 2}, false, 0)
	if st := states[0]; !st.Refused || !about(st.RetryAfter, 2*time.Second) || !about(st.ResetAfter, 5*time.Second) {
		s.Fatalf("refused: %+v", st)
	}
	s.want(limiter.StoreRequest{Key: "idle", Cost: 1}, true, 4)
	s.wait(2 * time.Second)
	s.want(limiter.StoreRequest{Key: "a", Cost: 2}, true, 0)
	s.want(limiter.StoreRequest{Key: "a", Cost: 1}, false, 0)
	s.want(limiter.StoreRequest{Key: "idle", Cost: 5}, true, 0) // full after one second, and no more than full after two
	s.want(limiter.StoreRequest{Key: "idle", Cost: 1}, false, 0)
}

// parts asks more often than tokens flow in, and when a bucket without a debt would be full.
func (s *suite) parts() {
	slow := []limiter.Policy{{Name: "default", Limit: .5, Burst: 1}}
	s.want(limiter.StoreRequest{Key: "a", Cost: 1, Policies: slow}, true, 0)
	s.want(limiter.StoreRequest{Key: "debt", Cost: 2, Force: true, Policies: slow}, true, 0)
	s.wait(time.Second)
	s.want(limiter.StoreRequest{Key: "a", Cost: 1, Policies: slow}, false, 0)
	s.wait(time.Second)
	s.want(limiter.StoreRequest{Key: "a", Cost: 1, Policies: slow}, true, 0)
	s.want(limiter.StoreRequest{Key: "debt", Cost: 1, Policies: slow}, false, 0)
}

func (s *suite) allOrNone() {
	both := []limiter.Policy{policy[0], {Name: "hourly", Limit: rate.Every(time.Hour), Burst: 7}}
	s.want(limiter.StoreRequest{Key: "a", Cost: 5, Policies: both}, true, 0, 2)
	states := s.want(limiter.StoreRequest{Key: "a", Cost: 1, Policies: both}, false, 0, 2)
	if !states[0].Refused || states[1].Refused {
		s.Fatalf("which refused: %+v", states)
	}
	s.wait(3 * time.Second)
	states = s.want(limiter.StoreRequest{Key: "a", Cost: 3, Policies: both}, false, 3, 2)
	if states[0].Refused || !states[1].Refused || states[1].RetryAfter < 50*time.Minute {
		s.Fatalf("which refused: %+v", states)
	}
	s.want(limiter.StoreRequest{Key: "a", Cost: 2, Policies: both}, true, 1, 0)
}

func (s *suite) aboveBurst() {
	states := s.want(limiter.StoreRequest{Key: "a", Cost: 6}, false, 5)
	if states[0].RetryAfter != 0 || !states[0].Refused {
		s.Fatalf("no wait helps: %+v", states[0])
	}
	s.want(limiter.StoreRequest{Key: "a", Cost: math.MaxInt}, false, 5)
	s.want(limiter.StoreRequest{Key: "a", Cost: 5}, true, 0)
}

func (s *suite) free() {
	s.want(limiter.StoreRequest{Key: "a"}, true, 5)
	s.want(limiter.StoreRequest{Key: "a", Cost: 5}, true, 0)
	s.want(limiter.StoreRequest{Key: "a"}, true, 0)
}

func (s *suite) infinite() {
	open := []limiter.Policy{{Name: "open", Limit: rate.Inf}, policy[0]}
	s.want(limiter.StoreRequest{Key: "a", Cost: 3, Policies: open}, true, math.MaxInt, 2)
	s.want(limiter.StoreRequest{Key: "a", Cost: 3, Policies: open}, false, math.MaxInt, 2)
	s.want(limiter.StoreRequest{Key: "a", Cost: 2, Policies: open}, true, math.MaxInt, 0)
}

func (s *suite) zero() {
	never := []limiter.Policy{{Name: "once", Limit: 0, Burst: 2}}
	s.want(limiter.StoreRequest{Key: "a", Cost: 2, Policies: never}, true, 0)
	s.wait(time.Second)
	states := s.want(limiter.StoreRequest{Key: "a", Cost: 1, Policies: never}, false, 0)
	if states[0].RetryAfter != 0 {
		s.Fatalf("no wait helps: %+v", states[0])
	}
}

func (s *suite) keys() {
	for _, key := range []string{"", " ", "a", "A", "a ", "a\x00", "ä", "a\u0308", "a\xff", "a:b", "a b", "{a}", "a*", "a\r\nb", strings.Repeat("x", 1<<16), strings.Repeat("x", 1<<16) + "y"} {
		s.want(limiter.StoreRequest{Key: key, Cost: 5}, true, 0)
		s.want(limiter.StoreRequest{Key: key, Cost: 1}, false, 0)
	}
	// A name made of key and policy, in either order: who chooses the key must not get to the bucket of another.
	for _, by := range []string{"", ":", "/", "|", ",", ";", ".", "-", "_", " ", "#", "{", "}"} {
		for _, same := range [][2]struct{ key, policy string }{
			{{"x" + by + "y", "z"}, {"x", "y" + by + "z"}},
			{{"y" + by + "z", "x"}, {"z", "x" + by + "y"}},
		} {
			for _, one := range same {
				named := []limiter.Policy{{Name: one.policy, Limit: policy[0].Limit, Burst: 5}}
				s.want(limiter.StoreRequest{Key: one.key, Cost: 5, Policies: named}, true, 0)
			}
		}
	}
}

func (s *suite) debt() {
	s.want(limiter.StoreRequest{Key: "a", Cost: 3}, true, 2)
	s.want(limiter.StoreRequest{Key: "a", Cost: 4, Force: true}, true, 0)
	states := s.want(limiter.StoreRequest{Key: "a", Cost: 1}, false, 0)
	if d := states[0].RetryAfter; !about(d, 3*time.Second) {
		s.Fatalf("2 in debt, 1 wanted: %v", d)
	}
	s.want(limiter.StoreRequest{Key: "a"}, false, 0)
	s.want(limiter.StoreRequest{Key: "new", Cost: 5, Force: true}, true, 0)
	s.want(limiter.StoreRequest{Key: "new", Cost: 1}, false, 0)

	hourly := []limiter.Policy{{Name: "default", Limit: rate.Every(time.Hour), Burst: 5}}
	s.want(limiter.StoreRequest{Key: "pays", Cost: 7, Force: true, Policies: hourly}, true, 0)
	s.want(limiter.StoreRequest{Key: "pays", Cost: -1, Force: true, Policies: hourly}, true, 0)
	s.want(limiter.StoreRequest{Key: "pays", Policies: hourly}, false, 0) // 1 in debt still
	s.want(limiter.StoreRequest{Key: "pays", Cost: -1, Force: true, Policies: hourly}, true, 0)
	s.want(limiter.StoreRequest{Key: "pays", Policies: hourly}, true, 0)
	s.want(limiter.StoreRequest{Key: "pays", Cost: 1, Policies: hourly}, false, 0)
	for range 2 { // what is spent then is more than an int holds
		s.want(limiter.StoreRequest{Key: "owes", Cost: math.MaxInt, Force: true, Policies: hourly}, true, 0)
		s.want(limiter.StoreRequest{Key: "owes", Policies: hourly}, false, 0)
	}
}

func (s *suite) giveBack() {
	s.want(limiter.StoreRequest{Key: "a", Cost: 4}, true, 1)
	s.want(limiter.StoreRequest{Key: "a", Cost: -2, Force: true}, true, 3)
	s.want(limiter.StoreRequest{Key: "a", Cost: -100, Force: true}, true, 5)
	s.want(limiter.StoreRequest{Key: "a", Cost: 5}, true, 0)
	s.want(limiter.StoreRequest{Key: "a", Cost: math.MinInt, Force: true}, true, 5)
	s.want(limiter.StoreRequest{Key: "unknown", Cost: -1, Force: true}, true, 5)
}

func (s *suite) change() {
	at := func(limit rate.Limit, burst int) []limiter.Policy {
		return []limiter.Policy{{Name: "default", Limit: limit, Burst: burst}}
	}
	s.want(limiter.StoreRequest{Key: "a", Cost: 4}, true, 1)
	s.want(limiter.StoreRequest{Key: "a", Policies: at(0.01, 10)}, true, 6)
	s.want(limiter.StoreRequest{Key: "a", Policies: at(0.01, 4)}, true, 0)
	s.want(limiter.StoreRequest{Key: "a", Cost: 1, Policies: at(0.01, 4)}, false, 0)
	s.want(limiter.StoreRequest{Key: "a", Cost: 1, Policies: at(0.01, 5)}, true, 0)
	s.want(limiter.StoreRequest{Key: "lowered", Cost: 1, Policies: at(1, 1)}, true, 0)
	s.want(limiter.StoreRequest{Key: "lowered", Cost: 1, Policies: at(0.01, 1)}, false, 0)
	s.wait(2 * time.Second) // by when it was to be full under the first
	s.want(limiter.StoreRequest{Key: "lowered", Cost: 1, Policies: at(0.01, 1)}, false, 0)
}

func (s *suite) own() {
	quick := limiter.StoreRequest{Key: "quick", Cost: 4, Policies: []limiter.Policy{{Name: "default", Limit: 4, Burst: 4}}}
	slow := limiter.StoreRequest{Key: "slow", Cost: 3, Policies: []limiter.Policy{{Name: "default", Limit: rate.Every(time.Hour), Burst: 3}}}
	s.want(slow, true, 0)
	s.want(quick, true, 0)
	s.want(slow, false, 0)
	s.wait(time.Second)
	s.want(quick, true, 0)
	slow.Cost = 1
	s.want(slow, false, 0)
}

func (s *suite) ended() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	states := make([]limiter.PolicyState, 1)
	if _, err := s.store.Take(ctx, limiter.StoreRequest{Key: "a", Cost: 5, Policies: policy}, states); err == nil {
		s.Fatal("no error")
	}
}

func (s *suite) concurrent() {
	slow := []limiter.Policy{{Name: "default", Limit: rate.Every(time.Hour), Burst: 50}}
	var admitted atomic.Int64
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 20 {
				states := make([]limiter.PolicyState, 1)
				ok, err := s.store.Take(context.Background(), limiter.StoreRequest{Key: fmt.Sprint(i % 2), Cost: 1, Policies: slow}, states)
				if err != nil {
					s.Errorf("goroutine %d: %v", g, err)
					return
				}
				if ok {
					admitted.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if n := admitted.Load(); n != 100 && !s.Failed() {
		s.Errorf("%d admitted for two keys, want 50 each", n)
	}
}

package breaker_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sony/gobreaker/v2"

	"github.com/spillgate/spillgate/breaker"
)

func TestChangesAreToldInOrderAndMayCallBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b *breaker.Breaker
		var told []string
		b = breaker.New(steady(breaker.WithName("x"), breaker.WithProbes(1), breaker.WithOnChange(func(c breaker.Change) {
			told = append(told, fmt.Sprintf("%s %v>%v %v %v", c.Name, c.From, c.To, c.Cause, c.OpenFor))
			b.State() // none of these may deadlock
			b.Stats()
			b.RetryAfter()
			if c.From == breaker.ForcedOpen {
				b.Reset() // is told after this change, not inside it
				told = append(told, "reset")
			}
		}))...)
		trip(t, b)
		time.Sleep(5 * time.Second) // in a synctest bubble
		report(t, b, breaker.Failure, 0)
		time.Sleep(10 * time.Second) // in a synctest bubble
		b.Allow()
		time.Sleep(5 * time.Second) // in a synctest bubble
		b.State()
		time.Sleep(20 * time.Second) // in a synctest bubble
		report(t, b, breaker.Success, 0)
		b.ForceOpen()
		b.ForceOpen()
		b.Disable()
		want := []string{
			"x closed>open failures 5s",
			"x open>half-open open time over 0s",
			"x half-open>open probe failed 10s",
			"x open>half-open open time over 0s",
			"x half-open>open probe lost 20s",
			"x open>half-open open time over 0s",
			"x half-open>closed probes passed 0s",
			"x closed>forced-open manual 0s",
			"x forced-open>disabled manual 0s",
			"reset",
			"x disabled>closed manual 0s",
		}
		if !slices.Equal(told, want) {
			t.Errorf("told\n%s\nwant\n%s", strings.Join(told, "\n"), strings.Join(want, "\n"))
		}
	})
}

func TestChangesThatTimeMakesAreToldByWhoeverAsks(t *testing.T) {
	for name, ask := range map[string]func(*breaker.Breaker){
		"State":      func(b *breaker.Breaker) { b.State() },
		"Stats":      func(b *breaker.Breaker) { b.Stats() },
		"RetryAfter": func(b *breaker.Breaker) { b.RetryAfter() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var last breaker.Change
				b := breaker.New(steady(breaker.WithOnChange(func(c breaker.Change) { last = c }))...)
				trip(t, b)
				time.Sleep(5 * time.Second) // in a synctest bubble
				ask(b)
				if last.To != breaker.HalfOpen {
					t.Errorf("told of %v last, want half-open", last.To)
				}
				b.Allow()
				time.Sleep(5 * time.Second) // in a synctest bubble
				ask(b)
				if last.Cause != breaker.CauseProbeLost {
					t.Errorf("told of %v last, want a probe that was lost", last.Cause)
				}
			})
		})
	}
}

func TestChangesOfManyGoroutinesAreAChain(t *testing.T) {
	var told []breaker.Change // no lock: they are told one at a time
	b := breaker.New(breaker.WithOnChange(func(c breaker.Change) { told = append(told, c) }))
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 200 {
				switch (i + j) % 3 {
				case 0:
					b.ForceOpen()
				case 1:
					b.ForceClosed()
				case 2:
					b.Reset()
				}
			}
		})
	}
	wg.Wait()
	state := breaker.Closed
	for i, c := range told {
		if c.From != state {
			t.Fatalf("change %d is from %v, the one before it was to %v", i, c.From, state)
		}
		state = c.To
	}
	want(t, b, state)
}

func TestPanicInOnChangeLosesNothing(t *testing.T) {
	n := 0
	b := breaker.New(breaker.WithOnChange(func(breaker.Change) {
		if n++; n == 1 {
			panic("no")
		}
	}))
	func() {
		defer func() { recover() }()
		b.ForceOpen()
	}()
	b.Reset()
	if n != 2 {
		t.Errorf("told %d times, want 2", n)
	}
}

// A probe whose call began the half-open state is not out before that was told: else it would be lost where f panics, each time
// anew, and its lease and its latency would run while f does.
func TestOnChangeCostsNoProbe(t *testing.T) {
	for name, f := range map[string]func(){
		"panics":         func() { panic("no") },
		"takes its time": func() { time.Sleep(6 * time.Second) }, // in a synctest bubble
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := breaker.New(steady(breaker.WithSlowCalls(time.Second, 0.8), breaker.WithOnChange(func(c breaker.Change) {
					if c.To == breaker.HalfOpen {
						f()
					}
				}))...)
				trip(t, b)
				time.Sleep(5 * time.Second) // in a synctest bubble
				var wg sync.WaitGroup
				for range 20 {
					wg.Go(func() {
						defer func() { recover() }()
						b.Do(t.Context(), func(context.Context) error { return nil })
					})
					time.Sleep(time.Second) // in a synctest bubble
				}
				wg.Wait()
				if s := b.Stats(); s.State != breaker.Closed || s.Openings != 1 || s.LostProbes != 0 {
					t.Errorf("%v after %d openings, %d probes were lost", s.State, s.Openings, s.LostProbes)
				}
			})
		})
	}
}

// The mirror of gobreaker's state relies on OnStateChange being called before the call of gobreaker
// that changed the state returns, once for each change, with the state as it then is.
func TestContractWithGobreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen []gobreaker.State
		cb := gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
			MaxRequests:   2,
			Timeout:       time.Second - 1,
			ReadyToTrip:   func(gobreaker.Counts) bool { return true },
			IsExcluded:    func(err error) bool { return err == errBoom },
			OnStateChange: func(_ string, _, to gobreaker.State) { seen = append(seen, to) },
		})
		expect := func(what string, states ...gobreaker.State) {
			t.Helper()
			if !slices.Equal(seen, states) {
				t.Fatalf("%s: told of %v, want %v", what, seen, states)
			}
			seen = nil
		}
		allow := func() func(error) {
			t.Helper()
			done, err := cb.Allow()
			if err != nil {
				t.Fatal(err)
			}
			return done
		}
		allow()(breaker.ErrOpen)
		expect("first failure", gobreaker.StateOpen)
		time.Sleep(time.Second - 1) // in a synctest bubble
		if cb.State() != gobreaker.StateOpen {
			t.Fatal("the timeout has its last nanosecond no more: phase.go takes it off")
		}
		expect("still open")
		time.Sleep(time.Nanosecond) // in a synctest bubble
		if cb.State() != gobreaker.StateHalfOpen {
			t.Fatal("open after its timeout")
		}
		expect("State", gobreaker.StateHalfOpen)
		one, two := allow(), allow()
		if _, err := cb.Allow(); err == nil {
			t.Fatal("a third probe of two")
		}
		one(errBoom) // excluded: its place is free
		three := allow()
		two(nil)
		expect("one success of two")
		three(nil)
		expect("two successes of two", gobreaker.StateClosed)
		allow()(breaker.ErrOpen)
		time.Sleep(time.Second) // in a synctest bubble
		allow()(breaker.ErrOpen)
		expect("failed probe", gobreaker.StateOpen, gobreaker.StateHalfOpen, gobreaker.StateOpen)
	})
}

// The ends of the ranges that the documentation gives are in them, and what turns a rule off needs no share.
func TestRangesOfOptions(t *testing.T) {
	for _, o := range []breaker.Option{
		breaker.WithSlowCalls(0, 0), breaker.WithSlowCalls(time.Hour, 1), breaker.WithSlowCalls(1, 0.1), breaker.WithFailureRatio(0, 1),
		breaker.WithOpenTime(time.Millisecond, 24*time.Hour), breaker.WithLease(24 * time.Hour), breaker.WithLease(0), breaker.WithRamp(24 * time.Hour), breaker.WithRamp(0),
		breaker.WithWindow(100 * time.Millisecond), breaker.WithWindow(time.Hour), breaker.WithJitter(0), breaker.WithJitter(0.5),
		breaker.WithProbes(1), breaker.WithProbes(1000), breaker.WithMinClients(0), breaker.WithMinClients(32), breaker.WithConsecutiveFailures(0),
	} {
		if err := breaker.New().Set(o); err != nil {
			t.Error(err)
		}
	}
}

// The open time grows up to its limit, and the jitter counts from there.
func TestJitterCountsFromTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var longest time.Duration
		b := breaker.New(breaker.WithConsecutiveFailures(1), breaker.WithOpenTime(time.Second, time.Second), breaker.WithJitter(0.5),
			breaker.WithOnChange(func(c breaker.Change) { longest = max(longest, c.OpenFor) }))
		for range 100 {
			report(t, b, breaker.Failure, 0)
			time.Sleep(1500 * time.Millisecond) // in a synctest bubble
		}
		if longest <= time.Second || longest > 1500*time.Millisecond {
			t.Errorf("the longest of 100 open times was %v, want it above the limit of 1s by up to a half", longest)
		}
	})
}

func TestWrongOptionsPanicWithTheRemedy(t *testing.T) {
	nan := 0.0
	nan /= nan
	for _, c := range []struct {
		opt  breaker.Option
		says string
	}{
		{breaker.WithWindow(0), "WithWindow(0s): give 100ms to 1h"},
		{breaker.WithWindow(2 * time.Hour), "WithWindow"},
		{breaker.WithFailureRatio(1.1, 1), "WithFailureRatio"},
		{breaker.WithFailureRatio(nan, 1), "WithFailureRatio"},
		{breaker.WithFailureRatio(0.5, 0), "WithFailureRatio"},
		{breaker.WithConsecutiveFailures(-1), "WithConsecutiveFailures"},
		{breaker.WithSlowCalls(-1, 0.5), "WithSlowCalls"},
		{breaker.WithSlowCalls(time.Second, 0), "WithSlowCalls"},
		{breaker.WithSlowCalls(time.Second, nan), "WithSlowCalls"},
		{breaker.WithSlowCalls(0, nan), "WithSlowCalls"},
		{breaker.WithSlowCalls(time.Hour+1, 0.5), "WithSlowCalls(1h0m0.000000001s, 0.5): give a time up to 1h"},
		{breaker.WithOpenTime(time.Millisecond-1, time.Second), "WithOpenTime(999.999µs, 1s): give 1ms to 24h"},
		{breaker.WithOpenTime(time.Second, 24*time.Hour+1), "WithOpenTime"},
		{breaker.WithLease(24*time.Hour + 1), "WithLease"},
		{breaker.WithRamp(24*time.Hour + 1), "WithRamp"},
		{breaker.WithOpenTime(0, time.Second), "WithOpenTime"},
		{breaker.WithOpenTime(time.Minute, time.Second), "WithOpenTime"},
		{breaker.WithJitter(0.6), "WithJitter"},
		{breaker.WithProbes(0), "WithProbes(0): give 1 to 1000"},
		{breaker.WithLease(-1), "WithLease"},
		{breaker.WithRamp(-1), "WithRamp"},
		{breaker.WithMinClients(33), "WithMinClients"},
		{breaker.WithFailureRatio(-0.1, 1), "WithFailureRatio"},
		{breaker.WithSlowCalls(time.Second, -0.1), "WithSlowCalls"},
		{breaker.WithSlowCalls(time.Second, 1.1), "WithSlowCalls"},
		{breaker.WithJitter(-0.1), "WithJitter"},
		{breaker.WithProbes(1001), "WithProbes"},
		{breaker.WithMinClients(-1), "WithMinClients"},
		{nil, "option 0 is nil; leave it out"},
	} {
		func() {
			defer func() {
				if s := fmt.Sprint(recover()); !strings.HasPrefix(s, "breaker: New: ") || !strings.Contains(s, c.says) {
					t.Errorf("want %q, got %q", c.says, s)
				}
			}()
			breaker.New(c.opt)
		}()
		b, g := breaker.New(), breaker.NewGroup()
		was := b.Stats().Settings
		for _, err := range []error{b.Set(breaker.WithProbes(7), c.opt), g.Set(breaker.WithProbes(7), c.opt)} {
			if err == nil || !strings.HasPrefix(err.Error(), "breaker: Set: "+c.says[:6]) {
				t.Errorf("Set: want %q, got %v", c.says, err)
			}
		}
		if b.Stats().Settings != was || g.Get("x").Stats().Settings != was {
			t.Errorf("%s: a Set that failed changed something", c.says)
		}
	}
	for _, o := range []breaker.GroupOption{breaker.WithKeys(0), breaker.WithIdle(0), nil} {
		func() {
			defer func() {
				if s := fmt.Sprint(recover()); !strings.HasPrefix(s, "breaker: NewGroup: With") && s != "breaker: NewGroup: option 0 is nil; leave it out" {
					t.Errorf("got %q", s)
				}
			}()
			breaker.NewGroup(o)
		}()
	}
}

func TestTheDefaultsAreThoseOfTheOptions(t *testing.T) {
	want := breaker.Settings{
		Window: 10 * time.Second, FailureRatio: 0.5, MinVolume: 20, SlowRatio: 0.8, OpenTime: 5 * time.Second, MaxOpenTime: time.Minute,
		Jitter: 0.2, Probes: 3, Ramp: 10 * time.Second,
	}
	if got := breaker.New().Settings(); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// The counts of a closed breaker begin anew where those there are do not fit what was set.
func TestSetsThatRestartTheCounts(t *testing.T) {
	clients := breaker.WithMinClients(2)
	for _, c := range []struct {
		name    string
		was     breaker.Option
		set     breaker.Option
		restart bool
	}{
		{"a new window", clients, breaker.WithWindow(time.Minute), true},
		{"a new time of a slow call", clients, breaker.WithSlowCalls(time.Second, 1), true},
		{"clients are told apart", breaker.WithMinClients(0), clients, true},
		{"clients are told apart no more", clients, breaker.WithMinClients(0), true},
		{"another number of clients", clients, breaker.WithMinClients(3), false},
		{"another ratio", clients, breaker.WithFailureRatio(0.4, 20), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := breaker.New(c.was)
			report(t, b, breaker.Failure, 0)
			if err := b.Set(c.set); err != nil {
				t.Fatal(err)
			}
			if n := b.Stats().Failures; (n == 0) != c.restart {
				t.Errorf("%d failures are left of 1", n)
			}
			for client := range uint64(20) {
				if call, err := b.Admit(breaker.Request{Client: client}); err == nil {
					call.Done(breaker.Failure, time.Second)
				}
			}
			want(t, b, breaker.Open)
		})
	}
}

func TestSettingsChangeWhileItRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(steady()...)
		for range 10 {
			report(t, b, breaker.Failure, 0)
		}
		if err := b.Set(breaker.WithFailureRatio(0.9, 12)); err != nil {
			t.Fatal(err)
		}
		if n := b.Stats().Failures; n != 10 {
			t.Errorf("%d failures after a new limit, want the 10 there were", n)
		}
		report(t, b, breaker.Failure, 0)
		want(t, b, breaker.Closed)
		b.Set(breaker.WithOpenTime(time.Second, time.Second), breaker.WithProbes(1))
		report(t, b, breaker.Failure, 0)
		want(t, b, breaker.Open)
		b.Set(breaker.WithProbes(5), breaker.WithOpenTime(time.Hour, time.Hour))
		time.Sleep(time.Second) // in a synctest bubble: the opening that has begun keeps its time and its probes
		report(t, b, breaker.Success, 0)
		want(t, b, breaker.Closed)

		report(t, b, breaker.Success, 0)
		if err := b.Set(breaker.WithSlowCalls(time.Second, 1)); err != nil {
			t.Fatal(err)
		}
		if n := b.Stats().Successes; n != 0 {
			t.Errorf("%d successes, want a new window", n)
		}
		for range 12 {
			b.Allow()
		}
		time.Sleep(3 * time.Second) // in a synctest bubble
		want(t, b, breaker.Open)
	})
}

func TestStatsAsJSON(t *testing.T) {
	b := breaker.New(breaker.WithName("n"))
	b.ForceClosed()
	call, _ := b.Allow()
	call.Done(breaker.Failure, 0)
	j, err := json.Marshal(b.Stats())
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{`"name":"n"`, `"state":"forced-closed"`, `"failures":1`, `"ramp":1`, `"failure_ratio":0.5`, `"lost_probes":0`} {
		if !strings.Contains(string(j), part) {
			t.Errorf("no %s in %s", part, j)
		}
	}
	if s := breaker.State(99).String() + breaker.Cause(99).String() + breaker.Outcome(99).String(); s != "State(99)Cause(99)Outcome(99)" {
		t.Error(s)
	}
	if s := fmt.Sprint(breaker.Success, breaker.Failure, breaker.Ignored); s != "success failure ignored" {
		t.Error(s)
	}
	j, _ = json.Marshal(breaker.Change{From: breaker.HalfOpen, To: breaker.Open, Cause: breaker.CauseProbeLost})
	if !strings.Contains(string(j), `"half-open"`) || !strings.Contains(string(j), `"probe lost"`) {
		t.Error(string(j))
	}
}

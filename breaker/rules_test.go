package breaker_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/breaker"
)

// The numbers R1 to R16 are those of the rules that a breaker around HTTP follows. The half of a rule
// that is not about HTTP is held here, the other half beside the middleware.

var errBoom = errors.New("boom")

func doNothing(context.Context) error { return nil }

func trip(t *testing.T, b *breaker.Breaker) {
	t.Helper()
	for range 1000 {
		call, err := b.Allow()
		if err != nil {
			return
		}
		call.Done(breaker.Failure, 0)
	}
	t.Fatal("1,000 failures do not open it")
}

func TestR1PanicAndGoexitAreFailuresAndTravelOn(t *testing.T) {
	b := breaker.New(steady(breaker.WithConsecutiveFailures(2))...)
	cause := fmt.Errorf("the very value")
	func() {
		defer func() {
			if r := recover(); r != any(cause) {
				t.Errorf("recovered %v, want the value that was thrown", r)
			}
		}()
		b.Do(t.Context(), func(context.Context) error { panic(cause) })
	}()
	if n := b.Stats().Failures; n != 1 {
		t.Errorf("%d failures after a panic, want 1", n)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		b.Do(t.Context(), func(context.Context) error { runtime.Goexit(); return nil })
		t.Error("Goexit did not travel on")
	})
	wg.Wait()
	want(t, b, breaker.Open)
}

func TestR3CallerWhoLeftIsIgnored(t *testing.T) {
	b := breaker.New(breaker.WithConsecutiveFailures(1))
	for range 100 {
		ctx, cancel := context.WithCancel(t.Context())
		err := b.Do(ctx, func(ctx context.Context) error { cancel(); return ctx.Err() })
		if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
	want(t, b, breaker.Closed)
	if s := b.Stats(); s.Ignored != 100 || s.Failures != 0 {
		t.Errorf("%d ignored, %d failures, want 100 and 0", s.Ignored, s.Failures)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.Do(ctx, func(context.Context) error { t.Error("called for a caller who had left"); return nil }); err != context.Canceled {
		t.Error(err)
	}
}

func TestR4SlowCallsCountThoughTheCallerLeft(t *testing.T) {
	b := breaker.New(steady(breaker.WithSlowCalls(time.Second, 0.8))...)
	for range 100 {
		report(t, b, breaker.Ignored, time.Second-1)
	}
	want(t, b, breaker.Closed)
	for range 20 {
		report(t, b, breaker.Ignored, time.Second)
	}
	want(t, b, breaker.Open)
}

func TestR4DoCountsSlowCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(steady(breaker.WithSlowCalls(time.Second, 0.8), breaker.WithWindow(time.Minute))...)
		for range 20 {
			b.Do(t.Context(), func(context.Context) error {
				time.Sleep(time.Second) // in a synctest bubble
				return nil
			})
		}
		want(t, b, breaker.Open)
	})
}

// The time that Admit is given is when the call began.
func TestR4SlowCountsFromArrived(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(steady(breaker.WithSlowCalls(time.Second, 0.8))...)
		time.Sleep(time.Minute) // in a synctest bubble
		call, _ := b.Admit(breaker.Request{Arrived: time.Now()})
		time.Sleep(time.Second - 1) // in a synctest bubble
		call.Done(breaker.Success, -1)
		if s := b.Stats(); s.Slow != 0 || s.Successes != 1 {
			t.Errorf("%d slow of %d, want 0 of 1", s.Slow, s.Successes)
		}
	})
}

func TestR5DeadlineIsAFailureUnlessTheCallerWasInAHurry(t *testing.T) {
	for _, c := range []struct {
		name     string
		opts     []breaker.Option
		deadline time.Duration
		failures uint64
	}{
		{"no slow call time: failure", nil, time.Millisecond, 1},
		{"sooner than a slow call: ignored", []breaker.Option{breaker.WithSlowCalls(time.Second, 1)}, time.Second - 1, 0},
		{"as late as a slow call: failure", []breaker.Option{breaker.WithSlowCalls(time.Second, 1)}, time.Second, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := breaker.New(c.opts...)
				ctx, cancel := context.WithTimeout(t.Context(), c.deadline)
				defer cancel()
				b.Do(ctx, func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
				if s := b.Stats(); s.Failures != c.failures {
					t.Errorf("%d failures, want %d", s.Failures, c.failures)
				}
			})
		})
	}
}

func TestR8ClassifyReplacesTheRules(t *testing.T) {
	notFound := errors.New("not found")
	b := breaker.New(breaker.WithConsecutiveFailures(1), breaker.WithClassify(func(_ context.Context, err error) breaker.Outcome {
		if err == nil || errors.Is(err, notFound) {
			return breaker.Success
		}
		return breaker.Failure
	}))
	for range 10 {
		b.Do(t.Context(), func(context.Context) error { return notFound })
	}
	want(t, b, breaker.Closed)
	b.Do(t.Context(), func(context.Context) error { return errBoom })
	want(t, b, breaker.Open)
}

func TestR8ClassifyThatPanicsSaysNothing(t *testing.T) {
	b := breaker.New(breaker.WithConsecutiveFailures(1), breaker.WithClassify(func(context.Context, error) breaker.Outcome { panic("boom") }))
	func() {
		defer func() {
			if recover() != "boom" {
				t.Error("the panic did not travel on")
			}
		}()
		b.Do(t.Context(), func(context.Context) error { return nil })
	}()
	want(t, b, breaker.Closed)
	if s := b.Stats(); s.Ignored != 1 || s.Failures != 0 {
		t.Errorf("%d ignored, %d failures", s.Ignored, s.Failures)
	}
}

func TestR9IgnoredProbeGivesItsPlaceBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(steady(breaker.WithProbes(1), breaker.WithConsecutiveFailures(1))...)
		trip(t, b)
		time.Sleep(5 * time.Second) // in a synctest bubble
		for range 50 {
			report(t, b, breaker.Ignored, 0)
			want(t, b, breaker.HalfOpen) // no evidence of health either
		}
		report(t, b, breaker.Success, 0)
		want(t, b, breaker.Closed)
	})
}

func TestR14ProbeThatWaitsHasItsLeaseFromWhenItBegins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(steady(breaker.WithProbes(1))...)
		trip(t, b)
		time.Sleep(5 * time.Second) // in a synctest bubble
		waiting := breaker.Request{Waits: true}
		first, err := b.Admit(waiting)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Admit(waiting); err == nil {
			t.Fatal("a second probe before the lease of the first ended")
		}
		time.Sleep(5 * time.Second) // in a synctest bubble
		second, err := b.Admit(waiting)
		if err != nil {
			t.Fatal("the place of a probe that never began was lost:", err)
		}
		begun := first.Begin(time.Now()) // its place is that of the second now
		second = second.Begin(time.Now())
		time.Sleep(4 * time.Second) // in a synctest bubble
		want(t, b, breaker.HalfOpen)
		second.Done(breaker.Failure, -1)
		want(t, b, breaker.HalfOpen)
		begun.Done(breaker.Success, -1)
		want(t, b, breaker.Closed)
		if s := b.Stats(); s.LostProbes != 0 || s.Openings != 1 || s.Dropped != 1 {
			t.Errorf("%+v", s)
		}
		trip(t, b)
		time.Sleep(10 * time.Second) // in a synctest bubble
		lost, _ := b.Admit(waiting)
		time.Sleep(time.Minute) // in a synctest bubble
		lost.Begin(time.Now())
		time.Sleep(5 * time.Second) // in a synctest bubble
		want(t, b, breaker.Open)
	})
}

func TestR14ProbeThatWaitsTakesAPlaceThatIsFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(steady(breaker.WithProbes(1))...)
		trip(t, b)
		time.Sleep(5 * time.Second) // in a synctest bubble
		late, err := b.Admit(breaker.Request{Waits: true})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second) // in a synctest bubble: its lease ends
		want(t, b, breaker.HalfOpen)
		late = late.Begin(time.Now())
		if _, err := b.Allow(); err == nil {
			t.Error("a second probe of one")
		}
		late.Done(breaker.Success, -1)
		want(t, b, breaker.Closed)
		if s := b.Stats(); s.Dropped != 0 {
			t.Errorf("%d results were dropped", s.Dropped)
		}
	})
}

func TestCallThatWaitsIsNotInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(steady(breaker.WithSlowCalls(time.Second, 0.5))...)
		var calls []breaker.Call
		for range 30 {
			call, _ := b.Admit(breaker.Request{Waits: true})
			calls = append(calls, call)
		}
		time.Sleep(5 * time.Second) // in a synctest bubble
		want(t, b, breaker.Closed)
		for i, call := range calls {
			calls[i] = call.Begin(time.Now())
		}
		if n := b.Stats().InFlight; n != 30 {
			t.Errorf("%d in flight, want 30", n)
		}
		calls[0].Done(breaker.Success, -1)
		if s := b.Stats(); s.Successes != 1 || s.Slow != 0 || s.InFlight != 29 {
			t.Errorf("%+v", s)
		}
		time.Sleep(3 * time.Second) // in a synctest bubble
		want(t, b, breaker.Open)
		if call := (breaker.Call{}).Wait().Begin(time.Now()); call != (breaker.Call{}) {
			t.Errorf("%+v", call)
		}
	})
}

// One that comes to wait only further in is not in flight from there on.
func TestCallThatComesToWaitIsNotInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(steady(breaker.WithSlowCalls(time.Second, 0.5))...)
		var calls []breaker.Call
		for range 30 {
			call, _ := b.Allow()
			calls = append(calls, call)
		}
		time.Sleep(500 * time.Millisecond) // in a synctest bubble
		for i, call := range calls {
			calls[i] = call.Wait()
		}
		time.Sleep(5 * time.Second) // in a synctest bubble
		want(t, b, breaker.Closed)
		if s := b.Stats(); s.InFlight != 0 || s.Overdue != 0 {
			t.Errorf("while they wait: %+v", s)
		}
		for i, call := range calls {
			calls[i] = call.Begin(time.Now())
		}
		time.Sleep(500 * time.Millisecond) // in a synctest bubble
		calls[0].Done(breaker.Success, -1)
		if s := b.Stats(); s.Successes != 1 || s.Slow != 0 || s.InFlight != 29 {
			t.Errorf("when they go on: %+v", s)
		}
		time.Sleep(3 * time.Second) // in a synctest bubble
		want(t, b, breaker.Open)
	})
}

func TestR14ProbeThatComesToWaitIsNotLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(steady(breaker.WithProbes(1))...)
		trip(t, b)
		time.Sleep(5 * time.Second) // in a synctest bubble
		probe, err := b.Allow()
		if err != nil {
			t.Fatal(err)
		}
		probe = probe.Wait()
		time.Sleep(5 * time.Second) // in a synctest bubble: its lease ends
		want(t, b, breaker.HalfOpen)
		probe = probe.Begin(time.Now())
		time.Sleep(4 * time.Second) // in a synctest bubble
		probe.Done(breaker.Success, -1)
		want(t, b, breaker.Closed)
		if s := b.Stats(); s.LostProbes != 0 || s.Dropped != 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestR9RefusalOfAnotherBreakerIsIgnored(t *testing.T) {
	inner, outer := breaker.New(), breaker.New(breaker.WithConsecutiveFailures(1))
	inner.ForceOpen()
	err := outer.Do(t.Context(), func(ctx context.Context) error {
		return fmt.Errorf("calling: %w", inner.Do(ctx, func(context.Context) error { return nil }))
	})
	if !errors.Is(err, breaker.ErrOpen) {
		t.Fatal(err)
	}
	want(t, outer, breaker.Closed)
}

func TestR12OneClientCannotOpenForAll(t *testing.T) {
	slow := breaker.WithSlowCalls(time.Second, 0.8)
	for _, c := range []struct {
		name    string
		opts    []breaker.Option
		outcome breaker.Outcome
		latency time.Duration
		hang    bool
		broke   bool
	}{
		{"failure ratio", nil, breaker.Failure, 0, false, false},
		{"consecutive failures", []breaker.Option{breaker.WithConsecutiveFailures(5)}, breaker.Failure, 0, false, false},
		{"slow calls", []breaker.Option{slow}, breaker.Success, time.Second, false, false},
		{"slow failures", []breaker.Option{slow, breaker.WithFailureRatio(0, 20)}, breaker.Failure, time.Second, false, false},
		{"slow failures in a row", []breaker.Option{slow, breaker.WithFailureRatio(0, 1000), breaker.WithConsecutiveFailures(5)}, breaker.Failure, time.Second, false, false},
		{"calls that fail after they were reported", nil, breaker.Success, 0, false, true},
		{"slow calls whose client left", []breaker.Option{slow}, breaker.Ignored, time.Second, false, false},
		{"hung calls", []breaker.Option{slow}, 0, 0, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := breaker.New(steady(append(c.opts, breaker.WithMinClients(3))...)...)
				attack := func(client uint64) {
					for range 40 {
						call, err := b.Admit(breaker.Request{Client: client})
						if err == nil && !c.hang {
							call.Done(c.outcome, c.latency)
							if c.broke {
								call.Fail()
							}
						}
					}
				}
				for client := range uint64(2) {
					attack(client)
					if c.hang {
						time.Sleep(3 * time.Second) // in a synctest bubble
					}
					want(t, b, breaker.Closed)
				}
				attack(2)
				if c.hang {
					time.Sleep(3 * time.Second) // in a synctest bubble
				}
				want(t, b, breaker.Open)
			})
		})
	}
}

func TestR12AClientLeavesWithTheWindow(t *testing.T) {
	for _, o := range []breaker.Outcome{breaker.Success, breaker.Failure} { // both slow
		synctest.Test(t, func(t *testing.T) {
			b := breaker.New(steady(breaker.WithSlowCalls(time.Second, 0.8), breaker.WithMinClients(2))...)
			for client := range uint64(5) {
				for range 40 {
					call, err := b.Admit(breaker.Request{Client: client})
					if err != nil {
						t.Fatalf("client %d: %v", client, err)
					}
					call.Done(o, time.Second)
				}
				time.Sleep(10 * time.Second) // in a synctest bubble
			}
		})
	}
}

func TestR14ProbesAreBoundedAndLeased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(steady(breaker.WithLease(2 * time.Second))...)
		trip(t, b)
		time.Sleep(5 * time.Second) // in a synctest bubble
		var probes []breaker.Call
		for range 3 {
			call, err := b.Allow()
			if err != nil {
				t.Fatal(err)
			}
			probes = append(probes, call)
			time.Sleep(100 * time.Millisecond) // in a synctest bubble
		}
		for range 10 {
			_, err := b.Allow()
			open, ok := errors.AsType[*breaker.OpenError](err)
			if !ok || open.State != breaker.HalfOpen || open.RetryAfter != 1700*time.Millisecond {
				t.Fatalf("the fourth probe gets %#v, want what is left of the first lease", err)
			}
		}
		if n := b.Stats().ProbesOut; n != 3 {
			t.Errorf("%d probes out, want 3", n)
		}
		probes[0].Done(breaker.Success, 0)
		if _, err := b.Allow(); err == nil {
			t.Error("a probe that succeeded made room for a fourth")
		}
		probes[1].Done(breaker.Success, 0)
		probes[2].Done(breaker.Success, 0)
		want(t, b, breaker.Closed)
	})
}

func TestR14LongCallsAreNoProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(steady()...)
		if _, err := b.Admit(breaker.Request{Long: true}); err != nil {
			t.Fatal("refused while closed:", err)
		}
		trip(t, b)
		for _, wait := range []time.Duration{0, 5 * time.Second} {
			time.Sleep(wait) // in a synctest bubble
			_, err := b.Admit(breaker.Request{Long: true})
			if open, ok := errors.AsType[*breaker.OpenError](err); !ok || open.RetryAfter < 5*time.Second {
				t.Fatalf("after %v: %#v", wait, err)
			}
		}
		want(t, b, breaker.HalfOpen)
		if n := b.Stats().ProbesOut; n != 0 {
			t.Errorf("%d probes out", n)
		}
	})
}

// A dependency that is asked for nothing but streams or websockets has no other probes.
func TestR14LongCallsAreProbesWhereNoOthersCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(steady()...)
		trip(t, b)
		opened := time.Now()
		for b.State() != breaker.Closed {
			if time.Since(opened) > time.Minute {
				t.Fatalf("still %v after %v", b.State(), time.Since(opened))
			}
			if call, err := b.Admit(breaker.Request{Long: true}); err == nil {
				call.Done(breaker.Success, 0)
			}
			time.Sleep(100 * time.Millisecond) // in a synctest bubble
		}
		if d := time.Since(opened); d < 10*time.Second || d > 11*time.Second {
			t.Errorf("closed after %v, want the open time and the time of a lease", d)
		}
	})
}

func TestR14SlowProbeFails(t *testing.T) {
	for _, o := range []breaker.Outcome{breaker.Success, breaker.Ignored} {
		synctest.Test(t, func(t *testing.T) {
			b := breaker.New(steady(breaker.WithSlowCalls(time.Second, 1))...)
			trip(t, b)
			time.Sleep(5 * time.Second) // in a synctest bubble
			report(t, b, o, time.Second)
			want(t, b, breaker.Open)
		})
	}
}

func TestR10AnAnswerThatLastsIsNotOverdue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(steady(breaker.WithSlowCalls(time.Second, 0.8))...)
		var downloads []breaker.Call
		for range 100 {
			call, _ := b.Allow()
			downloads = append(downloads, call)
		}
		time.Sleep(500 * time.Millisecond) // in a synctest bubble
		for i, call := range downloads {
			if i%2 == 0 {
				call.Answered()
			}
			call.Answered()
		}
		time.Sleep(5 * time.Second) // in a synctest bubble
		want(t, b, breaker.Closed)
		for _, call := range downloads {
			call.Done(breaker.Success, 500*time.Millisecond)
			call.Answered()
		}
		if s := b.Stats(); s.Slow != 0 || s.InFlight != 0 || s.Successes != 100 {
			t.Errorf("%+v", s)
		}
		breaker.Call{}.Answered()
	})
}

func TestR10AProbeThatWasAnsweredPassesWithItsLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(steady(breaker.WithProbes(2))...)
		trip(t, b)
		time.Sleep(5 * time.Second) // in a synctest bubble
		first, _ := b.Allow()
		first.Answered()
		second, _ := b.Allow()
		time.Sleep(4 * time.Second)     // in a synctest bubble
		second.Done(breaker.Ignored, 0) // its place is free for another
		second, _ = b.Allow()
		time.Sleep(time.Second) // in a synctest bubble: the lease of the first ends
		want(t, b, breaker.HalfOpen)
		first.Done(breaker.Failure, 0) // too late to say so
		want(t, b, breaker.HalfOpen)
		if _, err := b.Allow(); err == nil {
			t.Error("a third probe of two")
		}
		second.Done(breaker.Success, 0)
		want(t, b, breaker.Closed)
		if s := b.Stats(); s.LostProbes != 0 || s.Dropped != 1 {
			t.Errorf("%+v", s)
		}
	})
}

func TestR15OpenTimeGrowsAndShrinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(breaker.WithJitter(0), breaker.WithRamp(10*time.Second), breaker.WithProbes(1))
		for _, open := range []time.Duration{5, 10, 20, 40, 60, 60} {
			trip(t, b)
			if got := b.RetryAfter(); got != open*time.Second {
				t.Fatalf("open for %v, want %vs", got, int(open))
			}
			time.Sleep(open * time.Second) // in a synctest bubble
			report(t, b, breaker.Success, 0)
			want(t, b, breaker.Closed)
			time.Sleep(20*time.Second - 1) // in a synctest bubble: ramp and window are not quite over: a relapse
		}
		time.Sleep(time.Nanosecond) // in a synctest bubble
		trip(t, b)
		if got := b.RetryAfter(); got != 5*time.Second {
			t.Errorf("open for %v after it was well, want 5s", got)
		}
	})
}

func TestR15JitterSpreadsReplicas(t *testing.T) {
	const replicas, bins = 5000, 20
	var hist [bins]int
	synctest.Test(t, func(t *testing.T) {
		for range replicas {
			b := breaker.New(breaker.WithConsecutiveFailures(1))
			trip(t, b)
			d := b.RetryAfter()
			if d < 4*time.Second || d > 6*time.Second {
				t.Fatalf("open for %v, want 4s to 6s", d)
			}
			hist[min(bins-1, int((d-4*time.Second)*bins/(2*time.Second)))]++
		}
	})
	for i, n := range hist {
		// The mean is 250 with a deviation of 15: 1.5 times it is out of reach for chance.
		if n > replicas/bins*3/2 {
			t.Errorf("%d of %d replicas come back in the same %d. twentieth", n, replicas, i)
		}
	}
}

func TestR15RampIsMonotone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(breaker.WithJitter(0), breaker.WithRamp(10*time.Second))
		trip(t, b)
		time.Sleep(5 * time.Second) // in a synctest bubble
		for range 3 {
			report(t, b, breaker.Success, 0)
		}
		var refusal error
		for second := range 12 {
			passed := 0
			for range 1000 {
				time.Sleep(time.Millisecond) // in a synctest bubble
				if call, err := b.Allow(); err == nil {
					call.Done(breaker.Success, 0)
					passed++
				} else {
					refusal = err
				}
			}
			share := min(1, float64(second)/10+0.05)
			if second == 0 {
				share = 0.1
			}
			if math.Abs(float64(passed)/1000-share) > 0.01 {
				t.Errorf("second %d lets %d of 1000 in, want %.0f", second, passed, share*1000)
			}
		}
		if open, ok := errors.AsType[*breaker.OpenError](refusal); !ok || open.State != breaker.Closed || open.RetryAfter <= 0 {
			t.Errorf("on the ramp the refusal is %#v", refusal)
		}
		want(t, b, breaker.Closed)
	})
}

func TestR15RelapseOnTheRamp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(breaker.WithJitter(0))
		trip(t, b)
		time.Sleep(5 * time.Second) // in a synctest bubble
		for range 3 {
			report(t, b, breaker.Success, 0)
		}
		for b.Stats().State == breaker.Closed {
			if call, err := b.Allow(); err == nil {
				call.Done(breaker.Failure, 0)
			}
		}
		if got := b.RetryAfter(); got != 10*time.Second {
			t.Errorf("open for %v, want twice the first time", got)
		}
	})
}

func TestR16ResultsOfAnOlderStateAreDroppedAndCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(steady()...)
		var old []breaker.Call
		for range 60 {
			call, _ := b.Allow()
			old = append(old, call)
		}
		trip(t, b)
		old[0].Done(breaker.Success, 0) // while open
		time.Sleep(5 * time.Second)     // in a synctest bubble
		want(t, b, breaker.HalfOpen)
		for _, call := range old[1:10] {
			call.Done(breaker.Success, 0) // three of these would close it
		}
		want(t, b, breaker.HalfOpen)
		old[10].Done(breaker.Failure, 0)
		want(t, b, breaker.HalfOpen)
		for range 3 {
			report(t, b, breaker.Success, 0)
		}
		for _, call := range old[11:] {
			call.Done(breaker.Failure, 0) // 20 of these would open it
		}
		old[11].Fail()
		want(t, b, breaker.Closed)
		if s := b.Stats(); s.Dropped != 61 || s.Failures != 0 {
			t.Errorf("%d dropped, %d failures, want 61 and 0", s.Dropped, s.Failures)
		}
	})
}

func TestHungDependencyOpensWithNoCallCompleted(t *testing.T) {
	for _, c := range []struct{ window, slow, within time.Duration }{
		{10 * time.Second, 2 * time.Second, 3 * time.Second},
		{10 * time.Second, 2500 * time.Millisecond, 3500 * time.Millisecond},
		{time.Second, 30 * time.Second, 30300 * time.Millisecond}, // slices of a hundredth of the slow call
		{time.Second, 3 * time.Second, 3100 * time.Millisecond},
		{time.Minute, 100 * time.Millisecond, 6100 * time.Millisecond},
	} {
		t.Run(fmt.Sprintf("window=%v,slow=%v", c.window, c.slow), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := breaker.New(breaker.WithWindow(c.window), breaker.WithSlowCalls(c.slow, 0.8))
				time.Sleep(12345 * time.Millisecond) // in a synctest bubble
				begin := time.Now()
				n := 0
				for {
					if _, err := b.Allow(); err != nil {
						break
					}
					if n++; n > 1_000_000 {
						t.Fatal("still closed")
					}
					if n > 20 {
						time.Sleep(10 * time.Millisecond) // in a synctest bubble
					}
				}
				if took := time.Since(begin); took > c.within+10*time.Millisecond || took < c.slow {
					t.Errorf("open after %v, want %v to %v", took, c.slow, c.within)
				}
				if s := b.Stats(); s.State != breaker.Open {
					t.Errorf("state %v", s.State)
				}
			})
		})
	}
}

func TestHungDependencyOpensAfterQuickCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(steady(breaker.WithSlowCalls(time.Second, 0.8))...)
		for range 2000 {
			report(t, b, breaker.Success, 0)
			time.Sleep(10 * time.Millisecond) // in a synctest bubble
		}
		hung := time.Now()
		for b.State() == breaker.Closed && time.Since(hung) < time.Minute {
			b.Allow()
			time.Sleep(10 * time.Millisecond) // in a synctest bubble
		}
		if d := time.Since(hung); d < 7*time.Second || d > 9*time.Second {
			t.Errorf("open after %v, want about 8s", d)
		}
	})
}

func TestAnyNumberOfLostProbesCannotWedgeIt(t *testing.T) {
	for probes := 1; probes <= 5; probes++ {
		for lost := 1; lost <= probes; lost++ {
			for _, lease := range []time.Duration{time.Second, 7 * time.Second} {
				synctest.Test(t, func(t *testing.T) {
					b := breaker.New(steady(breaker.WithProbes(probes), breaker.WithLease(lease),
						breaker.WithOpenTime(time.Second, time.Second))...)
					trip(t, b)
					for range 4 {
						time.Sleep(time.Second) // in a synctest bubble
						for i := range probes {
							switch call, err := b.Allow(); {
							case err != nil:
								t.Fatalf("probe %d of %d: %v", i, probes, err)
							case i < probes-lost:
								call.Done(breaker.Success, 0)
							}
						}
						want(t, b, breaker.HalfOpen)
						time.Sleep(lease)        // in a synctest bubble
						want(t, b, breaker.Open) // half-open ended with the lease
					}
					time.Sleep(time.Second) // in a synctest bubble
					for range probes {
						report(t, b, breaker.Success, 0)
					}
					want(t, b, breaker.Closed)
					if n := b.Stats().LostProbes; n != 4 {
						t.Errorf("%d leases ended half-open, want 4", n)
					}
				})
			}
		}
	}
}

func TestSecondDoneDoesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(steady()...)
		call, _ := b.Allow()
		var wg sync.WaitGroup
		for range 50 {
			copied := call
			wg.Go(func() { copied.Done(breaker.Failure, 0) })
		}
		wg.Wait()
		if s := b.Stats(); s.Failures != 1 {
			t.Errorf("%d failures, want 1", s.Failures)
		}
		call.Fail()
		if s := b.Stats(); s.Failures != 2 {
			t.Errorf("%d failures, want one more after Fail", s.Failures)
		}
		trip(t, b)
		time.Sleep(5 * time.Second) // in a synctest bubble
		probe, _ := b.Allow()
		for range 3 {
			probe.Done(breaker.Success, 0)
		}
		want(t, b, breaker.HalfOpen)
		breaker.Call{}.Done(breaker.Failure, 0)
		breaker.Call{}.DoneAt(breaker.Failure, 0, time.Now())
		breaker.Call{}.Fail()
	})
}

// A body that was cut is one call that failed, and not a success and a failure.
func TestCallsThatFailAfterTheyWereReportedOpen(t *testing.T) {
	for _, c := range []struct {
		name  string
		cut   int // of 10
		lasts time.Duration
		open  bool
	}{
		{"6 of 10 at once", 6, 0, true},
		{"6 of 10 after a second", 6, time.Second, true},
		{"all after twice the window", 10, 20 * time.Second, true},
		{"4 of 10 at once", 4, 0, false},
		{"4 of 10 after a second", 4, time.Second, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := breaker.New(steady()...)
				for i := range 1000 {
					call, err := b.Allow()
					if err != nil {
						break
					}
					call.Done(breaker.Success, 0)
					if i*7%10 < c.cut {
						time.AfterFunc(c.lasts, call.Fail)
					}
					time.Sleep(50 * time.Millisecond) // in a synctest bubble
				}
				if open := b.Stats().Openings > 0; open != c.open {
					t.Errorf("opened %v, want %v: %+v", open, c.open, b.Stats())
				}
				time.Sleep(c.lasts) // in a synctest bubble
			})
		})
	}
}

func TestStatsCountsACallThatFailsAfterItWasReportedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(breaker.WithFailureRatio(1, 100))
		for i := range 10 {
			call, err := b.Allow()
			if err != nil {
				t.Fatal(err)
			}
			call.Done(breaker.Success, 0)
			if i < 3 {
				call.Fail()
			}
		}
		if s := b.Stats(); s.Successes != 7 || s.Failures != 3 {
			t.Errorf("%d successes and %d failures, want 7 and 3", s.Successes, s.Failures)
		}
	})
}

// Where all bodies are cut no call has succeeded, however well each began.
func TestCallsThatFailAfterTheyWereReportedAreARow(t *testing.T) {
	type call = breaker.Call
	for _, c := range []struct {
		name string
		play func(allow func() call)
		want int
	}{
		{"each is cut before the next", func(allow func() call) {
			for range 3 {
				c := allow()
				c.Done(breaker.Success, 0)
				c.Fail()
			}
		}, 3},
		{"failures before and after it began well", func(allow func() call) {
			allow().Done(breaker.Failure, 0)
			c := allow()
			c.Done(breaker.Success, 0)
			allow().Done(breaker.Failure, 0)
			c.Fail()
		}, 3},
		{"another succeeded since", func(allow func() call) {
			allow().Done(breaker.Failure, 0)
			c := allow()
			c.Done(breaker.Success, 0)
			allow().Done(breaker.Success, 0)
			c.Fail()
		}, 1},
		{"another succeeded between the failures and it", func(allow func() call) {
			c := allow()
			c.Done(breaker.Success, 0)
			allow().Done(breaker.Failure, 0)
			allow().Done(breaker.Success, 0)
			c.Fail()
		}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := breaker.New(breaker.WithConsecutiveFailures(10))
				c.play(func() call {
					time.Sleep(time.Millisecond) // in a synctest bubble
					c, err := b.Allow()
					if err != nil {
						t.Fatal(err)
					}
					return c
				})
				if got := b.Stats().Consecutive; got != c.want {
					t.Errorf("%d failures in a row, want %d", got, c.want)
				}
			})
		})
	}
}

func TestACallThatWasReportedIsNotInFlight(t *testing.T) {
	for name, play := range map[string]func(b *breaker.Breaker){
		"after many windows": func(b *breaker.Breaker) {
			c, _ := b.Allow()
			time.Sleep(time.Hour) // in a synctest bubble
			c.Done(breaker.Success, 0)
		},
		"answered before it began": func(b *breaker.Breaker) {
			c, _ := b.Admit(breaker.Request{Waits: true})
			c.Answered()
			c.Begin(time.Now()).Done(breaker.Success, 0)
		},
		"waits and does not go on": func(b *breaker.Breaker) {
			c, _ := b.Allow()
			c.Wait().Done(breaker.Success, 0)
		},
		"answered before it waits": func(b *breaker.Breaker) {
			c, _ := b.Allow()
			c.Answered()
			c.Wait().Begin(time.Now()).Done(breaker.Success, 0)
		},
		"begun twice": func(b *breaker.Breaker) {
			c, _ := b.Admit(breaker.Request{Waits: true})
			c = c.Begin(time.Now())
			time.Sleep(2 * time.Second) // in a synctest bubble
			c.Begin(time.Now()).Done(breaker.Success, 0)
		},
		"reported before it began": func(b *breaker.Breaker) {
			c, _ := b.Admit(breaker.Request{Waits: true})
			c.Done(breaker.Success, 0)
			c.Begin(time.Now())
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := breaker.New(breaker.WithSlowCalls(time.Second, 0.8))
				play(b)
				if n := b.Stats().InFlight; n != 0 {
					t.Errorf("%d in flight", n)
				}
			})
		})
	}
}

func TestForcedStates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(steady()...)
		b.ForceOpen()
		time.Sleep(24 * time.Hour) // in a synctest bubble
		_, err := b.Allow()
		if open, ok := errors.AsType[*breaker.OpenError](err); !ok || open.State != breaker.ForcedOpen || open.RetryAfter != 0 {
			t.Errorf("forced open refuses with %#v", err)
		}
		b.ForceClosed()
		for range 100 {
			report(t, b, breaker.Failure, 0)
		}
		want(t, b, breaker.ForcedClosed)
		if s := b.Stats(); s.Failures != 100 {
			t.Errorf("%d failures, want 100: forced closed counts", s.Failures)
		}
		b.Disable()
		for range 100 {
			report(t, b, breaker.Failure, 0)
		}
		want(t, b, breaker.Disabled)
		b.Reset()
		want(t, b, breaker.Closed)
		if s := b.Stats(); s.Failures != 0 || s.Openings != 0 {
			t.Errorf("after Reset: %+v", s)
		}
		trip(t, b)
		b.Reset()
		report(t, b, breaker.Success, 0)
	})
}

func TestSharedClockReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(steady()...)
		for range 20 {
			call, err := b.AllowAt(time.Now())
			if err != nil {
				t.Fatal(err)
			}
			call.DoneAt(breaker.Failure, 0, time.Now())
		}
		if _, err := b.AllowAt(time.Now()); err == nil {
			t.Error("still closed")
		}
		// A clock that runs ahead of ours gets no probe early, and no endless loop.
		if _, err := b.AllowAt(time.Now().Add(time.Hour)); err == nil {
			t.Error("a probe before gobreaker's time")
		}
		if _, err := b.Admit(breaker.Request{Arrived: time.Now().Add(time.Hour), Long: true}); err == nil {
			t.Error("a probe before gobreaker's time")
		}
		if _, err := b.AllowAt(time.Now().Add(-time.Hour)); err == nil {
			t.Error("a probe in the past")
		}
	})
}

func TestErrorsSayWhoAndWhen(t *testing.T) {
	b := breaker.New(steady(breaker.WithName("billing"), breaker.WithConsecutiveFailures(1))...)
	b.ForceOpen()
	_, err := b.Allow()
	if got := err.Error(); got != "breaker: billing: forced-open" {
		t.Errorf("%q", got)
	}
	if got := (&breaker.OpenError{State: breaker.Open, RetryAfter: 2 * time.Second}).Error(); got != "breaker: open, retry after 2s" {
		t.Errorf("%q", got)
	}
	if got := (&breaker.OpenError{RetryAfter: time.Second}).Error(); got != "breaker: letting calls in slowly, retry after 1s" {
		t.Errorf("%q", got)
	}
}

func TestRefusalsSayHowLongIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(steady()...)
		trip(t, b)
		for left := 5 * time.Second; left > 0; left -= time.Second {
			_, err := b.Allow()
			if open, ok := errors.AsType[*breaker.OpenError](err); !ok || open.RetryAfter != left {
				t.Errorf("%v before its end: %#v", left, err)
			}
			time.Sleep(time.Second) // in a synctest bubble
		}
	})
}

// Who comes in the very moment in which the last probe is reported is not told to stay away for ever.
func TestRefusalsWhileTheLastProbeIsReported(t *testing.T) {
	for _, outcome := range []breaker.Outcome{breaker.Success, breaker.Failure} {
		t.Run(outcome.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := breaker.New(steady(breaker.WithProbes(1), breaker.WithOpenTime(time.Second, time.Second), breaker.WithLease(2*time.Second))...)
				for range 50 {
					trip(t, b)
					time.Sleep(time.Second) // in a synctest bubble
					probe, err := b.Allow()
					if err != nil {
						t.Fatal(err)
					}
					var asked sync.WaitGroup
					var reported atomic.Bool
					for range 2 {
						asked.Go(func() {
							for last := false; !last; {
								last = reported.Load()
								_, err := b.Allow()
								if open, ok := errors.AsType[*breaker.OpenError](err); ok && open.RetryAfter > 2*time.Second {
									t.Errorf("refused for %v", open.RetryAfter)
									return
								}
								if d := b.RetryAfter(); d > 2*time.Second {
									t.Errorf("RetryAfter is %v", d)
									return
								}
							}
						})
					}
					runtime.Gosched()
					probe.Done(outcome, 0)
					reported.Store(true)
					asked.Wait()
					if t.Failed() {
						return
					}
				}
			})
		})
	}
}

func TestStatsSayHowLongAndHowMuch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(breaker.WithJitter(0), breaker.WithMinClients(3), breaker.WithProbes(1))
		expect := func(state breaker.State, since time.Duration, ramp float64, clients int) {
			t.Helper()
			if s := b.Stats(); s.State != state || s.Since != since || s.Ramp != ramp || s.Clients != clients {
				t.Errorf("%v for %v, ramp %v, %d clients; want %v for %v, %v, %d", s.State, s.Since, s.Ramp, s.Clients, state, since, ramp, clients)
			}
		}
		expect(breaker.Closed, 0, 1, 0)
		time.Sleep(time.Second) // in a synctest bubble
		for client := range uint64(2) {
			for range 10 {
				call, _ := b.Admit(breaker.Request{Client: client})
				call.Done(breaker.Failure, 0)
			}
		}
		expect(breaker.Closed, time.Second, 1, 2)
		call, _ := b.Admit(breaker.Request{Client: 2})
		call.Done(breaker.Failure, 0)
		time.Sleep(time.Second) // in a synctest bubble
		expect(breaker.Open, time.Second, 0, 0)
		time.Sleep(4 * time.Second) // in a synctest bubble
		expect(breaker.HalfOpen, 0, 0, 0)
		report(t, b, breaker.Success, 0)
		expect(breaker.Closed, 0, 0.1, 0)
		time.Sleep(5 * time.Second) // in a synctest bubble
		expect(breaker.Closed, 5*time.Second, 0.5, 0)
		b.ForceOpen()
		expect(breaker.ForcedOpen, 0, 0, 0)
	})
}

func TestPassingAndSettings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(steady(breaker.WithProbes(1))...)
		expect := func(s breaker.State, passing bool) {
			t.Helper()
			want(t, b, s)
			if b.Passing() != passing {
				t.Errorf("%v: passing is %v", s, !passing)
			}
		}
		expect(breaker.Closed, true)
		trip(t, b)
		expect(breaker.Open, false)
		time.Sleep(5 * time.Second) // in a synctest bubble
		expect(breaker.HalfOpen, false)
		b.ForceOpen()
		expect(breaker.ForcedOpen, false)
		b.ForceClosed()
		expect(breaker.ForcedClosed, true)
		b.Disable()
		expect(breaker.Disabled, true)
		if b.Settings() != b.Stats().Settings || b.Settings().Probes != 1 {
			t.Errorf("%+v", b.Settings())
		}
		if s := breaker.NewGroup(breaker.WithProbes(5)).Settings(); s.Probes != 5 {
			t.Errorf("%+v", s)
		}
	})
}

// A caller that hands in a time of long ago counts nowhere rather than in somebody else's slice.
func TestClocksThatAreLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(breaker.WithSlowCalls(time.Second, 0.8), breaker.WithWindow(time.Second))
		long := time.Now()
		time.Sleep(time.Hour) // in a synctest bubble
		for range 10 {
			call, _ := b.Allow()
			call.Done(breaker.Success, 0)
		}
		open := make([]breaker.Call, 0, 100)
		for at := long; at.Before(long.Add(5 * time.Second)); at = at.Add(50 * time.Millisecond) {
			call, err := b.AllowAt(at)
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, call)
		}
		for _, call := range open {
			call.DoneAt(breaker.Failure, 0, long)
		}
		time.Sleep(100 * time.Millisecond) // in a synctest bubble
		if s := b.Stats(); s.State != breaker.Closed || s.Successes != 10 || s.Overdue != 0 || s.InFlight != 0 {
			t.Errorf("%+v", s)
		}
	})
}

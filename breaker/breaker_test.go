package breaker_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/breaker"
)

// steady makes open times exact and the way back short, so that tests can say when things happen.
func steady(opts ...breaker.Option) []breaker.Option {
	return append([]breaker.Option{breaker.WithJitter(0), breaker.WithRamp(0)}, opts...)
}

func report(t *testing.T, b *breaker.Breaker, o breaker.Outcome, latency time.Duration) {
	t.Helper()
	call, err := b.Allow()
	if err != nil {
		t.Fatalf("Allow: %v", err)
	}
	call.Done(o, latency)
}

func want(t *testing.T, b *breaker.Breaker, s breaker.State) {
	t.Helper()
	if got := b.State(); got != s {
		t.Fatalf("state is %v, want %v; %+v", got, s, b.Stats())
	}
}

func TestOpensAtRatioOnceVolumeIsThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(steady()...)
		for range 9 {
			report(t, b, breaker.Success, 0)
		}
		for range 10 {
			report(t, b, breaker.Failure, 0)
		}
		want(t, b, breaker.Closed) // 10 of 19: the ratio, not the volume
		report(t, b, breaker.Success, 0)
		want(t, b, breaker.Closed) // a success never opens
		report(t, b, breaker.Failure, 0)
		want(t, b, breaker.Open)
		_, err := b.Allow()
		open, ok := errors.AsType[*breaker.OpenError](err)
		if !ok || !errors.Is(err, breaker.ErrOpen) || open.RetryAfter != 5*time.Second {
			t.Fatalf("refused with %#v", err)
		}
		time.Sleep(5*time.Second - 1) // in a synctest bubble
		want(t, b, breaker.Open)
		time.Sleep(time.Nanosecond) // in a synctest bubble
		want(t, b, breaker.HalfOpen)
		for range 3 {
			want(t, b, breaker.HalfOpen)
			report(t, b, breaker.Success, 0)
		}
		want(t, b, breaker.Closed)
	})
}

func TestLostProbesFailWithTheirLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(steady(breaker.WithConsecutiveFailures(1))...)
		report(t, b, breaker.Failure, 0)
		open := 5 * time.Second
		for range 6 {
			time.Sleep(open) // in a synctest bubble
			if _, err := b.Allow(); err != nil {
				t.Fatal(err)
			}
			want(t, b, breaker.HalfOpen)
			time.Sleep(5*time.Second - 1) // in a synctest bubble
			want(t, b, breaker.HalfOpen)
			time.Sleep(time.Nanosecond) // in a synctest bubble
			want(t, b, breaker.Open)
			open = min(2*open, time.Minute)
			if got := b.RetryAfter(); got != open {
				t.Fatalf("open for %v, want %v", got, open)
			}
		}
	})
}

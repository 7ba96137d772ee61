package compare

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cep21/circuit/v4"
	"github.com/cep21/circuit/v4/closers/hystrix"
	"github.com/failsafe-go/failsafe-go/circuitbreaker"
	"github.com/failsafe-go/failsafe-go/failsafehttp"
	"github.com/go-kratos/aegis/circuitbreaker/sre"
	"github.com/sony/gobreaker/v2"
	gozero "github.com/zeromicro/go-zero/core/breaker"
	"github.com/zeromicro/go-zero/core/logx"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/middleware"
)

var errFailed = errors.New("failed")

// breakerMakers make a function that passes one call through a breaker, the
// call failing with the given error, and returns the breaker's own error if it
// refused.
var breakerMakers = []struct {
	name string
	make func() func(error) error
}{
	// The only one here that measures how long the call took: -1 has it do so, by
	// clock reads that it makes anyway.
	{"spillgate", func() func(error) error {
		b := breaker.New(breaker.WithFailureRatio(0.5, 10))
		return func(result error) error {
			c, err := b.Allow()
			if err != nil {
				return err
			}
			o := breaker.Success
			if result != nil {
				o = breaker.Failure
			}
			c.Done(o, -1)
			return nil
		}
	}},
	{"spillgate-Do", func() func(error) error {
		b := breaker.New(breaker.WithFailureRatio(0.5, 10))
		ctx := context.Background()
		return func(result error) error {
			err := b.Do(ctx, func(context.Context) error { return result })
			if err == result {
				return nil
			}
			return err
		}
	}},
	{"gobreaker-Execute", func() func(error) error {
		b := gobreaker.NewCircuitBreaker[struct{}](gobreakerSettings())
		return func(result error) error {
			_, err := b.Execute(func() (struct{}, error) { return struct{}{}, result })
			if err == result {
				return nil
			}
			return err
		}
	}},
	{"gobreaker-TwoStep", func() func(error) error {
		b := gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreakerSettings())
		return func(result error) error {
			done, err := b.Allow()
			if err != nil {
				return err
			}
			done(result)
			return nil
		}
	}},
	{"failsafe", func() func(error) error {
		b := circuitbreaker.NewBuilder[any]().WithFailureThresholdRatio(5, 10).WithDelay(time.Hour).Build()
		return func(result error) error {
			if !b.TryAcquirePermit() {
				return circuitbreaker.ErrOpen
			}
			if result != nil {
				b.RecordFailure()
			} else {
				b.RecordSuccess()
			}
			return nil
		}
	}},
	// Run with no timeout of its own and no limit on what runs at once.
	{"cep21-circuit", func() func(error) error {
		h := hystrix.Factory{
			ConfigureOpener: hystrix.ConfigureOpener{ErrorThresholdPercentage: 50, RequestVolumeThreshold: 10},
			ConfigureCloser: hystrix.ConfigureCloser{SleepWindow: time.Hour},
		}
		m := circuit.Manager{DefaultCircuitProperties: []circuit.CommandPropertiesConstructor{h.Configure}}
		c := m.MustCreateCircuit("compare", circuit.Config{Execution: circuit.ExecutionConfig{Timeout: -1, MaxConcurrentRequests: -1}})
		ctx := context.Background()
		return func(result error) error {
			err := c.Run(ctx, func(context.Context) error { return result })
			if err == result {
				return nil
			}
			return err
		}
	}},
	{"go-zero", func() func(error) error {
		logx.Disable()
		b := gozero.NewBreaker()
		return func(result error) error {
			p, err := b.Allow()
			if err != nil {
				return err
			}
			if result != nil {
				p.Reject("failed")
			} else {
				p.Accept()
			}
			return nil
		}
	}},
	{"aegis-sre", func() func(error) error {
		b := sre.NewBreaker()
		return func(result error) error {
			if err := b.Allow(); err != nil {
				return err
			}
			if result != nil {
				b.MarkFailed()
			} else {
				b.MarkSuccess()
			}
			return nil
		}
	}},
}

func gobreakerSettings() gobreaker.Settings {
	return gobreaker.Settings{
		Timeout: time.Hour, Interval: 10 * time.Second, BucketPeriod: time.Second,
		ReadyToTrip: func(c gobreaker.Counts) bool { return c.Requests >= 10 && c.TotalFailures*2 >= c.Requests },
	}
}

func TestBreaker(t *testing.T) {
	for _, m := range breakerMakers {
		t.Run(m.name, func(t *testing.T) {
			call := m.make()
			for range 5 {
				if err := call(nil); err != nil {
					t.Fatalf("a call that succeeds: %v", err)
				}
			}
			// Those of go-zero and aegis refuse by chance; among 5,000 they do.
			for range 5000 {
				if err := call(errFailed); err != nil {
					return
				}
			}
			t.Error("5,000 failures in a row, and none was refused")
		})
	}
}

// BenchmarkBreaker measures a call through a closed breaker and a refusal by an
// open one.
func BenchmarkBreaker(b *testing.B) {
	b.Run("closed/baseline=two-clock-reads", func(b *testing.B) {
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				_ = time.Since(time.Now())
			}
		})
	})
	for _, m := range breakerMakers {
		b.Run("closed/"+m.name, func(b *testing.B) {
			call := m.make()
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := call(nil); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
	for _, m := range breakerMakers {
		b.Run("open/"+m.name, func(b *testing.B) {
			call := m.make()
			for range 5000 {
				_ = call(errFailed)
			}
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					_ = call(errFailed)
				}
			})
		})
	}
}

// statusRecorder is what a breaker by hand needs to know what happened.
type statusRecorder struct {
	http.ResponseWriter
	status int
}

func (w *statusRecorder) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusRecorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// breakerLayers put a breaker around a handler.
var breakerLayers = []struct {
	name   string
	refuse int // the status when open, 0 if it never opens on a handler's 500
	wrap   func() func(http.Handler) http.Handler
}{
	{"baseline=gobreaker-by-hand", http.StatusServiceUnavailable, gobreakerByHand},
	{"spillgate", http.StatusServiceUnavailable, func() func(http.Handler) http.Handler {
		return middleware.Breaker(breaker.NewGroup(breaker.WithFailureRatio(0.5, 10))).Handler
	}},
	{"failsafe", 0, func() func(http.Handler) http.Handler {
		p := circuitbreaker.NewBuilder[*http.Response]().
			HandleIf(func(r *http.Response, err error) bool { return err != nil || r != nil && r.StatusCode >= 500 }).
			WithFailureThresholdRatio(5, 10).WithDelay(time.Hour).Build()
		return func(next http.Handler) http.Handler { return failsafehttp.NewHandler(next, p) }
	}},
}

// gobreakerByHand is the glue that people write.
func gobreakerByHand() func(http.Handler) http.Handler {
	b := gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreakerSettings())
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			done, err := b.Allow()
			if err != nil {
				w.Header().Set("Retry-After", strconv.Itoa(60))
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
			rec := &statusRecorder{ResponseWriter: w, status: http.StatusOK}
			completed := false
			defer func() {
				if !completed || rec.status >= 500 {
					done(errFailed)
				} else {
					done(nil)
				}
			}()
			next.ServeHTTP(rec, r)
			completed = true
		})
	}
}

func TestBreakerLayer(t *testing.T) {
	for _, m := range breakerLayers {
		t.Run(m.name, func(t *testing.T) {
			status := http.StatusNoContent
			calls := 0
			h := m.wrap()(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { calls++; w.WriteHeader(status) }))
			if got := newWriter().serve(h, newRequest("/")); got != status {
				t.Fatalf("status %d through a closed breaker; want %d", got, status)
			}
			status = http.StatusInternalServerError
			got := 0
			for range 100 {
				got = newWriter().serve(h, newRequest("/"))
			}
			switch {
			case m.refuse == 0 && calls != 101:
				t.Errorf("%d of 100 failures reached the handler: it opens after all, so the table is out of date", calls-1)
			case m.refuse != 0 && (got != m.refuse || calls > 50):
				t.Errorf("after 100 failures status %d, %d calls; want %d and few calls", got, calls, m.refuse)
			}
		})
	}
}

// What a layer makes of what looks alike and is not: a hundred clients that left, upon which a proxy
// writes 502 to nobody, and a hundred backends that died in the middle of a response whose status was 200.
func TestBreakerLayerTellsClientsFromBackends(t *testing.T) {
	opensAt := map[string]struct{ aborts, cuts bool }{
		"spillgate":         {false, true}, // as it should be
		"gobreaker-by-hand": {true, true},  // clients close the service to each other
		"failsafe":          {false, false},
	}
	left, leave := context.WithCancel(context.Background())
	leave()
	abort := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }
	cut := func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusOK)
		panic(http.ErrAbortHandler)
	}
	for _, m := range breakerLayers {
		name := strings.TrimPrefix(m.name, "baseline=")
		opens := func(ctx context.Context, f http.HandlerFunc) bool {
			reached := false
			h := m.wrap()(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if reached = true; r.URL.Path == "/" {
					f(w, r)
				}
			}))
			for range 100 {
				func() {
					defer func() { _ = recover() }()
					newWriter().serve(h, newRequest("/").WithContext(ctx))
				}()
			}
			reached = false
			newWriter().serve(h, newRequest("/after"))
			return !reached
		}
		want, known := opensAt[name]
		if !known {
			t.Errorf("no line for %s", name)
			continue
		}
		if got := opens(left, abort); got != want.aborts {
			t.Errorf("%s: 100 clients that left open it: %v, the table says %v", name, got, want.aborts)
		}
		if got := opens(context.Background(), cut); got != want.cuts {
			t.Errorf("%s: 100 upstream cuts open it: %v, the table says %v", name, got, want.cuts)
		}
	}
}

// BenchmarkBreakerLayer measures the whole middleware around a handler that does
// nothing, closed and open.
func BenchmarkBreakerLayer(b *testing.B) {
	b.Run("closed/baseline=bare", func(b *testing.B) { serveParallel(b, noContent, http.StatusNoContent) })
	for _, m := range breakerLayers {
		b.Run("closed/"+m.name, func(b *testing.B) { serveParallel(b, m.wrap()(noContent), http.StatusNoContent) })
	}
	for _, m := range breakerLayers {
		if m.refuse == 0 {
			continue
		}
		b.Run("open/"+m.name, func(b *testing.B) {
			h := m.wrap()(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }))
			for range 100 {
				newWriter().serve(h, newRequest("/"))
			}
			serveParallel(b, h, m.refuse)
		})
	}
}

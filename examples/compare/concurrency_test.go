package compare

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/failsafe-go/failsafe-go/adaptivelimiter"
	"github.com/failsafe-go/failsafe-go/bulkhead"
	"github.com/failsafe-go/failsafe-go/failsafehttp"
	chimw "github.com/go-chi/chi/v5/middleware"
	"github.com/go-kratos/aegis/ratelimit"
	"github.com/go-kratos/aegis/ratelimit/bbr"
	"github.com/zeromicro/go-zero/core/load"

	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware"
)

// concurrencyMakers bound how many requests are in the handler at once, as
// middleware.
var concurrencyMakers = []struct {
	name   string
	reject int // the status for one too many
	wrap   func(n int) func(http.Handler) http.Handler
}{
	{"baseline=channel", http.StatusServiceUnavailable, func(n int) func(http.Handler) http.Handler {
		slots := make(chan struct{}, n)
		return func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				select {
				case slots <- struct{}{}:
					defer func() { <-slots }()
					next.ServeHTTP(w, r)
				default:
					http.Error(w, "Service Unavailable", http.StatusServiceUnavailable)
				}
			})
		}
	}},
	{"spillgate", http.StatusServiceUnavailable, func(n int) func(http.Handler) http.Handler {
		return middleware.Concurrency(limiter.NewConcurrency(n, limiter.WithQueue(0, 0))).Handler
	}},
	{"chi-Throttle", http.StatusTooManyRequests, func(n int) func(http.Handler) http.Handler { return chimw.Throttle(n) }},
	{"failsafe-bulkhead", http.StatusTooManyRequests, func(n int) func(http.Handler) http.Handler {
		p := bulkhead.New[*http.Response](uint(n))
		return func(next http.Handler) http.Handler { return failsafehttp.NewHandler(next, p) }
	}},
}

func TestConcurrency(t *testing.T) {
	for _, m := range concurrencyMakers {
		t.Run(m.name, func(t *testing.T) {
			// One request inside sends the second one through the same layer.
			var h http.Handler
			inner := 0
			h = m.wrap(1)(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				inner = newWriter().serve(h, newRequest("/"))
				w.WriteHeader(http.StatusNoContent)
			}))
			for range 2 { // the second time shows that the permit came back
				if got := newWriter().serve(h, newRequest("/")); got != http.StatusNoContent || inner != m.reject {
					t.Fatalf("first request %d, one too many %d; want 204 and %d", got, inner, m.reject)
				}
			}
		})
	}
}

// BenchmarkConcurrency measures the whole middleware with room for everybody,
// and with none.
func BenchmarkConcurrency(b *testing.B) {
	b.Run("accept/baseline=bare", func(b *testing.B) { serveParallel(b, noContent, http.StatusNoContent) })
	for _, m := range concurrencyMakers {
		b.Run("accept/"+m.name, func(b *testing.B) { serveParallel(b, m.wrap(1000)(noContent), http.StatusNoContent) })
	}
	for _, m := range concurrencyMakers {
		b.Run("reject/"+m.name, func(b *testing.B) {
			var h http.Handler
			h = m.wrap(1)(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { serveSerial(b, h, m.reject, nil) }))
			h.ServeHTTP(newWriter(), newRequest("/"))
		})
	}
}

// A permit is what the limiters cost without HTTP: take one, give it back.
var permitMakers = []struct {
	name string
	make func(testing.TB) (take func() error)
}{
	{"baseline=channel", func(testing.TB) func() error {
		slots := make(chan struct{}, 1000)
		return func() error {
			slots <- struct{}{}
			<-slots
			return nil
		}
	}},
	{"spillgate-static", func(testing.TB) func() error { return takePermit(limiter.NewConcurrency(1000)) }},
	{"spillgate-adaptive", func(testing.TB) func() error { return takePermit(limiter.NewAdaptive()) }},
	{"failsafe-bulkhead", func(testing.TB) func() error {
		l := bulkhead.New[any](1000)
		return func() error {
			if !l.TryAcquirePermit() {
				return errFull
			}
			l.ReleasePermit()
			return nil
		}
	}},
	{"failsafe-adaptive", func(testing.TB) func() error {
		l := adaptivelimiter.NewWithDefaults[any]()
		return func() error {
			p, ok := l.TryAcquirePermit()
			if !ok {
				return errFull
			}
			p.Record()
			return nil
		}
	}},
	{"aegis-bbr", func(testing.TB) func() error {
		l := bbr.NewLimiter()
		return func() error {
			done, err := l.Allow()
			if err != nil {
				return err
			}
			done(ratelimit.DoneInfo{})
			return nil
		}
	}},
	{"go-zero-shedder", func(testing.TB) func() error {
		load.DisableLog()
		l := load.NewAdaptiveShedder()
		return func() error {
			p, err := l.Allow()
			if err != nil {
				return err
			}
			p.Pass()
			return nil
		}
	}},
}

var errFull = errors.New("full")

func takePermit(l *limiter.Concurrency) func() error {
	return func() error {
		p, ok := l.TryAcquire(limiter.Request{})
		if !ok {
			return errFull
		}
		p.Release(limiter.Success)
		return nil
	}
}

func TestPermit(t *testing.T) {
	for _, m := range permitMakers {
		t.Run(m.name, func(t *testing.T) {
			take := m.make(t)
			refused := 0
			for range 3000 {
				if take() != nil {
					refused++
				}
			}
			// go-zero's and aegis' may refuse even the only request while the CPU is busy.
			if refused > 0 && !strings.HasPrefix(m.name, "go-zero") && !strings.HasPrefix(m.name, "aegis") || refused == 3000 {
				t.Errorf("%d of 3000 requests, one at a time, were refused", refused)
			}
		})
	}
}

// BenchmarkPermit measures taking and giving back one permit of many.
func BenchmarkPermit(b *testing.B) {
	for _, m := range permitMakers {
		b.Run(m.name, func(b *testing.B) {
			take := m.make(b)
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					// The CPU-gated ones may refuse under full load; that is part of their cost.
					_ = take()
				}
			})
		})
	}
}

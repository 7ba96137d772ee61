package compare

import (
	"math"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/didip/tollbooth/v7"
	tblimiter "github.com/didip/tollbooth/v7/limiter"
	"github.com/go-chi/httprate"
	"github.com/sethvargo/go-limiter/httplimit"
	"github.com/sethvargo/go-limiter/memorystore"
	"github.com/throttled/throttled/v2"
	"github.com/throttled/throttled/v2/store/memstore"
	ulule "github.com/ulule/limiter/v3"
	ululestd "github.com/ulule/limiter/v3/drivers/middleware/stdlib"
	ululemem "github.com/ulule/limiter/v3/drivers/store/memory"
	"golang.org/x/time/rate"

	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware"
)

// rateMakers make a limit of n requests an hour for each value of keyHeader,
// all of which may come at once. headers says whether responses tell the client
// what is left.
var rateMakers = []struct {
	name    string
	headers bool
	wrap    func(tb testing.TB, n int) func(http.Handler) http.Handler
}{
	{"baseline=xrate-map", false, func(_ testing.TB, n int) func(http.Handler) http.Handler {
		var mu sync.Mutex
		limiters := map[string]*rate.Limiter{}
		return func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				key := byHeader(r)
				mu.Lock()
				l := limiters[key]
				if l == nil {
					l = rate.NewLimiter(perHour(n), n)
					limiters[key] = l
				}
				mu.Unlock()
				if !l.Allow() {
					http.Error(w, "Too Many Requests", http.StatusTooManyRequests)
					return
				}
				next.ServeHTTP(w, r)
			})
		}
	}},
	{"spillgate", true, func(_ testing.TB, n int) func(http.Handler) http.Handler {
		return middleware.Rate(limiter.NewRate(perHour(n), n, limiter.WithMaxKeys(maxKeys)), middleware.WithKey(byHeaderErr)).Handler
	}},
	{"spillgate,no-headers", false, func(_ testing.TB, n int) func(http.Handler) http.Handler {
		return middleware.Rate(limiter.NewRate(perHour(n), n, limiter.WithMaxKeys(maxKeys)), middleware.WithKey(byHeaderErr), middleware.WithHeaders(middleware.NoHeaders)).Handler
	}},
	{"httprate", true, func(_ testing.TB, n int) func(http.Handler) http.Handler {
		return httprate.LimitBy(n, time.Hour, byHeaderErr)
	}},
	{"ulule", true, func(_ testing.TB, n int) func(http.Handler) http.Handler {
		l := ulule.New(ululemem.NewStore(), ulule.Rate{Period: time.Hour, Limit: int64(n)})
		return ululestd.NewMiddleware(l, ululestd.WithKeyGetter(byHeader)).Handler
	}},
	{"sethvargo", true, func(tb testing.TB, n int) func(http.Handler) http.Handler {
		store, err := memorystore.New(&memorystore.Config{Tokens: uint64(n), Interval: time.Hour})
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() { store.Close(tb.Context()) })
		m, err := httplimit.NewMiddleware(store, byHeaderErr)
		if err != nil {
			tb.Fatal(err)
		}
		return m.Handle
	}},
	{"throttled", true, func(tb testing.TB, n int) func(http.Handler) http.Handler {
		store, err := memstore.NewCtx(1 << 20)
		if err != nil {
			tb.Fatal(err)
		}
		l, err := throttled.NewGCRARateLimiterCtx(store, throttled.RateQuota{MaxRate: throttled.PerHour(n), MaxBurst: n - 1})
		if err != nil {
			tb.Fatal(err)
		}
		// After ten attempts that another goroutine got ahead of it answers 500, and one such answer ends a benchmark.
		l.SetMaxCASAttemptsLimit(math.MaxInt)
		h := throttled.HTTPRateLimiterCtx{RateLimiter: l, VaryBy: &throttled.VaryBy{Headers: []string{keyHeader}}}
		return h.RateLimit
	}},
	{"tollbooth", true, func(_ testing.TB, n int) func(http.Handler) http.Handler {
		l := tollbooth.NewLimiter(float64(perHour(n)), &tblimiter.ExpirableOptions{DefaultExpirationTTL: time.Hour})
		l.SetBurst(n)
		// It keys by address and header; the address is the same in all requests.
		l.SetIPLookups([]string{"RemoteAddr"}).SetHeader(keyHeader, nil)
		return func(next http.Handler) http.Handler { return tollbooth.LimitHandler(l, next) }
	}},
}

// maxKeys is twice the keys that are used at most, as WithMaxKeys advises.
const maxKeys = 2 << 20

func perHour(n int) rate.Limit { return rate.Limit(float64(n) / 3600) }

func TestRate(t *testing.T) {
	for _, m := range rateMakers {
		t.Run(m.name, func(t *testing.T) {
			const n = 5
			h := m.wrap(t, n)(noContent)
			w := newWriter()
			for _, key := range []string{"a", "b"} {
				r := newRequest("/")
				setKey(r, key)
				for i := range n {
					if got := w.serve(h, r); got != http.StatusNoContent {
						t.Fatalf("key %s, request %d of %d: status %d", key, i+1, n, got)
					}
				}
				if got := w.serve(h, r); got != http.StatusTooManyRequests {
					t.Fatalf("key %s, request over the limit: status %d; want 429", key, got)
				}
			}
			found := false
			for name := range w.header {
				for _, prefix := range []string{"X-Ratelimit", "X-Rate-Limit", "Ratelimit"} {
					found = found || len(name) >= len(prefix) && name[:len(prefix)] == prefix
				}
			}
			if found != m.headers {
				t.Errorf("tells the limit: %v; want %v (%v)", found, m.headers, w.header)
			}
		})
	}
}

// BenchmarkRate measures the whole middleware around a handler that does
// nothing.
func BenchmarkRate(b *testing.B) {
	const plenty = 1 << 30
	b.Run("accept/keys=1", func(b *testing.B) {
		for _, m := range rateMakers {
			b.Run(m.name, func(b *testing.B) { serveParallel(b, m.wrap(b, plenty)(noContent), http.StatusNoContent) })
		}
	})
	b.Run("accept/keys=100k", func(b *testing.B) {
		names, order := keys(100_000), zipf(1<<16, 100_000)
		for _, m := range rateMakers {
			b.Run(m.name, func(b *testing.B) {
				serveSerial(b, m.wrap(b, plenty)(noContent), http.StatusNoContent, func(r *http.Request, i int) {
					setKey(r, names[order[i%len(order)]])
				})
			})
		}
	})
	b.Run("reject", func(b *testing.B) {
		for _, m := range rateMakers {
			b.Run(m.name, func(b *testing.B) {
				h := m.wrap(b, 1)(noContent)
				newWriter().serve(h, newRequest("/"))
				serveParallel(b, h, http.StatusTooManyRequests)
			})
		}
	})
	// A key that was never seen, every time: what a flood costs. The keys are
	// made in the loop: subtract the row of the bare handler.
	b.Run("new-key", func(b *testing.B) {
		newKey := func(r *http.Request, i int) { setKey(r, strconv.Itoa(i)) }
		b.Run("baseline=bare", func(b *testing.B) { serveSerial(b, noContent, http.StatusNoContent, newKey) })
		for _, m := range rateMakers {
			b.Run(m.name, func(b *testing.B) {
				serveSerial(b, m.wrap(b, plenty)(noContent), http.StatusNoContent, newKey)
			})
		}
	})
}

// BenchmarkRateMemory gives each limiter a million live keys and reports what
// one of them takes ("B/key", everything that the limiter holds divided by the
// keys) and by how much a full collection lasts longer while they are there
// ("gc-ms"; a limiter that leaves a goroutine behind is paid for by the others).
func BenchmarkRateMemory(b *testing.B) {
	const n = 1 << 20
	collect := func() (ms float64) {
		begun := time.Now()
		runtime.GC()
		return time.Since(begun).Seconds() * 1e3
	}
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	for _, m := range rateMakers {
		b.Run(m.name, func(b *testing.B) {
			var bytes, gc []float64
			for b.Loop() {
				collect()
				idle := collect()
				before := heap()
				h := m.wrap(b, 100)(noContent)
				r, w := newRequest("/"), newWriter()
				for i := range n {
					setKey(r, strconv.Itoa(i))
					if got := w.serve(h, r); got != http.StatusNoContent {
						b.Fatalf("status %d", got)
					}
				}
				collect()
				bytes = append(bytes, float64(heap()-before)/n)
				gc = append(gc, max(0, min(collect(), collect())-idle))
				runtime.KeepAlive(h)
			}
			b.ReportMetric(slices.Min(bytes), "B/key")
			b.ReportMetric(slices.Min(gc), "gc-ms")
			b.ReportMetric(0, "ns/op") // how long it takes to fill says nothing here
		})
	}
}

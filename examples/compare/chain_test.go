package compare

import (
	"bytes"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/failsafe-go/failsafe-go/circuitbreaker"
	"github.com/failsafe-go/failsafe-go/failsafehttp"
	chimw "github.com/go-chi/chi/v5/middleware"
	"github.com/go-chi/httprate"
	"github.com/panjf2000/ants/v2"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/cache"
	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware"
	"github.com/spillgate/spillgate/pool"
)

// chainMakers put all five protections around a handler: rate limit, cache,
// concurrency limit, breaker, pool.
var chainMakers = []middlewareMaker{
	{"spillgate", func(testing.TB) func(http.Handler) http.Handler {
		return func(next http.Handler) http.Handler {
			return middleware.Wrap(next,
				middleware.Rate(limiter.NewRate(1e9, 1<<30), middleware.WithKey(byHeaderErr)),
				middleware.Cache(cache.New(64<<20)),
				middleware.Concurrency(limiter.NewConcurrency(1000)),
				middleware.Breaker(breaker.NewGroup()),
				middleware.Pool(pool.New(pool.WithSlots(1000))),
			)
		}
	}},
	{"chi+httprate+failsafe+map+ants", func(tb testing.TB) func(http.Handler) http.Handler {
		p, err := ants.NewPool(1000)
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(p.Release)
		rate := httprate.LimitBy(1<<30, time.Hour, byHeaderErr)
		throttle := chimw.Throttle(1000)
		b := circuitbreaker.NewBuilder[*http.Response]().WithFailureThresholdRatio(5, 10).Build()
		return func(next http.Handler) http.Handler {
			return rate(mapCache(throttle(failsafehttp.NewHandler(onAnts(p, next), b))))
		}
	}},
	{"chi+httprate+gobreaker+map+ants", func(tb testing.TB) func(http.Handler) http.Handler {
		p, err := ants.NewPool(1000)
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(p.Release)
		rate := httprate.LimitBy(1<<30, time.Hour, byHeaderErr)
		throttle := chimw.Throttle(1000)
		return func(next http.Handler) http.Handler {
			return rate(mapCache(throttle(gobreakerByHand()(onAnts(p, next)))))
		}
	}},
}

// onAnts runs next on a worker of p and waits for it, as people do who put a
// goroutine pool into a server. (A panic of next is lost that way.)
func onAnts(p *ants.Pool, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		done := make(chan struct{})
		if err := p.Submit(func() { defer close(done); next.ServeHTTP(w, r) }); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		<-done
	})
}

// mapCache is the cache that people write: it stores 200 with max-age by URL, in
// a map without a bound, and knows nothing else of RFC 9111.
func mapCache(next http.Handler) http.Handler {
	type entry struct {
		header http.Header
		body   []byte
		until  time.Time
	}
	var mu sync.RWMutex
	entries := map[string]*entry{}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key := r.URL.String()
		mu.RLock()
		e := entries[key]
		mu.RUnlock()
		if e != nil && time.Now().Before(e.until) {
			maps.Copy(w.Header(), e.header)
			_, _ = w.Write(e.body)
			return
		}
		rec := &bodyRecorder{statusRecorder: statusRecorder{ResponseWriter: w, status: http.StatusOK}}
		next.ServeHTTP(rec, r)
		if rec.status == http.StatusOK && strings.Contains(w.Header().Get("Cache-Control"), "max-age=") {
			e := &entry{header: w.Header().Clone(), body: rec.body.Bytes(), until: time.Now().Add(time.Hour)}
			mu.Lock()
			entries[key] = e
			mu.Unlock()
		}
	})
}

type bodyRecorder struct {
	statusRecorder
	body bytes.Buffer
}

func (w *bodyRecorder) Write(p []byte) (int, error) {
	w.body.Write(p)
	return w.ResponseWriter.Write(p)
}

// private answers with a small body that no shared cache may store.
var private = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
	w.Header()["Cache-Control"] = noStore
	_, _ = w.Write(smallBody)
})

var (
	noStore   = []string{"no-store"}
	smallBody = []byte("hello\n")
)

func TestChain(t *testing.T) {
	for _, m := range chainMakers {
		t.Run(m.name, func(t *testing.T) {
			w := newWriter()
			calls := 0
			h := m.wrap(t)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { calls++; private(w, r) }))
			for range 3 {
				if got := w.serve(h, newRequest("/")); got != 200 || w.body != len(smallBody) {
					t.Fatalf("status %d, %d bytes; want 200, %d", got, w.body, len(smallBody))
				}
			}
			if calls != 3 {
				t.Errorf("no-store: %d calls; want 3", calls)
			}

			o := newOrigin(100)
			h = m.wrap(t)(o)
			for range 3 {
				if got := w.serve(h, newRequest("/")); got != 200 || w.body != 100 {
					t.Fatalf("status %d, %d bytes; want 200, 100", got, w.body)
				}
			}
			if o.calls != 1 {
				t.Errorf("cacheable: %d calls; want 1", o.calls)
			}
		})
	}
}

// BenchmarkChain measures a request that passes through all five to the handler
// ("pass") and one that the cache answers ("hit").
func BenchmarkChain(b *testing.B) {
	b.Run("pass/baseline=bare", func(b *testing.B) { serveParallel(b, private, http.StatusOK) })
	for _, m := range chainMakers {
		b.Run("pass/"+m.name, func(b *testing.B) { serveParallel(b, m.wrap(b)(private), http.StatusOK) })
	}
	for _, m := range chainMakers {
		b.Run("hit/"+m.name, func(b *testing.B) {
			h := m.wrap(b)(newOrigin(1 << 10))
			newWriter().serve(h, newRequest("/"))
			serveParallel(b, h, http.StatusOK)
		})
	}
}

// BenchmarkLoopback measures HTTP/1.1 requests on eight connections to a real
// server, the client's work included. A chain and the bare handler take turns,
// in an order that changes, so that both see the same machine: "of-bare" is the
// median over the turns of the chain's throughput divided by the bare handler's.
func BenchmarkLoopback(b *testing.B) {
	const connections, requests = 8, 50 // a turn
	for _, m := range chainMakers {
		b.Run(m.name, func(b *testing.B) {
			var urls [2]string
			for i, h := range []http.Handler{private, m.wrap(b)(private)} {
				srv := httptest.NewServer(h)
				defer srv.Close()
				urls[i] = srv.URL
			}
			tr := &http.Transport{MaxIdleConnsPerHost: connections}
			defer tr.CloseIdleConnections()
			client := &http.Client{Transport: tr}

			turn := func(url string) time.Duration {
				begun := time.Now()
				var wg sync.WaitGroup
				for range connections {
					wg.Go(func() {
						for range requests {
							res, err := client.Get(url)
							if err != nil {
								b.Error(err)
								return
							}
							_, _ = io.Copy(io.Discard, res.Body)
							res.Body.Close()
							if res.StatusCode != 200 {
								b.Errorf("status %d", res.StatusCode)
								return
							}
						}
					})
				}
				wg.Wait()
				return time.Since(begun)
			}
			turn(urls[0])
			turn(urls[1])
			var ratios []float64
			var total time.Duration
			for i := 0; b.Loop(); i++ {
				var took [2]time.Duration
				first := i % 2
				took[first] = turn(urls[first])
				took[1-first] = turn(urls[1-first])
				ratios = append(ratios, took[0].Seconds()/took[1].Seconds())
				total += took[1]
			}
			slices.Sort(ratios)
			b.ReportMetric(ratios[len(ratios)/2], "of-bare")
			b.ReportMetric(float64(total.Nanoseconds())/float64(len(ratios)*connections*requests), "ns/request")
			b.ReportMetric(0, "ns/op") // a turn of both: says nothing
		})
	}
}

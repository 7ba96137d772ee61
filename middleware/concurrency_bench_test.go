package middleware_test

import (
	"bytes"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/cache"
	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware"
)

// BenchmarkRejectPaired measures whole refused requests over loopback, by turns with a handler that only
// writes a 503 of the same length, through a client that costs as little as it can. of-bare is the ratio of
// the medians. Behind a cache, the key may be one whose answer it has seen and does not keep, or one that it has never
// had an answer for: then it prepares to keep one, which others may wait for.
func BenchmarkRejectPaired(b *testing.B) {
	full := limiter.NewConcurrency(1)
	behindCache := func() []middleware.Layer {
		return []middleware.Layer{
			middleware.Cache(cache.New(1<<20, cache.WithOnlyExplicit())),
			middleware.Concurrency(full),
			middleware.Breaker(breaker.NewGroup()),
		}
	}
	for _, s := range []struct {
		name   string
		layers []middleware.Layer
		known  bool
	}{
		{"concurrency", []middleware.Layer{middleware.Concurrency(full)}, false},
		{"concurrency-behind-cache", behindCache(), true},
		{"concurrency-behind-cache-unknown-key", behindCache(), false},
	} {
		b.Run(s.name, func(b *testing.B) {
			wrapped := middleware.Wrap(benchMux(), s.layers...)
			if s.known {
				wrapped.ServeHTTP(httptest.NewRecorder(), benchRequest()) // the cache learns that it is not to be kept
			}
			permit, _ := full.TryAcquire(limiter.Request{})
			defer permit.Release(limiter.Ignored)
			w := httptest.NewRecorder()
			wrapped.ServeHTTP(w, benchRequest())
			body := make([]byte, w.Body.Len())
			askBare := dialRaw(b, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				h := w.Header()
				h.Set("Content-Type", "application/problem+json")
				h.Set("Cache-Control", "no-store")
				h.Set("Retry-After", "1")
				w.WriteHeader(http.StatusServiceUnavailable)
				_, _ = w.Write(body)
			}))
			askWrapped := dialRaw(b, wrapped)
			var bare, ours []time.Duration
			for b.Loop() {
				bare = append(bare, askBare())
				ours = append(ours, askWrapped())
			}
			slices.Sort(bare)
			slices.Sort(ours)
			b.ReportMetric(float64(ours[len(ours)/2])/float64(bare[len(bare)/2]), "of-bare")
		})
	}
}

// dialRaw serves h on loopback and returns a function that asks once and says how long it took.
func dialRaw(b *testing.B, h http.Handler) func() time.Duration {
	s := httptest.NewServer(h)
	b.Cleanup(s.Close)
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close() })
	request, answer := []byte("GET /hello HTTP/1.1\r\nHost: example.com\r\n\r\n"), make([]byte, 4096)
	return func() time.Duration {
		begun := time.Now()
		if _, err := conn.Write(request); err != nil {
			b.Fatal(err)
		}
		n, err := conn.Read(answer) // short enough to come in one piece
		took := time.Since(begun)
		if err != nil || !bytes.HasPrefix(answer[:n], []byte("HTTP/1.1 503")) {
			b.Fatalf("%q, %v", answer[:n], err)
		}
		return took
	}
}

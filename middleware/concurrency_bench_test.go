package middleware_test

import (
	"bytes"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/cache"
	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware"
)

// BenchmarkRejectPaired measures refused requests over loopback, by turns with a handler that only writes a 503 of the
// same length: a burst over eight connections each, which keeps every processor busy, so that what the collector has to do for them
// counts. The client costs as little as it can. of-bare is the median of the ratios over the pairs. Behind a cache, the key may be one whose answer it has seen and does not keep, or one that it has never
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
			sendBare := dialRaw(b, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				h := w.Header()
				h.Set("Content-Type", "application/problem+json")
				h.Set("Cache-Control", "no-store")
				h.Set("Retry-After", "1")
				w.WriteHeader(http.StatusServiceUnavailable)
				_, _ = w.Write(body)
			}))
			sendWrapped := dialRaw(b, wrapped)
			sendBare()
			sendWrapped()
			var ratios []float64
			for b.Loop() {
				x, z := sendBare(), sendWrapped()
				ratios = append(ratios, float64(z)/float64(x))
			}
			slices.Sort(ratios)
			b.ReportMetric(ratios[len(ratios)/2], "of-bare")
		})
	}
}

// dialRaw serves h on loopback and returns a function that sends a burst of requests and says how long it took.
func dialRaw(b *testing.B, h http.Handler) func() time.Duration {
	const burst, conns = 400, 8
	s := httptest.NewServer(h)
	b.Cleanup(s.Close)
	var all []net.Conn
	for range conns {
		conn, err := net.Dial("tcp", s.Listener.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { conn.Close() })
		all = append(all, conn)
	}
	request := []byte("GET /hello HTTP/1.1\r\nHost: example.com\r\n\r\n")
	return func() time.Duration {
		begun := time.Now()
		var wg sync.WaitGroup
		for _, conn := range all {
			wg.Go(func() {
				var answer [4096]byte
				for range burst / conns {
					if _, err := conn.Write(request); err != nil {
						b.Error(err)
						return
					}
					n, err := conn.Read(answer[:]) // short enough to come in one piece
					if err != nil || !bytes.HasPrefix(answer[:n], []byte("HTTP/1.1 503")) {
						b.Errorf("%q, %v", answer[:n], err)
						return
					}
				}
			})
		}
		wg.Wait()
		return time.Since(begun)
	}
}

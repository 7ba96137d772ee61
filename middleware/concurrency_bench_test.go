package middleware_test

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/cache"
	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware"
)

// BenchmarkRejectPaired measures refused requests over loopback, by turns with a handler that only writes a 503 of the
// same length. The bursts keep every processor busy, so that what the collector has to do for them counts, and
// the client costs as little as it can. of-bare is the cost in multiples of that handler's. Behind a cache, the key may be one whose
// answer it has seen and does not keep, or one that it has never had an answer for: then it prepares to keep one, which
// others may wait for.
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
			b.ReportMetric(paired(b, dialRaw(b, bare503(w.Body.Len())), dialRaw(b, wrapped)), "of-bare")
		})
	}
}

// dialRaw serves h on loopback and returns a function that sends a request on one of its connections and reads the 503.
func dialRaw(b *testing.B, h http.Handler) func(conn int) error {
	s := httptest.NewServer(h)
	b.Cleanup(s.Close)
	var conns [pairedConns]net.Conn
	var answers [pairedConns][4096]byte
	for i := range conns {
		conn, err := net.Dial("tcp", s.Listener.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { conn.Close() })
		conns[i] = conn
	}
	request := []byte("GET /hello HTTP/1.1\r\nHost: example.com\r\n\r\n")
	return func(i int) error {
		if _, err := conns[i].Write(request); err != nil {
			return err
		}
		answer := answers[i][:]
		n, err := conns[i].Read(answer) // short enough to come in one piece
		if err == nil && !bytes.HasPrefix(answer[:n], []byte("HTTP/1.1 503")) {
			err = fmt.Errorf("not a refusal: %q", answer[:n])
		}
		return err
	}
}

package middleware_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/cache"
	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware"
	"github.com/spillgate/spillgate/pool"
)

// nullWriter is a ResponseWriter with the methods of net/http's HTTP/1 that keeps nothing.
type nullWriter struct {
	*plainWriter
	wF
	wR
	wH
}

func (n *nullWriter) Header() http.Header         { return n.h }
func (n *nullWriter) Write(b []byte) (int, error) { return len(b), nil }
func (n *nullWriter) WriteHeader(int)             {}

func newNullWriter() *nullWriter {
	return &nullWriter{plainWriter: &plainWriter{make(http.Header, 16)}}
}

var okBody = []byte("ok\n")

func bareHandler(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(okBody) }

// benchStacks are what BenchmarkWrap and the allocation test measure: no layer refuses.
func benchStacks() []struct {
	name   string
	layers []middleware.Layer
} {
	rl := func() middleware.Layer { return middleware.Rate(limiter.NewRate(rate.Inf, 1<<30)) }
	limited := func() middleware.Layer { return middleware.Rate(limiter.NewRate(1e9, 1<<30)) }
	ca := func() middleware.Layer { return middleware.Cache(cache.New(1 << 20)) }
	co := func() middleware.Layer { return middleware.Concurrency(limiter.NewConcurrency(1000)) }
	ad := func() middleware.Layer { return middleware.Concurrency(limiter.NewAdaptive()) }
	br := func() middleware.Layer { return middleware.Breaker(breaker.NewGroup()) }
	po := func() middleware.Layer { return middleware.Pool(pool.New(pool.WithSlots(1000))) }
	type stack = struct {
		name   string
		layers []middleware.Layer
	}
	return []stack{
		{"rate", []middleware.Layer{limited()}},
		{"rate-unlimited", []middleware.Layer{rl()}},
		{"cache", []middleware.Layer{ca()}},
		{"concurrency", []middleware.Layer{co()}},
		{"adaptive", []middleware.Layer{ad()}},
		{"breaker", []middleware.Layer{br()}},
		{"pool", []middleware.Layer{po()}},
		{"all-five", []middleware.Layer{limited(), ca(), co(), br(), po()}},
		{"all-five-adaptive", []middleware.Layer{limited(), ca(), ad(), br(), po()}},
		{"defaults", nil},
	}
}

func benchMux() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /hello", bareHandler)
	return mux
}

func benchRequest() *http.Request {
	r := httptest.NewRequest("GET", "/hello", nil)
	r.RemoteAddr = "192.0.2.1:4711"
	return r
}

// BenchmarkWrap measures what a request costs in process: the bare mux, each layer around it, and
// all five. Nothing is refused, and the handler's answer is not cacheable.
func BenchmarkWrap(b *testing.B) {
	run := func(b *testing.B, h http.Handler) {
		b.Run("serial", func(b *testing.B) {
			b.ReportAllocs()
			w, r := newNullWriter(), benchRequest()
			for b.Loop() {
				clear(w.h)
				r.Pattern = "" // as it comes from the server
				h.ServeHTTP(w, r)
			}
		})
		b.Run("parallel", func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				w, r := newNullWriter(), benchRequest()
				for pb.Next() {
					clear(w.h)
					r.Pattern = ""
					h.ServeHTTP(w, r)
				}
			})
		})
	}
	b.Run("bare", func(b *testing.B) { run(b, benchMux()) })
	for _, s := range benchStacks() {
		b.Run(s.name, func(b *testing.B) { run(b, middleware.Wrap(benchMux(), s.layers...)) })
	}
}

// BenchmarkReject measures refusals, beside a handler that only writes a 503 of the same length.
func BenchmarkReject(b *testing.B) {
	run := func(b *testing.B, h http.Handler) {
		b.ReportAllocs()
		w, r := newNullWriter(), benchRequest()
		for b.Loop() {
			clear(w.h)
			h.ServeHTTP(w, r)
		}
	}
	b.Run("bare-503", func(b *testing.B) { run(b, bare503(200)) })
	rl := limiter.NewRate(rate.Every(time.Minute), 1)
	rl.Allow("192.0.2.1")
	b.Run("rate", func(b *testing.B) { run(b, middleware.Wrap(benchMux(), middleware.Rate(rl))) })
	full := limiter.NewConcurrency(1)
	full.TryAcquire(limiter.Request{})
	b.Run("concurrency", func(b *testing.B) { run(b, middleware.Wrap(benchMux(), middleware.Concurrency(full))) })
	b.Run("concurrency-behind-cache-unknown-key", func(b *testing.B) {
		run(b, middleware.Wrap(benchMux(), middleware.Cache(cache.New(1<<20, cache.WithOnlyExplicit())), middleware.Concurrency(full)))
	})
	g := breaker.NewGroup()
	g.Get("GET /hello").ForceOpen()
	b.Run("breaker", func(b *testing.B) { run(b, middleware.Wrap(benchMux(), middleware.Breaker(g))) })
}

// bare503 writes a 503 with n bytes and the fields of a refusal, and does nothing else.
func bare503(n int) http.Handler {
	body := make([]byte, n)
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		h := w.Header()
		h.Set("Content-Type", "application/problem+json")
		h.Set("Cache-Control", "no-store")
		h.Set("Retry-After", "1")
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = w.Write(body)
	})
}

// BenchmarkLoopback measures whole requests over a keep-alive connection on loopback.
func BenchmarkLoopback(b *testing.B) {
	run := func(b *testing.B, h http.Handler) {
		s := httptest.NewServer(h)
		defer s.Close()
		c := s.Client()
		b.ReportAllocs()
		for b.Loop() {
			res, err := c.Get(s.URL + "/hello")
			if err != nil {
				b.Fatal(err)
			}
			res.Body.Close()
		}
	}
	b.Run("bare", func(b *testing.B) { run(b, benchMux()) })
	for _, s := range benchStacks() {
		if s.name == "all-five" || s.name == "defaults" {
			b.Run(s.name, func(b *testing.B) { run(b, middleware.Wrap(benchMux(), s.layers...)) })
		}
	}
}

// BenchmarkLoopbackPaired sends requests to the bare server and to the wrapped server in turn, a burst over
// eight keep-alive connections each, so that what the machine does meanwhile meets both, and reports the throughput of the wrapped
// one as a share of the bare one's: the median over the pairs. Client and server share the processors, so what
// the client does with a response counts too: the row two-fields is the bare mux with the fields that a rate limit adds, and
// all-five-without-fields are all layers without these. control is the bare mux again.
func BenchmarkLoopbackPaired(b *testing.B) {
	fields := benchMux()
	fieldsOnly := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h["Ratelimit"], h["Ratelimit-Policy"] = benchLimit, benchPolicy
		fields.ServeHTTP(w, r)
	})
	type row struct {
		name string
		h    http.Handler
	}
	rows := []row{{"control", benchMux()}, {"two-fields", fieldsOnly}}
	for _, s := range benchStacks() {
		switch s.name {
		case "all-five":
			rows = append(rows, row{s.name, middleware.Wrap(benchMux(), s.layers...)})
			s.layers[0] = middleware.Rate( // in place of the one that writes the fields
				limiter.NewRate(1e9, 1<<30), middleware.WithHeaders(middleware.NoHeaders))
			s.name = "all-five-without-fields"
		case "defaults":
		default:
			continue
		}
		rows = append(rows, row{s.name, middleware.Wrap(benchMux(), s.layers...)})
	}
	for _, row := range rows {
		b.Run(row.name, func(b *testing.B) {
			bare, wrapped := httptest.NewServer(benchMux()), httptest.NewServer(row.h)
			defer bare.Close()
			defer wrapped.Close()
			c := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: pairedConns}}
			defer c.CloseIdleConnections()
			get := func(url string) func(int) error {
				return func(int) error {
					res, err := c.Get(url + "/hello")
					if err != nil {
						return err
					}
					_, _ = io.Copy(io.Discard, res.Body) // the connection is used again
					return res.Body.Close()
				}
			}
			b.ReportMetric(1/paired(b, get(bare.URL), get(wrapped.URL)), "of-bare")
		})
	}
}

// A burst of paired benchmarks.
const pairedBurst, pairedConns = 400, 8

// paired has bare and other send bursts by turns, so that what the machine does meanwhile meets both, each as often first as second, and returns how long
// the other took in multiples of bare: the median over the pairs. Each sends one request on the connection of a number.
func paired(b *testing.B, bare, other func(conn int) error) float64 {
	burst := func(send func(conn int) error) time.Duration {
		begun := time.Now()
		var wg sync.WaitGroup
		for conn := range pairedConns {
			wg.Go(func() {
				for range pairedBurst / pairedConns {
					if err := send(conn); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		return time.Since(begun)
	}
	burst(bare)
	burst(other)
	var ratios []float64
	for b.Loop() {
		var x, z time.Duration
		if len(ratios)%2 == 0 {
			x, z = burst(bare), burst(other)
		} else { // what the first leaves behind, the second has to clean up
			z, x = burst(other), burst(bare)
		}
		ratios = append(ratios, float64(z)/float64(x))
	}
	slices.Sort(ratios)
	return ratios[len(ratios)/2]
}

// What a rate limit of the benchmark adds to a response.
var benchLimit, benchPolicy = []string{`"default";r=1073741823;t=2`}, []string{`"default";q=1073741824;w=2`}

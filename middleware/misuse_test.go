package middleware_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/cache"
	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware"
	"github.com/spillgate/spillgate/pool"
	"github.com/spillgate/spillgate/pool/jobs"
)

// What is wrong in the source panics at construction, naming the package, the argument and what to do.
func TestMisusePanicsWithTheRemedy(t *testing.T) {
	l := middleware.Concurrency(limiter.NewConcurrency(1))
	ok := http.NotFoundHandler()
	for _, c := range []struct {
		name string
		do   func()
		want []string
	}{
		{"nil limiter.Rate", func() { middleware.Rate(nil) }, []string{"middleware: Rate:", "limiter.NewRate"}},
		{"nil option of Rate", func() { middleware.Rate(limiter.NewRate(1, 1), nil) }, []string{"middleware: Rate: option 0 is nil", "leave it out"}},
		{"nil option of Concurrency", func() {
			middleware.Concurrency(limiter.NewConcurrency(1), middleware.WithTrace(nil), nil)
		}, []string{"middleware: Concurrency: option 1 is nil", "leave it out"}},
		{"nil option of Defaults", func() { middleware.Defaults(nil) }, []string{"middleware: Defaults: option 0 is nil", "leave it out"}},
		{"nil option of Breaker", func() { middleware.Breaker(breaker.NewGroup(), nil) }, []string{"middleware: Breaker: option 0 is nil", "leave it out"}},
		{"nil option of Cache", func() { middleware.Cache(cache.New(1<<20), nil) }, []string{"middleware: Cache: option 0 is nil", "leave it out"}},
		{"nil option of a route's cache", func() { middleware.WithRoute(nil) }, []string{"middleware: WithRoute: option 0 is nil", "leave it out"}},
		{"nil option of Pool", func() { middleware.Pool(pool.New(), nil) }, []string{"middleware: Pool: option 0 is nil", "leave it out"}},
		{"nil option of BufferBody", func() { middleware.BufferBody(1, nil) }, []string{"middleware: BufferBody: option 0 is nil", "leave it out"}},
		{"no bytes for BufferBody", func() { middleware.BufferBody(0) }, []string{"middleware: BufferBody(0)", "above 0"}},
		{"nil option of Async", func() { middleware.Async(new(jobs.Local), "report", nil) }, []string{"middleware: Async: option 0 is nil", "leave it out"}},
		{"nil limiter.Concurrency", func() { middleware.Concurrency(nil) }, []string{"middleware: Concurrency:", "limiter.NewConcurrency"}},
		{"nil breaker.Group", func() { middleware.Breaker(nil) }, []string{"middleware: Breaker:", "breaker.NewGroup"}},
		{"nil cache", func() { middleware.Cache(nil) }, []string{"middleware: Cache:", "cache.New"}},
		{"nil pool", func() { middleware.Pool(nil) }, []string{"middleware: Pool:", "pool.New"}},
		{"nil layer in Wrap", func() { middleware.Wrap(ok, l, nil) }, []string{"layer 1 is nil", "leave it out"}},
		{"nil layer in For", func() { middleware.For("/", nil) }, []string{"middleware: For:", "layer 0 is nil"}},
		{"no layer in For", func() { middleware.For("/") }, []string{"middleware: For: no layers"}},
		{"bad pattern", func() { middleware.For("GET  //x{", l) }, []string{"middleware: For: pattern", "POST /report"}},
		{"pattern without a slash", func() { middleware.For("report", l) }, []string{"middleware: For: pattern", "report"}},
		{"a layer twice", func() { middleware.New(l, l) }, []string{"layers 0 and 1 are the same", "once"}},
		{"two caches for all", func() {
			middleware.Wrap(ok, middleware.Cache(cache.New(1<<20)), middleware.Cache(cache.New(1<<20)))
		}, []string{"two cache layers", "For"}},
		{"a cache beside that of Defaults", func() {
			middleware.New(append(middleware.Defaults(), middleware.Cache(cache.New(1<<20)))...)
		}, []string{"middleware: New: two cache layers", "For"}},
		{"nil in Chain", func() { middleware.Chain(l.Handler, nil) }, []string{"middleware: Chain: argument 1 is nil"}},
		{"nil reject", func() { middleware.WithReject(nil) }, []string{"middleware: WithReject: f is nil"}},
		{"nil skip", func() { middleware.WithSkip(nil) }, []string{"middleware: WithSkip: f is nil"}},
		{"nil key", func() { middleware.WithKey(nil) }, []string{"middleware: WithKey: f is nil"}},
		{"nil cost", func() { middleware.WithCost(nil) }, []string{"middleware: WithCost: f is nil"}},
		{"nil refund", func() { middleware.WithRefund(nil) }, []string{"middleware: WithRefund: f is nil"}},
		{"unknown headers", func() { middleware.WithHeaders(8) }, []string{"middleware: WithHeaders: 8", "DraftHeaders"}},
		{"negative spread", func() { middleware.WithRetrySpread(-time.Second) }, []string{"middleware: WithRetrySpread: -1s", "0 or more"}},
		{"nil priority", func() { middleware.WithPriority(nil) }, []string{"middleware: WithPriority: f is nil"}},
		{"nil weight", func() { middleware.WithWeight(nil) }, []string{"middleware: WithWeight: f is nil"}},
		{"nil client", func() { middleware.WithClient(nil) }, []string{"middleware: WithClient: f is nil"}},
		{"nil long-lived", func() { middleware.WithLongLived(nil) }, []string{"middleware: WithLongLived: f is nil"}},
		{"nil breaker key", func() { middleware.WithBreakerKey(nil) }, []string{"middleware: WithBreakerKey: f is nil"}},
		{"nil breaker client", func() { middleware.WithBreakerClient(nil) }, []string{"middleware: WithBreakerClient: f is nil"}},
		{"nil classify", func() { middleware.WithClassify(nil) }, []string{"middleware: WithClassify: f is nil"}},
		{"nil fallback", func() { middleware.WithFallback(nil) }, []string{"middleware: WithFallback: h is nil"}},
		{"nil task func", func() { middleware.WithTaskFunc(nil) }, []string{"middleware: WithTaskFunc: f is nil"}},
		{"nil client source", func() { middleware.KeyClient(nil) }, []string{"middleware: KeyClient: src is nil"}},
		{"empty header name", func() { middleware.KeyHeader("") }, []string{"middleware: KeyHeader: name is empty"}},
		{"header name with its colon", func() { middleware.KeyHeader("X-Api-Key:") }, []string{`middleware: KeyHeader: name is "X-Api-Key:"`, "a header field name"}},
		{"two cookie names", func() { middleware.KeyCookie("session; id") }, []string{`middleware: KeyCookie: name is "session; id"`, "a cookie name"}},
		{"empty cookie name", func() { middleware.KeyCookie("") }, []string{"middleware: KeyCookie: name is empty"}},
		{"join of nothing", func() { middleware.KeyJoin() }, []string{"middleware: KeyJoin: no functions"}},
		{"join of nil", func() { middleware.KeyJoin(middleware.KeyRoute(), nil) }, []string{"middleware: KeyJoin: argument 1 is nil"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			defer func() {
				got := fmt.Sprint(recover())
				for _, w := range c.want {
					if !strings.Contains(got, w) {
						t.Errorf("panic %q, want it to say %q", got, w)
					}
				}
				if !strings.HasPrefix(got, "middleware: ") {
					t.Errorf("panic %q does not begin with the package", got)
				}
			}()
			c.do()
		})
	}
}

// A nil handler is http.DefaultServeMux, as in package net/http.
func TestNilHandlerIsDefaultServeMux(t *testing.T) {
	saved := http.DefaultServeMux
	t.Cleanup(func() { http.DefaultServeMux = saved })
	http.DefaultServeMux = http.NewServeMux()
	http.DefaultServeMux.HandleFunc("GET /spillgate-test-of-nil", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(299) })
	l := middleware.Concurrency(limiter.NewConcurrency(1))
	for name, h := range map[string]http.Handler{
		"Wrap":    middleware.Wrap(nil),
		"Handler": l.Handler(nil),
		"Chain":   middleware.Chain(l.Handler)(nil),
		"empty":   middleware.Chain()(nil),
		"For":     middleware.For("/", l).Handler(nil),
		"option":  middleware.WithSkip(func(*http.Request) bool { return true }).Handler(nil),
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "/spillgate-test-of-nil", nil))
		if w.Code != 299 {
			t.Errorf("%s: status %d, want that of the default mux", name, w.Code)
		}
	}
}

// The same layer may wrap several handlers and stand in several For; they share what is behind it.
func TestLayerIsShared(t *testing.T) {
	l := limiter.NewRate(0, 3)
	layer := middleware.Rate(l)
	h := middleware.Wrap(http.NotFoundHandler(), middleware.For("/a", layer), middleware.For("/b", layer))
	var codes []int
	for _, path := range []string{"/a", "/b", "/a", "/b", "/c"} {
		codes = append(codes, get(h, "GET", path).StatusCode)
	}
	if got, want := fmt.Sprint(codes), "[404 404 404 429 404]"; got != want {
		t.Errorf("statuses %s, want %s: one quota for both", got, want)
	}
}

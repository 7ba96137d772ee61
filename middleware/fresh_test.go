package middleware_test

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/cache"
	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware"
)

// Layers beside each other share a reading of the clock. One that a layer further in has made before somebody else's code ran, which then
// panicked, is not that of the layers outside.
func TestAPanicOfForeignCodeTakesItsTime(t *testing.T) {
	const took = 5 * time.Second
	// Each of its layers has read the clock when it has let the request pass, at the latest when it ends.
	inside := middleware.Concurrency(limiter.NewAdaptive()).Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	foreign := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		inside.ServeHTTP(w, r)
		time.Sleep(took) // in a synctest bubble
		if !strings.HasPrefix(r.URL.Path, "/well") {
			panic("late")
		}
	})
	ask := func(h http.Handler, path, client string) {
		defer func() { _ = recover() }()
		r := httptest.NewRequest("GET", path, nil)
		r.Header.Set("Client", client)
		h.ServeHTTP(httptest.NewRecorder(), r)
	}
	for _, path := range []string{"/well", "/panic"} {
		t.Run("breaker"+path, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := breaker.NewGroup(breaker.WithSlowCalls(time.Second, 0.5))
				ask(middleware.Breaker(g).Handler(foreign), path, "")
				if n := g.Get("").Stats().Slow; n != 1 {
					t.Errorf("%d slow calls, want 1", n)
				}
			})
		})
		t.Run("refund"+path, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var got time.Duration
				ask(middleware.Rate(limiter.NewRate(rate.Inf, 1), middleware.WithRefund(func(_ *http.Request, res middleware.Result) int {
					got = res.Duration
					return 0
				})).Handler(foreign), path, "")
				if got != took {
					t.Errorf("the refund is told of %v, want %v", got, took)
				}
			})
		})
		t.Run("trace"+path, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var got time.Duration
				ask(middleware.New(middleware.WithTrace(&middleware.Trace{Done: func(_ *http.Request, res middleware.Result) { got = res.Duration }})).Handler(foreign), path, "")
				if got != took {
					t.Errorf("the trace is told of %v, want %v", got, took)
				}
			})
		})
		t.Run("share of a client"+path, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := limiter.NewConcurrency(1, limiter.WithQueue(10, time.Hour))
				var mu sync.Mutex
				var order []string
				h := middleware.Concurrency(l, middleware.WithClient(func(r *http.Request) string { return r.Header.Get("Client") })).Handler(
					http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						mu.Lock()
						order = append(order, r.Header.Get("Client"))
						mu.Unlock()
						if r.Header.Get("Client") == "long" {
							foreign.ServeHTTP(w, r)
						}
					}))
				first, _ := l.TryAcquire(limiter.Request{})
				var wg sync.WaitGroup
				for _, client := range []string{"long", "long", "brief", "brief", "brief"} {
					wg.Go(func() { ask(h, path, client) })
					synctest.Wait()
				}
				first.Release(limiter.Success)
				wg.Wait()
				if !slices.Equal(order, []string{"long", "brief", "brief", "brief", "long"}) {
					t.Errorf("served %v, want as much of the time for each", order)
				}
			})
		})
	}
}

// What the user's functions take to tell who asks is over before the permit is there: it is no work to the limit.
func TestFunctionsOfTheUsersAreNoWork(t *testing.T) {
	const took, work = 50 * time.Millisecond, 10 * time.Millisecond
	slow := func() { time.Sleep(took) } // in a synctest bubble
	client := middleware.WithClient(func(*http.Request) string { slow(); return "" })
	skip := middleware.WithSkip(func(*http.Request) bool { slow(); return false })
	trace := middleware.WithTrace(&middleware.Trace{Done: func(*http.Request, middleware.Result) {}})
	for _, test := range []struct {
		name   string
		around []middleware.Layer
		opts   []middleware.ConcurrencyOption
	}{
		{"client", nil, []middleware.ConcurrencyOption{client}},
		{"priority", nil, []middleware.ConcurrencyOption{middleware.WithPriority(func(*http.Request) int { slow(); return 0 })}},
		{"weight", nil, []middleware.ConcurrencyOption{middleware.WithWeight(func(*http.Request) int { slow(); return 1 })}},
		{"client, inside a cache", []middleware.Layer{middleware.Cache(cache.New(1 << 20))}, []middleware.ConcurrencyOption{client}},
		{"skip of the layer", []middleware.Layer{trace}, []middleware.ConcurrencyOption{skip}},
		{"skip of the layer, inside a cache", []middleware.Layer{middleware.Cache(cache.New(1 << 20))}, []middleware.ConcurrencyOption{skip}},
		{"skip of the stack", []middleware.Layer{trace, skip}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := limiter.NewAdaptive()
				h := middleware.Wrap(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(work) }), // in a synctest bubble
					append(test.around, middleware.Concurrency(l, test.opts...))...)
				for range 200 {
					h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
				}
				if s := l.Stats(); s.Success != 200 || s.Latency != work {
					t.Errorf("%d successes took %v, want %v", s.Success, s.Latency, work)
				}
			})
		})
	}
}

package middleware_test

import (
	"fmt"
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
	"github.com/spillgate/spillgate/pool"
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
	type layers []middleware.Layer
	trace := middleware.WithTrace(&middleware.Trace{Done: func(*http.Request, middleware.Result) {}})
	cached := func(opts ...cache.Option) middleware.Layer { return middleware.Cache(cache.New(1<<20, opts...)) }
	pass := cache.WithBypass(func(*http.Request) bool { return true })
	for _, test := range []struct {
		name   string
		around layers
		opts   []middleware.ConcurrencyOption
	}{
		{"client", nil, []middleware.ConcurrencyOption{client}},
		{"priority", nil, []middleware.ConcurrencyOption{middleware.WithPriority(func(*http.Request) int { slow(); return 0 })}},
		{"weight", nil, []middleware.ConcurrencyOption{middleware.WithWeight(func(*http.Request) int { slow(); return 1 })}},
		{"client, inside a cache", layers{cached()}, []middleware.ConcurrencyOption{client}},
		{"skip of the layer", layers{trace}, []middleware.ConcurrencyOption{skip}},
		{"skip of the layer, inside a cache", layers{cached()}, []middleware.ConcurrencyOption{skip}},
		{"skip of the stack", layers{trace, skip}, nil},
		{"skip of BufferBody", layers{trace, middleware.BufferBody(1, skip)}, nil},
		{"skip of BufferBody, inside a cache", layers{cached(), middleware.BufferBody(1, skip)}, nil},
		{"bypass of a cache", layers{cached(cache.WithBypass(func(*http.Request) bool { slow(); return false }))}, nil},
		{"bypass of a cache, passed by", layers{trace, cached(cache.WithBypass(func(*http.Request) bool { slow(); return true }))}, nil},
		{"key of a cache", layers{trace, cached(cache.WithKey(func(r *http.Request) string { slow(); return r.URL.Path }))}, nil},
		{"trace of a cache, passed by", layers{trace, cached(cache.WithTrace(cache.Trace{Served: func(*http.Request, cache.Result) { slow() }}), pass)}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := limiter.NewAdaptive()
				h := middleware.Wrap(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(work) }), // in a synctest bubble
					append(test.around, middleware.Concurrency(l, test.opts...))...)
				for i := range 200 {
					h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest([]string{"GET", "POST"}[i%2], fmt.Sprint("/", i), nil))
				}
				if s := l.Stats(); s.Success != 200 || s.Latency != work {
					t.Errorf("%d successes took %v, want %v", s.Success, s.Latency, work)
				}
			})
		})
	}
}

// What a refused request has waited, and what a function of the user's took to answer it, is told to the trace outside: in its
// log such a request seemed to have been refused at once.
func TestARefusalTakesItsTime(t *testing.T) {
	const bound = time.Second
	for _, test := range []struct {
		name   string
		layers func() []middleware.Layer
		want   time.Duration
	}{
		{"in the line of a limit", func() []middleware.Layer {
			return []middleware.Layer{middleware.Concurrency(limiter.NewConcurrency(1, limiter.WithQueue(1, bound)))}
		}, bound},
		{"in the line of a pool", func() []middleware.Layer {
			return []middleware.Layer{middleware.Pool(pool.New(pool.WithSlots(1), pool.WithQueue(1, bound)))}
		}, bound},
		{"in a function of the user's", func() []middleware.Layer {
			return []middleware.Layer{middleware.Concurrency(limiter.NewConcurrency(1)),
				middleware.WithReject(func(w http.ResponseWriter, _ *http.Request, x *middleware.Rejection) {
					time.Sleep(bound) // in a synctest bubble
					w.WriteHeader(x.Status)
				})}
		}, bound},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var took time.Duration
				trace := middleware.WithTrace(&middleware.Trace{Done: func(_ *http.Request, x middleware.Result) {
					if x.Shed != "" {
						took = x.Duration
					}
				}})
				h := middleware.Wrap(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(3 * bound) }), // in a synctest bubble
					append(test.layers(), trace)...)
				var first sync.WaitGroup
				first.Go(func() { h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil)) })
				synctest.Wait()
				h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
				first.Wait()
				if took < test.want || took > test.want+10*time.Millisecond {
					t.Errorf("the refusal took %v, want %v", took, test.want)
				}
			})
		})
	}
}

// What a function of the user's takes to say what to ask for is no wait for it, nor is the handler of a pool slow for it.
func TestFunctionsOfTheUsersAreNoWait(t *testing.T) {
	const took = 50 * time.Millisecond
	slow := func() { time.Sleep(took) } // in a synctest bubble
	for _, test := range []struct {
		name  string
		layer func() middleware.Layer
	}{
		{"limit", func() middleware.Layer {
			return middleware.Concurrency(limiter.NewConcurrency(1), middleware.WithClient(func(*http.Request) string { slow(); return "" }))
		}},
		{"pool", func() middleware.Layer {
			return middleware.Pool(pool.New(), middleware.WithTaskFunc(func(*http.Request) []pool.TaskOption { slow(); return nil }))
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var waits []time.Duration
				trace := middleware.WithTrace(&middleware.Trace{Admitted: func(_ *http.Request, _ string, waited time.Duration) { waits = append(waits, waited) }})
				g := breaker.NewGroup(breaker.WithSlowCalls(took, 1))
				h := middleware.Wrap(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), test.layer(), middleware.Breaker(g), trace)
				h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
				if !slices.Equal(waits, []time.Duration{0}) {
					t.Errorf("it has waited for %v, want 0", waits)
				}
				if s := g.Get("").Stats(); s.Slow != 0 || s.Successes != 1 {
					t.Errorf("%d slow calls of %d, want none of 1", s.Slow, s.Successes)
				}
			})
		})
	}
}

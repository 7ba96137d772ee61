package outbound_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware/outbound"
)

func TestLimitRateWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := outbound.New(world{"a.test": always(200), "b.test": always(200)},
			outbound.Limit(outbound.WithRate(limiter.NewRate(rate.Every(time.Second), 1))))
		began := time.Now()
		for range 3 {
			get(t, rt, "http://a.test/")
		}
		if d := time.Since(began); d < 1990*time.Millisecond || d > 2010*time.Millisecond {
			t.Errorf("three calls at one a second took %v, want 2 s", d)
		}
		began = time.Now()
		get(t, rt, "http://b.test/")
		if d := time.Since(began); d != 0 {
			t.Errorf("another host waited %v", d)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		body := &closing{Reader: strings.NewReader("x")}
		began = time.Now()
		_, err := do(rt, request(ctx, "POST", "http://a.test/", body))
		if _, ok := errors.AsType[*limiter.Error](err); !ok || time.Since(began) != 0 || !body.closed.Load() {
			t.Errorf("would miss the deadline: %v after %v, body closed %v", err, time.Since(began), body.closed.Load())
		}
		if n := rt.Stats().Limited; n != 1 {
			t.Errorf("%d counted", n)
		}
	})
}

// A limit whose store is down holds us back as any other does: it is no failure of the host, and no retry helps.
func TestLimitThatIsRefusedByItsStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int64
		limit := outbound.Limit(outbound.WithRate(limiter.NewRate(rate.Inf, 0,
			limiter.WithStore(brokenStore{}), limiter.WithStoreFailure(limiter.FailClosed))))
		g := breaker.NewGroup(breaker.WithConsecutiveFailures(1))
		hosts := outbound.Breaker(g).RoundTripper(limit.RoundTripper(world{"a.test": counted(&calls, always(200))}))
		rt := outbound.New(hosts, outbound.Retry())
		for range 10 {
			if _, err := get(t, rt, "http://a.test/"); !errors.Is(err, limiter.ErrStoreFailed) {
				t.Errorf("error %v", err)
			}
		}
		if s, b := rt.Stats(), g.Get("a.test").Stats(); s.Retries != 0 || s.RetriesDenied != 0 || b.Failures != 0 || calls.Load() != 0 {
			t.Errorf("%d retries, %d denied, %d failures of the host, %d calls; want none", s.Retries, s.RetriesDenied, b.Failures, calls.Load())
		}
	})
}

type brokenStore struct{}

func (brokenStore) Take(context.Context, limiter.StoreRequest, []limiter.PolicyState) (bool, error) {
	return false, errCut
}

// limitOutside is whether a Limit for a.test has a Balance around it, which then tells it how a call went.
var limitOutside = map[string]bool{"alone": false, "with Balance": true}

// limitBelow returns the layers of a client whose limit for a.test is l.
func limitBelow(t *testing.T, balanced bool, l *limiter.Concurrency) (layers []outbound.Layer) {
	if balanced {
		layers = append(layers, outbound.Balance(newSet(t, urls("http://a.test"))))
	}
	return append(layers, outbound.Limit(outbound.WithConcurrency(func() *limiter.Concurrency { return l })))
}

func TestLimitConcurrencyHoldsUntilTheBodyIsOver(t *testing.T) {
	for name, balanced := range limitOutside {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var calls atomic.Int64
				rt := outbound.New(world{"a.test": counted(&calls, always(200))}, limitBelow(t, balanced, limiter.NewConcurrency(1))...)
				resp, err := rt.RoundTrip(request(t.Context(), "GET", "http://a.test/", nil))
				if err != nil {
					t.Fatal(err)
				}
				if _, err := get(t, rt, "http://a.test/"); !errors.Is(err, limiter.ErrSaturated) {
					t.Errorf("second call during the body of the first: %v", err)
				}
				io.ReadAll(resp.Body)
				if status, err := get(t, rt, "http://a.test/"); status != 200 {
					t.Errorf("after the body: %v", err)
				}
				resp.Body.Close()
				for range 3 {
					get(t, rt, "http://a.test/")
				}
				if calls.Load() != 5 {
					t.Errorf("%d calls", calls.Load())
				}
			})
		})
	}
}

// No lock is held while the function of WithConcurrency runs: it may call out itself, and may take its time.
func TestLimitFreshMayCallOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rt http.RoundTripper
		var nested atomic.Bool
		var made atomic.Int64
		rt = outbound.New(world{"a.test": always(200), "config.test": always(200)},
			outbound.Limit(outbound.WithConcurrency(func() *limiter.Concurrency {
				made.Add(1)
				if nested.CompareAndSwap(false, true) {
					if status, err := get(t, rt, "http://config.test/"); status != 200 {
						t.Error(err)
					}
				}
				return limiter.NewConcurrency(1)
			})))
		for range 2 {
			if status, err := get(t, rt, "http://a.test/"); status != 200 {
				t.Error(err)
			}
		}
		if made.Load() != 2 {
			t.Errorf("%d limiters made for two hosts", made.Load())
		}
	})
}

func TestLimitHasOneLimiterForAHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := outbound.New(world{"a.test": sleepy(time.Second, 200)},
			outbound.Limit(outbound.WithConcurrency(func() *limiter.Concurrency {
				time.Sleep(time.Millisecond) // in a synctest bubble
				return limiter.NewConcurrency(1)
			})))
		var passed atomic.Int64
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() {
				if _, err := get(t, rt, "http://a.test/"); err == nil {
					passed.Add(1)
				}
			})
		}
		all.Wait()
		if n := passed.Load(); n != 1 {
			t.Errorf("%d of 10 calls at once passed a limit of 1", n)
		}
	})
}

// Who can choose the hosts that are called, by a redirect, must not be able to choose our memory.
func TestLongKeysAreKeptShort(t *testing.T) {
	var fresh atomic.Int64
	rt := outbound.New(world{}, outbound.Retry(outbound.WithBackoff(0, 0)), outbound.Hedge(), outbound.Breaker(nil),
		outbound.Limit(outbound.WithConcurrency(func() *limiter.Concurrency {
			fresh.Add(1)
			return limiter.NewConcurrency(1)
		})))
	long := strings.Repeat("a", 1<<18)
	used := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := used()
	const keys = 20
	for range 2 {
		for i := range keys {
			get(t, rt, fmt.Sprintf("http://%s%d.test/", long, i))
		}
	}
	if n := (used() - before) / keys; n > 100<<10 {
		t.Errorf("%d bytes are kept for a key", n)
	}
	if n := fresh.Load(); n != keys {
		t.Errorf("%d limiters for %d keys", n, keys)
	}
	runtime.KeepAlive(rt)
}

func TestLimitFreshThatReturnsNilPanicsWithTheRemedy(t *testing.T) {
	rt := outbound.New(world{}, outbound.Limit(outbound.WithConcurrency(func() *limiter.Concurrency { return nil })))
	defer func() {
		if v := fmt.Sprint(recover()); !strings.Contains(v, "outbound: WithConcurrency") {
			t.Errorf("panicked with %s", v)
		}
	}()
	get(t, rt, "http://a.test/")
}

// A function of the user's that panics while a try waits for its token leaves no permit held, and is no failure of the endpoint, which was sent nothing.
func TestLimitHoldsNoPermitWhereTheRatePanics(t *testing.T) {
	for name, balanced := range limitOutside {
		t.Run(name, func(t *testing.T) {
			l := limiter.NewConcurrency(1)
			r := limiter.NewRate(0, 1, limiter.WithRateTrace(limiter.RateTrace{Rejected: func(string, limiter.Decision) { panic("boom") }}))
			layers := []outbound.Layer{outbound.Limit(outbound.WithRate(r), outbound.WithConcurrency(func() *limiter.Concurrency { return l }))}
			set := newSet(t, urls("http://a.test"))
			if balanced {
				layers = append(layers, outbound.Balance(set))
			}
			rt := outbound.New(world{"a.test": always(200)}, layers...)
			get(t, rt, "http://a.test/")
			booms(t, rt)
			if n := l.Stats().InFlight; n != 0 {
				t.Errorf("%d permits are held", n)
			}
			if e := set.Stats().Endpoints[0]; e.Breaker.Failures != 0 || e.InFlight != 0 || balanced && e.Requests != 1 {
				t.Errorf("%d failures of %d requests and %d in flight, want one request that is over", e.Breaker.Failures, e.Requests, e.InFlight)
			}
		})
	}
}

// Being held back by ourselves is neither a reason to try again nor a failure of
// the host, and nothing that was sent to it.
func TestLimitRefusalIsNotRetriedNorJudged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := newSet(t, urls("http://a.test"))
		g := group()
		for _, layer := range []outbound.Layer{outbound.Balance(set), outbound.Breaker(g)} {
			l := limiter.NewConcurrency(1)
			rt := outbound.New(world{"a.test": always(200)}, layer, outbound.Retry(),
				outbound.Limit(outbound.WithConcurrency(func() *limiter.Concurrency { return l })))
			permit, _ := l.TryAcquire(limiter.Request{})
			for range 10 {
				if _, err := get(t, rt, "http://a.test/"); !errors.Is(err, limiter.ErrSaturated) {
					t.Fatal(err)
				}
			}
			permit.Release(limiter.Success)
			if status, err := get(t, rt, "http://a.test/"); status != 200 {
				t.Error(err)
			}
			if n := rt.Stats().Retries; n != 0 {
				t.Errorf("%d retries", n)
			}
		}
		if e := set.Stats().Endpoints[0]; e.Failures != 0 || e.InFlight != 0 || e.Requests != 1 {
			t.Errorf("%d failures of %d requests and %d in flight, want one request that is over: %+v", e.Failures, e.Requests, e.InFlight, e)
		}
	})
}

// What the breaker refuses says nothing about how much the host can take.
func TestLimitIsNotToldOfRefusalsAsFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := limiter.NewConcurrency(10)
		g := group()
		rt := outbound.New(world{"a.test": always(503)}, outbound.Breaker(g),
			outbound.Limit(outbound.WithConcurrency(func() *limiter.Concurrency { return l })))
		for range 100 {
			get(t, rt, "http://a.test/")
		}
		if s := l.Stats(); s.Failure != 3 || s.Ignored != 97 {
			t.Errorf("%d failures and %d ignored, want those of the host, 3, and the refusals", s.Failure, s.Ignored)
		}
	})
}

// A host that answers 429 does so at once: taken for throughput, that would raise an adaptive
// limit as far as it goes.
func TestLimitIsToldWhatIsNoThroughput(t *testing.T) {
	for name, balanced := range limitOutside {
		for status, success := range map[int]bool{200: true, 304: true, 404: true, 429: false, 500: false, 503: false} {
			t.Run(fmt.Sprint(name, " ", status), func(t *testing.T) {
				l := limiter.NewConcurrency(1)
				rt := outbound.New(world{"a.test": always(status)}, limitBelow(t, balanced, l)...)
				get(t, rt, "http://a.test/")
				if s := l.Stats(); (s.Success == 1) != success || s.Success+s.Failure != 1 {
					t.Errorf("%d successes and %d failures", s.Success, s.Failure)
				}
			})
		}
	}
}

// Bodies that their callers' deadlines cut off end at a rate that says nothing about the host.
func TestLimitIsToldThatADeadlineCutTheBody(t *testing.T) {
	for name, balanced := range limitOutside {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork()
				n.serve(t, "a.test:80", func(w http.ResponseWriter, r *http.Request) {
					w.(http.Flusher).Flush()
					<-r.Context().Done()
				})
				base := n.transport()
				defer base.CloseIdleConnections()
				l := limiter.NewConcurrency(1)
				rt := outbound.New(base, limitBelow(t, balanced, l)...)
				for _, end := range []func(context.Context) (context.Context, context.CancelFunc){
					func(ctx context.Context) (context.Context, context.CancelFunc) {
						return context.WithTimeout(ctx, time.Second)
					},
					func(ctx context.Context) (context.Context, context.CancelFunc) {
						ctx, cancel := context.WithCancel(ctx)
						time.AfterFunc(time.Second, cancel)
						return ctx, cancel
					},
				} {
					ctx, cancel := end(t.Context())
					do(rt, request(ctx, "GET", "http://a.test/", nil))
					cancel()
				}
				if s := l.Stats(); s.Success != 0 || s.Failure != 1 || s.Ignored != 1 {
					t.Errorf("%d successes, %d failures, %d ignored; want the deadline as a failure, the cancellation ignored",
						s.Success, s.Failure, s.Ignored)
				}
			})
		})
	}
}

// A try that waits for a limit of ours is not in flight at its endpoint, where it
// would be overdue, and a probe's lease does not run out meanwhile.
func TestLimitWaitIsNotTheEndpoints(t *testing.T) {
	for _, tc := range []struct {
		name     string
		limit    outbound.LimitOption
		each     time.Duration // between requests
		broken   int           // how many of them come before the endpoint is well
		openings uint64
	}{
		{"overdue", outbound.WithConcurrency(func() *limiter.Concurrency {
			return limiter.NewConcurrency(1, limiter.WithQueue(1000, time.Minute))
		}), 40 * time.Millisecond, 0, 0},
		{"probe", outbound.WithRate(limiter.NewRate(rate.Every(2*time.Second), 1, limiter.WithMaxWait(time.Minute))), 500 * time.Millisecond, 20, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				set := newSet(t, urls("http://a.test"), outbound.WithMaxEjected(1),
					outbound.WithEjection(breaker.WithSlowCalls(500*time.Millisecond, 0.5), breaker.WithJitter(0)))
				var broken atomic.Bool
				rt := outbound.New(world{"a.test": func(req *http.Request) (*http.Response, error) {
					if broken.Load() {
						return answer(503)
					}
					return sleepy(50*time.Millisecond, 200)(req)
				}}, outbound.Balance(set), outbound.Limit(tc.limit))
				var all sync.WaitGroup
				for i := range 1000 {
					broken.Store(i < tc.broken)
					all.Go(func() { get(t, rt, "http://svc/") })
					time.Sleep(tc.each) // in a synctest bubble
				}
				all.Wait()
				if b := set.Stats().Endpoints[0].Breaker; b.Openings != tc.openings || b.LostProbes != 0 || b.InFlight != 0 || b.State != breaker.Closed {
					t.Errorf("%d openings, want %d: %+v", b.Openings, tc.openings, b)
				}
			})
		})
	}
}

// A probe that the limit of an endpoint turns away gives its place back, and is no try in flight.
func TestLimitOfAnEndpointGivesTheProbeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := newSet(t, urls("http://a.test"), outbound.WithMaxEjected(1),
			outbound.WithEjection(breaker.WithConsecutiveFailures(1), breaker.WithProbes(1), breaker.WithJitter(0), breaker.WithRamp(0), breaker.WithLease(time.Hour)))
		status := 503
		rt := outbound.New(world{"a.test": func(*http.Request) (*http.Response, error) { return answer(status) }},
			outbound.Balance(set), outbound.Limit(outbound.WithRate(limiter.NewRate(rate.Every(10*time.Second), 1, limiter.WithMaxWait(time.Millisecond)))))
		get(t, rt, "http://a.test/")
		status = 200
		time.Sleep(5 * time.Second) // in a synctest bubble
		if _, err := get(t, rt, "http://a.test/"); !errors.Is(err, limiter.ErrRateLimited) {
			t.Fatalf("%v, want the limit to refuse the probe", err)
		}
		if s := rt.Stats(); s.Limited != 1 {
			t.Errorf("%d limited, want 1", s.Limited)
		}
		time.Sleep(5 * time.Second) // in a synctest bubble
		if got, err := get(t, rt, "http://a.test/"); got != 200 {
			t.Errorf("%d, %v: the place of the probe is not free", got, err)
		}
		if e := set.Stats().Endpoints[0]; e.InFlight != 0 || e.Breaker.State != breaker.Closed {
			t.Errorf("%+v", e)
		}
	})
}

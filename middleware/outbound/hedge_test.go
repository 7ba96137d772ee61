package outbound_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware/outbound"
)

// sleepy answers after a time, unless its context ends before.
func sleepy(d time.Duration, status int) func(*http.Request) (*http.Response, error) {
	return func(req *http.Request) (*http.Response, error) {
		select {
		case <-time.After(d):
			return answer(status)
		case <-req.Context().Done():
			return nil, req.Context().Err()
		}
	}
}

// hedgeWorld has a slow endpoint and a fast one, and counts what they got and
// what was cancelled.
type hedgeWorld struct {
	slow, fast, cancelled atomic.Int64
	world
}

func newHedgeWorld(slow, fast func(*http.Request) (*http.Response, error)) *hedgeWorld {
	h := &hedgeWorld{}
	h.world = world{
		"slow.test": func(req *http.Request) (*http.Response, error) {
			h.slow.Add(1)
			resp, err := slow(req)
			if errors.Is(err, context.Canceled) {
				h.cancelled.Add(1)
			}
			return resp, err
		},
		"fast.test": counted(&h.fast, fast),
	}
	return h
}

func TestO8HedgeGoesElsewhereAndTheLoserIsCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newHedgeWorld(sleepy(time.Minute, 200), sleepy(10*time.Millisecond, 200))
		// Weights make the slow endpoint the first choice.
		set := newSet(t, []outbound.Endpoint{{URL: "http://slow.test", Weight: 100}, {URL: "http://fast.test"}})
		rt := outbound.New(w, outbound.Balance(set), outbound.Hedge(outbound.WithHedgeAfter(50*time.Millisecond)))
		began := time.Now()
		status, err := get(t, rt, "http://svc/")
		synctest.Wait()
		if status != 200 || time.Since(began) != 60*time.Millisecond {
			t.Errorf("%d %v after %v, want 200 after 60 ms", status, err, time.Since(began))
		}
		if w.slow.Load() != 1 || w.fast.Load() != 1 || w.cancelled.Load() != 1 {
			t.Errorf("slow %d, fast %d, cancelled %d", w.slow.Load(), w.fast.Load(), w.cancelled.Load())
		}
		if s := rt.Stats(); s.Hedges != 1 || s.HedgesWon != 1 {
			t.Errorf("%+v", s)
		}
		for _, e := range set.Stats().Endpoints {
			if e.InFlight != 0 || e.Failures != 0 {
				t.Errorf("%s: %d in flight, %d failures", e.URL, e.InFlight, e.Failures)
			}
		}
	})
}

func TestO8FirstTryMayStillWin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newHedgeWorld(sleepy(60*time.Millisecond, 200), sleepy(time.Minute, 200))
		set := newSet(t, []outbound.Endpoint{{URL: "http://slow.test", Weight: 100}, {URL: "http://fast.test"}})
		rt := outbound.New(w, outbound.Balance(set), outbound.Hedge(outbound.WithHedgeAfter(50*time.Millisecond)))
		began := time.Now()
		status, _ := get(t, rt, "http://svc/")
		if d := time.Since(began); status != 200 || d != 60*time.Millisecond {
			t.Errorf("%d after %v", status, d)
		}
		synctest.Wait()
		if s := rt.Stats(); s.Hedges != 1 || s.HedgesWon != 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestO8FailureWaitsForTheOther(t *testing.T) {
	for _, tc := range []struct {
		name       string
		slow, fast func(*http.Request) (*http.Response, error)
		status     int
		after      time.Duration
	}{
		{"the first fails, the second is good", sleepy(60*time.Millisecond, 500), sleepy(30*time.Millisecond, 200), 200, 80 * time.Millisecond},
		{"the second fails, the first is good", sleepy(90*time.Millisecond, 200), sleepy(10*time.Millisecond, 500), 200, 90 * time.Millisecond},
		{"the first is told to wait, the second is good", sleepy(60*time.Millisecond, 429), sleepy(30*time.Millisecond, 200), 200, 80 * time.Millisecond},
		{"the second is told to wait, the first is good", sleepy(90*time.Millisecond, 200), sleepy(10*time.Millisecond, 429), 200, 90 * time.Millisecond},
		{"both fail: the first one's answer", sleepy(60*time.Millisecond, 501), sleepy(30*time.Millisecond, 500), 501, 80 * time.Millisecond},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newHedgeWorld(tc.slow, tc.fast)
				set := newSet(t, []outbound.Endpoint{{URL: "http://slow.test", Weight: 100}, {URL: "http://fast.test"}})
				rt := outbound.New(w, outbound.Balance(set), outbound.Hedge(outbound.WithHedgeAfter(50*time.Millisecond)))
				began := time.Now()
				status, err := get(t, rt, "http://svc/")
				if d := time.Since(began); status != tc.status || d != tc.after {
					t.Errorf("%d %v after %v, want %d after %v", status, err, d, tc.status, tc.after)
				}
			})
		})
	}
}

// What changes something is done once, and whichever try comes later may be told so: that it is gone, is another than the precondition
// says, or is being worked on. That is not the answer to the request.
func TestO8WhatIsSaidOfTheOtherTryDoesNotWin(t *testing.T) {
	const first, second = 100 * time.Millisecond, 20 * time.Millisecond // the second begins after 50 ms
	for _, tc := range []struct {
		name       string
		method     string
		header     string
		slow, fast func(*http.Request) (*http.Response, error)
		status     int
		after      time.Duration
	}{
		{"DELETE: the first has done it", "DELETE", "", sleepy(first, 204), sleepy(second, 404), 204, first},
		{"DELETE: the second has done it", "DELETE", "", sleepy(60*time.Millisecond, 404), sleepy(second, 204), 204, 50*time.Millisecond + second},
		{"PUT: the first has done it", "PUT", "If-Match", sleepy(first, 200), sleepy(second, 412), 200, first},
		{"POST: the first is at it", "POST", "Idempotency-Key", sleepy(first, 201), sleepy(second, 409), 201, first},
		{"POST: both say so", "POST", "Idempotency-Key", sleepy(first, 422), sleepy(second, 409), 422, first},
		{"POST: the first is lost", "POST", "Idempotency-Key", sleepy(first, 502), sleepy(second, 409), 502, first},
		{"POST: the second has done it", "POST", "Idempotency-Key", sleepy(first, 201), sleepy(second, 200), 200, 50*time.Millisecond + second},
		{"GET changes nothing", "GET", "", sleepy(first, 200), sleepy(second, 404), 404, 50*time.Millisecond + second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newHedgeWorld(tc.slow, tc.fast)
				set := newSet(t, []outbound.Endpoint{{URL: "http://slow.test", Weight: 100}, {URL: "http://fast.test"}})
				rt := outbound.New(w, outbound.Balance(set), outbound.Hedge(outbound.WithHedgeAfter(50*time.Millisecond)))
				req := request(t.Context(), tc.method, "http://svc/", nil)
				if tc.header != "" {
					req.Header.Set(tc.header, `"x"`)
				}
				began := time.Now()
				status, err := do(rt, req)
				if d := time.Since(began); status != tc.status || d != tc.after {
					t.Errorf("%d %v after %v, want %d after %v", status, err, d, tc.status, tc.after)
				}
			})
		})
	}
}

// The second try answers with a failure whose body hangs; so does the first, later.
func TestO8FailureThatHangsIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		var tries atomic.Int64
		n.serve(t, "a.test:80", func(w http.ResponseWriter, r *http.Request) {
			if tries.Add(1) == 1 {
				time.Sleep(time.Second) // in a synctest bubble
			}
			w.WriteHeader(503)
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		})
		base := n.transport()
		defer base.CloseIdleConnections()
		rt := outbound.New(base, outbound.Hedge(outbound.WithHedgeAfter(500*time.Millisecond)))
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		began := time.Now()
		resp, err := rt.RoundTrip(request(ctx, "GET", "http://a.test/", nil))
		if err != nil || resp.StatusCode != 503 || time.Since(began) != time.Second {
			t.Fatalf("%v after %v, want the 503 of the first after 1s", err, time.Since(began))
		}
		resp.Body.Close()
	})
}

func TestO8AfterTheMeasured95thPercentile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &firstHangs{next: world{"a.test": sleepy(10*time.Millisecond, 200)}}
		rt := outbound.New(w, outbound.Hedge())
		w.arm.Store(true)
		began := time.Now()
		get(t, rt, "http://a.test/")
		if d := time.Since(began); d != time.Hour {
			t.Errorf("hedged on no evidence, after %v", d)
		}
		for range 100 {
			get(t, rt, "http://a.test/")
		}
		w.arm.Store(true)
		began = time.Now()
		status, err := get(t, rt, "http://a.test/")
		// The estimate is at most a fifth above the 10 ms that nearly all took.
		if d := time.Since(began); status != 200 || d < 20*time.Millisecond || d > 22*time.Millisecond {
			t.Errorf("%d %v after %v, want the hedge's answer after 20 to 22 ms", status, err, d)
		}
		synctest.Wait()
	})
}

func TestO8NotBefore50Latencies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &firstHangs{next: world{"a.test": sleepy(10*time.Millisecond, 200)}}
		rt := outbound.New(w, outbound.Hedge())
		for range 49 {
			get(t, rt, "http://a.test/")
		}
		for _, want := range []uint64{0, 1} { // the first of these is the fiftieth
			w.arm.Store(true)
			get(t, rt, "http://a.test/")
			if n := rt.Stats().Hedges; n != want {
				t.Errorf("%d hedges, want %d", n, want)
			}
		}
		synctest.Wait()
	})
}

// Of those who read the counts, one computes what hedging adds to the load, and another is called when there is no endpoint.
func TestHedgeThatWasNotSentIsNotCounted(t *testing.T) {
	for name, layer := range map[string]outbound.Layer{
		"no other endpoint": outbound.Balance(newSet(t, urls("http://a.test"))),
		"no permit":         outbound.Limit(outbound.WithConcurrency(func() *limiter.Concurrency { return limiter.NewConcurrency(1) })),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := world{"a.test": sleepy(time.Second, 200)}
				rt := outbound.New(w, outbound.Hedge(outbound.WithHedgeAfter(10*time.Millisecond)), layer)
				if status, err := get(t, rt, "http://a.test/"); status != 200 {
					t.Error(status, err)
				}
				synctest.Wait()
				if s := rt.Stats(); s.Hedges != 0 || s.NoEndpoint != 0 {
					t.Errorf("%d hedges, %d times no endpoint; want none", s.Hedges, s.NoEndpoint)
				}
			})
		})
	}
}

// A hedge that had to wait would save no time.
func TestO8HedgeDoesNotWaitForALimit(t *testing.T) {
	for name, limit := range map[string]outbound.LimitOption{
		"permit": outbound.WithConcurrency(func() *limiter.Concurrency {
			return limiter.NewConcurrency(1, limiter.WithQueue(10, time.Minute))
		}),
		"rate": outbound.WithRate(limiter.NewRate(rate.Every(500*time.Millisecond), 1, limiter.WithMaxWait(time.Minute))),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var calls atomic.Int64
				rt := outbound.New(world{"a.test": counted(&calls, sleepy(time.Second, 200))},
					outbound.Limit(limit), outbound.Hedge(outbound.WithHedgeAfter(100*time.Millisecond)))
				go get(t, rt, "http://a.test/")
				time.Sleep(150 * time.Millisecond) // in a synctest bubble
				if n := rt.Stats().Limited; n != 1 {
					t.Errorf("%d tries refused, want the hedge", n)
				}
				time.Sleep(time.Second) // in a synctest bubble
				if calls.Load() != 1 {
					t.Errorf("%d calls, want the first try only", calls.Load())
				}
			})
		})
	}
}

func TestO8AHedgeThatIsRefusedCostsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := newSet(t, []outbound.Endpoint{{URL: "http://slow.test", Weight: 100}}, outbound.WithSlowStart(0))
		rt := outbound.New(newHedgeWorld(sleepy(time.Second, 200), sleepy(time.Millisecond, 200)), outbound.Balance(set),
			outbound.Retry(outbound.WithRetryBudget(0)), outbound.Hedge(outbound.WithHedgeAfter(time.Millisecond)))
		for range 20 { // there is no other endpoint
			get(t, rt, "http://svc/")
		}
		set.Update([]outbound.Endpoint{{URL: "http://slow.test", Weight: 100}, {URL: "http://fast.test"}})
		for range 20 {
			get(t, rt, "http://svc/")
		}
		if n := rt.Stats().HedgesWon; n != 10 {
			t.Errorf("%d hedges won, want the 10 that were there at the start", n)
		}
	})
}

// firstHangs lets the next try hang once it is armed.
type firstHangs struct {
	arm  atomic.Bool
	next http.RoundTripper
}

func (f *firstHangs) RoundTrip(req *http.Request) (*http.Response, error) {
	if f.arm.CompareAndSwap(true, false) {
		return sleepy(time.Hour, 200)(req)
	}
	return f.next.RoundTrip(req)
}

func TestO8WhatIsNotHedged(t *testing.T) {
	open := group()
	for _, tc := range []struct {
		name   string
		method string
		body   io.Reader
		header string
		layers func(t *testing.T) []outbound.Layer
	}{
		{name: "POST", method: "POST"},
		{name: "body that cannot be had twice", method: "PUT", body: io.MultiReader(strings.NewReader("x"))},
		{name: "upgrade", method: "GET", header: "Upgrade"},
		{name: "breaker not closed", method: "GET", layers: func(t *testing.T) []outbound.Layer {
			return []outbound.Layer{outbound.Breaker(open)}
		}},
		{name: "no other endpoint", method: "GET", layers: func(t *testing.T) []outbound.Layer {
			return []outbound.Layer{outbound.Balance(newSet(t, urls("http://a.test")))}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				open = group()
				var calls atomic.Int64
				layers := []outbound.Layer{outbound.Hedge(outbound.WithHedgeAfter(time.Millisecond))}
				if tc.layers != nil {
					layers = append(layers, tc.layers(t)...)
				}
				rt := outbound.New(world{"a.test": counted(&calls, func(req *http.Request) (*http.Response, error) {
					time.AfterFunc(time.Microsecond, open.Get("a.test").ForceOpen)
					return sleepy(time.Second, 200)(req)
				})}, layers...)
				req := request(t.Context(), tc.method, "http://a.test/", tc.body)
				if tc.header != "" {
					req.Header.Set(tc.header, "x")
				}
				do(rt, req)
				if calls.Load() != 1 {
					t.Errorf("%d tries", calls.Load())
				}
			})
		})
	}
}

// A server of HTTP/3 (quic-go) gives each GET a body of the length -1. Where a try has read it, and there was none, another goes without.
func TestO8ABodyThatIsNoneIsHedged(t *testing.T) {
	for _, tc := range []struct {
		name, method, body string
		read               bool
		calls              int64
	}{
		{"none", "GET", "", true, 2}, {"none", "DELETE", "", true, 2}, {"not known yet", "GET", "", false, 1}, {"a body", "GET", "x", true, 1},
		{"may be an upload", "PUT", "", true, 1},
	} {
		t.Run(tc.name+", "+tc.method, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var calls atomic.Int64
				rt := outbound.New(world{"a.test": counted(&calls, func(req *http.Request) (*http.Response, error) {
					if calls.Load() == 2 && (req.Body != http.NoBody || req.ContentLength != 0) {
						t.Errorf("the second try has a body of the length %d", req.ContentLength)
					}
					if tc.read {
						io.Copy(io.Discard, req.Body)
					}
					return sleepy(time.Second, 200)(req)
				})}, outbound.Hedge(outbound.WithHedgeAfter(time.Millisecond)), outbound.Retry())
				body := &closing{Reader: strings.NewReader(tc.body)}
				req := request(t.Context(), tc.method, "http://a.test/", body)
				req.ContentLength = -1
				if status, err := do(rt, req); status != 200 || err != nil {
					t.Error(status, err)
				}
				if calls.Load() != tc.calls {
					t.Errorf("%d tries; want %d", calls.Load(), tc.calls)
				}
			})
		})
	}
}

// The value of a trailer is set while the body of the one request is read, and a hedge would go without.
func TestO8WithATrailerIsNotHedged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		var calls atomic.Int64
		n.serve(t, "a.test:80", func(w http.ResponseWriter, r *http.Request) {
			if calls.Add(1) == 1 {
				time.Sleep(time.Second) // in a synctest bubble
			}
			io.Copy(io.Discard, r.Body)
			io.WriteString(w, r.Trailer.Get("X-Sum"))
		})
		base := n.transport()
		defer base.CloseIdleConnections()
		rt := outbound.New(base, outbound.Hedge(outbound.WithHedgeAfter(time.Millisecond)))
		req := request(t.Context(), "PUT", "http://a.test/", nil)
		req.ContentLength, req.Trailer = -1, http.Header{"X-Sum": nil}
		req.GetBody = func() (io.ReadCloser, error) {
			sum := readerFunc(func([]byte) (int, error) {
				req.Trailer.Set("X-Sum", "1")
				return 0, io.EOF
			})
			return io.NopCloser(io.MultiReader(strings.NewReader(strings.Repeat("x", 64<<10)), sum)), nil
		}
		req.Body, _ = req.GetBody()
		resp, err := rt.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		sum, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(sum) != "1" {
			t.Errorf("what was answered had the trailer %q, want 1", sum)
		}
		time.Sleep(time.Second) // in a synctest bubble: net/http lingers for half of that
	})
}

func TestO8HedgesAndRetriesShareABudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int64
		rt := outbound.New(world{"a.test": counted(&calls, sleepy(20*time.Millisecond, 503))},
			outbound.Retry(outbound.WithTries(3), outbound.WithBackoff(0, 0)),
			outbound.Hedge(outbound.WithHedgeAfter(10*time.Millisecond)))
		const n = 1000
		for range n {
			get(t, rt, "http://a.test/")
		}
		if got := calls.Load(); got > n+n/10+10 {
			t.Errorf("%d requests made %d calls", n, got)
		}
		if s := rt.Stats(); s.Hedges == 0 || s.HedgesDenied == 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestO8BudgetFillsInsideAnotherRetryToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := outbound.New(world{"a.test": sleepy(time.Second, 200)},
			outbound.Retry(), outbound.Hedge(outbound.WithHedgeAfter(time.Millisecond)))
		outer := outbound.New(inner, outbound.Retry())
		const n = 200
		for range n {
			get(t, outer, "http://a.test/")
		}
		if s := inner.Stats(); s.Hedges < n/10 || s.Hedges > n/10+10 {
			t.Errorf("%d hedges for %d requests, want a tenth, and 10 from the start", s.Hedges, n)
		}
	})
}

func TestO8HedgeDoesNotProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newHedgeWorld(sleepy(100*time.Millisecond, 200), always(500))
		set := newSet(t, urls("http://fast.test", "http://slow.test"), outbound.WithEjection(breaker.WithJitter(0)))
		rt := outbound.New(w, outbound.Balance(set), outbound.Hedge(outbound.WithHedgeAfter(50*time.Millisecond)))
		for range 40 {
			get(t, rt, "http://svc/")
		}
		before := w.fast.Load()
		for range 10 { // while it is ejected no hedge goes there
			get(t, rt, "http://svc/")
		}
		if w.fast.Load() != before {
			t.Errorf("%d hedges to an ejected endpoint", w.fast.Load()-before)
		}
	})
}

func TestHedgeThatTheRampHoldsBackIsNoRefusedTry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var broken atomic.Bool
		broken.Store(true)
		slow := sleepy(100*time.Millisecond, 200)
		rt := outbound.New(world{"a.test": func(req *http.Request) (*http.Response, error) {
			if broken.Load() {
				return answer(500)
			}
			return slow(req)
		}}, outbound.Breaker(group()), outbound.Hedge(outbound.WithHedgeAfter(50*time.Millisecond)))
		for range 3 {
			get(t, rt, "http://a.test/")
		}
		broken.Store(false)
		time.Sleep(time.Minute) // in a synctest bubble
		var refused uint64
		for range 200 {
			if _, err := get(t, rt, "http://a.test/"); errors.Is(err, breaker.ErrOpen) {
				refused++
			}
		}
		if s := rt.Stats(); s.Open != refused || refused == 0 || refused == 200 {
			t.Errorf("%d requests were refused: %+v", refused, s)
		}
	})
}

func TestO8HedgeGoesByWhatAForcedBreakerLetsPass(t *testing.T) {
	for _, tc := range []struct {
		name  string
		force func(*breaker.Breaker)
		tries int64
	}{
		{"closed", func(*breaker.Breaker) {}, 2},
		{"forced closed", (*breaker.Breaker).ForceClosed, 2},
		{"disabled", (*breaker.Breaker).Disable, 2},
		{"forced open", (*breaker.Breaker).ForceOpen, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var tries atomic.Int64
				g := group()
				tc.force(g.Get("a.test"))
				rt := outbound.New(world{"a.test": counted(&tries, sleepy(time.Second, 200))}, outbound.Breaker(g),
					outbound.Hedge(outbound.WithHedgeAfter(time.Millisecond)))
				if get(t, rt, "http://a.test/"); tries.Load() != tc.tries {
					t.Errorf("%d tries, want %d", tries.Load(), tc.tries)
				}
			})
		})
	}
}

// A place for a probe is for a first try: a hedge is no more than a copy of it.
func TestO8HedgeDoesNotProbeWhenTheOpenTimeIsOver(t *testing.T) {
	t.Run("Breaker", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var calls atomic.Int64
			var well atomic.Bool
			rt := outbound.New(world{"a.test": counted(&calls, func(req *http.Request) (*http.Response, error) {
				if !well.Load() {
					return answer(500)
				}
				return sleepy(time.Second, 200)(req)
			})}, outbound.Breaker(group()), outbound.Hedge(outbound.WithHedgeAfter(time.Millisecond)))
			for range 3 {
				get(t, rt, "http://a.test/")
			}
			time.Sleep(5 * time.Second) // in a synctest bubble
			well.Store(true)
			calls.Store(0)
			if get(t, rt, "http://a.test/"); calls.Load() != 1 {
				t.Errorf("%d calls, want the probe only", calls.Load())
			}
		})
	})
	t.Run("Balance", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newHedgeWorld(sleepy(100*time.Millisecond, 200), always(500))
			// Weights make the slow endpoint the first choice, so that the other gets hedges only.
			set := newSet(t, []outbound.Endpoint{{URL: "http://slow.test", Weight: 100}, {URL: "http://fast.test"}},
				outbound.WithEjection(breaker.WithJitter(0)))
			rt := outbound.New(w, outbound.Balance(set), outbound.Hedge(outbound.WithHedgeAfter(50*time.Millisecond)))
			for range 5 {
				get(t, rt, "http://svc/")
			}
			if s := set.Stats().Endpoints[1].Breaker.State; s != breaker.Open {
				t.Fatalf("after five failures it is %v", s)
			}
			time.Sleep(6 * time.Second) // in a synctest bubble
			before := w.fast.Load()
			for range 3 {
				get(t, rt, "http://svc/")
			}
			if w.fast.Load() != before {
				t.Errorf("%d hedges were probes", w.fast.Load()-before)
			}
		})
	})
}

// In shadow a hedge is sent all the same, and it is no probe either.
func TestO8HedgeInShadow(t *testing.T) {
	hedge := outbound.Hedge(outbound.WithHedgeAfter(time.Millisecond))
	check := func(t *testing.T, calls *atomic.Int64, want int64, b func() breaker.Stats) {
		t.Helper()
		time.Sleep(5 * time.Second) // in a synctest bubble
		if s := b(); s.State != breaker.HalfOpen || calls.Load() != want || s.ProbesOut != 0 {
			t.Errorf("%d calls, want %d: %+v", calls.Load(), want, s)
		}
	}
	t.Run("Breaker", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var calls atomic.Int64
			g := breaker.NewGroup(breaker.WithConsecutiveFailures(1), breaker.WithJitter(0), breaker.WithProbes(1), breaker.WithShadow(true))
			rt := outbound.New(world{"a.test": counted(&calls, sleepy(time.Second, 500))}, outbound.Breaker(g), hedge)
			get(t, rt, "http://a.test/")
			check(t, &calls, 2, g.Get("a.test").Stats)
			openings := g.Get("a.test").Stats().Openings
			get(t, rt, "http://a.test/") // the first try is the probe
			if s := g.Get("a.test").Stats(); calls.Load() != 4 || s.Openings != openings+1 || s.Dropped > 1 {
				t.Errorf("%d calls: %+v", calls.Load(), s)
			}
			if s := rt.Stats(); s.Open != 0 {
				t.Errorf("%+v", s)
			}
		})
	})
	t.Run("Balance", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var calls atomic.Int64
			w := newHedgeWorld(sleepy(100*time.Millisecond, 200), counted(&calls, always(500)))
			set := newSet(t, []outbound.Endpoint{{URL: "http://slow.test", Weight: 100}, {URL: "http://fast.test"}},
				outbound.WithEjection(breaker.WithJitter(0), breaker.WithShadow(true)))
			rt := outbound.New(w, outbound.Balance(set), outbound.Hedge(outbound.WithHedgeAfter(50*time.Millisecond)))
			fast := func() breaker.Stats { return set.Stats().Endpoints[1].Breaker }
			for range 5 {
				get(t, rt, "http://svc/")
			}
			check(t, &calls, 5, fast)
			get(t, rt, "http://svc/")
			check(t, &calls, 6, fast)
		})
	})
}

// The second try runs in a goroutine that no server watches over: a panic there
// would end the process.
func TestHedgePanicTravelsOnInTheCallersGoroutine(t *testing.T) {
	for _, tc := range []struct {
		name         string
		first, after time.Duration // when the first try answers, and the second panics
		travels      bool
	}{
		{"first under way", time.Second, 10 * time.Millisecond, true},
		{"first has won", 100 * time.Millisecond, 0, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var calls atomic.Int64
				first := sleepy(tc.first, 200)
				rt := outbound.New(world{"a.test": func(req *http.Request) (*http.Response, error) {
					if calls.Add(1) == 1 {
						return first(req)
					}
					if tc.after == 0 {
						<-req.Context().Done()
					}
					time.Sleep(tc.after) // in a synctest bubble
					panic(errCut)
				}}, outbound.Hedge(outbound.WithHedgeAfter(50*time.Millisecond)))
				began := time.Now()
				defer func() {
					v := recover()
					if v != nil && v != any(errCut) || (v != nil) != tc.travels {
						t.Errorf("recovered %v", v)
					}
					if d := time.Since(began); d > 100*time.Millisecond {
						t.Errorf("after %v", d)
					}
					synctest.Wait()
					if n := rt.Stats().HedgePanics; (n == 1) == tc.travels {
						t.Errorf("%d counted, travelled on: %v", n, tc.travels)
					}
				}()
				if status, err := get(t, rt, "http://a.test/"); status != 200 {
					t.Error(status, err)
				}
			})
		})
	}
}

// The second try answers first, and what the first makes of being cancelled is a panic.
func TestHedgeThatWonIsClosedWhenTheFirstTryPanics(t *testing.T) {
	for _, tc := range []struct {
		name string
		late time.Duration // after which the second answers though it is cancelled
	}{
		{"the second has won", 0},
		{"the second is under way", 2 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var calls atomic.Int64
				body := &closing{Reader: strings.NewReader("body")}
				l := limiter.NewConcurrency(2)
				first := sleepy(time.Second, 200)
				rt := outbound.New(world{"a.test": func(req *http.Request) (*http.Response, error) {
					if calls.Add(1) > 1 {
						time.Sleep(tc.late) // in a synctest bubble
						return &http.Response{StatusCode: 200, Body: body}, nil
					}
					if resp, err := first(req); err == nil {
						resp.Body.Close()
					}
					panic("boom")
				}}, outbound.Hedge(outbound.WithHedgeAfter(50*time.Millisecond)),
					outbound.Limit(outbound.WithConcurrency(func() *limiter.Concurrency { return l })))
				booms(t, rt)
				time.Sleep(time.Minute) // in a synctest bubble
				if n := l.Stats().InFlight; n != 0 || calls.Load() != 2 || !body.closed.Load() {
					t.Errorf("%d permits are held, the body of try %d is closed: %v", n, calls.Load(), body.closed.Load())
				}
			})
		})
	}
}

// A caller may change a request whose response it has closed.
func TestHedgeThatLostHasARequestOfItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int64
		first := sleepy(100*time.Millisecond, 200)
		rt := outbound.New(world{"a.test": func(req *http.Request) (*http.Response, error) {
			if calls.Add(1) == 1 {
				return first(req)
			}
			<-req.Context().Done()
			time.Sleep(time.Millisecond) // in a synctest bubble
			if n := len(req.Header); n != 0 {
				t.Errorf("%d header fields", n)
			}
			return nil, req.Context().Err()
		}}, outbound.Hedge(outbound.WithHedgeAfter(50*time.Millisecond)))
		req := request(t.Context(), "GET", "http://a.test/", nil)
		if status, err := do(rt, req); status != 200 {
			t.Fatal(status, err)
		}
		req.Header.Set("X-Next", "1")
		time.Sleep(time.Second) // in a synctest bubble
		if calls.Load() != 2 {
			t.Errorf("%d calls", calls.Load())
		}
	})
}

func TestO8TheLosersResponseIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lost := &closing{Reader: strings.NewReader("lost")}
		w := newHedgeWorld(func(req *http.Request) (*http.Response, error) { // deaf to its context, and too late
			time.Sleep(time.Second) // in a synctest bubble
			return &http.Response{StatusCode: 200, Header: http.Header{}, Body: lost}, nil
		}, sleepy(10*time.Millisecond, 200))
		set := newSet(t, []outbound.Endpoint{{URL: "http://slow.test", Weight: 100}, {URL: "http://fast.test"}})
		rt := outbound.New(w, outbound.Balance(set), outbound.Hedge(outbound.WithHedgeAfter(50*time.Millisecond)))
		if status, err := get(t, rt, "http://svc/"); status != 200 {
			t.Error(status, err)
		}
		synctest.Wait()
		if rt.Stats().HedgesWon != 1 || !lost.closed.Load() {
			t.Errorf("the response of the try that lost is left open: %+v", rt.Stats())
		}
	})
}

func TestO8AHedgeHasTheBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bodies := make(chan string, 2)
		read := func(req *http.Request) {
			b, _ := io.ReadAll(req.Body)
			bodies <- string(b)
		}
		w := newHedgeWorld(func(req *http.Request) (*http.Response, error) {
			read(req)
			return sleepy(time.Minute, 200)(req)
		}, func(req *http.Request) (*http.Response, error) {
			read(req)
			return answer(200)
		})
		set := newSet(t, []outbound.Endpoint{{URL: "http://slow.test", Weight: 100}, {URL: "http://fast.test"}})
		rt := outbound.New(w, outbound.Balance(set), outbound.Hedge(outbound.WithHedgeAfter(50*time.Millisecond)))
		status, err := do(rt, request(t.Context(), "PUT", "http://svc/", strings.NewReader("hello")))
		if a, b := <-bodies, <-bodies; status != 200 || a != "hello" || b != "hello" {
			t.Errorf("%d, %v, bodies %q and %q", status, err, a, b)
		}
	})
}

func TestO8ABudgetWithoutRetryFillsToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := outbound.New(world{"a.test": sleepy(10*time.Millisecond, 200)}, outbound.Hedge(outbound.WithHedgeAfter(time.Millisecond)))
		for range 200 {
			get(t, rt, "http://a.test/")
		}
		if n := rt.Stats().Hedges; n < 25 || n > 30 {
			t.Errorf("%d hedges of 200 requests, want the 10 of the start and one for each tenth", n)
		}
	})
}

package outbound_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/middleware/outbound"
)

// A backend of the simulation: some workers and a line in front of them, with
// exponential service times in virtual time.
type backend struct {
	workers chan struct{}
	mean    time.Duration
	broken  bool // fails at once
	served  atomic.Int64
	now     atomic.Int64
	most    atomic.Int64
}

func (b *backend) serve(req *http.Request) (*http.Response, error) {
	b.served.Add(1)
	if b.broken {
		return &http.Response{StatusCode: 503, Body: http.NoBody, Header: http.Header{}}, nil
	}
	select {
	case b.workers <- struct{}{}:
	case <-req.Context().Done():
		return nil, req.Context().Err()
	}
	defer func() { <-b.workers }()
	b.most.Store(max(b.most.Load(), b.now.Add(1)))
	defer b.now.Add(-1)
	time.Sleep(time.Duration(rand.ExpFloat64() * float64(b.mean))) // in a synctest bubble
	return &http.Response{StatusCode: 200, Body: http.NoBody, Header: http.Header{}}, nil
}

type simResult struct {
	errors float64
	p99    time.Duration
	set    outbound.SetStats
}

// simulate sends requests at 60 % of the capacity of ten backends with four
// workers each and a mean service time of 10 ms.
func simulate(t *testing.T, requests int, change func([]*backend), opts ...outbound.SetOption) (r simResult) {
	synctest.Test(t, func(t *testing.T) {
		w := world{}
		var backends []*backend
		var list []outbound.Endpoint
		for i := range 10 {
			b := &backend{workers: make(chan struct{}, 4), mean: 10 * time.Millisecond}
			backends = append(backends, b)
			host := fmt.Sprintf("b%d.test", i)
			w[host] = b.serve
			list = append(list, outbound.Endpoint{URL: "http://" + host})
		}
		change(backends)
		set := newSet(t, list, opts...)
		rt := outbound.New(w, outbound.Balance(set))
		var mu sync.Mutex
		var took []time.Duration
		failed := 0
		var all sync.WaitGroup
		for range requests {
			time.Sleep(time.Duration(rand.ExpFloat64() * float64(time.Second) / 2400)) // in a synctest bubble
			all.Go(func() {
				began := time.Now()
				status, err := get(t, rt, "http://svc/")
				mu.Lock()
				defer mu.Unlock()
				if err != nil || status != 200 {
					failed++
					return
				}
				took = append(took, time.Since(began))
			})
		}
		all.Wait()
		slices.Sort(took)
		r = simResult{float64(failed) / float64(requests), took[len(took)*99/100], set.Stats()}
	})
	return r
}

// The numbers that decide whether least-loaded balancing is a help or a black
// hole: ten backends, one that fails fast, one that is ten times slower.
func TestSimulationTenBackends(t *testing.T) {
	requests := 24_000 // 10 s
	if testing.Short() || raceEnabled {
		requests = 8_000
	}
	// Endpoints that become slow are ejected when half of their calls take five
	// times what they should.
	slow := outbound.WithEjection(breaker.WithSlowCalls(50*time.Millisecond, 0.5))
	healthy := simulate(t, requests, func([]*backend) {}, slow)
	t.Logf("healthy:             errors %5.2f %%, p99 %v", 100*healthy.errors, healthy.p99)

	bare := simulate(t, requests, func(b []*backend) { b[3].broken = true }, outbound.WithMaxEjected(0))
	t.Logf("failing, no ejection: errors %5.2f %%, p99 %v", 100*bare.errors, bare.p99)
	failing := simulate(t, requests, func(b []*backend) { b[3].broken = true }, slow)
	t.Logf("one failing fast:    errors %5.2f %%, p99 %v", 100*failing.errors, failing.p99)
	slowed := simulate(t, requests, func(b []*backend) { b[3].mean *= 10 }, slow)
	t.Logf("one ten times slower: errors %5.2f %%, p99 %v", 100*slowed.errors, slowed.p99)
	both := simulate(t, requests, func(b []*backend) { b[3].mean *= 10; b[7].broken = true }, slow)
	t.Logf("both:                errors %5.2f %%, p99 %v", 100*both.errors, both.p99)

	if healthy.errors != 0 {
		t.Errorf("healthy: %.2f %% errors", 100*healthy.errors)
	}
	if bare.errors < 0.1 {
		t.Errorf("without ejection only %.2f %% errors: the simulation does not show what it should", 100*bare.errors)
	}
	for name, r := range map[string]simResult{"one failing fast": failing, "both": both} {
		if r.errors > 0.005 {
			t.Errorf("%s: %.2f %% errors, want at most 0.5 %%", name, 100*r.errors)
		}
	}
	if limit := healthy.p99 * 12 / 10; slowed.p99 > limit {
		t.Errorf("one ten times slower: p99 %v, want at most %v", slowed.p99, limit)
	}
	for _, r := range []simResult{healthy, failing, slowed, both} {
		out := 0
		for _, e := range r.set.Endpoints {
			if e.Ejected {
				out++
			}
		}
		if out > 5 {
			t.Errorf("%d of 10 ejected", out)
		}
	}
}

// direct is a transport that calls handlers, as if over a network: nothing of
// the caller's context but its end arrives.
type direct map[string]http.Handler

func (d direct) RoundTrip(req *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer context.AfterFunc(req.Context(), cancel)()
	d[req.URL.Host].ServeHTTP(w, req.Clone(ctx))
	return w.Result(), nil
}

// A total outage at the bottom of three layers of services, each a client of
// the next: what does one request at the top become at the bottom?
func TestSimulationRetryAmplification(t *testing.T) {
	const requests = 3000
	run := func(t *testing.T, client func(next http.RoundTripper) http.RoundTripper) (bottom, worst float64) {
		synctest.Test(t, func(t *testing.T) {
			var calls [3]atomic.Int64
			services := direct{}
			net := http.RoundTripper(services)
			// Each service passes on what it is asked, and a failure as 502.
			for i := range 3 {
				count := &calls[i]
				if i == 2 {
					services["s2"] = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						count.Add(1)
						w.WriteHeader(503)
					})
					continue
				}
				down := client(net)
				target := fmt.Sprintf("http://s%d/", i+1)
				services[fmt.Sprintf("s%d", i)] = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					count.Add(1)
					resp, err := down.RoundTrip(request(r.Context(), "GET", target, nil))
					if err != nil {
						w.WriteHeader(503)
						return
					}
					io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
					if resp.StatusCode >= 500 {
						w.WriteHeader(502)
					}
				})
			}
			top := client(net)
			for range requests {
				get(t, top, "http://s0/")
				time.Sleep(10 * time.Millisecond) // in a synctest bubble
			}
			for i := range calls {
				worst = max(worst, float64(calls[i].Load()))
			}
			bottom = float64(calls[2].Load())
		})
		return bottom, worst
	}

	naive, _ := run(t, func(next http.RoundTripper) http.RoundTripper { return &threeTries{next} })
	t.Logf("three tries each:         %.2fx at the bottom", naive/requests)
	budget, budgetWorst := run(t, func(next http.RoundTripper) http.RoundTripper {
		return outbound.New(next, outbound.Retry(outbound.WithTries(3)))
	})
	t.Logf("Retry alone:              %.2fx at the bottom, %.2fx at the worst layer", budget/requests, budgetWorst/requests)
	full, fullWorst := run(t, func(next http.RoundTripper) http.RoundTripper { return outbound.New(next) })
	t.Logf("Defaults (with Breaker):  %.2fx at the bottom, %.2fx at the worst layer", full/requests, fullWorst/requests)

	if naive != 27*requests {
		t.Errorf("naive: %.2fx, want 27x", naive/requests)
	}
	// Budgets bound each hop to 1.10; three services cannot know of each other.
	if most := 1.1 * 1.1 * 1.1 * (requests + 30); budget > most {
		t.Errorf("Retry alone: %.0f calls, want at most %.0f", budget, most)
	}
	// With breakers the bottom is left alone, and no layer gets more than a tenth
	// and its burst of 10 on top.
	if most := 1.1*requests + 10; full > most || fullWorst > most {
		t.Errorf("Defaults: %.0f calls at the bottom and %.0f at the worst layer, want at most %.0f", full, fullWorst, most)
	}
}

// So it is where each service says with Retry-After that it refuses, as one whose own breaker is open does: to the breakers that is no failure, and the budgets
// alone came to a third more.
func TestSimulationRetryAmplificationOfRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const requests = 3000
		var calls [3]atomic.Int64
		services := direct{}
		refused := func(w http.ResponseWriter) {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(503)
		}
		for i := range 3 {
			down := outbound.New(services)
			services[fmt.Sprintf("s%d", i)] = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				calls[i].Add(1)
				if i < 2 {
					if resp, err := down.RoundTrip(request(r.Context(), "GET", fmt.Sprintf("http://s%d/", i+1), nil)); err == nil {
						resp.Body.Close()
					}
				}
				refused(w)
			})
		}
		top := outbound.New(services)
		for range requests {
			get(t, top, "http://s0/")
		}
		for i := range calls {
			n := calls[i].Load()
			t.Logf("service %d: %.3fx", i, float64(n)/requests)
			if n > requests+requests/10+10 {
				t.Errorf("service %d: %d calls, want at most 1.10x and a burst of 10", i, n)
			}
		}
	})
}

// Within one process, where the context tells them of each other, three layers
// of clients amplify no more than one.
func TestSimulationRetryAmplificationInOneProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const requests = 3000
		var calls atomic.Int64
		rt := http.RoundTripper(world{"a.test": counted(&calls, always(503))})
		for range 3 {
			rt = outbound.New(rt, outbound.Retry(outbound.WithTries(3)))
		}
		for range requests {
			get(t, rt, "http://a.test/")
		}
		t.Logf("%.3fx", float64(calls.Load())/requests)
		if got := calls.Load(); got > requests+requests/10+10 {
			t.Errorf("%d calls, want at most 1.10x and a burst of 10", got)
		}
	})
}

type threeTries struct{ next http.RoundTripper }

func (n *threeTries) RoundTrip(req *http.Request) (resp *http.Response, err error) {
	for range 3 {
		if resp != nil {
			resp.Body.Close()
		}
		if resp, err = n.next.RoundTrip(req); err == nil && resp.StatusCode < 500 {
			break
		}
	}
	return resp, err
}

// A host that refuses what is more than it can do goes on doing that.
func TestSimulationHostThatSheds(t *testing.T) {
	const capacity, seconds = 100, 60
	for _, load := range []int{150, 220, 300, 1000} { // requests a second
		synctest.Test(t, func(t *testing.T) {
			can := rate.NewLimiter(capacity, 10)
			var done atomic.Int64
			rt := outbound.New(world{"a.test": func(req *http.Request) (*http.Response, error) {
				if !can.Allow() {
					return answer(503, "Retry-After", "1")
				}
				time.Sleep(20 * time.Millisecond) // in a synctest bubble
				done.Add(1)
				return answer(200)
			}})
			var wg sync.WaitGroup
			for range load * seconds {
				wg.Go(func() { get(t, rt, "http://a.test/") })
				time.Sleep(time.Second / time.Duration(load)) // in a synctest bubble
			}
			wg.Wait()
			t.Logf("%d a second: %d of %d a second", load, done.Load()/seconds, capacity)
			if done.Load() < capacity*seconds*95/100 {
				t.Errorf("%d a second: %d done in %d s, want what a host can do that does %d a second", load, done.Load(), seconds, capacity)
			}
		})
	}
}

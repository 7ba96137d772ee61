package health_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/middleware/health"
)

func probe(h http.Handler, method, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, path, nil))
	return w
}

func check(name string, run func(context.Context) error) health.Check {
	return health.Check{Name: name, Run: run}
}

func pass(context.Context) error { return nil }
func fail(context.Context) error { return errors.New("dial db.internal:5432: refused") }

func TestProbes(t *testing.T) {
	drained := func(h *health.Health) { h.Drain(context.Background(), nil) }
	for _, tc := range []struct {
		name                 string
		opts                 []health.Option
		do                   func(*health.Health)
		live, ready, started int
	}{
		{"no checks: live, started, ready", nil, nil, 200, 200, 200},
		{"readiness check passes", []health.Option{health.WithCheck(check("disk", pass))}, nil, 200, 200, 200},
		{"readiness check has never passed: starting", []health.Option{health.WithCheck(check("disk", fail))}, nil, 200, 503, 503},
		{"liveness check fails: ready is another question", []health.Option{health.WithLiveCheck(check("lock", fail))}, nil, 503, 200, 200},
		{"manual start awaits Started", []health.Option{health.WithManualStart()}, nil, 200, 503, 503},
		{"manual start, started", []health.Option{health.WithManualStart()}, (*health.Health).Started, 200, 200, 200},
		{"draining: not ready, still live and started", nil, drained, 200, 503, 200},
		{"draining with the default, as said", []health.Option{health.WithDrainStatus(503)}, drained, 200, 503, 200},
		{"draining for HAProxy: 404", []health.Option{health.WithDrainStatus(404)}, drained, 200, 404, 200},
		{"404 is for draining only", []health.Option{health.WithDrainStatus(404), health.WithCheck(check("disk", fail))}, nil, 200, 503, 503},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := health.New(tc.opts...)
				defer h.Close()
				synctest.Wait()
				if tc.do != nil {
					tc.do(h)
				}
				served := h.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { t.Errorf("%s: passed on", r.URL) }))
				for path, want := range map[string]int{"/livez": tc.live, "/readyz": tc.ready, "/startupz": tc.started} {
					w := probe(served, "GET", path)
					if w.Code != want {
						t.Errorf("%s: status %d, want %d", path, w.Code, want)
					}
					if w.Header().Get("Cache-Control") != "no-store" {
						t.Errorf("%s: may be stored: %v", path, w.Header())
					}
					if strings.Contains(w.Body.String(), "db.internal") {
						t.Errorf("%s: names what the check talked to: %q", path, w.Body)
					}
				}
				s := h.Stats()
				if s.Ready != (tc.ready == 200) || s.Live != (tc.live == 200) || s.Started != (tc.started == 200) {
					t.Errorf("Stats disagree with the probes: %+v", s)
				}
			})
		})
	}
}

func TestProbesNameTheChecks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stuck := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		h := health.New(
			health.WithCheck(check("warm-up", stuck)), health.WithCheck(check("disk", fail)), health.WithCheck(check("queue", pass)),
			health.WithLiveCheck(check("lock", pass)), health.WithDrainWait(0))
		defer h.Close()
		synctest.Wait()
		served := h.Handler(http.NotFoundHandler())
		const checks = "warm-up: not run yet\ndisk: failing\nqueue: ok\n"
		for _, tc := range []struct{ method, path, body string }{
			{"GET", "/livez", "live\nlock: ok\n"},
			{"GET", "/startupz", "starting\n" + checks},
			{"GET", "/readyz", "starting\n" + checks},
			{"DELETE", "/readyz", "Method Not Allowed\n"},
		} {
			w := probe(served, tc.method, tc.path)
			if w.Body.String() != tc.body {
				t.Errorf("%s %s: %q, want %q", tc.method, tc.path, w.Body, tc.body)
			}
			if w.Header().Get("Content-Type") != "text/plain; charset=utf-8" || w.Header().Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("%s %s: %v; want plain text that is not sniffed", tc.method, tc.path, w.Header())
			}
		}
		for i, want := range []bool{false, false, true, true} {
			if s := h.Stats().Checks[i]; s.OK != want {
				t.Errorf("%+v; want OK %v", s, want)
			}
		}
		if h.Drain(t.Context(), nil); probe(served, "GET", "/readyz").Body.String() != "draining\n" {
			t.Errorf("draining: %q", probe(served, "GET", "/readyz").Body)
		}
	})
	h := health.New().Handler(nil)
	for path, want := range map[string]string{"/livez": "live\n", "/startupz": "started\n", "/readyz": "ready\n"} {
		if got := probe(h, "GET", path).Body.String(); got != want {
			t.Errorf("%s without checks: %q, want %q", path, got, want)
		}
	}
}

func TestProbeMethods(t *testing.T) {
	h := health.New()
	served := h.Handler(http.NotFoundHandler())
	if w := probe(served, "HEAD", "/readyz"); w.Code != 200 || w.Body.Len() != 0 {
		t.Errorf("HEAD: %d with %d bytes", w.Code, w.Body.Len())
	}
	if w := probe(served, "POST", "/readyz"); w.Code != 405 || w.Header().Get("Allow") != "GET, HEAD" {
		t.Errorf("POST: %d, Allow %q", w.Code, w.Header().Get("Allow"))
	}
}

// A nil handler is http.DefaultServeMux, as in package net/http and in the layers.
func TestNilHandlerIsDefaultServeMux(t *testing.T) {
	saved := http.DefaultServeMux
	t.Cleanup(func() { http.DefaultServeMux = saved })
	http.DefaultServeMux = http.NewServeMux()
	http.DefaultServeMux.HandleFunc("GET /spillgate-test-of-nil", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(299) })
	h := health.New().Handler(nil)
	for path, want := range map[string]int{"/readyz": 200, "/spillgate-test-of-nil": 299} {
		if got := probe(h, "GET", path).Code; got != want {
			t.Errorf("%s: %d, want %d", path, got, want)
		}
	}
}

func TestPaths(t *testing.T) {
	h := health.New(health.WithPaths("/a", "", "/c"))
	served := h.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusTeapot) }))
	for path, want := range map[string]int{"/a": 200, "/c": 200, "/livez": 418, "/readyz": 418, "/": 418} {
		if got := probe(served, "GET", path).Code; got != want {
			t.Errorf("%s: %d, want %d", path, got, want)
		}
	}
	// What has no path at all is no question to a probe that is off.
	for method, target := range map[string]string{"GET": "http://example.com", "CONNECT": "example.com:443"} {
		if got := probe(served, method, target).Code; got != 418 {
			t.Errorf("%s %s: %d, want 418", method, target, got)
		}
	}
}

func TestChecksAreOutOfBand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int64
		h := health.New(health.WithCheck(health.Check{
			Name:     "slow",
			Interval: 10 * time.Second,
			Run: func(ctx context.Context) error {
				runs.Add(1)
				time.Sleep(time.Second) // in a synctest bubble
				return nil
			},
		}))
		defer h.Close()
		synctest.Wait()
		began := time.Now()
		for range 1000 {
			if h.Ready() {
				t.Fatal("ready before the first run has ended")
			}
			h.Readyz(httptest.NewRecorder(), httptest.NewRequest("GET", "/readyz", nil))
		}
		if time.Since(began) != 0 {
			t.Errorf("probes waited %v for a check", time.Since(began))
		}
		time.Sleep(time.Second) // in a synctest bubble
		synctest.Wait()
		if !h.Ready() {
			t.Error("not ready after the first pass")
		}
		time.Sleep(99 * time.Second) // in a synctest bubble: nine further runs, each after 9-11 s and taking 1 s
		if n := runs.Load(); n < 8 || n > 11 {
			t.Errorf("%d runs in 100 s with an interval of 10 s", n)
		}
		h.Close()
		time.Sleep(time.Second) // in a synctest bubble: a run may be under way, and it does not look at its context
	})
}

func TestCheckFailsAndRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var broken atomic.Bool
		h := health.New(health.WithCheck(health.Check{
			Name:     "disk",
			Interval: time.Second,
			Run: func(context.Context) error {
				if broken.Load() {
					return errors.New("disk full")
				}
				return nil
			},
		}))
		defer h.Close()
		synctest.Wait()
		broken.Store(true)
		time.Sleep(1200 * time.Millisecond) // in a synctest bubble
		w := probe(h.Handler(http.NotFoundHandler()), "GET", "/readyz")
		if w.Code != 503 || w.Body.String() != "not ready\ndisk: failing\n" {
			t.Errorf("%d %q", w.Code, w.Body)
		}
		if s := h.Stats(); s.Checks[0].Error != "disk full" || s.Checks[0].Ran.IsZero() || !s.Started {
			t.Errorf("stats %+v", s)
		}
		broken.Store(false)
		time.Sleep(1200 * time.Millisecond) // in a synctest bubble
		if !h.Ready() {
			t.Error("did not recover")
		}
	})
}

func TestHangingCheckIsLateAndNeverOverlaps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now, most, runs atomic.Int64
		release := make(chan struct{})
		h := health.New(health.WithCheck(health.Check{
			Name:     "stuck",
			Interval: time.Second,
			Timeout:  2 * time.Second,
			Run: func(context.Context) error { // ignores its context
				most.Store(max(most.Load(), now.Add(1)))
				defer now.Add(-1)
				if runs.Add(1) > 1 {
					<-release
				}
				time.Sleep(7 * time.Millisecond) // in a synctest bubble
				return nil
			},
		}))
		time.Sleep(10 * time.Millisecond) // in a synctest bubble
		if !h.Ready() {
			t.Fatal("not ready after a pass")
		}
		time.Sleep(4 * time.Second) // in a synctest bubble
		if h.Ready() {
			t.Error("ready although the check hangs")
		}
		if s := h.Stats().Checks[0]; !strings.Contains(s.Error, "did not return within 2s") || s.Latency != 7*time.Millisecond {
			t.Errorf("%+v; want it late, and the latency of the run that returned", s)
		}
		time.Sleep(time.Minute) // in a synctest bubble
		if most.Load() != 1 || runs.Load() != 2 {
			t.Errorf("%d runs, %d at once", runs.Load(), most.Load())
		}
		h.Close() // does not wait for it
		h.Close()
		close(release)
		time.Sleep(time.Second) // in a synctest bubble
	})
}

// A run that Close finds under way is no result, whether it ends with its context or not.
func TestCloseKeepsTheLastResults(t *testing.T) {
	for _, obeys := range []bool{true, false} {
		t.Run(fmt.Sprintf("the run ends with its context %v", obeys), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var runs atomic.Int64
				h := health.New(health.WithCheck(health.Check{
					Name:     "disk",
					Interval: time.Second,
					Timeout:  time.Minute,
					Run: func(ctx context.Context) error {
						if runs.Add(1) == 1 {
							return nil
						}
						select {
						case <-ctx.Done():
						case <-time.After(2 * time.Second):
						}
						if !obeys {
							time.Sleep(time.Second) // in a synctest bubble
						}
						return ctx.Err()
					},
				}))
				time.Sleep(1500 * time.Millisecond) // in a synctest bubble: the second run is under way
				before := h.Stats()
				h.Close()
				time.Sleep(time.Hour) // in a synctest bubble
				if after := h.Stats(); !after.Ready || after.Checks[0] != before.Checks[0] || runs.Load() != 2 {
					t.Errorf("%+v became %+v, after %d runs", before, after, runs.Load())
				}
			})
		})
	}
}

func TestIntervalIsSpreadByATenth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var at []time.Time
		h := health.New(health.WithCheck(health.Check{
			Name:     "disk",
			Interval: 10 * time.Second,
			Run:      func(context.Context) error { at = append(at, time.Now()); return nil },
		}))
		time.Sleep(time.Hour) // in a synctest bubble
		h.Close()
		least, most := time.Hour, time.Duration(0)
		for i := range at[1:] {
			least, most = min(least, at[i+1].Sub(at[i])), max(most, at[i+1].Sub(at[i]))
		}
		if len(at) < 320 || least < 9*time.Second || least > 9500*time.Millisecond || most > 11*time.Second || most < 10500*time.Millisecond {
			t.Errorf("%d runs in an hour, %v to %v apart", len(at), least, most)
		}
	})
}

// A check that always takes too long does not pass each time it ends.
func TestLateSuccessIsAFailure(t *testing.T) {
	for _, tc := range []struct {
		name   string
		takes  time.Duration
		result error
		ok     bool
		says   string
	}{
		{"in time", time.Second, nil, true, ""},
		{"late", 4 * time.Second, nil, false, "did not return within 2s"},
		{"late, and it failed", 4 * time.Second, errors.New("disk slow"), false, "disk slow"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := health.New(health.WithCheck(health.Check{
					Name:     "disk",
					Interval: time.Hour,
					Timeout:  2 * time.Second,
					Run: func(context.Context) error {
						time.Sleep(tc.takes) // in a synctest bubble
						return tc.result
					},
				}))
				defer h.Close()
				time.Sleep(5 * time.Second) // in a synctest bubble
				s := h.Stats()
				if c := s.Checks[0]; c.OK != tc.ok || !strings.Contains(c.Error, tc.says) || c.Latency != tc.takes || s.Ready != tc.ok || s.Started != tc.ok {
					t.Errorf("%+v", s)
				}
			})
		})
	}
}

// The longest interval there is means once.
func TestCheckThatRunsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		runs := 0
		for range 20 { // the interval is spread by chance
			h := health.New(health.WithCheck(health.Check{
				Name:     "warm-up",
				Interval: math.MaxInt64,
				Run:      func(context.Context) error { runs++; return nil },
			}))
			time.Sleep(24 * time.Hour) // in a synctest bubble
			h.Close()
		}
		if runs != 20 {
			t.Errorf("20 checks ran %d times", runs)
		}
	})
}

// An askingError looks at the Health whose check returned it.
type askingError struct{ h *health.Health }

func (e *askingError) Error() string {
	return fmt.Sprint("livez answers ", probe(http.HandlerFunc(e.h.Livez), "GET", "/livez").Code)
}

func TestStatsHoldsNoLockForAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		err := &askingError{}
		h := health.New(health.WithLiveCheck(check("asking", func(context.Context) error { return err })))
		defer h.Close()
		err.h = h
		synctest.Wait()
		if s := h.Stats(); s.Checks[0].Error != "livez answers 503" {
			t.Errorf("%+v", s)
		}
	})
}

func TestCheckSeesItsTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := health.New(health.WithCheck(health.Check{
			Name:    "slow",
			Timeout: time.Second,
			Run: func(ctx context.Context) error {
				<-ctx.Done()
				return ctx.Err()
			},
		}))
		defer h.Close()
		time.Sleep(1001 * time.Millisecond) // in a synctest bubble
		if s := h.Stats(); s.Ready || s.Checks[0].OK || s.Checks[0].Error == "" {
			t.Errorf("%+v", s)
		}
	})
}

func TestWrongOptionsSayWhatWasGiven(t *testing.T) {
	for _, c := range []struct {
		do    func()
		given string
	}{
		{func() { health.WithDrainStatus(500) }, "500"},
		{func() { health.WithCheck(health.Check{Name: "x", Run: pass, Interval: -3}) }, "-3ns"},
		{func() { health.WithLiveCheck(health.Check{Name: "x", Run: pass, Timeout: -7}) }, "-7ns"},
		{func() { health.WithDrainWait(-5) }, "-5ns"},
	} {
		func() {
			defer func() {
				if s, _ := recover().(string); !strings.Contains(s, c.given) || !strings.Contains(s, "give ") {
					t.Errorf("panic %q; want it to say %s and what to give", s, c.given)
				}
			}()
			c.do()
		}()
	}
}

func TestWrongOptionsPanic(t *testing.T) {
	for name, option := range map[string]func() health.Option{
		"empty name":        func() health.Option { return health.WithCheck(health.Check{Run: pass}) },
		"no function":       func() health.Option { return health.WithLiveCheck(health.Check{Name: "x"}) },
		"negative interval": func() health.Option { return health.WithCheck(health.Check{Name: "x", Run: pass, Interval: -1}) },
		"path":              func() health.Option { return health.WithPaths("livez", "", "") },
		"same path twice":   func() health.Option { return health.WithPaths("/healthz", "/healthz", "") },
		"drain status":      func() health.Option { return health.WithDrainStatus(500) },
		"wait":              func() health.Option { return health.WithDrainWait(-1) },
		"idle":              func() health.Option { return health.WithDrainIdle(-1) },
		"shutdown":          func() health.Option { return health.WithShutdownTimeout(-1) },
		"release":           func() health.Option { return health.WithReleaseTimeout(-1) },
		"nil":               func() health.Option { health.New(nil); return nil },
		"no server to run": func() health.Option {
			health.New().Run(t.Context(), nil)
			return nil
		},
		"no server to serve": func() health.Option {
			health.New().Serve(t.Context(), listenPipe(), nil)
			return nil
		},
		"no listener": func() health.Option {
			health.New().Serve(t.Context(), nil, &http.Server{})
			return nil
		},
		"nil to drain": func() health.Option {
			health.New(health.WithDrainWait(0)).Drain(t.Context(), nil, nil)
			return nil
		},
		"nil to serve": func() health.Option {
			ctx, leave := context.WithCancel(t.Context())
			leave()
			health.New(health.WithDrainWait(0)).Serve(ctx, listenPipe(), &http.Server{}, nil)
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if s, _ := recover().(string); !strings.HasPrefix(s, "health: ") {
					t.Errorf("panic %q does not name the package", s)
				}
			}()
			option()
		})
	}
	t.Run("duplicate name", func(t *testing.T) {
		defer func() {
			if recover() == nil {
				t.Error("no panic")
			}
		}()
		health.New(health.WithCheck(check("a", pass)), health.WithCheck(check("a", pass)))
	})
}

// A process is not called dead in the moment in which a check passes for the first time.
func TestLiveWhileChecksPassFirst(t *testing.T) {
	for range 20 {
		var opts []health.Option
		for i := range 200 {
			opts = append(opts, health.WithLiveCheck(check(strconv.Itoa(i), pass)))
		}
		h := health.New(opts...)
		defer h.Close()
		for all := false; !all; {
			if w := probe(http.HandlerFunc(h.Livez), "GET", "/livez"); w.Code != http.StatusOK {
				t.Fatalf("%d, and no check has failed", w.Code)
			}
			all = !slices.ContainsFunc(h.Stats().Checks, func(c health.CheckStats) bool { return !c.OK })
			runtime.Gosched()
		}
	}
}

func TestHandlerPassAllocatesNothing(t *testing.T) {
	h := health.New()
	served := h.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	w, r := httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil)
	if n := testing.AllocsPerRun(100, func() { served.ServeHTTP(w, r) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkHandler(b *testing.B) {
	next := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	w, r := httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil)
	b.Run("bare", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			next.ServeHTTP(w, r)
		}
	})
	served := health.New().Handler(next)
	b.Run("health", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			served.ServeHTTP(w, r)
		}
	})
}

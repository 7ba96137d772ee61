package middleware_test

import (
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/rpc"
	"net/url"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/cache"
	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware"
	"github.com/spillgate/spillgate/pool"
	"github.com/spillgate/spillgate/pool/jobs"
)

// site is a real server behind a stack.
type site struct {
	t      *testing.T
	stack  *middleware.Stack
	srv    *httptest.Server
	inside sync.WaitGroup // handlers that have not returned
}

func newSite(t *testing.T, h http.Handler, layers ...middleware.Layer) *site {
	t.Helper()
	s := &site{t: t, stack: middleware.New(layers...)}
	guarded := s.stack.Handler(h)
	s.srv = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.inside.Add(1)
		defer s.inside.Done()
		guarded.ServeHTTP(w, r)
	}))
	s.srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.srv.Start()
	t.Cleanup(s.srv.Close)
	return s
}

// close closes the server and waits for all handlers: the server does not wait for one that has hijacked its connection.
func (s *site) close() {
	s.srv.Close()
	s.inside.Wait()
}

func (s *site) get(path string) (int, string, http.Header) {
	s.t.Helper()
	res, err := s.srv.Client().Get(s.srv.URL + path)
	if err != nil {
		return 0, err.Error(), nil
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return res.StatusCode, err.Error(), res.Header
	}
	return res.StatusCode, string(b), res.Header
}

func (s *site) want(path string, status int, body string) http.Header {
	s.t.Helper()
	got, b, h := s.get(path)
	if got != status || body != "" && b != body {
		s.t.Fatalf("GET %s: %d %q, want %d %q", path, got, b, status, body)
	}
	return h
}

func (s *site) layer(kind string) middleware.LayerStats {
	s.t.Helper()
	for _, l := range s.stack.Stats().Layers {
		if l.Layer == kind {
			return l
		}
	}
	s.t.Fatalf("no %s layer in the stats", kind)
	return middleware.LayerStats{}
}

// checkAtRest fails if a layer still holds something. The server must have been closed.
func checkAtRest(t *testing.T, s *middleware.Stack) {
	t.Helper()
	st := s.Stats()
	if st.InFlight != 0 {
		t.Errorf("%d requests in flight, want 0", st.InFlight)
	}
	for _, l := range st.Layers {
		if l.Concurrency != nil && (l.Concurrency.InFlight != 0 || l.Concurrency.Queued != 0) {
			t.Errorf("concurrency: %d in flight, %d queued; want 0", l.Concurrency.InFlight, l.Concurrency.Queued)
		}
		if l.Pool != nil && (l.Pool.Used != 0 || l.Pool.Waiting != 0) {
			t.Errorf("pool: %d slots used, %d waiting; want 0", l.Pool.Used, l.Pool.Waiting)
		}
		if l.Cache != nil && l.Cache.Fills != 0 {
			t.Errorf("cache: %d fills in flight; want 0", l.Cache.Fills)
		}
		if l.Breaker != nil {
			for k, b := range l.Breaker.Routes {
				if b.InFlight != 0 || b.ProbesOut != 0 {
					t.Errorf("breaker %q: %d in flight, %d probes out; want 0", k, b.InFlight, b.ProbesOut)
				}
			}
		}
	}
}

// blocker is a handler that tells when it was entered and waits to be let go.
type blocker struct {
	entered, leave chan struct{}
	release        func()
}

func newBlocker(t *testing.T) *blocker {
	b := &blocker{entered: make(chan struct{}, 100), leave: make(chan struct{})}
	b.release = sync.OnceFunc(func() { close(b.leave) })
	t.Cleanup(b.release)
	return b
}

func (b *blocker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.entered <- struct{}{}
	select {
	case <-b.leave:
	case <-r.Context().Done():
	}
	io.WriteString(w, "done")
}

func TestHitTakesNoPermit(t *testing.T) {
	b := newBlocker(t)
	mux := http.NewServeMux()
	mux.Handle("/block", b)
	mux.HandleFunc("/news", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Cache-Control", "public, max-age=600")
		io.WriteString(w, "news")
	})
	s := newSite(t, mux, middleware.Cache(cache.New(1<<20)), middleware.Concurrency(limiter.NewConcurrency(1)))
	defer b.release()
	s.want("/news", 200, "news")
	done := make(chan struct{})
	go func() { defer close(done); s.get("/block") }()
	<-b.entered
	h := s.want("/other", 503, "")
	if h.Get("Retry-After") == "" || h.Get("Cache-Control") != "no-store" || h.Get("Content-Type") != "application/problem+json" {
		t.Errorf("503 without its fields: %v", h)
	}
	before := s.layer("concurrency").Concurrency.Admitted
	for range 10 {
		s.want("/news", 200, "news")
	}
	if n := s.layer("concurrency").Concurrency.Admitted; n != before {
		t.Errorf("ten hits took %d permits, want none", n-before)
	}
	b.release()
	<-done
	s.close()
	checkAtRest(t, s.stack)
}

func TestShedByPoolIsNoFailure(t *testing.T) {
	b := newBlocker(t)
	g := breaker.NewGroup(breaker.WithFailureRatio(0.1, 5))
	l := limiter.NewAdaptive()
	defer b.release()
	s := newSite(t, b, middleware.Concurrency(l), middleware.Breaker(g), middleware.Pool(pool.New(pool.WithSlots(1), pool.WithQueue(0, 0))))
	done := make(chan struct{})
	go func() { defer close(done); s.get("/") }()
	<-b.entered
	for range 50 {
		s.want("/", 503, "")
	}
	if st := g.Get("").Stats(); st.State != breaker.Closed || st.Failures != 0 || st.Ignored != 50 {
		t.Errorf("breaker is %v with %d failures and %d ignored; want closed, 0, 50", st.State, st.Failures, st.Ignored)
	}
	if st := l.Stats(); st.Failure != 0 || st.Ignored != 51 { // the one in the pool too
		t.Errorf("adaptive limit saw %d failures and ignored %d; want 0, 51", st.Failure, st.Ignored)
	}
	if n := s.stack.Stats().Rejected.Pool; n != 50 {
		t.Errorf("%d rejected by the pool, want 50", n)
	}
	b.release()
	<-done
	s.close()
	checkAtRest(t, s.stack)
}

// inBetween is what may stand between two layers of ours, by what it makes of their ResponseWriter.
var inBetween = map[string]middleware.Func{
	"the same writer": func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { next.ServeHTTP(w, r) })
	},
	"a writer that unwraps": func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { next.ServeHTTP(unwrapper{w}, r) })
	},
	"a writer that does not": func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			next.ServeHTTP(struct{ http.ResponseWriter }{w}, r)
		})
	},
	"http.TimeoutHandler":      func(next http.Handler) http.Handler { return http.TimeoutHandler(next, time.Minute, "") },
	"a writer that holds back": holdBack,
}

// heldBack is a writer that unwraps, and writes nothing before the handler has returned: many that compress wait so for enough to be
// worth it.
type heldBack struct {
	http.ResponseWriter
	status int
	body   []byte
}

func (h *heldBack) Unwrap() http.ResponseWriter { return h.ResponseWriter }
func (h *heldBack) WriteHeader(status int)      { h.status = status }
func (h *heldBack) Write(b []byte) (int, error) {
	h.body = append(h.body, b...)
	return len(b), nil
}

func holdBack(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := &heldBack{ResponseWriter: w, status: 200}
		defer func() {
			w.WriteHeader(h.status)
			w.Write(h.body)
		}()
		next.ServeHTTP(h, r)
	})
}

// What a handler answers is known to the layers around it when it has returned, though a writer between them and those further out
// holds the answer back.
func TestAnswerIsKnownBehindAnyWriter(t *testing.T) {
	for between, f := range inBetween {
		t.Run(between, func(t *testing.T) {
			status := 500
			site := func(inner middleware.Layer) http.Handler {
				return middleware.Wrap(f(inner.Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }))),
					middleware.Concurrency(limiter.NewConcurrency(1)))
			}
			g := breaker.NewGroup(breaker.WithFailureRatio(0.5, 5))
			h := site(middleware.Breaker(g))
			for range 20 {
				get(h, "GET", "/")
			}
			if st := g.Get("").State(); st != breaker.Open {
				t.Errorf("after 20 times status 500 the breaker is %v, want open", st)
			}

			l := limiter.NewConcurrency(1)
			get(site(middleware.Concurrency(l)), "GET", "/")
			if st := l.Stats(); st.Failure != 1 {
				t.Errorf("status 500 is to the limit: %d failures, %d successes; want 1, 0", st.Failure, st.Success)
			}

			var res middleware.Result
			get(site(middleware.WithTrace(&middleware.Trace{Done: func(_ *http.Request, r middleware.Result) { res = r }})), "GET", "/")
			if res.Status != 500 {
				t.Errorf("the trace is told of status %d, want 500", res.Status)
			}

			status = 401
			h = site(middleware.Rate(limiter.NewRate(rate.Every(time.Hour), 3), middleware.WithChargeFailuresOnly()))
			for i, want := range []int{401, 401, 401, 429} {
				if got := get(h, "POST", "/login").StatusCode; got != want {
					t.Errorf("login %d that fails: status %d, want %d", i+1, got, want)
				}
			}
		})
	}
}

// What layers further in say of a request gets past a writer between: what the cache did, a fallback, the route, and that it
// comes to a pool.
func TestWordPassesAWriterThatHoldsBack(t *testing.T) {
	var res middleware.Result
	trace := middleware.WithTrace(&middleware.Trace{Done: func(_ *http.Request, r middleware.Result) { res = r }})
	text := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Cache-Control", "max-age=60")
		io.WriteString(w, "text")
	})

	h := middleware.Wrap(holdBack(middleware.Cache(cache.New(1<<20)).Handler(text)), trace,
		middleware.Rate(limiter.NewRate(rate.Every(time.Hour), 2), middleware.WithChargeMissesOnly()))
	for i := range 5 {
		if got := get(h, "GET", "/").StatusCode; got != 200 || (res.Cache == cache.Hit) != (i > 0) {
			t.Errorf("request %d: status %d, cache %v; want 200 and a hit but for the first, which alone is charged", i+1, got, res.Cache)
		}
	}

	g, out := breaker.NewGroup(), breaker.NewGroup(breaker.WithFailureRatio(0.5, 5))
	g.Get("").ForceOpen()
	h = middleware.Wrap(holdBack(middleware.Breaker(g, middleware.WithFallback(http.NotFoundHandler())).Handler(text)), trace, middleware.Breaker(out))
	get(h, "GET", "/")
	if st := out.Get("").Stats(); st.Ignored != 1 || res.Shed != "breaker" {
		t.Errorf("outside a fallback the breaker ignored %d, and the trace is told of a refusal by %q; want 1, breaker", st.Ignored, res.Shed)
	}

	mux := http.NewServeMux()
	mux.Handle("/a/", text)
	inner := middleware.Breaker(breaker.NewGroup()).Handler(mux)
	h = middleware.Wrap(holdBack(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		inner.ServeHTTP(w, r.Clone(r.Context()))
	})), trace)
	if get(h, "GET", "/a/b"); res.Route != "/a/" {
		t.Errorf("route %q, want /a/", res.Route)
	}

	l := limiter.NewAdaptive()
	var held int
	h = middleware.Wrap(holdBack(middleware.Pool(pool.New(pool.WithSlots(1))).Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		held = l.Stats().InFlight
	}))), middleware.Concurrency(l))
	if get(h, "GET", "/"); held != 0 {
		t.Errorf("%d permits held in the pool, want 0", held)
	}

	full := limiter.NewConcurrency(1)
	if _, ok := full.TryAcquire(limiter.Request{}); !ok {
		t.Fatal("no permit")
	}
	h = middleware.Wrap(holdBack(middleware.Wrap(text, middleware.Cache(cache.New(1<<20)), middleware.Concurrency(full))), trace)
	if get(h, "GET", "/"); res.Shed != "concurrency" || res.Status != 503 {
		t.Errorf("the trace is told of status %d, refused by %q; want 503, concurrency", res.Status, res.Shed)
	}
}

func TestShedByInnerLayersIsNoFailureOutside(t *testing.T) {
	layers := refusing(t)
	layers["pool, with WithReject"] = middleware.For("/", layers["pool"], middleware.WithReject(
		func(w http.ResponseWriter, r *http.Request, j *middleware.Rejection) { j.Write(w, r) }))
	for between, f := range inBetween {
		for name, inner := range layers {
			t.Run(name+" behind "+between, func(t *testing.T) {
				g, l := breaker.NewGroup(breaker.WithFailureRatio(0.1, 5)), limiter.NewAdaptive()
				var res middleware.Result
				h := middleware.Wrap(f(inner.Handler(http.NotFoundHandler())), middleware.Concurrency(l), middleware.Breaker(g),
					middleware.WithTrace(&middleware.Trace{Done: func(_ *http.Request, r middleware.Result) { res = r }}))
				for range 30 {
					if status := get(h, "GET", "/").StatusCode; status != 503 && status != 429 {
						t.Fatalf("status %d, want a refusal", status)
					}
				}
				if st := g.Get("").Stats(); st.Failures != 0 || st.Ignored != 30 || l.Stats().Ignored != 30 {
					t.Errorf("outer breaker: %d failures, %d ignored; outer limit ignored %d; want 0, 30, 30", st.Failures, st.Ignored, l.Stats().Ignored)
				}
				if !strings.HasPrefix(name, res.Shed) || res.Shed == "" {
					t.Errorf("the trace is told of a refusal by %q", res.Shed)
				}
			})
		}
	}
}

// A 503 that the handler writes itself is a failure: the mark counts, not the status, nor what else looks like a refusal.
func TestHandlers503IsAFailure(t *testing.T) {
	for between, f := range inBetween {
		g := breaker.NewGroup(breaker.WithFailureRatio(0.5, 5))
		h := middleware.Wrap(f(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "no-store")
			new(middleware.Rejection).Write(w, r)
		})), middleware.Breaker(g))
		for range 20 {
			get(h, "GET", "/")
		}
		if st := g.Get("").State(); st != breaker.Open {
			t.Errorf("behind %s the breaker is %v, want open", between, st)
		}
	}
}

func TestStaleAnswers(t *testing.T) {
	type world struct {
		fail  atomic.Int32 // status to answer; -1 panics
		g     *breaker.Group
		l     *limiter.Concurrency
		block *blocker
	}
	for _, c := range []struct {
		name     string
		break_   func(t *testing.T, s *site, w *world)
		control  string
		want     int // of the stale request
		wantBody string
		says     string // in Cache-Status: a hit, unless the handler ran
	}{
		{name: "handler answers 500", control: "public, max-age=60, stale-if-error=600", want: 200, wantBody: "fresh", says: "; fwd=stale; fwd-status=500; ttl=", break_: func(_ *testing.T, _ *site, w *world) { w.fail.Store(500) }},
		{name: "handler panics", control: "public, max-age=60, stale-if-error=600", want: 200, wantBody: "fresh", says: "; fwd=stale; ttl=", break_: func(_ *testing.T, _ *site, w *world) { w.fail.Store(-1) }},
		{name: "breaker is open", control: "public, max-age=60, stale-if-error=600", want: 200, wantBody: "fresh", says: "; hit; ttl=", break_: func(_ *testing.T, _ *site, w *world) { w.g.Get("/page").ForceOpen() }},
		{name: "server is full", control: "public, max-age=60, stale-if-error=600", want: 200, wantBody: "fresh", says: "; hit; ttl=", break_: func(t *testing.T, s *site, w *world) {
			go s.get("/block")
			<-w.block.entered
		}},
		{name: "not against must-revalidate", control: "public, max-age=60, must-revalidate, stale-if-error=600", want: 503, break_: func(_ *testing.T, _ *site, w *world) { w.g.Get("/page").ForceOpen() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := &world{g: breaker.NewGroup(), l: limiter.NewConcurrency(1), block: newBlocker(t)}
			mux := http.NewServeMux()
			mux.Handle("/block", w.block)
			mux.HandleFunc("/page", func(rw http.ResponseWriter, _ *http.Request) {
				switch f := w.fail.Load(); {
				case f < 0:
					panic(http.ErrAbortHandler)
				case f > 0:
					http.Error(rw, "broken", int(f))
					return
				}
				rw.Header().Set("Cache-Control", c.control)
				io.WriteString(rw, "fresh")
			})
			c1 := cache.New(1 << 20)
			s := newSite(t, mux, middleware.Cache(c1), middleware.Concurrency(w.l), middleware.Breaker(w.g))
			t.Cleanup(w.block.release) // before the server waits for its requests
			s.want("/page", 200, "fresh")
			if n := c1.PurgeSoft(s.srv.URL + "/page"); n != 1 { // stale from now on, without waiting for it
				t.Fatalf("made %d responses stale, want 1", n)
			}
			c.break_(t, s, w)
			h := s.want("/page", c.want, c.wantBody)
			if c.want == 200 && !strings.Contains(h.Get("Cache-Status"), c.says) {
				t.Errorf("Cache-Status %q of a stale answer; want %q", h.Get("Cache-Status"), c.says)
			}
			w.block.release()
			s.close()
			checkAtRest(t, s.stack)
		})
	}
}

// A fallback answers while a breaker refuses, and is no word of the handler: what a cache has stays, and comes where the handler fails afterwards. Nor
// do requests for the page go past the cache when the breaker has closed.
func TestFallbackLeavesWhatIsStored(t *testing.T) {
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		t.Run(method, func(t *testing.T) {
			var fail atomic.Bool
			mux := http.NewServeMux()
			mux.HandleFunc("/page", func(w http.ResponseWriter, _ *http.Request) {
				if fail.Load() {
					http.Error(w, "broken", http.StatusInternalServerError)
					return
				}
				w.Header().Set("Cache-Control", "public, max-age=60, stale-if-error=600")
				io.WriteString(w, "page")
			})
			g, c := breaker.NewGroup(), cache.New(1<<20)
			s := newSite(t, mux, middleware.Cache(c), middleware.Breaker(g, middleware.WithFallback(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Etag", `"fallback"`)
				io.WriteString(w, "fallback")
			}))))
			s.want("/page", 200, "page")
			c.PurgeSoft(s.srv.URL + "/page")
			g.Get("/page").ForceOpen()
			for range 2 {
				req, err := http.NewRequest(method, s.srv.URL+"/page", nil)
				if err != nil {
					t.Fatal(err)
				}
				res, err := s.srv.Client().Do(req)
				if err != nil {
					t.Fatal(err)
				}
				res.Body.Close()
				if got := res.Header.Get("Etag"); got != `"fallback"` {
					t.Errorf("while the breaker is open the answer has the Etag %s, want that of the fallback", got)
				}
			}
			s.want("/other", 404, "404 page not found\n")
			g.Get("/page").ForceClosed()
			fail.Store(true)
			if h := s.want("/page", 200, "page"); !strings.Contains(h.Get("Cache-Status"), "stale-if-error") {
				t.Errorf("Cache-Status %q where the handler fails, want the stale page", h.Get("Cache-Status"))
			}
			fail.Store(false)
			s.want("/page", 200, "page")
			if h := s.want("/page", 200, "page"); !strings.Contains(h.Get("Cache-Status"), "; hit") {
				t.Errorf("Cache-Status %q afterwards, want a hit", h.Get("Cache-Status"))
			}
		})
	}
	t.Run("a page that was not stored", func(t *testing.T) {
		mux := http.NewServeMux()
		mux.HandleFunc("/page", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Cache-Control", "public, max-age=60")
			io.WriteString(w, "page")
		})
		g := breaker.NewGroup()
		s := newSite(t, mux, middleware.Cache(cache.New(1<<20)), middleware.Breaker(g, middleware.WithFallback(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, "fallback")
		}))))
		g.Get("/page").ForceOpen()
		s.want("/page", 200, "fallback")
		g.Get("/page").ForceClosed()
		s.want("/page", 200, "page")
		if h := s.want("/page", 200, "page"); !strings.Contains(h.Get("Cache-Status"), "; hit") {
			t.Errorf("Cache-Status %q when the breaker has closed, want a hit", h.Get("Cache-Status"))
		}
	})
}

// What a layer refused is not stored, and the client hears when to come back.
func TestRefusalIsNotStored(t *testing.T) {
	g := breaker.NewGroup()
	mux := http.NewServeMux()
	mux.HandleFunc("/page", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Cache-Control", "public, max-age=600")
		io.WriteString(w, "page")
	})
	s := newSite(t, mux, middleware.Cache(cache.New(1<<20)), middleware.Breaker(g),
		middleware.WithReject(func(w http.ResponseWriter, r *http.Request, j *middleware.Rejection) {
			w.Header().Set("Cache-Control", "public, max-age=600") // a mistake that must not stick
			j.Write(w, r)
		}))
	g.Get("/page").ForceOpen()
	s.want("/page", 503, "")
	g.Get("/page").ForceClosed()
	s.want("/page", 200, "page")
}

func TestClientThatLeavesIsNoFailure(t *testing.T) {
	g := breaker.NewGroup(breaker.WithFailureRatio(0.1, 5))
	l := limiter.NewAdaptive()
	entered := make(chan struct{}, 1)
	s := newSite(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		<-r.Context().Done()
		w.WriteHeader(502) // as ReverseProxy does
	}), middleware.Concurrency(l), middleware.Breaker(g))
	for range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		req, err := http.NewRequestWithContext(ctx, "GET", s.srv.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			<-entered
			cancel()
		}()
		if res, err := s.srv.Client().Do(req); err == nil {
			res.Body.Close()
			t.Fatal("the request was answered")
		}
	}
	s.close()
	if st := g.Get("").Stats(); st.State != breaker.Closed || st.Failures != 0 || st.Ignored != 20 {
		t.Errorf("breaker is %v with %d failures, %d ignored; want closed, 0, 20", st.State, st.Failures, st.Ignored)
	}
	if st := l.Stats(); st.Failure != 0 || st.Ignored != 20 {
		t.Errorf("limit saw %d failures, ignored %d; want 0, 20", st.Failure, st.Ignored)
	}
	checkAtRest(t, s.stack)
}

// Who has all of an answer leaves, as every client does that sends Connection: close, while the handler still has something to do. The request is what
// its answer was: while it was none at all, a breaker saw failures only, and an adaptive limit no throughput.
func TestClientThatHasItsAnswerMayLeave(t *testing.T) {
	answer := func(w http.ResponseWriter, status int) {
		w.Header().Set("Content-Length", "4")
		w.WriteHeader(status)
		io.WriteString(w, "done")
		http.NewResponseController(w).Flush()
	}
	long := strings.Repeat("done", 4<<10)
	for _, c := range []struct {
		name    string
		handler http.HandlerFunc
		want    breaker.Outcome
	}{
		{"the answer is whole", func(w http.ResponseWriter, r *http.Request) {
			answer(w, 200)
			cancelOf(r)()
		}, breaker.Success},
		{"the answer is whole and a failure", func(w http.ResponseWriter, r *http.Request) {
			answer(w, 500)
			cancelOf(r)()
		}, breaker.Failure},
		{"the answer was copied", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(len(long)))
			io.Copy(w, struct{ io.Reader }{strings.NewReader(long)})
			cancelOf(r)()
		}, breaker.Success},
		{"the answer was written at once", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(len(long)))
			w.Write([]byte(long))
			cancelOf(r)()
		}, breaker.Success},
		{"the answer is a length of 0", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "0")
			http.NewResponseController(w).Flush()
			cancelOf(r)()
		}, breaker.Success},
		{"the answer is 204", func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(204)
			http.NewResponseController(w).Flush()
			cancelOf(r)()
		}, breaker.Success},
		{"a panic after the answer", func(w http.ResponseWriter, r *http.Request) {
			answer(w, 200)
			cancelOf(r)()
			panic("x")
		}, breaker.Ignored},
		{"a part of the answer is held back", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(len(long)+4))
			w.Write([]byte(long))
			io.WriteString(w, "done")
			cancelOf(r)()
		}, breaker.Ignored},
		{"the client left first", func(w http.ResponseWriter, r *http.Request) {
			cancelOf(r)()
			answer(w, 500)
		}, breaker.Ignored},
		{"the client left amid the answer", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "5")
			io.WriteString(w, "done")
			cancelOf(r)()
		}, breaker.Ignored},
		{"nobody can know that it was all", func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "done")
			cancelOf(r)()
		}, breaker.Ignored},
	} {
		for name, below := range map[string]func() http.ResponseWriter{
			"plain": func() http.ResponseWriter { return httptest.NewRecorder() },
			"ReaderFrom": func() http.ResponseWriter {
				rec := httptest.NewRecorder()
				return struct {
					wR
					http.Flusher
				}{wR{rec}, rec}
			},
		} {
			for _, behind := range []bool{true, false} {
				g, l := breaker.NewGroup(), limiter.NewAdaptive()
				var res middleware.Result
				layers := []middleware.Layer{middleware.Concurrency(l), middleware.WithTrace(&middleware.Trace{Done: func(_ *http.Request, x middleware.Result) { res = x }})}
				if behind {
					layers = append(layers, middleware.Breaker(g))
				}
				h := middleware.Wrap(c.handler, layers...)
				ctx, cancel := context.WithCancel(t.Context())
				func() {
					defer func() { _ = recover() }()
					h.ServeHTTP(below(), httptest.NewRequest("GET", "/", nil).WithContext(context.WithValue(ctx, cancelKey{}, cancel)))
				}()
				cancel()
				got := breaker.Ignored
				switch st := l.Stats(); {
				case st.Success == 1:
					got = breaker.Success
				case st.Failure == 1:
					got = breaker.Failure
				}
				if got != c.want || res.Left != (c.want == breaker.Ignored) {
					t.Errorf("%s, %s: the limit saw %v, and the trace Left=%v; want %v", c.name, name, got, res.Left, c.want)
				}
				if !behind {
					continue
				}
				got = breaker.Ignored
				switch st := g.Get("").Stats(); {
				case st.Successes == 1:
					got = breaker.Success
				case st.Failures == 1:
					got = breaker.Failure
				}
				if got != c.want {
					t.Errorf("%s, %s: the breaker saw %v, want %v", c.name, name, got, c.want)
				}
			}
		}
	}
}

// cutOff has a request to a server with a WriteTimeout of a second, and returns what a limit and a breaker made of it.
func cutOff(t *testing.T, h http.HandlerFunc) (limiter.ConcurrencyStats, breaker.Stats) {
	g, l := breaker.NewGroup(), limiter.NewAdaptive()
	ctx, cancel := context.WithCancel(context.WithValue(t.Context(), http.ServerContextKey, &http.Server{WriteTimeout: time.Second}))
	r := httptest.NewRequest("GET", "/", nil).WithContext(context.WithValue(ctx, cancelKey{}, cancel))
	middleware.Wrap(h, middleware.Concurrency(l), middleware.Breaker(g)).ServeHTTP(httptest.NewRecorder(), r)
	return l.Stats(), g.Get("").Stats()
}

// Whom the server's WriteTimeout cuts off does not have all of an answer, though all of it was written: it waited in a buffer.
func TestWholeAnswerThatIsCutOffIsAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, b := cutOff(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "4")
			io.WriteString(w, "done")
			time.Sleep(time.Second) // in a synctest bubble
			cancelOf(r)()           // as net/http does when it cannot flush
		})
		if l.Failure != 1 || b.Failures != 1 {
			t.Errorf("the limit saw %d failures, the breaker %d; want 1", l.Failure, b.Failures)
		}
	})
}

// The server's WriteTimeout cuts nothing off that was sent before: a handler may go on for longer, with the client gone.
func TestClientThatHasItsAnswerIsCutOffFromNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, b := cutOff(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "4")
			io.WriteString(w, "done")
			http.NewResponseController(w).Flush()
			cancelOf(r)()
			time.Sleep(2 * time.Second) // in a synctest bubble
		})
		if l.Success != 1 || b.Successes != 1 {
			t.Errorf("the limit saw %d successes, the breaker %d; want 1", l.Success, b.Successes)
		}
	})
}

// What net/http holds back until the handler is done no client has: one that is tired of waiting for it has left amid the answer. A handler that hung after
// it had written one was a success to every breaker.
func TestClientThatLeavesBeforeItsAnswerIsSent(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		for _, flushed := range []bool{false, true} {
			g, l := breaker.NewGroup(), limiter.NewAdaptive()
			wrote, done := make(chan struct{}), make(chan struct{})
			wrapped := middleware.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Length", "8")
				io.WriteString(w, "half")
				if flushed {
					w.(http.Flusher).Flush()
				}
				io.WriteString(w, "done")
				close(wrote)
				<-r.Context().Done()
			}), middleware.Concurrency(l), middleware.Breaker(g))
			s, _ := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				defer close(done)
				wrapped.ServeHTTP(w, r)
			}), h2)
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				<-wrote
				cancel()
			}()
			r, err := http.NewRequestWithContext(ctx, "GET", s.URL, nil)
			if err != nil {
				t.Fatal(err)
			}
			if res, err := s.Client().Do(r); err == nil {
				if _, err := io.ReadAll(res.Body); err == nil {
					t.Error("the client has all of the answer")
				}
				res.Body.Close()
			}
			<-done
			if st, b := l.Stats(), g.Get("").Stats(); st.Ignored != 1 || b.Ignored != 1 {
				t.Errorf("HTTP/2 %v, flushed before %v: the limit ignored %d and saw %d successes, the breaker %d and %d; want 1 and 0", h2, flushed, st.Ignored, st.Success, b.Ignored, b.Successes)
			}
		}
	}
}

// Of an answer to HEAD the header is all, and is sent when it is flushed; the body goes nowhere, however long it is.
func TestClientOfHEADThatLeaves(t *testing.T) {
	for flushed, want := range map[bool]breaker.Outcome{false: breaker.Ignored, true: breaker.Success} {
		g := breaker.NewGroup()
		h := middleware.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "20000")
			if flushed {
				http.NewResponseController(w).Flush()
			} else {
				w.Write(make([]byte, 20000))
			}
			cancelOf(r)()
		}), middleware.Breaker(g))
		ctx, cancel := context.WithCancel(t.Context())
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("HEAD", "/", nil).WithContext(context.WithValue(ctx, cancelKey{}, cancel)))
		got := breaker.Ignored
		if g.Get("").Stats().Successes == 1 {
			got = breaker.Success
		}
		if got != want {
			t.Errorf("flushed %v: %v, want %v", flushed, got, want)
		}
	}
}

// A ReverseProxy that has passed on all of an answer whose end has not come yet, as HTTP/2 tells it apart from the last byte, panics when its client leaves with that.
func TestClientThatHasItsAnswerOfAProxyIsNoFailure(t *testing.T) {
	up, _ := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "4")
		io.WriteString(w, "done")
		w.(http.Flusher).Flush()
		<-r.Context().Done() // when the proxy has left
	}), true)
	target, err := url.Parse(up.URL)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.Transport, proxy.FlushInterval = up.Client().Transport, -1
	g, l := breaker.NewGroup(), limiter.NewAdaptive()
	wrapped := middleware.Wrap(proxy, middleware.Concurrency(l), middleware.Breaker(g))
	done := make(chan struct{})
	s, _ := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(done)
		wrapped.ServeHTTP(w, r)
	}), false)
	c := s.Client()
	c.Transport.(*http.Transport).DisableKeepAlives = true
	res, err := c.Get(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(res.Body); string(b) != "done" || err != nil {
		t.Fatalf("%q, %v", b, err)
	}
	res.Body.Close()
	<-done
	if st, b := l.Stats(), g.Get("").Stats(); st.Failure != 0 || b.Failures != 0 {
		t.Errorf("the limit saw %d failures, the breaker %d; want none", st.Failure, b.Failures)
	}
}

// So it is with clients of both protocols, as net/http tells of them.
func TestClientThatHasItsAnswerHasLeft(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		g, l := breaker.NewGroup(), limiter.NewAdaptive()
		var running sync.WaitGroup
		wrapped := middleware.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "4")
			io.WriteString(w, "done")
			w.(http.Flusher).Flush()
			<-r.Context().Done() // when the client has left
		}), middleware.Concurrency(l), middleware.Breaker(g))
		s, _ := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer running.Done()
			wrapped.ServeHTTP(w, r)
		}), h2)
		c := s.Client()
		c.Transport.(*http.Transport).DisableKeepAlives = !h2
		for range 3 {
			running.Add(1)
			res, err := c.Get(s.URL)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(res.Body, make([]byte, 4)); err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
		}
		running.Wait()
		if st, b := l.Stats(), g.Get("").Stats(); st.Success != 3 || b.Successes != 3 {
			t.Errorf("HTTP/2 %v: the limit saw %d successes and ignored %d, the breaker %d and %d; want 3 and 0", h2, st.Success, st.Ignored, b.Successes, b.Ignored)
		}
	}
}

type myPanic struct{ n int }

func throw(v any) { panic(v) }

// A panic reaches whoever is outside with its value and its stack, and gives everything back.
func TestPanicPassesUntouched(t *testing.T) {
	stack := allFive()
	value := &myPanic{42}
	h := stack.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { throw(value) }))
	for _, path := range []string{"/get", "/again"} {
		func() {
			defer func() {
				if got := recover(); got != value {
					t.Errorf("recovered %v, want the handler's own value", got)
				}
				if st := stackHere(); !strings.Contains(st, "middleware_test.throw") {
					t.Errorf("the stack of the panic is lost:\n%s", st)
				}
			}()
			h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", path, nil))
		}()
	}
	checkAtRest(t, stack)
}

// A cache writes and flushes what it records on a goroutine of its own, while the handler may put trailers into the map that it has had
// from the start. A layer outside looks at the header meanwhile, as one that compresses does: in the same map that ends the process now and then.
func TestWritersOutsideACacheHaveAHeaderOfTheirOwn(t *testing.T) {
	for name, first := range map[string]string{"flushed": "hello", "more than is held back": strings.Repeat("hello", 1000)} {
		t.Run(name, func(t *testing.T) {
			w := &lookingWriter{ResponseRecorder: httptest.NewRecorder(), looked: make(chan struct{}, 8)}
			h := middleware.Wrap(http.HandlerFunc(func(fw http.ResponseWriter, r *http.Request) {
				hd := fw.Header()
				hd.Set("Cache-Control", "public, max-age=60")
				hd.Set("X-From-Handler", "1")
				io.WriteString(fw, first)
				if name == "flushed" {
					fw.(http.Flusher).Flush()
				}
				<-w.looked
				hd.Set(http.TrailerPrefix+"X-Sum", "42") // the race detector sees a look at the same map
				hd.Set("X-Late", "1")
			}))
			h.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
			res := w.Result()
			if got := res.Header.Get("X-From-Handler"); got != "1" || w.Body.String() != first {
				t.Errorf("X-From-Handler %q, %d bytes; want 1, %d", got, w.Body.Len(), len(first))
			}
			if got := w.Header().Get(http.TrailerPrefix + "X-Sum"); got != "42" {
				t.Errorf("trailer %q, want 42", got)
			}
			if got := w.Header().Get("X-Late"); got != "" {
				t.Errorf("the field that was set after the body has arrived: %q", got)
			}
		})
	}
}

// lookingWriter looks at its whole header whenever it is written to or flushed.
type lookingWriter struct {
	*httptest.ResponseRecorder
	looked chan struct{}
}

func (w *lookingWriter) look() {
	_ = len(w.Header())
	select {
	case w.looked <- struct{}{}:
	default:
	}
}

func (w *lookingWriter) Write(b []byte) (int, error) {
	w.look()
	return w.ResponseRecorder.Write(b)
}

func (w *lookingWriter) Flush() {
	w.look()
	w.ResponseRecorder.Flush()
}

// Ten thousand requests at once with cancels, panics, hijacks, aborts and slow readers leave nothing behind.
func TestStressLeavesNothingBehind(t *testing.T) {
	n := 10_000
	if testing.Short() {
		n = 1_000
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/{what}", func(w http.ResponseWriter, r *http.Request) {
		switch r.PathValue("what") {
		case "panic":
			panic("boom")
		case "abort":
			io.WriteString(w, "half")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		case "hijack":
			c, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				c.Close()
			}
		case "cached":
			w.Header().Set("Cache-Control", "public, max-age=1")
			io.WriteString(w, strings.Repeat("x", 1<<12))
		case "large":
			w.Write(make([]byte, 1<<18))
		case "wait":
			<-r.Context().Done()
		case "fail":
			w.WriteHeader(500)
		default:
			io.WriteString(w, "ok")
		}
	})
	s := newSite(t, mux,
		middleware.Cache(cache.New(1<<20)),
		middleware.Concurrency(limiter.NewConcurrency(50, limiter.WithQueue(50, time.Second))),
		middleware.Breaker(breaker.NewGroup(breaker.WithFailureRatio(0.9, 50))),
		middleware.Pool(pool.New(pool.WithSlots(8), pool.WithQueue(20, time.Second))),
	)
	addr := s.srv.Listener.Addr().String()
	what := []string{"panic", "abort", "hijack", "cached", "cached", "large", "wait", "fail", "ok", "ok", "ok"}
	var wg sync.WaitGroup
	places := make(chan struct{}, 200)
	for i := range n {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			rnd := rand.New(rand.NewPCG(1, uint64(i)))
			c, err := net.Dial("tcp", addr)
			if err != nil {
				return // the machine is out of ports: nothing is left behind by that
			}
			defer c.Close()
			p := what[rnd.IntN(len(what))]
			if _, err := io.WriteString(c, "GET /"+p+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
				return
			}
			switch {
			case p == "wait" || rnd.IntN(5) == 0:
				return // leave at once
			case rnd.IntN(5) == 0:
				_, _ = c.Read(make([]byte, 10)) // read a little and leave
			default:
				_, _ = io.Copy(io.Discard, c)
			}
		})
	}
	wg.Wait()
	s.close()
	checkAtRest(t, s.stack)
}

func TestShutdownDrains(t *testing.T) {
	b := newBlocker(t)
	defer b.release()
	s := newSite(t, b, middleware.Concurrency(limiter.NewConcurrency(10)), middleware.WithSkip(func(r *http.Request) bool { return r.URL.Path == "/livez" }))
	answered := make(chan int, 1)
	go func() { st, _, _ := s.get("/"); answered <- st }()
	<-b.entered

	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("out of patience")
	cancel(cause)
	if err := s.stack.Shutdown(ctx); !errors.Is(err, cause) || !strings.Contains(err.Error(), "1 request") {
		t.Fatalf("Shutdown with a context that has ended: %v; want the cause and the number of requests", err)
	}
	h := s.want("/", 503, "")
	if h.Get("Retry-After") == "" {
		t.Errorf("draining: 503 without Retry-After")
	}
	drained := make(chan error, 1)
	go func() { drained <- s.stack.Shutdown(context.Background()) }()
	b.release()
	s.want("/livez", 200, "done") // what is skipped is answered meanwhile
	if st := <-answered; st != 200 {
		t.Errorf("the request in flight was answered %d, want 200", st)
	}
	if err := <-drained; err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	if n := s.stack.Stats().Rejected.Drain; n != 1 {
		t.Errorf("%d rejected while draining, want 1", n)
	}
}

// What a cache validates in the background runs the handler without a request: what that uses is there until it has ended, and
// no validation begins once the stack is drained.
func TestShutdownWaitsForValidations(t *testing.T) {
	for name, around := range map[string]func(middleware.Layer) []middleware.Layer{
		"alone":  func(c middleware.Layer) []middleware.Layer { return []middleware.Layer{c} },
		"in For": func(c middleware.Layer) []middleware.Layer { return []middleware.Layer{middleware.For("/a", c)} },
		"around a limit": func(c middleware.Layer) []middleware.Layer {
			return []middleware.Layer{c, middleware.Concurrency(limiter.NewConcurrency(10))}
		},
		"around a breaker": func(c middleware.Layer) []middleware.Layer {
			return []middleware.Layer{c, middleware.Breaker(breaker.NewGroup())}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				runs, closed := 0, false
				c := cache.New(1<<20, cache.WithStaleWhileRevalidate(time.Hour))
				stack := middleware.New(around(middleware.Cache(c))...)
				h := stack.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if runs++; runs > 1 {
						time.Sleep(10 * time.Second) // in a synctest bubble
					}
					if closed {
						t.Error("the handler runs after Shutdown has returned")
					}
					w.Header().Set("Cache-Control", "max-age=1")
					io.WriteString(w, "ok")
				}))
				get := func(h http.Handler) int {
					w := httptest.NewRecorder()
					h.ServeHTTP(w, httptest.NewRequest("GET", "/a", nil))
					return w.Code
				}
				get(h)
				time.Sleep(2 * time.Second) // in a synctest bubble
				if code := get(h); code != 200 {
					t.Fatalf("the stale response is %d", code)
				}
				synctest.Wait()
				if n := stack.Stats().InFlight; n != 1 {
					t.Errorf("%d in flight while one response is validated", n)
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				if err := stack.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("Shutdown after a second: %v", err)
				}
				err := stack.Shutdown(t.Context())
				closed = true
				if err != nil {
					t.Error(err)
				}
				time.Sleep(time.Minute) // in a synctest bubble
				if runs != 2 {
					t.Errorf("the handler ran %d times, want 2", runs)
				}
			})
		})
	}
}

// A validation that is about to begin when the stack is drained does not, and what is stored is as it was.
func TestNoValidationAfterShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		runs := 0
		c := cache.New(1<<20, cache.WithStaleWhileRevalidate(time.Hour))
		var stack *middleware.Stack
		drain := false
		stack = middleware.New(middleware.Cache(c))
		h := stack.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			runs++
			w.Header().Set("Cache-Control", "max-age=1")
			io.WriteString(w, "ok")
		}))
		get := func() *httptest.ResponseRecorder {
			w := httptest.NewRecorder()
			h.ServeHTTP(shutting{w, func() {
				if drain { // the gate is shut while this request is inside
					ended, cancel := context.WithCancel(t.Context())
					cancel()
					if stack.Shutdown(ended) == nil {
						t.Error("Shutdown has not waited for the request")
					}
				}
			}}, httptest.NewRequest("GET", "/a", nil))
			return w
		}
		get()
		time.Sleep(2 * time.Second) // in a synctest bubble
		drain = true
		if w := get(); w.Code != 200 || w.Body.String() != "ok" {
			t.Errorf("the stale response is %d %q", w.Code, w.Body)
		}
		synctest.Wait()
		if s := c.Stats(); runs != 1 || s.RevalidationErrors != 1 || s.Entries != 1 || s.Fills != 0 {
			t.Errorf("the handler ran %d times; %+v", runs, s)
		}
		if s := stack.Stats(); s.InFlight != 0 {
			t.Errorf("%d in flight", s.InFlight)
		}
	})
}

// shutting is a writer that calls a function when a response begins.
type shutting struct {
	*httptest.ResponseRecorder
	begins func()
}

func (s shutting) WriteHeader(code int) {
	s.begins()
	s.ResponseRecorder.WriteHeader(code)
}

// A server of HTTP/3 (quic-go) sends each field that it is given, and no message of HTTP/3 has a Connection (RFC 9114, section 4.2): its
// clients take the whole response for malformed. Over HTTP/2, net/http tells the client to go.
func TestShutdownEndsConnectionsThatHaveAField(t *testing.T) {
	s := middleware.New()
	h := s.Handler(http.NotFoundHandler())
	if err := s.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	for major, want := range map[int]string{1: "close", 2: "close", 3: ""} {
		r, rec := httptest.NewRequest("GET", "/", nil), httptest.NewRecorder()
		r.ProtoMajor = major
		h.ServeHTTP(rec, r)
		if got := rec.Header().Get("Connection"); rec.Code != 503 || got != want {
			t.Errorf("HTTP/%d: %d, Connection: %q; want 503 and %q", major, rec.Code, got, want)
		}
	}
}

// An option in For has the place of an option, outside of the draining, like one that holds for all requests.
func TestShutdownAnswersWhatForSkips(t *testing.T) {
	teapot := func(w http.ResponseWriter, _ *http.Request, _ *middleware.Rejection) {
		w.WriteHeader(http.StatusTeapot)
	}
	stack := middleware.New(
		middleware.Concurrency(limiter.NewConcurrency(10)),
		middleware.For("/livez", middleware.WithSkip(func(*http.Request) bool { return true })),
		middleware.For("/api/", middleware.WithReject(teapot), middleware.For("GET /", middleware.Pool(pool.New()))),
	)
	h := stack.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	if err := stack.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]int{"/livez": 200, "/api/x": 418, "/": 503} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != want {
			t.Errorf("%s: status %d while draining, want %d", path, w.Code, want)
		}
	}
	if n := stack.Stats().Rejected.Drain; n != 2 {
		t.Errorf("%d rejected while draining, want 2", n)
	}
}

// A pool that cannot end its work in time does not keep the others from being shut down.
func TestShutdownShutsAllPools(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	pools := []*pool.Pool{pool.New(pool.WithSlots(1)), pool.New(pool.WithSlots(1)), pool.New(pool.WithSlots(1))}
	for i, p := range pools[:2] { // the third is idle
		pool.Submit(t.Context(), p, func(context.Context) (int, error) { <-release; return 0, nil }, pool.WithKind(fmt.Sprint("kind", i)))
	}
	stack := middleware.New(middleware.For("/a", middleware.Pool(pools[0])), middleware.For("/b", middleware.Pool(pools[1])),
		middleware.For("/c", middleware.Pool(pools[2])))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := stack.Shutdown(ctx)
	if _, ok := errors.AsType[*pool.DroppedError](err); !ok || !strings.Contains(err.Error(), "kind0") || !strings.Contains(err.Error(), "kind1") {
		t.Errorf("Shutdown: %v; want what either pool has dropped", err)
	}
	for i, p := range pools {
		if !p.Stats().Draining {
			t.Errorf("pool %d takes more work", i)
		}
	}
}

// A request that asks for an upgrade and gets none ends as any other.
func TestShutdownDoesNotWaitForWhatWasNotUpgraded(t *testing.T) {
	for _, method := range []string{"GET", "CONNECT"} {
		stack := middleware.New(middleware.Concurrency(limiter.NewConcurrency(10)))
		r := httptest.NewRequest(method, "/", nil)
		r.Header.Set("Upgrade", "websocket")
		if got := do(stack.Handler(answer(426)), r).StatusCode; got != 426 {
			t.Fatal(got)
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if err := stack.Shutdown(ended); err != nil {
			t.Errorf("%s: %v", method, err)
		}
	}
}

// Whoever calls Shutdown waits for the same requests, and what comes after that is refused like what came before.
func TestShutdownTwiceAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stack := middleware.New(middleware.Concurrency(limiter.NewConcurrency(10)))
		leave := make(chan struct{})
		h := stack.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-leave }))
		go do(h, httptest.NewRequest("GET", "/", nil))
		synctest.Wait()
		done := make(chan error, 2)
		for range 2 {
			go func() { done <- stack.Shutdown(t.Context()) }()
			synctest.Wait()
		}
		if len(done) > 0 {
			t.Error("a Shutdown did not wait")
		}
		close(leave)
		synctest.Wait()
		if len(done) != 2 {
			t.Fatalf("%d of 2 have ended with the request", len(done))
		}
		if a, b := <-done, <-done; a != nil || b != nil {
			t.Errorf("%v, %v", a, b)
		}
		if got := do(h, httptest.NewRequest("GET", "/", nil)).StatusCode; got != 503 {
			t.Errorf("status %d after that, want 503", got)
		}
	})
}

// curl and others offer an upgrade to h2c with any request. What is not upgraded is waited for, however long it streams.
func TestShutdownWaitsForAStreamThatOfferedAnUpgrade(t *testing.T) {
	stack := middleware.New(middleware.Concurrency(limiter.NewConcurrency(10)))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("Upgrade", "h2c")
	do(stack.Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
		if n, err := stack.Stats().InFlight, stack.Shutdown(ended); n != 1 || !errors.Is(err, context.Canceled) {
			t.Errorf("while the stream is open %d requests are in flight, and Shutdown returns %v; want 1, and that it waited", n, err)
		}
	})), r)
	if err := stack.Shutdown(ended); err != nil {
		t.Errorf("when it has ended: %v", err)
	}
}

// What has been upgraded by hijacking its connection is no request any more: Shutdown does not wait for it, and shuts the pools.
func TestShutdownDoesNotWaitForUpgraded(t *testing.T) {
	for name, status101 := range map[string]bool{"the handler writes to the connection": false, "the handler answers 101 first, as ReverseProxy does": true} {
		for _, late := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, late=%v", name, late), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					p := pool.New()
					stack := middleware.New(middleware.Cache(cache.New(1<<20)), middleware.Concurrency(limiter.NewConcurrency(10)),
						middleware.For("/cpu", middleware.Pool(p)))
					upgrade, leave := make(chan struct{}), make(chan struct{})
					srv := &http.Server{Handler: stack.Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
						<-upgrade
						if status101 {
							w.WriteHeader(http.StatusSwitchingProtocols)
						}
						conn, _, err := http.NewResponseController(w).Hijack()
						if err != nil {
							t.Error(err)
							return
						}
						<-leave
						conn.Close()
					}))}
					ln := &pipeListener{make(chan net.Conn), make(chan struct{})}
					go srv.Serve(ln)
					conn := ln.dial()
					go io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
					go io.Copy(io.Discard, conn)
					if !late {
						close(upgrade)
					}
					synctest.Wait()
					done := make(chan error, 1)
					go func() { done <- stack.Shutdown(t.Context()) }()
					synctest.Wait()
					if late {
						if len(done) > 0 {
							t.Error("Shutdown did not wait for a request that is not upgraded yet")
						}
						close(upgrade)
						synctest.Wait()
					}
					select {
					case err := <-done:
						if err != nil {
							t.Errorf("Shutdown: %v", err)
						}
					default:
						t.Error("Shutdown waits for a connection that is no longer HTTP")
					}
					if err := p.Do(t.Context(), func(context.Context) error { return nil }); err == nil {
						t.Error("the pool takes work after Shutdown")
					}
					close(leave)
					synctest.Wait()
					if n := stack.Stats().InFlight; n != 0 {
						t.Errorf("%d requests in flight at the end", n)
					}
					conn.Close()
					srv.Close()
				})
			})
		}
	}
}

// net/rpc serves its clients in the handler of a CONNECT, for as long as they stay.
func TestShutdownDoesNotWaitForTunnels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stack := middleware.New(middleware.Concurrency(limiter.NewConcurrency(10)))
		srv := &http.Server{Handler: stack.Handler(rpc.NewServer())}
		ln := &pipeListener{make(chan net.Conn), make(chan struct{})}
		go srv.Serve(ln)
		conn := ln.dial()
		go io.WriteString(conn, "CONNECT "+rpc.DefaultRPCPath+" HTTP/1.0\n\n")
		if status, err := bufio.NewReader(conn).ReadString('\n'); !strings.Contains(status, "200 Connected") {
			t.Errorf("connected with %q, %v", status, err)
		}
		synctest.Wait()
		if st := stack.Stats(); st.InFlight != 0 || st.Layers[0].Concurrency.InFlight != 0 {
			t.Errorf("%d requests in flight, %d permits taken", st.InFlight, st.Layers[0].Concurrency.InFlight)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := stack.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		conn.Close()
		srv.Close()
	})
}

// Requests that wait for the pool hold no permit of an adaptive limit: cheap ones pass.
func TestPoolWaitersLeaveAdaptiveLimit(t *testing.T) {
	b := newBlocker(t)
	mux := http.NewServeMux()
	mux.Handle("/heavy", b)
	mux.HandleFunc("/cheap", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "cheap") })
	l := limiter.NewAdaptive(limiter.WithStart(2))
	p := pool.New(pool.WithSlots(1), pool.WithQueue(20, time.Minute))
	s := newSite(t, mux, middleware.Concurrency(l), middleware.For("/heavy", middleware.Pool(p)))
	defer b.release()
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() { s.get("/heavy") })
		if i == 0 {
			<-b.entered
		}
	}
	for p.Stats().Waiting < 9 {
		s.want("/cheap", 200, "cheap") // each answer shows that there is room
	}
	if n := l.Stats().InFlight; n != 0 {
		t.Errorf("%d permits held by requests in the pool, want 0", n)
	}
	b.release()
	wg.Wait()
	s.close()
	checkAtRest(t, s.stack)
}

// crowdWriter is the ResponseWriter of one of ten thousand: it can be hijacked, and may be slow to read.
type crowdWriter struct {
	*plainWriter
	slow <-chan struct{}
}

func (w *crowdWriter) Write(b []byte) (int, error) {
	if w.slow != nil {
		<-w.slow
	}
	return len(b), nil
}
func (w *crowdWriter) Flush() {}
func (w *crowdWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, other := net.Pipe()
	other.Close()
	return c, nil, nil
}

// Ten thousand requests that are all inside at the same time: what leaves, panics, takes its connection
// over or reads slowly leaves every counter at zero.
func TestTenThousandAtOnce(t *testing.T) {
	const n = 10_000
	stack := middleware.New(
		middleware.Cache(cache.New(1<<20)),
		middleware.Concurrency(limiter.NewConcurrency(3000, limiter.WithQueue(5000, time.Hour))),
		middleware.Breaker(breaker.NewGroup()),
		middleware.For("/pool", middleware.Pool(pool.New(pool.WithSlots(50), pool.WithQueue(500, time.Hour)))),
	)
	var inside sync.WaitGroup // everybody has come, or was refused
	inside.Add(n)
	goOn := make(chan struct{})
	h := stack.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-goOn:
		case <-r.Context().Done():
			return
		}
		switch r.Header.Get("X-Do") {
		case "panic":
			panic("boom")
		case "goexit":
			runtime.Goexit()
		case "hijack":
			if c, _, err := w.(http.Hijacker).Hijack(); err == nil {
				c.Close()
			}
		case "cached":
			w.Header().Set("Cache-Control", "public, max-age=60")
		}
		io.WriteString(w, "done")
	}))
	what := []string{"panic", "goexit", "hijack", "cached", "slow", "cancel", "", ""}
	slow := make(chan struct{})
	cancels := make(chan context.CancelFunc, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			do := what[i%len(what)]
			path := []string{"/", "/pool"}[i/len(what)%2]
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			r := httptest.NewRequest([]string{"GET", "POST"}[i%3%2], path+"?"+strconv.Itoa(i%100), nil).WithContext(ctx)
			r.Header.Set("X-Do", do)
			w := &crowdWriter{plainWriter: &plainWriter{http.Header{}}}
			if do == "slow" {
				w.slow = slow
			}
			if do == "cancel" {
				cancels <- cancel
			}
			defer func() { _ = recover() }()
			inside.Done()
			h.ServeHTTP(w, r)
		})
	}
	inside.Wait()
	for { // until each is inside or was refused: nothing ends by itself
		st := stack.Stats()
		if int(st.InFlight)+int(st.Rejected.Concurrency+st.Rejected.Breaker+st.Rejected.Pool) >= n {
			break
		}
		runtime.Gosched()
	}
	for range len(cancels) {
		(<-cancels)()
	}
	close(goOn)
	close(slow)
	wg.Wait()
	checkAtRest(t, stack)
}

// simpleGzip is what many a server has around its handlers, from an old blog: it says that it compresses and leaves a Content-Length as it is.
func simpleGzip(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		gz := gzip.NewWriter(w)
		defer gz.Close()
		h.ServeHTTP(simpleGzipWriter{w, gz}, r)
	})
}

type simpleGzipWriter struct {
	http.ResponseWriter
	gz *gzip.Writer
}

func (w simpleGzipWriter) Write(b []byte) (int, error) { return w.gz.Write(b) }

// What we answer ourselves comes whole through a layer outside that compresses, as what the handler answers does.
func TestOwnAnswersThroughASimpleGzip(t *testing.T) {
	closed := breaker.NewGroup()
	closed.Get("/open").ForceOpen()
	full := limiter.NewConcurrency(1)
	if _, ok := full.TryAcquire(limiter.Request{}); !ok {
		t.Fatal("no permit")
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "public, max-age=60")
		io.WriteString(w, strings.Repeat("cached ", 100))
	})
	mux.HandleFunc("/open", func(http.ResponseWriter, *http.Request) {})
	kinds := jobs.NewMux()
	jobs.Register(kinds, "k", func(context.Context, string) (int, error) { return 1, nil })
	engine := jobs.NewLocal(kinds, pool.New())
	t.Cleanup(func() { engine.Shutdown(context.Background()) })
	mux.Handle("/jobs/", http.StripPrefix("/jobs", middleware.Async(engine, "k")))
	stack := middleware.New(
		middleware.Cache(cache.New(1<<20)),
		middleware.Breaker(closed),
		middleware.For("/limited", middleware.Rate(limiter.NewRate(1, 1), middleware.WithCost(func(*http.Request) int { return 2 }))),
		middleware.For("/rejected", middleware.Rate(limiter.NewRate(1, 1), middleware.WithCost(func(*http.Request) int { return 2 }),
			middleware.WithReject(func(w http.ResponseWriter, r *http.Request, j *middleware.Rejection) { j.Write(w, r) }))),
		middleware.For("/full", middleware.Concurrency(full)),
	)
	s, _ := serve(t, simpleGzip(stack.Handler(mux)), false)
	for _, test := range []struct {
		path, fields string
		status       int
		body         string
	}{
		{"/page", "", 200, "cached cached"},
		{"/page", "", 200, "cached cached"}, // from the store
		{"/page", "Range: bytes=0-9", 200, "cached cached"},
		{"/page", "Range: bytes=-9", 200, "cached cached"},
		{"/page", "Range: bytes=0-1,4-5", 200, "cached cached"},
		{"/page", "Range: bytes=9999-", 200, "cached cached"},
		{"/nothing", "Cache-Control: only-if-cached", 504, ""},
		{"/open", "", 503, `"status":503`},
		{"/limited", "", 429, `"status":429`},
		{"/rejected", "", 429, `"status":429`},
		{"/full", "", 503, `"status":503`},
		{"/jobs/none", "", 404, `"status":404`},
	} {
		req, err := http.NewRequest("GET", s.URL+test.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if name, value, ok := strings.Cut(test.fields, ": "); ok {
			req.Header.Set(name, value)
		}
		req.Header.Set("Accept-Encoding", "gzip") // which net/http's client does not by itself with a range
		res, err := s.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		var body []byte
		unzip, err := gzip.NewReader(res.Body)
		if err == nil {
			body, err = io.ReadAll(unzip)
		}
		res.Body.Close()
		if err != nil || res.StatusCode != test.status || !strings.Contains(string(body), test.body) {
			t.Errorf("%s: %d %q, %v; want %d with %q", test.path, res.StatusCode, body, err, test.status, test.body)
		}
	}
}

// Over HTTP/3 a cache waits to know whether a GET has a body: what it takes for the time then is not what it was before, whichever
// layer is outside.
func TestCacheAfterAWaitForTheBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		h := middleware.Wrap(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			calls++
			w.Header().Set("Cache-Control", "public, max-age=5")
		}), middleware.Cache(cache.New(1<<20)), middleware.Rate(limiter.NewRate(10, 10)))
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
		for i, wait := range []time.Duration{4 * time.Second, 2 * time.Second} {
			body, end := io.Pipe()
			time.AfterFunc(wait, func() { end.Close() })
			r := httptest.NewRequest("GET", "/", nil)
			r.ProtoMajor, r.ContentLength, r.Body = 3, -1, body
			h.ServeHTTP(httptest.NewRecorder(), r)
			if calls != i+1 {
				t.Errorf("%d calls after a wait of %v; want %d", calls, wait, i+1)
			}
		}
	})
}

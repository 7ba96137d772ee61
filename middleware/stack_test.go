package middleware_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/cache"
	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware"
	"github.com/spillgate/spillgate/pool"
)

// refusing returns a layer of each kind that refuses everything.
func refusing(t *testing.T, opts ...middleware.Option) map[string]middleware.Layer {
	t.Helper()
	full := limiter.NewConcurrency(1)
	full.TryAcquire(limiter.Request{})
	open := breaker.NewGroup()
	open.Get("").ForceOpen()
	closed := pool.New(pool.WithSlots(1))
	if err := closed.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	none := limiter.NewRate(0, 1, limiter.WithoutKeys())
	none.Allow("")
	return map[string]middleware.Layer{
		"rate":        middleware.Rate(none, as[middleware.RateOption](opts)...),
		"concurrency": middleware.Concurrency(full, as[middleware.ConcurrencyOption](opts)...),
		"breaker":     middleware.Breaker(open, as[middleware.BreakerOption](opts)...),
		"pool":        middleware.Pool(closed, as[middleware.PoolOption](opts)...),
	}
}

// as returns options of all layers as those of one.
func as[T any](opts []middleware.Option) []T {
	var out []T
	for _, o := range opts {
		out = append(out, any(o).(T))
	}
	return out
}

// Whatever the order given, the outermost of the layers that refuse is the one that does.
func TestStackOrders(t *testing.T) {
	layers := refusing(t)
	order := []string{"rate", "concurrency", "breaker", "pool"}
	for i := range order {
		for range 4 {
			given := slices.Clone(order[i:])
			rotate(given)
			var ls []middleware.Layer
			for _, n := range given {
				ls = append(ls, layers[n])
			}
			var got string
			h := middleware.Wrap(answer(200), append(ls, middleware.WithTrace(&middleware.Trace{
				Rejected: func(_ *http.Request, j middleware.Rejection) { got = j.Layer },
			}))...)
			get(h, "GET", "/")
			if got != order[i] {
				t.Errorf("given %v: refused by %q, want %q", given, got, order[i])
			}
		}
	}
}

var rotation int

// rotate gives another order at each call.
func rotate(s []string) {
	rotation++
	n := rotation % len(s)
	copy(s, append(slices.Clone(s[n:]), s[:n]...))
}

func TestForHoldsForItsPatternOnly(t *testing.T) {
	l := limiter.NewConcurrency(1)
	l.TryAcquire(limiter.Request{})
	h := middleware.Wrap(answer(200), middleware.For("POST /report", middleware.Concurrency(l)), middleware.For("/api/", middleware.For("/api/x", middleware.Concurrency(l))))
	for _, c := range []struct {
		method, path string
		want         int
	}{
		{"POST", "/report", 503}, {"GET", "/report", 200}, {"POST", "/report2", 200}, {"GET", "/", 200},
		{"GET", "/api/x", 503}, {"GET", "/api/y", 200},
	} {
		if got := get(h, c.method, c.path).StatusCode; got != c.want {
			t.Errorf("%s %s: %d, want %d", c.method, c.path, got, c.want)
		}
	}
}

// Of several caches one serves a request: the first For that matches, else the general one.
func TestOneCacheServesARequest(t *testing.T) {
	general, a, b := cache.New(1<<20), cache.New(1<<20), cache.New(1<<20)
	h := middleware.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "public, max-age=60")
		io.WriteString(w, r.URL.Path)
	}), middleware.For("/a/", middleware.Cache(a)), middleware.Cache(general), middleware.For("/a/b/", middleware.Cache(b)))
	for range 2 {
		for _, path := range []string{"/x", "/a/1", "/a/b/1"} {
			get(h, "GET", path)
		}
	}
	got := fmt.Sprint(general.Stats().Entries, a.Stats().Entries, b.Stats().Entries)
	if got != "1 2 0" {
		t.Errorf("entries in the general cache, that of /a/ and that of /a/b/: %s; want 1 2 0", got)
	}
}

// A cache whose pattern is for GET sees the requests that make its responses invalid, and no more than that.
func TestCacheForGETSeesOtherMethods(t *testing.T) {
	for _, pattern := range []string{"/items/", "GET /items/", "GET /items/{id}", "GET example.com/items/", "POST /items/"} {
		for _, nested := range []bool{false, true} {
			item := "old"
			l := middleware.Cache(cache.New(1 << 20))
			if nested {
				l = middleware.For("GET /", l)
			}
			h := middleware.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Cache-Control", "max-age=60")
				if r.Method == "PUT" {
					item = "new"
				}
				io.WriteString(w, item)
			}), middleware.For(pattern, l), middleware.Cache(cache.New(1<<20, cache.WithOnlyExplicit())))
			get(h, "GET", "/items/1")
			status := get(h, "GET", "/items/1").Header.Get("Cache-Status")
			if hit := strings.Contains(status, "hit"); hit != (pattern != "POST /items/") {
				t.Errorf("%s, nested %v: Cache-Status %q", pattern, nested, status)
			}
			if status := get(h, "PUT", "/items/1").Header.Get("Cache-Status"); status != "" {
				t.Errorf("%s, nested %v: Cache-Status of a PUT: %q", pattern, nested, status)
			}
			b, err := io.ReadAll(get(h, "GET", "/items/1").Body)
			if string(b) != "new" || err != nil {
				t.Errorf("%s, nested %v: %q after the PUT, %v; want new", pattern, nested, b, err)
			}
		}
	}
}

func TestTraceTellsWhatHappened(t *testing.T) {
	var admitted []string
	var results []middleware.Result
	mux := http.NewServeMux()
	mux.HandleFunc("GET /item/{id}", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.PathValue("id")) })
	mux.HandleFunc("GET /panic", func(http.ResponseWriter, *http.Request) { panic("x") })
	mux.HandleFunc("GET /cached", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Cache-Control", "public, max-age=60") })
	h := middleware.Wrap(mux,
		middleware.Cache(cache.New(1<<20)), middleware.Concurrency(limiter.NewConcurrency(5)), middleware.For("/item/", middleware.Pool(pool.New(pool.WithSlots(1)))),
		middleware.WithTrace(&middleware.Trace{
			Admitted: func(_ *http.Request, layer string, waited time.Duration) { admitted = append(admitted, layer) },
			Done:     func(_ *http.Request, res middleware.Result) { results = append(results, res) },
		}))
	run := func(path string) {
		defer func() { _ = recover() }()
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", path, nil))
	}
	run("/item/7")
	run("/panic")
	run("/cached")
	run("/cached")
	run("/nowhere")
	for i, want := range []middleware.Result{
		{Route: "GET /item/{id}", Status: 200, Bytes: 1, Cache: cache.Miss},
		{Route: "GET /panic", Panicked: true, Cache: cache.Miss},
		{Route: "GET /cached", Status: 200, Cache: cache.Miss},
		{Route: "", Status: 200, Cache: cache.Hit},
		{Status: 404, Bytes: 19, Cache: cache.Miss},
	} {
		if i >= len(results) {
			t.Fatalf("%d results, want 5", len(results))
		}
		got := results[i]
		got.Duration = 0
		if got != want {
			t.Errorf("request %d: %+v, want %+v", i, got, want)
		}
	}
	// The trace is asked about requests inside a fill of the cache as well.
	if n := strings.Count(fmt.Sprint(admitted), "concurrency"); n != 4 {
		t.Errorf("admitted by concurrency %d times in %v, want 4: a hit is not", n, admitted)
	}
	if n := strings.Count(fmt.Sprint(admitted), "pool"); n != 1 {
		t.Errorf("admitted by the pool %d times in %v, want 1", n, admitted)
	}
}

// What a handler makes of it when its client leaves (a ReverseProxy panics or answers 502) is told apart from what went wrong on the server.
// Each has a second until its deadline, and 0.6 s until the server's WriteTimeout.
func TestTraceKnowsWhoseClientLeft(t *testing.T) {
	for _, c := range []struct {
		name string
		h    http.HandlerFunc
		want middleware.Result
	}{
		{"a panic", func(http.ResponseWriter, *http.Request) { panic("x") }, middleware.Result{Panicked: true}},
		{"502", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(502) }, middleware.Result{Status: 502}},
		{"the client left, and the copy of a response is broken off", func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(200)
			cancelOf(r)()
			panic(http.ErrAbortHandler)
		}, middleware.Result{Status: 200, Panicked: true, Left: true}},
		{"the client left, and there is no response to copy", func(w http.ResponseWriter, r *http.Request) { cancelOf(r)(); w.WriteHeader(502) }, middleware.Result{Status: 502, Left: true}},
		{"the client left behind an event stream with a deadline of its own", func(w http.ResponseWriter, r *http.Request) {
			http.NewResponseController(w).SetWriteDeadline(time.Time{})
			w.WriteHeader(200)
			time.Sleep(700 * time.Millisecond) // in a synctest bubble
			cancelOf(r)()
			panic(http.ErrAbortHandler)
		}, middleware.Result{Status: 200, Panicked: true, Left: true}},
		{"the deadline is over", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done(); panic("x") }, middleware.Result{Panicked: true}},
		{"the server's WriteTimeout is over, as net/http tells it", func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(200)
			time.Sleep(600 * time.Millisecond) // in a synctest bubble
			cancelOf(r)()
			panic(http.ErrAbortHandler)
		}, middleware.Result{Status: 200, Panicked: true}},
	} {
		synctest.Test(t, func(t *testing.T) {
			var got middleware.Result
			h := middleware.Wrap(c.h, middleware.Concurrency(limiter.NewConcurrency(1)), middleware.WithTrace(&middleware.Trace{
				Done: func(_ *http.Request, res middleware.Result) { got = res },
			}))
			ctx, cancel := context.WithTimeout(context.WithValue(t.Context(), http.ServerContextKey, &http.Server{WriteTimeout: 600 * time.Millisecond}), time.Second)
			defer cancel()
			func() {
				defer func() { _ = recover() }()
				h.ServeHTTP(deadlines{httptest.NewRecorder()}, httptest.NewRequest("GET", "/", nil).WithContext(context.WithValue(ctx, cancelKey{}, cancel)))
			}()
			got.Duration = 0
			if got != c.want {
				t.Errorf("%s: %+v; want %+v", c.name, got, c.want)
			}
		})
	}
}

// deadlines is a writer that takes them.
type deadlines struct{ *httptest.ResponseRecorder }

func (deadlines) SetWriteDeadline(time.Time) error { return nil }

// Who leaves while he waits for the response of another in the cache is no 503 of the server.
func TestTraceKnowsWhoLeftTheCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		done := map[string]middleware.Result{}
		var mu sync.Mutex
		goOn := make(chan struct{})
		h := middleware.Wrap(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Cache-Control", "public, max-age=60")
			<-goOn
		}), middleware.Cache(cache.New(1<<20)), middleware.WithTrace(&middleware.Trace{Done: func(r *http.Request, res middleware.Result) {
			mu.Lock()
			defer mu.Unlock()
			res.Duration = 0
			done[r.Header.Get("Who")] = res
		}}))
		request := func(who string, ctx context.Context) {
			r := httptest.NewRequest("GET", "/", nil).WithContext(ctx)
			r.Header.Set("Who", who)
			h.ServeHTTP(httptest.NewRecorder(), r)
		}
		ctx, leave := context.WithCancel(t.Context())
		go request("first", t.Context())
		synctest.Wait()
		go request("second", ctx)
		synctest.Wait()
		leave()
		synctest.Wait()
		close(goOn)
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if got, want := done["second"], (middleware.Result{Status: 503, Cache: cache.Miss, Left: true}); got != want {
			t.Errorf("who left: %+v; want %+v", got, want)
		}
		if got, want := done["first"], (middleware.Result{Status: 200, Cache: cache.Miss}); got != want {
			t.Errorf("who stayed: %+v; want %+v", got, want)
		}
	})
}

func TestRejectReplacesTheResponse(t *testing.T) {
	for name, layer := range refusing(t) {
		t.Run(name, func(t *testing.T) {
			h := middleware.Wrap(answer(200), layer, middleware.WithReject(func(w http.ResponseWriter, _ *http.Request, j *middleware.Rejection) {
				if w.Header().Get("Retry-After") == "" || w.Header().Get("Cache-Control") != "no-store" {
					t.Errorf("Retry-After and Cache-Control are not set: %v", w.Header())
				}
				if j.Err == nil || j.Layer != name {
					t.Errorf("rejection %+v", j)
				}
				w.WriteHeader(418)
			}))
			if got := get(h, "GET", "/").StatusCode; got != 418 {
				t.Errorf("status %d, want that of the function", got)
			}
		})
	}
}

// What a stack inside another says of refusals does not hold for what comes after it.
func TestRejectIsOfOneStack(t *testing.T) {
	full := limiter.NewConcurrency(1)
	full.TryAcquire(limiter.Request{})
	teapot := middleware.WithReject(func(w http.ResponseWriter, _ *http.Request, _ *middleware.Rejection) {
		w.WriteHeader(http.StatusTeapot)
	})
	first := middleware.Wrap(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), teapot, middleware.Concurrency(limiter.NewConcurrency(1)))
	second := middleware.Wrap(http.NotFoundHandler(), middleware.Concurrency(full))
	h := middleware.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		first.ServeHTTP(w, r) // has nothing to say of this path
		second.ServeHTTP(w, r)
	}), middleware.Concurrency(limiter.NewConcurrency(1)))
	if w := get(h, "GET", "/"); w.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("status %d, want 503", w.StatusCode)
	}
}

// A function of the user's may edit the header in place: no other response has the same values.
func TestRefusalHeaderIsTheResponsesOwn(t *testing.T) {
	edit := func(w http.ResponseWriter, _ *http.Request) {
		for _, v := range w.Header() {
			for i := range v {
				v[i] = "edited"
			}
		}
	}
	layers := refusing(t)
	handlers := map[string]http.Handler{}
	for name, layer := range layers {
		handlers[name] = middleware.Wrap(answer(200), layer, middleware.WithReject(func(w http.ResponseWriter, r *http.Request, j *middleware.Rejection) {
			edit(w, r)
			j.Write(w, r)
			edit(w, r)
		}))
	}
	open := breaker.NewGroup()
	open.Get("").ForceOpen()
	handlers["fallback"] = middleware.Wrap(answer(200), middleware.Breaker(open, middleware.WithFallback(http.HandlerFunc(edit))))
	for edits, h := range handlers {
		get(h, "GET", "/")
		for name, layer := range layers {
			for k, v := range get(middleware.Wrap(answer(200), layer), "GET", "/").Header {
				if slices.Contains(v, "edited") {
					t.Fatalf("edited for %s, %s of a refusal by %s is %q too", edits, k, name, v)
				}
			}
		}
	}
}

func TestRejectionErrorsTellWhy(t *testing.T) {
	want := map[string]error{"rate": limiter.ErrRateLimited, "concurrency": limiter.ErrSaturated, "breaker": breaker.ErrOpen}
	for name, layer := range refusing(t) {
		var got error
		h := middleware.Wrap(answer(200), layer, middleware.WithTrace(&middleware.Trace{Rejected: func(_ *http.Request, j middleware.Rejection) { got = j.Err }}))
		get(h, "GET", "/")
		if w := want[name]; w != nil && !errors.Is(got, w) {
			t.Errorf("%s: error %v, want %v", name, got, w)
		}
	}
}

// What the limiter knows of when there will be room goes out.
func TestConcurrencyRefusalSaysWhenThereIsRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told time.Duration
		l := limiter.NewConcurrency(1, limiter.WithQueue(10, time.Hour))
		h := middleware.Wrap(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(time.Second) }), // in a synctest bubble
			middleware.Concurrency(l), middleware.WithTrace(&middleware.Trace{Rejected: func(_ *http.Request, j middleware.Rejection) { told = j.RetryAfter }}))
		var wg sync.WaitGroup
		for range 2 {
			wg.Wait() // for the first line, by which it is known how fast it goes
			for range 11 {
				wg.Go(func() { get(h, "GET", "/") })
			}
			synctest.Wait()
		}
		after, err := strconv.Atoi(get(h, "GET", "/").Header.Get("Retry-After"))
		if want := l.Stats().RetryAfter; err != nil || want < 10*time.Second || told != want || after < int(want/time.Second) {
			t.Errorf("Retry-After %d, %v in the trace; want no less than %v", after, told, want)
		}
		wg.Wait()
	})
}

// The default refusal is a problem document, and nothing else is in it than what the server says of itself.
func TestDefaultRefusal(t *testing.T) {
	for name, layer := range refusing(t) {
		if name == "rate" {
			continue
		}
		res := get(middleware.Wrap(answer(200), layer), "GET", "/")
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		if res.StatusCode != 503 || res.Header.Get("Content-Type") != "application/problem+json" || res.Header.Get("Retry-After") == "" ||
			res.Header.Get("Cache-Control") != "no-store" || !strings.Contains(string(b), "#temporary-reduced-capacity") {
			t.Errorf("%s: %d %v %s", name, res.StatusCode, res.Header, b)
		}
	}
}

func TestRejectionZeroValueWrites(t *testing.T) {
	w := httptest.NewRecorder()
	new(middleware.Rejection).Write(w, httptest.NewRequest("GET", "/", nil))
	if w.Code != 503 || w.Body.Len() == 0 {
		t.Errorf("status %d, %d bytes", w.Code, w.Body.Len())
	}
}

// A function may change the status before it has the usual answer written: the document says the same one (RFC 9457, section 3.1.2).
func TestRejectionWritesItsStatus(t *testing.T) {
	want := func(t *testing.T, res *http.Response, status int) {
		t.Helper()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		var doc struct {
			Type   string
			Status int
		}
		if err := json.Unmarshal(b, &doc); err != nil {
			t.Fatal(err)
		}
		if res.StatusCode != status || doc.Status != status || doc.Type == "" || res.Header.Get("Content-Length") != strconv.Itoa(len(b)) {
			t.Errorf("status %d, Content-Length %s, %d bytes: %s; want %d", res.StatusCode, res.Header.Get("Content-Length"), len(b), b, status)
		}
	}
	for name, layer := range refusing(t) {
		t.Run(name, func(t *testing.T) {
			h := middleware.Wrap(answer(200), layer, middleware.WithReject(func(w http.ResponseWriter, r *http.Request, j *middleware.Rejection) {
				j.Status = 418
				j.Write(w, r)
			}))
			want(t, get(h, "GET", "/"), 418)
		})
	}
	t.Run("made by hand", func(t *testing.T) {
		w := httptest.NewRecorder()
		(&middleware.Rejection{Layer: "rate", Status: 429}).Write(w, httptest.NewRequest("GET", "/", nil))
		want(t, w.Result(), 429)
	})
}

// A handler that is kept from its work says so by a rejection of its own, which the layers around take for one of theirs.
func TestRejectionOfAHandler(t *testing.T) {
	refuse := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		(&middleware.Rejection{Layer: "breaker", RetryAfter: 3 * time.Second, Err: breaker.ErrOpen}).Write(w, r)
	})
	for name, h := range map[string]http.Handler{
		"the layers' own writer":    refuse,
		"a writer of somebody else": http.TimeoutHandler(refuse, time.Minute, ""),
	} {
		t.Run(name, func(t *testing.T) {
			g, l := breaker.NewGroup(), limiter.NewConcurrency(1)
			var shed []string
			s := middleware.New(middleware.Breaker(g), middleware.Concurrency(l), middleware.WithTrace(&middleware.Trace{
				Done: func(_ *http.Request, res middleware.Result) { shed = append(shed, res.Shed) },
			}))
			res := get(s.Handler(h), "GET", "/")
			if after, _ := strconv.Atoi(res.Header.Get("Retry-After")); res.StatusCode != 503 || after < 3 || res.Header.Get("Cache-Control") != "no-store" {
				t.Errorf("status %d, %v", res.StatusCode, res.Header)
			}
			if b := g.Get("").Stats(); b.Ignored != 1 || b.Failures != 0 {
				t.Errorf("the breaker counts %d failures and ignores %d, want 0 and 1", b.Failures, b.Ignored)
			}
			if c := l.Stats(); c.Ignored != 1 {
				t.Errorf("the limit is told of %d successes and %d failures", c.Success, c.Failure)
			}
			if fmt.Sprint(shed) != "[breaker]" {
				t.Errorf("refused by %v, want breaker", shed)
			}
		})
	}
}

// A cache that has something stale serves that in place of a refusal of the handler, as it does for the layers inside, and whether there is one or not.
func TestRejectionOfAHandlerInACache(t *testing.T) {
	plain := func(h http.Handler) http.Handler { return h }
	for name, inside := range map[string]func(http.Handler) http.Handler{
		"alone":          plain,
		"around a limit": middleware.Concurrency(limiter.NewConcurrency(1)).Handler,
		"around a writer of somebody else": func(h http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(unwrapper{w}, r) })
		},
	} {
		for _, status := range []int{429, 503} {
			t.Run(fmt.Sprint(name, ", status ", status), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					refuses := false
					h := inside(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						if refuses {
							(&middleware.Rejection{Layer: "breaker", Status: status}).Write(w, r)
							return
						}
						w.Header().Set("Cache-Control", "max-age=1")
						io.WriteString(w, "an answer")
					}))
					var ended []middleware.Result
					h = middleware.Wrap(h, middleware.Cache(cache.New(1<<20)), middleware.WithTrace(&middleware.Trace{
						Done: func(_ *http.Request, res middleware.Result) { ended = append(ended, res) },
					}))
					get(h, "GET", "/")
					time.Sleep(2 * time.Second) // in a synctest bubble
					refuses = true
					if res := get(h, "GET", "/"); res.StatusCode != 200 || !strings.Contains(res.Header.Get("Cache-Status"), "detail=shed") {
						t.Errorf("status %d, %v", res.StatusCode, res.Header["Cache-Status"])
					}
					if res := get(h, "GET", "/another"); res.StatusCode != status || !strings.Contains(res.Header.Get("Cache-Status"), "detail=shed") {
						t.Errorf("status %d, %v where nothing is stored", res.StatusCode, res.Header["Cache-Status"])
					}
					if ended[1].Shed != "" || ended[1].Cache != cache.Stale || ended[2].Shed != "breaker" {
						t.Errorf("%+v", ended)
					}
				})
			})
		}
	}
}

// A breaker within the handler lets calls in slowly after an outage, and what it refuses then is no reason for that of the route to open again: after that
// it would have been open for most of a minute in which all was well.
func TestRejectionOfAHandlerOnARamp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		fails := func() bool { return time.Since(began) < 30*time.Second }
		calls := breaker.New(breaker.WithJitter(0))
		h := middleware.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			call, err := calls.Allow()
			if err != nil {
				after, _ := errors.AsType[*breaker.OpenError](err)
				(&middleware.Rejection{Layer: "breaker", RetryAfter: after.RetryAfter, Err: err}).Write(w, r)
				return
			}
			if fails() {
				call.Done(breaker.Failure, 0)
				w.WriteHeader(500)
				return
			}
			call.Done(breaker.Success, 0)
		}), middleware.Breaker(breaker.NewGroup(breaker.WithJitter(0))))
		good, all := 0, 0
		for time.Since(began) < 90*time.Second {
			time.Sleep(20 * time.Millisecond) // in a synctest bubble
			status := get(h, "GET", "/").StatusCode
			if time.Since(began) > 65*time.Second { // either breaker was open for 20 s at most when all was well, and let calls in for 10 s
				if all++; status == 200 {
					good++
				}
			}
		}
		if good != all {
			t.Errorf("%d of %d requests were refused between 35 s and a minute after the outage", all-good, all)
		}
	})
}

func TestSkipPassesLayersBy(t *testing.T) {
	health := middleware.WithSkip(func(r *http.Request) bool { return r.URL.Path == "/livez" })
	for name, layer := range refusing(t) {
		h := middleware.Wrap(answer(200), layer, health)
		if got := get(h, "GET", "/livez").StatusCode; got != 200 {
			t.Errorf("%s, stack: status %d of a skipped request", name, got)
		}
		if got := get(h, "GET", "/").StatusCode; got == 200 {
			t.Errorf("%s, stack: status %d of another one", name, got)
		}
	}
	for name, layer := range refusing(t, health) {
		for how, h := range map[string]http.Handler{
			"alone":          layer.Handler(answer(200)),
			"inside a cache": middleware.Wrap(answer(200), middleware.Cache(cache.New(1<<20)), layer),
		} {
			if a, b := get(h, "GET", "/livez").StatusCode, get(h, "GET", "/").StatusCode; a != 200 || b == 200 {
				t.Errorf("%s, option of the layer, %s: %d for what is skipped and %d for another one", name, how, a, b)
			}
		}
	}
	h := middleware.Cache(cache.New(1<<20), health).Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Cache-Control", "public, max-age=60")
	}))
	for path, want := range map[string]bool{"/livez": false, "/": true} {
		if _, got := get(h, "GET", path).Header["Cache-Status"]; got != want {
			t.Errorf("cache, option of the layer: %s has a Cache-Status: %v, want %v", path, got, want)
		}
	}
}

// What an option says of a whole stack it says of one layer that has it, and all functions of a trace are optional.
func TestOptionsOfOneLayer(t *testing.T) {
	var told string
	reject := middleware.WithReject(func(w http.ResponseWriter, _ *http.Request, _ *middleware.Rejection) { w.WriteHeader(418) })
	trace := middleware.WithTrace(&middleware.Trace{Rejected: func(_ *http.Request, j middleware.Rejection) { told = j.Layer }})
	for name, layer := range refusing(t, reject, trace, middleware.WithSkip(func(*http.Request) bool { return false })) {
		told = ""
		if got := get(layer.Handler(answer(200)), "GET", "/").StatusCode; got != 418 {
			t.Errorf("%s: status %d, want that of the function", name, got)
		}
		if told != name {
			t.Errorf("%s: the trace was told of %q", name, told)
		}
	}
	for name, layer := range refusing(t, trace) {
		told = ""
		if get(layer.Handler(answer(200)), "GET", "/"); told != name {
			t.Errorf("%s: a trace alone was told of %q", name, told)
		}
	}
	wrong := middleware.WithReject(func(w http.ResponseWriter, _ *http.Request, _ *middleware.Rejection) { w.WriteHeader(400) })
	untold := middleware.WithTrace(&middleware.Trace{Rejected: func(*http.Request, middleware.Rejection) { t.Error("the first trace was told") }})
	for name, layer := range refusing(t, wrong, untold, reject, trace) {
		told = ""
		if got := get(middleware.Wrap(answer(200), layer, wrong), "GET", "/").StatusCode; got != 418 || told != name {
			t.Errorf("%s: status %d, told of %q, with two of each and one of the stack", name, got, told)
		}
	}
	for name, layer := range refusing(t, reject, middleware.WithTrace(new(middleware.Trace))) {
		if got := get(middleware.Wrap(answer(200), layer, trace, middleware.WithTrace(new(middleware.Trace))), "GET", "/").StatusCode; got != 418 {
			t.Errorf("%s: status %d with traces that want to know nothing", name, got)
		}
	}
}

// What a function has written by the rejection is what is written without the function.
func TestRejectionWritesTheUsualAnswer(t *testing.T) {
	write := middleware.WithReject(func(w http.ResponseWriter, r *http.Request, j *middleware.Rejection) { j.Write(w, r) })
	usual, byHand := refusing(t), refusing(t, write)
	for name := range usual {
		for _, method := range []string{"GET", "HEAD"} {
			a, b := get(usual[name].Handler(answer(200)), method, "/"), get(byHand[name].Handler(answer(200)), method, "/")
			for _, res := range []*http.Response{a, b} {
				if res.Header.Get("Retry-After") == "" {
					t.Errorf("%s: no Retry-After", name)
				}
				res.Header.Del("Retry-After") // in part by chance
			}
			x, _ := io.ReadAll(a.Body)
			y, _ := io.ReadAll(b.Body)
			if a.StatusCode != b.StatusCode || fmt.Sprint(a.Header) != fmt.Sprint(b.Header) || string(x) != string(y) {
				t.Errorf("%s %s: %d %v %q, want %d %v %q", method, name, b.StatusCode, b.Header, y, a.StatusCode, a.Header, x)
			}
		}
	}
}

// What a stack skips gets the server's own writer: a handler that takes over a stream of HTTP/3 needs it, and no wrapper can have its
// methods.
func TestSkippedHasTheWriterOfTheServer(t *testing.T) {
	layers := append(middleware.Defaults(), middleware.Rate(limiter.NewRate(1, 1)), middleware.BufferBody(9), middleware.Pool(pool.New()),
		middleware.For("CONNECT /", middleware.Concurrency(limiter.NewConcurrency(1)), middleware.Pool(pool.New())),
		middleware.WithSkip(func(r *http.Request) bool { return r.Method == http.MethodConnect }))
	for _, method := range []string{"CONNECT", "GET"} {
		var got http.ResponseWriter
		mux := http.NewServeMux()
		mux.HandleFunc("/session", func(w http.ResponseWriter, _ *http.Request) { got = w })
		rec := httptest.NewRecorder()
		middleware.Wrap(mux, layers...).ServeHTTP(rec, httptest.NewRequest(method, "/session", nil))
		if skipped := method == "CONNECT"; (got == rec) != skipped {
			t.Errorf("%s: the handler has a %T", method, got)
		}
	}
}

// What a stack skips comes to the layers of another inside it, whatever is between the two.
func TestSkipIsOfOneStack(t *testing.T) {
	skip := middleware.WithSkip(func(*http.Request) bool { return true })
	for name, layer := range refusing(t) {
		want := get(layer.Handler(answer(200)), "GET", "/").StatusCode
		for what, inner := range map[string]http.Handler{
			"a stack":                    middleware.Wrap(answer(200), layer),
			"a layer":                    layer.Handler(answer(200)),
			"a stack, behind another's":  inBetween["the same writer"](middleware.Wrap(answer(200), layer)),
			"a stack in one that is not": middleware.Wrap(middleware.Wrap(answer(200), layer), middleware.Concurrency(limiter.NewConcurrency(1))),
		} {
			h := middleware.Wrap(inner, refusing(t)["concurrency"], skip)
			if got := get(h, "GET", "/").StatusCode; got != want {
				t.Errorf("%s with %s: status %d, want %d", what, name, got, want)
			}
		}
	}
}

// A trace is told of each request's end, also of those that are skipped, whatever order the two are given in.
func TestTraceIsToldOfWhatIsSkipped(t *testing.T) {
	var told []string
	trace := middleware.WithTrace(&middleware.Trace{Done: func(r *http.Request, _ middleware.Result) { told = append(told, r.URL.Path) }})
	skip := middleware.WithSkip(func(r *http.Request) bool { return r.URL.Path == "/livez" })
	for name, layers := range map[string][]middleware.Layer{
		"trace first":        {trace, skip},
		"skip first":         {skip, trace},
		"trace of a pattern": {skip, middleware.For("/", trace)},
		"all of a pattern":   {middleware.For("/", skip, trace)},
	} {
		told = nil
		h := middleware.Wrap(answer(200), layers...)
		get(h, "GET", "/livez")
		get(h, "GET", "/x")
		if got := strings.Join(told, " "); got != "/livez /x" {
			t.Errorf("%s: told of %s, want /livez /x", name, got)
		}
	}
}

// Several options may stand beside each other, of one kind as well.
func TestOptionsOfAStackAddUp(t *testing.T) {
	skip := func(path string) middleware.Layer {
		return middleware.WithSkip(func(r *http.Request) bool { return r.URL.Path == path })
	}
	var shed []string
	trace := middleware.WithTrace(&middleware.Trace{Done: func(_ *http.Request, res middleware.Result) { shed = append(shed, res.Shed) }})
	reject := middleware.WithReject(func(w http.ResponseWriter, _ *http.Request, _ *middleware.Rejection) { w.WriteHeader(418) })
	layer := refusing(t)["concurrency"]
	for name, h := range map[string]http.Handler{
		"Wrap": middleware.Wrap(answer(200), skip("/livez"), trace, layer, skip("/readyz"), reject),
		"For":  middleware.Wrap(answer(200), middleware.For("/", skip("/livez"), trace, layer, skip("/readyz"), reject)),
	} {
		shed = nil
		for path, want := range map[string]int{"/livez": 200, "/readyz": 200, "/": 418} {
			if got := get(h, "GET", path).StatusCode; got != want {
				t.Errorf("%s: %d for %s, want %d", name, got, path, want)
			}
		}
		if !slices.Contains(shed, "concurrency") {
			t.Errorf("%s: the trace was told of %q", name, shed)
		}
	}
}

// Every trace around a request is told of it, and each once.
func TestAllTracesAreTold(t *testing.T) {
	told := map[string]int{}
	trace := func(name string) *middleware.Trace {
		return &middleware.Trace{
			Rejected: func(_ *http.Request, j middleware.Rejection) { told[name+": "+j.Layer+" refuses"]++ },
			Admitted: func(_ *http.Request, layer string, _ time.Duration) { told[name+": "+layer+" admits"]++ },
		}
	}
	ta, tb := trace("a"), trace("b")
	a, b := middleware.WithTrace(ta), middleware.WithTrace(tb)
	full := limiter.NewConcurrency(1)
	full.TryAcquire(limiter.Request{})
	layers := func(opts ...middleware.ConcurrencyOption) []middleware.Layer {
		return []middleware.Layer{middleware.Concurrency(limiter.NewConcurrency(1), opts...), middleware.For("/full", middleware.Concurrency(full, opts...))}
	}
	none := http.NotFoundHandler()
	for name, h := range map[string]http.Handler{
		"one stack":                  middleware.Wrap(none, append(layers(), a, b)...),
		"a stack in another":         middleware.Wrap(middleware.Wrap(none, append(layers(), b)...), a),
		"a stack further in":         middleware.Wrap(inBetween["a writer that unwraps"](middleware.Wrap(none, append(layers(), b)...)), a),
		"the same in both":           middleware.Wrap(middleware.Wrap(none, append(layers(), a, b)...), b, a),
		"of the layer":               middleware.Wrap(none, append(layers(b), a)...),
		"of the layer and the stack": middleware.Wrap(none, append(layers(b), a, b)...),
		"of a cache":                 middleware.Wrap(none, append(layers(), a, middleware.Cache(cache.New(1<<20), b))...),
		"outside a cache":            middleware.Wrap(none, append(layers(), a, b, middleware.Cache(cache.New(1<<20)))...),
	} {
		clear(told)
		get(h, "GET", "/")
		get(h, "GET", "/full")
		want := "map[a: concurrency admits:2 a: concurrency refuses:1 b: concurrency admits:2 b: concurrency refuses:1]"
		if got := fmt.Sprint(told); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

// A trace that stacks inside each other have in common is told of a request's end once, by the outermost.
func TestTheEndIsToldOnce(t *testing.T) {
	done := 0
	a := middleware.WithTrace(&middleware.Trace{Done: func(*http.Request, middleware.Result) { done++ }})
	none := http.NotFoundHandler()
	routes := http.NewServeMux()
	routes.Handle("/", middleware.Wrap(none, a, middleware.Concurrency(limiter.NewConcurrency(1))))
	for name, h := range map[string]http.Handler{
		"one stack":              middleware.Wrap(none, a),
		"twice in one stack":     middleware.Wrap(none, a, a),
		"a stack in another":     middleware.Wrap(middleware.Wrap(none, a), a),
		"a stack further in":     middleware.Wrap(inBetween["a writer that unwraps"](middleware.Wrap(none, a)), a),
		"a stack for each route": middleware.Wrap(routes, a, middleware.Cache(cache.New(1<<20))),
		"inside a layer's":       middleware.Wrap(middleware.Wrap(none, a), middleware.Cache(cache.New(1<<20), a)),
	} {
		done = 0
		get(h, "GET", "/")
		if done != 1 {
			t.Errorf("%s: told %d times, want once", name, done)
		}
	}
}

func TestBreakerByRoute(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/bad/{id}", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) })
	mux.HandleFunc("/good", func(http.ResponseWriter, *http.Request) {})
	h := middleware.Wrap(mux, middleware.Breaker(breaker.NewGroup(breaker.WithConsecutiveFailures(3))))
	var got []int
	for _, p := range []string{"/bad/1", "/bad/2", "/bad/3", "/bad/4", "/good"} {
		got = append(got, get(h, "GET", p).StatusCode)
	}
	if fmt.Sprint(got) != "[500 500 500 503 200]" {
		t.Errorf("statuses %v: the route that fails is closed, and no other", got)
	}
}

// Around the mux and on a route there is one breaker: the request is counted once, and does not want a second probe.
func TestBreakerLetsARequestThroughOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := breaker.NewGroup(breaker.WithConsecutiveFailures(2), breaker.WithProbes(1))
		layer := middleware.Breaker(g)
		status := 500
		mux := http.NewServeMux()
		mux.Handle("/report", layer.Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })))
		h := middleware.Wrap(mux, layer)
		get(h, "GET", "/report")
		b := g.Get("/report")
		if s := b.Stats(); s.State != breaker.Closed || s.Failures != 1 {
			t.Errorf("after one failure: %v with %d failures", s.State, s.Failures)
		}
		get(h, "GET", "/report")
		if s := b.State(); s != breaker.Open {
			t.Errorf("after two: %v", s)
		}
		status = 200
		time.Sleep(b.RetryAfter()) // in a synctest bubble
		if got := get(h, "GET", "/report").StatusCode; got != 200 || b.State() != breaker.Closed {
			t.Errorf("the probe is answered %d, and the breaker is %v; want 200 and closed", got, b.State())
		}
	})
}

// The defaults have a breaker only where a mux tells the routes apart.
func TestDefaultsKnowTheRoute(t *testing.T) {
	failing := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/bad") {
			w.WriteHeader(500)
		}
	})
	mux := http.NewServeMux()
	mux.Handle("/bad", failing)
	mux.Handle("/good", failing)
	outer, tenants := http.NewServeMux(), http.NewServeMux()
	outer.Handle("/", middleware.Wrap(mux))
	tenants.HandleFunc("/{page}", func(w http.ResponseWriter, r *http.Request) {
		http.StripPrefix("", outer).ServeHTTP(w, r)
	})
	for name, c := range map[string]struct {
		h          http.Handler
		wantBroken int
	}{
		"around a mux":                   {middleware.Wrap(mux), 503},
		"around a mux inside another":    {outer, 503},
		"around a mux inside two others": {tenants, 503},
		"around a mux in layers":         {middleware.Wrap(outer, middleware.Breaker(breaker.NewGroup(breaker.WithFailureRatio(0, 1000)))), 503},
		"around a function":              {middleware.Wrap(failing), 500},
	} {
		last := 0
		for range 40 {
			last = get(c.h, "POST", "/bad").StatusCode
		}
		if last != c.wantBroken {
			t.Errorf("%s: %d after 40 failures, want %d", name, last, c.wantBroken)
		}
		if got := get(c.h, "POST", "/good").StatusCode; got != 200 {
			t.Errorf("%s: %d of a route that works", name, got)
		}
	}
}

// What the defaults are given is for their limit, and leaves the others as they are.
func TestDefaultsTakeOptionsOfTheLimit(t *testing.T) {
	skip := middleware.WithSkip(func(r *http.Request) bool { return r.URL.Path == "/bad" })
	stack := middleware.New(middleware.Defaults(middleware.WithLongLived(func(r *http.Request) bool { return r.URL.Path == "/stream" }), skip)...)
	limit := func() *limiter.ConcurrencyStats {
		for _, l := range stack.Stats().Layers {
			if l.Concurrency != nil {
				return l.Concurrency
			}
		}
		t.Fatal("no limit")
		return nil
	}
	calls, held := 0, 0
	h := stack.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls++
		w.Header().Set("Cache-Control", "public, max-age=60")
		if r.URL.Path == "/bad" {
			w.WriteHeader(500)
		}
		w.(http.Flusher).Flush()
		held = limit().InFlight
	}))
	for path, want := range map[string]int{"/stream": 0, "/other": 1} {
		for range 2 {
			get(h, "GET", path)
		}
		if held != want || calls != 1 {
			t.Errorf("%s: holds %d permits and was called %d times for two requests, want %d and 1", path, held, calls, want)
		}
		calls = 0
	}
	admitted := limit().Admitted
	for range 40 {
		if got := get(h, "POST", "/bad").StatusCode; got != 500 {
			t.Fatalf("%d, want 500: no route is known, and so no breaker", got)
		}
	}
	if got := limit().Admitted; got != admitted {
		t.Errorf("%d of those that skip the limit have had a permit", got-admitted)
	}
}

// Options are no layers, and what is given is not nothing.
func TestOptionsAloneHaveNoDefaults(t *testing.T) {
	skip := middleware.WithSkip(func(*http.Request) bool { return false })
	if n := len(middleware.New(skip).Stats().Layers); n != 0 {
		t.Errorf("%d layers beside an option; want none", n)
	}
	if n := len(middleware.New(append(middleware.Defaults(), skip)...).Stats().Layers); n != 3 {
		t.Errorf("%d layers; want those of Defaults", n)
	}
}

// The defaults store only what is addressed to shared caches.
func TestDefaultsStoreCautiously(t *testing.T) {
	calls := 0
	h := middleware.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls++
		w.Header().Set("Cache-Control", r.URL.Query().Get("cc"))
	}))
	for _, c := range []struct {
		control string
		calls   int
	}{{"max-age=60", 2}, {"public, max-age=60", 1}, {"s-maxage=60", 1}, {"private, max-age=60", 2}, {"", 2}} {
		calls = 0
		for range 2 {
			get(h, "GET", "/?cc="+url.QueryEscape(c.control))
		}
		if calls != c.calls {
			t.Errorf("Cache-Control %q: the handler ran %d times for two requests, want %d", c.control, calls, c.calls)
		}
	}
}

func TestStatsNameEveryLayer(t *testing.T) {
	s := middleware.New(
		middleware.For("POST /x", middleware.Pool(pool.New(pool.WithSlots(1)))),
		middleware.Rate(limiter.NewRate(1, 1)), middleware.Cache(cache.New(1<<20)), middleware.Concurrency(limiter.NewAdaptive()), middleware.Breaker(breaker.NewGroup()),
	)
	var got []string
	for _, l := range s.Stats().Layers {
		set := l.Rate != nil || l.Cache != nil || l.Concurrency != nil || l.Breaker != nil || l.Pool != nil
		got = append(got, strings.TrimSpace(l.Layer+" "+l.For))
		if !set {
			t.Errorf("%s has no stats", l.Layer)
		}
	}
	if want := "[pool POST /x rate cache concurrency breaker]"; fmt.Sprint(got) != want {
		t.Errorf("layers %v, want %s", got, want)
	}
}

func TestStatsTellRoutesAndPatterns(t *testing.T) {
	mux := http.NewServeMux()
	mux.Handle("/a/{id}", answer(500))
	mux.Handle("/b", answer(200))
	s := middleware.New(middleware.For("/", middleware.For("GET /", middleware.Breaker(breaker.NewGroup()))))
	h := s.Handler(mux)
	for _, p := range []string{"/a/1", "/a/2", "/b"} {
		get(h, "GET", p)
	}
	l := s.Stats().Layers[0]
	if l.For != "/, GET /" {
		t.Errorf("for %q, want both patterns", l.For)
	}
	if r := l.Breaker.Routes; len(r) != 2 || r["/a/{id}"].Failures != 2 || r["/b"].Successes != 1 {
		t.Errorf("routes %+v", r)
	}
}

// A context that has ended while the request waited is no refusal of the handler's, and nothing is left.
func TestLeavingTheLine(t *testing.T) {
	l := limiter.NewConcurrency(1, limiter.WithQueue(1, time.Minute))
	p, _ := l.TryAcquire(limiter.Request{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := httptest.NewRequest("GET", "/", nil).WithContext(ctx)
	w := httptest.NewRecorder()
	middleware.Concurrency(l).Handler(answer(200)).ServeHTTP(w, r)
	if w.Code != 503 {
		t.Errorf("status %d for whoever may still read it, want 503", w.Code)
	}
	p.Release(limiter.Success)
	if st := l.Stats(); st.InFlight != 0 || st.Queued != 0 {
		t.Errorf("%d in flight, %d queued; want 0", st.InFlight, st.Queued)
	}
}

// A route has rules of its own in the cache that all routes share.
func TestCacheRulesByRoute(t *testing.T) {
	c := cache.New(1 << 20)
	calls := map[string]int{}
	h := middleware.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls[r.URL.Path]++
		io.WriteString(w, "page")
	}),
		middleware.Cache(c),
		middleware.For("/news/", middleware.Cache(c, middleware.WithRoute(cache.WithTTL(time.Minute)))),
		middleware.For("/live/", middleware.Cache(c, middleware.WithRoute(cache.WithTTL(time.Minute), cache.WithBypass(func(*http.Request) bool { return true })))),
	)
	for range 3 {
		for _, p := range []string{"/news/1", "/live/1", "/other"} {
			get(h, "GET", p)
		}
	}
	if got := fmt.Sprint(calls["/news/1"], calls["/live/1"], calls["/other"]); got != "1 3 3" {
		t.Errorf("handler runs of /news/, /live/ and /other: %s; want 1 3 3", got)
	}
}

// What stands in several layers is read once: whoever adds up what is in flight tells it by the pointer.
func TestStatsOfWhatLayersShare(t *testing.T) {
	limit, routes := limiter.NewConcurrency(4), breaker.NewGroup()
	shared, p, own := limiter.NewRate(10, 10), pool.New(), cache.New(1<<20)
	s := middleware.New(
		middleware.For("/a", middleware.Concurrency(limit), middleware.Breaker(routes), middleware.Rate(shared), middleware.Pool(p), middleware.Cache(own)),
		middleware.For("/b", middleware.Concurrency(limit), middleware.Breaker(routes), middleware.Rate(shared), middleware.Pool(p), middleware.Cache(own)),
		middleware.Concurrency(limiter.NewConcurrency(4)), middleware.Breaker(breaker.NewGroup()), middleware.Rate(limiter.NewRate(10, 10)),
		middleware.Cache(cache.New(1<<20)), middleware.For("/c", middleware.Pool(pool.New())),
	)
	l := s.Stats().Layers
	for i := range 5 {
		one, two, other := l[i], l[i+5], l[i+10]
		if one.For != "/a" || two.For != "/b" {
			t.Errorf("%s for %q and %q, want /a and /b", one.Layer, one.For, two.For)
		}
		if one.For, two.For = "", ""; one != two {
			t.Errorf("%s is read twice", one.Layer)
		}
		if other.For = ""; other == one {
			t.Errorf("two %s layers have the same numbers", one.Layer)
		}
	}
}

// The parts of Stats are in the order given, and one cache in two layers is a part for each.
func TestStatsAreInTheOrderGiven(t *testing.T) {
	c := cache.New(1 << 20)
	s := middleware.New(
		middleware.Cache(c),
		middleware.For("/news", middleware.Cache(c, middleware.WithRoute(cache.WithTTL(time.Minute)))),
		middleware.WithSkip(func(*http.Request) bool { return false }),
		middleware.Concurrency(limiter.NewConcurrency(1, limiter.WithQueue(1, time.Second))),
		middleware.Rate(limiter.NewRate(10, 10)),
	)
	h := s.Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "x") }))
	get(h, "GET", "/news")
	get(h, "GET", "/news")
	var got []string
	for _, l := range s.Stats().Layers {
		text := l.Layer + l.For
		if l.Cache != nil {
			text += fmt.Sprint(" ", l.Cache.Hits)
		}
		got = append(got, text)
	}
	if got, want := strings.Join(got, ", "), "cache 1, cache/news 1, concurrency, rate"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	b, err := json.Marshal(limiter.ConcurrencyStats{QueueWait: time.Second})
	if err != nil || !strings.Contains(string(b), `"queue_wait":1000000000,`) {
		t.Errorf("%s, %v", b, err)
	}
}

// Whoever reads the JSON meets a list where a list can be, also before there is anything in it.
func TestStatsListsAreLists(t *testing.T) {
	for name, s := range map[string]*middleware.Stack{
		"no layers":                middleware.New(middleware.WithTrace(&middleware.Trace{})),
		"nothing asked for so far": middleware.New(middleware.Pool(pool.New()), middleware.Breaker(breaker.NewGroup()), middleware.Rate(limiter.NewRate(1, 1))),
	} {
		b, err := json.Marshal(s.Stats())
		if err != nil || strings.Contains(string(b), "null") {
			t.Errorf("%s: %s, %v", name, b, err)
		}
	}
}

package routers_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/gorilla/mux"
	"github.com/labstack/echo/v4"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/cache"
	"github.com/spillgate/spillgate/examples/routers"
	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware"
	"github.com/spillgate/spillgate/pool"
)

var all = []struct {
	name string
	new  func(routers.Limits) http.Handler
}{
	{"net/http", routers.Std},
	{"chi", routers.Chi},
	{"gorilla/mux", routers.Gorilla},
	{"alice", routers.Alice},
	{"echo", routers.Echo},
}

func limits() routers.Limits {
	return routers.Limits{
		Rate:        limiter.NewRate(1, 100),
		Concurrency: limiter.NewConcurrency(1),
		Breakers:    breaker.NewGroup(breaker.WithFailureRatio(0.5, 5)),
		Pool:        pool.New(pool.WithSlots(1)),
	}
}

// each runs f with a real server for every router.
func each(t *testing.T, l func() routers.Limits, f func(t *testing.T, l routers.Limits, send func(method, path string) *http.Response)) {
	for _, r := range all {
		t.Run(r.name, func(t *testing.T) {
			l := l()
			srv := httptest.NewServer(r.new(l))
			defer srv.Close()
			f(t, l, func(method, path string) *http.Response {
				t.Helper()
				req, err := http.NewRequestWithContext(t.Context(), method, srv.URL+path, nil)
				if err != nil {
					t.Fatal(err)
				}
				res, err := srv.Client().Do(req)
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(res.Body)
				res.Body.Close()
				if err != nil {
					t.Fatal(err)
				}
				res.Body = io.NopCloser(strings.NewReader(string(body)))
				return res
			})
		})
	}
}

func expect(t *testing.T, res *http.Response, status int, body string) {
	t.Helper()
	got, _ := io.ReadAll(res.Body)
	if res.StatusCode != status || body != "" && string(got) != body {
		t.Fatalf("status %d, body %q; want %d, %q", res.StatusCode, got, status, body)
	}
}

// expectRefusal checks what every refusal of ours looks like.
func expectRefusal(t *testing.T, res *http.Response, status int) {
	t.Helper()
	expect(t, res, status, "")
	if res.Header.Get("Retry-After") == "" || res.Header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("refused with %v; want Retry-After and a problem document", res.Header)
	}
}

func TestRoutesStillServe(t *testing.T) {
	each(t, limits, func(t *testing.T, _ routers.Limits, send func(string, string) *http.Response) {
		res := send("GET", "/hello/ann")
		expect(t, res, 200, "hello ann\n")
		if res.Header.Get("RateLimit") == "" {
			t.Error("no RateLimit field: the layer is not in the chain")
		}
		expect(t, send("POST", "/report"), 200, "computed\n")
		expect(t, send("GET", "/nothing"), 404, "")
	})
}

func TestRateLayer(t *testing.T) {
	twice := func() routers.Limits {
		l := limits()
		l.Rate = limiter.NewRate(0.001, 2)
		return l
	}
	each(t, twice, func(t *testing.T, _ routers.Limits, send func(string, string) *http.Response) {
		expect(t, send("GET", "/hello/ann"), 200, "")
		expect(t, send("GET", "/hello/ann"), 200, "")
		expectRefusal(t, send("GET", "/hello/ann"), 429)
	})
}

func TestConcurrencyLayer(t *testing.T) {
	each(t, limits, func(t *testing.T, l routers.Limits, send func(string, string) *http.Response) {
		p, ok := l.Concurrency.TryAcquire(limiter.Request{})
		if !ok {
			t.Fatal("no permit")
		}
		expectRefusal(t, send("GET", "/hello/ann"), 503)
		p.Release(limiter.Ignored)
		expect(t, send("GET", "/hello/ann"), 200, "")
		if n := l.Concurrency.Stats().InFlight; n != 0 {
			t.Errorf("%d permits are out after the last response", n)
		}
	})
}

// A route that fails is closed, and no other.
func TestBreakerLayer(t *testing.T) {
	each(t, limits, func(t *testing.T, l routers.Limits, send func(method, path string) *http.Response) {
		for range 5 {
			expect(t, send("GET", "/hello/nobody"), 500, "")
		}
		expectRefusal(t, send("GET", "/hello/ann"), 503)
		expect(t, send("POST", "/report"), 200, "computed\n")
		expect(t, send("GET", "/nothing"), 404, "")
		for route, b := range l.Breakers.All() {
			b.Reset()
			if strings.Contains(route, "ann") {
				t.Errorf("a breaker for %q, which is no route", route)
			}
		}
		expect(t, send("GET", "/hello/ann"), 200, "hello ann\n")
	})
}

func TestPoolLayer(t *testing.T) {
	small := func() routers.Limits {
		l := limits()
		l.Pool = pool.New(pool.WithSlots(1), pool.WithQueue(0, 0))
		return l
	}
	each(t, small, func(t *testing.T, l routers.Limits, send func(string, string) *http.Response) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, slot, err := l.Pool.Enter(ctx)
		if err != nil {
			t.Fatal(err)
		}
		expectRefusal(t, send("POST", "/report"), 503)
		expect(t, send("GET", "/hello/ann"), 200, "") // not in the pool
		slot.Leave()
		expect(t, send("POST", "/report"), 200, "computed\n")
	})
}

// A whole stack goes where a breaker goes, so that a Trace, and with it metrics, know the route: around the router they know none.
func TestStackKnowsTheRoute(t *testing.T) {
	handler := func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") }
	for name, serve := range map[string]func(layer func(http.Handler) http.Handler) http.Handler{
		"chi": func(layer func(http.Handler) http.Handler) http.Handler {
			r := chi.NewRouter()
			r.Group(func(r chi.Router) {
				r.Use(layer)
				r.Get("/hello/{name}", handler)
			})
			return r
		},
		"gorilla/mux": func(layer func(http.Handler) http.Handler) http.Handler {
			r := mux.NewRouter()
			r.Use(func(next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					r.Pattern, _ = mux.CurrentRoute(r).GetPathTemplate()
					next.ServeHTTP(w, r)
				})
			}, layer)
			r.HandleFunc("/hello/{name}", handler)
			return r
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, inside := range []bool{true, false} {
				var got []string
				stack := middleware.New(middleware.Concurrency(limiter.NewConcurrency(1)), middleware.Breaker(breaker.NewGroup()),
					middleware.WithTrace(&middleware.Trace{Done: func(_ *http.Request, res middleware.Result) { got = append(got, res.Route) }}))
				around, within, want := stack.Handler, func(h http.Handler) http.Handler { return h }, ""
				if inside {
					around, within, want = within, around, "/hello/{name}"
				}
				around(serve(within)).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/hello/ann", nil))
				if len(got) != 1 || got[0] != want {
					t.Errorf("inside %v: routes %q; want %q", inside, got, want)
				}
			}
		})
	}
}

// userContext is a context that nobody is to print.
type userContext struct {
	context.Context
	Note note
}

type note struct{ t *testing.T }

func (n note) String() string {
	n.t.Error("a context of the user's is printed")
	return ""
}

type userKey struct{}

type panics struct{ text string }

func (p *panics) String() string { return p.text }

func changed(change func(context.Context) context.Context) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { next.ServeHTTP(w, r.WithContext(change(r.Context()))) })
	}
}

// chiWith has a page behind a layer among the middlewares of chi, inside another one.
func chiWith(l middleware.Layer, outer func(http.Handler) http.Handler) http.Handler {
	r := chi.NewRouter()
	r.Use(outer, l.Handler)
	r.Get("/", func(w http.ResponseWriter, _ *http.Request) { page(w) })
	return r
}

func page(w http.ResponseWriter) {
	w.Header().Set("Cache-Control", "max-age=0, stale-while-revalidate=60")
	_, _ = io.WriteString(w, "page")
}

// A router that gives what it keeps of a request to the next one has no handler run in the background by a cache among its middlewares: that was
// answered for the next request, or answered it.
func TestStaleWhileRevalidateInARouter(t *testing.T) {
	for name, build := range map[string]func(middleware.Layer) http.Handler{
		"chi": func(l middleware.Layer) http.Handler {
			return chiWith(l, func(next http.Handler) http.Handler { return http.TimeoutHandler(next, time.Minute, "") })
		},
		"chi, within a pool": func(l middleware.Layer) http.Handler {
			return chiWith(l, middleware.Pool(pool.New()).Handler)
		},
		"chi, within another cache": func(l middleware.Layer) http.Handler {
			return chiWith(l, middleware.Cache(cache.New(1<<20)).Handler)
		},
		"chi, with a context of the user's": func(l middleware.Layer) http.Handler {
			return chiWith(l, changed(func(ctx context.Context) context.Context { return &userContext{ctx, note{t}} }))
		},
		"chi, with a context of the user's within others": func(l middleware.Layer) http.Handler {
			return chiWith(l, changed(func(ctx context.Context) context.Context {
				return context.WithValue(context.WithoutCancel(&userContext{ctx, note{t}}), userKey{}, 1)
			}))
		},
		"chi, with a value that cannot be printed": func(l middleware.Layer) http.Handler {
			return chiWith(l, changed(func(ctx context.Context) context.Context {
				return context.WithValue(ctx, userKey{}, (*panics)(nil))
			}))
		},
		"echo": func(l middleware.Layer) http.Handler {
			e := echo.New()
			e.Use(echo.WrapMiddleware(l.Handler))
			e.GET("/", func(c echo.Context) error { page(c.Response()); return nil })
			return e
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := cache.New(1 << 20)
			h := build(middleware.Cache(c))
			for range 3 {
				w := httptest.NewRecorder()
				h.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
				if w.Code != 200 || w.Body.String() != "page" {
					t.Errorf("response %d %q, want page", w.Code, w.Body)
				}
			}
			if s := c.Stats(); s.Revalidations != 0 || s.MissStale == 0 {
				t.Errorf("%d validations in the background and %d for clients that waited, want all of them so", s.Revalidations, s.MissStale)
			}
		})
	}
}

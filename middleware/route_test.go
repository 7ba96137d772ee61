package middleware_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/cache"
	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware"
	"github.com/spillgate/spillgate/pool"
)

// A breaker that asks the mux for the route may call what the mux found; the handler, and who reads the request
// afterwards, must not be able to tell.
func TestTheMuxIsAskedOnceAndNobodyCanTell(t *testing.T) {
	newMux := func() *http.ServeMux {
		mux := http.NewServeMux()
		tell := func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s %q id=%q rest=%q own=%q", r.Method, r.Pattern, r.PathValue("id"), r.PathValue("rest"), r.PathValue("own"))
		}
		for _, pattern := range []string{"GET /plain", "/tree/", "/item/{id}", "/files/{rest...}", "/end/{$}", "example.org/host", "POST /post",
			"/own/{id}/", "CONNECT /meth/"} {
			mux.HandleFunc(pattern, tell)
		}
		return mux
	}
	stacks := map[string][]middleware.Layer{
		"breaker":  {middleware.Breaker(breaker.NewGroup())},
		"pool":     {middleware.Breaker(breaker.NewGroup()), middleware.Pool(pool.New(pool.WithSlots(4)))},
		"defaults": nil,
		"for": {middleware.Breaker(breaker.NewGroup()),
			middleware.For("/tree/", middleware.Pool(pool.New(pool.WithSlots(4))))},
	}
	for _, c := range []struct{ method, target, host string }{
		{"GET", "/plain", ""}, {"HEAD", "/plain", ""}, {"POST", "/plain", ""}, {"GET", "/post", ""},
		{"GET", "/tree", ""}, {"GET", "/tree/", ""}, {"GET", "/tree/a/b", ""}, {"GET", "/tree//a", ""}, {"GET", "/tree/../plain", ""},
		{"GET", "/item/7", ""}, {"GET", "/item/a%2fb", ""}, {"GET", "/files/a/b", ""}, {"GET", "/end/", ""},
		{"GET", "/host", "example.org"}, {"GET", "/host", "example.org:8080"}, {"GET", "/host", "example.net"},
		{"GET", "/nothing", ""}, {"OPTIONS", "*", ""}, {"CONNECT", "/plain", ""}, {"CONNECT", "/tree", ""}, {"CONNECT", "/tree/a", ""},
		{"CONNECT", "/own/7", ""}, {"CONNECT", "/meth", ""},
	} {
		ask := func(h http.Handler) (*httptest.ResponseRecorder, *http.Request) {
			r := httptest.NewRequest(c.method, "/", nil)
			if c.target == "*" {
				r.URL.Path = "*"
			} else {
				r = httptest.NewRequest(c.method, "http://example.com"+c.target, nil)
			}
			r.RequestURI = c.target
			if c.host != "" {
				r.Host = c.host
			}
			r.SetPathValue("own", "kept")
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			return w, r
		}
		bare, request := ask(newMux())
		for name, layers := range stacks {
			t.Run(fmt.Sprintf("%s %s%s through %s", c.method, c.host, c.target, name), func(t *testing.T) {
				w, r := ask(middleware.Wrap(newMux(), layers...))
				if w.Code != bare.Code || w.Body.String() != bare.Body.String() || w.Header().Get("Location") != bare.Header().Get("Location") {
					t.Errorf("got %d %q to %q, without layers %d %q to %q", w.Code, w.Body, w.Header().Get("Location"),
						bare.Code, bare.Body, bare.Header().Get("Location"))
				}
				if r.Pattern != request.Pattern {
					t.Errorf("afterwards the pattern is %q, without layers %q", r.Pattern, request.Pattern)
				}
			})
		}
	}
}

// What the mux found is called in place of that mux, and not where another one is asked for the same response.
func TestWhatTheMuxFoundIsForThatMuxOnly(t *testing.T) {
	newMux := func(h http.Handler) *http.ServeMux {
		mux := http.NewServeMux()
		mux.Handle("/api/", h)
		return mux
	}
	full := limiter.NewConcurrency(1)
	if _, ok := full.TryAcquire(limiter.Request{}); !ok {
		t.Fatal("the limit is not free")
	}
	open := breaker.NewGroup()
	open.Get("/api/").ForceOpen()
	for _, c := range []struct {
		name string
		wrap func(mux, other http.Handler) http.Handler
	}{
		{"a route that matches no For", func(mux, _ http.Handler) http.Handler {
			return middleware.Wrap(mux, middleware.Breaker(breaker.NewGroup()), middleware.For("/x", middleware.Pool(pool.New())))
		}},
		{"a layer inside that is skipped", func(mux, _ http.Handler) http.Handler {
			return middleware.Wrap(mux, middleware.Breaker(breaker.NewGroup()),
				middleware.Pool(pool.New(), middleware.WithSkip(func(*http.Request) bool { return true })))
		}},
		{"a cache inside the breaker", func(mux, _ http.Handler) http.Handler {
			return middleware.Chain(middleware.Breaker(breaker.NewGroup()).Handler, middleware.Cache(cache.New(1<<20)).Handler)(mux)
		}},
		{"a fallback", func(mux, other http.Handler) http.Handler {
			return middleware.Wrap(mux, middleware.Breaker(open, middleware.WithFallback(other)))
		}},
		{"a function that answers for an open breaker", func(mux, other http.Handler) http.Handler {
			return middleware.Wrap(mux, middleware.Breaker(open, middleware.WithReject(func(w http.ResponseWriter, r *http.Request, _ *middleware.Rejection) {
				other.ServeHTTP(w, r)
			})))
		}},
		{"a function that answers for a full limit inside the breaker", func(mux, other http.Handler) http.Handler {
			return middleware.Chain(middleware.Breaker(breaker.NewGroup()).Handler,
				middleware.Concurrency(full, middleware.WithReject(func(w http.ResponseWriter, r *http.Request, _ *middleware.Rejection) {
					other.ServeHTTP(w, r)
				})).Handler)(mux)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			passed := limiter.NewRate(1, 10)
			other := middleware.Wrap(newMux(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				fmt.Fprint(w, "other ", passed.Stats().Admitted)
			})), middleware.Rate(passed), middleware.Concurrency(limiter.NewConcurrency(1)))
			w := httptest.NewRecorder()
			c.wrap(newMux(other), other).ServeHTTP(w, httptest.NewRequest("POST", "/api/", nil))
			if got := w.Body.String(); got != "other 1" {
				t.Errorf("got %q, want %q: the layers around the other mux are passed once", got, "other 1")
			}
		})
	}
}

// The mux is asked once for all breakers: what it found for the first holds for the request.
func TestTheFirstRouteHolds(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Pattern) })
	outer, inner := breaker.NewGroup(), breaker.NewGroup()
	h := middleware.Chain(middleware.Breaker(outer).Handler,
		middleware.Breaker(inner, middleware.WithSkip(func(*http.Request) bool { // runs between the two
			mux.HandleFunc("/late", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Pattern) })
			return false
		})).Handler)(mux)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/late", nil))
	if w.Body.String() != "/" {
		t.Errorf("served by %q, want that of the route that the breakers judge", w.Body)
	}
	for name, g := range map[string]*breaker.Group{"outer": outer, "inner": inner} {
		for key := range g.All() {
			if key != "/" {
				t.Errorf("the %s breaker is that of %q, want /", name, key)
			}
		}
	}
}

// A client can choose the path of a redirect, and so must not be able to choose the key of a breaker by it.
func TestBreakerKeysAreThoseOfTheMux(t *testing.T) {
	for _, c := range []struct{ name, path, key string }{
		{"redirect to a pattern with a wildcard", "/item/7", "/item/{id}/"},
		{"redirect to a pattern without", "/tree", "/tree/"},
		{"redirect to a pattern of the method", "/own", "CONNECT /own/"},
		{"no redirect", "/tree/a", "/tree/"},
		{"no route", "/nothing", ""},
	} {
		for _, outside := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, inside another mux: %v", c.name, outside), func(t *testing.T) {
				mux := http.NewServeMux()
				for _, pattern := range []string{"/item/{id}/", "/tree/", "CONNECT /own/"} {
					mux.HandleFunc(pattern, func(http.ResponseWriter, *http.Request) {})
				}
				g := breaker.NewGroup()
				h, key := middleware.Wrap(mux, middleware.Breaker(g)), c.key
				if outside {
					outer := http.NewServeMux()
					outer.Handle("/", h)
					h = outer
					if key == "" {
						key = "/"
					}
				}
				r := httptest.NewRequest("CONNECT", "/", nil)
				r.URL.Path, r.RequestURI = c.path, c.path
				h.ServeHTTP(httptest.NewRecorder(), r)
				for k := range g.All() {
					if k != key {
						t.Errorf("there is a breaker for %q, want one for %q", k, key)
					}
				}
				if n := g.Stats().Keys; n != 1 {
					t.Errorf("%d keys, want 1", n)
				}
			})
		}
	}
}

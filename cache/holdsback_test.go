package cache_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/cache"
)

// holdsBack is a writer like gin's: a status is kept until the body begins, or until it is asked for it.
type holdsBack struct {
	http.ResponseWriter
	status int
	sent   bool
}

func (w *holdsBack) WriteHeader(status int) { w.status = status }

func (w *holdsBack) WriteHeaderNow() {
	if !w.sent {
		w.sent = true
		w.ResponseWriter.WriteHeader(w.status)
	}
}

func (w *holdsBack) Write(b []byte) (int, error) {
	w.WriteHeaderNow()
	return w.ResponseWriter.Write(b)
}

func behindHoldsBack(h func(w *holdsBack) http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		held := &holdsBack{ResponseWriter: w, status: 200}
		h(held).ServeHTTP(held, r)
		held.WriteHeaderNow()
	})
}

// A handler of gin names its status, and then sets the Content-Type: so its response has both behind a writer like gin's.
func TestFieldsAfterAStatusThatIsHeldBack(t *testing.T) {
	for _, test := range []struct {
		name    string
		handler func(w http.ResponseWriter, below *holdsBack)
		want    string // status, Content-Type, X-Field and body
	}{
		{"for one", func(w http.ResponseWriter, _ *holdsBack) {
			w.Header().Set("Cache-Control", "private")
			w.WriteHeader(200)
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, "{}")
		}, "200 application/json  {}"},
		{"for all", func(w http.ResponseWriter, _ *holdsBack) {
			w.Header().Set("Cache-Control", "max-age=60")
			w.WriteHeader(404)
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, "{}")
		}, "404 application/json  {}"},
		{"without a body", func(w http.ResponseWriter, _ *holdsBack) {
			w.Header().Set("Cache-Control", "max-age=60")
			w.WriteHeader(204)
			w.Header().Set("X-Field", "x")
		}, "204  x "},
		{"that is written at once, below", func(w http.ResponseWriter, below *holdsBack) {
			w.Header().Set("X-Field", "x")
			w.WriteHeader(401)
			below.WriteHeaderNow()
		}, "401  x "},
		{"that is named twice", func(w http.ResponseWriter, _ *holdsBack) {
			w.WriteHeader(200)
			w.WriteHeader(500)
			w.Header().Set("Content-Type", "text/html")
			io.WriteString(w, "failed")
		}, "500 text/html  failed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := cache.New(1 << 20)
			h := behindHoldsBack(func(below *holdsBack) http.Handler {
				return c.Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { test.handler(w, below) }))
			})
			for range 3 {
				res := get(h, "http://example.com/")
				want(t, "response", strings.Join([]string{res.Status[:3], res.Header.Get("Content-Type"), res.Header.Get("X-Field"), text(t, res)}, " "), test.want)
			}
		})
	}
}

// Nor is a status on its way to the client before it is known that the client gets that one.
func TestStatusThatIsHeldBackIsHidden(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, status := cache.New(1<<20, cache.WithStaleIfError(time.Hour)), 200
		h := behindHoldsBack(func(*holdsBack) http.Handler {
			return c.Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Cache-Control", "max-age=60")
				w.WriteHeader(status)
				io.WriteString(w, http.StatusText(status))
			}))
		})
		get(h, "http://example.com/")
		time.Sleep(2 * time.Minute) // in a synctest bubble
		status = 503
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest("GET", "http://example.com/", nil))
		want(t, "status", rec.Code, 200)
		want(t, "body", rec.Body.String(), "OK")
	})
}

// hooked is a writer like echo's.
type hooked struct{ http.ResponseWriter }

func (hooked) Before(func())                     {}
func (w hooked) Unwrap() http.ResponseWriter     { return w.ResponseWriter }
func (w *holdsBack) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// A router that gives what it keeps of a request to the next one has no handler run when a request has ended: it would answer the next one.
func TestNoBackgroundInARouterThatReuses(t *testing.T) {
	for name, around := range map[string]func(http.ResponseWriter) http.ResponseWriter{
		"echo": func(w http.ResponseWriter) http.ResponseWriter { return hooked{w} },
		"gin":  func(w http.ResponseWriter) http.ResponseWriter { return &holdsBack{ResponseWriter: w, status: 200} },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, inside := cache.New(1<<20), false
				h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					if !inside {
						t.Error("the handler runs when the request has ended")
					}
					w.Header().Set("Cache-Control", "max-age=1, stale-while-revalidate=60")
					io.WriteString(w, "page")
				}))
				for range 3 {
					rec := httptest.NewRecorder()
					inside = true
					h.ServeHTTP(around(rec), httptest.NewRequest("GET", "http://example.com/", nil))
					inside = false
					synctest.Wait()
					want(t, "body", rec.Body.String(), "page")
					time.Sleep(2 * time.Second) // in a synctest bubble
				}
				want(t, "in the background", c.Stats().Revalidations, 0)
			})
		})
	}
}

// userContext is a context that says nothing of those below it.
type userContext struct{ context.Context }

// The values of a context tell that a request is in chi, for which examples/routers has the test. Where not all of them are to be seen, it may be.
func TestBackgroundByTheContext(t *testing.T) {
	for name, test := range map[string]struct {
		context    func(context.Context) context.Context
		background bool
	}{
		"as it is": {func(ctx context.Context) context.Context { return ctx }, true},
		"with a time and an end": {func(ctx context.Context) context.Context {
			ctx, cancel := context.WithTimeout(context.WithValue(context.WithoutCancel(ctx), http.ServerContextKey, 1), time.Hour)
			t.Cleanup(cancel)
			return ctx
		}, true},
		"of a program that a signal ends": {func(ctx context.Context) context.Context {
			ctx, stop := signal.NotifyContext(ctx, os.Interrupt)
			t.Cleanup(stop)
			return context.WithValue(ctx, http.ServerContextKey, 1)
		}, true},
		"of the user's":     {func(ctx context.Context) context.Context { return userContext{ctx} }, false},
		"within the user's": {func(ctx context.Context) context.Context { return context.WithoutCancel(userContext{ctx}) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			c := cache.New(1 << 20)
			h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Cache-Control", "max-age=0, stale-while-revalidate=60")
				io.WriteString(w, "page")
			}))
			for range 2 {
				r := httptest.NewRequest("GET", "http://example.com/", nil)
				h.ServeHTTP(httptest.NewRecorder(), r.WithContext(test.context(r.Context())))
			}
			want(t, "in the background", c.Stats().Revalidations == 1, test.background)
			want(t, "for the client", c.Stats().MissStale == 1, !test.background)
		})
	}
}

// A 304 that is held back until the handler returns is looked at then: where it is about another response than the cache has offered, the handler is asked
// again without conditions, and the 304 is not what its answer goes out with.
func TestNotModifiedThatIsHeldBack(t *testing.T) {
	for _, test := range []struct {
		name, again string // what the last request asks for
		handler     func() http.Handler
		want        string
	}{
		{"of what was there before", "Cache-Control: no-cache", func() http.Handler {
			version := "Mon, 02 Jan 2006 00:00:00 GMT"
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Cache-Control", "max-age=60")
				w.Header().Set("Last-Modified", version)
				version = "Sun, 01 Jan 2006 00:00:00 GMT"
				if r.Header.Get("If-Modified-Since") != "" {
					w.WriteHeader(http.StatusNotModified)
					return
				}
				io.WriteString(w, w.Header().Get("Last-Modified")[:3])
			})
		}, "200 Sun"},
		{"of one of several variants", "X-Device: c", func() http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Cache-Control", "max-age=60")
				w.Header().Set("Vary", "X-Device")
				if strings.Contains(r.Header.Get("If-None-Match"), ",") {
					w.WriteHeader(http.StatusNotModified)
					return
				}
				w.Header().Set("Etag", `"`+r.Header.Get("X-Device")+`"`)
				io.WriteString(w, r.Header.Get("X-Device"))
			})
		}, "200 c"},
	} {
		for name, around := range map[string]func(http.Handler) http.Handler{
			"at once":   func(h http.Handler) http.Handler { return h },
			"held back": func(h http.Handler) http.Handler { return behindHoldsBack(func(*holdsBack) http.Handler { return h }) },
		} {
			t.Run(test.name+", "+name, func(t *testing.T) {
				h := around(cache.New(1 << 20).Handler(test.handler()))
				get(h, "http://example.com/", "X-Device: a")
				get(h, "http://example.com/", "X-Device: b")
				for range 2 {
					res := get(h, "http://example.com/", test.again)
					want(t, "response", res.Status[:4]+text(t, res), test.want)
				}
			})
		}
	}
}

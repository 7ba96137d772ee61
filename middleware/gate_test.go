package middleware_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/cache"
	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware"
)

// A limit inside a cache decides before the cache has prepared all of a fill. However the request
// goes on, the permit comes back, once.
func TestPermitInsideACache(t *testing.T) {
	long := func(f func(*http.Request) bool) middleware.ConcurrencyOption { return middleware.WithLongLived(f) }
	for name, c := range map[string]struct {
		handler http.HandlerFunc
		opts    []middleware.ConcurrencyOption
		panics  bool
		want    string
	}{
		"returns": {handler: func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") }, want: "ok"},
		"panics":  {handler: func(http.ResponseWriter, *http.Request) { panic("boom") }, panics: true},
		"aborts":  {handler: func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, panics: true},
		"panics in an option": {handler: func(http.ResponseWriter, *http.Request) {}, panics: true,
			opts: []middleware.ConcurrencyOption{long(func(*http.Request) bool { panic("boom") })}},
		"panics in a trace": {handler: func(http.ResponseWriter, *http.Request) {}, panics: true,
			opts: []middleware.ConcurrencyOption{middleware.WithTrace(&middleware.Trace{
				Admitted: func(*http.Request, string, time.Duration) { panic("boom") }})}},
		"is skipped": {handler: func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") }, want: "ok",
			opts: []middleware.ConcurrencyOption{middleware.WithSkip(func(*http.Request) bool { return true })}},
		"becomes long-lived": {handler: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			w.(http.Flusher).Flush()
		}},
	} {
		for _, s := range []struct {
			name string
			wrap func(*cache.Cache, middleware.Layer, http.Handler) http.Handler
		}{
			{"Wrap", func(c *cache.Cache, l middleware.Layer, h http.Handler) http.Handler {
				return middleware.Wrap(h, l, middleware.Cache(c))
			}},
			{"For", func(c *cache.Cache, l middleware.Layer, h http.Handler) http.Handler {
				return middleware.Wrap(h, middleware.For("/a", l), middleware.Cache(c))
			}},
			{"Chain", func(c *cache.Cache, l middleware.Layer, h http.Handler) http.Handler {
				return middleware.Chain(middleware.Cache(c).Handler, l.Handler)(h)
			}},
			{"cache.Handler", func(c *cache.Cache, l middleware.Layer, h http.Handler) http.Handler {
				return c.Handler(l.Handler(h))
			}},
		} {
			t.Run(name+" through "+s.name, func(t *testing.T) {
				ca, l := cache.New(1<<20), limiter.NewConcurrency(1)
				h := s.wrap(ca, middleware.Concurrency(l, c.opts...), c.handler)
				for _, path := range []string{"/a", "/a"} { // unknown to the cache, and known not to be kept
					w := httptest.NewRecorder()
					func() {
						defer func() {
							if v := recover(); (v != nil) != c.panics {
								t.Errorf("recovered %v", v)
							}
						}()
						h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
					}()
					if w.Code != 200 || w.Body.String() != c.want {
						t.Errorf("%d %q, want %q", w.Code, w.Body, c.want)
					}
				}
				if st := l.Stats(); st.InFlight != 0 || st.Shed != 0 || st.Success+st.Failure+st.Ignored != st.Admitted {
					t.Errorf("%+v", st)
				}
				if n := ca.Stats().Fills; n != 0 {
					t.Errorf("%d fills under way", n)
				}
			})
		}
	}
}

func TestHijackInsideACacheGivesThePermitBack(t *testing.T) {
	l := limiter.NewConcurrency(1)
	during := -1
	s := newSite(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		c, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		during = l.Stats().InFlight
		io.WriteString(rw, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nmy")
		rw.Flush()
	}), middleware.Cache(cache.New(1<<20)), middleware.Concurrency(l))
	s.want("/a", 200, "my")
	s.close()
	if during != 0 {
		t.Errorf("%d permits held by a hijacked connection", during)
	}
	checkAtRest(t, s.stack)
}

// A client that leaves while it waits for a permit takes its place in the line with it, unless others wait
// for the same response.
func TestClientLeavesTheLineInsideACache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := limiter.NewConcurrency(1, limiter.WithQueue(10, time.Minute))
		held, _ := l.TryAcquire(limiter.Request{})
		h := middleware.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "public, max-age=60")
			io.WriteString(w, "ok")
		}), middleware.Cache(cache.New(1<<20)), middleware.Concurrency(l))
		ask := func(path string) (*httptest.ResponseRecorder, context.CancelFunc) {
			ctx, leave := context.WithCancel(t.Context())
			w := httptest.NewRecorder()
			go h.ServeHTTP(w, httptest.NewRequest("GET", path, nil).WithContext(ctx))
			synctest.Wait()
			return w, leave
		}
		_, leaveAlone := ask("/alone")
		_, leaveFirst := ask("/shared")
		second, leaveSecond := ask("/shared")
		if n := l.Stats().Queued; n != 2 {
			t.Errorf("%d in the line, want 2: those who wait for a response wait for no permit", n)
		}
		leaveAlone()
		leaveFirst()
		synctest.Wait()
		if n := l.Stats().Queued; n != 1 {
			t.Errorf("%d in the line, want 1: somebody still waits for the response", n)
		}
		held.Release(limiter.Ignored)
		synctest.Wait()
		if second.Body.String() != "ok" {
			t.Errorf("the second got %d %q", second.Code, second.Body)
		}
		leaveSecond()
		if st := l.Stats(); st.InFlight != 0 || st.Queued != 0 || st.Admitted != 2 {
			t.Errorf("%+v", st)
		}
	})
}

// Whoever asked to be told of refusals, or to write them, is asked inside a cache too.
func TestRefusalInsideACacheIsTold(t *testing.T) {
	full := limiter.NewConcurrency(1)
	permit, _ := full.TryAcquire(limiter.Request{})
	defer permit.Release(limiter.Ignored)
	told, done := 0, ""
	trace := &middleware.Trace{
		Rejected: func(r *http.Request, j middleware.Rejection) { told++ },
		Done:     func(r *http.Request, res middleware.Result) { done = res.Shed },
	}
	custom := func(w http.ResponseWriter, _ *http.Request, j *middleware.Rejection) {
		w.WriteHeader(j.Status)
		io.WriteString(w, "custom")
	}
	ask := func(layers ...middleware.Layer) *httptest.ResponseRecorder {
		told, done = 0, ""
		w := httptest.NewRecorder()
		s := middleware.New(append(layers, middleware.Cache(cache.New(1<<20)))...)
		s.Handler(http.NotFoundHandler()).ServeHTTP(w, httptest.NewRequest("GET", "/a", nil))
		if w.Code != 503 || w.Header().Get("Retry-After") == "" {
			t.Errorf("%d, %v", w.Code, w.Header())
		}
		if n := s.Stats().Rejected.Concurrency; n != 1 {
			t.Errorf("%d counted, want 1", n)
		}
		return w
	}
	if ask(middleware.WithTrace(trace), middleware.Concurrency(full)); told != 1 || done != "concurrency" {
		t.Errorf("trace of the stack: told %d times, shed by %q", told, done)
	}
	if ask(middleware.Concurrency(full, middleware.WithTrace(trace))); told != 1 {
		t.Errorf("trace of the layer: told %d times", told)
	}
	if ask(middleware.WithTrace(&middleware.Trace{Done: trace.Done}), middleware.Concurrency(full)); done != "concurrency" {
		t.Errorf("trace that is told of the end: shed by %q", done)
	}
	if w := ask(middleware.WithReject(custom), middleware.Concurrency(full)); w.Body.String() != "custom" {
		t.Errorf("function of the stack: %q", w.Body)
	}
	if w := ask(middleware.Concurrency(full, middleware.WithReject(custom))); w.Body.String() != "custom" {
		t.Errorf("function of the layer: %q", w.Body)
	}
}

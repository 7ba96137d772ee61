package cache_test

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/cache"
)

// answersErrors has errors that a handler returns answered outside of a cache, as echo and many a func(w, r) error do: to the writer that the
// handler had, or to the one outside.
func answersErrors(c *cache.Cache, inside bool, f func(http.ResponseWriter, *http.Request) error, opts ...cache.RouteOption) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var err error
		to := w
		c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if err = f(w, r); inside {
				to = w
			}
		}), opts...).ServeHTTP(w, r)
		if err != nil {
			http.Error(to, err.Error(), http.StatusInternalServerError)
		}
	})
}

// An error that is answered when the handler has returned reaches its client, and is not taken for an empty 200 that lasts.
func TestErrorAnsweredOutside(t *testing.T) {
	const failed, good = "500 text/plain; charset=utf-8 no database\n", "200 text/html page"
	for _, inside := range []bool{false, true} {
		for _, test := range []struct {
			name, control string
			opts          []cache.RouteOption
		}{
			{"nothing said", "", nil},
			{"a TTL by option", "", []cache.RouteOption{cache.WithTTL(time.Minute)}},
			{"a TTL by option, for what is public", "", []cache.RouteOption{cache.WithTTL(time.Minute), cache.WithOnlyExplicit()}},
			{"to be validated", "no-cache", nil},
			{"by its own header", "max-age=60", nil},
		} {
			if test.control == "max-age=60" && !inside {
				continue // nobody sees what is written outside
			}
			t.Run(test.name, func(t *testing.T) {
				down := true
				h := answersErrors(cache.New(1<<20), inside, func(w http.ResponseWriter, _ *http.Request) error {
					if test.control != "" {
						w.Header().Set("Cache-Control", test.control)
					}
					if down {
						return errors.New("no database")
					}
					w.Header().Set("Content-Type", "text/html")
					io.WriteString(w, "page")
					return nil
				}, test.opts...)
				ask := func() string {
					res := get(h, "http://example.com/")
					return strings.Join([]string{res.Status[:3], res.Header.Get("Content-Type"), text(t, res)}, " ")
				}
				want(t, "first", ask(), failed)
				want(t, "second", ask(), failed)
				down = false
				want(t, "when it is well again", ask(), good)
			})
		}
	}
}

// By such an error the cache learns nothing of what is stored: it may still be validated.
func TestErrorAnsweredOutsideKeepsWhatIsStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := false
		h := answersErrors(cache.New(1<<20), true, func(w http.ResponseWriter, r *http.Request) error {
			if down {
				return errors.New("no database")
			}
			w.Header().Set("Etag", `"1"`)
			http.ServeContent(w, r, "page.html", time.Time{}, strings.NewReader("page"))
			return nil
		}, cache.WithTTL(time.Minute))
		get(h, "http://example.com/")
		time.Sleep(2 * time.Minute) // in a synctest bubble
		down = true
		want(t, "while it fails", get(h, "http://example.com/").StatusCode, 500)
		down = false
		res := get(h, "http://example.com/")
		want(t, "when it is well again", text(t, res), "page")
		want(t, "Cache-Status", res.Header.Get("Cache-Status"), "spillgate; fwd=stale; fwd-status=304")
	})
}

// Nor by one in answer to a HEAD: what is fresh stays so.
func TestErrorOfAHeadAnsweredOutside(t *testing.T) {
	for _, test := range []struct {
		name   string
		field  string // of the answer to the HEAD
		stored string // how the next GET is answered
	}{
		{"nothing said", "", "spillgate; hit; ttl=60"},
		{"another entity tag", `"2"`, "spillgate; fwd=stale; fwd-status=200; stored"},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := answersErrors(cache.New(1<<20), true, func(w http.ResponseWriter, r *http.Request) error {
				if r.Method == http.MethodHead {
					if test.field == "" {
						return errors.New("no database")
					}
					w.Header().Set("Etag", test.field)
					return nil
				}
				w.Header().Set("Cache-Control", "max-age=60")
				w.Header().Set("Etag", `"1"`)
				io.WriteString(w, "page")
				return nil
			})
			get(h, "http://example.com/")
			ask(h, "HEAD", "http://example.com/", "Cache-Control: no-cache")
			want(t, "Cache-Status", get(h, "http://example.com/").Header.Get("Cache-Status"), test.stored)
		})
	}
}

// In the background it is a failure, after which the handler is left alone for a while.
func TestErrorAnsweredOutsideInTheBackground(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, runs := cache.New(1<<20), 0
		h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if runs++; runs == 1 { // and after that it returns an error
				io.WriteString(w, "page")
			}
		}), cache.WithTTL(time.Minute), cache.WithStaleWhileRevalidate(time.Hour))
		get(h, "http://example.com/")
		time.Sleep(2 * time.Minute) // in a synctest bubble
		for range 3 {
			want(t, "response", text(t, get(h, "http://example.com/")), "page")
			synctest.Wait()
		}
		want(t, "runs of the handler", runs, 2)
		want(t, "errors", c.Stats().RevalidationErrors, 1)
	})
}

// What a handler writes nothing of is stored where its own header says for how long.
func TestNothingWrittenIsStoredByItsHeader(t *testing.T) {
	n := 0
	h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		n++
		w.Header().Set("Cache-Control", "max-age=60")
	}))
	for range 2 {
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "http://example.com/", nil))
	}
	want(t, "runs of the handler", n, 1)
}

package cache_test

import (
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/cache"
)

// A layer outside that gives new clients a cookie of their own, as those for sessions do, does not keep a response out of the store, and
// neither marks its URL nor discards what is there.
func TestCookiesFromOutside(t *testing.T) {
	past := "Sun, 06 Nov 1994 08:49:37 GMT"
	for _, test := range []struct {
		name   string
		fields []string // of the handler
		opts   []cache.Option
		calls  int64 // for a client that is new, two that are not, and, when the response is stale, two again
		second string
	}{
		{"public", []string{"Cache-Control: public, max-age=1"}, nil, 2, ""},
		{"public, with cookies stored", []string{"Cache-Control: public, max-age=1"}, []cache.Option{cache.WithStoreSetCookie()}, 2, ""},
		{"validated", []string{"Cache-Control: public, max-age=1", `Etag: "a"`}, nil, 2, ""},
		{"cookies of the handler as well", []string{"Cache-Control: public, max-age=1", "Set-Cookie: of=handler"}, nil, 5, "of=handler"},
		{"nothing is guessed", []string{"Last-Modified: " + past}, nil, 2, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var calls atomic.Int64
				answer := page(&calls, "x", test.fields...)
				cached := cache.New(1<<20, test.opts...).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if etag := r.Header.Get("If-None-Match"); etag != "" {
						calls.Add(1)
						w.Header().Set("Etag", etag)
						w.WriteHeader(http.StatusNotModified)
						return
					}
					answer(w, r)
				}))
				h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.Header.Get("X-New") != "" {
						http.SetCookie(w, &http.Cookie{Name: "session", Value: "1"})
					}
					cached.ServeHTTP(w, r)
				})
				want(t, "its cookie", get(h, "http://example.com/x", "X-New: 1").Header.Get("Set-Cookie"), "session=1")
				want(t, "the cookie of another", get(h, "http://example.com/x").Header.Get("Set-Cookie"), test.second)
				get(h, "http://example.com/x")
				time.Sleep(2 * time.Second) // in a synctest bubble
				want(t, "its cookie when the response is stale", get(h, "http://example.com/x", "X-New: 1").Header.Get("Set-Cookie"), "session=1")
				want(t, "the cookie of another then", get(h, "http://example.com/x").Header.Get("Set-Cookie"), test.second)
				want(t, "calls", calls.Load(), test.calls)
			})
		})
	}
}

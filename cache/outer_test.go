package cache_test

import (
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
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

// Nor is such a cookie stored beside those of the handler where these are: it would be everybody's. Each client gets its own, and the handler's.
func TestCookiesFromOutsideBesideStoredOnes(t *testing.T) {
	for _, how := range []string{"hit", "validated", "collapsed", "collapsed while it is sent", "part"} {
		t.Run(how, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cached := cache.New(1<<20, cache.WithStoreSetCookie()).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					time.Sleep(time.Second) // in a synctest bubble
					hd := w.Header()
					hd.Set("Cache-Control", "max-age=60")
					hd.Set("Etag", `"a"`)
					hd.Add("Set-Cookie", "theme=dark")
					switch {
					case r.Header.Get("If-None-Match") != "":
						w.WriteHeader(http.StatusNotModified)
						return
					case r.Header.Get("Range") != "":
						hd.Set("Content-Range", "bytes 0-3/9")
						w.WriteHeader(http.StatusPartialContent)
					case how == "collapsed while it is sent":
						hd.Set("Content-Length", "4")
					}
					io.WriteString(w, "body")
				}))
				client := func(n string, fields ...string) {
					h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						http.SetCookie(w, &http.Cookie{Name: "session", Value: n})
						cached.ServeHTTP(w, r)
					})
					res := get(h, "http://example.com/", fields...)
					want(t, "cookies of "+n, strings.Join(res.Header["Set-Cookie"], " "), "session="+n+" theme=dark")
					want(t, "body of "+n, text(t, res), "body")
				}
				var wg sync.WaitGroup
				defer wg.Wait()
				switch how {
				case "part":
					client("1", "Range: bytes=0-3")
					client("2", "Range: bytes=0-3")
				case "hit", "validated":
					client("1")
					if how == "validated" {
						time.Sleep(2 * time.Minute) // in a synctest bubble
						client("2")
					}
					client("3")
				default:
					for i := range 3 {
						wg.Go(func() { client(strconv.Itoa(i)) })
					}
				}
			})
		})
	}
}

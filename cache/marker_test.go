package cache_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/cache"
)

// A key whose responses are known not to be for sharing is passed on before anything else is looked at; but a client
// that wants a stored response or none still gets none.
func TestMarkedKey(t *testing.T) {
	calls := 0
	c := cache.New(1 << 20)
	h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls++
		w.Header().Set("Cache-Control", "private")
	}))
	ask := func(cacheControl, name, value string) int {
		r := httptest.NewRequest("GET", "/a", nil)
		if cacheControl != "" {
			r.Header.Set("Cache-Control", cacheControl)
		}
		if name != "" {
			r.Header.Set(name, value)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w.Code
	}
	ask("", "", "")
	if n := c.Stats().Misses; n != 1 {
		t.Fatalf("%d misses before the key is marked, want 1", n)
	}
	for i, f := range [][2]string{{"", ""}, {"If-Match", `"x"`}, {"Upgrade", "websocket"}, {"Range", "bytes=0-1"}, {"Authorization", "Basic eDp5"}, {"Pragma", "no-cache"}} {
		for j, cc := range []string{"", "no-cache", "no-store", "max-age=0"} {
			if code := ask(cc, f[0], f[1]); code != 200 {
				t.Errorf("Cache-Control %q with %s: %d", cc, f[0], code)
			}
			if want := i*4 + j + 2; calls != want {
				t.Errorf("Cache-Control %q with %s: %d calls, want %d", cc, f[0], calls, want)
			}
		}
	}
	before := calls
	if code := ask("only-if-cached", "", ""); code != http.StatusGatewayTimeout || calls != before {
		t.Errorf("only-if-cached: %d after %d calls, want 504 after %d", code, calls, before)
	}
	if s := c.Stats(); s.Bypassed != 24 {
		t.Errorf("%d bypassed, want 24", s.Bypassed)
	}
	r := httptest.NewRequest("GET", "/"+strings.Repeat("a", 5000), nil)
	w := httptest.NewRecorder()
	if h.ServeHTTP(w, r); w.Code != 200 {
		t.Errorf("a key that is too long: %d", w.Code)
	}
}

// An error that says no-store says nothing of the next response: the key goes on being cached.
func TestErrorsMarkNoKey(t *testing.T) {
	for _, status := range []int{408, 429, 500, 502, 503, 504} {
		t.Run(strconv.Itoa(status), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				calls, failing := 0, true
				h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					calls++
					if failing {
						w.Header().Set("Cache-Control", "no-store")
						w.WriteHeader(status)
						return
					}
					w.Header().Set("Cache-Control", "s-maxage=60")
				}))
				get(h, "http://example.com/x")
				failing, calls = false, 0
				for range 20 {
					get(h, "http://example.com/x")
					time.Sleep(time.Second) // in a synctest bubble
				}
				want(t, "calls in the 20 s after one error", calls, 1)
			})
		})
	}
}

// A response that is one user's alone does not turn off the cache for the others.
func TestOneUsersVariantMarksNoKey(t *testing.T) {
	for _, first := range []string{"user=1", ""} {
		synctest.Test(t, func(t *testing.T) {
			shared := 0
			h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Vary", "Cookie")
				if r.Header.Get("Cookie") != "" {
					w.Header().Set("Cache-Control", "private")
					return
				}
				shared++
				w.Header().Set("Cache-Control", "max-age=60")
			}))
			if first != "" {
				get(h, "http://example.com/x", "Cookie: "+first)
			}
			for i := range 600 {
				get(h, "http://example.com/x")
				if i%10 == 5 {
					get(h, "http://example.com/x", "Cookie: user=1")
				}
				time.Sleep(time.Second) // in a synctest bubble
			}
			if shared > 30 {
				t.Errorf("%d of 600 requests without a cookie came to the handler in ten lifetimes", shared)
			}
		})
	}
}

// A response that says nothing but Last-Modified, as of [http.FileServer], is taken to be fresh only for who has no cookie: that
// a client has one says nothing of the others.
func TestCookieMarksNoKey(t *testing.T) {
	for _, fields := range []string{"Cookie: a=1", "Authorization: Basic x"} {
		synctest.Test(t, func(t *testing.T) {
			modified, calls, full := time.Now().Add(-1000*time.Second), 0, 0
			h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if calls++; r.Header.Get("If-Modified-Since") == "" {
					full++
				}
				http.ServeContent(w, r, "x.txt", modified, strings.NewReader("body"))
			}))
			get(h, "http://example.com/x", fields)
			for range 3 {
				get(h, "http://example.com/x")
			}
			want(t, "calls", calls, 2)
			time.Sleep(5 * time.Minute) // in a synctest bubble
			get(h, "http://example.com/x", fields)
			for range 3 {
				get(h, "http://example.com/x")
			}
			want(t, "calls", calls, 4)
			want(t, "of them not to validate", full, 2)
		})
	}
}

// And who has one does not wait for others who have.
func TestCookiesDoNotQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		modified := time.Now().Add(-1000 * time.Second)
		h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Second) // in a synctest bubble
			http.ServeContent(w, r, "x.txt", modified, strings.NewReader("body"))
		}))
		for _, why := range []string{"nothing stored", "stale"} {
			get(h, "http://example.com/x", "Cookie: a=1")
			var all sync.WaitGroup
			for range 4 {
				all.Go(func() {
					begun := time.Now()
					get(h, "http://example.com/x", "Cookie: a=1")
					want(t, why+", took", time.Since(begun), time.Second)
				})
				time.Sleep(300 * time.Millisecond) // in a synctest bubble
			}
			all.Wait()
			get(h, "http://example.com/x")
			time.Sleep(5 * time.Minute) // in a synctest bubble
		}
	})
}

// Nor does one that was for all, and is one user's alone from now on.
func TestVariantThatTurnsPrivateMarksNoKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		private, shared := false, 0
		h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Vary", "Cookie")
			w.Header().Set("Cache-Control", "max-age=60")
			if r.Header.Get("Cookie") == "" {
				shared++
			} else if private {
				w.Header().Set("Cache-Control", "private")
			}
		}))
		get(h, "http://example.com/x", "Cookie: user=1")
		time.Sleep(time.Minute) // in a synctest bubble
		get(h, "http://example.com/x")
		private = true
		for range 10 {
			get(h, "http://example.com/x", "Cookie: user=1")
			get(h, "http://example.com/x")
		}
		want(t, "requests without a cookie that came to the handler", shared, 1)
	})
}

// A handler that takes longer than its response lasts is slow, and the response still for sharing: to let all
// requests through would make the handler slower.
func TestSlowHandlerMarksNoKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		takes := 3 * time.Second
		c := cache.New(1 << 20)
		h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(takes) // in a synctest bubble
			w.Header().Set("Cache-Control", "max-age=2")
		}))
		get(h, "http://example.com/x")
		takes = time.Second / 10
		get(h, "http://example.com/x")
		get(h, "http://example.com/x")
		want(t, "hits", c.Stats().Hits, 1)
		want(t, "bypassed", c.Stats().Bypassed, 0)
	})
}

// The time that a request waited for another one is no age of what the handler says then.
func TestWaitingIsNoAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		h := cache.New(1 << 20).Handler(hangsOnce(hang, "max-age=5"))
		var wg sync.WaitGroup
		wg.Go(func() { get(h, "http://example.com/x") })
		synctest.Wait()
		get(h, "http://example.com/x")
		want(t, "after", get(h, "http://example.com/x").Header.Get("Cache-Status"), "spillgate; hit; ttl=5")
		close(hang)
		wg.Wait()
	})
}

// A response with trailers that nobody announced is not for sharing, which shows at its end: nobody waits for that again.
func TestTrailersNobodyAnnounced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "max-age=60")
			io.WriteString(w, "body")
			time.Sleep(time.Second) // in a synctest bubble
			w.Header().Set(http.TrailerPrefix+"Sum", "1")
		}))
		get(h, "http://example.com/x")
		begun := time.Now()
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() { get(h, "http://example.com/x") })
		}
		wg.Wait()
		want(t, "took", time.Since(begun), time.Second)
	})
}

// A mark is not renewed by what is no answer to a plain GET.
func TestMarksAreNotRenewedByOthers(t *testing.T) {
	for _, test := range []struct{ method, field string }{
		{"HEAD", "X: y"}, {"GET", "Range: bytes=100-"}, {"GET", `If-None-Match: "v1"`}, {"GET", "If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT"},
	} {
		t.Run(test.method+" "+test.field, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				private := true
				h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					switch {
					case private:
						w.Header().Set("Cache-Control", "private")
					case r.Method == "GET" && len(r.Header) == 0:
						w.Header().Set("Cache-Control", "max-age=60")
					default:
						w.WriteHeader(http.StatusBadRequest)
					}
				}))
				get(h, "http://example.com/x")
				private = false
				for range 60 {
					time.Sleep(time.Second) // in a synctest bubble
					ask(h, test.method, "http://example.com/x", test.field)
				}
				get(h, "http://example.com/x")
				want(t, "status", get(h, "http://example.com/x").Header.Get("Cache-Status"), "spillgate; hit; ttl=60")
			})
		})
	}
}

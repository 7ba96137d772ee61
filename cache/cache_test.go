package cache_test

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/cache"
)

// page answers with fields ("Name: value") and a body, and counts how often it was asked.
func page(calls *atomic.Int64, body string, fields ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		for _, f := range fields {
			name, value, _ := strings.Cut(f, ": ")
			w.Header().Add(name, value)
		}
		io.WriteString(w, body)
	}
}

// ask sends a request ("Name: value" for fields) and returns the response.
func ask(h http.Handler, method, url string, fields ...string) *http.Response {
	r := httptest.NewRequest(method, url, nil)
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		r.Header.Add(name, value)
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	return rec.Result()
}

func get(h http.Handler, url string, fields ...string) *http.Response {
	return ask(h, http.MethodGet, url, fields...)
}

func text(t *testing.T, res *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func want[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

// TestStored asks twice and tells whether the second answer came from the store.
func TestStored(t *testing.T) {
	past, future := "Sun, 06 Nov 1994 08:49:37 GMT", "Thu, 18 Aug 2050 02:01:18 GMT"
	for _, test := range []struct {
		name    string
		request []string
		fields  []string
		opts    []cache.Option
		stored  bool
	}{
		{"max-age", nil, []string{"Cache-Control: max-age=60"}, nil, true},
		{"nothing said", nil, nil, nil, false},
		{"Expires in the future", nil, []string{"Expires: " + future}, nil, true},
		{"Expires in the past", nil, []string{"Expires: " + past}, nil, false},
		{"Expires 0", nil, []string{"Expires: 0", "Last-Modified: " + past}, nil, false},
		{"max-age beats Expires", nil, []string{"Cache-Control: max-age=60", "Expires: " + past}, nil, true},
		{"s-maxage beats max-age", nil, []string{"Cache-Control: max-age=60, s-maxage=0"}, nil, false},
		{"CDN-Cache-Control beats Cache-Control", nil, []string{"Cache-Control: no-store", "CDN-Cache-Control: max-age=60"}, nil, true},
		{"CDN-Cache-Control forbids", nil, []string{"Cache-Control: max-age=60", "CDN-Cache-Control: no-store"}, nil, false},
		{"CDN-Cache-Control that does not parse is ignored", nil, []string{"Cache-Control: max-age=60", "CDN-Cache-Control: no-store,,"}, nil, true},
		{"no targets", nil, []string{"Cache-Control: max-age=60", "CDN-Cache-Control: no-store"}, []cache.Option{cache.WithTargets()}, true},
		{"heuristic", nil, []string{"Last-Modified: " + past}, nil, true},
		{"no heuristic with cookies", []string{"Cookie: a=b"}, []string{"Last-Modified: " + past}, nil, false},
		{"fresh with cookies", []string{"Cookie: a=b"}, []string{"Cache-Control: max-age=60"}, nil, true},
		{"private", nil, []string{"Cache-Control: private, max-age=60"}, nil, false},
		{"no-store", nil, []string{"Cache-Control: no-store, max-age=60"}, nil, false},
		{"Set-Cookie", nil, []string{"Cache-Control: max-age=60", "Set-Cookie: a=b"}, nil, false},
		{"Set-Cookie by option", nil, []string{"Cache-Control: max-age=60", "Set-Cookie: a=b"}, []cache.Option{cache.WithStoreSetCookie()}, true},
		{"Set-Cookie that the response leaves out", nil, []string{`Cache-Control: max-age=60, no-cache="set-cookie"`, "Set-Cookie: a=b"}, nil, true},
		{"Vary *", nil, []string{"Cache-Control: max-age=60", "Vary: foo, *"}, nil, false},
		{"Vary", []string{"Foo: 1"}, []string{"Cache-Control: max-age=60", "Vary: foo"}, nil, true},
		{"event stream", nil, []string{"Cache-Control: max-age=60", "Content-Type: text/event-stream"}, nil, false},
		{"client says no-store", []string{"Cache-Control: no-store"}, []string{"Cache-Control: max-age=60"}, nil, false},
		{"client says no-cache", []string{"Cache-Control: no-cache"}, []string{"Cache-Control: max-age=60"}, nil, false},
		{"client says no-cache, ignored", []string{"Cache-Control: no-cache"}, []string{"Cache-Control: max-age=60"}, []cache.Option{cache.WithIgnoreClientControl()}, true},
		{"Pragma: no-cache", []string{"Pragma: no-cache"}, []string{"Cache-Control: max-age=60"}, nil, false},
		{"only explicit: max-age", nil, []string{"Cache-Control: max-age=60"}, []cache.Option{cache.WithOnlyExplicit()}, false},
		{"only explicit: public", nil, []string{"Cache-Control: public, max-age=60"}, []cache.Option{cache.WithOnlyExplicit()}, true},
		{"only explicit: s-maxage", nil, []string{"Cache-Control: s-maxage=60"}, []cache.Option{cache.WithOnlyExplicit()}, true},
		{"only explicit: targeted", nil, []string{"CDN-Cache-Control: max-age=60"}, []cache.Option{cache.WithOnlyExplicit()}, true},
		{"TTL by option", nil, nil, []cache.Option{cache.WithTTL(time.Minute)}, true},
		{"TTL by option, of an error", []string{"X-Status: 404"}, nil, []cache.Option{cache.WithTTL(time.Minute)}, false},
		{"TTL by option does not beat the response", nil, []string{"Cache-Control: max-age=0"}, []cache.Option{cache.WithTTL(time.Minute)}, false},
		{"TTL by option addresses nobody", nil, nil, []cache.Option{cache.WithTTL(time.Minute), cache.WithOnlyExplicit()}, false},
		{"TTL by option, public", nil, []string{"Cache-Control: public"}, []cache.Option{cache.WithTTL(time.Minute), cache.WithOnlyExplicit()}, true},
		{"TTL by option, no-store", nil, []string{"Cache-Control: no-store"}, []cache.Option{cache.WithTTL(time.Minute)}, false},
		{"bypass", nil, []string{"Cache-Control: max-age=60"}, []cache.Option{cache.WithBypass(func(*http.Request) bool { return true })}, false},
		{"host not listed", nil, []string{"Cache-Control: max-age=60"}, []cache.Option{cache.WithHosts("other.example")}, false},
		{"host listed", nil, []string{"Cache-Control: max-age=60"}, []cache.Option{cache.WithHosts("Example.com")}, true},
		{"admission: not at the first miss", nil, []string{"Cache-Control: max-age=60"}, []cache.Option{cache.WithAdmission()}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			var calls atomic.Int64
			answer := page(&calls, "body", test.fields...)
			h := cache.New(1<<20, test.opts...).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if s := r.Header.Get("X-Status"); s != "" {
					n, _ := strconv.Atoi(s)
					w.WriteHeader(n)
				}
				answer(w, r)
			}))
			for range 2 {
				res := get(h, "http://example.com/x", test.request...)
				want(t, "body", text(t, res), "body")
			}
			want(t, "stored", calls.Load() == 1, test.stored)
		})
	}
}

// The default port of the scheme says nothing, in the list as in the request: the key has none either.
func TestHostsWithDefaultPort(t *testing.T) {
	for _, test := range []struct {
		listed, url string
		stored      bool
	}{
		{"example.com:80", "http://example.com/x", true},
		{"example.com:80", "http://example.com:80/x", true},
		{"example.com", "http://example.com:80/x", true},
		{"example.com:443", "https://example.com/x", true},
		{"example.com:443", "https://example.com:443/x", true},
		{"example.com:443", "http://example.com/x", false},
		{"example.com:443", "http://example.com:443/x", true}, // from a proxy that ends TLS
		{"example.com:80", "https://example.com/x", false},
		{"example.com:8080", "http://example.com/x", false},
		{"[2001:db8::80]", "http://[2001:db8::80]:80/x", true},
	} {
		var calls atomic.Int64
		h := cache.New(1<<20, cache.WithHosts(test.listed)).Handler(page(&calls, "body", "Cache-Control: max-age=60"))
		get(h, test.url)
		get(h, test.url)
		want(t, test.listed+" for "+test.url, calls.Load() == 1, test.stored)
	}
}

func TestHitSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int64
		h := cache.New(1 << 20).Handler(page(&calls, "body", "Cache-Control: max-age=60", "Etag: \"v1\""))
		first := get(h, "http://example.com/x")
		want(t, "first", first.Header.Get("Cache-Status"), "spillgate; fwd=uri-miss; fwd-status=200; stored")
		time.Sleep(12 * time.Second) // in a synctest bubble
		second := get(h, "http://example.com/x")
		want(t, "Cache-Status", second.Header.Get("Cache-Status"), "spillgate; hit; ttl=48")
		want(t, "Age", second.Header.Get("Age"), "12")
		want(t, "Content-Length", second.Header.Get("Content-Length"), "4")
		want(t, "Content-Type", second.Header.Get("Content-Type"), "text/plain; charset=utf-8")
		want(t, "Date", second.Header.Get("Date") != "", true)
		head := ask(h, http.MethodHead, "http://example.com/x")
		want(t, "HEAD from GET", calls.Load(), 1)
		want(t, "HEAD body", text(t, head), "")
		want(t, "HEAD length", head.Header.Get("Content-Length"), "4")
		not := get(h, "http://example.com/x", `If-None-Match: "v0", W/"v1"`)
		want(t, "status", not.StatusCode, 304)
		want(t, "304 without Content-Length", not.Header.Get("Content-Length"), "")
		part := get(h, "http://example.com/x", "Range: bytes=1-2")
		want(t, "status", part.StatusCode, 206)
		want(t, "range", text(t, part), "od")
		want(t, "unsatisfiable", get(h, "http://example.com/x", "Range: bytes=9-").StatusCode, 416)
		want(t, "If-Range that does not match", get(h, "http://example.com/x", "Range: bytes=1-2", `If-Range: "v2"`).StatusCode, 200)
		time.Sleep(50 * time.Second) // in a synctest bubble
		third := get(h, "http://example.com/x")
		want(t, "stale", third.Header.Get("Cache-Status"), "spillgate; fwd=stale; fwd-status=200; stored")
	})
}

// validator answers with an entity tag, and 304 where the client has it.
func validator(calls, notModified *atomic.Int64, fields ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		for _, f := range fields {
			name, value, _ := strings.Cut(f, ": ")
			w.Header().Add(name, value)
		}
		w.Header().Set("Etag", `"v1"`)
		w.Header().Set("X-Call", fmt.Sprint(calls.Load()))
		if r.Header.Get("If-None-Match") == `"v1"` {
			notModified.Add(1)
			w.WriteHeader(http.StatusNotModified)
			return
		}
		io.WriteString(w, "0123456789")
	}
}

func TestValidation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls, not atomic.Int64
		h := cache.New(1 << 20).Handler(validator(&calls, &not, "Cache-Control: max-age=10"))
		get(h, "http://example.com/x")
		time.Sleep(11 * time.Second) // in a synctest bubble
		res := get(h, "http://example.com/x")
		want(t, "status", res.StatusCode, 200)
		want(t, "body", text(t, res), "0123456789")
		want(t, "validated", not.Load(), 1)
		want(t, "Cache-Status", res.Header.Get("Cache-Status"), "spillgate; fwd=stale; fwd-status=304")
		want(t, "field of the 304", res.Header.Get("X-Call"), "2")
		want(t, "Age", res.Header.Get("Age"), "0")
		want(t, "then a hit", get(h, "http://example.com/x").Header.Get("X-Call"), "2")

		// The client's own conditions and ranges are answered from the result.
		time.Sleep(11 * time.Second) // in a synctest bubble
		want(t, "client has it", get(h, "http://example.com/x", `If-None-Match: "v1"`).StatusCode, 304)
		time.Sleep(11 * time.Second) // in a synctest bubble
		want(t, "client has another", get(h, "http://example.com/x", `If-None-Match: "v0"`).StatusCode, 200)
		time.Sleep(11 * time.Second) // in a synctest bubble
		want(t, "range", text(t, get(h, "http://example.com/x", "Range: bytes=2-3")), "23")
		want(t, "calls", calls.Load(), 5)
		want(t, "not modified", not.Load(), 4)
	})
}

// A request that no variant is known to answer shows the handler the entity tags of all.
// A field that the handler takes back when it is asked again is not in the store any more.
func TestValidationThatMakesAFieldPrivate(t *testing.T) {
	for _, directive := range []string{`private="X-User, X-Other"`, `no-cache="x-user"`} {
		synctest.Test(t, func(t *testing.T) {
			control := "max-age=10"
			h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Cache-Control", control)
				w.Header().Set("Etag", `"1"`)
				w.Header().Set("X-User", "ada")
				if r.Header.Get("If-None-Match") != "" {
					w.WriteHeader(http.StatusNotModified)
				}
			}))
			get(h, "http://example.com/x")
			want(t, "in a hit", get(h, "http://example.com/x").Header.Get("X-User"), "ada")
			control += ", " + directive
			time.Sleep(20 * time.Second) // in a synctest bubble
			get(h, "http://example.com/x")
			res := get(h, "http://example.com/x")
			want(t, "status", res.Header.Get("Cache-Status"), "spillgate; hit; ttl=10")
			want(t, "in a hit, "+directive, res.Header.Get("X-User"), "")
		})
	}
}

// A response that turns out to depend on a request field when it is validated is for its own variant from then on.
func TestValidationThatNamesMoreInVary(t *testing.T) {
	for _, before := range []string{"", "X-A"} {
		for _, why := range []string{"stale", "request"} {
			for _, method := range []string{"GET", "HEAD"} {
				synctest.Test(t, func(t *testing.T) {
					calls, vary := 0, before
					h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						calls++
						tag := strconv.Quote(r.Header.Get("Accept-Language"))
						w.Header().Set("Cache-Control", "max-age=60")
						w.Header().Set("Etag", tag)
						w.Header().Set("Vary", vary)
						if r.Header.Get("If-None-Match") == tag {
							w.WriteHeader(http.StatusNotModified)
							return
						}
						io.WriteString(w, r.Header.Get("Accept-Language"))
					}))
					ask(h, "GET", "http://example.com/x", "Accept-Language: de")
					vary = "Accept-Language"
					if why == "stale" {
						time.Sleep(2 * time.Minute) // in a synctest bubble
					}
					ask(h, method, "http://example.com/x", "Accept-Language: de", "Cache-Control: no-cache")
					want(t, "calls", calls, 2)
					for range 2 {
						want(t, "English", text(t, get(h, "http://example.com/x", "Accept-Language: en")), "en")
						want(t, "German", text(t, get(h, "http://example.com/x", "Accept-Language: de")), "de")
					}
					want(t, "calls", calls, 3)
				})
			}
		}
	}
}

func TestValidationOfVariants(t *testing.T) {
	var calls, not atomic.Int64
	forget := false
	h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		w.Header().Set("Cache-Control", "max-age=60")
		w.Header().Set("Vary", "User-Agent")
		body, tag := "desktop", `"d"`
		if strings.Contains(r.UserAgent(), "Mobile") {
			body, tag = "mobile", `"m"`
		}
		if inm := r.Header.Get("If-None-Match"); forget && inm != "" {
			not.Add(1)
			w.Header().Set("Etag", `"unheard of"`)
			w.WriteHeader(304)
			return
		} else if strings.Contains(inm, tag) {
			not.Add(1)
			w.Header().Set("Etag", tag)
			w.WriteHeader(304)
			return
		}
		w.Header().Set("Etag", tag)
		io.WriteString(w, body)
	}))
	for i, agent := range []string{"Firefox", "Mobile", "Chrome", "Mobile 2"} {
		want := "desktop"
		if strings.Contains(agent, "Mobile") {
			want = "mobile"
		}
		for range 2 {
			if got := text(t, get(h, "http://example.com/x", "User-Agent: "+agent)); got != want {
				t.Errorf("%d: %s got %q", i, agent, got)
			}
		}
	}
	want(t, "calls", calls.Load(), 4)
	want(t, "not modified", not.Load(), 2)
	forget = true
	want(t, "a tag nobody offered", text(t, get(h, "http://example.com/x", "User-Agent: Safari")), "desktop")
	want(t, "calls", calls.Load(), 6)
}

// A client gets no coding that it did not name, though the handler gives the same entity tag to all of them.
func TestNoVariantInACodingNotAskedFor(t *testing.T) {
	for _, test := range []struct{ accepts, coding string }{
		{"", ""}, {"br", ""}, {"identity", ""}, {"gzip;q=0", ""}, {"br, gzip; q=0.0, *", ""}, {"br, GZIP;q=0.5", "gzip"},
	} {
		h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			hd := w.Header()
			hd.Set("Cache-Control", "max-age=60")
			hd.Set("Vary", "Accept-Encoding")
			hd.Set("Etag", `"v1"`)
			if r.Header.Get("If-None-Match") != "" {
				w.WriteHeader(http.StatusNotModified)
				return
			}
			if r.Header.Get("Accept-Encoding") == "gzip" {
				hd.Set("Content-Encoding", "gzip")
			}
			io.WriteString(w, "body")
		}))
		get(h, "http://example.com/x", "Accept-Encoding: gzip")
		for range 2 {
			res := get(h, "http://example.com/x", "Accept-Encoding: "+test.accepts)
			want(t, test.accepts, res.Header.Get("Content-Encoding"), test.coding)
		}
	}
}

// Nor one that it cannot decode, since it has another dictionary.
func TestNoVariantWithAnotherDictionary(t *testing.T) {
	h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hd := w.Header()
		hd.Set("Cache-Control", "max-age=60")
		hd.Set("Vary", "Accept-Encoding, Available-Dictionary")
		hd.Set("Etag", `W/"v1"`)
		if r.Header.Get("If-None-Match") != "" {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		hd.Set("Content-Encoding", "dcb")
		io.WriteString(w, r.Header.Get("Available-Dictionary"))
	}))
	for range 2 {
		for _, dictionary := range []string{":AAAA:", ":BBBB:"} {
			res := get(h, "http://example.com/x", "Accept-Encoding: gzip, br, dcb", "Available-Dictionary: "+dictionary)
			want(t, "compressed with", text(t, res), dictionary)
		}
	}
}

func TestCollapse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int64
		c := cache.New(1 << 20)
		h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			calls.Add(1)
			time.Sleep(time.Second) // in a synctest bubble
			w.Header().Set("Cache-Control", "max-age=60")
			io.WriteString(w, "body")
		}))
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				want(t, "body", text(t, get(h, "http://example.com/x")), "body")
			})
		}
		wg.Wait()
		want(t, "calls", calls.Load(), 1)
		s := c.Stats()
		want(t, "collapsed", s.Collapsed, 99)
		want(t, "misses", s.Misses, 1)
		want(t, "fills", s.Fills, 0)
		want(t, "recording", s.Recording, 0)
	})
}

// Who waits for another one's response waits no longer than the option says, and then asks for itself.
func TestCollapseWait(t *testing.T) {
	for _, test := range []struct {
		opts  []cache.Option
		after time.Duration // when the second request reaches the handler
	}{
		{nil, 5 * time.Second}, {[]cache.Option{cache.WithCollapseWait(2 * time.Second)}, 2 * time.Second}, {[]cache.Option{cache.WithCollapseWait(0)}, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			var calls atomic.Int64
			began := time.Now()
			h := cache.New(1<<20, test.opts...).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if calls.Add(1) == 2 {
					want(t, "asked after", time.Since(began), test.after)
				}
				time.Sleep(10 * time.Second) // in a synctest bubble
				w.Header().Set("Cache-Control", "max-age=60")
			}))
			var wg sync.WaitGroup
			for range 2 {
				wg.Go(func() { get(h, "http://example.com/x") })
			}
			wg.Wait()
			want(t, "calls", calls.Load(), 2)
		})
	}
}

// Where the handler takes longer than anybody waits, one of those who wait asks it again, and not all of them; each has the first response that there
// is, and nobody waits for more than twice as long.
func TestCollapseWaitIsNoStampede(t *testing.T) {
	const n = 50
	for _, test := range []struct {
		name    string
		takes   []time.Duration // each call of the handler; the last one stands for all that follow
		control string
		calls   int64
		longest time.Duration // that it takes until all but these have an answer
		but     int64         // for whom the handler itself takes longer
	}{
		{"slow", []time.Duration{8 * time.Second}, "max-age=60", 2, 8 * time.Second, 1},
		{"slow, then quick", []time.Duration{time.Minute, time.Second}, "max-age=60", 2, 6 * time.Second, 1},
		{"slower", []time.Duration{9 * time.Second, 9500 * time.Millisecond}, "max-age=60", 2, 9 * time.Second, 1},
		{"slow, and for nobody else", []time.Duration{8 * time.Second}, "private", n, 16 * time.Second, 0},
		{"hangs twice", []time.Duration{time.Minute, time.Minute, time.Second}, "max-age=60", n, 11 * time.Second, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var calls atomic.Int64
				c := cache.New(1 << 20)
				h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					i := int(calls.Add(1)) - 1
					time.Sleep(test.takes[min(i, len(test.takes)-1)]) // in a synctest bubble
					w.Header().Set("Cache-Control", test.control)
					io.WriteString(w, "body")
				}))
				began := time.Now()
				var wg sync.WaitGroup
				var late atomic.Int64
				for range n {
					wg.Go(func() {
						want(t, "body", text(t, get(h, "http://example.com/x")), "body")
						if time.Since(began) > test.longest {
							late.Add(1)
						}
					})
				}
				wg.Wait()
				want(t, "calls", calls.Load(), test.calls)
				want(t, "answered later", late.Load(), test.but)
				want(t, "fills", c.Stats().Fills, 0)
			})
		})
	}
}

// A run that another one for the same response has outrun serves its own client all the same: to the end.
func TestOutrunIsWhole(t *testing.T) {
	for _, control := range []string{"max-age=60", "private"} {
		synctest.Test(t, func(t *testing.T) {
			var calls atomic.Int64
			c := cache.New(1 << 20)
			h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if calls.Add(1) == 1 {
					time.Sleep(8 * time.Second) // in a synctest bubble
					w.Header().Set("Cache-Control", control)
					io.WriteString(w, "quick")
					return
				}
				time.Sleep(10 * time.Second) // in a synctest bubble
				w.Header().Set("Cache-Control", "max-age=60")
				for range 4 {
					io.WriteString(w, strings.Repeat("x", 5000))
					http.NewResponseController(w).Flush()
					time.Sleep(time.Second) // in a synctest bubble
				}
			}))
			var wg sync.WaitGroup
			for range 3 {
				wg.Go(func() {
					if body := text(t, get(h, "http://example.com/x")); body != "quick" && body != strings.Repeat("x", 20000) {
						t.Errorf("%s: %d bytes, which is neither response", control, len(body))
					}
				})
			}
			wg.Wait()
			want(t, "fills", c.Stats().Fills, 0)
		})
	}
}

// Who waits for a response without a length, which is of use to him when it is whole, has the other one if that is there sooner.
func TestOutrunBeyondTheHeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int64
		h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "max-age=60")
			if calls.Add(1) == 1 {
				time.Sleep(8 * time.Second) // in a synctest bubble
			} else {
				http.NewResponseController(w).Flush()
				time.Sleep(time.Minute) // in a synctest bubble
			}
			io.WriteString(w, "body")
		}))
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() { want(t, "body", text(t, get(h, "http://example.com/x")), "body") })
		}
		wg.Wait()
		want(t, "calls", calls.Load(), 2)
	})
}

// That one run fails is no reason not to wait for the other: all of them would come to a handler that is overloaded.
func TestFailureOutrunsNothing(t *testing.T) {
	for _, status := range []int{http.StatusServiceUnavailable, http.StatusGatewayTimeout, http.StatusTooManyRequests} {
		synctest.Test(t, func(t *testing.T) {
			var calls, failures atomic.Int64
			h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Cache-Control", "max-age=60")
				if calls.Add(1) == 1 {
					time.Sleep(7 * time.Second) // in a synctest bubble
					w.Header().Set("Cache-Control", "no-store")
					w.WriteHeader(status)
					return
				}
				time.Sleep(4 * time.Second) // in a synctest bubble
				io.WriteString(w, "body")
			}))
			var wg sync.WaitGroup
			for range 50 {
				wg.Go(func() {
					if get(h, "http://example.com/x").StatusCode != http.StatusOK {
						failures.Add(1)
					}
				})
			}
			wg.Wait()
			want(t, "calls", calls.Load(), 2)
			want(t, "failures", failures.Load(), 1)
		})
	}
}

// What was purged while a request waited is not read from the Store by what was known when it came.
func TestWaitedIsLongAgoForTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newMapStore()
		handler := func(body string, d time.Duration) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				time.Sleep(d) // in a synctest bubble
				w.Header().Set("Cache-Control", "max-age=60")
				io.WriteString(w, body)
			})
		}
		other := cache.New(1<<20, cache.WithStore(s, time.Second))
		there := other.Handler(handler("old", 0))
		here := cache.New(1<<20, cache.WithStore(s, time.Second)).Handler(handler("new", 20*time.Second))
		get(there, "http://example.com/") // there is a generation
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() { want(t, "body", text(t, get(here, "http://example.com/x")), "new") })
		}
		time.Sleep(time.Second) // in a synctest bubble
		want(t, "body", text(t, get(there, "http://example.com/x")), "old")
		time.Sleep(time.Second) // in a synctest bubble
		other.PurgeAll()
		wg.Wait()
	})
}

// Who has waited is answered with what is fresh when he is, and not with what was when he came.
func TestWaitedIsLongAgoForMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "public, max-age=2")
			if r.Header.Get("Authorization") == "" {
				time.Sleep(8 * time.Second) // in a synctest bubble
				io.WriteString(w, "new")
				return
			}
			io.WriteString(w, "old")
		}))
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() { want(t, "body", text(t, get(h, "http://example.com/x")), "new") })
		}
		time.Sleep(time.Second) // in a synctest bubble
		want(t, "body", text(t, get(h, "http://example.com/x", "Authorization: Basic Og==")), "old")
		wg.Wait()
	})
}

// Whoever says who he is does not wait: what the handler answers others may not be for him, nor what it answers him for others.
func TestAuthorizationDoesNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Second) // in a synctest bubble
			w.Header().Set("Cache-Control", "max-age=60")
			io.WriteString(w, r.Header.Get("Authorization"))
		}))
		var wg sync.WaitGroup
		began := time.Now()
		for _, user := range []string{"", "a", "b", "a"} {
			wg.Go(func() {
				want(t, "answer", text(t, get(h, "http://example.com/x", strings.Repeat("Authorization: ", min(1, len(user)))+user)), user)
				want(t, "took", time.Since(began), time.Second)
			})
		}
		wg.Wait()
	})
}

// But where the stored response says that it is for anybody, so will the next one: when it is stale one of those who say who they are has the handler asked.
func TestAuthorizationWaitsForWhatIsForAnybody(t *testing.T) {
	for _, test := range []struct {
		name, before, after string
		calls               int64
	}{
		{"public", "public, max-age=60", "public, max-age=60", 1},
		{"s-maxage", "s-maxage=60", "s-maxage=60", 1},
		{"not for anybody", "max-age=60", "max-age=60", 20},
		{"for each his own by now", "public, max-age=60", "max-age=60", 20},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var calls atomic.Int64
				control := test.before
				h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					calls.Add(1)
					user := r.Header.Get("Authorization")
					time.Sleep(time.Second) // in a synctest bubble
					w.Header().Set("Cache-Control", control)
					if strings.Contains(control, "public") || strings.Contains(control, "s-maxage") {
						user = "anybody"
					}
					io.WriteString(w, user)
				}))
				get(h, "http://example.com/x")
				time.Sleep(2 * time.Minute) // in a synctest bubble
				control = test.after
				calls.Store(0)
				var wg sync.WaitGroup
				began := time.Now()
				for i := range 20 {
					wg.Go(func() {
						user := fmt.Sprint("user ", i)
						got := text(t, get(h, "http://example.com/x", "Authorization: "+user))
						if test.calls == 1 {
							user = "anybody"
						}
						want(t, "answer", got, user)
					})
				}
				wg.Wait()
				want(t, "calls", calls.Load(), test.calls)
				want(t, "nobody waits for one after the other", time.Since(began) <= 2*time.Second, true)
			})
		})
	}
}

// A failure in answer to one of those says nothing of what the others get: it is stored and shared as soon as it is well again.
func TestAuthorizationAndAFailure(t *testing.T) {
	for name, fail := range map[string]func(w http.ResponseWriter){
		"500":                           func(w http.ResponseWriter) { w.WriteHeader(500) },
		"503":                           func(w http.ResponseWriter) { http.Error(w, "full", 503) },
		"nothing, and an error outside": func(http.ResponseWriter) {},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				calls, down := 0, false
				h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if calls++; down {
						fail(w)
						return
					}
					w.Header().Set("Cache-Control", "public, max-age=60")
					io.WriteString(w, "page")
				}))
				get(h, "http://example.com/x", "Authorization: a")
				time.Sleep(2 * time.Minute) // in a synctest bubble
				down = true
				get(h, "http://example.com/x", "Authorization: a")
				down, calls = false, 0
				for range 5 {
					want(t, "answer", text(t, get(h, "http://example.com/x", "Authorization: a")), "page")
				}
				want(t, "calls", calls, 1)
			})
		})
	}
}

// Who waits for another one's response and gets it while it is made sees the same header.
func TestCollapsedHasTheHeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			for name, values := range fields("Cache-Control: max-age=60\nEtag: \"1\"\nX: a\nX: b\nContent-Length: 10\nContent-Type: text/x\nAge: 7\nCache-Status: inner; hit") {
				w.Header()[name] = values
			}
			w.WriteHeader(http.StatusNotFound)
			io.WriteString(w, "01234")
			http.NewResponseController(w).Flush()
			time.Sleep(time.Second) // in a synctest bubble
			io.WriteString(w, "56789")
		}))
		leader := make(chan *http.Response, 1)
		go func() { leader <- get(h, "http://example.com/x") }()
		synctest.Wait()
		follower := get(h, "http://example.com/x")
		want(t, "status", follower.StatusCode, 404)
		want(t, "body", text(t, follower), "0123456789")
		want(t, "Age", follower.Header.Get("Age"), "7")
		want(t, "Cache-Status", strings.Join(follower.Header["Cache-Status"], ", "), "inner; hit, spillgate; fwd=uri-miss; collapsed")
		first := (<-leader).Header
		for name := range first {
			if name != "Age" && name != "Cache-Status" {
				want(t, name, strings.Join(follower.Header[name], "|"), strings.Join(first[name], "|"))
			}
		}
		want(t, "fields", len(follower.Header) >= len(first), true)
	})
}

// Who waits for another one's response has what the handler has had flushed when the other one has it, and whoever comes later at once.
func TestCollapsedIsFlushed(t *testing.T) {
	for _, flush := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			looked := make(chan struct{})
			h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Cache-Control", "max-age=60")
				w.Header().Set("Content-Length", "8")
				time.Sleep(time.Second) // in a synctest bubble
				io.WriteString(w, "head")
				if flush {
					http.NewResponseController(w).Flush()
				}
				<-looked
				io.WriteString(w, "tail")
			}))
			var all []*httptest.ResponseRecorder
			var wg sync.WaitGroup
			for range 3 {
				w := httptest.NewRecorder()
				all = append(all, w)
				wg.Go(func() { h.ServeHTTP(w, httptest.NewRequest("GET", "http://example.com/x", nil)) })
				synctest.Wait()
				if len(all) == 2 {
					time.Sleep(2 * time.Second) // in a synctest bubble
				}
			}
			for i, w := range all {
				name := fmt.Sprintf("client %d, flushed by the handler %v: flushed", i, flush)
				want(t, name, w.Flushed, flush)
				want(t, name, w.Body.String(), map[bool]string{true: "head", false: ""}[flush || i > 0])
			}
			close(looked)
			wg.Wait()
			for i, w := range all {
				want(t, fmt.Sprint("client ", i), w.Body.String(), "headtail")
			}
		})
	}
}

// Who waits for another one's response has no Content-Length of it where a layer outside encodes what he gets, and not what the other one gets.
func TestCollapsedThroughALayerThatEncodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "max-age=60")
			http.ServeContent(w, r, "page.txt", time.Time{}, &slowly{strings.NewReader("page")})
		}))
		var wg sync.WaitGroup
		var got []*httptest.ResponseRecorder
		for _, coding := range []string{"", "gzip", ""} {
			w := httptest.NewRecorder()
			if coding != "" {
				w.Header().Set("Content-Encoding", coding)
			}
			got = append(got, w)
			wg.Go(func() { h.ServeHTTP(w, httptest.NewRequest("GET", "http://example.com/x", nil)) })
			synctest.Wait()
		}
		wg.Wait()
		for i, length := range []string{"4", "", "4"} {
			name := fmt.Sprint("client ", i)
			want(t, name, got[i].Body.String(), "page")
			want(t, name, got[i].Header().Get("Content-Length"), length)
			want(t, name+" waits for the first", strings.HasSuffix(got[i].Header().Get("Cache-Status"), "collapsed"), i > 0)
		}
	})
}

// slowly takes a second for each read.
type slowly struct{ io.ReadSeeker }

func (s *slowly) Read(p []byte) (int, error) {
	time.Sleep(time.Second) // in a synctest bubble
	return s.ReadSeeker.Read(p)
}

// Who waits for another request says why, like the other.
func TestCollapsedSaysWhy(t *testing.T) {
	for _, test := range []struct {
		why, first string
		later      time.Duration
		then       string
	}{
		{"uri-miss", "", 0, "X: 1"},
		{"stale", "X: 1", time.Minute, "X: 1"},
		{"vary-miss", "X: 2", time.Second, "X: 1"},
		{"request", "Cache-Control: max-age=1", 10 * time.Second, "Cache-Control: max-age=1"},
	} {
		for _, declared := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("Cache-Control", "max-age=30")
					w.Header().Set("Vary", "X")
					if declared {
						w.Header().Set("Content-Length", "4")
						w.WriteHeader(http.StatusOK)
					}
					time.Sleep(time.Second) // in a synctest bubble
					io.WriteString(w, "body")
				}))
				if test.first != "" {
					get(h, "http://example.com/x", test.first)
					time.Sleep(test.later) // in a synctest bubble
				}
				var all sync.WaitGroup
				for _, end := range []string{"stored", "collapsed"} {
					all.Go(func() {
						status := get(h, "http://example.com/x", test.then).Header.Get("Cache-Status")
						if !strings.HasPrefix(status, "spillgate; fwd="+test.why+"; ") || !strings.HasSuffix(status, end) {
							t.Errorf("declared=%v: got %q, want fwd=%s and %s", declared, status, test.why, end)
						}
					})
					synctest.Wait()
				}
				all.Wait()
			})
		}
	}
}

func TestStaleAnswers(t *testing.T) {
	shed := errors.New("full")
	for _, test := range []struct {
		name  string
		cc    string
		opts  []cache.Option
		fail  func(w http.ResponseWriter)
		stale bool
	}{
		{"503 without permission", "max-age=10", nil, func(w http.ResponseWriter) { w.WriteHeader(503) }, false},
		{"503 with stale-if-error", "max-age=10, stale-if-error=60", nil, func(w http.ResponseWriter) { w.WriteHeader(503) }, true},
		{"503 with stale-if-error, too late", "max-age=10, stale-if-error=1", nil, func(w http.ResponseWriter) { w.WriteHeader(503) }, false},
		{"503 by option", "max-age=10", []cache.Option{cache.WithStaleIfError(time.Minute)}, func(w http.ResponseWriter) { w.WriteHeader(503) }, true},
		{"500 with stale-if-error", "max-age=10, stale-if-error=60", nil, func(w http.ResponseWriter) { w.WriteHeader(500) }, true},
		{"404 is an answer", "max-age=10, stale-if-error=60", nil, func(w http.ResponseWriter) { w.WriteHeader(404) }, false},
		{"502", "max-age=10", nil, func(w http.ResponseWriter) { w.WriteHeader(502) }, true},
		{"504", "max-age=10", nil, func(w http.ResponseWriter) { w.WriteHeader(504) }, true},
		{"501 is an answer", "max-age=10, stale-if-error=60", nil, func(w http.ResponseWriter) { w.WriteHeader(501) }, false},
		{"502, must-revalidate", "max-age=10, must-revalidate, stale-if-error=60", nil, func(w http.ResponseWriter) { w.WriteHeader(502) }, false},
		{"502, proxy-revalidate", "max-age=10, proxy-revalidate", nil, func(w http.ResponseWriter) { w.WriteHeader(502) }, false},
		{"502, s-maxage", "s-maxage=10", nil, func(w http.ResponseWriter) { w.WriteHeader(502) }, false},
		{"502, turned off", "max-age=10", []cache.Option{cache.WithStaleIfUnreachable(0)}, func(w http.ResponseWriter) { w.WriteHeader(502) }, false},
		{"shed", "max-age=10", nil, func(w http.ResponseWriter) {
			w.(cache.ShedMarker).MarkShed(shed)
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(503)
			io.WriteString(w, "full")
		}, true},
		{"shed, must-revalidate", "max-age=10, must-revalidate", nil, func(w http.ResponseWriter) {
			w.(cache.ShedMarker).MarkShed(shed)
			w.WriteHeader(503)
		}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				failing := false
				h := cache.New(1<<20, test.opts...).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if failing {
						test.fail(w)
						return
					}
					w.Header().Set("Cache-Control", test.cc)
					io.WriteString(w, "good")
				}))
				get(h, "http://example.com/x")
				time.Sleep(15 * time.Second) // in a synctest bubble
				failing = true
				res := get(h, "http://example.com/x")
				want(t, "stale", text(t, res) == "good", test.stale)
				if test.stale {
					want(t, "status", res.StatusCode, 200)
					want(t, "Age", res.Header.Get("Age"), "15")
					want(t, "Retry-After", res.Header.Get("Retry-After"), "")
					how, why := "fwd=stale; fwd-status="+test.name[:3], "stale-if-error" // it went forward, and that is no hit: RFC 9211, section 2.1
					switch test.name {
					case "502", "504":
						why = "unreachable"
					case "shed":
						how, why = "hit", "shed"
					}
					want(t, "says so", res.Header.Get("Cache-Status"), "spillgate; "+how+"; ttl=-5; detail="+why)
				}
			})
		})
	}
}

// How often the tests of races run: a few times with -short.
var leaderRounds, purgeRounds = 1000, 1000

var quiet = log.New(io.Discard, "", 0)

func quietTo(w io.Writer) *log.Logger { return log.New(w, "", 0) }

var stamp = time.Date(1994, 11, 6, 8, 49, 37, 0, time.UTC)

// TestAllocations holds what the package promises of the heap: a hit allocates its key at most, and
// a route that is known to be uncacheable nothing.
// A stale response that the handler has taken back is not served again, however it said so, and whether or not anybody waited.
func TestStaleIsForgottenWhereTheHandlerSaysSo(t *testing.T) {
	const kept = "max-age=10"
	for _, test := range []struct {
		name   string
		status int
		fields string
		rest   func(w http.ResponseWriter, h http.Header)
	}{
		{"not found", 404, "", nil},
		{"gone, no-store", 410, "no-store", nil},
		{"private from now on", 200, "private", nil},
		{"the same, but private from now on", 304, "private", nil},
		{"too large in the end", 200, kept, func(w http.ResponseWriter, h http.Header) {
			for range 10 {
				w.Write(make([]byte, 8<<10))
			}
		}},
		{"a trailer", 200, kept, func(w http.ResponseWriter, h http.Header) { w.Header().Set(http.TrailerPrefix+"Sum", "1") }},
		{"a trailer while the body is on its way", 200, kept, func(w http.ResponseWriter, h http.Header) {
			w.Write(make([]byte, 8<<10))
			h.Set(http.TrailerPrefix+"Sum", "1")
		}},
	} {
		for _, window := range []string{"stale-while-revalidate", "stale-if-error"} {
			t.Run(test.name+", "+window, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var calls atomic.Int64
					answer := page(&calls, "old", `Etag: "1"`, "Cache-Control: max-age=10, "+window+"=86400")
					h := cache.New(1<<20, cache.WithStore(newMapStore(), time.Second)).Handler(
						http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { answer(w, r) }))
					get(h, "http://example.com/x")
					answer = func(w http.ResponseWriter, r *http.Request) {
						h := w.Header()
						h.Set("Cache-Control", test.fields)
						w.WriteHeader(test.status)
						if test.rest != nil {
							test.rest(w, h)
						}
					}
					time.Sleep(20 * time.Second) // in a synctest bubble
					get(h, "http://example.com/x")
					time.Sleep(10 * time.Minute) // in a synctest bubble: the mark of the key is over
					synctest.Wait()
					answer = func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }
					want(t, "status", get(h, "http://example.com/x").StatusCode, http.StatusServiceUnavailable)
				})
			})
		}
	}
}

// Nor is an older one that the same request selects, since the handler named other fields in Vary: it came back in place of what was forgotten.
func TestOlderVariantDoesNotComeBack(t *testing.T) {
	for _, test := range []struct {
		name string
		old  []string // what the requests for the older ones say
		vary string   // of the newer one, by the Accept of its request
		ask  []string // what is asked for afterwards
	}{
		{"for all", []string{"a", "b"}, "", []string{"a", "a", "b"}},
		{"by another field", []string{"a"}, "Accept", []string{"a", "a"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				body, vary, control := "old", "Origin", "max-age=3600"
				h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("Vary", vary)
					w.Header().Set("Cache-Control", control)
					io.WriteString(w, body)
				}))
				for _, origin := range test.old {
					get(h, "http://example.com/x", "Accept: text/html", "Origin: "+origin)
				}
				body, vary, control = "new", test.vary, "max-age=10"
				get(h, "http://example.com/x", "Accept: text/html")
				want(t, "the newer one", text(t, get(h, "http://example.com/x", "Accept: text/html", "Origin: a")), "new")
				time.Sleep(15 * time.Second) // in a synctest bubble
				body, control = "newer, and not for the store", "no-store"
				for _, origin := range test.ask {
					want(t, "for "+origin, text(t, get(h, "http://example.com/x", "Accept: text/html", "Origin: "+origin)), body)
				}
			})
		})
	}
}

func TestAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	var calls atomic.Int64
	for _, test := range []struct {
		name    string
		handler http.Handler
		request *http.Request
		most    float64
	}{
		{"hit", bare(1<<10, &calls), browser("http://example.com/a/page.html?id=12345"), 1},
		{"uncacheable GET", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}), browser("http://example.com/api"), 0},
	} {
		h := cache.New(1 << 20).Handler(test.handler)
		w := null{make(http.Header)}
		h.ServeHTTP(w, test.request)
		got := testing.AllocsPerRun(1000, func() {
			clear(w.h)
			h.ServeHTTP(w, test.request)
		})
		if got > test.most {
			t.Errorf("%s: %v allocations a request, at most %v promised", test.name, got, test.most)
		}
	}
}

package cache_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
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

// TestRequestDirectives asks for a response that is stored and 10 s old of 60.
func TestRequestDirectives(t *testing.T) {
	for _, test := range []struct {
		cc, of string
		wait   time.Duration
		status int
		asked  bool
	}{
		{"max-age=20", "max-age=60", 10, 200, false}, {"max-age=5", "max-age=60", 10, 200, true}, {"max-age=0", "max-age=60", 10, 200, true},
		{"min-fresh=40", "max-age=60", 10, 200, false}, {"min-fresh=55", "max-age=60", 10, 200, true},
		{"max-stale", "max-age=5", 10, 200, false}, {"max-stale=10", "max-age=5", 10, 200, false}, {"max-stale=1", "max-age=5", 10, 200, true},
		{"max-stale=9, max-stale=1", "max-age=5", 10, 200, false}, {"max-stale=x", "max-age=5", 10, 200, true}, {"max-stale=5", "max-age=5", 10, 200, false},
		{"max-stale, max-age=10", "max-age=5", 10, 200, false}, {"max-stale, max-age=9", "max-age=5", 10, 200, true}, {"max-stale, no-cache", "max-age=5", 10, 200, true},
		{"max-age=10", "max-age=60", 10, 200, false}, {"min-fresh=50", "max-age=60", 10, 200, false}, {"min-fresh=x", "max-age=60", 10, 200, false},
		{"max-stale", "max-age=5, must-revalidate", 10, 200, true}, {"max-stale", "s-maxage=5", 10, 200, true},
		{"only-if-cached", "max-age=60", 10, 200, false}, {"only-if-cached", "max-age=5", 10, 504, false}, {"only-if-cached", "no-store", 10, 504, false},
		{"no-store", "max-age=60", 10, 200, true}, {"no-cache", "max-age=60", 10, 200, true}, {"max-age=x", "max-age=60", 10, 200, true},
		{"nothing-to-see-here", "max-age=60", 10, 200, false},
	} {
		t.Run(test.cc+" of "+test.of, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var calls atomic.Int64
				h := cache.New(1 << 20).Handler(page(&calls, "x", "Cache-Control: "+test.of))
				get(h, "http://example.com/x")
				time.Sleep(test.wait * time.Second) // in a synctest bubble
				res := get(h, "http://example.com/x", "Cache-Control: "+test.cc)
				want(t, "status", res.StatusCode, test.status)
				want(t, "asked", calls.Load() == 2, test.asked)
				body, length, control := "x", res.Header.Get("Content-Length"), test.of
				if test.status == 504 {
					body, length, control = "", "0", "no-store"
				}
				want(t, "body", text(t, res), body)
				want(t, "length", res.Header.Get("Content-Length"), length)
				want(t, "Cache-Control", res.Header.Get("Cache-Control"), control)
			})
		})
	}
}

func TestResponseDirectives(t *testing.T) {
	for _, test := range []struct {
		status int
		fields []string
		opts   []cache.Option
		stored bool
	}{
		{200, []string{"Cache-Control: no-store, must-understand, max-age=60"}, nil, true},
		{599, []string{"Cache-Control: must-understand, max-age=60"}, nil, false},
		{599, []string{"Cache-Control: max-age=60"}, nil, true},
		{200, []string{`Cache-Control: max-age="60"`}, nil, true},
		{200, []string{`Cache-Control: x="a\", no-store", max-age=60`}, nil, true},
		{200, []string{`Cache-Control: max-age="6\0"`}, nil, true},
		{200, []string{"CDN-Cache-Control: private, max-age=60"}, nil, false},
		{200, []string{`CDN-Cache-Control: private="x", no-cache="y", max-age=60`}, nil, true},
		{200, []string{"CDN-Cache-Control: no-cache, max-age=60"}, nil, false},
		{200, []string{"CDN-Cache-Control: no-store=?0, s-maxage=60, max-age=0, public, must-revalidate, proxy-revalidate, stale-if-error=1, stale-while-revalidate=1, must-understand"}, nil, true},
		{200, []string{`CDN-Cache-Control: x="a\"b", max-age=60`}, nil, true},
		{200, []string{`CDN-Cache-Control: x="a\b", max-age=60`}, nil, false},
		{200, []string{"Surrogate-Control: max-age=60"}, nil, false},
		{200, []string{"Surrogate-Control: max-age=60"}, []cache.Option{cache.WithSurrogate("me")}, true},
		{200, []string{"Surrogate-Control: no-store, max-age=60;me", "Cache-Control: no-store"}, []cache.Option{cache.WithSurrogate("me")}, true},
		{200, []string{"Surrogate-Control: max-age=60;other"}, []cache.Option{cache.WithSurrogate("me")}, false},
		{200, []string{"Surrogate-Control: max-age=60+600, content=ESI/1.0"}, []cache.Option{cache.WithSurrogate("me")}, true},
		{200, []string{"Cache-Control: max-age=60"}, []cache.Option{cache.WithUnkeyedHeaders("accept")}, false},
	} {
		var calls atomic.Int64
		c := cache.New(1<<20, test.opts...)
		h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			calls.Add(1)
			for _, f := range test.fields {
				name, value, _ := strings.Cut(f, ": ")
				w.Header().Add(name, value)
			}
			w.WriteHeader(test.status)
		}))
		for range 2 {
			get(h, "http://example.com/x", "Accept: */*")
		}
		want(t, strings.Join(test.fields, "; "), calls.Load() == 1, test.stored)
	}
}

// What is written like no directive is heeded where it would keep the response from the cache, and says nothing else.
func TestDirectivesThatAreNone(t *testing.T) {
	lasting := []string{"Expires: Thu, 18 Aug 2050 02:01:18 GMT", "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT"}
	for _, test := range []struct {
		control string
		hit     bool
	}{
		{"private; max-age=60", false},
		{"Private;max-age=60", false},
		{"max-age=60; private", false},
		{"no-store; no-cache", false},
		{"public no-store", false},
		{"no-cache; x", false},
		{"x, private;, y", false},
		{"private\u00a0", false},
		{"public; max-age=60", false},
		{"max-age =60", false},
		{"public s-maxage=60", false},
		{"public; x", true},
		{"x; not-private; no-store-at-all", true},
		{`x="private; no-store"`, true},
		{`x="private"; y="no-store"`, true},
		{" x ,\ty\t, ", true},
		{"private=x", true},
		{"x=private", true},
	} {
		for _, field := range lasting {
			calls := 0
			h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				calls++
				w.Header().Set("Cache-Control", test.control)
				name, value, _ := strings.Cut(field, ": ")
				w.Header().Set(name, value)
			}))
			get(h, "http://example.com/x")
			get(h, "http://example.com/x")
			want(t, test.control+" with "+field, calls == 1, test.hit)
		}
	}
}

// A handler that panics still does; but a client that has a stale response coming gets it whole first.
func TestPanicWithAStaleResponse(t *testing.T) {
	panics := false
	c := cache.New(1 << 20)
	srv := httptest.NewUnstartedServer(c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if panics {
			w.Header().Set("X-Half-Done", "1")
			panic("mine")
		}
		w.Header().Set("Cache-Control", "max-age=60")
		io.WriteString(w, "good")
	})))
	var log bytes.Buffer
	srv.Config.ErrorLog = quietTo(&log)
	srv.Start()
	defer srv.Close()
	see(t, srv.Client(), "GET", srv.URL+"/x")
	c.PurgeAllSoft()
	panics = true
	got := see(t, srv.Client(), "GET", srv.URL+"/x")
	want(t, "body", got.body, "good")
	want(t, "error", got.bodyErr, false)
	res, err := srv.Client().Get(srv.URL + "/x")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	want(t, "says that the handler ran", strings.Contains(res.Header.Get("Cache-Status"), "spillgate; fwd=stale; ttl="), true)
	want(t, "nothing of the failure", strings.Contains(got.header, "Half"), false)
	want(t, "says that the connection ends", res.Close, true)
	stream := httptest.NewRequest("GET", srv.URL+"/x", nil)
	stream.ProtoMajor, stream.ProtoMinor = 2, 0
	w := httptest.NewRecorder()
	func() {
		defer func() { want(t, "panic", recover(), any("mine")) }()
		srv.Config.Handler.ServeHTTP(w, stream)
	}()
	want(t, "body in HTTP/2", w.Body.String(), "good")
	want(t, "a connection that does not end", w.Header().Get("Connection"), "")
	srv.Close()
	want(t, "the server logs the panic", strings.Contains(log.String(), "mine"), true)
}

func TestFollowersOfAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int64
		failing := false
		c := cache.New(1 << 20)
		h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			calls.Add(1)
			time.Sleep(time.Second) // in a synctest bubble
			if failing {
				w.WriteHeader(http.StatusBadGateway)
				return
			}
			w.Header().Set("Cache-Control", "max-age=10")
			io.WriteString(w, "good")
		}))
		get(h, "http://example.com/x")
		time.Sleep(11 * time.Second) // in a synctest bubble
		failing = true
		calls.Store(0)
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() { want(t, "stale", text(t, get(h, "http://example.com/x")), "good") })
		}
		wg.Wait()
		want(t, "one asked for all", calls.Load(), 1)
		want(t, "stale", c.Stats().Stale, 20)
	})
}

// Whatever ended a request that waited for another one, silence would be an empty 200: its client may be there still.
func TestFollowerIsAnsweredWhoeverEndedIt(t *testing.T) {
	down := errors.New("the server goes down")
	for _, test := range []struct {
		name string
		end  func(context.Context) (context.Context, context.CancelFunc)
		want int
	}{
		{"a deadline", func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, time.Second)
		}, http.StatusGatewayTimeout},
		{"a deadline with a cause of its own", func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeoutCause(ctx, time.Second, down)
		}, http.StatusGatewayTimeout},
		{"cancelled by the server, as through BaseContext", func(ctx context.Context) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancelCause(ctx)
			time.AfterFunc(time.Second, func() { cancel(down) })
			return ctx, func() {}
		}, http.StatusServiceUnavailable},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					time.Sleep(3 * time.Second) // in a synctest bubble
					w.Header().Set("Cache-Control", "max-age=10")
				}))
				go get(h, "http://example.com/x")
				synctest.Wait()
				ctx, cancel := test.end(t.Context())
				defer cancel()
				rec := httptest.NewRecorder()
				h.ServeHTTP(rec, httptest.NewRequest("GET", "http://example.com/x", nil).WithContext(ctx))
				want(t, "status", rec.Code, test.want)
				want(t, "Cache-Control", rec.Header().Get("Cache-Control"), "no-store")
				time.Sleep(5 * time.Second) // in a synctest bubble
			})
		})
	}
}

func TestStaleWhileRevalidate(t *testing.T) {
	for _, test := range []struct {
		cc    string
		opts  []cache.Option
		stale bool
	}{
		{"max-age=10", nil, false}, {"max-age=10, stale-while-revalidate=30", nil, true}, {"max-age=10, stale-while-revalidate=3", nil, false},
		{"max-age=10", []cache.Option{cache.WithStaleWhileRevalidate(time.Minute)}, true},
		{"max-age=10, stale-while-revalidate=0", []cache.Option{cache.WithStaleWhileRevalidate(time.Minute)}, false},
		{"max-age=10, must-revalidate, stale-while-revalidate=30", nil, false}, {"max-age=10, no-cache, stale-while-revalidate=30", nil, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			var calls atomic.Int64
			c := cache.New(1<<20, test.opts...)
			h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				calls.Add(1)
				time.Sleep(time.Second) // in a synctest bubble
				w.Header().Set("Cache-Control", test.cc)
				io.WriteString(w, "x")
			}))
			get(h, "http://example.com/x")
			time.Sleep(15 * time.Second) // in a synctest bubble
			begun := time.Now()
			for range 5 {
				get(h, "http://example.com/x")
			}
			if test.stale {
				want(t, test.cc+": at once", time.Since(begun), 0)
				time.Sleep(2 * time.Second) // in a synctest bubble
				want(t, test.cc+": calls", calls.Load(), 2)
				want(t, test.cc+": fresh", strings.Contains(get(h, "http://example.com/x").Header.Get("Cache-Status"), "hit; ttl=8"), true)
			} else {
				want(t, test.cc+": waited", time.Since(begun) >= time.Second, true)
			}
		})
	}
}

func TestTraceAndStats(t *testing.T) {
	var served []string
	c := cache.New(1<<20, cache.WithName("edge"), cache.WithMaxVariants(2), cache.WithTrace(cache.Trace{
		Served: func(r *http.Request, res cache.Result) { served = append(served, r.URL.Path+" "+res.String()) },
	}))
	var calls atomic.Int64
	h := c.Handler(page(&calls, "x", "Cache-Control: max-age=60", "Vary: A"))
	get(h, "/x", "A: 1")
	get(h, "/x", "A: 1")
	get(h, "/x", "A: 2")
	get(h, "/x", "A: 2", "Cache-Control: no-cache")
	ask(h, "POST", "/y")
	ask(h, "HEAD", "/y")
	want(t, "name", get(h, "/x", "A: 1").Header.Get("Cache-Status"), "edge; hit; ttl=60")
	served = served[:len(served)-1]
	want(t, "trace", strings.Join(served, ", "), "/x miss, /x hit, /x miss, /x miss, /y bypass, /y bypass")
	s := c.Stats()
	want(t, "by reason", [4]int64{s.MissURL, s.MissVary, s.MissStale, s.MissRequest}, [4]int64{1, 1, 0, 1})
	want(t, "stored", s.Stored, 3)
	want(t, "entries", s.Entries, 2)
	want(t, "unknown result", cache.Result(99).String(), "Result(99)")
}

// Each request has one result, also where the handler panics or takes the connection over before it answers.
func TestEveryRequestHasAResult(t *testing.T) {
	c := cache.New(1 << 20)
	var how func(w http.ResponseWriter)
	h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "max-age=60, must-revalidate")
		w.Header().Set("Etag", `"1"`)
		how(w)
	}))
	boom := func(http.ResponseWriter) { panic("mine") }
	half := func(w http.ResponseWriter) { io.WriteString(w, "x"); panic("mine") }
	takeOver := func(w http.ResponseWriter) { http.NewResponseController(w).Hijack() }
	store := func(w http.ResponseWriter) { io.WriteString(w, "x") }
	for _, test := range []struct {
		name, path, fields string
		how                func(http.ResponseWriter)
		result             cache.Result
	}{
		{"a panic", "/a", "", boom, cache.Miss},
		{"a panic after a part of the answer", "/b", "", half, cache.Miss},
		{"the connection taken over", "/c", "", takeOver, cache.Bypass},
		{"stored", "/d", "", store, cache.Miss},
		{"a panic in a validation", "/d", "Cache-Control: no-cache", boom, cache.Miss},
		{"a panic in one for a client with a condition", "/d", "Cache-Control: no-cache, If-None-Match: \"1\"", half, cache.Miss},
		{"the connection taken over in a validation", "/d", "Cache-Control: no-cache", takeOver, cache.Bypass},
	} {
		how = test.how
		r := httptest.NewRequest("GET", "http://example.com"+test.path, nil)
		for _, f := range strings.Split(test.fields, ", ") {
			name, value, _ := strings.Cut(f, ": ")
			r.Header.Set(name, value)
		}
		w := &marked{ResponseRecorder: httptest.NewRecorder()}
		func() {
			defer func() { recover() }()
			h.ServeHTTP(taken{w}, r)
		}()
		want(t, test.name+": results", fmt.Sprint(w.results), fmt.Sprint([]cache.Result{test.result}))
	}
	s := c.Stats()
	want(t, "results", s.Hits+s.Stale+s.Revalidated+s.Collapsed+s.Misses+s.Bypassed, 7)
}

// taken is a writer whose connection can be taken over.
type taken struct{ *marked }

func (taken) Hijack() (net.Conn, *bufio.ReadWriter, error) { return nil, nil, nil }

// A response that comes through ReadFrom is recorded like any other.
func TestReadFromIsRecorded(t *testing.T) {
	var calls atomic.Int64
	body := strings.Repeat("0123456789", 3000)
	srv := httptest.NewServer(cache.New(2 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		w.Header().Set("Cache-Control", "max-age=60")
		w.(io.ReaderFrom).ReadFrom(strings.NewReader(body))
	})))
	defer srv.Close()
	for range 3 {
		want(t, "body", see(t, srv.Client(), "GET", srv.URL+"/x").body == body, true)
	}
	want(t, "calls", calls.Load(), 1)
}

// The same cache twice in one chain neither waits for itself nor answers wrongly.
func TestTwiceInOneChain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int64
		c := cache.New(1 << 20)
		h := c.Handler(c.Handler(page(&calls, "x", "Cache-Control: max-age=60")))
		begun := time.Now()
		for range 2 {
			want(t, "body", text(t, get(h, "http://example.com/x")), "x")
		}
		want(t, "calls", calls.Load(), 1)
		want(t, "waited", time.Since(begun), 0)
	})
}

// A route that is known to be uncacheable stays so while it is in use, without anybody waiting; and is
// found out when it changes.
func TestMarksAreRenewed(t *testing.T) {
	for _, fields := range [][]string{nil, {"Cache-Control: no-store"}, {"Cache-Control: private, max-age=60"}} {
		synctest.Test(t, func(t *testing.T) {
			var calls atomic.Int64
			answer := page(&calls, "x", fields...)
			c := cache.New(1 << 20)
			h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { answer(w, r) }))
			for range 100 {
				get(h, "http://example.com/x")
				time.Sleep(10 * time.Second) // in a synctest bubble
			}
			want(t, "bypassed", c.Stats().Bypassed, 99)
			answer = page(&calls, "x", "Cache-Control: max-age=60")
			calls.Store(0)
			for range 10 {
				get(h, "http://example.com/x")
				time.Sleep(10 * time.Second) // in a synctest bubble
			}
			if n := calls.Load(); n > 5 {
				t.Errorf("%d calls in 100 s: that the route can be cached now was not found out", n)
			}
		})
	}
}

// The answer to a HEAD says something of the stored response to a GET.
func TestHeadTeaches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var gets, heads atomic.Int64
		tag, cc := `"v1"`, "max-age=10, stale-if-error=1000"
		h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", cc)
			w.Header().Set("Etag", tag)
			if r.Method == "HEAD" {
				heads.Add(1)
				return
			}
			gets.Add(1)
			io.WriteString(w, "body")
		}))
		get(h, "http://example.com/x")
		want(t, "fresh HEAD", ask(h, "HEAD", "http://example.com/x").Header.Get("Age"), "0")
		time.Sleep(20 * time.Second) // in a synctest bubble
		cc = "max-age=100"
		ask(h, "HEAD", "http://example.com/x")
		want(t, "stale HEAD", heads.Load(), 1)
		res := get(h, "http://example.com/x")
		want(t, "fresh again", res.Header.Get("Cache-Status"), "spillgate; hit; ttl=100")
		want(t, "body", text(t, res), "body")

		tag = `"v2"`
		ask(h, "HEAD", "http://example.com/x", "Cache-Control: no-cache")
		get(h, "http://example.com/x")
		want(t, "another one", gets.Load(), 2)
	})
}

// Options that are as long as can be mean for ever, and do not wrap around.
func TestForEver(t *testing.T) {
	const forEver = time.Duration(math.MaxInt64)
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		s := newMapStore()
		opts := []cache.Option{cache.WithStaleWhileRevalidate(forEver), cache.WithStaleIfError(forEver), cache.WithStaleIfUnreachable(forEver),
			cache.WithCollapseWait(forEver), cache.WithRevalidations(1, forEver, forEver), cache.WithStore(s, forEver)}
		h := cache.New(1<<20, opts...).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if calls++; calls > 1 {
				w.WriteHeader(http.StatusInternalServerError)
				return
			}
			w.Header().Set("Cache-Control", "max-age=1")
		}))
		get(h, "http://example.com/x")
		time.Sleep(time.Hour) // in a synctest bubble
		for range 5 {
			want(t, "status", get(h, "http://example.com/x").StatusCode, http.StatusOK)
			time.Sleep(time.Hour) // in a synctest bubble
		}
		want(t, "calls", calls, 2)
		other := cache.New(1<<20, opts...).Handler(http.NotFoundHandler())
		want(t, "status from the Store", get(other, "http://example.com/x").StatusCode, http.StatusOK)
	})
}

// The reasons count whatever the answer was in the end, but for what was served before the handler was asked.
func TestReasonsAreNotOfMissesOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := cache.New(1 << 20)
		fails := false
		h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case fails:
				w.WriteHeader(http.StatusInternalServerError)
			case r.Header.Get("If-None-Match") != "":
				w.WriteHeader(http.StatusNotModified)
			default:
				w.Header().Set("ETag", `"a"`)
				w.Header().Set("Cache-Control", "max-age=1, stale-if-error=60, stale-while-revalidate="+r.URL.Query().Get("swr"))
				time.Sleep(time.Second / 2) // in a synctest bubble
			}
		}))
		reasons := func() [3]int64 { s := c.Stats(); return [3]int64{s.MissURL, s.MissStale, s.Misses} }
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() { get(h, "http://example.com/a?swr=0") })
		}
		wg.Wait()
		want(t, "three at once, of which one is a miss", reasons(), [3]int64{3, 0, 1})
		time.Sleep(2 * time.Second) // in a synctest bubble
		get(h, "http://example.com/a?swr=0")
		want(t, "revalidated", reasons(), [3]int64{3, 1, 1})
		time.Sleep(2 * time.Second) // in a synctest bubble
		fails = true
		get(h, "http://example.com/a?swr=0")
		want(t, "stale in place of an error", reasons(), [3]int64{3, 2, 1})
		fails = false
		get(h, "http://example.com/b?swr=60")
		time.Sleep(2 * time.Second) // in a synctest bubble
		get(h, "http://example.com/b?swr=60")
		synctest.Wait()
		want(t, "stale before it is validated", reasons(), [3]int64{4, 2, 2})
		s := c.Stats()
		want(t, "answers", [3]int64{s.Collapsed, s.Revalidated, s.Stale}, [3]int64{2, 1, 2})
	})
}

// A count that goes down is taken for that of a new process: a request that looks into the store again, since what it lacked has come
// from the [cache.Store], has been counted under no reason meanwhile.
func TestReasonsAreNotTakenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newMapStore()
		s.delay = time.Second
		answer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Cache-Control", "max-age=60") })
		get(cache.New(1<<20, cache.WithStore(s, time.Minute)).Handler(answer), "http://example.com/x")
		c := cache.New(1<<20, cache.WithStore(s, time.Minute))
		h := c.Handler(answer)
		var wg sync.WaitGroup
		for range 2 { // the second waits for the first
			wg.Go(func() { get(h, "http://example.com/x") })
		}
		synctest.Wait()
		want(t, "misses while the Store is asked", c.Stats().MissURL, 0)
		wg.Wait()
		want(t, "misses", c.Stats().MissURL, 0)
		want(t, "hits", c.Stats().Hits, 2)
	})
}

// A route takes back what was said for all of them, and f is asked about errors too.
func TestRouteTakesBack(t *testing.T) {
	never := func(*http.Request) bool { return true }
	minute := func(*http.Request, int, http.Header) time.Duration { return time.Minute }
	each := 0
	mine := func(*http.Request) string { each++; return strconv.Itoa(each) }
	for _, test := range []struct {
		name        string
		all, route  cache.RouteOption
		status      int
		fields      string
		first, both bool // is it stored, by the first alone and by both
	}{
		{"bypass", cache.WithBypass(never), cache.WithBypass(nil), 200, "Cache-Control: max-age=60", false, true},
		{"hosts", cache.WithHosts("example.org"), cache.WithHosts(), 200, "Cache-Control: max-age=60", false, true},
		{"key", cache.WithKey(mine), cache.WithKey(nil), 200, "Cache-Control: max-age=60", false, true},
		{"lifetime", cache.WithTTLFunc(minute), cache.WithTTLFunc(nil), 200, "A: b", true, false},
		{"lifetime of an error", cache.WithTTLFunc(minute), cache.WithTTLFunc(nil), 500, "A: b", true, false},
	} {
		stored := func(opts ...cache.RouteOption) bool {
			var calls atomic.Int64
			answer := page(&calls, "x", test.fields)
			h := cache.New(1<<20, test.all).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if test.status != http.StatusOK {
					calls.Add(1)
					w.WriteHeader(test.status)
					return
				}
				answer(w, r)
			}), opts...)
			get(h, "http://example.com/x")
			get(h, "http://example.com/x")
			return calls.Load() == 1
		}
		want(t, test.name+", for all", stored(), test.first)
		want(t, test.name+", taken back", stored(test.route), test.both)
	}
}

func TestNoRevalidationsServeStaleForTheWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int64
		h := cache.New(1<<20, cache.WithRevalidations(0, time.Second, 0)).Handler(page(&calls, "x", "Cache-Control: max-age=1, stale-while-revalidate=5"))
		for i, want := range []int64{1, 1, 1, 1, 2} { // at 0, 2, 4, 6 and 8 s
			get(h, "http://example.com/x")
			synctest.Wait()
			if got := calls.Load(); got != want {
				t.Errorf("request %d: the handler ran %d times, want %d", i+1, got, want)
			}
			time.Sleep(2*time.Second - 1) // in a synctest bubble
		}
	})
}

// What the package comment says of files.
func TestLifetimeByLastModified(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			age     time.Duration
			control string
			opts    []cache.Option
			want    string // Cache-Status of the second answer
		}{
			{10 * time.Hour, "", nil, "spillgate; hit; ttl=3600"},
			{365 * 24 * time.Hour, "", nil, "spillgate; hit; ttl=86400"},
			{10 * time.Hour, "no-cache", nil, "spillgate; fwd=stale; fwd-status=200; stored"},
			{10 * time.Hour, "", []cache.Option{cache.WithOnlyExplicit()}, ""},
			{10 * time.Hour, "public", []cache.Option{cache.WithOnlyExplicit()}, "spillgate; hit; ttl=3600"},
		} {
			modified := time.Now().Add(-c.age).UTC().Format(http.TimeFormat)
			h := cache.New(1<<20, c.opts...).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Last-Modified", modified)
				if c.control != "" {
					w.Header().Set("Cache-Control", c.control)
				}
				io.WriteString(w, "x")
			}))
			get(h, "http://example.com/x")
			want(t, c.age.String()+" "+c.control, get(h, "http://example.com/x").Header.Get("Cache-Status"), c.want)
		}
	})
}

// Who wants what is stored or nothing is not given what the handler says, also where nothing stored could answer him.
func TestOnlyIfCachedAsksNobody(t *testing.T) {
	for _, test := range []struct {
		name, url string
		fields    []string
		opts      []cache.Option
		status    int
		asked     bool
	}{
		{name: "stored", fields: nil, status: 200},
		{name: "no-store", fields: []string{"Cache-Control: no-store"}, status: 504},
		{name: "upgrade", fields: []string{"Upgrade: websocket"}, status: 504},
		{name: "condition for the handler", fields: []string{`If-Match: "x"`}, status: 504},
		{name: "another unit", fields: []string{"Range: items=0-1"}, status: 504},
		{name: "long URL", url: "http://example.com/" + strings.Repeat("a", 5000), status: 504},
		{name: "bypassed", opts: []cache.Option{cache.WithBypass(func(*http.Request) bool { return true })}, status: 200, asked: true},
		{name: "another host", opts: []cache.Option{cache.WithHosts("example.org")}, status: 200, asked: true},
		{name: "clients are not listened to", opts: []cache.Option{cache.WithIgnoreClientControl()}, fields: []string{"Upgrade: x"}, status: 200, asked: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			var calls atomic.Int64
			h := cache.New(1<<20, test.opts...).Handler(page(&calls, "x", "Cache-Control: max-age=60"))
			url := test.url
			if url == "" {
				url = "http://example.com/x"
			}
			get(h, url)
			before := calls.Load()
			res := get(h, url, append([]string{"Cache-Control: only-if-cached"}, test.fields...)...)
			want(t, "status", res.StatusCode, test.status)
			want(t, "asked", calls.Load() != before, test.asked)
		})
	}
}

package cache_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/cache"
)

func TestPurge(t *testing.T) {
	urls := []string{"http://a.example/x?q=1", "http://a.example/x", "http://a.example/x/y", "http://b.example/x", "http://a.example:81/x", "http://a.example.evil/x", "http://a.example//x"}
	for _, test := range []struct {
		name   string
		purge  func(c *cache.Cache) int
		purged []string
	}{
		{"a URL", func(c *cache.Cache) int { return c.Purge("http://a.example/x") }, urls[1:2]},
		{"a URL of the other scheme, in other case", func(c *cache.Cache) int { return c.Purge("https://A.example/x") }, urls[1:2]},
		{"a URL with a query", func(c *cache.Cache) int { return c.Purge("http://a.example/x?q=1") }, urls[:1]},
		{"a path", func(c *cache.Cache) int { return c.Purge("/x") }, []string{urls[1], urls[3], urls[4], urls[5]}},
		{"a URL with a fragment", func(c *cache.Cache) int { return c.Purge("http://a.example/x#y") }, urls[1:2]},
		{"a path with two slashes", func(c *cache.Cache) int { return c.Purge("//x") }, urls[6:]},
		{"a URL with a path with two slashes", func(c *cache.Cache) int { return c.Purge("http://a.example//x") }, urls[6:]},
		{"a prefix of paths with two slashes", func(c *cache.Cache) int { return c.PurgePrefix("//") }, urls[6:]},
		{"a prefix", func(c *cache.Cache) int { return c.PurgePrefix("http://a.example/x/") }, urls[2:3]},
		{"a host", func(c *cache.Cache) int { return c.PurgePrefix("http://a.example") }, slices.Concat(urls[:3], urls[6:])},
		{"a host in other case", func(c *cache.Cache) int { return c.PurgePrefix("HTTPS://A.example") }, slices.Concat(urls[:3], urls[6:])},
		{"a prefix of paths", func(c *cache.Cache) int { return c.PurgePrefix("/x/") }, urls[2:3]},
		{"a tag", func(c *cache.Cache) int { return c.PurgeTag("/x/y") }, urls[2:3]},
		{"a tag in Surrogate-Key", func(c *cache.Cache) int { return c.PurgeTag("key") }, urls},
		{"a group", func(c *cache.Cache) int { return c.PurgeTag("group") }, urls},
		{"all", func(c *cache.Cache) int { return c.PurgeAll() }, urls},
		{"nonsense", func(c *cache.Cache) int {
			return c.Purge("x") + c.Purge("%zz") + c.Purge("ftp://a.example/x") + c.PurgePrefix("ftp://a") + c.PurgeTag("")
		}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			var calls atomic.Int64
			c := cache.New(1 << 20)
			h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				calls.Add(1)
				w.Header().Set("Cache-Control", "max-age=60")
				w.Header().Set("Cache-Tag", r.URL.Path+",other")
				w.Header().Set("Surrogate-Key", "key more")
				w.Header().Set("Cache-Groups", `"group"`)
			}))
			for _, u := range urls {
				get(h, u)
			}
			want(t, "purged", test.purge(c), len(test.purged))
			for _, u := range urls {
				before := calls.Load()
				get(h, u)
				gone := false
				for _, p := range test.purged {
					gone = gone || p == u
				}
				want(t, u+" gone", calls.Load() > before, gone)
			}
		})
	}
}

// A URL is purged as the client wrote it, under the rules for queries of the route it is stored by.
func TestPurgeUnderTheRulesOfRoutes(t *testing.T) {
	var calls atomic.Int64
	c := cache.New(1 << 20)
	answer := page(&calls, "x", "Cache-Control: max-age=60")
	plain, sorted, without := c.Handler(answer), c.Handler(answer, cache.WithSortedQuery()), c.Handler(answer, cache.WithoutQuery("utm"))
	for _, test := range []struct {
		h          http.Handler
		url, purge string
	}{
		{plain, "http://example.com/p?b=1&a=2", "http://example.com/p?b=1&a=2#part"},
		{sorted, "http://example.com/s?b=1&a=2", "http://example.com/s?b=1&a=2"},
		{without, "http://example.com/w?utm=1&a=2", "http://example.com/w?utm=1&a=2"},
		{without, "http://example.com/v?utm=1&a=2", "/v?utm=1&a=2"},
		{plain, "http://example.com/a|b?c=|", "http://example.com/a|b?c=|"},
		{plain, "http://example.com/a|c", "/a|c"},
		{plain, "http://example.com/", "http://example.com"},
	} {
		get(test.h, test.url)
		want(t, test.url, c.Purge(test.purge), 1)
	}
}

// Behind a proxy that ends TLS the Host may have a port that is the default one for the client only.
func TestPurgeWithDefaultPorts(t *testing.T) {
	c := cache.New(1 << 20)
	h := c.Handler(page(new(atomic.Int64), "x", "Cache-Control: max-age=60"))
	hosts := []string{"example.com", "example.com:80", "example.com:443", "[2001:db8::443]", "[2001:db8::443]:443"}
	for _, host := range hosts {
		for _, other := range []string{host, strings.TrimSuffix(host, ":443")} {
			for _, scheme := range []string{"http://", "https://"} {
				get(h, scheme+host+"/x")
				want(t, "Purge "+scheme+other, c.Purge(scheme+other+"/x"), 1)
				get(h, scheme+host+"/x")
				want(t, "PurgePrefix "+scheme+other, c.PurgePrefix(scheme+other), 1)
				get(h, "http://"+host+"/x") // as the proxy sends it on
				want(t, "behind a proxy: Purge "+scheme+other, c.Purge(scheme+other+"/x"), 1)
			}
		}
	}
	get(h, "http://example.com:8443/x")
	want(t, "another port", c.Purge("https://example.com/x")+c.PurgePrefix("https://example.com"), 0)
}

func TestPurgeRemovesVariants(t *testing.T) {
	var calls atomic.Int64
	c := cache.New(1<<20, cache.WithKeyCookies("lang"))
	h := c.Handler(page(&calls, "x", "Cache-Control: max-age=60", "Vary: Accept"))
	for range 2 {
		get(h, "http://example.com/x", "Accept: a")
		get(h, "http://example.com/x", "Accept: b")
		get(h, "http://example.com/x", "Accept: b", "Cookie: lang=de")
	}
	want(t, "variants", calls.Load(), 3)
	want(t, "purged", c.Purge("http://example.com/x"), 3)
	want(t, "entries", c.Stats().Entries, 0)
	want(t, "bytes", c.Stats().Bytes, 0)
}

// Every soft purge leaves what it finds in the store, to be served within its windows.
func TestSoftPurges(t *testing.T) {
	const url = "http://example.com/x"
	for name, purge := range map[string]func(c *cache.Cache) int{
		"a URL":    func(c *cache.Cache) int { return c.PurgeSoft(url) },
		"a path":   func(c *cache.Cache) int { return c.PurgeSoft("/x") },
		"a prefix": func(c *cache.Cache) int { return c.PurgePrefixSoft("http://example.com/") },
		"a tag":    func(c *cache.Cache) int { return c.PurgeTagSoft("t") },
		"all":      func(c *cache.Cache) int { return c.PurgeAllSoft() },
	} {
		var calls atomic.Int64
		failing := false
		good := page(&calls, "good", "Cache-Control: max-age=60, stale-if-error=60", "Cache-Tag: t")
		c := cache.New(1 << 20)
		h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if failing {
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			good(w, r)
		}))
		get(h, url)
		want(t, name+": purged", purge(c), 1)
		failing = true
		want(t, name+": served while the handler fails", text(t, get(h, url)), "good")
		status := get(h, url).Header.Get("Cache-Status")
		want(t, name+": as stale", strings.HasPrefix(status, "spillgate; fwd=stale; fwd-status=503; ") && strings.HasSuffix(status, "; detail=stale-if-error"), true)
		failing = false
		get(h, url)
		want(t, name+": asked again", calls.Load(), 2)
		get(h, url)
		want(t, name+": and no more", calls.Load(), 2)
	}
}

// Of several variants those that a purge does not mean stay, and the others hold no memory any more.
func TestPurgeOfOneVariant(t *testing.T) {
	for _, soft := range []bool{false, true} {
		var calls atomic.Int64
		c := cache.New(1 << 20)
		h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			calls.Add(1)
			w.Header().Set("Cache-Control", "max-age=60")
			w.Header().Set("Vary", "X")
			w.Header().Set("Cache-Tag", "all\t"+r.Header.Get("X"))
		}))
		get(h, "http://example.com/x", "X: b")
		alone := c.Stats().Bytes
		get(h, "http://example.com/x", "X: a")
		if purge := c.PurgeTag; !soft {
			want(t, "purged", purge("a"), 1)
			want(t, "entries", c.Stats().Entries, 1)
			want(t, "bytes", c.Stats().Bytes, alone)
		} else {
			want(t, "purged", c.PurgeTagSoft("a"), 1)
			want(t, "entries", c.Stats().Entries, 2)
		}
		get(h, "http://example.com/x", "X: b")
		want(t, "calls for the other one", calls.Load(), 2)
		get(h, "http://example.com/x", "X: a")
		want(t, "calls for the one that was purged", calls.Load(), 3)
		want(t, "purged in the end", c.PurgeTag("all"), 2)
		want(t, "entries", c.Stats().Entries, 0)
		want(t, "bytes", c.Stats().Bytes, 0)
	}
}

// What a POST names is invalid in its own scheme, and that of the other scheme is of another origin.
func TestUnsafeMethodsAreOfOneScheme(t *testing.T) {
	for _, scheme := range []string{"http", "https"} {
		for _, named := range []string{"http", "https"} {
			c := cache.New(1 << 20)
			h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Cache-Control", "max-age=60")
				w.Header().Set("Cache-Groups", `"other"`)
				if r.Method == "POST" {
					w.Header().Set("Cache-Group-Invalidation", `"group"`)
					w.Header().Add("Location", "http://%zz/")
					w.Header().Add("Location", named+"://example.com/y")
				}
			}))
			get(h, scheme+"://example.com/y")
			ask(h, "POST", scheme+"://example.com/x")
			want(t, scheme+" names "+named+": entries", c.Stats().Entries == 0, scheme == named)
		}
	}
}

func TestSoftPurge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls, not atomic.Int64
		c := cache.New(1 << 20)
		h := c.Handler(validator(&calls, &not, "Cache-Control: max-age=60, stale-while-revalidate=60", "Cache-Tag: t"))
		get(h, "http://example.com/x")
		want(t, "purged", c.PurgeTagSoft("t"), 1)
		res := get(h, "http://example.com/x")
		want(t, "served stale", strings.Contains(res.Header.Get("Cache-Status"), "detail=stale-while-revalidate"), true)
		synctest.Wait()
		want(t, "validated in the background", not.Load(), 1)
		res = get(h, "http://example.com/x")
		want(t, "fresh", res.Header.Get("Cache-Status"), "spillgate; hit; ttl=60")
		want(t, "calls", calls.Load(), 2)
	})
}

// The windows for stale responses begin with a soft purge, or before it where the response was stale already.
func TestSoftPurgeBeginsTheWindows(t *testing.T) {
	for _, window := range []string{"stale-if-error", "stale-while-revalidate"} {
		for name, test := range map[string]struct{ purges, ends time.Duration }{ // after the response
			"long before it is stale":  {10 * time.Second, 70 * time.Second},
			"when it has become stale": {2*time.Hour + 30*time.Second, 2*time.Hour + time.Minute},
		} {
			synctest.Test(t, func(t *testing.T) {
				var calls atomic.Int64
				good := page(&calls, "good", "Cache-Control: max-age=7200, "+window+"=60")
				c := cache.New(1 << 20)
				failing := false
				h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if failing {
						w.WriteHeader(http.StatusServiceUnavailable)
						return
					}
					good(w, r)
				}))
				get(h, "http://example.com/x")
				failing = true
				time.Sleep(test.purges) // in a synctest bubble
				want(t, name+": purged", c.PurgeAllSoft(), 1)
				want(t, name+": purged again", c.PurgeAllSoft(), 1)
				time.Sleep(test.ends - test.purges) // in a synctest bubble
				res := get(h, "http://example.com/x")
				want(t, name+": at the end of "+window, text(t, res), "good")
				since := int((test.ends - min(test.purges, 2*time.Hour)) / time.Second)
				want(t, name+": how long it is stale", strings.Contains(res.Header.Get("Cache-Status"), fmt.Sprintf("; ttl=-%d; ", since)), true)
				synctest.Wait()
				c.PurgeAllSoft()        // and what is stale does not begin anew
				time.Sleep(time.Second) // in a synctest bubble
				want(t, name+": after "+window, get(h, "http://example.com/x").StatusCode, http.StatusServiceUnavailable)
			})
		}
	}
}

func TestUnsafeMethods(t *testing.T) {
	for _, test := range []struct {
		method      string
		status      int
		invalidates bool
	}{
		{"POST", 200, true}, {"PUT", 204, true}, {"DELETE", 303, true}, {"M-SEARCH", 200, true}, {"PATCH", 200, true},
		{"POST", 399, true}, {"POST", 400, false}, {"POST", 404, false}, {"POST", 500, false},
		{"OPTIONS", 200, false}, {"TRACE", 200, false}, {"CONNECT", 200, false},
		{"PROPFIND", 207, false}, {"REPORT", 207, false}, {"SEARCH", 200, false}, {"QUERY", 200, false}, {"PROPPATCH", 207, true},
	} {
		var calls atomic.Int64
		cached := page(&calls, "x", "Cache-Control: max-age=60", `Cache-Groups: "g"`)
		h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method != "GET" {
				w.Header().Set("Content-Location", "/y")
				w.Header().Set("Cache-Group-Invalidation", `"g"`)
				w.WriteHeader(test.status)
				return
			}
			if r.URL.Path == "/z" {
				w.Header().Set("Cache-Groups", `"g"`)
			}
			cached(w, r)
		}))
		paths := []string{"/x", "/y", "/z"}
		for _, p := range paths {
			get(h, "http://example.com"+p)
		}
		get(h, "http://other.example/z")
		want(t, test.method, ask(h, test.method, "http://example.com/x").StatusCode, test.status)
		for _, p := range paths {
			before := calls.Load()
			get(h, "http://example.com"+p)
			want(t, test.method+" "+p, calls.Load() > before, test.invalidates)
		}
		before := calls.Load()
		get(h, "http://other.example/z")
		want(t, "groups are of one origin", calls.Load(), before)
	}
}

// What WebDAV copies or moves to a URL is there afterwards: clients save a file by moving a new one to its place.
func TestDestinations(t *testing.T) {
	for _, test := range []struct {
		method, destination string
		status              int
		invalidates         bool
	}{
		{"MOVE", "http://example.com/y?q=1", 204, true}, {"COPY", "http://example.com/y?q=1", 201, true}, {"MOVE", "/y?q=1", 204, true},
		{"MOVE", "https://example.com/y?q=1", 204, true}, {"MOVE", "https://example.com:443/y?q=1", 204, true}, // TLS ends in front of us
		{"MOVE", "http://EXAMPLE.com:80/y?q=1", 204, true},
		{"MOVE", "http://other.example/y?q=1", 204, false}, {"MOVE", "http://example.com/y", 204, false}, {"MOVE", "http://[/y?q=1", 204, false},
		{"MOVE", "http://example.com/y?q=1", 412, false}, {"COPY", "", 400, false},
		{"PUT", "http://example.com/y?q=1", 204, false}, // which does not go by it
	} {
		var calls atomic.Int64
		cached := page(&calls, "x", "Cache-Control: max-age=60")
		h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method != "GET" {
				r.Header.Del("Destination") // as a layer inside may
				w.WriteHeader(test.status)
				return
			}
			cached(w, r)
		}))
		name := fmt.Sprint(test.method, " to ", test.destination, ", ", test.status)
		for _, host := range []string{"example.com", "other.example"} {
			get(h, "http://"+host+"/y?q=1")
		}
		want(t, name, ask(h, test.method, "http://example.com/x", "Destination: "+test.destination).StatusCode, test.status)
		before := calls.Load()
		get(h, "http://other.example/y?q=1")
		want(t, name+": calls for the other host", calls.Load()-before, 0)
		get(h, "http://example.com/y?q=1")
		want(t, name, calls.Load() > before, test.invalidates)
	}
}

// A response whose body breaks off has said before that the request succeeded; a handler that panics has not.
func TestUnsafeMethodsThatBreakOff(t *testing.T) {
	const flushed = -1 // and nothing else
	for _, reports := range []bool{false, true} {
		for status, invalid := range map[int]bool{0: false, flushed: true, 200: true, 500: false} {
			version := 0
			h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method == "POST" {
					version++
					switch status {
					case 0:
					case flushed:
						http.NewResponseController(w).Flush()
					default:
						w.WriteHeader(status)
						io.WriteString(w, "the beginning")
					}
					panic(http.ErrAbortHandler)
				}
				w.Header().Set("Cache-Control", "max-age=60")
				fmt.Fprint(w, version)
			}))
			get(h, "http://example.com/x")
			func() {
				defer func() { want(t, "panic", recover(), any(http.ErrAbortHandler)) }()
				var w http.ResponseWriter = httptest.NewRecorder()
				if reports {
					w = &reporter{ResponseWriter: w}
				}
				h.ServeHTTP(w, httptest.NewRequest("POST", "http://example.com/x", nil))
			}()
			want(t, fmt.Sprint("invalid after ", status), text(t, get(h, "http://example.com/x")) == "1", invalid)
		}
	}
}

// reporter is a cache.StatusReporter.
type reporter struct {
	http.ResponseWriter
	status int
}

func (r *reporter) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

func (r *reporter) Flush() { r.WriteHeader(http.StatusOK) }

func (r *reporter) Status() int { return r.status }

// What a POST has made invalid goes by what the client has sent, whatever a layer inside makes of its request, and
// under the rules of every route.
func TestUnsafeMethodsThatChangeTheRequest(t *testing.T) {
	c := cache.New(1 << 20)
	var calls atomic.Int64
	cached := c.Handler(page(&calls, "x", "Cache-Control: max-age=60"), cache.WithQuery("id"))
	other := c.Handler(page(&calls, "x", "Cache-Control: max-age=60"), cache.WithoutQuery("utm"), cache.WithSortedQuery())
	proxy := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.RequestURI, r.Host, r.URL.Path, r.URL.RawQuery = "", "origin.example", "/elsewhere", ""
		r.URL.Host = r.Host
		w.Header().Set("Location", "y?utm=1&id=2")
		w.WriteHeader(http.StatusCreated)
	}))
	for _, h := range []http.Handler{cached, other} {
		for _, target := range []string{"/a/x?id=1", "/a/y?id=2"} {
			get(h, "http://example.com"+target)
			before := calls.Load()
			get(h, "http://example.com"+target)
			want(t, "stored", calls.Load(), before)
			ask(proxy, "POST", "http://example.com/a/x?utm=2&id=1")
			get(h, "http://example.com"+target)
			want(t, "invalid "+target, calls.Load(), before+1)
		}
	}
}

func TestPurgeHandler(t *testing.T) {
	var calls atomic.Int64
	c := cache.New(1 << 20)
	h := c.Handler(page(&calls, "x", "Cache-Control: max-age=60", "Cache-Tag: t"))
	p := c.PurgeHandler(func(r *http.Request) bool { return r.Header.Get("Authorization") == "secret" })
	for _, test := range []struct {
		method, query, auth string
		status              int
		body                string
	}{
		{"POST", "url=http://example.com/x", "", 403, "cache: not authorised to purge\n"},
		{"GET", "url=http://example.com/x", "secret", 405, "cache: purge with POST\n"},
		{"POST", "", "secret", 400, "cache: say what to purge: url, prefix, tag, or all=1\n"},
		{"POST", "url=http://example.com/x", "secret", 200, "{\"purged\":1}\n"},
		{"POST", "prefix=/", "secret", 200, "{\"purged\":1}\n"},
		{"POST", "tag=t", "secret", 200, "{\"purged\":1}\n"},
		{"POST", "tag=other&tag=t", "secret", 400, "cache: 2 things to purge; give one url, prefix, tag, or all=1\n"},
		{"POST", "url=/y&tag=t&all=1", "secret", 400, "cache: 3 things to purge; give one url, prefix, tag, or all=1\n"},
		{"POST", "url=example.com/x", "secret", 400, "cache: url is \"example.com/x\"; give an absolute URL of http or https, or a path with its slash\n"},
		{"POST", "prefix=x", "secret", 400, "cache: prefix is \"x\"; give an absolute URL of http or https, or a path with its slash\n"},
		{"POST", "url=HTTP://example.com/x", "secret", 200, "{\"purged\":1}\n"},
		{"POST", "tag=t&soft=true", "secret", 400, "cache: soft is \"true\"; give soft=1, or leave it out\n"},
		{"POST", "url=&tag=t&all=0&soft=0", "secret", 200, "{\"purged\":1}\n"}, // as a form with empty fields sends it
		{"POST", "all=1&soft=1", "secret", 200, "{\"purged\":1}\n"},
	} {
		get(h, "http://example.com/x")
		r := httptest.NewRequest(test.method, "http://example.com/purge?"+test.query, nil)
		r.Header.Set("Authorization", test.auth)
		rec := httptest.NewRecorder()
		p.ServeHTTP(rec, r)
		want(t, test.query, rec.Code, test.status)
		want(t, test.query, rec.Body.String(), test.body)
	}
}

func TestOptionsOfKeys(t *testing.T) {
	for _, test := range []struct {
		name   string
		opts   []cache.RouteOption
		a, b   string // URLs
		fa, fb string // fields
		same   bool
	}{
		{"WithQuery", []cache.RouteOption{cache.WithQuery("a")}, "/x?a=1&utm=1", "/x?utm=2&a=1", "", "", true},
		{"WithQuery, listed", []cache.RouteOption{cache.WithQuery("a")}, "/x?a=1", "/x?a=2", "", "", false},
		{"WithoutQuery", []cache.RouteOption{cache.WithoutQuery("utm")}, "/x?a=1&utm=1", "/x?a=1", "", "", true},
		{"WithSortedQuery", []cache.RouteOption{cache.WithSortedQuery()}, "/x?a=1&b=2", "/x?b=2&a=1", "", "", true},
		{"WithSortedQuery, one name twice", []cache.RouteOption{cache.WithSortedQuery()}, "/x?a=1&a=2", "/x?a=2&a=1", "", "", false},
		{"WithQuery, listed and spelled otherwise", []cache.RouteOption{cache.WithQuery("a[b]")}, "/x?a[b]=1&%61%5Bb%5D=2", "/x?a[b]=1", "", "", false},
		{"WithQuery, what some parsers read as two", []cache.RouteOption{cache.WithQuery("a")}, "/x?utm=1;a=2", "/x", "", "", false},
		{"WithQuery, what no parser reads alike", []cache.RouteOption{cache.WithQuery("a")}, "/x?%6=1", "/x", "", "", false},
		{"WithoutQuery, spelled otherwise", []cache.RouteOption{cache.WithoutQuery("u m")}, "/x?a=1&u+m=1&%75%20m=2", "/x?a=1", "", "", true},
		{"WithoutQuery, what some parsers read as two", []cache.RouteOption{cache.WithoutQuery("utm")}, "/x?utm=1;a=2", "/x", "", "", false},
		{"WithSortedQuery, one name in two spellings", []cache.RouteOption{cache.WithSortedQuery()}, "/x?a=1&%61=2", "/x?%61=2&a=1", "", "", false},
		{"WithSortedQuery, what some parsers read as two", []cache.RouteOption{cache.WithSortedQuery()}, "/x?b=3&a=1;b=2", "/x?a=1;b=2&b=3", "", "", false},
		{"WithSortedQuery, what separates is part of it", []cache.RouteOption{cache.WithSortedQuery()}, "/x?a=1&b=2", "/x?a=1b=2", "", "", false},
		{"WithSortedQuery, an empty one", []cache.RouteOption{cache.WithSortedQuery()}, "/x?b=2&&a=1", "/x?a=1&b=2", "", "", true},
		{"WithSortedQuery, path and query", []cache.RouteOption{cache.WithSortedQuery()}, "/xa=1", "/x?a=1", "", "", false},
		{"WithQuery, of one name the order", []cache.RouteOption{cache.WithQuery("a")}, "/x?a=1&a=2", "/x?a=2&a=1", "", "", false},
		{"WithKeyHeaders, which of two", []cache.RouteOption{cache.WithKeyHeaders("A", "B")}, "/x", "/x", "A: 1", "B: 1", false},
		{"WithKeyHeaders and a cookie of that value", []cache.RouteOption{cache.WithKeyHeaders("A"), cache.WithKeyCookies("a")}, "/x", "/x", "A: 1", "Cookie: a=1", false},
		{"WithKeyCookies, which of two", []cache.RouteOption{cache.WithKeyCookies("a", "b")}, "/x", "/x", "Cookie: a=1", "Cookie: b=1", false},
		{"WithKeyCookies, empty and absent", []cache.RouteOption{cache.WithKeyCookies("a")}, "/x", "/x", "Cookie: a=", "Cookie: b=1", false},
		{"WithKeyCookies, one value or two", []cache.RouteOption{cache.WithKeyCookies("a")}, "/x", "/x", "Cookie: a=12", "Cookie: a=1; a=2", false},
		{"WithKey and a field of that value", []cache.RouteOption{cache.WithKeyHeaders("A"), cache.WithKey(func(r *http.Request) string { return r.Header.Get("B") })}, "/x", "/x", "A: 1", "B: 1", false},
		{"WithKeyHeaders", []cache.RouteOption{cache.WithKeyHeaders("x-tenant")}, "/x", "/x", "X-Tenant: 1", "X-Tenant: 2", false},
		{"WithKeyHeaders, absent", []cache.RouteOption{cache.WithKeyHeaders("x-tenant")}, "/x", "/x", "X-Tenant: ", "Y: 1", false},
		{"WithKeyCookies", []cache.RouteOption{cache.WithKeyCookies("lang")}, "/x", "/x", "Cookie: lang=de; a=1", "Cookie: lang=en; a=1", false},
		{"WithKeyCookies, others", []cache.RouteOption{cache.WithKeyCookies("lang")}, "/x", "/x", "Cookie: lang=de; a=1", "Cookie: lang=de; a=2", true},
		{"WithKeyCookies, another line", []cache.RouteOption{cache.WithKeyCookies("lang")}, "/x", "/x", "Cookie: lang=de", "Cookie: a=1;lang=de ", true},
		{"WithKeyCookies, two of one name", []cache.RouteOption{cache.WithKeyCookies("lang")}, "/x", "/x", "Cookie: lang=de; lang=en", "Cookie: lang=de", false},
		{"WithKeyCookies, what package net/http skips", []cache.RouteOption{cache.WithKeyCookies("lang")}, "/x", "/x", `Cookie: lang=en\; lang=de`, "Cookie: lang=de", false},
		{"WithKey", []cache.RouteOption{cache.WithKey(func(r *http.Request) string {
			if strings.Contains(r.UserAgent(), "Mobile") {
				return "mobile"
			}
			return "desktop"
		})}, "/x", "/x", "User-Agent: Mobile", "User-Agent: X11", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			var calls atomic.Int64
			h := cache.New(1<<20).Handler(page(&calls, "x", "Cache-Control: max-age=60"), test.opts...)
			for range 2 {
				get(h, test.a, test.fa)
				get(h, test.b, test.fb)
			}
			want(t, "same key", calls.Load() == 1, test.same)
			want(t, "stored", calls.Load() <= 2, true)
		})
	}
}

// What a handler reads from a query is in the key, however it is spelled: nobody gets under the URL of one page what
// the handler has answered for another.
func TestQueryThatHidesAParameter(t *testing.T) {
	for _, query := range []string{"id=evil", "%69d=evil", "i%64=evil&id=1", "%69%64=evil&id=1", "utm=1&%69d=evil&id=1"} {
		h := cache.New(1<<20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "max-age=60")
			io.WriteString(w, r.FormValue("id"))
		}), cache.WithQuery("id"), cache.WithSortedQuery())
		want(t, query, text(t, get(h, "http://example.com/page?"+query)), "evil")
		want(t, "after "+query, text(t, get(h, "http://example.com/page")), "")
		want(t, "id=1 after "+query, text(t, get(h, "http://example.com/page?id=1")), "1")
	}
}

// The rules for queries hold behind a layer that rewrites the URL too.
func TestQueryRulesBehindStripPrefix(t *testing.T) {
	var calls atomic.Int64
	h := http.StripPrefix("/shop", cache.New(1<<20).Handler(page(&calls, "x", "Cache-Control: max-age=60"),
		cache.WithoutQuery("utm"), cache.WithSortedQuery()))
	for _, query := range []string{"a=1&b=2", "utm=1&a=1&b=2", "a=1&utm=2&b=2", "b=2&a=1"} {
		get(h, "http://example.com/shop/x?"+query)
	}
	want(t, "calls", calls.Load(), 1)
	get(h, "http://example.com/shop/y?a=1&b=2")
	get(h, "http://example.com/shop/x?a=1")
	want(t, "others", calls.Load(), 3)
}

func TestTagsStripped(t *testing.T) {
	var calls atomic.Int64
	c := cache.New(1<<20, cache.WithTags(true, "X-Tags"))
	h := c.Handler(page(&calls, "x", "Cache-Control: max-age=60", "X-Tags: a b"))
	for range 2 {
		want(t, "tags", get(h, "http://example.com/x").Header.Get("X-Tags"), "")
	}
	want(t, "purged", c.PurgeTag("b"), 1)

	h = c.Handler(page(&calls, "x", "Cache-Control: private", "X-Tags: a b"))
	want(t, "tags of what is not stored", get(h, "http://example.com/y").Header.Get("X-Tags"), "")
}

// net/http sends what a handler puts into the map by another spelling, and so it is a field of tags as well.
func TestTagsStrippedHoweverTheyAreSpelled(t *testing.T) {
	for cc, asked := range map[string]int{"max-age=60": 2, "private": 1} { // from then on the cache has no part in what is private
		h := cache.New(1<<20, cache.WithTags(true, "X-Tags")).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", cc)
			w.Header()["x-tags"] = []string{"a b"}
		}))
		for i := range asked {
			for name := range get(h, "http://example.com/x").Header {
				if strings.EqualFold(name, "X-Tags") {
					t.Errorf("Cache-Control: %s: client %d sees %s", cc, i, name)
				}
			}
		}
	}
}

// What a 304 or the answer to a HEAD says of tags and groups holds from then on, and is stripped like any other.
func TestTagsOfAFreshenedResponse(t *testing.T) {
	for _, strip := range []bool{false, true} {
		for _, method := range []string{"GET", "HEAD"} {
			t.Run(fmt.Sprintf("%s, strip=%v", method, strip), func(t *testing.T) {
				tags, groups := "a b", `"g"`
				c := cache.New(1<<20, cache.WithTags(strip, "X-Tags"))
				h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("Cache-Control", "max-age=60")
					w.Header().Set("Etag", `"1"`)
					if tags != "" {
						w.Header().Set("X-Tags", tags)
						w.Header().Set("Cache-Groups", groups)
					}
					if r.Header.Get("If-None-Match") != "" {
						w.WriteHeader(http.StatusNotModified)
						return
					}
					io.WriteString(w, "body")
				}))
				has := func(present, absent string) {
					for _, tag := range strings.Fields(present) {
						want(t, "purged by "+tag, c.PurgeTagSoft(tag), 1)
					}
					for _, tag := range strings.Fields(absent) {
						want(t, "purged by "+tag, c.PurgeTagSoft(tag), 0)
					}
				}
				get(h, "http://example.com/x")
				has("a b g", "c h")
				for _, says := range []string{"b c", ""} {
					tags, groups = says, `"h"`
					ask(h, method, "http://example.com/x", "Cache-Control: no-cache")
					seen := "b c"
					if strip {
						seen = ""
					}
					want(t, "tags of a hit", get(h, "http://example.com/x").Header.Get("X-Tags"), seen)
					has("b c h", "a g")
				}
			})
		}
	}
}

func TestSetMaxBytes(t *testing.T) {
	c := cache.New(1 << 20)
	h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "max-age=60")
		w.Write(make([]byte, 4096))
	}))
	for i := range 100 {
		get(h, "http://example.com/"+strings.Repeat("x", i))
	}
	if err := c.SetMaxBytes(100); err == nil || c.Stats().MaxBytes != 1<<20 {
		t.Error("a budget that is too small was taken")
	}
	if err := c.SetMaxBytes(128 << 10); err != nil {
		t.Fatal(err)
	}
	want(t, "evicted at once", c.Stats().Bytes <= 128<<10, true)
	want(t, "evictions", c.Stats().Evictions > 0, true)
	want(t, "entries", c.Stats().Entries > 0, true)
}

func TestMaxEntriesAndObject(t *testing.T) {
	c := cache.New(1<<20, cache.WithMaxEntries(10), cache.WithMaxObject(1000))
	size := 10
	h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "max-age=60")
		w.Write(make([]byte, size))
	}))
	for i := range 100 {
		get(h, "http://example.com/"+strings.Repeat("x", i))
	}
	want(t, "entries", c.Stats().Entries, 10)
	for _, size = range []int{1001, 5000, 100_000} {
		body, _ := io.ReadAll(get(h, "http://example.com/large").Body)
		want(t, "whole body", len(body), size)
		want(t, "entries", c.Stats().Entries, 10)
		want(t, "nothing is held", c.Stats().Recording, 0)
	}
}

// A body of more than a quarter of the budget is too large whatever the option says, and nobody waits for it.
func TestMaxObjectBeyondTheBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := cache.New(1<<20, cache.WithMaxObject(512<<10))
		h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Second) // in a synctest bubble
			w.Header().Set("Cache-Control", "max-age=60")
			w.Header().Set("Content-Length", strconv.Itoa(300<<10))
			w.Write(make([]byte, 300<<10))
		}))
		status := get(h, "http://example.com/x").Header.Get("Cache-Status")
		want(t, "status", status, "spillgate; fwd=uri-miss; fwd-status=200; detail=too-large")
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() {
				begun := time.Now()
				get(h, "http://example.com/x")
				want(t, "took", time.Since(begun), time.Second)
			})
			time.Sleep(300 * time.Millisecond) // in a synctest bubble
		}
		all.Wait()
		if err := c.SetMaxBytes(4 << 20); err != nil {
			t.Fatal(err)
		}
		get(h, "http://example.com/y")
		want(t, "stored within a larger budget", c.Stats().Entries, 1)
	})
}

// Variants of one URL that are too many for the bounds push each other out, and not all of them at once.
func TestVariantsBeyondTheBounds(t *testing.T) {
	for name, test := range map[string]struct {
		opts     []cache.Option
		body     string
		variants int64 // that there is room for
	}{
		"bytes":                       {[]cache.Option{cache.WithMaxObject(250 << 10)}, strings.Repeat("x", 240<<10), 4},
		"entries":                     {[]cache.Option{cache.WithMaxEntries(3)}, "x", 3},
		"variants":                    {[]cache.Option{cache.WithMaxVariants(2)}, "x", 2},
		"variants, unless it is said": {nil, "x", 16},
	} {
		t.Run(name, func(t *testing.T) {
			c := cache.New(1<<20, test.opts...)
			var calls atomic.Int64
			h := c.Handler(page(&calls, test.body, "Cache-Control: max-age=60", "Vary: X", fmt.Sprint("Content-Length: ", len(test.body))))
			for i := range int64(20) {
				get(h, "http://example.com/x", fmt.Sprint("X: ", i))
				want(t, "variants", c.Stats().Entries, min(i+1, test.variants))
			}
			calls.Store(0)
			for i := 20 - test.variants; i < 20; i++ {
				get(h, "http://example.com/x", fmt.Sprint("X: ", i))
			}
			want(t, "calls for the newest", calls.Load(), 0)
			get(h, "http://example.com/x", fmt.Sprint("X: ", 20-test.variants-1))
			want(t, "calls for the one before them", calls.Load(), 1)
		})
	}
}

// A response that there is no room for pushes nothing out.
func TestEntryBeyondTheBudget(t *testing.T) {
	c := cache.New(64 << 10)
	var calls atomic.Int64
	h := c.Handler(page(&calls, "x", "Cache-Control: max-age=60", "Vary: X"))
	get(h, "http://example.com/a")
	get(h, "http://example.com/b", "X: "+strings.Repeat("x", 64<<10))
	want(t, "entries", c.Stats().Entries, 1)
	want(t, "evictions", c.Stats().Evictions, 0)
}

func TestAdmission(t *testing.T) {
	var calls atomic.Int64
	h := cache.New(1<<20, cache.WithAdmission()).Handler(page(&calls, "x", "Cache-Control: max-age=60"))
	for range 4 {
		get(h, "http://example.com/x")
	}
	want(t, "stored at the second miss", calls.Load(), 2)
}

func TestWrongArguments(t *testing.T) {
	for name, f := range map[string]func(){
		"budget": func() { cache.New(10) }, "handler": func() { cache.New(1 << 20).Handler(nil) },
		"purge": func() { cache.New(1 << 20).PurgeHandler(nil) }, "object": func() { cache.WithMaxObject(0) },
		"nil option": func() { cache.New(1<<20, nil) }, "nil route option": func() { cache.New(1<<20).Handler(http.NotFoundHandler(), nil) },
		"entries": func() { cache.WithMaxEntries(-1) }, "variants": func() { cache.WithMaxVariants(0) }, "wait": func() { cache.WithCollapseWait(-1) },
		"validations": func() { cache.WithRevalidations(-1, time.Second, 0) }, "time of a validation": func() { cache.WithRevalidations(1, 0, 0) },
		"time between validations": func() { cache.WithRevalidations(1, 1, -1) }, "stale while": func() { cache.WithStaleWhileRevalidate(-1) },
		"stale if an error": func() { cache.WithStaleIfError(-1) }, "stale if unreachable": func() { cache.WithStaleIfUnreachable(-1) },
		"name that begins with a digit": func() { cache.WithName("1a") }, "name that is empty": func() { cache.WithName("") },
		"name": func() { cache.WithName("a b") }, "ttl": func() { cache.WithTTL(-time.Second) },
		// A key that lacks what it was to have gives one tenant's responses to the next.
		"several fields in one name": func() { cache.WithKeyHeaders("X-Tenant, X-Plan") }, "field with its colon": func() { cache.WithKeyHeaders("X-Tenant:") },
		"field without a name": func() { cache.WithKeyHeaders("") }, "several cookies in one name": func() { cache.WithKeyCookies("tenant; plan") },
		"cookie without a name": func() { cache.WithKeyCookies("") }, "trusted field": func() { cache.WithTrustedHeaders("Forwarded, X-Host") },
		"unkeyed field": func() { cache.WithUnkeyedHeaders("X Tenant") }, "targeted field": func() { cache.WithTargets("CDN-Cache-Control, Edge-Control") },
		"surrogate":     func() { cache.WithSurrogate("my cdn") },
		"field of tags": func() { cache.WithTags(true, "Cache-Tag Surrogate-Key") },
		"URL as a host": func() { cache.WithHosts("https://example.com") }, "host that is empty": func() { cache.WithHosts("") },
		"host with a wildcard": func() { cache.WithHosts("*.example.com") }, "host without its port": func() { cache.WithHosts("example.com:") },
		"host with a port that is none": func() { cache.WithHosts("example.com:web") }, "several hosts in one": func() { cache.WithHosts("a.example,b.example") },
	} {
		func() {
			defer func() {
				if s, _ := recover().(string); !strings.HasPrefix(s, "cache: ") {
					t.Errorf("%s: panic %q", name, s)
				}
			}()
			f()
		}()
	}
}

// A purge by tag, group, prefix or path is none of what has nothing to do with it: where one follows the other, as on a site whose editors are
// at work, a response that takes longer than from one to the next is stored all the same.
func TestPurgesOfOthersVoidNoFill(t *testing.T) {
	purges := map[string]func(c *cache.Cache, h http.Handler){
		"tag":      func(c *cache.Cache, _ http.Handler) { c.PurgeTag("other") },
		"soft tag": func(c *cache.Cache, _ http.Handler) { c.PurgeTagSoft("other") },
		"prefix":   func(c *cache.Cache, _ http.Handler) { c.PurgePrefix("/other/") },
		"path":     func(c *cache.Cache, _ http.Handler) { c.Purge("/other") },
		"group": func(_ *cache.Cache, h http.Handler) {
			ask(h, "POST", "http://example.com/other", `Invalidate: "other"`)
		},
	}
	site := func(c *cache.Cache, calls *atomic.Int64) http.Handler {
		return c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				w.Header().Set("Cache-Group-Invalidation", r.Header.Get("Invalidate"))
				return
			}
			calls.Add(1)
			time.Sleep(time.Second) // in a synctest bubble
			w.Header().Set("Cache-Control", "max-age=60")
			w.Header().Set("Cache-Tag", "mine")
			w.Header().Set("Cache-Groups", `"mine"`)
			w.Header().Set("Etag", `"a"`)
			if r.Header.Get("If-None-Match") != "" {
				w.WriteHeader(http.StatusNotModified)
			}
		}))
	}
	for name, purge := range purges {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var calls atomic.Int64
				c := cache.New(1 << 20)
				h := site(c, &calls)
				ctx, cancel := context.WithCancel(t.Context())
				var wg sync.WaitGroup
				defer wg.Wait()
				defer cancel()
				wg.Go(func() {
					for ctx.Err() == nil {
						time.Sleep(50 * time.Millisecond) // in a synctest bubble
						purge(c, h)
					}
				})
				for range 3 {
					get(h, "http://example.com/x")
				}
				want(t, "calls", calls.Load(), 1)
				time.Sleep(time.Minute) // in a synctest bubble
				for range 3 {
					get(h, "http://example.com/x")
				}
				want(t, "calls when it has been validated", calls.Load(), 2)
			})
		})
	}
	// But it is taken for one of those that are meant where it is not known any more what was.
	for name, test := range map[string]struct {
		purge  func(c *cache.Cache)
		stored int64
	}{
		"very many":                    {func(c *cache.Cache) { purgeTags(c, 1000, "other") }, 0},
		"many":                         {func(c *cache.Cache) { purgeTags(c, 100, "other") }, 1},
		"very long":                    {func(c *cache.Cache) { c.PurgeTag(strings.Repeat("x", 1<<20)) }, 0},
		"its own, and many afterwards": {func(c *cache.Cache) { c.PurgeTag("mine"); purgeTags(c, 100, "other") }, 0},
		"its own, after many":          {func(c *cache.Cache) { purgeTags(c, 100, "other"); c.PurgeTag("mine") }, 0},
		"its URL, and many afterwards": {func(c *cache.Cache) { c.Purge("http://example.com/x"); purgeTags(c, 100, "other") }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var calls atomic.Int64
				c := cache.New(1 << 20)
				h := site(c, &calls)
				purgeTags(c, 200, "before")
				var wg sync.WaitGroup
				wg.Go(func() { get(h, "http://example.com/x") })
				time.Sleep(500 * time.Millisecond) // in a synctest bubble
				test.purge(c)
				wg.Wait()
				want(t, "stored", c.Stats().Entries, test.stored)
			})
		})
	}
}

func purgeTags(c *cache.Cache, n int, tag string) {
	for i := range n {
		c.PurgeTag(tag + strconv.Itoa(i))
	}
}

// What a purge is about is what a fill began with as well: a validation that gives a response other tags is not stored after a purge of those that it had,
// nor is a part under the tags of the one that it was joined with.
func TestPurgeOfWhatAFillBeganWith(t *testing.T) {
	t.Run("validated", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := cache.New(1 << 20)
			tag := "old"
			h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				time.Sleep(time.Second) // in a synctest bubble
				w.Header().Set("Cache-Control", "max-age=60")
				w.Header().Set("Cache-Tag", tag)
				w.Header().Set("Etag", `"a"`)
				if r.Header.Get("If-None-Match") != "" {
					w.WriteHeader(http.StatusNotModified)
				}
			}))
			get(h, "http://example.com/x")
			time.Sleep(2 * time.Minute) // in a synctest bubble
			tag = "new"
			var wg sync.WaitGroup
			wg.Go(func() { get(h, "http://example.com/x") })
			time.Sleep(500 * time.Millisecond) // in a synctest bubble
			want(t, "purged", c.PurgeTag("old"), 1)
			wg.Wait()
			want(t, "stored", c.Stats().Entries, 0)
		})
	})
	t.Run("part", func(t *testing.T) {
		c := cache.New(1 << 20)
		h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var first, last int
			fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last)
			w.Header().Set("Cache-Control", "max-age=60")
			w.Header().Set("Cache-Tag", "all, from"+strconv.Itoa(first))
			w.Header().Set("Cache-Groups", fmt.Sprintf(`"from%d"`, first))
			w.Header().Set("Etag", `"a"`)
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/100", first, last))
			w.WriteHeader(http.StatusPartialContent)
			io.WriteString(w, strings.Repeat("x", last-first+1))
		}))
		get(h, "http://example.com/x", "Range: bytes=0-9")
		get(h, "http://example.com/x", "Range: bytes=10-19")
		want(t, "one part", c.Stats().Entries, 1)
		want(t, "purged under the tag of the first", c.PurgeTag("from0"), 1)
	})
}

// A POST that copies from something which fails before its first byte, and then answers with an error, has changed nothing. Where it has written something it may have.
func TestUnsafeCopyThatFails(t *testing.T) {
	for name, test := range map[string]struct {
		copied string
		calls  int64
	}{"before its first byte": {"", 1}, "after it": {"x", 2}} {
		t.Run(name, func(t *testing.T) {
			var calls atomic.Int64
			srv := httptest.NewServer(cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodPost {
					if _, err := io.Copy(w, io.MultiReader(strings.NewReader(test.copied), broken{})); err != nil && test.copied == "" {
						w.WriteHeader(http.StatusInternalServerError)
					}
					return
				}
				calls.Add(1)
				w.Header().Set("Cache-Control", "max-age=60")
			})))
			defer srv.Close()
			for _, method := range []string{"GET", "POST", "GET"} {
				r, _ := http.NewRequest(method, srv.URL, nil)
				res, err := srv.Client().Do(r)
				if err != nil {
					t.Fatal(err)
				}
				io.Copy(io.Discard, res.Body)
				res.Body.Close()
			}
			want(t, "calls", calls.Load(), test.calls)
		})
	}
}

package cache_test

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/cache"
)

// The tests of this file are attacks on shared caches, each of which has worked against some cache
// in use. They keep their numbers.

func TestAttack01OneUsersPageForTheOthers(t *testing.T) {
	for _, fields := range [][]string{
		{"Cache-Control: private, max-age=60"}, {"Cache-Control: no-store"}, nil, {"Cache-Control: no-cache"},
		{"Cache-Control: max-age=60", "Set-Cookie: id=1"}, {"Cache-Control: max-age=60", "Vary: *"}, {"Cache-Control: max-age=0"},
		{"Etag: \"same\""}, {"Cache-Control: max-age=60", "Vary: Cookie"}, {"Cache-Control: max-age=60", "Vary: Cookie", "Etag: \"same\""},
	} {
		t.Run(fmt.Sprint(fields), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					time.Sleep(100 * time.Millisecond) // in a synctest bubble
					for _, f := range fields {
						name, value, _ := strings.Cut(f, ": ")
						w.Header().Add(name, value)
					}
					if r.Header.Get("If-None-Match") == `"same"` {
						w.WriteHeader(304) // its entity tags are the same for everybody, which is wrong
						return
					}
					io.WriteString(w, r.Header.Get("Cookie"))
				}))
				for range 2 {
					begun := time.Now()
					var wg sync.WaitGroup
					for i := range 20 {
						wg.Go(func() {
							cookie := "user=" + strconv.Itoa(i)
							want(t, "body", text(t, get(h, "http://example.com/account", "Cookie: "+cookie)), cookie)
						})
					}
					wg.Wait()
					if d := time.Since(begun); d > 200*time.Millisecond {
						t.Errorf("20 users took %v: they were queued", d)
					}
				}
			})
		})
	}
}

func TestAttack02Authorization(t *testing.T) {
	for cc, stored := range map[string]bool{
		"max-age=60": false, "max-age=60, public": true, "s-maxage=60": true, "max-age=60, must-revalidate": true,
	} {
		var calls atomic.Int64
		h := cache.New(1 << 20).Handler(page(&calls, "secret", "Cache-Control: "+cc))
		get(h, "http://example.com/x", "Authorization: Bearer a")
		get(h, "http://example.com/x")
		want(t, cc, calls.Load() == 1, stored)
	}

	// Who has credentials is not answered as one who had none, whatever is said of all responses.
	h := cache.New(1<<20, cache.WithTTLFunc(func(*http.Request, int, http.Header) time.Duration { return time.Minute })).Handler(http.HandlerFunc(
		func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") == "" {
				w.Header().Set("Www-Authenticate", "Bearer")
				w.WriteHeader(http.StatusUnauthorized)
			}
		}))
	for range 2 {
		want(t, "asked for credentials", get(h, "http://example.com/x").StatusCode, http.StatusUnauthorized)
	}
	want(t, "with them", get(h, "http://example.com/x", "Authorization: Bearer a").StatusCode, http.StatusOK)
}

// What a layer inside takes out of its request is not taken out of the one that the response is judged by, and that
// selects the variant.
func TestHandlerThatChangesItsRequest(t *testing.T) {
	var calls atomic.Int64
	secret := page(&calls, "secret", "Cache-Control: max-age=60")
	h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		r.Header.Del("Authorization")
		secret(w, r)
	}))
	want(t, "with credentials", get(h, "http://example.com/x", "Authorization: Bearer a").StatusCode, http.StatusOK)
	want(t, "without", get(h, "http://example.com/x").StatusCode, http.StatusUnauthorized)

	h = cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "max-age=60")
		w.Header().Set("Vary", "Accept-Encoding")
		if r.Header.Get("Accept-Encoding") == "gzip" {
			r.Header.Del("Accept-Encoding") // so that nobody inside compresses as well
			w.Header().Set("Content-Encoding", "gzip")
		}
		io.WriteString(w, "x")
	}))
	for range 2 {
		want(t, "coding", get(h, "http://example.com/x", "Accept-Encoding: gzip").Header.Get("Content-Encoding"), "gzip")
		want(t, "none asked for", get(h, "http://example.com/x").Header.Get("Content-Encoding"), "")
	}
	want(t, "hit", get(h, "http://example.com/x", "Accept-Encoding: gzip").Header.Get("Cache-Status"), "spillgate; hit; ttl=60")

	// Asked once more, since it chose a variant that nobody has, it gets the same request.
	asked := 0
	h = cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		w.Header().Set("Cache-Control", "max-age=60")
		w.Header().Set("Vary", "X-Kind")
		w.Header().Set("Etag", strconv.Quote(r.Header.Get("X-Kind")))
		kind := r.Header.Get("X-Kind")
		r.Header.Del("X-Kind")
		if kind == "b" && r.Header.Get("If-None-Match") != "" {
			w.WriteHeader(http.StatusNotModified) // wrong: it was not asked about "b"
			return
		}
		io.WriteString(w, kind)
	}))
	want(t, "a", text(t, get(h, "http://example.com/x", "X-Kind: a")), "a")
	want(t, "b", text(t, get(h, "http://example.com/x", "X-Kind: b")), "b")
	want(t, "asked", asked, 3)
}

func TestAttack03SetCookie(t *testing.T) {
	for cc, stored := range map[string]bool{
		"max-age=60": false, `max-age=60, no-cache="Set-Cookie"`: true, `max-age=60, private="set-cookie"`: true,
	} {
		var calls atomic.Int64
		h := cache.New(1 << 20).Handler(page(&calls, "x", "Cache-Control: "+cc, "Set-Cookie: session=1"))
		want(t, "the first gets it", get(h, "http://example.com/x").Header.Get("Set-Cookie"), "session=1")
		second := get(h, "http://example.com/x")
		want(t, cc, calls.Load() == 1, stored)
		if stored {
			want(t, "cookie from the store", second.Header.Get("Set-Cookie"), "")
		}
	}
}

func TestAttack04Deception(t *testing.T) {
	for _, path := range []string{"/account/x.css", "/account;x.css", "/account%2f..%2fx.css", "/account%00.css", "/account%3fx.css", "/account/.css"} {
		for _, cookie := range []string{"", "Cookie: session=1"} {
			var calls atomic.Int64
			h := cache.New(1 << 20).Handler(page(&calls, "my account"))
			for range 2 {
				r := httptest.NewRequest("GET", "http://example.com"+path, nil)
				if cookie != "" {
					r.Header.Set("Cookie", "session=1")
				}
				h.ServeHTTP(httptest.NewRecorder(), r)
			}
			want(t, path, calls.Load(), 2)
		}
	}
}

func TestAttack05UnkeyedHeader(t *testing.T) {
	poison := []string{"X-Host", "X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Host", "X-Forwarded-Scheme", "X-HTTP-Method-Override", "Forwarded"}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "max-age=60")
		for _, name := range poison {
			io.WriteString(w, r.Header.Get(name))
		}
	})
	for _, name := range poison {
		h := cache.New(1 << 20).Handler(handler)
		want(t, name+": served", text(t, get(h, "http://example.com/x", name+": evil.example")), "evil.example")
		want(t, name+": not stored", text(t, get(h, "http://example.com/x")), "")

		h = cache.New(1<<20, cache.WithKeyHeaders(name)).Handler(handler)
		get(h, "http://example.com/x", name+": evil.example")
		want(t, name+": keyed", text(t, get(h, "http://example.com/x")), "")
		want(t, name+": keyed and stored", get(h, "http://example.com/x", name+": evil.example").Header.Get("Age"), "0")

		h = cache.New(1<<20, cache.WithTrustedHeaders(name)).Handler(handler)
		get(h, "http://example.com/x", name+": proxy.example")
		want(t, name+": trusted", get(h, "http://example.com/x").Header.Get("Age"), "0")

		for _, other := range poison { // to say so of one says nothing of the others
			if other != name {
				for _, opt := range []cache.Option{cache.WithKeyHeaders(name), cache.WithTrustedHeaders(name)} {
					h = cache.New(1<<20, opt).Handler(handler)
					get(h, "http://example.com/x", other+": evil.example")
					want(t, other+", with an option for "+name, text(t, get(h, "http://example.com/x")), "")
				}
			}
		}
	}
}

// A handler behind a proxy that ends TLS redirects to https what has come without. That redirect is nothing for those who have come with it.
func TestAttack05RedirectToHTTPS(t *testing.T) {
	for name, test := range map[string]struct {
		opts   []cache.Option
		vary   string
		stored bool // the redirect
	}{
		"default":           {nil, "", false},
		"keyed":             {[]cache.Option{cache.WithKeyHeaders("X-Forwarded-Proto")}, "", true},
		"named in Vary":     {nil, "X-Forwarded-Proto", true},
		"the host is keyed": {[]cache.Option{cache.WithKeyHeaders("X-Forwarded-Host")}, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			h := cache.New(1<<20, test.opts...).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Cache-Control", "public, max-age=60")
				w.Header()["Vary"] = strings.Fields(test.vary)
				if r.Header.Get("X-Forwarded-Proto") != "https" {
					w.Header().Set("Location", "https://example.com/x")
					w.WriteHeader(http.StatusMovedPermanently)
				}
			}))
			for range 2 {
				for i, proto := range []string{"http", "https", "http"} {
					res := get(h, "http://example.com/x", "X-Forwarded-Proto: "+proto)
					if test.stored || proto == "https" {
						want(t, proto, res.StatusCode, map[string]int{"http": 301, "https": 200}[proto])
					}
					if i == 2 {
						want(t, "redirect from the store", res.StatusCode == 301 && res.Header.Get("Age") != "", test.stored)
					}
				}
			}
		})
	}
	// That somebody else is to look after it may be said as well.
	h := cache.New(1<<20, cache.WithTrustedHeaders("X-Forwarded-Proto")).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "public, max-age=60")
		http.Redirect(w, r, "/y", http.StatusFound)
	}))
	get(h, "http://example.com/x", "X-Forwarded-Proto: https")
	want(t, "trusted", get(h, "http://example.com/x", "X-Forwarded-Proto: https").Header.Get("Age"), "0")
}

func TestAttack06FatGet(t *testing.T) {
	c := cache.New(1 << 20)
	h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "max-age=60")
		b, _ := io.ReadAll(r.Body)
		w.Write(b)
	}))
	for _, chunked := range []bool{false, true} {
		r := httptest.NewRequest("GET", "http://example.com/x", strings.NewReader("evil"))
		if chunked {
			r.ContentLength, r.TransferEncoding = -1, []string{"chunked"}
		}
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		want(t, "served", rec.Body.String(), "evil")
		want(t, "stored", c.Stats().Entries, 0)
	}
}

func TestAttack07ErrorByHeader(t *testing.T) {
	big := strings.Repeat("x", 10<<10)
	for _, test := range []struct {
		status int
		cc     string
		field  string
		opts   []cache.Option
		stored bool
	}{
		{400, "", "X-Big: " + big, nil, false},
		{400, "max-age=60", "X-Big: " + big, nil, false},
		{400, "max-age=60", "X-Meta: a\x07b", nil, false},
		{500, "max-age=60", "X-Meta: a\x7fb", nil, false},
		{413, "max-age=60", "X: y", nil, false},
		{431, "max-age=60", "X: y", nil, false},
		{503, "", "X: y", nil, false},
		{503, "max-age=60", "X: y", nil, true},
		{400, "max-age=60", "X-Big: " + big, []cache.Option{cache.WithStoreErrors()}, true},
	} {
		c := cache.New(1<<20, test.opts...)
		h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if test.cc != "" {
				w.Header().Set("Cache-Control", test.cc)
			}
			w.WriteHeader(test.status)
		}))
		want(t, "status", get(h, "http://example.com/x", test.field).StatusCode, test.status)
		want(t, fmt.Sprintf("%d %q %.10s stored", test.status, test.cc, test.field), c.Stats().Entries == 1, test.stored)
	}
}

func TestAttack08Host(t *testing.T) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "max-age=60")
		io.WriteString(w, r.Host)
	})
	request := func(h http.Handler, target, host string) string {
		r := httptest.NewRequest("GET", target, nil)
		if host != "" {
			r.Host = host
		}
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		return rec.Body.String()
	}
	h := cache.New(1 << 20).Handler(handler)
	want(t, "first", request(h, "/x", "example.com"), "example.com")
	want(t, "evil host", request(h, "/x", "evil.example"), "evil.example")
	want(t, "again", request(h, "/x", "example.com"), "example.com")
	want(t, "default port", request(h, "/x", "example.com:80"), "example.com")
	want(t, "upper case", request(h, "/x", "EXAMPLE.com"), "example.com")
	want(t, "other port", request(h, "/x", "example.com:81"), "example.com:81")
	want(t, "absolute-form", request(h, "http://example.com/x", ""), "example.com")
	want(t, "a host with the beginning of a path", request(h, "/y", "example.com/x"), "example.com/x")
	want(t, "that path", request(h, "/x/y", "example.com"), "example.com")

	// Over a real connection the host of an absolute request target wins over Host.
	send := wire(t, cache.New(1<<20).Handler(handler))
	for _, req := range [][2]string{
		{"GET http://good.example/x HTTP/1.1\r\nHost: evil.example\r\n\r\n", "good.example"},
		{"GET /x HTTP/1.1\r\nHost: evil.example\r\n\r\n", "evil.example"},
		{"GET /x HTTP/1.1\r\nHost: good.example\r\n\r\n", "good.example"},
	} {
		want(t, req[0][:20], text(t, send(req[0])), req[1])
	}
}

// wire serves h on a real connection, and returns what sends a request on it as it stands.
func wire(t *testing.T, h http.Handler) (send func(request string) *http.Response) {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	br := bufio.NewReader(conn)
	return func(request string) *http.Response {
		t.Helper()
		io.WriteString(conn, request)
		res, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
}

func TestAttack09KeyConfusion(t *testing.T) {
	urls := []string{"/p?a=1&b=2", "/p?b=2&a=1", "/p?x=1;utm=evil", "/p?x=1", "/p?", "/p", "/a%2fb", "/a/b", "/a//b", "/a/./b", "/%41", "/A", "/a/b/", "/a%2Fb", "/p?x=1%26"}
	c := cache.New(1 << 20)
	h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "max-age=60")
		io.WriteString(w, r.RequestURI)
	}))
	for range 2 {
		for _, u := range urls {
			want(t, u, text(t, get(h, u)), u)
		}
	}
	want(t, "entries", c.Stats().Entries, int64(len(urls)))

	// Two mounts of one cache behind StripPrefix see the same URL and must not see the same entry.
	mux := http.NewServeMux()
	for _, m := range []string{"/one", "/two"} {
		mux.Handle(m+"/", http.StripPrefix(m, c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "max-age=60")
			io.WriteString(w, m)
		}))))
	}
	want(t, "one", text(t, get(mux, "/one/f")), "/one")
	want(t, "two", text(t, get(mux, "/two/f")), "/two")
	want(t, "absolute", text(t, get(mux, "http://example.com/two/f")), "/two")

	// A layer outside that rewrites the path by something else than the URL does not mix them up.
	lang := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r2 := r.Clone(r.Context())
			r2.URL.Path = "/" + r.Header.Get("Lang") + r.URL.Path
			next.ServeHTTP(w, r2)
		})
	}
	h = lang(c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "max-age=60")
		io.WriteString(w, r.URL.Path)
	})))
	want(t, "en", text(t, get(h, "/rewritten", "Lang: en")), "/en/rewritten")
	want(t, "de", text(t, get(h, "/rewritten", "Lang: de")), "/de/rewritten")
}

// A request target in absolute-form may have any scheme, and a user. Handlers look at them, to see whether a redirect to https is needed, and
// what they answer to such a one is nobody else's (RFC 9112, section 3.3).
func TestSchemeOfTheTarget(t *testing.T) {
	send := wire(t, cache.New(1<<20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "max-age=60")
		if r.TLS == nil && r.URL.Scheme != "https" && r.URL.User == nil {
			http.Redirect(w, r, "https://"+r.Host+r.URL.Path, http.StatusMovedPermanently)
		}
	})))
	for range 2 {
		want(t, "https", send("GET https://example.com/x HTTP/1.1\r\nHost: example.com\r\n\r\n").StatusCode, http.StatusOK)
		want(t, "a user", send("GET http://u@example.com/x HTTP/1.1\r\nHost: example.com\r\n\r\n").StatusCode, http.StatusOK)
		for _, target := range []string{"/x", "http://example.com/x"} {
			res := send("GET " + target + " HTTP/1.1\r\nHost: example.com\r\n\r\n")
			want(t, target, res.StatusCode, http.StatusMovedPermanently)
			io.Copy(io.Discard, res.Body)
		}
	}
}

// A request target in absolute-form may have no path. A ServeMux redirects it to "/", and that answer must be nobody else's.
func TestAttack09TargetWithoutAPath(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.URL.RequestURI()) })
	c := cache.New(1 << 20)
	send := wire(t, c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "max-age=60")
		mux.ServeHTTP(w, r)
	})))
	for _, step := range []struct {
		line   string
		status int
		hit    bool
	}{
		{"GET http://example.com", 307, false}, {"GET /", 200, false}, {"GET http://example.com", 307, true}, {"GET /", 200, true},
		{"GET http://example.com?x=/a", 307, false}, {"GET /?x=/a", 200, false}, {"GET /a", 200, false}, {"GET /a", 200, true},
		{"POST http://example.com?x=/a", 307, false}, {"GET /a", 200, true}, {"GET /?x=/a", 200, false},
	} {
		res := send(step.line + " HTTP/1.1\r\nHost: example.com\r\n\r\n")
		text(t, res)
		want(t, step.line, res.StatusCode, step.status)
		want(t, step.line+" from the store", strings.Contains(res.Header.Get("Cache-Status"), "; hit"), step.hit)
	}
	want(t, "purged", c.Purge("http://example.com/"), 2)
}

// What stands for a path and does not begin like one is no part of the host.
func TestAttack09TargetThatBeginsWithNoSlash(t *testing.T) {
	c := cache.New(1 << 20)
	send := wire(t, c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "max-age=60")
		io.WriteString(w, r.Host+" "+r.URL.Opaque+r.URL.Path)
	})))
	for range 2 {
		for _, step := range []struct{ target, host, body string }{
			{"http:m/x", "example.co", "example.co m/x"}, {"/x", "example.com", "example.com /x"}, {"/m/x", "example.co", "example.co /m/x"},
			{"http:80/x", "example.org:", "example.org: 80/x"}, {"/x", "example.org", "example.org /x"},
			{"a:", "example.com", "example.com "}, {"/", "example.com", "example.com /"}, {"a:b://c/y", "example.com", "example.com b://c/y"}, {"/y", "example.com", "example.com /y"}, {"*", "example.com", "example.com *"},
		} {
			res := send(fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", step.target, step.host))
			want(t, step.target+" at "+step.host, text(t, res), step.body)
		}
	}
	want(t, "purged, of one URL", c.Purge("http://example.com/y"), 1)
	send("POST http:m/x HTTP/1.1\r\nHost: example.co\r\nContent-Length: 0\r\n\r\n")
	want(t, "invalidates nothing of another host", c.Purge("http://example.com/x"), 1)
}

func TestAttack10Truncation(t *testing.T) {
	for name, broken := range map[string]func(w http.ResponseWriter){
		"short of Content-Length": func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", "10000")
			w.Write(make([]byte, 5000))
		},
		"panic after the first byte": func(w http.ResponseWriter) {
			w.Write(make([]byte, 5000))
			http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		},
		"chunked abort upstream": nil,
	} {
		t.Run(name, func(t *testing.T) {
			c := cache.New(1 << 20)
			var handler http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Cache-Control", "max-age=60")
				broken(w)
			})
			if broken == nil {
				up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("Cache-Control", "max-age=60")
					w.Write(make([]byte, 50000))
					http.NewResponseController(w).Flush()
					panic(http.ErrAbortHandler)
				}))
				defer up.Close()
				u, _ := url.Parse(up.URL)
				proxy := httputil.NewSingleHostReverseProxy(u)
				proxy.ErrorLog = quiet
				handler = proxy
			}
			srv := httptest.NewUnstartedServer(c.Handler(handler))
			srv.Config.ErrorLog = quiet
			srv.Start()
			defer srv.Close()
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					res, err := srv.Client().Get(srv.URL + "/x")
					if err != nil {
						return // broken before the header: as good
					}
					defer res.Body.Close()
					if _, err := io.ReadAll(res.Body); err == nil {
						t.Error("a broken response looked complete to the client")
					}
				})
			}
			wg.Wait()
			want(t, "stored", c.Stats().Entries, 0)
		})
	}
}

func TestAttack11PartialAnswersOnColdKeys(t *testing.T) {
	content := strings.Repeat("0123456789", 10)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "max-age=60")
		w.Header().Set("Etag", `"v1"`)
		http.ServeContent(w, r, "x.txt", time.Time{}, strings.NewReader(content))
	})
	for _, test := range []struct {
		method, field string
		status        int
	}{
		{"GET", `If-None-Match: "v1"`, 304}, {"GET", "Range: bytes=0-3", 206}, {"HEAD", "X: y", 200},
		{"GET", "Range: bytes=900-", 416},
	} {
		h := cache.New(1 << 20).Handler(handler)
		want(t, test.field, ask(h, test.method, "http://example.com/x", test.field).StatusCode, test.status)
		res := get(h, "http://example.com/x")
		want(t, "then", res.StatusCode, 200)
		want(t, "body", text(t, res), content)
		again := get(h, "http://example.com/x")
		want(t, "hit", strings.Contains(again.Header.Get("Cache-Status"), "; hit"), true)
		want(t, "body", text(t, again), content)
	}
	h := cache.New(1 << 20).Handler(handler)
	res := get(h, "http://example.com/x", "Range: bytes=0-3", `If-Range: "v0"`)
	want(t, "If-Range", text(t, res), content)
}

func TestAttack12LeaderLeaves(t *testing.T) {
	for round := range leaderRounds {
		synctest.Test(t, func(t *testing.T) {
			var calls atomic.Int64
			release := make(chan struct{})
			h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				calls.Add(1)
				w.Header().Set("Cache-Control", "max-age=60")
				if round%2 == 0 {
					w.Header().Set("Content-Length", "10")
					io.WriteString(w, "01234")
				}
				select {
				case <-release:
				case <-r.Context().Done():
					return
				}
				io.WriteString(w, "0123456789"[5*(1-round%2):])
			}))
			ctx, cancel := context.WithCancel(context.Background())
			var wg sync.WaitGroup
			wg.Go(func() {
				h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "http://example.com/x", nil).WithContext(ctx))
			})
			synctest.Wait()
			for range 5 {
				wg.Go(func() { want(t, "follower", text(t, get(h, "http://example.com/x")), "0123456789") })
			}
			synctest.Wait()
			cancel()
			synctest.Wait()
			close(release)
			wg.Wait()
			want(t, "calls", calls.Load(), 1)
		})
	}
}

// slowWriter is a client that reads nothing until it is told to.
type slowWriter struct {
	*httptest.ResponseRecorder
	read chan struct{}
}

func (w slowWriter) Write(p []byte) (int, error) { <-w.read; return w.ResponseRecorder.Write(p) }

func TestAttack12SlowLeader(t *testing.T) {
	for range leaderRounds {
		synctest.Test(t, func(t *testing.T) {
			var calls atomic.Int64
			begin := make(chan struct{})
			body := strings.Repeat("x", 20<<10)
			h := cache.New(2 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				calls.Add(1)
				<-begin
				w.Header().Set("Cache-Control", "max-age=60")
				for i := range 20 {
					io.WriteString(w, body[i<<10:(i+1)<<10])
					http.NewResponseController(w).Flush()
				}
			}))
			slow := slowWriter{httptest.NewRecorder(), make(chan struct{})}
			var leader, followers sync.WaitGroup
			leader.Go(func() { h.ServeHTTP(slow, httptest.NewRequest("GET", "http://example.com/x", nil)) })
			synctest.Wait()
			for range 5 {
				followers.Go(func() { want(t, "follower", text(t, get(h, "http://example.com/x")) == body, true) })
			}
			synctest.Wait()
			close(begin)
			followers.Wait() // while the leader's client has read nothing
			close(slow.read)
			leader.Wait()
			want(t, "leader", slow.Body.String() == body, true)
			want(t, "calls", calls.Load(), 1)
		})
	}
}

// slowFlusher is a connection that takes its time to flush, and breaks off once its deadline is over.
type slowFlusher struct {
	*httptest.ResponseRecorder
	over    atomic.Bool
	flushed bool
}

func (w *slowFlusher) Flush() {
	time.Sleep(time.Second) // in a synctest bubble
	w.flushed = !w.over.Load()
}
func (w *slowFlusher) SetWriteDeadline(time.Time) error { w.over.Store(true); return nil }

// What the handler had flushed before it panicked is with the client, as without a cache.
func TestFlushedBeforeAPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "max-age=60")
			io.WriteString(w, "half")
			http.NewResponseController(w).Flush()
			synctest.Wait() // it is being flushed
			panic(http.ErrAbortHandler)
		}))
		w := &slowFlusher{ResponseRecorder: httptest.NewRecorder()}
		func() {
			defer func() { want(t, "panic", recover(), any(http.ErrAbortHandler)) }()
			h.ServeHTTP(w, httptest.NewRequest("GET", "http://example.com/x", nil))
		}()
		want(t, "body", w.Body.String(), "half")
		want(t, "flushed", w.flushed, true)
	})
}

// TestAttack12SlowLeaderOverTheNetwork does the same with a client that asks and never reads.
func TestAttack12SlowLeaderOverTheNetwork(t *testing.T) {
	var calls atomic.Int64
	body := strings.Repeat("x", 6<<20) // more than the buffers of two sockets hold
	begin := make(chan struct{})
	asked := make(chan struct{})
	c := cache.New(64<<20, cache.WithMaxObject(8<<20), cache.WithCollapseWait(time.Minute))
	srv := httptest.NewServer(c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if calls.Add(1) == 1 {
			close(asked)
		}
		<-begin
		w.Header().Set("Cache-Control", "max-age=60")
		for i := range 6 {
			io.WriteString(w, body[i<<20:(i+1)<<20])
		}
	})))
	defer srv.Close()
	slow, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(slow, "GET /x HTTP/1.1\r\nHost: "+srv.Listener.Addr().String()+"\r\n\r\n")
	<-asked
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			res, err := srv.Client().Get(srv.URL + "/x")
			if err != nil {
				t.Error(err)
				return
			}
			defer res.Body.Close()
			b, err := io.ReadAll(res.Body)
			want(t, "error", err, nil)
			want(t, "whole", len(b), len(body))
		})
	}
	close(begin)
	wg.Wait()
	want(t, "calls", calls.Load(), 1)
	slow.Close()
}

// The published claim is for a million: go test -run Attack13 ./cache -floods=1000000
var floods = flag.Int("floods", 100_000, "how many requests each flood of attack 13 has")

func TestAttack13Floods(t *testing.T) {
	n := *floods
	if testing.Short() || raceEnabled {
		n = 20_000
	}
	for _, test := range []struct {
		name    string
		request func(r *http.Request, i int)
		fields  func(h http.Header, i int)
	}{
		{"URLs", func(r *http.Request, i int) { r.URL.RawQuery = strconv.Itoa(i); r.RequestURI = "/x?" + r.URL.RawQuery }, func(h http.Header, i int) {}},
		{"Vary values", func(r *http.Request, i int) { r.Header.Set("Foo", strconv.Itoa(i)) }, func(h http.Header, i int) { h.Set("Vary", "Foo") }},
		{"Vary names", func(r *http.Request, i int) {}, func(h http.Header, i int) { h.Set("Vary", "Foo"+strconv.Itoa(i)) }},
		{"Ranges", func(r *http.Request, i int) {
			r.URL.RawQuery = strconv.Itoa(i / 4)
			r.RequestURI = "/x?" + r.URL.RawQuery
			r.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", i%500, 500+i%500))
		}, func(h http.Header, i int) {}},
		{"Ranges in long fields", func(r *http.Request, i int) {
			r.URL.RawQuery = strconv.Itoa(i)
			r.RequestURI = "/x?" + r.URL.RawQuery
			r.Header.Set("Range", "bytes=0-"+strings.Repeat("0", 8000)+"9")
		}, func(h http.Header, i int) {}},
		{"tags", func(r *http.Request, i int) { r.URL.RawQuery = strconv.Itoa(i); r.RequestURI = "/x?" + r.URL.RawQuery }, func(h http.Header, i int) {
			h.Set("Cache-Tag", fmt.Sprintf("a%d, b%d, c%d", i, i, i))
			h.Set("Cache-Groups", fmt.Sprintf(`"g%d"`, i))
		}},
		{"many values of a field", func(r *http.Request, i int) { r.URL.RawQuery = strconv.Itoa(i); r.RequestURI = "/x?" + r.URL.RawQuery }, func(h http.Header, i int) {
			for range 200 {
				h.Add("Link", strconv.Itoa(i%10))
			}
		}},
		{"many tags", func(r *http.Request, i int) { r.URL.RawQuery = strconv.Itoa(i); r.RequestURI = "/x?" + r.URL.RawQuery }, func(h http.Header, i int) {
			for n := range 200 {
				h.Add("Cache-Tag", strconv.Itoa(200*i+n))
			}
		}},
		{"tiny bodies", func(r *http.Request, i int) { r.URL.RawQuery = strconv.Itoa(i); r.RequestURI = "/x?" + r.URL.RawQuery }, func(h http.Header, i int) {}},
		{"key headers", func(r *http.Request, i int) {
			r.URL.RawQuery = strconv.Itoa(i)
			r.RequestURI = "/x?" + r.URL.RawQuery
			r.Header.Set("Key", strings.Repeat("k", 8000)+r.URL.RawQuery)
		}, func(h http.Header, i int) {}},
		{"uncacheable URLs", func(r *http.Request, i int) { r.URL.RawQuery = strconv.Itoa(i); r.RequestURI = "/x?" + r.URL.RawQuery }, func(h http.Header, i int) { h.Set("Cache-Control", "no-store") }},
	} {
		t.Run(test.name, func(t *testing.T) {
			const budget = 8 << 20
			body := []byte(strings.Repeat("x", 1000))
			if test.name == "tiny bodies" {
				body = body[:1]
			}
			var opts []cache.Option
			if test.name == "key headers" {
				opts = append(opts, cache.WithKeyHeaders("Key"))
			}
			c := cache.New(budget, opts...)
			i := 0
			h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Cache-Control", "max-age=60")
				w.Header().Set("Content-Type", "text/plain")
				test.fields(w.Header(), i)
				if r.Header.Get("Range") != "" {
					http.ServeContent(w, r, "", time.Time{}, strings.NewReader(string(body)))
					return
				}
				w.Write(body)
			}))
			before := heap()
			for i = range n {
				r := httptest.NewRequest("GET", "http://example.com/x", nil)
				test.request(r, i)
				h.ServeHTTP(null{make(http.Header)}, r)
			}
			grown := heap() - before
			want(t, "bytes within the budget", c.Stats().Bytes <= budget, true)
			if grown > budget*5/4 {
				t.Errorf("the heap grew by %d bytes, more than 1.25 times the budget of %d (ledger: %d)", grown, budget, c.Stats().Bytes)
			}
			runtime.KeepAlive(h)
		})
	}
}

func heap() int64 {
	var m runtime.MemStats
	for range 3 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// null is a client that throws everything away.
type null struct{ h http.Header }

func (n null) Header() http.Header         { return n.h }
func (n null) WriteHeader(int)             {}
func (n null) Write(p []byte) (int, error) { return len(p), nil }

// A response that turns out to be too large to be stored leaves nothing behind, whatever variant it is.
func TestAttack13TooLargeVariants(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := cache.New(1 << 20)
		h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "max-age=60")
			w.Header().Set("Vary", "X")
			w.Write(make([]byte, 10<<10))
			time.Sleep(time.Second) // in a synctest bubble
			w.Write(make([]byte, 10<<10))
		}))
		var wg sync.WaitGroup
		for i := range 5 {
			wg.Go(func() { get(h, "http://example.com/x", fmt.Sprint("X: ", i)) })
		}
		wg.Wait()
		want(t, "flights", cache.Flights(c), 0)
		want(t, "recording", c.Stats().Recording, 0)
	})
}

func TestAttack14NoCacheFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls, not atomic.Int64
		origin := validator(&calls, &not, "Cache-Control: max-age=60")
		slow := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Second) // in a synctest bubble
			origin(w, r)
		})
		c := cache.New(1 << 20)
		h := c.Handler(slow)
		get(h, "http://example.com/x")
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				want(t, "body", text(t, get(h, "http://example.com/x", "Cache-Control: no-cache")), "0123456789")
			})
		}
		wg.Wait()
		want(t, "calls", calls.Load(), 2)
		want(t, "the others still hit", strings.Contains(get(h, "http://example.com/x").Header.Get("Cache-Status"), "; hit; ttl"), true)

		// The handler says no-store to the one who insists: that does not turn the cache off for all.
		calls.Store(0)
		h = cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			calls.Add(1)
			w.Header().Set("Cache-Control", "max-age=60")
			if r.Header.Get("Cookie") != "" {
				w.Header().Set("Cache-Control", "private")
			}
		}))
		get(h, "http://example.com/x")
		get(h, "http://example.com/x", "Cache-Control: no-cache", "Cookie: a=b")
		get(h, "http://example.com/x")
		want(t, "calls", calls.Load(), 2)

		h = cache.New(1<<20, cache.WithIgnoreClientControl()).Handler(slow)
		get(h, "http://example.com/x")
		calls.Store(0)
		get(h, "http://example.com/x", "Cache-Control: no-cache")
		want(t, "ignored", calls.Load(), 0)
	})
}

func TestAttack15RevalidationFloodOnDeadOrigin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls, running, most atomic.Int64
		dead := false
		c := cache.New(1 << 20)
		h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			calls.Add(1)
			most.Store(max(most.Load(), running.Add(1)))
			defer running.Add(-1)
			if dead {
				time.Sleep(100 * time.Millisecond) // in a synctest bubble
				if calls.Load()%2 == 0 {
					panic("dead")
				}
				w.WriteHeader(500)
				return
			}
			w.Header().Set("Cache-Control", "max-age=1, stale-while-revalidate=1000")
			io.WriteString(w, "good")
		}))
		get(h, "http://example.com/x")
		dead = true
		time.Sleep(2 * time.Second) // in a synctest bubble
		calls.Store(0)
		for range 1000 { // 10 a second for 100 seconds
			want(t, "served at once", text(t, get(h, "http://example.com/x")), "good")
			time.Sleep(100 * time.Millisecond) // in a synctest bubble
		}
		if n := calls.Load(); n < 3 || n > 10 {
			t.Errorf("%d validations in 100 s, want back-off: 1, 2, 4, 8, 16, 32 s", n)
		}
		want(t, "at once", most.Load(), 1)
		want(t, "counted", c.Stats().RevalidationPanics > 0, true)
		dead = false
		time.Sleep(time.Minute) // in a synctest bubble
		get(h, "http://example.com/x")
		synctest.Wait()
		want(t, "recovered", strings.Contains(get(h, "http://example.com/x").Header.Get("Cache-Status"), "hit; ttl=1"), true)
	})
}

// A validation in the background goes on until the handler has returned, also where its failure is known sooner.
func TestRevalidationsAreOneAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if calls++; calls > 1 {
				w.WriteHeader(500)
				time.Sleep(3 * time.Second) // in a synctest bubble
				return
			}
			w.Header().Set("Cache-Control", "max-age=1, stale-while-revalidate=1000")
		}))
		get(h, "http://example.com/x")
		time.Sleep(2 * time.Second) // in a synctest bubble
		for range 25 {
			get(h, "http://example.com/x")
			time.Sleep(100 * time.Millisecond) // in a synctest bubble
		}
		want(t, "calls while one goes on", calls-1, 1)
		time.Sleep(5 * time.Second) // in a synctest bubble
		get(h, "http://example.com/x")
		synctest.Wait()
		want(t, "and after it", calls-1, 2)
		time.Sleep(5 * time.Second) // in a synctest bubble
	})
}

// A handler that says that it is asked too often is left alone for a while as well.
func TestRevalidationThatComesTooOften(t *testing.T) {
	for _, status := range []int{408, 425, 429} {
		synctest.Test(t, func(t *testing.T) {
			calls := 0
			h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if calls++; calls > 1 {
					w.WriteHeader(status)
					return
				}
				w.Header().Set("Cache-Control", "max-age=1, stale-while-revalidate=1000")
			}))
			get(h, "http://example.com/x")
			time.Sleep(2 * time.Second) // in a synctest bubble
			for range 100 {
				get(h, "http://example.com/x")
				time.Sleep(100 * time.Millisecond) // in a synctest bubble
			}
			want(t, fmt.Sprint(status, ": calls in 10 s"), calls-1, 4) // at 0, 1, 3 and 7 s
		})
	}
}

// A background validation that ran out of time or broke off has failed, whatever its status.
func TestRevalidationThatBreaksOff(t *testing.T) {
	for name, broken := range map[string]http.HandlerFunc{
		"time": func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"time, in the body": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "max-age=60")
			io.WriteString(w, "bo")
			<-r.Context().Done()
		},
		"short": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "max-age=60")
			w.Header().Set("Content-Length", "4")
			io.WriteString(w, "bo")
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				first := true
				c := cache.New(1<<20, cache.WithRevalidations(16, time.Second/10, 10*time.Second))
				h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if !first {
						broken(w, r)
						return
					}
					first = false
					w.Header().Set("Cache-Control", "max-age=1, stale-while-revalidate=1000")
					io.WriteString(w, "body")
				}))
				get(h, "http://example.com/x")
				time.Sleep(2 * time.Second) // in a synctest bubble
				for range 60 {
					want(t, "body", text(t, get(h, "http://example.com/x")), "body")
					time.Sleep(time.Second) // in a synctest bubble
				}
				s := c.Stats()
				want(t, "validations in a minute", s.Revalidations, 3) // after 0, 10 and 30 s
				want(t, "failed", s.RevalidationErrors, 3)
			})
		})
	}
}

func TestAttack16Arithmetic(t *testing.T) {
	for _, test := range []struct {
		name   string
		fields []string
		fresh  bool // after 30 seconds
	}{
		{"huge age", []string{"Cache-Control: max-age=60", "Age: 99999999999999999999"}, false},
		{"negative age", []string{"Cache-Control: max-age=60", "Age: -1"}, false},
		{"age list, old first", []string{"Cache-Control: max-age=60", "Age: 70, 0"}, false},
		{"age list", []string{"Cache-Control: max-age=60", "Age: 0, 5"}, true},
		{"two ages", []string{"Cache-Control: max-age=60", "Age: 0", "Age: 5"}, false},
		{"age with junk", []string{"Cache-Control: max-age=60", "Age: 1x"}, false},
		{"age that uses it up", []string{"Cache-Control: max-age=60", "Age: 40"}, false},
		{"max-age 2^63", []string{"Cache-Control: max-age=9223372036854775808"}, true},
		{"max-age 2^64", []string{"Cache-Control: max-age=18446744073709551616"}, true},
		{"max-age negative", []string{"Cache-Control: max-age=-1"}, false},
		{"max-age with junk", []string{"Cache-Control: max-age=60;x"}, false},
		{"two max-ages", []string{"Cache-Control: max-age=600, max-age=10"}, false},
		{"Expires year 1", []string{"Expires: Mon, 01 Jan 0001 00:00:00 GMT"}, false},
		{"Expires year 9999", []string{"Expires: Fri, 31 Dec 9999 23:59:59 GMT"}, true},
		{"Date in the far past", []string{"Cache-Control: max-age=60", "Date: Mon, 01 Jan 0001 00:00:00 GMT"}, false},
		{"Date in the future", []string{"Cache-Control: max-age=20", "Date: Fri, 31 Dec 9999 23:59:59 GMT"}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var calls atomic.Int64
				h := cache.New(1 << 20).Handler(page(&calls, "x", test.fields...))
				get(h, "http://example.com/x")
				time.Sleep(30 * time.Second) // in a synctest bubble
				get(h, "http://example.com/x")
				want(t, "fresh", calls.Load() == 1, test.fresh)
			})
		})
	}
}

func TestAttack17CrossOriginInvalidation(t *testing.T) {
	var calls atomic.Int64
	location := ""
	cached := page(&calls, "x", "Cache-Control: max-age=60")
	h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "POST" {
			w.Header().Set("Location", location)
			return
		}
		cached(w, r)
	}))
	hit := func(url string) bool {
		before := calls.Load()
		get(h, url)
		return calls.Load() == before
	}
	get(h, "http://victim.example/x")
	location = "http://victim.example/x"
	ask(h, "POST", "http://evil.example/form")
	want(t, "other host untouched", hit("http://victim.example/x"), true)
	location = "//victim.example/x"
	ask(h, "POST", "http://evil.example/form")
	want(t, "other host untouched", hit("http://victim.example/x"), true)
	location = "x"
	ask(h, "POST", "http://victim.example/form")
	want(t, "same origin, relative", hit("http://victim.example/x"), false)
	location = "http://VICTIM.example:80/x"
	ask(h, "POST", "http://victim.example/form")
	want(t, "same origin, spelled differently", hit("http://victim.example/x"), false)
}

func TestAttack18PurgeDuringFill(t *testing.T) {
	purges := map[string]func(c *cache.Cache){
		"url":    func(c *cache.Cache) { c.Purge("http://example.com/x") },
		"path":   func(c *cache.Cache) { c.Purge("/x") },
		"prefix": func(c *cache.Cache) { c.PurgePrefix("http://example.com/") },
		"tag":    func(c *cache.Cache) { c.PurgeTag("t") },
		"all":    func(c *cache.Cache) { c.PurgeAll() },
		"soft":   func(c *cache.Cache) { c.PurgeSoft("http://example.com/x") },
	}
	for name, purge := range purges {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var version atomic.Int64
				c := cache.New(1 << 20)
				h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					v := version.Load()
					time.Sleep(time.Second) // in a synctest bubble
					w.Header().Set("Cache-Control", "max-age=60")
					w.Header().Set("Cache-Tag", "t")
					io.WriteString(w, strconv.FormatInt(v, 10))
				}))
				var wg sync.WaitGroup
				wg.Go(func() { want(t, "before", text(t, get(h, "http://example.com/x")), "0") })
				time.Sleep(500 * time.Millisecond) // in a synctest bubble
				version.Store(1)
				purge(c)
				// Neither a request that comes at once nor one that comes later gets the old one.
				wg.Go(func() { want(t, "during", text(t, get(h, "http://example.com/x")), "1") })
				wg.Wait()
				want(t, "after", text(t, get(h, "http://example.com/x")), "1")
			})
		})
	}
	t.Run("race", func(t *testing.T) {
		for round := range purgeRounds {
			var version atomic.Int64
			c := cache.New(1 << 20)
			h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				v := version.Load()
				runtime.Gosched()
				w.Header().Set("Cache-Control", "max-age=60")
				w.Header().Set("Cache-Tag", "t")
				io.WriteString(w, strconv.FormatInt(v, 10))
			}))
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() { get(h, "http://example.com/x") })
			}
			wg.Go(func() {
				version.Store(1)
				if round%2 == 0 {
					c.Purge("http://example.com/x")
				} else {
					c.PurgeTag("t")
				}
				want(t, "after the purge", text(t, get(h, "http://example.com/x")), "1")
			})
			wg.Wait()
			want(t, "in the end", text(t, get(h, "http://example.com/x")), "1")
		}
	})
}

func TestAttack19ConnectionFields(t *testing.T) {
	var calls atomic.Int64
	h := cache.New(1<<20, cache.WithStoreSetCookie()).Handler(page(&calls, "x", "Cache-Control: max-age=60",
		"Connection: x-secret, set-cookie", "X-Secret: 1", "Set-Cookie: a=b", "Keep-Alive: 5", "X-Kept: 1", "Retry-After: 3", "RateLimit: \"a\";r=1"))
	get(h, "http://example.com/x")
	res := get(h, "http://example.com/x")
	want(t, "calls", calls.Load(), 1)
	for _, name := range []string{"X-Secret", "Set-Cookie", "Connection", "Keep-Alive", "Retry-After", "Ratelimit"} {
		want(t, name, res.Header.Get(name), "")
	}
	want(t, "kept", res.Header.Get("X-Kept"), "1")
}

// Fields that a handler has put into the map under names that are not canonical are sent, and count.
func TestNamesThatAreNotCanonical(t *testing.T) {
	for _, test := range []struct {
		name, value string
		stored      bool
	}{
		{"set-cookie", "a=b", false}, {"SET-COOKIE", "a=b", false}, {"cache-control", "no-store", false}, {"CDN-Cache-Control", "no-store", false},
		{"vary", "X", false}, {"vary", "*", false}, {"content-type", "text/event-stream", false}, {"trailer", "Sum", false}, {"AGE", "61", false},
		{"X-ID", "1", true}, {"date", "", true}, {"connection", "X-ID, X-Other", true}, {"content-length", "1", true}, {"retry-after", "1", true},
		{"cache-tag", "t", true},
	} {
		t.Run(test.name+": "+test.value, func(t *testing.T) {
			calls := 0
			c := cache.New(1 << 20)
			h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				calls++
				w.Header().Set("Cache-Control", "max-age=60")
				w.Header()[test.name] = []string{test.value}
				w.Header().Set("X-Other", "1")
				io.WriteString(w, "x")
			}))
			get(h, "http://example.com/x", "X: 1")
			second := get(h, "http://example.com/x", "X: 2").Header
			want(t, "stored", calls == 1, test.stored)
			switch _, has := second[test.name]; {
			case !test.stored:
			case test.name == "connection":
				want(t, "the field itself", has, false)
				want(t, "a field that it lists", second.Get("X-Other"), "")
			case test.name == "content-length", test.name == "retry-after":
				want(t, "the field itself", has, false)
			case test.name == "date":
				_, other := second["Date"]
				want(t, "a second date", other, false)
			case test.name == "cache-tag":
				want(t, "purged", c.PurgeTag("t"), 1)
			default:
				want(t, "the field itself", has, true)
			}
		})
	}
}

// So do validators, as in "ETag", which is how RFC 9110 writes it.
func TestValidatorsThatAreNotCanonical(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const date = "Sun, 06 Nov 1994 08:49:37 GMT"
		for _, v := range []struct{ name, value, asks string }{{"ETag", `"a"`, "If-None-Match"}, {"last-modified", date, "If-Modified-Since"}} {
			calls, whole := 0, 0
			h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				calls++
				w.Header().Set("Cache-Control", "max-age=60")
				w.Header()[v.name] = []string{v.value}
				if r.Header.Get(v.asks) == v.value {
					w.WriteHeader(http.StatusNotModified)
					return
				}
				whole++
				io.WriteString(w, "x")
			}))
			get(h, "http://example.com/x")
			want(t, v.name+": status for a client that has it", get(h, "http://example.com/x", v.asks+": "+v.value).StatusCode, 304)
			time.Sleep(61 * time.Second) // in a synctest bubble
			res := get(h, "http://example.com/x")
			want(t, "validated", res.Header.Get("Cache-Status"), "spillgate; fwd=stale; fwd-status=304")
			_, other := res.Header[http.CanonicalHeaderKey(v.name)]
			want(t, "a second one", other, false)
			time.Sleep(61 * time.Second) // in a synctest bubble
			ask(h, "HEAD", "http://example.com/x")
			want(t, "after a HEAD", get(h, "http://example.com/x").Header.Get("Cache-Status"), "spillgate; hit; ttl=60")
			want(t, "calls", calls, 3)
			want(t, "whole responses, with that to the HEAD", whole, 2)
		}
	})
}

// A client that has a proxy inside drop a field that it has sent poisons nothing.
func TestAttack19RequestConnectionFields(t *testing.T) {
	var calls atomic.Int64
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		w.Header().Set("Cache-Control", "max-age=60")
		w.Header().Set("Vary", "X-Language")
		io.WriteString(w, r.Header.Get("X-Language"))
	}))
	defer origin.Close()
	u, err := url.Parse(origin.URL)
	if err != nil {
		t.Fatal(err)
	}
	h := cache.New(1 << 20).Handler(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(u) }})
	for i, connection := range []string{"x-language", "close, X-Language", "keep-alive,\tx-language "} {
		page := fmt.Sprint("http://example.com/", i)
		get(h, page, "X-Language: fr", "Connection: "+connection)
		want(t, connection, text(t, get(h, page, "X-Language: fr")), "fr")
	}
	calls.Store(0)
	for _, connection := range []string{"close", "Keep-Alive", "te, close", ""} {
		get(h, "http://example.com/y", "X-Language: fr", "Connection: "+connection)
	}
	want(t, "calls", calls.Load(), 1)
}

func TestAttack20MutatedHeader(t *testing.T) {
	var calls atomic.Int64
	c := cache.New(1 << 20)
	inner := c.Handler(page(&calls, "x", "Cache-Control: max-age=60", "Vary: Accept", "X-List: 1"))
	n := atomic.Int64{}
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Request-Id", strconv.FormatInt(n.Add(1), 10))
		inner.ServeHTTP(w, r)
		w.Header()["Vary"] = append(w.Header()["Vary"], "Origin")
		w.Header()["Cache-Status"] = append(w.Header()["Cache-Status"], "outer")
		w.Header().Add("X-List", "2")
	})
	get(h, "http://example.com/x")
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			res := httptest.NewRecorder()
			h.ServeHTTP(res, httptest.NewRequest("GET", "http://example.com/x", nil))
			if got := res.Header()["X-List"]; len(got) != 2 {
				t.Errorf("X-List: %q", got)
			}
			want(t, "Vary", strings.Join(res.Header()["Vary"], ","), "Accept,Origin")
			want(t, "Cache-Status", len(res.Header()["Cache-Status"]), 2)
		})
	}
	wg.Wait()
	want(t, "calls", calls.Load(), 1)
	want(t, "the outer layer's field is not stored", get(h, "http://example.com/x").Header.Get("X-Request-Id"), "52")
}

func TestAttack21VaryCookieOrigin(t *testing.T) {
	for _, name := range []string{"Cookie", "Origin"} {
		var calls atomic.Int64
		c := cache.New(1 << 20)
		h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			calls.Add(1)
			w.Header().Set("Cache-Control", "max-age=60")
			w.Header().Set("Vary", name)
			w.Header().Set("Access-Control-Allow-Origin", r.Header.Get("Origin"))
			io.WriteString(w, r.Header.Get(name))
		}))
		for i := range 100 {
			v := "v" + strconv.Itoa(i)
			for range 2 {
				want(t, name, text(t, get(h, "http://example.com/x", name+": "+v)), v)
			}
		}
		want(t, "calls", calls.Load(), 100)
		want(t, "variants are bounded", c.Stats().Entries, 16)
		want(t, "without", text(t, get(h, "http://example.com/x")), "")
	}
}

// A field that was sent in several lines is another one than an empty one.
func TestAttack21VaryInSeveralLines(t *testing.T) {
	for _, name := range []string{"Cookie", "X-User", "Accept-Language"} {
		h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "max-age=60")
			w.Header().Set("Vary", name)
			io.WriteString(w, strings.Join(r.Header[name], ","))
		}))
		want(t, "first", text(t, get(h, "http://example.com/x", name+": a=1", name+": b=2")), "a=1,b=2")
		want(t, name+" that is empty", text(t, get(h, "http://example.com/x", name+": ")), "")
		want(t, "the same again", get(h, "http://example.com/x", name+": a=1", name+": b=2").Header.Get("Cache-Status"), "spillgate; hit; ttl=60")
		want(t, "empty again", get(h, "http://example.com/x", name+": ").Header.Get("Cache-Status"), "spillgate; hit; ttl=60")
	}
}

func TestAttack22PurgeMethod(t *testing.T) {
	var calls atomic.Int64
	cached := page(&calls, "x", "Cache-Control: max-age=60")
	h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "PURGE" {
			w.WriteHeader(http.StatusMethodNotAllowed)
			return
		}
		cached(w, r)
	}))
	get(h, "http://example.com/x")
	want(t, "goes to the handler", ask(h, "PURGE", "http://example.com/x").StatusCode, 405)
	get(h, "http://example.com/x")
	want(t, "purges nothing", calls.Load(), 1)
}

func TestAttack23FollowersThatGiveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int64
		c := cache.New(1<<20, cache.WithCollapseWait(time.Minute))
		cancelled := false
		h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			calls.Add(1)
			select {
			case <-r.Context().Done():
				cancelled = true
			case <-time.After(10 * time.Second):
			}
			w.Header().Set("Cache-Control", "max-age=60")
		}))
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "http://example.com/x", nil).WithContext(ctx))
			})
		}
		synctest.Wait()
		cancel()
		wg.Wait()
		want(t, "the handler's context ended with the last reader", cancelled, true)
		want(t, "calls", calls.Load(), 1)
		want(t, "fills", c.Stats().Fills, 0)
	})
}

func TestAttack24InterimAndHungResponses(t *testing.T) {
	// A 103 passes, and the final response is stored.
	var calls atomic.Int64
	srv := httptest.NewServer(cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		w.Header().Set("Link", "</a.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Set("Cache-Control", "max-age=60")
		io.WriteString(w, "body")
	})))
	defer srv.Close()
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	br := bufio.NewReader(conn)
	io.WriteString(conn, "GET /x HTTP/1.1\r\nHost: h\r\n\r\n")
	line, _ := br.ReadString('\n')
	want(t, "interim", strings.TrimSpace(line), "HTTP/1.1 103 Early Hints")
	res, err := srv.Client().Get(srv.URL + "/x")
	if err != nil {
		t.Fatal(err)
	}
	want(t, "body", text(t, res), "body")

	// A handler that hangs holds up those who wait no longer than they are willing to.
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		h := cache.New(1 << 20).Handler(hangsOnce(hang, "max-age=1"))
		var wg sync.WaitGroup
		wg.Go(func() { get(h, "http://example.com/x") })
		synctest.Wait()
		begun := time.Now()
		want(t, "follower", text(t, get(h, "http://example.com/x")), "body")
		want(t, "waited", time.Since(begun), 5*time.Second)
		time.Sleep(2 * time.Second) // in a synctest bubble
		begun = time.Now()
		want(t, "the next one", text(t, get(h, "http://example.com/x")), "body")
		want(t, "waited for a run that was given up", time.Since(begun), 0)
		close(hang)
		wg.Wait()
	})
}

// Clients that read slowly, or not at all, do not keep the responses for others from being stored.
func TestAttack25SlowReaders(t *testing.T) {
	for _, field := range [][2]string{{}, {"Authorization", "Basic eDp5"}, {"Range", "bytes=0-"}} {
		synctest.Test(t, func(t *testing.T) {
			const budget = 1 << 20
			body := strings.Repeat("x", budget/64)
			c := cache.New(budget)
			h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Cache-Control", "public, max-age=60")
				w.Header().Set("Content-Length", fmt.Sprint(len(body)))
				io.WriteString(w, body)
			}))
			read := make(chan struct{})
			var wg sync.WaitGroup
			for i := range 17 {
				wg.Go(func() {
					r := httptest.NewRequest("GET", fmt.Sprintf("http://example.com/%d", i), nil)
					if field[0] != "" {
						r.Header.Set(field[0], field[1])
					}
					h.ServeHTTP(slowWriter{httptest.NewRecorder(), read}, r)
				})
			}
			synctest.Wait()
			get(h, "http://example.com/x")
			want(t, "stored", get(h, "http://example.com/x").Header.Get("Cache-Status"), "spillgate; hit; ttl=60")
			close(read)
			wg.Wait()
			want(t, "recording", c.Stats().Recording, 0)
		})
	}
}

// Of a response that turns out to be too large nothing is kept while the rest of it is sent, which may take hours.
func TestAttack25LargeResponses(t *testing.T) {
	const budget, clients = 1 << 20, 64
	piece := []byte(strings.Repeat("x", budget/64))
	wrote, end := make(chan struct{}), make(chan struct{})
	h := cache.New(budget, cache.WithMaxObject(budget/4)).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "public, max-age=60")
		for range 17 {
			w.Write(piece)
		}
		wrote <- struct{}{}
		<-end
	}))
	var wg sync.WaitGroup
	before := heap()
	for i := range clients {
		wg.Go(func() {
			h.ServeHTTP(null{make(http.Header)}, httptest.NewRequest("GET", fmt.Sprintf("http://example.com/%d", i), nil))
		})
		<-wrote
	}
	if n := heap() - before; n > budget*5/4 {
		t.Errorf("%d responses that are being sent take %d KiB of memory, with a budget of %d", clients, n>>10, budget>>10)
	}
	close(end)
	wg.Wait()
}

// hangsOnce is a handler whose first run waits for hang to be closed.
func hangsOnce(hang <-chan struct{}, control string) http.Handler {
	first := true
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if first {
			first = false
			<-hang
		}
		w.Header().Set("Cache-Control", control)
		io.WriteString(w, "body")
	})
}

// A request field or a query as large as net/http lets through is not taken apart, once for each variant: that kept a
// processor busy for seconds. Allocations stand for the time.
func TestAttack26OverlongFields(t *testing.T) {
	var list, query strings.Builder
	for i := range 40_000 {
		fmt.Fprintf(&list, "%x;q=0.%d, ", i*7, i%10)
		fmt.Fprintf(&query, "%x=%d&", i*7919%40009, i%10)
	}
	for _, name := range []string{"Accept-Language", "Accept-Encoding", "X-List", "query"} {
		calls := 0
		h := cache.New(64<<20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			calls++
			w.Header().Set("Cache-Control", "max-age=60")
			w.Header().Set("Vary", name)
			w.Header().Set("Etag", `"a"`)
			w.Header().Set("Content-Encoding", "gzip")
			w.Header().Set("Content-Language", "en")
		}), cache.WithSortedQuery())
		for i := range 16 {
			get(h, "http://example.com/x", fmt.Sprint(name, ": ", i))
		}
		target := "http://example.com/x"
		if name == "query" {
			target += "?" + query.String()
		}
		var allocated runtime.MemStats
		runtime.ReadMemStats(&allocated)
		before := allocated.Mallocs
		get(h, target, name+": "+list.String())
		runtime.ReadMemStats(&allocated)
		if n := float64(allocated.Mallocs-before) / 40_000; n > 1 {
			t.Errorf("%s: %.1f allocations for each member of the list", name, n)
		}
		calls = 0
		get(h, target, name+": "+list.String())
		want(t, name+": calls for what is stored", calls, map[bool]int{true: 1}[name == "query"])
	}
}

// What a limit inside says to one who asks too often is said to nobody else (RFC 6585, section 4).
func TestQuotaOfOneIsNotThatOfAll(t *testing.T) {
	h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "max-age=60")
		if r.Header.Get("X-Client") == "greedy" {
			w.Header().Set("Retry-After", "60")
			w.WriteHeader(http.StatusTooManyRequests)
		}
	}))
	want(t, "greedy", get(h, "http://example.com/x", "X-Client: greedy").StatusCode, http.StatusTooManyRequests)
	want(t, "modest", get(h, "http://example.com/x", "X-Client: modest").StatusCode, http.StatusOK)
}

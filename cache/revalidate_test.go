package cache_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/cache"
)

// A validation in the background asks for what is stored, and not for what the client that set it off asked for.
func TestBackgroundValidationAsksForTheWhole(t *testing.T) {
	for _, test := range []struct{ method, field string }{
		{"GET", "X: y"}, {"HEAD", "X: y"}, {"GET", "Range: bytes=1-2"}, {"GET", "If-None-Match: \"0\""},
		{"GET", "If-Modified-Since: " + stamp.Format(http.TimeFormat)}, {"GET", "Range: bytes=1-2\nIf-Range: \"0\""},
	} {
		t.Run(test.method+" "+test.field, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var seen []string
				h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					seen = append(seen, r.Method)
					for _, name := range []string{"Range", "If-Range", "If-None-Match", "If-Modified-Since"} {
						if v := r.Header.Get(name); v != "" {
							seen = append(seen, name+": "+v)
						}
					}
					w.Header().Set("Cache-Control", "max-age=10, stale-while-revalidate=60")
					w.Header().Set("Etag", fmt.Sprintf(`"%d"`, len(seen)))
					fmt.Fprintf(w, "version %d", len(seen))
				}))
				get(h, "http://example.com/x")
				time.Sleep(15 * time.Second) // in a synctest bubble
				ask(h, test.method, "http://example.com/x", strings.Split(test.field, "\n")...)
				synctest.Wait()
				want(t, "seen", strings.Join(seen, ", "), `GET, GET, If-None-Match: "1"`)
				res := get(h, "http://example.com/x")
				want(t, "stored", res.Header.Get("Cache-Status"), "spillgate; hit; ttl=10")
				want(t, "body", text(t, res), "version 3")
			})
		})
	}
}

// However a validation in the background ends, or where it was none, the next one may run.
func TestBackgroundValidationsGiveTheirPlaceBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var panics, calls atomic.Int64
		var end func(w http.ResponseWriter)
		c := cache.New(1<<20, cache.WithRevalidations(1, time.Minute, 0), cache.WithTrace(cache.Trace{
			RevalidationPanic: func(r *http.Request, value any, stack []byte) {
				if value != "bad" || r.URL.Path == "" || !strings.Contains(string(stack), "revalidate_test.go") {
					t.Errorf("%v of %s: %s", value, r.URL, stack)
				}
				panics.Add(1)
			},
		}))
		h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			calls.Add(1)
			w.Header().Set("Cache-Control", "max-age=10, stale-while-revalidate=3600")
			end(w)
			io.WriteString(w, "x")
		}))
		good := func(http.ResponseWriter) {}
		slow := func(http.ResponseWriter) { time.Sleep(5 * time.Second) } // in a synctest bubble
		end = good
		urls := []string{"http://example.com/a", "http://example.com/b", "http://example.com/c"}
		for _, u := range urls {
			get(h, u)
		}
		for _, how := range []func(w http.ResponseWriter){
			func(http.ResponseWriter) { panic("bad") },
			func(http.ResponseWriter) { panic(http.ErrAbortHandler) }, // as ReverseProxy does; net/http logs nothing of it either
			func(w http.ResponseWriter) { w.Header().Del("Cache-Control"); w.WriteHeader(503) },
			func(w http.ResponseWriter) { w.(cache.ShedMarker).MarkShed(io.EOF); w.WriteHeader(503) },
			slow,
			good,
		} {
			time.Sleep(15 * time.Second) // in a synctest bubble
			synctest.Wait()
			end = how
			for _, u := range urls {
				before := calls.Load()
				want(t, "stale", text(t, get(h, u)), "x")
				synctest.Wait() // some are still at it
				get(h, u)
				time.Sleep(6 * time.Second) // in a synctest bubble
				if calls.Load() == before {
					t.Errorf("%s was not validated", u)
				}
			}
		}
		// While one is at it the others have to wait, which takes no place either, nor does one for which a client is at it.
		time.Sleep(15 * time.Second) // in a synctest bubble
		synctest.Wait()
		end = slow
		get(h, urls[0])
		synctest.Wait()
		before := calls.Load()
		get(h, urls[1])
		synctest.Wait()
		want(t, "validations beyond the most", calls.Load()-before, 0)
		time.Sleep(10 * time.Second) // in a synctest bubble
		go get(h, urls[1], "Cache-Control: no-cache")
		synctest.Wait()
		get(h, urls[1])
		time.Sleep(20 * time.Second) // in a synctest bubble
		synctest.Wait()
		end = good
		for _, u := range urls {
			get(h, u)
			synctest.Wait()
			want(t, u, get(h, u).Header.Get("Cache-Status"), "spillgate; hit; ttl=10")
		}
		s := c.Stats()
		want(t, "panics", [2]int64{panics.Load(), s.RevalidationPanics}, [2]int64{6, 6})
		want(t, "failed", s.RevalidationErrors, 24)
	})
}

// A handler finds in the background what it finds where there is a client, whatever that one's protocol: gin panics where it streams and there is no CloseNotify, and by an
// io.Copy that fails, which asks for ReadFrom, the cache knows that the response broke off.
func TestBackgroundValidationIsAskedAsAClientIs(t *testing.T) {
	for name, test := range map[string]struct {
		again func(http.ResponseWriter)
		body  string
	}{
		"a stream of gin's": {func(w http.ResponseWriter) {
			w.(interface{ CloseNotify() <-chan bool }).CloseNotify()
			io.WriteString(w, "new")
			w.(http.Flusher).Flush()
		}, "new"},
		"one that sets deadlines": {func(w http.ResponseWriter) {
			rc := http.NewResponseController(w)
			if err := errors.Join(rc.SetReadDeadline(time.Time{}), rc.SetWriteDeadline(time.Now().Add(time.Minute)), rc.EnableFullDuplex()); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			io.WriteString(w, "new")
		}, "new"},
		"a copy": {func(w http.ResponseWriter) {
			io.Copy(w, struct{ io.Reader }{strings.NewReader("new")})
		}, "new"},
		"a copy that breaks off": {func(w http.ResponseWriter) {
			io.Copy(w, io.MultiReader(strings.NewReader("ne"), broken{}))
		}, "old"},
		"a copy that fails at once": {func(w http.ResponseWriter) { io.Copy(w, broken{}) }, "old"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var calls atomic.Int64
				c := cache.New(1<<20, cache.WithRevalidations(1, time.Second, time.Minute))
				h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("Cache-Control", "max-age=10, stale-while-revalidate=3600")
					if calls.Add(1) > 1 {
						test.again(w)
						return
					}
					io.WriteString(w, "old")
				}))
				get(h, "http://example.com/x")
				time.Sleep(11 * time.Second) // in a synctest bubble
				get(h, "http://example.com/x")
				synctest.Wait()
				want(t, "afterwards", text(t, get(h, "http://example.com/x")), test.body)
				want(t, "calls", calls.Load(), 2)
				s := c.Stats()
				want(t, "panics", s.RevalidationPanics, 0)
				want(t, "recording", s.Recording, 0)
			})
		})
	}
}

// What a 304 says of how a response may be used holds from then on, and what it does not say stays.
func TestValidationThatForbidsStale(t *testing.T) {
	for _, test := range []struct {
		before, after string
		stale         bool
	}{
		{"max-age=10, stale-if-error=600", "max-age=10, stale-if-error=600", true},
		{"max-age=10, stale-if-error=600", "max-age=10, stale-if-error=600, must-revalidate", false},
		{"max-age=10, stale-if-error=600", "max-age=10, stale-if-error=600, no-cache", false},
		{"max-age=10, stale-if-error=600", "max-age=10, stale-if-error=0", false},
		{"max-age=10, stale-if-error=600", "", true},
		{"max-age=10, must-revalidate", "", false},
	} {
		synctest.Test(t, func(t *testing.T) {
			control, failing := test.before, false
			h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if failing {
					w.WriteHeader(http.StatusServiceUnavailable)
					return
				}
				w.Header().Set("Etag", `"1"`)
				if control != "" {
					w.Header().Set("Cache-Control", control)
				}
				if r.Header.Get("If-None-Match") != "" {
					w.WriteHeader(http.StatusNotModified)
					return
				}
				io.WriteString(w, "body")
			}))
			get(h, "http://example.com/x")
			time.Sleep(15 * time.Second) // in a synctest bubble
			control = test.after
			want(t, "validated", text(t, get(h, "http://example.com/x")), "body")
			time.Sleep(15 * time.Second) // in a synctest bubble
			failing = true
			want(t, "stale after "+test.before+", and then "+test.after, text(t, get(h, "http://example.com/x")) == "body", test.stale)
		})
	}
}

// A variant that a 304 has freshened answers those that it answered before, and nobody else.
func TestFreshenedVariantIsOfItsOwn(t *testing.T) {
	for name, test := range map[string]struct {
		opt  cache.RouteOption
		vary string
	}{
		"by Vary":           {cache.WithKeyHeaders(), "X-Tenant"},
		"by WithKeyHeaders": {cache.WithKeyHeaders("X-Tenant"), ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				calls := 0
				h := cache.New(1<<20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					calls++
					tag := fmt.Sprintf("%q", "of "+r.Header.Get("X-Tenant"))
					w.Header().Set("Cache-Control", "max-age=10")
					w.Header().Set("Etag", tag)
					if test.vary != "" {
						w.Header().Set("Vary", test.vary)
					}
					if r.Header.Get("If-None-Match") == tag {
						w.WriteHeader(http.StatusNotModified)
						return
					}
					io.WriteString(w, r.Header.Get("X-Tenant"))
				}), test.opt)
				tenants := []string{"a", "b"}
				for round := 1; round <= 3; round++ {
					for range 2 {
						for _, tenant := range tenants {
							want(t, "tenant", text(t, get(h, "http://example.com/x", "X-Tenant: "+tenant)), tenant)
						}
					}
					want(t, "calls", calls, round*len(tenants))
					time.Sleep(15 * time.Second) // in a synctest bubble
				}
				want(t, "nobody's", text(t, get(h, "http://example.com/x")), "")
			})
		})
	}
}

// A 304 is believed if it can be about the stored response, and else the handler is asked for what it has (RFC 9111, section 4.3.4).
func TestNotModifiedIsAboutAnother(t *testing.T) {
	const date, older = "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT", "Last-Modified: Sat, 05 Nov 1994 08:49:37 GMT"
	for _, test := range []struct {
		name                string
		stored, notModified []string
		body                string
	}{
		{"an older file", []string{date}, []string{older}, "new"},
		{"an older file with a tag", []string{date}, []string{older, `Etag: "b"`}, "new"},
		{"another tag, by the date alone", []string{date, `Etag: "a"`}, []string{date, `Etag: "b"`}, "new"},
		{"an older file, without its tag", []string{date, `Etag: "a"`}, []string{older}, "new"},
		{"the same file", []string{date}, []string{date}, "old"},
		{"the same tag", []string{date, `Etag: "a"`}, []string{older, `Etag: "a"`}, "old"},
		{"the same tag, weak", []string{date, `Etag: W/"a"`}, []string{`Etag: "a"`}, "old"},
		{"nothing", []string{date}, nil, "old"},
		{"another tag, where the tag alone was sent", []string{`Etag: "a"`}, []string{`Etag: "b"`}, "old"},
	} {
		for _, request := range []string{"X: y", "Range: bytes=1-"} {
			t.Run(test.name+", "+request, func(t *testing.T) {
				calls := 0
				h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					calls++
					fields, body := test.notModified, "new"
					if calls == 1 {
						fields, body = test.stored, "old"
					}
					w.Header().Set("Cache-Control", "no-cache")
					for _, f := range fields {
						name, value, _ := strings.Cut(f, ": ")
						w.Header().Set(name, value)
					}
					switch conditional := r.Header.Get("If-None-Match")+r.Header.Get("If-Modified-Since") != ""; {
					case conditional:
						w.WriteHeader(http.StatusNotModified)
					case r.Header.Get("Range") != "":
						t.Error("the handler was asked for a part")
					default:
						io.WriteString(w, body)
					}
				}))
				get(h, "http://example.com/x")
				res := get(h, "http://example.com/x", request)
				if request == "X: y" {
					want(t, "body", text(t, res), test.body)
				} else {
					want(t, "part", text(t, res), test.body[1:])
				}
				if test.body == "new" {
					want(t, "calls", calls, 3)
				} else {
					want(t, "calls", calls, 2)
				}
			})
		}
	}
}

// A file that has come back is that of another release, although it was not modified since.
func TestRollback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release, modified := "second", stamp
		h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "max-age=10, stale-while-revalidate=60")
			http.ServeContent(w, r, "app.js", modified, strings.NewReader(release))
		}))
		want(t, "release", text(t, get(h, "http://example.com/app.js")), "second")
		release, modified = "first", stamp.Add(-time.Hour)
		time.Sleep(15 * time.Second) // in a synctest bubble
		want(t, "while it is validated", text(t, get(h, "http://example.com/app.js")), "second")
		synctest.Wait()
		want(t, "rolled back", text(t, get(h, "http://example.com/app.js")), "first")
	})
}

// What is stale from the beginning is served within its windows, whether it can be validated or not.
func TestStaleFromTheBeginning(t *testing.T) {
	for _, field := range []string{"X: y", `Etag: "1"`} {
		synctest.Test(t, func(t *testing.T) {
			calls := 0
			h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				calls++
				name, value, _ := strings.Cut(field, ": ")
				w.Header().Set(name, value)
				w.Header().Set("Cache-Control", "max-age=0, stale-while-revalidate=60")
				fmt.Fprint(w, calls)
			}))
			for i, body := range []string{"1", "1", "2", "3"} {
				want(t, fmt.Sprint("answer ", i), text(t, get(h, "http://example.com/x")), body)
				synctest.Wait()
				time.Sleep(time.Second) // in a synctest bubble
			}
			time.Sleep(time.Minute) // in a synctest bubble
			want(t, "after the window", text(t, get(h, "http://example.com/x")), "5")
		})
	}
}

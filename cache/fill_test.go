package cache_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/cache"
)

// What a handler is told of its own writes is what net/http tells it, whether the response is recorded or not.
func TestWritesThatFail(t *testing.T) {
	for cc, stored := range map[string]int64{"max-age=60": 1, "private": 0} {
		for _, test := range []struct {
			name   string
			status int
			length string
			write  func(w http.ResponseWriter) (int64, error)
			n      int64
			err    error
			kept   bool
		}{
			{"all of it", 200, "4", func(w http.ResponseWriter) (int64, error) { n, err := io.WriteString(w, "body"); return int64(n), err }, 4, nil, true},
			{"nothing", 200, "0", func(w http.ResponseWriter) (int64, error) { n, err := w.Write(nil); return int64(n), err }, 0, nil, true},
			{"more than it said", 200, "3", func(w http.ResponseWriter) (int64, error) { n, err := io.WriteString(w, "body"); return int64(n), err }, 0, http.ErrContentLength, false},
			{"a body where there is none", 204, "", func(w http.ResponseWriter) (int64, error) { n, err := io.WriteString(w, "body"); return int64(n), err }, 0, http.ErrBodyNotAllowed, true},
			{"a copy", 200, "", func(w http.ResponseWriter) (int64, error) {
				return io.Copy(w, strings.NewReader(strings.Repeat("x", 100_000)))
			}, 100_000, nil, true},
			{"a copy of nothing", 200, "", func(w http.ResponseWriter) (int64, error) { return io.Copy(w, strings.NewReader("")) }, 0, nil, true},
			{"a copy of what breaks off", 200, "100000", func(w http.ResponseWriter) (int64, error) {
				return io.Copy(w, io.MultiReader(strings.NewReader(strings.Repeat("x", 50_000)), broken{}))
			}, 50_000, errSource, false},
			{"a copy of what breaks off at once", 200, "4", func(w http.ResponseWriter) (int64, error) { return io.Copy(w, broken{}) }, 0, errSource, false},
		} {
			t.Run(cc+": "+test.name, func(t *testing.T) {
				c := cache.New(16 << 20)
				var n int64
				var err error
				srv := httptest.NewServer(c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("Cache-Control", cc)
					if test.length != "" {
						w.Header().Set("Content-Length", test.length)
					}
					if test.status != 200 {
						w.WriteHeader(test.status)
					}
					n, err = test.write(w)
				})))
				srv.Config.ErrorLog = quiet
				res, e := srv.Client().Get(srv.URL)
				if e == nil {
					io.Copy(io.Discard, res.Body)
					res.Body.Close()
				}
				srv.Close() // waits for the handler
				want(t, "written", n, test.n)
				if !errors.Is(err, test.err) {
					t.Errorf("error %v, want %v", err, test.err)
				}
				kept := stored
				if !test.kept {
					kept = 0
				}
				want(t, "entries", c.Stats().Entries, kept)
				want(t, "recording", c.Stats().Recording, 0)
			})
		}
	}
}

var errSource = errors.New("broken")

// broken is a source that fails.
type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errSource }

// The cookie that comes with a 304 is for the client whose request was validated, and for no other.
func TestCookieOfAValidation(t *testing.T) {
	for _, store := range []bool{false, true} {
		var opts []cache.Option
		if store {
			opts = append(opts, cache.WithStoreSetCookie())
		}
		cookie := ""
		h := cache.New(1<<20, opts...).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "max-age=60")
			w.Header().Set("Etag", `"1"`)
			if cookie != "" {
				w.Header().Set("Set-Cookie", cookie)
			}
			if r.Header.Get("If-None-Match") != "" {
				w.WriteHeader(http.StatusNotModified)
				return
			}
			io.WriteString(w, "body")
		}))
		get(h, "http://example.com/x")
		cookie = "a=1"
		res := get(h, "http://example.com/x", "Cache-Control: no-cache")
		want(t, "body", text(t, res), "body")
		want(t, "who asked", res.Header.Get("Set-Cookie"), "a=1")
		cookie = ""
		for range 2 {
			others := get(h, "http://example.com/x").Header.Get("Set-Cookie")
			want(t, "others have it", others != "", store)
		}
	}
}

// marker is a cache.ResultMarker that is told of runs, too.
type marker struct {
	http.ResponseWriter
	heard []string
}

func (m *marker) MarkCache(r cache.Result) { m.heard = append(m.heard, r.String()) }
func (m *marker) MarkRun()                 { m.heard = append(m.heard, "run") }

// unwraps is a writer of somebody else around another.
type unwraps struct{ http.ResponseWriter }

func (u unwraps) Unwrap() http.ResponseWriter { return u.ResponseWriter }

// Whoever counts what the cache answered is told once, and of a run of the handler behind a stale response as well.
func TestResultMarkers(t *testing.T) {
	for name, wrap := range map[string]func(*marker) http.ResponseWriter{
		"as it is":             func(m *marker) http.ResponseWriter { return m },
		"behind another one's": func(m *marker) http.ResponseWriter { return unwraps{m} },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				answer := func(w http.ResponseWriter) { io.WriteString(w, "x") }
				h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("Cache-Control", "max-age=10, stale-if-error=600")
					w.Header().Set("Etag", `"1"`)
					answer(w)
				}))
				for _, step := range []struct {
					after  time.Duration
					answer func(w http.ResponseWriter)
					fields string
					heard  string
				}{
					{0, answer, "", "miss"},
					{0, nil, "", "hit"},
					{15 * time.Second, func(w http.ResponseWriter) { w.WriteHeader(500) }, "", "stale run"},
					{0, func(w http.ResponseWriter) { w.(cache.ShedMarker).MarkShed(io.EOF); w.WriteHeader(503) }, "", "stale"},
					{0, nil, "Cache-Control: max-stale", "stale"},
					{0, func(w http.ResponseWriter) { w.WriteHeader(304) }, "", "revalidated"},
					{0, nil, "Cache-Control: only-if-cached", "hit"},
					{15 * time.Second, nil, "Cache-Control: only-if-cached", "miss"},
					{0, answer, "Cache-Control: no-store", "bypass"},
				} {
					time.Sleep(step.after) // in a synctest bubble
					answer = step.answer
					m := &marker{ResponseWriter: httptest.NewRecorder()}
					r := httptest.NewRequest("GET", "http://example.com/x", nil)
					r.Header = fields(step.fields)
					h.ServeHTTP(wrap(m), r)
					want(t, "heard", strings.Join(m.heard, " "), step.heard)
				}
			})
		})
	}
}

// The handler is told of the surrogate under its name, beside those outside, and only where that was asked for.
func TestSurrogateIsAnnounced(t *testing.T) {
	for _, test := range []struct{ name, outer, want string }{
		{"", "", ""}, {"", `cdn="Surrogate/1.0"`, `cdn="Surrogate/1.0"`},
		{"me", "", `me="Surrogate/1.0"`}, {"me", `cdn="Surrogate/1.0"`, `cdn="Surrogate/1.0", me="Surrogate/1.0"`},
	} {
		h := cache.New(1<<20, cache.WithSurrogate(test.name)).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, strings.Join(r.Header["Surrogate-Capability"], ", "))
		}))
		var request []string
		if test.outer != "" {
			request = append(request, "Surrogate-Capability: "+test.outer)
		}
		want(t, test.name+" behind "+test.outer, text(t, get(h, "http://example.com/x", request...)), test.want)
	}
}

// A handler that copies from somewhere and does not look at the error ends its response as if it were whole, where it has said no length. Whoever asked gets it so,
// as without a cache, but it is not stored for others. What a length says is whole, is.
func TestCopyThatBreaksOffIsNotStored(t *testing.T) {
	for name, length := range map[string]string{"without a length": "", "with a length, and the rest from elsewhere": "50004"} {
		t.Run(name, func(t *testing.T) {
			var calls atomic.Int64
			c := cache.New(16 << 20)
			srv := httptest.NewServer(c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Cache-Control", "max-age=60")
				if calls.Add(1) > 1 {
					io.WriteString(w, "whole")
					return
				}
				if length != "" {
					w.Header().Set("Content-Length", length)
				}
				io.Copy(w, io.MultiReader(strings.NewReader(strings.Repeat("x", 50_000)), broken{}))
				if length != "" {
					io.WriteString(w, "rest")
				}
			})))
			defer srv.Close()
			ask := func() string {
				res, err := srv.Client().Get(srv.URL)
				if err != nil {
					t.Error(err)
					return ""
				}
				defer res.Body.Close()
				b, err := io.ReadAll(res.Body)
				if err != nil {
					t.Error(err)
				}
				return string(b)
			}
			first := strings.Repeat("x", 50_000)
			if length != "" {
				want(t, "first", ask() == first+"rest", true)
				want(t, "next", ask() == first+"rest", true)
				return
			}
			want(t, "first", ask() == first, true)
			want(t, "next", ask(), "whole")
		})
	}
}

// A copy that fails before its first byte leaves an empty response, which is not stored either; what a handler answers in its place is.
func TestCopyThatFailsAtOnceIsNotStored(t *testing.T) {
	for name, test := range map[string]struct {
		instead     func(http.ResponseWriter)
		first, next string
	}{
		"nothing":          {func(http.ResponseWriter) {}, "", "whole"},
		"a flush":          {func(w http.ResponseWriter) { w.(http.Flusher).Flush() }, "", "whole"},
		"another text":     {func(w http.ResponseWriter) { io.WriteString(w, "sorry") }, "sorry", "sorry"},
		"another copy":     {func(w http.ResponseWriter) { io.Copy(w, strings.NewReader("sorry")) }, "sorry", "sorry"},
		"a status":         {func(w http.ResponseWriter) { w.WriteHeader(http.StatusNotFound) }, "", ""},
		"one and the same": {func(w http.ResponseWriter) { io.Copy(w, broken{}) }, "", "whole"},
	} {
		t.Run(name, func(t *testing.T) {
			var calls atomic.Int64
			srv := httptest.NewServer(cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Cache-Control", "max-age=60")
				if calls.Add(1) > 1 {
					io.WriteString(w, "whole")
					return
				}
				io.Copy(w, broken{})
				test.instead(w)
			})))
			defer srv.Close()
			for _, body := range []string{test.first, test.next} {
				res, err := srv.Client().Get(srv.URL)
				if err != nil {
					t.Fatal(err)
				}
				b, err := io.ReadAll(res.Body)
				res.Body.Close()
				want(t, "body", string(b), body)
				want(t, "error", err, nil)
			}
		})
	}
}

// A handler that is asked to validate for a client with conditions, or a range, of its own is recorded before anything is sent. Where it panics then, a layer outside that recovers
// answers with an error, which is not to have the length and the lifetime of the response that there was to be.
func TestPanicOfWhatIsAnsweredLaterLeavesNoHeader(t *testing.T) {
	for name, fields := range map[string]map[string]string{
		"condition":        {"If-None-Match": `"other"`},
		"range":            {"Range": "bytes=0-1"},
		"range, for one":   {"Range": "bytes=0-1", "Authorization": "Basic eA=="},
		"panic before 304": {"If-None-Match": `"other"`, "X-Same": "1"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				calls := 0
				cached := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					calls++
					w.Header().Set("Cache-Control", "public, max-age=1, must-revalidate")
					w.Header().Set("Etag", fmt.Sprintf(`"%d"`, calls))
					if r.Header.Get("X-Same") != "" {
						w.Header().Set("Etag", r.Header.Get("If-None-Match"))
						w.WriteHeader(http.StatusNotModified)
						panic("handler")
					}
					w.Header().Set("Content-Length", "6")
					if calls > 1 {
						io.WriteString(w, "bod")
						panic("handler")
					}
					io.WriteString(w, "body, ")
				}))
				h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					defer func() {
						if v := recover(); v != nil {
							w.WriteHeader(http.StatusInternalServerError)
						}
					}()
					w.Header().Set("X-Outside", "1")
					cached.ServeHTTP(w, r)
				})
				h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "http://example.com/", nil))
				time.Sleep(2 * time.Second) // in a synctest bubble
				r := httptest.NewRequest("GET", "http://example.com/", nil)
				for k, v := range fields {
					r.Header.Set(k, v)
				}
				w := httptest.NewRecorder()
				h.ServeHTTP(w, r)
				want(t, "status", w.Code, http.StatusInternalServerError)
				want(t, "header", fmt.Sprint(w.Result().Header), "map[X-Outside:[1]]")
			})
		})
	}
}

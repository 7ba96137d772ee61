package cache_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/cache"
)

// unsaid is a request as an HTTP/3 server makes it of a header without a Content-Length.
func unsaid(major int, body io.Reader, fields ...string) *http.Request {
	r := httptest.NewRequest("GET", "http://example.com/x", nil)
	r.ProtoMajor, r.ContentLength, r.Body = major, -1, io.NopCloser(body)
	if body == nil {
		r.Body = nil
	}
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		r.Header.Set(name, value)
	}
	return r
}

// Over HTTP/3 a GET has no length, whether it has a body or not: what comes first tells.
func TestLengthUnsaid(t *testing.T) {
	broken := errors.New("reset")
	for _, test := range []struct {
		name  string
		major int
		body  func() io.Reader
		field string
		opts  []cache.Option
		got   string // by the handler: length, body, error; or the status if it got nothing
		hit   bool
	}{
		{"no body", 3, func() io.Reader { return strings.NewReader("") }, "", nil, "0 \"\" <nil>", true},
		{"nil", 3, func() io.Reader { return nil }, "", nil, "0 \"\" <nil>", true},
		{"a body", 3, func() io.Reader { return strings.NewReader("evil") }, "", nil, "-1 \"evil\" <nil>", false},
		{"a byte, with the end", 3, func() io.Reader { return iotest.DataErrReader(strings.NewReader("e")) }, "", nil, "-1 \"e\" <nil>", false},
		{"a body that breaks off", 3, func() io.Reader { return io.MultiReader(strings.NewReader("ev"), iotest.ErrReader(broken)) }, "", nil, "-1 \"ev\" reset", false},
		{"broken at once", 3, func() io.Reader { return iotest.ErrReader(broken) }, "", nil, "-1 \"\" reset", false},
		{"a body, and only what is stored is wanted", 3, func() io.Reader { return strings.NewReader("evil") }, "Cache-Control: only-if-cached", nil, "504", false},
		{"HTTP/2, where a length of -1 says that there is a body", 2, func() io.Reader { return strings.NewReader("") }, "", nil, "-1 \"\" <nil>", false},
		{"bypassed", 3, func() io.Reader { return strings.NewReader("evil") }, "", []cache.Option{cache.WithBypass(func(*http.Request) bool { return true })}, "-1 \"evil\" <nil>", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got string
			calls := 0
			mux := http.NewServeMux()
			mux.HandleFunc("GET /{name}", func(w http.ResponseWriter, r *http.Request) {
				calls++
				var b []byte
				var err error
				if r.Body != nil {
					b, err = io.ReadAll(r.Body)
				}
				got = fmt.Sprintf("%d %q %v", r.ContentLength, b, err)
				w.Header().Set("Cache-Control", "public, max-age=60")
			})
			c := cache.New(1<<20, test.opts...)
			h := c.Handler(mux)
			for range 2 {
				got = ""
				r, rec := unsaid(test.major, test.body(), test.field), httptest.NewRecorder()
				h.ServeHTTP(rec, r)
				if got == "" && rec.Code != http.StatusOK {
					got = fmt.Sprint(rec.Code)
				} else if got != "" {
					want(t, "the pattern, for who logs it", r.Pattern, "GET /{name}")
				}
				if got != "" {
					want(t, "the handler got", got, test.got)
				}
			}
			want(t, "answered from the store", c.Stats().Hits == 1, test.hit)
			want(t, "stored", c.Stats().Stored == 1, test.hit)
			want(t, "the handler was called once", calls == 1, test.hit)
		})
	}
}

// The functions of the user's are asked once for each request.
func TestLengthUnsaidAsksOnce(t *testing.T) {
	asked := [2]int{}
	page := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Cache-Control", "max-age=60") })
	h := cache.New(1<<20, cache.WithBypass(func(*http.Request) bool { asked[0]++; return false })).Handler(page,
		cache.WithKey(func(r *http.Request) string { asked[1]++; return r.URL.Path }))
	for i := range 2 {
		h.ServeHTTP(httptest.NewRecorder(), unsaid(3, strings.NewReader("")))
		want(t, "asked", asked, [2]int{i + 1, i + 1})
	}
}

// ends is a body whose request gets a map of trailers at the end, as that of an HTTP/3 server does.
type ends struct {
	io.ReadCloser
	r *http.Request
}

func (b *ends) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		b.r.Trailer = http.Header{"Sum": {"1"}}
	}
	return n, err
}

// What a response depends on may be in a trailer, too.
func TestLengthUnsaidWithTrailers(t *testing.T) {
	for _, body := range []string{"", "b", "body"} {
		for announced, trailer := range map[string]http.Header{"": nil, ", announced": {"Sum": nil}} {
			c := cache.New(1 << 20)
			h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				b, err := io.ReadAll(r.Body)
				want(t, fmt.Sprintf("body %q%s", body, announced), fmt.Sprint(string(b), err, r.Trailer), body+"<nil> map[Sum:[1]]")
				w.Header().Set("Cache-Control", "public, max-age=60")
			}))
			r := unsaid(3, strings.NewReader(body))
			r.Body, r.Trailer = &ends{r.Body, r}, trailer
			h.ServeHTTP(httptest.NewRecorder(), r)
			want(t, fmt.Sprintf("stored, body %q%s", body, announced), c.Stats().Stored, 0)
		}
	}
}

// While the cache waits to know whether there is a body, what is stored goes stale.
func TestLengthUnsaidForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		c := cache.New(1 << 20)
		h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			calls++
			w.Header().Set("Cache-Control", "public, max-age=5")
		}))
		get(h, "http://example.com/x")
		for i, wait := range []time.Duration{3 * time.Second, 3 * time.Second} {
			body, end := io.Pipe()
			time.AfterFunc(wait, func() { end.Close() })
			h.ServeHTTP(httptest.NewRecorder(), unsaid(3, body))
			want(t, fmt.Sprintf("calls after %v", time.Duration(i+1)*wait), calls, i+1)
		}
	})
}

package middleware_test

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware"
)

// matches tells whether a layer of For(pattern) sees the request.
func matches(pattern string, r *http.Request) bool {
	l := limiter.NewConcurrency(1)
	h := middleware.For(pattern, middleware.Concurrency(l)).Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	h.ServeHTTP(httptest.NewRecorder(), r)
	return l.Stats().Admitted == 1
}

// muxMatches is the reference: a ServeMux with this pattern alone.
func muxMatches(pattern string, r *http.Request) bool {
	mux := http.NewServeMux()
	mux.Handle(pattern, http.NotFoundHandler())
	_, p := mux.Handler(r)
	return p != ""
}

var forPatterns = []string{
	"/", "/{$}", "/report", "/api/", "POST /report", "GET /api/", "HEAD /h", "example.com/", "example.com/x",
	"GET example.com/x/", "/item/{id}", "GET /files/{path...}", "/a%2Fb", "/ü",
	"[::1]/", "::1/", "/a/b",
}

func TestForMatchesAsServeMux(t *testing.T) {
	for _, pattern := range forPatterns {
		for _, method := range []string{"GET", "HEAD", "POST", "OPTIONS"} {
			for _, target := range []string{
				"/", "/report", "/report/", "//report", "/./report", "/api", "/api/", "/api/x", "/api/../report", "/x/y", "/x", "/h",
				"/item/7", "/item/", "/item/7/8", "/files/a/b", "/a%2Fb", "/a/b", "/%72eport", "/..", "/.", "/ü", "/%C3%BC",
			} {
				for _, host := range []string{
					"example.com", "example.com:8080", "example.com:", "[example.com]", "[example.com]:80", "[example.com:80", "EXAMPLE.com",
					"other.test", "[2001:db8::1]:80", "[::1]", "[::1]:80", "::1", "",
				} {
					r := httptest.NewRequest(method, target, nil)
					r.Host = host
					if got, want := matches(pattern, r), muxMatches(pattern, r); got != want {
						t.Errorf("For(%q) and %s %s at %s: %v, ServeMux says %v", pattern, method, target, host, got, want)
					}
				}
			}
		}
	}
}

func FuzzForMatchesAsServeMux(f *testing.F) {
	f.Add(uint8(0), "GET", "example.com", "/report")
	f.Add(uint8(4), "POST", "example.com:80", "//report")
	f.Add(uint8(9), "HEAD", "[::1]:80", "/x/%2e%2e/y")
	f.Add(uint8(5), "CONNECT", "example.com:443", "")
	f.Fuzz(func(t *testing.T, n uint8, method, host, path string) {
		pattern := forPatterns[int(n)%len(forPatterns)]
		u, err := url.ParseRequestURI(path)
		if err != nil {
			t.Skip("not a request target")
		}
		r := &http.Request{Method: method, Host: host, URL: u, Header: http.Header{}, RequestURI: path, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}
		if got, want := matches(pattern, r), muxMatches(pattern, r); got != want {
			t.Errorf("For(%q) and %q %q at %q: %v, ServeMux says %v", pattern, method, path, host, got, want)
		}
	})
}

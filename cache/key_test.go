package cache_test

import (
	"crypto/tls"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/spillgate/spillgate/cache"
)

// A key is the URL as the client wrote it, with scheme and host in canonical form.
func TestKeys(t *testing.T) {
	for _, test := range []struct {
		tls                bool
		host, target, want string
	}{
		{false, "Example.COM:80", "/a?B=%7e", "http://example.com/a?B=%7e"},
		{false, "example.com:443", "/", "http://example.com:443/"},
		{true, "AZaz[.example:443", "/", "https://azaz[.example/"},
		{true, "example.com:80", "/", "https://example.com:80/"},
		{false, "example.com", "/x?u=http://example.org/y", "http://example.com/x?u=http://example.org/y"},
		{false, "example.com", "/http://example.org/y", "http://example.com/http://example.org/y"},
		{false, "example.com", "http://example.com/a?b", "http://example.com/a?b"},
		{false, "example.com", "http://example.com", "http://example.com/"},
		{false, "example.com", "http://example.com?q=/a", "http://example.com/?q=/a"},
		{false, "example.com", "HTTP://example.com/a", "http://example.com/a"},
		{true, "example.com", "https://example.com/a", "https://example.com/a"},
		{false, "example.com", "http://example.com/@a", "http://example.com/@a"},
		{false, "example.com", "http://example.com?@a", "http://example.com/?@a"},
		{false, "example.com", "https://example.com/a", "http://example.com/ https://example.com/a"},
		{true, "example.com", "http://example.com/a", "https://example.com/ http://example.com/a"},
		{false, "example.com", "x://example.com/a", "http://example.com/ x://example.com/a"},
		{false, "example.com", "http://u@example.com/a", "http://example.com/ http://u@example.com/a"},
		{false, "example.com", "http://u@example.com", "http://example.com/ http://u@example.com"},
		{false, "example.com", "*", "http://example.com/ *"},
		{false, "example.com/x", "/y", `http://example.com\x/y`},
		{false, "", "/y", "http://in.url/y"},
		{false, "example.com", "", "http://example.com/in/url?q"}, // of a request that no server has read
	} {
		r := &http.Request{Method: "GET", Host: test.host, RequestURI: test.target, URL: &url.URL{Scheme: "http", Host: "in.url", Path: "/in/url", RawQuery: "q"}}
		if test.tls {
			r.TLS = new(tls.ConnectionState)
		}
		want(t, test.host+" "+test.target, cache.Key(r), test.want)
	}
}

// What a layer outside has made of a URL is told apart from what a client has written, whichever part of it that layer changes.
func TestRewrittenURLs(t *testing.T) {
	h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "max-age=60")
		io.WriteString(w, r.URL.RequestURI())
	}))
	for range 2 {
		for _, target := range []string{"/a", "/a?q", "/a/b", "/a/b?q"} {
			for _, inner := range []string{"/a", "/a?q", "/a?r", "/a/b", "/a/b?q", "/b", "/"} {
				r := httptest.NewRequest("GET", target, nil)
				r.URL, _ = url.Parse(inner)
				rec := httptest.NewRecorder()
				h.ServeHTTP(rec, r)
				want(t, target+" rewritten to "+inner, rec.Body.String(), inner)
			}
		}
	}
}

package cache_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/spillgate/spillgate/cache"
)

// What comes in a form is as good as what comes in the query; a form that cannot be read purges nothing, and whoever may not
// purge does not have it read.
func TestPurgeHandlerReadsForms(t *testing.T) {
	for _, test := range []struct {
		name, method, query, kind, body string
		status                          int
	}{
		{"a form", "POST", "", "application/x-www-form-urlencoded", "tag=t", 200},
		{"a form beside a query", "POST", "?soft=1", "application/x-www-form-urlencoded", "tag=t", 200},
		{"one thing in the form and another in the query", "POST", "?all=1", "application/x-www-form-urlencoded", "tag=t", 400},
		{"a form that is none", "POST", "?tag=t", "application/x-www-form-urlencoded", "%zz", 400},
		{"a query that is none", "POST", "?tag=t&%zz", "", "", 400},
		{"a form without an end", "POST", "", "application/x-www-form-urlencoded", "tag=t&x=" + strings.Repeat("x", 64<<10), 400},
		{"a body that is no form", "POST", "?tag=t", "text/plain", "%zz", 200},
		{"a path without its slash", "POST", "?url=x/://y", "", "", 400},
		{"the URL of something else", "POST", "?prefix=ftp://example.com/", "", "", 400},
		{"all, but not so", "POST", "?all=true", "", "", 400},
		{"PUT", "PUT", "?tag=t", "", "", 405},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := cache.New(1 << 20)
			h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Cache-Control", "max-age=60")
				w.Header().Set("Cache-Tag", "t")
			}))
			get(h, "http://example.com/x")
			send := func(authorised bool) *http.Response {
				r := httptest.NewRequest(test.method, "http://example.com/purge"+test.query, strings.NewReader(test.body))
				r.Header.Set("Content-Type", test.kind)
				rec := httptest.NewRecorder()
				c.PurgeHandler(func(*http.Request) bool { return authorised }).ServeHTTP(rec, r)
				return rec.Result()
			}
			want(t, "not authorised", send(false).StatusCode, 403)
			res := send(true)
			want(t, "status", res.StatusCode, test.status)
			want(t, "kept by nobody", res.Header.Get("Cache-Control"), "no-store")
			kind, allow, body := "text/plain; charset=utf-8", "", "cache: "
			switch test.status {
			case 200:
				kind, body = "application/json", `{"purged":1}`
			case 405:
				allow = "POST"
			}
			want(t, "type", res.Header.Get("Content-Type"), kind)
			want(t, "Allow", res.Header.Get("Allow"), allow)
			if got := text(t, res); !strings.HasPrefix(got, body) {
				t.Errorf("body %q, want it to begin with %q", got, body)
			}
			hit := strings.Contains(get(h, "http://example.com/x").Header.Get("Cache-Status"), "; hit")
			want(t, "there still", hit, test.status != 200)
		})
	}
}

// Who waits to be told to send a body that nobody reads is answered all the same.
func TestPurgeHandlerAnswersWhoWaitsFor100Continue(t *testing.T) {
	send := wire(t, cache.New(1<<20).PurgeHandler(func(*http.Request) bool { return true }))
	res := send("POST / HTTP/1.1\r\nHost: h\r\nContent-Type: text/plain\r\nExpect: 100-continue\r\nContent-Length: 300000\r\n\r\n")
	want(t, "status", res.StatusCode, http.StatusBadRequest)
}

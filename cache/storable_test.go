package cache_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/spillgate/spillgate/cache"
)

// What is not stored says why in Cache-Status, is counted, holds no memory, and the handler is asked again.
func TestNotStoredBecause(t *testing.T) {
	const ok = "Cache-Control: max-age=60\n"
	for _, test := range []struct {
		name            string
		request, fields string // lines "Name: value"
		status          int
		reason          string // "" is that it is stored
	}{
		{"a status of the request's credentials", "", ok + "Cache-Control: public", 401, "status"},
		{"a status of the request's conditions", "", ok, 412, "status"},
		{"a status of how the request came", "", ok + "Cache-Control: public", 408, "status"},
		{"a status of when the request came", "", ok + "Cache-Control: public", 425, "status"},
		{"a status of what the request lacks", "", ok + "Cache-Control: public", 428, "status"},
		{"a status of who has sent too many", "", ok + "Cache-Control: public", 429, "status"},
		{"a status of the network in between", "", ok + "Cache-Control: public", 511, "status"},
		{"a status that is none of a range", "Range: bytes=0-1", ok, 404, "status"},
		{"a range of all", "Range: bytes=0-1", ok, 200, ""},
		{"a part that nobody asked for", "", ok + "Content-Range: bytes 0-1/10", 206, "partial"},
		{"a part that says not which", "Range: bytes=0-1", ok, 206, "partial"},
		{"a part that ends before it begins", "Range: bytes=0-1", ok + "Content-Range: bytes 1-0/10", 206, "partial"},
		{"a part beyond the end", "Range: bytes=0-1", ok + "Content-Range: bytes 9-10/10", 206, "partial"},
		{"a part without its beginning", "Range: bytes=0-1", ok + "Content-Range: bytes -1/10", 206, "partial"},
		{"a part without its end", "Range: bytes=0-1", ok + "Content-Range: bytes 0-/10", 206, "partial"},
		{"a part of nothing that is known", "Range: bytes=0-1", ok + "Content-Range: bytes 0-1/x", 206, "partial"},
		{"a part of what is not known", "Range: bytes=0-1", ok + "Content-Range: bytes 0-1/*", 206, ""},
		{"a part", "Range: bytes=0-1", ok + "Content-Range: bytes 0-1/2", 206, ""},
		{"one answer to two ranges", "Range: bytes=0-1\nRange: bytes=4-5", ok + "Content-Range: bytes 0-1/10", 206, "partial"},
		{"no-store", "", ok + "Cache-Control: no-store", 200, "no-store"},
		{"no-store, but must-understand", "", ok + "Cache-Control: no-store, must-understand", 200, ""},
		{"no-store, and must-understand what is not understood", "", ok + "Cache-Control: no-store, must-understand", 299, "no-store"},
		{"must-understand what is not understood", "", ok + "Cache-Control: must-understand", 299, "must-understand"},
		{"private", "", ok + "Cache-Control: private", 200, "private"},
		{"private of nothing", "", ok + `Cache-Control: private=""`, 200, "private"},
		{"private of a field", "", ok + `Cache-Control: private="x"`, 200, ""},
		{"trailers", "", ok + "Trailer: X", 200, "trailer"},
		{"events", "", ok + "Content-Type: text/event-stream; charset=utf-8", 200, "event-stream"},
		{"depends on anything", "", ok + "Vary: a, *", 200, "vary"},
		{"sets a cookie", "", ok + "Set-Cookie: a=b", 200, "set-cookie"},
		{"of one user", "Authorization: a", ok, 200, "authorization"},
		{"of one user, and public", "Authorization: a", ok + "Cache-Control: public", 200, ""},
		{"of one user, and must-revalidate", "Authorization: a", ok + "Cache-Control: must-revalidate", 200, ""},
		{"of one user, and s-maxage", "Authorization: a", "Cache-Control: s-maxage=60", 200, ""},
		{"of one user, to shared caches", "Authorization: a", "Cdn-Cache-Control: max-age=60", 200, "authorization"},
		{"of one user, public to shared caches alone", "Authorization: a", "Cdn-Cache-Control: public, max-age=60", 200, ""},
		{"of one user, public to all but shared caches", "Authorization: a", "Cache-Control: public\nCdn-Cache-Control: max-age=60", 200, "authorization"},
		{"made from a field outside the key", "X-Forwarded-Host: evil", ok, 200, "unkeyed-header"},
		{"made from a field outside the key, that Vary names", "X-Forwarded-Host: evil", ok + "Vary: X-Forwarded-Host", 200, ""},
		{"made from a field outside the key, and Vary names another", "X-Forwarded-Host: evil", ok + "Vary: X", 200, "unkeyed-header"},
		{"a proxy inside drops fields", "Connection: close, X", ok, 200, "connection"},
		{"a proxy inside drops what is of the connection", "Connection: close, TE", ok, 200, ""},
		{"two ages", "", ok + "Age: 1\nAge: 2", 200, "age"},
		{"an age that is none", "", ok + "Age: x", 200, "age"},
		{"one age twice", "", ok + "Age: 1, 1", 200, "age"},
		{"an age and another", "", ok + "Age: 1 , 2", 200, ""},
		{"an error", "", "Cache-Control: no-cache\nEtag: \"1\"", 500, "error"},
		{"an error that says how long", "", ok, 500, ""},
		{"an error that is public", "", "Cache-Control: public, no-cache\nEtag: \"1\"", 500, ""},
		{"an error that a field may have provoked", "X: \x01", "Cache-Control: max-age=60", 500, "error"},
		{"a wrong request that a field may have provoked", "X: " + strings.Repeat("x", 8<<10), ok, 400, "error"},
		{"many names of fields that may have provoked it", strings.Repeat("x", 8<<10) + ": 1", ok, 400, "error"},
		{"a method that the handler does not know", "X: \x01", ok, 501, ""},
		{"not an error, with a field that may have provoked it", "X: \x01", ok, 404, ""},
		{"stale from the beginning", "", "Cache-Control: max-age=60\nAge: 60", 200, "not-fresh"},
		{"stale from the beginning, and can be validated", "", "Cache-Control: max-age=60\nAge: 60\nEtag: \"1\"", 200, ""},
		{"stale from the beginning, and to be served while it is validated", "", "Cache-Control: max-age=0, stale-while-revalidate=60", 200, ""},
		{"stale from the beginning, and to be served in place of an error", "", "Cache-Control: max-age=0, stale-if-error=60", 200, ""},
		{"too stale from the beginning", "", "Cache-Control: max-age=10, stale-while-revalidate=60\nAge: 70", 200, "not-fresh"},
		{"stale from the beginning, and never to be served", "", "Cache-Control: max-age=0, stale-while-revalidate=60, must-revalidate", 200, "not-fresh"},
		{"no window at all", "", "Cache-Control: max-age=0, stale-while-revalidate=0", 200, "not-fresh"},
		{"a window of what says not how long it is fresh", "", "Cache-Control: stale-while-revalidate=60", 200, "not-fresh"},
		{"to be validated, and cannot be", "", "Cache-Control: no-cache", 200, "not-fresh"},
		{"to be validated", "", "Cache-Control: no-cache\nLast-Modified: Sun, 06 Nov 1994 08:49:37 GMT", 200, ""},
		{"says nothing, and can be validated", "", "Etag: \"1\"", 200, "not-fresh"},
	} {
		t.Run(test.name, func(t *testing.T) {
			calls := 0
			c := cache.New(1 << 20)
			h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				calls++
				for name, values := range fields(test.fields) {
					w.Header()[name] = values
				}
				w.WriteHeader(test.status)
				w.Write([]byte("ab"))
			}))
			r := httptest.NewRequest("GET", "http://example.com/x", nil)
			for line := range strings.SplitSeq(test.request, "\n") {
				if name, value, ok := strings.Cut(line, ": "); ok {
					r.Header[http.CanonicalHeaderKey(name)] = append(r.Header[http.CanonicalHeaderKey(name)], value)
				}
			}
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, r)
			want(t, "status", rec.Code, test.status)
			status, stats := rec.Header().Get("Cache-Status"), c.Stats()
			if test.reason == "" {
				want(t, "says that it is stored", strings.HasSuffix(status, "; stored"), true)
				want(t, "stored, not stored, and held", [3]int64{stats.Stored, stats.Refused, stats.Entries}, [3]int64{1, 0, 1})
				return
			}
			_, detail, _ := strings.Cut(status, "; detail=")
			want(t, "detail", detail, test.reason)
			want(t, "stored, not stored, and held", [4]int64{stats.Stored, stats.Refused, stats.Entries, stats.Bytes}, [4]int64{0, 1, 0, 0})
			want(t, "still being recorded", [2]int64{stats.Fills, stats.Recording}, [2]int64{0, 0})
			h.ServeHTTP(httptest.NewRecorder(), r)
			want(t, "calls", calls, 2)
		})
	}
}

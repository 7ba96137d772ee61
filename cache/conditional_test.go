package cache_test

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/cache"
)

// The conditions of a client are evaluated against what is stored, and those that only the handler can evaluate are left to it.
func TestConditionsOfAHit(t *testing.T) {
	at := func(d time.Duration) string { return stamp.Add(d).Format(http.TimeFormat) }
	for _, test := range []struct {
		name, fields, request string
		status                int
		asked                 bool
	}{
		{"modified when the client has it from", "Last-Modified: " + at(0), "If-Modified-Since: " + at(0), 304, false},
		{"modified before", "Last-Modified: " + at(0), "If-Modified-Since: " + at(time.Second), 304, false},
		{"modified after", "Last-Modified: " + at(0), "If-Modified-Since: " + at(-time.Second), 200, false},
		{"since no time", "Last-Modified: " + at(0), "If-Modified-Since: x", 200, false},
		{"since two times", "Last-Modified: " + at(0), "If-Modified-Since: " + at(0) + "\nIf-Modified-Since: " + at(0), 200, false},
		{"since it was made, where it does not say when it was modified", "Date: " + at(0), "If-Modified-Since: " + at(0), 304, false},
		{"since before it was made", "Date: " + at(0), "If-Modified-Since: " + at(-time.Second), 200, false},
		{"made some time", "Date: x", "If-Modified-Since: " + at(0), 200, false},
		{"tags before times, the same", "Etag: \"1\"\nLast-Modified: " + at(time.Hour), "If-None-Match: \"1\"\nIf-Modified-Since: " + at(0), 304, false},
		{"tags before times, another", "Etag: \"1\"\nLast-Modified: " + at(0), "If-None-Match: \"2\"\nIf-Modified-Since: " + at(0), 200, false},
		{"no tag", "Last-Modified: " + at(0), "If-None-Match: \"\"", 200, false},
		{"anything", "Last-Modified: " + at(0), "If-None-Match: *", 304, false},
		{"If-Match", "Etag: \"1\"", "If-Match: \"1\"", 200, true},
		{"If-Unmodified-Since", "Last-Modified: " + at(0), "If-Unmodified-Since: " + at(0), 200, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var calls atomic.Int64
				h := cache.New(1 << 20).Handler(page(&calls, "body", append(strings.Split(test.fields, "\n"),
					"Cache-Control: max-age=99999999999, s-maxage=2000000000", "Content-Type: text/plain", "X: y")...))
				get(h, "http://example.com/x")
				res := get(h, "http://example.com/x", strings.Split(test.request, "\n")...)
				want(t, "status", res.StatusCode, test.status)
				want(t, "asked", calls.Load() == 2, test.asked)
				body, length, kind := "body", "4", "text/plain"
				if test.status == 304 {
					body, length, kind = "", "", ""
				}
				want(t, "body", text(t, res), body)
				if !test.asked {
					want(t, "length", res.Header.Get("Content-Length"), length)
				}
				want(t, "type", res.Header.Get("Content-Type"), kind)
				want(t, "what a 304 has too", res.Header.Get("X"), "y")
			})
		})
	}
}

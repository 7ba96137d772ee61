package cache_test

import (
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spillgate/spillgate/cache"
)

// ranged serves content with an entity tag, in parts where asked for, and counts.
func ranged(calls *atomic.Int64, content *string, etag *string, cc string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		w.Header().Set("Cache-Control", cc)
		if *etag != "" {
			w.Header().Set("Etag", *etag)
		}
		http.ServeContent(w, r, "x.txt", time.Time{}, strings.NewReader(*content))
	}
}

func TestParts(t *testing.T) {
	type step struct {
		field  string // of the request
		body   string
		status int
		hit    bool
	}
	content, other := "0123456789", "abcdefghij"
	for _, test := range []struct {
		name  string
		etag  string
		cc    string
		steps []step
	}{
		{"a part is used again, and parts of it", `"v1"`, "max-age=60", []step{
			{"Range: bytes=4-8", "45678", 206, false}, {"Range: bytes=4-8", "45678", 206, true}, {"Range: bytes=5-6", "56", 206, true},
			{"Range: bytes=3-6", "3456", 206, false}, {"Range: bytes=9-", "9", 206, false},
		}},
		{"suffixes", `"v1"`, "max-age=60", []step{
			{"Range: bytes=-4", "6789", 206, false}, {"Range: bytes=-2", "89", 206, true}, {"Range: bytes=7-", "789", 206, true},
		}},
		{"a part is no answer for the whole", `"v1"`, "max-age=60", []step{
			{"Range: bytes=0-8", "012345678", 206, false}, {"X: y", content, 200, false}, {"X: y", content, 200, true}, {"Range: bytes=9-9", "9", 206, true},
		}},
		{"parts that touch become one", `"v1"`, "max-age=60", []step{
			{"Range: bytes=1-3", "123", 206, false}, {"Range: bytes=4-6", "456", 206, false}, {"Range: bytes=2-5", "2345", 206, true},
		}},
		{"parts that are everything become the whole", `"v1"`, "max-age=60", []step{
			{"Range: bytes=5-", "56789", 206, false}, {"Range: bytes=0-5", "012345", 206, false}, {"X: y", content, 200, true}, {"Range: bytes=4-5", "45", 206, true},
		}},
		{"without a strong validator nothing is put together", `W/"v1"`, "max-age=60", []step{
			{"Range: bytes=5-", "56789", 206, false}, {"Range: bytes=0-4", "01234", 206, false}, {"X: y", content, 200, false},
		}},
		{"If-Range", `"v1"`, "max-age=60", []step{
			{"Range: bytes=4-8", "45678", 206, false}, {"Range: bytes=4-8\nIf-Range: \"v1\"", "45678", 206, true}, {"Range: bytes=4-8\nIf-Range: \"v0\"", content, 200, false},
		}},
		{"several ranges are not stored", `"v1"`, "max-age=60", []step{
			{"Range: bytes=0-0,9-9", "", 206, false}, {"Range: bytes=0-0", "0", 206, false},
		}},
		{"no-store", `"v1"`, "no-store", []step{
			{"Range: bytes=4-8", "45678", 206, false}, {"Range: bytes=4-8", "45678", 206, false},
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var calls atomic.Int64
			body, etag := content, test.etag
			h := cache.New(1 << 20).Handler(ranged(&calls, &body, &etag, test.cc))
			for i, s := range test.steps {
				before := calls.Load()
				res := get(h, "http://example.com/x", strings.Split(s.field, "\n")...)
				name := strconv.Itoa(i) + ": " + s.field
				want(t, name, res.StatusCode, s.status)
				if got := text(t, res); s.body != "" {
					want(t, name, got, s.body)
					want(t, name, res.Header.Get("Content-Length"), strconv.Itoa(len(s.body)))
				}
				want(t, name+": hit", calls.Load() == before, s.hit)
			}
		})
	}

	t.Run("a new representation drives out the old parts", func(t *testing.T) {
		var calls atomic.Int64
		body, etag := content, `"v1"`
		h := cache.New(1 << 20).Handler(ranged(&calls, &body, &etag, "max-age=60"))
		get(h, "http://example.com/x", "Range: bytes=0-4")
		body, etag = other, `"v2"`
		want(t, "new part", text(t, get(h, "http://example.com/x", "Range: bytes=5-9")), "fghij")
		want(t, "old part", text(t, get(h, "http://example.com/x", "Range: bytes=0-4")), "abcde")
		want(t, "whole", text(t, get(h, "http://example.com/x")), other)
	})

	t.Run("a part that grows drives out no other", func(t *testing.T) {
		var calls atomic.Int64
		body, etag := strings.Repeat("0123456789", 10), `"v1"`
		h := cache.New(1 << 20).Handler(ranged(&calls, &body, &etag, "max-age=60"))
		for _, from := range []int{0, 20, 40, 60, 70} { // the last one goes on where that before it ends
			get(h, "http://example.com/x", fmt.Sprintf("Range: bytes=%d-%d", from, from+9))
		}
		before := calls.Load()
		for _, part := range []string{"0-9", "20-29", "40-49", "60-79"} {
			get(h, "http://example.com/x", "Range: bytes="+part)
		}
		want(t, "calls for what is stored", calls.Load(), before)
	})

	t.Run("a 206 nobody asked for, or that says nothing, is not stored", func(t *testing.T) {
		for _, cr := range []string{"", "bytes 0-4", "bytes 4-0/10", "bytes 0-10/10", "bytes 0-4/99999999999999999999", "lines 0-4/10"} {
			c := cache.New(1 << 20)
			h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Cache-Control", "max-age=60")
				if cr != "" {
					w.Header().Set("Content-Range", cr)
				}
				w.WriteHeader(206)
				io.WriteString(w, "01234")
			}))
			get(h, "http://example.com/x", "Range: bytes=0-4")
			get(h, "http://example.com/x")
			want(t, cr, c.Stats().Entries, 0)
		}
	})
}

// What is too large when put together is not put together first.
func TestPartsThatAreTooLarge(t *testing.T) {
	const size, most = 1 << 20, 8
	var calls atomic.Int64
	content, etag := strings.Repeat("x", 2*size), `"v1"`
	h := cache.New(64<<20, cache.WithMaxObject(size)).Handler(ranged(&calls, &content, &etag, "max-age=60"))
	get(h, "http://example.com/x", fmt.Sprintf("Range: bytes=0-%d", size-1))
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	before := mem.TotalAlloc
	for i := range most {
		get(h, "http://example.com/x", fmt.Sprintf("Range: bytes=%d-%d", size-1-i, size+i))
	}
	runtime.ReadMemStats(&mem)
	if n := mem.TotalAlloc - before; n > size {
		t.Errorf("%d requests for a few bytes allocated %d bytes", most, n)
	}
	want(t, "calls", calls.Load(), most+1)
}

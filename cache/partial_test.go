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
	"testing/synctest"
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
		{"parts that touch from below", `"v1"`, "max-age=60", []step{
			{"Range: bytes=4-6", "456", 206, false}, {"Range: bytes=1-3", "123", 206, false}, {"Range: bytes=2-5", "2345", 206, true},
		}},
		{"parts with a hole between them", `"v1"`, "max-age=60", []step{
			{"Range: bytes=1-3", "123", 206, false}, {"Range: bytes=5-6", "56", 206, false}, {"Range: bytes=2-5", "2345", 206, false},
		}},
		{"parts with a hole between them, from below", `"v1"`, "max-age=60", []step{
			{"Range: bytes=5-6", "56", 206, false}, {"Range: bytes=1-3", "123", 206, false}, {"Range: bytes=3-5", "345", 206, false},
		}},
		{"beyond the end there is nothing", `"v1"`, "max-age=60", []step{
			{"Range: bytes=8-20", "89", 206, false}, {"Range: bytes=8-30", "89", 206, true}, {"Range: bytes=-2", "89", 206, true}, {"Range: bytes=9-9", "9", 206, true},
		}},
		{"a condition is for the handler", `"v1"`, "max-age=60", []step{
			{"Range: bytes=4-8", "45678", 206, false}, {"Range: bytes=4-8\nIf-None-Match: \"v2\"", "45678", 206, false},
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
					span := "" // each digit stands where it says
					if s.status == 206 {
						span = fmt.Sprintf("bytes %c-%c/10", got[0], got[len(got)-1])
					}
					want(t, name, res.Header.Get("Content-Range"), span)
					want(t, name, res.Header.Get("Content-Type"), "text/plain; charset=utf-8")
					want(t, name, res.Header.Get("Etag"), etag)
					want(t, name, strings.Contains(res.Header.Get("Cache-Status"), "; hit"), s.hit)
					want(t, name, res.Header.Get("Age") != "", s.hit)
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

// A part is used under the rules for all that is stored: while it is fresh, by those who are content with it, for their variant.
func TestPartsAreHeldToTheRules(t *testing.T) {
	for _, test := range []struct {
		name, cc, first, second string // the fields of the second request
		wait                    time.Duration
		hit                     bool
	}{
		{"fresh", "max-age=60", "", "", 10 * time.Second, true},
		{"stale", "max-age=60", "", "", 60 * time.Second, false},
		{"to be validated", "max-age=60, no-cache", "", "", 0, false},
		{"the client wants a new one", "max-age=60", "", "Cache-Control: no-cache", 0, false},
		{"too old for the client", "max-age=60", "", "Cache-Control: max-age=5", 10 * time.Second, false},
		{"another variant", "max-age=60", "Accept: a", "Accept: b", 0, false},
		{"the same variant", "max-age=60", "Accept: a", "Accept: a", 0, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var calls atomic.Int64
				h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("Vary", "Accept")
					body, etag := "0123456789", `"v`+r.Header.Get("Accept")+`"`
					ranged(&calls, &body, &etag, test.cc)(w, r)
				}))
				get(h, "http://example.com/x", "Range: bytes=2-5", test.first)
				time.Sleep(test.wait) // in a synctest bubble
				res := get(h, "http://example.com/x", "Range: bytes=3-4", test.second)
				want(t, "body", text(t, res), "34")
				want(t, "hit", calls.Load() == 1, test.hit)
			})
		})
	}
}

// Parts of what two tenants get are not put together, though the handler gives both the same entity tag.
func TestPartsOfTwoVariants(t *testing.T) {
	for name, test := range map[string]struct {
		opt  cache.RouteOption
		vary string
	}{
		"by Vary":           {cache.WithKeyHeaders(), "X-Tenant"},
		"by WithKeyHeaders": {cache.WithKeyHeaders("X-Tenant"), "X"},
	} {
		t.Run(name, func(t *testing.T) {
			h := cache.New(1<<20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Vary", test.vary)
				body, etag := strings.Repeat(r.Header.Get("X-Tenant"), 10), `"1"`
				ranged(new(atomic.Int64), &body, &etag, "max-age=60")(w, r)
			}), test.opt)
			for _, step := range []struct{ tenant, asked, body string }{
				{"a", "0-4", "aaaaa"}, {"b", "5-9", "bbbbb"}, {"a", "5-6", "aa"}, {"b", "0-4", "bbbbb"}, {"a", "0-6", "aaaaaaa"}, {"b", "0-9", "bbbbbbbbbb"}, {"a", "0-9", "aaaaaaaaaa"},
			} {
				want(t, step.tenant+" "+step.asked, text(t, get(h, "http://example.com/x", "X-Tenant: "+step.tenant, "Range: bytes="+step.asked)), step.body)
			}
		})
	}
}

// A handler that does not know how long the whole is answers with a "*", and what is put together says the same until it is known.
func TestPartsOfWhatIsNotKnown(t *testing.T) {
	total := "*"
	calls := 0
	h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls++
		var from, to int
		fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to)
		w.Header().Set("Cache-Control", "max-age=60")
		w.Header().Set("Etag", `"1"`)
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%s", from, to, total))
		w.WriteHeader(206)
		io.WriteString(w, "0123456789"[from:to+1])
	}))
	for _, step := range []struct{ total, asked, is, body string }{
		{"*", "0-2", "bytes 0-2/*", "012"}, {"*", "3-4", "bytes 3-4/*", "34"}, {"x", "1-3", "bytes 1-3/*", "123"},
		{"10", "5-7", "bytes 5-7/10", "567"}, {"x", "2-6", "bytes 2-6/10", "23456"}, {"x", "6-7", "bytes 6-7/10", "67"},
		{"11", "8-9", "bytes 8-9/11", "89"}, // it says otherwise now: nobody knows which of them is right
		{"10", "7-8", "bytes 7-8/10", "78"},
	} {
		before := calls
		total = step.total
		res := get(h, "http://example.com/x", "Range: bytes="+step.asked)
		want(t, step.asked, res.Header.Get("Content-Range"), step.is)
		want(t, step.asked, text(t, res), step.body)
		want(t, step.asked+": from the store", calls == before, step.total == "x")
	}
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

// A range in a unit that the cache does not know is for the handler, whatever is stored of the whole.
func TestRangesOfOtherUnits(t *testing.T) {
	h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "max-age=60")
		if r.Header.Get("Range") == "items=0-1" {
			w.Header().Set("Content-Range", "items 0-1/3")
			w.WriteHeader(http.StatusPartialContent)
			io.WriteString(w, `["a","b"]`)
			return
		}
		io.WriteString(w, `["a","b","c"]`) // no other range is known
	}))
	for range 2 {
		want(t, "all", text(t, get(h, "http://example.com/x")), `["a","b","c"]`)
		res := get(h, "http://example.com/x", "Range: items=0-1")
		want(t, "status", res.StatusCode, http.StatusPartialContent)
		want(t, "two items", text(t, res), `["a","b"]`)
		for _, other := range []string{"items=2-", "Bytes=0-1", "none", ""} {
			res := get(h, "http://example.com/x", "Range: "+other)
			want(t, "status of "+other, res.StatusCode, http.StatusOK)
			want(t, "all of "+other, text(t, res), `["a","b","c"]`)
		}
		want(t, "bytes", text(t, get(h, "http://example.com/x", "Range: bytes=0-3")), `["a"`)
	}
}

// The digest of a message's content is sent with that content alone (RFC 9530), and that of the representation with every part of it.
func TestDigestsOfContent(t *testing.T) {
	const whole = "0123456789"
	digest := func(content string) string { return "sha-256=:" + content + ":" }
	for name, request := range map[string][]string{
		"one":               {"Range: bytes=2-4"},
		"two":               {"Range: bytes=0-1,4-5"},
		"by If-Range":       {"Range: bytes=2-4", `If-Range: "1"`},
		"known":             {`If-None-Match: "1"`},
		"known, and a part": {"Range: bytes=2-4", `If-None-Match: "1"`},
	} {
		synctest.Test(t, func(t *testing.T) {
			changed := false
			h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Cache-Control", "max-age=10")
				w.Header().Set("Repr-Digest", digest(whole))
				if r.Header.Get("If-None-Match") == `"1"` && !changed {
					w.Header().Set("Content-Digest", digest(""))
					w.WriteHeader(http.StatusNotModified)
					return
				}
				w.Header().Set("Etag", `"1"`)
				w.Header().Set("Content-Digest", digest(whole))
				io.WriteString(w, whole)
			}))
			get(h, "http://example.com/x")
			for _, when := range []string{"hit", "validated", "replaced"} {
				res := get(h, "http://example.com/x", request...)
				want(t, name+", "+when+": status", res.StatusCode == 200, false)
				want(t, name+", "+when+": digest of the content", res.Header.Get("Content-Digest"), "")
				want(t, name+", "+when+": digest of all", res.Header.Get("Repr-Digest"), digest(whole))
				want(t, name+", "+when+": digest with all", get(h, "http://example.com/x").Header.Get("Content-Digest"), digest(whole))
				changed = when == "validated"
				time.Sleep(15 * time.Second) // in a synctest bubble
			}
		})
	}
}

// Parts that are put together have no digest of theirs, and a stored part has its own.
func TestDigestsOfParts(t *testing.T) {
	h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var from, to int
		fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to)
		part := "0123456789"[from : to+1]
		w.Header().Set("Cache-Control", "max-age=60")
		w.Header().Set("Etag", `"1"`)
		w.Header().Set("Content-Digest", part)
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/10", from, to))
		w.WriteHeader(http.StatusPartialContent)
		io.WriteString(w, part)
	}))
	for _, test := range [][2]string{{"0-4", "01234"}, {"0-4", "01234"}, {"1-2", ""}, {"5-9", "56789"}, {"0-9", ""}, {"5-9", ""}} {
		res := get(h, "http://example.com/x", "Range: bytes="+test[0])
		want(t, "digest of "+test[0], res.Header.Get("Content-Digest"), test[1])
	}
	all := get(h, "http://example.com/x")
	want(t, "digest of all", all.Header.Get("Content-Digest"), "")
	want(t, "all", text(t, all), "0123456789")
}

// Range means nothing in a HEAD (RFC 9110, section 14.2).
func TestRangeOfAHead(t *testing.T) {
	h := cache.New(1 << 20).Handler(page(new(atomic.Int64), "0123456789", "Cache-Control: max-age=60", `Etag: "1"`))
	get(h, "http://example.com/x")
	for _, ranges := range []string{"0-3", "0-3,5-6", "99-"} {
		res := ask(h, "HEAD", "http://example.com/x", "Range: bytes="+ranges)
		want(t, ranges, res.StatusCode, 200)
		want(t, "length", res.Header.Get("Content-Length"), "10")
		want(t, "part", res.Header.Get("Content-Range"), "")
	}
}

// A range may end as far beyond the end as a client can count.
func TestRangesThatEndFarBeyond(t *testing.T) {
	h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "max-age=60")
		w.Header().Set("Etag", `"1"`)
		io.WriteString(w, "0123456789") // whatever the range
	}))
	get(h, "http://example.com/x")
	for _, test := range []struct {
		rang   string
		status int
		part   string
	}{
		{"4-18446744073709551615", 206, "bytes 4-9/10"},
		{"4-9223372036854775807", 206, "bytes 4-9/10"},
		{"4-99999999999999999999999999999999999999999", 206, "bytes 4-9/10"},
		{"4-0000000000000000000000000000000000000000000000006", 206, "bytes 4-6/10"},
		{"4-0000000000000000000000000000000000000000000000003", 416, ""},
		{"-18446744073709551616", 206, "bytes 0-9/10"},
		{"18446744073709551615-", 416, ""},
		{"4-1844674407370955161x", 416, ""},
	} {
		for _, field := range []string{"X: y", `If-Range: "1"`} {
			res := get(h, "http://example.com/x", "Range: bytes="+test.rang, field)
			want(t, "status of "+test.rang+", "+field, res.StatusCode, test.status)
			want(t, "part of "+test.rang+", "+field, res.Header.Get("Content-Range"), test.part)
		}
	}
	part := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "max-age=60")
		w.Header().Set("Etag", `"1"`)
		w.Header().Set("Content-Range", "bytes 4-6/*")
		w.WriteHeader(http.StatusPartialContent)
		io.WriteString(w, "456")
	}))
	get(part, "http://example.com/x", "Range: bytes=4-6")
	want(t, "a part without an end", get(part, "http://example.com/x", "Range: bytes=5-6").Header.Get("Content-Range"), "bytes 5-6/*")
	status := get(part, "http://example.com/x", "Range: bytes=5-18446744073709551615").Header.Get("Cache-Status")
	want(t, "more than is stored", status, "spillgate; fwd=partial; fwd-status=206; stored")
}

// Nothing satisfies a range of the last 0 bytes, and what is empty has no part (RFC 9110, section 14.1.2).
func TestRangesOfNothing(t *testing.T) {
	h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "max-age=60")
		w.Header().Set("Etag", `"1"`)
		if r.URL.Path != "/empty" {
			io.WriteString(w, "0123456789") // whatever the range
		}
	}))
	get(h, "http://example.com/x")
	get(h, "http://example.com/empty")
	for _, test := range []struct {
		path, rang string
		status     int
		part, body string
	}{
		{"/x", "-0", 416, "bytes */10", "invalid range: failed to overlap\n"},
		{"/x", " -000", 416, "bytes */10", "invalid range: failed to overlap\n"},
		{"/x", "-0,-0", 416, "bytes */10", "invalid range: failed to overlap\n"},
		{"/x", "1-2,-0", 206, "bytes 1-2/10", "12"},
		{"/x", "-0, 20-", 416, "bytes */10", "invalid range: failed to overlap\n"},
		{"/empty", "-0", 200, "", ""},
		{"/empty", "-5", 200, "", ""},
		{"/empty", "0-", 200, "", ""},
		{"/empty", "x", 200, "", ""},
	} {
		for _, field := range []string{"X: y", `If-Range: "1"`, `If-Range: "2"`} {
			status, part, body := test.status, test.part, test.body
			if field == `If-Range: "2"` && test.path == "/x" {
				status, part, body = 200, "", "0123456789"
			}
			res := get(h, "http://example.com"+test.path, "Range: bytes="+test.rang, field)
			what := test.path + " " + test.rang + ", " + field
			want(t, "status of "+what, res.StatusCode, status)
			want(t, "part of "+what, res.Header.Get("Content-Range"), part)
			want(t, "body of "+what, text(t, res), body)
		}
	}
}

// That a range cannot be satisfied is not for as long as the stored response is fresh.
func TestUnsatisfiableRangeIsNotFresh(t *testing.T) {
	fresh := []string{"Cache-Control", "Expires", "Cdn-Cache-Control", "Surrogate-Control", "Etag", "Last-Modified"}
	h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hd := w.Header()
		hd.Set("Cache-Control", "public, max-age=60")
		hd.Set("Cdn-Cache-Control", "max-age=60")
		hd.Set("Surrogate-Control", "max-age=60")
		hd.Set("Expires", "Fri, 01 Jan 2100 00:00:00 GMT")
		hd.Set("Last-Modified", "Fri, 01 Jan 2010 00:00:00 GMT")
		hd.Set("Etag", `"1"`)
		hd.Set("Vary", "X-Not-Sent")
		io.WriteString(w, "0123456789")
	}))
	get(h, "http://example.com/x")
	for _, rang := range []string{"10-", "-0"} {
		res := get(h, "http://example.com/x", "Range: bytes="+rang)
		want(t, "status of "+rang, res.StatusCode, 416)
		for _, name := range fresh {
			want(t, name+" with "+rang, res.Header.Get(name), "")
		}
		want(t, "Vary with "+rang, res.Header.Get("Vary"), "X-Not-Sent")
	}
	res := get(h, "http://example.com/x", "Range: bytes=0-1, 3-4")
	want(t, "status of two ranges", res.StatusCode, 206)
	for _, name := range fresh {
		want(t, name+" with two ranges", res.Header.Get(name) != "", true)
	}
}

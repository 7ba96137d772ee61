package cache_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spillgate/spillgate/cache"
)

func TestDates(t *testing.T) {
	at := time.Date(1994, 11, 6, 8, 49, 37, 0, time.UTC)
	for s, ok := range map[string]bool{
		"Sun, 06 Nov 1994 08:49:37 GMT":  true,
		"Sunday, 06-Nov-94 08:49:37 GMT": true,
		"Sun Nov  6 08:49:37 1994":       true,
		"sun, 06 Nov 1994 08:49:37 GMT":  false,
		"Sun, 06 NOV 1994 08:49:37 GMT":  false,
		"Mon, 06 Nov 1994 08:49:37 GMT":  false,
		"Sun, 6 Nov 1994 08:49:37 GMT":   false,
		"Sun, 06 Nov 1994 8:49:37 GMT":   false,
		"Sun, 06 Nov 1994 08:49:37 UTC":  false,
		"Sun, 06 Nov 1994 08:49:37 +00":  false,
		"Sun, 06 Nov 94 08:49:37 GMT":    false,
		"Sun 06 Nov 1994 08:49:37 GMT":   false,
		"0":                              false,
		"":                               false,
	} {
		got, valid := cache.ParseDate(s)
		want(t, s, valid, ok)
		if valid {
			want(t, s, got.Equal(at), true)
		}
	}
}

func TestTargetedFields(t *testing.T) {
	for s, ok := range map[string]bool{
		"max-age=60": true, "max-age=60, no-store": true, "max-age=60;x=1": true, "a=(1 2);q, max-age=60": true,
		`max-age=60, x="y"`: true, "max-age=60, t=tok/en": true, "max-age=60, b=:YQ==:, d=@1, q=%\"x\", f=1.5, n=?0": true,
		"": false, "max-age=60,": false, "Max-Age=60": false, "max-age=60;": false, "max-age = 60": false, ",max-age=60": false,
		"max-age=60 no-store": false, `x="`: false, "a=(1": false, "a=1234567890123456": false, "a=1.2345": false, "a=?2": false,
	} {
		age, valid := cache.ParseTargeted(s)
		want(t, s, valid, ok)
		if valid {
			want(t, s, age, time.Minute)
		}
	}
	want(t, "wrong type is ignored", func() time.Duration { d, _ := cache.ParseTargeted(`max-age="60"`); return d }(), -1)
	want(t, "negative", func() time.Duration { d, _ := cache.ParseTargeted("max-age=-60"); return d }(), 0)
	want(t, "two lines", func() bool { _, ok := cache.ParseTargeted("max-age=60", "no-store"); return ok }(), true)
	want(t, "groups", reflect.DeepEqual(cache.ParseStrings(`"a", "b\"c"`, `"d";p`), []string{"a", `b"c`, "d"}), true)
	want(t, "groups that do not parse", cache.ParseStrings(`"a", "b`) == nil, true)
}

func TestETags(t *testing.T) {
	for _, test := range []struct {
		list, etag string
		match      bool
	}{
		{`"a"`, `"a"`, true}, {`W/"a"`, `"a"`, true}, {`"a"`, `W/"a"`, true}, {`"b", "a"`, `"a"`, true}, {`"b","a","c"`, `"a"`, true},
		{`"b"`, `"a"`, false}, {`*`, `"a"`, true}, {`*`, ``, true}, {`a`, `"a"`, false}, {`a`, `a`, true}, {`"a,b"`, `"a,b"`, true},
		{`"a,b"`, `"b"`, false}, {`"a`, `"a"`, false}, {``, ``, false}, {` , "a" ,`, `"a"`, true}, {`""`, ``, false}, {`w/"a"`, `"a"`, false},
	} {
		want(t, test.list+" "+test.etag, cache.ETagMatch([]string{test.list}, test.etag), test.match)
	}
}

func TestNormalise(t *testing.T) {
	for _, test := range []struct{ name, a, b string }{
		{"Foo", "1,2", " 1, 2 "}, {"Accept-Language", "en, de", "DE,en"}, {"Accept-Encoding", "gzip;q=1, br", "br, gzip; q=1"},
	} {
		want(t, test.name, cache.Normalise(test.name, []string{test.a}), cache.Normalise(test.name, []string{test.b}))
	}
	for _, test := range []struct{ a, b string }{
		{`{"q":"a, b"}`, `{"q":"a,b"}`}, {`"a ,b"`, `"a, b"`}, {`"a\", b"`, `"a\",b"`}, {`x, "a , b" ,y`, `x,"a,b",y`},
	} {
		want(t, "white space in quotes means something", cache.Normalise("Foo", []string{test.a}) != cache.Normalise("Foo", []string{test.b}), true)
	}
	for _, test := range []struct{ a, b string }{
		{`"a, b" , c`, `"a, b",c`}, {`a" , "b`, ` a" , "b `}, {`"a\\" , b`, `"a\\",b`}, {`a\ , b`, `a\,b`}, {`a, , b`, `a,,b`},
	} {
		want(t, test.a, cache.Normalise("Foo", []string{test.a}), cache.Normalise("Foo", []string{test.b}))
	}
	want(t, "order means something", cache.Normalise("Foo", []string{"1,2"}) != cache.Normalise("Foo", []string{"2,1"}), true)
	want(t, "case means something", cache.Normalise("Foo", []string{"A"}) != cache.Normalise("Foo", []string{"a"}), true)
}

func TestLanguageThatIsPreferred(t *testing.T) {
	for _, test := range []struct {
		first, language, second string
		reused                  bool
	}{
		{"en, de", "de", "fr;q=0.5, de;q=1.0", true}, {"en, de", "de", "de", true}, {"en, de", "de", "fr, de", false},
		{"en, de", "de", "fr;q=0.6, de;q=0.5", false}, {"en, de", "", "de", false}, {"en, de", "de", "de-AT", false},
		{"en, de", "de", "de, fr", false}, {"en, de", "de", "fr, de, en", false}, {"en, de", "de", ", de;q=0.5", true}, {"en, de", "de", "fr;q=0, de;q=0.001", true},
		{"en, de", "de", "de;q=0", false}, {"en, de", "de", "de;q=0.89, fr;q=0.9", false}, {"en, de", "de", "fr;q=0.89, de;q=0.9", true},
		{"en, de", "de", "fr;q=0.899, de;q=0.9", true}, {"en, de", "de", "fr;q=0.01, de;q=0.009", false}, {"en, de", "de", "fr;q=0.10, de;q=0.1", false},
		{"en, de", "de", "fr;q=1.5, de", false}, {"en, de", "de", "de;q=0.9999", false}, {"en, de", "de", "de;q=0.x", false}, {"en, de", "de", "de;q=", false},
		{"en, de", "de", "fr, de;v=0", false}, {"en, de", "de", "fr;q=0.5, de; q=0.6", true}, {"en, de", "*", "*", false},
		{"en, de", "DE", "De;q=0.9, *;q=0.1", true}, {"en, de", "de", "de;q=2", false}, {"en, de", "de, en", "de", false},
	} {
		var calls atomic.Int64
		fields := []string{"Cache-Control: max-age=60", "Vary: Accept-Language"}
		if test.language != "" {
			fields = append(fields, "Content-Language: "+test.language)
		}
		h := cache.New(1 << 20).Handler(page(&calls, "x", fields...))
		get(h, "http://example.com/x", "Accept-Language: "+test.first)
		get(h, "http://example.com/x", "Accept-Language: "+test.second)
		want(t, test.second, calls.Load() == 1, test.reused)
	}
}

// fields makes a header of lines "Name: value".
func fields(lines string) http.Header {
	h := make(http.Header)
	for line := range strings.SplitSeq(lines, "\n") {
		if name, value, ok := strings.Cut(line, ":"); ok {
			h.Add(strings.TrimSpace(name), strings.TrimSpace(value))
		}
	}
	return h
}

// FuzzPolicy throws headers at the policy. None may crash it, and none may make a response fresher
// than the longest lifetime that it states, or than a day without one.
func FuzzPolicy(f *testing.F) {
	for _, h := range []string{
		"Cache-Control: max-age=60", "Cache-Control: s-maxage=99999999999999999999, private=\"a", "Age: 5\nAge: 6\nCache-Control: max-age=9",
		"Expires: Thu, 18 Aug 2050 02:01:18 GMT\nDate: Mon, 01 Jan 0001 00:00:00 GMT", "Cache-Control: ,,=,\"\\", "Vary: *,a\nETag: \"",
		"CDN-Cache-Control: max-age=1;a=(\nCache-Control: max-age=1", "Last-Modified: Mon, 01 Jan 0001 00:00:00 GMT\nDate: Fri, 31 Dec 9999 23:59:59 GMT",
		"Cache-Control: max-age=\"60\", no-cache=\"a, b\"\nSet-Cookie: a", "Cache-Control: stale-if-error=-1, stale-while-revalidate=1.5",
		"CDN-Cache-Control: max-age=999999999999999", "CDN-Cache-Control: a=:", "CDN-Cache-Control: a=%\"", "CDN-Cache-Control: @", "Age: 18446744073709551616",
	} {
		f.Add(200, h, "Cookie: a")
		f.Add(404, h, "Authorization: b\nCache-Control: max-stale")
	}
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, status int, header, request string) {
		r := httptest.NewRequest("GET", "http://example.com/x", nil)
		r.Header = fields(request)
		h := fields(header)
		v := cache.Judge(r, status, h, now.Add(-time.Second), now)
		const most = (1 << 31) * time.Second
		if v.Lifetime < 0 || v.Lifetime > most || v.InitialAge < 0 || v.InitialAge > most {
			t.Fatalf("lifetime %v, age %v: out of range", v.Lifetime, v.InitialAge)
		}
		if v.Store && (v.NoStore && !strings.Contains(strings.ToLower(header), "must-understand") || v.Private) {
			t.Fatalf("stored against its own words: %q", header)
		}
		if v.Share && !v.Store {
			t.Fatal("shared but not storable")
		}
		if v.Share {
			stated := v.SMaxAge
			if stated < 0 {
				stated = v.MaxAge
			}
			switch {
			case stated >= 0 && v.Lifetime > stated:
				t.Fatalf("lifetime %v, but it says %v", v.Lifetime, stated)
			case stated < 0 && len(h["Expires"]) == 0 && v.Lifetime > 24*time.Hour:
				t.Fatalf("a guess of %v", v.Lifetime)
			}
			if v.InitialAge < time.Second {
				t.Fatal("younger than the exchange was long")
			}
		}
		// A cache in front of it must stand it as well.
		c := cache.New(1 << 20)
		hd := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			for name, values := range h {
				w.Header()[name] = values
			}
			if status >= 200 && status <= 999 {
				w.WriteHeader(status)
			}
		}))
		for range 2 {
			hd.ServeHTTP(null{make(http.Header)}, r)
		}
	})
}

// FuzzConditions gives arbitrary conditions and ranges to a stored response: whatever the client
// gets must be right.
func FuzzConditions(f *testing.F) {
	for _, s := range []string{`If-None-Match: "v1"`, "Range: bytes=0-4", "Range: bytes=-3\nIf-Range: \"v1\"", "Range: bytes=4-2", "Range: bytes=0-0,2-3,9-",
		"Range: bytes=99999999999999999999-", "If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT", "Range: bytes = 0 - 1", "Range: lines=0-1", "Range: bytes=", "Range: bytes=--1", "Range: bytes=-0", "Range: bytes=0-1,-0", "Range: bytes=- 0", "Range: bytes=-0,-0", "Range: bytes=--0,0-"} {
		f.Add(s)
	}
	const body = "0123456789"
	h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "max-age=86400")
		w.Header().Set("Etag", `"v1"`)
		http.ServeContent(w, r, "x.txt", stamp, strings.NewReader(body))
	}))
	bare := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Etag", `"v1"`)
		http.ServeContent(w, r, "x.txt", stamp, strings.NewReader(body))
	})
	get(h, "http://example.com/x")
	f.Fuzz(func(t *testing.T, request string) {
		r := httptest.NewRequest("GET", "http://example.com/x", nil)
		r.Header = fields(request)
		for _, name := range []string{"Cache-Control", "Pragma", "Upgrade"} {
			r.Header.Del(name)
		}
		got, expected := httptest.NewRecorder(), httptest.NewRecorder()
		h.ServeHTTP(got, r)
		bare.ServeHTTP(expected, r)
		if len(r.Header["Range"]) > 0 && len(r.Header["Range"]) != 1 || strings.Count(r.Header.Get("Range"), ",") >= 4 {
			return // more ranges than the cache answers: the whole
		}
		if expected.Code == 206 && strings.HasPrefix(expected.Header().Get("Content-Type"), "multipart") {
			status, parts := 206, expected.Body.String() // the boundary is random
			if strings.Count(parts, "Content-Range: ") == strings.Count(parts, "Content-Range: bytes 10-") {
				status = 416 // the last 0 bytes, more than once
			}
			want(t, "status", got.Code, status)
			return
		}
		if strings.HasPrefix(expected.Header().Get("Content-Range"), "bytes 10-") { // of the last 0 bytes net/http makes a part that is none
			want(t, "status", got.Code, 416)
			return
		}
		if got.Code != expected.Code && !(len(r.Header["If-Modified-Since"]) > 0 || len(r.Header["If-None-Match"]) > 0) {
			t.Fatalf("%q: %d, want %d", request, got.Code, expected.Code)
		}
		if got.Code == expected.Code && got.Code != 416 && got.Body.String() != expected.Body.String() {
			t.Fatalf("%q: body %q, want %q", request, got.Body, expected.Body)
		}
	})
}

// Java's HTTP client and others offer HTTP/2 without TLS (h2c) with each request. They are answered from the cache as all others are, and what they
// offer is for nobody inside who fills it; websockets go their own way.
func TestOfferOfH2CIsNoUpgrade(t *testing.T) {
	var calls, offered int
	h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls++
		if r.Header.Get("Upgrade") != "" || r.Header.Get("HTTP2-Settings") != "" {
			offered++
		}
		w.Header().Set("Cache-Control", "max-age=60")
	}))
	offer := func(method, protocol string) *http.Response {
		return ask(h, method, "http://example.com/", "Connection: Upgrade, HTTP2-Settings", "Upgrade: "+protocol, "HTTP2-Settings: AAEAAEAAAAIAAAAB")
	}
	for i, c := range []struct {
		method, protocol string
		calls, offered   int
	}{
		{"GET", "h2c", 1, 0},
		{"GET", "H2C", 1, 0},
		{"HEAD", "h2c", 1, 0},
		{"GET", "websocket", 2, 1},
		{"GET", "h2c, websocket", 3, 2},
		{"POST", "h2c", 4, 3},
	} {
		offer(c.method, c.protocol)
		if calls != c.calls || offered != c.offered {
			t.Errorf("after %s with Upgrade: %s (%d): %d calls, %d with the offer; want %d and %d", c.method, c.protocol, i, calls, offered, c.calls, c.offered)
		}
	}
}

// FuzzKey checks that two requests share a key only if they ask for the same thing.
func FuzzKey(f *testing.F) {
	f.Add("/a?b", "/a?c", "h", "h:80")
	f.Add("/a%2fb", "/a/b", "h", "H")
	f.Add("b", "a/b", "h/a", "h") // HTTP/2 lets anything through as a host
	f.Fuzz(func(t *testing.T, a, b, hostA, hostB string) {
		ra, rb := httptest.NewRequest("GET", "/", nil), httptest.NewRequest("GET", "/", nil)
		ra.RequestURI, rb.RequestURI, ra.Host, rb.Host = "/"+a, "/"+b, hostA, hostB
		if strings.ContainsAny(hostA+hostB, `\`) {
			return // of two hosts that there cannot be it does not matter which is which
		}
		canon := func(h string) string { return strings.TrimSuffix(asciiLower(h), ":80") }
		if same := cache.Key(ra) == cache.Key(rb); same != (a == b && canon(hostA) == canon(hostB)) {
			t.Fatalf("%q at %q and %q at %q: same key: %v", a, hostA, b, hostB, same)
		}
	})
}

func asciiLower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

// Two requests whose fields differ within quotes are not answered with the same response (RFC 9111, section 4.1).
func TestVaryLooksIntoQuotes(t *testing.T) {
	h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "max-age=60")
		w.Header().Set("Vary", "X-Filter")
		io.WriteString(w, r.Header.Get("X-Filter"))
	}))
	for range 2 {
		for _, filter := range []string{`{"name":"Doe,John"}`, `{"name":"Doe, John"}`} {
			want(t, "filter", text(t, get(h, "http://example.com/x", "X-Filter: "+filter)), filter)
		}
	}
}

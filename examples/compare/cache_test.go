package compare

import (
	"bytes"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/gregjones/httpcache"

	"github.com/spillgate/spillgate/cache"
)

// origin answers every GET with a body that a cache may store. It counts its
// calls.
type origin struct {
	body  []byte
	calls int
}

func newOrigin(size int) *origin { return &origin{body: bytes.Repeat([]byte("x"), size)} }

func (o *origin) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	o.calls++
	h := w.Header()
	h["Cache-Control"] = []string{"public, max-age=3600"}
	h["Content-Type"] = []string{"text/plain"}
	h["Content-Length"] = []string{strconv.Itoa(len(o.body))}
	_, _ = w.Write(o.body)
}

func (o *origin) RoundTrip(r *http.Request) (*http.Response, error) {
	o.calls++
	return &http.Response{
		StatusCode: 200, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: r, ContentLength: int64(len(o.body)),
		Header: http.Header{"Cache-Control": {"public, max-age=3600"}, "Content-Type": {"text/plain"}, "Date": {"Sat, 21 Nov 2099 12:00:00 GMT"}},
		Body:   io.NopCloser(bytes.NewReader(o.body)),
	}, nil
}

// cacheMakers return a function that fetches one path and tells how many bytes
// it got.
var cacheMakers = []struct {
	name string
	make func(*origin) func(testing.TB) func(path string) int
}{
	{"baseline=bare-handler", func(o *origin) func(testing.TB) func(string) int { return fromHandler(uncounted(o)) }},
	{"spillgate", func(o *origin) func(testing.TB) func(string) int {
		return fromHandler(cache.New(256 << 20).Handler(o))
	}},
	// A private cache for a client: another job, and the only other HTTP cache
	// here that follows the RFC.
	{"gregjones,client-side", func(o *origin) func(testing.TB) func(string) int {
		tr := httpcache.NewMemoryCacheTransport()
		tr.Transport = o
		return func(tb testing.TB) func(string) int {
			return func(path string) int {
				r, err := http.NewRequest("GET", "http://origin.test"+path, nil)
				if err != nil {
					tb.Fatal(err)
				}
				res, err := tr.RoundTrip(r)
				if err != nil {
					tb.Fatal(err)
				}
				n, err := io.Copy(io.Discard, res.Body)
				res.Body.Close()
				if err != nil {
					tb.Fatal(err)
				}
				return int(n)
			}
		}
	}},
}

// uncounted is o without its counter, so that it may be called in parallel.
func uncounted(o *origin) http.Handler {
	length := []string{strconv.Itoa(len(o.body))}
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		h := w.Header()
		h["Cache-Control"] = []string{"public, max-age=3600"}
		h["Content-Type"] = []string{"text/plain"}
		h["Content-Length"] = length
		h["Age"] = []string{"0"}
		h["Cache-Status"] = []string{"x; hit; ttl=3600"}
		_, _ = w.Write(o.body)
	})
}

func fromHandler(h http.Handler) func(testing.TB) func(string) int {
	return func(tb testing.TB) func(string) int {
		w := newWriter()
		requests := map[string]*http.Request{}
		return func(path string) int {
			r := requests[path]
			if r == nil {
				r = newRequest(path)
				requests[path] = r
			}
			if got := w.serve(h, r); got != 200 {
				tb.Fatalf("status %d", got)
			}
			return w.body
		}
	}
}

func TestCache(t *testing.T) {
	for _, m := range cacheMakers {
		t.Run(m.name, func(t *testing.T) {
			o := newOrigin(1 << 10)
			fetch := m.make(o)(t)
			for range 3 {
				for _, path := range []string{"/a", "/b"} {
					if got := fetch(path); got != 1<<10 {
						t.Fatalf("%d bytes; want 1024", got)
					}
				}
			}
			if o.calls != 2 && !strings.HasPrefix(m.name, "baseline") {
				t.Errorf("%d calls of the origin for two paths; want 2", o.calls)
			}
		})
	}
}

// BenchmarkCache measures hits.
func BenchmarkCache(b *testing.B) {
	for _, size := range []int{1 << 10, 64 << 10} {
		for _, m := range cacheMakers {
			b.Run("hit/size="+strconv.Itoa(size>>10)+"KiB/"+m.name, func(b *testing.B) {
				o := newOrigin(size)
				make := m.make(o)
				make(b)("/")
				b.ReportAllocs()
				b.ResetTimer()
				b.RunParallel(func(pb *testing.PB) {
					fetch := make(b)
					for pb.Next() {
						if fetch("/") != size {
							b.Error("short body")
							return
						}
					}
				})
			})
		}
	}
	paths := make([]string, 10_000)
	for i := range paths {
		paths[i] = "/" + strconv.Itoa(i)
	}
	order := zipf(1<<16, len(paths))
	for _, m := range cacheMakers {
		b.Run("hit/urls=10k/"+m.name, func(b *testing.B) {
			fetch := m.make(newOrigin(1 << 10))(b)
			for _, p := range paths {
				fetch(p)
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				fetch(paths[order[i%len(order)]])
			}
		})
	}
}

package cache_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spillgate/spillgate/cache"
)

// bare is what a hit is measured against: a handler that sets the same fields and writes.
func bare(size int, calls *atomic.Int64) http.HandlerFunc {
	body := make([]byte, size)
	length := strconv.Itoa(size)
	date := time.Now().UTC().Format(http.TimeFormat)
	return func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		h := w.Header()
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Cache-Control", "public, max-age=3600")
		h.Set("Etag", `"0123456789abcdef"`)
		h.Set("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT")
		h.Set("Content-Length", length)
		h.Set("Date", date)
		h.Set("Age", "0")
		h.Set("Cache-Status", "spillgate; hit; ttl=3588")
		w.Write(body)
	}
}

// browser makes a request as it comes from a browser: its fields, and of the URL what the request line has.
func browser(url string) *http.Request {
	r := httptest.NewRequest("GET", url, nil)
	r.RequestURI = r.URL.RequestURI()
	r.Header.Set("User-Agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0")
	r.Header.Set("Accept", "text/html,application/xhtml+xml")
	r.Header.Set("Accept-Language", "en-US,en;q=0.5")
	r.Header.Set("Accept-Encoding", "gzip, deflate, br")
	return r
}

func serial(b *testing.B, h http.Handler, r *http.Request) {
	w := null{make(http.Header)}
	h.ServeHTTP(w, r)
	b.ReportAllocs()
	for b.Loop() {
		clear(w.h)
		h.ServeHTTP(w, r)
	}
}

func parallel(b *testing.B, h http.Handler, url string) {
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		w, r := null{make(http.Header)}, browser(url)
		for pb.Next() {
			clear(w.h)
			h.ServeHTTP(w, r)
		}
	})
}

func BenchmarkHit(b *testing.B) {
	for _, size := range []int{1 << 10, 64 << 10} {
		for _, with := range []string{"bare", "cache", "relay"} {
			var calls atomic.Int64
			var h http.Handler = bare(size, &calls)
			switch with {
			case "cache":
				h = cache.New(64 << 20).Handler(h)
			case "relay":
				c := cache.New(64<<20, cache.WithRelay(&line{journal: newJournal()}))
				h = c.Handler(h)
				ctx, cancel := context.WithCancel(context.Background())
				done := make(chan struct{})
				go func() { defer close(done); c.Follow(ctx) }()
				defer func() { cancel(); <-done }()
			}
			b.Run(fmt.Sprintf("size=%dKiB/serial/%s", size>>10, with), func(b *testing.B) {
				serial(b, h, browser("http://example.com/a/page.html?id=12345"))
			})
			b.Run(fmt.Sprintf("size=%dKiB/parallel/%s", size>>10, with), func(b *testing.B) {
				parallel(b, h, "http://example.com/a/page.html?id=12345")
			})
		}
	}
}

func BenchmarkHitZipf(b *testing.B) {
	const keys = 100_000
	// One request, and only its URL changes: the benchmark is of the cache, not of 100,000 requests
	// that lie around in memory.
	urls := make([]string, keys)
	for i := range urls {
		urls[i] = "/a/page.html?id=" + strconv.Itoa(i)
	}
	aim := func(r *http.Request, i uint64) *http.Request {
		r.RequestURI, r.URL.RawQuery = urls[i], urls[i][len("/a/page.html?"):]
		return r
	}
	for _, with := range []string{"bare", "cache"} {
		var calls atomic.Int64
		var h http.Handler = bare(1<<10, &calls)
		if with == "cache" {
			h = cache.New(1 << 30).Handler(h)
			w, r := null{make(http.Header)}, browser("http://example.com/a/page.html?id=1")
			for i := range urls {
				clear(w.h)
				h.ServeHTTP(w, aim(r, uint64(i)))
			}
		}
		b.Run("keys=100k/serial/"+with, func(b *testing.B) {
			zipf := rand.NewZipf(rand.New(rand.NewPCG(1, 2)), 1.1, 1, keys-1)
			w, r := null{make(http.Header)}, browser("http://example.com/a/page.html?id=1")
			b.ReportAllocs()
			for b.Loop() {
				clear(w.h)
				h.ServeHTTP(w, aim(r, zipf.Uint64()))
			}
		})
		b.Run("keys=100k/parallel/"+with, func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				zipf := rand.NewZipf(rand.New(rand.NewPCG(rand.Uint64(), 2)), 1.1, 1, keys-1)
				w, r := null{make(http.Header)}, browser("http://example.com/a/page.html?id=1")
				for pb.Next() {
					clear(w.h)
					h.ServeHTTP(w, aim(r, zipf.Uint64()))
				}
			})
		})
	}
}

func BenchmarkHitConditional(b *testing.B) {
	content := strings.NewReader(strings.Repeat("x", 64<<10))
	serve := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Etag", `"v1"`)
		w.Header().Set("Cache-Control", "max-age=3600")
		w.Header().Set("Content-Type", "text/plain")
		content.Seek(0, io.SeekStart)
		http.ServeContent(w, r, "", stamp, content)
	})
	for name, field := range map[string][2]string{"304": {"If-None-Match", `"v1"`}, "range": {"Range", "bytes=100-1123"}} {
		for _, with := range []string{"bare", "cache"} {
			var h http.Handler = serve
			if with == "cache" {
				h = cache.New(64 << 20).Handler(h)
				h.ServeHTTP(null{make(http.Header)}, browser("http://example.com/x"))
			}
			b.Run(name+"/"+with, func(b *testing.B) {
				r := browser("http://example.com/x")
				r.Header.Set(field[0], field[1])
				serial(b, h, r)
			})
		}
	}
}

// BenchmarkMiss shows what the cache costs where it does not help: a response that is stored, each
// time under another key; one that may not be stored; and the same on a key that is known for it.
func BenchmarkMiss(b *testing.B) {
	var calls atomic.Int64
	urls := make([]*http.Request, 1<<16)
	for i := range urls {
		urls[i] = browser("http://example.com/a/page.html?id=" + strconv.Itoa(i))
	}
	for _, test := range []struct {
		name string
		h    http.Handler
	}{
		{"stored", bare(1<<10, &calls)},
		{"refused", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) })},
	} {
		for _, with := range []string{"bare", "cache"} {
			h := test.h
			if with == "cache" {
				h = cache.New(4 << 20).Handler(h)
			}
			b.Run(test.name+"/"+with, func(b *testing.B) {
				w := null{make(http.Header)}
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					clear(w.h)
					h.ServeHTTP(w, urls[i%len(urls)])
				}
			})
		}
	}
	for _, with := range []string{"bare", "cache"} {
		var h http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) })
		if with == "cache" {
			h = cache.New(4 << 20).Handler(h)
		}
		b.Run("marked/"+with, func(b *testing.B) { serial(b, h, browser("http://example.com/api")) })
	}
}

func BenchmarkCollapse(b *testing.B) {
	const clients = 1000
	body := make([]byte, 16<<10)
	for _, with := range []string{"bare", "cache"} {
		b.Run("clients=1000/"+with, func(b *testing.B) {
			var calls, n atomic.Int64
			var h http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				calls.Add(1)
				w.Header().Set("Cache-Control", "max-age=3600")
				w.Write(body)
			})
			if with == "cache" {
				h = cache.New(64 << 20).Handler(h)
			}
			b.ReportAllocs()
			for b.Loop() {
				url := "http://example.com/x?" + strconv.FormatInt(n.Add(1), 10)
				var wg sync.WaitGroup
				for range clients {
					wg.Go(func() { h.ServeHTTP(null{make(http.Header)}, httptest.NewRequest("GET", url, nil)) })
				}
				wg.Wait()
			}
			b.ReportMetric(float64(calls.Load())/float64(n.Load()), "calls/op")
		})
	}
}

// BenchmarkEndToEnd asks over loopback connections; clients and server share the processors.
func BenchmarkEndToEnd(b *testing.B) {
	for _, size := range []int{1 << 10, 64 << 10} {
		for _, with := range []string{"bare", "cache"} {
			var calls atomic.Int64
			var h http.Handler = bare(size, &calls)
			if with == "cache" {
				h = cache.New(64 << 20).Handler(h)
			}
			srv := httptest.NewServer(h)
			b.Run(fmt.Sprintf("size=%dKiB/%s", size>>10, with), func(b *testing.B) {
				b.SetParallelism(8)
				b.RunParallel(func(pb *testing.PB) {
					conn, err := net.Dial("tcp", srv.Listener.Addr().String())
					if err != nil {
						b.Error(err)
						return
					}
					defer conn.Close()
					br := bufio.NewReaderSize(conn, 64<<10)
					for pb.Next() {
						io.WriteString(conn, "GET /page.html HTTP/1.1\r\nHost: example.com\r\nAccept: */*\r\n\r\n")
						for {
							line, err := br.ReadSlice('\n')
							if err != nil {
								b.Error(err)
								return
							}
							if len(line) == 2 {
								break
							}
						}
						if _, err := br.Discard(size); err != nil {
							b.Error(err)
							return
						}
					}
				})
			})
			srv.Close()
		}
	}
}

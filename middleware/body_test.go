package middleware_test

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/cache"
	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware"
	"github.com/spillgate/spillgate/pool"
)

// net/http looks at the body of its own request: whether the client waits for 100 Continue, and whether the handler has closed the
// body with something left in it, which is not to be taken for the next request.
func TestTheServersOwnRequestKeepsItsBody(t *testing.T) {
	const large = 300_000 // more than net/http reads to keep a connection
	smuggled := "GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
	layers := map[string]func(http.Handler) http.Handler{
		"bare":        func(h http.Handler) http.Handler { return h },
		"concurrency": middleware.Concurrency(limiter.NewConcurrency(9)).Handler,
		"breaker":     middleware.Breaker(breaker.NewGroup()).Handler,
		"pool": middleware.Chain(middleware.Pool(pool.New()).Handler, middleware.Breaker(breaker.NewGroup()).Handler,
			middleware.Concurrency(limiter.NewConcurrency(9)).Handler),
		"all five": allFive().Handler,
		"defaults": func(h http.Handler) http.Handler { return middleware.Wrap(h) },
	}
	for name, wrap := range layers {
		for _, c := range []struct {
			name, head, body string
			handler          http.HandlerFunc
		}{
			{"a body closed early", fmt.Sprint("Content-Length: ", large), smuggled + strings.Repeat("x", large-len(smuggled)),
				func(w http.ResponseWriter, r *http.Request) { r.Body.Close() }},
			{"100 Continue never asked for", fmt.Sprint("Expect: 100-continue\r\nContent-Length: ", large), "",
				func(http.ResponseWriter, *http.Request) {}},
			{"100 Continue never asked for, answered within the handler", fmt.Sprint("Expect: 100-continue\r\nContent-Length: ", large), "",
				func(w http.ResponseWriter, r *http.Request) { w.(http.Flusher).Flush() }},
		} {
			t.Run(name+", "+c.name, func(t *testing.T) {
				t.Parallel()
				var paths []string
				mux := http.NewServeMux()
				mux.HandleFunc("POST /up", func(w http.ResponseWriter, r *http.Request) {
					paths = append(paths, r.URL.Path)
					c.handler(w, r)
				})
				mux.HandleFunc("/smuggled", func(w http.ResponseWriter, r *http.Request) { paths = append(paths, r.URL.Path) })
				s, _ := serve(t, wrap(mux), false)
				conn := dial(t, s)
				if _, err := io.WriteString(conn, "POST /up HTTP/1.1\r\nHost: h\r\n"+c.head+"\r\n\r\n"+c.body); err != nil {
					t.Fatal(err)
				}
				br := bufio.NewReader(conn)
				res, err := http.ReadResponse(br, nil)
				if err != nil {
					t.Fatal(err)
				}
				_, err = io.Copy(io.Discard, res.Body)
				if err != nil || res.StatusCode != 200 || !res.Close {
					t.Errorf("%s, Connection: close %v, %v; want 200 and the connection closed", res.Status, res.Close, err)
				}
				if again, err := http.ReadResponse(br, nil); err == nil {
					t.Errorf("a second answer: %s", again.Status)
				}
				conn.Close()
				s.Close()
				if len(paths) != 1 {
					t.Errorf("requests for %q; want one for /up", paths)
				}
			})
		}
	}
}

// What a mux and a handler find out about a request is known to the functions that are asked after it, whatever was passed on in its place.
func TestWhatIsKnownOfARequestWithABody(t *testing.T) {
	seen := func(r *http.Request) string {
		return fmt.Sprintf("%s id=%s rest=%s user=%s", r.Pattern, r.PathValue("id"), r.PathValue("rest"), r.PostForm.Get("user"))
	}
	for name, layer := range map[string]middleware.Layer{
		"none":        nil,
		"concurrency": middleware.Concurrency(limiter.NewConcurrency(9)),
		"pool":        middleware.Pool(pool.New()),
		"buffer":      middleware.BufferBody(4),
		"for":         middleware.For("/", middleware.Concurrency(limiter.NewConcurrency(9)), middleware.Pool(pool.New())),
	} {
		t.Run(name, func(t *testing.T) {
			const want = "POST /item/{id}/{rest...} id=7 rest=a/b user=me"
			var classified, done string
			layers := []middleware.Layer{
				middleware.Breaker(breaker.NewGroup(), middleware.WithClassify(func(r *http.Request, _ int, _ error) breaker.Outcome {
					classified = seen(r)
					return breaker.Success
				})),
				middleware.WithTrace(&middleware.Trace{Done: func(r *http.Request, _ middleware.Result) { done = seen(r) }}),
			}
			if layer != nil {
				layers = append(layers, layer)
			}
			mux := http.NewServeMux()
			mux.HandleFunc("POST /item/{id}/{rest...}", func(w http.ResponseWriter, r *http.Request) { r.ParseForm() })
			r := httptest.NewRequest("POST", "/item/7/a/b", strings.NewReader("user=me"))
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			middleware.Wrap(mux, layers...).ServeHTTP(httptest.NewRecorder(), r)
			if classified != want || done != want {
				t.Errorf("classified as %q, and done as %q; want %q", classified, done, want)
			}
		})
	}
}

// So it is where a cache passes on another request.
func TestWhatIsKnownOfARequestThroughACache(t *testing.T) {
	for name, layers := range map[string][]middleware.Layer{
		"alone":                {middleware.Cache(cache.New(1 << 20))},
		"outside of the rest":  middleware.Defaults(),
		"with a pool":          append(middleware.Defaults(), middleware.Pool(pool.New())),
		"what is inside skips": append(middleware.Defaults()[:1], middleware.Concurrency(limiter.NewConcurrency(9), middleware.WithSkip(func(*http.Request) bool { return true }))),
	} {
		t.Run(name, func(t *testing.T) {
			var done string
			layers = append(layers, middleware.WithTrace(&middleware.Trace{Done: func(r *http.Request, _ middleware.Result) {
				done = fmt.Sprintf("%s id=%s user=%s", r.Pattern, r.PathValue("id"), r.Form.Get("user"))
			}}))
			mux := http.NewServeMux()
			mux.HandleFunc("GET /item/{id}", func(w http.ResponseWriter, r *http.Request) { r.ParseForm() })
			middleware.Wrap(mux, layers...).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/item/7?user=me", nil))
			if want := "GET /item/{id} id=7 user=me"; done != want {
				t.Errorf("done as %q, want %q", done, want)
			}
		})
	}
}

func TestTrailersOfARequestReachTheHandler(t *testing.T) {
	for name, wrap := range map[string]func(http.Handler) http.Handler{
		"bare":        func(h http.Handler) http.Handler { return h },
		"concurrency": middleware.Concurrency(limiter.NewConcurrency(9)).Handler,
		"pool":        middleware.Pool(pool.New()).Handler,
		"buffer":      middleware.BufferBody(9).Handler,
		"all five":    allFive().Handler,
		"all of them": func(h http.Handler) http.Handler {
			return middleware.Wrap(h, append(middleware.Defaults(), middleware.BufferBody(9))...)
		},
	} {
		for _, announced := range []string{"", "Trailer: Sum\r\n"} {
			t.Run(name+" "+announced, func(t *testing.T) {
				s, _ := serve(t, wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					io.Copy(io.Discard, r.Body)
					io.WriteString(w, r.Trailer.Get("Sum"))
				})), false)
				conn := dial(t, s)
				fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n%s\r\n1\r\nx\r\n0\r\nSum: 1\r\n\r\n", announced)
				res, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err != nil {
					t.Fatal(err)
				}
				if b, err := io.ReadAll(res.Body); string(b) != "1" {
					t.Errorf("the handler sees %q, %v; want the trailer", b, err)
				}
			})
		}
	}
}

// sealed is a body that sets the trailers of its request at the end, in a map of their own, as an HTTP/3 server does.
type sealed struct {
	io.Reader
	r    *http.Request
	sent http.Header
}

func (s *sealed) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	if err == io.EOF {
		s.r.Trailer = s.sent
	}
	return n, err
}

func (s *sealed) Close() error { return nil }

func TestTrailersInAMapOfTheirOwn(t *testing.T) {
	for name, wrap := range map[string]func(http.Handler) http.Handler{
		"concurrency": middleware.Concurrency(limiter.NewConcurrency(9)).Handler,
		"pool":        middleware.Pool(pool.New()).Handler,
		"buffer":      middleware.BufferBody(9).Handler,
		"small buffer": func(h http.Handler) http.Handler {
			return middleware.Wrap(h, append(middleware.Defaults(), middleware.BufferBody(1))...)
		},
		"all five": allFive().Handler,
		"all of them": func(h http.Handler) http.Handler {
			return middleware.Wrap(h, append(middleware.Defaults(), middleware.BufferBody(9))...)
		},
	} {
		for _, length := range []int64{-1, 4} {
			for announced, trailer := range map[string]http.Header{"": nil, ", announced": {"Sum": nil}} {
				r := httptest.NewRequest("POST", "/", nil)
				r.ProtoMajor, r.ContentLength, r.Trailer = 3, length, trailer
				r.Body = &sealed{strings.NewReader("body"), r, http.Header{"Sum": {"1"}}}
				var got string
				wrap(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
					b, err := io.ReadAll(r.Body)
					got = fmt.Sprint(string(b), err, r.Trailer)
				})).ServeHTTP(httptest.NewRecorder(), r)
				if want := "body<nil> map[Sum:[1]]"; got != want {
					t.Errorf("%s, length %d%s: the handler sees %s; want %s", name, length, announced, got, want)
				}
			}
		}
	}
}

// Whatever a handler does with a body and whatever a client sends as one, what is on the connection is the same with and without the layers,
// and so are the requests that are taken from it. (A handler that puts another body into its request is served better: it has a copy.)
// With BufferBody the server may wait for a body and keep the connection, where it would not; but no more requests are taken from it.
func TestBodiesOnTheWire(t *testing.T) {
	readAll := func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n, err, r.Trailer)
	}
	handlers := map[string]http.HandlerFunc{
		"nothing":    func(http.ResponseWriter, *http.Request) {},
		"writes":     func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") },
		"closes":     func(_ http.ResponseWriter, r *http.Request) { r.Body.Close() },
		"reads some": func(_ http.ResponseWriter, r *http.Request) { io.CopyN(io.Discard, r.Body, 1000) },
		"writes much, reads some and closes": func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, strings.Repeat("y", 10_000))
			io.CopyN(io.Discard, r.Body, 1000)
			r.Body.Close()
		},
		"reads":             readAll,
		"reads a form":      func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.ParseForm()) },
		"reads after Close": func(w http.ResponseWriter, r *http.Request) { r.Body.Close(); readAll(w, r) },
		"reads after 100":   func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusContinue); readAll(w, r) },
		"reads after 103":   func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusEarlyHints); readAll(w, r) },
		"reads after Flush": func(w http.ResponseWriter, r *http.Request) { w.(http.Flusher).Flush(); readAll(w, r) },
		"reads after Flush, full duplex": func(w http.ResponseWriter, r *http.Request) {
			http.NewResponseController(w).EnableFullDuplex()
			w.(http.Flusher).Flush()
			readAll(w, r)
		},
		"refuses":             func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusRequestEntityTooLarge) },
		"ends the connection": func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Connection", "close") },
		"panics":              func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	}
	bodies := map[string]string{
		"bad chunks":   "Transfer-Encoding: chunked\r\n\r\nzz\r\nx\r\n0\r\n\r\n",
		"with trailer": "Transfer-Encoding: chunked\r\nTrailer: Sum\r\n\r\n1\r\nx\r\n0\r\nSum: 1\r\n\r\n",
	}
	for _, n := range []int{0, 100, 2000, 300_000} {
		b := "GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" + strings.Repeat("x", n)
		if n == 0 {
			b = ""
		}
		for _, expect := range []string{"", "Expect: 100-continue\r\n"} {
			bodies[fmt.Sprint(expect, n)] = fmt.Sprintf("%sContent-Length: %d\r\n\r\n%s", expect, len(b), b)
			if n > 0 {
				bodies[fmt.Sprint(expect, n, " in chunks")] = fmt.Sprintf("%sTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", expect, len(b), b)
			}
		}
	}
	varies := regexp.MustCompile(`(?m)^(Date|Ratelimit|Ratelimit-Policy|Cache-Status): .*\r\n`)
	answersOf := func(t *testing.T, h http.Handler, body string) string {
		s, _ := serve(t, h, false)
		defer s.Close() // when all handlers have returned
		conn := dial(t, s)
		var sending sync.WaitGroup
		defer sending.Wait() // until the connection is closed, where the server has not taken all
		sending.Go(func() {
			io.WriteString(conn, "POST /up HTTP/1.1\r\nHost: h\r\n"+body+"GET /next HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
		})
		answers, _ := io.ReadAll(conn) // it may be reset at its end, by what was sent and not read
		conn.Close()
		return varies.ReplaceAllString(string(answers), "")
	}
	for does, h := range handlers {
		for of, body := range bodies {
			t.Run(does+", "+of, func(t *testing.T) {
				t.Parallel()
				var want, wantPaths string
				for _, c := range []struct {
					name string
					wrap func(http.Handler) http.Handler
				}{
					{"bare", func(h http.Handler) http.Handler { return h }},
					{"defaults", func(h http.Handler) http.Handler { return middleware.Wrap(h) }},
					{"all five", allFive().Handler},
					{"buffered", func(h http.Handler) http.Handler {
						return middleware.Wrap(h, append(middleware.Defaults(), middleware.BufferBody(1<<10))...)
					}},
				} {
					var mu sync.Mutex
					var paths []string
					saw := func(r *http.Request) {
						mu.Lock()
						defer mu.Unlock()
						paths = append(paths, r.Method+" "+r.URL.Path)
					}
					mux := http.NewServeMux()
					mux.HandleFunc("/", func(_ http.ResponseWriter, r *http.Request) { saw(r) })
					mux.HandleFunc("/up", func(w http.ResponseWriter, r *http.Request) { saw(r); h(w, r) })
					answers := answersOf(t, c.wrap(mux), body)
					if c.name == "bare" {
						want, wantPaths = answers, fmt.Sprint(paths)
					} else if c.name == "buffered" {
						if got := fmt.Sprint(paths); got != "[POST /up GET /next]" && got != "[POST /up]" {
							t.Errorf("%s: requests %v", c.name, paths)
						}
					} else if answers != want || fmt.Sprint(paths) != wantPaths {
						t.Errorf("%s: requests %v, answers %.500q; want %s, %.500q", c.name, paths, answers, wantPaths, want)
					}
				}
			})
		}
	}
}

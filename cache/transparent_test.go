package cache_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/cache"
)

// exchange is everything that a client sees of a response.
type exchange struct {
	status   int
	header   string
	body     string
	bodyErr  bool
	trailer  string
	interims string
}

func see(t *testing.T, c *http.Client, method, url string, fields ...string) exchange {
	t.Helper()
	var interims []string
	trace := &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
		interims = append(interims, fmt.Sprint(code, h))
		return nil
	}}
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), trace), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		req.Header.Add(name, value)
	}
	res, err := c.Do(req)
	if err != nil {
		return exchange{status: -1}
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	// What the cache adds, and what is different each second.
	for _, name := range []string{"Date", "Age", "Cache-Status"} {
		res.Header.Del(name)
	}
	return exchange{res.StatusCode, fmt.Sprint(res.Header, res.ContentLength, res.TransferEncoding), string(body), err != nil,
		fmt.Sprint(res.Trailer), strings.Join(interims, "|")}
}

// TestTransparent compares what a client sees of handlers with and without the cache, on a first,
// a second and a third request. Nothing here may be stored, so nothing may differ.
func TestTransparent(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file.txt")
	if err := os.WriteFile(file, []byte(strings.Repeat("0123456789", 10_000)), 0o600); err != nil {
		t.Fatal(err)
	}
	handlers := map[string]http.HandlerFunc{
		"nothing":      func(w http.ResponseWriter, r *http.Request) {},
		"status alone": func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(418) },
		"204":          func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204); w.Write([]byte("x")) },
		"small":        func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "<html>") },
		"large":        func(w http.ResponseWriter, r *http.Request) { w.Write(make([]byte, 100_000)) },
		"error":        func(w http.ResponseWriter, r *http.Request) { http.Error(w, "no", 500) },
		"redirect":     func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", 302) },
		"ServeFile": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "no-store")
			http.ServeFile(w, r, file)
		},
		"no sniffing":  func(w http.ResponseWriter, r *http.Request) { w.Header()["Content-Type"] = nil; io.WriteString(w, "x") },
		"two statuses": func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(404); w.WriteHeader(200) },
		"late header":  func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(200); w.Header().Set("X-Late", "1") },
		"declared short": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "9")
			io.WriteString(w, "x")
		},
		"declared long": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "2")
			_, err := io.WriteString(w, "xyz")
			w.Header().Set("X-Err", fmt.Sprint(err))
		},
		"flushes": func(w http.ResponseWriter, r *http.Request) {
			for range 3 {
				io.WriteString(w, "x")
				w.(http.Flusher).Flush()
			}
		},
		"server-sent events": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			w.Header().Set("Cache-Control", "max-age=60")
			for range 3 {
				io.WriteString(w, "data: x\n\n")
				w.(http.Flusher).Flush()
			}
		},
		"trailers": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Trailer", "X-Sum")
			io.WriteString(w, "x")
			w.Header().Set("X-Sum", "1")
		},
		"trailers unannounced": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "max-age=60")
			io.WriteString(w, "x")
			w.(http.Flusher).Flush()
			w.Header().Set(http.TrailerPrefix+"X-Sum", "1")
		},
		"early hints": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Link", "</a.css>")
			w.WriteHeader(103)
			io.WriteString(w, "x")
		},
		"ReadFrom": func(w http.ResponseWriter, r *http.Request) {
			io.Copy(w, strings.NewReader(strings.Repeat("x", 50_000)))
		},
		"panic": func(w http.ResponseWriter, r *http.Request) { panic("x") },
		"abort": func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "x")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		},
		"abort of something storable": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "max-age=60")
			io.WriteString(w, "x")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		},
		"what the writer can do": func(w http.ResponseWriter, r *http.Request) {
			_, f := w.(http.Flusher)
			_, h := w.(http.Hijacker)
			_, p := w.(http.Pusher)
			_, rf := w.(io.ReaderFrom)
			rc := http.NewResponseController(w)
			fmt.Fprint(w, f, h, p, rf, rc.SetReadDeadline(time.Time{}), rc.SetWriteDeadline(time.Time{}), rc.Flush())
			if r.ProtoMajor == 1 {
				fmt.Fprint(w, rc.EnableFullDuplex())
			}
		},
		"what the handler sees": func(w http.ResponseWriter, r *http.Request) {
			_, deadline := r.Context().Deadline()
			h := r.Header.Clone()
			fmt.Fprint(w, r.Method, r.URL, r.Host != "", r.RequestURI, h, r.Body == http.NoBody, deadline,
				r.Context().Value(http.ServerContextKey) != nil, r.Context().Value(http.LocalAddrContextKey) != nil, w.Header())
		},
	}
	requests := []struct {
		method string
		fields []string
	}{
		{"GET", nil}, {"HEAD", nil}, {"GET", []string{"Range: bytes=5-9"}}, {"POST", nil}, {"OPTIONS", nil},
		{"GET", []string{"If-Modified-Since: Thu, 18 Aug 2050 02:01:18 GMT"}}, {"GET", []string{"Authorization: x"}},
	}
	for _, proto := range []string{"HTTP/1.1", "HTTP/2"} {
		for name, handler := range handlers {
			t.Run(proto+"/"+name, func(t *testing.T) {
				serve := func(h http.Handler) *httptest.Server {
					srv := httptest.NewUnstartedServer(h)
					srv.Config.ErrorLog = quiet
					if srv.EnableHTTP2 = proto == "HTTP/2"; srv.EnableHTTP2 {
						srv.StartTLS()
					} else {
						srv.Start()
					}
					t.Cleanup(srv.Close)
					return srv
				}
				without := serve(handler)
				for _, req := range requests {
					// The default, and the way that middleware.Defaults uses it.
					for _, opts := range [][]cache.Option{nil, {cache.WithOnlyExplicit()}} {
						with := serve(cache.New(1<<20, opts...).Handler(handler))
						expected := see(t, without.Client(), req.method, without.URL+"/x?y", req.fields...)
						for i := range 3 {
							if got := see(t, with.Client(), req.method, with.URL+"/x?y", req.fields...); got != expected {
								t.Errorf("%s %v, request %d:\n got %+v\nwant %+v", req.method, req.fields, i+1, got, expected)
							}
						}
						with.Close()
					}
				}
			})
		}
	}
}

// TestStoredLooksTheSame compares the handler's own answer with the ones from the store.
func TestStoredLooksTheSame(t *testing.T) {
	for name, handler := range map[string]http.HandlerFunc{
		"small":     func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "<html>") },
		"in pieces": func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "<"); io.WriteString(w, "html>") },
		"in pieces, large": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "5006")
			for range 5000 {
				io.WriteString(w, "\n")
			}
			io.WriteString(w, "<html>")
		},
		"empty":     func(w http.ResponseWriter, r *http.Request) {},
		"204":       func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) },
		"redirect":  func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/x", 301) },
		"not found": http.NotFound,
		"json": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.Header()["X-Two"] = []string{"1", "2"}
			io.WriteString(w, "{}")
		},
		"no type": func(w http.ResponseWriter, r *http.Request) { w.Header()["Content-Type"] = nil; io.WriteString(w, "x") },
		"declared": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "10000")
			w.Write(make([]byte, 10_000))
		},
	} {
		t.Run(name, func(t *testing.T) {
			var calls atomic.Int64
			counted := func(w http.ResponseWriter, r *http.Request) {
				calls.Add(1)
				w.Header().Set("Cache-Control", "max-age=60")
				handler(w, r)
			}
			srv := httptest.NewServer(cache.New(1 << 20).Handler(http.HandlerFunc(counted)))
			defer srv.Close()
			c := srv.Client()
			c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
			for _, method := range []string{"GET", "HEAD"} {
				if name == "204" && method == "HEAD" {
					calls.Add(1) // Go's client reports another length for a HEAD, whoever answers
					continue
				}
				first := see(t, c, "GET", srv.URL+"/"+method)
				second := see(t, c, method, srv.URL+"/"+method)
				if method == "HEAD" {
					first.body = ""
				}
				if first != second {
					t.Errorf("%s:\nfirst  %+v\nsecond %+v", method, first, second)
				}
			}
			want(t, "calls", calls.Load(), 2)
		})
	}
}

// The type of a response that states none goes by what net/http would have had of it when it had to send the header, for
// its own client and with a hit.
func TestTypeOfAResponseInPieces(t *testing.T) {
	for _, test := range []struct {
		name, first, rest string
		flushed           bool
		typ               string
	}{
		{"the first 512 bytes", "<", "html>", false, "text/html; charset=utf-8"},
		{"what was there at the first flush", "<", "html>", true, "text/plain; charset=utf-8"},
		{"none where that was nothing", "", "<html>", true, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Cache-Control", "max-age=60")
				io.WriteString(w, test.first)
				if test.flushed {
					w.(http.Flusher).Flush()
				}
				io.WriteString(w, test.rest)
				w.(http.Flusher).Flush()
			})
			bare := httptest.NewServer(handler)
			defer bare.Close()
			s := httptest.NewServer(cache.New(1 << 20).Handler(handler))
			defer s.Close()
			for _, url := range []string{bare.URL, s.URL, s.URL} {
				res, err := http.Get(url)
				if err != nil {
					t.Fatal(err)
				}
				body, _ := io.ReadAll(res.Body)
				res.Body.Close()
				want(t, "Content-Type, "+res.Header.Get("Cache-Status"), res.Header.Get("Content-Type"), test.typ)
				want(t, "body", string(body), "<html>")
			}
		})
	}
}

func TestHijackAndUpgrade(t *testing.T) {
	for _, fields := range []string{"", "Connection: Upgrade\r\nUpgrade: websocket\r\n"} {
		srv := httptest.NewServer(cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			conn, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\n\r\n")
			line, _ := rw.ReadString('\n')
			io.WriteString(conn, "echo "+line)
		})))
		for range 2 {
			conn, err := net.Dial("tcp", srv.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(conn, "GET /x HTTP/1.1\r\nHost: h\r\n"+fields+"\r\nhello\n")
			b, _ := io.ReadAll(bufio.NewReader(conn))
			want(t, "hijacked", strings.HasSuffix(string(b), "echo hello\n"), true)
			conn.Close()
		}
		srv.Close()
	}
}

// A writer that can push and not flush, as that of [http.TimeoutHandler], is no more for a handler inside the cache.
func TestInsideTimeoutHandler(t *testing.T) {
	for _, method := range []string{"GET", "POST"} {
		seen := func(wrap func(http.Handler) http.Handler) (can string) {
			ask(http.TimeoutHandler(wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, flush := w.(http.Flusher)
				_, push := w.(http.Pusher)
				_, hijack := w.(http.Hijacker)
				can = fmt.Sprintf("flush %v push %v hijack %v: %v", flush, push, hijack, http.NewResponseController(w).Flush())
			})), time.Minute, ""), method, "http://example.com/x")
			return can
		}
		bare := seen(func(h http.Handler) http.Handler { return h })
		want(t, method, seen(func(h http.Handler) http.Handler { return cache.New(1 << 20).Handler(h) }), bare)
	}
}

// onlyUnwraps is what is often put around a handler to log the status: it unwraps, and has no other optional method.
type onlyUnwraps struct{ http.ResponseWriter }

func (w onlyUnwraps) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// controlled is a client's writer that can flush and hijack, and notes what a controller had of it.
type controlled struct {
	*httptest.ResponseRecorder
	flushed  string
	hijacked bool
}

func (w *controlled) Flush() {
	w.ResponseRecorder.Flush()
	w.flushed = w.Body.String()
}

func (w *controlled) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	w.hijacked = true
	return nil, nil, nil
}

// [http.ResponseController] looks further in than the writer that a handler has: it must not get past the cache.
func TestControllersBehindAWriterThatOnlyUnwraps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var act func(w http.ResponseWriter)
		h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, can := w.(http.Flusher); can {
				t.Error("the writer can flush, and the one below cannot")
			}
			if _, can := w.(http.Hijacker); can {
				t.Error("the writer can be hijacked, and the one below cannot")
			}
			w.Header().Set("Cache-Control", "max-age=1")
			w.Header().Set("Etag", fmt.Sprintf("%q", time.Now()))
			act(w)
		}))
		ask := func(url string, fields ...string) *controlled {
			r := httptest.NewRequest("GET", url, nil)
			for _, f := range fields {
				name, value, _ := strings.Cut(f, ": ")
				r.Header.Add(name, value)
			}
			w := &controlled{ResponseRecorder: httptest.NewRecorder()}
			h.ServeHTTP(onlyUnwraps{w}, r)
			return w
		}

		var w *controlled
		act = func(rw http.ResponseWriter) {
			io.WriteString(rw, "first,")
			if err := http.NewResponseController(rw).Flush(); err != nil {
				t.Error(err)
			}
			io.WriteString(rw, "last")
		}
		w = ask("http://example.com/flush")
		want(t, "flushed", w.flushed != "", true)
		want(t, "body", w.Body.String(), "first,last")
		want(t, "of a flush, stored", ask("http://example.com/flush").Header().Get("Cache-Status"), "spillgate; hit; ttl=1")

		time.Sleep(2 * time.Second) // in a synctest bubble
		w = ask("http://example.com/flush", "Range: bytes=6-9")
		want(t, "status of a range of what is stored now", w.Code, http.StatusPartialContent)
		want(t, "range", w.Body.String(), "last")

		act = func(rw http.ResponseWriter) {
			if _, _, err := http.NewResponseController(rw).Hijack(); err != nil {
				t.Error(err)
			}
		}
		w = ask("http://example.com/hijack")
		want(t, "hijacked", w.hijacked, true)
		want(t, "headers of a connection that is taken", len(w.Result().Header), 2)
		w = ask("http://example.com/hijack")
		want(t, "hijacked again, and not answered from the store", w.hijacked, true)
	})
}

// A client that leaves ends the handler's context, whatever the cache makes of the response, unless
// somebody else waits for it.
func TestClientThatLeavesEndsTheContext(t *testing.T) {
	for name, begin := range map[string]func(w http.ResponseWriter){
		"nothing written": func(w http.ResponseWriter) {},
		"event stream": func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", "text/event-stream")
			w.(http.Flusher).Flush()
		},
		"no-store": func(w http.ResponseWriter) { w.Header().Set("Cache-Control", "no-store"); io.WriteString(w, "x") },
		"storable": func(w http.ResponseWriter) {
			w.Header().Set("Cache-Control", "max-age=60")
			io.WriteString(w, "x")
		},
		"storable and flushed": func(w http.ResponseWriter) {
			w.Header().Set("Cache-Control", "max-age=60")
			io.WriteString(w, "x")
			w.(http.Flusher).Flush()
		},
		"only to be validated": func(w http.ResponseWriter) {
			w.Header().Set("Cache-Control", "no-cache")
			w.Header().Set("Etag", `"x"`)
			io.WriteString(w, strings.Repeat("x", 10_000))
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := cache.New(1 << 20)
				ended := 0
				h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					begin(w)
					<-r.Context().Done()
					ended++
				}))
				for range 3 {
					ctx, cancel := context.WithCancel(t.Context())
					go h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "http://example.com/x", nil).WithContext(ctx))
					synctest.Wait()
					cancel()
					synctest.Wait()
				}
				want(t, "contexts that ended", ended, 3)
				want(t, "stored", c.Stats().Entries, 0)

				// With a deadline the same.
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "http://example.com/x", nil).WithContext(ctx))
				want(t, "contexts that ended", ended, 4)
			})
		})
	}
}

// A response that is nearly there is finished for the store when its clients have left, but a handler that hangs in it is
// not left alone for ever.
func TestHandlerThatHangsWhenClientsHaveLeft(t *testing.T) {
	for name, test := range map[string]struct {
		takes, ends time.Duration
		stays       time.Duration // of somebody who comes after 3 s; 0 is nobody
		stored      int64
	}{
		"soon":                                  {4 * time.Second, 4 * time.Second, 0, 1},
		"never":                                 {time.Hour, 6 * time.Second, 0, 0}, // the client leaves after 1 s
		"late, somebody has come":               {30 * time.Second, 30 * time.Second, time.Hour, 1},
		"soon after somebody has come and gone": {8 * time.Second, 8 * time.Second, time.Second, 1},
		"never, and somebody has come and gone, too": {time.Hour, 9 * time.Second, time.Second, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := cache.New(1 << 20)
				h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("Cache-Control", "max-age=60")
					w.Header().Set("Content-Length", "10")
					io.WriteString(w, "01234")
					select {
					case <-r.Context().Done():
					case <-time.After(test.takes):
						io.WriteString(w, "56789")
					}
				}))
				if test.stays > 0 {
					time.AfterFunc(3*time.Second, func() {
						ctx, cancel := context.WithTimeout(t.Context(), test.stays)
						defer cancel()
						rec := httptest.NewRecorder()
						h.ServeHTTP(rec, httptest.NewRequest("GET", "http://example.com/x", nil).WithContext(ctx))
						if test.stays > test.takes {
							want(t, "body", rec.Body.String(), "0123456789")
						}
					})
				}
				ctx, cancel := context.WithCancel(t.Context())
				time.AfterFunc(time.Second, cancel)
				begun := time.Now()
				h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "http://example.com/x", nil).WithContext(ctx))
				want(t, "took", time.Since(begun), test.ends)
				want(t, "stored", c.Stats().Entries, test.stored)
			})
		})
	}
}

func TestDeadlineIsTheHandlers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ctx, cancel := context.WithTimeout(r.Context(), time.Hour) // shortened by the client's
			defer cancel()
			deadline, ok := ctx.Deadline()
			want(t, "deadline", ok && time.Until(deadline) == time.Second, true)
			<-ctx.Done()
			want(t, "cause", ctx.Err(), context.DeadlineExceeded)
		}))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "http://example.com/x", nil).WithContext(ctx))
	})
}

// What is stored only to be validated is written whole to its own client, however it is written.
func TestOnlyToBeValidated(t *testing.T) {
	srv := httptest.NewServer(cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-cache")
		w.Header().Set("Etag", `"x"`)
		if r.Header.Get("If-None-Match") != "" {
			w.WriteHeader(304)
			return
		}
		for range 10 {
			io.WriteString(w, strings.Repeat("x", 1000))
			http.NewResponseController(w).Flush()
		}
	})))
	defer srv.Close()
	for range 3 {
		want(t, "length", len(see(t, srv.Client(), "GET", srv.URL).body), 10_000)
	}
}

// Where nobody can have the response of another, nobody waits for it.
func TestOnlyToBeValidatedDoesNotQueue(t *testing.T) {
	for _, cc := range []string{"no-cache", "public, max-age=0, must-revalidate", "max-age=0, stale-while-revalidate=1"} {
		synctest.Test(t, func(t *testing.T) {
			h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				time.Sleep(time.Second) // in a synctest bubble
				w.Header().Set("Cache-Control", cc)
				w.Header().Set("Etag", `"x"`)
				if r.Header.Get("If-None-Match") != "" {
					w.WriteHeader(304)
				}
			}))
			get(h, "http://example.com/x")
			time.Sleep(time.Minute) // in a synctest bubble
			var wg sync.WaitGroup
			for i := range 4 {
				wg.Go(func() {
					time.Sleep(time.Duration(i) * 300 * time.Millisecond) // in a synctest bubble
					began := time.Now()
					want(t, cc, get(h, "http://example.com/x").Header.Get("Cache-Status"), "spillgate; fwd=stale; fwd-status=304")
					want(t, cc, time.Since(began), time.Second)
				})
			}
			wg.Wait()
		})
	}
}

func TestPanicKeepsItsStack(t *testing.T) {
	h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { panic("mine") }))
	defer func() {
		want(t, "value", recover() == "mine", true)
	}()
	get(h, "http://example.com/x")
}

func TestWhatIsKnownOfARequestReachesTheOutside(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /x/{id}/{rest...}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "max-age=60")
		io.WriteString(w, r.FormValue("user"))
	})
	mux.HandleFunc("GET /y/{$}", func(w http.ResponseWriter, r *http.Request) { panic("mine") })
	seen := func(url string) string {
		r := httptest.NewRequest("GET", "http://example.com"+url, nil)
		func() {
			defer func() { recover() }()
			cache.New(1<<20).Handler(mux).ServeHTTP(httptest.NewRecorder(), r)
		}()
		return fmt.Sprintf("%s id=%s rest=%s user=%s", r.Pattern, r.PathValue("id"), r.PathValue("rest"), r.Form.Get("user"))
	}
	want(t, "of a page", seen("/x/7/a/b?user=me"), "GET /x/{id}/{rest...} id=7 rest=a/b user=me")
	want(t, "of a panic", seen("/y/"), "GET /y/{$} id= rest= user=")
}

func TestMarksReachTheClientsWriter(t *testing.T) {
	c := cache.New(1 << 20)
	h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/shed" {
			w.(cache.ShedMarker).MarkShed(io.ErrShortWrite)
			w.WriteHeader(503)
			return
		}
		w.Header().Set("Cache-Control", "max-age=60")
	}))
	w := &marked{ResponseRecorder: httptest.NewRecorder()}
	h.ServeHTTP(w, httptest.NewRequest("GET", "http://example.com/shed", nil))
	want(t, "shed", w.shed, io.ErrShortWrite)
	for range 2 {
		h.ServeHTTP(w, httptest.NewRequest("GET", "http://example.com/x", nil))
	}
	h.ServeHTTP(w, httptest.NewRequest("POST", "http://example.com/x", nil))
	want(t, "results", slices.Equal(w.results, []cache.Result{cache.Miss, cache.Miss, cache.Hit, cache.Bypass}), true)
}

type marked struct {
	*httptest.ResponseRecorder
	shed    error
	results []cache.Result
}

func (m *marked) MarkShed(err error)       { m.shed = err }
func (m *marked) MarkCache(r cache.Result) { m.results = append(m.results, r) }

// A handler may go on changing the header map, for trailers, while its response is being sent by
// another goroutine.
func TestLateHeadersWhileSending(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		c := cache.New(1 << 20)
		srv := httptest.NewUnstartedServer(c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "max-age=60")
			for i := range 20 {
				io.WriteString(w, strings.Repeat("x", 500))
				w.(http.Flusher).Flush()
				w.Header().Set(fmt.Sprint("X-Late-", i), "1")
			}
			w.Header().Set(http.TrailerPrefix+"X-Sum", "1")
		})))
		if srv.EnableHTTP2 = http2; http2 {
			srv.StartTLS()
		} else {
			srv.Start()
		}
		for i := range 20 {
			got := see(t, srv.Client(), "GET", fmt.Sprint(srv.URL, "/", i%2))
			want(t, "length", len(got.body), 10_000)
			want(t, "trailer", got.trailer, "map[X-Sum:[1]]")
			want(t, "late", strings.Contains(got.header, "Late"), false)
		}
		want(t, "stored", c.Stats().Entries, 0)
		srv.Close()
	}
}

// touchyWriter is a layer outside that works on the header map when it is written to, as one that compresses does: nobody
// may look at the map meanwhile.
type touchyWriter struct {
	http.ResponseWriter
	touches bool
	writing atomic.Bool
	looked  atomic.Int64
	sent    int
}

func (w *touchyWriter) Header() http.Header {
	if w.writing.Load() {
		w.looked.Add(1)
	}
	return w.ResponseWriter.Header()
}

func (w *touchyWriter) Write(p []byte) (int, error) {
	w.writing.Store(w.touches)
	time.Sleep(time.Second) // in a synctest bubble
	if w.touches {
		w.ResponseWriter.Header().Set("Content-Encoding", "touchy")
	}
	w.sent += len(p)
	w.writing.Store(false)
	return len(p), nil
}

func TestHeaderMapIsNotSharedWithAPump(t *testing.T) {
	const sum = http.TrailerPrefix + "Sum"
	late := func(w http.ResponseWriter, _ http.Header) { w.Header().Set(sum, "1") }
	for name, test := range map[string]struct {
		finish  func(w http.ResponseWriter, h http.Header)
		trailer string
		body    int
		touches bool
		stored  int64
	}{
		"nothing more":                      {func(http.ResponseWriter, http.Header) {}, "", 10 << 10, true, 1},
		"a trailer":                         {late, "1", 10 << 10, true, 0},
		"a trailer of what is too large":    {late, "1", 100 << 10, true, 0},
		"a trailer, in the map from before": {func(_ http.ResponseWriter, h http.Header) { h.Set(sum, "1") }, "1", 10 << 10, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := cache.New(1 << 20)
				h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					h := w.Header()
					h.Set("Cache-Control", "max-age=60")
					for range 10 {
						w.Write(make([]byte, test.body/10))
						w.Header()
						time.Sleep(10 * time.Millisecond) // in a synctest bubble
					}
					test.finish(w, h)
				}))
				rec := httptest.NewRecorder()
				w := &touchyWriter{ResponseWriter: rec, touches: test.touches}
				h.ServeHTTP(w, httptest.NewRequest("GET", "http://example.com/x", nil))
				want(t, "looks at the map", w.looked.Load(), 0)
				want(t, "sent", w.sent, test.body)
				want(t, "trailer", rec.Header().Get(sum), test.trailer)
				want(t, "stored", c.Stats().Entries, test.stored)
			})
		})
	}
}

// typing sets the Content-Type by the first bytes, as many a layer that compresses does: after WriteHeader that is too late.
type typing struct {
	http.ResponseWriter
	header http.Header // as it was when it went out
}

func (w *typing) WriteHeader(status int) {
	if w.header == nil && status >= 200 {
		w.header = w.Header().Clone()
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *typing) Write(p []byte) (int, error) {
	if w.header == nil {
		if _, has := w.Header()["Content-Type"]; !has {
			w.Header().Set("Content-Type", "typed/"+string(p[:min(1, len(p))]))
		}
		w.header = w.Header().Clone()
	}
	return w.ResponseWriter.Write(p)
}

func (w *typing) Flush() {
	if w.header == nil {
		w.header = w.Header().Clone()
	}
	w.ResponseWriter.(http.Flusher).Flush()
}

// A handler that writes without a status leaves it to the layers outside what follows from the first bytes.
func TestStatusThatNobodyNamed(t *testing.T) {
	large := strings.Repeat("large", 4000)
	for _, test := range []struct {
		name, control string
		write         func(w http.ResponseWriter)
		typed         string
	}{
		{"stored", "max-age=60", func(w http.ResponseWriter) { io.WriteString(w, "hello") }, "typed/h"},
		{"not stored", "no-store", func(w http.ResponseWriter) { io.WriteString(w, "hello") }, "typed/h"},
		{"large", "max-age=60", func(w http.ResponseWriter) { io.WriteString(w, large); io.WriteString(w, large) }, "typed/l"},
		{"larger than is stored", "max-age=60", func(w http.ResponseWriter) {
			for range 100 {
				io.WriteString(w, large)
			}
		}, "typed/l"},
		{"copied", "max-age=60", func(w http.ResponseWriter) { io.Copy(w, strings.NewReader(large)) }, "typed/l"},
		{"flushed after a byte", "max-age=60", func(w http.ResponseWriter) {
			io.WriteString(w, "h")
			w.(http.Flusher).Flush()
		}, "typed/h"},
		{"flushed first", "max-age=60", func(w http.ResponseWriter) {
			w.(http.Flusher).Flush()
			io.WriteString(w, "h")
		}, ""},
		{"a status", "max-age=60", func(w http.ResponseWriter) { w.WriteHeader(200); io.WriteString(w, "hello") }, ""},
		{"nothing", "max-age=60", func(w http.ResponseWriter) {}, ""},
		{"no bytes", "max-age=60", func(w http.ResponseWriter) {
			w.Write(nil)
			w.Header().Set("X-Late", "1")
		}, "typed/"},
		{"early hints", "max-age=60", func(w http.ResponseWriter) {
			w.WriteHeader(103)
			w.Header().Del("X-Hint")
			io.WriteString(w, "hello")
		}, "typed/h"},
		{"what is changed too late", "max-age=60", func(w http.ResponseWriter) {
			io.WriteString(w, "hello")
			w.Header().Set("X-Late", "1")
		}, "typed/h"},
	} {
		t.Run(test.name, func(t *testing.T) {
			handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("X-Hint", "1")
				w.Header().Set("Cache-Control", test.control)
				test.write(w)
			})
			ask := func(h http.Handler) *typing {
				w := &typing{ResponseWriter: httptest.NewRecorder()}
				w.Header().Set("X-From-Outside", "1")
				h.ServeHTTP(w, httptest.NewRequest("GET", "http://example.com/x", nil))
				if w.header != nil {
					w.header.Del("Cache-Status")
				}
				return w
			}
			bare, got := ask(handler), ask(cache.New(1<<20).Handler(handler))
			if fmt.Sprint(got.header) != fmt.Sprint(bare.header) {
				t.Errorf("header %v, and %v without a cache", got.header, bare.header)
			}
			want(t, "Content-Type", got.header.Get("Content-Type"), test.typed)
			body := func(w *typing) string { return w.ResponseWriter.(*httptest.ResponseRecorder).Body.String() }
			want(t, "same body", body(got) == body(bare), true)
		})
	}
}

// Who recovers from a panic outside may end the response as if it were whole: it is, where the handler had written all of it.
func TestWrittenBeforeAPanic(t *testing.T) {
	large := strings.Repeat("0123456789", 3000)
	for _, test := range []struct {
		name  string
		write func(w http.ResponseWriter)
	}{
		{"little", func(w http.ResponseWriter) { io.WriteString(w, "half") }},
		{"much", func(w http.ResponseWriter) {
			for range 30 {
				io.WriteString(w, large)
			}
		}},
		{"all of a length", func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", fmt.Sprint(len(large)))
			io.WriteString(w, large)
		}},
		{"flushed and more", func(w http.ResponseWriter) {
			io.WriteString(w, "half")
			w.(http.Flusher).Flush()
			io.WriteString(w, "more")
		}},
		{"a status", func(w http.ResponseWriter) { w.WriteHeader(201); io.WriteString(w, "half") }},
		{"nothing", func(w http.ResponseWriter) { w.Header().Set("X-Left", "1") }},
	} {
		t.Run(test.name, func(t *testing.T) {
			handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Cache-Control", "max-age=60")
				test.write(w)
				panic("late")
			})
			ask := func(h http.Handler) *http.Response {
				w := httptest.NewRecorder()
				func() {
					defer func() {
						want(t, "panic", recover(), any("late"))
						w.WriteHeader(http.StatusInternalServerError) // of no effect where the header has gone out
					}()
					h.ServeHTTP(w, httptest.NewRequest("GET", "http://example.com/x", nil))
				}()
				return w.Result()
			}
			bare, got := ask(handler), ask(cache.New(1<<20).Handler(handler))
			want(t, "status", got.StatusCode, bare.StatusCode)
			want(t, "X-Left", got.Header.Get("X-Left"), bare.Header.Get("X-Left"))
			want(t, "same body", text(t, got) == text(t, bare), true)
		})
	}
}

// early sets a field when the first header goes out, as a layer that keeps sessions does, be it that of an interim response.
type early struct {
	http.ResponseWriter
	done bool
}

func (w *early) WriteHeader(status int) {
	if !w.done {
		w.done = true
		w.Header().Add("Set-Cookie", "session=1")
		w.Header().Del("X-Hint")
	}
	w.ResponseWriter.WriteHeader(status)
}

// What a layer outside does to the header of an interim response is there in the final one, as without a cache.
func TestLayersOutsideAtAnInterimResponse(t *testing.T) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Hint", "1")
		h.Set("Cache-Control", "max-age=60")
		w.WriteHeader(http.StatusEarlyHints)
		h.Set("X-Final", h.Get("Set-Cookie"))
		io.WriteString(w, "hello")
	})
	ask := func(h http.Handler) http.Header {
		w := &typing{ResponseWriter: httptest.NewRecorder()}
		h.ServeHTTP(&early{ResponseWriter: w}, httptest.NewRequest("GET", "http://example.com/x", nil))
		w.header.Del("Cache-Status")
		return w.header
	}
	want(t, "header", fmt.Sprint(ask(cache.New(1<<20).Handler(handler))), fmt.Sprint(ask(handler)))
}

// The deprecated method of net/http's writers is there behind a cache, too, whatever the method of the request, and in each shape of a writer that has it:
// gin calls it for each stream, and panics where it is missing.
func TestWritersThatNotify(t *testing.T) {
	recorded := httptest.NewRecorder
	for name, w := range map[string]http.ResponseWriter{
		"HTTP/1": struct {
			*httptest.ResponseRecorder
			http.Hijacker
			notifies
		}{recorded(), nil, nil},
		"HTTP/2": struct {
			*httptest.ResponseRecorder
			http.Pusher
			notifies
		}{recorded(), nil, nil},
		"one that can flush": struct {
			*httptest.ResponseRecorder
			notifies
		}{recorded(), nil},
	} {
		for _, method := range []string{"GET", "POST"} {
			has := false
			cache.New(1<<20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				n, ok := w.(interface{ CloseNotify() <-chan bool })
				if has = ok; !ok {
					return
				}
				if first := n.CloseNotify(); method == "GET" && n.CloseNotify() != first {
					t.Errorf("%s: another channel each time", name)
				}
			})).ServeHTTP(w, httptest.NewRequest(method, "http://example.com/", nil))
			want(t, name+", "+method+": CloseNotify", has, true)
		}
	}
}

type notifies chan bool

func (n notifies) CloseNotify() <-chan bool { return n }

// The client of a run leaves while another one waits for its response: a handler that goes by CloseNotify is not told, as one that goes by the context is not. It would
// end its response there, which is stored and sent as if it were whole. It is told when nobody is left.
func TestNotifiedWhenNobodyIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		told := 0
		h := cache.New(1<<20, cache.WithCollapseWait(time.Minute)).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "max-age=60")
			left := w.(interface{ CloseNotify() <-chan bool }).CloseNotify()
			for range 10 {
				io.WriteString(w, "piece,")
				select {
				case <-left:
					told++
					return
				case <-time.After(time.Second):
				}
			}
		}))
		ask := func(url string, leaveAfter time.Duration) *httptest.ResponseRecorder {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			w := struct {
				*httptest.ResponseRecorder
				notifies
			}{httptest.NewRecorder(), make(notifies, 1)}
			defer time.AfterFunc(leaveAfter, func() {
				cancel() // as net/http does
				w.notifies <- true
			}).Stop()
			h.ServeHTTP(w, httptest.NewRequest("GET", url, nil).WithContext(ctx))
			return w.ResponseRecorder
		}
		var wg sync.WaitGroup
		wg.Go(func() { ask("http://example.com/", 2500*time.Millisecond) })
		synctest.Wait()
		want(t, "who waits", ask("http://example.com/", time.Hour).Body.String(), strings.Repeat("piece,", 10))
		wg.Wait()
		w := ask("http://example.com/", time.Hour)
		want(t, "stored", w.Body.String(), strings.Repeat("piece,", 10))
		want(t, "and asked for once", w.Header().Get("Cache-Status"), "spillgate; hit; ttl=50")
		want(t, "told of the client that left", told, 0)

		wg.Go(func() { ask("http://example.com/alone", 2500*time.Millisecond) })
		wg.Wait()
		want(t, "told when nobody was left", told, 1)
		want(t, "not stored", ask("http://example.com/alone", time.Hour).Body.String(), strings.Repeat("piece,", 10))
	})
}

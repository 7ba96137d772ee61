package middleware_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"mime/multipart"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/cache"
	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware"
	"github.com/spillgate/spillgate/pool"
)

// allFive returns a stack of every layer, with limits that nothing in a test reaches.
func allFive() *middleware.Stack {
	return middleware.New(
		middleware.Rate(limiter.NewRate(rate.Limit(1e6), 1e6)),
		middleware.Cache(cache.New(8<<20)),
		middleware.Concurrency(limiter.NewConcurrency(1000)),
		middleware.Breaker(breaker.NewGroup()),
		middleware.Pool(pool.New(pool.WithSlots(1000))),
	)
}

// shapeOf says what a handler can find out about its ResponseWriter by type assertion.
func shapeOf(w http.ResponseWriter) string {
	_, f := w.(http.Flusher)
	_, h := w.(http.Hijacker)
	_, r := w.(io.ReaderFrom)
	_, p := w.(http.Pusher)
	_, s := w.(io.StringWriter)
	_, n := w.(interface{ CloseNotify() <-chan bool })
	_, e := w.(interface{ FlushError() error })
	return fmt.Sprintf("Flusher=%v Hijacker=%v ReaderFrom=%v Pusher=%v StringWriter=%v CloseNotifier=%v FlushError=%v", f, h, r, p, s, n, e)
}

type transparent struct {
	name    string
	handler http.HandlerFunc
	// request is sent as it is over HTTP/1.1; %s is the extra header of the case.
	method, header, body string
	http1                bool // not for HTTP/2
	outside              func(http.Handler) http.Handler
}

func transparencyCases(dir string) []transparent {
	file := filepath.Join(dir, "file.txt")
	return []transparent{
		{name: "implicit 200", handler: func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") }},
		{name: "nothing written", handler: func(http.ResponseWriter, *http.Request) {}},
		{name: "status without body", handler: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }},
		{name: "not modified", handler: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("ETag", `"x"`)
			w.WriteHeader(304)
		}},
		{name: "error", handler: func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", 500) }},
		{name: "odd status", handler: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(299) }},
		{name: "second WriteHeader is ignored", handler: func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(404)
			w.WriteHeader(200)
			io.WriteString(w, "x")
		}},
		{name: "redirect", handler: func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/x", 302) }},
		{name: "header set after the body is lost", handler: func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, "x")
			w.Header().Set("X-Late", "1")
		}},
		{name: "sniffed type", handler: func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("<html><body>x")) }},
		{name: "no type", handler: func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Content-Type"] = nil
			w.Write([]byte("x"))
		}},
		{name: "content length", handler: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "5")
			io.WriteString(w, "12345")
		}},
		{name: "more than the content length", http1: true, handler: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "2")
			_, err := io.WriteString(w, "12")
			_, err2 := io.WriteString(w, "3")
			if err != nil || !errors.Is(err2, http.ErrContentLength) {
				panic(fmt.Sprint("errors ", err, ", ", err2))
			}
		}},
		{name: "large body", handler: func(w http.ResponseWriter, _ *http.Request) {
			for i := range 100 {
				w.Write(bytes.Repeat([]byte{byte('a' + i%26)}, 3000))
			}
		}},
		{name: "public and cacheable", handler: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Cache-Control", "public, max-age=60")
			w.Header().Set("Date", "Mon, 02 Jan 2006 15:04:05 GMT")
			io.WriteString(w, "x")
		}},
		{name: "flush", handler: func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, "a")
			w.(http.Flusher).Flush()
			io.WriteString(w, "b")
		}},
		{name: "flush first", handler: func(w http.ResponseWriter, _ *http.Request) {
			w.(http.Flusher).Flush()
			io.WriteString(w, "b")
		}},
		{name: "flush by controller", handler: func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, "a")
			if err := http.NewResponseController(w).Flush(); err != nil {
				panic(err)
			}
			io.WriteString(w, "b")
		}},
		{name: "server-sent events", header: "Accept: text/event-stream\r\n", handler: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			for i := range 3 {
				fmt.Fprintf(w, "data: %d\n\n", i)
				w.(http.Flusher).Flush()
			}
		}},
		{name: "deadlines by controller", handler: func(w http.ResponseWriter, _ *http.Request) {
			c := http.NewResponseController(w)
			fmt.Fprint(w, c.SetReadDeadline(time.Now().Add(time.Minute)), c.SetWriteDeadline(time.Now().Add(time.Minute)))
		}},
		{name: "early hints", handler: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Link", "</a.css>; rel=preload")
			w.WriteHeader(103)
			w.Header().Del("Link")
			w.Header().Set("X-Final", "1")
			io.WriteString(w, "final")
		}},
		{name: "early hints, then an error", handler: func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(103)
			http.Error(w, "no", 503)
		}},
		{name: "declared trailer", handler: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Trailer", "X-Sum")
			io.WriteString(w, "body")
			w.Header().Set("X-Sum", "42")
		}},
		{name: "undeclared trailer", handler: func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, "body")
			w.(http.Flusher).Flush()
			w.Header().Set(http.TrailerPrefix+"X-Sum", "42")
		}},
		{name: "head", method: "HEAD", handler: func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "the body") }},
		{name: "head of a file", method: "HEAD", handler: func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, file) }},
		{name: "file", handler: func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, file) }},
		{name: "range", header: "Range: bytes=3-9\r\n", handler: func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, file) }},
		{name: "unsatisfiable range", header: "Range: bytes=99999999-\r\n", handler: func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, file) }},
		{name: "conditional", header: "If-Modified-Since: Fri, 01 Jan 2100 00:00:00 GMT\r\n", handler: func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, file) }},
		{name: "copied from a file", handler: func(w http.ResponseWriter, _ *http.Request) {
			f, err := os.Open(file)
			if err != nil {
				panic(err)
			}
			defer f.Close()
			n, err := io.Copy(w, f)
			if err != nil || n == 0 {
				panic(fmt.Sprint(n, err))
			}
		}},
		{name: "copied from a source that fails at once", handler: func(w http.ResponseWriter, _ *http.Request) {
			if _, err := io.Copy(w, iotest{}); err != nil {
				http.Error(w, "upstream", 502)
			}
		}},
		{name: "body echoed", method: "POST", body: "a body of some length", handler: func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) }},
		{name: "body not read", method: "POST", body: "a body of some length", handler: func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "no") }},
		// The limit is outside, as documented: net/http closes the connection only if its own
		// ResponseWriter was given to MaxBytesReader, through an interface that no wrapper can have.
		{name: "body too large", outside: func(h http.Handler) http.Handler { return http.MaxBytesHandler(h, 3) }, method: "POST", body: "a body of some length", handler: func(w http.ResponseWriter, r *http.Request) {
			_, err := io.ReadAll(r.Body)
			fmt.Fprint(w, err)
		}},
		{name: "put", method: "PUT", body: "x", handler: func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(201) }},
		{name: "connection close", handler: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Connection", "close")
			io.WriteString(w, "x")
		}},
		{name: "timeout handler inside", handler: http.TimeoutHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, "in time")
		}), time.Minute, "late").ServeHTTP},
		{name: "what the writer can do", handler: func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, shapeOf(w)) }},
		{name: "pattern and values", handler: func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, r.Pattern, r.RemoteAddr != "", r.ProtoMajor)
		}},
		{name: "cookies", handler: func(w http.ResponseWriter, r *http.Request) {
			http.SetCookie(w, &http.Cookie{Name: "a", Value: "1"})
			http.SetCookie(w, &http.Cookie{Name: "b", Value: "2"})
			io.WriteString(w, "x")
		}},
		{name: "panic before the header", handler: func(http.ResponseWriter, *http.Request) { panic("gone wrong") }},
		{name: "panic after the header", handler: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "10")
			io.WriteString(w, "half")
			w.(http.Flusher).Flush()
			panic("gone wrong")
		}},
		{name: "abort before the header", handler: func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }},
		{name: "abort in the body", handler: func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, "half")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}},
		{name: "abort in a cacheable body", handler: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Cache-Control", "public, max-age=60")
			w.Header().Set("Content-Length", "10")
			io.WriteString(w, "half")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}},
		{name: "too little for the content length", handler: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "10")
			io.WriteString(w, "half")
		}},
		{name: "full duplex", method: "POST", body: "ping", http1: true, handler: func(w http.ResponseWriter, r *http.Request) {
			if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
				panic(err)
			}
			io.WriteString(w, "begin ")
			w.(http.Flusher).Flush()
			io.Copy(w, r.Body)
		}},
		{name: "hijack", http1: true, handler: func(w http.ResponseWriter, _ *http.Request) {
			c, rw, err := w.(http.Hijacker).Hijack()
			if err != nil {
				panic(err)
			}
			defer c.Close()
			rw.WriteString("HTTP/1.1 299 Mine\r\nContent-Length: 2\r\n\r\nok")
			rw.Flush()
		}},
		{name: "hijack by controller", http1: true, handler: func(w http.ResponseWriter, _ *http.Request) {
			c, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				panic(err)
			}
			defer c.Close()
			rw.WriteString("HTTP/1.1 299 Mine\r\nContent-Length: 2\r\n\r\nok")
			rw.Flush()
		}},
		{name: "write after hijack", http1: true, handler: func(w http.ResponseWriter, _ *http.Request) {
			c, rw, err := w.(http.Hijacker).Hijack()
			if err != nil {
				panic(err)
			}
			defer c.Close()
			_, werr := w.Write([]byte("x"))
			fmt.Fprintf(rw, "HTTP/1.1 299 Mine\r\nX-Error: %v\r\nContent-Length: 0\r\n\r\n", werr)
			rw.Flush()
		}},
		{name: "upgrade", http1: true, header: "Connection: Upgrade\r\nUpgrade: echo\r\n", handler: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Connection", "Upgrade")
			w.Header().Set("Upgrade", "echo")
			w.WriteHeader(101)
			c, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				panic(err)
			}
			defer c.Close()
			rw.WriteString("switched")
			rw.Flush()
		}},
	}
}

type iotest struct{}

func (iotest) Read([]byte) (int, error) { return 0, errors.New("upstream is gone") }

// exchange is all that a client can see of one request.
type exchange struct {
	Responses []seen
	Err       string
	Panics    string // what the server logged of panics
}

type seen struct {
	Status           string
	Header           http.Header
	Body             string
	BodyErr          string
	ContentLength    int64
	TransferEncoding []string
	Trailer          http.Header
	Close            bool
}

// added are the fields that the layers document to add.
var added = []string{"Ratelimit", "Ratelimit-Policy", "Cache-Status", "Age", "Date"}

func see(res *http.Response) seen {
	b, err := io.ReadAll(res.Body)
	s := seen{Status: res.Status, Header: res.Header.Clone(), Body: string(b), ContentLength: res.ContentLength,
		TransferEncoding: res.TransferEncoding, Trailer: res.Trailer, Close: res.Close}
	if err != nil {
		s.BodyErr = err.Error()
	}
	for _, f := range added {
		s.Header.Del(f)
	}
	return s
}

type panicLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *panicLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// first returns the first line of the panic and whether the stack names the handler.
func (l *panicLog) first() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.b.String()
	if !strings.Contains(s, "panic serving") {
		return "" // a complaint of net/http, which names the caller of WriteHeader
	}
	line, _, _ := strings.Cut(s, "\n")
	if i := strings.LastIndex(line, ": "); i >= 0 { // cut the client's address, which differs
		line = line[i:]
	}
	return fmt.Sprint(line, " stack names the handler: ", strings.Contains(s, "transparencyCases"))
}

func serve(t *testing.T, h http.Handler, h2 bool) (*httptest.Server, *panicLog) {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	l := &panicLog{}
	s.Config.ErrorLog = log.New(l, "", 0)
	if h2 {
		s.EnableHTTP2 = true
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	return s, l
}

// dial connects to s until the end of the test.
func dial(t *testing.T, s *httptest.Server) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func rawExchange(t *testing.T, h http.Handler, c transparent) exchange {
	s, l := serve(t, h, false)
	conn := dial(t, s)
	method := c.method
	if method == "" {
		method = "GET"
	}
	length := ""
	if c.body != "" {
		length = fmt.Sprintf("Content-Length: %d\r\n", len(c.body))
	}
	fmt.Fprintf(conn, "%s /path HTTP/1.1\r\nHost: example.test\r\n%s%s\r\n%s", method, c.header, length, c.body)
	var x exchange
	br := bufio.NewReader(conn)
	for {
		res, err := http.ReadResponse(br, &http.Request{Method: method})
		if err != nil {
			x.Err = err.Error()
			break
		}
		if res.StatusCode == 101 {
			sn := see(res)
			rest, _ := io.ReadAll(br)
			sn.Body = string(rest)
			x.Responses = append(x.Responses, sn)
			break
		}
		sn := see(res)
		x.Responses = append(x.Responses, sn)
		if res.StatusCode >= 200 {
			if sn.BodyErr == "" && !res.Close && res.StatusCode != 299 {
				// The connection can be used again, or not, as without us.
				fmt.Fprint(conn, "GET /again HTTP/1.1\r\nHost: example.test\r\nConnection: close\r\n\r\n")
				again, err := http.ReadResponse(br, nil)
				if err != nil {
					x.Err = "again: the connection is closed" // how it breaks is a race of TCP
				} else {
					x.Err = "again: " + again.Status
				}
			}
			break
		}
	}
	s.Close() // waits for the handlers
	x.Panics = l.first()
	return x
}

// seeInterims returns a context with which the interim responses to a request are put into x.
func seeInterims(ctx context.Context, x *exchange) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
		for _, f := range added {
			http.Header(h).Del(f)
		}
		x.Responses = append(x.Responses, seen{Status: fmt.Sprint(code), Header: http.Header(h)})
		return nil
	}})
}

func h2Exchange(t *testing.T, h http.Handler, c transparent) exchange {
	s, _ := serve(t, h, true)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var x exchange
	ctx = seeInterims(ctx, &x)
	method := c.method
	if method == "" {
		method = "GET"
	}
	var body io.Reader
	if c.body != "" {
		body = strings.NewReader(c.body)
	}
	req, err := http.NewRequestWithContext(ctx, method, s.URL+"/path", body)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(c.header) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), ": ")
		req.Header.Set(k, v)
	}
	tr := s.Client().Transport.(*http.Transport)
	res, err := tr.RoundTrip(req)
	if err != nil {
		x.Err = stripStream(err.Error())
	} else {
		if res.ProtoMajor != 2 {
			t.Fatalf("protocol %s, want HTTP/2", res.Proto)
		}
		sn := see(res)
		sn.BodyErr = stripStream(sn.BodyErr)
		x.Responses = append(x.Responses, sn)
	}
	s.Close()
	// The log is not compared: HTTP/2 resets the stream before it logs a panic.
	return x
}

func stripStream(s string) string {
	s, _, _ = strings.Cut(s, "stream ID")
	return s
}

// Any handler behaves the same with and without the stack, but for the header fields that the layers add.
func TestTransparency(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file.txt"), bytes.Repeat([]byte("0123456789\n"), 10_000), 0o600); err != nil {
		t.Fatal(err)
	}
	stacks := map[string]func(http.Handler) http.Handler{
		"all five": func(h http.Handler) http.Handler { return allFive().Handler(h) },
		"defaults": func(h http.Handler) http.Handler { return middleware.Wrap(h) },
		"chained with foreign wrappers": func(h http.Handler) http.Handler {
			unwrapping := func(next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { next.ServeHTTP(w, r) })
			}
			return middleware.Chain(
				middleware.Concurrency(limiter.NewConcurrency(10)).Handler, unwrapping,
				middleware.Breaker(breaker.NewGroup()).Handler, unwrapping,
				middleware.Pool(pool.New(pool.WithSlots(10))).Handler)(h)
		},
	}
	for _, c := range transparencyCases(dir) {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			mux := func() http.Handler {
				m := http.NewServeMux()
				m.Handle("/path", c.handler)
				return m
			}
			around := c.outside
			if around == nil {
				around = func(h http.Handler) http.Handler { return h }
			}
			bare := rawExchange(t, around(mux()), c)
			var bare2 exchange
			if !c.http1 {
				bare2 = h2Exchange(t, around(mux()), c)
			}
			for name, inner := range stacks {
				wrap := func(h http.Handler) http.Handler { return around(inner(h)) }
				if got := rawExchange(t, wrap(mux()), c); !reflect.DeepEqual(got, bare) {
					t.Errorf("%s, HTTP/1.1:\n got %+v\nwant %+v", name, got, bare)
				}
				if c.http1 {
					continue
				}
				if got := h2Exchange(t, wrap(mux()), c); !reflect.DeepEqual(got, bare2) {
					t.Errorf("%s, HTTP/2:\n got %+v\nwant %+v", name, got, bare2)
				}
			}
		})
	}
}

// bits of the writer below, in every combination
type (
	wF struct{ http.ResponseWriter }
	wH struct{ http.ResponseWriter }
	wR struct{ http.ResponseWriter }
	wP struct{ http.ResponseWriter }
	wN chan bool
)

func (wF) Flush()                                       {}
func (wH) Hijack() (net.Conn, *bufio.ReadWriter, error) { return nil, nil, errors.New("no connection") }
func (wR) ReadFrom(r io.Reader) (int64, error)          { return io.Copy(io.Discard, r) }
func (wP) Push(target string, o *http.PushOptions) error {
	return fmt.Errorf("pushed %s by %s", target, o.Method)
}

type notifier interface{ CloseNotify() <-chan bool }

func (n wN) CloseNotify() <-chan bool { return n }

type plainWriter struct{ h http.Header }

func (p *plainWriter) Header() http.Header         { return p.h }
func (p *plainWriter) Write(b []byte) (int, error) { return len(b), nil }
func (p *plainWriter) WriteHeader(int)             {}

func TestWriterKeepsItsMethods(t *testing.T) {
	p := &plainWriter{http.Header{}}
	f, h, r, q, n := wF{p}, wH{p}, wR{p}, wP{p}, make(wN)
	writers := []http.ResponseWriter{
		p, f, h, r, q,
		struct {
			http.ResponseWriter
			http.Flusher
			http.Hijacker
		}{p, f, h},
		struct {
			http.ResponseWriter
			http.Flusher
			io.ReaderFrom
		}{p, f, r},
		struct {
			http.ResponseWriter
			http.Flusher
			http.Pusher
		}{p, f, q},
		struct {
			http.ResponseWriter
			http.Hijacker
			io.ReaderFrom
		}{p, h, r},
		struct {
			http.ResponseWriter
			http.Hijacker
			http.Pusher
		}{p, h, q},
		struct {
			http.ResponseWriter
			io.ReaderFrom
			http.Pusher
		}{p, r, q},
		struct {
			http.ResponseWriter
			http.Flusher
			http.Hijacker
			io.ReaderFrom
		}{p, f, h, r},
		struct {
			http.ResponseWriter
			http.Flusher
			http.Hijacker
			http.Pusher
		}{p, f, h, q},
		struct {
			http.ResponseWriter
			http.Flusher
			io.ReaderFrom
			http.Pusher
		}{p, f, r, q},
		struct {
			http.ResponseWriter
			http.Hijacker
			io.ReaderFrom
			http.Pusher
		}{p, h, r, q},
		struct {
			http.ResponseWriter
			http.Flusher
			http.Hijacker
			io.ReaderFrom
			http.Pusher
		}{p, f, h, r, q},
		// and with CloseNotify
		struct {
			http.ResponseWriter
			http.Flusher
			notifier
		}{p, f, n},
		struct {
			http.ResponseWriter
			http.Flusher
			http.Hijacker
			notifier
		}{p, f, h, n},
		struct {
			http.ResponseWriter
			http.Flusher
			io.ReaderFrom
			notifier
		}{p, f, r, n},
		struct {
			http.ResponseWriter
			http.Flusher
			http.Pusher
			notifier
		}{p, f, q, n},
		struct {
			http.ResponseWriter
			http.Hijacker
			io.ReaderFrom
			notifier
		}{p, h, r, n},
		struct {
			http.ResponseWriter
			http.Flusher
			http.Hijacker
			io.ReaderFrom
			notifier
		}{p, f, h, r, n},
		struct {
			http.ResponseWriter
			http.Flusher
			http.Hijacker
			http.Pusher
			notifier
		}{p, f, h, q, n},
		struct {
			http.ResponseWriter
			http.Flusher
			io.ReaderFrom
			http.Pusher
			notifier
		}{p, f, r, q, n},
		struct {
			http.ResponseWriter
			http.Flusher
			http.Hijacker
			io.ReaderFrom
			http.Pusher
			notifier
		}{p, f, h, r, q, n},
	}
	methods := func(w http.ResponseWriter) [4]bool {
		_, f := w.(http.Flusher)
		_, h := w.(http.Hijacker)
		_, r := w.(io.ReaderFrom)
		_, p := w.(http.Pusher)
		return [4]bool{f, h, r, p}
	}
	for _, w := range writers { // and one that hides all methods, but unwraps
		writers = append(writers, unwrapper{w})
	}
	for _, w := range writers {
		var got http.ResponseWriter
		middleware.Concurrency(limiter.NewConcurrency(1)).Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			got = w
		})).ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
		if methods(got) != methods(w) {
			t.Errorf("%T: methods Flusher, Hijacker, ReaderFrom, Pusher are %v behind a layer; want %v", w, methods(got), methods(w))
		}
		if p, ok := got.(http.Pusher); ok {
			if err := p.Push("/style.css", &http.PushOptions{Method: "HEAD"}); err == nil || err.Error() != "pushed /style.css by HEAD" {
				t.Errorf("%T: Push comes to %v", w, err)
			}
		}
		// Those that can flush keep the deprecated method, too, which gin calls for each stream: of net/http, and those around them that compress.
		_, has := w.(notifier)
		has = has && methods(w)[0]
		if c, ok := got.(notifier); ok != has || ok && c.CloseNotify() != (<-chan bool)(n) {
			t.Errorf("%T: CloseNotify behind a layer is %v, want %v, and that of the writer", w, ok, has)
		}
		for got != w {
			u, ok := got.(interface{ Unwrap() http.ResponseWriter })
			if !ok {
				t.Errorf("%T: Unwrap does not lead to the writer below", w)
				break
			}
			got = u.Unwrap()
		}
	}
}

// lateHeader holds a status back until the body begins, or until it is asked for it, as the writer of gin does.
type lateHeader struct {
	http.ResponseWriter
	status int
}

func (w *lateHeader) WriteHeader(status int)      { w.status = status }
func (w *lateHeader) WriteHeaderNow()             { w.ResponseWriter.WriteHeader(w.status) }
func (w *lateHeader) Unwrap() http.ResponseWriter { return w.ResponseWriter }
func (w *lateHeader) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return w.ResponseWriter.(http.Hijacker).Hijack()
}

// A handler that writes 101 before it takes the connection over, as coder/websocket does, has it sent also where the layers are behind a
// writer that holds the header back: without them the handler asks for it.
func TestSwitchBehindAWriterThatHoldsTheHeaderBack(t *testing.T) {
	other := func(h http.Handler) http.Handler { // somebody else's layer, whose writer leads on
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(unwrapper{w}, r) })
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", "echo")
		w.WriteHeader(http.StatusSwitchingProtocols)
		if now, ok := w.(interface{ WriteHeaderNow() }); ok {
			now.WriteHeaderNow()
		}
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		io.WriteString(c, "hello")
	})
	for name, h := range map[string]http.Handler{
		"bare":       handler,
		"stack":      allFive().Handler(handler),
		"two stacks": allFive().Handler(other(allFive().Handler(handler))),
		"cache":      cache.New(1 << 20).Handler(handler),
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				h.ServeHTTP(&lateHeader{ResponseWriter: w}, r)
			}), false)
			c, err := net.Dial("tcp", s.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
			got, err := io.ReadAll(c)
			if err != nil || !bytes.HasPrefix(got, []byte("HTTP/1.1 101 ")) || !bytes.HasSuffix(got, []byte("\r\n\r\nhello")) {
				t.Errorf("the client got %q, want a header with 101 before what the handler wrote: %v", got, err)
			}
		})
	}
}

// A client that leaves is seen by the handler as without the stack, and counts stay exact.
func TestClientDisconnectReachesHandler(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		t.Run(fmt.Sprint("h2=", h2), func(t *testing.T) {
			entered, left := make(chan struct{}), make(chan error, 1)
			stack := allFive()
			s, _ := serve(t, stack.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				close(entered)
				<-r.Context().Done()
				left <- r.Context().Err()
			})), h2)
			ctx, cancel := context.WithCancel(t.Context())
			req, err := http.NewRequestWithContext(ctx, "GET", s.URL, nil)
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				<-entered
				cancel()
			}()
			if res, err := s.Client().Do(req); err == nil {
				res.Body.Close()
				t.Fatal("the request ended without an error")
			}
			if err := <-left; !errors.Is(err, context.Canceled) {
				t.Errorf("the handler's context ended with %v, want context.Canceled", err)
			}
			// Over HTTP/2 the server may be closed before its handlers have ended.
			if err := stack.Shutdown(t.Context()); err != nil {
				t.Errorf("the request has not ended: %v", err)
			}
			checkAtRest(t, stack)
		})
	}
}

// net/http removes the files of the form in the request that it made, and a layer may pass on another one.
func TestUploadedFilesAreRemoved(t *testing.T) {
	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	file, err := form.CreateFormFile("file", "file")
	if err != nil {
		t.Fatal(err)
	}
	file.Write(make([]byte, 1<<10))
	form.Close()
	for _, method := range []string{"GET", "POST"} {
		dir := t.TempDir()
		t.Setenv("TMPDIR", dir)
		s, _ := serve(t, allFive().Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			if err := r.ParseMultipartForm(1); err != nil {
				t.Error(err)
			}
			if files, err := os.ReadDir(dir); err != nil || len(files) != 1 {
				t.Errorf("%d files while the handler runs, want 1: %v", len(files), err)
			}
		})), false)
		req, err := http.NewRequest(method, s.URL, bytes.NewReader(body.Bytes()))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", form.FormDataContentType())
		res, err := s.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		s.Close()
		left, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		if len(left) != 0 {
			t.Errorf("%s: %d files left", method, len(left))
		}
	}
}

// Goexit in a handler ends the connection and gives everything back.
func TestGoexitReturnsEverything(t *testing.T) {
	stack := allFive()
	s, _ := serve(t, stack.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { runtime.Goexit() })), false)
	conn := dial(t, s)
	io.WriteString(conn, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
	_, _ = io.ReadAll(conn)
	checkAtRest(t, stack)
}

package middleware_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"runtime"
	"slices"
	"strconv"
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

// script is a handler, and a request for it, made of the bytes that a fuzzer chooses: what they ask a ResponseWriter for comes in any
// order, sensible or not.
type script struct {
	b []byte
}

func (s *script) next(n int) int {
	if len(s.b) == 0 {
		return 0
	}
	c := int(s.b[0])
	s.b = s.b[1:]
	return c % n
}

func pick[T any](s *script, from ...T) T { return from[s.next(len(from))] }

// call is the request: what the client sends, and the rest of the script.
type call struct {
	method, body string
	header       []string // name, value, ...
	http10       bool
	chunked      bool
	rest         []byte
}

func (s *script) call() call {
	c := call{method: pick(s, "GET", "GET", "GET", "POST", "HEAD", "PUT", "OPTIONS", "DELETE", "PURGE")}
	field := func(name string, values ...string) {
		if v := pick(s, values...); v != "" {
			c.header = append(c.header, name, v)
		}
	}
	kind := s.next(16)
	if kind&1 != 0 {
		field("Range", "", "bytes=0-4", "bytes=2-", "bytes=-3", "bytes=9-1", "bytes=100000-", "pages=1")
		field("If-None-Match", "", `"a"`, `W/"a"`, "*", `"b"`)
	}
	if kind&2 != 0 {
		field("Accept-Encoding", "", "gzip", "identity", "*")
		field("Authorization", "", "Basic eDp5")
		field("Cookie", "", "a=b")
		field("Cache-Control", "", "no-cache", "no-store", "max-age=0", "only-if-never")
	}
	if kind&4 != 0 {
		c.body = strings.Repeat("b", pick(s, 0, 1, 100, 5000, 70000))
		c.chunked = s.next(2) == 1
		field("Expect", "", "", "100-continue")
	}
	if kind&8 != 0 {
		c.http10 = s.next(3) == 0
		field("Connection", "", "close", "keep-alive", "x-hop", "Upgrade")
		field("Upgrade", "", "websocket", "h2c")
		field("Te", "", "trailers")
	}
	c.rest = s.b
	return c
}

var errUpstream = errors.New("upstream is gone")

// failing is a reader that ends with an error.
type failing struct{ r io.Reader }

func (f failing) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if err == io.EOF {
		err = errUpstream
	}
	return n, err
}

type plainReader struct{ io.Reader }

// play does what the script says, and notes what it finds out.
func (s *script) play(w http.ResponseWriter, r *http.Request, note func(...any)) {
	early := w.Header()
	names := []string{"Content-Length", "Content-Type", "Etag", "Cache-Control", "Vary", "Trailer", "Transfer-Encoding", "Connection", "Set-Cookie",
		"Content-Encoding", "Last-Modified", "X-Other", "x-lower", http.TrailerPrefix + "X-Sum", "Content-Range", "Date", "X-Announced", "Expires", "Link", "Upgrade",
		"Age", "Retry-After"}
	values := map[string][]string{
		"Content-Length":    {"0", "5", "10", "2048", "70000"},
		"Content-Type":      {"text/plain", "text/html", "text/event-stream", "", "application/grpc"},
		"Etag":              {`"a"`, `W/"a"`, "bad"},
		"Cache-Control":     {"public, max-age=60", "no-store", "private", "max-age=0, must-revalidate", "s-maxage=5", "no-cache", "max-age=60, stale-if-error=60"},
		"Vary":              {"Accept-Encoding", "*", "Cookie", "X-Other"},
		"Trailer":           {"X-Announced", "X-Announced, X-Other"},
		"Transfer-Encoding": {"chunked", "identity"},
		"Connection":        {"close", "keep-alive", "X-Other", "upgrade"},
		"Last-Modified":     {"Mon, 02 Jan 2006 15:04:05 GMT", "yesterday"},
		"Content-Encoding":  {"gzip", "identity"},
		"Content-Range":     {"bytes 0-4/10", "bytes 0-9/10", "bytes */10", "bytes 4-9/10", "pages 1"},
		"Date":              {"Mon, 02 Jan 2006 15:04:05 GMT"},
		"Expires":           {"Mon, 02 Jan 2106 15:04:05 GMT", "0"},
		"Upgrade":           {"websocket"},
		"Age":               {"1", "x"},
		"Retry-After":       {"1"},
	}
	sizes := []int{1, 0, 5, 10, 511, 513, 2047, 2049, 4096, 5000, 70000}
	copied := []int{1, 0, 5, 10, 511, 5000, 70000} // from 512 to 2048 it is chunked or has a length
	fields := func() {
		h := w.Header().Clone()
		for _, f := range added {
			h.Del(f)
		}
		note("header", h)
	}
	rc := http.NewResponseController(w)
	began := false // the header may have gone out
	left := -1     // how much of the declared length is to be written still; -1: none was declared
	open := func() {
		if began {
			return
		}
		began = true
		if v := w.Header()["Content-Length"]; len(v) > 0 {
			left, _ = strconv.Atoi(v[0])
		}
	}
	// size is how much to write. More than was declared net/http takes or not, by how it comes.
	size := func(sizes []int) (n int, ok bool) {
		n = pick(s, sizes...)
		if open(); left >= 0 {
			if left -= n; left < 0 {
				left += n
				return 0, false
			}
		}
		return n, true
	}
	wrote := func(how string, n int64, err error) {
		switch {
		case err != nil && r.ProtoMajor == 2:
			n, err = 0, errors.New("failed") // how is a race with the client, who may have all that it wants
		case err != nil && strings.HasSuffix(err.Error(), errUpstream.Error()):
			err = errUpstream // package net says at which connection
		}
		note(how, n, err)
	}
	read := func(how string, n int64, err error) {
		if e, ok := errors.AsType[*net.OpError](err); ok {
			n, err = 0, e.Err // it names the connection
		}
		if r.ProtoMajor == 2 && began {
			n, err = 0, nil // the stream may have ended
		}
		note(how, n, err)
	}
	text := func(n int) []byte { return bytes.Repeat([]byte("<p>0123456"), n/10+1)[:n] }
	for len(s.b) > 0 {
		switch op := s.next(24); op {
		case 0, 1, 2:
			name := pick(s, names...)
			v := "v"
			if vs := values[name]; vs != nil {
				v = pick(s, vs...)
			}
			switch op {
			case 0:
				w.Header()[name] = []string{v}
			case 1:
				w.Header()[name] = append(w.Header()[name], v)
			case 2:
				early[name] = []string{v}
			}
		case 3:
			name := pick(s, names...)
			if s.next(2) == 0 {
				delete(w.Header(), name)
			} else {
				w.Header()[name] = nil
			}
		case 4, 5:
			code := pick(s, 200, 204, 304, 206, 404, 500, 503, 103, 100, 102, 199, 101, 205, 201, 301, 416, 412, 401, 429, 299, 999, 502, 504, 0, 99, 1000)
			if code == http.StatusSwitchingProtocols && r.ProtoMajor == 2 {
				continue // means nothing there, and its client waits
			}
			note("code", code)
			if code >= 200 || code == http.StatusSwitchingProtocols {
				open()
			}
			w.WriteHeader(code)
		case 6, 7, 8:
			if size, ok := size(sizes); ok {
				n, err := w.Write(text(size))
				wrote("write", int64(n), err)
			}
		case 9:
			if size, ok := size(sizes); ok {
				n, err := io.WriteString(w, strings.Repeat("s", size))
				wrote("string", int64(n), err)
			}
		case 10:
			open()
			if f, ok := w.(http.Flusher); ok {
				f.Flush()
			} else {
				note("no flusher")
			}
		case 11:
			open()
			wrote("flush", 0, rc.Flush())
		case 12:
			if size, ok := size(copied); ok {
				n, err := io.Copy(w, plainReader{bytes.NewReader(text(size))})
				wrote("copy", n, err)
			}
		case 13:
			if size, ok := size(copied); ok {
				n, err := io.Copy(w, failing{bytes.NewReader(text(size))})
				wrote("failing copy", n, err)
			}
		case 14:
			n, err := io.ReadFull(r.Body, make([]byte, pick(s, sizes...)))
			read("read", int64(n), err)
		case 15:
			n, err := io.Copy(io.Discard, r.Body)
			read("read all", n, err)
		case 16:
			read("close", 0, r.Body.Close())
		case 17:
			switch s.next(8) {
			case 0:
				panic(http.ErrAbortHandler)
			case 1:
				panic("a handler's panic")
			case 2:
				runtime.Goexit()
			case 3:
				return
			}
		case 18:
			note("deadline", rc.SetWriteDeadline(time.Time{}) == nil, rc.SetReadDeadline(time.Time{}) == nil)
		case 19:
			note("full duplex", rc.EnableFullDuplex())
		case 20:
			if s.next(4) != 0 || began && r.ProtoMajor == 1 {
				continue // what net/http has in its buffers then goes out or not
			}
			c, _, err := rc.Hijack()
			note("hijack", err)
			if err == nil {
				_, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi")
				note(err, c.Close())
			}
		case 21:
			p, ok := w.(http.Pusher)
			note("pusher", ok)
			if ok {
				note("push", p.Push("/pushed", nil) == nil)
			}
		case 22:
			fields()
		case 23:
			if began {
				continue
			}
			open()
			switch s.next(3) {
			case 0:
				http.ServeContent(w, r, "x.html", time.Unix(1e9, 0), bytes.NewReader(text(pick(s, sizes...))))
			case 1:
				http.Error(w, "no", pick(s, 400, 404, 500, 503))
			case 2:
				http.Redirect(w, r, "/other", pick(s, 301, 302, 303))
			}
			left = 0
		}
	}
	fields()
}

// stage is a server whose handler plays the scripts of its requests.
type stage struct {
	name string
	srv  *httptest.Server
	mu   sync.Mutex
	acts map[string]*act
}

type act struct {
	script []byte
	notes  []string
	done   chan struct{}
}

func newStage(f *testing.F, name string, h2 bool, wrap func(http.Handler) http.Handler) *stage {
	st := &stage{name: name, acts: make(map[string]*act)}
	find := func(r *http.Request) *act {
		st.mu.Lock()
		defer st.mu.Unlock()
		return st.acts[r.URL.Path]
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/again", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "again") })
	mux.HandleFunc("/script/{id}", func(w http.ResponseWriter, r *http.Request) {
		a := find(r)
		defer func() {
			if v := recover(); v != nil {
				a.notes = append(a.notes, fmt.Sprint("panic ", v))
				panic(v)
			}
		}()
		s := &script{a.script}
		s.play(w, r, func(v ...any) { a.notes = append(a.notes, fmt.Sprintln(v...)) })
	})
	inner := wrap(mux)
	st.srv = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a := find(r); a != nil {
			defer close(a.done)
		}
		w.Header()["X-Outer"] = []string{"1"} // over HTTP/2 net/http tells of other errors where there is no field at all
		inner.ServeHTTP(w, r)
	}))
	st.srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	if h2 {
		st.srv.EnableHTTP2 = true
		st.srv.StartTLS()
	} else {
		st.srv.Start()
	}
	f.Cleanup(st.srv.Close)
	return st
}

// run has a call played, and returns all that its client sees and its handler finds out.
func (st *stage) run(t *testing.T, c call, exchange func(*testing.T, *stage, call, string) exchange) (exchange, []string) {
	path := "/script/" + strconv.FormatUint(rand.Uint64(), 36)
	a := &act{script: c.rest, done: make(chan struct{})}
	st.mu.Lock()
	st.acts[path] = a
	st.mu.Unlock()
	x := exchange(t, st, c, path)
	select {
	case <-a.done:
	case <-time.After(20 * time.Second):
		t.Fatalf("%s: the handler does not return", st.name)
	}
	st.mu.Lock()
	delete(st.acts, path)
	st.mu.Unlock()
	aborted := slices.ContainsFunc(a.notes, func(n string) bool { return strings.HasPrefix(n, "panic ") })
	for i := range x.Responses {
		if r := &x.Responses[i]; r.BodyErr != "" || c.http10 && aborted {
			r.Body, r.BodyErr = "", "broken off" // after how much is a matter of buffers
		}
		if l := x.Responses[i].Header["Location"]; l != nil {
			x.Responses[i].Header["Location"] = []string{strings.ReplaceAll(l[0], path, "PATH")}
		}
	}
	for i := range a.notes {
		a.notes[i] = strings.ReplaceAll(a.notes[i], path, "PATH")
	}
	return x, a.notes
}

func rawCall(t *testing.T, st *stage, c call, path string) (x exchange) {
	conn, err := net.Dial("tcp", st.srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	var b bytes.Buffer
	proto := "1.1"
	if c.http10 {
		proto = "1.0"
	}
	fmt.Fprintf(&b, "%s %s HTTP/%s\r\nHost: example.test\r\n", c.method, path, proto)
	for i := 0; i < len(c.header); i += 2 {
		fmt.Fprintf(&b, "%s: %s\r\n", c.header[i], c.header[i+1])
	}
	switch {
	case c.body == "":
		b.WriteString("\r\n")
	case c.chunked && !c.http10:
		fmt.Fprintf(&b, "Transfer-Encoding: chunked\r\nTrailer: X-Sent\r\n\r\n%x\r\n%s\r\n0\r\nX-Sent: 1\r\n\r\n", len(c.body), c.body)
	default:
		fmt.Fprintf(&b, "Content-Length: %d\r\n\r\n%s", len(c.body), c.body)
	}
	sent := make(chan struct{})
	go func() { defer close(sent); conn.Write(b.Bytes()) }()
	br := bufio.NewReader(conn)
	for {
		res, err := http.ReadResponse(br, &http.Request{Method: c.method})
		if err != nil {
			x.Err = "no response" // how a connection breaks is a race of TCP
			return x
		}
		if res.StatusCode == 101 {
			sn := see(res)
			<-sent
			conn.(*net.TCPConn).CloseWrite()
			rest, _ := io.ReadAll(br)
			sn.Body = string(rest)
			x.Responses = append(x.Responses, sn)
			return x
		}
		sn := see(res)
		x.Responses = append(x.Responses, sn)
		if res.StatusCode < 200 {
			continue
		}
		if sn.BodyErr == "" && !res.Close {
			<-sent
			fmt.Fprint(conn, "GET /again HTTP/1.1\r\nHost: example.test\r\nConnection: close\r\n\r\n")
			again, err := http.ReadResponse(br, nil)
			if err != nil {
				x.Err = "again: the connection is closed"
			} else {
				x.Err = "again: " + again.Status
			}
		}
		return x
	}
}

func h2Call(t *testing.T, st *stage, c call, path string) (x exchange) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	ctx = seeInterims(ctx, &x)
	var body io.Reader
	if c.body != "" {
		if body = strings.NewReader(c.body); c.chunked {
			body = plainReader{body}
		}
	}
	req, err := http.NewRequestWithContext(ctx, c.method, st.srv.URL+path, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(c.header); i += 2 {
		switch c.header[i] {
		case "Connection", "Upgrade":
			continue
		}
		req.Header.Set(c.header[i], c.header[i+1])
	}
	if len(req.Header["Accept-Encoding"]) == 0 {
		req.Header.Set("Accept-Encoding", "identity")
	}
	res, err := st.srv.Client().Transport.(*http.Transport).RoundTrip(req)
	if err != nil {
		x.Err = stripStream(err.Error())
		return x
	}
	sn := see(res)
	res.Body.Close()
	if ctx.Err() != nil {
		x.Err = ctx.Err().Error()
	}
	sn.BodyErr = stripStream(sn.BodyErr)
	x.Responses = append(x.Responses, sn)
	return x
}

// Whatever a handler does, in whatever order, it and its client find out the same with and without the stack.
func FuzzTransparency(f *testing.F) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 150 {
		b := make([]byte, 4+rng.IntN(40))
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		f.Add(b)
	}
	shadow := func() middleware.Layer { return middleware.Breaker(breaker.NewGroup(breaker.WithShadow(true))) } // handlers fail more than they do not
	stacks := []struct {
		name   string
		layers []middleware.Layer
	}{
		{"all five", []middleware.Layer{middleware.Rate(limiter.NewRate(rate.Limit(1e6), 1e6)), middleware.Cache(cache.New(8 << 20)),
			middleware.Concurrency(limiter.NewConcurrency(10)), shadow(), middleware.Pool(pool.New(pool.WithSlots(10)))}},
		{"much as the defaults", []middleware.Layer{middleware.Cache(cache.New(8<<20, cache.WithOnlyExplicit())), middleware.Concurrency(limiter.NewAdaptive()), shadow()}},
		{"no cache", []middleware.Layer{middleware.Concurrency(limiter.NewConcurrency(10)), shadow(), middleware.Pool(pool.New(pool.WithSlots(10)))}},
		{"a cache that stores much", []middleware.Layer{middleware.Cache(cache.New(8<<20, cache.WithStoreSetCookie()))}},
	}
	none := func(h http.Handler) http.Handler { return h }
	bare, bare2 := newStage(f, "bare", false, none), newStage(f, "bare", true, none)
	var all, all2 []*stage
	for _, s := range stacks {
		all = append(all, newStage(f, s.name, false, middleware.New(s.layers...).Handler))
		all2 = append(all2, newStage(f, s.name, true, middleware.New(s.layers...).Handler))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := script{slices.Clone(b)}
		c := s.call()
		compare := func(how string, bare *stage, all []*stage, exchange func(*testing.T, *stage, call, string) exchange) {
			x, notes := bare.run(t, c, exchange)
			if strings.Contains(x.Err, context.DeadlineExceeded.Error()) {
				return // net/http itself leaves its client waiting
			}
			for _, st := range all {
				got, found := st.run(t, c, exchange)
				for range 4 { // some is left to chance, as how much is read before a connection is closed
					if reflect.DeepEqual(got, x) && slices.Equal(found, notes) {
						break
					}
					x, notes = bare.run(t, c, exchange)
					got, found = st.run(t, c, exchange)
				}
				if !reflect.DeepEqual(got, x) {
					t.Errorf("%s, %s: the client of %.300q sees\n got %s\nwant %s\nnotes %.3000q", st.name, how, fmt.Sprintf("%+v", c), short(got), short(x), notes)
				}
				if !slices.Equal(found, notes) {
					t.Errorf("%s, %s: the handler of %.300q finds out\n got %.3000q\nwant %.3000q", st.name, how, fmt.Sprintf("%+v", c), found, notes)
				}
			}
		}
		compare("HTTP/1.1", bare, all, rawCall)
		compare("HTTP/2", bare2, all2, h2Call)
	})
}

func short(x exchange) string {
	x.Responses = slices.Clone(x.Responses)
	for i := range x.Responses {
		if r := &x.Responses[i]; len(r.Body) > 40 {
			r.Body = fmt.Sprintf("%.40s... (%d bytes)", r.Body, len(r.Body))
		}
	}
	return fmt.Sprintf("%+v", x)
}

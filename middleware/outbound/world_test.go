package outbound_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/spillgate/spillgate/middleware/outbound"
)

// A world is a transport whose hosts are functions. What is not in it refuses
// connections.
type world map[string]func(*http.Request) (*http.Response, error)

func (w world) RoundTrip(req *http.Request) (*http.Response, error) {
	host, ok := w[req.URL.Host]
	if !ok {
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, refusedDial()
	}
	if req.Body != nil {
		defer req.Body.Close()
	}
	return host(req)
}

func refusedDial() error {
	return &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
}

func answer(status int, header ...string) (*http.Response, error) {
	h := http.Header{}
	for i := 0; i < len(header); i += 2 {
		h.Set(header[i], header[i+1])
	}
	return &http.Response{StatusCode: status, Header: h, Body: io.NopCloser(strings.NewReader("body")), ProtoMajor: 1, ProtoMinor: 1}, nil
}

func always(status int, header ...string) func(*http.Request) (*http.Response, error) {
	return func(*http.Request) (*http.Response, error) { return answer(status, header...) }
}

// counted counts the calls of a host.
func counted(n *atomic.Int64, f func(*http.Request) (*http.Response, error)) func(*http.Request) (*http.Response, error) {
	return func(req *http.Request) (*http.Response, error) {
		n.Add(1)
		return f(req)
	}
}

func request(ctx context.Context, method, url string, body io.Reader) *http.Request {
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		panic(err)
	}
	return req
}

// do sends a request and closes the response; the status is 0 on an error.
func do(rt http.RoundTripper, req *http.Request) (int, error) {
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return 0, err
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	return resp.StatusCode, nil
}

func get(t testing.TB, rt http.RoundTripper, url string) (int, error) {
	return do(rt, request(t.Context(), "GET", url, nil))
}

// closing tells whether a body was closed.
type closing struct {
	io.Reader
	closed atomic.Bool
}

func (c *closing) Close() error { c.closed.Store(true); return nil }

// A network is connections within a synctest bubble, for a real http.Transport.
type network struct {
	mu        sync.Mutex
	listeners map[string]*pipeListener
}

func newNetwork() *network { return &network{listeners: map[string]*pipeListener{}} }

func (n *network) transport() *http.Transport {
	return &http.Transport{DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
		n.mu.Lock()
		l := n.listeners[addr]
		n.mu.Unlock()
		if l == nil {
			return nil, refusedDial()
		}
		return l.dial(ctx)
	}}
}

func (n *network) listen(addr string) *pipeListener {
	l := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
	n.mu.Lock()
	n.listeners[addr] = l
	n.mu.Unlock()
	return l
}

// serve starts a server until the test is over.
func (n *network) serve(t *testing.T, addr string, h http.HandlerFunc) *http.Server {
	srv := &http.Server{Handler: h}
	l := n.listen(addr)
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return srv
}

type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

func (l *pipeListener) dial(ctx context.Context) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case l.conns <- theirs:
		return ours, nil
	case <-l.closed:
		return nil, refusedDial()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func newSet(t testing.TB, endpoints []outbound.Endpoint, opts ...outbound.SetOption) *outbound.Set {
	t.Helper()
	s, err := outbound.NewSet(endpoints, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func urls(urls ...string) []outbound.Endpoint {
	var list []outbound.Endpoint
	for _, u := range urls {
		list = append(list, outbound.Endpoint{URL: u})
	}
	return list
}

var errCut = errors.New("connection reset by peer")

// cutBody fails after a few bytes.
type cutBody struct{ read bool }

func (c *cutBody) Read(p []byte) (int, error) {
	if c.read {
		return 0, errCut
	}
	c.read = true
	return copy(p, "half"), nil
}

func (c *cutBody) Close() error { return nil }

func notFoundDNS() error {
	return &net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", IsNotFound: true}}
}

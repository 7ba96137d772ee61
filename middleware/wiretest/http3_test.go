package wiretest

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/quic-go/quic-go/http3"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/cache"
	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware"
	"github.com/spillgate/spillgate/middleware/outbound"
	"github.com/spillgate/spillgate/pool"
)

// serve3 serves h over HTTP/3, and returns its address and a client.
func serve3(t *testing.T, h http.Handler) (string, *http3.Transport) {
	t.Helper()
	other := httptest.NewTLSServer(nil) // for its certificate
	t.Cleanup(other.Close)
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http3.Server{
		Handler:   h,
		Logger:    slog.New(slog.DiscardHandler),
		TLSConfig: http3.ConfigureTLSConfig(&tls.Config{Certificates: other.TLS.Certificates}),
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(conn) }()
	c := &http3.Transport{TLSClientConfig: other.Client().Transport.(*http.Transport).TLSClientConfig.Clone()}
	c.TLSClientConfig.NextProtos = nil
	t.Cleanup(func() {
		c.Close()
		s.Close()
		<-ended
		conn.Close()
	})
	return "https://" + conn.LocalAddr().String(), c
}

// ask3 sends a request and returns what came, but for what a layer may add.
func ask3(c http.RoundTripper, method, url string, body io.Reader, fields ...string) string {
	req, err := http.NewRequest(method, url, body)
	if err != nil {
		return err.Error()
	}
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		if name == "Trailer" {
			req.Trailer = http.Header{value: {"sent"}}
			continue
		}
		req.Header.Set(name, value)
	}
	resp, err := c.RoundTrip(req)
	if err != nil {
		return "error: " + err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	for _, name := range []string{"Date", "Cache-Status", "Age", "Ratelimit", "Ratelimit-Policy"} {
		resp.Header.Del(name)
	}
	if len(b) > 100 {
		b = fmt.Append(nil, len(b), " bytes")
	}
	return fmt.Sprintf("%d %v %d %q %v %v", resp.StatusCode, resp.Header, resp.ContentLength, b, resp.Trailer, err)
}

// What a client sees over HTTP/3, by a server and a client of quic-go, is the same with the layers and without.
func TestHTTP3IsTheSame(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/page", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Cache-Control", "public, max-age=60")
		io.WriteString(w, "page")
	})
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		w.Header().Set("Trailer", "Sum")
		w.Header().Set("X-Read", fmt.Sprint(len(b), err, r.Trailer))
		w.Write(b)
		w.Header().Set("Sum", fmt.Sprint(len(b)))
		w.Header().Set(http.TrailerPrefix+"Late", "1")
	})
	mux.HandleFunc("/unread", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "too large", 413) })
	mux.HandleFunc("/events", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for range 3 {
			io.WriteString(w, "data: x\n\n")
			w.(http.Flusher).Flush()
		}
	})
	mux.HandleFunc("/hints", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</a.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		io.WriteString(w, "page")
	})
	mux.HandleFunc("/length", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "4")
		io.WriteString(w, "page")
		if _, err := io.WriteString(w, "more"); !errors.Is(err, http.ErrContentLength) {
			t.Errorf("more than its length: %v", err)
		}
	})
	mux.HandleFunc("/large", func(w http.ResponseWriter, _ *http.Request) { io.Copy(w, bytes.NewReader(make([]byte, 1<<20))) })
	mux.HandleFunc("/none", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) })
	unknown := func(s string) io.Reader { return io.MultiReader(strings.NewReader(s)) }
	cases := []struct {
		name, method, path string
		body               func() io.Reader
		fields             []string
	}{
		{"page", "GET", "/page", nil, nil},
		{"again", "GET", "/page", nil, nil},
		{"a range of nothing", "GET", "/none", nil, []string{"Range: bytes=1-2"}},
		{"head", "HEAD", "/length", nil, nil},
		{"not found", "GET", "/missing", nil, nil},
		{"body of known length", "POST", "/echo", func() io.Reader { return strings.NewReader("body") }, nil},
		{"of unknown length", "POST", "/echo", func() io.Reader { return unknown("body") }, nil},
		{"with a trailer", "POST", "/echo", func() io.Reader { return unknown("body") }, []string{"Trailer: Checksum"}},
		{"GET with a body", "GET", "/echo", func() io.Reader { return unknown("body") }, nil},
		{"GET with a body and a trailer", "GET", "/echo?trailer", func() io.Reader { return unknown("body") }, []string{"Trailer: Checksum"}},
		{"GET with a trailer alone", "GET", "/echo?alone", func() io.Reader { return unknown("") }, []string{"Trailer: Checksum"}},
		{"GET that ends late", "GET", "/echo?late", func() io.Reader { return unknown("") }, nil},
		{"large body", "POST", "/echo", func() io.Reader { return bytes.NewReader(make([]byte, 2<<20)) }, nil},
		{"that is not read", "POST", "/unread", func() io.Reader { return bytes.NewReader(make([]byte, 2<<20)) }, nil},
		{"events", "GET", "/events", nil, nil},
		{"early hints", "GET", "/hints", nil, nil},
		{"length", "GET", "/length", nil, nil},
		{"large", "GET", "/large", nil, nil},
		{"no content", "GET", "/none", nil, nil},
	}
	ask := func(layers ...middleware.Layer) []string {
		h := http.Handler(mux)
		if layers != nil {
			h = middleware.Wrap(mux, layers...)
		}
		base, c := serve3(t, h)
		var out []string
		for _, k := range cases {
			var body io.Reader
			if k.body != nil {
				body = k.body()
			}
			out = append(out, ask3(c, k.method, base+k.path, body, k.fields...))
		}
		return out
	}
	bare := ask()
	for name, layers := range map[string][]middleware.Layer{
		"defaults": middleware.Defaults(),
		"all five": {
			middleware.Rate(limiter.NewRate(1e6, 1e6)), middleware.Cache(cache.New(1 << 20)), middleware.Concurrency(limiter.NewConcurrency(10)),
			middleware.Breaker(breaker.NewGroup()), middleware.Pool(pool.New()),
		},
		"a buffer": append(middleware.Defaults(), middleware.BufferBody(4<<10)),
	} {
		for i, got := range ask(layers...) {
			if got != bare[i] {
				t.Errorf("%s, %s:\n%s, and without layers\n%s", cases[i].name, name, got, bare[i])
			}
		}
	}
}

// Over HTTP/3 the cache answers, a stack that drains says so, and what a proxy got is tried again.
func TestHTTP3(t *testing.T) {
	var calls atomic.Int64
	stack := middleware.New()
	base, c := serve3(t, stack.Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		calls.Add(1)
		w.Header().Set("Cache-Control", "public, max-age=60")
		io.WriteString(w, "page")
	})))
	for range 3 {
		if got := ask3(c, "GET", base+"/", nil); !strings.HasPrefix(got, "200") || calls.Load() != 1 {
			t.Errorf("%s after %d calls; want one", got, calls.Load())
		}
	}
	if err := stack.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := ask3(c, "GET", base+"/", nil); !strings.HasPrefix(got, "503") {
		t.Errorf("a stack that drains: %s", got)
	}

	calls.Store(0)
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if calls.Add(1) == 1 {
			w.WriteHeader(503)
		}
	}))
	defer backend.Close()
	at, err := url.Parse(backend.URL)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	proxy := &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(at) },
		Transport: outbound.New(transport, outbound.Retry()),
	}
	base, c = serve3(t, proxy)
	if got := ask3(c, "GET", base+"/", nil); !strings.HasPrefix(got, "200") || calls.Load() != 2 {
		t.Errorf("through a proxy: %s after %d calls; want the second", got, calls.Load())
	}
}

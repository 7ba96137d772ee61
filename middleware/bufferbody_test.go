package middleware_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware"
	"github.com/spillgate/spillgate/pool"
)

// arriving is a body of which each Read has a part of its own, and an error after the last or with it.
type arriving struct {
	parts  []string
	err    error
	with   bool // the error comes with the last part
	reads  int
	closed int
}

func (a *arriving) Read(p []byte) (int, error) {
	a.reads++
	switch {
	case a.closed > 0:
		return 0, http.ErrBodyReadAfterClose
	case len(p) == 0:
		return 0, nil
	case len(a.parts) == 0:
		return 0, a.err
	}
	n := copy(p, a.parts[0])
	if a.parts[0] = a.parts[0][n:]; a.parts[0] == "" {
		a.parts = a.parts[1:]
	}
	if len(a.parts) == 0 && a.with {
		return n, a.err
	}
	return n, nil
}

func (a *arriving) Close() error { a.closed++; return nil }

// However a body comes and however it is read, what a handler has of it is what it would have without the layer, the error and Close
// among it.
func TestBufferBodyIsTheBody(t *testing.T) {
	errCut := errors.New("cut off")
	for seed := range uint64(3000) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		var parts []string
		for range rnd.IntN(8) {
			parts = append(parts, strings.Repeat(string(rune('a'+rnd.IntN(26))), 1+rnd.IntN(1<<rnd.IntN(14))))
		}
		whole := strings.Join(parts, "")
		body := &arriving{parts: parts, err: io.EOF, with: rnd.IntN(2) == 0}
		if rnd.IntN(3) == 0 {
			body.err = errCut
		}
		n := 1 + rnd.IntN(1<<rnd.IntN(16))
		length := int64(-1)
		if rnd.IntN(2) == 0 && body.err == io.EOF {
			length = int64(len(whole))
		}
		first := min(n, len(whole))
		middleware.BufferBody(n).Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			came := len(whole) - len(strings.Join(body.parts, ""))
			if came < first || came > n {
				t.Errorf("seed %d: the handler begins when %d have come of %d, want %d", seed, came, len(whole), first)
			}
			var got bytes.Buffer
			var err error
			for err == nil && (got.Len() < len(whole)/2 || seed%4 != 0) {
				p := make([]byte, rnd.IntN(1<<rnd.IntN(14)))
				var m int
				m, err = r.Body.Read(p)
				got.Write(p[:m])
			}
			if seed%4 != 0 && (err != body.err || got.String() != whole) || !strings.HasPrefix(whole, got.String()) {
				t.Errorf("seed %d: %d bytes and %v, want %d and %v", seed, got.Len(), err, len(whole), body.err)
			}
			if err := r.Body.Close(); err != nil || body.closed != 1 {
				t.Errorf("seed %d: closed %d times, %v", seed, body.closed, err)
			}
			if m, err := r.Body.Read(make([]byte, 1)); m != 0 || err != http.ErrBodyReadAfterClose {
				t.Errorf("seed %d: after Close %d bytes and %v", seed, m, err)
			}
		})).ServeHTTP(httptest.NewRecorder(), withBody(body, length))
	}
}

func withBody(body io.ReadCloser, length int64) *http.Request {
	r := httptest.NewRequest("POST", "/", nil)
	r.Body, r.ContentLength = body, length
	return r
}

// Who sends slowly holds neither a permit nor a slot; without the layer he holds the only one.
func TestBufferBodyHoldsNothing(t *testing.T) {
	for name, c := range map[string]struct {
		layers func() []middleware.Layer
	}{
		"a permit": {func() []middleware.Layer {
			return []middleware.Layer{middleware.Concurrency(limiter.NewConcurrency(1))}
		}},
		"a slot": {func() []middleware.Layer {
			return []middleware.Layer{middleware.Pool(pool.New(pool.WithSlots(1), pool.WithQueue(0, 0)))}
		}},
		"a slot of a route": {func() []middleware.Layer {
			return []middleware.Layer{middleware.For("POST /", middleware.Pool(pool.New(pool.WithSlots(1), pool.WithQueue(0, 0))))}
		}},
	} {
		for _, buffered := range []bool{true, false} {
			t.Run(fmt.Sprint(name, ", ", buffered), func(t *testing.T) {
				came := make(chan struct{}) // the slow request: to the layer, or without it to the handler
				var once sync.Once
				layers, want := c.layers(), http.StatusServiceUnavailable
				if buffered {
					want = http.StatusOK
					layers = append(layers, middleware.BufferBody(1<<10, middleware.WithSkip(func(r *http.Request) bool {
						if r.URL.Path == "/slow" {
							once.Do(func() { close(came) })
						}
						return false
					})))
				}
				s, _ := serve(t, middleware.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/slow" {
						once.Do(func() { close(came) })
					}
					b, err := io.ReadAll(r.Body)
					fmt.Fprint(w, len(b), err)
				}), layers...), false)
				conn := dial(t, s)
				io.WriteString(conn, "POST /slow HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nslowl")
				<-came
				res, err := s.Client().Post(s.URL, "text/plain", strings.NewReader("quick"))
				if err != nil {
					t.Fatal(err)
				}
				res.Body.Close()
				if res.StatusCode != want {
					t.Errorf("another one's status is %d meanwhile, want %d", res.StatusCode, want)
				}
				io.WriteString(conn, "y sent")
				if res, err = http.ReadResponse(bufio.NewReader(conn), nil); err != nil {
					t.Fatal(err)
				}
				if b, _ := io.ReadAll(res.Body); res.StatusCode != http.StatusOK || string(b) != "10 <nil>" {
					t.Errorf("the slow one has %d %q", res.StatusCode, b)
				}
			})
		}
	}
}

// A client that leaves while its request waits gives up its place in the line, once its body has been read.
func TestBufferBodyTellsThatClientsLeave(t *testing.T) {
	for _, size := range []int{1, 1 << 10} {
		p := pool.New(pool.WithSlots(1))
		_, slot, err := p.Enter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		s, _ := serve(t, middleware.Wrap(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			t.Error("the handler runs")
		}), middleware.Pool(p), middleware.BufferBody(1<<10)), false)
		conn := dial(t, s)
		fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s", size, strings.Repeat("x", size))
		for p.Stats().Waiting == 0 {
			runtime.Gosched()
		}
		conn.Close()
		for p.Stats().Left == 0 { // it is counted once it has left the queue
			runtime.Gosched()
		}
		if s := p.Stats(); s.Left != 1 || s.Waiting != 0 {
			t.Errorf("%d have left and %d wait, want 1 and none", s.Left, s.Waiting)
		}
		slot.Leave()
	}
}

// What there is no body of, what skips the layer and what is a tunnel go on as they came.
func TestBufferBodyLeavesAlone(t *testing.T) {
	for name, c := range map[string]struct {
		method string
		body   io.ReadCloser
		opts   []middleware.Option
	}{
		"no body":           {"POST", nil, nil},
		"http.NoBody":       {"POST", http.NoBody, nil},
		"a tunnel":          {"CONNECT", &arriving{parts: []string{"x"}, err: io.EOF}, nil},
		"what skips":        {"POST", &arriving{parts: []string{"x"}, err: io.EOF}, []middleware.Option{middleware.WithSkip(func(*http.Request) bool { return true })}},
		"nothing announced": {"POST", &arriving{err: io.EOF}, nil},
	} {
		r := httptest.NewRequest(c.method, "/", nil)
		r.Body, r.ContentLength = c.body, 0
		middleware.BufferBody(10, c.opts...).Handler(http.HandlerFunc(func(_ http.ResponseWriter, in *http.Request) {
			if a, ok := c.body.(*arriving); ok && a.reads > 0 {
				t.Errorf("%s: read before the handler", name)
			}
			if name != "nothing announced" && in != r {
				t.Errorf("%s: another request", name)
			}
		})).ServeHTTP(httptest.NewRecorder(), r)
	}
}

// A body takes no more memory than twice what has come of it, whatever is announced.
func TestBufferBodyMakesRoomForWhatComes(t *testing.T) {
	const n = 1 << 20
	for _, comes := range []int{0, 1, 5000, 100_000, n, n + 1} {
		for _, length := range []int64{-1, int64(comes), n} {
			body := io.NopCloser(io.MultiReader(strings.NewReader(strings.Repeat("x", comes)), &arriving{err: io.ErrUnexpectedEOF}))
			if room, most := middleware.BufferedRoom(body, n, length), max(4<<10, 2*comes); room > min(most, n) {
				t.Errorf("%d of %d bytes have come: room for %d, want %d at most", comes, length, room, most)
			}
		}
	}
}

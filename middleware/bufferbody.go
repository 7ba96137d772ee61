package middleware

import (
	"fmt"
	"io"
	"net/http"
	"sync"

	"github.com/spillgate/spillgate/cache"
)

// BufferBody reads up to n bytes of a request's body before the layers inside are asked. A client that sends slowly
// then holds the goroutine of its connection and what it has sent so far, but neither a permit of [Concurrency], also
// if that has a fixed limit, nor a slot of a [Pool], nor anything that the handler takes before it reads. BufferBody is
// for servers that clients reach directly; a proxy that buffers requests does the same (proxy_request_buffering in
// nginx).
//
//	middleware.Wrap(mux, append(middleware.Defaults(), middleware.BufferBody(64<<10))...)
//
// Over HTTP/1, net/http does not see a client leave before the body has been read. So with this layer a request whose
// body has at most n bytes gives up its place in the queue when its client has lost patience; without it, the server
// would work for nobody when the request's turn came.
//
// The handler reads what is beyond n bytes as it comes: choose n to fit the bodies that you expect, and give larger ones
// a route and a limit of their own. If a body cannot be read, the handler gets what
// came of it, and then the error. Set [http.Server.ReadTimeout]; without it a body may take forever to come.
//
// The handler begins when the body, or n bytes of it, has come. A client that waits for a 100 (Continue) gets it
// before anything has decided on its request. So BufferBody is not for handlers that answer while the body is still
// coming, such as a bidirectional gRPC stream, or that take over a connection with the body unread: exempt them with
// [WithSkip], or name the other routes with [For]. A CONNECT is never held up.
//
// The layer holds at most n bytes for each request whose body the handler has not read yet, and no more than twice
// what has come, or 4 KiB if that is more.
//
// Of its options only [WithSkip] has an effect, since the layer refuses no request. It panics if n is not positive or
// an option is nil.
func BufferBody(n int, opts ...Option) Layer {
	if n <= 0 {
		panic(fmt.Sprintf("middleware: BufferBody(%d): give the number of bytes, above 0", n))
	}
	l := &bufferLayer{n: n}
	for i, o := range opts {
		if o == nil {
			panic(nilOption("BufferBody", i))
		}
		o.applyBuffer(&l.config)
	}
	return l
}

type bufferLayer struct {
	n      int
	config common
}

func (*bufferLayer) rank() rank { return rankBuffer }

// Handler implements [Layer].
func (l *bufferLayer) Handler(next http.Handler) http.Handler { return l.wrap(next, env{}) }

func (l *bufferLayer) wrap(next http.Handler, e env) http.Handler {
	return &bufferHandler{base: newBase(next, e, l.config, rejecter{layer: "buffer"}), n: l.n}
}

type bufferHandler struct {
	base
	n int
}

func (h *bufferHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h.skip != nil && h.skips(w, r) {
		h.skipped.ServeHTTP(w, r)
		return
	}
	w, rec := record(w, r)
	if r.Body == nil || r.Body == http.NoBody || r.Method == http.MethodConnect {
		h.serve(w, r, rec)
		return
	}
	body := &buffered{ReadCloser: r.Body}
	body.fill(h.n, r.ContentLength)
	rec.fresh = false
	inner := passed(r, r.Context())
	body.ReadCloser = inner.Body
	inner.Body = body
	defer passBack(r, inner)
	h.serve(w, inner, rec)
}

// ServeFill implements [cache.Gate] for what is inside: what a cache fills has no body.
func (h *bufferHandler) ServeFill(w http.ResponseWriter, r *http.Request, f cache.Fill) {
	if h.skip != nil && h.skips(w, r) {
		h.skipped.ServeHTTP(w, f.Request())
		return
	}
	if h.skip != nil { // which may have taken any time, and f would not know
		h.next.ServeHTTP(w, f.Request())
		return
	}
	serveFill(h.next, w, r, f)
}

// bufferFirst is how much room is made for a body before it is known that so much comes.
const bufferFirst = 4 << 10

// buffered is a body of which the first part has been read.
type buffered struct {
	io.ReadCloser
	mu   sync.Mutex // a transport may close what it still reads
	read []byte
	err  error // after that
}

// fill reads up to n bytes. length is how many are announced; -1 is not known.
func (b *buffered) fill(n int, length int64) {
	if length >= 0 {
		n = int(min(int64(n), length))
	}
	b.read = make([]byte, 0, min(n, bufferFirst))
	for len(b.read) < n && b.err == nil {
		if len(b.read) == cap(b.read) {
			b.read = append(make([]byte, 0, min(n, 2*cap(b.read))), b.read...)
		}
		var m int
		m, b.err = b.ReadCloser.Read(b.read[len(b.read):cap(b.read)])
		b.read = b.read[:len(b.read)+m]
	}
}

func (b *buffered) Read(p []byte) (int, error) {
	b.mu.Lock()
	if len(b.read) > 0 {
		m := copy(p, b.read)
		if b.read = b.read[m:]; len(b.read) == 0 {
			b.read = nil // the memory
		}
		b.mu.Unlock()
		return m, nil
	}
	err := b.err
	b.mu.Unlock()
	if err != nil {
		return 0, err
	}
	return b.ReadCloser.Read(p)
}

// Close closes the body; what has been read of it is gone, too.
func (b *buffered) Close() error {
	b.mu.Lock()
	b.read, b.err = nil, nil
	b.mu.Unlock()
	return b.ReadCloser.Close()
}

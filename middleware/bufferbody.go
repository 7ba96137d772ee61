package middleware

import (
	"fmt"
	"io"
	"net/http"
	"sync"

	"github.com/spillgate/spillgate/cache"
)

// BufferBody has up to n bytes of a request's body read before the layers inside are asked: who sends slowly holds the goroutine of his
// connection and what he has sent so far, and neither a permit of [Concurrency] nor a slot of a [Pool]. It is for servers that clients reach directly; a proxy that
// buffers requests does the same (proxy_request_buffering in nginx).
//
//	middleware.Wrap(mux, append(middleware.Defaults(), middleware.BufferBody(64<<10))...)
//
// Over HTTP/1 net/http does not see a client leave before the body has been read. So a request whose body has at most n bytes also gives up its place in the line where
// its client has no more patience; without this layer it would be worked on for nobody when it is its turn.
//
// What is beyond n bytes the handler reads as it comes, with the permit: give n the size of the bodies that there are, and those that are larger a route
// and a limit of their own. A body that cannot be read is passed on as far as it came, and the handler has the error after that. Set
// [http.Server.ReadTimeout], without which a body may come for ever.
//
// The handler begins when the body has come, or n bytes of it, and who waits for a 100 (Continue) is sent that before anybody has decided on his request. So it is
// not for handlers that answer while the body still comes, as a stream of gRPC in both directions, or that take over
// a connection with the body unread: leave them out by [WithSkip], or name the others with [For]. A CONNECT is never held up.
//
// The memory is n bytes at most for each request whose body the handler has not read yet, and no more than twice what has come, or 4 KiB.
//
// Of its options only [WithSkip] has an effect: the layer refuses nobody. It panics if n is not positive or an option is nil.
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

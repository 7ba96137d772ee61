package middleware

import (
	"errors"
	"io"
	"net/http"
	"sync/atomic"
)

// body is the body of a request whose recorder wants to know whether the client is to blame if a handler cannot read it: over
// HTTP/2, and where the framing is wrong, the context does not tell.
type body struct {
	io.ReadCloser
	rec    *recorder
	closed atomic.Bool // by the handler: what a Read returns then says nothing
}

// watchBody puts a body around that of r, if there is one.
func (rec *recorder) watchBody(r *http.Request) {
	if r.Body == nil || r.Body == http.NoBody {
		return
	}
	if b, ok := r.Body.(*body); ok && b.rec == rec {
		return
	}
	r.Body = &body{ReadCloser: r.Body, rec: rec}
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF && !b.closed.Load() && !errors.Is(err, http.ErrBodyReadAfterClose) {
		b.rec.marks.Or(badBody)
	}
	return n, err
}

func (b *body) Close() error {
	b.closed.Store(true)
	return b.ReadCloser.Close()
}

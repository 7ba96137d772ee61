package middleware

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"strings"
	"sync/atomic"

	"github.com/spillgate/spillgate/limiter"
)

// body is the body of a request whose recorder wants to know whether the client is to blame if a handler cannot read it: over
// HTTP/2, and where the framing is wrong, the context does not tell.
type body struct {
	io.ReadCloser
	rec    *recorder
	wait   *bodyWait   // for it, with the permit of a limit
	closed atomic.Bool // by the handler: what a Read returns then says nothing
}

// watchBody returns r, or in place of it a request with such a body, if r has one: r may be net/http's own, which has to keep its body.
// The server looks at its type to know whether the client waits for 100 Continue, and whether what was left in a body that was closed
// can be taken for the next request. passBack is to be called when the handler has returned.
func (rec *recorder) watchBody(r *http.Request) *http.Request {
	if r.Body == nil || r.Body == http.NoBody {
		return r
	}
	if b, ok := r.Body.(*body); ok && b.rec == rec {
		return r
	}
	inner := passed(r, r.Context())
	inner.Body = &body{ReadCloser: inner.Body, rec: rec}
	return inner
}

// passed returns a copy of r with another context, to be passed on in its place.
func passed(r *http.Request, ctx context.Context) *http.Request {
	http3 := r.ProtoMajor == 3 && r.Body != nil && r.Body != http.NoBody && r.Method != http.MethodConnect
	if r.Trailer == nil && (r.ContentLength < 0 || http3) {
		r.Trailer = make(http.Header) // net/http puts trailers that were not announced into its own request: they have the map in common
	}
	inner := r.WithContext(ctx)
	if http3 {
		switch r.Body.(type) {
		case *sealed, *body, *buffered: // the copy that it was made for has this map
		default:
			inner.Body = &sealed{r.Body, r, inner.Trailer}
		}
	}
	return inner
}

// sealed is the body of a request over HTTP/3, of which a copy is passed on: at the end of the body, quic-go gives its own request
// a new map of trailers. What is in it goes into the map that all copies have.
type sealed struct {
	io.ReadCloser
	r        *http.Request // the server's
	trailers http.Header
}

func (s *sealed) Read(p []byte) (int, error) {
	n, err := s.ReadCloser.Read(p)
	if err == io.EOF {
		maps.Copy(s.trailers, s.r.Trailer)
	}
	return n, err
}

// passBack gives r what a mux and a handler inside have found out about the request that was passed on in its place: the functions of
// a trace, of a breaker and of a refund are given r. Package cache has one like it.
func passBack(r, inner *http.Request) {
	if r == inner {
		return
	}
	if r.Pattern != inner.Pattern {
		r.Pattern = inner.Pattern
		for _, after, ok := strings.Cut(r.Pattern, "{"); ok; _, after, ok = strings.Cut(after, "{") {
			name, _, _ := strings.Cut(after, "}")
			if name = strings.TrimSuffix(name, "..."); name != "$" {
				r.SetPathValue(name, inner.PathValue(name))
			}
		}
	}
	r.Form, r.PostForm = inner.Form, inner.PostForm
	r.MultipartForm = inner.MultipartForm // net/http removes the files of the request that it made
}

func (b *body) Read(p []byte) (int, error) {
	b.wait.begins()
	n, err := b.ReadCloser.Read(p)
	b.wait.ended(n)
	if err != nil && err != io.EOF && !b.closed.Load() && !errors.Is(err, http.ErrBodyReadAfterClose) {
		b.rec.marks.Or(badBody)
	}
	return n, err
}

func (b *body) Close() error {
	b.closed.Store(true)
	return b.ReadCloser.Close()
}

// awaitsPermit returns from with a place for the permit while a Read of the body of inner waits.
func (b *body) awaitsPermit(inner *http.Request, from *permitSource, p limiter.Permit, r limiter.Request) *permitSource {
	x := new(struct {
		clientWait
		bodyWait
	})
	w := &x.clientWait
	w.permitSource, w.permit = *from, p
	w.permitSource.wait = w
	x.request = r
	b.awaits(inner, w, &x.bodyWait)
	return &w.permitSource
}

// awaits has x give what w is about to others while a Read of the body of inner waits.
func (b *body) awaits(inner *http.Request, w *clientWait, x *bodyWait) {
	x.wait, x.ctx, x.outer, x.left = w, inner.Context(), b.wait, inner.ContentLength
	w.body, b.wait = x, x
}

package outbound

import (
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/spillgate/spillgate/breaker"
)

// An ender is told once when a response body is over: with nil at its end or when
// the caller closed it early, with the error if reading failed before.
type ender interface{ ended(err error) }

// body watches a response body for its layer. The state of the layer is a value
// in it, so that watching costs one allocation.
type body[E ender] struct {
	io.ReadCloser
	over  atomic.Bool
	state E
}

// watch puts state on the body of resp, or ends it at once if there is none.
func watch[E ender](resp *http.Response, state E) {
	if resp.Body == nil || resp.Body == http.NoBody {
		state.ended(nil)
		return
	}
	// The body of a 101 response is the connection, and is written to.
	if w, ok := resp.Body.(io.Writer); ok {
		resp.Body = &duplex[E]{body[E]{ReadCloser: resp.Body, state: state}, w}
		return
	}
	resp.Body = &body[E]{ReadCloser: resp.Body, state: state}
}

func (b *body[E]) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && b.over.CompareAndSwap(false, true) {
		if err == io.EOF {
			b.state.ended(nil)
		} else {
			b.state.ended(err)
		}
	}
	return n, err
}

func (b *body[E]) Close() error {
	// Claimed before it is closed beneath: that makes a Read under way fail.
	if b.over.CompareAndSwap(false, true) {
		defer b.state.ended(nil) // also where a body of somebody else's panics
	}
	return b.ReadCloser.Close()
}

type duplex[E ender] struct {
	body[E]
	w io.Writer
}

func (d *duplex[E]) Write(p []byte) (int, error) { return d.w.Write(p) }

// CloseWrite is for [net/http/httputil.ReverseProxy], which hands on that one side has
// said all it has to say.
func (d *duplex[E]) CloseWrite() error {
	if c, ok := d.w.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return fmt.Errorf("CloseWrite: %w", http.ErrNotSupported)
}

// What discard reads of a response, and how long it waits for that.
const (
	drainBytes = 4 << 10
	drainTime  = 100 * time.Millisecond
)

// discard gives up a response: it reads a little, so that the connection of a
// short one can be used again, and closes it. A body that does not come is not
// waited for: who sent the header of a failure may hang as well. One that net/http
// decompresses is closed unread: while it waits for the beginning, Close waits too.
func discard(resp *http.Response) {
	if resp == nil || resp.Body == nil {
		return
	}
	if resp.StatusCode != http.StatusSwitchingProtocols && resp.ContentLength <= drainBytes && !resp.Uncompressed {
		late := time.AfterFunc(drainTime, func() { resp.Body.Close() })
		io.CopyN(io.Discard, resp.Body, drainBytes)
		late.Stop()
	}
	resp.Body.Close()
}

// ask asks a function of the user's about a try. If it panics, nobody gets the
// response, which would hold what the layers beneath have given it.
func ask[V any](f func(*http.Request, *http.Response, error) V, req *http.Request, resp *http.Response, err error) V {
	returned := false
	defer closeUnless(&returned, resp)
	v := f(req, resp, err)
	returned = true
	return v
}

// report tells a breaker what became of a call. If a function of the user's that is told of the change panics, nobody
// gets the response.
func report(call breaker.Call, o breaker.Outcome, took time.Duration, now time.Time, resp *http.Response) {
	returned := false
	defer closeUnless(&returned, resp)
	call.DoneAt(o, took, now)
	returned = true
}

func closeUnless(returned *bool, resp *http.Response) {
	if !*returned && resp != nil && resp.Body != nil {
		resp.Body.Close()
	}
}

// refuse closes the body of a request that is not sent, as a RoundTripper must.
func refuse(req *http.Request, err error) (*http.Response, error) {
	if req.Body != nil {
		req.Body.Close()
	}
	return nil, err
}

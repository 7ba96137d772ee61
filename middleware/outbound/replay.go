package outbound

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
)

// A replay gives each try its own copy of the request body, where that can be
// had: from GetBody, from a buffer if the body is known to be short, and for a
// long body only as long as no try has read from it. One that turns out to be empty
// was none.
type replay struct {
	req    *http.Request
	kind   replayKind
	buf    []byte
	body   *unsaid   // the caller's body itself
	stream *streamed // the last one given out
}

type replayKind int

const (
	replayNone   replayKind = iota // no body
	replayGet                      // GetBody
	replayBuffer                   // buf
	replayStream                   // the caller's body itself
)

// newReplay reads a body of known length up to limit. A body of unknown length
// is not read ahead: its writer may wait for the response.
func newReplay(req *http.Request, limit int64) (*replay, error) {
	r := &replay{req: req}
	switch {
	case req.Body == nil || req.Body == http.NoBody:
		r.kind = replayNone
	case req.GetBody != nil:
		r.kind = replayGet
	case req.ContentLength > 0 && req.ContentLength <= limit:
		r.kind = replayBuffer
		var err error
		if r.buf, err = readAhead(req); err != nil {
			return nil, err
		}
	default:
		r.kind = replayStream
		r.body = &unsaid{ReadCloser: req.Body, some: req.ContentLength > 0}
	}
	return r, nil
}

// readAhead reads the body of req and closes it. It waits no longer than the caller does, who
// may have left the body to somebody slow.
func readAhead(req *http.Request) ([]byte, error) {
	length := req.ContentLength
	var buf bytes.Buffer
	buf.Grow(int(min(length, aheadAtOnce)) + bytes.MinRead)
	read := make(chan error, 1)
	go func() { // to close the body would not help: a server's waits for the Read under way
		_, err := io.Copy(&buf, io.LimitReader(req.Body, length))
		if err == nil && int64(buf.Len()) < length {
			err = io.ErrUnexpectedEOF
		}
		if err == nil { // it must be over now; net/http asks for that too before it has sent all
			var more int
			if more, err = io.ReadFull(req.Body, make([]byte, 1)); more > 0 {
				err = fmt.Errorf("it is longer than its ContentLength of %d", length)
			} else if err == io.EOF {
				err = nil
			}
		}
		req.Body.Close()
		read <- err
	}()
	select {
	case err := <-read:
		if err != nil {
			return nil, fmt.Errorf("outbound: reading the request body: %w", err)
		}
		return buf.Bytes(), nil
	case <-req.Context().Done():
		return nil, context.Cause(req.Context())
	}
}

// aheadAtOnce is the most memory that a body gets before it has come: its length is what a client of
// a proxy says.
const aheadAtOnce = 64 << 10

// prepare gives out, which is a copy of the request, the body for a try. It reports false if that
// cannot be had; the first one always can.
func (r *replay) prepare(out *http.Request, first bool) bool {
	switch r.kind {
	case replayGet:
		if first {
			return true // the body that came with it
		}
		b, err := r.req.GetBody()
		if err != nil {
			return false
		}
		out.Body = b
	case replayBuffer:
		out.Body = io.NopCloser(bytes.NewReader(r.buf))
		out.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(r.buf)), nil }
	case replayStream:
		if r.body.none.Load() {
			withoutBody(out)
			return true
		}
		r.stream = &streamed{body: r.body}
		out.Body = r.stream
	}
	return true
}

// again reports whether another try can have the body.
func (r *replay) again() bool {
	return r.kind != replayStream || r.body.none.Load() && len(r.req.Trailer) == 0 || r.stream.reclaim()
}

// finish closes a body that was kept open for a try that will not be made.
func (r *replay) finish() {
	if r.kind == replayStream && r.stream != nil && r.stream.release() {
		r.req.Body.Close()
	}
}

// An unsaid body is one that the request may have or not. A server of HTTP/3 (quic-go) gives each request without a Content-Length a
// body of the length -1, and so nearly every GET that a proxy passes on. Who reads it finds out.
type unsaid struct {
	io.ReadCloser
	some bool        // has been read, or is to come by the Content-Length
	none atomic.Bool // the end came first
}

func (u *unsaid) Read(p []byte) (int, error) {
	n, err := u.ReadCloser.Read(p)
	u.some = u.some || n > 0
	if err == io.EOF && !u.some {
		u.none.Store(true)
	}
	return n, err
}

func withoutBody(out *http.Request) {
	out.Body, out.ContentLength, out.TransferEncoding = http.NoBody, 0, nil
}

// A streamed body can be taken back from a try that failed without reading it.
type streamed struct {
	body  io.ReadCloser
	state atomic.Int32
}

const (
	streamFresh  int32 = iota // not read
	streamClosed              // closed without having been read; the body beneath is open
	streamRead                // read: it belongs to this try for good
	streamTaken               // taken back
)

func (s *streamed) Read(p []byte) (int, error) {
	for {
		switch st := s.state.Load(); st {
		case streamRead:
			return s.body.Read(p)
		case streamFresh:
			s.state.CompareAndSwap(st, streamRead)
		default:
			return 0, http.ErrBodyReadAfterClose
		}
	}
}

func (s *streamed) Close() error {
	for {
		switch st := s.state.Load(); st {
		case streamRead:
			return s.body.Close()
		case streamFresh:
			if s.state.CompareAndSwap(st, streamClosed) {
				return nil
			}
		default:
			return nil
		}
	}
}

// reclaim takes the body back, and reports whether it could.
func (s *streamed) reclaim() bool {
	return s.state.CompareAndSwap(streamFresh, streamTaken) ||
		s.state.CompareAndSwap(streamClosed, streamTaken)
}

// release says that there will be no other try. It reports whether the body is
// left to be closed; otherwise the transport, which may be at it still, will.
func (s *streamed) release() bool {
	return !s.state.CompareAndSwap(streamFresh, streamRead) &&
		(s.state.CompareAndSwap(streamClosed, streamTaken) || s.state.Load() == streamTaken)
}

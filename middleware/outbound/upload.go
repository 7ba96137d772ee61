package outbound

import (
	"io"
	"net/http"
	"sync/atomic"
)

// An upload is a request body that tells whether reading it failed, which is the
// fault of the caller and not of the host: a file that cannot be read, or has become
// shorter or longer meanwhile, a pipe whose writer gave up. (A body that came with a request to a server of ours cancels the
// context when it fails, and needs no watching.)
type upload struct {
	io.ReadCloser
	length         int64 // by Content-Length; not above 0: unknown
	read           int64
	closed, failed atomic.Bool
}

func (u *upload) Read(p []byte) (int, error) {
	n, err := u.ReadCloser.Read(p)
	u.read += int64(n)
	if (err != nil && err != io.EOF || u.length > 0 && (u.read > u.length || err == io.EOF && u.read < u.length)) && !u.closed.Load() {
		u.failed.Store(true)
	}
	return n, err
}

func (u *upload) Close() error {
	u.closed.Store(true) // what a Read says from now on, the transport has brought about
	return u.ReadCloser.Close()
}

// uploading returns the body of a request as an upload, or nil if there is none
// that could fail: a body that can be had again comes from memory.
func uploading(req *http.Request) *upload {
	if req.Body == nil || req.Body == http.NoBody || req.GetBody != nil {
		return nil
	}
	return &upload{ReadCloser: req.Body, length: req.ContentLength}
}

// broke reports whether the caller's body made a try fail.
func (u *upload) broke(err error) bool { return u != nil && err != nil && u.failed.Load() }

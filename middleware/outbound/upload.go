package outbound

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spillgate/spillgate/breaker"
)

// An upload is a request body that tells whether reading it failed, which is the
// fault of the caller and not of the host: a file that cannot be read, or has become
// shorter or longer meanwhile, a pipe whose writer gave up. (A body that came with a request to a server of ours cancels the
// context when it fails, and needs no watching.) It tells as well how long the host had to
// wait for it.
type upload struct {
	io.ReadCloser
	clock          clock
	length         int64 // by Content-Length; not above 0: unknown
	read           int64
	closed, failed atomic.Bool
	cut            atomic.Bool  // closed while a Read was under way
	since          atomic.Int64 // when the Read under way began, on the clock; -1 for none
	waited         atomic.Int64 // how long the others took

	mu    sync.Mutex
	call  breaker.Call // the host is overdue while it does not take the body, and when it has all of it
	over  bool         // the body is, or the try
	probe bool         // call may be one: its place is another's if it takes long
}

func (u *upload) Read(p []byte) (int, error) {
	if !u.probe || u.read == 0 { // until now the host was connected to, or took what was read before
		u.waits()
	}
	began := u.clock.since()
	u.since.Store(int64(began))
	n, err := u.ReadCloser.Read(p)
	u.since.Store(-1)
	u.waited.Add(int64(u.clock.since() - began))
	u.read += int64(n)
	if (err != nil && err != io.EOF || u.length > 0 && (u.read > u.length || err == io.EOF && u.read < u.length)) && !u.closed.Load() {
		u.failed.Store(true)
	}
	if !u.probe || err != nil {
		u.goesOn(err != nil)
	}
	return n, err
}

func (u *upload) Close() error {
	if !u.closed.Load() {
		u.cut.Store(u.since.Load() >= 0)
	}
	u.closed.Store(true) // what a Read says from now on, the transport has brought about
	u.goesOn(true)
	return u.ReadCloser.Close()
}

// waits has the call not be in flight: it is up to whoever sends the body.
func (u *upload) waits() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.over {
		u.call = u.call.Wait()
	}
}

// goesOn has the call be in flight again: it is up to the host. With over there is nothing left that it could wait for.
func (u *upload) goesOn(over bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.over {
		u.over, u.call = over, u.call.Begin(u.clock.now())
	}
}

// ended returns the call to report when the try is over; it is call where there is no body to wait for.
func (u *upload) ended(call breaker.Call) breaker.Call {
	if u == nil {
		return call
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.over = true
	return u.call
}

// uploading returns the body of a request as an upload for call, which may be a probe, or nil if there is none.
// One that can be had again may come from a file. One from memory is left as it is: net/http knows it, and sends it together
// with the header.
func uploading(req *http.Request, c clock, call breaker.Call, probe bool) *upload {
	if req.Body == nil || req.Body == http.NoBody || req.GetBody != nil && fromMemory(req.Body) {
		return nil
	}
	u := &upload{ReadCloser: req.Body, clock: c, length: req.ContentLength, call: call, probe: probe}
	u.since.Store(-1)
	return u
}

// fromMemory reports whether a body that can be had again cannot fail nor be late: what [http.NewRequest] makes of readers in memory
// has their WriteTo. So has a file.
func fromMemory(body io.Reader) bool {
	_, memory := body.(io.WriterTo)
	_, file := body.(*os.File)
	return memory && !file
}

// wait returns how long a try has waited for the caller's body.
func (u *upload) wait() time.Duration {
	if u == nil {
		return 0
	}
	wait := time.Duration(u.waited.Load())
	if since := u.since.Load(); since >= 0 {
		wait += u.clock.since() - time.Duration(since)
	}
	return wait
}

// late reports whether a try was over time that had spent most of that on waiting for the caller's body. Whether
// it did so when the time was over is not known: net/http returns when the Read does.
func late(req *http.Request, err error, took, own time.Duration) bool {
	return err != nil && own < took/2 && (errors.Is(err, context.DeadlineExceeded) || callersEnd(req) != nil)
}

// broke reports whether the caller's body made a try fail.
func (u *upload) broke(err error) bool { return u != nil && err != nil && u.failed.Load() }

// spoiled reports whether it was up to the caller's body that a response broke off: it failed, or was waited for when the
// time of the response was over.
func (u *upload) spoiled(err error) bool {
	return u.broke(err) || u != nil && errors.Is(err, context.DeadlineExceeded) && (u.since.Load() >= 0 || u.cut.Load())
}

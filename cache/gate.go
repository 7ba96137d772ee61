package cache

import (
	"context"
	"net/http"
	"sync"
	"time"
)

// Gate is a handler that may refuse a request before it does anything else with it, as a limit does. If the handler
// given to [Cache.Handler] is a Gate, a request that the cache cannot answer goes to ServeFill and not to ServeHTTP,
// and what only an admitted request needs is made when the gate asks for it. A refusal under overload then costs little
// more than without a cache.
type Gate interface {
	http.Handler

	// ServeFill is ServeHTTP with the client's own request as r. The request to pass on is that of f, and if the gate has
	// to wait, it waits under the context of f.
	ServeFill(w http.ResponseWriter, r *http.Request, f Fill)
}

// Fill is what a [Gate] decides about: one run of the handler. By then other requests may be waiting for its response;
// those do not pass through a gate. A Fill is valid until ServeFill returns.
type Fill struct{ fl *fill }

// Context returns the context of the run. It has the deadline and the values of the client's context, and ends when
// nobody is left who waits for the response.
func (f Fill) Context() context.Context { return f.fl.ctx }

// Now returns the time. It reads the clock again only if something that can take long, such as a wait for another
// request, has come since the cache last read it.
func (f Fill) Now() time.Time {
	if f.fl.prompt {
		return f.fl.asked
	}
	return time.Now()
}

// Request returns the request to pass on: the client's, with the context of the run, and with the conditions of the
// cache if it validates a stored response. Each call returns the same request.
func (f Fill) Request() *http.Request {
	fl := f.fl
	if fl.out == nil {
		fl.out = fl.request()
	}
	return fl.out
}

// Refuse is [ShedMarker.MarkShed] for a gate that writes the refusal itself, and gives the writer to nobody who could
// keep it.
func (f Fill) Refuse(err error) { f.fl.shed, f.fl.ours = err, true }

// fills holds what is left of refused fills. A fill is used again only if nothing of it can have been
// kept: it reached no handler, no request has waited for it, and its context has never had to be
// more than the client's.
var fills = sync.Pool{New: func() any { return new(fill) }}

// recycle ends the life of a fill that has run. Where it may have been kept, that is the collector's business.
func (fl *fill) recycle() {
	if !fl.ours || fl.out != nil || fl.lease.whole != nil {
		return
	}
	fl.own.mu.Lock()
	joined := fl.own.joined // nobody can join any more: the flight has landed
	fl.own.mu.Unlock()
	if joined {
		return
	}
	*fl = fill{}
	fills.Put(fl)
}

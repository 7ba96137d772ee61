package cache

import (
	"context"
	"net/http"
	"sync"
	"time"
)

// Gate is a handler that may refuse a request before it does anything else with it, as a limit does. Where
// the handler given to [Cache.Handler] is one, what the cache has no answer for comes to ServeFill
// and not to ServeHTTP, and what only an admitted request needs is made when it is asked for. A
// refusal under overload then costs little more than without a cache.
type Gate interface {
	http.Handler

	// ServeFill is ServeHTTP where r is still the client's own request: the one to pass on is
	// that of f, under whose context the gate waits if it has to.
	ServeFill(w http.ResponseWriter, r *http.Request, f Fill)
}

// Fill is what a [Gate] is to decide about: one run of the handler, whose response others may be waiting
// for by then. They come to no gate. A Fill is valid until ServeFill returns.
type Fill struct{ fl *fill }

// Context returns the context of the run: it has the deadline and the values of the client's, and ends when
// nobody is left who waits for the response.
func (f Fill) Context() context.Context { return f.fl.ctx }

// Now returns the time. Where nothing that can take long has come since the cache read the clock, such as a wait
// for another request, the clock is not read again.
func (f Fill) Now() time.Time {
	if f.fl.prompt {
		return f.fl.asked
	}
	return time.Now()
}

// Request returns the request to pass on: the client's, under the context of the run, and with the conditions of
// the cache where it validates a stored response. Each call returns the same one.
func (f Fill) Request() *http.Request {
	fl := f.fl
	if fl.out == nil {
		fl.out = fl.request()
	}
	return fl.out
}

// Refuse is [ShedMarker.MarkShed] for a gate that writes the refusal itself, and gives the writer to nobody
// who could keep it.
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

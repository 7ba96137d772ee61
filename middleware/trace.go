package middleware

import (
	"net/http"
	"sync/atomic"
	"time"

	"github.com/spillgate/spillgate/cache"
)

// Trace is a set of functions that are called as requests pass, like those of [net/http/httptrace.ClientTrace]. Any
// of them may be nil. They run on the request's goroutine, with no lock held, and must not keep the request. They may
// be called concurrently. A function that panics panics in the request.
//
// For structured logs take the fields one by one, as the example of [WithTrace] does: [Rejection].Err and
// [Result].Cache give their text by Error and String, and a struct that is marshaled as a whole has neither.
type Trace struct {
	// Rejected is called when a layer refuses a request, before the response is written.
	Rejected func(r *http.Request, j Rejection)

	// Admitted is called when a layer that can make a request wait has let it pass. layer is "concurrency" or "pool".
	Admitted func(r *http.Request, layer string, waited time.Duration)

	// Done is called after the handler has returned or panicked. It is called only for
	// a Trace that is a layer (see [WithTrace]).
	Done func(r *http.Request, res Result)
}

// traces are those of the stacks that a request is in, innermost first.
type traces struct {
	t     *Trace
	end   bool // and of the end
	outer *traces
}

// endOf says that t is told of the end of a request by a stack around.
func (all *traces) endOf(t *Trace) bool {
	for ; all != nil; all = all.outer {
		if all.t == t && all.end {
			return true
		}
	}
	return false
}

// tracer adds its trace to those around. They are the same for each request but where a handler is in several stacks, so
// the last ones are kept.
type tracer struct {
	t    *Trace
	end  bool
	last atomic.Pointer[traces]
}

func (x *tracer) within(outer *traces) *traces {
	for o := outer; o != nil; o = o.outer {
		if o.t == x.t {
			return outer // it is told already
		}
	}
	n := x.last.Load()
	if n == nil || n.outer != outer {
		n = &traces{x.t, x.end, outer}
		x.last.Store(n)
	}
	return n
}

// Result is how a request ended.
type Result struct {
	// Route is the pattern that served the request; it is empty if no mux told it. A stack around a router other than
	// [http.ServeMux] learns no pattern, or that of a mux outside: put the stack inside the router, as examples/routers
	// does.
	Route string
	// Status is the first final status; 200 if the handler wrote none, 0 if it panicked before it wrote one.
	Status int
	// Bytes is the length of the body as the handler wrote it.
	Bytes int64
	// Duration is the time from the entry into the trace layer (for [WithRefund], into the rate layer) until the handler
	// returned.
	Duration time.Duration
	// Cache says what a cache layer did; [cache.Bypass] if there was none.
	Cache cache.Result
	// Shed is the layer that refused the request ("rate", "concurrency", "breaker", "pool",
	// "drain"); empty if none did.
	Shed string
	// Panicked says that the handler panicked, or ended its goroutine.
	Panicked bool
	// Left says that the client had left before the handler returned, or that a [Breaker] or [Concurrency] saw a body
	// that cannot be read. No layer takes such a request for a failure, whatever Status and Panicked say: a ReverseProxy
	// panics when its client leaves in the middle of a response, or answers 502 to nobody. The client of a request that
	// http.Server.WriteTimeout cut off has not left, nor has one that went away with all of a response that has a
	// Content-Length.
	Left bool
	// Hijacked says that the connection was taken over.
	Hijacked bool
}

func (rec *recorder) result(r *http.Request, d time.Duration, panicked bool) Result {
	res := Result{
		Route: r.Pattern, Status: int(rec.status), Bytes: rec.bytes, Duration: d, Cache: rec.cache &^ cacheRan,
		Panicked: panicked, Hijacked: rec.hijacked,
	}
	_, res.Left = ending(r, rec, !panicked)
	if rec.shed != nil && rec.shedBy != nil {
		res.Shed = rec.shedBy.layer
	}
	if res.Route == "" {
		res.Route = rec.route
	}
	if res.Status == 0 && !panicked {
		res.Status = http.StatusOK
	}
	return res
}

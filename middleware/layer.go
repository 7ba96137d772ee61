package middleware

import (
	"net/http"
)

// Layer is one protection, ready to be put around a handler: what [Rate], [Concurrency], [Breaker], [Cache], [Pool],
// [BufferBody] and [For] return. The options [WithTrace], [WithReject] and [WithSkip] are layers as well; as layers
// they hold for a whole stack.
//
// Layers are immutable and safe for concurrent use. One value may wrap any number of handlers, all of which share the
// limiter, breaker, cache or pool behind it.
type Layer interface {
	// Handler returns next wrapped in the layer. A nil next means [http.DefaultServeMux].
	Handler(next http.Handler) http.Handler

	// rank is the place of the layer in a stack; see the constants below.
	rank() rank
}

// rank orders the layers of a stack, outermost first.
type rank int

const (
	rankTrace   rank = iota // an option, outside of the others: what they skip is told as well
	rankSetting             // the other options
	rankRate
	rankCache
	rankBuffer
	rankConcurrency
	rankBreaker
	rankPool
	rankFor // taken apart before ordering
)

// A wrapper is a layer that a stack can build with what it knows of the handler inside.
type wrapper interface {
	Layer
	wrap(next http.Handler, env env) http.Handler
}

// env is what a layer learns about its surroundings when a handler is built.
type env struct {
	// count is where the stack counts the refusals of its layers; nil outside a stack.
	count *rejectCounts
	// gate is that of the stack; nil outside a stack.
	gate *gate
	// end is what the stack is around; nil outside a stack.
	end http.Handler
}

// base is the part that every layer handler has in common.
type base struct {
	next    http.Handler
	skipped http.Handler // next as [ownOr] has it, for the requests that skip the layer
	// adjacent says that next is a layer of ours as well: no foreign code runs between
	// the two, so they can share a clock reading.
	adjacent bool
	mux      *http.ServeMux
	last     bool // next is mux
	rejecter rejecter
	skip     []SkipFunc
}

// ours marks the handlers of this package, and lets a layer look through them for the mux.
type ours interface{ inner() http.Handler }

func (b *base) inner() http.Handler { return b.next }

func newBase(next http.Handler, e env, c common, j rejecter) base {
	next = orDefaultMux(next)
	_, adjacent := next.(ours)
	j.count = e.count
	j.custom = c.reject
	j.trace = c.trace
	j.mark = noStoreOf(j.layer)
	_, last := next.(*http.ServeMux)
	return base{next: next, skipped: ownOr(next), adjacent: adjacent, mux: findMux(next), last: last, rejecter: j, skip: c.skip}
}

// ownOr returns h if it is ours, and else a handler of ours around it: for where a request goes on without a look at its
// recorder, whose clock has to be told that foreign code runs.
func ownOr(h http.Handler) http.Handler {
	if _, ok := h.(ours); ok {
		return h
	}
	return &foreign{h}
}

type foreign struct{ next http.Handler }

func (h *foreign) inner() http.Handler { return h.next }

func (h *foreign) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rec := recorderOf(w)
	if rec == nil {
		h.next.ServeHTTP(w, r)
		return
	}
	rec.fresh, rec.routed = false, nil
	h.next.ServeHTTP(w, r)
	rec.fresh = false
}

// findMux returns the ServeMux behind h, looking through the layers of this package only: what
// another middleware does to a request on the way to a mux is not known.
func findMux(h http.Handler) *http.ServeMux {
	for {
		switch x := h.(type) {
		case *http.ServeMux:
			return x
		case ours:
			h = x.inner()
		default:
			return nil
		}
	}
}

func (b *base) skips(w http.ResponseWriter, r *http.Request) bool { return skips(b.skip, w, r) }

// skips asks the functions of the user's. They may take any time.
func skips(skip []func(*http.Request) bool, w http.ResponseWriter, r *http.Request) bool {
	if in, ok := w.(recorded); ok {
		in.record().fresh = false
	}
	for _, f := range skip {
		if f(r) {
			return true
		}
	}
	return false
}

// serve passes the request on. On return the recorder's clock is fresh only if the handler
// inside was ours and left a reading.
func (b *base) serve(w http.ResponseWriter, r *http.Request, rec *recorder) {
	if !b.adjacent {
		rec.fresh = false
	}
	if h := rec.routed; h != nil && b.last {
		rec.routed = nil
		r.Pattern = rec.route
		h.ServeHTTP(w, r)
	} else {
		b.next.ServeHTTP(w, r)
	}
	if !b.adjacent {
		rec.fresh = false
	}
}

package middleware

import (
	"fmt"
	"net/http"
)

// SkipFunc reports whether a request bypasses a layer, as if the layer were not there.
type SkipFunc = func(*http.Request) bool

// RejectFunc writes the response to a refused request. Retry-After, Cache-Control and the RateLimit fields are
// already set in w.Header(); the function may change them. It must not keep j. [Rejection.Write] writes what would
// have been written without the function.
//
// Layers outside a writer without Unwrap, such as that of [http.TimeoutHandler], know a refusal by its Cache-Control.
// If that was changed, or the status is below 400, they judge the response by its status.
type RejectFunc = func(w http.ResponseWriter, r *http.Request, j *Rejection)

// Option is an option that every layer takes. It is also a [Layer]: given to [Wrap] or [New] beside others, it holds
// for the whole stack. It protects nothing: a stack made of options alone has no layers, not even those of [Defaults]
// unless they are given too.
type Option interface {
	Layer
	RateOption
	ConcurrencyOption
	BreakerOption
	CacheOption
	PoolOption
	applyBuffer(*common)
}

// common is what [Option] values set.
type common struct {
	trace  *Trace
	reject RejectFunc
	skip   []SkipFunc
}

type commonOption func(*common)

func (f commonOption) applyRate(c *rateConfig)               { f(&c.common) }
func (f commonOption) applyConcurrency(c *concurrencyConfig) { f(&c.common) }
func (f commonOption) applyBreaker(c *breakerConfig)         { f(&c.common) }
func (f commonOption) applyCache(c *cacheConfig)             { f(&c.common) }
func (f commonOption) applyPool(c *poolConfig)               { f(&c.common) }
func (f commonOption) applyBuffer(c *common)                 { f(c) }

func (f commonOption) rank() rank {
	var c common
	if f(&c); c.trace != nil {
		return rankTrace
	}
	return rankSetting
}

// Handler implements [Layer]: what the option sets holds for all layers of this package inside.
func (f commonOption) Handler(next http.Handler) http.Handler { return f.wrap(next, env{}) }

func (f commonOption) wrap(next http.Handler, e env) http.Handler {
	var c common
	f(&c)
	next = orDefaultMux(next)
	bare := e.end
	if bare == nil {
		bare = innermost(next)
	}
	return &settingHandler{next: ownOr(next), common: c, bare: ownOr(bare), tracer: tracer{t: c.trace, end: true}}
}

// nilOption is what a panic says of an option that is nil.
func nilOption(of string, i int) string {
	return fmt.Sprintf("middleware: %s: option %d is nil; leave it out", of, i)
}

// WithTrace calls the functions of t as requests pass. As an option of one layer, it reports that layer. As a layer
// of a stack, it reports all layers and each request's end, also of requests that [WithSkip] lets pass. Several
// traces of one stack, or of stacks inside each other, are all called; a trace that such stacks share is called once.
// Of several that are options of one layer, the last is used. A nil t is no trace.
func WithTrace(t *Trace) Option {
	return commonOption(func(c *common) { c.trace = t })
}

// WithReject replaces the response to refused requests. The last one given counts; one given to a layer takes
// precedence over that of its stack. It panics if f is nil.
func WithReject(f RejectFunc) Option {
	if f == nil {
		panic("middleware: WithReject: f is nil; leave the option out for the default response")
	}
	return commonOption(func(c *common) { c.reject = f })
}

// WithSkip makes the requests for which f is true bypass the layer: health checks, for example. f runs before the
// layer has done anything. If the option is given more than once, a request is skipped if any f says so. It panics if
// f is nil.
//
// As a layer of a stack, WithSkip holds for that stack, and not for another one inside it. Applied by its Handler
// method, it holds for the layers that follow, up to the first handler of somebody else: give the option to the
// layers behind a router or another middleware themselves.
func WithSkip(f SkipFunc) Option {
	if f == nil {
		panic("middleware: WithSkip: f is nil; leave the option out")
	}
	return commonOption(func(c *common) { c.skip = append(c.skip, f) })
}

// settingHandler is an [Option] used as a layer.
type settingHandler struct {
	next   http.Handler
	common common
	bare   http.Handler // what the stack is around, or else the first handler inside that is not ours
	tracer tracer
}

func (h *settingHandler) inner() http.Handler { return h.next }

func (h *settingHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h.common.skip != nil && skips(h.common.skip, w, r) {
		h.bare.ServeHTTP(w, r)
		return
	}
	if h.common.trace == nil && h.common.reject == nil {
		h.next.ServeHTTP(w, r)
		return
	}
	w, rec := record(w, r)
	if h.common.reject != nil {
		before := rec.reject
		rec.reject = h.common.reject
		defer func() { rec.reject = before }()
	}
	t := h.common.trace
	outer := rec.traces
	if t == nil || outer.endOf(t) {
		h.next.ServeHTTP(w, r)
		return
	}
	rec.traces = h.tracer.within(outer)
	begun := rec.now()
	finished := false
	defer func() {
		rec.traces = outer
		if t.Done != nil {
			if !finished {
				rec.fresh = false
			}
			t.Done(r, rec.result(r, rec.now().Sub(begun), !finished))
			rec.fresh = false
		}
	}()
	h.next.ServeHTTP(w, r)
	finished = true
}

// innermost looks through the layers of this package.
func innermost(h http.Handler) http.Handler {
	for {
		x, ok := h.(ours)
		if !ok {
			return h
		}
		h = x.inner()
	}
}

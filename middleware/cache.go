package middleware

import (
	"math/rand/v2"
	"net/http"

	"github.com/spillgate/spillgate/cache"
)

// Cache answers from c what c holds, and stores what c may (RFC 9111, as a shared cache). It is outside the limit,
// the breaker and the pool. A hit takes no permit. Where the handler fails, or one of these layers refuses, a stored
// response is served stale within the windows that the response or an option of c allows. A refusal by these layers
// is never stored.
//
// With a router that takes layers for single routes, put Cache around all methods of a URL: a successful POST or PUT
// that does not pass through the cache leaves what is stored under that URL in place. Where responses may be
// validated in the background (stale-while-revalidate), put it around the router: see
// [cache.WithStaleWhileRevalidate].
//
// It panics if c or an option is nil.
func Cache(c *cache.Cache, opts ...CacheOption) Layer {
	if c == nil {
		panic("middleware: Cache: c is nil; give one made by cache.New")
	}
	cfg := cacheConfig{}
	for i, o := range opts {
		if o == nil {
			panic(nilOption("Cache", i))
		}
		o.applyCache(&cfg)
	}
	return &cacheLayer{c: c, config: cfg}
}

// CacheOption configures [Cache].
type CacheOption interface{ applyCache(*cacheConfig) }

type cacheConfig struct {
	common
	route []cache.RouteOption
}

type cacheOption func(*cacheConfig)

func (f cacheOption) applyCache(c *cacheConfig) { f(c) }

// WithRoute gives the layer its own rules, over those of its cache: together with [For], a time to live, a key or a
// bypass for some routes. The responses are in the same cache, within the same budget.
//
//	middleware.For("/news/", middleware.Cache(c, middleware.WithRoute(cache.WithTTL(time.Minute))))
//
// It panics if an option is nil.
func WithRoute(opts ...cache.RouteOption) CacheOption {
	for i, o := range opts {
		if o == nil {
			panic(nilOption("WithRoute", i))
		}
	}
	return cacheOption(func(c *cacheConfig) { c.route = append(c.route, opts...) })
}

type cacheLayer struct {
	c      *cache.Cache
	config cacheConfig
}

func (*cacheLayer) rank() rank { return rankCache }

// Handler implements [Layer].
func (c *cacheLayer) Handler(next http.Handler) http.Handler { return c.wrap(next, env{}) }

func (c *cacheLayer) wrap(next http.Handler, e env) http.Handler {
	b := newBase(next, e, c.config.common, rejecter{layer: "cache"})
	inside := b.next
	if e.gate != nil {
		inside = &fillHandler{b.next, e.gate}
	}
	return &cacheHandler{base: b, cached: c.c.Handler(inside, c.config.route...), tracer: tracer{t: b.rejecter.trace}}
}

func (c *cacheLayer) subject() any { return c.c }

func (c *cacheLayer) stats() LayerStats {
	s := c.c.Stats()
	return LayerStats{Layer: "cache", Cache: &s}
}

type cacheHandler struct {
	base
	cached http.Handler
	tracer tracer
}

func (h *cacheHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h.skip != nil && h.skips(w, r) {
		h.skipped.ServeHTTP(w, r)
		return
	}
	w, rec := record(w, r) // the cache tells it what it did
	rec.routed = nil
	if h.tracer.t != nil {
		outer := rec.traces
		rec.traces = h.tracer.within(outer)
		defer func() { rec.traces = outer }()
	}
	h.cached.ServeHTTP(w, r)
	rec.fresh = false
}

// fillHandler is what is inside a cache of a stack. The stack waits for a handler that runs in the background, too: what that
// uses is still to be there.
type fillHandler struct {
	http.Handler
	gate *gate
}

// ServeFill implements [cache.Gate].
func (h *fillHandler) ServeFill(w http.ResponseWriter, r *http.Request, f cache.Fill) {
	if enclosing(w) == nil { // no client's, who would be inside the stack
		cell := rand.Uint32()
		if !h.gate.enter(cell) {
			f.Refuse(errDraining)
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		defer h.gate.leave(cell)
	}
	serveFill(h.Handler, w, r, f)
}

// serveFill passes a fill on to h as a cache does.
func serveFill(h http.Handler, w http.ResponseWriter, r *http.Request, f cache.Fill) {
	if g, ok := h.(cache.Gate); ok {
		g.ServeFill(w, r, f)
		return
	}
	h.ServeHTTP(w, f.Request())
}

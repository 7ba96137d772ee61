package middleware

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/spillgate/spillgate/breaker"
)

// Breaker stops sending requests to a handler that fails. There is a breaker for each route: the pattern of
// the ServeMux inside, or of the router around; see [WithBreakerKey] for another key. Where no route is known
// one breaker stands for all.
//
// A request fails if the handler panics, or answers 500, 502, 503 or 504; see [WithClassify]. A request that a layer of
// ours refused, and one whose client left, are neither success nor failure. While a breaker is open, requests get 503 with
// Retry-After, or what [WithFallback] answers.
//
// It panics if g is nil.
func Breaker(g *breaker.Group, opts ...BreakerOption) Layer {
	if g == nil {
		panic("middleware: Breaker: g is nil; give one made by breaker.NewGroup")
	}
	c := breakerConfig{}
	for _, o := range opts {
		o.applyBreaker(&c)
	}
	return &breakerLayer{group: g, config: c}
}

// BreakerOption configures [Breaker].
type BreakerOption interface{ applyBreaker(*breakerConfig) }

type breakerConfig struct {
	common
	key       func(*http.Request) string
	classify  func(*http.Request, int, error) breaker.Outcome
	fallback  http.Handler
	needRoute bool // without a mux to tell the route the layer is left out
}

type breakerOption func(*breakerConfig)

func (f breakerOption) applyBreaker(c *breakerConfig) { f(c) }

// WithBreakerKey names the breaker of a request. It panics if f is nil.
func WithBreakerKey(f func(*http.Request) string) BreakerOption {
	if f == nil {
		panic("middleware: WithBreakerKey: f is nil; leave the option out for one breaker a route")
	}
	return breakerOption(func(c *breakerConfig) { c.key = f })
}

// WithClassify decides what a finished request says about its handler. status is the first final status; err is
// [ErrPanicked] if the handler panicked, the context's error if that ended the request, else nil. A request whose client left
// and one that a layer refused are not asked about. It panics if f is nil.
func WithClassify(f func(r *http.Request, status int, err error) breaker.Outcome) BreakerOption {
	if f == nil {
		panic("middleware: WithClassify: f is nil; leave the option out")
	}
	return breakerOption(func(c *breakerConfig) { c.classify = f })
}

// WithFallback answers in place of the 503 while a breaker is open. It panics if h is nil.
func WithFallback(h http.Handler) BreakerOption {
	if h == nil {
		panic("middleware: WithFallback: h is nil; leave the option out")
	}
	return breakerOption(func(c *breakerConfig) { c.fallback = h })
}

// ErrPanicked is what [WithClassify] is told of a handler that panicked or ended its goroutine.
var ErrPanicked = errors.New("middleware: the handler panicked")

type breakerLayer struct {
	group  *breaker.Group
	config breakerConfig
}

func (*breakerLayer) rank() rank { return rankBreaker }

// Handler implements [Layer].
func (b *breakerLayer) Handler(next http.Handler) http.Handler { return b.wrap(next, env{}) }

func (b *breakerLayer) wrap(next http.Handler, e env) http.Handler {
	h := &breakerHandler{
		base:   newBase(next, e, b.config.common, rejecter{layer: "breaker", status: http.StatusServiceUnavailable, spread: -1}),
		group:  b.group,
		config: b.config,
	}
	if b.config.needRoute && h.mux == nil {
		return h.next
	}
	return h
}

func (b *breakerLayer) stats() LayerStats {
	s := BreakerStats{Group: b.group.Stats(), Routes: map[string]breaker.Stats{}}
	for key, b := range b.group.All() {
		s.Routes[key] = b.Stats()
	}
	return LayerStats{Layer: "breaker", Breaker: &s}
}

type breakerHandler struct {
	base
	group  *breaker.Group
	config breakerConfig
}

func (h *breakerHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h.skip != nil && h.skips(r) {
		h.next.ServeHTTP(w, r)
		return
	}
	w, rec := record(w)
	var key string
	if h.config.key != nil {
		key = h.config.key(r)
	} else {
		key = rec.routeOf(r, h.mux)
	}
	b := h.group.Get(key)
	begun := rec.now()
	call, err := b.AllowAt(begun)
	if err != nil {
		if h.config.fallback != nil {
			rec.shed, rec.shedBy = err, "breaker" // not the handler's doing, for the layers around
			h.config.fallback.ServeHTTP(w, r)
			return
		}
		var after time.Duration
		if e, ok := errors.AsType[*breaker.OpenError](err); ok {
			after = e.RetryAfter
		}
		h.rejecter.reject(w, r, rec, err, after, "", reducedCapacity)
		return
	}
	rec.wantFirst = true
	rec.holds(h, hold{call: call, begun: begun.Sub(rec.start)})
	finished := false
	defer func() {
		if !finished {
			rec.fresh = false
			rec.panicked = true
		}
		now := rec.now()
		end := now
		if !rec.firstByte.IsZero() {
			end = rec.firstByte // streams and downloads are not slow
		}
		call.DoneAt(h.outcome(r, rec, finished), end.Sub(begun), now)
	}()
	h.serve(w, r, rec)
	finished = true
}

func (h *breakerHandler) outcome(r *http.Request, rec *recorder, finished bool) breaker.Outcome {
	if rec.shed != nil || clientGone(r) {
		return breaker.Ignored
	}
	var err error
	switch {
	case !finished:
		err = ErrPanicked
	case r.Context().Err() != nil:
		err = context.Cause(r.Context())
	}
	if h.config.classify != nil {
		return h.config.classify(r, rec.status, err)
	}
	switch {
	case err != nil:
		return breaker.Failure
	case rec.status == 500, rec.status == 502, rec.status == 503, rec.status == 504:
		return breaker.Failure
	case rec.status == http.StatusTooManyRequests:
		return breaker.Ignored // a quota further in says nothing about health
	}
	return breaker.Success
}

func (h *breakerHandler) becameLong(rec *recorder, x *hold, k streamKind) {
	if k == streamPool {
		return
	}
	o := breaker.Success
	if rec.status >= 500 {
		o = breaker.Failure
	}
	now := time.Now()
	x.call.DoneAt(o, now.Sub(rec.start)-x.begun, now)
}

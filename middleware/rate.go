package middleware

import (
	"fmt"
	"math"
	"net/http"
	"time"

	"github.com/spillgate/spillgate/cache"
	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware/clientip"
)

// Rate holds every client to the policies of l. By default a client is the address at the other end of the
// connection, and an IPv6 address counts by its /64. Behind a proxy that address is the proxy's, so say which proxies
// to trust:
//
//	middleware.Rate(l, middleware.WithKey(middleware.KeyClient(clientip.FromXForwardedFor(prefixes))))
//
// A client over its quota gets 429 with Retry-After and a problem document that names the policies (but no key).
// Every response tells the policies and what is left of them in the fields RateLimit-Policy and RateLimit
// (draft-ietf-httpapi-ratelimit-headers-11); see [WithHeaders]. If a request meets several rate layers, such as a
// general one and one in [For], the fields are those of the last: once the first admits, they tell the policies of
// the second. Each of the layers charges the request, even if two have the same l.
//
// Where no wait helps, since the cost is above the burst or nothing flows in, Retry-After is a day.
//
// If the store of l does not answer, and l is set to refuse then, the response is 503.
//
// It panics if l or an option is nil.
func Rate(l *limiter.Rate, opts ...RateOption) Layer {
	if l == nil {
		panic("middleware: Rate: l is nil; give one made by limiter.NewRate")
	}
	c := rateConfig{key: KeyClient(new(clientip.Source)), headers: DraftHeaders}
	for i, o := range opts {
		if o == nil {
			panic(nilOption("Rate", i))
		}
		o.applyRate(&c)
	}
	return &rateLayer{l: l, config: c}
}

// RateOption configures [Rate].
type RateOption interface{ applyRate(*rateConfig) }

type rateConfig struct {
	common
	key     KeyFunc
	asks    bool // key or cost is a function of the user's
	cost    func(*http.Request) int
	refund  func(r *http.Request, res Result, taken int, ran bool) int // ran: the handler did, whatever res.Cache says
	headers Headers
	spread  time.Duration
}

type rateOption func(*rateConfig)

func (f rateOption) applyRate(c *rateConfig) { f(c) }

// WithKey names the bucket of a request; see [KeyFunc], [KeyClient], [KeyHeader], [KeyCookie], [KeyRoute] and
// [KeyJoin]. It panics if f is nil.
func WithKey(f KeyFunc) RateOption {
	if f == nil {
		panic("middleware: WithKey: f is nil; leave the option out for the peer address")
	}
	return rateOption(func(c *rateConfig) { c.key, c.asks = f, true })
}

// WithCost says how many tokens a request takes; the default is 1. A request with a cost below 1 takes none and is
// admitted unless the client is in debt. A request with a cost above the burst is never admitted. It panics if f is
// nil.
func WithCost(f func(*http.Request) int) RateOption {
	if f == nil {
		panic("middleware: WithCost: f is nil; leave the option out for a cost of 1")
	}
	return rateOption(func(c *rateConfig) { c.cost, c.asks = f, true })
}

// WithRefund gives back tokens after the response: as many as f returns, from what is known of the request by then. A
// negative number takes more, and may put the client into debt. f is not called where nothing was taken: for what
// only a shadow or [limiter.FailOpen] admitted. Of WithRefund, [WithChargeMissesOnly] and [WithChargeFailuresOnly]
// the last one given counts. It panics if f is nil.
func WithRefund(f func(r *http.Request, res Result) int) RateOption {
	if f == nil {
		panic("middleware: WithRefund: f is nil; leave the option out")
	}
	return rateOption(func(c *rateConfig) {
		c.refund = func(r *http.Request, res Result, _ int, _ bool) int { return f(r, res) }
	})
}

// WithChargeMissesOnly gives back the cost of a request that the cache answered without running the handler. A client
// must still have the tokens when the request comes. It is a kind of [WithRefund].
func WithChargeMissesOnly() RateOption {
	return rateOption(func(c *rateConfig) {
		c.refund = func(_ *http.Request, res Result, taken int, ran bool) int {
			switch res.Cache {
			case cache.Hit, cache.Stale, cache.Collapsed:
				if !ran {
					return taken
				}
			}
			return 0
		}
	})
}

// WithChargeFailuresOnly gives back the cost of a request if its status is below 400, or a layer inside refused it.
// It is for logins, where only failed attempts should count, and not those that the server had no time for. It is a
// kind of [WithRefund].
func WithChargeFailuresOnly() RateOption {
	return rateOption(func(c *rateConfig) {
		c.refund = func(_ *http.Request, res Result, taken int, _ bool) int {
			if res.Status < 400 && !res.Panicked || res.Shed != "" {
				return taken
			}
			return 0
		}
	})
}

func (c *rateConfig) costOf(r *http.Request) int {
	if c.cost == nil {
		return 1
	}
	return c.cost(r)
}

// Headers says which fields [Rate] adds to responses; values can be or-ed.
type Headers int

const (
	// NoHeaders adds none; a 429 still has Retry-After.
	NoHeaders Headers = 0
	// DraftHeaders adds RateLimit and RateLimit-Policy of the IETF draft.
	DraftHeaders Headers = 1 << 0
	// LegacyHeaders adds X-RateLimit-Limit, -Remaining and -Reset, of the policy that decided: its burst, the tokens
	// left, and the number of seconds, rounded up, until the bucket is full if nothing else is taken. Unlike in some
	// libraries, -Reset is not a time of day. Retry-After says when to come back.
	LegacyHeaders Headers = 1 << 1
)

// WithHeaders says which fields are added to responses; the default is [DraftHeaders]. If a request meets several
// rate layers, each field is that of the last layer that adds it: give all of them the same option, or the fields
// tell of different policies. A limit in shadow (see [limiter.WithRateShadow]) adds the fields too: use [NoHeaders]
// so that clients do not keep to a limit that is only being tried. It panics if h has unknown bits.
func WithHeaders(h Headers) RateOption {
	if h&^(DraftHeaders|LegacyHeaders) != 0 {
		panic(fmt.Sprintf("middleware: WithHeaders: %d; give NoHeaders, DraftHeaders, LegacyHeaders or DraftHeaders|LegacyHeaders", h))
	}
	return rateOption(func(c *rateConfig) { c.headers = h })
}

// WithRetrySpread adds up to d at random, in whole seconds, to the Retry-After of a 429, so that clients which were
// refused together do not come back together. The default is 0, an exact Retry-After. It panics if d is negative.
func WithRetrySpread(d time.Duration) RateOption {
	if d < 0 {
		panic(fmt.Sprintf("middleware: WithRetrySpread: %v; give 0 or more", d))
	}
	return rateOption(func(c *rateConfig) { c.spread = d })
}

type rateLayer struct {
	l      *limiter.Rate
	config rateConfig
}

func (*rateLayer) rank() rank { return rankRate }

// Handler implements [Layer].
func (l *rateLayer) Handler(next http.Handler) http.Handler { return l.wrap(next, env{}) }

func (l *rateLayer) wrap(next http.Handler, e env) http.Handler {
	h := &rateHandler{
		base:   newBase(next, e, l.config.common, rejecter{layer: "rate", status: http.StatusTooManyRequests, spread: l.config.spread}),
		l:      l.l,
		config: l.config,
	}
	h.callsOut = l.l.CallsOut()
	h.lean = !h.adjacent && l.config.refund == nil
	h.closed = h.rejecter
	h.closed.status, h.closed.spread = http.StatusServiceUnavailable, -1
	h.fields = newRateFields(l.l.Policies())
	return h
}

func (l *rateLayer) subject() any { return l.l }

func (l *rateLayer) stats() LayerStats {
	s := l.l.Stats()
	return LayerStats{Layer: "rate", Rate: &s}
}

type rateHandler struct {
	base
	l      *limiter.Rate
	config rateConfig
	lean   bool     // nothing inside or after the response needs a recorder: none is made to admit a request
	closed rejecter // for when the store of l does not answer: no fault of the client
	fields *rateFields

	callsOut bool // a decision of l may take any time
}

func (h *rateHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h.skip != nil && h.skips(w, r) {
		h.skipped.ServeHTTP(w, r)
		return
	}
	var rec *recorder
	if h.lean {
		rec = recorderOf(w)
	} else {
		w, rec = record(w, r)
	}
	key, err := h.config.key(r)
	if err != nil {
		key = noKey
	}
	cost := h.config.costOf(r)
	var now time.Time // zero: the limiter reads the clock
	if rec != nil {
		if h.config.asks {
			rec.fresh = false
		}
		now = rec.now()
	}
	var states [ratePolicyMax]limiter.PolicyState
	each := states[:len(h.fields.names)]
	d := h.l.AllowContext(r.Context(), now, key, cost, each)
	if rec != nil && h.callsOut {
		rec.fresh = false
	}

	if h.config.headers != NoHeaders {
		h.setFields(w.Header(), &d, each)
	}
	if !d.OK {
		h.refuse(w, r, rec, &d, each)
		return
	}
	if rec == nil {
		h.next.ServeHTTP(w, r)
		return
	}
	if h.config.refund == nil || d.Shadow || d.Unavailable { // nothing was taken
		h.serve(w, r, rec)
		return
	}
	begun := rec.now()
	finished := false
	defer func() {
		if !finished {
			rec.fresh = false
		}
		n := h.config.refund(r, rec.result(r, rec.now().Sub(begun), !finished), max(cost, 0), rec.cache&cacheRan != 0)
		switch {
		case n > 0:
			h.l.Refund(key, n)
		case n < 0:
			h.l.Charge(key, -max(n, -math.MaxInt)) // there is no -math.MinInt
		}
	}()
	h.serve(w, r, rec)
	finished = true
}

func (h *rateHandler) refuse(w http.ResponseWriter, r *http.Request, rec *recorder, d *limiter.Decision, each []limiter.PolicyState) {
	j, after, body := &h.rejecter, d.RetryAfter, reducedCapacity
	if d.Unavailable {
		j = &h.closed
	} else {
		body = h.fields.body(each)
		if after == 0 {
			// No wait helps: the cost is above the burst, or nothing flows in. A day is as good
			// as any, and no client will hammer.
			after = 24 * time.Hour
		}
	}
	if rec == nil {
		if j.canLean(w) {
			j.rejectLean(w, r, after, body)
			return
		}
		w, rec = record(w, r)
	}
	j.reject(w, r, rec, d.Err(), after, d.Policy, body)
}

func (h *rateHandler) setFields(hd http.Header, d *limiter.Decision, each []limiter.PolicyState) {
	if h.config.headers&DraftHeaders != 0 {
		h.fields.setDraft(hd, each)
	}
	if h.config.headers&LegacyHeaders != 0 {
		setLegacy(hd, d)
	}
}

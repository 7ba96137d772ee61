package middleware

import (
	"errors"
	"hash/maphash"
	"net/http"
	"time"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/middleware/clientip"
)

// Breaker stops sending requests to a handler that fails. There is a breaker for each route: the pattern of the
// ServeMux inside, or of the router around; see [WithBreakerKey] for another key. Where no route is known, one
// breaker serves all requests: the layer does not see a mux behind somebody else's middleware. A router of another
// kind under one pattern of the mux is one route. So is a sub-router that chi mounts, to the middleware of that
// sub-router: put the layer inside, around the routes.
//
// What a request says about its handler is known when it ends:
//
//   - a panic and a final status of 500, 502, 503 or 504 are failures, and so is a request that ran into the deadline
//     of its context or into [http.Server.WriteTimeout]; see [WithClassify];
//   - a request counts as neither if its client left or sent a body that cannot be read, if a layer of ours refused
//     it, or its handler did with a [Rejection] of its own, if it was answered 429, or if it was answered as a
//     failure and its method, host, target, Upgrade or the name of a trailer is invalid (net/http accepts it, and a
//     proxy cannot send it on); a probe that ends this way gives its place to the next request;
//   - all others are successes, 4xx, 501 and 505 among them.
//
// A gRPC server answers 200 and says in a trailer how the call went. The layer does not read that: every answered call is
// a success. Judge calls in an interceptor of the server, with package breaker alone.
//
// A client that leaves after it has received all of a response with a Content-Length does not count as having left,
// however long the handler goes on afterwards, unless the handler panics. While the handler runs, a client can have
// all of a response only if it was flushed, copied from a reader, or long and written at once: of any other, net/http
// holds back some KiB.
//
// A breaker admits a request once and counts it once: a layer further in that has the same breaker lets it pass.
//
// Over HTTP/1, [http.Server.WriteTimeout] is noticed when a write fails. A response of a few KiB waits in net/http's
// buffers until the handler has returned: if it is lost then, nobody sees it, and it counts as if it had been sent. A
// deadline of the context is noticed in any case, and so is [http.TimeoutHandler]. A handler that sets its own
// deadline with [http.ResponseController.SetWriteDeadline] is not held to WriteTimeout. If the time passed in a
// write, which waits for the client to take what was written before, the client was too slow: as with a client that
// left, this says nothing about the handler. The same holds for a copy ([io.Copy]) from a file or from memory; in a
// copy from elsewhere, such as a pipe, it was the handler.
//
// With [breaker.WithSlowCalls] the time to the first byte counts, so downloads and event streams are not slow. A
// request that still waits for its first byte counts as slow once it is overdue, even if the client gave up. A
// connection that was hijacked or switched protocols, a tunnel (CONNECT) and an event stream are judged when they
// begin; a panic later makes them a failure. Requests for these are not used as probes.
//
// The time that a request waits for a slot of a [Pool], or in the queue of a [Concurrency], further in is not the
// handler's: meanwhile the request is not in flight to the breaker. If a writer without Unwrap is between the two,
// such as that of [http.TimeoutHandler], it is.
//
// The time to the first byte includes the time that the handler takes to read the request: give a route that takes
// large uploads a group of its own, without slow calls.
//
// While a breaker refuses, requests get 503 with Retry-After, or what [WithFallback] answers. A cache outside the
// breaker may serve a stale response instead.
//
// Anybody who finds a URL that makes a handler fail can close its route to everybody. Keep the keys as narrow as
// routes, and see [breaker.WithMinClients], for which [WithBreakerClient] says who the client is.
//
// It panics if g or an option is nil.
func Breaker(g *breaker.Group, opts ...BreakerOption) Layer {
	if g == nil {
		panic("middleware: Breaker: g is nil; give one made by breaker.NewGroup")
	}
	c := breakerConfig{client: new(clientip.Source).Key}
	for i, o := range opts {
		if o == nil {
			panic(nilOption("Breaker", i))
		}
		o.applyBreaker(&c)
	}
	return &breakerLayer{group: g, config: c, seed: maphash.MakeSeed()}
}

// BreakerOption configures [Breaker].
type BreakerOption interface{ applyBreaker(*breakerConfig) }

type breakerConfig struct {
	common
	key       func(*http.Request) string
	client    func(*http.Request) string
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

// WithBreakerClient names the client of a request for [breaker.WithMinClients]; without that option f is not called.
// The default is the address at the other end of the connection. (*clientip.Source).Key is such a function. It panics
// if f is nil.
func WithBreakerClient(f func(*http.Request) string) BreakerOption {
	if f == nil {
		panic("middleware: WithBreakerClient: f is nil; leave the option out for the peer address")
	}
	return breakerOption(func(c *breakerConfig) { c.client = f })
}

// WithClassify decides what a request says about its handler. status is the first final status, 200 if the handler
// returned without one, 0 if the request ended before there was one. err is [ErrPanicked] if the handler panicked,
// [os.ErrDeadlineExceeded] if [http.Server.WriteTimeout] cut the request off, the cause of the context's end if that
// ended the request, and nil otherwise. f is not asked about a request whose client left or sent a body that cannot
// be read, nor about one that a layer of ours refused. f is asked at the end of a request; about event streams,
// hijacked connections, tunnels and protocol switches it is asked when they begin. It panics if f is nil.
func WithClassify(f func(r *http.Request, status int, err error) breaker.Outcome) BreakerOption {
	if f == nil {
		panic("middleware: WithClassify: f is nil; leave the option out")
	}
	return breakerOption(func(c *breakerConfig) { c.classify = f })
}

// WithFallback answers in place of the 503 while a breaker refuses. Retry-After and Cache-Control: no-store are set
// already; h may change them. A cache outside the breaker takes the response of h for the handler's, except that a
// response which it does not store leaves what is stored in place. It panics if h is nil.
func WithFallback(h http.Handler) BreakerOption {
	if h == nil {
		panic("middleware: WithFallback: h is nil; leave the option out")
	}
	return breakerOption(func(c *breakerConfig) { c.fallback = h })
}

// ErrPanicked is the error that [WithClassify] gets for a handler that panicked or ended its goroutine.
var ErrPanicked = errors.New("middleware: the handler panicked")

type breakerLayer struct {
	group  *breaker.Group
	config breakerConfig
	seed   maphash.Seed
}

func (*breakerLayer) rank() rank { return rankBreaker }

// Handler implements [Layer].
func (b *breakerLayer) Handler(next http.Handler) http.Handler { return b.wrap(next, env{}) }

func (b *breakerLayer) wrap(next http.Handler, e env) http.Handler {
	h := &breakerHandler{
		base:   newBase(next, e, b.config.common, rejecter{layer: "breaker", status: http.StatusServiceUnavailable, spread: -1}),
		group:  b.group,
		config: b.config,
		seed:   b.seed,
	}
	if b.config.needRoute && h.mux == nil {
		return h.next
	}
	return h
}

func (b *breakerLayer) subject() any { return b.group }

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
	seed   maphash.Seed
}

func (h *breakerHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h.skip != nil && h.skips(w, r) {
		h.skipped.ServeHTTP(w, r)
		return
	}
	w, rec := record(w, r)
	key := h.key(rec, r)
	if rec.hasCall(h.group, key) {
		h.serve(w, r, rec)
		return
	}
	b := h.group.Get(key)
	s := b.Settings()
	var req breaker.Request
	if s.MinClients > 0 {
		req.Client = maphash.String(h.seed, h.config.client(r))
	}
	if h.config.key != nil || s.MinClients > 0 {
		rec.fresh = false
	}
	req.Arrived = rec.now()
	passing := b.Passing()
	if !passing {
		req.Long = asksForLong(r)
	}
	call, err := b.Admit(req)
	if err != nil {
		var after time.Duration
		if e, ok := errors.AsType[*breaker.OpenError](err); ok {
			after = e.RetryAfter
		}
		if h.config.fallback != nil {
			h.fallBack(w, r, rec, err, after)
			return
		}
		h.rejecter.reject(w, r, rec, err, after, "", reducedCapacity)
		return
	}
	if !passing { // a function of the user's may have been told of a change
		rec.fresh = false
		req.Arrived = rec.now()
	}
	if s.SlowCall > 0 || !passing {
		rec.wantFirst = true // costs a clock read
	}
	misnamed := misnamed(r)
	inner := rec.watchBody(r)
	rec.holds.addCall(callHold{layer: h, call: call, begun: req.Arrived.Sub(rec.start), request: inner})
	finished := false
	defer func() {
		if !finished {
			rec.fresh = false
		}
		x := rec.holds.takeCall(h)
		if h.config.classify != nil {
			defer x.call.DoneAt(breaker.Ignored, 0, req.Arrived) // of use only if that function panics: a call is reported once
		}
		now := rec.now()
		o := h.outcome(r, rec, finished, misnamed)
		if rec.lasting && !finished && o == breaker.Failure {
			x.call.Fail() // it was reported when it began
			return
		}
		x.call.DoneAt(o, latency(rec, rec.start.Add(x.begun), now), now)
	}()
	defer passBack(r, inner)
	h.serve(w, inner, rec)
	finished = true
}

func (h *breakerHandler) key(rec *recorder, r *http.Request) string {
	if h.config.key != nil {
		return h.config.key(r)
	}
	return rec.routeOf(r, h.mux)
}

// fallBack answers with the fallback. The layers around are told that the handler was not asked, but not a
// cache, which would answer stale instead: it is told that this is no word of the handler on what it has.
func (h *breakerHandler) fallBack(w http.ResponseWriter, r *http.Request, rec *recorder, err error, after time.Duration) {
	rec.routed = nil
	for out := rec; out != nil; out = out.beyond() {
		out.shed, out.shedBy = err, &h.rejecter
	}
	rec.markFallback()
	j := &h.rejecter
	if j.count != nil {
		j.counter().Add(1)
	}
	j.tell(r, rec, Rejection{Layer: j.layer, Status: j.status, RetryAfter: after, Err: err, body: reducedCapacity})
	j.setHeader(w.Header(), after)
	own(w.Header())
	h.config.fallback.ServeHTTP(w, r)
}

package middleware

import (
	"errors"
	"net/http"
	"time"

	"github.com/spillgate/spillgate/cache"
	"github.com/spillgate/spillgate/limiter"
)

// Concurrency bounds how many requests are in the handler at once. A request takes a permit of l, waiting in l's
// queue if it has one. It gives the permit back when the handler returns, panics, or lets the connection go.
// Long-lived requests do not count: a hijacked connection, a switched protocol, a tunnel (a CONNECT that is answered
// with 2xx and flushed, which is how HTTP/2 opens a websocket), a stream of server-sent events, and a client that
// waits for a job of [Async].
//
// Any other response that lasts keeps its permit for as long: a gRPC stream, a stream of JSON lines, a long poll.
// Eight of them can be all that an adaptive limit admits while they are open: name them with [WithLongLived].
//
// With an adaptive limit, a request that reaches a pool inside gives its permit back there, before it waits for a
// slot: the pool bounds what computes, and requests that wait for it should not keep cheap ones out.
//
// A request takes the permits of l once, where it first meets l: a layer further in with the same limiter lets it
// pass. If a writer without Unwrap is between the two, such as that of [http.TimeoutHandler], it takes them a second
// time, which a limit of 1 never grants.
//
// When l refuses, the response is 503 with Retry-After.
//
// An adaptive limit seeks the highest throughput. Whether a request counts as throughput is known when it ends, or
// has become long-lived; its time until then is work like any other.
//
//   - a panic, a final status of 500, 502, 503 or 504, and a request that ran into the deadline of its context or
//     into [http.Server.WriteTimeout] are a [limiter.Failure], as to [Breaker], which says when the last is noticed:
//     no throughput, however fast they are;
//   - a request whose client left before it had all of the response, or sent a body that cannot be read, one that a
//     layer of ours inside refused, one answered 429, and one that begins to wait for a [Pool] are [limiter.Ignored]:
//     neither throughput nor failure;
//   - all others are a [limiter.Success], 4xx, 501 and 505 among them.
//
// A request that waits in the queue of another limit further in keeps its permit of this one meanwhile. If that limit
// is for a slow route and has a long queue, the requests that wait there take all permits of an adaptive limit around
// it: exempt that route from the outer limit with [WithSkip], or use a [Pool].
//
// While the handler waits for a body that comes slowly, others have the permit of an adaptive limit: once a single
// Read has waited for 10 ms, or for 1 ms if an earlier one has waited so long, and for twenty times as long as work
// waits for a processor. Before that Read returns, the request takes its permit again ([limiter.Permit.Resume]): if
// there is none, it waits in the queue, before those that came later, and is not refused. To the limit, that wait and
// the one for the body are no time in service. If the handler works while another goroutine of it reads, as in a
// stream in both directions, that work is not limited while the Read waits.
//
// At most 1,000 requests of a layer are without their permit in this way, and a quarter of that of one client where
// [WithClient] tells them apart; beyond that a request holds it until its body has come. With a fixed limit, which is
// the user's own number, every such request does: as many clients as it has permits, if they send slowly, keep
// everybody else out, unless a proxy in front buffers or [BufferBody] reads the body before the limit is asked. Give
// the server a ReadTimeout and a WriteTimeout in any case: without them, such clients hold their connections, and all
// that the handler has, for good.
//
// Over HTTP/2 and HTTP/3, the requests of a connection share the room for what has come of their bodies and has not
// been read yet. The bodies of requests in the queue can fill it, so that a request that has a permit waits for the
// rest of its own. With an adaptive limit they take turns then, which slows them down. With a fixed one they wait
// until the queue turns some of them away. So a server that takes uploads should give a connection room for the bodies
// of all its requests, and has to with a fixed limit. For HTTP/2, set MaxReceiveBufferPerConnection of
// [http.HTTP2Config] to MaxReceiveBufferPerStream times MaxConcurrentStreams: by default, one stream may fill what all
// have. The config of quic-go has a MaxConnectionReceiveWindow and an InitialConnectionReceiveWindow, a
// MaxStreamReceiveWindow and MaxIncomingStreams; both windows of a connection have to be that large.
//
// While a client does not take what the handler writes, the request gives the permit of an adaptive limit back: once
// a single write or Flush has waited for 250 ms, and for twenty times as long as work waits for a processor. What the
// handler does after that is not limited. At most 1,000 requests of a layer are without their permit in this way,
// with the memory that their responses take; beyond that a request whose client reads slowly holds its permit until
// WriteTimeout. With a fixed limit, which is the user's own number, every such request does, unless [WithLongLived]
// names it. The slot of a [Pool] is given back in the same way, and taken again after the write. A response that a
// cache outside serves takes no permit, however slowly it is read.
//
// A client that leaves gives up its place in the queue at once, if net/http sees it leave. Over HTTP/1 it does not
// before the handler has read the body: a request with a body keeps its place until its turn comes or the queue turns
// it away.
//
// It panics if l or an option is nil.
func Concurrency(l *limiter.Concurrency, opts ...ConcurrencyOption) Layer {
	if l == nil {
		panic("middleware: Concurrency: l is nil; give one made by limiter.NewConcurrency or limiter.NewAdaptive")
	}
	c := concurrencyConfig{}
	for i, o := range opts {
		if o == nil {
			panic(nilOption("Concurrency", i))
		}
		o.applyConcurrency(&c)
	}
	return &concurrencyLayer{l: l, config: c, slow: places{most: slowPlaces}, bodies: places{most: slowPlaces}}
}

// ConcurrencyOption configures [Concurrency].
type ConcurrencyOption interface{ applyConcurrency(*concurrencyConfig) }

type concurrencyConfig struct {
	common
	priority func(*http.Request) int
	weight   func(*http.Request) int
	client   func(*http.Request) string
	long     func(*http.Request) bool
}

type concurrencyOption func(*concurrencyConfig)

func (f concurrencyOption) applyConcurrency(c *concurrencyConfig) { f(c) }

// WithPriority orders waiting requests: a higher priority goes first, and priority grows with the time waited. The
// default is 0 for all. See [limiter.Request]. It panics if f is nil.
func WithPriority(f func(*http.Request) int) ConcurrencyOption {
	if f == nil {
		panic("middleware: WithPriority: f is nil; leave the option out")
	}
	return concurrencyOption(func(c *concurrencyConfig) { c.priority = f })
}

// WithWeight makes a request take more than one permit. The default is 1. See
// [limiter.Request]. It panics if f is nil.
func WithWeight(f func(*http.Request) int) ConcurrencyOption {
	if f == nil {
		panic("middleware: WithWeight: f is nil; leave the option out")
	}
	return concurrencyOption(func(c *concurrencyConfig) { c.weight = f })
}

// WithClient names the client of a request, so that waiting clients get equal shares. By default all requests belong
// to one client. [limiter.Request] says how many clients can share a queue. With WithClient, the priority of a
// request counts only among the requests of its client. (*clientip.Source).Key is such a function. It panics if f is
// nil.
func WithClient(f func(*http.Request) string) ConcurrencyOption {
	if f == nil {
		panic("middleware: WithClient: f is nil; leave the option out")
	}
	return concurrencyOption(func(c *concurrencyConfig) { c.client = f })
}

// WithLongLived names requests that become long-lived with their first Flush: a stream other than text/event-stream,
// such as gRPC, or a long poll whose handler calls Flush before it waits. They give their permit back then. They also
// give back that of a fixed limit when their client does not take what is written, as [Concurrency] describes for an
// adaptive one. Hijacked connections, status 101, tunnels and event streams are always long-lived. It panics if f is
// nil.
func WithLongLived(f func(*http.Request) bool) ConcurrencyOption {
	if f == nil {
		panic("middleware: WithLongLived: f is nil; leave the option out")
	}
	return concurrencyOption(func(c *concurrencyConfig) { c.long = f })
}

type concurrencyLayer struct {
	l      *limiter.Concurrency
	config concurrencyConfig
	slow   places // of requests whose permit was given back since their client does not read
	bodies places // and of those whose permit others have while a body is to come
}

func (*concurrencyLayer) rank() rank { return rankConcurrency }

// Handler implements [Layer].
func (c *concurrencyLayer) Handler(next http.Handler) http.Handler { return c.wrap(next, env{}) }

func (c *concurrencyLayer) wrap(next http.Handler, e env) http.Handler {
	h := &concurrencyHandler{
		base:     newBase(next, e, c.config.common, rejecter{layer: "concurrency", status: http.StatusServiceUnavailable, spread: -1}),
		l:        c.l,
		adaptive: c.l.Stats().Adaptive,
		config:   c.config,
		asks:     c.config.priority != nil || c.config.weight != nil || c.config.client != nil || c.config.long != nil,
	}
	h.usual = permitSource{l: h.l, becameLong: func(rec *recorder, x *permitHold, k streamKind) {
		if k != streamFlush {
			h.becameLong(rec, x, k)
		}
	}}
	if h.adaptive {
		h.usual.slow, h.usual.bodies = &c.slow, &c.bodies
	}
	h.long = permitSource{l: h.l, becameLong: h.becameLong, slow: &c.slow, bodies: h.usual.bodies}
	return h
}

func (c *concurrencyLayer) subject() any { return c.l }

func (c *concurrencyLayer) stats() LayerStats {
	s := c.l.Stats()
	return LayerStats{Layer: "concurrency", Concurrency: &s}
}

type concurrencyHandler struct {
	base
	l        *limiter.Concurrency
	adaptive bool
	config   concurrencyConfig
	asks     bool // a function of the user's for each request

	usual, long permitSource // those of long are given back at the first Flush
}

func (h *concurrencyHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h.skip != nil && h.skips(w, r) {
		h.skipped.ServeHTTP(w, r)
		return
	}
	w, rec := record(w, r)
	if rec.hasPermit(h.l) {
		h.serve(w, r, rec)
		return
	}
	req := h.request(r)
	if h.asks {
		rec.fresh = false
	}
	req.Arrived = rec.now()
	waits := rec.waits()
	permit, err := h.l.Acquire(r.Context(), req)
	if err != nil {
		h.rejecter.reject(w, r, rec, err, retryAfterOf(err), "", reducedCapacity)
		return
	}
	rec.goesOn(waits)
	h.admitted(w, r, rec, permit, req)
}

// ServeFill implements [cache.Gate]: what the cache inside which h is has no answer for needs a recorder
// besides the client's only if it is let pass.
func (h *concurrencyHandler) ServeFill(w http.ResponseWriter, r *http.Request, f cache.Fill) {
	if h.skip != nil && h.skips(w, r) {
		h.skipped.ServeHTTP(w, f.Request())
		return
	}
	out := enclosing(w)
	if out.hasPermit(h.l) {
		w, rec := newRecorder(w, r, out, f.Now())
		h.serve(w, f.Request(), rec)
		return
	}
	req := h.request(r)
	if req.Arrived = f.Now(); h.asks || h.skip != nil {
		req.Arrived = time.Now()
	}
	permit, err := h.l.Acquire(f.Context(), req)
	if err != nil && h.rejecter.rejectFill(w, r, f, out, err, retryAfterOf(err), reducedCapacity) {
		return
	}
	w, rec := newRecorder(w, r, out, req.Arrived)
	if err != nil {
		h.rejecter.reject(w, f.Request(), rec, err, retryAfterOf(err), "", reducedCapacity)
		return
	}
	h.admitted(w, f.Request(), rec, permit, req)
}

// request is what the limiter is asked for, but for when it arrived: that is read when the functions of the user's have returned, which may have taken
// any time. An adaptive limit takes what comes after it for work.
func (h *concurrencyHandler) request(r *http.Request) (req limiter.Request) {
	if h.config.priority != nil {
		req.Priority = h.config.priority(r)
	}
	if h.config.weight != nil {
		req.Weight = h.config.weight(r)
	}
	if h.config.client != nil {
		req.Client = h.config.client(r)
	}
	return req
}

// admitted passes on a request that has a permit.
func (h *concurrencyHandler) admitted(w http.ResponseWriter, r *http.Request, rec *recorder, permit limiter.Permit, req limiter.Request) {
	rec.fresh = rec.fresh && permit.AtOnce() && !h.asks
	finished := false
	defer func() {
		if !finished {
			rec.fresh = false
		}
		var now time.Time // zero: the limiter reads the clock if it needs the time, and a fixed limit seldom does
		if h.adaptive || rec.fresh {
			now = rec.now()
		}
		held, outcome := permit, concurrencyOutcome(r, rec, finished)
		defer func() { held.ReleaseAt(outcome, now) }()
		held = rec.holds.dropPermit(permit)
	}()
	from := &h.usual
	if h.config.long != nil && h.config.long(r) {
		from = &h.long
	}
	inner := rec.watchBody(r)
	if b, ok := inner.Body.(*body); ok && from.bodies != nil {
		from = b.awaitsPermit(inner, from, permit, req)
	}
	rec.holds.addPermit(permitHold{from, permit})
	h.traceAdmitted(r, rec, "concurrency", req.Arrived)
	if rec.holds.call.request == nil {
		rec.holds.call.request = inner
	}
	defer passBack(r, inner)
	h.serve(w, inner, rec)
	finished = true
}

func (h *concurrencyHandler) becameLong(rec *recorder, x *permitHold, k streamKind) {
	if k == streamPool {
		if !h.adaptive {
			return // the user's number: it bounds whatever is inside
		}
		x.drop().ReleaseAt(limiter.Ignored, rec.now()) // the work is still to come
	} else {
		x.drop().Release(answerOutcome(rec)) // the limiter reads the clock
	}
}

// concurrencyOutcome is what the request was to the limiter. What is a failure to a breaker is none of the throughput either: work
// that is cut off ends at the same rate whatever the dependency does.
func concurrencyOutcome(r *http.Request, rec *recorder, finished bool) limiter.Outcome {
	if rec.shed == nil {
		switch err, gone := ending(r, rec, finished); {
		case gone:
			return limiter.Ignored // cut short, however it ended
		case err != nil:
			return limiter.Failure
		}
	}
	return answerOutcome(rec)
}

// answerOutcome is what a request was to the limiter by its answer, as far as there is one.
func answerOutcome(rec *recorder) limiter.Outcome {
	switch {
	case rec.shed != nil:
		return limiter.Ignored // a layer of ours refused: no work was measured
	case failed(int(rec.status)):
		return limiter.Failure
	case rec.status == http.StatusTooManyRequests:
		return limiter.Ignored
	}
	return limiter.Success
}

// retryAfterOf reads the wait that an error of one of our packages carries; 0 if none.
func retryAfterOf(err error) time.Duration {
	if e, ok := errors.AsType[*limiter.Error](err); ok {
		return e.RetryAfter
	}
	return 0
}

// traced says that there is somebody whom traceAdmitted may have to tell.
func (b *base) traced(rec *recorder) bool { return b.rejecter.trace != nil || rec.traces != nil }

// traceAdmitted tells the traces of the layer and of the stacks.
func (b *base) traceAdmitted(r *http.Request, rec *recorder, layer string, since time.Time) {
	if !b.traced(rec) {
		return
	}
	own := b.rejecter.trace
	waited, told := time.Duration(0), false
	tell := func(t *Trace) {
		if t == nil || t.Admitted == nil {
			return
		}
		if !told {
			waited, told = rec.now().Sub(since), true
		}
		t.Admitted(r, layer, waited)
	}
	tell(own)
	for all := rec.traces; all != nil; all = all.outer {
		if all.t != own {
			tell(all.t)
		}
	}
	if told {
		rec.fresh = false
	}
}

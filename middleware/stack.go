package middleware

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/cache"
	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/pool"
)

// Wrap puts layers around h, in the order of the package comment whatever order they are given in:
//
//	Wrap(h, pool, rate, breaker) == rate(breaker(pool(h)))
//
// Without layers it uses [Defaults]. Layers of the same kind keep the order given. A nil h means
// [http.DefaultServeMux]. Wrap panics where [New] does.
//
// Wrap is New(layers...).Handler(h), for programs that need neither [Stack.Stats] nor [Stack.Shutdown].
func Wrap(h http.Handler, layers ...Layer) http.Handler {
	return New(layers...).Handler(h)
}

// Defaults returns the layers that [Wrap] and [New] use when they are given none. They need no number, and are meant
// to harm no server:
//
//   - an adaptive concurrency limit ([limiter.NewAdaptive]);
//   - a circuit breaker for each route, if the wrapped handler is an [http.ServeMux] that can tell the route; no
//     breaker otherwise, since one failing route must not close the whole server (another router under one pattern of
//     the mux is one route: see [Breaker]);
//   - a cache of 64 MiB that stores only what the handler addresses to shared caches (public, s-maxage,
//     CDN-Cache-Control).
//
// There is no rate limit: only the user knows its number and its key. The options are those of the limit, and of no
// other layer. A server with streams other than server-sent events, such as gRPC, gives [WithLongLived].
//
//	middleware.Wrap(mux, middleware.Defaults(middleware.WithLongLived(isStream), middleware.WithClient(user))...)
//
// Each call makes new limiters, breakers and caches. It panics if an option is nil.
func Defaults(opts ...ConcurrencyOption) []Layer {
	for i, o := range opts {
		if o == nil {
			panic(nilOption("Defaults", i))
		}
	}
	return []Layer{
		Cache(cache.New(64<<20, cache.WithOnlyExplicit())),
		Concurrency(limiter.NewAdaptive(), opts...),
		&breakerLayer{group: breaker.NewGroup(), config: breakerConfig{needRoute: true}},
	}
}

// Stack is a set of layers in order, with one view of what they do. It is safe for concurrent use. The zero value is
// not usable; call [New].
type Stack struct {
	layers []Layer
	counts rejectCounts
	gate   gate
}

// New returns a stack of the layers, or of [Defaults] if there are none. It panics if a layer is nil or given twice,
// or if two cache layers are for all requests; Defaults has one.
func New(layers ...Layer) *Stack {
	if len(layers) == 0 {
		layers = Defaults()
	}
	checkLayers("New", layers)
	caches := 0
	for _, l := range layers {
		if l.rank() == rankCache {
			caches++
		}
	}
	if caches > 1 {
		panic("middleware: New: two cache layers for all requests; give one, and the others in For")
	}
	return &Stack{layers: slices.Clone(layers)}
}

// Handler returns h behind the layers of the stack. It may be called more than once: the handlers share the limiters,
// breakers, caches and pools. A nil h means [http.DefaultServeMux].
//
// A cache knows a response by its URL and the host that the client named, and a breaker knows a route by its pattern,
// whichever handler it belongs to. Give handlers that answer differently, such as those of a public and an internal
// port, caches and breakers of their own.
func (s *Stack) Handler(h http.Handler) http.Handler {
	h = orDefaultMux(h)
	e := env{count: &s.counts, gate: &s.gate, end: h}
	// The gate is inside the options, so that what they skip is answered while draining.
	options, rest := split(flatten(nil, s.layers, nil))
	g := &gateHandler{next: ownOr(build(h, rest, e)), gate: &s.gate}
	g.rejecter = rejecter{layer: "drain", status: http.StatusServiceUnavailable, spread: -1, count: &s.counts}
	return build(g, options, e)
}

func split(all []placed) (options, rest []placed) {
	for _, p := range all {
		if p.l.rank() <= rankSetting {
			options = append(options, p)
		} else {
			rest = append(rest, p)
		}
	}
	return options, rest
}

// placed is a layer with the patterns of the For it came from.
type placed struct {
	l  Layer
	on []*matcher
}

func flatten(out []placed, layers []Layer, on []*matcher) []placed {
	for _, l := range layers {
		if f, ok := l.(*forLayer); ok {
			out = flatten(out, f.layers, append(slices.Clip(on), f.m))
			continue
		}
		out = append(out, placed{l, on})
	}
	return out
}

// build puts the layers around next in order of rank.
func build(next http.Handler, all []placed, e env) http.Handler {
	slices.SortStableFunc(all, func(a, b placed) int {
		if a.l.rank() != b.l.rank() {
			return int(a.l.rank() - b.l.rank())
		}
		return min(len(a.on), 1) - min(len(b.on), 1) // what holds for all is outside
	})
	h := orDefaultMux(next)
	for i := len(all) - 1; i >= 0; i-- {
		if all[i].l.rank() == rankCache {
			first := i
			for first > 0 && all[first-1].l.rank() == rankCache {
				first--
			}
			h = buildCaches(h, all[first:i+1], e)
			i = first
			continue
		}
		h = place(h, h, all[i], e)
	}
	return h
}

func place(inside, otherwise http.Handler, p placed, e env) http.Handler {
	var h http.Handler
	if w, ok := p.l.(wrapper); ok {
		h = w.wrap(inside, e)
	} else {
		h = p.l.Handler(inside)
	}
	if len(p.on) == 0 {
		return h
	}
	return &condHandler{m: p.on, yes: ownOr(h), no: ownOr(otherwise)}
}

// buildCaches makes of several cache layers a choice: a request goes through one of them.
func buildCaches(next http.Handler, all []placed, e env) http.Handler {
	h := next
	n := 0
	for ; n < len(all) && len(all[n].on) == 0; n++ {
		h = place(next, nil, all[n], e)
	}
	for i := len(all) - 1; i >= n; i-- {
		p := all[i]
		p.on = make([]*matcher, len(all[i].on))
		for j, m := range all[i].on {
			p.on[j] = m.withUnsafe()
		}
		h = place(next, h, p, e)
	}
	return h
}

// Stats is a reading of a stack. The layers are in the order in which they were given to [New]. What several layers
// have in common, such as a limit that two routes share or a cache with rules for some, is read once, and each of
// these layers has the same pointer: count it once. In JSON, times are in nanoseconds.
type Stats struct {
	InFlight int64        `json:"in_flight"` // requests inside the stack, and validations in the background; an upgraded connection does not count
	Rejected RejectStats  `json:"rejected"`  // by the layer that refused
	Layers   []LayerStats `json:"layers"`
}

// RejectStats counts the requests refused since the start. They include background validations of a cache: no client
// sent these, so a [Trace] of the stack is not told of them. They do not include what the engine of an [Async]
// refuses: Async is a handler, and a Trace is told of its refusals with the layer "pool". Nor do they include what a
// handler refuses with a [Rejection] of its own; Done of a Trace is told of that.
type RejectStats struct {
	Rate        uint64 `json:"rate"`
	Concurrency uint64 `json:"concurrency"`
	Breaker     uint64 `json:"breaker"`
	Pool        uint64 `json:"pool"`
	Drain       uint64 `json:"drain"`
}

// LayerStats is the reading of one layer. The field of its kind is set.
type LayerStats struct {
	Layer       string                    `json:"layer"`         // "rate", "concurrency", "breaker", "cache" or "pool"
	For         string                    `json:"for,omitempty"` // the pattern of its For
	Rate        *limiter.RateStats        `json:"rate,omitempty"`
	Concurrency *limiter.ConcurrencyStats `json:"concurrency,omitempty"`
	Breaker     *BreakerStats             `json:"breaker,omitempty"`
	Cache       *cache.Stats              `json:"cache,omitempty"`
	Pool        *pool.Stats               `json:"pool,omitempty"`
}

// BreakerStats is the reading of a breaker layer.
type BreakerStats struct {
	Group  breaker.GroupStats       `json:"group"`
	Routes map[string]breaker.Stats `json:"routes"` // by route, or by the key of WithBreakerKey
}

// Stats returns a reading of the stack and its layers. It may be called at any time; the parts are read one after
// another. Package expvar can show it (see the example); package prommw, in a module of its own, exports it to
// Prometheus.
func (s *Stack) Stats() Stats {
	c := &s.counts
	out := Stats{
		InFlight: s.gate.inFlight(),
		Rejected: RejectStats{c.rate.Load(), c.concurrency.Load(), c.breaker.Load(), c.pool.Load(), c.drain.Load()},
		Layers:   []LayerStats{}, // a list in JSON without layers, too
	}
	read := map[any]LayerStats{}
	for _, p := range flatten(nil, s.layers, nil) {
		l, ok := p.l.(interface {
			subject() any // what the layer goes by: a limiter, a group, a cache or a pool
			stats() LayerStats
		})
		if !ok {
			continue
		}
		st, ok := read[l.subject()]
		if !ok {
			st = l.stats()
			read[l.subject()] = st
		}
		for _, m := range p.on {
			if st.For != "" {
				st.For += ", "
			}
			st.For += m.pattern
		}
		out.Layers = append(out.Layers, st)
	}
	return out
}

// Shutdown drains the stack. From now on its handlers answer 503 with Connection: close, which HTTP/3 does not have.
// Shutdown waits until the requests inside and the background validations of its caches have ended, then shuts down its
// pools. Like [http.Server.Shutdown], it does not wait for a connection that was hijacked to be upgraded to another
// protocol or to be a tunnel (Upgrade, CONNECT).
//
// If ctx ends first, Shutdown stops waiting, leaves the pools open and returns an error that wraps the cause and says
// how many requests were left. If ctx ends while the pools finish their work, each is still shut down, and the error
// tells what they dropped. Call Shutdown after the load balancer has been told (see package health), and before or
// beside [http.Server.Shutdown]. A second call waits again.
func (s *Stack) Shutdown(ctx context.Context) error {
	if err := s.gate.drain(ctx); err != nil {
		return fmt.Errorf("middleware: shutdown with %d requests in flight: %w", s.gate.inFlight(), err)
	}
	var errs []error
	for _, p := range flatten(nil, s.layers, nil) {
		if l, ok := p.l.(interface{ shutdown(context.Context) error }); ok {
			if err := l.shutdown(ctx); err != nil {
				errs = append(errs, fmt.Errorf("middleware: shutdown: %w", err))
			}
		}
	}
	return errors.Join(errs...)
}

// gate counts the requests inside a stack, and can be shut.
// The count is spread over several words so that two requests rarely share one.
type gate struct {
	shut  atomic.Bool
	cells [8]struct {
		n atomic.Int64
		_ [56]byte
	}
	mu   sync.Mutex
	idle chan struct{} // closed when the last request leaves a shut gate
}

func (g *gate) inFlight() int64 {
	var n int64
	for i := range g.cells {
		n += g.cells[i].n.Load()
	}
	return n
}

// enter returns false if the gate is shut. The caller calls leave with the same cell.
func (g *gate) enter(cell uint32) bool {
	g.cells[cell&7].n.Add(1)
	if g.shut.Load() {
		g.leave(cell)
		return false
	}
	return true
}

func (g *gate) leave(cell uint32) {
	g.cells[cell&7].n.Add(-1)
	if g.shut.Load() && g.inFlight() == 0 {
		g.mu.Lock()
		if g.idle != nil {
			close(g.idle)
			g.idle = nil
		}
		g.mu.Unlock()
	}
}

func (g *gate) drain(ctx context.Context) error {
	g.mu.Lock()
	g.shut.Store(true)
	if g.inFlight() == 0 {
		g.mu.Unlock()
		return nil
	}
	if g.idle == nil {
		g.idle = make(chan struct{})
	}
	idle := g.idle
	g.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

var errDraining = errors.New("middleware: draining")

type gateHandler struct {
	next     http.Handler
	gate     *gate
	rejecter rejecter
}

func (h *gateHandler) inner() http.Handler { return h.next }

func (h *gateHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	cell := rand.Uint32()
	if !h.gate.enter(cell) {
		if r.ProtoMajor < 3 { // net/http turns it into a GOAWAY over HTTP/2; quic-go sends it, and clients then drop the response as malformed
			w.Header().Set("Connection", "close")
		}
		w, rec := record(w, r)
		h.rejecter.reject(w, r, rec, errDraining, 0, "", reducedCapacity)
		return
	}
	if _, ok := r.Header["Upgrade"]; ok || r.Method == http.MethodConnect {
		h.upgrade(w, r, cell)
		return
	}
	defer h.gate.leave(cell)
	h.next.ServeHTTP(w, r)
}

// upgrade serves a request that leaves when its connection is hijacked. Others than these are seldom hijacked, and do
// without what it costs.
func (h *gateHandler) upgrade(w http.ResponseWriter, r *http.Request, cell uint32) {
	leave := sync.OnceFunc(func() { h.gate.leave(cell) })
	defer leave()
	w, rec := record(w, r)
	rec.holds.addPermit(permitHold{from: &permitSource{becameLong: func(rec *recorder, _ *permitHold, _ streamKind) {
		if rec.hijacked {
			leave()
		}
	}}})
	h.next.ServeHTTP(w, r)
}

package middleware

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/pool"
)

// Pool runs the handler in a slot of p, on the request's own goroutine. Requests that compute wait for a slot, so
// that they leave the CPU to the others. Use it only for such routes; name them with [For]:
//
//	middleware.For("POST /report", middleware.Pool(p))
//
// While the handler waits for a body that comes slowly, others have the slot: once a single Read has waited for 10 ms,
// or for 1 ms if an earlier one has waited so long, and for twenty times as long as work waits for a processor. Before
// that Read returns, the request takes its slot again, and waits in the queue for it if none is free
// ([pool.Slot.ResumeInTurn]). [BufferBody] reads the body before there is any question of a slot.
//
// A client that leaves gives up its place in the queue at once, if net/http sees it leave. Over HTTP/1 it does not
// before the body has been read: if the handler is to read it, the request keeps its place, and gets a slot for an
// answer that nobody takes. Where clients have less patience than the queue, use [BufferBody], or a [pool.Pool.Do]
// after the body was read.
//
// While a client does not take what the handler writes, beyond what the buffers on the way take, others have the
// slot: from when a single write or Flush has waited for 50 ms, and for twenty times as long as work waits for a
// processor, until it ends ([pool.Slot.Pause]). The handler then goes on at once, even if no slot is free; nobody
// else gets a slot before there is room again. If a handler computes for long between its writes, let it compute in a
// [pool.Pool.Do] in place of this layer, and write outside of that: a handler that goes on in this way lets only more
// urgent work go first, in [pool.Checkpoint].
//
// The handler's context carries the slot: what the handler runs on p ([pool.Pool.Do], [pool.Submit], [pool.Map])
// inherits it. When p refuses, the response is 503 with Retry-After. It is 429 if the client that the task is for
// ([pool.WithClient], by [WithTaskFunc]) already has its share of the queue waiting.
//
// It panics if p or an option is nil.
func Pool(p *pool.Pool, opts ...PoolOption) Layer {
	if p == nil {
		panic("middleware: Pool: p is nil; give one made by pool.New")
	}
	c := poolConfig{}
	for i, o := range opts {
		if o == nil {
			panic(nilOption("Pool", i))
		}
		o.applyPool(&c)
	}
	return &poolLayer{p: p, config: c}
}

// PoolOption configures [Pool].
type PoolOption interface{ applyPool(*poolConfig) }

type poolConfig struct {
	common
	task []pool.TaskOption
	each func(*http.Request) []pool.TaskOption
}

type poolOption func(*poolConfig)

func (f poolOption) applyPool(c *poolConfig) { f(c) }

// WithTask gives every request's task these options: its kind, its weight.
func WithTask(opts ...pool.TaskOption) PoolOption {
	return poolOption(func(c *poolConfig) { c.task = append(c.task, opts...) })
}

// WithTaskFunc gives a request's task the options that f returns for it, such as its client or priority. They are
// applied after those of [WithTask]. It panics if f is nil.
func WithTaskFunc(f func(*http.Request) []pool.TaskOption) PoolOption {
	if f == nil {
		panic("middleware: WithTaskFunc: f is nil; leave the option out")
	}
	return poolOption(func(c *poolConfig) { c.each = f })
}

type poolLayer struct {
	p      *pool.Pool
	config poolConfig
}

func (*poolLayer) rank() rank { return rankPool }

// Handler implements [Layer].
func (p *poolLayer) Handler(next http.Handler) http.Handler { return p.wrap(next, env{}) }

func (p *poolLayer) wrap(next http.Handler, e env) http.Handler {
	return &poolHandler{
		base:   newBase(next, e, p.config.common, rejecter{layer: "pool", status: http.StatusServiceUnavailable, spread: -1}),
		p:      p.p,
		config: p.config,
	}
}

func (p *poolLayer) subject() any { return p.p }

func (p *poolLayer) stats() LayerStats {
	s := p.p.Stats()
	return LayerStats{Layer: "pool", Pool: &s}
}

func (p *poolLayer) shutdown(ctx context.Context) error { return p.p.Shutdown(ctx) }

var poolShareFull = newRejectBody(problemQuota, "Too many requests waiting", http.StatusTooManyRequests,
	"As many of your requests wait as may. Retry after the time given.", nil)

type poolHandler struct {
	base
	p      *pool.Pool
	config poolConfig
}

func (h *poolHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h.skip != nil && h.skips(w, r) {
		h.skipped.ServeHTTP(w, r)
		return
	}
	w, rec := record(w, r)
	waits := rec.waits() // also for what the function of the user's takes
	opts := h.config.task
	if h.config.each != nil {
		opts = append(opts[:len(opts):len(opts)], h.config.each(r)...)
		rec.fresh = false
	}
	var since time.Time
	if h.traced(rec) {
		since = rec.now()
	}
	rec.becameLong(streamPool)
	ctx, slot, err := h.p.Enter(r.Context(), opts...)
	if errors.Is(err, limiter.ErrRateLimited) {
		j := h.rejecter
		j.status = http.StatusTooManyRequests
		j.reject(w, r, rec, err, retryAfterOf(err), "", poolShareFull)
		return
	}
	if err != nil {
		h.rejecter.reject(w, r, rec, err, retryAfterOf(err), "", reducedCapacity)
		return
	}
	defer slot.Leave()
	rec.fresh = false
	rec.goesOn(waits)
	h.traceAdmitted(r, rec, "pool", since)
	rec.holds.addSlot(slot)
	defer rec.holds.dropSlot(slot)

	inner := passed(rec.watchBody(r), ctx)
	if b, ok := inner.Body.(*body); ok {
		b.awaits(inner, rec.holds.timeSlot(), new(bodyWait))
	}
	defer passBack(r, inner)
	h.serve(w, inner, rec)
}

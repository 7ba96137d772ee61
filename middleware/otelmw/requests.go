package otelmw

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/cache"
	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware"
	"github.com/spillgate/spillgate/middleware/internal/metrics"
	"github.com/spillgate/spillgate/pool"
)

// Requests adds an event to the span of a request when a layer decides something about it:
//
//   - spillgate.request.rejected: a layer refused it, with spillgate.layer, spillgate.reason (rate_limited, saturated,
//     deadline, open, draining, shutdown, store_failed, canceled, other) and, where known, spillgate.policy and
//     spillgate.retry_after, in seconds; a cache may still have answered it;
//   - spillgate.request.waited: it waited for a permit or a slot, for a millisecond or more, with spillgate.layer and
//     spillgate.time_in_queue, in seconds;
//   - spillgate.cache.stale: it was answered with a stale response;
//   - spillgate.breaker.opened: a breaker opened as it ended, with spillgate.route, spillgate.cause and
//     spillgate.open_for, in seconds, if [Requests.Changed] is told.
//
// A span that does not record costs nothing, and neither does a request about which nothing is decided. Requests also
// measures how long requests waited, with a histogram (spillgate.request.time_in_queue) of only those that did wait;
// prommw also counts those that did not. Create one with [NewRequests]. Requests is safe for concurrent use.
type Requests struct {
	wait              metric.Float64Histogram
	concurrency, pool []metric.RecordOption // of wait, for the two layers that there are
	trace             middleware.Trace

	untold atomic.Int64 // how many are in opened
	mu     sync.Mutex
	opened map[string]opening // by route, what no request has been told of yet
}

// NewRequests returns Requests that measure with a meter of p. If you want only the events, pass the provider of
// package go.opentelemetry.io/otel/metric/noop. The error is the meter's. NewRequests panics if p is nil.
func NewRequests(p metric.MeterProvider) (*Requests, error) {
	if p == nil {
		panic("otelmw: NewRequests: p is nil: give a provider, such as that of otel.GetMeterProvider")
	}
	q := &Requests{opened: map[string]opening{}}
	var err error
	q.wait, err = p.Meter(ScopeName).Float64Histogram(metrics.Namespace+".request.time_in_queue", metric.WithUnit("s"),
		metric.WithDescription("How long requests waited for a permit or a slot that they got, without those that waited for less than a millisecond."),
		metric.WithExplicitBucketBoundaries(.005, .01, .025, .05, .075, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10)) // as the conventions have it
	if err != nil {
		return nil, fmt.Errorf("otelmw: NewRequests: %w", err)
	}
	in := func(layer string) []metric.RecordOption {
		return []metric.RecordOption{metric.WithAttributeSet(attribute.NewSet(keyLayer.String(layer)))}
	}
	q.concurrency, q.pool = in("concurrency"), in("pool")
	q.trace = middleware.Trace{Rejected: q.rejected, Admitted: q.admitted, Done: q.done}
	return q, nil
}

// Layer returns the layer that adds the events. It goes into a stack beside other layers; the layer of one Requests may
// be in several stacks.
func (q *Requests) Layer() middleware.Layer { return middleware.WithTrace(&q.trace) }

// Changed is the function for [breaker.WithOnChange] of a group that is keyed by route. It adds the event to the
// request that ended as its breaker opened, or to one of the same route that ended in that moment.
func (q *Requests) Changed(c breaker.Change) {
	if c.To != breaker.Open {
		return
	}
	now := time.Now()
	q.mu.Lock()
	defer q.mu.Unlock()
	for route, o := range q.opened { // what nobody was told of does not stay
		if now.Sub(o.at) >= openingLasts {
			delete(q.opened, route)
		}
	}
	q.opened[c.Name] = opening{c, now}
	q.untold.Store(int64(len(q.opened)))
}

// openingOf takes what a request of a route is to be told of, if there is something.
func (q *Requests) openingOf(route string) (opening, bool) {
	if q.untold.Load() == 0 {
		return opening{}, false
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	o, ok := q.opened[route]
	delete(q.opened, route)
	q.untold.Store(int64(len(q.opened)))
	return o, ok && time.Since(o.at) < openingLasts
}

// opening is a change and when it was made.
type opening struct {
	breaker.Change
	at time.Time
}

// openingLasts is how long a change may be on its way to the end of its request.
const openingLasts = time.Second

const (
	keyLayer  = attribute.Key(metrics.Namespace + ".layer")
	keyReason = attribute.Key(metrics.Namespace + ".reason")
	keyPolicy = attribute.Key(metrics.Namespace + ".policy")
	keyAfter  = attribute.Key(metrics.Namespace + ".retry_after")
	keyQueue  = attribute.Key(metrics.Namespace + ".time_in_queue")
	keyRoute  = attribute.Key(metrics.Namespace + ".route")
	keyCause  = attribute.Key(metrics.Namespace + ".cause")
	keyFor    = attribute.Key(metrics.Namespace + ".open_for")
)

func (q *Requests) rejected(r *http.Request, j middleware.Rejection) {
	span := trace.SpanFromContext(r.Context())
	if !span.IsRecording() {
		return
	}
	a := make([]attribute.KeyValue, 0, 4)
	a = append(a, keyLayer.String(j.Layer), keyReason.String(reason(j)))
	if j.Policy != "" {
		a = append(a, keyPolicy.String(j.Policy))
	}
	if j.RetryAfter > 0 {
		a = append(a, keyAfter.Float64(j.RetryAfter.Seconds()))
	}
	span.AddEvent("spillgate.request.rejected", trace.WithAttributes(a...))
}

func reason(j middleware.Rejection) string {
	if j.Layer == "drain" {
		return "draining"
	}
	for _, is := range []struct {
		err  error
		name string
	}{
		{limiter.ErrRateLimited, "rate_limited"},
		{limiter.ErrSaturated, "saturated"},
		{limiter.ErrWouldMissDeadline, "deadline"},
		{limiter.ErrStoreFailed, "store_failed"},
		{breaker.ErrOpen, "open"},
		{pool.ErrShutdown, "shutdown"},
		{context.DeadlineExceeded, "deadline"},
		{context.Canceled, "canceled"},
	} {
		if errors.Is(j.Err, is.err) {
			return is.name
		}
	}
	return "other"
}

// brief is shorter than a wait. An adaptive limit yields to what is ready to run, which takes some time and is told of as well.
const brief = time.Millisecond

func (q *Requests) admitted(r *http.Request, layer string, waited time.Duration) {
	if waited < brief {
		return
	}
	with := q.concurrency
	if layer == "pool" {
		with = q.pool
	}
	ctx := r.Context()
	q.wait.Record(ctx, waited.Seconds(), with...)
	if span := trace.SpanFromContext(ctx); span.IsRecording() {
		span.AddEvent("spillgate.request.waited", trace.WithAttributes(keyLayer.String(layer), keyQueue.Float64(waited.Seconds())))
	}
}

func (q *Requests) done(r *http.Request, res middleware.Result) {
	if c, ok := q.openingOf(res.Route); ok {
		if span := trace.SpanFromContext(r.Context()); span.IsRecording() {
			span.AddEvent("spillgate.breaker.opened", trace.WithAttributes(
				keyRoute.String(metrics.Label(c.Name)), keyCause.String(c.Cause.String()), keyFor.Float64(c.OpenFor.Seconds())))
		}
	}
	if res.Cache == cache.Stale {
		if span := trace.SpanFromContext(r.Context()); span.IsRecording() {
			span.AddEvent("spillgate.cache.stale")
		}
	}
}

package prommw

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/spillgate/spillgate/middleware"
)

// Requests measures requests: a histogram of how long each took (spillgate_request_duration_seconds), by route, status code, what the cache did and
// which layer refused it, and one of how long it waited in a layer (spillgate_request_wait_seconds). Make one with [NewRequests]. It is safe for concurrent use.
type Requests struct {
	duration, wait    *prometheus.HistogramVec
	concurrency, pool prometheus.Observer // of wait, for the two layers that there are
	codes             [1000]string
	trace             middleware.Trace
}

// NewRequests returns Requests with these upper bounds of the buckets, in seconds; none is [prometheus.DefBuckets]. It panics if they are not
// in increasing order.
func NewRequests(buckets ...float64) *Requests {
	q := &Requests{
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: namespace, Name: "request_duration_seconds", Buckets: buckets,
			Help: "How long requests took, from the stack on; without those whose connection was taken over.",
		}, []string{"route", "code", "cache", "shed"}),
		wait: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: namespace, Name: "request_wait_seconds", Buckets: buckets,
			Help: "How long requests waited for a permit or a slot before they got it.",
		}, []string{"layer"}),
	}
	prometheus.NewHistogram(prometheus.HistogramOpts{Name: "bounds", Buckets: buckets}) // which panics now and not at the first request
	q.concurrency, q.pool = q.wait.WithLabelValues("concurrency"), q.wait.WithLabelValues("pool")
	for i := range q.codes {
		q.codes[i] = strconv.Itoa(i)
	}
	q.trace = middleware.Trace{Done: q.done, Admitted: q.admitted}
	return q
}

// Layer returns the layer that measures. It goes into a stack beside others; that of one Requests may be in several.
func (q *Requests) Layer() middleware.Layer { return middleware.WithTrace(&q.trace) }

// Describe implements [prometheus.Collector].
func (q *Requests) Describe(ch chan<- *prometheus.Desc) {
	q.duration.Describe(ch)
	q.wait.Describe(ch)
}

// Collect implements [prometheus.Collector].
func (q *Requests) Collect(ch chan<- prometheus.Metric) {
	q.duration.Collect(ch)
	q.wait.Collect(ch)
}

func (q *Requests) done(_ *http.Request, res middleware.Result) {
	if res.Hijacked {
		return
	}
	code := "panic"
	if !res.Panicked {
		code = q.codes[min(max(res.Status, 0), len(q.codes)-1)] // net/http knows no other
	}
	q.duration.WithLabelValues(label(res.Route), code, res.Cache.String(), res.Shed).Observe(res.Duration.Seconds())
}

func (q *Requests) admitted(_ *http.Request, layer string, waited time.Duration) {
	o := q.concurrency
	if layer == "pool" {
		o = q.pool
	}
	o.Observe(waited.Seconds())
}

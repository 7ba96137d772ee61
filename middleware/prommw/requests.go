package prommw

import (
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/spillgate/spillgate/middleware"
	"github.com/spillgate/spillgate/middleware/internal/metrics"
)

// Requests measures requests with two histograms. One is how long each took (spillgate_request_duration_seconds), by
// route, status code, what the cache did and which layer refused it. The other is how long it waited in a layer
// (spillgate_request_time_in_queue_seconds). The code is "panic" if the handler panicked, and "left" if the request
// came to nothing but a panic or a 5xx and its client had left: see [middleware.Result]. Create one with [NewRequests]
// or [NewRequestsOpts]. Requests is safe for concurrent use.
type Requests struct {
	duration, wait    *prometheus.HistogramVec
	concurrency, pool prometheus.Observer // of wait, for the two layers that there are
	codes             [1000]string
	exemplar          func(*http.Request) prometheus.Labels
	trace             middleware.Trace
}

// NewRequests returns Requests with these upper bounds of the buckets, in seconds; without any, it uses
// [prometheus.DefBuckets]. It panics if they are not in increasing order.
func NewRequests(buckets ...float64) *Requests {
	return NewRequestsOpts(RequestsOpts{Histogram: prometheus.HistogramOpts{Buckets: buckets}})
}

// RequestsOpts are the options of [NewRequestsOpts]. The zero value does what [NewRequests] does.
type RequestsOpts struct {
	// Histogram configures both histograms: buckets, including native ones (NativeHistogramBucketFactor), and ConstLabels.
	// It does not set names and help texts. A Prometheus that ingests native histograms does not keep the classic ones
	// beside them, and the dashboard and the alerts of examples/grafana query the classic ones: with
	// always_scrape_classic_histograms it keeps both.
	Histogram prometheus.HistogramOpts
	// Exemplar, if not nil, returns labels that lead from a measured duration to its request, such as the id of a trace
	// that is kept, or nil for none. Labels that Prometheus does not accept (more than 128 characters in all, not UTF-8, a
	// name that is empty or begins with two underscores) are left out. Exemplar is called when the request has ended, on
	// its goroutine. Waits have no exemplars. The usual format has no place for exemplars; OpenMetrics has, and is served
	// if promhttp.HandlerOpts has EnableOpenMetrics, which promhttp.Handler does not set.
	Exemplar func(*http.Request) prometheus.Labels
}

// NewRequestsOpts returns Requests configured by o. It panics where NewRequests does.
func NewRequestsOpts(o RequestsOpts) *Requests {
	h := func(name, help string, labels ...string) *prometheus.HistogramVec {
		opts := o.Histogram
		opts.Namespace, opts.Subsystem, opts.Name, opts.Help = metrics.Namespace, "", name, help
		v := prometheus.NewHistogramVec(opts, labels)
		// One that is thrown away panics now where the first request would.
		prometheus.NewHistogramVec(opts, labels).WithLabelValues(make([]string, len(labels))...)
		return v
	}
	q := &Requests{
		duration: h("request_duration_seconds", "How long requests took, from the stack on; without those whose connection was taken over. What was answered before "+
			"a mux was asked, as a hit or a refusal, has no route.", "route", "code", "cache", "shed"),
		wait:     h("request_time_in_queue_seconds", "How long requests waited for a permit or a slot before they got it, those at once among them.", "layer"),
		exemplar: o.Exemplar,
	}
	q.concurrency, q.pool = q.wait.WithLabelValues("concurrency"), q.wait.WithLabelValues("pool")
	for i := range q.codes {
		q.codes[i] = strconv.Itoa(i)
	}
	q.trace = middleware.Trace{Done: q.done, Admitted: q.admitted}
	return q
}

// Layer returns the layer that measures. It goes into a stack beside other layers; the layer of one Requests may be in
// several stacks.
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

func (q *Requests) done(r *http.Request, res middleware.Result) {
	if res.Hijacked {
		return
	}
	code := q.codes[min(max(res.Status, 0), len(q.codes)-1)] // net/http knows no other
	switch {
	case res.Left && res.Shed == "" && (res.Panicked || res.Status >= 500):
		code = "left" // nothing of the handler's doing
	case res.Panicked:
		code = "panic"
	}
	o := q.duration.WithLabelValues(metrics.Label(res.Route), code, res.Cache.String(), res.Shed)
	if q.exemplar != nil {
		if l := q.exemplar(r); exemplary(l) {
			o.(prometheus.ExemplarObserver).ObserveWithExemplar(res.Duration.Seconds(), l)
			return
		}
	}
	o.Observe(res.Duration.Seconds())
}

// exemplary reports whether ObserveWithExemplar takes these labels and does not panic.
func exemplary(l prometheus.Labels) bool {
	n := 0
	for k, v := range l {
		if k == "" || strings.HasPrefix(k, "__") || !utf8.ValidString(k) || !utf8.ValidString(v) {
			return false
		}
		n += utf8.RuneCountInString(k) + utf8.RuneCountInString(v)
	}
	return n > 0 && n <= prometheus.ExemplarMaxRunes
}

func (q *Requests) admitted(_ *http.Request, layer string, waited time.Duration) {
	o := q.concurrency
	if layer == "pool" {
		o = q.pool
	}
	o.Observe(waited.Seconds())
}

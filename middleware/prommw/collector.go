package prommw

import (
	"fmt"
	"math"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/spillgate/spillgate/middleware"
	"github.com/spillgate/spillgate/middleware/health"
	"github.com/spillgate/spillgate/middleware/internal/metrics"
	"github.com/spillgate/spillgate/middleware/outbound"
	"github.com/spillgate/spillgate/pool"
	"github.com/spillgate/spillgate/pool/jobs"
)

// collector reads at each scrape.
type collector struct {
	descs map[*metrics.Metric]*prometheus.Desc
	read  func(metrics.Emit)
}

func newCollector(of metrics.Families, read func(metrics.Emit)) *collector {
	c := &collector{make(map[*metrics.Metric]*prometheus.Desc, len(of)), read}
	for _, m := range of {
		c.descs[m] = prometheus.NewDesc(metrics.Namespace+"_"+m.Name, m.Help, m.Labels, nil)
	}
	return c
}

func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range c.descs {
		ch <- d
	}
}

func (c *collector) Collect(ch chan<- prometheus.Metric) { c.read(metrics.To(scrape{c, ch})) }

// scrape is a [metrics.Sink].
type scrape struct {
	*collector
	ch chan<- prometheus.Metric
}

func (s scrape) Value(m *metrics.Metric, labels []string, v float64) {
	kind := prometheus.GaugeValue
	if m.Kind == metrics.Counter {
		kind = prometheus.CounterValue
	}
	s.ch <- prometheus.MustNewConstMetric(s.descs[m], kind, v, labels...)
}

// Timing sends a summary. The quantiles of nothing are not 0 but NaN, as Prometheus has it.
func (s scrape) Timing(m *metrics.Metric, labels []string, t pool.Timing) {
	q := map[float64]float64{.5: t.P50.Seconds(), .9: t.P90.Seconds(), .99: t.P99.Seconds()}
	if t.Count == 0 {
		for k := range q {
			q[k] = math.NaN()
		}
	}
	s.ch <- prometheus.MustNewConstSummary(s.descs[m], uint64(t.Count), t.Total.Seconds(), q, labels...)
}

// StackOption configures [Stack].
type StackOption interface{ applyStack(*stackReader) }

type stackReader struct {
	stack  *middleware.Stack
	routes bool
}

type withoutRoutes struct{}

func (withoutRoutes) applyStack(r *stackReader) { r.routes = false }

// WithoutRoutes leaves out the metrics of single breakers, and keeps those of their groups (spillgate_breaker_keys and
// what begins with it). Use it if a [middleware.WithBreakerKey] makes keys of what a client sends: a group bounds how
// many keys there are at a time, but not how many come and go, and Prometheus keeps each of them for as long as it
// keeps data.
func WithoutRoutes() StackOption { return withoutRoutes{} }

// Stack returns a collector of [middleware.Stack.Stats]. Layers are told apart by two labels: for is the pattern of the
// layer's For, and nth says which layer of its kind with this pattern it is, counted from 1. What several layers share
// is exported once, so that a sum counts it once: for is then the patterns of all, as in "GET /a | GET /b", or empty if
// one of the layers is for every request. Stack panics if s or an option is nil.
func Stack(s *middleware.Stack, opts ...StackOption) prometheus.Collector {
	if s == nil {
		panic("prommw: Stack: s is nil: give one that middleware.New has made")
	}
	r := stackReader{s, true}
	for i, o := range opts {
		if o == nil {
			panic(fmt.Sprintf("prommw: Stack: option %d is nil: leave it out", i))
		}
		o.applyStack(&r)
	}
	return newCollector(metrics.OfStack, r.read)
}

func (r stackReader) read(e metrics.Emit) {
	s := r.stack.Stats()
	if !r.routes {
		for _, l := range s.Layers {
			if l.Breaker != nil {
				l.Breaker.Routes = nil
			}
		}
	}
	e.Stack(s)
}

// Jobs returns a collector of [jobs.Local.Stats]. It panics if l is nil.
func Jobs(l *jobs.Local) prometheus.Collector {
	if l == nil {
		panic("prommw: Jobs: l is nil: give one that jobs.NewLocal has made")
	}
	return newCollector(metrics.OfJobs, func(e metrics.Emit) { e.Jobs(l.Stats()) })
}

// Transport returns a collector of [outbound.Transport.Stats]. It panics if t is nil.
func Transport(t *outbound.Transport) prometheus.Collector {
	if t == nil {
		panic("prommw: Transport: t is nil: give one that outbound.New has made")
	}
	return newCollector(metrics.OfTransport, func(e metrics.Emit) { e.Transport(t.Stats()) })
}

// Set returns a collector of [outbound.Set.Stats]. It panics if s is nil.
func Set(s *outbound.Set) prometheus.Collector {
	if s == nil {
		panic("prommw: Set: s is nil: give one that outbound.NewSet has made")
	}
	return newCollector(metrics.OfSet, func(e metrics.Emit) { e.Set(s.Stats()) })
}

// Health returns a collector of [health.Health.Stats], without the texts of errors. It panics if h is nil.
func Health(h *health.Health) prometheus.Collector {
	if h == nil {
		panic("prommw: Health: h is nil: give one that health.New has made")
	}
	return newCollector(metrics.OfHealth, func(e metrics.Emit) { e.Health(h.Stats()) })
}

package otelmw

import (
	"context"
	"fmt"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/spillgate/spillgate/middleware"
	"github.com/spillgate/spillgate/middleware/health"
	"github.com/spillgate/spillgate/middleware/internal/metrics"
	"github.com/spillgate/spillgate/middleware/outbound"
	"github.com/spillgate/spillgate/pool"
	"github.com/spillgate/spillgate/pool/jobs"
)

// ScopeName is the name of the instrumentation scope of all metrics.
const ScopeName = "github.com/spillgate/spillgate/middleware/otelmw"

// Option configures [Stack], [Jobs], [Transport], [Set] and [Health].
type Option interface{ apply(*config) }

type config struct {
	attributes []attribute.KeyValue
	noRoutes   bool
}

type option func(*config)

func (f option) apply(c *config) { f(c) }

// WithAttributes adds attributes to all metrics: two stacks of a process, or two of anything else, need them to be told
// apart.
func WithAttributes(a ...attribute.KeyValue) Option {
	return option(func(c *config) { c.attributes = append(c.attributes, a...) })
}

// WithoutRoutes leaves out the metrics of single breakers of a [Stack], and keeps those of their groups
// (spillgate.breaker.keys and what begins with it).
func WithoutRoutes() Option { return option(func(c *config) { c.noRoutes = true }) }

// Stack registers metrics of [middleware.Stack.Stats]. Layers are told apart by two attributes: spillgate.for is the
// pattern of the layer's For, and spillgate.nth says which layer of its kind with this pattern it is, counted from 1.
// What several layers share is reported once, so that a sum counts it once: spillgate.for is then the patterns of all,
// as in "GET /a | GET /b", or empty if one of the layers is for every request. The returned registration ends the
// reporting. The error is the meter's. Stack panics if p, s or an option is nil.
func Stack(p metric.MeterProvider, s *middleware.Stack, opts ...Option) (metric.Registration, error) {
	if s == nil {
		panic("otelmw: Stack: s is nil: give one that middleware.New has made")
	}
	return register("Stack", p, metrics.OfStack, opts, func(c *config) func(metrics.Emit) {
		return func(e metrics.Emit) {
			stats := s.Stats()
			for _, l := range stats.Layers {
				if c.noRoutes && l.Breaker != nil {
					l.Breaker.Routes = nil
				}
			}
			e.Stack(stats)
		}
	})
}

// Jobs registers metrics of [jobs.Local.Stats], as [Stack] does. It panics if p, l or an option is nil.
func Jobs(p metric.MeterProvider, l *jobs.Local, opts ...Option) (metric.Registration, error) {
	if l == nil {
		panic("otelmw: Jobs: l is nil: give one that jobs.NewLocal has made")
	}
	return register("Jobs", p, metrics.OfJobs, opts, func(*config) func(metrics.Emit) {
		return func(e metrics.Emit) { e.Jobs(l.Stats()) }
	})
}

// Transport registers metrics of [outbound.Transport.Stats], as [Stack] does. It panics if p, t or an option is nil.
func Transport(p metric.MeterProvider, t *outbound.Transport, opts ...Option) (metric.Registration, error) {
	if t == nil {
		panic("otelmw: Transport: t is nil: give one that outbound.New has made")
	}
	return register("Transport", p, metrics.OfTransport, opts, func(*config) func(metrics.Emit) {
		return func(e metrics.Emit) { e.Transport(t.Stats()) }
	})
}

// Set registers metrics of [outbound.Set.Stats], as [Stack] does. It panics if p, s or an option is nil.
func Set(p metric.MeterProvider, s *outbound.Set, opts ...Option) (metric.Registration, error) {
	if s == nil {
		panic("otelmw: Set: s is nil: give one that outbound.NewSet has made")
	}
	return register("Set", p, metrics.OfSet, opts, func(*config) func(metrics.Emit) {
		return func(e metrics.Emit) { e.Set(s.Stats()) }
	})
}

// Health registers metrics of [health.Health.Stats], without the texts of errors, as [Stack] does. It panics if p, h or
// an option is nil.
func Health(p metric.MeterProvider, h *health.Health, opts ...Option) (metric.Registration, error) {
	if h == nil {
		panic("otelmw: Health: h is nil: give one that health.New has made")
	}
	return register("Health", p, metrics.OfHealth, opts, func(*config) func(metrics.Emit) {
		return func(e metrics.Emit) { e.Health(h.Stats()) }
	})
}

// instrument is a metric; one of the first two is set, and count beside the second for what is a summary.
type instrument struct {
	whole, count metric.Int64Observable
	real         metric.Float64Observable
	keys         []attribute.Key
}

func register(name string, p metric.MeterProvider, of metrics.Families, opts []Option, read func(*config) func(metrics.Emit)) (metric.Registration, error) {
	if p == nil {
		panic("otelmw: " + name + ": p is nil: give a provider, such as that of otel.GetMeterProvider")
	}
	c := new(config)
	for i, o := range opts {
		if o == nil {
			panic(fmt.Sprintf("otelmw: %s: option %d is nil: leave it out", name, i))
		}
		o.apply(c)
	}
	m := p.Meter(ScopeName)
	instruments := make(map[*metrics.Metric]instrument, len(of))
	var all []metric.Observable
	for _, f := range of {
		i, err := newInstrument(m, f)
		if err != nil {
			return nil, fmt.Errorf("otelmw: %s: %w", name, err)
		}
		instruments[f] = i
		for _, o := range []metric.Observable{i.whole, i.real, i.count} {
			if o != nil {
				all = append(all, o)
			}
		}
	}
	send := read(c)
	r, err := m.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		send(metrics.To(observation{o, instruments, c.attributes}))
		return nil
	}, all...)
	if err != nil {
		return nil, fmt.Errorf("otelmw: %s: %w", name, err)
	}
	return r, nil
}

// newInstrument makes a number that counts a whole one, and of all others a real one.
func newInstrument(m metric.Meter, f *metrics.Metric) (i instrument, err error) {
	for _, l := range f.Labels {
		i.keys = append(i.keys, attribute.Key(metrics.Namespace+"."+l))
	}
	name, unit := f.Dotted()
	help := metric.WithDescription(f.Help)
	switch {
	case f.Kind == metrics.Summary:
		if i.count, err = m.Int64ObservableCounter(name+"_count", metric.WithDescription("How many there were: "+f.Help)); err == nil {
			i.real, err = m.Float64ObservableCounter(name, help, metric.WithUnit(unit))
		}
	case f.Kind == metrics.Counter && unit == "s":
		i.real, err = m.Float64ObservableCounter(name, help, metric.WithUnit(unit))
	case f.Kind == metrics.Counter:
		i.whole, err = m.Int64ObservableCounter(name, help, metric.WithUnit(unit))
	case f.Kind == metrics.UpDown:
		i.whole, err = m.Int64ObservableUpDownCounter(name, help, metric.WithUnit(unit))
	default:
		i.real, err = m.Float64ObservableGauge(name, help, metric.WithUnit(unit))
	}
	return i, err
}

// observation is a [metrics.Sink].
type observation struct {
	metric.Observer
	instruments map[*metrics.Metric]instrument
	attributes  []attribute.KeyValue
}

func (o observation) with(i instrument, labels []string) metric.MeasurementOption {
	a := make([]attribute.KeyValue, 0, len(o.attributes)+len(i.keys)) // NewSet sorts it, and two readers may collect at the same time
	a = append(a, o.attributes...)
	for n, k := range i.keys {
		a = append(a, k.String(labels[n]))
	}
	return metric.WithAttributeSet(attribute.NewSet(a...))
}

func (o observation) Value(m *metrics.Metric, labels []string, v float64) {
	i := o.instruments[m]
	if i.whole != nil {
		o.ObserveInt64(i.whole, int64(v), o.with(i, labels))
	} else {
		o.ObserveFloat64(i.real, v, o.with(i, labels))
	}
}

func (o observation) Timing(m *metrics.Metric, labels []string, t pool.Timing) {
	i := o.instruments[m]
	with := o.with(i, labels)
	o.ObserveInt64(i.count, t.Count, with)
	o.ObserveFloat64(i.real, t.Total.Seconds(), with)
}

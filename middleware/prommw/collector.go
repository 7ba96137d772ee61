package prommw

import (
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
)

const namespace = "spillgate"

// family is the metrics of one name.
type family struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
}

// families are those of a collector.
type families []family

func (f *families) add(kind prometheus.ValueType, name, help string, labels []string) family {
	m := family{prometheus.NewDesc(namespace+"_"+name, help, labels, nil), kind}
	*f = append(*f, m)
	return m
}

func (f *families) gauge(name, help string, labels ...string) family {
	return f.add(prometheus.GaugeValue, name, help, labels)
}

func (f *families) counter(name, help string, labels ...string) family {
	return f.add(prometheus.CounterValue, name, help, labels)
}

// summary is a family of [prometheus.MustNewConstSummary], which knows its kind.
func (f *families) summary(name, help string, labels ...string) family {
	return f.add(prometheus.UntypedValue, name, help, labels)
}

// collector reads at each scrape.
type collector struct {
	families families
	read     func(emit)
}

func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, f := range c.families {
		ch <- f.desc
	}
}

func (c *collector) Collect(ch chan<- prometheus.Metric) { c.read(emit{ch: ch}) }

// emit sends metrics that have labels in common.
type emit struct {
	ch     chan<- prometheus.Metric
	labels []string
}

// with adds labels, in the order of the family's.
func (e emit) with(labels ...string) emit {
	all := append(e.labels[:len(e.labels):len(e.labels)], labels...)
	for i := len(e.labels); i < len(all); i++ {
		all[i] = label(all[i])
	}
	return emit{e.ch, all}
}

func (e emit) value(f family, v float64) {
	e.ch <- prometheus.MustNewConstMetric(f.desc, f.kind, v, e.labels...)
}

func (e emit) seconds(f family, d time.Duration) { e.value(f, d.Seconds()) }

func (e emit) flag(f family, on bool) {
	if on {
		e.value(f, 1)
	} else {
		e.value(f, 0)
	}
}

// count sends a value with one more label.
func count[N int64 | uint64](e emit, f family, label string, n N) { e.with(label).value(f, float64(n)) }

// label makes a value of a label of any bytes, of two that differ two that differ.
func label(s string) string {
	if !utf8.ValidString(s) || len(s) > 0 && s[0] == '"' {
		return strconv.QuoteToASCII(s)
	}
	return s
}

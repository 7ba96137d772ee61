// Package metrics says what the Stats of this module are as metrics, for those who export them (prommw, otelmw): one name, one
// text and one walk for all.
package metrics

import (
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spillgate/spillgate/pool"
)

// Kind is what a number can do.
type Kind uint8

const (
	Gauge   Kind = iota // rises and falls, and a sum of several says nothing
	UpDown              // rises and falls, and adds up
	Counter             // never falls
	Summary             // a pool.Timing
)

// Metric is a metric. Name is as Prometheus has it, without the namespace.
type Metric struct {
	Name, Help string
	Kind       Kind
	Labels     []string
}

// Namespace is what all names begin with.
const Namespace = "spillgate"

// units are the last parts of names that are units, as UCUM has them.
var units = []struct{ suffix, unit string }{{"_seconds", "s"}, {"_ratio", "1"}, {"_bytes", "By"}}

// Dotted returns name and unit as OpenTelemetry has them. Its translation to Prometheus makes them Name again, but for a Summary.
func (m *Metric) Dotted() (name, unit string) {
	name = strings.TrimSuffix(m.Name, "_total")
	for _, u := range units {
		if rest, ok := strings.CutSuffix(name, u.suffix); ok {
			if u.unit != "By" { // bytes are what is counted
				name = rest
			}
			unit = u.unit
		}
	}
	if area, _, _ := strings.Cut(name, "_"); area != "active" {
		name = strings.Replace(name, "_", ".", 1)
	}
	return Namespace + "." + name, unit
}

// Families are the metrics of one thing.
type Families []*Metric

func (f *Families) add(kind Kind, name, help string, labels []string) *Metric {
	m := &Metric{name, help, kind, labels}
	*f = append(*f, m)
	return m
}

func (f *Families) gauge(name, help string, labels ...string) *Metric {
	return f.add(Gauge, name, help, labels)
}

func (f *Families) upDown(name, help string, labels ...string) *Metric {
	return f.add(UpDown, name, help, labels)
}

func (f *Families) counter(name, help string, labels ...string) *Metric {
	return f.add(Counter, name, help, labels)
}

func (f *Families) summary(name, help string, labels ...string) *Metric {
	return f.add(Summary, name, help, labels)
}

// Sink takes the numbers. The values of labels are those of the metric's, in their order, and stay as they are.
type Sink interface {
	Value(m *Metric, labels []string, v float64)
	Timing(m *Metric, labels []string, t pool.Timing)
}

// Emit sends metrics that have labels in common.
type Emit struct {
	to     Sink
	labels []string
}

// To returns an Emit that sends to s.
func To(s Sink) Emit { return Emit{to: s} }

// with adds labels, in the order of the metric's.
func (e Emit) with(labels ...string) Emit {
	all := append(e.labels[:len(e.labels):len(e.labels)], labels...)
	for i := len(e.labels); i < len(all); i++ {
		all[i] = Label(all[i])
	}
	return Emit{e.to, all}
}

func (e Emit) value(m *Metric, v float64) { e.to.Value(m, e.labels, v) }

func (e Emit) timing(m *Metric, t pool.Timing) { e.to.Timing(m, e.labels, t) }

func (e Emit) seconds(m *Metric, d time.Duration) { e.value(m, d.Seconds()) }

func (e Emit) flag(m *Metric, on bool) {
	if on {
		e.value(m, 1)
	} else {
		e.value(m, 0)
	}
}

// count sends a value with one more label.
func count[N int64 | uint64](e Emit, m *Metric, label string, n N) {
	e.with(label).value(m, float64(n))
}

// Label makes a value of a label of any bytes, of two that differ two that differ.
func Label(s string) string {
	if !utf8.ValidString(s) || len(s) > 0 && s[0] == '"' {
		return strconv.QuoteToASCII(s)
	}
	return s
}

package metrics

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/cache"
	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware"
	"github.com/spillgate/spillgate/middleware/health"
	"github.com/spillgate/spillgate/middleware/outbound"
	"github.com/spillgate/spillgate/pool"
	"github.com/spillgate/spillgate/pool/jobs"
)

// Fields of Stats that are not exported.
var left = []string{
	"ConcurrencyStats.Shed", // the sum of the reasons
	"ConcurrencyStats.Phase",
	"RateStats.Offenders",  // keys
	"RateStats.Saturation", // keys by capacity
	"Policy.Name",
	"Stats.Begun", "Stats.Refused", // of a pool: the sums of the kinds; the Refused of a cache is looked for below
	"Timing.Count", "Timing.P50", "Timing.P90", "Timing.P99", // beside Total, in summaries
	// Of a breaker: what changes from one moment to the next, and settings.
	"Stats.Name", "Stats.State", "Stats.Since", "Stats.RetryAfter", "Stats.InFlight", "Stats.Consecutive", "Stats.Clients", "Stats.ProbesOut", "Stats.Dropped",
	"Stats.Settings",
}

// fill gives each number a value of its own, each flag true and each list one element.
func fill(v reflect.Value, path string, next *float64, numbers map[float64]string) {
	switch v.Kind() {
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			*next++
			v.Set(reflect.ValueOf(time.Unix(int64(*next), 0)))
			numbers[*next] = path
			return
		}
		for i := range v.NumField() {
			name := v.Type().Name() + "." + v.Type().Field(i).Name
			if slices.Contains(left, name) && !strings.Contains(path, "Cache") {
				continue
			}
			fill(v.Field(i), path+"."+v.Type().Field(i).Name, next, numbers)
		}
		return
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), path, next, numbers)
		return
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), path, next, numbers)
		return
	case reflect.Map:
		e := reflect.New(v.Type().Elem()).Elem()
		fill(e, path, next, numbers)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(reflect.ValueOf("key"), e)
		return
	case reflect.Bool:
		v.SetBool(true)
		return
	case reflect.String:
		v.SetString("text")
		return
	}
	*next++
	n := *next
	switch {
	case v.Type() == reflect.TypeFor[time.Duration]():
		v.SetInt(int64(n * 1e9))
	case v.CanInt():
		v.SetInt(int64(n))
	case v.CanUint():
		v.SetUint(uint64(n))
	case v.CanFloat():
		v.SetFloat(n)
	default:
		panic(path + " is a " + v.Type().String())
	}
	numbers[n] = path
}

type sink func(m *Metric, labels []string, v float64)

func (f sink) Value(m *Metric, labels []string, v float64) { f(m, labels, v) }

func (f sink) Timing(m *Metric, labels []string, t pool.Timing) { f(m, labels, t.Total.Seconds()) }

// Every number in a Stats is a metric, but for those listed above.
func TestEveryNumberIsThere(t *testing.T) {
	next := 1000.
	for name, c := range map[string]func(map[float64]string) func(Emit){
		"rate": layer(&next, func(l *middleware.LayerStats) any { l.Rate = new(limiter.RateStats); return l.Rate }),
		"concurrency": layer(&next, func(l *middleware.LayerStats) any {
			l.Concurrency = new(limiter.ConcurrencyStats)
			return l.Concurrency
		}),
		"breaker": layer(&next, func(l *middleware.LayerStats) any { l.Breaker = new(middleware.BreakerStats); return l.Breaker }),
		"cache":   layer(&next, func(l *middleware.LayerStats) any { l.Cache = new(cache.Stats); return l.Cache }),
		"pool":    layer(&next, func(l *middleware.LayerStats) any { l.Pool = new(pool.Stats); return l.Pool }),
		"stack": func(n map[float64]string) func(Emit) {
			s := middleware.Stats{}
			fill(reflect.ValueOf(&s.Rejected).Elem(), "Stack.Rejected", &next, n)
			fill(reflect.ValueOf(&s.InFlight).Elem(), "Stack.InFlight", &next, n)
			return func(e Emit) { e.Stack(s) }
		},
		"jobs": func(n map[float64]string) func(Emit) {
			var s jobs.Stats
			fill(reflect.ValueOf(&s).Elem(), "Jobs", &next, n)
			return func(e Emit) { e.Jobs(s) }
		},
		"health": func(n map[float64]string) func(Emit) {
			var s health.Stats
			fill(reflect.ValueOf(&s).Elem(), "Health", &next, n)
			return func(e Emit) { e.Health(s) }
		},
		"transport": func(n map[float64]string) func(Emit) {
			var s outbound.Stats
			fill(reflect.ValueOf(&s).Elem(), "Transport", &next, n)
			return func(e Emit) { e.Transport(s) }
		},
		"set": func(n map[float64]string) func(Emit) {
			s := outbound.SetStats{Endpoints: make([]outbound.EndpointStats, 1)}
			p := &s.Endpoints[0]
			fill(reflect.ValueOf(p).Elem(), "Set", &next, n)
			for v, path := range n {
				if strings.Contains(path, ".Breaker.") {
					delete(n, v) // of an endpoint its openings only
				}
			}
			return func(e Emit) { e.Set(s) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			numbers := map[float64]string{}
			send := c(numbers)
			if len(numbers) < 2 {
				t.Fatalf("%d numbers", len(numbers))
			}
			send(To(sink(func(m *Metric, _ []string, v float64) { delete(numbers, v) })))
			for _, path := range numbers {
				t.Errorf("%s is in no metric", path)
			}
		})
	}
}

func layer(next *float64, set func(*middleware.LayerStats) any) func(map[float64]string) func(Emit) {
	return func(numbers map[float64]string) func(Emit) {
		l := middleware.LayerStats{For: "GET /"}
		s := reflect.ValueOf(set(&l)).Elem()
		fill(s, fmt.Sprint(s.Type()), next, numbers)
		return func(e Emit) { e.Stack(middleware.Stats{Layers: []middleware.LayerStats{l}}) }
	}
}

// What is sent has as many values as labels, none twice, and is one of the family's, of which each is sent.
func TestFamilies(t *testing.T) {
	next, numbers := 1000., map[float64]string{}
	var l middleware.LayerStats
	fillAll := func(v any) { fill(reflect.ValueOf(v).Elem(), "Cache", &next, numbers) } // a path by which nothing is left out
	var (
		js jobs.Stats
		ts outbound.Stats
		ss outbound.SetStats
		hs health.Stats
	)
	l.For = "\xff"
	l.Rate, l.Concurrency, l.Cache, l.Pool = new(limiter.RateStats), new(limiter.ConcurrencyStats), new(cache.Stats), new(pool.Stats)
	for _, v := range []any{&js, &ts, &ss, &hs, l.Rate, l.Concurrency, l.Cache, l.Pool} {
		fillAll(v)
	}
	stack := middleware.Stats{Layers: []middleware.LayerStats{
		{Layer: "rate", For: l.For, Rate: l.Rate}, {Layer: "rate", For: l.For, Rate: l.Rate}, {Layer: "concurrency", Concurrency: l.Concurrency},
		{Layer: "cache", Cache: l.Cache}, {Layer: "pool", Pool: l.Pool},
		{Layer: "breaker", Breaker: &middleware.BreakerStats{Routes: map[string]breaker.Stats{"GET /": {}, "": {}}}},
	}}
	for _, tt := range []struct {
		of   Families
		send func(Emit)
	}{
		{OfStack, func(e Emit) { e.Stack(stack) }},
		{OfJobs, func(e Emit) { e.Jobs(js) }},
		{OfTransport, func(e Emit) { e.Transport(ts) }},
		{OfSet, func(e Emit) { e.Set(ss) }},
		{OfHealth, func(e Emit) { e.Health(hs) }},
	} {
		sent := map[*Metric]map[string]bool{}
		tt.send(To(sink(func(m *Metric, labels []string, _ float64) {
			key := strings.Join(labels, "\x00")
			if len(labels) != len(m.Labels) || !utf8.ValidString(key) || sent[m][key] || !slices.Contains(tt.of, m) {
				t.Errorf("%s: %q for %q", m.Name, labels, m.Labels)
			}
			if sent[m] == nil {
				sent[m] = map[string]bool{}
			}
			sent[m][key] = true
		})))
		for _, m := range tt.of {
			if sent[m] == nil {
				t.Errorf("%s is not sent", m.Name)
			}
		}
	}
}

func TestDotted(t *testing.T) {
	for name, want := range map[string]string{
		"active_requests":                         "spillgate.active_requests ",
		"concurrency_time_in_queue_seconds_total": "spillgate.concurrency.time_in_queue s",
		"cache_bytes":                             "spillgate.cache.bytes By",
		"breaker_passing_ratio":                   "spillgate.breaker.passing 1",
		"cache_requests_total":                    "spillgate.cache.requests ",
		"health_check_last_run_timestamp_seconds": "spillgate.health.check_last_run_timestamp s",
	} {
		m := Metric{Name: name}
		if got, unit := m.Dotted(); got+" "+unit != want {
			t.Errorf("%s: %s %s, want %s", name, got, unit, want)
		}
	}
	seen := map[string]bool{}
	for _, f := range []Families{OfStack, OfJobs, OfTransport, OfSet, OfHealth} {
		for _, m := range f {
			name, _ := m.Dotted()
			seen[name] = true
		}
	}
	for name := range seen { // a name is no namespace
		for area := name; strings.Contains(area, "."); {
			area = area[:strings.LastIndexByte(area, '.')]
			if seen[area] {
				t.Errorf("%s is a metric, and so is %s", area, name)
			}
		}
	}
}

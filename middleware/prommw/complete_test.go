package prommw

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

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
	"Timing.Count", "Timing.Total", "Timing.P50", "Timing.P90", "Timing.P99", // in summaries
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

// Every number in a Stats is a metric, but for those listed above.
func TestEveryNumberIsThere(t *testing.T) {
	next := 1000.
	for name, c := range map[string]func(map[float64]string) func(emit){
		"rate": layer(&next, func(l *middleware.LayerStats) any { l.Rate = new(limiter.RateStats); return l.Rate }),
		"concurrency": layer(&next, func(l *middleware.LayerStats) any {
			l.Concurrency = new(limiter.ConcurrencyStats)
			return l.Concurrency
		}),
		"breaker": layer(&next, func(l *middleware.LayerStats) any { l.Breaker = new(middleware.BreakerStats); return l.Breaker }),
		"cache":   layer(&next, func(l *middleware.LayerStats) any { l.Cache = new(cache.Stats); return l.Cache }),
		"pool":    layer(&next, func(l *middleware.LayerStats) any { l.Pool = new(pool.Stats); return l.Pool }),
		"stack": func(n map[float64]string) func(emit) {
			s := middleware.Stats{}
			fill(reflect.ValueOf(&s.Rejected).Elem(), "Stack.Rejected", &next, n)
			fill(reflect.ValueOf(&s.InFlight).Elem(), "Stack.InFlight", &next, n)
			return func(e emit) { e.stack(s) }
		},
		"jobs": func(n map[float64]string) func(emit) {
			var s jobs.Stats
			fill(reflect.ValueOf(&s).Elem(), "Jobs", &next, n)
			return func(e emit) { e.jobs(s) }
		},
		"health": func(n map[float64]string) func(emit) {
			var s health.Stats
			fill(reflect.ValueOf(&s).Elem(), "Health", &next, n)
			return func(e emit) { e.health(s) }
		},
		"transport": func(n map[float64]string) func(emit) {
			var s outbound.Stats
			fill(reflect.ValueOf(&s).Elem(), "Transport", &next, n)
			return func(e emit) { e.transport(s) }
		},
		"set": func(n map[float64]string) func(emit) {
			s := outbound.SetStats{Endpoints: make([]outbound.EndpointStats, 1)}
			e := &s.Endpoints[0]
			fill(reflect.ValueOf(e).Elem(), "Set", &next, n)
			for v, path := range n {
				if strings.Contains(path, ".Breaker.") {
					delete(n, v) // of an endpoint its openings only
				}
			}
			return func(emit emit) { emit.set(s) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			numbers := map[float64]string{}
			send := c(numbers)
			if len(numbers) < 2 {
				t.Fatalf("%d numbers", len(numbers))
			}
			ch := make(chan prometheus.Metric)
			go func() {
				defer close(ch)
				send(emit{ch: ch})
			}()
			for m := range ch {
				var d dto.Metric
				if err := m.Write(&d); err != nil {
					t.Fatal(err)
				}
				for _, v := range []float64{d.GetGauge().GetValue(), d.GetCounter().GetValue()} {
					delete(numbers, v)
				}
			}
			for _, path := range numbers {
				t.Errorf("%s is in no metric", path)
			}
		})
	}
}

func layer(next *float64, set func(*middleware.LayerStats) any) func(map[float64]string) func(emit) {
	return func(numbers map[float64]string) func(emit) {
		l := middleware.LayerStats{For: "GET /"}
		s := reflect.ValueOf(set(&l)).Elem()
		fill(s, fmt.Sprint(s.Type()), next, numbers)
		return func(e emit) { e.stack(middleware.Stats{Layers: []middleware.LayerStats{l}}) }
	}
}

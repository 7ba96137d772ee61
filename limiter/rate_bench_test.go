package limiter_test

import (
	"math/rand/v2"
	"runtime"
	"strconv"
	"sync"
	"testing"

	"golang.org/x/time/rate"

	"github.com/spillgate/spillgate/limiter"
)

// rateMap is what people write by hand: the baseline.
type rateMap struct {
	mu    sync.Mutex
	limit rate.Limit
	burst int
	m     map[string]*rate.Limiter
}

func (r *rateMap) allow(key string) bool {
	r.mu.Lock()
	l := r.m[key]
	if l == nil {
		l = rate.NewLimiter(r.limit, r.burst)
		r.m[key] = l
	}
	r.mu.Unlock()
	return l.Allow()
}

// rateContestants are the baselines and the limiter, as functions that admit limit a second.
func rateContestants(limit rate.Limit, burst, keys int) []struct {
	name  string
	allow func(string) bool
} {
	one := rate.NewLimiter(limit, burst)
	byHand := &rateMap{limit: limit, burst: burst, m: make(map[string]*rate.Limiter)}
	table := limiter.NewRate(limit, burst, limiter.WithMaxKeys(keys))
	two := limiter.NewRate(limit, burst, limiter.WithMaxKeys(keys), limiter.WithPolicy("daily", limit, burst))
	exact := limiter.NewRate(limit, burst, limiter.WithMaxKeys(keys), limiter.WithExactKeys())
	unkeyed := limiter.NewRate(limit, burst, limiter.WithoutKeys())
	return []struct {
		name  string
		allow func(string) bool
	}{
		{"baseline=rate.Limiter", func(string) bool { return one.Allow() }},
		{"baseline=map", byHand.allow},
		{"table", func(k string) bool { return table.Allow(k).OK }},
		{"table,policies=2", func(k string) bool { return two.Allow(k).OK }},
		{"exact", func(k string) bool { return exact.Allow(k).OK }},
		{"unkeyed", func(k string) bool { return unkeyed.Allow(k).OK }},
	}
}

func rateKeys(n int) []string {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = "198.51.100." + strconv.Itoa(i)
	}
	return keys
}

func BenchmarkRateAccept(b *testing.B) {
	for _, c := range rateContestants(1e9, 1e9, 1024) {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				c.allow("198.51.100.7")
			}
		})
	}
}

func BenchmarkRateReject(b *testing.B) {
	for _, c := range rateContestants(1e-6, 1, 1024) {
		b.Run(c.name, func(b *testing.B) {
			c.allow("198.51.100.7")
			b.ReportAllocs()
			for b.Loop() {
				c.allow("198.51.100.7")
			}
		})
	}
}

// BenchmarkRateOffenders refuses one key, and many in turn, of which most are not watched.
func BenchmarkRateOffenders(b *testing.B) {
	for _, n := range []int{1, 1000} {
		keys := rateKeys(n)
		for _, c := range []struct {
			name string
			opts []limiter.RateOption
		}{
			{"baseline", nil}, {"offenders=10", []limiter.RateOption{limiter.WithOffenders(10)}}, {"offenders=64", []limiter.RateOption{limiter.WithOffenders(64)}},
		} {
			b.Run("keys="+strconv.Itoa(n)+"/"+c.name, func(b *testing.B) {
				r := limiter.NewRate(1e-6, 1, c.opts...)
				b.ReportAllocs()
				i := 0
				for b.Loop() {
					r.Allow(keys[i])
					if i++; i == n {
						i = 0
					}
				}
			})
		}
	}
}

func BenchmarkRateKnownKeys(b *testing.B) {
	keys := rateKeys(100_000)
	zipf := rand.NewZipf(rand.New(rand.NewPCG(1, 1)), 1.1, 1, uint64(len(keys)-1))
	order := make([]uint32, 1<<16)
	for i := range order {
		order[i] = uint32(zipf.Uint64())
	}
	for _, c := range rateContestants(1e6, 1e6, 2*len(keys)) {
		b.Run(c.name+",keys=100k", func(b *testing.B) {
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				c.allow(keys[order[i&(1<<16-1)]])
				i++
			}
		})
	}
}

// A new key at every step, into a table that is full of live buckets: what a flood costs. The bar is twice the
// step before, in which all keys of the same number are known.
func BenchmarkRateFlood(b *testing.B) {
	const capacity = 65_536
	keys := rateKeys(1 << 20)
	for _, c := range []struct {
		name string
		keys int
		opts []limiter.RateOption
	}{
		{"baseline=known", capacity / 2, nil},
		{"unknown", len(keys), nil},
		{"unknown,budget", len(keys), []limiter.RateOption{limiter.WithNewKeyBudget(100, 100)}},
	} {
		b.Run(c.name, func(b *testing.B) {
			r := limiter.NewRate(0.001, 1_000_000, append(c.opts, limiter.WithMaxKeys(capacity))...)
			keys := keys[:c.keys]
			for _, k := range keys {
				r.Allow(k)
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				r.Allow(keys[i])
				if i++; i == len(keys) {
					i = 0
				}
			}
		})
	}
}

func BenchmarkRateParallel(b *testing.B) {
	for _, c := range rateContestants(1e9, 1e9, 4096) {
		for _, keys := range []int{1, 1024} {
			b.Run(c.name+",keys="+strconv.Itoa(keys), func(b *testing.B) {
				names := rateKeys(keys)
				b.ReportAllocs()
				b.RunParallel(func(pb *testing.PB) {
					i := rand.IntN(keys)
					for pb.Next() {
						c.allow(names[i%keys])
						i++
					}
				})
			})
		}
	}
}

// The counts of a table that is empty, beside those of one that is full of live keys.
func BenchmarkRateStats(b *testing.B) {
	for _, capacity := range []int{1 << 16, 1 << 20} {
		for _, keys := range []int{0, capacity} {
			name := "full"
			if keys == 0 {
				name = "baseline=empty"
			}
			b.Run(name+",capacity="+strconv.Itoa(capacity), func(b *testing.B) {
				r := limiter.NewRate(1e-6, 10, limiter.WithMaxKeys(capacity))
				for i := range keys {
					r.Allow(strconv.Itoa(i))
				}
				b.ReportAllocs()
				for b.Loop() {
					r.Stats()
				}
			})
		}
	}
}

// A full garbage collection with a million live keys in a table of twice the size, beside one with nothing. No
// string of the test is alive.
func BenchmarkRateGC(b *testing.B) {
	const keys = 1_000_000
	byHand := &rateMap{limit: 1, burst: 10, m: make(map[string]*rate.Limiter)}
	for _, c := range []struct {
		name  string
		allow func() func(string) bool
	}{
		{"baseline=nothing", func() func(string) bool { return func(string) bool { return true } }},
		{"table,keys=1M", func() func(string) bool {
			r := limiter.NewRate(1, 10, limiter.WithMaxKeys(2*keys))
			return func(k string) bool { return r.Allow(k).OK }
		}},
		{"baseline=map,keys=1M", func() func(string) bool { return byHand.allow }},
	} {
		b.Run(c.name, func(b *testing.B) {
			allow := c.allow()
			for i := range keys {
				allow(strconv.Itoa(i))
			}
			for b.Loop() {
				runtime.GC()
			}
			runtime.KeepAlive(allow)
		})
	}
}

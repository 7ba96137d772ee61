package limiter_test

import (
	"context"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spillgate/spillgate/limiter"
)

// BenchmarkConcurrency stands beside the two ways to do without it: a channel as a
// semaphore, and a counter.
func BenchmarkConcurrency(b *testing.B) {
	ctx := context.Background()
	type accept struct {
		name string
		do   func() func()
	}
	cases := []accept{
		{"accept/baseline=channel", func() func() {
			ch := make(chan struct{}, 1000)
			return func() {
				select {
				case ch <- struct{}{}:
					<-ch
				default:
				}
			}
		}},
		{"accept/baseline=counter", func() func() {
			var n atomic.Int64
			return func() {
				n.Add(1)
				n.Add(-1)
			}
		}},
		{"accept/fixed", func() func() {
			c := limiter.NewConcurrency(1000)
			return func() {
				p, _ := c.Acquire(ctx, limiter.Request{})
				p.Release(limiter.Success)
			}
		}},
		{"accept/fixed,line", func() func() {
			c := limiter.NewConcurrency(1000, limiter.WithQueue(100, time.Second))
			return func() {
				p, _ := c.Acquire(ctx, limiter.Request{})
				p.Release(limiter.Success)
			}
		}},
		{"accept/fixed,line,bare", func() func() {
			c := limiter.NewConcurrency(1000, limiter.WithQueue(100, time.Second))
			return func() { c.Give(c.TryTake(1)) }
		}},
		{"accept/fixed,line,yield", func() func() {
			c := limiter.NewConcurrency(1000, limiter.WithQueue(100, time.Second))
			p, _ := c.TryAcquire(limiter.Request{})
			return func() { p, _ = p.Yield(ctx, limiter.Request{}) }
		}},
		{"accept/adaptive", func() func() {
			c := limiter.NewAdaptive(limiter.WithStart(1000))
			return func() {
				p, _ := c.Acquire(ctx, limiter.Request{})
				p.Release(limiter.Success)
			}
		}},
		{"accept/adaptive,shared-clock", func() func() {
			c := limiter.NewAdaptive(limiter.WithStart(1000))
			now := time.Now()
			return func() {
				p, _ := c.Acquire(ctx, limiter.Request{Arrived: now})
				p.ReleaseAt(limiter.Success, now)
			}
		}},
		{"accept/adaptive,no-yield", func() func() {
			c := limiter.NewAdaptive(limiter.WithStart(1000), limiter.WithoutYield())
			return func() {
				p, _ := c.Acquire(ctx, limiter.Request{})
				p.Release(limiter.Success)
			}
		}},
		{"reject/baseline=channel", func() func() {
			ch := make(chan struct{}, 1)
			ch <- struct{}{}
			return func() {
				select {
				case ch <- struct{}{}:
				default:
				}
			}
		}},
		{"reject/fixed", func() func() {
			c := limiter.NewConcurrency(1)
			c.TryAcquire(limiter.Request{})
			return func() { c.Acquire(ctx, limiter.Request{}) }
		}},
		{"reject/adaptive", func() func() {
			c := limiter.NewAdaptive(limiter.WithStart(1), limiter.WithQueue(0, 0))
			c.TryAcquire(limiter.Request{})
			return func() { c.Acquire(ctx, limiter.Request{}) }
		}},
	}
	for _, k := range cases {
		b.Run(k.name+"/serial", func(b *testing.B) {
			do := k.do()
			b.ReportAllocs()
			for b.Loop() {
				do()
			}
		})
		b.Run(k.name+"/parallel", func(b *testing.B) {
			do := k.do()
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					do()
				}
			})
		})
	}
}

// BenchmarkConcurrencyCancel is how much one waiter costs that leaves a long line.
func BenchmarkConcurrencyCancel(b *testing.B) {
	for _, n := range []int{100, 10_000} {
		b.Run("waiting="+map[int]string{100: "100", 10_000: "10k"}[n], func(b *testing.B) {
			c := limiter.NewConcurrency(1, limiter.WithQueue(n, time.Hour))
			c.TryAcquire(limiter.Request{})
			b.ReportAllocs()
			for b.Loop() {
				ctx, cancel := context.WithCancel(context.Background())
				done := make(chan struct{}, n)
				for range n {
					go func() {
						c.Acquire(ctx, limiter.Request{})
						done <- struct{}{}
					}()
				}
				cancel()
				for range n {
					<-done
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/waiter")
		})
	}
}

// BenchmarkYieldIdle is 0.1 ms of work on a server with nothing else to do, and what the yield before it
// costs: spared is how an adaptive limit does it.
func BenchmarkYieldIdle(b *testing.B) {
	rounds := 1_000_000
	work := func() {
		x := uint64(88172645463325252)
		for range rounds {
			x ^= x << 13
			x ^= x >> 7
			x ^= x << 17
		}
		benchSink.Add(x)
	}
	best := time.Duration(1 << 62)
	for range 10 {
		began := time.Now()
		work()
		best = min(best, time.Since(began))
	}
	rounds = int(int64(rounds) * int64(100*time.Microsecond) / int64(best))
	for _, k := range []struct {
		name  string
		c     *limiter.Concurrency
		yield bool
	}{
		{"baseline=none", limiter.NewAdaptive(limiter.WithoutYield()), false},
		{"spared", limiter.NewAdaptive(), false},
		{"each", limiter.NewAdaptive(limiter.WithoutYield()), true},
	} {
		b.Run(k.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				p, _ := k.c.Acquire(b.Context(), limiter.Request{})
				if k.yield {
					runtime.Gosched()
				}
				work()
				p.Release(limiter.Success)
			}
		})
	}
}

var benchSink atomic.Uint64

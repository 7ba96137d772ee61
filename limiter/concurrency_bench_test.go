package limiter_test

import (
	"context"
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

package breaker_test

import (
	"testing"
	"time"

	"github.com/sony/gobreaker/v2"

	"github.com/spillgate/spillgate/breaker"
)

var sink time.Time

func BenchmarkPass(b *testing.B) {
	b.Run("baseline=two-clock-reads", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			sink = time.Now()
			sink = time.Now()
		}
	})
	b.Run("baseline=gobreaker-Execute", func(b *testing.B) {
		cb := gobreaker.NewCircuitBreaker[struct{}](gobreaker.Settings{Interval: 10 * time.Second, BucketPeriod: time.Second})
		b.ReportAllocs()
		for b.Loop() {
			cb.Execute(func() (struct{}, error) { return struct{}{}, nil })
		}
	})
	b.Run("baseline=gobreaker-TwoStep", func(b *testing.B) {
		cb := gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{Interval: 10 * time.Second, BucketPeriod: time.Second})
		b.ReportAllocs()
		for b.Loop() {
			done, _ := cb.Allow()
			done(nil)
		}
	})
	for _, c := range []struct {
		name string
		opts []breaker.Option
	}{
		{"default", nil},
		{"slow-calls", []breaker.Option{breaker.WithSlowCalls(time.Second, 0.8)}},
		{"slow-calls,clients", []breaker.Option{breaker.WithSlowCalls(time.Second, 0.8), breaker.WithMinClients(4)}},
	} {
		b.Run("breaker="+c.name, func(b *testing.B) {
			cb := breaker.New(c.opts...)
			b.ReportAllocs()
			for b.Loop() {
				call, _ := cb.Allow()
				call.Done(breaker.Success, 0)
			}
		})
		b.Run("clock=shared/breaker="+c.name, func(b *testing.B) {
			cb := breaker.New(c.opts...)
			now := time.Now()
			b.ReportAllocs()
			for b.Loop() {
				call, _ := cb.AllowAt(now)
				call.DoneAt(breaker.Success, 0, now)
			}
		})
	}
}

func BenchmarkPassParallel(b *testing.B) {
	b.Run("baseline=gobreaker-Execute", func(b *testing.B) {
		cb := gobreaker.NewCircuitBreaker[struct{}](gobreaker.Settings{Interval: 10 * time.Second, BucketPeriod: time.Second})
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				cb.Execute(func() (struct{}, error) { return struct{}{}, nil })
			}
		})
	})
	b.Run("breaker=default", func(b *testing.B) {
		cb := breaker.New()
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				call, _ := cb.Allow()
				call.Done(breaker.Success, 0)
			}
		})
	})
}

func BenchmarkReject(b *testing.B) {
	b.Run("baseline=one-clock-read", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			sink = time.Now()
		}
	})
	b.Run("baseline=gobreaker-Execute", func(b *testing.B) {
		cb := gobreaker.NewCircuitBreaker[struct{}](gobreaker.Settings{ReadyToTrip: func(gobreaker.Counts) bool { return true }})
		fail := breaker.ErrOpen
		cb.Execute(func() (struct{}, error) { return struct{}{}, fail })
		b.ReportAllocs()
		for b.Loop() {
			cb.Execute(func() (struct{}, error) { return struct{}{}, nil })
		}
	})
	b.Run("breaker=open", func(b *testing.B) {
		cb := breaker.New(breaker.WithConsecutiveFailures(1), breaker.WithOpenTime(time.Hour, time.Hour))
		call, _ := cb.Allow()
		call.Done(breaker.Failure, 0)
		b.ReportAllocs()
		for b.Loop() {
			cb.Allow()
		}
	})
}

func BenchmarkGroupGet(b *testing.B) {
	g := breaker.NewGroup()
	keys := []string{"a.example", "b.example:8080", "a.long.name.of.a.host.in.some.cluster.local:443", "d"}
	for _, k := range keys {
		g.Get(k)
	}
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		g.Get(keys[i&3])
		i++
	}
}

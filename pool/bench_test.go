package pool_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spillgate/spillgate/pool"
)

func nop(context.Context) error { return nil }

func TestAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates on its own")
	}
	ctx := context.Background()
	p := pool.New(pool.WithSlots(2))
	one := func(context.Context) (int, error) { return 1, nil }
	for _, c := range []struct {
		name string
		want float64
		f    func()
	}{
		{"Do: the context it passes on", 1, func() { p.Do(ctx, nop) }},
		{"Do with options", 1, func() { p.Do(ctx, nop, pool.WithPriority(2), pool.WithKind("report"), pool.WithClient("a")) }},
		{"Do with the plain context", 0, func() { p.Do(ctx, nop, pool.WithPlainContext()) }},
		{"Do with the plain context and options", 0, func() {
			p.Do(ctx, nop, pool.WithPlainContext(), pool.WithPriority(2), pool.WithKind("report"), pool.WithClient("a"))
		}},
		{"Enter and Leave", 1, func() { _, s, _ := p.Enter(ctx); s.Leave() }},
		{"Submit and Wait", 2, func() { pool.Submit(ctx, p, one).Wait(ctx) }},
	} {
		if got := testing.AllocsPerRun(200, c.f); got > c.want {
			t.Errorf("%s: %v allocations, want %v", c.name, got, c.want)
		}
	}
	p.Do(ctx, func(ctx context.Context) error {
		if got := testing.AllocsPerRun(200, func() { p.Do(ctx, nop) }); got != 0 {
			t.Errorf("nested Do: %v allocations, want 0", got)
		}
		if got := testing.AllocsPerRun(200, func() { pool.Checkpoint(ctx) }); got != 0 {
			t.Errorf("Checkpoint: %v allocations, want 0", got)
		}
		return nil
	})
}

var sink atomic.Int64

// spin computes for about n * 0.7 ns.
func spin(n int) (x int) {
	for i := range n {
		x += i & 1
	}
	return x
}

// BenchmarkDo stands beside the least that could bound the same calls.
func BenchmarkDo(b *testing.B) {
	ctx := context.Background()
	b.Run("baseline=channel", func(b *testing.B) {
		b.ReportAllocs()
		sem := make(chan struct{}, 2)
		for b.Loop() {
			sem <- struct{}{}
			nop(ctx)
			<-sem
		}
	})
	b.Run("baseline=channel+clock", func(b *testing.B) {
		b.ReportAllocs()
		sem := make(chan struct{}, 2)
		base := time.Now()
		var sum time.Duration
		for b.Loop() {
			t := time.Since(base)
			sem <- struct{}{}
			nop(ctx)
			<-sem
			sum += time.Since(base) - t
		}
	})
	p := pool.New(pool.WithSlots(2))
	b.Run("pool", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			p.Do(ctx, nop)
		}
	})
	b.Run("pool/options", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			p.Do(ctx, nop, pool.WithPriority(1), pool.WithClient("a"), pool.WithKind("k"))
		}
	})
	b.Run("pool/plain", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			p.Do(ctx, nop, pool.WithPlainContext())
		}
	})
	b.Run("pool/plain,options", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			p.Do(ctx, nop, pool.WithPlainContext(), pool.WithPriority(1), pool.WithClient("a"), pool.WithKind("k"))
		}
	})
	b.Run("pool/nested", func(b *testing.B) {
		b.ReportAllocs()
		p.Do(ctx, func(ctx context.Context) error {
			for b.Loop() {
				p.Do(ctx, nop)
			}
			return nil
		})
	})
	b.Run("checkpoint", func(b *testing.B) {
		b.ReportAllocs()
		p.Do(ctx, func(ctx context.Context) error {
			for b.Loop() {
				pool.Checkpoint(ctx)
			}
			return nil
		})
	})
}

// BenchmarkContended has more submitters than slots. Where the work is shorter than a switch
// between goroutines, that switch and the keeping of the line are what is measured.
func BenchmarkContended(b *testing.B) {
	const submitters, slots = 64, 2
	run := func(b *testing.B, f func()) {
		b.ReportAllocs()
		var wg sync.WaitGroup
		each := b.N/submitters + 1
		b.ResetTimer()
		for range submitters {
			wg.Go(func() {
				for range each {
					f()
				}
			})
		}
		wg.Wait()
	}
	for _, work := range []struct {
		name string
		n    int
	}{{"none", 0}, {"10us", 14000}, {"100us", 140000}} {
		b.Run("work="+work.name+"/baseline=channel", func(b *testing.B) {
			sem := make(chan struct{}, slots)
			run(b, func() { sem <- struct{}{}; sink.Store(int64(spin(work.n))); <-sem })
		})
		b.Run("work="+work.name+"/pool", func(b *testing.B) {
			p := pool.New(pool.WithSlots(slots))
			run(b, func() {
				p.Do(context.Background(), func(context.Context) error { sink.Store(int64(spin(work.n))); return nil })
			})
		})
		b.Run("work="+work.name+"/pool/plain", func(b *testing.B) {
			p := pool.New(pool.WithSlots(slots))
			run(b, func() {
				p.Do(context.Background(), func(context.Context) error { sink.Store(int64(spin(work.n))); return nil }, pool.WithPlainContext())
			})
		})
	}
}

func BenchmarkSubmit(b *testing.B) {
	ctx := context.Background()
	b.Run("baseline=goroutine+channels", func(b *testing.B) {
		b.ReportAllocs()
		sem := make(chan struct{}, 2)
		for b.Loop() {
			done := make(chan int, 1)
			sem <- struct{}{}
			go func() {
				defer func() { <-sem }()
				done <- 1
			}()
			<-done
		}
	})
	p := pool.New(pool.WithSlots(2))
	b.Run("pool", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			pool.Submit(ctx, p, func(context.Context) (int, error) { return 1, nil }).Wait(ctx)
		}
	})
}

func BenchmarkMap(b *testing.B) {
	p := pool.New(pool.WithSlots(2))
	in := make([]int, 1000)
	b.Run("baseline=loop", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			out := make([]int, len(in))
			for i := range in {
				out[i] = spin(14000)
			}
		}
	})
	b.Run("pool", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			pool.Map(context.Background(), p, in, func(context.Context, int) (int, error) { return spin(14000), nil })
		}
	})
}

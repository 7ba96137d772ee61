//go:build unix

package redisjobs_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/spillgate/spillgate/pool/jobs"
	"github.com/spillgate/spillgate/pool/redisjobs"
)

// BenchmarkSubmit measures submissions to a real server on this machine, beside a bare question to it.
func BenchmarkSubmit(b *testing.B) {
	c := shared.client(b)
	submit := func(o jobs.SubmitOptions) func(context.Context) error {
		e := engine(b, c, kinds(), service(), redisjobs.WithCapacity(1<<30, 1<<30), redisjobs.WithSizes(64<<10, 1<<20, 1<<40))
		return func(ctx context.Context) error {
			_, _, err := e.Submit(ctx, "n", []byte("1"), o)
			return err
		}
	}
	for _, c := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"bare-set", func(ctx context.Context) error { return c.Set(ctx, "bare", "1", 0).Err() }},
		{"submit", submit(jobs.SubmitOptions{})},
		{"with-client", submit(jobs.SubmitOptions{Client: "a"})},
		{"same-key", submit(jobs.SubmitOptions{Client: "b", Key: "k"})},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := c.do(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkBacklog measures a submission that is cancelled at once, with so many unfinished jobs of the same client.
func BenchmarkBacklog(b *testing.B) {
	for _, n := range []int{8, 1000, 100000} {
		b.Run(fmt.Sprintf("jobs=%d", n), func(b *testing.B) {
			e := engine(b, shared.client(b), kinds(), service(), redisjobs.WithCapacity(1<<20, 1<<20))
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					for range n / 4 {
						submit(b, e, "n", "1", jobs.SubmitOptions{Client: "a"})
					}
				})
			}
			wg.Wait()
			b.ReportAllocs()
			for b.Loop() {
				if _, err := e.Cancel(b.Context(), submit(b, e, "n", "1", jobs.SubmitOptions{Client: "a"}).ID); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkThroughput measures jobs from submission by eight at a time to the end of their handlers, a thousand in each round, beside two questions to
// the server for each: one to put something into a list, and one to take it out.
func BenchmarkThroughput(b *testing.B) {
	const round, submitters, workers = 1000, 8, 50
	run := func(b *testing.B, done *sync.WaitGroup, submit func() error) {
		for b.Loop() {
			done.Add(round)
			var wg sync.WaitGroup
			for range submitters {
				wg.Go(func() {
					for range round / submitters {
						if err := submit(); err != nil {
							b.Error(err)
						}
					}
				})
			}
			wg.Wait()
			done.Wait()
		}
		b.ReportMetric(float64(b.N)*round/b.Elapsed().Seconds(), "jobs/s")
	}
	ctx := context.Background()
	b.Run("bare-list", func(b *testing.B) {
		c := shared.client(b)
		var done sync.WaitGroup
		run(b, &done, func() error {
			defer done.Done()
			if err := c.LPush(ctx, "bare-list", "1").Err(); err != nil {
				return err
			}
			return c.RPop(ctx, "bare-list").Err()
		})
	})
	b.Run("engine", func(b *testing.B) {
		var done sync.WaitGroup
		m := jobs.NewMux()
		jobs.Register(m, "n", func(context.Context, int) (int, error) { done.Done(); return 1, nil })
		e := engine(b, shared.client(b), m, service(), redisjobs.WithWorkers(workers))
		run(b, &done, func() error {
			_, _, err := e.Submit(ctx, "n", []byte("1"), jobs.SubmitOptions{})
			return err
		})
	})
}

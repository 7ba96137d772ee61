//go:build unix

package riverjobs_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"

	"github.com/spillgate/spillgate/pool/jobs"
	"github.com/spillgate/spillgate/pool/riverjobs"
)

type bareArgs struct {
	N int `json:"n"`
}

func (bareArgs) Kind() string { return "bare" }

// BenchmarkSubmit measures submissions to a real server on this machine, one that does not wait for a disk, beside an insert of River's alone.
func BenchmarkSubmit(b *testing.B) {
	pool := connect(b, shared.database(b))
	bare, err := river.NewClient(riverpgxv5.New(pool), &river.Config{})
	if err != nil {
		b.Fatal(err)
	}
	e := engine(b, pool, kinds(), riverjobs.WithCapacity(1<<30, 1<<30))
	submit := func(o jobs.SubmitOptions) func(context.Context) error {
		return func(ctx context.Context) error {
			_, _, err := e.Submit(ctx, "n", []byte("1"), o)
			return err
		}
	}
	for _, c := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"bare-insert", func(ctx context.Context) error { _, err := bare.Insert(ctx, bareArgs{1}, nil); return err }},
		{"submit", submit(jobs.SubmitOptions{})},
		{"with-client", submit(jobs.SubmitOptions{Client: "a"})},
		{"same-key", submit(jobs.SubmitOptions{Client: "b", Key: "k"})},
	} {
		b.Run(c.name, func(b *testing.B) {
			if _, err := pool.Exec(b.Context(), "TRUNCATE river_job CASCADE"); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if err := c.do(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkBacklog measures a submission with so many unfinished jobs of the same client, which are counted before it is accepted.
func BenchmarkBacklog(b *testing.B) {
	for _, n := range []int{8, 1000, 9000} {
		b.Run(fmt.Sprintf("jobs=%d", n), func(b *testing.B) {
			pool := connect(b, shared.database(b))
			e := engine(b, pool, kinds(), riverjobs.WithCapacity(10000, 10000))
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					for range n / 4 {
						submit(b, e, "n", "1", jobs.SubmitOptions{})
					}
				})
			}
			wg.Wait()
			if _, err := pool.Exec(b.Context(), "UPDATE spillgate_job SET client = 'a'"); err != nil {
				b.Fatal(err)
			}
			if _, err := pool.Exec(b.Context(), "VACUUM ANALYZE spillgate_job"); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				// Nothing is kept, so that as many are there for the next.
				tx, err := pool.Begin(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				if _, _, err := e.SubmitTx(b.Context(), tx, "n", []byte("1"), jobs.SubmitOptions{Client: "a"}); err != nil {
					b.Fatal(err)
				}
				if err := tx.Rollback(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

type bareWorker struct {
	river.WorkerDefaults[bareArgs]
	done *sync.WaitGroup
}

func (w *bareWorker) Work(context.Context, *river.Job[bareArgs]) error { w.done.Done(); return nil }

// BenchmarkThroughput measures jobs from submission by eight at a time to the end of their handlers, a thousand in each round, beside River alone with the
// same settings.
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
	b.Run("bare-river", func(b *testing.B) {
		var done sync.WaitGroup
		workersOf := river.NewWorkers()
		river.AddWorker(workersOf, &bareWorker{done: &done})
		c, err := river.NewClient(riverpgxv5.New(connect(b, shared.database(b))), &river.Config{
			Queues: map[string]river.QueueConfig{"default": {MaxWorkers: workers}}, Workers: workersOf,
			FetchCooldown: 20e6, FetchPollInterval: 20e6,
		})
		if err != nil {
			b.Fatal(err)
		}
		if err := c.Start(context.Background()); err != nil {
			b.Fatal(err)
		}
		defer c.Stop(context.Background())
		run(b, &done, func() error { _, err := c.Insert(context.Background(), bareArgs{1}, nil); return err })
	})
	b.Run("engine", func(b *testing.B) {
		var done sync.WaitGroup
		m := jobs.NewMux()
		jobs.Register(m, "n", func(context.Context, int) (int, error) { done.Done(); return 1, nil })
		e := engine(b, connect(b, shared.database(b)), m, riverjobs.WithWorkers(workers))
		run(b, &done, func() error {
			_, _, err := e.Submit(context.Background(), "n", []byte("1"), jobs.SubmitOptions{})
			return err
		})
	})
}

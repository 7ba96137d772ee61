//go:build unix

package riverjobs_test

import (
	"context"
	"fmt"
	"log"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/spillgate/spillgate/pool/jobs"
	"github.com/spillgate/spillgate/pool/riverjobs"
)

type order struct {
	Items int `json:"items"`
}

// handlers are the same in the web server and in its workers.
func handlers() *jobs.Mux {
	m := jobs.NewMux()
	jobs.Register(m, "invoice", func(_ context.Context, o order) (string, error) {
		return fmt.Sprintf("invoice for %d items", o.Items), nil
	}, jobs.WithAttempts(5))
	return m
}

// A web server that submits and a worker that runs, here in one process.
func ExampleNew() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, emptyDatabase())
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()
	if err := riverjobs.Migrate(ctx, pool, riverjobs.WithSchema("jobs")); err != nil {
		log.Fatal(err)
	}

	worker := riverjobs.New(pool, handlers(), riverjobs.WithSchema("jobs"), riverjobs.WithWorkers(8))
	if err := worker.Start(ctx); err != nil {
		log.Fatal(err)
	}
	defer worker.Close()

	web := riverjobs.New(pool, handlers(), riverjobs.WithSchema("jobs"))
	defer web.Close()
	job, created, err := web.Submit(ctx, "invoice", []byte(`{"items":3}`), jobs.SubmitOptions{Client: "alice", Key: "order 17"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(job.State, created)
	for job, err = range web.Watch(ctx, job.ID) {
		if err != nil {
			log.Fatal(err)
		}
	}
	fmt.Println(job.State, string(job.Result))
	// Output:
	// queued true
	// succeeded "invoice for 3 items"
}

// The job exists exactly if the order does.
func ExampleEngine_SubmitTx() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, emptyDatabase())
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()
	if err := riverjobs.Migrate(ctx, pool); err != nil {
		log.Fatal(err)
	}
	if _, err := pool.Exec(ctx, "CREATE TABLE orders (items integer CHECK (items > 0))"); err != nil {
		log.Fatal(err)
	}
	web := riverjobs.New(pool, handlers())
	defer web.Close()
	buy := func(items int) error {
		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			if _, _, err := web.SubmitTx(ctx, tx, "invoice", fmt.Appendf(nil, `{"items":%d}`, items), jobs.SubmitOptions{}); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, "INSERT INTO orders VALUES ($1)", items)
			return err
		})
	}
	fmt.Println(buy(3) == nil, buy(0) == nil)
	var n int
	if err := pool.QueryRow(ctx, "SELECT count(*) FROM river_job").Scan(&n); err != nil {
		log.Fatal(err)
	}
	fmt.Println(n, "job")
	// Output:
	// true false
	// 1 job
}

// emptyDatabase returns the address of one.
func emptyDatabase() string {
	url, err := shared.create("template0")
	if err != nil {
		log.Fatal(err)
	}
	return url
}

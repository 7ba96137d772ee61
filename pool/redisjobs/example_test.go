//go:build unix

package redisjobs_test

import (
	"context"
	"fmt"
	"log"

	"github.com/redis/go-redis/v9"

	"github.com/spillgate/spillgate/pool/jobs"
	"github.com/spillgate/spillgate/pool/redisjobs"
)

type invoice struct {
	Items int `json:"items"`
}

// handlers are the same in the web server and in its workers.
func handlers() *jobs.Mux {
	m := jobs.NewMux()
	jobs.Register(m, "invoice", func(_ context.Context, o invoice) (string, error) {
		return fmt.Sprintf("invoice for %d items", o.Items), nil
	}, jobs.WithAttempts(5))
	return m
}

// A web server that submits and a worker that runs, here in one process.
func ExampleNew() {
	ctx := context.Background()
	client := redis.NewClient(&redis.Options{Addr: shared.addr, ContextTimeoutEnabled: true})
	defer client.Close()

	worker := redisjobs.New(client, handlers(), redisjobs.WithPrefix("shop"), redisjobs.WithWorkers(8))
	if err := worker.Start(ctx); err != nil {
		log.Fatal(err)
	}
	defer worker.Close()

	web := redisjobs.New(client, handlers(), redisjobs.WithPrefix("shop"))
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

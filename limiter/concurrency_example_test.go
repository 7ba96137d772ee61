package limiter_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spillgate/spillgate/limiter"
)

func ExampleNewConcurrency() {
	c := limiter.NewConcurrency(1)
	p, err := c.Acquire(context.Background(), limiter.Request{})
	fmt.Println("first:", err)

	_, err = c.Acquire(context.Background(), limiter.Request{})
	fmt.Println("second:", err)
	fmt.Println("saturated:", errors.Is(err, limiter.ErrSaturated))

	p.Release(limiter.Success)
	s := c.Stats()
	fmt.Println("admitted:", s.Admitted, "shed:", s.Shed)
	// Output:
	// first: <nil>
	// second: limiter: saturated
	// saturated: true
	// admitted: 1 shed: 1
}

func ExampleNewConcurrency_queue() {
	c := limiter.NewConcurrency(1, limiter.WithQueue(100, 50*time.Millisecond))
	p, _ := c.Acquire(context.Background(), limiter.Request{})
	time.AfterFunc(time.Millisecond, func() { p.Release(limiter.Success) })

	// Waits for the first to be done.
	q, err := c.Acquire(context.Background(), limiter.Request{Client: "b", Priority: 1})
	fmt.Println(err, c.Stats().Waited)
	q.Release(limiter.Success)
	// Output: <nil> 1
}

func ExampleNewAdaptive() {
	c := limiter.NewAdaptive()
	serve := func(ctx context.Context) error {
		p, err := c.Acquire(ctx, limiter.Request{})
		if err != nil {
			return err // answer 503; *limiter.Error says when to come back
		}
		defer p.Release(limiter.Success)
		return nil // the work
	}
	fmt.Println(serve(context.Background()), c.Limit())
	// Output: <nil> 8
}

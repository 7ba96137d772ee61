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
	c := limiter.NewConcurrency(1, limiter.WithQueue(100, 10*time.Second))
	p, err := c.Acquire(context.Background(), limiter.Request{})
	if err != nil {
		fmt.Println(err)
		return
	}
	time.AfterFunc(time.Millisecond, func() { p.Release(limiter.Success) })

	// Waits for the first to be done.
	q, err := c.Acquire(context.Background(), limiter.Request{Client: "b", Priority: 1})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(c.Stats().InFlight)
	q.Release(limiter.Success)
	// Output: 1
}

func ExampleNewAdaptive() {
	c := limiter.NewAdaptive()
	serve := func(ctx context.Context, work func(context.Context) error) error {
		p, err := c.Acquire(ctx, limiter.Request{})
		if err != nil {
			return err // answer 503; *limiter.Error says when to come back
		}
		outcome := limiter.Failure // of a panic as well: what fails is no throughput
		defer func() { p.Release(outcome) }()
		if err := work(ctx); err != nil {
			return err
		}
		outcome = limiter.Success
		return nil
	}
	fmt.Println(serve(context.Background(), func(context.Context) error { return nil }), c.Limit())
	fmt.Println(serve(context.Background(), func(context.Context) error { return errors.New("disk full") }), c.Stats().Failure)
	// Output:
	// <nil> 8
	// disk full 1
}

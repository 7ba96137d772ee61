package breaker_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spillgate/spillgate/breaker"
)

func ExampleNew() {
	b := breaker.New(
		breaker.WithConsecutiveFailures(3),
		breaker.WithOpenTime(5*time.Second, time.Minute),
		breaker.WithJitter(0),
	)
	for range 5 {
		call, err := b.Allow()
		if open, ok := errors.AsType[*breaker.OpenError](err); ok {
			fmt.Println(b.State(), "- come back in", open.RetryAfter)
			continue
		}
		fmt.Println(b.State(), "- calling")
		call.Done(breaker.Failure, 20*time.Millisecond)
	}
	// Output:
	// closed - calling
	// closed - calling
	// closed - calling
	// open - come back in 5s
	// open - come back in 5s
}

func ExampleBreaker_Do() {
	b := breaker.New(breaker.WithConsecutiveFailures(1))
	fail := func(context.Context) error { return errors.New("connection refused") }
	fmt.Println(b.Do(context.Background(), fail))
	fmt.Println(errors.Is(b.Do(context.Background(), fail), breaker.ErrOpen))
	// Output:
	// connection refused
	// true
}

func ExampleNewGroup() {
	hosts := breaker.NewGroup(breaker.WithKeys(256), breaker.WithConsecutiveFailures(1))
	call, err := hosts.Get("a.example").Allow()
	if err != nil {
		fmt.Println(err)
		return
	}
	call.Done(breaker.Failure, 0)
	fmt.Println(hosts.Get("a.example").State(), hosts.Get("b.example").State())
	// Output:
	// open closed
}

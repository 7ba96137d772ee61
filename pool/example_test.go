package pool_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"time"

	"github.com/spillgate/spillgate/pool"
)

func ExampleNew() {
	p := pool.New(pool.WithSlots(2))
	err := p.Do(context.Background(), func(ctx context.Context) error {
		fmt.Println("computing in one of", p.Slots(), "slots")
		return nil
	}, pool.WithKind("report"), pool.WithClient("alice"))
	fmt.Println(err)
	// Output:
	// computing in one of 2 slots
	// <nil>
}

func ExampleSubmit() {
	p := pool.New()
	ctx := context.Background()
	f := pool.Submit(ctx, p, func(context.Context) (int, error) { return 6 * 7, nil })
	// ... something else in the meantime ...
	n, err := f.Wait(ctx)
	fmt.Println(n, err)
	// Output: 42 <nil>
}

func ExampleMap() {
	p := pool.New()
	squares, err := pool.Map(context.Background(), p, []int{1, 2, 3, 4},
		func(_ context.Context, n int) (int, error) { return n * n, nil })
	fmt.Println(squares, err)
	// Output: [1 4 9 16] <nil>
}

// A handler that asks many others asks no more than 32 of them at once, and so do all requests of the server together. The first
// that fails ends the other calls.
func ExampleMap_fanOut() {
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.URL.Path) }))
	defer backend.Close()

	calls := pool.New(pool.WithSlots(32)) // one for all requests: these calls wait, and take no core
	get := func(ctx context.Context, path string) (string, error) {
		req, err := http.NewRequestWithContext(ctx, "GET", backend.URL+path, nil)
		if err != nil {
			return "", err
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return "", err
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		return string(body), err
	}
	parts, err := pool.Map(context.Background(), calls, []string{"/user", "/basket", "/offers"}, get, pool.WithClient("alice"))
	fmt.Println(parts, err)
	// Output: [/user /basket /offers] <nil>
}

func ExampleStream() {
	p := pool.New()
	pages := slices.Values([]string{"a", "bb", "ccc"})
	for n, err := range pool.Stream(context.Background(), p, pages,
		func(_ context.Context, s string) (int, error) { return len(s), nil }) {
		fmt.Println(n, err)
	}
	// Output:
	// 1 <nil>
	// 2 <nil>
	// 3 <nil>
}

func ExampleCheckpoint() {
	p := pool.New()
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	err := p.Do(ctx, func(ctx context.Context) error {
		for {
			// ... a millisecond of work ...
			if err := pool.Checkpoint(ctx); err != nil {
				return err
			}
		}
	})
	fmt.Println(err)
	// Output: context deadline exceeded
}

func ExampleOvercommit() {
	p := pool.New()
	over, err := pool.Overcommit(p, pool.WithThreads(2))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(p.Slots(), "slots, each task on a thread of its own")
	over.Close()
	// Output: 2 slots, each task on a thread of its own
}

func ExamplePool_Enter() {
	p := pool.New()
	ctx, slot, err := p.Enter(context.Background(), pool.WithKind("import"))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer slot.Leave()
	fmt.Println(pool.Checkpoint(ctx), p.Stats().Used)
	// Output: <nil> 1
}

func ExampleTrySubmit() {
	p := pool.New(pool.WithSlots(1))
	ctx := context.Background()
	busy := make(chan struct{})
	first, _ := pool.TrySubmit(ctx, p, func(context.Context) (int, error) { <-busy; return 1, nil })
	_, ok := pool.TrySubmit(ctx, p, func(context.Context) (int, error) { return 2, nil })
	close(busy)
	n, err := first.Wait(ctx)
	fmt.Println(n, err, ok)
	// Output: 1 <nil> false
}

// Others compute while a task waits for something that takes no core.
func ExampleSlot_Pause() {
	p := pool.New(pool.WithSlots(1))
	_, slot, err := p.Enter(context.Background())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer slot.Leave()

	slot.Pause()
	_ = p.Do(context.Background(), func(context.Context) error { // a request that comes meanwhile
		fmt.Println("another one in the only slot")
		return nil
	})
	slot.Resume()
	fmt.Println(p.Stats().Used, "used")
	// Output:
	// another one in the only slot
	// 1 used
}

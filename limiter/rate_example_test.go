package limiter_test

import (
	"fmt"
	"time"

	"golang.org/x/time/rate"

	"github.com/spillgate/spillgate/limiter"
)

func ExampleNewRate() {
	// Five attempts at once, then one every twelve seconds, for every account.
	logins := limiter.NewRate(rate.Every(12*time.Second), 5)
	for range 6 {
		d := logins.Allow("account 17")
		fmt.Println(d.OK, d.Remaining, d.RetryAfter.Round(time.Second))
	}
	// Output:
	// true 4 0s
	// true 3 0s
	// true 2 0s
	// true 1 0s
	// true 0 0s
	// false 0 12s
}

func ExampleWithPolicy() {
	// A hundred a second, and ten thousand a day: charged to both or to neither.
	r := limiter.NewRate(100, 200, limiter.WithName("burst"),
		limiter.WithPolicy("daily", 10_000.0/86_400, 10_000))
	fmt.Println(r.AllowN("tenant", 150).OK, r.AllowN("tenant", 150).Policy)
	for _, p := range r.Policies() {
		q, w, _ := p.Window()
		fmt.Printf("%q;q=%d;w=%d\n", p.Name, q, w)
	}
	// Output:
	// true burst
	// "burst";q=200;w=2
	// "daily";q=10000;w=86400
}

func ExampleRate_Refund() {
	r := limiter.NewRate(1, 10)
	r.Allow("client")
	// The cache answered; only misses count.
	r.Refund("client", 1)
	fmt.Println(r.Peek("client", 1).Remaining)
	// Output: 10
}

func ExampleWithStore() {
	// Two servers, one quota. A remote store would implement limiter.Store.
	store := limiter.NewMemoryStore(1024)
	one := limiter.NewRate(1, 3, limiter.WithStore(store))
	two := limiter.NewRate(1, 3, limiter.WithStore(store), limiter.WithStoreFailure(limiter.FailLocal))
	fmt.Println(one.AllowN("client", 2).Remaining)
	fmt.Println(two.Allow("client").Remaining)
	fmt.Println(two.Allow("client").OK)
	// Output:
	// 1
	// 0
	// false
}

func ExampleNewMemoryStore() {
	store := limiter.NewMemoryStore(1024)
	fmt.Println(limiter.NewRate(1, 3, limiter.WithStore(store)).Allow("client").OK)
	// Output: true
}

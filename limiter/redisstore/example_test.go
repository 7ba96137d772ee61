//go:build unix

package redisstore_test

import (
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/time/rate"

	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/limiter/redisstore"
)

// Each tenant has the quota of its plan from all servers together. A tenant that changes to a larger plan keeps what it has spent: that
// much of the new quota is gone.
func Example_plans() {
	client := redis.NewClient(&redis.Options{Addr: shared.addr, ContextTimeoutEnabled: true, MaxRetries: -1, DialerRetries: 1})
	defer client.Close()
	hourly := map[string]int{"free": 2, "pro": 5}
	plan := map[string]string{"acme": "free", "umbrella": "pro"}
	newRate := func() *limiter.Rate {
		store := redisstore.New(client, redisstore.WithPrefix("plans:rate:"))
		return limiter.NewRate(1, 1, limiter.WithStore(store), limiter.WithStoreTimeout(5*time.Second),
			limiter.WithKeyLimit(func(tenant string) (rate.Limit, int) {
				n := hourly[plan[tenant]]
				return rate.Limit(n) / 3600, n
			}))
	}
	one, two := newRate(), newRate()
	for _, tenant := range []string{"acme", "umbrella"} {
		admitted := 0
		for range 5 {
			for _, r := range []*limiter.Rate{one, two} {
				if r.Allow(tenant).OK {
					admitted++
				}
			}
		}
		fmt.Println(tenant, admitted)
	}
	plan["acme"] = "pro"
	three := newRate()
	fmt.Println("acme, raised:", three.AllowN("acme", 3).OK, three.Allow("acme").OK)
	// Output:
	// acme 2
	// umbrella 5
	// acme, raised: true false
}

// Two servers of one service, each with a Rate of its own: a client has three requests an hour from both together.
func Example() {
	client := redis.NewClient(&redis.Options{Addr: shared.addr, ContextTimeoutEnabled: true, MaxRetries: -1, DialerRetries: 1})
	defer client.Close()
	newRate := func() *limiter.Rate {
		store := redisstore.New(client, redisstore.WithPrefix("shop:rate:"))
		return limiter.NewRate(rate.Every(20*time.Minute), 3, limiter.WithStore(store), limiter.WithStoreTimeout(5*time.Second))
	}
	one, two := newRate(), newRate()
	for _, r := range []*limiter.Rate{one, two, one, two} {
		d := r.Allow("alice")
		fmt.Println(d.OK, d.Remaining)
	}
	// Output:
	// true 2
	// true 1
	// true 0
	// false 0
}

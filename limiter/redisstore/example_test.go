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

// Two servers of one service, each with a Rate of its own: a client has three requests an hour from both together.
func Example() {
	client := redis.NewClient(&redis.Options{Addr: shared.addr, ContextTimeoutEnabled: true, MaxRetries: -1})
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

//go:build unix

package redisstore_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/redis/go-redis/v9"
	"golang.org/x/time/rate"

	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/limiter/redisstore"
)

// BenchmarkTake measures questions to a real server on this machine, beside a PING and beside the smallest script there is.
func BenchmarkTake(b *testing.B) {
	client := shared.client(b)
	trivial := redis.NewScript("return {'1', '1'}")
	ping := func(ctx context.Context, _ string) error { return client.Ping(ctx).Err() }
	script := func(ctx context.Context, key string) error {
		return trivial.Run(ctx, client, []string{key}, 0, 1).Err()
	}
	take := func(policies ...limiter.Policy) func(context.Context, string) error {
		store := redisstore.New(client, redisstore.WithPrefix(fmt.Sprintf("bench %d:", len(policies))))
		return func(ctx context.Context, key string) error {
			_, err := store.Take(ctx, limiter.StoreRequest{Key: key, Cost: 1, Policies: policies}, make([]limiter.PolicyState, len(policies)))
			return err
		}
	}
	second := limiter.Policy{Name: "second", Limit: 1000, Burst: 1000}
	hour := limiter.Policy{Name: "hour", Limit: rate.Limit(10), Burst: 36000}
	for _, c := range []struct {
		name string
		ask  func(context.Context, string) error
	}{
		{"ping", ping}, {"trivial-script", script}, {"one-policy", take(second)}, {"two-policies", take(second, hour)},
	} {
		b.Run(c.name+"/serial", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := c.ask(b.Context(), "192.0.2.1"); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(c.name+"/parallel", func(b *testing.B) {
			b.ReportAllocs()
			b.SetParallelism(16)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := c.ask(b.Context(), "192.0.2.1"); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

// BenchmarkMemory reports what a key takes in the server, beside a key of the same name without a value.
func BenchmarkMemory(b *testing.B) {
	const keys = 20000
	used := func(c *redis.Client) float64 {
		n, err := c.InfoMap(b.Context(), "memory").Result()
		if err != nil {
			b.Fatal(err)
		}
		var bytes float64
		fmt.Sscan(n["Memory"]["used_memory"], &bytes)
		return bytes
	}
	for name, put := range map[string]func(*redis.Client, string) error{
		"no-value": func(c *redis.Client, key string) error {
			return c.Set(b.Context(), `spillgate:rate:"hour":`+key, "", 0).Err()
		},
		"one-policy": func(c *redis.Client, key string) error {
			_, err := redisstore.New(c).Take(b.Context(), limiter.StoreRequest{Key: key, Cost: 1,
				Policies: []limiter.Policy{{Name: "hour", Limit: 1. / 3600, Burst: 10}}}, make([]limiter.PolicyState, 1))
			return err
		},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				c := own(b).client(b)
				before := used(c)
				for i := range keys {
					if err := put(c, fmt.Sprintf("10.0.%d.%d", i>>8, i&255)); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric((used(c)-before)/keys, "B/key")
			}
		})
	}
}

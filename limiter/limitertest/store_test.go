package limitertest_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/limiter/limitertest"
)

func TestMemoryStore(t *testing.T) {
	limitertest.TestStore(t, limitertest.StoreConfig{
		New: func(testing.TB) limiter.Store { return limiter.NewMemoryStore(1024) },
		Run: synctest.Test,
	})
}

func TestMemoryStoreRefusesOtherPolicies(t *testing.T) {
	m := limiter.NewMemoryStore(8)
	take := func(names ...string) error {
		var policies []limiter.Policy
		for _, n := range names {
			policies = append(policies, limiter.Policy{Name: n, Limit: 1, Burst: 1})
		}
		_, err := m.Take(context.Background(), limiter.StoreRequest{Key: "a", Policies: policies}, make([]limiter.PolicyState, len(names)))
		return err
	}
	for _, c := range []struct {
		names []string
		ok    bool
	}{{nil, false}, {[]string{"a", "b"}, true}, {[]string{"a"}, false}, {[]string{"a", "c"}, false}, {[]string{"a", "b"}, true}, {make([]string, 9), false}} {
		if err := take(c.names...); (err == nil) != c.ok {
			t.Errorf("policies %q: %v", c.names, err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := m.Take(ctx, limiter.StoreRequest{}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("ended context: %v", err)
	}
}

package limiter_test

import (
	"strconv"
	"testing"

	"github.com/spillgate/spillgate/limiter"
)

func TestRateOffenders(t *testing.T) {
	r := limiter.NewRate(0, 1, limiter.WithOffenders(3))
	want := map[string]uint64{"a": 3000, "b": 2000, "c": 1000}
	// A crowd of keys, each refused twice, around three that are refused often.
	for i := range 1000 {
		key := strconv.Itoa(i)
		for range 3 {
			r.Allow(key)
		}
		for _, k := range []string{"a", "b", "b", "c", "a", "a"} {
			r.Allow(k)
		}
	}
	got := r.Stats().Offenders
	if len(got) != 3 {
		t.Fatalf("%d offenders: %+v", len(got), got)
	}
	for i, key := range []string{"a", "b", "c"} {
		n := want[key] - 1 // the first was admitted
		if o := got[i]; o.Hash != r.KeyHash(key) || o.Rejected < n || o.Rejected-o.Slack > n {
			t.Errorf("%s: %+v, want %d", key, o, n)
		}
	}
	plain := limiter.NewRate(0, 1)
	plain.Allow("a")
	plain.Allow("a")
	if plain.Stats().Offenders != nil || plain.KeyHash("a") != 0 {
		t.Error("offenders unasked")
	}
}

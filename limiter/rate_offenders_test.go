package limiter_test

import (
	"strconv"
	"testing"
	"testing/synctest"
	"time"

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

// Who is refused now is reported, whatever others were refused long ago, and nobody is who has not been for a day.
func TestRateOffendersOfLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := limiter.NewRate(0, 1, limiter.WithOffenders(1))
		refuse := func(key string, n int) {
			for range n + 1 {
				r.Allow(key)
			}
			r.Reset(key)
		}
		for i := range 20 {
			refuse("old "+strconv.Itoa(i), 1000)
		}
		top := func() limiter.RateOffender {
			all := r.Stats().Offenders
			if len(all) != 1 {
				t.Fatalf("%d offenders: %+v", len(all), all)
			}
			return all[0]
		}
		before := top()
		time.Sleep(time.Hour) // in a synctest bubble
		if o := top(); o.Hash != before.Hash || o.Rejected != before.Rejected/2 || o.Slack != before.Slack/2 {
			t.Errorf("after an hour %+v, of %+v", o, before)
		}
		time.Sleep(23*time.Hour + time.Minute) // in a synctest bubble
		if all := r.Stats().Offenders; len(all) != 0 {
			t.Errorf("after a day: %+v", all)
		}
		refuse("new", 100)
		if o := top(); o.Hash != r.KeyHash("new") || o.Rejected != 100 || o.Slack != 0 {
			t.Errorf("%+v, want the one that is refused now, 100 times", o)
		}
		time.Sleep(200 * 24 * time.Hour) // in a synctest bubble
		refuse("newer", 1)
		if o := top(); o.Hash != r.KeyHash("newer") || o.Rejected != 1 {
			t.Errorf("%+v, want the one that is refused now, once", o)
		}
	})
}

//go:build unix

package redisstore_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/time/rate"

	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/limiter/limitertest"
	"github.com/spillgate/spillgate/limiter/redisstore"
)

// The suite waits for a real server's clock, eleven seconds in all.
func TestStore(t *testing.T) {
	for name, c := range map[string]func(testing.TB) redis.UniversalClient{
		"one server": func(t testing.TB) redis.UniversalClient { return shared.client(t) },
		"cluster":    func(t testing.TB) redis.UniversalClient { return cluster(t) },
		"ring": func(t testing.TB) redis.UniversalClient {
			r := redis.NewRing(&redis.RingOptions{Addrs: map[string]string{"one": own(t).addr, "two": own(t).addr}, ContextTimeoutEnabled: true})
			t.Cleanup(func() { r.Close() })
			return r
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := c(t)
			limitertest.TestStore(t, limitertest.StoreConfig{
				New: func(t testing.TB) limiter.Store {
					return redisstore.New(c, redisstore.WithPrefix(prefix(t)))
				},
			})
		})
	}
}

// one is a policy into which nothing worth mentioning flows while a test runs.
func one(burst int) []limiter.Policy {
	return []limiter.Policy{{Name: "default", Limit: rate.Every(24 * time.Hour), Burst: burst}}
}

var prefixes atomic.Int64

// prefix returns one that nobody has had on the shared server, whatever -count is.
func prefix(t testing.TB) string { return fmt.Sprintf("%s %d:", t.Name(), prefixes.Add(1)) }

// fixture is a store with a prefix of its own on the shared server.
type fixture struct {
	*testing.T
	*redisstore.Store
	client *redis.Client
	prefix string
}

func newFixture(t *testing.T) fixture {
	f := fixture{T: t, client: shared.client(t), prefix: prefix(t)}
	f.Store = redisstore.New(f.client, redisstore.WithPrefix(f.prefix))
	return f
}

func (f fixture) take(req limiter.StoreRequest) (bool, []limiter.PolicyState) {
	f.Helper()
	states := make([]limiter.PolicyState, len(req.Policies))
	ok, err := f.Take(f.Context(), req, states)
	if err != nil {
		f.Fatalf("%+v: %v", req, err)
	}
	return ok, states
}

func (f fixture) keys() []string {
	f.Helper()
	keys, err := f.client.Keys(f.Context(), f.prefix+"*").Result()
	if err != nil {
		f.Fatal(err)
	}
	return keys
}

// A sequence of events is decided as plain arithmetic says.
func TestModel(t *testing.T) {
	f := newFixture(t)
	r := rand.New(rand.NewPCG(1, 2))
	type bucket [2]float64
	spent := map[string]*bucket{}
	for i := range 4000 {
		policies := []limiter.Policy{
			{Name: "a", Limit: rate.Every(24 * time.Hour), Burst: 1 + r.IntN(40)},
			{Name: "b", Limit: 0, Burst: 1 + r.IntN(60)},
		}
		req := limiter.StoreRequest{Key: fmt.Sprint(r.IntN(5)), Cost: r.IntN(12), Policies: policies}
		switch r.IntN(6) {
		case 0:
			req.Force = true
		case 1:
			req.Force, req.Cost = true, -r.IntN(30)
		}
		b := spent[req.Key]
		if b == nil {
			b = &bucket{}
			spent[req.Key] = b
		}
		want := true
		for j, p := range policies {
			want = want && (req.Force || b[j]+float64(req.Cost) <= float64(p.Burst))
		}
		refused := *b
		if want {
			for j, p := range policies {
				b[j] = max(0, min(b[j]+float64(req.Cost), max(b[j], 2*float64(p.Burst))))
			}
		}
		ok, states := f.take(req)
		if ok != want {
			t.Fatalf("event %d %+v of %v: %v, want %v", i, req, refused, ok, want)
		}
		for j, p := range policies {
			left := max(0, p.Burst-int(b[j]))
			if states[j].Remaining != left || states[j].Refused != (!ok && refused[j]+float64(req.Cost) > float64(p.Burst)) {
				t.Fatalf("event %d %+v, %v spent: %+v", i, req, b, states)
			}
		}
	}
}

// A key takes memory only as long as something is spent.
func TestExpiry(t *testing.T) {
	second := []limiter.Policy{{Name: "default", Limit: 1, Burst: 5}}
	both := []limiter.Policy{second[0], {Name: "hourly", Limit: rate.Every(time.Hour), Burst: 5}}
	once := []limiter.Policy{second[0], {Name: "once", Limit: 0, Burst: 5}}
	hourly := []limiter.Policy{{Name: "default", Limit: rate.Every(time.Hour), Burst: 5}}
	never := []limiter.Policy{{Name: "default", Limit: 0, Burst: 5}}
	for _, c := range []struct {
		name   string
		events []limiter.StoreRequest
		want   time.Duration // -1: does not expire; 0: no key
	}{
		{"two tokens at one a second", []limiter.StoreRequest{{Cost: 2, Policies: second}}, 2 * time.Second},
		{"the slowest of the policies", []limiter.StoreRequest{{Cost: 2, Policies: both}}, 2 * time.Hour},
		{"a debt", []limiter.StoreRequest{{Cost: 9, Force: true, Policies: second}}, 9 * time.Second},
		{"a debt is two bursts at most", []limiter.StoreRequest{{Cost: math.MaxInt, Force: true, Policies: second}}, 10 * time.Second},
		{"what never flows in is never forgotten", []limiter.StoreRequest{{Cost: 1, Policies: once}}, -1},
		{"given back", []limiter.StoreRequest{{Cost: 2, Policies: once}, {Cost: -2, Force: true, Policies: once}}, 0},
		{"reset", []limiter.StoreRequest{{Cost: 2, Policies: both}, {Cost: math.MinInt, Force: true, Policies: both}}, 0},
		{"refused", []limiter.StoreRequest{{Cost: 6, Policies: second}}, 0},
		{"refused once spent", []limiter.StoreRequest{{Cost: 5, Policies: second}, {Cost: 1, Policies: second}}, 5 * time.Second},
		{"refused by a limit that was lowered", []limiter.StoreRequest{{Cost: 5, Policies: second}, {Cost: 1, Policies: hourly}}, 5 * time.Hour},
		{"refused by a limit that was raised", []limiter.StoreRequest{{Cost: 5, Policies: hourly}, {Cost: 1, Policies: second}}, 5 * time.Hour},
		{"refused by a limit that was lowered to 0", []limiter.StoreRequest{{Cost: 5, Policies: second}, {Cost: 1, Policies: never}}, -1},
		{"nothing taken under a limit that was lowered", []limiter.StoreRequest{{Cost: 2, Policies: second}, {Cost: 0, Policies: hourly}}, 2 * time.Hour},
		{"nothing taken", []limiter.StoreRequest{{Cost: 0, Policies: second}}, 0},
		{"nothing to give back", []limiter.StoreRequest{{Cost: -1, Force: true, Policies: second}}, 0},
		{"admits everything", []limiter.StoreRequest{{Cost: 5, Policies: []limiter.Policy{{Name: "open", Limit: rate.Inf}}}}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(t)
			for _, e := range c.events {
				e.Key = "key"
				f.take(e)
			}
			keys := f.keys()
			if c.want == 0 {
				if len(keys) != 0 {
					t.Fatalf("keys %q", keys)
				}
				return
			}
			if len(keys) != 1 {
				t.Fatalf("keys %q", keys)
			}
			ttl, err := f.client.PTTL(t.Context(), keys[0]).Result()
			if err != nil {
				t.Fatal(err)
			}
			if c.want < 0 && ttl != -1 || c.want > 0 && (ttl > c.want+2*time.Millisecond || ttl < c.want-time.Second) {
				t.Errorf("expires in %v, want %v", ttl, c.want)
			}
		})
	}
}

func TestNames(t *testing.T) {
	f := newFixture(t)
	f.take(limiter.StoreRequest{Key: "192.0.2.1", Cost: 1, Policies: one(5)})
	if got, want := f.keys(), f.prefix+`"default":192.0.2.1`; len(got) != 1 || got[0] != want {
		t.Errorf("%q, want %q", got, want)
	}
	f.client.Del(t.Context(), f.keys()...)

	// What a client chooses does not say how long a name is, nor the slot of a cluster.
	for _, key := range []string{strings.Repeat("x", 1<<16), "{a}" + strings.Repeat("y", 40), "{", "}"} {
		f.take(limiter.StoreRequest{Key: key, Cost: 1, Policies: one(5)})
	}
	keys := f.keys()
	if len(keys) != 4 {
		t.Errorf("%q", keys)
	}
	for _, k := range keys {
		if len(k) > len(f.prefix)+64 || strings.ContainsAny(k, "{}") {
			t.Errorf("%q", k)
		}
	}
}

// Policies of other names are other buckets, and so is the same key under another prefix.
func TestApart(t *testing.T) {
	f := newFixture(t)
	named := func(names ...string) (p []limiter.Policy) {
		for _, n := range names {
			p = append(p, limiter.Policy{Name: n, Limit: 0, Burst: 1})
		}
		return p
	}
	for _, c := range []struct {
		key      string
		policies []limiter.Policy
	}{
		{"k", named("a")}, {"k", named("b")}, {"k", named("a", "b")}, {"k", named("a,b")}, {":k", named("a")}, {"k", named("a:")}, {"", named("a:k")},
	} {
		if ok, _ := f.take(limiter.StoreRequest{Key: c.key, Cost: 1, Policies: c.policies}); !ok {
			t.Errorf("%q of %+v was another's", c.key, c.policies)
		}
	}
	f.Store = redisstore.New(f.client, redisstore.WithPrefix(f.prefix+"other:"))
	if ok, _ := f.take(limiter.StoreRequest{Key: "k", Cost: 1, Policies: named("a")}); !ok {
		t.Error("another prefix has the same bucket")
	}
}

// A failover may bring a clock that is behind: nobody waits for it to catch up.
func TestClockSetBack(t *testing.T) {
	f := newFixture(t)
	fast := []limiter.Policy{{Name: "default", Limit: 1000, Burst: 3}}
	f.take(limiter.StoreRequest{Key: "k", Cost: 3, Policies: one(3)})
	name := f.keys()[0]
	held, err := f.client.Get(t.Context(), name).Bytes()
	if err != nil || len(held) != 16 {
		t.Fatalf("%q, %v", held, err)
	}
	at := math.Float64frombits(binary.LittleEndian.Uint64(held))
	if d := time.Since(time.UnixMicro(int64(at))); d < -time.Minute || d > time.Minute {
		t.Fatalf("written %v ago", d)
	}
	binary.LittleEndian.PutUint64(held, math.Float64bits(at+3.6e9))
	if err := f.client.Set(t.Context(), name, held, 0).Err(); err != nil {
		t.Fatal(err)
	}
	if ok, states := f.take(limiter.StoreRequest{Key: "k", Cost: 1, Policies: one(3)}); ok || states[0].Remaining != 0 {
		t.Errorf("%v %+v: an hour ahead, and what was spent is forgotten", ok, states)
	}
	until(t, "tokens flow in", func() bool {
		ok, _ := f.take(limiter.StoreRequest{Key: "k", Cost: 1, Policies: fast})
		return ok
	})
}

func TestErrors(t *testing.T) {
	f := newFixture(t)
	policies := one(5)
	for _, c := range []struct {
		name string
		req  limiter.StoreRequest
		n    int
		says string
	}{
		{"no policy", limiter.StoreRequest{}, 0, "0 policies"},
		{"fewer states", limiter.StoreRequest{Policies: policies}, 0, "1 policies and 0 states"},
		{"limit below 0", limiter.StoreRequest{Policies: []limiter.Policy{{Name: "p", Limit: -1, Burst: 1}}}, 1, `"p" has limit -1`},
		{"limit not a number", limiter.StoreRequest{Policies: []limiter.Policy{{Name: "p", Limit: rate.Limit(math.NaN()), Burst: 1}}}, 1, "NaN"},
		{"burst below 0", limiter.StoreRequest{Policies: []limiter.Policy{{Name: "p", Limit: 1, Burst: -1}}}, 1, "burst -1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := f.Take(t.Context(), c.req, make([]limiter.PolicyState, c.n)); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v; want an error with %q", err, c.says)
			}
		})
	}

	set := func(f func(string) error) func(fixture, string) {
		return func(x fixture, name string) {
			if err := f(name); err != nil {
				x.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		name string
		put  func(fixture, string)
		says string
	}{
		{"a value of somebody else", set(func(n string) error { return f.client.Set(t.Context(), n, "1", 0).Err() }), "not one of this script"},
		{"a list of somebody else", set(func(n string) error { return f.client.LPush(t.Context(), n, "1").Err() }), "WRONGTYPE"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f.take(limiter.StoreRequest{Key: "k", Cost: 1, Policies: policies})
			name := f.keys()[0]
			f.client.Del(t.Context(), name)
			c.put(f, name)
			_, err := f.Take(t.Context(), limiter.StoreRequest{Key: "k", Cost: 1, Policies: policies}, make([]limiter.PolicyState, 1))
			if err == nil || !strings.Contains(err.Error(), c.says) || !strings.HasPrefix(err.Error(), "redisstore: ") {
				t.Errorf("%v; want an error with %q", err, c.says)
			}
			if strings.Contains(err.Error(), name) {
				t.Errorf("%v: names the key", err)
			}
			f.client.Del(t.Context(), name)
		})
	}

	defer func() {
		if v := recover(); v == nil || !strings.HasPrefix(fmt.Sprint(v), "redisstore: New: client is nil") {
			t.Errorf("panic %v", v)
		}
	}()
	redisstore.New(nil)
}

// Numbers at the ends of their ranges.
func TestExtremes(t *testing.T) {
	f := newFixture(t)
	for _, c := range []struct {
		name      string
		policy    limiter.Policy
		cost      int
		ok        bool
		remaining int
		retry     func(time.Duration) bool
	}{
		{"the largest burst", limiter.Policy{Limit: 1e9, Burst: math.MaxInt}, 0, true, math.MaxInt, nil},
		{"a large burst", limiter.Policy{Limit: 1, Burst: 1 << 40}, 1 << 40, true, 0, nil},
		{"of which half is back in centuries", limiter.Policy{Limit: 1, Burst: 1 << 40}, 1 << 39, false, 0, func(d time.Duration) bool { return d == math.MaxInt64 }},
		{"a limit of years", limiter.Policy{Limit: 1e-12, Burst: 1}, 1, true, 0, nil},
		{"the same, refused", limiter.Policy{Limit: 1e-12, Burst: 1}, 1, false, 0, func(d time.Duration) bool { return d == math.MaxInt64 }},
		{"more than ever fits", limiter.Policy{Limit: 1e-12, Burst: 1}, 2, false, 0, func(d time.Duration) bool { return d == 0 }},
		{"a limit without end", limiter.Policy{Limit: 1 << 61, Burst: 7}, 7, true, 0, nil},
		{"the same again", limiter.Policy{Limit: 1 << 61, Burst: 7}, 7, true, 0, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.policy.Name = "p"
			ok, s := f.take(limiter.StoreRequest{Key: fmt.Sprint(c.policy.Limit), Cost: c.cost, Policies: []limiter.Policy{c.policy}})
			if ok != c.ok || s[0].Remaining != c.remaining || s[0].Refused == ok || c.retry != nil && !c.retry(s[0].RetryAfter) {
				t.Errorf("%v %+v", ok, s)
			}
		})
	}
}

// The server forgets its scripts when it is told to, and when it starts.
func TestScriptFlush(t *testing.T) {
	s := own(t)
	c := s.client(t)
	store := redisstore.New(c)
	for i := range 3 {
		if err := c.ScriptFlush(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		states := make([]limiter.PolicyState, 1)
		if ok, err := store.Take(t.Context(), limiter.StoreRequest{Key: "k", Cost: 1, Policies: one(3)}, states); !ok || err != nil || states[0].Remaining != 2-i {
			t.Fatalf("%v, %v, %+v", ok, err, states)
		}
	}
}

// A server without room, or one that is a replica, refuses to write: it has failed, and the process decides.
func TestRefusesToWrite(t *testing.T) {
	for _, c := range []struct {
		name, says string
		do         []any
	}{
		{"memory is full", "OOM", []any{"CONFIG", "SET", "maxmemory", "1"}},
		{"a replica", "READONLY", []any{"REPLICAOF", "127.0.0.1", "1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := own(t).client(t)
			var failed error
			r := limiter.NewRate(1, 5, limiter.WithStore(redisstore.New(client)), limiter.WithStoreTimeout(30*time.Second), limiter.WithRateTrace(limiter.RateTrace{StoreFailed: func(err error) { failed = err }}))
			if d := r.Allow("k"); !d.OK || failed != nil {
				t.Fatalf("%+v, %v", d, failed)
			}
			if err := client.Do(t.Context(), c.do...).Err(); err != nil {
				t.Fatal(err)
			}
			if d := r.Allow("k"); !d.OK || d.Remaining != 3 || failed == nil || !strings.Contains(failed.Error(), c.says) {
				t.Errorf("%+v, %v; want an error with %s", d, failed, c.says)
			}
		})
	}
}

// A user of Redis needs no more than what the documentation says.
func TestRights(t *testing.T) {
	allow := func(t *testing.T, c redis.Cmdable, more ...string) {
		rules := append([]string{"reset", "on", ">secret", "~spillgate:rate:*", "+evalsha", "+eval", "+time", "+get", "+pttl", "+set", "+del"}, more...)
		if err := c.ACLSetUser(t.Context(), "limits", rules...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	take := func(t *testing.T, c redis.Scripter) {
		t.Helper()
		for range 6 {
			if _, err := redisstore.New(c).Take(t.Context(), limiter.StoreRequest{Key: "k", Cost: 1, Policies: one(5)}, make([]limiter.PolicyState, 1)); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Run("one server", func(t *testing.T) {
		s := own(t)
		allow(t, s.client(t))
		c := redis.NewClient(&redis.Options{Addr: s.addr, Username: "limits", Password: "secret"})
		defer c.Close()
		take(t, c)
	})
	t.Run("another database", func(t *testing.T) {
		s := own(t)
		allow(t, s.client(t), "+select")
		c := redis.NewClient(&redis.Options{Addr: s.addr, Username: "limits", Password: "secret", DB: 3})
		defer c.Close()
		take(t, c)
	})
	t.Run("cluster", func(t *testing.T) {
		all := cluster(t)
		if err := all.ForEachMaster(t.Context(), func(_ context.Context, c *redis.Client) error {
			allow(t, c, "+cluster|slots", "+command", "+asking", "+readonly")
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		c := redis.NewClusterClient(&redis.ClusterOptions{Addrs: all.Options().Addrs, Username: "limits", Password: "secret", ReadOnly: true})
		defer c.Close()
		take(t, c)
	})
}

func TestEndedContext(t *testing.T) {
	f := newFixture(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.Take(ctx, limiter.StoreRequest{Key: "k", Cost: 1, Policies: one(1)}, make([]limiter.PolicyState, 1)); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if keys := f.keys(); len(keys) != 0 {
		t.Errorf("%q: taken all the same", keys)
	}
}

// until waits for something that other processes do.
func until(t testing.TB, what string, done func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("it did not come to be that %s", what)
		}
	}
}

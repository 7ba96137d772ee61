package middleware_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/cache"
	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware"
)

func answer(status int) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })
}

func do(h http.Handler, r *http.Request) *http.Response {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

func from(addr string) *http.Request {
	r := httptest.NewRequest("GET", "/", nil)
	r.RemoteAddr = addr
	return r
}

func TestRateRefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := middleware.Rate(limiter.NewRate(rate.Every(10*time.Second), 2, limiter.WithPolicy("daily", rate.Every(time.Hour), 2))).Handler(answer(200))
		for range 2 {
			do(h, from("192.0.2.1:1"))
		}
		time.Sleep(1500 * time.Millisecond) // in a synctest bubble
		res := do(h, from("192.0.2.1:1"))
		if res.StatusCode != 429 {
			t.Fatalf("status %d, want 429", res.StatusCode)
		}
		// Exact: the hour's token comes in 3598.5 s, rounded up.
		if got := res.Header.Get("Retry-After"); got != "3599" {
			t.Errorf("Retry-After %q, want 3599", got)
		}
		var p struct {
			Type, Title, Detail string
			Status              int
			Violated            []string `json:"violated-policies"`
		}
		if err := json.NewDecoder(res.Body).Decode(&p); err != nil {
			t.Fatal(err)
		}
		if p.Type != "https://iana.org/assignments/http-problem-types#quota-exceeded" || p.Status != 429 || p.Title == "" || fmt.Sprint(p.Violated) != "[default daily]" {
			t.Errorf("problem %+v", p)
		}
		for k, want := range map[string]string{"Content-Type": "application/problem+json", "Cache-Control": "no-store"} {
			if got := res.Header.Get(k); got != want {
				t.Errorf("%s %q, want %q", k, got, want)
			}
		}
		// Only the daily policy is left after ten seconds.
		time.Sleep(9 * time.Second) // in a synctest bubble
		res = do(h, from("192.0.2.1:1"))
		if err := json.NewDecoder(res.Body).Decode(&p); err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(p.Violated) != "[daily]" {
			t.Errorf("violated %v, want daily alone", p.Violated)
		}
		// Another client is not concerned.
		if res := do(h, from("192.0.2.2:1")); res.StatusCode != 200 {
			t.Errorf("another client: status %d", res.StatusCode)
		}
	})
}

func TestRateRefusalOfHeadHasNoBody(t *testing.T) {
	h := middleware.Rate(limiter.NewRate(0, 1)).Handler(answer(200))
	do(h, from("192.0.2.1:1"))
	r := httptest.NewRequest("HEAD", "/", nil)
	r.RemoteAddr = "192.0.2.1:1"
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code != 429 || w.Body.Len() != 0 || w.Header().Get("Content-Length") == "" {
		t.Errorf("HEAD: status %d, %d bytes of body, header %v", w.Code, w.Body.Len(), w.Header())
	}
	if got := w.Header().Get("Retry-After"); got != "86400" {
		t.Errorf("Retry-After %q where no wait helps, want a day", got)
	}
}

func TestRateHeaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		get := func(h http.Handler) http.Header { return do(h, from("192.0.2.1:1")).Header }

		two := limiter.NewRate(10, 20, limiter.WithName("burst"), limiter.WithPolicy("daily", rate.Every(86400*time.Second/1000), 1000))
		h := get(middleware.Rate(two).Handler(answer(200)))
		if got := h.Get("RateLimit-Policy"); got != `"burst";q=20;w=2, "daily";q=1000;w=86400` {
			t.Errorf("RateLimit-Policy %s", got)
		}
		// The draft's section 8.5: r in t is never faster than the policy.
		if got := h.Get("RateLimit"); got != `"burst";r=19;t=2, "daily";r=999;t=86314` {
			t.Errorf("RateLimit %s", got)
		}

		h = get(middleware.Rate(limiter.NewRate(1, 5), middleware.WithHeaders(middleware.LegacyHeaders)).Handler(answer(200)))
		if h["Ratelimit"] != nil || h.Get("X-RateLimit-Limit") != "5" || h.Get("X-RateLimit-Remaining") != "4" || h.Get("X-RateLimit-Reset") != "1" {
			t.Errorf("legacy headers: %v", h)
		}
		h = get(middleware.Rate(limiter.NewRate(1, 5), middleware.WithHeaders(middleware.NoHeaders)).Handler(answer(200)))
		if len(h) != 0 {
			t.Errorf("no headers: %v", h)
		}
		if h = get(middleware.Rate(limiter.NewRate(rate.Inf, 0)).Handler(answer(200))); len(h) != 0 {
			t.Errorf("an infinite limit has no quota to tell: %v", h)
		}

		// No number has more than 15 digits (RFC 9651, section 3.3.1), or a parser drops the whole field.
		huge := limiter.NewRate(1, math.MaxInt, limiter.WithPolicy("small", 1, 1))
		most := fmt.Sprintf(`"default";r=%.0f;t=`, math.Min(math.MaxInt-1, 1e15-1))
		if h = get(middleware.Rate(huge).Handler(answer(200))); !strings.HasPrefix(h.Get("RateLimit"), most) {
			t.Errorf("RateLimit %s", h.Get("RateLimit"))
		}

		// What is kept of fields that were sent is told apart by both of its numbers: here one of them is as before, and the
		// other differs by 256, which is how many are kept.
		slow := limiter.NewRate(1./1024, 1)
		one := middleware.Rate(slow).Handler(answer(200))
		quick := limiter.NewRate(1000, 1000)
		other := middleware.Rate(quick).Handler(answer(200))
		first, second := get(one).Get("RateLimit"), get(other).Get("RateLimit")
		time.Sleep(256 * time.Second) // in a synctest bubble
		quick.AllowN("192.0.2.1", 256)
		if first += " " + get(one).Get("RateLimit"); first != `"default";r=0;t=1024 "default";r=0;t=768` {
			t.Errorf("RateLimit at once and after 256 s: %s", first)
		}
		if second += " " + get(other).Get("RateLimit"); second != `"default";r=999;t=1 "default";r=743;t=1` {
			t.Errorf("RateLimit of 1,000 tokens and of 744: %s", second)
		}

		// A change at run time is told from the next response on.
		l := limiter.NewRate(1, 5)
		changing := middleware.Rate(l).Handler(answer(200))
		get(changing)
		if err := l.SetLimit(2, 10); err != nil {
			t.Fatal(err)
		}
		if got := get(changing).Get("RateLimit-Policy"); got != `"default";q=10;w=5` {
			t.Errorf("RateLimit-Policy %s after SetLimit(2, 10)", got)
		}
	})
}

// Keys that have limits of their own are told these, and not those that others have.
// Of several rate layers the fields are those of the last one that a request came to, and both are of the same.
func TestRateHeadersOfSeveralLayers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		named := func(name string, limit rate.Limit, more ...limiter.RateOption) middleware.Layer {
			return middleware.Rate(limiter.NewRate(limit, 2, append(more, limiter.WithName(name))...))
		}
		for _, c := range []struct {
			name         string
			outer, inner middleware.Layer
			want         []string // the fields of each response, one after the other
		}{
			{"the inner one while the outer admits", named("all", 0.5), named("login", 1), []string{
				`"login";q=2;w=2 | "login";r=1;t=1`, `"login";q=2;w=2 | "login";r=0;t=1`, `"all";q=2;w=4 | "all";r=0;t=2`}},
			{"the inner one where it cannot be described", named("all", 1), named("once", 0), []string{
				` | "once";r=1`, ` | "once";r=0`, `"all";q=2;w=2 | "all";r=0;t=1`}},
			{"the same of two policies", named("all", 1), named("once", 0, limiter.WithPolicy("also", 0, 3)), []string{
				` | "once";r=1, "also";r=2`, ` | "once";r=0, "also";r=1`}},
			{"the outer one where the inner has no limit", named("all", 1), named("none", rate.Inf), []string{
				`"all";q=2;w=2 | "all";r=1;t=1`}},
		} {
			h := middleware.Wrap(answer(200), c.outer, middleware.For("/", c.inner))
			for i, want := range c.want {
				res := do(h, from("192.0.2.1:1")).Header
				if got := res.Get("RateLimit-Policy") + " | " + res.Get("RateLimit"); got != want {
					t.Errorf("%s, request %d: %s, want %s", c.name, i+1, got, want)
				}
			}
		}
	})
}

func TestRateHeadersOfAKeysOwnLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		plans := map[string]struct {
			limit rate.Limit
			burst int
		}{"free": {1, 5}, "slow": {rate.Every(time.Hour), 5}, "pro": {100, 100}, "open": {rate.Inf, 0}, "blocked": {0, 0}}
		l := limiter.NewRate(1, 5, limiter.WithPolicy("daily", 1000.0/86400, 1000), limiter.WithKeyLimit(func(key string) (rate.Limit, int) {
			return plans[key].limit, plans[key].burst
		}))
		h := middleware.Rate(l, middleware.WithKey(middleware.KeyHeader("X-Plan"))).Handler(answer(200))
		for range 2 { // the second time from memory
			for plan, want := range map[string]string{
				"free":    `"default";q=5;w=5, "daily";q=1000;w=86400 | "default";r=4;t=4, "daily";r=999;t=86314`,
				"slow":    `"default";q=5;w=18000, "daily";q=1000;w=86400 | "default";r=4;t=14400, "daily";r=999;t=86314`,
				"pro":     `"default";q=100;w=1, "daily";q=1000;w=86400 | "default";r=99;t=1, "daily";r=999;t=86314`,
				"open":    `"daily";q=1000;w=86400 | "daily";r=999;t=86314`,
				"blocked": `"daily";q=1000;w=86400 | "default";r=0, "daily";r=1000;t=86400`,
			} {
				r := from("192.0.2.1:1")
				r.Header.Set("X-Plan", plan)
				hd := do(h, r).Header
				if got := hd.Get("RateLimit-Policy") + " | " + hd.Get("RateLimit"); got != want {
					t.Errorf("%s:\n     %s\nwant %s", plan, got, want)
				}
				l.Reset(plan)
			}
		}
		// Of more plans than are kept, each is told its own.
		var n int
		l = limiter.NewRate(1, 1, limiter.WithKeyLimit(func(string) (rate.Limit, int) { return rate.Limit(n), n }))
		h = middleware.Rate(l).Handler(answer(200))
		for n = range 1000 {
			l.Reset("192.0.2.1")
			if got, want := do(h, from("192.0.2.1:1")).Header.Get("RateLimit-Policy"), fmt.Sprintf(`"default";q=%d;w=1`, n); n > 0 && got != want {
				t.Fatalf("RateLimit-Policy %s, want %s", got, want)
			}
		}
	})
}

// Retry-After is never earlier than t, whatever is left (draft, section 6).
func TestRetryAfterIsNotBeforeT(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, l := range []*limiter.Rate{limiter.NewRate(3, 7), limiter.NewRate(0.3, 2), limiter.NewRate(1000, 1), limiter.NewRate(rate.Every(7*time.Minute), 4)} {
			cost := 1
			h := middleware.Rate(l, middleware.WithCost(func(*http.Request) int { return cost })).Handler(answer(200))
			for i := range 200 {
				cost = 1 + i%2
				res := do(h, from("192.0.2.1:1"))
				var r, s int
				if _, err := fmt.Sscanf(res.Header.Get("RateLimit"), `"default";r=%d;t=%d`, &r, &s); err != nil {
					t.Fatalf("RateLimit %q: %v", res.Header.Get("RateLimit"), err)
				}
				if s < 1 {
					t.Fatalf("t is %d", s)
				}
				if res.StatusCode == 429 {
					after, err := strconv.Atoi(res.Header.Get("Retry-After"))
					if err != nil || cost <= l.Policies()[0].Burst && after < s {
						t.Fatalf("Retry-After %q, t %d: %v", res.Header.Get("Retry-After"), s, err)
					}
				}
				time.Sleep(time.Duration(i%9) * 130 * time.Millisecond) // in a synctest bubble
			}
		}
	})
}

func TestRateKeys(t *testing.T) {
	with := func(name, value string) *http.Request {
		r := from("192.0.2.1:1")
		switch name {
		case "":
		case "Cookie":
			r.AddCookie(&http.Cookie{Name: "session", Value: value})
		case "Host":
			r.Host = value // as net/http has it, and not in the header
		default:
			r.Header.Set(name, value)
		}
		return r
	}
	for _, c := range []struct {
		name     string
		key      middleware.KeyFunc
		requests []*http.Request
		want     string
	}{
		{"by peer address", nil, []*http.Request{from("192.0.2.1:1"), from("192.0.2.1:2"), from("192.0.2.2:1")}, "[200 429 200]"},
		{"IPv6 by /64", nil, []*http.Request{from("[2001:db8::1]:1"), from("[2001:db8::2]:1"), from("[2001:db8:0:1::1]:1")}, "[200 429 200]"},
		{"X-Forwarded-For is not believed", nil, []*http.Request{with("X-Forwarded-For", "203.0.113.1"), with("X-Forwarded-For", "203.0.113.2")}, "[200 429]"},
		{"by header", middleware.KeyHeader("x-api-key"), []*http.Request{with("X-Api-Key", "a"), with("X-Api-Key", "b"), with("X-Api-Key", "a")}, "[200 200 429]"},
		{"by the Host header", middleware.KeyHeader("Host"), []*http.Request{with("Host", "a"), with("Host", "b"), with("Host", "a"), with("Host", ""), with("Host", "")}, "[200 200 429 200 429]"},
		{"an empty key is a key", middleware.KeyHeader("X-Api-Key"), []*http.Request{with("X-Api-Key", ""), with("", ""), with("X-Api-Key", ""), with("", "")}, "[200 200 429 429]"},
		{"without a key: one bucket for all", middleware.KeyHeader("X-Api-Key"), []*http.Request{with("", ""), from("192.0.2.9:1")}, "[200 429]"},
		{"by cookie", middleware.KeyCookie("session"), []*http.Request{with("Cookie", "a"), with("Cookie", "b"), with("Cookie", "a"), with("", "")}, "[200 200 429 200]"},
		{"joined parts do not run together", middleware.KeyJoin(middleware.KeyHeader("A"), middleware.KeyHeader("B")), []*http.Request{
			pair("a", "bc"), pair("ab", "c"), pair("a", "bc"),
		}, "[200 200 429]"},
		{"nor do their lengths", middleware.KeyJoin(middleware.KeyHeader("A"), middleware.KeyHeader("B")), []*http.Request{
			pair("10abcdefghi", ""), pair("1", "abcdefghi0"),
		}, "[200 200]"},
		{"a join without one part has no key", middleware.KeyJoin(middleware.KeyHeader("A"), middleware.KeyHeader("B")), []*http.Request{with("A", "a"), with("B", "b")}, "[200 429]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var opts []middleware.RateOption
			if c.key != nil {
				opts = append(opts, middleware.WithKey(c.key))
			}
			h := middleware.Rate(limiter.NewRate(0, 1), opts...).Handler(answer(200))
			var got []int
			for _, r := range c.requests {
				got = append(got, do(h, r).StatusCode)
			}
			if fmt.Sprint(got) != c.want {
				t.Errorf("statuses %v, want %s", got, c.want)
			}
		})
	}
}

func pair(a, b string) *http.Request {
	r := from("192.0.2.1:1")
	r.Header.Set("A", a)
	r.Header.Set("B", b)
	return r
}

func TestKeyRouteInsideAMux(t *testing.T) {
	mux := http.NewServeMux()
	layer := middleware.Rate(limiter.NewRate(0, 1), middleware.WithKey(middleware.KeyRoute()))
	mux.Handle("/a/{id}", layer.Handler(answer(200)))
	mux.Handle("/b", layer.Handler(answer(200)))
	var got []int
	for _, p := range []string{"/a/1", "/a/2", "/b"} {
		got = append(got, get(mux, "GET", p).StatusCode)
	}
	if fmt.Sprint(got) != "[200 429 200]" {
		t.Errorf("statuses %v, want [200 429 200]", got)
	}
}

// Values of the field are kept for the next response that has the same, and no other gets them.
func TestRateEachResponseHasItsOwnNumbers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := middleware.Rate(limiter.NewRate(1000, 1000)).Handler(answer(200))
		for left := 999; left >= 0; left-- {
			want := fmt.Sprintf(`"default";r=%d;t=1`, left)
			if got := do(h, from("192.0.2.1:1")).Header.Get("Ratelimit"); got != want {
				t.Fatalf("%s, want %s", got, want)
			}
		}
	})
}

func TestRateCostAndRefund(t *testing.T) {
	left := func(l *limiter.Rate) int { return l.Peek("192.0.2.1", 0).Remaining }
	run := func(l *limiter.Rate, next http.Handler, opts ...middleware.RateOption) {
		defer func() { _ = recover() }()
		middleware.Rate(l, opts...).Handler(next).ServeHTTP(httptest.NewRecorder(), from("192.0.2.1:1"))
	}
	full := limiter.NewConcurrency(1)
	p, err := full.Acquire(t.Context(), limiter.Request{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Release(limiter.Ignored)
	busy := middleware.Concurrency(full)
	for _, c := range []struct {
		name string
		next http.Handler
		opts []middleware.RateOption
		want int
	}{
		{"cost", answer(200), []middleware.RateOption{middleware.WithCost(func(*http.Request) int { return 3 })}, 7},
		{"failures only: success", answer(200), []middleware.RateOption{middleware.WithChargeFailuresOnly()}, 10},
		{"failures only: 401", answer(401), []middleware.RateOption{middleware.WithChargeFailuresOnly()}, 9},
		{"failures only: panic", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("x") }), []middleware.RateOption{middleware.WithChargeFailuresOnly()}, 9},
		{"failures only: 503 of the handler", answer(503), []middleware.RateOption{middleware.WithChargeFailuresOnly()}, 9},
		{"failures only: refused by a layer inside", busy.Handler(answer(200)), []middleware.RateOption{middleware.WithChargeFailuresOnly()}, 10},
		{"failures only, with cost", answer(200), []middleware.RateOption{middleware.WithCost(func(*http.Request) int { return 4 }), middleware.WithChargeFailuresOnly()}, 10},
		{"refund known after the response", answer(200), []middleware.RateOption{middleware.WithCost(func(*http.Request) int { return 5 }), middleware.WithRefund(func(_ *http.Request, res middleware.Result) int { return res.Status / 100 })}, 7},
		{"of two refunds the last", answer(200), []middleware.RateOption{middleware.WithRefund(func(*http.Request, middleware.Result) int { return -4 }), middleware.WithChargeFailuresOnly()}, 10},
		{"more is taken after the response", answer(200), []middleware.RateOption{middleware.WithRefund(func(*http.Request, middleware.Result) int { return -4 })}, 5},
		{"as much more as can be said", answer(200), []middleware.RateOption{middleware.WithRefund(func(*http.Request, middleware.Result) int { return math.MinInt })}, 0},
	} {
		l := limiter.NewRate(0, 10)
		run(l, c.next, c.opts...)
		if got := left(l); got != c.want {
			t.Errorf("%s: %d left of 10, want %d", c.name, got, c.want)
		}
	}
}

// What is given back is what was taken, whatever the cost function says of the request by then.
func TestRateGivesBackWhatItTook(t *testing.T) {
	for _, c := range []struct {
		name string
		cost func(*http.Request) int
	}{
		{"a cost below 0", func(*http.Request) int { return -3 }},
		{"a route that only the mux knows", func(r *http.Request) int { return 1 + len(r.Pattern) }},
		{"a header that the handler takes off", func(r *http.Request) int { return 1 + len(r.Header["X-Weight"]) }},
	} {
		l := limiter.NewRate(0, 100)
		l.AllowN("192.0.2.1", 50)
		mux := http.NewServeMux()
		mux.HandleFunc("/login", func(w http.ResponseWriter, r *http.Request) { r.Header.Del("X-Weight") })
		h := middleware.Rate(l, middleware.WithCost(c.cost), middleware.WithChargeFailuresOnly()).Handler(mux)
		for range 3 {
			r := httptest.NewRequest("POST", "/login", nil)
			r.RemoteAddr = "192.0.2.1:1"
			r.Header.Set("X-Weight", "2")
			if res := do(h, r); res.StatusCode != 200 {
				t.Errorf("%s: status %d", c.name, res.StatusCode)
			}
		}
		if got := l.Peek("192.0.2.1", 0).Remaining; got != 50 {
			t.Errorf("%s: %d left after three successes, want the 50 from before", c.name, got)
		}
	}
}

// A function of the user's may take its time, as to read a body; what flowed in meanwhile is there.
func TestRateDecidesAfterItHasAsked(t *testing.T) {
	for name, option := range map[string]middleware.RateOption{
		"cost": middleware.WithCost(func(r *http.Request) int { askSlowly(r); return 1 }),
		"key":  middleware.WithKey(func(r *http.Request) (string, error) { askSlowly(r); return "key", nil }),
	} {
		synctest.Test(t, func(t *testing.T) {
			h := middleware.Wrap(answer(200), middleware.WithTrace(&middleware.Trace{}), middleware.Rate(limiter.NewRate(1, 1), option))
			slow := make(chan *http.Response)
			go func() {
				r := from("192.0.2.1:1")
				r.Header.Set("Slow", "5s")
				slow <- do(h, r)
			}()
			time.Sleep(4 * time.Second) // in a synctest bubble
			if res := do(h, from("192.0.2.1:1")); res.StatusCode != 200 {
				t.Errorf("%s: status %d, want 200", name, res.StatusCode)
			}
			if res := <-slow; res.StatusCode != 200 {
				t.Errorf("%s: status %d a second later, Retry-After %s", name, res.StatusCode, res.Header.Get("Retry-After"))
			}
		})
	}
}

func askSlowly(r *http.Request) {
	if d, err := time.ParseDuration(r.Header.Get("Slow")); err == nil {
		time.Sleep(d) // in a synctest bubble
	}
}

func TestChargeMissesOnly(t *testing.T) {
	l := limiter.NewRate(0, 10)
	h := middleware.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/" {
			w.Header().Set("Cache-Control", "public, max-age=60")
		}
	}), middleware.Rate(l, middleware.WithChargeMissesOnly()), middleware.Cache(cache.New(1<<20)))
	for range 5 {
		do(h, from("192.0.2.1:1")) // a miss and four hits
	}
	if got := l.Peek("192.0.2.1", 0).Remaining; got != 9 {
		t.Errorf("%d left after a miss and four hits, want 9", got)
	}
}

// A stale answer is no miss unless the handler ran for it, and failed: it would have no quota then.
func TestChargeMissesOnlyOfStaleAnswers(t *testing.T) {
	for _, c := range []struct {
		name   string
		window string
		fail   func(b *breaker.Group, broken *int)
		left   int // of 10, after a miss and three stale answers
	}{
		{"the handler fails", "stale-if-error=600", func(_ *breaker.Group, broken *int) { *broken = 500 }, 6},
		{"the handler panics", "stale-if-error=600", func(_ *breaker.Group, broken *int) { *broken = -1 }, 6},
		{"validated in the background", "stale-while-revalidate=600", func(_ *breaker.Group, broken *int) { *broken = 500 }, 9},
		{"a layer inside refuses", "stale-if-error=600", func(b *breaker.Group, _ *int) {
			for _, b := range b.All() {
				b.ForceOpen()
			}
		}, 9},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, b, broken := limiter.NewRate(0, 10), breaker.NewGroup(), 0
				h := middleware.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					switch {
					case broken < 0:
						panic(http.ErrAbortHandler)
					case broken > 0:
						w.WriteHeader(broken)
					default:
						w.Header().Set("Cache-Control", "public, max-age=1, "+c.window)
					}
				}), middleware.Rate(l, middleware.WithChargeMissesOnly()), middleware.Cache(cache.New(1<<20)), middleware.Breaker(b))
				do(h, from("192.0.2.1:1"))
				time.Sleep(2 * time.Second) // in a synctest bubble
				c.fail(b, &broken)
				for range 3 {
					func() {
						defer func() { _ = recover() }()
						do(h, from("192.0.2.1:1"))
					}()
					synctest.Wait()
				}
				if got := l.Peek("192.0.2.1", 0).Remaining; got != c.left {
					t.Errorf("%d left, want %d", got, c.left)
				}
			})
		})
	}
}

func TestRateShadowRefusesNothing(t *testing.T) {
	l := limiter.NewRate(0, 1, limiter.WithRateShadow())
	h := middleware.Rate(l).Handler(answer(200))
	for i := range 5 {
		if res := do(h, from("192.0.2.1:1")); res.StatusCode != 200 {
			t.Fatalf("request %d: status %d, want 200", i, res.StatusCode)
		}
	}
	if st := l.Stats(); st.Shadowed != 4 {
		t.Errorf("%d shadowed, want 4", st.Shadowed)
	}
}

func TestRetrySpread(t *testing.T) {
	l := limiter.NewRate(rate.Every(10*time.Second), 1)
	h := middleware.Rate(l, middleware.WithRetrySpread(5*time.Second)).Handler(answer(200))
	do(h, from("192.0.2.1:1"))
	seen := map[string]bool{}
	for range 200 {
		after := do(h, from("192.0.2.1:1")).Header.Get("Retry-After")
		n, err := strconv.Atoi(after)
		if err != nil || n < 9 || n > 15 {
			t.Fatalf("Retry-After %q, want 9 to 15", after)
		}
		seen[after] = true
	}
	if len(seen) < 3 {
		t.Errorf("Retry-After takes %d values in 200 refusals, want it spread", len(seen))
	}
}

// Nothing in a refusal names a key, an address or a user.
func TestRefusalDoesNotLeakTheKey(t *testing.T) {
	h := middleware.Rate(limiter.NewRate(0, 1), middleware.WithKey(middleware.KeyHeader("X-Api-Key"))).Handler(answer(200))
	for range 2 {
		r := from("203.0.113.77:1")
		r.Header.Set("X-Api-Key", "secret-of-a-user")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		all := fmt.Sprint(w.Header(), w.Body.String())
		if strings.Contains(all, "secret") || strings.Contains(all, "203.0.113") {
			t.Errorf("the response names the client: %s", all)
		}
	}
}

type brokenStore struct{}

func (brokenStore) Take(context.Context, limiter.StoreRequest, []limiter.PolicyState) (bool, error) {
	return false, errors.New("the store is down")
}

// A store that does not answer is no fault of the client: not 429 but 503, if the limit is to fail closed.
func TestRateStoreDown(t *testing.T) {
	for failure, want := range map[limiter.StoreFailure]int{limiter.FailClosed: 503, limiter.FailOpen: 200, limiter.FailLocal: 200} {
		l := limiter.NewRate(1, 5, limiter.WithStore(brokenStore{}), limiter.WithStoreFailure(failure))
		if res := do(middleware.Rate(l).Handler(answer(200)), from("192.0.2.1:1")); res.StatusCode != want {
			t.Errorf("%v: status %d, want %d", failure, res.StatusCode, want)
		} else if want == 503 && res.Header.Get("Retry-After") == "" {
			t.Errorf("%v: no Retry-After", failure)
		}
	}
}

// A client that hangs up as soon as it has sent its request is counted by the store as others are, whichever server it comes to.
func TestRateClientsWhoHangUp(t *testing.T) {
	for _, failure := range []limiter.StoreFailure{limiter.FailLocal, limiter.FailOpen} {
		store, ran := limiter.NewMemoryStore(64), 0
		next := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { ran++ })
		for range 3 {
			l := limiter.NewRate(rate.Every(time.Hour), 5, limiter.WithStore(store), limiter.WithStoreFailure(failure))
			h := middleware.Rate(l).Handler(next)
			for range 10 {
				ctx, hangUp := context.WithCancel(t.Context())
				hangUp()
				do(h, from("192.0.2.1:1").WithContext(ctx))
			}
		}
		if ran != 5 {
			t.Errorf("%v: the handler ran for %d of 30, want 5", failure, ran)
		}
	}
}

// storeForced is a store that answers only what is forced, as one that is slow now and then.
type storeForced struct{ limiter.Store }

func (s storeForced) Take(ctx context.Context, req limiter.StoreRequest, states []limiter.PolicyState) (bool, error) {
	if !req.Force {
		return false, errors.New("too slow")
	}
	return s.Store.Take(ctx, req, states)
}

// What was admitted without being charged, since the store did not answer, is given nothing back.
func TestRateGivesNothingBackOfNothing(t *testing.T) {
	for _, failure := range []limiter.StoreFailure{limiter.FailOpen, limiter.FailLocal} {
		store := limiter.NewMemoryStore(64)
		before := limiter.NewRate(0, 10, limiter.WithStore(store))
		before.AllowN("192.0.2.1", 6)
		l := limiter.NewRate(0, 10, limiter.WithStore(storeForced{store}), limiter.WithStoreFailure(failure))
		l.Charge("192.0.2.1", 1)
		h := middleware.Rate(l, middleware.WithChargeFailuresOnly()).Handler(answer(200))
		for range 4 {
			if res := do(h, from("192.0.2.1:1")); res.StatusCode != 200 {
				t.Errorf("%v: status %d", failure, res.StatusCode)
			}
		}
		if d := l.Peek("192.0.2.1", 0); d.Remaining != 9 {
			t.Errorf("%v: %d left here of the 9 before four successes", failure, d.Remaining)
		}
		if failure != limiter.FailOpen {
			continue // who does not answer may have taken it
		}
		if d := before.AllowN("192.0.2.1", 4); d.OK {
			t.Errorf("%v: more left in the store than the 3 before", failure)
		}
	}
}

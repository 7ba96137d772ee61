package wiretest

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"

	"github.com/dunglas/httpsfv"
	"golang.org/x/time/rate"

	"github.com/spillgate/spillgate/cache"
	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware"
)

// item is an element of a List with a String and integer parameters (RFC 9651).
type item struct {
	name   string
	params map[string]int64
}

func parse(t *testing.T, values []string) []item {
	t.Helper()
	list, err := httpsfv.UnmarshalList(values)
	if err != nil {
		t.Fatalf("%q is no List: %v", values, err)
	}
	var out []item
	for _, m := range list {
		i, ok := m.(httpsfv.Item)
		if !ok {
			t.Fatalf("%q: a member is no Item", values)
		}
		name, ok := i.Value.(string) // a Token is another type
		if !ok {
			t.Fatalf("%q: the value is %T, no String", values, i.Value)
		}
		it := item{name: name, params: map[string]int64{}}
		for _, p := range i.Params.Names() {
			v, _ := i.Params.Get(p)
			n, ok := v.(int64)
			if !ok {
				t.Fatalf("%q: parameter %s is %T, no Integer", values, p, v)
			}
			it.params[p] = n
		}
		out = append(out, it)
	}
	return out
}

// The RateLimit fields of random policies parse, name the policies, and stay within them
// (draft-ietf-httpapi-ratelimit-headers-11, sections 3, 4 and 6).
func TestRateLimitFields(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for round := range 300 {
		var opts []limiter.RateOption
		limits := map[string]struct {
			limit rate.Limit
			burst int
		}{}
		for i := range rnd.IntN(4) {
			name := fmt.Sprint("p", i)
			l, b := rate.Limit(rnd.ExpFloat64()*10+1e-4), 1+rnd.IntN(1000)
			limits[name] = struct {
				limit rate.Limit
				burst int
			}{l, b}
			opts = append(opts, limiter.WithPolicy(name, l, b))
		}
		l, b := rate.Limit(rnd.ExpFloat64()*10+1e-4), 1+rnd.IntN(1000)
		limits["default"] = struct {
			limit rate.Limit
			burst int
		}{l, b}
		cost := 1 + rnd.IntN(3)
		h := middleware.Rate(limiter.NewRate(l, b, opts...), middleware.WithCost(func(*http.Request) int { return cost })).Handler(
			http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		for range 20 {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
			hd := w.Header()
			policies, left := parse(t, hd["Ratelimit-Policy"]), parse(t, hd["Ratelimit"])
			if len(policies) != len(limits) || len(left) != len(limits) {
				t.Fatalf("round %d: %d policies and %d limits told, want %d", round, len(policies), len(left), len(limits))
			}
			window := map[string]item{}
			for _, p := range policies {
				window[p.name] = p
				q, qok := p.params["q"]
				win, wok := p.params["w"]
				if !qok || !wok || q < int64(limits[p.name].burst) || win < 1 || len(p.params) != 2 {
					t.Errorf("round %d: policy %+v of burst %d", round, p, limits[p.name].burst)
				}
			}
			after := 0
			if w.Code == http.StatusTooManyRequests {
				n, err := strconv.Atoi(hd.Get("Retry-After"))
				if err != nil || n < 1 {
					t.Fatalf("Retry-After %q", hd.Get("Retry-After"))
				}
				after = n
			}
			for _, p := range left {
				r, rok := p.params["r"]
				secs, tok := p.params["t"]
				if !rok || !tok || r < 0 || r > int64(limits[p.name].burst) || secs < 1 {
					t.Errorf("round %d: limit %+v of burst %d", round, p, limits[p.name].burst)
				}
				// What is told is never faster than the policy: r in t is at most q in w, give or take
				// that t is a whole number of seconds.
				if float64(r)/float64(secs) > float64(limits[p.name].limit)*1.000001+1e-9 && r > 0 && w.Code == http.StatusOK {
					t.Errorf("round %d: %d in %d s of a limit of %v", round, r, secs, limits[p.name].limit)
				}
				if after > 0 && cost <= limits[p.name].burst && r < int64(cost) && secs > int64(after) {
					t.Errorf("round %d: Retry-After %d is before t %d of %s", round, after, secs, p.name)
				}
			}
		}
	}
}

// Cache-Status (RFC 9211) is a List whose first member is the name of the cache.
func TestCacheStatus(t *testing.T) {
	h := middleware.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", r.Header.Get("X-Control"))
	}), middleware.Cache(cache.New(1<<20)))
	for _, c := range []struct {
		path, control string
		request       string
		hit           bool
	}{
		{"/a", "public, max-age=60", "", false}, {"/a", "", "", true}, {"/a", "public, max-age=60", "no-cache", false},
		{"/b", "no-store", "", false}, {"/c", "private", "", false}, {"/d", "", "", false}, {"/e", "", "only-if-cached", false},
	} {
		r := httptest.NewRequest("GET", c.path, nil)
		r.Header.Set("X-Control", c.control)
		if c.request != "" {
			r.Header.Set("Cache-Control", c.request)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		list, err := httpsfv.UnmarshalList(w.Header()["Cache-Status"])
		if err != nil || len(list) != 1 {
			t.Errorf("%s %s: Cache-Status %q: %v", c.path, c.control, w.Header()["Cache-Status"], err)
			continue
		}
		i := list[0].(httpsfv.Item)
		if fmt.Sprint(i.Value) != "spillgate" {
			t.Errorf("%s: the cache is named %v", c.path, i.Value)
		}
		_, hit := i.Params.Get("hit")
		if hit != c.hit {
			t.Errorf("%s %s: hit %v, want %v in %q", c.path, c.control, hit, c.hit, w.Header()["Cache-Status"])
		}
		if v, ok := i.Params.Get("ttl"); ok {
			if _, isInt := v.(int64); !isInt || !hit {
				t.Errorf("%s: ttl %v (%T) with hit %v", c.path, v, v, hit)
			}
		}
	}
}

package outbound_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/middleware/outbound"
)

// spread counts which endpoint answers.
type spread struct {
	mu  sync.Mutex
	got map[string]int
	// hold keeps responses open, so that what is in flight grows.
	hold bool
}

func (s *spread) RoundTrip(req *http.Request) (*http.Response, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.got == nil {
		s.got = map[string]int{}
	}
	s.got[req.URL.Host]++
	if s.hold {
		return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader("x"))}, nil
	}
	return &http.Response{StatusCode: 200, Body: http.NoBody}, nil
}

func three(weights ...int) []outbound.Endpoint {
	var list []outbound.Endpoint
	for i, name := range []string{"a", "b", "c"} {
		list = append(list, outbound.Endpoint{URL: "http://" + name + ".test", Weight: weights[i]})
	}
	return list
}

func TestPolicies(t *testing.T) {
	const n = 6000
	for _, tc := range []struct {
		name string
		opts []outbound.SetOption
		hold bool
		want [3]float64
		off  float64
	}{
		{"P2C, idle: even", nil, false, [3]float64{1, 1, 1}, 0.05},
		{"P2C, all in flight: by weight", nil, true, [3]float64{1, 2, 3}, 0.02},
		{"RoundRobin: exact", []outbound.SetOption{outbound.WithPolicy(outbound.RoundRobin)}, false, [3]float64{1, 2, 3}, 0.001},
		{"Random: by weight", []outbound.SetOption{outbound.WithPolicy(outbound.Random)}, false, [3]float64{1, 2, 3}, 0.03},
		{"hash: by weight", []outbound.SetOption{outbound.WithHash(func(r *http.Request) string { return r.URL.Path })}, false, [3]float64{1, 2, 3}, 0.05},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				weights := []int{int(tc.want[0]), int(tc.want[1]), int(tc.want[2])}
				s := &spread{hold: tc.hold}
				rt := outbound.New(s, outbound.Balance(newSet(t, three(weights...), tc.opts...)))
				for i := range n {
					resp, err := rt.RoundTrip(request(t.Context(), "GET", fmt.Sprintf("http://svc/%d", i), nil))
					if err != nil {
						t.Fatal(err)
					}
					_ = resp // not closed where the load is to grow
				}
				sum := tc.want[0] + tc.want[1] + tc.want[2]
				for i, host := range []string{"a.test", "b.test", "c.test"} {
					if got, want := float64(s.got[host])/n, tc.want[i]/sum; math.Abs(got-want) > tc.off {
						t.Errorf("%s got %.3f of the requests, want %.3f", host, got, want)
					}
				}
			})
		})
	}
}

func TestP2CGoesByWeightHoweverFarApart(t *testing.T) {
	const n = 6000
	for name, others := range map[string][]outbound.Endpoint{
		"one tier": nil,
		"tiers":    {{URL: "http://reserve.test", Tier: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &spread{hold: true}
				rt := outbound.New(s, outbound.Balance(newSet(t, append(three(1, 20, 1), others...))))
				for range n {
					if _, err := rt.RoundTrip(request(t.Context(), "GET", "http://svc/", nil)); err != nil { // its body stays open
						t.Fatal(err)
					}
				}
				for host, weight := range map[string]float64{"a.test": 1, "b.test": 20, "c.test": 1} {
					if got, want := float64(s.got[host])/n, weight/22; math.Abs(got-want) > 0.01 {
						t.Errorf("%s has %.3f of what is in flight, want %.3f", host, got, want)
					}
				}
			})
		})
	}
}

func TestRoundRobinIsSmooth(t *testing.T) {
	for range 100 {
		set := newSet(t, three(5, 1, 1), outbound.WithPolicy(outbound.RoundRobin))
		req, now := request(t.Context(), "GET", "http://svc/", nil), time.Now()
		var order string
		for range 28 {
			name, err := set.Pick(req, now)
			if err != nil {
				t.Fatal(err)
			}
			order += name[len("http://"):][:1]
		}
		for i := range len(order) - 7 {
			round := order[i : i+7]
			if strings.Count(round, "a") != 5 || strings.Count(round, "b") != 1 || strings.Contains(round, "bc") || strings.Contains(round, "cb") {
				t.Fatalf("%s in %s", round, order) // nginx's commit message has aabacaa
			}
		}
	}
}

// Were the first of the list the first to be chosen, as many processes as hear of a list at once would all choose it,
// and one that hears of another before each request no other.
func TestRoundRobinDoesNotBeginWithTheFirst(t *testing.T) {
	set := newSet(t, urls("http://a.test", "http://b.test", "http://c.test"), outbound.WithPolicy(outbound.RoundRobin), outbound.WithSlowStart(0))
	req, now := request(t.Context(), "GET", "http://svc/", nil), time.Now()
	got := map[string]int{}
	for i := range 300 {
		if err := set.Update(append(urls("http://a.test", "http://b.test"), urls(fmt.Sprintf("http://c%d.test", i))...)); err != nil {
			t.Fatal(err)
		}
		name, err := set.Pick(req, now)
		if err != nil {
			t.Fatal(err)
		}
		got[name]++
	}
	if n := got["http://a.test"]; n < 50 || n > 150 {
		t.Errorf("the first of three had %d of 300 requests, want about 100", n)
	}
}

// What the turns of large weights owed starves nobody when the weights are small.
func TestRoundRobinBeginsAnewWithOtherWeights(t *testing.T) {
	set := newSet(t, []outbound.Endpoint{{URL: "http://a.test", Weight: 100_000}, {URL: "http://b.test"}, {URL: "http://c.test"}},
		outbound.WithPolicy(outbound.RoundRobin))
	req, now := request(t.Context(), "GET", "http://svc/", nil), time.Now()
	for range 50_000 {
		set.Pick(req, now)
	}
	if err := set.Update(urls("http://a.test", "http://b.test", "http://c.test")); err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for range 600 {
		name, _ := set.Pick(req, now)
		got[name]++
	}
	for name, n := range got {
		if n != 200 {
			t.Errorf("%s got %d of 600, want 200", name, n)
		}
	}
	if len(got) != 3 {
		t.Errorf("%d endpoints got work: %v", len(got), got)
	}
}

func TestHashKeepsKeysInPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var at sync.Map
		note := func(req *http.Request) (*http.Response, error) {
			at.Store(req.URL.Path, req.URL.Host)
			return &http.Response{StatusCode: 200, Body: http.NoBody}, nil
		}
		set := newSet(t, urls("http://a.test", "http://b.test", "http://c.test", "http://d.test"),
			outbound.WithHash(func(r *http.Request) string { return r.URL.Path }), outbound.WithSlowStart(0))
		rt := outbound.New(world{"a.test": note, "b.test": note, "c.test": note, "d.test": note}, outbound.Balance(set))
		place := func() map[string]string {
			m := map[string]string{}
			for i := range 1000 {
				path := fmt.Sprintf("/%d", i)
				get(t, rt, "http://svc"+path)
				host, _ := at.Load(path)
				m[path] = host.(string)
			}
			return m
		}
		before := place()
		for path, host := range place() {
			if before[path] != host {
				t.Fatalf("%s moved from %s to %s while nothing changed", path, before[path], host)
			}
		}
		if err := set.Update(urls("http://a.test", "http://b.test", "http://c.test")); err != nil {
			t.Fatal(err)
		}
		for path, host := range place() {
			if was := before[path]; was != "d.test" && was != host {
				t.Errorf("%s moved from %s to %s though %s stayed", path, was, host, was)
			}
		}
	})
}

// Another process, or another version of this package, must find a key where this one does.
func TestHashIsTheSameInEveryProcess(t *testing.T) {
	const a, b, c, d = "http://a.test", "http://b.test:8080", "https://c.test/path", "http://d.test"
	want := map[string]string{
		"": d, "/": a, "/0": b, "/1": a, "/2": d, "/3": c, "/users/17": c, "/users/18": c,
		"a@example.com": a, "ein Schlüssel": b, strings.Repeat("long", 100): a,
	}
	for _, list := range [][]outbound.Endpoint{
		urls(a, b, c, d),
		urls("http://d.test", "https://C.test:443/path/", "http://a.test:80", "http://b.test:8080"),
	} {
		set := newSet(t, list, outbound.WithHash(func(r *http.Request) string { return r.Header.Get("Key") }))
		for key, host := range want {
			req := request(t.Context(), "GET", "http://svc/", nil)
			req.Header.Set("Key", key)
			if got, err := set.Pick(req, time.Now()); err != nil || got != host {
				t.Errorf("%q went to %s (error %v), want %s", key, got, err, host)
			}
		}
	}
}

func TestHashBoundsTheLoadOfAPopularKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &spread{hold: true}
		rt := outbound.New(s, outbound.Balance(newSet(t, three(1, 1, 1), outbound.WithHash(func(*http.Request) string { return "popular" }))))
		for range 300 {
			rt.RoundTrip(request(t.Context(), "GET", "http://svc/", nil))
		}
		for host, n := range s.got {
			if n > 126 { // ceil(1.25 * 301 / 3)
				t.Errorf("%s has %d of 300 in flight", host, n)
			}
		}
	})
}

func TestP2CFollowsTheLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var slow, fast atomic.Int64
		rt := outbound.New(world{
			"slow.test": counted(&slow, sleepy(100*time.Millisecond, 200)),
			"fast.test": counted(&fast, sleepy(10*time.Millisecond, 200)),
		}, outbound.Balance(newSet(t, urls("http://slow.test", "http://fast.test"))))
		var clients sync.WaitGroup
		for range 22 {
			clients.Go(func() {
				for range 100 {
					get(t, rt, "http://svc/")
				}
			})
		}
		clients.Wait()
		if ratio := float64(fast.Load()) / float64(slow.Load()); ratio < 8 || ratio > 12 {
			t.Errorf("the endpoint that is ten times faster got %.1f times the work", ratio)
		}
	})
}

func TestAddress(t *testing.T) {
	for _, tc := range []struct {
		endpoint, url, path, host string
		opts                      []outbound.SetOption
	}{
		{"http://a.test:8080", "http://svc/x?q=1", "/x", "svc", nil},
		{"https://A.test", "http://svc/x", "/x", "svc", nil},
		{"http://a.test/base/", "http://svc/x", "/base/x", "svc", nil},
		{"http://a.test/base", "http://svc", "/base/", "svc", nil},
		{"http://a.test/base", "http://svc/a%2Fb", "/base/a%2Fb", "svc", nil},
		{"http://a.test/", "http://svc/x//y/", "/x//y/", "svc", nil},
		{"http://a.test", "http://svc/x", "/x", "", []outbound.SetOption{outbound.WithEndpointHost()}},
	} {
		t.Run(tc.endpoint+" "+tc.url, func(t *testing.T) {
			var got *http.Request
			rt := outbound.New(catch{&got}, outbound.Balance(newSet(t, urls(tc.endpoint), tc.opts...)))
			do(rt, request(t.Context(), "GET", tc.url, nil))
			if got.URL.EscapedPath() != tc.path || got.Host != tc.host || !strings.HasPrefix(got.URL.Host, "a.test") ||
				got.URL.Scheme != tc.endpoint[:strings.Index(tc.endpoint, ":")] {
				t.Errorf("sent to %s with Host %q", got.URL, got.Host)
			}
		})
	}
}

// Names of interfaces are told apart by case.
func TestAddressKeepsTheZone(t *testing.T) {
	var got *http.Request
	rt := outbound.New(catch{&got}, outbound.Balance(newSet(t, urls("http://[FE80::A%25enP4p1s0]:8080"))))
	do(rt, request(t.Context(), "GET", "http://svc/", nil))
	if want := "[fe80::a%enP4p1s0]:8080"; got.URL.Host != want {
		t.Errorf("sent to %s, want %s", got.URL.Host, want)
	}
}

func TestHostStaysThroughARedirect(t *testing.T) {
	var hosts []string
	rt := outbound.New(world{"a.test": func(req *http.Request) (*http.Response, error) {
		hosts = append(hosts, req.Host)
		if req.URL.Path == "/old" {
			return answer(302, "Location", "/new")
		}
		return answer(200)
	}}, outbound.Balance(newSet(t, urls("http://a.test"))))
	resp, err := (&http.Client{Transport: rt}).Get("http://svc/old")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if !slices.Equal(hosts, []string{"svc", "svc"}) {
		t.Errorf("sent with the hosts %q", hosts)
	}
}

type catch struct{ into **http.Request }

func (c catch) RoundTrip(req *http.Request) (*http.Response, error) {
	*c.into = req
	return &http.Response{StatusCode: 200, Body: http.NoBody}, nil
}

func TestEndpointsThatAreNotValid(t *testing.T) {
	for _, tc := range []struct {
		name string
		list []outbound.Endpoint
		says string
	}{
		{"duplicate", urls("http://a.test", "http://b.test", "http://a.test"), "twice"},
		{"duplicate in other words", urls("http://a.test", "http://A.TEST/"), "twice"},
		{"duplicate with the scheme's own port", urls("http://a.test", "http://a.test:80/"), "twice"},
		{"duplicate with the scheme's own port, over TLS", urls("https://[::1]:443", "https://[::1]"), "twice"},
		{"duplicate with an empty port", urls("http://a.test", "http://a.test:"), "twice"},
		{"port that is none", urls("http://a.test:65536"), "port"},
		{"port zero", urls("http://a.test:0"), "port"},
		{"weight negative", []outbound.Endpoint{{URL: "http://a.test", Weight: -1}}, "weight -1"},
		{"tier negative", []outbound.Endpoint{{URL: "http://a.test", Tier: -1}}, "tier -1"},
		{"no scheme", urls("a.test:80"), "scheme"},
		{"other scheme", urls("ftp://a.test"), "scheme"},
		{"no host", urls("http:///x"), "no host"},
		{"user", urls("http://me:secret@a.test"), "only scheme"},
		{"user of no URL", urls("http://me:secret@a.test:port"), "only scheme"},
		{"user with a slash in the password", urls("http://me:1x/secret@a.test"), "only scheme"},
		{"user and no scheme", urls("me:secret@a.test"), "scheme"},
		{"user and another scheme", urls("redis://me:secret@a.test"), "scheme"},
		{"user and no host", urls("http://me:secret@:80"), "no host"},
		{"query", urls("http://a.test?x"), "only scheme"},
		{"no URL", urls("http://a b"), "endpoint"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := outbound.NewSet(tc.list); err == nil || !strings.HasPrefix(err.Error(), "outbound: ") || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("NewSet: %v", err)
			} else if strings.Contains(err.Error(), "secret") {
				t.Errorf("NewSet: the error holds a password: %v", err)
			}
			s := newSet(t, urls("http://kept.test"))
			if err := s.Update(tc.list); err == nil {
				t.Error("Update: no error")
			}
			if e := s.Stats().Endpoints; len(e) != 1 || e[0].URL != "http://kept.test" {
				t.Errorf("Update changed the list to %v", e)
			}
		})
	}
}

// The first endpoint may come much later, from a goroutine that nobody watches over.
func TestWrongEjectionPanicsWithoutEndpoints(t *testing.T) {
	defer func() {
		if s, _ := recover().(string); !strings.Contains(s, "WithProbes(0)") {
			t.Errorf("panic %q does not name the option", s)
		}
	}()
	outbound.NewSet(nil, outbound.WithEjection(breaker.WithProbes(0)))
}

func TestWeightZeroIsOne(t *testing.T) {
	s := newSet(t, urls("http://a.test"))
	if w := s.Stats().Endpoints[0].Weight; w != 1 {
		t.Errorf("weight %d", w)
	}
}

func TestEndpointListEmpty(t *testing.T) {
	set := newSet(t, nil)
	rt := outbound.New(world{"a.test": always(200)}, outbound.Balance(set), outbound.Retry())
	body := &closing{Reader: strings.NewReader("x")}
	_, err := do(rt, request(t.Context(), "POST", "http://svc/", body))
	if !errors.Is(err, outbound.ErrNoEndpoint) || !body.closed.Load() {
		t.Errorf("%v, body closed %v", err, body.closed.Load())
	}
	if n := rt.Stats().NoEndpoint; n != 1 {
		t.Errorf("%d counted: it was retried, or not at all", n)
	}
	if err := set.Update(urls("http://a.test")); err != nil {
		t.Fatal(err)
	}
	if status, err := get(t, rt, "http://svc/"); status != 200 {
		t.Errorf("after Update: %v", err)
	}
	if err := set.Update(nil); err != nil {
		t.Error(err)
	}
	if _, err := get(t, rt, "http://svc/"); !errors.Is(err, outbound.ErrNoEndpoint) {
		t.Errorf("emptied again: %v", err)
	}
}

func TestEjection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var bad, good atomic.Int64
		var broken atomic.Bool
		broken.Store(true)
		w := world{"good.test": counted(&good, always(200)), "bad.test": counted(&bad, func(*http.Request) (*http.Response, error) {
			if broken.Load() {
				return answer(503, "Retry-After", "1") // it would draw all requests
			}
			return answer(200)
		})}
		set := newSet(t, urls("http://good.test", "http://bad.test"), outbound.WithEjection(breaker.WithJitter(0)))
		rt := outbound.New(w, outbound.Balance(set))
		for range 1000 {
			get(t, rt, "http://svc/")
		}
		if bad.Load() != 5 {
			t.Errorf("the failing endpoint got %d requests before it was out, want 5", bad.Load())
		}
		s := set.Stats()
		if s.Panic || !s.Endpoints[1].Ejected || s.Endpoints[1].Failures != 5 || s.Endpoints[0].Ejected {
			t.Errorf("%+v", s)
		}
		broken.Store(false)
		time.Sleep(5 * time.Second) // in a synctest bubble
		for range 100 {
			get(t, rt, "http://svc/")
		}
		if n := bad.Load(); n < 8 || n > 40 {
			t.Errorf("after its open time it got %d requests, want three probes and the first of the ramp", n-5)
		}
		time.Sleep(10 * time.Second) // in a synctest bubble
		bad.Store(0)
		for range 1000 {
			get(t, rt, "http://svc/")
		}
		if n := bad.Load(); n < 400 {
			t.Errorf("after the ramp it got %d of 1,000", n)
		}
	})
}

// What would be ejected is seen in shadow, and gets as much as before.
func TestEjectionInShadow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var bad, good atomic.Int64
		w := world{"good.test": counted(&good, always(200)), "bad.test": counted(&bad, always(503))}
		set := newSet(t, urls("http://good.test", "http://bad.test"), outbound.WithEjection(breaker.WithShadow(true)))
		rt := outbound.New(w, outbound.Balance(set))
		for range 100 {
			for range 10 {
				get(t, rt, "http://svc/")
			}
			time.Sleep(time.Second) // in a synctest bubble
		}
		if bad.Load() < 400 || good.Load() < 400 {
			t.Errorf("the failing endpoint got %d of 1,000, and the other %d", bad.Load(), good.Load())
		}
		s := set.Stats()
		if e := s.Endpoints[1]; s.Panic || e.Ejected || e.Breaker.Openings == 0 || e.Breaker.Rejected == 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestAllEndpointsEjected(t *testing.T) {
	for _, tc := range []struct {
		name string
		opts []outbound.SetOption
		sent int64
	}{
		{"by default, ejection is suspended and the answer is theirs", nil, 100},
		{"with WithMaxEjected(1) the error is ErrNoEndpoint", []outbound.SetOption{outbound.WithMaxEjected(1)}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var calls atomic.Int64
				dead := counted(&calls, always(503))
				rt := outbound.New(world{"a.test": dead, "b.test": dead},
					outbound.Balance(newSet(t, urls("http://a.test", "http://b.test"), tc.opts...)))
				for range 20 {
					get(t, rt, "http://svc/")
				}
				calls.Store(0)
				for range 100 {
					status, err := get(t, rt, "http://svc/")
					if tc.sent > 0 && status != 503 || tc.sent == 0 && !errors.Is(err, outbound.ErrNoEndpoint) {
						t.Fatalf("%d %v", status, err)
					}
				}
				if calls.Load() != tc.sent {
					t.Errorf("%d sent, want %d", calls.Load(), tc.sent)
				}
			})
		})
	}
}

func TestMaxEjectedOfPartsThatFloatsDoNotHold(t *testing.T) {
	healthy := 0.8
	for _, tc := range []struct {
		part        float64
		of, ejected int
	}{
		{0.29, 100, 29}, {1 - healthy, 5, 1}, {1 - healthy, 4, 0}, {0.7, 90, 63}, {0.5, 3, 1}, {0.999, 10, 9},
	} {
		for bad := tc.ejected; bad <= tc.ejected+1; bad++ {
			t.Run(fmt.Sprintf("%d of %d fail where %v may be out", bad, tc.of, tc.part), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := world{}
					var list []outbound.Endpoint
					for i := range tc.of {
						host := fmt.Sprintf("%d.test", i)
						w[host] = always(200)
						if i < bad {
							w[host] = always(503)
						}
						list = append(list, outbound.Endpoint{URL: "http://" + host})
					}
					set := newSet(t, list, outbound.WithMaxEjected(tc.part), outbound.WithPolicy(outbound.RoundRobin))
					rt := outbound.New(w, outbound.Balance(set))
					for range 10 * tc.of {
						get(t, rt, "http://svc/")
					}
					if panicking := set.Stats().Panic; panicking != (bad > tc.ejected) {
						t.Errorf("ejection is suspended: %v", panicking)
					}
				})
			})
		}
	}
}

func TestNeverMoreThanHalfIsEjected(t *testing.T) {
	for bad := range 11 {
		t.Run(fmt.Sprintf("%d of 10 fail", bad), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var calls [10]atomic.Int64
				w := world{}
				var list []outbound.Endpoint
				for i := range 10 {
					status := 200
					if i < bad {
						status = 503
					}
					host := fmt.Sprintf("e%d.test", i)
					w[host] = counted(&calls[i], always(status))
					list = append(list, outbound.Endpoint{URL: "http://" + host})
				}
				set := newSet(t, list)
				rt := outbound.New(w, outbound.Balance(set))
				for range 2000 {
					get(t, rt, "http://svc/")
				}
				for i := range calls {
					calls[i].Store(0)
				}
				for range 2000 {
					get(t, rt, "http://svc/")
				}
				used := 0
				for i := range calls {
					if calls[i].Load() > 0 {
						used++
					}
				}
				want := 10 - bad
				if bad > 5 {
					want = 10
				}
				if used != want || set.Stats().Panic != (bad > 5) {
					t.Errorf("%d endpoints are used, want %d; panic %v", used, want, set.Stats().Panic)
				}
			})
		})
	}
}

func TestTiers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var broken atomic.Int64
		var near, far atomic.Int64
		w := world{}
		list := []outbound.Endpoint{}
		for i := range 4 {
			host := fmt.Sprintf("near%d.test", i)
			w[host] = counted(&near, func(*http.Request) (*http.Response, error) {
				if int64(i) < broken.Load() {
					return answer(503)
				}
				return answer(200)
			})
			list = append(list, outbound.Endpoint{URL: "http://" + host})
		}
		w["far.test"] = counted(&far, always(200))
		list = append(list, outbound.Endpoint{URL: "http://far.test", Tier: 1})
		rt := outbound.New(w, outbound.Balance(newSet(t, list)))
		for _, tc := range []struct {
			broken int64
			far    bool
		}{{0, false}, {2, false}, {3, true}, {4, true}} {
			broken.Store(tc.broken)
			for range 500 {
				get(t, rt, "http://svc/")
			}
			near.Store(0)
			far.Store(0)
			for range 100 {
				get(t, rt, "http://svc/")
			}
			if tc.far != (far.Load() == 100) || tc.far != (near.Load() == 0) {
				t.Errorf("%d of 4 broken: near got %d, far %d", tc.broken, near.Load(), far.Load())
			}
		}
	})
}

func TestRetryGoesToAnotherEndpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, bad := range map[string]func(*http.Request) (*http.Response, error){
			"503 that asks to wait": always(503, "Retry-After", "5"),
			"refused":               failing(refusedDial()),
			"name does not exist":   failing(notFoundDNS()),
		} {
			set := newSet(t, urls("http://bad.test", "http://good.test"))
			rt := outbound.New(world{"good.test": always(200), "bad.test": bad}, outbound.Balance(set), outbound.Retry())
			began := time.Now()
			for range 100 {
				if status, err := get(t, rt, "http://svc/"); status != 200 {
					t.Fatalf("%s: %d %v", name, status, err)
				}
			}
			if d := time.Since(began); d > 300*time.Millisecond {
				t.Errorf("%s: waited %v though another endpoint was there", name, d)
			}
		}
	})
}

// After an outage all endpoints are on the ramp, and most tries are let in by none of them.
func TestRetryGoesToAnotherEndpointOnTheRamp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := newSet(t, urls("http://bad.test", "http://good.test"), outbound.WithMaxEjected(1), outbound.WithEjection(breaker.WithJitter(0)))
		good, bad := always(503), always(503)
		rt := outbound.New(world{
			"good.test": func(r *http.Request) (*http.Response, error) { return good(r) },
			"bad.test":  func(r *http.Request) (*http.Response, error) { return bad(r) },
		}, outbound.Balance(set), outbound.Retry(outbound.WithRetryBudget(1)))
		for range 50 {
			get(t, rt, "http://svc/")
		}
		good, bad = always(200), always(200)
		time.Sleep(6 * time.Second) // in a synctest bubble
		for range 50 {
			get(t, rt, "http://svc/")
		}
		for _, e := range set.Stats().Endpoints {
			if e.Breaker.State != breaker.Closed || e.Breaker.Ramp > 0.5 {
				t.Fatalf("%s is not on the ramp: %+v", e.URL, e.Breaker)
			}
		}
		bad = always(503, "Retry-After", "5")
		began := time.Now()
		for range 30 {
			if status, err := get(t, rt, "http://svc/"); status != 200 {
				t.Errorf("%d %v", status, err)
			}
		}
		if d := time.Since(began); d > 30*50*time.Millisecond {
			t.Errorf("waited %v though another endpoint was there", d)
		}
	})
}

// A base that asks another service for a token, with the context of the request, is no try of the request.
func TestRetryIsNotMisledByARequestFurtherIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tokens := outbound.New(world{"tokens.test": always(200)}, outbound.Balance(newSet(t, urls("http://tokens.test"))), outbound.Retry())
		var a, b atomic.Int64
		hosts := world{"a.test": counted(&a, always(503, "Retry-After", "5")), "b.test": counted(&b, always(200))}
		rt := outbound.New(withToken{tokens, hosts}, outbound.Retry(), outbound.Balance(newSet(t, urls("http://a.test", "http://b.test"))))
		began := time.Now()
		for b.Load() == 0 || a.Load() == 0 {
			if status, err := get(t, rt, "http://svc/"); status != 200 {
				t.Fatal(status, err)
			}
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("%v until the endpoint that had no try was asked", took)
		}
	})
}

// withToken asks tokens before each request.
type withToken struct{ tokens, next http.RoundTripper }

func (w withToken) RoundTrip(req *http.Request) (*http.Response, error) {
	if _, err := do(w.tokens, request(req.Context(), "GET", "http://tokens/", nil)); err != nil {
		return nil, err
	}
	return w.next.RoundTrip(req)
}

func TestRetryThreeEndpointsOneTryEach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls [3]atomic.Int64
		w := world{}
		for i, host := range []string{"a.test", "b.test", "c.test"} {
			w[host] = counted(&calls[i], always(502))
		}
		rt := outbound.New(w, outbound.Balance(newSet(t, three(1, 1, 1))), outbound.Retry(outbound.WithTries(3)))
		get(t, rt, "http://svc/")
		for i := range calls {
			if calls[i].Load() != 1 {
				t.Errorf("endpoint %d got %d tries", i, calls[i].Load())
			}
		}
	})
}

func TestUpdate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &spread{}
		set := newSet(t, urls("http://a.test", "http://b.test"))
		rt := outbound.New(s, outbound.Balance(set))
		held, err := outbound.New(world{"a.test": always(200), "b.test": always(200)}, outbound.Balance(set)).
			RoundTrip(request(t.Context(), "GET", "http://svc/", nil))
		if err != nil {
			t.Fatal(err)
		}
		for range 100 {
			get(t, rt, "http://svc/")
		}
		requests := set.Stats().Endpoints[0].Requests
		if err := set.Update([]outbound.Endpoint{{URL: "http://a.test", Weight: 7}, {URL: "http://c.test"}}); err != nil {
			t.Fatal(err)
		}
		e := set.Stats().Endpoints
		if e[0].Requests != requests || e[0].Weight != 7 || e[0].Share != 1 {
			t.Errorf("the one that stayed: %+v", e[0])
		}
		if e[1].Share != 0.1 {
			t.Errorf("the new one starts with a share of %v", e[1].Share)
		}
		time.Sleep(5 * time.Second) // in a synctest bubble
		if share := set.Stats().Endpoints[1].Share; math.Abs(share-0.5) > 0.01 {
			t.Errorf("half way through its slow start: %v", share)
		}
		s.got = nil
		for range 100 {
			get(t, rt, "http://svc/")
		}
		if s.got["b.test"] != 0 {
			t.Errorf("the removed one got %d", s.got["b.test"])
		}
		io.ReadAll(held.Body)
		held.Body.Close()
	})
}

func TestSlowStartShare(t *testing.T) {
	for _, opts := range [][]outbound.SetOption{
		nil,
		{outbound.WithPolicy(outbound.RoundRobin)},
		{outbound.WithPolicy(outbound.Random)},
		{outbound.WithHash(func(r *http.Request) string { return r.URL.Path })},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := &spread{}
			set := newSet(t, urls("http://a.test"), opts...)
			rt := outbound.New(s, outbound.Balance(set))
			set.Update(urls("http://a.test", "http://new.test"))
			last := -1
			for range 11 {
				s.got = map[string]int{}
				for i := range 1000 {
					get(t, rt, fmt.Sprintf("http://svc/%d", i))
				}
				if got := s.got["new.test"]; got < last-60 || last < 0 && got > 200 {
					t.Errorf("share went from %d to %d of 1,000", last, got)
				} else {
					last = got
				}
				time.Sleep(time.Second) // in a synctest bubble
			}
			if last < 420 || last > 580 {
				t.Errorf("in the end %d of 1,000", last)
			}
		})
	}
}

// An endpoint that comes back has next to nothing in flight, which must not draw more to it than its share.
func TestShareGrowsAsItShouldUnderLoad(t *testing.T) {
	list := urls("http://a.test", "http://b.test", "http://c.test", "http://back.test")
	for name, comesBack := range map[string]func(set *outbound.Set, broken *atomic.Bool){
		"after an ejection": func(set *outbound.Set, broken *atomic.Bool) {
			broken.Store(true)
			time.Sleep(time.Second) // in a synctest bubble
			broken.Store(false)
			for set.Stats().Endpoints[3].Breaker.State != breaker.Closed {
				time.Sleep(time.Millisecond) // in a synctest bubble
			}
		},
		"new": func(set *outbound.Set, _ *atomic.Bool) {
			set.Update(list[:3])
			set.Update(list)
		},
	} {
		for _, policy := range []outbound.Policy{outbound.P2C, outbound.RoundRobin, outbound.Random} {
			t.Run(name+", "+policy.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var all, back atomic.Int64
					var broken, over atomic.Bool
					works := func(*http.Request) (*http.Response, error) {
						all.Add(1)
						time.Sleep(10 * time.Millisecond) // in a synctest bubble
						return answer(200)
					}
					w := world{"a.test": works, "b.test": works, "c.test": works, "back.test": counted(&back, func(r *http.Request) (*http.Response, error) {
						if broken.Load() {
							return answer(503)
						}
						return works(r)
					})}
					set := newSet(t, list, outbound.WithPolicy(policy), outbound.WithEjection(breaker.WithJitter(0)))
					rt := outbound.New(w, outbound.Balance(set))
					var clients sync.WaitGroup
					for range 40 {
						clients.Go(func() {
							for !over.Load() {
								get(t, rt, "http://svc/")
							}
						})
					}
					time.Sleep(2 * time.Second) // in a synctest bubble
					comesBack(set, &broken)
					for second := range 11 {
						all.Store(0)
						back.Store(0)
						time.Sleep(time.Second) // in a synctest bubble
						due := min(1, max(0.1, float64(second)/10+0.05))
						most := 4 * due / (3 + due) // of four that do the same work
						if share := 4 * float64(back.Load()) / float64(all.Load()); share > most+0.15 || share < due-0.3 {
							t.Errorf("in second %d its share is %.2f, want %.2f to %.2f", second, share, due, most)
						}
					}
					over.Store(true)
					clients.Wait()
				})
			})
		}
	}
}

func TestProbeFallAndRise(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var up atomic.Bool
		var probes, calls atomic.Int64
		up.Store(true)
		w := world{"a.test": counted(&calls, always(200)), "b.test": always(200)}
		probe := outbound.Probe{Path: "/readyz", Transport: world{
			"b.test": always(200),
			"a.test": counted(&probes, func(req *http.Request) (*http.Response, error) {
				if req.URL.Path != "/readyz" {
					t.Errorf("probe of %s", req.URL)
				}
				if up.Load() {
					return answer(200)
				}
				return answer(503)
			})}}
		set := newSet(t, urls("http://a.test", "http://b.test"), outbound.WithProbe(probe))
		rt := outbound.New(w, outbound.Balance(set))
		down := func() bool { return set.Stats().Endpoints[0].Down }

		time.Sleep(95 * time.Second) // in a synctest bubble
		if n := probes.Load(); n < 8 || n > 13 {
			t.Errorf("%d probes in 95 s, want one in 8 to 12 s", n)
		}
		up.Store(false)
		time.Sleep(15 * time.Second) // in a synctest bubble
		if down() {
			t.Error("down after one or two failures; three are wanted")
		}
		time.Sleep(25 * time.Second) // in a synctest bubble
		if !down() {
			t.Error("not down after three failures")
		}
		before := calls.Load()
		for range 50 {
			get(t, rt, "http://svc/")
		}
		if calls.Load() != before {
			t.Errorf("%d requests to an endpoint that is down", calls.Load()-before)
		}
		up.Store(true)
		time.Sleep(26 * time.Second) // in a synctest bubble
		if down() {
			t.Error("still down after two successes")
		}
		if share := set.Stats().Endpoints[0].Share; share == 1 && !down() {
			// It rose at most 18 s ago if the probes were quick, at least 2 s ago otherwise.
			t.Logf("slow start is over already")
		}
		set.Close()
		n := probes.Load()
		time.Sleep(time.Minute) // in a synctest bubble
		if probes.Load() != n {
			t.Error("probes after Close")
		}
	})
}

// Probes need a connection each, and requests have theirs: where this process can open no more, the endpoints are as they were.
func TestProbeThatCannotBeSentSaysNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var scarce, up atomic.Bool
		up.Store(true)
		set := newSet(t, urls("http://a.test"), outbound.WithProbe(outbound.Probe{Path: "/", Transport: world{
			"a.test": func(*http.Request) (*http.Response, error) {
				switch {
				case scarce.Load():
					return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("socket", syscall.EMFILE)}
				case !up.Load():
					return nil, refusedDial()
				}
				return answer(200)
			}}}))
		for _, tc := range []struct{ scarce, up, down bool }{
			{false, true, false}, {true, true, false}, {false, false, true}, {true, true, true}, {false, true, false},
		} {
			scarce.Store(tc.scarce)
			up.Store(tc.up)
			time.Sleep(time.Minute) // in a synctest bubble
			if down := set.Stats().Endpoints[0].Down; down != tc.down {
				t.Errorf("%+v: down %v", tc, down)
			}
		}
	})
}

func TestProbePath(t *testing.T) {
	for _, tc := range []struct{ endpoint, path, want string }{
		{"http://a.test", "/readyz", "http://a.test/readyz"},
		{"http://a.test/base/", "/readyz", "http://a.test/base/readyz"},
		{"http://a.test/base", "/health?full=1&db", "http://a.test/base/health?full=1&db"},
		{"http://a.test/b%2Fc", "/a%20b%2Fc", "http://a.test/b%2Fc/a%20b%2Fc"},
	} {
		t.Run(tc.endpoint+tc.path, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var got atomic.Value
				set := newSet(t, urls(tc.endpoint), outbound.WithProbe(outbound.Probe{Path: tc.path,
					Transport: roundTrip(func(req *http.Request) (*http.Response, error) {
						got.Store(req.URL.String())
						return answer(200)
					})}))
				synctest.Wait()
				set.Close()
				if got.Load() != tc.want {
					t.Errorf("asked for %v, want %s", got.Load(), tc.want)
				}
			})
		})
	}
}

func TestProbeOfARemovedEndpointStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a, b atomic.Int64
		set := newSet(t, urls("http://a.test"), outbound.WithProbe(outbound.Probe{
			Path: "/", Transport: world{"a.test": counted(&a, always(200)), "b.test": counted(&b, always(200))}}))
		time.Sleep(time.Minute) // in a synctest bubble
		set.Update(urls("http://b.test"))
		synctest.Wait()
		n := a.Load()
		time.Sleep(time.Minute) // in a synctest bubble
		if a.Load() != n || b.Load() < 4 {
			t.Errorf("removed: %d more probes; added: %d", a.Load()-n, b.Load())
		}
	})
}

func TestLongestTimesOfASet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 20
		var names []string
		probed := world{}
		var probes [n]atomic.Int64
		for i := range n {
			name := fmt.Sprintf("%d.test", i)
			names = append(names, "http://"+name)
			probed[name] = counted(&probes[i], always(200))
		}
		set := newSet(t, urls("http://0.test"), outbound.WithSlowStart(math.MaxInt64),
			outbound.WithProbe(outbound.Probe{Path: "/", Interval: math.MaxInt64, Transport: probed}))
		time.Sleep(time.Hour) // in a synctest bubble
		set.Update(urls(names...))
		time.Sleep(time.Hour) // in a synctest bubble
		for i, e := range set.Stats().Endpoints {
			if probes[i].Load() != 1 {
				t.Errorf("%s: %d probes at the longest interval, want the first", e.URL, probes[i].Load())
			}
			if i > 0 && e.Share > 0.11 {
				t.Errorf("%s: a share of %v after an hour of the longest slow start", e.URL, e.Share)
			}
		}
	})
}

func TestProbeTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := newSet(t, urls("http://a.test", "http://b.test"), outbound.WithProbe(outbound.Probe{
			Path: "/", Fall: 1, Transport: world{"a.test": sleepy(time.Hour, 200), "b.test": always(200)}}))
		time.Sleep(2100 * time.Millisecond) // in a synctest bubble
		if !set.Stats().Endpoints[0].Down {
			t.Error("an endpoint that does not answer probes is up")
		}
	})
}

func TestSetUnderChangeAndLoad(t *testing.T) {
	// For the race detector: everything at once.
	synctest.Test(t, func(t *testing.T) {
		w := world{}
		for _, h := range []string{"a.test", "b.test", "c.test", "d.test"} {
			w[h] = sleepy(time.Millisecond, 200)
		}
		w["d.test"] = sleepy(time.Millisecond, 503)
		for _, opt := range []outbound.SetOption{
			outbound.WithPolicy(outbound.P2C), outbound.WithPolicy(outbound.RoundRobin), outbound.WithPolicy(outbound.Random),
			outbound.WithHash(func(r *http.Request) string { return r.URL.Path }),
		} {
			set := newSet(t, urls("http://a.test"), opt, outbound.WithProbe(outbound.Probe{Path: "/", Transport: w, Interval: 5 * time.Millisecond}))
			rt := outbound.New(w, outbound.Balance(set), outbound.Retry(), outbound.Hedge(outbound.WithHedgeAfter(time.Millisecond/2)), outbound.Timeout(time.Second))
			var all sync.WaitGroup
			for range 8 {
				all.Go(func() {
					for i := range 100 {
						get(t, rt, fmt.Sprintf("http://svc/%d", i))
					}
				})
			}
			all.Go(func() {
				for i := range 50 {
					list := urls("http://a.test", "http://b.test", "http://c.test", "http://d.test")
					set.Update(list[:1+i%4])
					set.Stats()
					time.Sleep(2 * time.Millisecond) // in a synctest bubble
				}
			})
			all.Wait()
			set.Close()
			synctest.Wait() // for hedges that lost, which end by themselves
			for _, e := range set.Stats().Endpoints {
				if e.InFlight != 0 {
					t.Errorf("%s: %d in flight", e.URL, e.InFlight)
				}
			}
		}
	})
}

func TestOfPolicyAndHashTheLastCounts(t *testing.T) {
	hash := outbound.WithHash(func(*http.Request) string { return "same" })
	turns := outbound.WithPolicy(outbound.RoundRobin)
	for _, c := range []struct {
		name string
		opts []outbound.SetOption
		used int
	}{{"policy last", []outbound.SetOption{hash, turns}, 2}, {"hash last", []outbound.SetOption{turns, hash}, 1}} {
		set, err := outbound.NewSet([]outbound.Endpoint{{URL: "http://a"}, {URL: "http://b"}}, c.opts...)
		if err != nil {
			t.Fatal(err)
		}
		tr := outbound.New(world{"a": always(200), "b": always(200)}, outbound.Balance(set))
		for range 10 {
			res, err := tr.RoundTrip(request(t.Context(), "GET", "http://x/", nil))
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
		}
		used := 0
		for _, e := range set.Stats().Endpoints {
			if e.Requests > 0 {
				used++
			}
		}
		if used != c.used {
			t.Errorf("%s: %d of 2 endpoints were used, want %d", c.name, used, c.used)
		}
	}
}

func TestTierIsBounded(t *testing.T) {
	for tier, ok := range map[int]bool{-1: false, 1000: true, 1001: false} {
		if _, err := outbound.NewSet([]outbound.Endpoint{{URL: "http://a", Tier: tier}}); (err == nil) != ok {
			t.Errorf("tier %d: %v", tier, err)
		}
	}
}

// A probe may end at any time, and whoever was refused while it was under way asks again soon.
func TestAnEndpointIsBackSoonAfterItsProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := newSet(t, urls("http://a.test", "http://b.test"),
			outbound.WithEjection(breaker.WithConsecutiveFailures(1), breaker.WithProbes(1), breaker.WithJitter(0), breaker.WithRamp(0), breaker.WithLease(time.Hour)), outbound.WithSlowStart(0), outbound.WithPolicy(outbound.RoundRobin))
		var broken atomic.Bool
		broken.Store(true)
		var calls atomic.Int64
		rt := outbound.New(world{"b.test": always(200), "a.test": counted(&calls, func(req *http.Request) (*http.Response, error) {
			if broken.Load() {
				return answer(503)
			}
			return sleepy(time.Second, 200)(req)
		})}, outbound.Balance(set))
		for calls.Load() == 0 {
			get(t, rt, "http://svc/")
		}
		broken.Store(false)
		time.Sleep(5 * time.Second) // in a synctest bubble
		for calls.Load() == 1 {     // until the probe is out
			go get(t, rt, "http://svc/")
			synctest.Wait()
		}
		for range 100 {
			get(t, rt, "http://svc/") // some of them are refused by a
		}
		time.Sleep(1100 * time.Millisecond) // in a synctest bubble
		before := calls.Load()
		for range 50 {
			go get(t, rt, "http://svc/")
		}
		synctest.Wait()
		if calls.Load() == before {
			t.Error("a tenth of a second after its probe the endpoint gets nothing")
		}
		time.Sleep(time.Minute) // in a synctest bubble
	})
}

// Only probes in a row count: what comes between begins the row anew.
func TestProbesCountInARow(t *testing.T) {
	for _, c := range []struct {
		name    string
		results string // of the probes, the last for good
		down    bool
	}{
		{"enough fail", "+---", true},
		{"a success between", "--+--+", false},
		{"one success is not enough", "---+-", true},
		{"two are", "----++", false},
		{"two with a failure between are not", "----+-+-", true},
		{"and then it takes as many failures again", "---++--", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := 0
				set := newSet(t, urls("http://a.test"), outbound.WithProbe(outbound.Probe{Path: "/", Fall: 3, Rise: 2, Interval: time.Second,
					Transport: roundTrip(func(req *http.Request) (*http.Response, error) {
						if n == len(c.results) { // no more results
							<-req.Context().Done()
							return nil, req.Context().Err()
						}
						n++
						return answer(map[byte]int{'+': 200, '-': 500}[c.results[n-1]])
					}), Timeout: time.Hour}))
				time.Sleep(time.Minute) // in a synctest bubble
				synctest.Wait()
				if got := set.Stats().Endpoints[0].Down; n != len(c.results) || got != c.down {
					t.Errorf("down after %d of %s: %v, want %v", n, c.results, got, c.down)
				}
				set.Close()
			})
		})
	}
}

func TestTiersAreInOrder(t *testing.T) {
	for range 20 { // a map would have them in any
		var first, second atomic.Int64
		set := newSet(t, []outbound.Endpoint{{URL: "http://b.test", Tier: 7}, {URL: "http://a.test"}, {URL: "http://c.test", Tier: 9}})
		rt := outbound.New(world{"a.test": counted(&first, always(200)), "b.test": counted(&second, always(200)), "c.test": counted(&second, always(200))}, outbound.Balance(set))
		if get(t, rt, "http://svc/"); first.Load() != 1 || second.Load() != 0 {
			t.Fatalf("%d to the first tier, %d to others", first.Load(), second.Load())
		}
	}
}

func TestStatsOfAnEndpointInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := newSet(t, urls("http://a.test"))
		rt := outbound.New(world{"a.test": sleepy(time.Second, 200)}, outbound.Balance(set))
		ctx, cancel := context.WithCancel(t.Context())
		for range 3 {
			go do(rt, request(ctx, "GET", "http://svc/", nil))
		}
		synctest.Wait()
		if n := set.Stats().Endpoints[0].InFlight; n != 3 {
			t.Errorf("%d in flight, want 3", n)
		}
		cancel()
		synctest.Wait()
		if n := set.Stats().Endpoints[0].InFlight; n != 0 {
			t.Errorf("%d in flight when all have left", n)
		}
	})
}

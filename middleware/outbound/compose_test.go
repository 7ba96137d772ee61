package outbound_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware/outbound"
)

func TestMisusePanicsWithARemedy(t *testing.T) {
	set := newSet(t, nil)
	for name, f := range map[string]func(){
		"two of a kind":       func() { outbound.New(nil, outbound.Retry(), outbound.Retry()) },
		"Balance and Breaker": func() { outbound.New(nil, outbound.Balance(set), outbound.Breaker(nil)) },
		"zero Layer":          func() { outbound.New(nil, outbound.Layer{}) },
		"Balance nil":         func() { outbound.Balance(nil) },
		"Timeout 0":           func() { outbound.Timeout(0) },
		"stall":               func() { outbound.WithStall(-1) },
		"tries":               func() { outbound.WithTries(0) },
		"tries above":         func() { outbound.WithTries(11) },
		"budget":              func() { outbound.WithRetryBudget(-0.1) },
		"backoff":             func() { outbound.WithBackoff(2, 1) },
		"max retry after":     func() { outbound.WithMaxRetryAfter(-1) },
		"replay":              func() { outbound.WithReplayBuffer(-1) },
		"retry if":            func() { outbound.WithRetryIf(nil) },
		"hedge after":         func() { outbound.WithHedgeAfter(0) },
		"limit by nothing":    func() { outbound.Limit() },
		"rate":                func() { outbound.WithRate(nil) },
		"concurrency":         func() { outbound.WithConcurrency(nil) },
		"key":                 func() { outbound.WithKey(nil) },
		"outcome":             func() { outbound.WithOutcome(nil) },
		"policy":              func() { outbound.WithPolicy(99) },
		"hash":                func() { outbound.WithHash(nil) },
		"max ejected":         func() { outbound.WithMaxEjected(1.5) },
		"slow start":          func() { outbound.WithSlowStart(-1) },
		"probe path":          func() { outbound.WithProbe(outbound.Probe{Path: "readyz"}) },
		"probe path escaped":  func() { outbound.WithProbe(outbound.Probe{Path: "/100%"}) },
		"nil timeout option":  func() { outbound.Timeout(1, nil) },
		"nil limit option":    func() { outbound.Limit(nil) },
		"nil hedge option":    func() { outbound.Hedge(nil) },
		"nil retry option":    func() { outbound.Retry(outbound.WithTries(3), nil) },
		"nil breaker option":  func() { outbound.Breaker(nil, nil) },
		"nil set option":      func() { outbound.NewSet(nil, nil) },
		"nil ejection option": func() { outbound.WithEjection(nil) },
		"clients":             func() { outbound.Breaker(breaker.NewGroup(breaker.WithMinClients(2))) },
		"clients of a set":    func() { outbound.NewSet(nil, outbound.WithEjection(breaker.WithMinClients(2))) },
		"probe interval":      func() { outbound.WithProbe(outbound.Probe{Path: "/", Interval: -1}) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if s, _ := recover().(string); !strings.HasPrefix(s, "outbound: ") {
					t.Errorf("panic %q does not name the package", s)
				}
			}()
			f()
		})
	}
}

func TestPolicyNames(t *testing.T) {
	if s := fmt.Sprint(outbound.P2C, outbound.RoundRobin, outbound.Random, outbound.Policy(-1), outbound.Policy(99)); s != "P2C RoundRobin Random Policy(-1) Policy(99)" {
		t.Error(s)
	}
}

func TestWrongProbeSaysWhatWasGiven(t *testing.T) {
	for given, p := range map[string]outbound.Probe{
		"-3ns": {Path: "/", Interval: -3},
		"-5ns": {Path: "/", Timeout: -5},
		"-7":   {Path: "/", Fall: -7},
		"-9":   {Path: "/", Rise: -9},
	} {
		func() {
			defer func() {
				if s, _ := recover().(string); !strings.Contains(s, given) {
					t.Errorf("panic %q; want it to say %s", s, given)
				}
			}()
			outbound.WithProbe(p)
		}()
	}
}

// The order is that of the package comment, whatever order the layers come in:
// a limit that is reached, inside retry and outside breaker, shows it.
func TestOrderOfLayers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for turn := range 5 {
			layers := []outbound.Layer{
				outbound.Timeout(time.Second), outbound.Retry(outbound.WithBackoff(0, 0)), outbound.Breaker(group()),
				outbound.Limit(outbound.WithConcurrency(func() *limiter.Concurrency { return limiter.NewConcurrency(1) })), outbound.Hedge(),
			}
			rt := outbound.New(world{"a.test": always(503)}, slices.Concat(layers[turn:], layers[:turn])...)
			if status, err := get(t, rt, "http://a.test/"); status != 503 || err != nil {
				t.Errorf("turned by %d: %d %v", turn, status, err)
			}
			if s := rt.Stats(); s.Retries != 1 || s.Limited != 0 {
				t.Errorf("turned by %d: a retry must find the permit of its first try given back: %+v", turn, s)
			}
		}
	})
}

func TestStandardMethods(t *testing.T) {
	c := &closer{}
	rt := outbound.New(c)
	(&http.Client{Transport: rt}).CloseIdleConnections()
	if !c.closed {
		t.Error("CloseIdleConnections did not reach the base transport")
	}
	if outbound.New(nil) == nil || outbound.Retry().RoundTripper(stub{}) == nil {
		t.Error("nil")
	}
}

// As http.Transport does: an error, and no panic in whatever layer looks at it first.
func TestRequestWithoutURLOrHeaderIsAnError(t *testing.T) {
	asked := 0
	base := roundTrip(func(*http.Request) (*http.Response, error) { asked++; return nil, errors.New("asked") })
	for name, req := range map[string]*http.Request{
		"no URL":    {Header: http.Header{}},
		"no Header": {URL: &url.URL{Scheme: "http", Host: "service.test"}},
		"neither":   {},
	} {
		for layers, tr := range map[string]*outbound.Transport{
			"defaults": outbound.New(base),
			"timeout":  outbound.New(base, outbound.Timeout(time.Second)),
			"balance":  outbound.New(base, outbound.Balance(newSet(t, three(1, 1, 1)))),
		} {
			body := &closing{Reader: http.NoBody}
			r := req.Clone(t.Context())
			r.URL, r.Header, r.Body = req.URL, req.Header, body
			if _, err := tr.RoundTrip(r); err == nil || !strings.Contains(err.Error(), "no URL or no Header") {
				t.Errorf("%s, layers %s: error %v; want one that says so", name, layers, err)
			}
			if !body.closed.Load() {
				t.Errorf("%s, layers %s: the body was not closed", name, layers)
			}
		}
	}
	if asked > 0 {
		t.Errorf("the base was asked %d times", asked)
	}
}

type closer struct {
	stub
	closed bool
}

func (c *closer) CloseIdleConnections() { c.closed = true }

func TestErrorTexts(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want string
	}{
		{&outbound.TimeoutError{Host: "a.test", After: time.Second}, "outbound: no response of a.test within 1s"},
		{&outbound.TimeoutError{Host: "a.test", After: time.Second, Stalled: true}, "outbound: response of a.test stalled for 1s"},
		{outbound.ErrNoEndpoint, "outbound: no endpoint"},
	} {
		if got := fmt.Sprint(tc.err); got != tc.want {
			t.Errorf("%q, want %q", got, tc.want)
		}
	}
}

// ReverseProxy.ModifyResponse, and whoever asks where redirects led to, find in a response the request
// that they know, with a context that outlives it.
func TestResponseHasTheCallersRequest(t *testing.T) {
	for name, layers := range map[string][]outbound.Layer{
		"retry, hedge, balance, timeout": {outbound.Retry(), outbound.Hedge(outbound.WithHedgeAfter(time.Minute)),
			outbound.Balance(newSet(t, urls("http://a.test:8080/base"))), outbound.Timeout(time.Minute)},
		"breaker": {outbound.Breaker(nil)},
	} {
		t.Run(name, func(t *testing.T) {
			rt := outbound.New(roundTrip(func(req *http.Request) (*http.Response, error) {
				return &http.Response{StatusCode: 204, Body: http.NoBody, Request: req}, nil
			}), layers...)
			req := request(t.Context(), "GET", "http://svc/x", nil)
			resp, err := rt.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			if resp.Request != req || resp.Request.Context().Err() != nil {
				t.Errorf("%s, whose context says %v", resp.Request.URL, resp.Request.Context().Err())
			}
		})
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func TestDefaultsRetryAndBreak(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int64
		rt := outbound.New(world{"a.test": counted(&calls, always(503))})
		if get(t, rt, "http://a.test/"); calls.Load() != 2 {
			t.Errorf("%d tries, want 2", calls.Load())
		}
		for range 30 {
			get(t, rt, "http://a.test/")
		}
		if _, err := get(t, rt, "http://a.test/"); !errors.Is(err, breaker.ErrOpen) {
			t.Errorf("after 30 failures: %v", err)
		}
	})
}

// One key for all hosts: what the layer keeps for each host it keeps once.
func TestKeyOfEachLayer(t *testing.T) {
	key := outbound.WithKey(func(*http.Request) string { return "all" })
	one := func() *limiter.Concurrency { return limiter.NewConcurrency(1, limiter.WithQueue(0, 0)) }
	hedge := outbound.WithHedgeAfter(time.Millisecond)
	for _, c := range []struct {
		name   string
		of     func(outbound.Stats) uint64
		layers func(k ...outbound.KeyOption) []outbound.Layer
		each   uint64 // of 20 requests to each of two hosts, with a key for each
		all    uint64 // with one for both
	}{
		{"Limit", func(s outbound.Stats) uint64 { return s.Limited }, func(k ...outbound.KeyOption) []outbound.Layer {
			return []outbound.Layer{outbound.Limit(append(options[outbound.LimitOption](k), outbound.WithConcurrency(one))...)}
		}, 0, 20},
		{"Retry", func(s outbound.Stats) uint64 { return s.Retries }, func(k ...outbound.KeyOption) []outbound.Layer {
			return []outbound.Layer{outbound.Retry(append(options[outbound.RetryOption](k), outbound.WithBackoff(0, 0), outbound.WithRetryBudget(0))...)}
		}, 20, 10},
		{"Hedge", func(s outbound.Stats) uint64 { return s.Hedges }, func(k ...outbound.KeyOption) []outbound.Layer {
			return []outbound.Layer{outbound.Hedge(append(options[outbound.HedgeOption](k), hedge)...)}
		}, 24, 14},
	} {
		for name, want := range map[string]uint64{"each": c.each, "all": c.all, "zero option": c.each} {
			t.Run(c.name+", "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var k []outbound.KeyOption
					switch name {
					case "all":
						k = append(k, key)
					case "zero option":
						k = append(k, outbound.KeyOption{})
					}
					slow := sleepy(10*time.Millisecond, 503)
					rt := outbound.New(world{"a.test": slow, "b.test": slow}, c.layers(k...)...)
					for range 20 {
						done := make(chan bool)
						go func() { get(t, rt, "http://a.test/"); done <- true }()
						synctest.Wait()
						get(t, rt, "http://b.test/")
						<-done
					}
					if got := c.of(rt.Stats()); got != want {
						t.Errorf("%d, want %d: %+v", got, want, rt.Stats())
					}
				})
			})
		}
	}
}

// options returns keys as options of one layer.
func options[T any](keys []outbound.KeyOption) []T {
	var out []T
	for _, k := range keys {
		out = append(out, any(k).(T))
	}
	return out
}

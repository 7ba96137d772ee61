package outbound_test

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware/outbound"
)

// stub is the bare transport: it makes what no transport can do without, a
// response with its header.
type stub struct{}

func (stub) RoundTrip(*http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: 200, Header: http.Header{"Content-Length": zero}, Body: http.NoBody}, nil
}

var zero = []string{"0"}

// stubWithBody has a body too, which layers watch.
type stubWithBody struct{}

func (stubWithBody) RoundTrip(*http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: 200, Header: http.Header{"Content-Length": zero}, Body: &stubBody{}}, nil
}

type stubBody struct{ _ [16]byte }

func (*stubBody) Read([]byte) (int, error) { return 0, http.ErrBodyReadAfterClose }
func (*stubBody) Close() error             { return nil }

func endpoints(n int) []outbound.Endpoint {
	var list []outbound.Endpoint
	for i := range n {
		list = append(list, outbound.Endpoint{URL: fmt.Sprintf("http://e%d.test", i)})
	}
	return list
}

func BenchmarkRoundTrip(b *testing.B) {
	set := newSet(b, endpoints(8))
	for _, bm := range []struct {
		name string
		rt   http.RoundTripper
	}{
		{"layers=none", stub{}},
		{"layers=breaker", outbound.New(stub{}, outbound.Breaker(nil))},
		{"body/layers=none", stubWithBody{}},
		{"body/layers=breaker", outbound.New(stubWithBody{}, outbound.Breaker(nil))},
		{"body/layers=balance", outbound.New(stubWithBody{}, outbound.Balance(set))},
		{"layers=timeout", outbound.New(stub{}, outbound.Timeout(time.Second))},
		{"layers=retry", outbound.New(stub{}, outbound.Retry())},
		{"layers=hedge", outbound.New(stub{}, outbound.Hedge(outbound.WithHedgeAfter(time.Second)))},
		{"layers=limit", outbound.New(stub{}, outbound.Limit(
			outbound.WithRate(limiter.NewRate(rate.Inf, 1)),
			outbound.WithConcurrency(func() *limiter.Concurrency { return limiter.NewConcurrency(100) })))},
		{"layers=balance", outbound.New(stub{}, outbound.Balance(set))},
		{"layers=defaults", outbound.New(stub{})},
		{"layers=retry,balance,timeout", outbound.New(stub{}, outbound.Retry(), outbound.Balance(set), outbound.Timeout(time.Second))},
	} {
		b.Run(bm.name, func(b *testing.B) {
			req := request(b.Context(), "GET", "http://svc.test/path", nil)
			b.ReportAllocs()
			for b.Loop() {
				resp, err := bm.rt.RoundTrip(req)
				if err != nil {
					b.Fatal(err)
				}
				resp.Body.Close()
			}
		})
	}
}

func BenchmarkOpenBreaker(b *testing.B) {
	rt := outbound.New(world{"a.test": always(500)}, outbound.Breaker(group()))
	for range 3 {
		get(b, rt, "http://a.test/")
	}
	req := request(b.Context(), "GET", "http://a.test/", nil)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := rt.RoundTrip(req); err == nil {
			b.Fatal("not open")
		}
	}
}

func BenchmarkPick(b *testing.B) {
	b.Run("clock", func(b *testing.B) { // the baseline: what asking a breaker costs at least
		b.ReportAllocs()
		for b.Loop() {
			time.Now()
		}
	})
	for _, policy := range []struct {
		name string
		opt  outbound.SetOption
	}{
		{"P2C", outbound.WithPolicy(outbound.P2C)},
		{"RoundRobin", outbound.WithPolicy(outbound.RoundRobin)},
		{"Random", outbound.WithPolicy(outbound.Random)},
		{"Hash", outbound.WithHash(func(r *http.Request) string { return r.URL.Path })},
	} {
		for _, n := range []int{2, 8, 64} {
			b.Run(fmt.Sprintf("policy=%s/endpoints=%d", policy.name, n), func(b *testing.B) {
				set := newSet(b, endpoints(n), policy.opt)
				req := request(b.Context(), "GET", "http://svc.test/path", nil)
				now := time.Now()
				b.ReportAllocs()
				for b.Loop() {
					set.Pick(req, now)
				}
			})
		}
	}
}

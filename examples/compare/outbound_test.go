package compare

import (
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/failsafe-go/failsafe-go/circuitbreaker"
	"github.com/failsafe-go/failsafe-go/failsafehttp"
	"github.com/hashicorp/go-retryablehttp"
	"github.com/sony/gobreaker/v2"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/middleware/outbound"
)

// stub is a transport without a network. It answers with the statuses given,
// one after the other, and then with 200.
type stub struct {
	statuses []int
	calls    int
	header   http.Header
}

func (s *stub) RoundTrip(r *http.Request) (*http.Response, error) {
	status := http.StatusOK
	if s.calls < len(s.statuses) {
		status = s.statuses[s.calls]
	}
	if len(s.statuses) > 0 {
		s.calls++ // not in a parallel benchmark, which wants 200 only
	}
	return &http.Response{StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: s.header, Body: http.NoBody, Request: r}, nil
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// retryMakers retry a GET that is answered 503, at once.
var retryMakers = []struct {
	name string
	make func(http.RoundTripper) http.RoundTripper
}{
	{"spillgate", func(next http.RoundTripper) http.RoundTripper {
		return outbound.New(next, outbound.Retry(outbound.WithTries(3), outbound.WithBackoff(time.Microsecond, time.Microsecond)))
	}},
	{"failsafe", func(next http.RoundTripper) http.RoundTripper {
		return failsafehttp.NewRoundTripper(next, failsafehttp.NewRetryPolicyBuilder().WithMaxRetries(2).Build())
	}},
	{"go-retryablehttp", func(next http.RoundTripper) http.RoundTripper {
		c := retryablehttp.NewClient()
		c.HTTPClient = &http.Client{Transport: next}
		c.Logger = nil
		c.RetryMax, c.RetryWaitMin, c.RetryWaitMax = 2, time.Microsecond, time.Microsecond
		return &retryablehttp.RoundTripper{Client: c}
	}},
}

// outboundBreakerMakers refuse calls to a host that fails.
var outboundBreakerMakers = []struct {
	name string
	make func(http.RoundTripper) http.RoundTripper
}{
	{"spillgate", func(next http.RoundTripper) http.RoundTripper {
		return outbound.New(next, outbound.Breaker(breaker.NewGroup(breaker.WithFailureRatio(0.5, 10))))
	}},
	{"gobreaker-by-hand", func(next http.RoundTripper) http.RoundTripper {
		b := gobreaker.NewCircuitBreaker[*http.Response](gobreakerSettings())
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			res, err := b.Execute(func() (*http.Response, error) {
				res, err := next.RoundTrip(r)
				if err == nil && res.StatusCode >= 500 {
					return res, errFailed
				}
				return res, err
			})
			if err == errFailed {
				err = nil
			}
			return res, err
		})
	}},
	{"failsafe", func(next http.RoundTripper) http.RoundTripper {
		return failsafehttp.NewRoundTripper(next, circuitbreaker.NewBuilder[*http.Response]().
			HandleIf(func(r *http.Response, err error) bool { return err != nil || r != nil && r.StatusCode >= 500 }).
			WithFailureThresholdRatio(5, 10).WithDelay(time.Hour).Build())
	}},
}

func get(rt http.RoundTripper) (int, error) {
	r, err := http.NewRequest("GET", "http://backend.test/", nil)
	if err != nil {
		return 0, err
	}
	return roundTrip(rt, r)
}

func roundTrip(rt http.RoundTripper, r *http.Request) (int, error) {
	res, err := rt.RoundTrip(r)
	if err != nil {
		return 0, err
	}
	_, err = io.Copy(io.Discard, res.Body)
	res.Body.Close()
	return res.StatusCode, err
}

func TestOutboundRetry(t *testing.T) {
	for _, m := range retryMakers {
		t.Run(m.name, func(t *testing.T) {
			s := &stub{statuses: []int{503, 503}, header: http.Header{}}
			if got, err := get(m.make(s)); got != 200 || err != nil || s.calls != 3 {
				t.Errorf("status %d, error %v after %d calls; want 200 after 3", got, err, s.calls)
			}
		})
	}
}

func TestOutboundBreaker(t *testing.T) {
	statuses := make([]int, 1000)
	for i := range statuses {
		statuses[i] = 503
	}
	for _, m := range outboundBreakerMakers {
		t.Run(m.name, func(t *testing.T) {
			s := &stub{statuses: statuses, header: http.Header{}}
			rt := m.make(s)
			for range 100 {
				_, _ = get(rt)
			}
			if s.calls > 50 {
				t.Errorf("%d of 100 calls reached a backend that always fails", s.calls)
			}
		})
	}
}

// BenchmarkOutbound measures a call that succeeds at once, over a transport that
// does nothing.
func BenchmarkOutbound(b *testing.B) {
	run := func(name string, rt http.RoundTripper) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				r, err := http.NewRequest("GET", "http://backend.test/", nil)
				if err != nil {
					b.Error(err)
					return
				}
				for pb.Next() {
					if got, err := roundTrip(rt, r); got != 200 || err != nil {
						b.Errorf("status %d, error %v", got, err)
						return
					}
				}
			})
		})
	}
	run("baseline=stub", &stub{header: http.Header{}})
	for _, m := range outboundBreakerMakers {
		run("breaker/"+m.name, m.make(&stub{header: http.Header{}}))
	}
	for _, m := range retryMakers {
		run("retry/"+m.name, m.make(&stub{header: http.Header{}}))
	}
}

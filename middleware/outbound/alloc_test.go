package outbound_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/spillgate/spillgate/middleware/outbound"
)

func TestAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes sync.Pool drop things")
	}
	req := request(t.Context(), "GET", "http://svc.test/path", nil)
	count := func(f func()) float64 { return testing.AllocsPerRun(200, f) }

	for name, opt := range map[string]outbound.SetOption{
		"P2C":        outbound.WithPolicy(outbound.P2C),
		"RoundRobin": outbound.WithPolicy(outbound.RoundRobin),
		"Random":     outbound.WithPolicy(outbound.Random),
		"hash":       outbound.WithHash(func(r *http.Request) string { return r.URL.Path }),
	} {
		set, now := newSet(t, endpoints(8), opt), time.Now()
		if n := count(func() { set.Pick(req, now) }); n != 0 {
			t.Errorf("pick with %s: %v allocations", name, n)
		}
	}

	through := func(rt http.RoundTripper) float64 {
		return count(func() {
			resp, err := rt.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
		})
	}
	bare := through(stub{})
	if n := through(outbound.New(stub{}, outbound.Breaker(nil))) - bare; n != 0 {
		t.Errorf("Breaker adds %v allocations to a response without a body", n)
	}
	if n := through(outbound.New(stub{}, outbound.Balance(newSet(t, endpoints(8))))) - bare; n > 1 {
		t.Errorf("Balance adds %v allocations to one without a body, want the request only", n)
	}
	bare = through(stubWithBody{})
	if n := through(outbound.New(stubWithBody{}, outbound.Breaker(nil))) - bare; n > 1 {
		t.Errorf("Breaker adds %v allocations, want the watched body only", n)
	}
	if n := through(outbound.New(stubWithBody{}, outbound.Balance(newSet(t, endpoints(8))))) - bare; n > 2 {
		t.Errorf("Balance adds %v allocations, want the request and the watched body only", n)
	}

	open := outbound.New(world{"a.test": always(500)}, outbound.Breaker(group()))
	for range 3 {
		get(t, open, "http://a.test/")
	}
	refused := request(t.Context(), "GET", "http://a.test/", nil)
	if n := count(func() { open.RoundTrip(refused) }); n != 0 {
		t.Errorf("a refusal makes %v allocations", n)
	}
}

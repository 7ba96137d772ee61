package middleware_test

import (
	"testing"

	"github.com/spillgate/spillgate/middleware"
)

// A request allocates the recorder (a rate limit alone does without), and behind a pool the request with its context.
func TestAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	most := map[string]float64{"rate": 0, "rate-unlimited": 0, "pool": 3, "all-five": 3, "all-five-adaptive": 3}
	for _, s := range benchStacks() {
		h := middleware.Wrap(benchMux(), s.layers...)
		w, r := newNullWriter(), benchRequest()
		bare := benchMux()
		without := testing.AllocsPerRun(200, func() { clear(w.h); bare.ServeHTTP(w, r) })
		h.ServeHTTP(w, r) // the first request makes breakers, markers and prepared fields
		got := testing.AllocsPerRun(200, func() { clear(w.h); h.ServeHTTP(w, r) }) - without
		want, ok := most[s.name]
		if !ok {
			want = 1
		}
		if got > want {
			t.Errorf("%s: %v allocations more than without, want at most %v", s.name, got, want)
		}
	}
}

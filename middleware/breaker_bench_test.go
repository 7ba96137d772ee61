package middleware_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/middleware"
)

var clockSink time.Time

// BenchmarkBreakerLayer measures what the breaker adds to a request that has a recorder already: take
// the recorder off the rows below it, and compare with the two clock reads.
func BenchmarkBreakerLayer(b *testing.B) {
	b.Run("baseline=two-clock-reads", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			clockSink = time.Now()
			clockSink = time.Now()
		}
	})
	bare := http.HandlerFunc(bareHandler)
	recorder := middleware.WithTrace(&middleware.Trace{})
	open := breaker.NewGroup()
	open.Get("").ForceOpen()
	key := middleware.WithBreakerKey(func(r *http.Request) string { return r.URL.Path })
	for _, c := range []struct {
		name string
		h    http.Handler
	}{
		{"baseline=bare", bare},
		{"baseline=recorder", recorder.Handler(bare)},
		{"breaker=one-for-all", middleware.Chain(recorder.Handler, middleware.Breaker(breaker.NewGroup()).Handler)(bare)},
		{"breaker=by-path", middleware.Chain(recorder.Handler, middleware.Breaker(breaker.NewGroup(), key).Handler)(bare)},
		{"breaker=slow-calls", middleware.Chain(recorder.Handler,
			middleware.Breaker(breaker.NewGroup(breaker.WithSlowCalls(time.Second, 0.8)), key).Handler)(bare)},
		{"breaker=refusing", middleware.Chain(recorder.Handler, middleware.Breaker(open).Handler)(bare)},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			w, r := newNullWriter(), benchRequest()
			for b.Loop() {
				clear(w.h)
				c.h.ServeHTTP(w, r)
			}
		})
	}
}

func TestTheBreakerAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	bare := http.HandlerFunc(bareHandler)
	open := breaker.NewGroup(breaker.WithOpenTime(time.Hour, time.Hour), breaker.WithConsecutiveFailures(1))
	call, _ := open.Get("").Allow()
	call.Done(breaker.Failure, 0)
	for name, c := range map[string]struct {
		g    *breaker.Group
		most float64
	}{
		"pass":        {breaker.NewGroup(), 1}, // the recorder
		"slow calls":  {breaker.NewGroup(breaker.WithSlowCalls(time.Second, 0.8)), 1},
		"min clients": {breaker.NewGroup(breaker.WithMinClients(3)), 2}, // the client's address
		"refuse":      {open, 3},                                        // Retry-After and the problem document besides
	} {
		h := middleware.Breaker(c.g).Handler(bare)
		w, r := newNullWriter(), benchRequest()
		got := testing.AllocsPerRun(300, func() { clear(w.h); h.ServeHTTP(w, r) })
		t.Logf("%s: %v", name, got)
		if got > c.most {
			t.Errorf("%s: %v allocations with the recorder, want at most %v", name, got, c.most)
		}
	}
}

package middleware_test

import (
	"net/http"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/time/rate"

	"github.com/spillgate/spillgate/cache"
	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware"
	"github.com/spillgate/spillgate/pool"
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
		without := allocsPerRequest(bare, w, r)
		h.ServeHTTP(w, r) // the first request makes breakers, markers and prepared fields
		got := allocsPerRequest(h, w, r) - without
		want, ok := most[s.name]
		if !ok {
			want = 1
		}
		if got > want {
			t.Errorf("%s: %v allocations more than without, want at most %v", s.name, got, want)
		}
	}
}

// What may wait for its client is timed where an adaptive limit is to have the permit back, or a pool the slot: a timer for a request, however often it
// writes.
func TestAllocationsOfLargeAnswers(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	part := make([]byte, 4<<10)
	bare := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for range 10 {
			w.Write(part)
		}
	})
	for name, c := range map[string]struct {
		layer middleware.Layer
		want  float64
	}{
		"fixed":    {middleware.Concurrency(limiter.NewConcurrency(100)), 1},
		"adaptive": {middleware.Concurrency(limiter.NewAdaptive()), 4},
		"pool":     {middleware.Pool(pool.New()), 6},
	} {
		h := c.layer.Handler(bare)
		if got := allocsPerRequest(h, newNullWriter(), benchRequest()); got > c.want {
			t.Errorf("%s: %v allocations, want at most %v", name, got, c.want)
		}
	}
}

// allocsPerRequest has h serve r again and again, as a server would hand it on: no field is written yet and no route known.
func allocsPerRequest(h http.Handler, w *nullWriter, r *http.Request) float64 {
	return testing.AllocsPerRun(200, func() { clear(w.h); r.Pattern = ""; h.ServeHTTP(w, r) })
}

// The recorder fills a size of the allocator.
func TestRecorderSize(t *testing.T) {
	if got := middleware.RecorderSize; got != 256 && unsafe.Sizeof(uintptr(0)) == 8 {
		t.Errorf("%d bytes, want 256", got)
	}
}

// A refusal by a rate limit alone allocates nothing.
func TestRefusalAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	h := middleware.Rate(limiter.NewRate(rate.Every(time.Hour), 1)).Handler(benchMux())
	w, r := newNullWriter(), benchRequest()
	h.ServeHTTP(w, r)
	if got := allocsPerRequest(h, w, r); got > 0 {
		t.Errorf("%v allocations a refusal, want 0", got)
	}
	if w.h["Retry-After"] == nil {
		t.Error("the request was not refused")
	}
}

// A refusal inside a cache that has never had an answer for the key allocates the key under which others could have waited, besides
// the recorder.
func TestRefusalAllocationsInFill(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	full := limiter.NewConcurrency(1)
	permit, _ := full.TryAcquire(limiter.Request{})
	defer permit.Release(limiter.Ignored)
	h := middleware.Wrap(benchMux(), middleware.Cache(cache.New(1<<20, cache.WithOnlyExplicit())), middleware.Concurrency(full))
	w, r := newNullWriter(), benchRequest()
	h.ServeHTTP(w, r)
	if got := allocsPerRequest(h, w, r); got > 2 {
		t.Errorf("%v allocations a refusal, want 2", got)
	}
	if w.h["Retry-After"] == nil {
		t.Error("the request was not refused")
	}
}

package middleware_test

import (
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware"
	"github.com/spillgate/spillgate/pool"
)

// A fixed limit is the user's number and bounds those who wait for the pool, too; an adaptive one is for what is inside.
func TestWaitingForThePoolHoldsTheFixedPermitOnly(t *testing.T) {
	for name, c := range map[string]struct {
		l    *limiter.Concurrency
		want int
	}{
		"fixed": {limiter.NewConcurrency(2, limiter.WithQueue(0, 0)), 503}, "adaptive": {limiter.NewAdaptive(limiter.WithLimits(2, 2), limiter.WithQueue(0, 0)), 200},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := pool.New(pool.WithSlots(1), pool.WithQueue(8, time.Hour))
				slow := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(time.Second) }) // in a synctest bubble
				h := middleware.Wrap(slow, middleware.Concurrency(c.l), middleware.For("/cpu", middleware.Pool(p)))
				var wg sync.WaitGroup
				for range 2 { // one computes, one waits
					wg.Go(func() { get(h, "GET", "/cpu") })
					synctest.Wait()
				}
				if got := get(h, "GET", "/").StatusCode; got != c.want {
					t.Errorf("status %d of one that needs no pool, want %d", got, c.want)
				}
				wg.Wait()
			})
		})
	}
}

// A request that becomes long-lived leaves the slots of all pools that it is in.
func TestLongLivedLeavesEachPool(t *testing.T) {
	pools := []*pool.Pool{pool.New(pool.WithSlots(2)), pool.New(pool.WithSlots(2)), pool.New(pool.WithSlots(2))}
	used := func() (n [3]int) {
		for i, p := range pools {
			n[i] = p.Stats().Used
		}
		return n
	}
	h := middleware.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if got := used(); got != [3]int{1, 1, 1} {
			t.Errorf("slots used before: %v, want one of each", got)
		}
		w.Header().Set("Content-Type", "text/event-stream")
		w.(http.Flusher).Flush()
		if got := used(); got != [3]int{} {
			t.Errorf("slots used while it only stays open: %v, want none", got)
		}
	}), middleware.Pool(pools[0]), middleware.Pool(pools[1]), middleware.For("/", middleware.Pool(pools[2])))
	if got := get(h, "GET", "/").StatusCode; got != 200 {
		t.Errorf("status %d", got)
	}
}

func TestTaskOptionsOfAllAndOfEach(t *testing.T) {
	p := pool.New(pool.WithSlots(4))
	h := middleware.Pool(p, middleware.WithTask(pool.WithWeight(2)), middleware.WithTask(pool.WithKind("report")),
		middleware.WithTaskFunc(func(r *http.Request) []pool.TaskOption {
			if r.URL.Path == "/large" {
				return []pool.TaskOption{pool.WithWeight(3)}
			}
			return nil
		})).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s := p.Stats(); s.Used != map[string]int{"/": 2, "/large": 3}[r.URL.Path] {
			t.Errorf("%s: %d slots", r.URL.Path, s.Used)
		}
	}))
	get(h, "GET", "/")
	get(h, "GET", "/large")
	if s := p.Stats(); len(s.Kinds) != 1 || s.Kinds[0].Kind != "report" {
		t.Errorf("%+v", s.Kinds)
	}
}

func TestPoolFullIs503AndOwnShareFullIs429(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pool.New(pool.WithSlots(1), pool.WithQueue(3, time.Minute), pool.WithClientShare(1))
		h := middleware.Pool(p, middleware.WithTaskFunc(func(r *http.Request) []pool.TaskOption {
			return []pool.TaskOption{pool.WithClient(r.Header.Get("X-User"))}
		})).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { time.Sleep(time.Second) })) // in a synctest bubble
		var wg sync.WaitGroup
		serve := func(user string) *httptest.ResponseRecorder {
			w := httptest.NewRecorder()
			r := httptest.NewRequest("GET", "/", nil)
			r.Header.Set("X-User", user)
			wg.Go(func() { h.ServeHTTP(w, r) })
			synctest.Wait()
			return w
		}
		runs, waits, over := serve("a"), serve("a"), serve("a")
		status(t, over, 429)
		if over.Header().Get("Retry-After") == "" {
			t.Error("429 without Retry-After")
		}
		anyone := []*httptest.ResponseRecorder{serve(""), serve("")}
		full := serve("")
		status(t, full, 503)
		wg.Wait()
		for _, w := range append(anyone, runs, waits) {
			status(t, w, 200)
		}
	})
}

package middleware_test

import (
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/middleware"
	"github.com/spillgate/spillgate/pool"
)

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

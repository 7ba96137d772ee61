package health_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"time"

	"github.com/spillgate/spillgate/middleware"
	"github.com/spillgate/spillgate/middleware/health"
)

func ExampleNew() {
	h := health.New(health.WithDrainWait(0))
	server := h.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "hello")
	}))

	ask := func(path string) {
		w := httptest.NewRecorder()
		server.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		fmt.Println(path, w.Code)
	}
	ask("/readyz")
	h.Drain(context.Background(), nil)
	ask("/readyz")
	ask("/livez")
	// Output:
	// /readyz 200
	// /readyz 503
	// /livez 200
}

func ExampleWithCheck() {
	var queued atomic.Int64 // of this process; what other replicas share does not belong here
	h := health.New(
		health.WithManualStart(),
		health.WithCheck(health.Check{
			Name:     "queue",
			Interval: time.Second,
			Run: func(ctx context.Context) error {
				if queued.Load() > 1000 {
					return errors.New("queue full")
				}
				return nil
			},
		}))
	defer h.Close()
	fmt.Println("ready while starting:", h.Ready())
	// Output:
	// ready while starting: false
}

// A whole main function: serves until SIGTERM, then leaves without failing a
// request. Pools and job queues go after the server.
func ExampleHealth_Run() {
	h := health.New()
	stack := middleware.New() // its Shutdown is that of its pools, too
	srv := &http.Server{Addr: "127.0.0.1:8080", Handler: stack.Handler(http.NotFoundHandler())}
	if err := h.Run(context.Background(), srv, stack); err != nil {
		fmt.Println(err)
	}
}

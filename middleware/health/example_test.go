package health_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"time"

	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware"
	"github.com/spillgate/spillgate/middleware/clientip"
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

// A whole main function behind a proxy: serves until SIGTERM, then leaves without failing a request. Pools and job
// queues go after the server.
func ExampleHealth_Run() {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /hello", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") })

	proxies := clientip.FromXForwardedFor(clientip.Prefixes("10.0.0.0/8")) // where the proxies are, and no client
	stack := middleware.New(append(middleware.Defaults(middleware.WithClient(proxies.Key)),
		middleware.Rate(limiter.NewRate(50, 100), middleware.WithKey(middleware.KeyClient(proxies))),
	)...) // its Shutdown is that of its pools, too

	h := health.New()
	srv := &http.Server{
		Addr:         ":8080",
		Handler:      stack.Handler(mux),
		ReadTimeout:  10 * time.Second, // who sends or reads slowly holds a permit as long
		WriteTimeout: 30 * time.Second,
	}
	if err := h.Run(context.Background(), srv, stack); err != nil {
		fmt.Println(err)
	}
}

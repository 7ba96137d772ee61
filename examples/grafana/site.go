package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/cache"
	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware"
	"github.com/spillgate/spillgate/middleware/health"
	"github.com/spillgate/spillgate/middleware/outbound"
	"github.com/spillgate/spillgate/middleware/prommw"
	"github.com/spillgate/spillgate/pool"
	"github.com/spillgate/spillgate/pool/jobs"
)

// site is a server with all five layers, background jobs, a dependency and probes.
type site struct {
	http.Handler // probes, /metrics, and the stack
	stack        *middleware.Stack
	registry     *prometheus.Registry

	health    *health.Health
	endpoints *outbound.Set
	jobs      *jobs.Local

	trouble atomic.Pointer[trouble]
}

func newSite() (*site, error) {
	s := &site{registry: prometheus.NewRegistry()}
	s.trouble.Store(&troubles[0])

	// The dependency, an inventory of three servers.
	var err error
	s.endpoints, err = outbound.NewSet([]outbound.Endpoint{
		{URL: "http://inventory-1.example"}, {URL: "http://inventory-2.example"}, {URL: "http://inventory-3.example"},
	})
	if err != nil {
		return nil, err
	}
	inventory := outbound.New(roundTripper(s.inventory), outbound.Timeout(time.Second), outbound.Retry(), outbound.Balance(s.endpoints))

	// Mail is sent after the response.
	mail := jobs.NewMux()
	jobs.Register(mail, "mail", func(context.Context, string) (bool, error) {
		time.Sleep(100 * time.Millisecond)
		if s.trouble.Load().mail {
			return false, errors.New("the mail server does not answer")
		}
		return true, nil
	}, jobs.WithAttempts(2), jobs.WithBackoff(time.Second, time.Second))
	s.jobs = jobs.NewLocal(mail, pool.New(pool.WithSlots(2)), jobs.WithRetention(time.Minute))

	s.health = health.New(health.WithCheck(health.Check{Name: "inventory", Run: func(context.Context) error {
		if s.trouble.Load().inventory == 3 {
			return errors.New("no server of the inventory answers")
		}
		return nil
	}}))

	mux := http.NewServeMux()
	mux.HandleFunc("GET /items/{id}", func(w http.ResponseWriter, r *http.Request) {
		res, err := (&http.Client{Transport: inventory}).Get("http://inventory.example/items/" + r.PathValue("id"))
		if err != nil {
			http.Error(w, "no inventory", http.StatusBadGateway)
			return
		}
		defer res.Body.Close() // whatever the status: until then its endpoint is as busy to Balance as if it still answered
		if res.StatusCode != http.StatusOK {
			http.Error(w, "no inventory", http.StatusBadGateway)
			return
		}
		w.Header().Set("Cache-Control", "public, max-age=5, stale-while-revalidate=5, stale-if-error=600")
		io.Copy(w, res.Body)
	})
	database := make(chan struct{}, 8) // connections: 100 searches a second
	mux.HandleFunc("GET /search", func(w http.ResponseWriter, r *http.Request) {
		database <- struct{}{}
		time.Sleep(80 * time.Millisecond)
		<-database
		fmt.Fprintln(w, "found")
	})
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "welcome") })
	mux.HandleFunc("POST /report", func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(100 * time.Millisecond) // for what computes
		fmt.Fprintln(w, "report")
	})
	mux.Handle("POST /mail", middleware.Async(s.jobs, "mail"))

	requests := prommw.NewRequests()
	s.stack = middleware.New(
		requests.Layer(),
		middleware.For("POST /login", middleware.Rate(limiter.NewRate(1, 5))),
		middleware.Cache(cache.New(1<<20, cache.WithOnlyExplicit())),
		middleware.Concurrency(limiter.NewAdaptive()),
		middleware.Breaker(breaker.NewGroup()),
		middleware.For("POST /report", middleware.Pool(pool.New(pool.WithSlots(2)), middleware.WithTask(pool.WithKind("report")))),
	)
	s.registry.MustRegister(requests, prommw.Stack(s.stack), prommw.Jobs(s.jobs), prommw.Transport(inventory), prommw.Set(s.endpoints), prommw.Health(s.health))

	// Neither metrics nor probes are behind what refuses.
	outside := http.NewServeMux()
	outside.Handle("GET /metrics", promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{}))
	outside.Handle("/", s.stack.Handler(mux))
	s.Handler = s.health.Handler(outside)
	return s, nil
}

func (s *site) close() {
	s.jobs.Close()
	s.endpoints.Close()
	s.health.Close()
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// inventory stands for the servers of the inventory, of which the first few may fail.
func (s *site) inventory(r *http.Request) (*http.Response, error) {
	time.Sleep(5 * time.Millisecond)
	res := &http.Response{StatusCode: http.StatusOK, ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{}, Request: r, ContentLength: -1}
	var n int
	if _, err := fmt.Sscanf(r.URL.Host, "inventory-%d", &n); err != nil {
		return nil, err
	}
	if n <= s.trouble.Load().inventory {
		res.StatusCode = http.StatusServiceUnavailable
	}
	res.Body = io.NopCloser(strings.NewReader("three in stock\n"))
	return res, nil
}

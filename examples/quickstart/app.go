package main

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/cache"
	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware"
	"github.com/spillgate/spillgate/pool"
)

type config struct {
	addr  string
	rate  float64
	burst int
	limit int
	slots int
	open  time.Duration
}

func defaults() config {
	return config{addr: "127.0.0.1:8080", rate: 1, burst: 5, limit: 8, open: time.Second}
}

// most bounds what the demonstration sends.
const most = 1000

// reportQueue is how many reports wait for a slot.
const reportQueue = 4

func (c config) check() error {
	switch {
	case !(c.rate > 0 && c.rate <= most):
		return fmt.Errorf("-rate is %v; give more than 0 requests a second, and at most %d", c.rate, most)
	case c.burst < 1 || c.burst > most:
		return fmt.Errorf("-burst is %d; give 1 to %d", c.burst, most)
	case c.limit < 1 || c.limit > most:
		return fmt.Errorf("-limit is %d; give 1 to %d", c.limit, most)
	case c.slots < 0 || c.slots > most:
		return fmt.Errorf("-slots is %d; give 1 to %d, or 0 for GOMAXPROCS-1", c.slots, most)
	case c.open < time.Millisecond || c.open > time.Hour:
		return fmt.Errorf("-open is %v; give 1ms to 1h", c.open)
	}
	return nil
}

// app is the server: an ordinary mux, and the stack in front of it.
type app struct {
	config  config
	stack   *middleware.Stack
	handler http.Handler
	reports *pool.Pool

	broken      atomic.Bool  // /flaky and /quote fail
	newsCalls   atomic.Int64 // how often the handler of /news ran
	transitions atomic.Int64
}

func newApp(c config) *app {
	if c.slots == 0 {
		c.slots = max(1, runtime.GOMAXPROCS(0)-1)
	}
	a := &app{config: c, reports: pool.New(pool.WithSlots(c.slots), pool.WithQueue(reportQueue, 2*time.Second))}

	mux := http.NewServeMux()
	mux.HandleFunc("GET /hello", a.hello)
	mux.HandleFunc("POST /login", a.login)
	mux.HandleFunc("GET /db", a.db)
	mux.HandleFunc("GET /news", a.news)
	mux.HandleFunc("GET /flaky", a.flaky)
	mux.HandleFunc("GET /quote", a.quote)
	mux.HandleFunc("GET /report", a.report)
	mux.HandleFunc("POST /debug/break", a.setBroken)
	mux.HandleFunc("GET /debug/stats", a.stats)

	a.stack = middleware.New(
		// What every request passes: a limit that nobody has to set, a breaker for each route, a cache.
		middleware.Concurrency(limiter.NewAdaptive(limiter.WithStart(64))),
		middleware.Breaker(breaker.NewGroup(
			breaker.WithOpenTime(c.open, 8*c.open),
			breaker.WithOnChange(func(breaker.Change) { a.transitions.Add(1) }),
		)),
		middleware.Cache(cache.New(16<<20)),

		// What single routes need.
		middleware.For("POST /login", middleware.Rate(limiter.NewRate(rate.Limit(c.rate), c.burst))),
		middleware.For("GET /db", middleware.Concurrency(limiter.NewConcurrency(c.limit, limiter.WithQueue(c.limit, 500*time.Millisecond)))),
		middleware.For("GET /report", middleware.Pool(a.reports)),

		// What is asked about the server is answered whatever its state.
		middleware.WithSkip(func(r *http.Request) bool { return strings.HasPrefix(r.URL.Path, "/debug/") }),
	)
	a.handler = a.stack.Handler(mux)
	return a
}

// onOneProcessor has reports leave some of the only processor to the rest, where there is no other one for that: without it
// a cheap request waits for several turns of 10 ms, and the limit may refuse some of them. What it returns ends that.
func (a *app) onOneProcessor() (end func(), err error) {
	if runtime.GOMAXPROCS(0) > 1 {
		return func() {}, nil
	}
	over, err := pool.Overcommit(a.reports, pool.WithThreads(a.config.slots))
	if err != nil {
		return nil, err
	}
	return over.Close, nil
}

// hello is cheap: what is measured while the others are under load.
func (a *app) hello(w http.ResponseWriter, _ *http.Request) {
	fmt.Fprintln(w, "hello")
}

// login is limited per client: a password is not to be guessed by trying.
func (a *app) login(w http.ResponseWriter, _ *http.Request) {
	fmt.Fprintln(w, "welcome")
}

// db waits for something that can take only so many at once.
func (a *app) db(w http.ResponseWriter, r *http.Request) {
	select {
	case <-time.After(300 * time.Millisecond):
		fmt.Fprintln(w, "row")
	case <-r.Context().Done():
	}
}

// news is slow and the same for everybody.
func (a *app) news(w http.ResponseWriter, r *http.Request) {
	n := a.newsCalls.Add(1)
	select {
	case <-time.After(200 * time.Millisecond):
	case <-r.Context().Done():
		return
	}
	w.Header().Set("Cache-Control", "public, max-age=10")
	fmt.Fprintf(w, "news, edition %d\n", n)
}

// flaky fails when told to: POST /debug/break?on=true.
func (a *app) flaky(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	if a.broken.Load() {
		http.Error(w, "the dependency is down", http.StatusInternalServerError)
		return
	}
	fmt.Fprintln(w, "works")
}

// quote fails with flaky, but says that an old answer is better than none.
func (a *app) quote(w http.ResponseWriter, _ *http.Request) {
	if a.broken.Load() {
		http.Error(w, "the dependency is down", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Cache-Control", "public, max-age=1, stale-if-error=600")
	fmt.Fprintf(w, "quote of %s\n", time.Now().Format(time.TimeOnly))
}

// report computes for some 50 ms, like a PDF, a password hash or an image.
func (a *app) report(w http.ResponseWriter, r *http.Request) {
	sum := sha256.Sum256([]byte("report"))
	for end := time.Now().Add(50 * time.Millisecond); time.Now().Before(end); {
		for range 200 {
			sum = sha256.Sum256(sum[:])
		}
		if pool.Checkpoint(r.Context()) != nil {
			return // the client left
		}
	}
	fmt.Fprintf(w, "report %x\n", sum[:4])
}

func (a *app) setBroken(w http.ResponseWriter, r *http.Request) {
	on := r.FormValue("on")
	if on != "true" && on != "false" {
		http.Error(w, fmt.Sprintf("on is %q; give on=true or on=false", on), http.StatusBadRequest)
		return
	}
	a.broken.Store(on == "true")
	fmt.Fprintln(w, "broken:", on)
}

func (a *app) stats(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	_ = e.Encode(a.stack.Stats()) // a client that has gone needs no answer
}

func (a *app) help(addr string) string {
	return fmt.Sprintf(`A server behind all five protections is listening on http://%[1]s

Try, in another terminal:

  1. rate limit: %[2]g a second, %[3]d at once, for each client; the last answers are 429 with Retry-After
     for i in $(seq %[4]d); do curl -si -X POST http://%[1]s/login | head -n 1; done

  2. cache: the first answer takes 200 ms and the others none (see Age and Cache-Status)
     for i in 1 2 3; do curl -si http://%[1]s/news | grep -iE 'HTTP|age:|cache-status|news'; done

  3. concurrency limit: %[5]d run, %[5]d wait, the rest are told 503 at once
     curl --no-progress-meter -Z --parallel-immediate --parallel-max %[7]d -o /dev/null -w '%%{http_code}\n' 'http://%[1]s/db?[1-%[6]d]' | sort | uniq -c

  4. breaker: a failing route is left alone, and a stored answer stands in where there is one
     curl -s http://%[1]s/quote; curl -s -X POST 'http://%[1]s/debug/break?on=true'; sleep 2
     for i in $(seq 30); do curl -so /dev/null -w '%%{http_code} ' http://%[1]s/flaky; done; curl -si http://%[1]s/quote
     curl -s -X POST 'http://%[1]s/debug/break?on=false'

  5. pool: reports compute in slots, and cheap requests stay fast meanwhile
     curl --no-progress-meter -Z --parallel-immediate -o /dev/null -w '%%{http_code}\n' 'http://%[1]s/report?[1-8]' & curl -so /dev/null -w '%%{time_total} s\n' http://%[1]s/hello; wait

What each layer did: curl -s http://%[1]s/debug/stats
Stop with Ctrl-C. To see it all at once: go run ./examples/quickstart -demo
`, addr, a.config.rate, a.config.burst, a.config.burst+3, a.config.limit, 5*a.config.limit, min(5*a.config.limit, 300)) // curl takes more than 300 for 50
}

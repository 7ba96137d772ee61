package middleware_test

import (
	"encoding/json"
	"expvar"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/cache"
	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware"
	"github.com/spillgate/spillgate/middleware/clientip"
	"github.com/spillgate/spillgate/pool"
)

// get sends a request to h as a client of net/http's server would.
func get(h http.Handler, method, path string) *http.Response {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, path, nil))
	return w.Result()
}

func ExampleWrap() {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /hello", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") })

	h := middleware.Wrap(mux) // http.ListenAndServe(addr, h)

	fmt.Println(get(h, "GET", "/hello").Status)
	// Output: 200 OK
}

func ExampleNew() {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "welcome") })

	stack := middleware.New(
		middleware.Concurrency(limiter.NewAdaptive()),
		middleware.Breaker(breaker.NewGroup()),
		middleware.For("POST /login", middleware.Rate(limiter.NewRate(rate.Every(time.Minute), 2))),
	)
	h := stack.Handler(mux)

	for range 3 {
		res := get(h, "POST", "/login")
		fmt.Println(res.StatusCode, res.Header["Ratelimit"], res.Header["Retry-After"])
	}
	fmt.Println(stack.Stats().Rejected.Rate, "refused")
	// Output:
	// 200 ["default";r=1;t=60] []
	// 200 ["default";r=0;t=60] []
	// 429 ["default";r=0;t=60] [60]
	// 1 refused
}

// What the layers do, as JSON: package expvar serves it at /debug/vars of http.DefaultServeMux, or wherever [expvar.Handler] is put. Keep
// clients away from there.
func ExampleStack_Stats() {
	stack := middleware.New(middleware.Concurrency(limiter.NewConcurrency(100)))
	h := stack.Handler(http.NotFoundHandler())
	expvar.Publish("spillgate", expvar.Func(func() any { return stack.Stats() }))

	get(h, "GET", "/")
	var vars struct {
		Spillgate struct {
			Layers []struct {
				Concurrency struct{ Limit, Success int }
			}
		}
	}
	err := json.NewDecoder(get(expvar.Handler(), "GET", "/debug/vars").Body).Decode(&vars)
	fmt.Printf("%v %+v\n", err, vars.Spillgate.Layers[0].Concurrency)
	// Output: <nil> {Limit:100 Success:1}
}

func ExampleChain() {
	say := func(name string) middleware.Func {
		return func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				fmt.Print(name, " ")
				next.ServeHTTP(w, r)
			})
		}
	}
	h := middleware.Chain(say("a"), say("b"), say("c"))(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		fmt.Println("handler")
	}))
	get(h, "GET", "/")
	// Output: a b c handler
}

func ExampleFor() {
	compute := pool.New(pool.WithSlots(2))
	h := middleware.Wrap(http.NotFoundHandler(),
		middleware.Concurrency(limiter.NewConcurrency(100)),
		middleware.For("POST /report", middleware.Pool(compute)),
	)
	get(h, "POST", "/report")
	get(h, "GET", "/hello")
	fmt.Println(compute.Stats().Begun, "ran in the pool")
	// Output: 1 ran in the pool
}

func ExampleRate() {
	proxies := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	l := limiter.NewRate(10, 20)
	h := middleware.Rate(l, middleware.WithKey(middleware.KeyClient(clientip.FromXForwardedFor(proxies)))).Handler(http.NotFoundHandler())
	fmt.Println(get(h, "GET", "/").Header["Ratelimit-Policy"])
	// Output: ["default";q=20;w=2]
}

func ExampleConcurrency() {
	// Eight in the handler, sixteen waiting for at most 200 ms, the others refused at once.
	l := limiter.NewConcurrency(8, limiter.WithQueue(16, 200*time.Millisecond))
	h := middleware.Concurrency(l).Handler(http.NotFoundHandler())
	get(h, "GET", "/")
	fmt.Println(l.Stats().Admitted, "admitted")
	// Output: 1 admitted
}

// For a server that clients reach directly: a client that sends a body slowly holds a goroutine and its memory, as on any server, but no permit.
func ExampleBufferBody() {
	l := limiter.NewAdaptive()
	h := middleware.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		fmt.Println(l.Stats().InFlight, "in flight in the handler, which has", len(b), "bytes,", err)
	}), middleware.Concurrency(l), middleware.BufferBody(64<<10))

	body := io.TeeReader(strings.NewReader("a body"), writerFunc(func([]byte) {
		fmt.Println(l.Stats().InFlight, "in flight while the body comes")
	}))
	h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("POST", "/", body))
	// Output:
	// 0 in flight while the body comes
	// 1 in flight in the handler, which has 6 bytes, <nil>
}

type writerFunc func([]byte)

func (f writerFunc) Write(b []byte) (int, error) {
	f(b)
	return len(b), nil
}

func ExampleBreaker() {
	g := breaker.NewGroup(breaker.WithConsecutiveFailures(3))
	failing := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	h := middleware.Breaker(g).Handler(failing)
	for range 5 {
		fmt.Println(get(h, "GET", "/").Status)
	}
	// Output:
	// 502 Bad Gateway
	// 502 Bad Gateway
	// 502 Bad Gateway
	// 503 Service Unavailable
	// 503 Service Unavailable
}

func ExampleCache() {
	h := middleware.Cache(cache.New(64 << 20)).Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Cache-Control", "public, max-age=60")
		fmt.Fprint(w, "news")
	}))
	for range 2 {
		fmt.Println(get(h, "GET", "/news").Header["Age"])
	}
	// Output:
	// []
	// [0]
}

func ExamplePool() {
	p := pool.New(pool.WithSlots(2))
	h := middleware.Pool(p).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sum := 0
		for i := range 1000 {
			if pool.Checkpoint(r.Context()) != nil {
				return // the client left
			}
			sum += i
		}
		fmt.Fprint(w, sum)
	}))
	fmt.Println(get(h, "GET", "/").Status)
	// Output: 200 OK
}

// A stream of JSON lines, or a gRPC stream, is open for as long as its client likes.
func ExampleWithLongLived() {
	l := limiter.NewAdaptive()
	streams := func(r *http.Request) bool {
		return r.URL.Path == "/lines" || strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc")
	}
	h := middleware.Concurrency(l, middleware.WithLongLived(streams)).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Println(l.Stats().InFlight, "in flight")
		fmt.Fprintln(w, `{"line":1}`)
		http.NewResponseController(w).Flush()
		fmt.Println(l.Stats().InFlight, "in flight after the first Flush")
	}))
	get(h, "GET", "/lines")
	// Output:
	// 1 in flight
	// 0 in flight after the first Flush
}

func ExampleWithTrace() {
	t := &middleware.Trace{
		Done: func(r *http.Request, res middleware.Result) {
			fmt.Println(r.Method, res.Route, res.Status, res.Bytes)
		},
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /item/{id}", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "item ", r.PathValue("id")) })
	h := middleware.Wrap(mux, middleware.WithTrace(t), middleware.Concurrency(limiter.NewAdaptive()))
	get(h, "GET", "/item/7")
	// Output: GET GET /item/{id} 200 6
}

func ExampleWithTrace_slog() {
	log := slog.New(slog.NewJSONHandler(os.Stdout, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{} // so that the output is the same each time
		}
		return a
	}}))
	h := middleware.Wrap(http.NotFoundHandler(), middleware.Rate(limiter.NewRate(0, 1)), middleware.WithTrace(&middleware.Trace{
		Rejected: func(r *http.Request, j middleware.Rejection) {
			log.WarnContext(r.Context(), "refused", "layer", j.Layer, "status", j.Status, "err", j.Err)
		},
		Done: func(r *http.Request, res middleware.Result) {
			log.InfoContext(r.Context(), "done", "path", r.URL.Path, "status", res.Status, "cache", res.Cache.String(), "shed", res.Shed)
		},
	}))
	get(h, "GET", "/a")
	get(h, "GET", "/a")
	// Output:
	// {"level":"INFO","msg":"done","path":"/a","status":404,"cache":"bypass","shed":""}
	// {"level":"WARN","msg":"refused","layer":"rate","status":429,"err":"limiter: rate limited by policy default"}
	// {"level":"INFO","msg":"done","path":"/a","status":429,"cache":"bypass","shed":"rate"}
}

func ExampleWithReject() {
	h := middleware.Wrap(http.NotFoundHandler(),
		middleware.Rate(limiter.NewRate(0, 1)),
		middleware.WithReject(func(w http.ResponseWriter, _ *http.Request, j *middleware.Rejection) {
			http.Error(w, "refused by "+j.Layer+", policy "+j.Policy, j.Status)
		}),
	)
	get(h, "GET", "/")
	res := get(h, "GET", "/")
	fmt.Println(res.Status, res.Header.Get("Content-Type"))
	// Output: 429 Too Many Requests text/plain; charset=utf-8
}

// What limits and breakers would do to the current traffic, before they do it: in shadow they decide and count, but refuse nothing.
func Example_shadow() {
	quota := limiter.NewRate(0, 2, limiter.WithRateShadow())
	limit := limiter.NewAdaptive(limiter.WithShadow())
	breakers := breaker.NewGroup(breaker.WithShadow(true), breaker.WithConsecutiveFailures(3), breaker.WithOnChange(func(c breaker.Change) {
		fmt.Printf("the breaker of %s would be %v: %v\n", c.Name, c.To, c.Cause)
	}))
	mux := http.NewServeMux()
	mux.HandleFunc("GET /quote", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	h := middleware.Wrap(mux,
		middleware.Rate(quota, middleware.WithHeaders(middleware.NoHeaders)), // clients are not to go by what is only tried
		middleware.Concurrency(limit),
		middleware.Breaker(breakers),
	)

	for range 5 {
		fmt.Println(get(h, "GET", "/quote").Status)
	}
	fmt.Println("over the quota:", quota.Stats().Shadowed)
	fmt.Println("no place:", limit.Stats().Shed)
	fmt.Println("refused by the breaker:", breakers.Get("GET /quote").Stats().Rejected)
	// Output:
	// 502 Bad Gateway
	// 502 Bad Gateway
	// the breaker of GET /quote would be open: consecutive failures
	// 502 Bad Gateway
	// 502 Bad Gateway
	// 502 Bad Gateway
	// over the quota: 3
	// no place: 0
	// refused by the breaker: 2
}

// To test what your clients see when a layer refuses, no load is needed: hold the permits, force the breaker open, use up
// the quota. Test what takes time in a bubble of testing/synctest.
func Example_refusals() {
	limit := limiter.NewConcurrency(1)
	breakers := breaker.NewGroup()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /hello", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") })
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "welcome") })
	h := middleware.Wrap(mux,
		middleware.Concurrency(limit),
		middleware.Breaker(breakers),
		middleware.For("POST /login", middleware.Rate(limiter.NewRate(0, 1))),
	)

	permit, _ := limit.TryAcquire(limiter.Request{})
	fmt.Println("full:", get(h, "GET", "/hello").Status)
	permit.Release(limiter.Ignored)

	breakers.Get("GET /hello").ForceOpen()
	fmt.Println("open:", get(h, "GET", "/hello").Status)
	breakers.Get("GET /hello").Reset()
	fmt.Println("well:", get(h, "GET", "/hello").Status)

	get(h, "POST", "/login")
	fmt.Println("over its quota:", get(h, "POST", "/login").Status)
	// Output:
	// full: 503 Service Unavailable
	// open: 503 Service Unavailable
	// well: 200 OK
	// over its quota: 429 Too Many Requests
}

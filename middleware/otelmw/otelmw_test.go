package otelmw_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/cache"
	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware"
	"github.com/spillgate/spillgate/middleware/health"
	"github.com/spillgate/spillgate/middleware/internal/metrics"
	"github.com/spillgate/spillgate/middleware/otelmw"
	"github.com/spillgate/spillgate/middleware/outbound"
	"github.com/spillgate/spillgate/pool"
	"github.com/spillgate/spillgate/pool/jobs"
)

// telemetry is what an application sets up.
type telemetry struct {
	reader *sdkmetric.ManualReader
	meters *sdkmetric.MeterProvider
	spans  *tracetest.SpanRecorder
	tracer *sdktrace.TracerProvider
}

func newTelemetry(opts ...sdktrace.TracerProviderOption) *telemetry {
	o := &telemetry{reader: sdkmetric.NewManualReader(), spans: tracetest.NewSpanRecorder()}
	o.meters = sdkmetric.NewMeterProvider(sdkmetric.WithReader(o.reader))
	o.tracer = sdktrace.NewTracerProvider(append(opts, sdktrace.WithSpanProcessor(o.spans))...)
	return o
}

// around is h as most people have it.
func (o *telemetry) around(h http.Handler) http.Handler {
	return otelhttp.NewHandler(h, "server", otelhttp.WithTracerProvider(o.tracer), otelhttp.WithMeterProvider(o.meters))
}

// collect returns all metrics of our scope by name, and their values by name and attributes.
func (o *telemetry) collect(t *testing.T) (all map[string]metricdata.Metrics, values map[string]float64) {
	t.Helper()
	var rm metricdata.ResourceMetrics
	if err := o.reader.Collect(context.Background(), &rm); err != nil {
		t.Fatal(err)
	}
	all, values = map[string]metricdata.Metrics{}, map[string]float64{}
	for _, s := range rm.ScopeMetrics {
		for _, m := range s.Metrics {
			if ours := strings.HasPrefix(m.Name, "spillgate."); ours != (s.Scope.Name == otelmw.ScopeName) {
				t.Errorf("%s is of %s", m.Name, s.Scope.Name)
			}
			if s.Scope.Name != otelmw.ScopeName {
				continue
			}
			all[m.Name] = m
			switch d := m.Data.(type) {
			case metricdata.Sum[int64]:
				points(values, m.Name, d.DataPoints)
			case metricdata.Sum[float64]:
				points(values, m.Name, d.DataPoints)
			case metricdata.Gauge[float64]:
				points(values, m.Name, d.DataPoints)
			case metricdata.Histogram[float64]:
				for _, p := range d.DataPoints {
					values[m.Name+"|"+p.Attributes.Encoded(attribute.DefaultEncoder())] = float64(p.Count)
				}
			default:
				t.Errorf("%s is a %T", m.Name, d)
			}
		}
	}
	return all, values
}

func points[N int64 | float64](values map[string]float64, name string, all []metricdata.DataPoint[N]) {
	for _, p := range all {
		values[name+"|"+p.Attributes.Encoded(attribute.DefaultEncoder())] = float64(p.Value)
	}
}

// events are those of the spans that have ended, as "name key=value ...".
func (o *telemetry) events() (all []string) {
	for _, s := range o.spans.Ended() {
		for _, e := range s.Events() {
			line := e.Name
			for _, a := range e.Attributes {
				line += fmt.Sprintf(" %s=%s", strings.TrimPrefix(string(a.Key), "spillgate."), a.Value.String())
			}
			all = append(all, line)
		}
	}
	return all
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestServer(t *testing.T) {
	o := newTelemetry()
	requests := must(otelmw.NewRequests(o.meters))(t)
	stack := middleware.New(append(middleware.Defaults(), requests.Layer(),
		middleware.For("POST /login", middleware.Rate(limiter.NewRate(0, 2, limiter.WithName("login")))))...)
	registration := must(otelmw.Stack(o.meters, stack))(t)
	mux := http.NewServeMux()
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "welcome") })
	mux.HandleFunc("GET /page", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Cache-Control", "public, max-age=60")
		io.WriteString(w, "page")
	})
	s := httptest.NewServer(o.around(stack.Handler(mux)))
	for _, want := range []int{200, 200, 429} {
		res, err := http.Post(s.URL+"/login", "", nil)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != want {
			t.Fatalf("%d, want %d", res.StatusCode, want)
		}
	}
	for range 3 {
		res, err := http.Get(s.URL + "/page")
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
	}
	s.Close()

	// What nothing was decided about has no event; no span is ours.
	waited := func(s string) bool { return strings.HasPrefix(s, "spillgate.request.waited ") } // on a machine without a processor to spare
	got, want := slices.DeleteFunc(o.events(), waited), []string{"spillgate.request.rejected layer=rate reason=rate_limited policy=login retry_after=86400"}
	if !slices.Equal(got, want) {
		t.Errorf("events %q, want %q", got, want)
	}
	if n := len(o.spans.Ended()); n != 6 {
		t.Errorf("%d spans of 6 requests", n)
	}
	_, values := o.collect(t)
	for name, want := range map[string]float64{
		"spillgate.active_requests|":                                                                                        0,
		"spillgate.requests.rejected|spillgate.layer=rate":                                                                  1,
		"spillgate.rate.requests|spillgate.for=POST /login,spillgate.nth=1,spillgate.result=acquired":                       2,
		"spillgate.rate.requests|spillgate.for=POST /login,spillgate.nth=1,spillgate.result=rejected":                       1,
		"spillgate.cache.requests|spillgate.for=,spillgate.nth=1,spillgate.result=hit":                                      2,
		"spillgate.concurrency.limit|spillgate.for=,spillgate.nth=1":                                                        8,
		"spillgate.concurrency.active_requests|spillgate.for=,spillgate.nth=1":                                              0,
		"spillgate.breaker.open|spillgate.for=,spillgate.nth=1,spillgate.route=GET /page":                                   0,
		"spillgate.breaker.window_calls|spillgate.for=,spillgate.nth=1,spillgate.outcome=success,spillgate.route=GET /page": 1,
	} {
		if v, ok := values[name]; !ok || v != want {
			t.Errorf("%s is %v, %t; want %v", name, v, ok, want)
		}
	}
	if err := registration.Unregister(); err != nil {
		t.Fatal(err)
	}
	if all, _ := o.collect(t); len(all) > 1 { // but for the histogram
		t.Errorf("after the end: %v", all)
	}
}

// Each decision is an event of the span of the request that it is about.
func TestEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newTelemetry()
		requests := must(otelmw.NewRequests(o.meters))(t)
		stack := middleware.New(requests.Layer(),
			middleware.Cache(cache.New(1<<20)),
			middleware.Concurrency(limiter.NewConcurrency(1, limiter.WithQueue(1, time.Minute))),
			middleware.Breaker(breaker.NewGroup(breaker.WithOnChange(requests.Changed), breaker.WithConsecutiveFailures(2), breaker.WithOpenTime(time.Hour, time.Hour), breaker.WithJitter(0))))
		mux := http.NewServeMux()
		mux.HandleFunc("GET /slow", func(http.ResponseWriter, *http.Request) { time.Sleep(time.Second) }) // in a synctest bubble
		fails := false
		mux.HandleFunc("GET /fails", func(w http.ResponseWriter, _ *http.Request) {
			if fails {
				w.WriteHeader(500)
				return
			}
			w.Header().Set("Cache-Control", "public, max-age=1, stale-if-error=600")
			io.WriteString(w, "page")
		})
		h := o.around(stack.Handler(mux))
		get := func(path string) int {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest("GET", "http://example.com"+path, nil))
			return w.Code
		}
		get("/fails")
		if got := o.events(); len(got) > 0 {
			t.Errorf("%q", got)
		}

		var wg sync.WaitGroup
		for i := range 3 { // one works, one waits, one is too many
			wg.Go(func() { get(fmt.Sprintf("/slow?%d", i)) })
			synctest.Wait()
		}
		wg.Wait()
		fails = true
		for range 3 {
			if code := get("/fails"); code != 200 {
				t.Errorf("%d instead of a stale answer", code)
			}
		}
		if code := get("/fails?other"); code != 503 {
			t.Errorf("%d while the breaker is open", code)
		}
		if err := stack.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		get("/slow")

		want := []string{
			"spillgate.request.rejected layer=concurrency reason=saturated",
			"spillgate.request.waited layer=concurrency time_in_queue=1",
			"spillgate.cache.stale",
			"spillgate.breaker.opened route=GET /fails cause=consecutive failures open_for=3600",
			"spillgate.cache.stale",
			"spillgate.request.rejected layer=breaker reason=open retry_after=3600",
			"spillgate.cache.stale",
			"spillgate.request.rejected layer=breaker reason=open retry_after=3600",
			"spillgate.request.rejected layer=drain reason=draining",
		}
		if got := o.events(); !slices.EqualFunc(got, want, func(g, w string) bool { return strings.HasPrefix(g, w) }) {
			t.Errorf("events\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		if _, v := o.collect(t); v["spillgate.request.time_in_queue|spillgate.layer=concurrency"] != 1 {
			t.Errorf("%v", v)
		}
	})
}

// An opening that no request was told of in time is not told to another, later.
func TestOpeningOfNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newTelemetry()
		requests := must(otelmw.NewRequests(o.meters))(t)
		h := o.around(middleware.Wrap(http.NotFoundHandler(), requests.Layer()))
		requests.Changed(breaker.Change{To: breaker.Open})
		time.Sleep(time.Minute) // in a synctest bubble
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
		if got := o.events(); len(got) > 0 {
			t.Errorf("%q", got)
		}
	})
}

// Breakers of several routes may open before a request of any of them has ended.
func TestOpeningsOfSeveralRoutes(t *testing.T) {
	o := newTelemetry()
	requests := must(otelmw.NewRequests(o.meters))(t)
	mux := http.NewServeMux()
	for _, route := range []string{"GET /a", "GET /b", "GET /c"} {
		mux.HandleFunc(route, func(http.ResponseWriter, *http.Request) {})
		requests.Changed(breaker.Change{Name: route, To: breaker.Open, Cause: breaker.CauseConsecutive, OpenFor: time.Second})
	}
	h := o.around(middleware.Wrap(mux, requests.Layer()))
	for _, path := range []string{"/b", "/a", "/a", "/c"} {
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", path, nil))
	}
	const event = "spillgate.breaker.opened route=GET %s cause=consecutive failures open_for=1"
	want := []string{fmt.Sprintf(event, "/b"), fmt.Sprintf(event, "/a"), fmt.Sprintf(event, "/c")}
	if got := o.events(); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// Every metric there is comes out, as what it is.
func TestEverythingIsThere(t *testing.T) {
	o := newTelemetry()
	p := pool.New(pool.WithSlots(1))
	stack := middleware.New(middleware.Rate(limiter.NewRate(1, 1)), middleware.Cache(cache.New(1<<20)), middleware.Concurrency(limiter.NewAdaptive()),
		middleware.Breaker(breaker.NewGroup()), middleware.Pool(p))
	stack.Handler(http.NotFoundHandler()).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("POST", "/", nil))
	l := jobs.NewLocal(jobs.NewMux(), p)
	defer l.Close()
	set := must(outbound.NewSet([]outbound.Endpoint{{URL: "http://service.example"}}))(t)
	defer set.Close()
	hl := health.New(health.WithCheck(health.Check{Name: "database", Run: func(context.Context) error { return errors.New("down") }}))
	defer hl.Close()
	registrations := []metric.Registration{
		must(otelmw.Stack(o.meters, stack))(t), must(otelmw.Jobs(o.meters, l))(t), must(otelmw.Set(o.meters, set))(t),
		must(otelmw.Transport(o.meters, outbound.New(http.DefaultTransport)))(t), must(otelmw.Health(o.meters, hl))(t),
	}
	all, _ := o.collect(t)
	n := 0
	for _, f := range []metrics.Families{metrics.OfStack, metrics.OfJobs, metrics.OfTransport, metrics.OfSet, metrics.OfHealth} {
		for _, m := range f {
			n++
			name, unit := m.Dotted()
			got, ok := all[name]
			if !ok || got.Unit != unit || got.Description == "" {
				t.Errorf("%s: %t, unit %q, %q", name, ok, got.Unit, got.Description)
				continue
			}
			var is metrics.Kind
			switch d := got.Data.(type) {
			case metricdata.Sum[int64]:
				is = kind(d.IsMonotonic)
			case metricdata.Sum[float64]:
				is = kind(d.IsMonotonic)
			}
			want := m.Kind
			if want == metrics.Summary {
				n++
				want = metrics.Counter
				if _, ok := all[name+"_count"]; !ok {
					t.Errorf("no %s_count", name)
				}
			}
			if is != want {
				t.Errorf("%s is a %T", name, got.Data)
			}
		}
	}
	if n != len(all) || n < 80 {
		t.Errorf("%d metrics came out of %d", len(all), n)
	}
	for _, r := range registrations {
		if err := r.Unregister(); err != nil {
			t.Error(err)
		}
	}
	if all, _ := o.collect(t); len(all) > 0 {
		t.Errorf("%d after the end", len(all))
	}
}

func kind(monotonic bool) metrics.Kind {
	if monotonic {
		return metrics.Counter
	}
	return metrics.UpDown
}

func TestOptions(t *testing.T) {
	o := newTelemetry()
	for _, name := range []string{"one", "two"} {
		stack := middleware.New(middleware.Breaker(breaker.NewGroup(), middleware.WithBreakerKey(func(r *http.Request) string { return r.Header.Get("Key") })))
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Key", "secret")
		stack.Handler(http.NotFoundHandler()).ServeHTTP(httptest.NewRecorder(), r)
		must(otelmw.Stack(o.meters, stack, otelmw.WithAttributes(attribute.String("stack", name)), otelmw.WithoutRoutes()))(t)
	}
	_, got := o.collect(t)
	for _, name := range []string{"one", "two"} {
		if v := got["spillgate.breaker.keys|spillgate.for=,spillgate.nth=1,stack="+name]; v != 1 {
			t.Errorf("%v keys of stack %s", v, name)
		}
	}
	for name := range got {
		if strings.Contains(name, "secret") {
			t.Errorf("a key that a client chose: %s", name)
		}
	}
}

// Two readers, as an exporter that pushes and one that is scraped, may collect at the same time.
func TestTwoReaders(t *testing.T) {
	readers := []*sdkmetric.ManualReader{sdkmetric.NewManualReader(), sdkmetric.NewManualReader()}
	p := sdkmetric.NewMeterProvider(sdkmetric.WithReader(readers[0]), sdkmetric.WithReader(readers[1]))
	must(otelmw.Stack(p, middleware.New(), otelmw.WithAttributes(attribute.String("z", "1"), attribute.String("a", "2"))))(t)
	var wg sync.WaitGroup
	for _, r := range readers {
		wg.Go(func() {
			for range 100 {
				var rm metricdata.ResourceMetrics
				if err := r.Collect(t.Context(), &rm); err != nil {
					t.Error(err)
				}
				for _, m := range rm.ScopeMetrics[0].Metrics {
					if d, ok := m.Data.(metricdata.Sum[int64]); ok && m.Name == "spillgate.active_requests" {
						if got := d.DataPoints[0].Attributes.Encoded(attribute.DefaultEncoder()); got != "a=2,z=1" {
							t.Error(got)
						}
					}
				}
			}
		})
	}
	wg.Wait()
}

// A request about which nothing is decided, and one whose span does not record, cost no allocation.
func TestAllocations(t *testing.T) {
	if race {
		t.Skip("the race detector allocates")
	}
	never := newTelemetry(sdktrace.WithSampler(sdktrace.NeverSample()))
	ctx, span := newTelemetry().tracer.Tracer("").Start(t.Context(), "recording")
	defer span.End()
	quiet, span := never.tracer.Tracer("").Start(t.Context(), "not recording")
	defer span.End()
	for _, tt := range []struct {
		name string
		ctx  context.Context
		with []middleware.Layer
	}{
		{"passes", ctx, nil},
		{"refused, and nobody records", quiet, []middleware.Layer{middleware.Rate(limiter.NewRate(0, 1))}},
	} {
		allocs := func(layers ...middleware.Layer) float64 {
			mux := http.NewServeMux()
			mux.HandleFunc("POST /hello", func(http.ResponseWriter, *http.Request) {})
			h := middleware.Wrap(mux, slices.Concat(middleware.Defaults(), tt.with, layers)...)
			r := httptest.NewRequestWithContext(tt.ctx, "POST", "/hello", nil)
			h.ServeHTTP(httptest.NewRecorder(), r) // what is used of the quota
			w := httptest.NewRecorder()
			return testing.AllocsPerRun(1000, func() {
				r.Pattern = ""
				w.Body.Reset()
				h.ServeHTTP(w, r)
			})
		}
		q := must(otelmw.NewRequests(never.meters))(t)
		without, with := allocs(middleware.WithTrace(&middleware.Trace{
			Rejected: func(*http.Request, middleware.Rejection) {},
			Admitted: func(*http.Request, string, time.Duration) {},
			Done:     func(*http.Request, middleware.Result) {},
		})), allocs(q.Layer())
		if with > without {
			t.Errorf("%s: %v allocations, and %v without", tt.name, with, without)
		}
	}
}

func TestPanicsOfConstruction(t *testing.T) {
	p := noop.NewMeterProvider()
	for name, f := range map[string]func(){
		"Stack":           func() { otelmw.Stack(p, nil) },
		"Stack, provider": func() { otelmw.Stack(nil, middleware.New()) },
		"Stack, option":   func() { otelmw.Stack(p, middleware.New(), nil) },
		"Jobs":            func() { otelmw.Jobs(p, nil) },
		"Transport":       func() { otelmw.Transport(p, nil) },
		"Set":             func() { otelmw.Set(p, nil) },
		"Health":          func() { otelmw.Health(p, nil) },
		"NewRequests":     func() { otelmw.NewRequests(nil) },
	} {
		func() {
			defer func() {
				if s, _ := recover().(string); !strings.HasPrefix(s, "otelmw: ") {
					t.Errorf("%s: panic %q", name, s)
				}
			}()
			f()
		}()
	}
}

func Example() {
	reader := sdkmetric.NewManualReader() // in a program, a periodic one with an exporter
	provider := sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
	requests, err := otelmw.NewRequests(provider)
	if err != nil {
		panic(err)
	}
	stack := middleware.New(append(middleware.Defaults(), requests.Layer())...)
	if _, err := otelmw.Stack(provider, stack); err != nil {
		panic(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /hello", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") })
	server := otelhttp.NewHandler(stack.Handler(mux), "server") // whose spans get the events

	server.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/hello", nil))
	var all metricdata.ResourceMetrics
	if err := reader.Collect(context.Background(), &all); err != nil {
		panic(err)
	}
	for _, s := range all.ScopeMetrics {
		for _, m := range s.Metrics {
			if m.Name == "spillgate.concurrency.admitted" {
				fmt.Println(m.Name, m.Data.(metricdata.Sum[int64]).DataPoints[0].Value)
			}
		}
	}
	// Output:
	// spillgate.concurrency.admitted 1
}

// BenchmarkRequests measures what the layer costs: the defaults, and the same with it.
func BenchmarkRequests(b *testing.B) {
	q, err := otelmw.NewRequests(newTelemetry().meters)
	if err != nil {
		b.Fatal(err)
	}
	for name, extra := range map[string][]middleware.Layer{"without": nil, "with": {q.Layer()}} {
		b.Run(name, func(b *testing.B) {
			mux := http.NewServeMux()
			mux.HandleFunc("GET /hello", func(http.ResponseWriter, *http.Request) {})
			h := middleware.Wrap(mux, append(middleware.Defaults(), extra...)...)
			r := httptest.NewRequest("GET", "/hello", nil)
			w := httptest.NewRecorder()
			b.ReportAllocs()
			for b.Loop() {
				r.Pattern = ""
				h.ServeHTTP(w, r)
			}
		})
	}
}

package prommw_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"

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

// scrape returns the samples of a registry as they go over the wire, by what stands before the value.
func scrape(t *testing.T, reg *prometheus.Registry) map[string]string {
	t.Helper()
	s := httptest.NewServer(promhttp.HandlerFor(reg, promhttp.HandlerOpts{ErrorHandling: promhttp.HTTPErrorOnError}))
	defer s.Close()
	res, err := http.Get(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != 200 {
		t.Fatalf("%d, %v: %s", res.StatusCode, err, b)
	}
	samples := map[string]string{}
	for line := range strings.Lines(string(b)) {
		if i := strings.LastIndexByte(line, ' '); i > 0 && line[0] != '#' {
			samples[line[:i]] = strings.TrimSpace(line[i+1:])
		}
	}
	return samples
}

func registry(t *testing.T, c ...prometheus.Collector) *prometheus.Registry {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	for _, c := range c {
		if err := reg.Register(c); err != nil {
			t.Fatal(err)
		}
	}
	return reg
}

func send(h http.Handler, method, path string) int {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, "http://example.com"+path, nil))
	return w.Code
}

func TestStack(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /page", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Cache-Control", "public, max-age=60")
		io.WriteString(w, "page")
	})
	mux.HandleFunc("GET /fails", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) })
	mux.HandleFunc("POST /compute", func(http.ResponseWriter, *http.Request) {})
	p := pool.New(pool.WithSlots(2))
	requests := prommw.NewRequests()
	stack := middleware.New(
		requests.Layer(),
		middleware.Rate(limiter.NewRate(0, 8)),
		middleware.For("GET /fails", middleware.Rate(limiter.NewRate(0, 100, limiter.WithName("fails")))),
		middleware.For("GET /fails", middleware.Rate(limiter.NewRate(0, 1000, limiter.WithName("more")))),
		middleware.Cache(cache.New(1<<20)),
		middleware.Concurrency(limiter.NewAdaptive()),
		middleware.Breaker(breaker.NewGroup()),
		middleware.For("POST /compute", middleware.Pool(p)),
	)
	h := stack.Handler(mux)
	for range 3 {
		send(h, "GET", "/page")
		send(h, "POST", "/compute")
	}
	send(h, "GET", "/fails")
	send(h, "GET", "/nothing")
	if code := send(h, "GET", "/page"); code != 429 {
		t.Fatal(code)
	}
	reg := registry(t, requests, prommw.Stack(stack))
	if problems, err := testutil.GatherAndLint(reg); err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
	got := scrape(t, reg)
	for name, want := range map[string]string{
		`spillgate_active_requests`:                                                                    "0",
		`spillgate_requests_rejected_total{layer="rate"}`:                                              "1",
		`spillgate_requests_rejected_total{layer="breaker"}`:                                           "0",
		`spillgate_rate_requests_total{for="",nth="1",result="acquired"}`:                              "8",
		`spillgate_rate_requests_total{for="",nth="1",result="rejected"}`:                              "1",
		`spillgate_rate_burst{for="",nth="1",policy="default"}`:                                        "8",
		`spillgate_rate_burst{for="GET /fails",nth="1",policy="fails"}`:                                "100",
		`spillgate_rate_burst{for="GET /fails",nth="2",policy="more"}`:                                 "1000",
		`spillgate_cache_requests_total{for="",nth="1",result="hit"}`:                                  "2",
		`spillgate_cache_entries{for="",nth="1"}`:                                                      "1",
		`spillgate_concurrency_admitted_total{for="",nth="1"}`:                                         "6",
		`spillgate_concurrency_adaptive{for="",nth="1"}`:                                               "1",
		`spillgate_concurrency_limit{for="",nth="1"}`:                                                  "8",
		`spillgate_breaker_keys{for="",nth="1"}`:                                                       "4",
		`spillgate_breaker_open{for="",nth="1",route="GET /fails"}`:                                    "0",
		`spillgate_breaker_window_calls{for="",nth="1",outcome="failure",route="GET /fails"}`:          "1",
		`spillgate_pool_slots{for="POST /compute",nth="1"}`:                                            "2",
		`spillgate_pool_kind_begun_total{for="POST /compute",kind="",nth="1"}`:                         "3",
		`spillgate_pool_kind_run_seconds_count{for="POST /compute",kind="",nth="1"}`:                   "",
		`spillgate_request_duration_seconds_count{cache="hit",code="200",route="",shed=""}`:            "2",
		`spillgate_request_duration_seconds_count{cache="miss",code="500",route="GET /fails",shed=""}`: "1",
		`spillgate_request_duration_seconds_count{cache="bypass",code="429",route="",shed="rate"}`:     "1",
		`spillgate_request_time_in_queue_seconds_count{layer="concurrency"}`:                           "6",
		`spillgate_request_time_in_queue_seconds_count{layer="pool"}`:                                  "3",
	} {
		if v, ok := got[name]; !ok || want != "" && v != want {
			t.Errorf("%s is %q, want %s", name, v, want)
		}
	}
	if t.Failed() {
		for name, v := range got {
			t.Log(name, v)
		}
	}
}

func TestOthers(t *testing.T) {
	m := jobs.NewMux()
	jobs.Register(m, "k", func(context.Context, int) (int, error) { return 0, nil })
	l := jobs.NewLocal(m, pool.New())
	defer l.Close()
	j, _, err := l.Submit(t.Context(), "k", []byte("1"), jobs.SubmitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for range l.Watch(t.Context(), j.ID) {
	}
	s := httptest.NewServer(http.NotFoundHandler())
	defer s.Close()
	set, err := outbound.NewSet([]outbound.Endpoint{{URL: s.URL}})
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	tr := outbound.New(http.DefaultTransport, outbound.Retry(), outbound.Balance(set))
	res, err := (&http.Client{Transport: tr}).Get("http://service.example/")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	hl := health.New(health.WithCheck(health.Check{Name: "database", Run: func(context.Context) error { return errors.New("secret") }}))
	defer hl.Close()
	for hl.Stats().Checks[0].Ran.IsZero() {
		runtime.Gosched()
	}
	reg := registry(t, prommw.Jobs(l), prommw.Transport(tr), prommw.Set(set), prommw.Health(hl))
	if problems, err := testutil.GatherAndLint(reg); err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
	got := scrape(t, reg)
	for name, want := range map[string]string{
		`spillgate_jobs_held{state="finished"}`:                     "1",
		`spillgate_jobs_ended_total{state="succeeded"}`:             "1",
		`spillgate_outbound_requests_total`:                         "1",
		`spillgate_outbound_retries_total{outcome="sent"}`:          "0",
		`spillgate_endpoint_requests_total{url="` + s.URL + `"}`:    "1",
		`spillgate_endpoint_up{url="` + s.URL + `"}`:                "1",
		`spillgate_health_ready`:                                    "0",
		`spillgate_health_live`:                                     "1",
		`spillgate_health_check_up{check="database",probe="ready"}`: "0",
	} {
		if got[name] != want {
			t.Errorf("%s is %q, want %s; all: %v", name, got[name], want, got)
		}
	}
}

// What clients may have chosen ends no scrape, however odd.
func TestOddKeys(t *testing.T) {
	key := ""
	g := breaker.NewGroup()
	stack := middleware.New(middleware.Breaker(g, middleware.WithBreakerKey(func(*http.Request) string { return key })))
	h := stack.Handler(http.NotFoundHandler())
	keys := []string{"", "\xff", `"\xff"`, "\"\xff\"", "a\nb", "ü", "\x00", `"`, `""`}
	for _, key = range keys {
		send(h, "GET", "/")
	}
	n := 0
	for name := range scrape(t, registry(t, prommw.Stack(stack))) {
		if strings.HasPrefix(name, "spillgate_breaker_open{") {
			n++
		}
	}
	if want := g.Stats().Keys; n != want || want < len(keys)-1 {
		t.Errorf("%d breakers of %d keys, and %d metrics", want, len(keys), n)
	}
}

// Only a breaker that keeps calls away is open.
func TestBreakerOpen(t *testing.T) {
	g := breaker.NewGroup()
	stack := middleware.New(middleware.Breaker(g))
	send(stack.Handler(http.NotFoundHandler()), "GET", "/")
	reg := registry(t, prommw.Stack(stack))
	for _, tt := range []struct {
		force func(*breaker.Breaker)
		open  string
	}{
		{(*breaker.Breaker).Reset, "0"},
		{(*breaker.Breaker).Disable, "0"},
		{(*breaker.Breaker).ForceClosed, "0"},
		{(*breaker.Breaker).ForceOpen, "1"},
	} {
		for _, b := range g.All() {
			tt.force(b)
			got := scrape(t, reg)
			if one, all := got[`spillgate_breaker_open{for="",nth="1",route=""}`], got[`spillgate_breaker_keys_open{for="",nth="1"}`]; one != tt.open || all != tt.open {
				t.Errorf("%v: breaker_open %q, breaker_keys_open %q, want %s", b.State(), one, all, tt.open)
			}
		}
	}
}

// One in shadow tells what it would do, and that it does not: but for one that is forced open.
func TestBreakerInShadow(t *testing.T) {
	g := breaker.NewGroup(breaker.WithConsecutiveFailures(1), breaker.WithShadow(true))
	stack := middleware.New(middleware.Breaker(g))
	h := stack.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusInternalServerError) }))
	reg := registry(t, prommw.Stack(stack))
	check := func(open, shadow, rejected string) {
		t.Helper()
		got := scrape(t, reg)
		for name, want := range map[string]string{"open": open, "shadow": shadow, "rejected_total": rejected} {
			if name = "spillgate_breaker_" + name + `{for="",nth="1",route=""}`; got[name] != want {
				t.Errorf("%s is %q, want %s", name, got[name], want)
			}
		}
	}
	send(h, "GET", "/")
	send(h, "GET", "/")
	check("1", "1", "1")
	for _, b := range g.All() {
		b.ForceOpen()
	}
	send(h, "GET", "/")
	check("1", "0", "2")
	if err := g.Set(breaker.WithShadow(false)); err != nil {
		t.Fatal(err)
	}
	check("1", "0", "2")
}

// What stands in several layers is exported once, so that it is so often in a sum.
func TestOfSeveralLayers(t *testing.T) {
	limit, routes, c := limiter.NewConcurrency(4), breaker.NewGroup(breaker.WithConsecutiveFailures(1)), cache.New(1<<20)
	stack := middleware.New(
		middleware.For("GET /a", middleware.Concurrency(limit), middleware.Breaker(routes)),
		middleware.For("GET /b", middleware.Concurrency(limit), middleware.Breaker(routes)),
		middleware.For("GET /b", middleware.Concurrency(limiter.NewConcurrency(1))),
		middleware.For("GET /b", middleware.Cache(c, middleware.WithRoute(cache.WithOnlyExplicit()))),
		middleware.Cache(c),
	)
	send(stack.Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) })), "GET", "/a")
	got := scrape(t, registry(t, prommw.Stack(stack)))
	for name, want := range map[string]string{
		"spillgate_concurrency_admitted_total": `{for="GET /a | GET /b",nth="1"} 1 {for="GET /b",nth="1"} 0`,
		"spillgate_breaker_openings_total":     `{for="GET /a | GET /b",nth="1",route=""} 1`,
		"spillgate_breaker_keys_open":          `{for="GET /a | GET /b",nth="1"} 1`,
		"spillgate_cache_max_bytes":            `{for="",nth="1"} 1.048576e+06`,
	} {
		var all []string
		for sample, v := range got {
			if labels, ok := strings.CutPrefix(sample, name+"{"); ok {
				all = append(all, "{"+labels+" "+v)
			}
		}
		slices.Sort(all)
		if got := strings.Join(all, " "); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

// What is in no stack is exported by one that nothing goes through: the hosts that are called, a pool that jobs run in.
func TestOutsideOfAStack(t *testing.T) {
	hosts, p := breaker.NewGroup(breaker.WithConsecutiveFailures(1)), pool.New(pool.WithSlots(3))
	api := httptest.NewServer(nil)
	api.Close()
	if _, err := (&http.Client{Transport: outbound.New(nil, outbound.Breaker(hosts))}).Get(api.URL); err == nil {
		t.Fatal("an answer of a server that is closed")
	}
	reg := prometheus.NewPedanticRegistry()
	for name, s := range map[string]*middleware.Stack{
		"server": middleware.New(),
		"others": middleware.New(middleware.Breaker(hosts), middleware.Pool(p)),
	} {
		prometheus.WrapRegistererWith(prometheus.Labels{"stack": name}, reg).MustRegister(prommw.Stack(s))
	}
	got := scrape(t, reg)
	for name, want := range map[string]string{
		`spillgate_breaker_open{for="",nth="1",route="` + api.Listener.Addr().String() + `",stack="others"}`: "1",
		`spillgate_pool_slots{for="",nth="1",stack="others"}`:                                                "3",
		`spillgate_concurrency_limit{for="",nth="1",stack="server"}`:                                         "8",
	} {
		if got[name] != want {
			t.Errorf("%s is %q, want %s", name, got[name], want)
		}
	}
}

// Where clients choose the keys of breakers, no label may hold them.
func TestWithoutRoutes(t *testing.T) {
	stack := middleware.New(middleware.Breaker(breaker.NewGroup(), middleware.WithBreakerKey(func(r *http.Request) string { return r.Header.Get("Key") })))
	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("Key", "secret")
	stack.Handler(http.NotFoundHandler()).ServeHTTP(httptest.NewRecorder(), r)
	for _, tt := range []struct {
		opts []prommw.StackOption
		in   bool
	}{{nil, true}, {[]prommw.StackOption{prommw.WithoutRoutes()}, false}} {
		got := scrape(t, registry(t, prommw.Stack(stack, tt.opts...)))
		in := slices.ContainsFunc(slices.Collect(maps.Keys(got)), func(s string) bool { return strings.Contains(s, "secret") })
		if keys := got[`spillgate_breaker_keys{for="",nth="1"}`]; in != tt.in || keys != "1" {
			t.Errorf("%d options: the key is in a label: %t, want %t; %q keys", len(tt.opts), in, tt.in, keys)
		}
	}
}

// The quantiles of no task are not 0 seconds.
func TestQuantilesOfNothing(t *testing.T) {
	p := pool.New(pool.WithSlots(1))
	if err := p.Do(t.Context(), func(context.Context) error { return nil }, pool.WithKind("k")); err != nil {
		t.Fatal(err)
	}
	got := scrape(t, registry(t, prommw.Stack(middleware.New(middleware.Pool(p)))))
	if q, n := got[`spillgate_pool_kind_wait_seconds{for="",kind="k",nth="1",quantile="0.99"}`], got[`spillgate_pool_kind_wait_seconds_count{for="",kind="k",nth="1"}`]; q != "NaN" || n != "0" {
		t.Errorf("99th percentile %q of %q waits", q, n)
	}
	if q := got[`spillgate_pool_kind_run_seconds{for="",kind="k",nth="1",quantile="0.99"}`]; q == "NaN" || q == "" {
		t.Errorf("99th percentile %q of a task that ran", q)
	}
}

func TestTwoStacks(t *testing.T) {
	one, two := middleware.New(middleware.Defaults()...), middleware.New(middleware.Defaults()...)
	reg := registry(t, prommw.Stack(one))
	if err := reg.Register(prommw.Stack(two)); err == nil {
		t.Error("two stacks would have the same metrics, and nobody said so")
	}
	reg = prometheus.NewPedanticRegistry()
	for name, s := range map[string]*middleware.Stack{"one": one, "two": two} {
		if err := prometheus.WrapRegistererWith(prometheus.Labels{"stack": name}, reg).Register(prommw.Stack(s)); err != nil {
			t.Fatal(err)
		}
	}
	got := scrape(t, reg)
	for _, name := range []string{"one", "two"} {
		if _, ok := got[`spillgate_active_requests{stack="`+name+`"}`]; !ok {
			t.Errorf("nothing of %s", name)
		}
	}
}

// Buckets of both kinds, labels for all, and an exemplar, which no value that Prometheus does not take makes a panic of.
func TestRequestsOpts(t *testing.T) {
	var trace string
	q := prommw.NewRequestsOpts(prommw.RequestsOpts{
		Histogram: prometheus.HistogramOpts{
			Name: "not_for_you_to_say", Buckets: []float64{1}, NativeHistogramBucketFactor: 1.1, ConstLabels: prometheus.Labels{"site": "a"},
		},
		Exemplar: func(r *http.Request) prometheus.Labels {
			if trace == "" {
				return nil
			}
			return prometheus.Labels{"trace_id": trace}
		},
	})
	h := middleware.Wrap(http.NotFoundHandler(), q.Layer())
	for _, tt := range []struct{ trace, want string }{
		{"", ""},
		{strings.Repeat("a", prometheus.ExemplarMaxRunes), ""},
		{"\xff", ""},
		{"4bf92f3577b34da6a3ce929d0e0e4736", "4bf92f3577b34da6a3ce929d0e0e4736"},
		{"", "4bf92f3577b34da6a3ce929d0e0e4736"}, // which stays
	} {
		trace = tt.trace
		send(h, "GET", "/")
		reg := registry(t, q)
		all, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(all, func(f *dto.MetricFamily) bool { return f.GetName() == "spillgate_request_duration_seconds" })
		m := all[i].Metric[0]
		if len(m.GetHistogram().PositiveSpan) == 0 || len(m.GetHistogram().Bucket) != 1 {
			t.Errorf("native spans %v, buckets %v", m.GetHistogram().PositiveSpan, m.GetHistogram().Bucket)
		}
		if got := m.GetHistogram().Bucket[0].GetExemplar().GetLabel(); len(got) > 1 || (len(got) == 1) != (tt.want != "") || len(got) == 1 && got[0].GetValue() != tt.want {
			t.Errorf("exemplar %v for %q, want %q", got, tt.trace, tt.want)
		}
		if !slices.ContainsFunc(m.Label, func(l *dto.LabelPair) bool { return l.GetName() == "site" && l.GetValue() == "a" }) {
			t.Errorf("no const label: %v", m.Label)
		}
	}
}

// Nor does a name.
// Exemplars come in the format of OpenMetrics, where it is turned on, and names are the same in that.
func TestExemplarsOverHTTP(t *testing.T) {
	q := prommw.NewRequestsOpts(prommw.RequestsOpts{Exemplar: func(*http.Request) prometheus.Labels { return prometheus.Labels{"trace_id": "4bf92f"} }})
	stack := middleware.New(append(middleware.Defaults(), q.Layer())...)
	send(stack.Handler(http.NotFoundHandler()), "GET", "/")
	reg := registry(t, q, prommw.Stack(stack))
	names := map[bool]map[string]bool{}
	for _, on := range []bool{false, true} {
		r := httptest.NewRequest("GET", "/metrics", nil)
		r.Header.Set("Accept", "application/openmetrics-text; version=1.0.0; charset=utf-8")
		w := httptest.NewRecorder()
		promhttp.HandlerFor(reg, promhttp.HandlerOpts{EnableOpenMetrics: on}).ServeHTTP(w, r)
		if w.Code != http.StatusOK || strings.Contains(w.Body.String(), "4bf92f") != on {
			t.Errorf("OpenMetrics %t: %d\n%s", on, w.Code, w.Body)
		}
		names[on] = map[string]bool{}
		for line := range strings.Lines(w.Body.String()) {
			if name, _, _ := strings.Cut(line, "{"); !strings.HasPrefix(line, "#") {
				name, _, _ = strings.Cut(name, " ")
				names[on][name] = true
			}
		}
	}
	if !maps.Equal(names[false], names[true]) {
		t.Errorf("names differ: %v and %v", names[false], names[true])
	}
}

func TestExemplarNames(t *testing.T) {
	for _, name := range []string{"", "__trace", "\xff"} {
		q := prommw.NewRequestsOpts(prommw.RequestsOpts{Exemplar: func(*http.Request) prometheus.Labels { return prometheus.Labels{name: "x"} }})
		if code := send(middleware.Wrap(http.NotFoundHandler(), q.Layer()), "GET", "/"); code != 404 {
			t.Errorf("%q: %d", name, code)
		}
		if v := scrape(t, registry(t, q))[`spillgate_request_duration_seconds_count{cache="bypass",code="404",route="",shed=""}`]; v != "1" {
			t.Errorf("%q: %q requests were measured", name, v)
		}
	}
}

// A panic is measured and travels on; a connection that was taken over is no request any more.
func TestPanic(t *testing.T) {
	q := prommw.NewRequests(.1, 1)
	h := middleware.Wrap(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }), q.Layer())
	func() {
		defer func() {
			if v := recover(); v != http.ErrAbortHandler {
				t.Errorf("panic %v", v)
			}
		}()
		send(h, "GET", "/")
	}()
	got := scrape(t, registry(t, q))
	if v := got[`spillgate_request_duration_seconds_bucket{cache="bypass",code="panic",route="",shed="",le="1"}`]; v != "1" {
		t.Errorf("%q: %v", v, got)
	}
}

// Clients leave a proxy amid a response, or before there is one, and that is no error of the server.
func TestLeft(t *testing.T) {
	q := prommw.NewRequests(.1, 1)
	leave := func() {}
	h := middleware.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		leave()
		if r.URL.Path == "/amid" {
			w.WriteHeader(200)
			panic(http.ErrAbortHandler) // as ReverseProxy does
		}
		w.WriteHeader(502)
	}), q.Layer())
	for _, path := range []string{"/amid", "/before"} {
		r := httptest.NewRequest("GET", path, nil)
		ctx, cancel := context.WithCancel(r.Context())
		leave = cancel
		func() {
			defer func() { _ = recover() }()
			h.ServeHTTP(httptest.NewRecorder(), r.WithContext(ctx))
		}()
	}
	leave = func() {}
	send(h, "GET", "/")
	got := scrape(t, registry(t, q))
	for code, want := range map[string]string{"left": "2", "502": "1", "panic": ""} {
		if v := got[`spillgate_request_duration_seconds_count{cache="bypass",code="`+code+`",route="",shed=""}`]; v != want {
			t.Errorf("code %q: %q, want %q", code, v, want)
		}
	}
}

// A counter never falls, whatever goes on, and in the end all of them agree with what clients saw.
func TestScrapeUnderLoad(t *testing.T) {
	requests := prommw.NewRequests()
	stack := middleware.New(append(middleware.Defaults(), requests.Layer())...)
	mux := http.NewServeMux()
	for i := range 20 {
		mux.HandleFunc(fmt.Sprintf("GET /%d", i), func(http.ResponseWriter, *http.Request) {})
	}
	h := stack.Handler(mux)
	reg := registry(t, requests, prommw.Stack(stack))
	var wg sync.WaitGroup
	var served, refused atomic.Int64
	for g := range 4 {
		wg.Go(func() {
			for i := range 500 {
				if send(h, "GET", fmt.Sprintf("/%d", (g+i)%20)) == 200 {
					served.Add(1)
				} else { // on a machine without a processor to spare some wait for too long
					refused.Add(1)
				}
			}
		})
	}
	last := map[string]float64{}
	for range 20 {
		for sample, v := range scrape(t, reg) {
			name, _, _ := strings.Cut(sample, "{")
			switch name[strings.LastIndexByte(name, '_')+1:] {
			case "total", "count", "sum", "bucket":
				n, err := strconv.ParseFloat(v, 64)
				if err != nil || n < last[sample] {
					t.Errorf("%s fell from %v to %v, %v", sample, last[sample], v, err)
				}
				last[sample] = n
			}
		}
	}
	if len(last) < 100 {
		t.Errorf("%d counters", len(last))
	}
	wg.Wait()
	got := scrape(t, reg)
	for sample, want := range map[string]int64{
		`spillgate_concurrency_admitted_total{for="",nth="1"}`:   served.Load(),
		`spillgate_requests_rejected_total{layer="concurrency"}`: refused.Load(),
	} {
		if v := got[sample]; v != strconv.FormatInt(want, 10) {
			t.Errorf("%s is %s, and clients saw %d", sample, v, want)
		}
	}
}

func TestPanicsOfConstruction(t *testing.T) {
	for name, f := range map[string]func(){
		"Stack":       func() { prommw.Stack(nil) },
		"an option":   func() { prommw.Stack(middleware.New(), nil) },
		"Jobs":        func() { prommw.Jobs(nil) },
		"Transport":   func() { prommw.Transport(nil) },
		"Set":         func() { prommw.Set(nil) },
		"Health":      func() { prommw.Health(nil) },
		"NewRequests": func() { prommw.NewRequests(2, 1) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f()
		}()
	}
}

func Example() {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /hello", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") })
	requests := prommw.NewRequests()
	stack := middleware.New(append(middleware.Defaults(), requests.Layer())...)
	reg := prometheus.NewRegistry()
	reg.MustRegister(requests, prommw.Stack(stack))

	site := http.NewServeMux()
	site.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{})) // outside of the stack: an overload does not reach it
	site.Handle("/", stack.Handler(mux))

	site.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/hello", nil))
	w := httptest.NewRecorder()
	site.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for line := range strings.Lines(w.Body.String()) {
		if strings.HasPrefix(line, "spillgate_concurrency_admitted_total") || strings.HasPrefix(line, "spillgate_request_duration_seconds_count") {
			fmt.Print(line)
		}
	}
	// Output:
	// spillgate_concurrency_admitted_total{for="",nth="1"} 1
	// spillgate_request_duration_seconds_count{cache="miss",code="200",route="GET /hello",shed=""} 1
}

// BenchmarkRequests measures what measuring costs: the defaults, and the same with Requests.
func BenchmarkRequests(b *testing.B) {
	for name, extra := range map[string][]middleware.Layer{"without": nil, "with": {prommw.NewRequests().Layer()}} {
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

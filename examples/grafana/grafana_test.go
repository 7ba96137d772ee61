package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/annotations"

	"github.com/spillgate/spillgate/breaker"
)

var promQL = parser.NewParser(parser.Options{})

// between is how far apart the scrapes are.
const between = 5 * time.Second

// history is what Prometheus would have of the server, for all troubles and a minute of the first again.
type history struct {
	series     map[string]*series
	labels     map[string][]string // of each name
	began, end time.Time
}

type series struct {
	labels  labels.Labels
	samples []chunks.Sample
}

// record is made once for all tests.
var record struct {
	sync.Once
	history
}

// recording returns what the server exported while its load went on, in virtual time.
func recording(t *testing.T) *history {
	t.Helper()
	h := &record.history
	record.Do(func() {
		h.series, h.labels = map[string]*series{}, map[string][]string{}
		synctest.Test(t, func(t *testing.T) {
			s, err := newSite()
			if err != nil {
				t.Fatal(err)
			}
			defer s.close()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go s.load(ctx)
			h.began = time.Now()
			length := time.Minute
			for _, o := range troubles {
				length += o.lasts
			}
			every := time.NewTicker(between)
			defer every.Stop()
			for time.Since(h.began) < length {
				<-every.C
				h.scrape(t, s)
			}
			h.end = time.Now()
			cancel()
			if err := s.stack.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
			synctest.Wait()
			for _, e := range s.endpoints.Stats().Endpoints {
				if e.InFlight != 0 {
					t.Errorf("%s has %d in flight when all have been answered", e.URL, e.InFlight)
				}
			}
		})
	})
	if len(h.series) == 0 {
		t.Fatal("nothing was recorded")
	}
	return h
}

var labelNames = regexp.MustCompile(`[{,](\w+)="`)

func (h *history) scrape(t *testing.T, s *site) {
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("%d: %s", w.Code, w.Body)
	}
	for line := range strings.Lines(w.Body.String()) {
		if line[0] == '#' {
			continue
		}
		i := strings.LastIndexByte(line, ' ')
		v, err := strconv.ParseFloat(strings.TrimSpace(line[i+1:]), 64)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		one := h.series[line[:i]]
		if one == nil {
			m, err := promQL.ParseMetric(line[:i])
			if err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			name := m.Get(model.MetricNameLabel)
			if h.labels[name] == nil {
				h.labels[name] = []string{"job", "instance", model.MetricNameLabel}
			}
			for _, l := range labelNames.FindAllStringSubmatch(line[:i], -1) { // the empty ones among them
				h.labels[name] = append(h.labels[name], l[1])
			}
			// As Prometheus does: no empty labels, and what it knows of the target.
			one = &series{labels: labels.NewBuilder(m).Set("job", "site").Set("instance", "server:8080").Labels()}
			h.series[line[:i]] = one
		}
		one.samples = append(one.samples, sample{time.Now().UnixMilli(), v})
	}
}

// Querier implements storage.Queryable.
func (h *history) Querier(from, to int64) (storage.Querier, error) {
	return &querier{h: h, from: from, to: to}, nil
}

type querier struct {
	storage.LabelQuerier
	h        *history
	from, to int64
}

func (*querier) Close() error { return nil }

func (q *querier) Select(_ context.Context, _ bool, _ *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
	found := &set{at: -1}
next:
	for _, s := range q.h.series {
		for _, m := range matchers {
			if !m.Matches(s.labels.Get(m.Name)) {
				continue next
			}
		}
		within := slices.DeleteFunc(slices.Clone(s.samples), func(s chunks.Sample) bool { return s.T() < q.from || s.T() > q.to })
		if len(within) > 0 {
			found.all = append(found.all, storage.NewListSeries(s.labels, within))
		}
	}
	slices.SortFunc(found.all, func(a, b storage.Series) int { return labels.Compare(a.Labels(), b.Labels()) })
	return found
}

type set struct {
	all []storage.Series
	at  int
}

func (s *set) Next() bool                      { s.at++; return s.at < len(s.all) }
func (s *set) At() storage.Series              { return s.all[s.at] }
func (*set) Err() error                        { return nil }
func (*set) Warnings() annotations.Annotations { return nil }

type sample struct {
	t int64
	v float64
}

func (s sample) T() int64                    { return s.t }
func (sample) ST() int64                     { return 0 }
func (s sample) F() float64                  { return s.v }
func (sample) H() *histogram.Histogram       { return nil }
func (sample) FH() *histogram.FloatHistogram { return nil }
func (sample) Type() chunkenc.ValueType      { return chunkenc.ValFloat }
func (s sample) Copy() chunks.Sample         { return s }

// query returns what an expression is each 15 s.
func (h *history) query(t *testing.T, expr string) promql.Matrix {
	t.Helper()
	engine := promql.NewEngine(promql.EngineOpts{MaxSamples: 1e7, Timeout: time.Minute, LookbackDelta: 5 * time.Minute, Parser: promQL})
	defer engine.Close()
	q, err := engine.NewRangeQuery(t.Context(), h, nil, expr, h.began.Add(time.Minute), h.end, 15*time.Second)
	if err != nil {
		t.Fatalf("%s: %v", expr, err)
	}
	defer q.Close()
	res := q.Exec(t.Context())
	if res.Err != nil || len(res.Warnings) > 0 {
		t.Fatalf("%s: %v, %v", expr, res.Err, res.Warnings)
	}
	m, err := res.Matrix()
	if err != nil {
		t.Fatalf("%s: %v", expr, err)
	}
	var out promql.Matrix
	for _, s := range m { // which the engine takes back
		out = append(out, promql.Series{Metric: s.Metric, Floats: slices.Clone(s.Floats)})
	}
	return out
}

// check says what an expression names that the server does not export.
func (h *history) check(t *testing.T, where, expr string) {
	t.Helper()
	e, err := promQL.ParseExpr(expr)
	if err != nil {
		t.Errorf("%s: %v", where, err)
		return
	}
	parser.Inspect(e, func(n parser.Node, _ []parser.Node) error {
		switch n := n.(type) {
		case *parser.VectorSelector:
			if h.labels[n.Name] == nil {
				t.Errorf("%s: no metric %s", where, n.Name)
				return nil
			}
			for _, m := range n.LabelMatchers {
				if !slices.Contains(h.labels[n.Name], m.Name) {
					t.Errorf("%s: %s has no label %s", where, n.Name, m.Name)
				}
			}
		case *parser.AggregateExpr:
			parser.Inspect(n.Expr, func(inner parser.Node, _ []parser.Node) error {
				if v, ok := inner.(*parser.VectorSelector); ok {
					for _, l := range n.Grouping {
						if !slices.Contains(h.labels[v.Name], l) {
							t.Errorf("%s: grouped by %s, which %s does not have", where, l, v.Name)
						}
					}
				}
				return nil
			})
		}
		return nil
	})
}

type panel struct {
	ID      int
	Type    string
	Title   string
	GridPos struct{ H, W, X, Y int }
	Targets []struct{ Expr, LegendFormat string }
	Panels  []panel
}

func dashboard(t *testing.T) (panels []panel, annotations []string) {
	t.Helper()
	var d struct {
		UID           string
		SchemaVersion int
		Templating    struct {
			List []struct{ Name string }
		}
		Annotations struct{ List []struct{ Expr string } }
		Panels      []panel
	}
	b, err := os.ReadFile("grafana/dashboards/spillgate.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	var vars []string
	for _, v := range d.Templating.List {
		vars = append(vars, v.Name)
	}
	if d.UID == "" || d.SchemaVersion < 42 {
		t.Errorf("uid %q, schema %d", d.UID, d.SchemaVersion)
	}
	for _, m := range regexp.MustCompile(`\$\{?(\w+)`).FindAllStringSubmatch(string(b), -1) {
		if !slices.Contains(vars, m[1]) && m[1] != "__rate_interval" && m[1] != "__all" {
			t.Errorf("no variable $%s", m[1])
		}
	}
	for _, a := range d.Annotations.List {
		if a.Expr != "" {
			annotations = append(annotations, a.Expr)
		}
	}
	return d.Panels, annotations
}

// asked is an expression as Grafana sends it.
func asked(expr string) string {
	return strings.NewReplacer("$__rate_interval", "1m", "$job", ".*", "$instance", ".*").Replace(expr)
}

func TestDashboard(t *testing.T) {
	h := recording(t)
	panels, annotations := dashboard(t)
	taken := map[[2]int]string{}
	ids := map[int]bool{}
	queries := 0
	for _, p := range panels {
		if ids[p.ID] {
			t.Errorf("%s: two panels have the id %d", p.Title, p.ID)
		}
		ids[p.ID] = true
		for x := range p.GridPos.W {
			for y := range p.GridPos.H {
				at := [2]int{p.GridPos.X + x, p.GridPos.Y + y}
				if other := taken[at]; other != "" || at[0] > 23 {
					t.Errorf("%s is on top of %s, or too far right", p.Title, other)
				}
				taken[at] = p.Title
			}
		}
		if p.Type == "row" != (len(p.Targets) == 0) || len(p.Panels) > 0 {
			t.Errorf("%s is a %s with %d queries", p.Title, p.Type, len(p.Targets))
		}
		for _, target := range p.Targets {
			queries++
			where, expr := p.Title+": "+target.LegendFormat, asked(target.Expr)
			if !strings.Contains(target.Expr, `{job=~"$job",instance=~"$instance"`) {
				t.Errorf("%s: does not follow the variables", where)
			}
			h.check(t, where, expr)
			got := h.query(t, expr)
			points := 0
			for _, s := range got {
				for _, f := range s.Floats {
					if !math.IsNaN(f.F) {
						points++
					}
				}
			}
			if points == 0 {
				t.Errorf("%s: no data from %s", where, expr)
			}
			// A label of the legend is one of the result; which Prometheus leaves out where it is empty.
			for _, m := range regexp.MustCompile(`{{\s*(\w+)\s*}}`).FindAllStringSubmatch(target.LegendFormat, -1) {
				if !slices.ContainsFunc(got, func(s promql.Series) bool { return s.Metric.Has(m[1]) }) && !(m[1] == "for" && strings.Contains(expr, "for")) {
					t.Errorf("%s: no label %s in %v", where, m[1], got[0].Metric)
				}
			}
		}
	}
	if queries < 40 {
		t.Errorf("%d queries", queries)
	}
	for _, expr := range annotations {
		h.check(t, "annotation", asked(expr))
		if len(h.query(t, asked(expr))) == 0 {
			t.Errorf("no annotation by %s", expr)
		}
	}
}

// What each trouble of the load is to be seen by, and by whom it is to be called.
func TestAlerts(t *testing.T) {
	h := recording(t)
	groups, errs := rulefmt.ParseFile("prometheus/rules.yml", false, model.UTF8Validation, promQL, slog.New(slog.DiscardHandler))
	for _, err := range errs {
		t.Error(err)
	}
	if t.Failed() {
		return
	}
	fire := map[string][]string{ // which trouble, by alert; the others have no cause here
		"SpillgateRefusing":     {"a crowd searches", "a flood of reports, and mail fails"},
		"SpillgateBreakerOpen":  {"all servers of the inventory fail"},
		"SpillgatePoolRefusing": {"a flood of reports, and mail fails"},
		"SpillgateJobsFail":     {"a flood of reports, and mail fails"},
		"SpillgateEndpointOut":  {"a server of the inventory fails"},
		"SpillgateCheckFails":   {"all servers of the inventory fail"},
	}
	spare := map[string][]string{
		"SpillgateRefusing":     {"all servers of the inventory fail"}, // what its breaker refuses the cache has
		"SpillgateBreakerFlaps": {"all servers of the inventory fail"}, // and do not recover, though each probe opens it again
	}
	for _, g := range groups.Groups {
		for _, r := range g.Rules {
			h.check(t, r.Alert, r.Expr)
			e, err := promQL.ParseExpr(r.Expr)
			if err != nil {
				t.Fatal(err)
			}
			compared, ok := e.(*parser.BinaryExpr)
			if !ok || !compared.Op.IsComparisonOperator() {
				t.Errorf("%s: is no comparison", r.Alert)
				continue
			}
			if got := h.query(t, compared.LHS.String()); len(got) == 0 {
				t.Errorf("%s: no data from %s", r.Alert, compared.LHS)
			}
			during := h.fires(t, r)
			if during["none"] {
				t.Errorf("%s: fires without trouble", r.Alert)
			}
			for _, name := range fire[r.Alert] {
				if !during[name] {
					t.Errorf("%s does not fire while %s; it does in %v", r.Alert, name, during)
				}
			}
			for _, name := range spare[r.Alert] {
				if during[name] {
					t.Errorf("%s fires while %s", r.Alert, name)
				}
			}
			delete(fire, r.Alert)
		}
	}
	for name := range fire {
		t.Errorf("no alert %s", name)
	}
}

// A route that nobody asks for after an outage, as at night, is half-open until the morning, and keeps nobody out.
func TestNoCallForARouteThatNobodyAsks(t *testing.T) {
	all := recording(t)
	rule := ruleOf(t, "SpillgateBreakerOpen").Expr
	for refuses, want := range map[bool]int{true: 1, false: 0} {
		h := &history{series: map[string]*series{}, began: all.began, end: all.end}
		for name, s := range all.series {
			in := &series{labels: s.labels}
			for i, was := range s.samples {
				switch {
				case s.labels.Get("route") != "GET /search":
					continue
				case strings.HasPrefix(name, "spillgate_breaker_open{"):
					in.samples = append(in.samples, sample{was.T(), 1})
				case strings.HasPrefix(name, "spillgate_breaker_rejected_total{") && refuses:
					in.samples = append(in.samples, sample{was.T(), float64(i)})
				default:
					in.samples = append(in.samples, was)
				}
			}
			h.series[name] = in
		}
		if got := h.query(t, rule); len(got) != want {
			t.Errorf("it refuses requests: %t; %v", refuses, got)
		}
	}
}

// fires says in which troubles an alert does.
func (h *history) fires(t *testing.T, r rulefmt.Rule) map[string]bool {
	t.Helper()
	during := map[string]bool{}
	for _, s := range h.query(t, r.Expr) {
		held := time.Duration(0)
		for i, f := range s.Floats {
			if i > 0 && f.T-s.Floats[i-1].T > 15000 {
				held = 0
			}
			if held >= time.Duration(r.For) {
				during[h.troubleAt(f.T)] = true
			}
			held += 15 * time.Second
		}
	}
	return during
}

// Of jobs that wait for ten minutes nothing is known of an instance that is younger. One that is so busy that a scrape of it fails now and then has them all the same.
func TestAlertOfJobsThatPileUp(t *testing.T) {
	all := recording(t)
	for _, x := range []struct {
		began time.Duration
		fails int // one scrape in so many
		want  bool
	}{{0, 0, true}, {9 * time.Minute, 0, false}, {0, 10, true}} {
		h := &history{series: map[string]*series{}, began: all.began, end: all.end}
		for name, s := range all.series {
			if strings.HasPrefix(name, `spillgate_jobs_held{state="queued"`) {
				in := &series{labels: s.labels}
				for i, was := range s.samples {
					v := 150.
					if x.fails > 0 && i%x.fails == 0 {
						v = math.Float64frombits(value.StaleNaN) // as Prometheus puts down a scrape that failed
					}
					if time.UnixMilli(was.T()).Sub(h.began) >= x.began {
						in.samples = append(in.samples, sample{was.T(), v})
					}
				}
				h.series[name] = in
			}
		}
		if got := len(h.fires(t, ruleOf(t, "SpillgateJobsPileUp"))) > 0; got != x.want {
			t.Errorf("150 jobs wait from %v to %v, and one scrape in %d fails: fires %t, want %t", x.began, h.end.Sub(h.began), x.fails, got, x.want)
		}
	}
}

// A handler that recovers and fails again is one that flaps, however short either is; one that fails for an hour is none, nor is one that fails now and then.
// It is scraped as seldom as prometheus.yml has it.
func TestAlertOfABreakerThatFlaps(t *testing.T) {
	rule := ruleOf(t, "SpillgateBreakerFlaps").Expr
	for _, x := range []struct {
		fails, of time.Duration
		want      bool
	}{
		{5 * time.Second, 4 * time.Minute, true}, // open for 5 s, between two scrapes
		{30 * time.Second, 2 * time.Minute, true},
		{2 * time.Minute, 4 * time.Minute, true},
		{5 * time.Second, 6 * time.Minute, false},
		{time.Hour, 2 * time.Hour, false},
	} {
		for _, at := range []time.Duration{0, 5 * time.Second, 10 * time.Second} {
			var h *history
			synctest.Test(t, func(*testing.T) { h = breaking(x.fails, x.of, at) })
			if got := len(h.query(t, rule)) > 0; got != x.want {
				t.Errorf("fails for %v of %v, scraped at %v: fires %t, want %t", x.fails, x.of, at, got, x.want)
			}
		}
	}
}

// breaking is what Prometheus has of the breaker of a handler that fails for a part of the time, scraped each 15 s from then on.
func breaking(fails, of, at time.Duration) *history {
	h := &history{series: map[string]*series{}, began: time.Now()}
	h.end = h.began.Add(30 * time.Minute)
	b := breaker.New(breaker.WithJitter(0))
	add := func(name string, v float64) {
		s := h.series[name]
		if s == nil {
			s = &series{labels: labels.FromStrings(model.MetricNameLabel, name, "job", "site", "instance", "server:8080", "for", "", "nth", "1", "route", "GET /search")}
			h.series[name] = s
		}
		s.samples = append(s.samples, sample{time.Now().UnixMilli(), v})
	}
	const tick = 50 * time.Millisecond
	for ; time.Now().Before(h.end); time.Sleep(tick) { // in a synctest bubble
		now := time.Since(h.began)
		if call, err := b.Allow(); err == nil {
			if now%of < of-fails {
				call.Done(breaker.Success, 0)
			} else {
				call.Done(breaker.Failure, 0)
			}
		}
		if now%(15*time.Second) == at {
			s := b.Stats()
			add("spillgate_breaker_passing_ratio", s.Ramp)
			add("spillgate_breaker_openings_total", float64(s.Openings))
			open := 0.
			if s.State == breaker.Open || s.State == breaker.HalfOpen {
				open = 1
			}
			add("spillgate_breaker_open", open)
		}
	}
	return h
}

// Nor is anybody for refusals in whose place a fallback has answered.
func TestNoCallForAFallback(t *testing.T) {
	all := recording(t)
	rule := ruleOf(t, "SpillgateRefusing").Expr
	h := &history{series: map[string]*series{}, began: all.began, end: all.end}
	for name, s := range all.series {
		if s.labels.Get("shed") != "" {
			s = &series{labels.NewBuilder(s.labels).Set("code", "200").Labels(), s.samples}
		}
		h.series[name] = s
	}
	if got := h.query(t, rule); len(all.query(t, rule)) == 0 || len(got) > 0 {
		t.Errorf("with a fallback: %v", got)
	}
}

// What stands in two layers is exported once: what is there twice is two caches, and counts as such.
func TestTwoCaches(t *testing.T) {
	all := recording(t)
	h := &history{series: maps.Clone(all.series), began: all.began, end: all.end}
	for name, s := range all.series {
		if strings.HasPrefix(name, "spillgate_cache_") {
			h.series["copy of "+name] = &series{labels.NewBuilder(s.labels).Set("for", "GET /copy").Labels(), s.samples}
		}
	}
	panels, _ := dashboard(t)
	queries := 0
	for _, p := range panels {
		for _, target := range p.Targets {
			if !strings.Contains(target.Expr, "spillgate_cache_") || strings.HasPrefix(target.Expr, "max ") {
				continue
			}
			queries++
			times := 2.
			if strings.Contains(target.Expr, "/ (") {
				times = 1 // a ratio
			}
			want := map[string][]promql.FPoint{}
			for _, s := range all.query(t, asked(target.Expr)) {
				want[s.Metric.String()] = s.Floats
			}
			for _, s := range h.query(t, asked(target.Expr)) {
				for i, f := range s.Floats {
					if w := want[s.Metric.String()][i]; f.T != w.T || math.Abs(f.F-times*w.F) > 1e-9*math.Abs(w.F) {
						t.Errorf("%s: %s: %v is %v and not %v times %v", p.Title, target.LegendFormat, s.Metric, f, times, w)
						break
					}
				}
			}
		}
	}
	if queries < 8 {
		t.Errorf("%d queries", queries)
	}
}

// ruleOf returns an alert.
func ruleOf(t *testing.T, alert string) rulefmt.Rule {
	t.Helper()
	groups, errs := rulefmt.ParseFile("prometheus/rules.yml", false, model.UTF8Validation, promQL, slog.New(slog.DiscardHandler))
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	rules := groups.Groups[0].Rules
	return rules[slices.IndexFunc(rules, func(r rulefmt.Rule) bool { return r.Alert == alert })]
}

// Who tries a breaker in shadow is not called for what it would do.
func TestNoCallForAShadow(t *testing.T) {
	all := recording(t)
	rule := ruleOf(t, "SpillgateBreakerOpen").Expr
	if len(all.query(t, rule)) == 0 {
		t.Fatal("no breaker opened")
	}
	h := &history{series: maps.Clone(all.series), began: all.began, end: all.end}
	for name, s := range h.series {
		if strings.HasPrefix(name, "spillgate_breaker_shadow{") {
			in := &series{labels: s.labels}
			for _, was := range s.samples {
				in.samples = append(in.samples, sample{was.T(), 1})
			}
			h.series[name] = in
		}
	}
	if got := h.query(t, rule); len(got) > 0 {
		t.Errorf("in shadow: %v", got)
	}
}

// A stack may have a cache and no rate limit, as that of the defaults, or the other way round: what is asked of both is known of either.
func TestStoreAlertOfEitherLayer(t *testing.T) {
	all := recording(t)
	e, err := promQL.ParseExpr(ruleOf(t, "SpillgateStoreFails").Expr)
	if err != nil {
		t.Fatal(err)
	}
	for _, without := range []string{"spillgate_rate_", "spillgate_cache_"} {
		h := &history{series: maps.Clone(all.series), began: all.began, end: all.end}
		maps.DeleteFunc(h.series, func(name string, _ *series) bool { return strings.HasPrefix(name, without) })
		if expr := e.(*parser.BinaryExpr).LHS.String(); len(h.query(t, expr)) == 0 {
			t.Errorf("without %s: no data from %s", without, expr)
		}
	}
}

// troubleAt says what went on at a time, in which an alert may look back.
func (h *history) troubleAt(ms int64) string {
	at := time.UnixMilli(ms).Sub(h.began)
	for _, o := range troubles {
		if at < o.lasts {
			return o.name
		}
		at -= o.lasts
	}
	return "what was"
}

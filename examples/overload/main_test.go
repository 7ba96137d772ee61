package main

import (
	"bufio"
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestMain lets the test binary be the server, as the program itself is.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "-serve" {
		var a serverArgs
		f := flag.NewFlagSet("server", flag.ExitOnError)
		a.define(f)
		f.Parse(os.Args[1:])
		if err := serve(a); err != nil {
			os.Stderr.WriteString(err.Error())
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// TestShortForm holds what is beyond all noise once the queues of the unprotected server have filled, at six
// times the capacity and after it. Of what it takes on, the wrapped server answers at least three times as
// large a share in time; it serves half as much again in time in all, and at least three times as much after the
// surge; and its health check, which no layer protects, is answered. With -v it says how much it was.
//
// How much the unprotected one still serves during the surge is luck: a connection that is new runs next, so that
// those who come last may be served first, at up to half of the capacity, while all before them wait in vain.
func TestShortForm(t *testing.T) {
	p := newPlan(1, true, 0)
	p.seed = 1
	all, err := runAll(p, []string{"cpu"}) // real time: the scheduler itself is under test
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := finish(&out, p, all, ""); err != nil {
		t.Log(err) // on a loaded machine; what the test holds is below
	}
	t.Logf("\n%s", out.String())
	o := all[0]
	var bare, wrapped sum
	var healthy float64
	for i, w := range o.wrapped {
		b := o.bare[i]
		if w.sent == 0 || b.sent == 0 {
			t.Fatalf("%s: %d and %d requests sent", w.step.name(), b.sent, w.sent)
		}
		if w.step.load > 1 && w.refused == 0 {
			t.Errorf("%s: nothing was refused", w.step.name())
		}
		if i >= 2 { // in the first steps the unprotected one's queues are still filling
			bare.add(b)
			wrapped.add(w)
			healthy = max(healthy, w.healthy)
		}
	}
	from := o.wrapped[2].step.name()
	t.Logf("from %s on, in time: wrapped %.0f, %.3f of what it took on; unprotected %.0f, %.3f", from, wrapped.good, wrapped.share(), bare.good, bare.share())
	if wrapped.share() < 3*bare.share() {
		t.Errorf("from %s on: of what they took on, wrapped %.3f in time, unprotected %.3f; want at least three times that", from, wrapped.share(), bare.share())
	}
	if wrapped.good < 10*p.d.Seconds() || wrapped.good < 1.5*bare.good {
		t.Errorf("from %s on: wrapped %.0f in time, unprotected %.0f; want at least one and a half times that", from, wrapped.good, bare.good)
	}
	b, w := o.bare[len(o.bare)-1], o.wrapped[len(o.wrapped)-1]
	if w.good < 3*b.good {
		t.Errorf("%s: wrapped %.0f/s in time, unprotected %.0f/s; want at least three times that", w.step.name(), w.good, b.good)
	}
	if healthy < heldShare {
		t.Errorf("from %s on: at most %.0f %% of the health checks were answered in time; want at least half in one of the steps", from, 100*healthy)
	}
}

// sum is the requests of several steps.
type sum struct{ good, taken float64 }

func (s *sum) add(r result) {
	good := r.good * r.step.d.Seconds()
	s.good += good
	s.taken += good + float64(r.late+r.lost)
}

// share is the part answered in time of all that were not refused.
func (s sum) share() float64 { return s.good / max(1, s.taken) }

// TestChart holds that the chart is well-formed and has a row for each profile.
func TestChart(t *testing.T) {
	p := newPlan(1, false, time.Second)
	var all []outcome
	for _, pr := range profiles {
		o := outcome{profile: pr, cal: calibration{capacity: 500}}
		for _, s := range p.steps(500) {
			o.bare = append(o.bare, result{step: s, good: 10, p99: 2 * patience, possible: 480, cpu: -1})
			o.wrapped = append(o.wrapped, result{step: s, good: 450, p99: 30 * time.Millisecond, possible: 480, cpu: -1})
		}
		all = append(all, o)
	}
	b, err := chart(p, all)
	if err != nil {
		t.Fatal(err)
	}
	circles := 0
	for d := xml.NewDecoder(bytes.NewReader(b)); ; {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := tok.(xml.StartElement); ok && e.Name.Local == "circle" {
			circles++
			if i := slices.IndexFunc(e.Attr, func(a xml.Attr) bool { return a.Name.Local == "cy" }); strings.HasPrefix(e.Attr[i].Value, "-") {
				t.Errorf("a point lies %s above its panel", e.Attr[i].Value)
			}
		}
	}
	// Two panels of two lines of six points in each row, and one in the legend.
	if want := len(profiles)*2*2*6 + 1; circles != want {
		t.Errorf("%d points, want %d", circles, want)
	}
	for _, pr := range profiles {
		if !bytes.Contains(b, []byte(pr.what)) {
			t.Errorf("no row for %s", pr.name)
		}
	}
}

// TestHeld holds what the exit status says.
func TestHeld(t *testing.T) {
	good := result{step: step{load: 3}, good: 90, possible: 100, healthy: 1, p50: 30 * time.Millisecond}
	for _, c := range []struct {
		rule   string
		change func(*result)
		broken int
	}{
		{"nearly all that was possible", func(*result) {}, 0},
		{"below half of what was possible", func(r *result) { r.good = 49 }, 1},
		{"answers later than the limit", func(r *result) { r.p50 = inTime + 1 }, 1},
		{"the health check starves", func(r *result) { r.healthy = .3 }, 1},
		{"both", func(r *result) { r.good, r.p50 = 0, patience }, 2},
		{"not overloaded: nothing to hold", func(r *result) { r.good, r.step.load = 0, .9 }, 0},
		{"after the surge: must be back", func(r *result) { r.good, r.step.load, r.step.back = 0, .9, true }, 1},
	} {
		r := good
		c.change(&r)
		if got := (outcome{wrapped: []result{r}}).held(); len(got) != c.broken {
			t.Errorf("%s: %q; want %d", c.rule, got, c.broken)
		}
	}
}

func TestReadAnswer(t *testing.T) {
	for _, c := range []struct {
		name, in string
		status   int
	}{
		{"with a body", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\ndone\n", 200},
		{"without", "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: 1\r\n\r\n", 503},
		{"no length", "HTTP/1.1 200 OK\r\n\r\nx", 0},
		{"cut in the body", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nd", 0},
		{"cut in the header", "HTTP/1.1 200 OK\r\nContent-", 0},
		{"no HTTP", "hello\n\n", 0},
	} {
		status, err := readAnswer(bufio.NewReader(strings.NewReader(c.in)))
		if (c.status == 0) != (err != nil) || err == nil && status != c.status {
			t.Errorf("%s: %d, %v; want %d", c.name, status, err, c.status)
		}
	}
}

// A profile that is not there, or there twice, is known before anything is measured.
func TestProfiles(t *testing.T) {
	for _, names := range [][]string{{""}, {"cpu", "disk"}, {"io", "cpu", "io"}} {
		if all, err := runAll(newPlan(1, true, 0), names); err == nil || len(all) > 0 {
			t.Errorf("%q: %d outcomes, %v", names, len(all), err)
		}
	}
}

// Where the chart cannot be written, the two minutes were not in vain.
func TestVerdictWithoutChart(t *testing.T) {
	var out bytes.Buffer
	err := finish(&out, newPlan(1, true, 0), nil, filepath.Join(t.TempDir(), "none", "overload.svg"))
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(out.String(), "The wrapped server held.") {
		t.Errorf("%v after\n%s", err, out.String())
	}
}

// A chart that cannot be written is refused before the measurement; a look leaves nothing behind, and what is there alone.
func TestChartWritable(t *testing.T) {
	dir := t.TempDir()
	none, old := filepath.Join(dir, "new.svg"), filepath.Join(dir, "old.svg")
	if err := os.WriteFile(old, []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{"": nil, none: nil, old: nil, filepath.Join(dir, "none", "x.svg"): fs.ErrNotExist} {
		if err := writable(path); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", path, err, want)
		}
	}
	if err := writable(dir); err == nil {
		t.Error("no error for a folder")
	}
	if _, err := os.Stat(none); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file was left: %v", err)
	}
	if b, err := os.ReadFile(old); err != nil || string(b) != "old" {
		t.Errorf("the file that was there: %q, %v", b, err)
	}
}

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"maps"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// The demonstration sees every protection at work.
func TestDemo(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds of real traffic")
	}
	a := newApp(defaults())
	s := httptest.NewServer(a.handler)
	defer s.Close()
	var out bytes.Buffer
	if err := a.demo(t.Context(), s.URL, &out); err != nil {
		t.Errorf("%v\n%s", err, &out)
	}
	if !strings.Contains(out.String(), "Every protection was seen working.") {
		t.Errorf("no verdict in the output:\n%s", &out)
	}
}

// A protection that does not work is found out.
func TestDemoFindsWhatIsMissing(t *testing.T) {
	a := newApp(defaults())
	r := newRow("rate limit")
	bare := httptest.NewServer(http.HandlerFunc(a.login))
	defer bare.Close()
	a.demoRate(t.Context(), client{http: bare.Client(), base: bare.URL}, r)
	if r.failure == "" {
		t.Error("a server without a rate limit passes for one with it")
	}
	if err := a.table(&bytes.Buffer{}, []*row{r}); err == nil {
		t.Error("no error for a protection that was not seen")
	}
}

func TestFlagsOutOfRange(t *testing.T) {
	for _, f := range []struct {
		name string
		set  func(*config)
	}{
		{"-rate", func(c *config) { c.rate = 0 }},
		{"-rate", func(c *config) { c.rate = math.Inf(1) }},
		{"-rate", func(c *config) { c.rate = math.NaN() }},
		{"-burst", func(c *config) { c.burst = 0 }},
		{"-burst", func(c *config) { c.burst = math.MaxInt }},
		{"-limit", func(c *config) { c.limit = -1 }},
		{"-limit", func(c *config) { c.limit = math.MaxInt }},
		{"-slots", func(c *config) { c.slots = -1 }},
		{"-slots", func(c *config) { c.slots = math.MaxInt }},
		{"-open", func(c *config) { c.open = 0 }},
		{"-open", func(c *config) { c.open = 1 }},
		{"-open", func(c *config) { c.open = math.MaxInt64 }},
	} {
		c := defaults()
		f.set(&c)
		if err := c.check(); err == nil || !strings.HasPrefix(err.Error(), f.name) {
			t.Errorf("%s out of range: %v; want an error that begins with the flag", f.name, err)
		}
	}
	for _, c := range []config{{rate: 1e-9, burst: 1, limit: 1, open: time.Millisecond}, {rate: most, burst: most, limit: most, slots: most, open: time.Hour}} {
		if err := c.check(); err != nil {
			t.Error(err)
		}
		newApp(c) // must not panic
	}
	if err := defaults().check(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
}

// With one processor there is none to keep free, so reports get a thread that the kernel takes turns with.
func TestOnOneProcessor(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(before)
	for procs, want := range map[int]int{1: 2, 2: 2, 4: 4} {
		runtime.GOMAXPROCS(procs)
		end, err := newApp(defaults()).onOneProcessor()
		if err != nil {
			t.Fatal(err)
		}
		if got := runtime.GOMAXPROCS(0); got != want {
			t.Errorf("GOMAXPROCS is %d where it was %d; want %d", got, procs, want)
		}
		end()
		if got := runtime.GOMAXPROCS(0); got != procs {
			t.Errorf("GOMAXPROCS is %d afterwards; want %d", got, procs)
		}
	}
}

func TestHelpNamesFiveCommands(t *testing.T) {
	help := newApp(defaults()).help("127.0.0.1:8080")
	for _, want := range []string{"  1. ", "  2. ", "  3. ", "  4. ", "  5. ", "/debug/stats", "-demo"} {
		if !strings.Contains(help, want) {
			t.Errorf("the help lacks %q:\n%s", want, help)
		}
	}
}

func TestStatsAreJSON(t *testing.T) {
	a := newApp(defaults())
	w := httptest.NewRecorder()
	a.handler.ServeHTTP(w, httptest.NewRequest("GET", "/debug/stats", nil))
	var st struct {
		Layers []struct {
			Layer string `json:"layer"`
		} `json:"layers"`
	}
	if err := json.Unmarshal(w.Body.Bytes(), &st); err != nil {
		t.Fatalf("%v in %s", err, w.Body)
	}
	seen := map[string]bool{}
	for _, l := range st.Layers {
		seen[l.Layer] = true
	}
	for _, want := range []string{"rate", "cache", "concurrency", "breaker", "pool"} {
		if !seen[want] {
			t.Errorf("no %s layer in %s", want, w.Body)
		}
	}
}

// What the README shows is what is sent, but for the time of day.
func TestReadmeShowsWhatIsSent(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	var shown []*http.Response
	for _, block := range strings.Split(string(readme), "\n$ curl -si ")[1:] {
		block, _, _ = strings.Cut(block, "\n```")
		_, response, _ := strings.Cut(block, "\n")
		head, body, _ := strings.Cut(response, "\n\n")
		res, err := http.ReadResponse(bufio.NewReader(strings.NewReader(strings.ReplaceAll(head, "\n", "\r\n")+"\r\n\r\n"+body)), nil)
		if err != nil {
			t.Fatal(err)
		}
		shown = append(shown, res)
	}
	synctest.Test(t, func(t *testing.T) {
		a := newApp(defaults())
		send := func(method, path string, n int) (res *http.Response) {
			for range n {
				w := httptest.NewRecorder()
				a.handler.ServeHTTP(w, httptest.NewRequest(method, path, nil))
				res = w.Result()
			}
			return res
		}
		var sent []*http.Response
		sent = append(sent, send("POST", "/login", 1), send("POST", "/login", 5))
		send("GET", "/quote", 1)
		a.broken.Store(true)
		time.Sleep(3 * time.Second) // in a synctest bubble
		send("GET", "/flaky", 30)
		sent = append(sent, send("GET", "/flaky", 1), send("GET", "/quote", 1))
		if len(shown) != len(sent) {
			t.Fatalf("%d responses found in the README, want %d", len(shown), len(sent))
		}
		for i, got := range sent {
			want := shown[i]
			for _, h := range []http.Header{want.Header, got.Header} {
				h.Del("Date")
				h.Del("Content-Length") // a recorder has none
				if want.StatusCode == http.StatusServiceUnavailable && h.Get("Retry-After") != "" {
					h.Set("Retry-After", "spread")
				}
			}
			if want.StatusCode != got.StatusCode || !maps.EqualFunc(want.Header, got.Header, slices.Equal) {
				t.Errorf("the README shows\n%d %v\nand what is sent is\n%d %v", want.StatusCode, want.Header, got.StatusCode, got.Header)
			}
		}
	})
}

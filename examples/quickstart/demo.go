package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"
)

// row is what one part of the demonstration saw, from the clients' side.
type row struct {
	name        string
	mu          sync.Mutex
	status      map[int]int
	hits        int
	collapsed   int
	stale       int
	transitions int64
	took        []time.Duration // of answers other than refusals
	failure     string          // why the protection was not seen working; empty if it was
}

func newRow(name string) *row { return &row{name: name, status: map[int]int{}} }

func (r *row) fail(format string, args ...any) {
	if r.failure == "" {
		r.failure = fmt.Sprintf(format, args...)
	}
}

func (r *row) percentile(p float64) time.Duration {
	if len(r.took) == 0 {
		return 0
	}
	slices.Sort(r.took)
	return r.took[min(len(r.took)-1, int(p*float64(len(r.took))))].Round(10 * time.Microsecond)
}

type answer struct {
	status      int
	body        string
	retryAfter  string
	cacheStatus string
}

type client struct {
	http *http.Client
	base string
}

func (c client) send(ctx context.Context, r *row, method, path string) answer {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, nil)
	if err != nil {
		r.fail("%v", err)
		return answer{}
	}
	begun := time.Now()
	res, err := c.http.Do(req)
	if err != nil {
		r.mu.Lock()
		r.fail("%s %s: %v", method, path, err)
		r.mu.Unlock()
		return answer{}
	}
	b, err := io.ReadAll(res.Body)
	_ = res.Body.Close() // all was read
	took := time.Since(begun)

	a := answer{res.StatusCode, string(b), res.Header.Get("Retry-After"), strings.Join(res.Header.Values("Cache-Status"), ", ")}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.fail("%s %s: %v", method, path, err)
	}
	r.status[a.status]++
	if strings.Contains(a.cacheStatus, "; hit") {
		r.hits++
	}
	if strings.Contains(a.cacheStatus, "collapsed") {
		r.collapsed++
	}
	switch a.status {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		if a.retryAfter == "" {
			r.fail("%s %s: %d without Retry-After", method, path, a.status)
		}
	default:
		r.took = append(r.took, took)
	}
	return a
}

// together sends n requests at the same time.
func (c client) together(ctx context.Context, r *row, n int, method, path string) []answer {
	out := make([]answer, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { out[i] = c.send(ctx, r, method, path) })
	}
	wg.Wait()
	return out
}

// during sends requests to path from several clients, each after the answer to the last, until done is closed.
func (c client) during(ctx context.Context, r *row, clients int, pause time.Duration, path string, done <-chan struct{}) {
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				case <-ctx.Done():
					return
				case <-time.After(pause):
				}
				c.send(ctx, r, http.MethodGet, path)
			}
		})
	}
	wg.Wait()
}

func (c client) lasting(ctx context.Context, r *row, d time.Duration, clients int, pause time.Duration, path string) {
	done := make(chan struct{})
	time.AfterFunc(d, func() { close(done) })
	c.during(ctx, r, clients, pause, path, done)
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// demo shows every protection at work on real HTTP traffic. It returns an error if one was not seen.
func (a *app) demo(ctx context.Context, base string, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	c := client{base: base, http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true}}}
	defer c.http.CloseIdleConnections()

	steps := []struct {
		name string
		run  func(context.Context, client, *row) *row
	}{
		{"cheap, alone", a.demoCheap},
		{"rate limit", a.demoRate},
		{"cache", a.demoCache},
		{"concurrency limit", a.demoConcurrency},
		{"breaker", a.demoBreaker},
		{"pool", a.demoPool},
	}
	var rows []*row
	for i, s := range steps {
		fmt.Fprintf(out, "\r[%d/%d] %-20s", i+1, len(steps), s.name)
		r := newRow(s.name)
		beside := s.run(ctx, c, r)
		if ctx.Err() != nil {
			return fmt.Errorf("the demonstration was cut short: %w", context.Cause(ctx))
		}
		rows = append(rows, r)
		if beside != nil {
			rows = append(rows, beside)
		}
	}
	fmt.Fprintf(out, "\r%-30s\n", "")
	return a.table(out, rows)
}

func (a *app) table(out io.Writer, rows []*row) error {
	var failures []error
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\tsent\tadmitted\t429\t503\tother\thits\tcollapsed\tstale\ttransitions\tp50\tp99\tseen\t")
	for _, r := range rows {
		sent, other := 0, 0
		for status, n := range r.status {
			sent += n
			switch status {
			case http.StatusOK, http.StatusTooManyRequests, http.StatusServiceUnavailable:
			default:
				other += n
			}
		}
		seen := "yes"
		if r.failure != "" {
			seen = "NO"
			failures = append(failures, fmt.Errorf("%s: %s", r.name, r.failure))
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%v\t%v\t%s\t\n", r.name, sent, r.status[200], r.status[429], r.status[503], other,
			r.hits, r.collapsed, r.stale, r.transitions, r.percentile(.5), r.percentile(.99), seen)
	}
	_ = w.Flush() // out is the terminal
	fmt.Fprintln(out, "\nadmitted: 200. other: the 500s of the broken handler, until its breaker opens. p50 and p99: of what was not refused.")
	if len(failures) > 0 {
		return errors.Join(failures...)
	}
	fmt.Fprintln(out, "Every protection was seen working.")
	return nil
}

func (a *app) demoCheap(ctx context.Context, c client, r *row) *row {
	c.lasting(ctx, r, time.Second, 2, 5*time.Millisecond, "/hello")
	if r.status[200] == 0 || len(r.status) != 1 {
		r.fail("answers %v; want 200 only", r.status)
	}
	return nil
}

func (a *app) demoRate(ctx context.Context, c client, r *row) *row {
	n := a.config.burst + 20
	for range n {
		c.send(ctx, r, http.MethodPost, "/login")
	}
	if r.status[200] < a.config.burst {
		r.fail("%d of a burst of %d admitted", r.status[200], a.config.burst)
	}
	if r.status[429] == 0 {
		r.fail("no 429 in %d requests at once", n)
	}
	return nil
}

func (a *app) demoCache(ctx context.Context, c client, r *row) *row {
	c.together(ctx, r, 40, http.MethodGet, "/news")
	if n := a.newsCalls.Load(); n != 1 {
		r.fail("40 requests at once called the handler %d times; want 1", n)
	}
	c.together(ctx, r, 40, http.MethodGet, "/news")
	if r.hits == 0 || r.collapsed == 0 {
		r.fail("%d hits, %d collapsed; want some of both", r.hits, r.collapsed)
	}
	return nil
}

func (a *app) demoConcurrency(ctx context.Context, c client, r *row) *row {
	c.together(ctx, r, 6*a.config.limit, http.MethodGet, "/db")
	if r.status[200] < a.config.limit || r.status[503] == 0 {
		r.fail("%d admitted and %d refused of %d at a limit of %d", r.status[200], r.status[503], 6*a.config.limit, a.config.limit)
	}
	return nil
}

func (a *app) demoBreaker(ctx context.Context, c client, r *row) *row {
	before := a.transitions.Load()
	fresh := c.send(ctx, r, http.MethodGet, "/quote")
	a.broken.Store(true)
	wait(ctx, 2100*time.Millisecond) // until the quote is stale
	for range 40 {
		c.send(ctx, r, http.MethodGet, "/flaky")
	}
	if r.status[500] == 0 || r.status[503] == 0 {
		r.fail("%d failures passed on and %d refused; want some of both", r.status[500], r.status[503])
	}
	for range 40 {
		if q := c.send(ctx, r, http.MethodGet, "/quote"); q.status == 200 && q.body == fresh.body {
			r.stale++
		}
	}
	if r.stale == 0 {
		r.fail("no stale answer while the handler failed")
	}
	a.broken.Store(false)
	healed := false
	for range 100 {
		wait(ctx, 100*time.Millisecond)
		healed = c.send(ctx, r, http.MethodGet, "/flaky").status == 200
		if healed && a.transitions.Load()-before >= 3 {
			break
		}
	}
	r.transitions = a.transitions.Load() - before
	if !healed || r.transitions < 3 {
		r.fail("%d transitions; want closed to open to half-open to closed", r.transitions)
	}
	return nil
}

func (a *app) demoPool(ctx context.Context, c client, r *row) *row {
	cheap := newRow("cheap, meanwhile")
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { c.during(ctx, cheap, 2, 5*time.Millisecond, "/hello", done) })
	c.lasting(ctx, r, 2*time.Second, 2*(a.config.slots+reportQueue), 10*time.Millisecond, "/report")
	close(done)
	wg.Wait()
	if r.status[200] == 0 || r.status[503] == 0 {
		r.fail("%d reports admitted and %d refused; want some of both", r.status[200], r.status[503])
	}
	if cheap.status[200] == 0 {
		cheap.fail("no cheap request was answered while reports computed")
	}
	return cheap
}

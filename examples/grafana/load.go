package main

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"
)

// trouble is what goes on for a while.
type trouble struct {
	name      string
	lasts     time.Duration
	search    float64 // requests a second; the database does 100
	reports   float64 // the pool does 20
	inventory int     // how many of its three servers fail
	mail      bool    // the mail server fails
}

// troubles come one after the other, and again.
var troubles = []trouble{
	{name: "none", lasts: 2 * time.Minute, search: 40, reports: 4},
	{name: "a crowd searches", lasts: 2 * time.Minute, search: 300, reports: 4},
	{name: "a server of the inventory fails", lasts: 2 * time.Minute, search: 40, reports: 4, inventory: 1},
	{name: "all servers of the inventory fail", lasts: 2 * time.Minute, search: 40, reports: 4, inventory: 3},
	{name: "a flood of reports, and mail fails", lasts: 2 * time.Minute, search: 40, reports: 60, mail: true},
}

const tick = 50 * time.Millisecond

// load sends requests until ctx ends. They do not go over the network.
func (s *site) load(ctx context.Context) {
	every := time.NewTicker(tick)
	defer every.Stop()
	var n [5]float64
	began, now := time.Now(), 0
	for ctx.Err() == nil {
		at := time.Since(began)
		for at >= troubles[now].lasts {
			at -= troubles[now].lasts
			began = began.Add(troubles[now].lasts)
			now = (now + 1) % len(troubles)
			s.trouble.Store(&troubles[now])
		}
		t := &troubles[now]
		for i, a := range []struct {
			rate float64
			send func(n int)
		}{
			{30, func(n int) {
				id := n * n % 1000
				if n%16 == 0 {
					id = 1000 + n // which nobody has asked for yet
				}
				s.send(ctx, "GET", fmt.Sprintf("/items/%d", id), "192.0.2.1", "")
			}},
			{t.search, func(n int) { s.send(ctx, "GET", fmt.Sprintf("/search?q=%d", n), "192.0.2.1", "") }},
			{t.reports, func(int) { s.send(ctx, "POST", "/report", "192.0.2.1", "") }},
			{6, func(n int) { s.send(ctx, "POST", "/login", fmt.Sprintf("192.0.2.%d", 2+n%4*(n%60)), "") }}, // each fourth from one client
			{2, func(int) { s.send(ctx, "POST", "/mail", "192.0.2.1", `"somebody@example.com"`) }},
		} {
			before := int(n[i])
			for n[i] += a.rate * tick.Seconds(); before < int(n[i]); before++ {
				go a.send(before)
			}
		}
		select {
		case <-every.C:
		case <-ctx.Done():
		}
	}
}

func (s *site) send(ctx context.Context, method, path, client, body string) {
	r := httptest.NewRequestWithContext(ctx, method, "http://site.example"+path, strings.NewReader(body))
	r.RemoteAddr = client + ":1234"
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	s.ServeHTTP(discard{http.Header{}}, r)
}

// discard is a client that reads nothing.
type discard struct{ header http.Header }

func (d discard) Header() http.Header       { return d.header }
func (discard) WriteHeader(int)             {}
func (discard) Write(b []byte) (int, error) { return len(b), nil }

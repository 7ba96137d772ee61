package cachetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/spillgate/spillgate/cache"
)

// RelayConfig describes the relay under test.
type RelayConfig struct {
	// New returns a relay without messages, for one subtest.
	New func(t testing.TB) cache.Relay
	// Lose makes a relay that New has returned forget its messages, as if its server was lost.
	Lose func(t testing.TB, r cache.Relay)
	// Timeout is how long one call may take beyond the time that it is told to wait; 0 means 10 s.
	Timeout time.Duration
}

// TestRelay runs the tests that every [cache.Relay] must pass, as subtests of t, one after the other. It panics if c
// lacks a function.
func TestRelay(t *testing.T, c RelayConfig) {
	if c.New == nil || c.Lose == nil {
		panic("cachetest: TestRelay: RelayConfig.New or Lose is nil: give a function that makes a relay, and one that has it forget")
	}
	if c.Timeout == 0 {
		c.Timeout = 10 * time.Second
	}
	for _, test := range []struct {
		name string
		run  func(t *testing.T, r cache.Relay, c RelayConfig)
	}{
		{"what was sent is received in order, byte for byte", testReceive},
		{"what was sent before is not received", testEnd},
		{"who waits is woken", testWoken},
		{"a wait ends", testWait},
		{"a context that has ended ends the call", testRelayContext},
		{"slices belong to who made them", testRelaySlices},
		{"many at once, in one order", testSenders},
		{"what was forgotten is no silence", testLost},
		{"a purge reaches another cache", testRelayed},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, c.New(t), c) })
	}
}

func send(t *testing.T, r cache.Relay, message []byte) {
	t.Helper()
	if err := r.Send(t.Context(), message); err != nil {
		t.Fatalf("Send: %v", err)
	}
}

func end(t *testing.T, r cache.Relay) string {
	t.Helper()
	place, err := r.End(t.Context())
	if err != nil || place == "" {
		t.Fatalf("End: %q, %v", place, err)
	}
	return place
}

// receive returns what stands behind a place, up to n messages, and the place behind them.
func receive(t *testing.T, r cache.Relay, place string, n int, c RelayConfig) (list [][]byte, next string) {
	t.Helper()
	for len(list) < n {
		m, err := r.Receive(t.Context(), place, c.Timeout)
		if err != nil {
			t.Errorf("Receive: %v", err)
			return list, place
		}
		if len(m.List) == 0 {
			t.Errorf("Receive: no message in %v, after %d of %d", c.Timeout, len(list), n)
			return list, place
		}
		list, place = append(list, m.List...), m.Next
	}
	return list, place
}

func testReceive(t *testing.T, r cache.Relay, _ RelayConfig) {
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	place := end(t, r)
	var sent [][]byte
	for i := range 1500 {
		m := []byte(fmt.Sprint(i))
		switch i {
		case 3:
			m = bytes.Repeat(all, 4<<10)
		case 4, 5:
			m = all // twice the same is two messages
		}
		sent = append(sent, m)
		send(t, r, m)
	}
	for range 2 { // a place is good for more than one
		var got [][]byte
		next := place
		for more := true; more; {
			m, err := r.Receive(t.Context(), next, 0)
			if err != nil || m.More && len(m.List) == 0 {
				t.Fatalf("Receive: %d messages, %v, after %d of %d", len(m.List), err, len(got), len(sent))
			}
			got, next, more = append(got, m.List...), m.Next, m.More // without More a cache takes itself to have heard of every purge
		}
		if len(got) != len(sent) {
			t.Fatalf("%d messages until there were to be no more, want %d", len(got), len(sent))
		}
		for i := range got {
			if !bytes.Equal(got[i], sent[i]) {
				t.Fatalf("message %d: %.20q, %d bytes; want %.20q, %d bytes", i, got[i], len(got[i]), sent[i], len(sent[i]))
			}
		}
		if m, err := r.Receive(t.Context(), next, 0); len(m.List) != 0 || m.More || err != nil {
			t.Errorf("behind the last: %d messages, more %t, %v", len(m.List), m.More, err)
		}
	}
}

func testEnd(t *testing.T, r cache.Relay, c RelayConfig) {
	first := end(t, r)
	send(t, r, []byte("1"))
	second := end(t, r)
	send(t, r, []byte("2"))
	if got, _ := receive(t, r, second, 1, c); len(got) != 1 || string(got[0]) != "2" {
		t.Errorf("behind the second place: %q", got)
	}
	if got, _ := receive(t, r, first, 2, c); len(got) != 2 || string(got[0]) != "1" || string(got[1]) != "2" {
		t.Errorf("behind the first place: %q", got)
	}
}

func testWoken(t *testing.T, r cache.Relay, c RelayConfig) {
	place := end(t, r)
	for i := range 5 {
		var wg sync.WaitGroup
		wg.Go(func() { send(t, r, []byte(fmt.Sprint(i))) })
		got, next := receive(t, r, place, 1, c)
		wg.Wait()
		if len(got) != 1 || string(got[0]) != fmt.Sprint(i) {
			t.Fatalf("message %d: %q", i, got)
		}
		place = next
	}
}

func testWait(t *testing.T, r cache.Relay, c RelayConfig) {
	place := end(t, r)
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), c.Timeout)
		m, err := r.Receive(ctx, place, 20*time.Millisecond)
		cancel()
		if len(m.List) != 0 || m.More || err != nil || m.Next == "" {
			t.Fatalf("Receive of nothing: %+v, %v; want no message, a place, and no error", m, err)
		}
		place = m.Next
	}
	send(t, r, []byte("1"))
	if got, _ := receive(t, r, place, 1, c); len(got) != 1 || string(got[0]) != "1" {
		t.Errorf("%q", got)
	}
}

func testRelayContext(t *testing.T, r cache.Relay, c RelayConfig) {
	place := end(t, r)
	done := make(chan struct{})
	go func() {
		defer close(done)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		r.Send(ctx, []byte("m"))
		r.End(ctx)
		if _, err := r.Receive(ctx, place, time.Hour); err == nil {
			t.Error("Receive with an ended context: no error")
		}
		ctx, cancel = context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		r.Receive(ctx, place, time.Second)
	}()
	timer := time.NewTimer(c.Timeout)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		t.Fatalf("calls with an ended context did not return within %v", c.Timeout)
	}
}

func testRelaySlices(t *testing.T, r cache.Relay, c RelayConfig) {
	place := end(t, r)
	m := []byte("value")
	send(t, r, m)
	copy(m, "other")
	got, _ := receive(t, r, place, 1, c)
	if len(got) != 1 || string(got[0]) != "value" {
		t.Fatalf("Receive: %q, want %q: Send kept the slice that it was given", got, "value")
	}
	copy(got[0], "other")
	if again, _ := receive(t, r, place, 1, c); len(again) != 1 || string(again[0]) != "value" {
		t.Errorf("Receive: %q, want %q: it returned a slice that it returns again", again, "value")
	}
}

func testSenders(t *testing.T, r cache.Relay, c RelayConfig) {
	const senders, each = 8, 50
	place := end(t, r)
	var wg sync.WaitGroup
	for s := range senders {
		wg.Go(func() {
			for i := range each {
				if err := r.Send(t.Context(), []byte(fmt.Sprint(s, " ", i))); err != nil {
					t.Errorf("Send: %v", err)
				}
			}
		})
	}
	got := make([][][]byte, 2)
	for i := range got {
		wg.Go(func() { got[i], _ = receive(t, r, place, senders*each, c) })
	}
	wg.Wait()
	if len(got[0]) != senders*each || len(got[1]) != senders*each {
		t.Fatalf("%d and %d messages, want %d", len(got[0]), len(got[1]), senders*each)
	}
	next := make([]int, senders)
	for i, m := range got[0] {
		if !bytes.Equal(m, got[1][i]) {
			t.Fatalf("message %d is %q to one and %q to another", i, m, got[1][i])
		}
		var s, n int
		if _, err := fmt.Sscan(string(m), &s, &n); err != nil || n != next[s] {
			t.Fatalf("message %d is %q, want number %d of that sender", i, m, next[s])
		}
		next[s]++
	}
}

func testLost(t *testing.T, r cache.Relay, c RelayConfig) {
	for _, then := range []string{"nothing comes", "others have sent", "others have begun", "another reader is there"} {
		start := end(t, r)
		send(t, r, []byte("1"))
		_, read := receive(t, r, start, 1, c)
		send(t, r, []byte("2"))
		c.Lose(t, r)
		switch then {
		case "others have sent":
			send(t, r, []byte("3"))
		case "others have begun":
			end(t, r)
		case "another reader is there":
			send(t, r, []byte("3"))
			receive(t, r, end(t, r), 0, c)
			send(t, r, []byte("4"))
		}
		for what, place := range map[string]string{"all was read of": start, "one was read of": read} {
			if m, err := r.Receive(t.Context(), place, 10*time.Millisecond); !errors.Is(err, cache.ErrGap) {
				t.Errorf("messages were forgotten after %s, then %s: Receive: %q, %v; want ErrGap", what, then, m.List, err)
			}
		}
	}
	place := end(t, r)
	send(t, r, []byte("5"))
	if got, _ := receive(t, r, place, 1, c); len(got) != 1 || string(got[0]) != "5" {
		t.Errorf("afterwards: %q", got)
	}
}

// testRelayed has what one of three caches purges be asked for anew by the others.
func testRelayed(t *testing.T, r cache.Relay, c RelayConfig) {
	type server struct {
		*cache.Cache
		h http.Handler
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	servers := make([]server, 3)
	for i := range servers {
		ca := cache.New(1<<20, cache.WithRelay(r))
		wg.Go(func() {
			if err := ca.Follow(ctx); err != nil {
				t.Errorf("Follow: %v", err)
			}
		})
		servers[i] = server{ca, ca.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "max-age=600")
			w.Header().Set("Cache-Tag", "tag")
			w.Header().Set("Cache-Groups", `"group"`)
			w.Header().Set("Cache-Group-Invalidation", r.Header.Get("Invalidate"))
		}))}
	}
	wait := func(what string, done func() bool) {
		t.Helper()
		timer := time.NewTimer(c.Timeout)
		defer timer.Stop()
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for !done() {
			select {
			case <-tick.C:
			case <-timer.C:
				t.Fatalf("not within %v: %s", c.Timeout, what)
			}
		}
	}
	hit := func(s server) bool {
		rec := httptest.NewRecorder()
		s.h.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "http://example.com/a?\xfe", nil))
		return rec.Header().Get("Age") != ""
	}
	wait("each has heard of others", func() bool {
		heard := 0
		for _, s := range servers {
			s.Purge("http://example.com/nothing") // what is purged before another has begun does not come to it
			if s.Stats().PurgesReceived > 0 {
				heard++
			}
		}
		return heard == len(servers)
	})
	post := func(fields ...string) func(server) {
		return func(s server) {
			r := httptest.NewRequest(http.MethodPost, "http://example.com/other", nil)
			if len(fields) == 0 {
				r = httptest.NewRequest(http.MethodPost, "http://example.com/a?\xfe", nil)
			} else {
				r.Header.Set(fields[0], fields[1])
			}
			s.h.ServeHTTP(httptest.NewRecorder(), r)
		}
	}
	for name, purge := range map[string]func(server){
		"url":         func(s server) { s.Purge("http://example.com/a?\xfe") },
		"path":        func(s server) { s.Purge("/a?\xfe") },
		"prefix":      func(s server) { s.PurgePrefix("http://example.com/a") },
		"path prefix": func(s server) { s.PurgePrefix("/") },
		"tag":         func(s server) { s.PurgeTag("tag") },
		"group":       func(s server) { s.PurgeTag("group") },
		"all":         func(s server) { s.PurgeAll() },
		"soft url":    func(s server) { s.PurgeSoft("http://example.com/a?\xfe") },
		"soft prefix": func(s server) { s.PurgePrefixSoft("/a") },
		"soft tag":    func(s server) { s.PurgeTagSoft("tag") },
		"soft all":    func(s server) { s.PurgeAllSoft() },
		"request":     post(),
		"invalidated": post("Invalidate", `"group"`),
	} {
		for _, s := range servers {
			wait("it is a hit", func() bool { return hit(s) })
		}
		purge(servers[0])
		for i, s := range servers {
			wait(fmt.Sprintf("a purge by %s has reached server %d", name, i), func() bool { return !hit(s) })
		}
	}
	for i, s := range servers {
		if st := s.Stats(); st.RelayErrors != 0 || st.RelayDoubts != 0 {
			t.Errorf("server %d: %+v", i, st)
		}
	}
}

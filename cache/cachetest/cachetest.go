// Package cachetest has the tests that a [cache.Store] and a [cache.Relay] must pass.
package cachetest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spillgate/spillgate/cache"
)

// StoreConfig describes the store under test.
type StoreConfig struct {
	// New returns an empty store, for one subtest.
	New func(t testing.TB) cache.Store
	// Timeout is how long one call may take; 0 means 10 s.
	Timeout time.Duration
}

// TestStore runs the tests that every [cache.Store] must pass, as subtests of t, one after the other.
// It panics if c.New is nil.
func TestStore(t *testing.T, c StoreConfig) {
	if c.New == nil {
		panic("cachetest: TestStore: StoreConfig.New is nil: give a function that makes a store")
	}
	if c.Timeout == 0 {
		c.Timeout = 10 * time.Second
	}
	for _, test := range []struct {
		name string
		run  func(t *testing.T, s cache.Store, c StoreConfig)
	}{
		{"nothing is there", testNothing},
		{"what was set is there, byte for byte", testSet},
		{"the newest value counts", testReplace},
		{"what was deleted is gone", testDelete},
		{"for a moment, or for a century", testTimes},
		{"slices belong to who made them", testSlices},
		{"a context that has ended ends the call", testContext},
		{"many at once", testConcurrent},
		{"a second cache finds what a first one stored", testCaches},
		{"a purge in one cache holds for a new one", testPurges},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, c.New(t), c) })
	}
}

// keys are ones that a store might stumble over, or take for one another.
func keys() []string {
	const site = "http://example.com/"
	long := site + strings.Repeat("x", 4<<10-len(site)-1)
	return []string{site, site + "a%2fb?c=d&e=\x01", site + "a/b?c=d&e=\x01", "https://münchen.example/ü", "spillgate:x",
		long + "1", long + "2", site + "../../x", site + "x", site + "A", site + "a", site + "a?", site + "/a",
		site + "?\xfe", site + "?\xff", site + "u", site + "\u00fc", site + "u\u0308"}
}

func set(t *testing.T, s cache.Store, key string, value []byte) {
	t.Helper()
	if err := s.Set(t.Context(), key, value, time.Hour); err != nil {
		t.Fatalf("Set(%.60q): %v", key, err)
	}
}

func get(t *testing.T, s cache.Store, key string) []byte {
	t.Helper()
	v, err := s.Get(t.Context(), key)
	if err != nil {
		t.Fatalf("Get(%.60q): %v", key, err)
	}
	return v
}

func testNothing(t *testing.T, s cache.Store, _ StoreConfig) {
	for _, k := range keys() {
		if v := get(t, s, k); v != nil {
			t.Errorf("Get(%.60q) of an empty store: %q, want nil", k, v)
		}
		if err := s.Delete(t.Context(), k); err != nil {
			t.Errorf("Delete(%.60q) of nothing: %v, want no error", k, err)
		}
	}
}

func testSet(t *testing.T, s cache.Store, _ StoreConfig) {
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	values := map[string][]byte{}
	for i, k := range keys() {
		values[k] = append(bytes.Repeat(all, 1+i*200), byte(i))
		set(t, s, k, values[k])
	}
	for k, want := range values {
		if got := get(t, s, k); !bytes.Equal(got, want) {
			t.Errorf("Get(%.60q): %d bytes, want %d, the same", k, len(got), len(want))
		}
	}
}

func testReplace(t *testing.T, s cache.Store, _ StoreConfig) {
	for _, v := range []string{"a long value", "short", "a longer value than the others"} {
		set(t, s, "k", []byte(v))
		if got := get(t, s, "k"); string(got) != v {
			t.Errorf("Get: %q, want %q", got, v)
		}
	}
}

func testDelete(t *testing.T, s cache.Store, _ StoreConfig) {
	set(t, s, "a", []byte("1"))
	set(t, s, "b", []byte("2"))
	if err := s.Delete(t.Context(), "a"); err != nil {
		t.Fatalf("Delete: %v", err)
	}
	if v := get(t, s, "a"); v != nil {
		t.Errorf("Get after Delete: %q, want nil", v)
	}
	if v := get(t, s, "b"); string(v) != "2" {
		t.Errorf("Delete of one key changed another: %q", v)
	}
}

// testTimes has what a store may count in whole seconds, of which a moment is none, and in 32 bits; memcached takes more than 30 days for a date.
func testTimes(t *testing.T, s cache.Store, _ StoreConfig) {
	for _, ttl := range []time.Duration{1, time.Millisecond, 999 * time.Millisecond} {
		if err := s.Set(t.Context(), "brief", []byte("value"), ttl); err != nil {
			t.Errorf("Set for %v: %v", ttl, err)
		}
	}
	for _, ttl := range []time.Duration{31 * 24 * time.Hour, 10 * 365 * 24 * time.Hour, 1 << 32 * time.Second} {
		if err := s.Set(t.Context(), "long", []byte(ttl.String()), ttl); err != nil {
			t.Errorf("Set for %v: %v", ttl, err)
			continue
		}
		if got := get(t, s, "long"); string(got) != ttl.String() {
			t.Errorf("Get of what was set for %v: %q", ttl, got)
		}
	}
}

func testSlices(t *testing.T, s cache.Store, _ StoreConfig) {
	v := []byte("value")
	set(t, s, "k", v)
	copy(v, "other")
	first := get(t, s, "k")
	if string(first) != "value" {
		t.Fatalf("Get: %q, want %q: Set kept the slice that it was given", first, "value")
	}
	set(t, s, "k", []byte("other"))
	if string(first) != "value" {
		t.Errorf("a slice that Get returned became %q: Set wrote into it", first)
	}
}

func testContext(t *testing.T, s cache.Store, c StoreConfig) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Get(ctx, "k")
		s.Set(ctx, "k", []byte("v"), time.Hour)
		s.Delete(ctx, "k")
	}()
	timer := time.NewTimer(c.Timeout)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		t.Fatalf("calls with an ended context did not return within %v", c.Timeout)
	}
}

func testConcurrent(t *testing.T, s cache.Store, _ StoreConfig) {
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 50 {
				key := fmt.Sprint("k", (g+i)%5)
				switch i % 3 {
				case 0:
					if err := s.Set(t.Context(), key, []byte(strings.Repeat(key, 100)), time.Hour); err != nil {
						t.Errorf("Set: %v", err)
					}
				case 1:
					v, err := s.Get(t.Context(), key)
					if err != nil {
						t.Errorf("Get: %v", err)
					}
					if v != nil && string(v) != strings.Repeat(key, 100) {
						t.Errorf("Get(%q): a mix of values", key)
					}
				case 2:
					if err := s.Delete(t.Context(), key); err != nil {
						t.Errorf("Delete: %v", err)
					}
				}
			}
		})
	}
	wg.Wait()
}

// site is a handler with a version, and a cache over the store.
func site(s cache.Store, c StoreConfig, calls, version *atomic.Int64) (*cache.Cache, func(t *testing.T, url string) string) {
	ca := cache.New(1<<20, cache.WithStore(s, c.Timeout))
	h := ca.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		w.Header().Set("Cache-Control", "max-age=600")
		w.Header().Set("Cache-Tag", "all")
		w.Header().Set("Vary", "Accept-Language")
		fmt.Fprintf(w, "%s version %d", r.URL.Path, version.Load())
	}))
	return ca, func(t *testing.T, url string) string {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, url, nil))
		b, err := io.ReadAll(rec.Result().Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
}

func testCaches(t *testing.T, s cache.Store, c StoreConfig) {
	var calls, version atomic.Int64
	for range 3 {
		ca, ask := site(s, c, &calls, &version)
		for _, path := range []string{"/a", "/b"} {
			if got, want := ask(t, "http://example.com"+path), path+" version 0"; got != want {
				t.Errorf("body %q, want %q", got, want)
			}
		}
		if st := ca.Stats(); st.StoreErrors != 0 {
			t.Errorf("%d calls of the store failed", st.StoreErrors)
		}
	}
	if n := calls.Load(); n != 2 {
		t.Errorf("the handler was asked %d times, want 2: for each URL once", n)
	}
}

func testPurges(t *testing.T, s cache.Store, c StoreConfig) {
	var calls, version atomic.Int64
	for name, purge := range map[string]func(*cache.Cache){
		"url":    func(ca *cache.Cache) { ca.Purge("http://example.com/a") },
		"path":   func(ca *cache.Cache) { ca.Purge("/a") },
		"prefix": func(ca *cache.Cache) { ca.PurgePrefix("/a") },
		"tag":    func(ca *cache.Cache) { ca.PurgeTag("all") },
		"all":    func(ca *cache.Cache) { ca.PurgeAll() },
		"soft":   func(ca *cache.Cache) { ca.PurgeSoft("http://example.com/a") },
	} {
		first, ask := site(s, c, &calls, &version)
		ask(t, "http://example.com/a")
		version.Add(1)
		purge(first)
		_, ask = site(s, c, &calls, &version)
		if got, want := ask(t, "http://example.com/a"), fmt.Sprint("/a version ", version.Load()); got != want {
			t.Errorf("after a purge by %s: body %q, want %q", name, got, want)
		}
	}
}

package cache_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/cache"
	"github.com/spillgate/spillgate/cache/cachetest"
)

// mapStore is the smallest Store there is.
type mapStore struct {
	mu    sync.Mutex
	m     map[string][]byte
	fail  atomic.Bool
	delay time.Duration
}

func newMapStore() *mapStore { return &mapStore{m: make(map[string][]byte)} }

var errBroken = errors.New("broken")

func (s *mapStore) begin(ctx context.Context) error {
	if s.delay > 0 {
		select {
		case <-time.After(s.delay):
		case <-ctx.Done():
		}
	}
	if s.fail.Load() {
		return errBroken
	}
	return ctx.Err()
}

func (s *mapStore) Get(ctx context.Context, key string) ([]byte, error) {
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.m[key], nil
}

func (s *mapStore) Set(ctx context.Context, key string, value []byte, _ time.Duration) error {
	if err := s.begin(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.m[key] = bytes.Clone(value)
	return nil
}

func (s *mapStore) Delete(ctx context.Context, key string) error {
	if err := s.begin(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.m, key)
	return nil
}

func TestStoreSuite(t *testing.T) {
	cachetest.TestStore(t, cachetest.StoreConfig{New: func(testing.TB) cache.Store {
		if fault := keyFaults[os.Getenv(keyFault)]; fault != nil {
			return faultyStore{newMapStore(), fault}
		}
		return newMapStore()
	}})
}

const keyFault = "CACHETEST_FAULT" // for the process that TestStoreTestsFindMixedUpKeys starts

// keyFaults are what stores do to keys that takes some for one another.
var keyFaults = map[string]func(string) string{
	"cut":     func(k string) string { return k[:min(len(k), 250)] },
	"UTF-8":   func(k string) string { return strings.ToValidUTF8(k, "\uFFFD") },
	"lower":   strings.ToLower,
	"cleaned": path.Clean,
	"decoded": func(k string) string { return strings.ReplaceAll(k, "%2f", "/") },
}

type faultyStore struct {
	cache.Store
	key func(string) string
}

func (s faultyStore) Get(ctx context.Context, key string) ([]byte, error) {
	return s.Store.Get(ctx, s.key(key))
}

func (s faultyStore) Set(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	return s.Store.Set(ctx, s.key(key), value, ttl)
}

func (s faultyStore) Delete(ctx context.Context, key string) error {
	return s.Store.Delete(ctx, s.key(key))
}

// A store that takes two URLs for one answers a request with the response to another.
func TestStoreTestsFindMixedUpKeys(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for fault := range keyFaults {
		cmd := exec.Command(self, "-test.run=^TestStoreSuite$")
		cmd.Env = append(os.Environ(), keyFault+"="+fault)
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "--- FAIL: TestStoreSuite/what_was_set_is_there") {
			t.Errorf("a store whose keys are %s: %v\n%s", fault, err, out)
		}
	}
}

// What a store returns is other people's data: no time in it is so long that a sum of such times runs over, and what is
// as old as can be comes out as new.
func TestRecordWithAbsurdTimes(t *testing.T) {
	for name, change := range map[string]func(v *cache.RecordTimes){
		"age":                            func(v *cache.RecordTimes) { v.InitialAge = math.MaxInt64 },
		"time":                           func(v *cache.RecordTimes) { v.Stored, v.InitialAge = math.MinInt64, time.Minute },
		"lifetime that is over":          func(v *cache.RecordTimes) { v.Lifetime = math.MinInt64 },
		"age and lifetime":               func(v *cache.RecordTimes) { v.InitialAge, v.Lifetime = math.MaxInt64, math.MaxInt64 },
		"lifetime that is over, and age": func(v *cache.RecordTimes) { v.InitialAge, v.Lifetime = math.MaxInt64, math.MinInt64 },
	} {
		synctest.Test(t, func(t *testing.T) {
			s := newMapStore()
			var calls atomic.Int64
			origin := page(&calls, "x", "Cache-Control: max-age=60")
			get(cache.New(1<<20, cache.WithStore(s, time.Second)).Handler(origin), "http://example.com/x")
			synctest.Wait()
			const key = "http://example.com/x"
			time.Sleep(time.Second) // in a synctest bubble
			if s.m[key] = cache.ChangeTimes(s.m[key], change); s.m[key] == nil {
				t.Fatal("no record")
			}
			res := get(cache.New(1<<20, cache.WithStore(s, time.Second)).Handler(origin), "http://example.com/x")
			want(t, name+": asked again", calls.Load(), 2)
			want(t, name+": Age", res.Header.Get("Age"), "")
		})
	}
}

func TestRecalledLooksTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newMapStore()
		var calls, not atomic.Int64
		origin := validator(&calls, &not, "Cache-Control: max-age=60, stale-if-error=30", "Vary: Accept", "X-Bytes: \xff\xfe", "Cache-Tag: t")
		first := cache.New(1<<20, cache.WithStore(s, time.Second)).Handler(origin)
		get(first, "http://example.com/x", "Accept: a")
		get(first, "http://example.com/x", "Accept: b")
		time.Sleep(10 * time.Second) // in a synctest bubble

		c := cache.New(1<<20, cache.WithStore(s, time.Second))
		second := c.Handler(origin)
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				res := get(second, "http://example.com/x", "Accept: a")
				want(t, "status", res.Header.Get("Cache-Status"), "spillgate; hit; ttl=50")
				want(t, "Age", res.Header.Get("Age"), "10")
				want(t, "bytes", res.Header.Get("X-Bytes"), "\xff\xfe")
				want(t, "body", text(t, res), "0123456789")
			})
		}
		wg.Wait()
		want(t, "variants", text(t, get(second, "http://example.com/x", "Accept: b")), "0123456789")
		want(t, "tags", c.PurgeTag("t"), 2)
		want(t, "calls", calls.Load(), 2)
		want(t, "recalled", c.Stats().Recalled, 1)
		want(t, "misses", c.Stats().MissURL, 0)

		// What is too old is validated, as from memory.
		get(first, "http://example.com/y", "Accept: a")
		time.Sleep(61 * time.Second) // in a synctest bubble
		third := cache.New(1<<20, cache.WithStore(s, time.Second)).Handler(origin)
		want(t, "validated", get(third, "http://example.com/y", "Accept: a").Header.Get("Cache-Status"), "spillgate; fwd=stale; fwd-status=304")
	})
}

// What kind of request it is that finds nothing in memory makes no difference to whether the Store is asked.
func TestRecalledForAnyRequest(t *testing.T) {
	for _, test := range []struct {
		name   string
		method string
		fields []string
		opts   []cache.Option
		status int
	}{
		{"plain", "GET", nil, nil, 200},
		{"nobody waits for others", "GET", nil, []cache.Option{cache.WithCollapseWait(0)}, 200},
		{"condition that holds", "GET", []string{`If-None-Match: "a"`}, nil, 304},
		{"condition that does not", "GET", []string{`If-None-Match: "b"`}, nil, 200},
		{"range", "GET", []string{"Range: bytes=0-3"}, nil, 206},
		{"HEAD", "HEAD", nil, nil, 200},
		{"credentials", "GET", []string{"Authorization: Basic eDp5"}, nil, 200},
		{"only-if-cached", "GET", []string{"Cache-Control: only-if-cached"}, nil, 200},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newMapStore()
			var calls atomic.Int64
			answer := page(&calls, "0123456789", "Cache-Control: public, max-age=60", `Etag: "a"`)
			get(cache.New(1<<20, cache.WithStore(s, time.Minute)).Handler(answer), "http://example.com/x")
			c := cache.New(1<<20, append(test.opts, cache.WithStore(s, time.Minute))...)
			h := c.Handler(answer)
			for range 2 {
				res := ask(h, test.method, "http://example.com/x", test.fields...)
				want(t, "status", res.StatusCode, test.status)
				want(t, "from the store", strings.Contains(res.Header.Get("Cache-Status"), "; hit"), true)
			}
			want(t, "recalled", c.Stats().Recalled, 1)
			calls.Store(0)
			for range 2 {
				ask(h, test.method, "http://example.com/y", test.fields...)
			}
			if calls.Load() == 0 && test.name != "only-if-cached" || c.Stats().Fills != 0 {
				t.Errorf("what is nowhere: %d calls, %+v", calls.Load(), c.Stats())
			}
			s.fail.Store(true)
			if res := ask(h, test.method, "http://example.com/z", test.fields...); res.StatusCode >= 500 != (test.name == "only-if-cached") {
				t.Errorf("with a Store that fails: %d", res.StatusCode)
			}
		})
	}
}

// One server has the variants that another one has stored since, and does not ask for those that nobody has more than once a second.
func TestVariantsAreRecalled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &askedStore{mapStore: newMapStore()}
		var calls atomic.Int64
		answer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			calls.Add(1)
			w.Header().Set("Cache-Control", "max-age=60")
			w.Header().Set("Vary", "Accept")
			if r.Header.Get("Accept") == "private" {
				w.Header().Set("Cache-Control", "private")
			}
			io.WriteString(w, r.Header.Get("Accept"))
		})
		one := cache.New(1<<20, cache.WithStore(s, time.Second), cache.WithMaxVariants(3)).Handler(answer)
		two := cache.New(1<<20, cache.WithStore(s, time.Second), cache.WithMaxVariants(3)).Handler(answer)
		ask := func(h http.Handler, accept string, fields ...string) {
			t.Helper()
			want(t, "answer", text(t, get(h, "http://example.com/x", append(fields, "Accept: "+accept)...)), accept)
		}
		ask(one, "a")
		ask(two, "a")
		ask(two, "b")
		want(t, "calls", calls.Load(), 2)
		ask(one, "b")
		ask(one, "a")
		want(t, "calls for what two has stored", calls.Load(), 2)
		time.Sleep(time.Second) // in a synctest bubble
		ask(two, "c")
		ask(two, "d")
		calls.Store(0)
		ask(one, "d", "If-None-Match: x")
		want(t, "calls for a condition", calls.Load(), 0)
		ask(one, "a")
		ask(one, "b")
		want(t, "calls for what one had", calls.Load(), 0)
		time.Sleep(time.Second) // in a synctest bubble
		s.asked.Store(0)
		for range 20 {
			ask(one, "private")
		}
		want(t, "calls for one user", calls.Load(), 20)
		want(t, "times the Store was asked", s.asked.Load(), 1)
	})
}

// askedStore counts how often it is asked for a page.
type askedStore struct {
	*mapStore
	asked atomic.Int64
}

func (s *askedStore) Get(ctx context.Context, key string) ([]byte, error) {
	if strings.HasPrefix(key, "http") {
		s.asked.Add(1)
	}
	return s.mapStore.Get(ctx, key)
}

// meanwhile is a context that runs a function when the cache, which has found nothing, asks whether it is inside a fill.
type meanwhile struct {
	context.Context
	do func()
}

func (m *meanwhile) Value(key any) any {
	if do := m.do; do != nil && fmt.Sprintf("%T", key) == "cache.filling" {
		m.do = nil
		do()
	}
	return m.Context.Value(key)
}

// What is stored between a request's look into memory and its turn is a hit, and not a miss as well.
func TestFoundMeanwhile(t *testing.T) {
	var calls, not atomic.Int64
	c := cache.New(1 << 20)
	h := c.Handler(validator(&calls, &not, "Cache-Control: max-age=60"))
	ctx := &meanwhile{Context: t.Context()}
	ctx.do = func() { get(h, "http://example.com/x") }
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(ctx, "GET", "http://example.com/x", nil))
	want(t, "status", w.Result().Header.Get("Cache-Status"), "spillgate; hit; ttl=60")
	want(t, "calls", calls.Load(), 1)
	want(t, "hits", c.Stats().Hits, 1)
	want(t, "misses", c.Stats().Misses, 1)
	want(t, "of these, nothing stored", c.Stats().MissURL, 1)
}

// What a HEAD shows to have been replaced does not come back from the Store.
func TestHeadTeachesTheStore(t *testing.T) {
	tag, s := "1", newMapStore()
	origin := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "max-age=60")
		w.Header().Set("Etag", strconv.Quote(tag))
		io.WriteString(w, tag)
	})
	h := cache.New(1<<20, cache.WithStore(s, time.Second)).Handler(origin)
	get(h, "http://example.com/x")
	tag = "2"
	ask(h, "HEAD", "http://example.com/x", "Cache-Control: no-cache")
	other := cache.New(1<<20, cache.WithStore(s, time.Second)).Handler(origin)
	want(t, "body", text(t, get(other, "http://example.com/x")), "2")
}

// A store that fails or hangs costs its timeout at most, and no purge is lost.
func TestStoreThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newMapStore()
		var calls atomic.Int64
		var version atomic.Int64
		origin := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			calls.Add(1)
			w.Header().Set("Cache-Control", "max-age=6000")
			io.WriteString(w, strconv.FormatInt(version.Load(), 10))
		})
		c := cache.New(1<<20, cache.WithStore(s, time.Second))
		h := c.Handler(origin)
		get(h, "http://example.com/x")
		s.fail.Store(true)
		get(h, "http://example.com/y")
		want(t, "counted", c.Stats().StoreErrors > 0, true)
		want(t, "from memory", get(h, "http://example.com/y").Header.Get("Age"), "0")

		// The purge does not reach the store; its record must not come back all the same.
		version.Store(1)
		c.Purge("http://example.com/x")
		s.fail.Store(false)
		time.Sleep(2 * time.Second) // in a synctest bubble
		want(t, "purged", text(t, get(h, "http://example.com/x")), "1")
		other := cache.New(1<<20, cache.WithStore(s, time.Second)).Handler(origin)
		want(t, "purged for others", text(t, get(other, "http://example.com/x")), "1")

		s.delay = time.Hour
		begun := time.Now()
		get(h, "http://example.com/z")
		if d := time.Since(begun); d > 4*time.Second {
			t.Errorf("a hanging store held a request up for %v", d)
		}
		s.delay = 0

		// Records that make no sense count as nothing.
		s.mu.Lock()
		for k, v := range maps.Clone(s.m) {
			s.m[k] = v[:len(v)/2]
		}
		s.mu.Unlock()
		version.Store(2)
		want(t, "damaged", text(t, get(cache.New(1<<20, cache.WithStore(s, time.Second)).Handler(origin), "http://example.com/x")), "2")
	})
}

// A store that hangs costs a few requests its timeout, and not each one. It is asked again now and then, and what was purged
// meanwhile does not come back.
func TestStoreThatHangsIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newMapStore()
		var calls atomic.Int64
		c := cache.New(1<<20, cache.WithStore(s, 100*time.Millisecond))
		h := c.Handler(page(&calls, "x", "Cache-Control: max-age=6000"))
		get(h, "http://example.com/purged")
		get(h, "http://example.com/kept")
		time.Sleep(time.Minute) // in a synctest bubble
		s.delay = time.Hour
		begun := time.Now()
		for i := range 300 {
			get(h, fmt.Sprint("http://example.com/", i))
		}
		// Five calls that read and five that write, and then one of each after 1, 3, 7 s and so on, if so long.
		if d := time.Since(begun); d > 1500*time.Millisecond {
			t.Errorf("300 requests took %v with a store that hangs", d)
		}
		failed := c.Stats().StoreErrors
		for i := range 60 {
			time.Sleep(time.Second) // in a synctest bubble
			get(h, fmt.Sprint("http://example.com/a/", i))
		}
		if n := c.Stats().StoreErrors - failed; n < 6 || n > 15 {
			t.Errorf("a store that hangs was asked %d times in a minute", n)
		}
		begun = time.Now()
		c.Purge("http://example.com/purged")
		want(t, "a purge took", time.Since(begun), 0)
		s.delay = 0
		time.Sleep(33 * time.Second) // in a synctest bubble
		get(h, "http://example.com/b")
		time.Sleep(2 * time.Second) // in a synctest bubble

		calls.Store(0)
		h = cache.New(1<<20, cache.WithStore(s, 100*time.Millisecond)).Handler(page(&calls, "x", "Cache-Control: max-age=6000"))
		get(h, "http://example.com/purged")
		want(t, "calls for what was purged", calls.Load(), 1)
		get(h, "http://example.com/b")
		want(t, "calls for what was stored since", calls.Load(), 1)
	})
}

// lateStore is a store that answers none of the reads that are under way before it is told to; with the error of their context then, as if the
// process had not run meanwhile.
type lateStore struct {
	*mapStore
	late atomic.Pointer[chan struct{}]
}

func (s *lateStore) Get(ctx context.Context, key string) ([]byte, error) {
	if late := s.late.Load(); late != nil {
		<-*late
		return nil, context.DeadlineExceeded
	}
	return s.mapStore.Get(ctx, key)
}

// Reads that fail at once since the process was short of a processor, as in a container with a quota, do not have the store left alone.
func TestStoreFailsOnceForAllUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &lateStore{mapStore: newMapStore()}
		var calls atomic.Int64
		origin := page(&calls, "x", "Cache-Control: max-age=6000")
		h := cache.New(1<<20, cache.WithStore(s, time.Second)).Handler(origin)
		url := func(i int) string { return fmt.Sprint("http://example.com/", i) }
		for i := range 9 {
			get(h, url(i))
		}
		calls.Store(0)
		h = cache.New(1<<20, cache.WithStore(s, time.Second)).Handler(origin)
		get(h, "http://example.com/new")
		late := make(chan struct{})
		s.late.Store(&late)
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() { get(h, url(i)) })
			time.Sleep(time.Millisecond) // in a synctest bubble
		}
		s.late.Store(nil)
		close(late)
		wg.Wait()
		get(h, url(8))
		want(t, "calls", calls.Load(), 1+8)
	})
}

// A store that can be read and not written is read.
func TestStoreThatCannotBeWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &readOnlyStore{mapStore: newMapStore()}
		var calls atomic.Int64
		handler := page(&calls, "x", "Cache-Control: max-age=6000")
		get(cache.New(1<<20, cache.WithStore(s, time.Second)).Handler(handler), "http://example.com/x")
		s.readOnly.Store(true)
		c := cache.New(1<<20, cache.WithStore(s, time.Second))
		h := c.Handler(handler)
		for i := range 20 {
			get(h, fmt.Sprint("http://example.com/", i))
		}
		want(t, "attempts", s.attempts.Load(), 5)
		calls.Store(0)
		get(h, "http://example.com/x")
		want(t, "calls", calls.Load(), 0)
		want(t, "recalled", c.Stats().Recalled, 1)
	})
}

// A store that is full refuses what it is to keep, and no more than that: what is purged is deleted.
func TestPurgeInAStoreThatIsFull(t *testing.T) {
	for name, purge := range map[string]func(*cache.Cache, http.Handler){
		"purge": func(c *cache.Cache, _ http.Handler) { c.Purge("http://example.com/x") },
		"POST":  func(_ *cache.Cache, h http.Handler) { ask(h, "POST", "http://example.com/x") },
		"another": func(_ *cache.Cache, h http.Handler) { // private by now
			get(h, "http://example.com/x", "Cache-Control: max-age=0", "Private: 1")
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &readOnlyStore{mapStore: newMapStore()}
				var calls atomic.Int64
				answer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					calls.Add(1)
					w.Header().Set("Cache-Control", "max-age=6000")
					w.Header().Set("Etag", `"a"`)
					if r.Header.Get("Private") != "" {
						w.Header().Set("Cache-Control", "private")
					}
				})
				c := cache.New(1<<20, cache.WithStore(s, time.Second))
				h := c.Handler(answer)
				get(h, "http://example.com/x")
				time.Sleep(6000 * time.Second) // in a synctest bubble
				get(h, "http://example.com/kept")
				s.readOnly.Store(true)
				for i := range 20 {
					get(h, fmt.Sprint("http://example.com/", i))
				}
				purge(c, h)
				other := cache.New(1<<20, cache.WithStore(s, time.Second)).Handler(answer)
				calls.Store(0)
				get(other, "http://example.com/x", "Cache-Control: max-stale")
				want(t, "calls for what was purged", calls.Load(), 1)
				get(other, "http://example.com/kept")
				want(t, "calls for what was not", calls.Load(), 1)
			})
		})
	}
}

type readOnlyStore struct {
	*mapStore
	readOnly atomic.Bool
	attempts atomic.Int64
}

func (s *readOnlyStore) Set(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	if s.readOnly.Load() {
		s.attempts.Add(1)
		return errBroken
	}
	return s.mapStore.Set(ctx, key, value, ttl)
}

// Of two purges at once the store ends up with the generation of the later one, however long each call takes.
func TestPurgesInAnyOrderInTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slowGenerations{mapStore: newMapStore()}
		var version atomic.Int64
		c := cache.New(1<<20, cache.WithStore(s, 10*time.Second))
		h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "max-age=6000")
			w.Header().Set("Cache-Tag", "b")
			io.WriteString(w, strconv.FormatInt(version.Load(), 10))
		}))
		get(h, "http://example.com/first")
		s.delays.Store(3)
		var wg sync.WaitGroup
		wg.Go(func() { c.PurgeTag("a") })
		synctest.Wait()
		get(h, "http://example.com/x")
		version.Store(1)
		s.delays.Store(0)
		c.PurgeTag("b")
		wg.Wait()
		time.Sleep(5 * time.Second)    // in a synctest bubble
		get(h, "http://example.com/y") // reads the generation
		want(t, "purged", text(t, get(h, "http://example.com/x")), "1")
	})
}

// A store that goes back in time, as Redis may in a failover, does not bring back what was purged as a whole.
func TestStoreThatGoesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newMapStore()
		var version atomic.Int64
		origin := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "max-age=6000")
			w.Header().Set("Cache-Tag", "tag")
			io.WriteString(w, strconv.FormatInt(version.Load(), 10))
		})
		c := cache.New(1<<20, cache.WithStore(s, time.Second))
		other := cache.New(1<<20, cache.WithStore(s, time.Second))
		get(c.Handler(origin), "http://example.com/x")
		get(other.Handler(origin), "http://example.com/y")
		s.mu.Lock()
		before := maps.Clone(s.m)
		s.mu.Unlock()
		for i := range int64(3) {
			version.Store(i + 1)
			c.PurgeTag("tag")
			time.Sleep(2 * time.Second) // in a synctest bubble
			get(other.Handler(origin), fmt.Sprint("http://example.com/", i))
			s.mu.Lock()
			s.m = maps.Clone(before)
			s.mu.Unlock()
			time.Sleep(2 * time.Second) // in a synctest bubble
			want(t, "purged here", text(t, get(c.Handler(origin), "http://example.com/x")), fmt.Sprint(i+1))
			time.Sleep(2 * time.Second)                                              // in a synctest bubble
			get(other.Handler(origin), fmt.Sprint("http://example.com/further/", i)) // reads the generation
			fresh := cache.New(1<<20, cache.WithStore(s, time.Second))
			want(t, "purged for others", text(t, get(fresh.Handler(origin), "http://example.com/y")), fmt.Sprint(i+1))
		}
	})
}

// Servers that have seen two generations in another order agree on one in the end, and share what they make.
func TestGenerationsInAnotherOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newMapStore()
		var calls atomic.Int64
		origin := page(&calls, "x", "Cache-Control: max-age=6000")
		key := func() (key string) {
			s.mu.Lock()
			defer s.mu.Unlock()
			for k := range s.m {
				if strings.HasSuffix(k, ":generation") {
					key = k
				}
			}
			return key
		}
		one, two := cache.New(1<<20, cache.WithStore(s, time.Second)), cache.New(1<<20, cache.WithStore(s, time.Second))
		a, b := one.Handler(origin), two.Handler(origin)
		get(a, "http://example.com/0")
		first, _ := s.Get(t.Context(), key())
		one.PurgeAll()
		second, _ := s.Get(t.Context(), key())
		get(b, "http://example.com/1")      // has the second alone
		s.Set(t.Context(), key(), first, 0) // as one does that has not read it, where it was forgotten
		time.Sleep(1100 * time.Millisecond) // in a synctest bubble
		get(b, "http://example.com/2")      // has the first after the second
		for i := range 10 {
			get(a, fmt.Sprint("http://example.com/a/", i))
			get(b, fmt.Sprint("http://example.com/b/", i))
			time.Sleep(1100 * time.Millisecond) // in a synctest bubble
		}
		third, _ := s.Get(t.Context(), key())
		want(t, "one of the two", string(third) == string(first) || string(third) == string(second), false)
		get(a, "http://example.com/shared")
		calls.Store(0)
		get(b, "http://example.com/shared")
		want(t, "calls", calls.Load(), 0)
	})
}

// slowGenerations takes some seconds to keep a generation.
type slowGenerations struct {
	*mapStore
	delays atomic.Int64
}

func (s *slowGenerations) Set(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	if strings.HasSuffix(key, ":generation") {
		time.Sleep(time.Duration(s.delays.Load()) * time.Second) // in a synctest bubble
	}
	return s.mapStore.Set(ctx, key, value, ttl)
}

// A Store that panics breaks the requests that it is asked for, and nobody waits for them.
func TestStoreThatPanics(t *testing.T) {
	for i := range 4 {
		synctest.Test(t, func(t *testing.T) {
			s := panicStore{newMapStore(), i}
			c := cache.New(1<<20, cache.WithStore(&s, time.Second))
			h := c.Handler(page(new(atomic.Int64), "x", "Cache-Control: max-age=60"))
			func() {
				defer func() { recover() }()
				get(h, "http://example.com/x")
			}()
			begun := time.Now()
			want(t, "body", text(t, get(h, "http://example.com/x")), "x")
			want(t, "waited", time.Since(begun), 0)
			want(t, "fills", c.Stats().Fills, 0)
		})
	}
}

// panicStore panics at the call of Get or Set with that number.
type panicStore struct {
	*mapStore
	left int
}

func (s *panicStore) turn() {
	if s.left--; s.left == -1 {
		panic("store")
	}
}

func (s *panicStore) Get(ctx context.Context, key string) ([]byte, error) {
	s.turn()
	return s.mapStore.Get(ctx, key)
}

func (s *panicStore) Set(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	s.turn()
	return s.mapStore.Set(ctx, key, value, ttl)
}

// A function of the user's that panics when the handler has returned leaves nobody waiting.
func TestPanicAfterTheHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		panics := true
		h := cache.New(1<<20, cache.WithTTLFunc(func(*http.Request, int, http.Header) time.Duration {
			if panics {
				panics = false
				panic("ttl")
			}
			return time.Minute
		})).Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(time.Second) })) // in a synctest bubble
		var wg sync.WaitGroup
		wg.Go(func() {
			defer func() { recover() }()
			get(h, "http://example.com/x")
		})
		synctest.Wait()
		begun := time.Now()
		get(h, "http://example.com/x")
		want(t, "waited", time.Since(begun), 2*time.Second)
		wg.Wait()
	})
}

// Nor does one that panics while a stale response is served for a panic of the handler leave its run under way.
func TestPanicOverAPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := cache.New(1<<20, cache.WithTrace(cache.Trace{Served: func(_ *http.Request, res cache.Result) {
			if res == cache.Stale {
				panic("served")
			}
		}}))
		var run context.Context
		h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if run != nil {
				run = r.Context()
				run.Done()
				panic("handler")
			}
			run = r.Context()
			w.Header().Set("Cache-Control", "max-age=1, stale-if-error=60")
		}))
		get(h, "http://example.com/x")
		time.Sleep(2 * time.Second) // in a synctest bubble
		func() {
			defer func() { want(t, "panic", recover(), any("served")) }()
			get(h, "http://example.com/x")
		}()
		want(t, "fills", c.Stats().Fills, 0)
		want(t, "context", run.Err(), context.Canceled)
	})
}

func TestPurgeRaceWithStore(t *testing.T) {
	for i := range purgeRounds {
		s := newMapStore()
		var version atomic.Int64
		origin := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			v := version.Load()
			runtime.Gosched()
			w.Header().Set("Cache-Control", "max-age=60")
			io.WriteString(w, strconv.FormatInt(v, 10))
		})
		c := cache.New(1<<20, cache.WithStore(s, time.Minute))
		h := c.Handler(origin)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() { get(h, "http://example.com/x") })
		}
		wg.Go(func() {
			version.Store(1)
			if i%2 == 0 {
				c.Purge("http://example.com/x")
			} else {
				c.PurgeAll()
			}
			want(t, "after the purge", text(t, get(h, "http://example.com/x")), "1")
		})
		wg.Wait()
		want(t, "in memory", text(t, get(h, "http://example.com/x")), "1")
		again := cache.New(1<<20, cache.WithStore(s, time.Minute)).Handler(origin)
		want(t, "in the store", text(t, get(again, "http://example.com/x")), "1")
		if t.Failed() {
			return
		}
	}
}

// A record in which a bit has turned answers no request, and none of what looks whole all the same ends in a panic.
func TestRecordsThatAreDamaged(t *testing.T) {
	s := newMapStore()
	var calls atomic.Int64
	origin := page(&calls, "x", "Cache-Control: max-age=60", "Vary: A", `Etag: "v"`)
	get(cache.New(1<<20, cache.WithStore(s, time.Minute)).Handler(origin), "http://example.com/x", "A: 1")
	const key = "http://example.com/x"
	whole := s.m[key]
	for i := range 8 * len(whole) {
		damaged := bytes.Clone(whole)
		damaged[i/8] ^= 1 << (i % 8)
		for _, v := range [][]byte{damaged, cache.Checked(damaged[:len(damaged)-4])} {
			s.m[key] = v
			before := calls.Load()
			func() {
				defer func() {
					if v := recover(); v != nil {
						t.Errorf("bit %d of byte %d: %v", i%8, i/8, v)
					}
				}()
				get(cache.New(1<<20, cache.WithStore(s, time.Minute)).Handler(origin), key, "A: 1")
			}()
			if &v[0] == &damaged[0] && calls.Load() == before {
				t.Errorf("bit %d of byte %d has turned, and it was served", i%8, i/8)
			}
		}
	}
	for n := range whole {
		if cache.DecodeRecord(whole[:n]) != 0 {
			t.Errorf("%d of %d bytes are a record", n, len(whole))
		}
	}
}

func FuzzRecord(f *testing.F) {
	s := newMapStore()
	var calls atomic.Int64
	origin := page(&calls, "x", "Cache-Control: max-age=60", "Vary: A", `Etag: "v"`)
	get(cache.New(1<<20, cache.WithStore(s, time.Minute)).Handler(origin), "http://example.com/x", "A: 1")
	for k, v := range s.m {
		if strings.HasPrefix(k, "http") {
			f.Add(v)
		}
	}
	f.Fuzz(func(t *testing.T, v []byte) { // whatever a store returns, there is no crash
		cache.DecodeRecord(v)
		cache.DecodeRecord(cache.Checked(v))
	})
}

// watchedStore knows when nobody has what it returned any more.
type watchedStore struct {
	*mapStore
	returned, free atomic.Int64
}

func (s *watchedStore) Get(ctx context.Context, key string) ([]byte, error) {
	v, err := s.mapStore.Get(ctx, key)
	if len(v) < 1<<10 {
		return v, err
	}
	v = bytes.Clone(v)
	s.returned.Add(1)
	runtime.AddCleanup(&v[0], func(free *atomic.Int64) { free.Add(1) }, &s.free)
	return v, err
}

// Of the variants that a Store has under a URL each takes as much memory as it counts for, and does not keep all others as well.
func TestOneVariantOfARecordKeepsNoOther(t *testing.T) {
	s := &watchedStore{mapStore: newMapStore()}
	answer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "max-age=600")
		w.Header().Set("Vary", "Accept")
		io.WriteString(w, strings.Repeat(r.Header.Get("Accept"), 10<<10))
	})
	first := cache.New(1<<20, cache.WithStore(s.mapStore, time.Minute)).Handler(answer)
	for _, accept := range []string{"a", "b", "c"} {
		get(first, "http://example.com/x", "Accept: "+accept)
	}
	c := cache.New(1<<20, cache.WithStore(s, time.Minute), cache.WithMaxVariants(1))
	second := c.Handler(answer)
	want(t, "the newest", text(t, get(second, "http://example.com/x", "Accept: c")), strings.Repeat("c", 10<<10))
	want(t, "entries", c.Stats().Entries, 1)
	want(t, "asked", s.returned.Load(), 1)
	for range 1000 {
		if runtime.GC(); s.free.Load() == 1 {
			break
		}
	}
	want(t, "what the Store returned is free", s.free.Load(), 1)
	want(t, "body", text(t, get(second, "http://example.com/x", "Accept: c")), strings.Repeat("c", 10<<10))
}

// A record holds all variants of a URL, and memory may have some that are valid no more in the Store: purged by another server that shares it, of which nobody
// tells this one, or about to be purged here. They are not brought back with the variant that is saved.
func TestSavingOneVariantBringsNoOtherBack(t *testing.T) {
	version := 1
	site := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "max-age=60")
		w.Header().Set("Vary", "Accept-Language")
		w.Header().Set("Cache-Tag", "t")
		fmt.Fprint(w, r.Header.Get("Accept-Language"), version)
	})
	for name, purge := range map[string]func(*cache.Cache){
		"by tag":  func(c *cache.Cache) { c.PurgeTag("t") },
		"by URL":  func(c *cache.Cache) { c.Purge("http://example.com/a") },
		"by path": func(c *cache.Cache) { c.Purge("/a") },
		"POST": func(c *cache.Cache) {
			c.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("POST", "http://example.com/a", nil))
		},
	} {
		t.Run("purged by another server, "+name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				version = 1
				s := newMapStore()
				one, two := cache.New(1<<20, cache.WithStore(s, time.Second)), cache.New(1<<20, cache.WithStore(s, time.Second))
				want(t, "at the first server", language(one.Handler(site), "de"), "de1")
				want(t, "at the second one", language(two.Handler(site), "de"), "de1")
				version = 2
				purge(one)
				time.Sleep(2 * time.Second) // in a synctest bubble
				want(t, "another variant, which the second one stores", language(two.Handler(site), "en"), "en2")
				want(t, "where it was purged", language(one.Handler(site), "de"), "de2")
				want(t, "what the second one has stored", language(one.Handler(site), "en"), "en2")
				want(t, "one more, with a newer one there", language(two.Handler(site), "fr"), "fr2")
				want(t, "a third server", language(cache.New(1<<20, cache.WithStore(s, time.Second)).Handler(site), "de"), "de2")
			})
		})
	}
	t.Run("while it is purged here", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			version = 1
			s := &slowGenerations{mapStore: newMapStore()}
			c := cache.New(1<<20, cache.WithStore(s, 2*time.Second))
			h := c.Handler(site)
			want(t, "before", language(h, "de"), "de1")
			version = 2
			s.delays.Store(1)
			go c.PurgeTag("t")
			synctest.Wait()
			want(t, "another variant", language(h, "en"), "en2")
			time.Sleep(2 * time.Second) // in a synctest bubble
			want(t, "what was purged", language(h, "de"), "de2")
		})
	})
	t.Run("two are stored at once", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			version = 1
			s := newMapStore()
			h := cache.New(1<<20, cache.WithStore(slowGets{s}, time.Minute)).Handler(site)
			language(h, "fr")
			var wg sync.WaitGroup
			wg.Go(func() { language(h, "de") })
			time.Sleep(500 * time.Millisecond) // in a synctest bubble
			wg.Go(func() { language(h, "en") })
			wg.Wait()
			version = 2
			h = cache.New(1<<20, cache.WithStore(s, time.Minute)).Handler(site)
			for _, l := range []string{"de", "en", "fr"} {
				want(t, "another server", language(h, l), l+"1")
			}
		})
	})
	t.Run("a record keeps what is valid", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			version = 1
			s := newMapStore()
			h := cache.New(1<<20, cache.WithStore(s, time.Second)).Handler(site)
			for _, l := range []string{"de", "en", "fr"} {
				language(h, l)
			}
			version = 2
			h = cache.New(1<<20, cache.WithStore(s, time.Second)).Handler(site)
			for _, l := range []string{"de", "en", "fr"} {
				want(t, "another server", language(h, l), l+"1")
			}
		})
	})
}

// slowGets is a store whose reads of responses take a second.
type slowGets struct{ cache.Store }

func (s slowGets) Get(ctx context.Context, key string) ([]byte, error) {
	b, err := s.Store.Get(ctx, key)
	if strings.HasPrefix(key, "http://") {
		time.Sleep(time.Second) // in a synctest bubble
	}
	return b, err
}

// language is what a handler answers for http://example.com/a in a language.
func language(h http.Handler, l string) string {
	r := httptest.NewRequest("GET", "http://example.com/a", nil)
	r.Header.Set("Accept-Language", l)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Body.String()
}

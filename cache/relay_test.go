package cache_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
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

// journal is a relay in memory, as a server that can lose messages, and what of them was read. Each server has a [line] to it.
type journal struct {
	mu      sync.Mutex
	epoch   int // places of another are unknown
	first   int // the messages before it are gone
	list    [][]byte
	ids     []int // of these
	given   int   // ids
	changed chan struct{}
}

func newJournal() *journal { return &journal{changed: make(chan struct{})} }

func (l *journal) change(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
	close(l.changed)
	l.changed = make(chan struct{})
}

// lose forgets everything.
func (l *journal) lose() {
	l.change(func() { l.epoch, l.first, l.list, l.ids = l.epoch+1, 0, nil, nil })
}

// messages are those that are there when nothing moves.
func (l *journal) messages() [][]byte {
	synctest.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.list
}

func (l *journal) end() int { return l.first + len(l.list) }

// cut forgets the newest n messages, as a replica that takes over without them does. Readers that had them can tell.
func (l *journal) cut(n int) {
	l.change(func() { l.list, l.ids = l.list[:len(l.list)-n], l.ids[:len(l.list)-n] })
}

// line is the relay of one server.
type line struct {
	*journal
	noSend, noHear atomic.Bool // calls fail
	sends          atomic.Int64
	delay          atomic.Int64 // of what is received
	took           atomic.Int64 // by each call of Send
}

func (l *line) Send(ctx context.Context, message []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	l.sends.Add(1)
	if d := time.Duration(l.took.Load()); d > 0 {
		select {
		case <-time.After(d):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if l.noSend.Load() {
		return errBroken
	}
	l.change(func() {
		l.given++
		l.list, l.ids = append(l.list, bytes.Clone(message)), append(l.ids, l.given)
	})
	return nil
}

// place is the place behind n messages.
func (l *line) place(n int) string {
	id := 0
	if n > l.first {
		id = l.ids[n-1-l.first]
	}
	return fmt.Sprint(l.epoch, " ", n, " ", id)
}

func (l *line) End(ctx context.Context) (string, error) {
	if l.noHear.Load() {
		return "", errBroken
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.place(l.end()), ctx.Err()
}

func (l *line) Receive(ctx context.Context, place string, wait time.Duration) (m cache.Messages, err error) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		if err := ctx.Err(); err != nil {
			return m, err
		}
		if l.noHear.Load() {
			return m, errBroken
		}
		l.mu.Lock()
		var epoch, n int
		if _, err := fmt.Sscan(place, &epoch, &n); err != nil || epoch != l.epoch || n < l.first || n > l.end() || place != l.place(n) {
			l.mu.Unlock()
			return m, fmt.Errorf("log: %w", cache.ErrGap)
		}
		for _, text := range l.list[n-l.first:] {
			if m.More = len(m.List) == 100; m.More {
				break
			}
			m.List = append(m.List, bytes.Clone(text))
		}
		m.Next = l.place(n + len(m.List))
		changed := l.changed
		l.mu.Unlock()
		if len(m.List) > 0 {
			if d := time.Duration(l.delay.Load()); d > 0 {
				select {
				case <-time.After(d):
				case <-ctx.Done():
					return cache.Messages{}, ctx.Err()
				}
			}
			return m, nil
		}
		select {
		case <-changed:
		case <-timer.C:
			return m, nil
		case <-ctx.Done():
		}
	}
}

func (s *mapStore) has(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.m[key] != nil
}

func TestRelaySuite(t *testing.T) {
	cachetest.TestRelay(t, cachetest.RelayConfig{
		New:  func(testing.TB) cache.Relay { return &line{journal: newJournal()} },
		Lose: func(_ testing.TB, r cache.Relay) { r.(*line).lose() },
	})
}

// fleet is several servers of one site that share a relay, in a synctest bubble.
type fleet struct {
	*journal
	servers []*member
	version atomic.Int64 // of all pages
	stop    func()
}

type member struct {
	*cache.Cache
	h     http.Handler
	line  *line
	calls atomic.Int64
	hold  chan struct{} // what the handler waits for, with its answer
	err   error         // of Follow
}

func newFleet(t *testing.T, n int, opts ...cache.Option) *fleet {
	f := &fleet{journal: newJournal()}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	f.stop = func() { cancel(); wg.Wait() }
	for range n {
		m := &member{line: &line{journal: f.journal}}
		m.Cache = cache.New(1<<20, append([]cache.Option{cache.WithRelay(m.line)}, opts...)...)
		m.h = m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			m.calls.Add(1)
			version := f.version.Load()
			if m.hold != nil && r.Method == "GET" {
				<-m.hold
			}
			for name, values := range r.Header {
				if name, ok := strings.CutPrefix(name, "Set-"); ok {
					w.Header()[name] = values
				}
			}
			w.Header().Set("Cache-Control", "max-age=60000, stale-if-error=600, stale-while-revalidate=0")
			w.Header().Set("Cache-Tag", "tag tag"+r.URL.Path)
			w.Header().Set("Cache-Groups", `"group"`)
			io.WriteString(w, strconv.FormatInt(version, 10))
		}))
		f.servers = append(f.servers, m)
		wg.Go(func() { m.err = m.Follow(ctx) })
	}
	synctest.Wait()
	return f
}

func (m *member) get(t *testing.T, url string) string {
	t.Helper()
	return text(t, get(m.h, url))
}

func TestPurgesReachOthers(t *testing.T) {
	const page = "http://example.com/a/b?c=1"
	for name, test := range map[string]struct {
		purge func(m *member)
		stays string
	}{
		"url":                      {func(m *member) { m.Purge(page) }, "/other"},
		"url of the other scheme":  {func(m *member) { m.Purge("https://EXAMPLE.com:443/a/b?c=1#x") }, "/other"},
		"path":                     {func(m *member) { m.Purge("/a/b?c=1") }, "/a/b?c=2"},
		"prefix":                   {func(m *member) { m.PurgePrefix("http://example.com/a/") }, "/other"},
		"path prefix":              {func(m *member) { m.PurgePrefix("/a/") }, "/other"},
		"tag":                      {func(m *member) { m.PurgeTag("tag/a/b") }, "/other"},
		"group":                    {func(m *member) { m.PurgeTag("group") }, ""},
		"all":                      {func(m *member) { m.PurgeAll() }, ""},
		"soft url":                 {func(m *member) { m.PurgeSoft(page) }, "/other"},
		"soft prefix":              {func(m *member) { m.PurgePrefixSoft("/a") }, "/other"},
		"soft tag":                 {func(m *member) { m.PurgeTagSoft("tag/a/b") }, "/other"},
		"soft all":                 {func(m *member) { m.PurgeAllSoft() }, ""},
		"unsafe request":           {func(m *member) { ask(m.h, "DELETE", page) }, "/other"},
		"Location":                 {func(m *member) { ask(m.h, "POST", "http://example.com/x", "Set-Location: "+page) }, "/other"},
		"Content-Location":         {func(m *member) { ask(m.h, "PUT", "http://example.com/x", "Set-Content-Location: /a/b?c=1") }, "/other"},
		"Cache-Group-Invalidation": {func(m *member) { ask(m.h, "POST", "http://example.com/x", `Set-Cache-Group-Invalidation: "group"`) }, ""},
		"over HTTP": {func(m *member) {
			ask(m.PurgeHandler(func(*http.Request) bool { return true }), "POST", "/?tag=tag/a/b")
		}, "/other"},
		"over HTTP, all, softly": {func(m *member) {
			ask(m.PurgeHandler(func(*http.Request) bool { return true }), "POST", "/?all=1&soft=1")
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet(t, 3)
				defer f.stop()
				for _, m := range f.servers {
					m.get(t, page)
					m.get(t, "http://example.com"+test.stays)
				}
				f.version.Store(1)
				begun := time.Now()
				test.purge(f.servers[0])
				want(t, "the purge took", time.Since(begun), 0)
				time.Sleep(60 * time.Millisecond) // in a synctest bubble
				synctest.Wait()
				for i, m := range f.servers {
					m.calls.Store(0)
					want(t, fmt.Sprint("page of server ", i), m.get(t, page), "1")
					if test.stays != "" {
						want(t, fmt.Sprint("another page of server ", i), m.get(t, "http://example.com"+test.stays), "0")
					}
					want(t, fmt.Sprint("calls of server ", i), m.calls.Load(), 1)
					st := m.Stats()
					want(t, "doubts, errors, pending", st.RelayDoubts+st.RelayErrors+st.PurgesPending, 0)
				}
			})
		})
	}
}

// A soft purge leaves a response for the windows of stale ones, here as there.
func TestSoftPurgesStaySoft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2)
		defer f.stop()
		m := f.servers[1]
		failing := m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(500) }))
		for _, test := range []struct {
			purge func()
			want  int
		}{
			{func() { f.servers[0].PurgeTagSoft("tag") }, 200},
			{func() { f.servers[0].PurgeSoft("http://example.com/x") }, 200},
			{func() { f.servers[0].PurgeTag("tag") }, 500},
			{func() { f.servers[0].Purge("http://example.com/x") }, 500},
			{func() { f.servers[0].PurgeTagSoft("tag"); f.servers[0].PurgeTag("tag") }, 500},
		} {
			m.get(t, "http://example.com/x")
			test.purge()
			time.Sleep(time.Second) // in a synctest bubble
			want(t, "status while the handler fails", get(failing, "http://example.com/x").StatusCode, test.want)
		}
	})
}

// A fill that began before a purge somewhere else is not stored after it has arrived; what was filled since stays where it was purged.
func TestPurgeAndFillAcrossServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2)
		defer f.stop()
		one, two := f.servers[0], f.servers[1]
		two.hold = make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() { two.get(t, "http://example.com/x") })
		synctest.Wait()
		one.line.delay.Store(int64(time.Second)) // its own message comes back late
		f.version.Store(1)
		one.Purge("http://example.com/x")
		want(t, "one", one.get(t, "http://example.com/x"), "1")
		synctest.Wait()
		close(two.hold)
		wg.Wait()
		two.hold = nil
		want(t, "two", two.get(t, "http://example.com/x"), "1")
		time.Sleep(10 * time.Second) // in a synctest bubble
		one.calls.Store(0)
		want(t, "one", one.get(t, "http://example.com/x"), "1")
		want(t, "calls of one", one.calls.Load(), 0)
		want(t, "messages", len(f.messages()), 1)
	})
}

// With a Store besides: what another server had asked for before the purge, and saves there after it, is not found by those who know of the purge.
func TestPurgeAndSaveAcrossServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newMapStore()
		f := newFleet(t, 3, cache.WithStore(s, time.Second))
		defer f.stop()
		one, two, three := f.servers[0], f.servers[1], f.servers[2]
		const page = "http://example.com/x"
		get(one.h, "http://example.com/first") // the generation is there
		two.hold = make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() { two.get(t, page) })
		synctest.Wait()
		two.line.delay.Store(int64(4 * time.Second))
		f.version.Store(1)
		one.Purge(page)
		synctest.Wait()
		close(two.hold)
		wg.Wait()
		two.hold = nil
		want(t, "in the store", s.has(page), true)
		want(t, "two, which has not heard of it", two.get(t, page), "0")
		want(t, "three, which has", three.get(t, page), "1")
		want(t, "in the store", s.has(page), true)
		want(t, "one", one.get(t, page), "1")
		s.mu.Lock()
		delete(s.m, page)
		s.mu.Unlock()
		time.Sleep(time.Second) // in a synctest bubble
		one.Purge(page)
		synctest.Wait()
		time.Sleep(10 * time.Second) // in a synctest bubble
		want(t, "two, which has heard of it", two.get(t, page), "1")
		time.Sleep(20 * time.Second) // in a synctest bubble
		one.Purge("http://example.com/other")
		fresh := cache.New(1<<20, cache.WithStore(s, time.Second))
		want(t, "a new one", text(t, get(fresh.Handler(three.h), page)), "1")
	})
}

// Nor by a request that came before the purge, and looks into the Store after it.
func TestPurgeWhileARequestLooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newMapStore()
		f := newFleet(t, 2, cache.WithStore(s, time.Second))
		defer f.stop()
		one, two := f.servers[0], f.servers[1]
		const page = "http://example.com/x"
		two.get(t, page)
		record, err := s.Get(t.Context(), page)
		want(t, "error", err, nil)
		f.version.Store(1)
		ctx := &meanwhile{Context: t.Context()}
		ctx.do = func() {
			time.Sleep(time.Second) // in a synctest bubble
			one.Purge(page)
			s.Set(ctx, page, record, time.Hour) // as a third one does that has not heard of it
		}
		w := httptest.NewRecorder()
		one.h.ServeHTTP(w, httptest.NewRequestWithContext(ctx, "GET", page, nil))
		want(t, "one", w.Body.String(), "1")
	})
}

// What is saved by a server that had not heard of a purge is deleted when it hears of it, also where its memory has it no more.
func TestSavedTooLateIsDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newMapStore()
		f := newFleet(t, 2, cache.WithStore(s, time.Second), cache.WithMaxEntries(1))
		defer f.stop()
		one, two := f.servers[0], f.servers[1]
		const page = "http://example.com/x"
		get(one.h, "http://example.com/first")
		two.line.delay.Store(int64(2 * time.Second))
		one.Purge(page)
		synctest.Wait()
		two.get(t, page)
		two.get(t, "http://example.com/displaces")
		want(t, "in the store", s.has(page), true)
		time.Sleep(3 * time.Second) // in a synctest bubble
		want(t, "in the store", s.has(page), false)
		want(t, "the other page", s.has("http://example.com/displaces"), true)
	})
}

// What a new server had asked for before it has heard anything is not saved: of what was purged by then it will not hear.
func TestNothingIsSavedBeforeTheFirstWord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newMapStore()
		f := newFleet(t, 1, cache.WithStore(s, time.Second))
		defer f.stop()
		one := f.servers[0]
		get(one.h, "http://example.com/first")
		r := &line{journal: f.journal}
		c := cache.New(1<<20, cache.WithRelay(r), cache.WithStore(s, time.Second))
		hold := make(chan struct{})
		h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			version := f.version.Load()
			<-hold
			w.Header().Set("Cache-Control", "max-age=60000")
			fmt.Fprint(w, version)
		}))
		ctx, cancel := context.WithCancel(t.Context())
		for _, page := range []string{"http://example.com/x", "http://example.com/after-a-pause"} {
			var wg sync.WaitGroup
			wg.Go(func() { get(h, page) })
			synctest.Wait()
			version := f.version.Add(1)
			one.Purge(page)
			time.Sleep(time.Second) // in a synctest bubble
			hold <- struct{}{}
			wg.Wait()
			want(t, "in the store", s.has(page), false)
			following := make(chan error)
			go func() { following <- c.Follow(ctx) }()
			time.Sleep(20 * time.Second) // in a synctest bubble
			want(t, "the other one", one.get(t, page), fmt.Sprint(version))
			wg.Go(func() { want(t, "the new one", text(t, get(h, page)), fmt.Sprint(version)) })
			wg.Wait()
			cancel()
			want(t, "error", <-following, nil)
			ctx, cancel = context.WithCancel(t.Context())
		}
		cancel()
	})
}

// What may have been purged is looked for in the Store first, which knows.
func TestDoubtIsSettledByTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2, cache.WithStore(newMapStore(), time.Second))
		defer f.stop()
		one, two := f.servers[0], f.servers[1]
		for _, url := range []string{"http://example.com/x", "http://example.com/purged"} {
			one.get(t, url)
			two.get(t, url)
		}
		want(t, "calls of two", two.calls.Load(), 0)
		two.line.noHear.Store(true)
		time.Sleep(2 * time.Second) // in a synctest bubble
		f.version.Store(1)
		one.Purge("http://example.com/purged")
		synctest.Wait()
		f.lose()
		two.line.noHear.Store(false)
		time.Sleep(5 * time.Second) // in a synctest bubble
		want(t, "doubts", two.Stats().RelayDoubts, 1)
		want(t, "what was purged", two.get(t, "http://example.com/purged"), "1")
		want(t, "calls of two", two.calls.Load(), 1)
		want(t, "what was not", two.get(t, "http://example.com/x"), "0")
		want(t, "calls of two", two.calls.Load(), 1)
	})
}

// So is what is served stale meanwhile.
func TestDoubtIsSettledByTheStoreInTheBackground(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2, cache.WithStore(newMapStore(), time.Second))
		defer f.stop()
		one, two := f.servers[0], f.servers[1]
		for _, m := range f.servers {
			m.h = m.Handler(page(&m.calls, "0", "Cache-Control: max-age=60000, stale-while-revalidate=60"))
		}
		one.get(t, "http://example.com/x")
		two.get(t, "http://example.com/x")
		f.lose()
		time.Sleep(5 * time.Second) // in a synctest bubble
		want(t, "doubts", two.Stats().RelayDoubts, 1)
		want(t, "at once", two.get(t, "http://example.com/x"), "0")
		synctest.Wait()
		want(t, "from the store", strings.Contains(get(two.h, "http://example.com/x").Header.Get("Cache-Status"), "; hit; ttl=5"), true)
		want(t, "calls of two", two.calls.Load(), 0)
		s := two.Stats()
		want(t, "under way", s.Fills, 0)
		want(t, "failed", s.RevalidationErrors, 0)
	})
}

// A purge of what the store cannot be searched for is known to the others before they ask it again, also where the store
// could not be told.
func TestGenerationsAcrossServers(t *testing.T) {
	for _, broken := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s := &readOnlyStore{mapStore: newMapStore()}
			f := newFleet(t, 2, cache.WithStore(s, time.Second))
			defer f.stop()
			one, two := f.servers[0], f.servers[1]
			get(one.h, "http://example.com/x")
			get(two.h, "http://example.com/y")
			f.version.Store(1)
			s.readOnly.Store(broken)
			one.PurgeTag("tag")
			synctest.Wait()
			want(t, fmt.Sprint("store broken: ", broken), two.get(t, "http://example.com/x"), "1")
		})
	}
}

// While a server cannot be told, or cannot tell, its purges wait, and requests do not.
func TestRelayThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told atomic.Int64
		f := newFleet(t, 2, cache.WithTrace(cache.Trace{RelayFailed: func(err error) {
			if errors.Is(err, errBroken) {
				told.Add(1)
			}
		}}))
		defer f.stop()
		one, two := f.servers[0], f.servers[1]
		two.get(t, "http://example.com/x")
		one.line.noSend.Store(true)
		f.version.Store(1)
		begun := time.Now()
		for range 1000 {
			ask(one.h, "POST", "http://example.com/x")
		}
		one.PurgeTag("none")
		want(t, "the requests took", time.Since(begun), 0)
		time.Sleep(10 * time.Minute) // in a synctest bubble
		st := one.Stats()
		want(t, "pending", st.PurgesPending, 2)
		want(t, "sent", st.PurgesSent, 0)
		if n := one.line.sends.Load(); n < 100 || n > 140 || st.RelayErrors != n || told.Load() != n {
			t.Errorf("%d attempts in ten minutes, %d errors counted", n, st.RelayErrors)
		}
		want(t, "two knows nothing", two.get(t, "http://example.com/x"), "0")
		one.line.noSend.Store(false)
		time.Sleep(6 * time.Second) // in a synctest bubble
		want(t, "two", two.get(t, "http://example.com/x"), "1")
		want(t, "pending", one.Stats().PurgesPending, 0)
		want(t, "sent", one.Stats().PurgesSent, 2)
		want(t, "received", two.Stats().PurgesReceived, 2)
		want(t, "doubts", two.Stats().RelayDoubts, 0)
	})
}

// A server that cannot hear serves nothing as fresh for longer than the limit, also of what it stores meanwhile.
func TestServerThatIsCutOff(t *testing.T) {
	for _, remove := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			opts := []cache.Option{cache.WithRelayLimit(10 * time.Second)}
			if remove {
				opts = append(opts, cache.WithRelayRemove())
			}
			f := newFleet(t, 2, opts...)
			defer f.stop()
			one, two := f.servers[0], f.servers[1]
			time.Sleep(100 * time.Second) // in a synctest bubble
			two.get(t, "http://example.com/x")
			two.line.noHear.Store(true)
			f.version.Store(1)
			one.Purge("http://example.com/x")
			time.Sleep(8 * time.Second) // in a synctest bubble
			want(t, "for less than the limit", two.get(t, "http://example.com/x"), "0")
			time.Sleep(2 * time.Second) // in a synctest bubble
			failing := two.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(500) }))
			status := 200
			if remove {
				status = 500
			}
			want(t, "while the handler fails", get(failing, "http://example.com/x").StatusCode, status)
			for range 10 {
				before := f.version.Load()
				want(t, "stored meanwhile", two.get(t, "http://example.com/x"), fmt.Sprint(before))
				time.Sleep(9 * time.Second) // in a synctest bubble
				f.version.Add(1)
				one.Purge("http://example.com/x")
				time.Sleep(time.Second) // in a synctest bubble
				time.Sleep(1)           // in a synctest bubble
			}
			if st := two.Stats(); st.RelayDoubts < 10 || st.RelayDoubts > 12 || st.RelayErrors == 0 || st.RelayBehind < 100*time.Second {
				t.Errorf("%+v", st)
			}
			two.line.noHear.Store(false)
			time.Sleep(10 * time.Second) // in a synctest bubble
			want(t, "afterwards", two.get(t, "http://example.com/x"), "11")
			doubts := two.Stats().RelayDoubts
			time.Sleep(time.Hour) // in a synctest bubble
			want(t, "doubts afterwards", two.Stats().RelayDoubts, doubts)
			if b := two.Stats().RelayBehind; b < 0 || b > 2*time.Second {
				t.Errorf("behind by %v", b)
			}
		})
	}
}

// Where the relay has lost messages nothing is fresh any more, once, and what was purged lately is sent again for those who cannot tell.
func TestRelayThatForgets(t *testing.T) {
	for name, lose := range map[string]func(l *journal){
		"all of it":  (*journal).lose,
		"the oldest": func(l *journal) { l.change(func() { l.first, l.list, l.ids = l.end()+1, nil, nil }) },
		"the newest": func(l *journal) { l.cut(1) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet(t, 3)
				defer f.stop()
				one, two, three := f.servers[0], f.servers[1], f.servers[2]
				three.line.delay.Store(int64(3 * time.Second))
				for _, m := range f.servers {
					m.get(t, "http://example.com/x")
				}
				f.version.Store(1)
				one.Purge("http://example.com/x")
				time.Sleep(time.Second) // in a synctest bubble
				lose(f.journal)
				time.Sleep(10 * time.Second) // in a synctest bubble
				for i, m := range f.servers {
					want(t, fmt.Sprint("server ", i), m.get(t, "http://example.com/x"), "1")
				}
				want(t, "doubts of two", two.Stats().RelayDoubts, 1)
				if n := len(f.messages()); n < 1 || n > 2 {
					t.Errorf("%d messages afterwards, want what was lost once", n)
				}
			})
		})
	}
}

// What was lost before anybody had read it is sent again.
func TestMessageThatIsLostUnread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2)
		defer f.stop()
		one, two := f.servers[0], f.servers[1]
		two.get(t, "http://example.com/x")
		f.version.Store(1)
		for _, m := range f.servers {
			m.line.noHear.Store(true)
		}
		time.Sleep(2 * time.Second) // in a synctest bubble
		one.Purge("http://example.com/x")
		synctest.Wait()
		f.cut(1)
		for _, m := range f.servers {
			m.line.noHear.Store(false)
		}
		time.Sleep(10 * time.Second) // in a synctest bubble
		want(t, "two", two.get(t, "http://example.com/x"), "1")
		want(t, "doubts", two.Stats().RelayDoubts+one.Stats().RelayDoubts, 0)
		want(t, "messages", len(f.messages()), 1)
	})
}

// Where Redis is Store and Relay, a failover may lose a purge in both.
func TestPurgeThatTheStoreHasLostAsWell(t *testing.T) {
	for _, url := range []string{"http://example.com/x", "/x"} {
		synctest.Test(t, func(t *testing.T) {
			s := newMapStore()
			f := newFleet(t, 2, cache.WithStore(s, time.Second))
			defer f.stop()
			one := f.servers[0]
			one.get(t, "http://example.com/x")
			s.mu.Lock()
			before := maps.Clone(s.m)
			s.mu.Unlock()
			f.version.Store(1)
			one.Purge(url)
			synctest.Wait()
			s.mu.Lock()
			s.m = before
			s.mu.Unlock()
			f.cut(1)
			time.Sleep(20 * time.Second) // in a synctest bubble
			one.get(t, "http://example.com/other")
			fresh := cache.New(1<<20, cache.WithStore(s, time.Second))
			want(t, url, text(t, get(fresh.Handler(one.h), "http://example.com/x")), "1")
		})
	}
}

// A Store that comes back as it was long ago, as Redis does that is started again from a snapshot, has what was purged since. That
// it has less than the messages that are sent again after a gap does not matter.
func TestStoreThatComesBackAsItWas(t *testing.T) {
	const url = "http://example.com/x"
	for name, test := range map[string]struct {
		ago, purged time.Duration // what it is again, and the purge
		lost        bool          // everything in it is invalid then
	}{
		"a minute ago":  {time.Minute, 30 * time.Second, true},
		"a moment ago":  {2 * time.Second, time.Second, false},
		"a minute idle": {time.Minute, 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newMapStore()
				f := newFleet(t, 2, cache.WithStore(s, time.Second))
				defer f.stop()
				one, two := f.servers[0], f.servers[1]
				one.get(t, url)
				one.get(t, "http://example.com/other")
				time.Sleep(time.Minute + time.Second) // in a synctest bubble
				s.mu.Lock()
				before := maps.Clone(s.m)
				s.mu.Unlock()
				time.Sleep(test.ago - test.purged) // in a synctest bubble
				f.version.Store(1)
				if test.purged > 0 {
					one.Purge(url)
					time.Sleep(test.purged) // in a synctest bubble
				}
				s.mu.Lock()
				s.m = before
				s.mu.Unlock()
				f.lose()
				two.get(t, url)              // has it from there
				time.Sleep(20 * time.Second) // in a synctest bubble
				other := map[bool]string{false: "0", true: "1"}[test.lost]
				page := "1"
				if test.purged == 0 {
					page = other
				}
				for i, m := range f.servers {
					want(t, fmt.Sprint("server ", i), m.get(t, url), page)
				}
				fresh := cache.New(1<<20, cache.WithStore(s, time.Second))
				want(t, "another server", text(t, get(fresh.Handler(one.h), url)), page)
				want(t, "what was not purged", two.get(t, "http://example.com/other"), other)
				doubts := two.Stats().RelayDoubts
				time.Sleep(time.Hour) // in a synctest bubble
				want(t, "doubts later", two.Stats().RelayDoubts, doubts)
			})
		})
	}
}

// That a Store is slow for one server, while others raise the mark on and on, is no sign that it has gone back.
func TestSlowMarkIsNoAlarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slowMarks{mapStore: newMapStore()}
		f := newFleet(t, 10, cache.WithStore(s, 20*time.Second))
		defer f.stop()
		f.servers[0].get(t, "http://example.com/x")
		for range 10 {
			time.Sleep(time.Minute) // in a synctest bubble
			s.slow.Store(true)
		}
		f.version.Store(1)
		for i, m := range f.servers {
			want(t, fmt.Sprint("doubts of ", i), m.Stats().RelayDoubts, 0)
		}
		want(t, "what is stored", f.servers[1].get(t, "http://example.com/x"), "0")
	})
}

// slowMarks takes 15 s for the next mark, where it may.
type slowMarks struct {
	*mapStore
	slow atomic.Bool
}

func (s *slowMarks) Set(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	if key == "spillgate:mark" && s.slow.CompareAndSwap(true, false) {
		select {
		case <-time.After(15 * time.Second):
		case <-ctx.Done():
		}
	}
	return s.mapStore.Set(ctx, key, value, ttl)
}

// A purge that the Store could not be told of holds there as soon as it is well again: whoever comes then does not have it from there what was purged. Nobody
// need ask for anything that is not in memory.
func TestPurgeThatTheStoreWasNotToldOf(t *testing.T) {
	const url = "http://example.com/x"
	for name, heals := range map[string]func(*mapStore, *fleet){
		"while it is followed": func(s *mapStore, f *fleet) {
			time.Sleep(100 * time.Second) // in a synctest bubble
			s.fail.Store(false)
			time.Sleep(2 * time.Second) // in a synctest bubble
		},
		"when Follow ends": func(s *mapStore, f *fleet) {
			time.AfterFunc(3*time.Second, func() { s.fail.Store(false) })
			f.stop()
			time.Sleep(5 * time.Second) // in a synctest bubble
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newMapStore()
				f := newFleet(t, 1, cache.WithStore(s, time.Second))
				defer f.stop()
				one := f.servers[0]
				one.get(t, url)
				want(t, "saved", s.has(url), true)
				s.fail.Store(true)
				f.version.Store(1)
				one.Purge(url)
				for i := range 20 { // so that the Store is left alone
					one.get(t, fmt.Sprint("http://example.com/", i))
				}
				want(t, "here", one.get(t, url), "1")
				heals(s, f)
				want(t, "error of Follow", one.err, nil)
				fresh := cache.New(1<<20, cache.WithStore(s, time.Second))
				want(t, "on another server", text(t, get(fresh.Handler(one.h), url)), "1")
			})
		})
	}
	t.Run("by a request", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newMapStore()
			c := cache.New(1<<20, cache.WithStore(s, time.Second))
			version := "0"
			h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Cache-Control", "max-age=60000")
				io.WriteString(w, version)
			}))
			get(h, url)
			s.fail.Store(true)
			version = "1"
			c.Purge(url)
			want(t, "here", text(t, get(h, url)), "1")
			s.fail.Store(false)
			time.Sleep(2 * time.Second) // in a synctest bubble
			want(t, "a hit", text(t, get(h, url)), "1")
			synctest.Wait()
			fresh := cache.New(1<<20, cache.WithStore(s, time.Second))
			want(t, "on another server", text(t, get(fresh.Handler(h), url)), "1")
		})
	})
	t.Run("not at all", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newMapStore()
			f := newFleet(t, 1, cache.WithStore(s, time.Hour))
			f.servers[0].get(t, url)
			s.fail.Store(true)
			f.servers[0].Purge(url)
			s.delay = time.Minute
			begun := time.Now()
			f.stop()
			want(t, "Follow took", time.Since(begun), 5*time.Second)
			if err := f.servers[0].err; err == nil || err.Error() != "cache: Follow: the Store does not know that what it has was purged" {
				t.Error(err)
			}
		})
	})
}

// Many purges are few messages, take bounded memory, and miss nothing.
func TestBlastOfPurges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2)
		defer f.stop()
		one, two := f.servers[0], f.servers[1]
		for i := range 100 {
			two.get(t, fmt.Sprintf("http://example.com/%03d", i))
		}
		f.version.Store(1)
		one.line.took.Store(int64(time.Millisecond))
		for i := range 100_000 {
			one.PurgeTag(fmt.Sprintf("tag/%03d", i))
		}
		if n := one.Stats().PurgesPending; n > 70_000 {
			t.Errorf("%d purges wait", n)
		}
		time.Sleep(10 * time.Second) // in a synctest bubble
		want(t, "pending", one.Stats().PurgesPending, 0)
		if n := len(f.messages()); n > 500 {
			t.Errorf("%d messages", n)
		}
		for i := range 100 {
			want(t, "page", two.get(t, fmt.Sprintf("http://example.com/%03d", i)), "1")
		}
		f.version.Store(2)
		for i := range 100 {
			one.PurgePrefix(fmt.Sprintf("http://example.com/%03d", i))
		}
		time.Sleep(10 * time.Second) // in a synctest bubble
		for i := range 100 {
			want(t, "page", two.get(t, fmt.Sprintf("http://example.com/%03d", i)), "2")
		}

		// The same purge, from request after request.
		before := len(f.messages())
		for range 100 {
			ask(one.h, "POST", "http://example.com/x")
			time.Sleep(10 * time.Millisecond) // in a synctest bubble
		}
		time.Sleep(time.Second) // in a synctest bubble
		if n := len(f.messages()) - before; n < 10 || n > 25 {
			t.Errorf("%d messages of 100 requests in a second", n)
		}
	})
}

// While the relay cannot be reached purges take no more than so much memory, and one of everything stands for them in the end.
func TestQueueIsBounded(t *testing.T) {
	for _, soft := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			f := newFleet(t, 2)
			defer f.stop()
			one, two := f.servers[0], f.servers[1]
			two.get(t, "http://example.com/x")
			f.version.Store(1)
			one.line.noSend.Store(true)
			if !soft {
				one.PurgeTag("none")
			}
			for i := range 10_000 {
				one.PurgeTagSoft(fmt.Sprint(i, strings.Repeat("x", 1000)))
			}
			if n := one.Stats().PurgesPending; n > 4200 {
				t.Errorf("%d purges of 1000 bytes wait", n)
			}
			one.line.noSend.Store(false)
			time.Sleep(20 * time.Second) // in a synctest bubble
			failing := two.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(500) }))
			status := 500
			if soft {
				status = 200
			}
			want(t, "while the handler fails", get(failing, "http://example.com/x").StatusCode, status)
			want(t, "two", two.get(t, "http://example.com/x"), "1")
		})
	}
}

// Many purges that have arrived are no reason to purge everything.
func TestFloodOfPurgesThatArrive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2)
		defer f.stop()
		one, two := f.servers[0], f.servers[1]
		two.get(t, "http://example.com/x")
		f.version.Store(1)
		one.line.took.Store(int64(time.Millisecond))
		for i := range 100 { // 5 MB in 5 s
			for j := range 50 {
				one.PurgeTag(fmt.Sprint(i, " ", j, strings.Repeat("x", 1000)))
			}
			time.Sleep(50 * time.Millisecond) // in a synctest bubble
			if n := cache.Remembered(one.Cache); n > 5<<20 {
				t.Fatalf("%d bytes of what was sent are kept", n)
			}
		}
		time.Sleep(20 * time.Second) // in a synctest bubble
		want(t, "purges received", two.Stats().PurgesReceived, 5000)
		want(t, "two", two.get(t, "http://example.com/x"), "0")

		// After a gap they are sent again.
		for i := range 5000 {
			one.PurgeTag(fmt.Sprint(i, strings.Repeat("y", 1000)))
			if i%50 == 0 {
				time.Sleep(50 * time.Millisecond) // in a synctest bubble
			}
		}
		two.line.noHear.Store(true)
		f.lose()
		time.Sleep(2 * time.Second) // in a synctest bubble
		two.line.noHear.Store(false)
		time.Sleep(20 * time.Second) // in a synctest bubble
		want(t, "two", two.get(t, "http://example.com/x"), "1")
	})
}

// Nor does what was sent while a server cannot hear whether it has arrived.
func TestWhatWasSentIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2)
		defer f.stop()
		one, two := f.servers[0], f.servers[1]
		one.line.noHear.Store(true)
		for i := range 10 {
			for j := range 1000 {
				one.PurgeTag(fmt.Sprint(i, " ", j, strings.Repeat("x", 1000)))
			}
			time.Sleep(10 * time.Second) // in a synctest bubble
		}
		want(t, "pending", one.Stats().PurgesPending, 0)
		if n := cache.Remembered(one.Cache); n == 0 || n > 5<<20 {
			t.Errorf("%d bytes of what was sent are kept", n)
		}
		two.get(t, "http://example.com/x")
		f.version.Store(1)
		two.line.noHear.Store(true)
		time.Sleep(2 * time.Second) // in a synctest bubble
		f.lose()
		one.line.noHear.Store(false)
		two.line.noHear.Store(false)
		time.Sleep(20 * time.Second) // in a synctest bubble
		size := 0
		for _, m := range f.messages() {
			size += len(m)
		}
		if size == 0 || size > 4<<20 {
			t.Errorf("%d bytes were sent again", size)
		}
		want(t, "two", two.get(t, "http://example.com/x"), "1")
	})
}

// A purge while the same one is being sent is another one.
func TestPurgeWhileTheSameIsSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2)
		defer f.stop()
		one, two := f.servers[0], f.servers[1]
		one.line.took.Store(int64(time.Second))
		one.PurgeTag("first")
		synctest.Wait()
		for i := range 1000 { // more than one message
			one.PurgeTag(fmt.Sprint("tag", strings.Repeat("x", 100), i))
			one.Purge("http://example.com/x")
		}
		time.Sleep(1500 * time.Millisecond) // in a synctest bubble: the second message is on its way
		one.Purge("http://example.com/x")
		one.PurgeTag("tag" + strings.Repeat("x", 100) + "0")
		time.Sleep(700 * time.Millisecond) // in a synctest bubble: and has arrived
		if n := two.Stats().PurgesReceived; n < 2 || n > 500 {
			t.Fatalf("%d purges have arrived", n)
		}
		two.get(t, "http://example.com/x")
		f.version.Store(1)
		time.Sleep(time.Minute) // in a synctest bubble
		want(t, "purges received", two.Stats().PurgesReceived, 1004)
		want(t, "two", two.get(t, "http://example.com/x"), "1")
	})
}

// Without a word from the relay the Store is neither read nor written.
func TestStoreWhileTheRelayIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newMapStore()
		f := newFleet(t, 2, cache.WithStore(s, time.Second))
		defer f.stop()
		one, two := f.servers[0], f.servers[1]
		one.get(t, "http://example.com/x")
		two.line.noHear.Store(true)
		time.Sleep(4 * time.Second) // in a synctest bubble
		two.get(t, "http://example.com/a")
		want(t, "saved after 4 s", s.has("http://example.com/a"), true)
		time.Sleep(2 * time.Second) // in a synctest bubble
		two.calls.Store(0)
		two.get(t, "http://example.com/b")
		want(t, "saved after 6 s", s.has("http://example.com/b"), false)
		two.get(t, "http://example.com/x")
		want(t, "calls", two.calls.Load(), 2)
		two.line.noHear.Store(false)
		time.Sleep(10 * time.Second) // in a synctest bubble
		two.get(t, "http://example.com/c")
		want(t, "saved afterwards", s.has("http://example.com/c"), true)
	})
}

// A store that forgets the generation while another server begins one gets one that never was.
func TestGenerationForgottenWhileItIsUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newMapStore()
		f := newFleet(t, 2, cache.WithStore(s, time.Second))
		defer f.stop()
		one, two := f.servers[0], f.servers[1]
		for i := range 2 {
			one.PurgeTag("tag")
			synctest.Wait()
			s.mu.Lock()
			for k := range s.m {
				if strings.HasSuffix(k, ":generation") {
					delete(s.m, k)
				}
			}
			s.mu.Unlock()
			two.get(t, fmt.Sprint("http://example.com/", i)) // gives it one
			time.Sleep(2 * time.Second)                      // in a synctest bubble
			f.version.Add(1)
		}
		other := cache.New(1<<20, cache.WithStore(s, time.Second))
		want(t, "what was there before the last purge", text(t, get(other.Handler(one.h), "http://example.com/0")), "2")
	})
}

// A long URL under which nothing can be stored is no message: who sends it is a client.
func TestLongTargetsAreNotRelayed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 1)
		defer f.stop()
		ask(f.servers[0].h, "POST", "http://example.com/"+strings.Repeat("x", 20<<10))
		ask(f.servers[0].h, "POST", "http://example.com/", "Set-Location: /"+strings.Repeat("x", 20<<10))
		time.Sleep(time.Second) // in a synctest bubble
		want(t, "messages", len(f.messages()), 1)
		want(t, "its bytes", len(f.messages()[0]) < 100, true)
	})
}

// A message that another version has written, or nobody, purges what it may be about: everything, softly.
func TestMessagesThatAreNotUnderstood(t *testing.T) {
	whole := cache.Message(1, 1, cache.Op(3, 0, "/none"))
	for name, test := range map[string]struct {
		message []byte
		doubts  int64
		version string
	}{
		"whole":                        {whole, 0, "0"},
		"a purge":                      {cache.Message(1, 1, cache.Op(3, 0, "/x")), 0, "1"},
		"flags of a later version":     {cache.Message(1, 1, cache.Op(3, 0xf0, "/none")), 0, "0"},
		"more behind a purge":          {cache.Message(1, 1, append(cache.Op(3, 0, "/none"), "more"...)), 0, "0"},
		"purges of nothing":            {cache.Message(1, 1, cache.Op(2, 0, "?"), cache.Op(3, 0, ""), cache.Op(4, 0, "")), 0, "0"},
		"another subject":              {cache.Message(1, 1, cache.Op(200, 0, "/none")), 1, "1"},
		"another subject and a purge":  {cache.Message(1, 1, cache.Op(200, 0, "/none"), cache.Op(3, 0, "/x")), 1, "1"},
		"a purge without a name":       {cache.Message(1, 1, cache.Op(2, 0)), 1, "1"},
		"two names":                    {cache.Message(1, 1, cache.Op(2, 0, "/none", "/none")), 1, "1"},
		"no origin":                    {cache.Message(1, 1, cache.Op(6, 0)), 1, "1"},
		"an empty purge":               {cache.Message(1, 1, nil), 1, "1"},
		"another version":              {append([]byte{2}, whole[1:]...), 1, "1"},
		"half of one":                  {whole[:len(whole)/2], 1, "1"},
		"something behind":             {append(slices.Clip(whole), 0), 1, "1"},
		"nothing":                      {nil, 1, "1"},
		"text":                         {[]byte("hello, world"), 1, "1"},
		"a number of purges that lies": {[]byte("\x0112345678\x01\xff\xff\xff\xff\xff\xff\xff\xff\x7f"), 1, "1"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet(t, 1)
				defer f.stop()
				m := f.servers[0]
				m.get(t, "http://example.com/x")
				f.version.Store(1)
				m.line.Send(t.Context(), test.message)
				synctest.Wait()
				want(t, "doubts", m.Stats().RelayDoubts, test.doubts)
				want(t, "page", m.get(t, "http://example.com/x"), test.version)
			})
		})
	}
}

func FuzzMessage(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(cache.Message(1, 1, cache.Op(1, 0), cache.Op(2, 0, "http://example.com/x"), cache.Op(6, 3, "http://example.com", "a", "b")))
	f.Add(cache.Message(1, 300, cache.Op(2, 1, "/x"), cache.Op(3, 1, "/x"), cache.Op(4, 1, "x"), cache.Op(5, 2, "https://example.com/?\xff")))
	f.Fuzz(func(t *testing.T, message []byte) { // whatever a relay returns, there is no crash
		c := cache.New(1<<20, cache.WithRelay(&line{journal: newJournal()}), cache.WithQuery("a"))
		get(c.Handler(page(new(atomic.Int64), "x", "Cache-Control: max-age=60")), "http://example.com/x")
		cache.Obey(c, message)
	})
}

// When Follow ends, what is left is sent; what cannot be is an error, and waits for the next one.
func TestFollowEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2)
		one, two := f.servers[0], f.servers[1]
		two.get(t, "http://example.com/x")
		one.line.took.Store(int64(time.Second))
		one.PurgeTag("1")
		synctest.Wait()
		one.PurgeTag("2") // waits for the first
		begun := time.Now()
		f.stop()
		want(t, "Follow ended after", time.Since(begun) < 3*time.Second, true)
		want(t, "error", one.err, nil)
		want(t, "pending", one.Stats().PurgesPending, 0)

		// Failing for a while.
		one.PurgeTag("0")
		one.line.took.Store(0)
		one.line.noSend.Store(true)
		time.AfterFunc(3*time.Second, func() { one.line.noSend.Store(false) })
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		want(t, "error", one.Follow(gone), nil)
		want(t, "pending", one.Stats().PurgesPending, 0)

		// Each call too slow for all.
		one.line.took.Store(int64(2 * time.Second))
		for i := range 3 {
			one.PurgeTag(fmt.Sprint(i, strings.Repeat("x", 4000)))
		}
		begun = time.Now()
		if err := one.Follow(gone); !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) != 5*time.Second {
			t.Error(err, time.Since(begun))
		}
		one.line.took.Store(0)
		want(t, "error", one.Follow(gone), nil)

		// Hanging, and then failing.
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		one.PurgeTag("3")
		one.line.took.Store(int64(time.Hour))
		begun = time.Now()
		err := one.Follow(ended)
		want(t, "Follow took", time.Since(begun), 5*time.Second)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		one.line.took.Store(0)
		one.line.noSend.Store(true)
		if err := one.Follow(ended); !errors.Is(err, errBroken) || err.Error() != "cache: Follow: 1 purges have reached no other server: broken" {
			t.Error(err)
		}
		one.line.noSend.Store(false)
		want(t, "error", one.Follow(ended), nil)
		want(t, "pending", one.Stats().PurgesPending, 0)
		want(t, "messages", len(f.messages()), 6)

		// What was purged elsewhere while nothing was followed is not fresh any more.
		f.version.Store(1)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { two.Follow(ctx) })
		synctest.Wait()
		want(t, "two", two.get(t, "http://example.com/x"), "1")
		cancel()
		wg.Wait()
	})
}

func TestRelayMisuse(t *testing.T) {
	for name, call := range map[string]func(){
		"cache: WithRelay(nil)":                      func() { cache.WithRelay(nil) },
		"cache: WithRelayLimit(4.999s)":              func() { cache.WithRelayLimit(5*time.Second - time.Millisecond) },
		"cache: Follow: the cache has no relay":      func() { cache.New(1 << 20).Follow(t.Context()) },
		"cache: Follow: it is running already":       func() { followTwice(t) },
		"cachetest: TestRelay: RelayConfig.New or L": func() { cachetest.TestRelay(t, cachetest.RelayConfig{}) },
	} {
		func() {
			defer func() {
				if v := recover(); !strings.HasPrefix(fmt.Sprint(v), name) {
					t.Errorf("panic %v, want %s", v, name)
				}
			}()
			call()
		}()
	}
}

func followTwice(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	l := &line{journal: newJournal()}
	c := cache.New(1<<20, cache.WithRelay(l))
	wg.Go(func() { c.Follow(ctx) })
	c.PurgeAll()
	for l.sends.Load() == 0 {
		select {
		case <-l.changedNow():
		case <-time.After(10 * time.Second):
			t.Error("nothing is sent")
			return
		}
	}
	c.Follow(ctx)
}

func (l *journal) changedNow() chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.list) > 0 {
		done := make(chan struct{})
		close(done)
		return done
	}
	return l.changed
}

// Purges and fills on all servers at once: when all have heard of everything, nothing is older than the last purge.
func TestPurgeRacesAcrossServers(t *testing.T) {
	for i := range 20 {
		synctest.Test(t, func(t *testing.T) {
			var opts []cache.Option
			if i%2 == 1 {
				opts = append(opts, cache.WithStore(newMapStore(), time.Minute))
			}
			f := newFleet(t, 3, opts...)
			defer f.stop()
			var wg sync.WaitGroup
			for _, m := range f.servers {
				wg.Go(func() {
					for k := range 60 {
						m.get(t, "http://example.com/x")
						switch k % 20 {
						case 9:
							f.version.Add(1)
							m.Purge("http://example.com/x")
						case 19:
							f.version.Add(1)
							m.PurgeTag("tag")
						}
					}
				})
			}
			wg.Wait()
			time.Sleep(200 * time.Millisecond) // in a synctest bubble
			for j, m := range f.servers {
				want(t, fmt.Sprint("server ", j), m.get(t, "http://example.com/x"), fmt.Sprint(f.version.Load()))
				want(t, "doubts", m.Stats().RelayDoubts, 0)
			}
		})
	}
}

// A hit takes no notice of a relay.
func TestHitWithRelayAllocatesNothingMore(t *testing.T) {
	allocations := func(opts ...cache.Option) float64 {
		h := cache.New(1<<20, opts...).Handler(page(new(atomic.Int64), "x", "Cache-Control: max-age=600"))
		w, r := null{make(http.Header)}, browser("http://example.com/x")
		h.ServeHTTP(w, r)
		return testing.AllocsPerRun(1000, func() { clear(w.h); h.ServeHTTP(w, r) })
	}
	want(t, "allocations", allocations(cache.WithRelay(&line{journal: newJournal()})), allocations())
}

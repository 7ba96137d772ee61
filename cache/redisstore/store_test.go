//go:build unix

package redisstore_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/spillgate/spillgate/cache"
	"github.com/spillgate/spillgate/cache/cachetest"
	"github.com/spillgate/spillgate/cache/redisstore"
	"github.com/spillgate/spillgate/middleware"
)

// shared is a server for what does it no harm.
var shared *server

func TestMain(m *testing.M) {
	if addr := os.Getenv(processOf); addr != "" {
		process(addr)
		return
	}
	if _, err := exec.LookPath("redis-server"); err != nil {
		fmt.Println("the command redis-server is missing: install the Debian package redis-server")
		if os.Getenv("CI") != "" {
			os.Exit(1)
		}
		return
	}
	os.Exit(func() int {
		var err error
		if shared, err = launch(os.TempDir()); err != nil {
			fmt.Println(err)
			return 1
		}
		defer shared.kill()
		return m.Run()
	}())
}

// server is a process of redis-server on a free port, which keeps nothing on the disk.
type server struct {
	addr string
	cmd  *exec.Cmd
}

func launch(dir string, args ...string) (s *server, err error) {
	for range 5 { // somebody else may take the port meanwhile
		addr, portErr := freePort()
		if portErr != nil {
			return nil, portErr
		}
		if s, err = launchAt(dir, addr, args...); err == nil {
			return s, nil
		}
	}
	return nil, err
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

func launchAt(dir, addr string, args ...string) (*server, error) {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	s := &server{addr: addr, cmd: exec.Command("redis-server", append([]string{"--bind", "127.0.0.1", "--port", port, "--dir", dir, "--save", "",
		"--repl-diskless-sync-delay", "0"}, args...)...)}
	s.cmd.SysProcAttr = diesWithParent()
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	var log strings.Builder
	for said := bufio.NewScanner(out); said.Scan(); {
		if strings.Contains(said.Text(), "Ready to accept connections") {
			go io.Copy(io.Discard, out)
			return s, nil
		}
		log.WriteString(said.Text() + "\n")
	}
	s.kill()
	return nil, fmt.Errorf("redis-server does not start:\n%s", log.String())
}

// start starts a server for one test.
func start(t testing.TB, args ...string) *server {
	t.Helper()
	s, err := launch(t.TempDir(), args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.kill)
	return s
}

func (s *server) kill() {
	s.cmd.Process.Kill()
	s.cmd.Wait()
}

func (s *server) client(t testing.TB) *redis.Client {
	c := redis.NewClient(&redis.Options{Addr: s.addr, ContextTimeoutEnabled: true, MaxRetries: -1, DialerRetries: 1, ReadTimeout: 30 * time.Second})
	t.Cleanup(func() { c.Close() })
	return c
}

var stores atomic.Int64 // so that each is empty, in a second run (-count) too

func TestStore(t *testing.T) {
	ring := redis.NewRing(&redis.RingOptions{Addrs: map[string]string{"one": shared.addr, "two": start(t).addr}, ContextTimeoutEnabled: true})
	defer ring.Close()
	for name, c := range map[string]redis.UniversalClient{"one server": shared.client(t), "ring": ring} {
		t.Run(name, func(t *testing.T) {
			cachetest.TestStore(t, cachetest.StoreConfig{New: func(testing.TB) cache.Store {
				return redisstore.New(c, redisstore.WithPrefix(fmt.Sprint(t.Name(), stores.Add(1))))
			}})
		})
	}
}

// A client that reads from replicas finds nothing there that was deleted, however far they lag.
func TestReplicasThatLag(t *testing.T) {
	addrs := cluster(t)
	c := redis.NewClusterClient(&redis.ClusterOptions{Addrs: addrs, ContextTimeoutEnabled: true, RouteRandomly: true})
	defer c.Close()
	s := redisstore.New(c)
	for i := range 20 {
		key := fmt.Sprint(i)
		if err := s.Set(t.Context(), key, []byte("v"), time.Hour); err != nil {
			t.Fatal(err)
		}
		if v, err := s.Get(t.Context(), key); string(v) != "v" || err != nil {
			t.Errorf("%q, %v", v, err)
		}
	}
	for _, addr := range addrs[:3] { // the primaries
		p := redis.NewClient(&redis.Options{Addr: addr})
		defer p.Close()
		if err := errors.Join(p.ACLSetUser(t.Context(), "default", "-psync", "-sync").Err(), p.Do(t.Context(), "CLIENT", "KILL", "TYPE", "replica").Err()); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 20 {
		if err := s.Delete(t.Context(), fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 200 {
		if v, err := s.Get(t.Context(), fmt.Sprint(i%20)); v != nil || err != nil {
			t.Fatalf("after Delete: %q, %v", v, err)
		}
	}
}

func TestNames(t *testing.T) {
	c := start(t).client(t)
	s := redisstore.New(c, redisstore.WithPrefix("shop:"))
	keys := []string{"http://example.com/", "", "h:", "k:", strings.Repeat("x", 4<<10), "http://example.com/{a}", "http://example.com/{a}b", "}"}
	for _, k := range keys {
		if err := s.Set(t.Context(), k, []byte(k), time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	for _, k := range keys {
		if v, err := s.Get(t.Context(), k); string(v) != k || err != nil {
			t.Errorf("%.40q: %.40q, %v", k, v, err)
		}
	}
	names, err := c.Keys(t.Context(), "*").Result()
	if err != nil || len(names) != len(keys) {
		t.Fatalf("%q, %v", names, err)
	}
	for _, n := range names {
		if len(n) > 300 || strings.ContainsAny(n, "{}") || !strings.HasPrefix(n, "shop:") {
			t.Errorf("%q", n)
		}
	}
	if n, err := c.Exists(t.Context(), "shop:k:http://example.com/").Result(); n != 1 || err != nil {
		t.Errorf("%d, %v: a URL is not found by its name", n, err)
	}
}

func TestExpiry(t *testing.T) {
	c := start(t).client(t)
	s := redisstore.New(c)
	for _, d := range []struct {
		name     string
		ttl, min time.Duration
		max      time.Duration
	}{
		{"an hour", time.Hour, time.Hour - time.Minute, time.Hour},
		{"a hundred years", 100 * 365 * 24 * time.Hour, 99 * 365 * 24 * time.Hour, 100 * 365 * 24 * time.Hour},
	} {
		if err := s.Set(t.Context(), d.name, []byte("v"), d.ttl); err != nil {
			t.Fatal(err)
		}
		ttl, err := c.PTTL(t.Context(), "spillgate:cache:k:"+d.name).Result()
		if err != nil || ttl < d.min || ttl > d.max {
			t.Errorf("%s: %v, %v", d.name, ttl, err)
		}
	}
	for _, ttl := range []time.Duration{0, -time.Hour, 1, time.Millisecond / 2} {
		if err := s.Set(t.Context(), "brief", []byte("v"), ttl); err != nil {
			t.Fatal(err)
		}
		until(t, fmt.Sprintf("what is kept for %v is gone", ttl), func() bool {
			v, err := s.Get(t.Context(), "brief")
			return v == nil && err == nil
		})
	}
}

func TestErrors(t *testing.T) {
	c := start(t).client(t)
	s := redisstore.New(c)
	if err := c.LPush(t.Context(), "spillgate:cache:k:list", "1").Err(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), "list"); err == nil || !strings.HasPrefix(err.Error(), "redisstore: WRONGTYPE") {
		t.Error(err)
	}
	if err := c.ConfigSet(t.Context(), "maxmemory", "1").Err(); err != nil {
		t.Fatal(err)
	}
	if err := s.Set(t.Context(), "k", []byte("v"), time.Hour); err == nil || !strings.HasPrefix(err.Error(), "redisstore: OOM") {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for name, call := range map[string]func() error{
		"Get":    func() error { _, err := s.Get(ctx, "k"); return err },
		"Set":    func() error { return s.Set(ctx, "k", nil, time.Hour) },
		"Delete": func() error { return s.Delete(ctx, "k") },
	} {
		if err := call(); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
	}
	defer func() {
		if v := recover(); v == nil || !strings.HasPrefix(fmt.Sprint(v), "redisstore: New: client is nil") {
			t.Errorf("panic %v", v)
		}
	}()
	redisstore.New(nil)
}

// site is a server of a page that says how often it was made.
type site struct {
	*cache.Cache
	h    http.Handler
	made *atomic.Int64
}

func newSite(s cache.Store, timeout time.Duration, made *atomic.Int64) site {
	c := cache.New(1<<20, cache.WithStore(s, timeout))
	return site{c, middleware.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "max-age=3600")
		fmt.Fprintf(w, "%s, edition %d", r.URL.Path, made.Add(1))
	}), middleware.Cache(c)), made}
}

func (s site) get(t *testing.T, path, want string) {
	t.Helper()
	w := httptest.NewRecorder()
	s.h.ServeHTTP(w, httptest.NewRequest("GET", "http://example.com"+path, nil))
	if got := w.Body.String(); w.Code != 200 || got != want {
		t.Errorf("GET %s: %d %q, want %q", path, w.Code, got, want)
	}
}

// What one server has made the others serve, as long as Redis is there; without it each makes its own.
func TestServers(t *testing.T) {
	srv := start(t)
	var made atomic.Int64
	store := redisstore.New(srv.client(t))
	one, two := newSite(store, 30*time.Second, &made), newSite(store, 30*time.Second, &made)
	one.get(t, "/a", "/a, edition 1")
	two.get(t, "/a", "/a, edition 1")
	if n := one.Purge("http://example.com/a"); n != 1 {
		t.Errorf("%d purged", n)
	}
	newSite(store, 30*time.Second, &made).get(t, "/a", "/a, edition 2")

	srv.kill()
	two.get(t, "/a", "/a, edition 1") // from its memory
	two.get(t, "/b", "/b, edition 3")
	two.get(t, "/b", "/b, edition 3")
	one.get(t, "/b", "/b, edition 4")
	if st := two.Stats(); st.StoreErrors == 0 {
		t.Errorf("%+v: no error counted", st)
	}
}

// A server that does not answer costs a request the timeout, a few times, and no more.
func TestHang(t *testing.T) {
	srv := start(t)
	var made atomic.Int64
	s := newSite(redisstore.New(srv.client(t)), 20*time.Millisecond, &made)
	if err := srv.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		s.get(t, fmt.Sprint("/", i), fmt.Sprintf("/%d, edition %d", i, i+1))
	}
	if st := s.Stats(); st.StoreErrors == 0 || st.StoreErrors > 12 {
		t.Errorf("%d errors of 20 requests; the store is to be left alone after five", st.StoreErrors)
	}
}

// Where it takes longer to make a connection than a call may, it is made all the same, and the next call has it.
func TestFarAway(t *testing.T) {
	made := make(chan struct{})
	var begun, givenUp atomic.Int64
	client := redis.NewClient(&redis.Options{Addr: shared.addr, ContextTimeoutEnabled: true, MaxRetries: -1, DialerRetries: 1, OnConnect: func(ctx context.Context, _ *redis.Conn) error {
		begun.Add(1)
		select {
		case <-made:
			return nil
		case <-ctx.Done():
			givenUp.Add(1)
			return ctx.Err()
		}
	}})
	defer client.Close()
	store := redisstore.New(client, redisstore.WithPrefix("far away:"))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := store.Get(ctx, "key"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v; want that the time is up", err)
	}
	until(t, "a connection is begun", func() bool { return begun.Load() > 0 })
	if n := givenUp.Load(); n != 0 {
		t.Errorf("%d connections were given up", n)
	}
	close(made)
	until(t, "it is made", func() bool { return client.PoolStats().IdleConns > 0 })
	if err := store.Set(t.Context(), "key", []byte("value"), time.Minute); err != nil {
		t.Error(err)
	}
	if value, err := store.Get(t.Context(), "key"); string(value) != "value" || err != nil || begun.Load() != 1 {
		t.Errorf("%q, %v with %d connections; want the one that was begun", value, err, begun.Load())
	}
}

// until waits for something that another process does.
func until(t testing.TB, what string, done func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("it did not come to be that %s", what)
		}
	}
}

// Two servers of one shop: what one has made the other serves.
func Example() {
	client := redis.NewClient(&redis.Options{Addr: shared.addr, ContextTimeoutEnabled: true})
	defer client.Close()
	newServer := func(name string) http.Handler {
		c := cache.New(64<<20, cache.WithStore(redisstore.New(client, redisstore.WithPrefix("shop:cache:")), 5*time.Second))
		return middleware.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "public, max-age=60")
			fmt.Fprint(w, "made by ", name)
		}), middleware.Cache(c))
	}
	for _, h := range []http.Handler{newServer("one"), newServer("two")} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "http://shop.example/", nil))
		fmt.Println(w.Body)
	}
	// Output:
	// made by one
	// made by one
}

// BenchmarkGet measures what a response from the store takes in a cache whose memory does not have it, beside a GET of as many bytes.
func BenchmarkGet(b *testing.B) {
	for _, size := range []int{1 << 10, 64 << 10} {
		client := shared.client(b)
		b.Run(fmt.Sprintf("size=%dKiB/bare", size>>10), func(b *testing.B) {
			client.Set(b.Context(), "bare", make([]byte, size), time.Hour)
			b.ReportAllocs()
			for b.Loop() {
				if v, err := client.Get(b.Context(), "bare").Bytes(); len(v) != size || err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("size=%dKiB/cache", size>>10), func(b *testing.B) {
			// What comes round the least recently used has left the memory, so each request asks the store.
			budget := max(64<<10, 16*size)
			c := cache.New(int64(budget), cache.WithStore(redisstore.New(client), 10*time.Second), cache.WithMaxObject(int64(size)))
			made := 0
			h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				made++
				w.Header().Set("Cache-Control", "max-age=3600")
				w.Write(make([]byte, size))
			}))
			paths := make([]*http.Request, 4*budget/size)
			for i := range paths {
				paths[i] = httptest.NewRequest("GET", fmt.Sprint("http://example.com/", size, "/", i), nil)
				h.ServeHTTP(httptest.NewRecorder(), paths[i])
			}
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				h.ServeHTTP(httptest.NewRecorder(), paths[i%len(paths)])
				i++
			}
			if made != len(paths) {
				b.Fatalf("made %d times", made)
			}
		})
	}
}

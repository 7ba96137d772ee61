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
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/spillgate/spillgate/cache"
	"github.com/spillgate/spillgate/cache/cachetest"
	"github.com/spillgate/spillgate/cache/redisstore"
)

func TestRelay(t *testing.T) {
	ring := redis.NewRing(&redis.RingOptions{Addrs: map[string]string{"one": shared.addr, "two": start(t).addr}, ContextTimeoutEnabled: true})
	defer ring.Close()
	addrs := cluster(t)
	plain := redis.NewClusterClient(&redis.ClusterOptions{Addrs: addrs, ContextTimeoutEnabled: true})
	defer plain.Close()
	// One that reads from replicas, which lag.
	random := redis.NewClusterClient(&redis.ClusterOptions{Addrs: addrs, ContextTimeoutEnabled: true, RouteRandomly: true})
	defer random.Close()
	for name, c := range map[string]redis.UniversalClient{"one server": shared.client(t), "ring": ring, "cluster": plain, "replicas": random} {
		t.Run(name, func(t *testing.T) {
			n := 0
			prefix := func() string { return fmt.Sprint(t.Name(), n) }
			cachetest.TestRelay(t, cachetest.RelayConfig{
				New: func(testing.TB) cache.Relay {
					n++
					return redisstore.New(c, redisstore.WithPrefix(prefix()))
				},
				Lose: func(t testing.TB, _ cache.Relay) {
					if n, err := c.Del(t.Context(), prefix()+"purges").Result(); n != 1 || err != nil {
						t.Fatal(n, err)
					}
				},
			})
		})
	}
}

// cluster starts three servers that share the slots, and a replica of each.
func cluster(t testing.TB) (addrs []string) {
	t.Helper()
	ctx := context.Background()
	var first *redis.Client
	var ids []string
	for i := range 6 {
		bus, err := freePort() // the default is ten thousand above, which may be none
		if err != nil {
			t.Fatal(err)
		}
		host, busPort, _ := net.SplitHostPort(bus)
		s := start(t, "--cluster-enabled", "yes", "--cluster-port", busPort)
		c := s.client(t)
		if i < 3 {
			if err := c.ClusterAddSlotsRange(ctx, []int{0, 5461, 10923}[i], []int{5460, 10922, 16383}[i]).Err(); err != nil {
				t.Fatal(err)
			}
		}
		if i == 0 {
			first = c
		}
		id, err := c.Do(ctx, "CLUSTER", "MYID").Text()
		if err != nil {
			t.Fatal(err)
		}
		_, port, _ := net.SplitHostPort(s.addr)
		if err := first.Do(ctx, "CLUSTER", "MEET", host, port, busPort).Err(); i > 0 && err != nil {
			t.Fatal(err)
		}
		addrs, ids = append(addrs, s.addr), append(ids, id)
	}
	for i, addr := range addrs {
		c := redis.NewClient(&redis.Options{Addr: addr})
		defer c.Close()
		until(t, "all slots are served at "+addr, func() bool {
			info, err := c.ClusterInfo(ctx).Result()
			return err == nil && strings.Contains(info, "cluster_state:ok") && strings.Contains(info, "cluster_known_nodes:6")
		})
		if i >= 3 {
			until(t, "there is a replica at "+addr, func() bool { return c.ClusterReplicate(ctx, ids[i-3]).Err() == nil })
		}
	}
	for _, addr := range addrs {
		c := redis.NewClient(&redis.Options{Addr: addr})
		defer c.Close()
		until(t, "replicas are known at "+addr, func() bool {
			nodes, err := c.ClusterNodes(ctx).Result()
			return err == nil && strings.Count(nodes, "slave") == 3
		})
		until(t, "replicas are given to clients at "+addr, func() bool {
			slots, err := c.Do(ctx, "CLUSTER", "SLOTS").Slice()
			return err == nil && len(slots) == 3 && !slices.ContainsFunc(slots, func(s any) bool { return len(s.([]any)) != 4 }) // from, to, and two servers
		})
		until(t, "replicas are in step at "+addr, func() bool {
			info, err := c.Info(ctx, "replication").Result()
			return err == nil && (strings.Contains(info, "state=online") || strings.Contains(info, "master_link_status:up"))
		})
	}
	return addrs
}

// processOf names the server, in the processes that TestProcesses starts.
const processOf = "REDISSTORE_SERVER"

// process is a server that does what it reads, a line each, and answers with what it would send, or how much it has purged.
func process(addr string) {
	client := redis.NewClient(&redis.Options{Addr: addr, ContextTimeoutEnabled: true})
	store := redisstore.New(client, redisstore.WithPrefix("processes:"))
	c := cache.New(1<<20, cache.WithStore(store, 10*time.Second), cache.WithRelay(store))
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { c.Follow(ctx) })
	made := 0
	h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		made++
		w.Header().Set("Cache-Control", "max-age=3600")
		w.Header().Set("Cache-Tag", "tag")
		fmt.Fprintf(w, "edition %d of process %d", made, os.Getpid())
	}))
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		switch what, arg, _ := strings.Cut(in.Text(), " "); what {
		case "tag":
			fmt.Println(c.PurgeTag(arg))
		default:
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest(what, arg, nil))
			fmt.Println(w.Body)
		}
	}
	cancel()
	wg.Wait()
}

// What one process purges, others do not serve.
func TestProcesses(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var do []func(line string) string
	for range 3 {
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), processOf+"="+shared.addr)
		cmd.SysProcAttr = diesWithParent()
		cmd.Stderr = os.Stderr
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			in.Close()
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
		}()
		said := bufio.NewScanner(out)
		do = append(do, func(line string) string {
			fmt.Fprintln(in, line)
			if !said.Scan() {
				t.Fatalf("a process has ended: %v", said.Err())
			}
			return said.Text()
		})
	}
	n := 0
	for round, purge := range []string{"tag tag", "DELETE ", "tag tag", "POST "} {
		var page, old string
		until(t, "all serve what one has made", func() bool { // where one begins to follow it has nothing that is fresh
			n++
			page = fmt.Sprint("http://example.com/", n)
			old = do[0]("GET " + page)
			return do[1]("GET "+page) == old && do[2]("GET "+page) == old
		})
		if !strings.Contains(purge, "tag") {
			purge += page
		}
		by := round % len(do)
		do[by](purge)
		for p := range do {
			until(t, fmt.Sprintf("process %d has heard of %q", p, purge), func() bool { return do[p]("GET "+page) != old })
		}
	}
}

// follower is a server that follows.
type follower struct {
	*cache.Cache
	h http.Handler
}

// follow makes servers of a page whose only content is a version, and has them follow until the test ends. Each has the client that clients returns for it.
func follow(t *testing.T, n int, version *atomic.Int64, relay func(i int) cache.Relay, opts ...cache.Option) []follower {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	var all []follower
	for i := range n {
		c := cache.New(1<<20, append(slices.Clone(opts), cache.WithRelay(relay(i)))...)
		wg.Go(func() { c.Follow(ctx) })
		all = append(all, follower{c, c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "max-age=3600")
			w.Header().Set("Cache-Tag", "tag")
			fmt.Fprint(w, version.Load())
		}))})
	}
	until(t, "all are in touch", func() bool { return inTouch(all) })
	return all
}

// inTouch has each purge something, and reports whether each has heard of that since it was made.
func inTouch(all []follower) bool {
	heard := true
	for _, f := range all {
		f.Purge("http://example.com/nothing")
		heard = heard && (f.Stats().PurgesReceived > 0 || len(all) == 1)
	}
	return heard
}

func (f follower) get() string {
	w := httptest.NewRecorder()
	f.h.ServeHTTP(w, httptest.NewRequest("GET", "http://example.com/x", nil))
	return w.Body.String()
}

// fill has all know the page.
func fill(t *testing.T, all []follower, version string) {
	t.Helper()
	for i, f := range all {
		if got := f.get(); got != version {
			t.Fatalf("server %d: version %s, want %s", i, got, version)
		}
	}
}

// A Redis that is killed, and comes back with nothing: what was purged meanwhile and shortly before is purged everywhere.
func TestRelayRestart(t *testing.T) {
	srv := start(t)
	var version atomic.Int64
	all := follow(t, 3, &version, func(int) cache.Relay { return redisstore.New(srv.client(t)) })
	fill(t, all, "0")
	srv.kill()
	version.Store(1)
	all[0].Purge("http://example.com/x")
	if n := all[0].Stats().PurgesPending; n == 0 {
		t.Error("nothing is pending")
	}
	until(t, "failures are counted", func() bool { return all[0].Stats().RelayErrors > 0 })
	again, err := launchAt(t.TempDir(), srv.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(again.kill)
	for i, f := range all {
		until(t, fmt.Sprintf("server %d serves version 1", i), func() bool { return f.get() == "1" })
		until(t, fmt.Sprintf("server %d knows that messages may be gone", i), func() bool { return f.Stats().RelayDoubts > 0 })
	}
	until(t, "it was sent", func() bool { return all[0].Stats().PurgesPending == 0 })
}

// A Redis that is killed, and started again from a snapshot, has what was purged since it was made: nobody serves that.
func TestRelaySnapshot(t *testing.T) {
	dir := t.TempDir()
	srv, err := launch(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.kill)
	client := srv.client(t)
	var version atomic.Int64
	store := redisstore.New(client)
	all := follow(t, 2, &version, func(int) cache.Relay { return store }, cache.WithStore(store, 10*time.Second))
	fill(t, all, "0")
	mark := func() uint64 {
		n, err := strconv.ParseUint(client.Get(t.Context(), "spillgate:cache:k:spillgate:mark").Val(), 16, 64)
		if err != nil {
			return 0
		}
		return n
	}
	until(t, "the page and a mark are in Redis", func() bool {
		return client.Exists(t.Context(), "spillgate:cache:k:http://example.com/x").Val() == 1 && mark() > 0
	})
	if err := client.Save(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	snapshot := mark()
	version.Store(1)
	all[0].Purge("http://example.com/x")
	until(t, "it was sent", func() bool { return all[0].Stats().PurgesPending == 0 })
	until(t, "the snapshot is old", func() bool { return mark() > snapshot+6 })
	srv.kill()
	again, err := launchAt(dir, srv.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(again.kill)
	if client.Exists(t.Context(), "spillgate:cache:k:http://example.com/x").Val() != 1 {
		t.Error("Redis has not come back as it was")
	}
	for i, f := range all {
		until(t, fmt.Sprintf("server %d knows that messages may be gone", i), func() bool { return f.Stats().RelayDoubts > 0 })
		until(t, fmt.Sprintf("server %d serves version 1", i), func() bool { return f.get() == "1" })
	}
	fresh := cache.New(1<<20, cache.WithStore(store, 10*time.Second))
	w := httptest.NewRecorder()
	fresh.Handler(http.NotFoundHandler()).ServeHTTP(w, httptest.NewRequest("GET", "http://example.com/x", nil))
	if body := w.Body.String(); body == "0" {
		t.Error("a new server has what was purged")
	}
}

// Messages that are flushed, evicted or deleted are missed.
func TestRelayFlush(t *testing.T) {
	srv := start(t)
	var version atomic.Int64
	all := follow(t, 2, &version, func(int) cache.Relay { return redisstore.New(srv.client(t)) })
	fill(t, all, "0")
	version.Store(1)
	if err := srv.client(t).FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	for i, f := range all {
		until(t, fmt.Sprintf("server %d serves version 1", i), func() bool { return f.get() == "1" })
		if st := f.Stats(); st.RelayDoubts != 1 || st.RelayErrors != 0 {
			t.Errorf("server %d: %+v", i, st)
		}
	}
}

// held is a relay whose calls of Receive wait for a lock.
type held struct {
	cache.Relay
	mu sync.Mutex
}

func (h *held) Receive(ctx context.Context, place string, wait time.Duration) (cache.Messages, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.Relay.Receive(ctx, place, wait)
}

// A reader that comes when what it has not read was cut off knows that.
func TestRelayLag(t *testing.T) {
	srv := start(t)
	client := srv.client(t)
	store := redisstore.New(client, redisstore.WithMaxMessages(100))
	slow := &held{Relay: store}
	var version atomic.Int64
	all := follow(t, 2, &version, func(i int) cache.Relay {
		if i == 1 {
			return slow
		}
		return store
	})
	fill(t, all, "0")
	slow.mu.Lock()
	version.Store(1)
	all[0].Purge("http://example.com/x")
	until(t, "it was sent", func() bool { return all[0].Stats().PurgesPending == 0 })
	third := redisstore.New(client, redisstore.WithMaxMessages(100))
	message := []byte("\x01somebody\x01\x00") // of no purges
	for range 1000 {
		if err := third.Send(t.Context(), message); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := client.XLen(t.Context(), "spillgate:cache:purges").Result(); n < 100 || n > 300 || err != nil {
		t.Errorf("%d messages are kept, %v", n, err)
	}
	if all[1].get() != "0" {
		t.Error("the slow one has heard of the purge")
	}
	slow.mu.Unlock()
	until(t, "the slow one serves version 1", func() bool { return all[1].get() == "1" })
	if st := all[1].Stats(); st.RelayDoubts != 1 || st.RelayErrors != 0 {
		t.Errorf("%+v", st)
	}
}

// A replica takes over without a message that nobody but its sender has read, or not even he: that is sent again.
func TestRelayFailover(t *testing.T) {
	for _, read := range []bool{true, false} {
		primary, replica := start(t), start(t)
		p, r := primary.client(t), replica.client(t)
		_, port, _ := net.SplitHostPort(primary.addr)
		if err := r.Do(t.Context(), "REPLICAOF", "127.0.0.1", port).Err(); err != nil {
			t.Fatal(err)
		}
		var addr atomic.Pointer[string]
		addr.Store(&primary.addr)
		client := redis.NewClient(&redis.Options{ContextTimeoutEnabled: true, MaxRetries: -1, DialerRetries: 1, ReadTimeout: 30 * time.Second,
			Dialer: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, *addr.Load())
			}})
		defer client.Close()
		var version atomic.Int64
		relays := []*held{{Relay: redisstore.New(client)}, {Relay: redisstore.New(client)}}
		all := follow(t, 2, &version, func(i int) cache.Relay { return relays[i] })
		fill(t, all, "0")
		until(t, "what is there is read and on the replica", func() bool {
			n, err := p.XLen(t.Context(), "spillgate:cache:purges").Result()
			there, rErr := r.XLen(t.Context(), "spillgate:cache:purges").Result()
			return all[0].Stats().PurgesPending == 0 && all[1].Stats().PurgesPending == 0 && err == nil && rErr == nil && n == there
		})
		for i, h := range relays {
			if i == 1 || !read {
				h.mu.Lock()
			}
		}
		if err := r.Do(t.Context(), "REPLICAOF", "NO", "ONE").Err(); err != nil {
			t.Fatal(err)
		}
		version.Store(1)
		all[0].Purge("http://example.com/x")
		until(t, "it was sent", func() bool { return all[0].Stats().PurgesPending == 0 })
		addr.Store(&replica.addr)
		primary.kill()
		for i, h := range relays {
			if i == 1 || !read {
				h.mu.Unlock()
			}
		}
		for i, f := range all {
			until(t, fmt.Sprintf("read by its sender: %t: server %d serves version 1", read, i), func() bool { return f.get() == "1" })
		}
	}
}

// The same where Sentinel does it, with the clients that go-redis has for that, one of which reads from replicas.
func TestRelaySentinel(t *testing.T) {
	for _, kind := range []string{"one server", "replicas"} {
		primary, replica := start(t), start(t)
		_, port, _ := net.SplitHostPort(primary.addr)
		if err := replica.client(t).Do(t.Context(), "REPLICAOF", "127.0.0.1", port).Err(); err != nil {
			t.Fatal(err)
		}
		config := filepath.Join(t.TempDir(), "sentinel.conf") // it writes to it
		text := "sentinel monitor cache 127.0.0.1 " + port + " 1\nsentinel down-after-milliseconds cache 1000\n"
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		addr, err := freePort()
		if err != nil {
			t.Fatal(err)
		}
		_, port, _ = net.SplitHostPort(addr)
		cmd := exec.Command("redis-server", config, "--sentinel", "--bind", "127.0.0.1", "--port", port)
		cmd.SysProcAttr = diesWithParent()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		sentinel := redis.NewSentinelClient(&redis.Options{Addr: addr})
		defer sentinel.Close()
		until(t, "Sentinel knows the replica", func() bool {
			replicas, err := sentinel.Replicas(t.Context(), "cache").Result()
			return err == nil && len(replicas) == 1 && replicas[0]["flags"] == "slave"
		})
		var version atomic.Int64
		all := follow(t, 3, &version, func(int) cache.Relay {
			opts := &redis.FailoverOptions{MasterName: "cache", SentinelAddrs: []string{addr}, ContextTimeoutEnabled: true}
			var c redis.UniversalClient = redis.NewFailoverClient(opts)
			if kind == "replicas" {
				opts.RouteRandomly = true
				c = redis.NewFailoverClusterClient(opts)
			}
			t.Cleanup(func() { c.Close() })
			return redisstore.New(c)
		})
		until(t, "nothing is on its way", func() bool {
			return !slices.ContainsFunc(all, func(f follower) bool { return f.Stats().PurgesPending != 0 })
		})
		fill(t, all, "0")
		primary.kill()
		version.Store(1)
		all[0].Purge("http://example.com/x")
		for i, f := range all {
			until(t, fmt.Sprintf("%s: server %d serves version 1", kind, i), func() bool { return f.get() == "1" })
		}
	}
}

// A Redis that hangs, or takes no more, holds up neither a purge nor a request; when it is well again all is told.
func TestRelayThatIsUnwell(t *testing.T) {
	srv := start(t)
	admin := srv.client(t)
	var version atomic.Int64
	all := follow(t, 2, &version, func(int) cache.Relay { return redisstore.New(srv.client(t)) })
	for name, do := range map[string]struct{ ill, well func() error }{
		"hangs": {
			func() error { return srv.cmd.Process.Signal(syscall.SIGSTOP) },
			func() error { return srv.cmd.Process.Signal(syscall.SIGCONT) },
		},
		"is full": {
			func() error { return admin.ConfigSet(t.Context(), "maxmemory", "1").Err() },
			func() error { return admin.ConfigSet(t.Context(), "maxmemory", "0").Err() },
		},
	} {
		v := fmt.Sprint(version.Load())
		for _, f := range all {
			until(t, "it is known", func() bool { return f.get() == v })
		}
		if err := do.ill(); err != nil {
			t.Fatal(err)
		}
		version.Add(1)
		begun := time.Now()
		for range 1000 {
			all[0].h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("POST", "http://example.com/x", nil))
		}
		if d := time.Since(begun); d > 3*time.Second {
			t.Errorf("%s: 1000 requests took %v", name, d)
		}
		if n := all[0].Stats().PurgesPending; n < 1 || n > 10 {
			t.Errorf("%s: %d purges wait", name, n)
		}
		if err := do.well(); err != nil {
			t.Fatal(err)
		}
		for i, f := range all {
			until(t, fmt.Sprintf("%s: server %d serves the new version", name, i), func() bool { return f.get() != v })
		}
	}
}

// A user of Redis needs no more than what the documentation says.
func TestRights(t *testing.T) {
	srv := start(t)
	if err := srv.client(t).ACLSetUser(t.Context(), "cache", "on", ">secret", "~spillgate:cache:*",
		"+get", "+set", "+del", "+xadd", "+xrange", "+xread", "+pexpire", "+multi", "+exec").Err(); err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(&redis.Options{Addr: srv.addr, Username: "cache", Password: "secret", ContextTimeoutEnabled: true})
	defer client.Close()
	store := redisstore.New(client)
	var version atomic.Int64
	all := follow(t, 2, &version, func(int) cache.Relay { return store }, cache.WithStore(store, 10*time.Second))
	fill(t, all, "0")
	version.Store(1)
	all[0].PurgeTag("tag")
	for _, f := range all {
		until(t, "it is purged", func() bool { return f.get() == "1" })
		if st := f.Stats(); st.StoreErrors != 0 || st.RelayErrors != 0 {
			t.Errorf("%+v", st)
		}
	}
}

// What others have put into the stream is not understood, and no message is passed over for it.
func TestForeignEntries(t *testing.T) {
	c := start(t).client(t)
	s := redisstore.New(c)
	place, err := s.End(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.XAdd(t.Context(), &redis.XAddArgs{Stream: "spillgate:cache:purges", Values: []any{"a", "b"}}).Err(); err != nil {
		t.Fatal(err)
	}
	if err := s.Send(t.Context(), []byte("1")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.End(t.Context()); err != nil {
		t.Fatal(err)
	}
	m, err := s.Receive(t.Context(), place, time.Second)
	if err != nil || len(m.List) != 2 || len(m.List[0]) != 0 || string(m.List[1]) != "1" || m.More {
		t.Errorf("%q, more %t, %v", m.List, m.More, err)
	}
	if ttl, err := c.PTTL(t.Context(), "spillgate:cache:purges").Result(); ttl < 59*time.Minute || ttl > time.Hour || err != nil {
		t.Errorf("the stream is kept for %v, %v", ttl, err)
	}
	if _, err := s.Receive(t.Context(), "nonsense", 0); err == nil || errors.Is(err, io.EOF) || !strings.HasPrefix(err.Error(), "redisstore: ") {
		t.Error(err)
	}
	defer func() {
		if v := recover(); fmt.Sprint(v) != "redisstore: WithMaxMessages(0): must be at least 1" {
			t.Errorf("panic %v", v)
		}
	}()
	redisstore.WithMaxMessages(0)
}

//go:build unix

package redisstore_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/time/rate"

	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/limiter/redisstore"
	"github.com/spillgate/spillgate/middleware"
)

// processOf names the server, in the processes that TestProcesses starts, and processPrefix what keys begin with there.
const (
	processOf     = "REDISSTORE_SERVER"
	processPrefix = "REDISSTORE_PREFIX"
)

// process asks for tokens from several goroutines until it is refused, and prints how many it had.
func process() {
	c := redis.NewClient(&redis.Options{Addr: os.Getenv(processOf), ContextTimeoutEnabled: true, MaxRetries: -1, ReadTimeout: 30 * time.Second})
	var failures atomic.Int64
	r := limiter.NewRate(rate.Every(24*time.Hour), 3000, limiter.WithStore(redisstore.New(c, redisstore.WithPrefix(os.Getenv(processPrefix)))),
		limiter.WithStoreTimeout(30*time.Second), limiter.WithStoreFailure(limiter.FailClosed),
		limiter.WithRateTrace(limiter.RateTrace{StoreFailed: func(error) { failures.Add(1) }}))
	var had atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for r.Allow("key").OK {
				had.Add(1)
			}
		})
	}
	wg.Wait()
	fmt.Println(had.Load(), failures.Load())
}

// Several processes have together what one would have alone.
func TestProcesses(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	out, prefix := make([]string, 3), prefix(t)
	for i := range out {
		wg.Go(func() {
			cmd := exec.Command(self)
			cmd.Env = append(os.Environ(), processOf+"="+shared.addr, processPrefix+"="+prefix)
			b, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("%v: %s", err, b)
			}
			out[i] = strings.TrimSpace(string(b))
		})
	}
	wg.Wait()
	all := 0
	for _, s := range out {
		had, failures, _ := strings.Cut(s, " ")
		n, err := strconv.Atoi(had)
		if err != nil || failures != "0" {
			t.Fatalf("a process said %q", s)
		}
		all += n
	}
	if all != 3000 {
		t.Errorf("%q: %d admitted by all, want 3000", out, all)
	}
}

// Two servers of one service: a client has one quota, and each server tells it.
func TestServers(t *testing.T) {
	f := newFixture(t)
	var urls []string
	for range 2 {
		l := limiter.NewRate(rate.Every(time.Minute), 4, limiter.WithStore(f.Store), limiter.WithStoreTimeout(30*time.Second), limiter.WithStoreFailure(limiter.FailClosed))
		s := httptest.NewServer(middleware.Wrap(http.NotFoundHandler(), middleware.Rate(l)))
		defer s.Close()
		urls = append(urls, s.URL)
	}
	for i := range 6 {
		res, err := http.Get(urls[i%2])
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		want, left := http.StatusNotFound, 3-i
		if i >= 4 {
			want, left = http.StatusTooManyRequests, 0
		}
		if got := res.Header.Get("Ratelimit"); res.StatusCode != want || !strings.HasPrefix(got, fmt.Sprintf(`"default";r=%d;t=`, left)) {
			t.Errorf("request %d: %d, RateLimit %s; want %d and %d left", i, res.StatusCode, got, want, left)
		}
	}
}

// While the server is gone each process decides by what it knows, and asks again when it is back.
func TestOutage(t *testing.T) {
	s := own(t)
	var failed atomic.Int64
	r := limiter.NewRate(rate.Every(24*time.Hour), 5, limiter.WithStore(redisstore.New(s.client(t))), limiter.WithStoreTimeout(30*time.Second),
		limiter.WithRateTrace(limiter.RateTrace{StoreFailed: func(error) { failed.Add(1) }}))
	for range 3 {
		if !r.Allow("key").OK {
			t.Fatal("refused")
		}
	}
	s.kill()
	for i := range 4 {
		if d := r.Allow("key"); d.OK != (i < 2) {
			t.Errorf("event %d of the outage: %+v", i, d)
		}
	}
	for i := range 20 { // of other clients
		if !r.Allow(fmt.Sprint(i)).OK {
			t.Errorf("client %d refused", i)
		}
	}
	if st := r.Stats(); st.StoreFailed < 5 || st.StoreSkipped == 0 || failed.Load() != 22 {
		t.Errorf("%+v, %d failures told", st, failed.Load())
	}

	again, err := startAt(t.TempDir(), s.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(again.kill)
	c := again.client(t)
	until(t, "the server is asked again", func() bool {
		r.Allow("a new client")
		n, err := c.DBSize(t.Context()).Result()
		return err == nil && n > 0
	})
}

// A server that does not answer holds nobody up for longer than the timeout.
func TestHang(t *testing.T) {
	s := own(t)
	store := redisstore.New(s.client(t))
	r := limiter.NewRate(1, 5, limiter.WithStore(store), limiter.WithStoreTimeout(20*time.Millisecond), limiter.WithStoreFailure(limiter.FailClosed))
	if err := s.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if d := r.Allow("key"); !errors.Is(d.Err(), limiter.ErrStoreFailed) || d.RetryAfter <= 0 {
		t.Errorf("%+v, %v", d, d.Err())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond) // the client's own are 5 and 30 s
	defer cancel()
	if _, err := store.Take(ctx, limiter.StoreRequest{Key: "key", Cost: 1, Policies: one(1)}, make([]limiter.PolicyState, 1)); !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v; want that the time is up", err)
	}
	if err := s.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	until(t, "it answers again", func() bool { return r.Allow("key").OK })
}

// Where it takes longer to make a connection than a question may, it is made all the same, and the next question has it.
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
	take := func(timeout time.Duration) (bool, error) {
		ctx, cancel := context.WithTimeout(t.Context(), timeout)
		defer cancel()
		return store.Take(ctx, limiter.StoreRequest{Key: rand.Text(), Cost: 1, Policies: one(1)}, make([]limiter.PolicyState, 1))
	}
	if _, err := take(20 * time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v; want that the time is up", err)
	}
	until(t, "a connection is begun", func() bool { return begun.Load() > 0 })
	if n := givenUp.Load(); n != 0 {
		t.Errorf("%d connections were given up", n)
	}
	close(made)
	until(t, "it is made", func() bool { return client.PoolStats().IdleConns > 0 })
	if ok, err := take(10 * time.Second); !ok || err != nil || begun.Load() != 1 {
		t.Errorf("%v, %v with %d connections; want the one that was begun", ok, err, begun.Load())
	}
}

// front stands before a server as the way to its machine does, which may be gone without a word. What it returns has nothing come any more on the
// connections that there are.
func front(t *testing.T, s *server) (addr string, gone func()) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	var last atomic.Int64 // of the connections that are silent
	pass := func(to, from net.Conn, n int64) {
		b := make([]byte, 64<<10)
		for {
			read, err := from.Read(b)
			switch {
			case n <= last.Load():
			case err != nil:
				to.Close()
			default:
				to.Write(b[:read])
			}
			if err != nil {
				return
			}
		}
	}
	var all atomic.Int64
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", s.addr)
			if err != nil {
				client.Close()
				continue
			}
			t.Cleanup(func() { client.Close(); server.Close() })
			n := all.Add(1)
			go pass(client, server, n)
			go pass(server, client, n)
		}
	}()
	return l.Addr().String(), func() { last.Store(all.Load()) }
}

// Where the machine of the server is gone without a word and has been replaced, the connections that were idle are not found dead one by one.
func TestMachineIsGone(t *testing.T) {
	addr, gone := front(t, shared)
	c := redis.NewClient(&redis.Options{Addr: addr, ContextTimeoutEnabled: true, MaxRetries: -1, DialerRetries: 1, PoolSize: 50, ConnMaxIdleTime: time.Second})
	defer c.Close()
	var wg sync.WaitGroup
	for range 40 { // at a time, so that each has a connection
		wg.Go(func() { c.BLPop(t.Context(), time.Second, prefix(t)) })
	}
	wg.Wait()
	r := limiter.NewRate(rate.Every(time.Hour), 1000, limiter.WithStore(redisstore.New(c, redisstore.WithPrefix(prefix(t)))))
	answers := func() bool {
		before := r.Stats()
		r.Allow("key")
		after := r.Stats()
		return after.StoreAsked > before.StoreAsked && after.StoreFailed == before.StoreFailed
	}
	until(t, "it answers", answers)
	gone()
	until(t, "it does not answer", func() bool { return !answers() })
	until(t, "it answers again", answers)
}

// A replica that takes over has the buckets that had come to it.
func TestFailover(t *testing.T) {
	primary, replica := own(t), own(t)
	p, r := primary.client(t), replica.client(t)
	_, port, _ := strings.Cut(primary.addr, ":")
	if err := r.Do(t.Context(), "REPLICAOF", "127.0.0.1", port).Err(); err != nil {
		t.Fatal(err)
	}
	states := make([]limiter.PolicyState, 1)
	req := limiter.StoreRequest{Key: "k", Cost: 3, Policies: one(5)}
	if ok, err := redisstore.New(p).Take(t.Context(), req, states); !ok || err != nil {
		t.Fatal(ok, err)
	}
	until(t, "the replica has it", func() bool {
		n, err := p.Wait(t.Context(), 1, time.Second).Result()
		size, sizeErr := r.DBSize(t.Context()).Result()
		return err == nil && n == 1 && sizeErr == nil && size == 1
	})
	primary.kill()
	if err := r.Do(t.Context(), "REPLICAOF", "NO", "ONE").Err(); err != nil {
		t.Fatal(err)
	}
	if ok, err := redisstore.New(r).Take(t.Context(), req, states); ok || err != nil || states[0].Remaining != 2 {
		t.Errorf("%v, %v, %+v; want 2 left and a refusal", ok, err, states)
	}
}

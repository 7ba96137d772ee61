//go:build unix

package riverjobs_test

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spillgate/spillgate/pool/jobs"
	"github.com/spillgate/spillgate/pool/riverjobs"
)

// Who listens is told at once, and asks by himself half a minute later.
func TestWatchersAreTold(t *testing.T) {
	t.Parallel()
	url := shared.database(t)
	pool := connect(t, url)
	web := engine(t, connect(t, url), kinds())
	j := submit(t, web, "n", "1", jobs.SubmitOptions{NotBefore: time.Now().Add(time.Hour)})
	began := time.Now()
	n := 0
	for _, err := range web.Watch(t.Context(), j.ID) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n == 1 {
			listening(t, url)
		}
		if n == 5 {
			break
		}
		if _, err := pool.Exec(t.Context(), `UPDATE river_job SET metadata = jsonb_set(metadata, '{n}', to_jsonb($1::int))`, n); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took %v", took)
	}
}

// listening waits until an engine listens: somebody has to watch.
func listening(t *testing.T, url string) {
	t.Helper()
	pool := connect(t, url)
	until(t, "somebody listens", func() bool {
		var n int
		return pool.QueryRow(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle' AND query LIKE 'LISTEN%spillgate_job%'").Scan(&n) == nil && n > 0
	})
}

// Whoever cuts the connection that listens, watchers see changes, and it comes back.
func TestListenerIsCut(t *testing.T) {
	t.Parallel()
	url := shared.database(t)
	pool := connect(t, url)
	web := engine(t, connect(t, url), kinds())
	j := submit(t, web, "n", "1", jobs.SubmitOptions{NotBefore: time.Now().Add(time.Hour)})
	asked := false
	for j, err := range web.Watch(t.Context(), j.ID) {
		if err != nil {
			t.Fatal(err)
		}
		if asked {
			continue
		}
		asked = true
		listening(t, url)
		if _, err := pool.Exec(t.Context(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"); err != nil {
			t.Fatal(err)
		}
		if _, err := web.Cancel(t.Context(), j.ID); err != nil {
			t.Fatal(err)
		}
	}
	next, stop := iter.Pull2(web.Watch(t.Context(), submit(t, web, "n", "1", jobs.SubmitOptions{NotBefore: time.Now().Add(time.Hour)}).ID))
	defer stop()
	if _, err, ok := next(); err != nil || !ok {
		t.Fatal(err)
	}
	listening(t, url)
}

// front stands before a server as the way to its machine does, which may be gone without a word.
type front struct {
	port string
	mu   sync.Mutex
	all  []*passage
}

// passage is one connection through a front.
type passage struct {
	asks, listens, silent atomic.Bool
}

func newFront(t *testing.T, s *server) *front {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	f := &front{port: strconv.Itoa(l.Addr().(*net.TCPAddr).Port)}
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", "127.0.0.1:"+s.port)
			if err != nil {
				client.Close()
				continue
			}
			t.Cleanup(func() { client.Close(); server.Close() })
			p := new(passage)
			f.mu.Lock()
			f.all = append(f.all, p)
			f.mu.Unlock()
			go p.pass(server, client, func(b []byte) {
				if bytes.Contains(b, []byte("LISTEN ")) {
					p.asks.Store(true)
				}
			})
			go p.pass(client, server, func([]byte) { p.listens.Store(p.asks.Load()) })
		}
	}()
	return f
}

func (p *passage) pass(to, from net.Conn, sees func([]byte)) {
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		sees(b[:n])
		switch {
		case p.silent.Load():
		case err != nil:
			to.Close()
		default:
			to.Write(b[:n])
		}
		if err != nil {
			return
		}
	}
}

// loses has nothing come any more on some connections that there are.
func (f *front) loses(which func(*passage) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.all {
		if which(p) {
			p.silent.Store(true)
		}
	}
}

// listens reports whether somebody listens.
func (f *front) listens() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.ContainsFunc(f.all, func(p *passage) bool { return p.listens.Load() && !p.silent.Load() })
}

// Where nothing comes any more on connections that there are, as from a machine that is gone without a word and has been replaced, whoever watches
// sees what changes, and somebody listens again: soon, and not only when TCP gives them up.
func TestMachineIsGone(t *testing.T) {
	t.Parallel()
	for name, which := range map[string]func(*passage) bool{
		"the connection that listens": func(p *passage) bool { return p.listens.Load() },
		"all":                         func(*passage) bool { return true },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, url := newFront(t, shared), shared.database(t)
			there := engine(t, connect(t, url), kinds())
			web := engine(t, connect(t, strings.Replace(url, ":"+shared.port+"/", ":"+f.port+"/", 1)), kinds())
			web.ListenIdle(200 * time.Millisecond)
			j := submit(t, there, "n", "1", jobs.SubmitOptions{NotBefore: time.Now().Add(time.Hour)})
			saw := make(chan jobs.Job, 2)
			go func() {
				for j, err := range web.Watch(t.Context(), j.ID) {
					if err != nil && t.Context().Err() == nil {
						t.Errorf("Watch: %v", err)
					}
					saw <- j
				}
			}()
			<-saw
			until(t, "somebody listens", f.listens)
			f.loses(which)
			until(t, "somebody listens again", f.listens)
			if _, err := there.Cancel(t.Context(), j.ID); err != nil {
				t.Fatal(err)
			}
			until(t, "the change is seen", func() bool { return len(saw) > 0 })
			if j := <-saw; j.State != jobs.Cancelled {
				t.Errorf("%+v", j)
			}
		})
	}
}

// Many watch the same jobs, some do not read, some leave; each that reads sees the end.
func TestManyWatchers(t *testing.T) {
	t.Parallel()
	url := shared.database(t)
	web := engine(t, connect(t, url), kinds())
	var wg sync.WaitGroup
	for range 3 {
		j := submit(t, web, "n", "1", jobs.SubmitOptions{NotBefore: time.Now().Add(500 * time.Millisecond)})
		for i := range 10 {
			next, stop := iter.Pull2(web.Watch(t.Context(), j.ID))
			if _, err, ok := next(); err != nil || !ok {
				t.Fatal(err)
			}
			if i%3 == 0 {
				defer stop()
				continue
			}
			if i%3 == 1 {
				stop()
				continue
			}
			wg.Go(func() {
				defer stop()
				var last jobs.Job
				for {
					j, err, ok := next()
					if !ok {
						break
					}
					if err != nil {
						t.Error(err)
						return
					}
					last = j
				}
				if last.State != jobs.Succeeded {
					t.Errorf("the last was %+v", last)
				}
			})
		}
	}
	engine(t, connect(t, url), kinds(), riverjobs.WithWorkers(2))
	wg.Wait()
}

// After Close nobody listens, and Watch goes on by asking.
func TestWatchAfterClose(t *testing.T) {
	t.Parallel()
	url := shared.database(t)
	web := engine(t, connect(t, url), kinds())
	j := submit(t, web, "n", "1", jobs.SubmitOptions{})
	if err := web.Close(); err != nil {
		t.Error(err)
	}
	engine(t, connect(t, url), kinds(), riverjobs.WithWorkers(1))
	if end := final(t, web, j.ID); end.State != jobs.Succeeded {
		t.Errorf("ended as %+v", end)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range web.Watch(ctx, strings.Repeat("A", 32)) {
		if !errors.Is(err, context.Canceled) && !errors.Is(err, jobs.ErrNotFound) {
			t.Error(err)
		}
	}
}

// A watcher that comes while the engine is closed is one that came before or after.
func TestWatchWhileClosing(t *testing.T) {
	t.Parallel()
	pool := connect(t, shared.database(t))
	j := submit(t, engine(t, pool, kinds()), "n", "1", jobs.SubmitOptions{NotBefore: time.Now().Add(time.Hour)})
	for range 100 { // the race detector sees it in one of a few
		e := riverjobs.New(pool, kinds())
		var wg sync.WaitGroup
		wg.Go(func() {
			for _, err := range e.Watch(t.Context(), j.ID) {
				if err != nil {
					t.Error(err)
				}
				break
			}
		})
		wg.Go(func() {
			if _, err := e.Get(t.Context(), j.ID); err != nil { // for as long as the other takes until it listens
				t.Error(err)
			}
			if err := e.Close(); err != nil {
				t.Error(err)
			}
		})
		wg.Wait()
	}
}

//go:build unix

package riverjobs_test

import (
	"context"
	"errors"
	"iter"
	"strings"
	"sync"
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

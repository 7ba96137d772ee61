//go:build unix

package redisjobs_test

import (
	"context"
	"errors"
	"iter"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spillgate/spillgate/pool/jobs"
	"github.com/spillgate/spillgate/pool/redisjobs"
)

// Who listens is told at once, and asks by himself ten seconds later.
func TestWatchersAreTold(t *testing.T) {
	t.Parallel()
	prefix := servicePrefix()
	c := shared.client(t)
	web := engine(t, shared.client(t), kinds(), redisjobs.WithPrefix(prefix))
	j := submit(t, web, "n", "1", jobs.SubmitOptions{NotBefore: time.Now().Add(time.Hour)})
	began := time.Now()
	n := 0
	for _, err := range web.Watch(t.Context(), j.ID) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n == 1 {
			listening(t, prefix)
		}
		if n == 5 {
			break
		}
		c.HIncrBy(t.Context(), "{"+prefix+"}:job:"+j.ID, "version", 1)
		if err := c.Publish(t.Context(), "{"+prefix+"}:changed", j.ID).Err(); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took %v", took)
	}
}

// listening waits until an engine listens: somebody has to watch.
func listening(t *testing.T, prefix string) {
	t.Helper()
	c, channel := shared.client(t), "{"+prefix+"}:changed"
	until(t, "somebody listens", func() bool {
		return c.PubSubNumSub(t.Context(), channel).Val()[channel] > 0
	})
}

// A message may be lost, and what it was about is seen a while later.
func TestMessageLost(t *testing.T) {
	t.Parallel()
	prefix := servicePrefix()
	c := shared.client(t)
	web := engine(t, shared.client(t), kinds(), redisjobs.WithPrefix(prefix))
	j := submit(t, web, "n", "1", jobs.SubmitOptions{NotBefore: time.Now().Add(time.Hour)})
	n := 0
	for _, err := range web.Watch(t.Context(), j.ID) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n == 2 {
			break
		}
		listening(t, prefix)
		c.HIncrBy(t.Context(), "{"+prefix+"}:job:"+j.ID, "version", 1)
	}
	if n != 2 {
		t.Errorf("%d changes were seen", n)
	}
}

// Whoever cuts the connections that listen, watchers see changes, workers learn of jobs, and the connections come back.
func TestListenersAreCut(t *testing.T) {
	t.Parallel()
	s := own(t)
	c := s.client(t)
	cut := func() {
		t.Helper()
		if err := c.ClientKillByFilter(t.Context(), "TYPE", "pubsub").Err(); err != nil {
			t.Fatal(err)
		}
	}
	listening := func(channel string) {
		t.Helper()
		channel = "{p}:" + channel
		until(t, "somebody listens", func() bool { return c.PubSubNumSub(t.Context(), channel).Val()[channel] > 0 })
	}
	web := engine(t, s.client(t), kinds(), redisjobs.WithPrefix("p"))
	j := submit(t, web, "n", "1", jobs.SubmitOptions{NotBefore: time.Now().Add(time.Hour)})
	asked := false
	for _, err := range web.Watch(t.Context(), j.ID) {
		if err != nil {
			t.Fatal(err)
		}
		if asked {
			continue
		}
		asked = true
		listening("changed")
		cut()
		if _, err := web.Cancel(t.Context(), j.ID); err != nil {
			t.Fatal(err)
		}
	}
	next, stop := iter.Pull2(web.Watch(t.Context(), submit(t, web, "n", "1", jobs.SubmitOptions{NotBefore: time.Now().Add(time.Hour)}).ID))
	defer stop()
	if _, err, ok := next(); err != nil || !ok {
		t.Fatal(err)
	}
	listening("changed")

	engine(t, s.client(t), kinds(), redisjobs.WithPrefix("p"), redisjobs.WithWorkers(1), redisjobs.WithPollInterval(time.Hour))
	listening("work")
	cut()
	final(t, web, submit(t, web, "n", "1", jobs.SubmitOptions{}).ID)
}

// A connection on which nothing comes is kept as long as somebody watches, and given up when nobody does.
func TestListenerIsIdle(t *testing.T) {
	t.Parallel()
	s := own(t)
	c := s.client(t)
	web := engine(t, s.client(t), kinds(), redisjobs.WithPrefix("p"))
	next, stop := iter.Pull2(web.Watch(t.Context(), submit(t, web, "n", "1", jobs.SubmitOptions{NotBefore: time.Now().Add(time.Hour)}).ID))
	defer stop()
	if _, err, ok := next(); err != nil || !ok {
		t.Fatal(err)
	}
	listener := func(with string) string {
		for line := range strings.Lines(c.ClientList(t.Context()).Val()) {
			if id, rest, _ := strings.Cut(line, " "); strings.Contains(rest, " sub=1 ") && strings.Contains(rest, with) {
				return id
			}
		}
		return ""
	}
	until(t, "it listens", func() bool { return listener("") != "" })
	first := listener("")
	until(t, "it asks whether the server is there", func() bool { return listener(" cmd=ping ") != "" })
	if id := listener(""); id != first {
		t.Errorf("connection %s after %s", id, first)
	}
	stop()
	until(t, "it does not listen any more", func() bool { return listener("") == "" })
}

// Many watch the same jobs, some do not read, some leave; each that reads sees the end.
func TestManyWatchers(t *testing.T) {
	t.Parallel()
	prefix := servicePrefix()
	web := engine(t, shared.client(t), kinds(), redisjobs.WithPrefix(prefix))
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
	engine(t, shared.client(t), kinds(), redisjobs.WithPrefix(prefix), redisjobs.WithWorkers(2))
	wg.Wait()
}

// After Close nobody listens, and Watch goes on by asking.
func TestWatchAfterClose(t *testing.T) {
	t.Parallel()
	prefix := servicePrefix()
	web := engine(t, shared.client(t), kinds(), redisjobs.WithPrefix(prefix))
	j := submit(t, web, "n", "1", jobs.SubmitOptions{})
	if err := web.Close(); err != nil {
		t.Error(err)
	}
	engine(t, shared.client(t), kinds(), redisjobs.WithPrefix(prefix), redisjobs.WithWorkers(1))
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

//go:build unix

package redisjobs_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/spillgate/spillgate/pool/internal/remote/remotetest"
	"github.com/spillgate/spillgate/pool/jobs"
	"github.com/spillgate/spillgate/pool/redisjobs"
)

// ours reports whether an error says whose it is, and wraps what went wrong.
func ours(err error) bool {
	return err != nil && strings.HasPrefix(err.Error(), "redisjobs: ") && errors.Unwrap(err) != nil
}

// A server that is killed and comes back: errors meanwhile. With persistence everything that was accepted is done; without it all is forgotten, and said to be.
func TestRestart(t *testing.T) {
	t.Parallel()
	for name, persist := range map[string]bool{"append-only file": true, "nothing kept": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var args []string
			if persist {
				args = []string{"--appendonly", "yes", "--appendfsync", "always"}
			}
			s := own(t, args...)
			var runs atomic.Int64
			release := make(chan struct{})
			m := kinds()
			jobs.Register(m, "gate", func(ctx context.Context, n int) (int, error) {
				runs.Add(1)
				jobs.Report(ctx, jobs.Progress{Note: "here"})
				select {
				case <-release:
				case <-ctx.Done():
				}
				return n, ctx.Err()
			})
			web := engine(t, s.client(t), m)
			engine(t, s.client(t), m, redisjobs.WithWorkers(3), redisjobs.WithLease(2*time.Second))
			running := submit(t, web, "gate", "1", jobs.SubmitOptions{})
			here(t, web, running.ID)
			stuck := submit(t, web, "wait", "1", jobs.SubmitOptions{})
			here(t, web, stuck.ID)
			queued := submit(t, web, "n", "2", jobs.SubmitOptions{NotBefore: time.Now().Add(time.Second)})
			watched := make(chan error, 1)
			looked := make(chan struct{})
			go func() {
				var last error
				first := true
				for _, err := range web.Watch(t.Context(), running.ID) {
					if last = err; first {
						first = false
						close(looked)
					}
				}
				watched <- last
			}()
			<-looked

			s.kill()
			if _, _, err := web.Submit(t.Context(), "n", []byte("1"), jobs.SubmitOptions{}); !ours(err) {
				t.Errorf("Submit: %v", err)
			}
			if _, err := web.Get(t.Context(), running.ID); !ours(err) {
				t.Errorf("Get: %v", err)
			}
			if _, err := web.Cancel(t.Context(), running.ID); !ours(err) {
				t.Errorf("Cancel: %v", err)
			}
			if err := <-watched; !ours(err) {
				t.Errorf("Watch: %v", err)
			}
			if err := redisjobs.New(s.client(t), m, redisjobs.WithWorkers(1)).Start(t.Context()); !ours(err) {
				t.Errorf("Start: %v", err)
			}
			close(release) // the job ends while its end cannot be written
			if err := s.run(); err != nil {
				t.Fatal(err)
			}
			var after jobs.Job
			until(t, "jobs are accepted again", func() (ok bool) {
				var err error
				after, _, err = web.Submit(t.Context(), "n", []byte("3"), jobs.SubmitOptions{})
				return err == nil
			})
			if end := final(t, web, after.ID); end.State != jobs.Succeeded {
				t.Errorf("ended as %+v", end)
			}
			if !persist {
				for _, j := range []jobs.Job{running, stuck, queued} {
					if _, err := web.Get(t.Context(), j.ID); !errors.Is(err, jobs.ErrExpired) {
						t.Errorf("%s: %v", j.Kind, err)
					}
				}
				return // and the handler that waits is told, or else the engine would not close
			}
			for _, j := range []jobs.Job{running, queued} {
				if end := final(t, web, j.ID); end.State != jobs.Succeeded || end.Attempt != 1 {
					t.Errorf("ended as %+v", end)
				}
			}
			if _, err := web.Cancel(t.Context(), stuck.ID); err != nil {
				t.Error(err)
			}
			if end := final(t, web, stuck.ID); end.State != jobs.Cancelled {
				t.Errorf("ended as %+v", end)
			}
			if n := runs.Load(); n != 1 {
				t.Errorf("%d runs of the job that ended meanwhile", n)
			}
		})
	}
}

// What this server has forgotten, the worker that runs it is told to stop.
func TestForgotten(t *testing.T) {
	t.Parallel()
	c, prefix := shared.client(t), servicePrefix()
	causes := make(chan error, 1)
	m := jobs.NewMux()
	jobs.Register(m, "wait", func(ctx context.Context, _ any) (int, error) {
		jobs.Report(ctx, jobs.Progress{Note: "here"})
		<-ctx.Done()
		causes <- context.Cause(ctx)
		return 1, nil
	})
	e := engine(t, c, m, redisjobs.WithPrefix(prefix), redisjobs.WithWorkers(1), redisjobs.WithLease(time.Second))
	j := submit(t, e, "wait", "1", jobs.SubmitOptions{})
	here(t, e, j.ID)
	for _, key := range keys(t, c, prefix) {
		c.Del(t.Context(), "{"+prefix+"}:"+key)
	}
	if cause := <-causes; !errors.Is(cause, jobs.ErrShutdown) || !strings.Contains(cause.Error(), "taken from this worker") {
		t.Errorf("the handler was told %v", cause)
	}
	if _, err := e.Get(t.Context(), j.ID); !errors.Is(err, jobs.ErrExpired) {
		t.Errorf("Get: %v", err)
	}
	// Others begin anew, and both know what the other has accepted.
	other := engine(t, shared.client(t), m, redisjobs.WithPrefix(prefix))
	theirs := submit(t, other, "wait", "1", jobs.SubmitOptions{NotBefore: time.Now().Add(time.Hour)})
	until(t, "the first has looked again", func() bool { _, err := e.Get(t.Context(), theirs.ID); return err == nil })
	mine := submit(t, e, "wait", "1", jobs.SubmitOptions{NotBefore: time.Now().Add(time.Hour)})
	if _, err := other.Get(t.Context(), mine.ID); err != nil {
		t.Error(err)
	}
}

// A server without memory for more: it accepts nothing, in whole and not in part, and what is accepted goes on and makes room.
func TestFull(t *testing.T) {
	t.Parallel()
	s := own(t, "--maxmemory-policy", "noeviction")
	c := s.client(t)
	m := kinds()
	release := make(chan struct{})
	jobs.Register(m, "gate", func(ctx context.Context, _ any) (int, error) {
		jobs.Report(ctx, jobs.Progress{Note: "here"})
		select {
		case <-release:
			return 1, nil
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	})
	web := engine(t, c, m, redisjobs.WithPrefix("p"))
	work := engine(t, s.client(t), m, redisjobs.WithPrefix("p"), redisjobs.WithWorkers(1), redisjobs.WithLease(time.Second))
	running := submit(t, web, "gate", "1", jobs.SubmitOptions{})
	here(t, web, running.ID)
	queued := submit(t, web, "gate", "1", jobs.SubmitOptions{})
	cancelled := submit(t, web, "n", "1", jobs.SubmitOptions{NotBefore: time.Now().Add(time.Hour)})
	c.ConfigSet(t.Context(), "maxmemory", "1mb")
	before := keys(t, c, "p")
	_, _, err := web.Submit(t.Context(), "n", []byte("1"), jobs.SubmitOptions{Client: "a", Key: "k"})
	if e, ok := errors.AsType[*jobs.Error](err); !errors.Is(err, jobs.ErrFull) || !ok || e.RetryAfter <= 0 || !strings.HasPrefix(err.Error(), "redisjobs: the server's memory is full: ") {
		t.Errorf("Submit: %v", err)
	}
	if after := keys(t, c, "p"); fmt.Sprint(before) != fmt.Sprint(after) {
		t.Errorf("there was %v, and then %v", before, after)
	}
	if open := c.HGetAll(t.Context(), "{p}:open").Val(); open["all"] != "3" || len(open) != 1 {
		t.Errorf("counted: %v", open)
	}
	if j, err := web.Cancel(t.Context(), cancelled.ID); err != nil || j.State != jobs.Cancelled {
		t.Errorf("cancelled: %+v, %v", j, err)
	}
	lease := func() float64 { return c.ZScore(t.Context(), "{p}:run", running.ID).Val() }
	first := lease()
	until(t, "a lease has gone by, and the worker has its job all the same", func() bool { return lease() > first+1.5e6 })
	close(release)
	for _, j := range []jobs.Job{running, queued} {
		if end := final(t, web, j.ID); end.State != jobs.Succeeded || end.Attempt != 1 {
			t.Errorf("ended as %+v", end)
		}
	}
	c.ConfigSet(t.Context(), "maxmemory", "0")
	if end := final(t, work, submit(t, web, "n", "1", jobs.SubmitOptions{Client: "a", Key: "k"}).ID); end.State != jobs.Succeeded {
		t.Errorf("ended as %+v", end)
	}
}

// A server that may evict what is volatile forgets finished jobs, those first that would be soonest, and none that has not ended.
func TestEviction(t *testing.T) {
	t.Parallel()
	s := own(t, "--maxmemory", "6mb", "--maxmemory-policy", "volatile-ttl")
	m := kinds()
	jobs.Register(m, "big", func(context.Context, int) (string, error) { return strings.Repeat("x", 100<<10), nil })
	e := engine(t, s.client(t), m, redisjobs.WithPrefix("p"), redisjobs.WithWorkers(2))
	waiting := submit(t, e, "n", "7", jobs.SubmitOptions{NotBefore: time.Now().Add(time.Hour), Client: "a", Key: "k"})
	running := submit(t, e, "wait", "7", jobs.SubmitOptions{})
	here(t, e, running.ID)
	var first string
	for i := range 100 {
		j := submit(t, e, "big", "1", jobs.SubmitOptions{})
		if i == 0 {
			first = j.ID
		}
		if end := final(t, e, j.ID); end.State != jobs.Succeeded || len(end.Result) < 100<<10 {
			t.Fatalf("ended as %+v", end.State)
		}
	}
	if _, err := e.Get(t.Context(), first); !errors.Is(err, jobs.ErrExpired) {
		t.Errorf("the first: %v", err)
	}
	if again, created, err := e.Submit(t.Context(), "n", []byte("7"), jobs.SubmitOptions{Client: "a", Key: "k"}); err != nil || created || again.ID != waiting.ID || again.State != jobs.Queued {
		t.Errorf("%+v, %v, %v", again, created, err)
	}
	for _, id := range []string{waiting.ID, running.ID} {
		if _, err := e.Cancel(t.Context(), id); err != nil {
			t.Error(err)
		}
		if end := final(t, e, id); end.State != jobs.Cancelled {
			t.Errorf("ended as %+v", end)
		}
	}
}

func TestServersThatWillNotDo(t *testing.T) {
	t.Parallel()
	s := own(t, "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
	e := redisjobs.New(s.client(t), kinds())
	if err := e.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "noeviction") {
		t.Errorf("Start: %v", err)
	}
	for _, policy := range []string{"noeviction", "volatile-ttl"} {
		s.client(t).ConfigSet(t.Context(), "maxmemory-policy", policy)
		if err := e.Start(t.Context()); err != nil {
			t.Errorf("%s: %v", policy, err)
		}
	}
}

// In a cluster it is the server that has the jobs that must not evict them.
func TestClusterThatWillNotDo(t *testing.T) {
	t.Parallel()
	one, two := own(t), own(t, "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
	c := redis.NewClusterClient(&redis.ClusterOptions{ContextTimeoutEnabled: true, ClusterSlots: func(context.Context) ([]redis.ClusterSlot, error) {
		return []redis.ClusterSlot{
			{Start: 0, End: 8191, Nodes: []redis.ClusterNode{{Addr: one.addr}}},
			{Start: 8192, End: 16383, Nodes: []redis.ClusterNode{{Addr: two.addr}}},
		}, nil
	}})
	t.Cleanup(func() { c.Close() })
	refused := 0
	for i := range 20 {
		prefix := fmt.Sprint(i)
		err := redisjobs.New(c, kinds(), redisjobs.WithPrefix(prefix)).Start(t.Context())
		evicts := two.client(t).Exists(t.Context(), "{"+prefix+"}:mint").Val() == 1
		if evicts != (err != nil) {
			t.Errorf("%q is on a server that evicts: %v; Start: %v", prefix, evicts, err)
		}
		if err != nil {
			refused++
		}
	}
	if refused == 0 || refused == 20 {
		t.Errorf("%d of 20 were refused", refused)
	}
}

// A client that reads from replicas is told what ids are recognised by also where a replica does not know it yet.
func TestReplicasThatLag(t *testing.T) {
	t.Parallel()
	primary, replica := own(t), own(t) // which follows so slowly that it knows nothing at all
	c := redis.NewClusterClient(&redis.ClusterOptions{ContextTimeoutEnabled: true, ReadOnly: true, ClusterSlots: func(context.Context) ([]redis.ClusterSlot, error) {
		return []redis.ClusterSlot{{Start: 0, End: 16383, Nodes: []redis.ClusterNode{{Addr: primary.addr}, {Addr: replica.addr}}}}, nil
	}})
	t.Cleanup(func() { c.Close() })
	e := redisjobs.New(c, kinds(), redisjobs.WithWorkers(1))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := e.Start(ctx); err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if end := final(t, e, submit(t, e, "n", "1", jobs.SubmitOptions{}).ID); end.State != jobs.Succeeded {
		t.Errorf("ended as %+v", end)
	}
}

func TestContextsThatEnd(t *testing.T) {
	t.Parallel()
	e := engine(t, shared.client(t), kinds(), service())
	j := submit(t, e, "n", "1", jobs.SubmitOptions{})
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	if _, _, err := e.Submit(ctx, "n", []byte("1"), jobs.SubmitOptions{}); !errors.Is(err, why) {
		t.Errorf("Submit: %v", err)
	}
	if _, err := e.Get(ctx, j.ID); !errors.Is(err, why) {
		t.Errorf("Get: %v", err)
	}
	if _, err := e.Cancel(ctx, j.ID); !errors.Is(err, why) {
		t.Errorf("Cancel: %v", err)
	}
	for _, err := range e.Watch(ctx, j.ID) {
		if !errors.Is(err, why) {
			t.Errorf("Watch: %v", err)
		}
	}
}

func TestShutdown(t *testing.T) {
	t.Parallel()
	prefix := service()
	began := make(chan struct{}) // a job that does not run yet is given back at once
	release := make(chan struct{})
	causes := make(chan error, 1)
	m := kinds()
	jobs.Register(m, "gate", func(context.Context, any) (int, error) { began <- struct{}{}; <-release; return 1, nil })
	jobs.Register(m, "stubborn", func(ctx context.Context, _ any) (int, error) {
		began <- struct{}{}
		<-ctx.Done()
		causes <- context.Cause(ctx)
		return 0, errors.New("half way")
	})
	web := engine(t, shared.client(t), m, prefix)

	t.Run("drains", func(t *testing.T) {
		e := engine(t, shared.client(t), m, prefix, redisjobs.WithWorkers(1))
		running := submit(t, web, "gate", "1", jobs.SubmitOptions{})
		<-began
		waiting := submit(t, web, "n", "1", jobs.SubmitOptions{Key: "k"})
		done := make(chan error, 2)
		for range 2 {
			go func() { done <- e.Shutdown(t.Context()) }()
		}
		remotetest.Closed(t, e)
		if j, created, err := e.Submit(t.Context(), "n", []byte("1"), jobs.SubmitOptions{Key: "k"}); err != nil || created || j.ID != waiting.ID {
			t.Errorf("what was accepted before: %+v, %v, %v", j, created, err)
		}
		close(release)
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if j, err := e.Get(t.Context(), running.ID); err != nil || j.State != jobs.Succeeded {
			t.Errorf("%+v, %v", j, err)
		}
		if j, err := e.Cancel(t.Context(), waiting.ID); err != nil || j.State != jobs.Cancelled {
			t.Errorf("%+v, %v", j, err)
		}
		if err := e.Start(t.Context()); !errors.Is(err, jobs.ErrShutdown) {
			t.Errorf("Start: %v", err)
		}
	})
	t.Run("gives back what it could not finish", func(t *testing.T) {
		e := engine(t, shared.client(t), m, prefix, redisjobs.WithWorkers(1))
		j := submit(t, web, "stubborn", "1", jobs.SubmitOptions{})
		<-began
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		err := e.Shutdown(ctx)
		d, ok := errors.AsType[*jobs.DroppedError](err)
		if !ok || len(d.Running) != 1 || d.Running[0] != j.ID || !errors.Is(err, jobs.ErrShutdown) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Shutdown: %v", err)
		}
		if cause := <-causes; !errors.Is(cause, jobs.ErrShutdown) {
			t.Errorf("the handler was told %v", cause)
		}
		e.Close()
		if j, err := web.Get(t.Context(), j.ID); err != nil || j.State != jobs.Queued || j.Attempt != 0 || !j.Started.IsZero() {
			t.Errorf("%+v, %v", j, err)
		}
		if _, err := web.Cancel(t.Context(), j.ID); err != nil {
			t.Error(err)
		}
	})
}

func TestShutdownOfChains(t *testing.T) {
	t.Parallel()
	prefix := service()
	m := kinds()
	remotetest.Chains(t, m,
		func(t *testing.T) remotetest.Drainer { return engine(t, shared.client(t), m, prefix) },
		func(t *testing.T) remotetest.Drainer {
			return engine(t, shared.client(t), m, prefix, redisjobs.WithWorkers(1))
		})
}

// Shut down in the middle of much work, one worker leaves all to the other.
func TestShutdownUnderLoad(t *testing.T) {
	t.Parallel()
	prefix := service()
	var began atomic.Int64
	second := make(chan struct{})
	m := jobs.NewMux()
	jobs.Register(m, "n", func(ctx context.Context, n int) (int, error) {
		began.Add(1)
		if n%5 == 0 { // some are in the middle when the time is over
			select {
			case <-second:
			case <-ctx.Done():
				return 0, context.Cause(ctx)
			}
		}
		return n, nil
	})
	web := engine(t, shared.client(t), m, prefix)
	e := engine(t, shared.client(t), m, prefix, redisjobs.WithWorkers(8))
	var ids []string
	for i := range 150 {
		ids = append(ids, submit(t, web, "n", strconv.Itoa(i), jobs.SubmitOptions{}).ID)
	}
	until(t, "it is in the middle", func() bool { return began.Load() > 10 })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := e.Shutdown(ctx); err != nil && !errors.Is(err, jobs.ErrShutdown) {
		t.Error(err)
	}
	e.Close()
	left := 0
	for _, id := range ids {
		switch j, err := web.Get(t.Context(), id); {
		case err != nil:
			t.Error(err)
		case j.State == jobs.Queued:
			left++
		case j.State != jobs.Succeeded:
			t.Errorf("%+v", j)
		}
	}
	if left == 0 {
		t.Error("nothing was left to do")
	}
	close(second)
	engine(t, shared.client(t), m, prefix, redisjobs.WithWorkers(8))
	for _, id := range ids {
		if end := final(t, web, id); end.State != jobs.Succeeded || end.Attempt != 1 {
			t.Errorf("ended as %+v", end)
		}
	}
}

// Whatever happens to jobs, and in whatever order, each ends, and nothing is left of how it waited or ran.
func TestNothingLeft(t *testing.T) {
	t.Parallel()
	c, prefix := shared.client(t), servicePrefix()
	m := kinds()
	jobs.Register(m, "fail", func(ctx context.Context, n int) (int, error) {
		if n%3 == 0 {
			return 0, jobs.Permanent(errors.New("no"))
		}
		return 0, errors.New("not now")
	}, jobs.WithAttempts(3), jobs.WithBackoff(time.Millisecond, 20*time.Millisecond))
	web := engine(t, c, m, redisjobs.WithPrefix(prefix), redisjobs.WithCapacity(10000, 10000))
	var engines []*redisjobs.Engine
	work := func() {
		engines = append(engines, engine(t, shared.client(t), m, redisjobs.WithPrefix(prefix), redisjobs.WithWorkers(3), redisjobs.WithLease(time.Second)))
	}
	work()
	work()
	var ids []string
	for i := range 400 {
		o := jobs.SubmitOptions{Priority: i % 20, Client: []string{"", "a", "b", "c"}[i%4]}
		if i%5 == 0 {
			o.Deadline = time.Now().Add(time.Duration(i%50) * 20 * time.Millisecond)
		}
		if i%7 == 0 {
			o.NotBefore = time.Now().Add(time.Duration(i%30) * 10 * time.Millisecond)
		}
		if i%11 == 0 {
			o.Key = strconv.Itoa(i)
		}
		kind := []string{"n", "fail", "n", "wait", "n", "n"}[i%6]
		j := submit(t, web, kind, strconv.Itoa(i), o)
		ids = append(ids, j.ID)
		switch {
		case i%13 == 0 || kind == "wait":
			if _, err := web.Cancel(t.Context(), j.ID); err != nil && !errors.Is(err, jobs.ErrFinal) {
				t.Error(err)
			}
		case i == 150: // one comes to take the place of another that goes at once
			work()
			engines[0].Close()
		case i%50 == 0: // a worker is said to be lost that is not
			for _, id := range c.ZRange(t.Context(), "{"+prefix+"}:run", 0, -1).Val() {
				c.ZAddXX(t.Context(), "{"+prefix+"}:run", redis.Z{Score: 1, Member: id})
			}
		}
	}
	states := map[jobs.State]int{}
	for _, id := range ids {
		states[final(t, web, id).State]++
	}
	if states[jobs.Succeeded] == 0 || states[jobs.Failed] == 0 || states[jobs.Cancelled] == 0 {
		t.Errorf("ended as %v", states)
	}
	for _, e := range engines {
		if err := e.Close(); err != nil {
			if _, dropped := errors.AsType[*jobs.DroppedError](err); !dropped {
				t.Error(err)
			}
		}
	}
	for _, key := range keys(t, c, prefix) {
		kind, _, _ := strings.Cut(key, ":")
		switch kind {
		case "job", "key", "claim":
			if c.PTTL(t.Context(), "{"+prefix+"}:"+key).Val() <= 0 {
				t.Errorf("%s stays for ever", key)
			}
		case "mint", "served", "failed":
		case "turn":
			if turns := c.HGetAll(t.Context(), "{"+prefix+"}:turn").Val(); len(turns) != 1 || turns[""] == "" {
				t.Errorf("turns are left: %v", turns)
			}
		case "open":
			if open := c.HGetAll(t.Context(), "{"+prefix+"}:open").Val(); len(open) != 1 || open["all"] != "0" {
				t.Errorf("counted as open: %v", open)
			}
		default:
			t.Errorf("there is still %s", key)
		}
	}
}

// A server that takes questions and does not answer: who asks waits for as long as he said, and what was accepted is done later.
func TestServerStandsStill(t *testing.T) {
	t.Parallel()
	s := own(t)
	e := engine(t, s.client(t), kinds(), redisjobs.WithWorkers(2), redisjobs.WithLease(2*time.Second))
	j := submit(t, e, "wait", "1", jobs.SubmitOptions{})
	here(t, e, j.ID)
	queued := submit(t, e, "n", "1", jobs.SubmitOptions{NotBefore: time.Now().Add(time.Second)})
	if err := s.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for name, ask := range map[string]func(context.Context) error{
		"Submit": func(ctx context.Context) error {
			_, _, err := e.Submit(ctx, "n", []byte("2"), jobs.SubmitOptions{Key: "k"})
			return err
		},
		"Get":    func(ctx context.Context) error { _, err := e.Get(ctx, j.ID); return err },
		"Cancel": func(ctx context.Context) error { _, err := e.Cancel(ctx, j.ID); return err },
		"Watch": func(ctx context.Context) (err error) {
			for _, err = range e.Watch(ctx, j.ID) {
			}
			return err
		},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		began := time.Now()
		if err := ask(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 5*time.Second {
			t.Errorf("%s: %v after %v", name, err, time.Since(began))
		}
		cancel()
	}
	if err := s.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	// Whether the server has taken the first is not known, and with the key it does not matter.
	var again jobs.Job
	until(t, "jobs are accepted again", func() (ok bool) {
		var err error
		again, _, err = e.Submit(t.Context(), "n", []byte("2"), jobs.SubmitOptions{Key: "k"})
		return err == nil
	})
	for _, id := range []string{queued.ID, again.ID} {
		if end := final(t, e, id); end.State != jobs.Succeeded {
			t.Errorf("ended as %+v", end)
		}
	}
	if _, err := e.Cancel(t.Context(), j.ID); err != nil && !errors.Is(err, jobs.ErrFinal) {
		t.Error(err)
	}
	if end := final(t, e, j.ID); end.State != jobs.Cancelled {
		t.Errorf("ended as %+v", end)
	}
}

// An engine closes in bounded time also where the server is gone.
func TestCloseWithoutServer(t *testing.T) {
	t.Parallel()
	s := own(t)
	var log lockedBuffer
	e := engine(t, s.client(t), kinds(), redisjobs.WithWorkers(2), redisjobs.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
	j := submit(t, e, "wait", "1", jobs.SubmitOptions{})
	here(t, e, j.ID)
	s.kill()
	began := time.Now()
	_, dropped := errors.AsType[*jobs.DroppedError](e.Close())
	if said := log.String(); !dropped || !strings.Contains(said, j.ID) || !strings.Contains(said, "refused") {
		t.Errorf("dropped %v, and logged %s", dropped, said)
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("it took %v", took)
	}
}

// lockedBuffer is written by several goroutines.
type lockedBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

//go:build unix

package riverjobs_test

import (
	"context"
	"errors"
	"log/slog"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spillgate/spillgate/pool/internal/remote/remotetest"
	"github.com/spillgate/spillgate/pool/jobs"
	"github.com/spillgate/spillgate/pool/riverjobs"
)

// ours reports whether an error says whose it is, and wraps what went wrong.
func ours(err error) bool {
	return err != nil && strings.HasPrefix(err.Error(), "riverjobs: ") && errors.Unwrap(err) != nil
}

// A Postgres that goes away and comes back: errors meanwhile, and everything that was accepted is done.
func TestRestart(t *testing.T) {
	t.Parallel()
	s, err := newServer(shared.bin)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.remove)
	var runs atomic.Int64
	release := make(chan struct{})
	m := kinds()
	jobs.Register(m, "gate", func(ctx context.Context, n int) (int, error) {
		runs.Add(1)
		select {
		case <-release:
		case <-ctx.Done():
		}
		return n, ctx.Err()
	})
	url := s.database(t)
	web := engine(t, connect(t, url), m)
	engine(t, connect(t, url), m, riverjobs.WithWorkers(2), riverjobs.WithLease(2*time.Second))
	running := submit(t, web, "gate", "1", jobs.SubmitOptions{})
	seen(t, web, running.ID, func(j jobs.Job) bool { return j.State == jobs.Running })
	queued := submit(t, web, "n", "2", jobs.SubmitOptions{NotBefore: time.Now().Add(100 * time.Millisecond)})
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

	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
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
	if err := riverjobs.New(connect(t, url), m, riverjobs.WithWorkers(1)).Start(t.Context()); !ours(err) {
		t.Errorf("Start: %v", err)
	}
	close(release) // the job ends while its end cannot be written
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	var after jobs.Job
	until(t, "jobs are accepted again", func() bool {
		after, _, err = web.Submit(t.Context(), "n", []byte("3"), jobs.SubmitOptions{})
		return err == nil
	})
	for _, j := range []jobs.Job{running, queued, after} {
		if end := final(t, web, j.ID); end.State != jobs.Succeeded {
			t.Errorf("ended as %+v", end)
		}
	}
	if n := runs.Load(); n < 1 || n > 3 {
		t.Errorf("%d runs of the job that ended meanwhile", n)
	}
}

func TestContextsThatEnd(t *testing.T) {
	t.Parallel()
	e := engine(t, connect(t, shared.database(t)), kinds())
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
	url := shared.database(t)
	release := make(chan struct{})
	causes := make(chan error, 1)
	m := kinds()
	jobs.Register(m, "gate", func(context.Context, any) (int, error) { <-release; return 1, nil })
	jobs.Register(m, "stubborn", func(ctx context.Context, _ any) (int, error) {
		<-ctx.Done()
		causes <- context.Cause(ctx)
		return 0, errors.New("half way")
	})
	web := engine(t, connect(t, url), m)

	t.Run("drains", func(t *testing.T) {
		e := engine(t, connect(t, url), m, riverjobs.WithWorkers(1))
		running := submit(t, web, "gate", "1", jobs.SubmitOptions{})
		seen(t, web, running.ID, func(j jobs.Job) bool { return j.State == jobs.Running })
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
		e := engine(t, connect(t, url), m, riverjobs.WithWorkers(1))
		j := submit(t, web, "stubborn", "1", jobs.SubmitOptions{})
		seen(t, web, j.ID, func(j jobs.Job) bool { return j.State == jobs.Running })
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
		if j, err := web.Get(t.Context(), j.ID); err != nil || j.State != jobs.Queued || j.Attempt != 0 {
			t.Errorf("%+v, %v", j, err)
		}
		if _, err := web.Cancel(t.Context(), j.ID); err != nil {
			t.Error(err)
		}
	})
}

func TestShutdownOfChains(t *testing.T) {
	t.Parallel()
	url := shared.database(t)
	m := kinds()
	remotetest.Chains(t, m,
		func(t *testing.T) remotetest.Drainer { return engine(t, connect(t, url), m) },
		func(t *testing.T) remotetest.Drainer { return engine(t, connect(t, url), m, riverjobs.WithWorkers(1)) })
}

// Shut down in the middle of much work, one worker leaves all to the other.
func TestShutdownUnderLoad(t *testing.T) {
	t.Parallel()
	url := shared.database(t)
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
	web := engine(t, connect(t, url), m)
	e := engine(t, connect(t, url), m, riverjobs.WithWorkers(8))
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
	engine(t, connect(t, url), m, riverjobs.WithWorkers(8))
	for _, id := range ids {
		if end := final(t, web, id); end.State != jobs.Succeeded || end.Attempt != 1 {
			t.Errorf("ended as %+v", end)
		}
	}
}

// An operator is told of what nobody waits for: jobs that were lost with a worker, and a worker that cannot say that it is alive.
func TestLog(t *testing.T) {
	t.Parallel()
	url := shared.database(t)
	pool := connect(t, url)
	web := engine(t, pool, kinds())
	lost := submit(t, web, "n", "3", jobs.SubmitOptions{NotBefore: time.Now().Add(time.Hour)})
	if _, err := pool.Exec(t.Context(), "UPDATE river_job SET state = 'running', attempt = 1, attempted_at = now() - interval '1 hour', attempted_by = '{gone}'"); err != nil {
		t.Fatal(err)
	}
	log := make(chan string, 1000)
	engine(t, connect(t, url), kinds(), riverjobs.WithWorkers(1), riverjobs.WithLease(shortLease), riverjobs.WithLogger(slog.New(slog.NewTextHandler(lines(log), nil))))
	final(t, web, lost.ID)
	if _, err := pool.Exec(t.Context(), "ALTER TABLE spillgate_worker RENAME TO other"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"workers that are lost.* jobs=1", `alive failed.*spillgate_worker.* does not exist`} {
		until(t, "the log says "+want, func() bool {
			select {
			case line := <-log:
				return regexp.MustCompile("level=WARN msg=\"riverjobs: .*" + want).MatchString(line)
			default:
				return false
			}
		})
	}
}

// lines takes each line of a log that there is room for.
type lines chan string

func (l lines) Write(b []byte) (int, error) {
	select {
	case l <- string(b):
	default:
	}
	return len(b), nil
}

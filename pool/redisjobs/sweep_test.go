//go:build unix

package redisjobs_test

import (
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/spillgate/spillgate/pool/jobs"
	"github.com/spillgate/spillgate/pool/redisjobs"
)

// sweeps has do do what the client does for a sweep.
type sweeps struct {
	do func(c *redis.Cmd, next func())
}

func (h *sweeps) DialHook(next redis.DialHook) redis.DialHook { return next }
func (h *sweeps) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}
func (h *sweeps) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) (err error) {
		c, ok := cmd.(*redis.Cmd)
		if !ok || len(c.Args()) < 2 || c.Args()[1] != redisjobs.SweepScript {
			return next(ctx, cmd)
		}
		h.do(c, func() { err = next(ctx, cmd) })
		return err
	}
}

// serverTime is the time by the server's clock.
func serverTime(t *testing.T, c *redis.Client) time.Time {
	t.Helper()
	now, err := c.Time(t.Context()).Result()
	if err != nil {
		t.Fatal(err)
	}
	return now
}

// Who was not heard while the server stood still, or could not be reached, is alive, also where nobody has had an error of it: the question after who is lost was only answered late.
func TestNobodyIsLostAfterAPause(t *testing.T) {
	t.Parallel()
	c, prefix := shared.client(t), servicePrefix()
	const lease = time.Second
	var paused atomic.Bool
	held, letGo := make(chan struct{}), make(chan struct{})
	slow := shared.client(t)
	slow.AddHook(&sweeps{func(_ *redis.Cmd, next func()) {
		if paused.Load() {
			held <- struct{}{}
			<-letGo
		}
		next()
	}})
	web := engine(t, c, kinds(), redisjobs.WithPrefix(prefix))
	var log lockedBuffer
	engine(t, slow, kinds(), redisjobs.WithPrefix(prefix), redisjobs.WithWorkers(1), redisjobs.WithLease(lease), redisjobs.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
	first := submit(t, web, "n", "3", jobs.SubmitOptions{NotBefore: time.Now().Add(time.Hour)})
	pretend(t, c, prefix, first.ID, time.Hour)
	if end := final(t, web, first.ID); end.State != jobs.Succeeded || end.Attempt != 2 {
		t.Errorf("that of a worker that is lost ended as %+v", end)
	}
	until(t, "that is logged", func() bool { return strings.Contains(log.String(), "workers that are lost") })

	j := submit(t, web, "n", "3", jobs.SubmitOptions{NotBefore: time.Now().Add(time.Hour)})
	pretend(t, c, prefix, j.ID, -time.Hour)
	paused.Store(true)
	<-held
	c.ZAdd(t.Context(), "{"+prefix+"}:run", redis.Z{Score: 1, Member: j.ID}) // its lease is over
	began := serverTime(t, c)
	until(t, "a lease has gone by", func() bool { return serverTime(t, c).Sub(began) > lease })
	letGo <- struct{}{}
	<-held // the next, so that one is over
	if j, err := web.Get(t.Context(), j.ID); err != nil || j.State != jobs.Running || j.Attempt != 1 {
		t.Errorf("after the pause: %+v, %v", j, err)
	}
	paused.Store(false)
	letGo <- struct{}{}
	if end := final(t, web, j.ID); end.State != jobs.Succeeded || end.Attempt != 2 {
		t.Errorf("that of a worker that is not heard of for a lease after that ended as %+v", end)
	}
}

// However much there is to sweep, a worker says that it is alive.
func TestSweepWithoutEnd(t *testing.T) {
	t.Parallel()
	c, prefix := shared.client(t), servicePrefix()
	var endless atomic.Bool
	endless.Store(true)
	slow := shared.client(t)
	slow.AddHook(&sweeps{func(c *redis.Cmd, next func()) {
		next()
		if answer, ok := c.Val().([]any); ok && endless.Load() {
			answer[0] = "1" // there may be more to do
		}
	}})
	e := engine(t, slow, kinds(), redisjobs.WithPrefix(prefix), redisjobs.WithWorkers(1), redisjobs.WithLease(time.Second))
	t.Cleanup(func() { endless.Store(false) }) // before it is closed
	j := submit(t, e, "wait", "1", jobs.SubmitOptions{})
	here(t, e, j.ID)
	lease := func() float64 { return c.ZScore(t.Context(), "{"+prefix+"}:run", j.ID).Val() }
	first := lease()
	until(t, "a lease has gone by, and the worker has its job all the same", func() bool { return lease() > first+1.5e6 })
	endless.Store(false)
	if _, err := e.Cancel(t.Context(), j.ID); err != nil {
		t.Error(err)
	}
	if end := final(t, e, j.ID); end.State != jobs.Cancelled || end.Attempt != 1 {
		t.Errorf("ended as %+v", end)
	}
}

// A worker that finds very many jobs that have missed their deadlines does not end all of them at once, which held up the server, but one piece after the other, and then begins what is behind.
func TestManyMissedTheirDeadlines(t *testing.T) {
	t.Parallel()
	c, prefix := shared.client(t), servicePrefix()
	const n = 1000
	web := engine(t, c, kinds(), redisjobs.WithPrefix(prefix))
	var ids []string
	for range n {
		ids = append(ids, submit(t, web, "n", "1", jobs.SubmitOptions{Deadline: time.Now().Add(time.Hour)}).ID)
	}
	behind := submit(t, web, "n", "2", jobs.SubmitOptions{Priority: -8})
	if _, err := c.Pipelined(t.Context(), func(p redis.Pipeliner) error { // the hour has gone by
		for _, id := range ids {
			p.HSet(t.Context(), "{"+prefix+"}:job:"+id, "deadline", 1)
			p.ZAdd(t.Context(), "{"+prefix+"}:late", redis.Z{Score: 1, Member: id})
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	slow := shared.client(t)
	done := make(chan struct{})
	slow.AddHook(&sweeps{func(_ *redis.Cmd, next func()) { <-done; next() }})
	seen := &claims{failed: func() int64 { return c.ZCard(context.Background(), "{"+prefix+"}:failed").Val() }}
	slow.AddHook(seen)
	engine(t, slow, kinds(), redisjobs.WithPrefix(prefix), redisjobs.WithWorkers(1), redisjobs.WithPollInterval(time.Hour))
	t.Cleanup(func() { close(done) }) // before it is closed
	if end := final(t, web, behind.ID); end.State != jobs.Succeeded {
		t.Errorf("ended as %+v", end)
	}
	if most := seen.mostFailed.Load(); most == 0 || most > 200 {
		t.Errorf("%d jobs were ended at once", most)
	}
	for _, id := range ids {
		if j, err := web.Get(t.Context(), id); err != nil || j.State != jobs.Failed || j.Err != jobs.ErrDeadline.Error() {
			t.Fatalf("%+v, %v", j, err)
		}
	}
}

// Handlers that have all connections of the client for longer than a lease do not have their worker taken for lost.
func TestAllConnectionsAreTaken(t *testing.T) {
	t.Parallel()
	const n = 3
	prefix := servicePrefix()
	small := redis.NewClient(&redis.Options{Addr: shared.addr, PoolSize: n, ContextTimeoutEnabled: true})
	t.Cleanup(func() { small.Close() })
	release := make(chan struct{})
	var there atomic.Int64
	m := jobs.NewMux()
	jobs.Register(m, "greedy", func(ctx context.Context, _ int) (int, error) {
		conn := small.Conn()
		defer conn.Close()
		there.Add(1)
		conn.Ping(ctx) // has one from now on, or waits for it in vain
		select {
		case <-release:
			return 1, nil
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	})
	c := shared.client(t)
	web := engine(t, c, m, redisjobs.WithPrefix(prefix))
	var ids []string
	for range n {
		ids = append(ids, submit(t, web, "greedy", "1", jobs.SubmitOptions{}).ID)
	}
	engine(t, small, m, redisjobs.WithPrefix(prefix), redisjobs.WithWorkers(n), redisjobs.WithLease(time.Second)) // begins all at once
	until(t, "all run", func() bool { return there.Load() == n })
	engine(t, shared.client(t), m, redisjobs.WithPrefix(prefix), redisjobs.WithWorkers(n), redisjobs.WithLease(time.Second))
	first := serverTime(t, c)
	until(t, "some leases have gone by", func() bool { return serverTime(t, c).Sub(first) > 4*time.Second })
	close(release)
	for _, id := range ids {
		if end := final(t, web, id); end.State != jobs.Succeeded || end.Attempt != 1 {
			t.Errorf("ended as %+v", end)
		}
	}
}

//go:build unix

package redisjobs_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spillgate/spillgate/pool/jobs"
	"github.com/spillgate/spillgate/pool/redisjobs"
)

func TestDeadLetters(t *testing.T) {
	t.Parallel()
	var well atomic.Bool
	m := kinds()
	jobs.Register(m, "k", func(_ context.Context, n int) (int, error) {
		if well.Load() {
			return n, nil
		}
		panic("hunter2")
	}, jobs.WithAttempts(2), jobs.WithBackoff(1, 1))
	jobs.Register(m, "brief", func(context.Context, int) (int, error) { return 0, errors.New("no") }, jobs.WithRetain(time.Millisecond))
	c, prefix := shared.client(t), servicePrefix()
	e := engine(t, c, m, redisjobs.WithPrefix(prefix), redisjobs.WithWorkers(4), redisjobs.WithCapacity(200, 1))
	letters := func() (all []jobs.Job) {
		t.Helper()
		for j, err := range e.DeadLetters(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, j)
		}
		return all
	}
	if n := len(letters()); n != 0 {
		t.Errorf("%d at first", n)
	}
	ids := map[string]bool{}
	for i := range 120 {
		ids[submit(t, e, "k", fmt.Sprint(i), jobs.SubmitOptions{Deadline: time.Now().Add(time.Hour)}).ID] = true
	}
	for id := range ids {
		final(t, e, id)
	}
	all := letters()
	for _, j := range all {
		if !ids[j.ID] || j.State != jobs.Failed || !strings.Contains(j.Detail, "hunter2") {
			t.Errorf("%+v", j)
		}
	}
	if len(all) != len(ids) {
		t.Errorf("%d failed, and %d are told of", len(ids), len(all))
	}
	for range e.DeadLetters(t.Context()) {
		break
	}
	well.Store(true)
	first, second := all[0], all[1]
	j, err := e.Requeue(t.Context(), first.ID)
	if err != nil || j.ID != first.ID || j.State != jobs.Queued || j.Attempt != 0 || j.MaxAttempts != 2 || j.Version <= first.Version ||
		j.Err != "" || j.Detail != "" || !j.Finished.IsZero() || !j.Expires.IsZero() || !j.Started.IsZero() {
		t.Errorf("queued again: %+v, %v", j, err)
	}
	if end := final(t, e, first.ID); end.State != jobs.Succeeded || end.Attempt != 1 || len(end.Result) == 0 {
		t.Errorf("ended as %+v", end)
	}
	if n := len(letters()); n != len(ids)-1 {
		t.Errorf("%d are left", n)
	}
	if _, err := e.Requeue(t.Context(), first.ID); !errors.Is(err, jobs.ErrNotFailed) {
		t.Errorf("one that has succeeded: %v", err)
	}
	if _, err := e.Requeue(t.Context(), strings.Repeat("A", 32)); !errors.Is(err, jobs.ErrNotFound) {
		t.Errorf("one that never was: %v", err)
	}

	// What is forgotten is not told of.
	brief := submit(t, e, "brief", "1", jobs.SubmitOptions{})
	until(t, "it is forgotten", func() bool { _, err := e.Get(t.Context(), brief.ID); return errors.Is(err, jobs.ErrExpired) })
	for _, j := range letters() {
		if j.ID == brief.ID {
			t.Errorf("%+v", j)
		}
	}
	if _, err := e.Requeue(t.Context(), brief.ID); !errors.Is(err, jobs.ErrExpired) {
		t.Errorf("one that is forgotten: %v", err)
	}
	full := engine(t, c, m, redisjobs.WithPrefix(prefix), redisjobs.WithCapacity(1, 1))
	waits := submit(t, full, "n", "1", jobs.SubmitOptions{NotBefore: time.Now().Add(time.Hour)})
	if _, err := full.Requeue(t.Context(), second.ID); !errors.Is(err, jobs.ErrFull) {
		t.Errorf("where there is no place: %v", err)
	}
	if _, err := full.Cancel(t.Context(), waits.ID); err != nil {
		t.Error(err)
	}
	full.Close()
	if j, err := full.Requeue(t.Context(), second.ID); !errors.Is(err, jobs.ErrShutdown) || j.State != jobs.Failed {
		t.Errorf("where nothing is accepted: %+v, %v", j, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range e.DeadLetters(ctx) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	}
}

// A job that workers were lost with has as many attempts as at first; its key is its own as long as it is known.
func TestRequeueLost(t *testing.T) {
	t.Parallel()
	c, prefix := shared.client(t), servicePrefix()
	e := engine(t, c, kinds(), redisjobs.WithPrefix(prefix), redisjobs.WithRetention(2*time.Second))
	o := jobs.SubmitOptions{Key: "k", Client: "a", NotBefore: time.Now().Add(time.Hour)}
	j := submit(t, e, "n", "3", o)
	pretend(t, c, prefix, j.ID, time.Hour)
	c.HSet(t.Context(), "{"+prefix+"}:job:"+j.ID, "lost", 2, "attempts", 3)
	others := jobs.NewMux()
	jobs.Register(others, "other", func(context.Context, int) (int, error) { return 0, nil })
	engine(t, shared.client(t), others, redisjobs.WithPrefix(prefix), redisjobs.WithWorkers(1), redisjobs.WithLease(time.Second))
	if end := final(t, e, j.ID); end.State != jobs.Failed || end.MaxAttempts != 4 || !strings.Contains(end.Err, "lost") {
		t.Errorf("ended as %+v", end)
	}
	if j, err := e.Requeue(t.Context(), j.ID); err != nil || j.State != jobs.Queued || j.MaxAttempts != 1 {
		t.Errorf("queued again: %+v, %v", j, err)
	}
	for _, key := range keys(t, c, prefix) {
		if c.PTTL(t.Context(), "{"+prefix+"}:"+key).Val() != -1 {
			t.Errorf("%s is to expire", key)
		}
	}
	if again, created, err := e.Submit(t.Context(), "n", []byte("3"), o); err != nil || created || again.ID != j.ID {
		t.Errorf("submitted again: %+v, %v, %v", again, created, err)
	}
	if open := c.HGetAll(t.Context(), "{"+prefix+"}:open").Val(); open["all"] != "1" || open["na"] != "1" || open["ba"] != "1" {
		t.Errorf("counted: %v", open)
	}
	engine(t, shared.client(t), kinds(), redisjobs.WithPrefix(prefix), redisjobs.WithWorkers(1))
	if end := final(t, e, j.ID); end.State != jobs.Succeeded || end.Attempt != 1 {
		t.Errorf("ended as %+v", end)
	}
}

// Package jobstest is the conformance suite for implementations of [jobs.Engine].
//
//	func TestConformance(t *testing.T) {
//		jobstest.Suite{New: func(t *testing.T, m *jobs.Mux) jobs.Engine {
//			e := myengine.New(m)
//			t.Cleanup(func() { e.Close() })
//			return e
//		}}.Run(t)
//	}
package jobstest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spillgate/spillgate/pool/jobs"
)

// Suite says how to make the engine under test.
type Suite struct {
	// New returns an empty engine that runs the kinds of m, at least two jobs at a time, until
	// the test ends.
	New func(t *testing.T, m *jobs.Mux) jobs.Engine
	// Bubble runs each test if it is set: [testing/synctest.Test] fits an engine that is all
	// in memory.
	Bubble func(t *testing.T, f func(*testing.T))
}

// Run runs the suite as subtests of t.
func (s Suite) Run(t *testing.T) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if s.Bubble != nil {
				s.Bubble(t, func(t *testing.T) { c.run(t, s) })
			} else {
				c.run(t, s)
			}
		})
	}
}

type args struct {
	N int `json:"n"`
}

var ctx = context.Background()

// final waits for the end of a job through Watch.
func final(t *testing.T, e jobs.Engine, id string) jobs.Job {
	t.Helper()
	return until(t, e, id, func(j jobs.Job) bool { return j.State.Final() })
}

// until watches a job until it is as wanted, and checks what every watcher may rely on.
func until(t *testing.T, e jobs.Engine, id string, wanted func(jobs.Job) bool) jobs.Job {
	t.Helper()
	var version uint64
	for j, err := range e.Watch(ctx, id) {
		if err != nil {
			t.Fatalf("Watch: %v", err)
		}
		if j.ID != id || j.Version <= version {
			t.Fatalf("Watch: id %q after %q, version %d after %d", j.ID, id, j.Version, version)
		}
		version = j.Version
		if wanted(j) {
			return j
		}
		if j.State.Final() {
			t.Fatalf("Watch: the job ended as %+v", j)
		}
	}
	t.Fatal("Watch: ended before the job did")
	return jobs.Job{}
}

func submit(t *testing.T, e jobs.Engine, kind, payload string, o jobs.SubmitOptions) jobs.Job {
	t.Helper()
	j, created, err := e.Submit(ctx, kind, []byte(payload), o)
	if err != nil || !created {
		t.Fatalf("Submit: created %v, %v", created, err)
	}
	return j
}

// public fails if what a client may see of a job holds any of the words.
func public(t *testing.T, j jobs.Job, words ...string) {
	t.Helper()
	b, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range words {
		if strings.Contains(string(b), w) {
			t.Errorf("the client may see %q: %s", w, b)
		}
	}
}

var cases = []struct {
	name string
	run  func(*testing.T, Suite)
}{
	{"a job runs and has a result", func(t *testing.T, s Suite) {
		m := jobs.NewMux()
		jobs.Register(m, "double", func(_ context.Context, a args) (args, error) { return args{2 * a.N}, nil })
		e := s.New(t, m)
		j := submit(t, e, "double", `{"n":21}`, jobs.SubmitOptions{})
		if j.ID == "" || j.Kind != "double" || j.Created.IsZero() || j.Version == 0 {
			t.Errorf("submitted: %+v", j)
		}
		end := final(t, e, j.ID)
		if end.State != jobs.Succeeded || string(end.Result) != `{"n":42}` || end.Attempt != 1 || end.Finished.IsZero() || end.RetryAfter != 0 {
			t.Errorf("ended as %+v", end)
		}
		again, err := e.Get(ctx, j.ID)
		if err != nil || again.State != jobs.Succeeded || again.Version != end.Version {
			t.Errorf("Get: %+v, %v", again, err)
		}
	}},
	{"unknown id", func(t *testing.T, s Suite) {
		e := s.New(t, jobs.NewMux())
		for _, id := range []string{"", "x", strings.Repeat("A", 32), strings.Repeat("x", 1000), "../../etc"} {
			if _, err := e.Get(ctx, id); !errors.Is(err, jobs.ErrNotFound) {
				t.Errorf("Get(%.40q): %v", id, err)
			}
			if _, err := e.Cancel(ctx, id); !errors.Is(err, jobs.ErrNotFound) {
				t.Errorf("Cancel(%.40q): %v", id, err)
			}
			for _, err := range e.Watch(ctx, id) {
				if !errors.Is(err, jobs.ErrNotFound) {
					t.Errorf("Watch(%.40q): %v", id, err)
				}
			}
		}
	}},
	{"unknown kind", func(t *testing.T, s Suite) {
		if _, _, err := s.New(t, jobs.NewMux()).Submit(ctx, "nothing", []byte(`{}`), jobs.SubmitOptions{}); !errors.Is(err, jobs.ErrUnknownKind) {
			t.Errorf("got %v", err)
		}
	}},
	{"malformed JSON", func(t *testing.T, s Suite) {
		m := jobs.NewMux()
		jobs.Register(m, "k", func(context.Context, args) (int, error) { t.Error("ran"); return 0, nil })
		e := s.New(t, m)
		for _, payload := range []string{``, `{`, `{"n":"x"}`, `[]`, `{} {}`, "\xff"} {
			if _, _, err := e.Submit(ctx, "k", []byte(payload), jobs.SubmitOptions{}); !errors.Is(err, jobs.ErrMalformed) {
				t.Errorf("%q: %v", payload, err)
			}
		}
	}},
	{"a result that cannot be encoded is a failure, at once", func(t *testing.T, s Suite) {
		m := jobs.NewMux()
		var runs atomic.Int64
		jobs.Register(m, "f", func(context.Context, args) (func(), error) { runs.Add(1); return func() {}, nil }, jobs.WithAttempts(3), jobs.WithBackoff(1, 1))
		e := s.New(t, m)
		if end := final(t, e, submit(t, e, "f", `{}`, jobs.SubmitOptions{}).ID); end.State != jobs.Failed || end.Attempt != 1 || end.Err == "" {
			t.Errorf("ended as %+v", end)
		}
		if runs.Load() != 1 {
			t.Errorf("%d runs", runs.Load())
		}
	}},
	{"the payload is not kept by reference", func(t *testing.T, s Suite) {
		m := jobs.NewMux()
		jobs.Register(m, "k", func(_ context.Context, a args) (int, error) { return a.N, nil })
		e := s.New(t, m)
		payload := []byte(`{"n":1}`)
		j, _, err := e.Submit(ctx, "k", payload, jobs.SubmitOptions{NotBefore: time.Now().Add(20 * time.Millisecond)})
		if err != nil {
			t.Fatal(err)
		}
		copy(payload, `{"n":2}`)
		if end := final(t, e, j.ID); string(end.Result) != "1" {
			t.Errorf("result %s", end.Result)
		}
	}},
	{"the same key and payload give the same job, another payload an error", func(t *testing.T, s Suite) {
		m := jobs.NewMux()
		var runs atomic.Int64
		jobs.Register(m, "k", func(_ context.Context, a args) (int, error) { runs.Add(1); return a.N, nil })
		jobs.Register(m, "other", func(_ context.Context, a args) (int, error) { return a.N, nil })
		e := s.New(t, m)
		o := jobs.SubmitOptions{Key: "key", Client: "a"}
		var ids sync.Map
		var created atomic.Int64
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				j, fresh, err := e.Submit(ctx, "k", []byte(`{"n":1}`), o)
				if err != nil {
					t.Error(err)
				}
				if fresh {
					created.Add(1)
				}
				ids.Store(j.ID, true)
			})
		}
		wg.Wait()
		n := 0
		var id string
		ids.Range(func(k, _ any) bool { n++; id = k.(string); return true })
		if n != 1 || created.Load() != 1 {
			t.Errorf("%d jobs, %d created", n, created.Load())
		}
		final(t, e, id)
		if j, fresh, err := e.Submit(ctx, "k", []byte(`{"n":1}`), o); err != nil || fresh || j.ID != id || j.State != jobs.Succeeded {
			t.Errorf("after the end: %+v, created %v, %v", j, fresh, err)
		}
		if _, _, err := e.Submit(ctx, "k", []byte(`{"n":2}`), o); !errors.Is(err, jobs.ErrKeyReused) {
			t.Errorf("other payload: %v", err)
		}
		if _, _, err := e.Submit(ctx, "other", []byte(`{"n":1}`), o); !errors.Is(err, jobs.ErrKeyReused) {
			t.Errorf("other kind: %v", err)
		}
		if j := submit(t, e, "k", `{"n":1}`, jobs.SubmitOptions{Key: "key", Client: "b"}); j.ID == id {
			t.Error("one client's key gave another client's job")
		}
		if runs.Load() > 2 {
			t.Errorf("%d runs of 2 jobs", runs.Load())
		}
	}},
	{"failures are retried as often as the kind allows", func(t *testing.T, s Suite) {
		m := jobs.NewMux()
		var runs atomic.Int64
		jobs.Register(m, "k", func(ctx context.Context, a args) (int, error) {
			runs.Add(1)
			at, ok := jobs.Current(ctx)
			if !ok || at.ID == "" || at.Kind != "k" {
				t.Errorf("attempt %+v, %v", at, ok)
			}
			if at.Number < a.N {
				return 0, fmt.Errorf("not yet: %d", at.Number)
			}
			return at.Number, nil
		}, jobs.WithAttempts(3), jobs.WithBackoff(time.Millisecond, 2*time.Millisecond))
		e := s.New(t, m)
		if end := final(t, e, submit(t, e, "k", `{"n":3}`, jobs.SubmitOptions{}).ID); end.State != jobs.Succeeded || end.Attempt != 3 || end.Err != "" {
			t.Errorf("third time lucky: %+v", end)
		}
		if end := final(t, e, submit(t, e, "k", `{"n":9}`, jobs.SubmitOptions{}).ID); end.State != jobs.Failed || end.Attempt != 3 || end.MaxAttempts != 3 || end.Err != "not yet: 3" {
			t.Errorf("never: %+v", end)
		}
		if end := final(t, e, submit(t, e, "k", `{"n":9}`, jobs.SubmitOptions{MaxAttempts: 1}).ID); end.State != jobs.Failed || end.Attempt != 1 {
			t.Errorf("one attempt: %+v", end)
		}
		if runs.Load() != 7 {
			t.Errorf("%d runs, want 7", runs.Load())
		}
	}},
	{"a permanent failure is not retried", func(t *testing.T, s Suite) {
		m := jobs.NewMux()
		jobs.Register(m, "k", func(context.Context, args) (int, error) { return 0, jobs.Permanent(errors.New("no such year")) },
			jobs.WithAttempts(5), jobs.WithBackoff(1, 1))
		e := s.New(t, m)
		if end := final(t, e, submit(t, e, "k", `{}`, jobs.SubmitOptions{}).ID); end.State != jobs.Failed || end.Attempt != 1 || end.Err != "no such year" {
			t.Errorf("ended as %+v", end)
		}
	}},
	{"a panic is a failure whose stack the client does not see", func(t *testing.T, s Suite) {
		m := jobs.NewMux()
		jobs.Register(m, "k", func(context.Context, args) (int, error) { panic("password hunter2") }, jobs.WithAttempts(2), jobs.WithBackoff(1, 1))
		e := s.New(t, m)
		end := final(t, e, submit(t, e, "k", `{}`, jobs.SubmitOptions{}).ID)
		if end.State != jobs.Failed || end.Attempt != 2 || end.Err == "" {
			t.Errorf("ended as %+v", end)
		}
		if !strings.Contains(end.Detail, "hunter2") || !strings.Contains(end.Detail, "jobstest.go") {
			t.Errorf("the operator sees %q", end.Detail)
		}
		public(t, end, "hunter2", "goroutine", "jobstest.go")
	}},
	{"progress is seen while it runs", func(t *testing.T, s Suite) {
		m := jobs.NewMux()
		seen := make(chan struct{})
		jobs.Register(m, "k", func(ctx context.Context, _ args) (int, error) {
			jobs.Report(ctx, jobs.Progress{Done: 3, Total: 4, Note: "rendering"})
			<-seen
			return 1, nil
		})
		e := s.New(t, m)
		j := submit(t, e, "k", `{}`, jobs.SubmitOptions{})
		j = until(t, e, j.ID, func(j jobs.Job) bool { return j.Progress.Done == 3 })
		if j.State != jobs.Running || j.Progress.Note != "rendering" || j.Progress.Fraction() != 0.75 || j.Started.IsZero() {
			t.Errorf("%+v", j)
		}
		close(seen)
		final(t, e, j.ID)
	}},
	{"cancelled before it began: gone now and never runs", func(t *testing.T, s Suite) {
		m := jobs.NewMux()
		jobs.Register(m, "k", func(context.Context, args) (int, error) { t.Error("ran"); return 0, nil })
		e := s.New(t, m)
		j := submit(t, e, "k", `{}`, jobs.SubmitOptions{NotBefore: time.Now().Add(time.Hour)})
		if j.State != jobs.Queued || j.Next.IsZero() {
			t.Errorf("submitted as %+v", j)
		}
		if j, err := e.Cancel(ctx, j.ID); err != nil || j.State != jobs.Cancelled || j.Finished.IsZero() {
			t.Errorf("cancelled: %+v, %v", j, err)
		}
		if j, err := e.Cancel(ctx, j.ID); !errors.Is(err, jobs.ErrFinal) || j.State != jobs.Cancelled {
			t.Errorf("cancelled again: %+v, %v", j, err)
		}
		final(t, e, j.ID)
	}},
	{"cancelled while it runs: asked to stop, not retried", func(t *testing.T, s Suite) {
		m := jobs.NewMux()
		jobs.Register(m, "k", func(ctx context.Context, _ args) (int, error) {
			<-ctx.Done()
			return 0, context.Cause(ctx)
		}, jobs.WithAttempts(5), jobs.WithBackoff(1, 1))
		e := s.New(t, m)
		j := submit(t, e, "k", `{}`, jobs.SubmitOptions{})
		until(t, e, j.ID, func(j jobs.Job) bool { return j.State == jobs.Running })
		for range 2 { // asking twice is the same as once
			if j, err := e.Cancel(ctx, j.ID); err != nil && !errors.Is(err, jobs.ErrFinal) || j.State == jobs.Running && !j.Cancelling {
				t.Errorf("asked: %+v, %v", j, err)
			}
		}
		if end := final(t, e, j.ID); end.State != jobs.Cancelled || end.Attempt != 1 {
			t.Errorf("ended as %+v", end)
		}
	}},
	{"cancelling a job that has ended changes nothing", func(t *testing.T, s Suite) {
		m := jobs.NewMux()
		jobs.Register(m, "k", func(context.Context, args) (int, error) { return 1, nil })
		e := s.New(t, m)
		end := final(t, e, submit(t, e, "k", `{}`, jobs.SubmitOptions{}).ID)
		if j, err := e.Cancel(ctx, end.ID); !errors.Is(err, jobs.ErrFinal) || j.State != jobs.Succeeded || j.Version != end.Version {
			t.Errorf("%+v, %v", j, err)
		}
	}},
	{"not before its time", func(t *testing.T, s Suite) {
		m := jobs.NewMux()
		jobs.Register(m, "k", func(context.Context, args) (time.Time, error) { return time.Now(), nil })
		e := s.New(t, m)
		at := time.Now().Add(50 * time.Millisecond)
		end := final(t, e, submit(t, e, "k", `{}`, jobs.SubmitOptions{NotBefore: at}).ID)
		var ran time.Time
		if err := json.Unmarshal(end.Result, &ran); err != nil || ran.Before(at.Round(0)) {
			t.Errorf("ran %v before its time, %v", at.Sub(ran), err)
		}
	}},
	{"past its deadline: not begun", func(t *testing.T, s Suite) {
		m := jobs.NewMux()
		jobs.Register(m, "k", func(context.Context, args) (int, error) { t.Error("ran"); return 0, nil })
		e := s.New(t, m)
		if end := final(t, e, submit(t, e, "k", `{}`, jobs.SubmitOptions{Deadline: time.Now().Add(-time.Second)}).ID); end.State != jobs.Failed {
			t.Errorf("ended as %+v", end)
		}
	}},
	{"a watch ends with its context", func(t *testing.T, s Suite) {
		m := jobs.NewMux()
		jobs.Register(m, "k", func(context.Context, args) (int, error) { return 1, nil })
		e := s.New(t, m)
		j := submit(t, e, "k", `{}`, jobs.SubmitOptions{NotBefore: time.Now().Add(time.Hour)})
		why := errors.New("enough")
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		var last error
		n := 0
		for _, err := range e.Watch(ctx, j.ID) {
			n++
			last = err
			cancel(why)
		}
		if n != 2 || !errors.Is(last, why) {
			t.Errorf("%d steps, the last error %v", n, last)
		}
	}},
	{"a watcher that never reads holds nothing up", func(t *testing.T, s Suite) {
		m := jobs.NewMux()
		seen := make(chan struct{}) // the watcher has seen the job before it ended, so that there is more to see
		jobs.Register(m, "k", func(ctx context.Context, _ args) (int, error) {
			select {
			case <-seen:
			case <-ctx.Done():
				return 0, ctx.Err()
			}
			for i := range int64(1000) {
				jobs.Report(ctx, jobs.Progress{Done: i, Total: 1000})
			}
			return 1, nil
		})
		e := s.New(t, m)
		j := submit(t, e, "k", `{}`, jobs.SubmitOptions{})
		next, stop := iter.Pull2(e.Watch(ctx, j.ID))
		defer stop()
		if _, err, _ := next(); err != nil {
			t.Error(err)
		}
		close(seen)
		if end := final(t, e, j.ID); end.State != jobs.Succeeded {
			t.Errorf("ended as %+v", end)
		}
		if j, err, ok := next(); !ok || err != nil || j.State == jobs.Queued {
			t.Errorf("then it sees %+v, %v, %v", j, err, ok)
		}
	}},
}

//go:build unix

package redisjobs_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/spillgate/spillgate/pool/jobs"
	"github.com/spillgate/spillgate/pool/jobs/jobstest"
	"github.com/spillgate/spillgate/pool/redisjobs"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	jobstest.Suite{New: func(t *testing.T, m *jobs.Mux) jobs.Engine {
		return engine(t, shared.client(t), m, service(), redisjobs.WithWorkers(4))
	}}.Run(t)
}

// A web node that submits and watches, and a worker with a client of its own.
func TestConformanceOfTwo(t *testing.T) {
	t.Parallel()
	jobstest.Suite{New: func(t *testing.T, m *jobs.Mux) jobs.Engine {
		prefix := service()
		engine(t, shared.client(t), m, prefix, redisjobs.WithWorkers(4))
		return engine(t, shared.client(t), m, prefix)
	}}.Run(t)
}

// In a cluster all is in one slot, wherever that is, and messages come from any node.
func TestConformanceInCluster(t *testing.T) {
	t.Parallel()
	c := cluster(t)
	jobstest.Suite{New: func(t *testing.T, m *jobs.Mux) jobs.Engine {
		return engine(t, c, m, service(), redisjobs.WithWorkers(4))
	}}.Run(t)
}

type nothing struct{}

// here waits until the handler of a job has said that it is there, which the server knows nothing of when it has begun the job.
func here(t testing.TB, e jobs.Engine, id string) {
	t.Helper()
	seen(t, e, id, func(j jobs.Job) bool { return j.Progress.Note == "here" })
}

// kinds returns a mux with kinds that most tests want: "n" gives back its payload, "wait" runs until its context ends.
func kinds() *jobs.Mux {
	m := jobs.NewMux()
	jobs.Register(m, "n", func(_ context.Context, n int) (int, error) { return n, nil })
	jobs.Register(m, "wait", func(ctx context.Context, _ any) (nothing, error) {
		jobs.Report(ctx, jobs.Progress{Note: "here"})
		<-ctx.Done()
		return nothing{}, context.Cause(ctx)
	})
	return m
}

// What comes from outside may be anything.
func TestAnyBytes(t *testing.T) {
	t.Parallel()
	m := jobs.NewMux()
	jobs.Register(m, "echo", func(ctx context.Context, v rawJSON) (rawJSON, error) {
		jobs.Report(ctx, jobs.Progress{Note: "nul \x00 and half of \xc3"})
		return v, nil
	})
	jobs.Register(m, "fail", func(ctx context.Context, v any) (any, error) {
		jobs.Report(ctx, jobs.Progress{Done: 1, Note: "nul \x00 and half of \xc3"})
		return nil, jobs.Permanent(errors.New("nul \x00 and half of \xc3"))
	})
	jobs.Register(m, "panic", func(context.Context, any) (any, error) { panic("nul \x00 and half of \xc3") })
	odd := "Ärger, \xff{sagt}\r\n\x00 man"
	jobs.Register(m, odd, func(context.Context, any) (int, error) { return 7, nil })
	for name, c := range map[string]redis.UniversalClient{"one server": shared.client(t), "cluster": cluster(t)} {
		e := engine(t, c, m, redisjobs.WithPrefix(servicePrefix()+" \x00\r\n:*"), redisjobs.WithWorkers(2))
		o := jobs.SubmitOptions{Client: "half of \xc3, nul \x00, }{a}\r\n", Key: "\xff\x00}{\r\n"}
		payload := `{"b":1,"a":[1.0,1e2,12345678901234567890123],"b":"nul \u0000, \ud800 and '\"\\` + "\xff\x80" + `"}`
		end := final(t, e, submit(t, e, "echo", payload, o).ID)
		if string(end.Result) != payload || end.Client != o.Client || end.State != jobs.Succeeded {
			t.Errorf("%s: ended as %+v with %s", name, end, end.Result)
		}
		if again, created, err := e.Submit(t.Context(), "echo", []byte(payload), o); err != nil || created || again.ID != end.ID {
			t.Errorf("%s: again: %+v, %v, %v", name, again, created, err)
		}
		text := "nul \x00 and half of \uFFFD"
		if end := final(t, e, submit(t, e, "fail", "0", jobs.SubmitOptions{}).ID); end.Err != text || end.Progress.Note != text || end.State != jobs.Failed {
			t.Errorf("%s: ended as %+v", name, end)
		}
		if end := final(t, e, submit(t, e, "panic", "0", jobs.SubmitOptions{}).ID); end.State != jobs.Failed || !strings.Contains(end.Detail, text) {
			t.Errorf("%s: ended as %+v", name, end)
		}
		if end := final(t, e, submit(t, e, odd, "0", o2(o)).ID); end.State != jobs.Succeeded || end.Kind != odd {
			t.Errorf("%s: ended as %+v", name, end)
		}
	}
}

// o2 is o with another key.
func o2(o jobs.SubmitOptions) jobs.SubmitOptions { o.Key += "2"; return o }

// rawJSON is taken and given as it is, where json.RawMessage would be written without spaces.
type rawJSON string

func (r rawJSON) MarshalJSON() ([]byte, error)  { return []byte(r), nil }
func (r *rawJSON) UnmarshalJSON(b []byte) error { *r = rawJSON(b); return nil }

// keys are those of a prefix, without it.
func keys(t testing.TB, c *redis.Client, prefix string) []string {
	t.Helper()
	all, err := c.Keys(context.Background(), "{"+prefix+"}:*").Result()
	if err != nil {
		t.Fatal(err)
	}
	for i := range all {
		all[i] = strings.TrimPrefix(all[i], "{"+prefix+"}:")
	}
	slices.Sort(all)
	return all
}

// A job is known for as long as was said, its key as long, and its id is one that was. Nothing is left of it.
func TestExpiry(t *testing.T) {
	t.Parallel()
	m := kinds()
	jobs.Register(m, "kept", func(context.Context, int) (int, error) { return 1, nil }, jobs.WithRetain(time.Hour))
	c, prefix := shared.client(t), servicePrefix()
	e := engine(t, c, m, redisjobs.WithPrefix(prefix), redisjobs.WithWorkers(1), redisjobs.WithRetention(100*time.Millisecond), redisjobs.WithLease(time.Second))
	o := jobs.SubmitOptions{Key: "k", Client: "a", Deadline: time.Now().Add(time.Hour)}
	j := submit(t, e, "n", "1", o)
	until(t, "it has expired", func() bool { _, err := e.Get(t.Context(), j.ID); return errors.Is(err, jobs.ErrExpired) })
	for _, err := range e.Watch(t.Context(), j.ID) {
		if !errors.Is(err, jobs.ErrExpired) {
			t.Errorf("Watch: %v", err)
		}
	}
	if _, err := e.Cancel(t.Context(), j.ID); !errors.Is(err, jobs.ErrExpired) {
		t.Errorf("Cancel: %v", err)
	}
	if again := submit(t, e, "n", "2", o); again.ID == j.ID {
		t.Error("the key gave a job that is forgotten")
	}
	until(t, "nothing is left", func() bool { return slices.Equal(keys(t, c, prefix), []string{"mint", "open", "served"}) })
	if open, err := c.HGetAll(t.Context(), "{"+prefix+"}:open").Result(); err != nil || len(open) != 1 || open["all"] != "0" {
		t.Errorf("counted as open: %v, %v", open, err)
	}
	if end := final(t, e, submit(t, e, "kept", "1", jobs.SubmitOptions{}).ID); end.Expires.Sub(end.Finished) != time.Hour {
		t.Errorf("ended as %+v", end)
	}
	elsewhere := engine(t, c, m, service())
	if _, err := elsewhere.Get(t.Context(), j.ID); !errors.Is(err, jobs.ErrNotFound) {
		t.Errorf("an id of others: %v", err)
	}
}

// What is kept of a job that has ended is little.
func TestMemory(t *testing.T) {
	t.Parallel()
	c, prefix := shared.client(t), servicePrefix()
	e := engine(t, c, kinds(), redisjobs.WithPrefix(prefix), redisjobs.WithWorkers(1))
	j := submit(t, e, "n", "1", jobs.SubmitOptions{Client: "203.0.113.7", Key: "4b0f"})
	final(t, e, j.ID)
	job, err := c.MemoryUsage(t.Context(), "{"+prefix+"}:job:"+j.ID).Result()
	if err != nil {
		t.Fatal(err)
	}
	key, err := c.MemoryUsage(t.Context(), "{"+prefix+"}:key:11:203.0.113.74b0f").Result()
	if err != nil || job+key > 1024 {
		t.Errorf("%d bytes for the job, %d for its key, %v", job, key, err)
	}
	t.Logf("%d bytes for the job, %d for its key", job, key)
}

// A job that nobody runs fails at its deadline, whether somebody looks or not; one that runs is told to stop.
func TestDeadline(t *testing.T) {
	t.Parallel()
	c, prefix := shared.client(t), servicePrefix()
	web := engine(t, c, kinds(), redisjobs.WithPrefix(prefix))
	at := time.Now().Add(100 * time.Millisecond)
	end := final(t, web, submit(t, web, "n", "1", jobs.SubmitOptions{Deadline: at, NotBefore: at.Add(time.Hour)}).ID)
	if end.State != jobs.Failed || end.Attempt != 0 || end.Err != jobs.ErrDeadline.Error() || end.Finished.Before(at.Truncate(time.Microsecond)) {
		t.Errorf("ended as %+v", end)
	}
	unseen := submit(t, web, "n", "1", jobs.SubmitOptions{Deadline: time.Now().Add(time.Millisecond), NotBefore: at.Add(time.Hour)})
	work := engine(t, c, kinds(), redisjobs.WithPrefix(prefix), redisjobs.WithWorkers(1))
	until(t, "the one that nobody looks at has failed", func() bool {
		return c.HGet(t.Context(), "{"+prefix+"}:job:"+unseen.ID, "state").Val() == "failed"
	})
	j := submit(t, work, "wait", "1", jobs.SubmitOptions{Deadline: time.Now().Add(time.Second), MaxAttempts: 5})
	if end := final(t, work, j.ID); end.State != jobs.Failed || end.Err != context.DeadlineExceeded.Error() && end.Err != jobs.ErrDeadline.Error() {
		t.Errorf("ended as %+v", end)
	}
}

func TestHandlersThatEndOddly(t *testing.T) {
	t.Parallel()
	m := jobs.NewMux()
	jobs.Register(m, "goexit", func(context.Context, any) (any, error) { runtime.Goexit(); return nil, nil })
	jobs.Register(m, "bad error", func(context.Context, any) (any, error) { return nil, (*badError)(nil) })
	jobs.Register(m, "leaves one behind", func(ctx context.Context, _ any) (int, error) {
		go func() {
			<-ctx.Done()
			jobs.Report(ctx, jobs.Progress{Done: 1, Total: 2})
		}()
		return 0, errors.New("no")
	})
	e := engine(t, shared.client(t), m, service(), redisjobs.WithWorkers(1))
	for kind, want := range map[string]string{
		"goexit":            jobs.ErrGoexit.Error(),
		"bad error":         "jobs: the handler panicked",
		"leaves one behind": "no",
	} {
		end := final(t, e, submit(t, e, kind, "1", jobs.SubmitOptions{}).ID)
		if end.State != jobs.Failed || end.Err != want || end.Attempt != 1 || end.Progress != (jobs.Progress{}) {
			t.Errorf("%s: ended as %+v", kind, end)
		}
	}
}

type badError struct{ text string }

func (e *badError) Error() string { return e.text }

// What waits for a time of its own begins then, and not a poll later.
func TestWaitingForATime(t *testing.T) {
	t.Parallel()
	m := kinds()
	jobs.Register(m, "again", func(ctx context.Context, _ int) (int, error) {
		jobs.Report(ctx, jobs.Progress{Done: 1, Total: 2})
		return 0, errors.New("not now")
	}, jobs.WithAttempts(3), jobs.WithBackoff(10000*time.Hour, 10000*time.Hour)) // of which hardly any part is short
	jobs.Register(m, "slow", func(ctx context.Context, _ int) (bool, error) {
		_, bounded := ctx.Deadline()
		<-ctx.Done()
		return bounded, context.Cause(ctx)
	}, jobs.WithTimeout(10*time.Millisecond))
	e := engine(t, shared.client(t), m, service(), redisjobs.WithWorkers(2), redisjobs.WithPollInterval(time.Hour))
	at := time.Now().Add(200 * time.Millisecond)
	later := submit(t, e, "n", "1", jobs.SubmitOptions{NotBefore: at})

	again := submit(t, e, "again", "1", jobs.SubmitOptions{})
	j := seen(t, e, again.ID, func(j jobs.Job) bool { return j.State == jobs.Retrying })
	if j.Attempt != 1 || j.MaxAttempts != 3 || j.Err != "not now" || time.Until(j.Next) < time.Second || j.RetryAfter <= 0 || j.Progress.Done != 1 {
		t.Errorf("it is to be repeated as %+v", j)
	}
	if j, err := e.Cancel(t.Context(), again.ID); err != nil || j.State != jobs.Cancelled || j.Err != jobs.ErrCancelled.Error() || !j.Next.IsZero() || j.Attempt != 1 {
		t.Errorf("cancelled: %+v, %v", j, err)
	}
	if end := final(t, e, submit(t, e, "slow", "1", jobs.SubmitOptions{}).ID); end.State != jobs.Failed || end.Err != context.DeadlineExceeded.Error() {
		t.Errorf("ended as %+v", end)
	}
	if end := final(t, e, later.ID); end.State != jobs.Succeeded || end.Started.Before(at.Truncate(time.Microsecond)) {
		t.Errorf("due at %v it ended as %+v", at, end)
	}
}

// order runs what has been submitted one at a time, and returns the payloads in the order in which they began.
func order(t *testing.T, submitAll func(web *redisjobs.Engine, prefix string) int) []int {
	t.Helper()
	name := servicePrefix()
	prefix := redisjobs.WithPrefix(name)
	var mu sync.Mutex
	var began []int
	m := jobs.NewMux()
	for _, kind := range []string{"n", "other"} {
		jobs.Register(m, kind, func(_ context.Context, n int) (int, error) {
			mu.Lock()
			defer mu.Unlock()
			began = append(began, n)
			return n, nil
		})
	}
	n := submitAll(engine(t, shared.client(t), m, prefix), name)
	engine(t, shared.client(t), m, prefix, redisjobs.WithWorkers(1))
	until(t, "all have run", func() bool { mu.Lock(); defer mu.Unlock(); return len(began) == n })
	return began
}

// A level is worth a second of waiting, so that nobody waits for ever.
func TestPriorities(t *testing.T) {
	t.Parallel()
	got := order(t, func(web *redisjobs.Engine, prefix string) int {
		for _, p := range []int{-100, -1, 0, 3, 100} {
			submit(t, web, "n", fmt.Sprint(p), jobs.SubmitOptions{Priority: p})
		}
		submit(t, web, "other", "-3", jobs.SubmitOptions{Priority: -3})
		// As if all had been submitted a while before the next two.
		c := shared.client(t)
		for _, line := range []string{"line:1:n", "line:5:other"} {
			all, err := c.ZRange(t.Context(), "{"+prefix+"}:"+line, 0, -1).Result()
			if err != nil || len(all) == 0 {
				t.Fatal(all, err)
			}
			for _, id := range all {
				c.ZIncrBy(t.Context(), "{"+prefix+"}:"+line, -2.1e6, id)
			}
		}
		submit(t, web, "n", "-2", jobs.SubmitOptions{Priority: -2})
		submit(t, web, "n", "1", jobs.SubmitOptions{Priority: 1})
		return 8
	})
	if want := []int{100, 3, 0, -1, 1, -3, -2, -100}; !slices.Equal(got, want) {
		t.Errorf("ran in the order %v, want %v", got, want)
	}
}

// Clients take turns, of whatever kind and however much one of them has submitted before the others came; who has no client has a turn among them. The jobs of each go by their priority.
func TestTurns(t *testing.T) {
	t.Parallel()
	got := order(t, func(web *redisjobs.Engine, _ string) int {
		for i := range 6 {
			submit(t, web, "n", fmt.Sprint(i), jobs.SubmitOptions{Client: "many", Priority: 7})
		}
		submit(t, web, "n", "10", jobs.SubmitOptions{Client: "few"})
		submit(t, web, "n", "11", jobs.SubmitOptions{Client: "few", Priority: 1})
		submit(t, web, "n", "20", jobs.SubmitOptions{})
		submit(t, web, "other", "30", jobs.SubmitOptions{Client: "another"})
		submit(t, web, "other", "6", jobs.SubmitOptions{Client: "many", Priority: -8})
		return 11
	})
	at := func(n int) int { return slices.Index(got, n) }
	if at(11) > at(10) || at(10) > 6 || at(20) > 3 || at(30) > 3 || at(5) != 9 || at(6) != 10 {
		t.Errorf("ran in the order %v", got)
	}
}

// So do those of different kinds, also where another client has the same turn and stands before it in one of them.
func TestPrioritiesAmongTurns(t *testing.T) {
	t.Parallel()
	got := order(t, func(web *redisjobs.Engine, _ string) int {
		submit(t, web, "other", "1", jobs.SubmitOptions{Client: "b"})
		submit(t, web, "n", "2", jobs.SubmitOptions{Client: "a"})
		submit(t, web, "n", "3", jobs.SubmitOptions{Client: "b", Priority: 7})
		return 3
	})
	if slices.Index(got, 3) > slices.Index(got, 1) {
		t.Errorf("ran in the order %v: 3 is more urgent than 1, of the same client", got)
	}
}

// A kind that no worker has waits for one that has it, and holds nothing up.
func TestKindsOfWorkers(t *testing.T) {
	t.Parallel()
	prefix := service()
	other := kinds()
	jobs.Register(other, "new", func(context.Context, int) (int, error) { return 5, nil })
	web := engine(t, shared.client(t), other, prefix)
	engine(t, shared.client(t), kinds(), prefix, redisjobs.WithWorkers(2))
	j := submit(t, web, "new", "1", jobs.SubmitOptions{})
	final(t, web, submit(t, web, "n", "1", jobs.SubmitOptions{}).ID)
	if j, err := web.Get(t.Context(), j.ID); err != nil || j.State != jobs.Queued || j.Attempt != 0 {
		t.Errorf("%+v, %v", j, err)
	}
	engine(t, shared.client(t), other, prefix, redisjobs.WithWorkers(2), redisjobs.WithPollInterval(time.Hour))
	// The one promotes what is due, the other runs it.
	due := submit(t, web, "new", "1", jobs.SubmitOptions{NotBefore: time.Now().Add(50 * time.Millisecond)})
	for _, id := range []string{j.ID, due.ID} {
		if end := final(t, web, id); string(end.Result) != "5" {
			t.Errorf("ended as %+v", end)
		}
	}
}

func TestMisusePanics(t *testing.T) {
	c := shared.client(t)
	for name, f := range map[string]func(){
		"no client":  func() { redisjobs.New(nil, kinds()) },
		"no mux":     func() { redisjobs.New(c, nil) },
		"nil option": func() { redisjobs.New(c, kinds(), nil) },
		"workers":    func() { redisjobs.WithWorkers(0) },
		"share":      func() { redisjobs.WithCapacity(1, 2) },
		"sizes":      func() { redisjobs.WithSizes(10, 10, 9) },
		"result":     func() { redisjobs.WithSizes(10, 257<<20, 10) },
		"retention":  func() { redisjobs.WithRetention(0) },
		"poll":       func() { redisjobs.WithPollInterval(0) },
		"lease":      func() { redisjobs.WithLease(0) },
		"logger":     func() { redisjobs.WithLogger(nil) },
		"prefix":     func() { redisjobs.WithPrefix("a{b}") },
		"no prefix":  func() { redisjobs.WithPrefix("") },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if s, ok := recover().(string); !ok || !strings.HasPrefix(s, "redisjobs: ") {
					t.Errorf("panicked with %v", s)
				}
			}()
			f()
		})
	}
}

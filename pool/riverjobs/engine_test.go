//go:build unix

package riverjobs_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivertype"

	"github.com/spillgate/spillgate/pool/jobs"
	"github.com/spillgate/spillgate/pool/jobs/jobstest"
	"github.com/spillgate/spillgate/pool/riverjobs"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	jobstest.Suite{New: func(t *testing.T, m *jobs.Mux) jobs.Engine {
		return engine(t, connect(t, shared.database(t)), m, riverjobs.WithWorkers(4))
	}}.Run(t)
}

// Without LISTEN, and in a schema that no search_path leads to.
func TestConformanceOfPollingEngine(t *testing.T) {
	t.Parallel()
	jobstest.Suite{New: func(t *testing.T, m *jobs.Mux) jobs.Engine {
		return engine(t, connect(t, shared.database(t)), m, riverjobs.WithWorkers(4), riverjobs.WithPollOnly(), riverjobs.WithSchema(otherSchema))
	}}.Run(t)
}

// A web node that submits and watches, and a worker with a pool of its own.
func TestConformanceOfTwo(t *testing.T) {
	t.Parallel()
	jobstest.Suite{New: func(t *testing.T, m *jobs.Mux) jobs.Engine {
		url := shared.database(t)
		engine(t, connect(t, url), m, riverjobs.WithWorkers(4))
		return engine(t, connect(t, url), m)
	}}.Run(t)
}

type nothing struct{}

// kinds returns a mux with kinds that most tests want: "n" gives back its payload, "wait" runs until its context ends.
func kinds() *jobs.Mux {
	m := jobs.NewMux()
	jobs.Register(m, "n", func(_ context.Context, n int) (int, error) { return n, nil })
	jobs.Register(m, "wait", func(ctx context.Context, _ any) (nothing, error) {
		<-ctx.Done()
		return nothing{}, context.Cause(ctx)
	})
	return m
}

// What comes from outside may be anything, and Postgres takes only some of it as text or jsonb.
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
	jobs.Register(m, "Ärger, sagt man/+", func(context.Context, any) (int, error) { return 7, nil })
	e := engine(t, connect(t, shared.database(t)), m, riverjobs.WithWorkers(2))
	o := jobs.SubmitOptions{Client: "half of \xc3, nul \x00", Key: "\xff\x00"}

	payload := `{"b":1,"a":[1.0,1e2,12345678901234567890123],"b":"nul \u0000, \ud800 and '\"\\"}`
	end := final(t, e, submit(t, e, "echo", payload, o).ID)
	if string(end.Result) != payload || end.Client != o.Client || end.State != jobs.Succeeded {
		t.Errorf("ended as %+v with %s", end, end.Result)
	}
	if again, created, err := e.Submit(t.Context(), "echo", []byte(payload), o); err != nil || created || again.ID != end.ID {
		t.Errorf("again: %+v, %v, %v", again, created, err)
	}
	text := "nul \uFFFD and half of \uFFFD"
	if end := final(t, e, submit(t, e, "fail", "0", jobs.SubmitOptions{}).ID); end.Err != text || end.Progress.Note != text || end.State != jobs.Failed {
		t.Errorf("ended as %+v", end)
	}
	if end := final(t, e, submit(t, e, "panic", "0", jobs.SubmitOptions{}).ID); end.State != jobs.Failed || !strings.Contains(end.Detail, text) {
		t.Errorf("ended as %+v", end)
	}
	if end := final(t, e, submit(t, e, "Ärger, sagt man/+", "0", jobs.SubmitOptions{}).ID); end.State != jobs.Succeeded || end.Kind != "Ärger, sagt man/+" {
		t.Errorf("ended as %+v", end)
	}
}

// rawJSON is taken and given as it is, where json.RawMessage would be written without spaces.
type rawJSON string

func (r rawJSON) MarshalJSON() ([]byte, error)  { return []byte(r), nil }
func (r *rawJSON) UnmarshalJSON(b []byte) error { *r = rawJSON(b); return nil }

// A job is known for as long as was said, its key as long, and its id is one that was.
func TestExpiry(t *testing.T) {
	t.Parallel()
	m := kinds()
	jobs.Register(m, "kept", func(context.Context, int) (int, error) { return 1, nil }, jobs.WithRetain(time.Hour))
	pool := connect(t, shared.database(t))
	e := engine(t, pool, m, riverjobs.WithWorkers(1), riverjobs.WithRetention(100*time.Millisecond), riverjobs.WithLease(time.Second))
	o := jobs.SubmitOptions{Key: "k"}
	j := submit(t, e, "n", "1", o)
	kept := submit(t, e, "kept", "1", jobs.SubmitOptions{})
	until(t, "it has expired", func() bool { _, err := e.Get(t.Context(), j.ID); return errors.Is(err, jobs.ErrExpired) })
	for _, err := range e.Watch(t.Context(), j.ID) {
		if !errors.Is(err, jobs.ErrExpired) {
			t.Errorf("Watch: %v", err)
		}
	}
	if _, err := e.Cancel(t.Context(), j.ID); !errors.Is(err, jobs.ErrExpired) {
		t.Errorf("Cancel: %v", err)
	}
	until(t, "River has forgotten it, too", func() bool {
		var n int
		return pool.QueryRow(t.Context(), "SELECT count(*) FROM river_job WHERE kind = 'spillgate:n'").Scan(&n) == nil && n == 0
	})
	if again := submit(t, e, "n", "2", o); again.ID == j.ID {
		t.Error("the key gave a job that is forgotten")
	}
	end := final(t, e, kept.ID)
	if d := end.Expires.Sub(end.Finished); d < time.Hour || d > time.Hour+time.Minute {
		t.Errorf("ended as %+v", end)
	}
	// From the end on by the clock of the database; River ends a job by that of the worker, which may be behind.
	if _, err := pool.Exec(t.Context(), `UPDATE river_job SET finalized_at = NULL, state = 'available', scheduled_at = now() + interval '1 hour' WHERE kind = 'spillgate:kept'`); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(t.Context(), `UPDATE river_job SET finalized_at = now() - interval '2 hours', state = 'completed' WHERE kind = 'spillgate:kept'`); err != nil {
		t.Fatal(err)
	}
	if again, err := e.Get(t.Context(), kept.ID); err != nil || !again.Expires.After(end.Expires) {
		t.Errorf("where the clock is behind: %+v, %v", again, err)
	}
	// Also where nobody has cleaned up.
	web := engine(t, connect(t, shared.database(t)), m, riverjobs.WithRetention(time.Millisecond))
	unclean := submit(t, web, "n", "1", o)
	if _, err := web.Cancel(t.Context(), unclean.ID); err != nil && !errors.Is(err, jobs.ErrExpired) {
		t.Error(err)
	}
	until(t, "it has expired", func() bool { _, err := web.Get(t.Context(), unclean.ID); return errors.Is(err, jobs.ErrExpired) })
	submit(t, web, "n", "2", o)
	elsewhere := engine(t, connect(t, shared.database(t)), m, riverjobs.WithSchema(otherSchema))
	if _, err := elsewhere.Get(t.Context(), j.ID); !errors.Is(err, jobs.ErrNotFound) {
		t.Errorf("an id of others: %v", err)
	}
}

// A job that nobody runs fails at its deadline, whether somebody looks or not; one that runs is told to stop.
func TestDeadline(t *testing.T) {
	t.Parallel()
	url := shared.database(t)
	pool := connect(t, url)
	web := engine(t, pool, kinds())
	at := time.Now().Add(100 * time.Millisecond)
	end := final(t, web, submit(t, web, "n", "1", jobs.SubmitOptions{Deadline: at, NotBefore: at.Add(time.Hour)}).ID)
	if end.State != jobs.Failed || end.Attempt != 0 || end.Err != jobs.ErrDeadline.Error() || end.Finished.Before(at.Truncate(time.Microsecond)) {
		t.Errorf("ended as %+v", end)
	}
	unseen := submit(t, web, "n", "1", jobs.SubmitOptions{Deadline: time.Now().Add(time.Millisecond), NotBefore: at.Add(time.Hour)})
	work := engine(t, connect(t, url), kinds(), riverjobs.WithWorkers(1), riverjobs.WithLease(time.Second))
	until(t, "the one that nobody looks at has failed", func() bool {
		var open bool
		return pool.QueryRow(t.Context(), "SELECT open FROM spillgate_job WHERE id = $1", unseen.ID).Scan(&open) == nil && !open
	})
	j := submit(t, work, "wait", "1", jobs.SubmitOptions{Deadline: time.Now().Add(time.Second), MaxAttempts: 5})
	if end := final(t, work, j.ID); end.State != jobs.Failed || end.Err != context.DeadlineExceeded.Error() && end.Err != jobs.ErrDeadline.Error() {
		t.Errorf("ended as %+v", end)
	}
}

// Whoever asks for a job that somebody else fails at that moment gets it, whatever the default for transactions is.
func TestTooLateForTwo(t *testing.T) {
	t.Parallel()
	for _, level := range []string{"read%20committed", "repeatable%20read", "serializable"} {
		url := shared.database(t)
		pool := connect(t, url)
		web := engine(t, connect(t, url+"&default_transaction_isolation="+level), kinds())
		j := submit(t, web, "n", "1", jobs.SubmitOptions{Deadline: time.Now().Add(-time.Hour)})
		other, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer other.Rollback(context.Background())
		if _, err := other.Exec(t.Context(), "UPDATE river_job SET state = 'discarded', finalized_at = now()"); err != nil {
			t.Fatal(err)
		}
		got := make(chan error, 1)
		go func() {
			j, err := web.Get(t.Context(), j.ID)
			if err == nil && j.State != jobs.Failed {
				err = fmt.Errorf("%+v", j)
			}
			got <- err
		}()
		until(t, "it waits for the other one", func() bool {
			var waits bool
			err := pool.QueryRow(t.Context(), "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')").Scan(&waits)
			return err == nil && waits
		})
		if err := other.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := <-got; err != nil {
			t.Errorf("%s: %v", level, err)
		}
	}
}

// River takes jobs that are too late, when nobody looks at them before. That is no attempt.
func TestTooLateWhenTaken(t *testing.T) {
	t.Parallel()
	url := shared.database(t)
	web := engine(t, connect(t, url), kinds())
	late := submit(t, web, "n", "1", jobs.SubmitOptions{Deadline: time.Now().Add(-time.Hour)})
	work := engine(t, connect(t, url), kinds(), riverjobs.WithWorkers(1))
	final(t, work, submit(t, work, "n", "1", jobs.SubmitOptions{}).ID) // which comes after it
	if j, err := work.Get(t.Context(), late.ID); err != nil || j.State != jobs.Failed || j.Attempt != 0 || j.Err != jobs.ErrDeadline.Error() {
		t.Errorf("%+v, %v", j, err)
	}
}

// A worker whose clock is ahead of that of the database does not begin what it takes for too late, and so has not done it.
func TestTooLateByTheClockOfTheWorker(t *testing.T) {
	t.Parallel()
	url := shared.database(t)
	pool := connect(t, url)
	web := engine(t, pool, kinds())
	late := submit(t, web, "n", "1", jobs.SubmitOptions{Deadline: time.Now().Add(-time.Hour)})
	if _, err := pool.Exec(t.Context(), "UPDATE spillgate_job SET deadline = deadline + interval '2 hours'"); err != nil { // by which time it is not late
		t.Fatal(err)
	}
	engine(t, connect(t, url), kinds(), riverjobs.WithWorkers(1))
	if end := final(t, web, late.ID); end.State != jobs.Failed || end.Attempt != 0 || end.Err != jobs.ErrDeadline.Error() {
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
	e := engine(t, connect(t, shared.database(t)), m, riverjobs.WithWorkers(1))
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

// As pgx is set for a proxy that gives connections to transactions: nothing is prepared, and nothing listens.
func TestNothingPrepared(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"exec", "simple_protocol"} {
		pool := connect(t, shared.database(t)+"&default_query_exec_mode="+mode)
		e := engine(t, pool, kinds(), riverjobs.WithWorkers(1), riverjobs.WithPollOnly(), riverjobs.WithLease(time.Second))
		o := jobs.SubmitOptions{Client: "a", Key: "k", Deadline: time.Now().Add(time.Hour)}
		end := final(t, e, submit(t, e, "n", "7", o).ID)
		if again, created, err := e.Submit(t.Context(), "n", []byte("7"), o); err != nil || created || again.ID != end.ID || string(again.Result) != "7" {
			t.Errorf("%s: %+v, %v, %v", mode, again, created, err)
		}
		lost := submit(t, e, "n", "8", jobs.SubmitOptions{NotBefore: time.Now().Add(time.Hour)})
		if _, err := pool.Exec(t.Context(), "UPDATE river_job SET state = 'running', attempt = 1, attempted_at = now() - interval '1 hour', attempted_by = '{gone}' WHERE state = 'scheduled'"); err != nil {
			t.Fatal(err)
		}
		if end := final(t, e, lost.ID); string(end.Result) != "8" || end.Attempt < 2 {
			t.Errorf("%s: %+v", mode, end)
		}
		running := submit(t, e, "wait", "0", jobs.SubmitOptions{})
		seen(t, e, running.ID, func(j jobs.Job) bool { return j.State == jobs.Running })
		if _, err := e.Cancel(t.Context(), running.ID); err != nil {
			t.Errorf("%s: %v", mode, err)
		}
		if end := final(t, e, running.ID); end.State != jobs.Cancelled {
			t.Errorf("%s: %+v", mode, end)
		}
	}
}

// What waits for a time of its own waits in River, which has it begin then.
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
	e := engine(t, connect(t, shared.database(t)), m, riverjobs.WithWorkers(2))
	at := time.Now().Add(6 * time.Second) // later than what is available at once
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
	end := final(t, e, later.ID)
	if end.State != jobs.Succeeded || end.Started.Before(at.Truncate(time.Microsecond)) {
		t.Errorf("due at %v it ended as %+v", at, end)
	}
	if late := end.Started.Sub(at); late > 2*time.Second { // the engine looks every 20 ms
		t.Errorf("it began %v late", late)
	}
}

// What an operator does to a job in River UI, or with a client of River, is seen.
func TestOperator(t *testing.T) {
	t.Parallel()
	var runs atomic.Int64
	m := kinds()
	jobs.Register(m, "second time lucky", func(context.Context, int) (int64, error) {
		if n := runs.Add(1); n > 1 {
			return n, nil
		}
		return 0, jobs.Permanent(errors.New("not today"))
	})
	pool := connect(t, shared.database(t))
	e := engine(t, pool, m, riverjobs.WithWorkers(1))
	operator, err := river.NewClient(riverpgxv5.New(pool), &river.Config{})
	if err != nil {
		t.Fatal(err)
	}
	row := func(id string) *rivertype.JobRow {
		t.Helper()
		all, err := operator.JobList(t.Context(), river.NewJobListParams().Where("args->>'id' = @id", river.NamedArgs{"id": id}))
		if err != nil || len(all.Jobs) != 1 {
			t.Fatalf("%+v, %v", all, err)
		}
		return all.Jobs[0]
	}
	end := final(t, e, submit(t, e, "second time lucky", "1", jobs.SubmitOptions{}).ID)
	if end.State != jobs.Failed {
		t.Fatalf("ended as %+v", end)
	}
	r := row(end.ID)
	if r.Kind != "spillgate:second+20time+20lucky" || r.State != rivertype.JobStateCancelled || r.Errors[0].Error != "not today" {
		t.Errorf("River has %+v", r)
	}
	if _, err := operator.JobRetry(t.Context(), r.ID); err != nil {
		t.Fatal(err)
	}
	again := seen(t, e, end.ID, func(j jobs.Job) bool { return j.State == jobs.Succeeded })
	if again.Version <= end.Version || string(again.Result) != "2" || again.Attempt != 2 || string(row(end.ID).Output()) != `"2"` {
		t.Errorf("then it is %+v, and in River %s", again, row(end.ID).Output())
	}
	j := submit(t, e, "n", "1", jobs.SubmitOptions{NotBefore: time.Now().Add(time.Hour)})
	if _, err := operator.JobCancel(t.Context(), row(j.ID).ID); err != nil {
		t.Fatal(err)
	}
	if end := final(t, e, j.ID); end.State != jobs.Cancelled {
		t.Errorf("ended as %+v", end)
	}
	if _, err := operator.JobDelete(t.Context(), row(j.ID).ID); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Get(t.Context(), j.ID); !errors.Is(err, jobs.ErrExpired) {
		t.Errorf("deleted: %v", err)
	}
}

// Four levels, and what has waited for long before all.
func TestPriorities(t *testing.T) {
	t.Parallel()
	url := shared.database(t)
	pool := connect(t, url)
	var mu sync.Mutex
	var order []int
	m := jobs.NewMux()
	jobs.Register(m, "n", func(_ context.Context, n int) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		order = append(order, n)
		return n, nil
	})
	web := engine(t, pool, m)
	var last string
	for _, p := range []int{-100, -5, -4, -1, 0, 3, 4, 100} {
		o := jobs.SubmitOptions{Priority: p}
		if p == 100 {
			o.NotBefore = time.Now().Add(-time.Hour) // which makes nothing more urgent
		}
		j := submit(t, web, "n", fmt.Sprint(p), o)
		if p == -100 {
			last = j.ID
		}
	}
	engine(t, connect(t, url), m, riverjobs.WithWorkers(1))
	final(t, web, last)
	until(t, "all have run", func() bool { mu.Lock(); defer mu.Unlock(); return len(order) == 8 })
	if want := []int{4, 100, 0, 3, -4, -1, -100, -5}; !slices.Equal(order, want) {
		t.Errorf("ran in the order %v, want %v", order, want)
	}
}

func TestAging(t *testing.T) {
	t.Parallel()
	url := shared.database(t)
	pool := connect(t, url)
	e := engine(t, pool, kinds(), riverjobs.WithWorkers(1), riverjobs.WithLease(time.Second))
	busy := submit(t, e, "wait", "1", jobs.SubmitOptions{})
	seen(t, e, busy.ID, func(j jobs.Job) bool { return j.State == jobs.Running })
	j := submit(t, e, "n", "1", jobs.SubmitOptions{Priority: -8})
	if _, err := pool.Exec(t.Context(), "UPDATE river_job SET scheduled_at = now() - interval '2 minutes' WHERE state = 'available'"); err != nil {
		t.Fatal(err)
	}
	until(t, "it goes with the first", func() bool {
		var p int
		return pool.QueryRow(t.Context(), "SELECT priority FROM river_job WHERE state = 'available'").Scan(&p) == nil && p == 1
	})
	if _, err := e.Cancel(t.Context(), busy.ID); err != nil {
		t.Error(err)
	}
	final(t, e, j.ID)
}

// A client that has submitted much goes before another for a turn, and no longer: neither at first nor when all have waited for long.
func TestTurns(t *testing.T) {
	t.Parallel()
	url := shared.database(t)
	pool := connect(t, url)
	var mu sync.Mutex
	var order []int
	m := kinds()
	jobs.Register(m, "log", func(_ context.Context, n int) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		order = append(order, n)
		return n, nil
	})
	const much = 40
	flood := func(e *riverjobs.Engine) (last, other jobs.Job) {
		for range much {
			last = submit(t, e, "log", "0", jobs.SubmitOptions{Client: "a"})
		}
		return last, submit(t, e, "log", "1", jobs.SubmitOptions{Client: "b"})
	}
	e := engine(t, pool, m, riverjobs.WithWorkers(1), riverjobs.WithLease(time.Second))
	busy := submit(t, e, "wait", "1", jobs.SubmitOptions{})
	seen(t, e, busy.ID, func(j jobs.Job) bool { return j.State == jobs.Running })
	last, _ := flood(e)
	if _, err := e.Cancel(t.Context(), busy.ID); err != nil {
		t.Fatal(err)
	}
	final(t, e, last.ID)
	mu.Lock()
	i := slices.Index(order, 1)
	mu.Unlock()
	if i < 0 || i > 16 {
		t.Errorf("the other client's job came after %d", i)
	}

	busy = submit(t, e, "wait", "1", jobs.SubmitOptions{})
	seen(t, e, busy.ID, func(j jobs.Job) bool { return j.State == jobs.Running })
	flood(e)
	if _, err := pool.Exec(t.Context(), "UPDATE river_job SET scheduled_at = now() - interval '1 hour' WHERE state = 'available'"); err != nil {
		t.Fatal(err)
	}
	until(t, "a turn of each goes with the first", func() bool {
		var a, b int
		err := pool.QueryRow(t.Context(), `SELECT count(*) FILTER (WHERE client = 'a'), count(*) FILTER (WHERE client = 'b')
			FROM river_job AS r JOIN spillgate_job AS j ON r.id = river_id WHERE priority = 1 AND state = 'available'`).Scan(&a, &b)
		if a > 16 {
			t.Fatalf("%d of one client go with the first", a)
		}
		return err == nil && a == 16 && b == 1
	})
	if _, err := e.Cancel(t.Context(), busy.ID); err != nil {
		t.Error(err)
	}
}

// A transaction that somebody leaves open holds up what it has locked, and nothing else that time brings about.
func TestSweepPassesLocks(t *testing.T) {
	t.Parallel()
	url := shared.database(t)
	pool := connect(t, url)
	web := engine(t, pool, kinds(), riverjobs.WithRetention(time.Millisecond))
	other := kinds()
	jobs.Register(other, "rare", func(context.Context, int) (int, error) { return 0, nil }) // of which there is no worker
	rare := engine(t, pool, other)
	var ids [4][]string // of what is too late, has expired, waits and is lost
	for range 2 {
		ids[0] = append(ids[0], submit(t, rare, "n", "1", jobs.SubmitOptions{Deadline: time.Now().Add(-time.Hour), NotBefore: time.Now().Add(time.Hour)}).ID)
		ids[1] = append(ids[1], submit(t, web, "n", "1", jobs.SubmitOptions{NotBefore: time.Now().Add(time.Hour)}).ID)
		ids[2] = append(ids[2], submit(t, rare, "rare", "1", jobs.SubmitOptions{}).ID)
		ids[3] = append(ids[3], submit(t, rare, "n", "1", jobs.SubmitOptions{NotBefore: time.Now().Add(time.Hour)}).ID)
	}
	exec := func(sql string, args ...any) {
		t.Helper()
		if _, err := pool.Exec(t.Context(), sql, args...); err != nil {
			t.Fatal(err)
		}
	}
	exec("UPDATE river_job SET state = 'completed', finalized_at = now() WHERE args->>'id' = ANY ($1)", ids[1])
	exec("UPDATE river_job SET scheduled_at = now() - interval '1 hour' WHERE args->>'id' = ANY ($1)", ids[2])
	exec("UPDATE river_job SET state = 'running', attempt = 1, attempted_at = now() - interval '1 hour', attempted_by = '{gone}' WHERE args->>'id' = ANY ($1)", ids[3])
	open, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer open.Rollback(context.Background())
	for _, pair := range ids {
		if _, err := open.Exec(t.Context(), "SELECT FROM river_job WHERE args->>'id' = $1 FOR UPDATE", pair[0]); err != nil {
			t.Fatal(err)
		}
	}
	engine(t, connect(t, url), kinds(), riverjobs.WithWorkers(1), riverjobs.WithLease(time.Second))
	for i, want := range []string{"discarded", "", "available 1", "completed"} {
		until(t, "the other one is "+want, func() bool {
			var is string
			err := pool.QueryRow(t.Context(), "SELECT coalesce(max(CASE state WHEN 'available' THEN 'available ' || priority ELSE state::text END), '') FROM river_job WHERE args->>'id' = $1", ids[i][1]).Scan(&is)
			return err == nil && is == want
		})
	}
}

// A kind that no worker has waits for one that has it.
func TestKindsOfWorkers(t *testing.T) {
	t.Parallel()
	url := shared.database(t)
	other := kinds()
	jobs.Register(other, "new", func(context.Context, int) (int, error) { return 5, nil })
	web := engine(t, connect(t, url), other)
	engine(t, connect(t, url), kinds(), riverjobs.WithWorkers(2))
	j := submit(t, web, "new", "1", jobs.SubmitOptions{})
	final(t, web, submit(t, web, "n", "1", jobs.SubmitOptions{}).ID)
	if j, err := web.Get(t.Context(), j.ID); err != nil || j.State != jobs.Queued || j.Attempt != 0 {
		t.Errorf("%+v, %v", j, err)
	}
	engine(t, connect(t, url), other, riverjobs.WithWorkers(2))
	if end := final(t, web, j.ID); string(end.Result) != "5" {
		t.Errorf("ended as %+v", end)
	}
}

func TestMigrate(t *testing.T) {
	t.Parallel()
	url, err := shared.create("template0")
	if err != nil {
		t.Fatal(err)
	}
	pool := connect(t, url)
	if err := riverjobs.New(pool, kinds()).Start(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "riverjobs: ") || !strings.Contains(err.Error(), "Migrate") {
		t.Errorf("before: %v", err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := riverjobs.Migrate(t.Context(), pool, riverjobs.WithSchema("a_b")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()

	// Who the user is may be known to the pool alone.
	conf, err := pgxpool.ParseConfig(strings.Replace(url, "test@", "someone@", 1))
	if err != nil {
		t.Fatal(err)
	}
	conf.BeforeConnect = func(_ context.Context, c *pgx.ConnConfig) error { c.User = "test"; return nil }
	conf.AfterConnect = func(ctx context.Context, c *pgx.Conn) error { _, err := c.Exec(ctx, "SET ROLE test"); return err }
	its, err := pgxpool.NewWithConfig(t.Context(), conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(its.Close)
	if err := riverjobs.Migrate(t.Context(), its, riverjobs.WithSchema("a_b")); err != nil {
		t.Error(err)
	}

	// As a step of a deployment, while somebody writes: it does not wait for him, nor others for it.
	e := engine(t, pool, kinds(), riverjobs.WithSchema("a_b"))
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if _, _, err := e.SubmitTx(t.Context(), tx, "n", []byte("1"), jobs.SubmitOptions{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := riverjobs.Migrate(ctx, pool, riverjobs.WithSchema("a_b")); err != nil {
		t.Errorf("while a transaction is open: %v", err)
	}
}

// At the same time as others, whatever the default for transactions is: who waited sees what they did.
func TestMigrateSerializable(t *testing.T) {
	t.Parallel()
	url, err := shared.create("template0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		pool := connect(t, url+"&default_transaction_isolation=serializable")
		wg.Go(func() {
			if err := riverjobs.Migrate(t.Context(), pool, riverjobs.WithSchema("jobs")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	web := engine(t, connect(t, url), kinds(), riverjobs.WithSchema("jobs"))
	submit(t, web, "n", "1", jobs.SubmitOptions{})
}

func TestMisusePanics(t *testing.T) {
	pool := connect(t, shared.url("migrated"))
	riverjobs.New(pool, kinds(), riverjobs.WithSchema("_1"+strings.Repeat("S", 44))) // as long as may be
	long := jobs.NewMux()
	jobs.Register(long, strings.Repeat("ä", 50), func(context.Context, int) (int, error) { return 0, nil })
	nul := jobs.NewMux()
	jobs.Register(nul, "a\x00b", func(context.Context, int) (int, error) { return 0, nil })
	for name, f := range map[string]func(){
		"nul in a kind":    func() { riverjobs.New(pool, nul) },
		"no pool":          func() { riverjobs.New(nil, kinds()) },
		"no mux":           func() { riverjobs.New(pool, nil) },
		"nil option":       func() { riverjobs.New(pool, kinds(), nil) },
		"workers":          func() { riverjobs.WithWorkers(0) },
		"share":            func() { riverjobs.WithCapacity(1, 2) },
		"sizes":            func() { riverjobs.WithSizes(10, 10, 9) },
		"result":           func() { riverjobs.WithSizes(10, 17<<20, 10) },
		"retention":        func() { riverjobs.WithRetention(0) },
		"poll":             func() { riverjobs.WithPollInterval(0) },
		"lease":            func() { riverjobs.WithLease(0) },
		"logger":           func() { riverjobs.WithLogger(nil) },
		"queue":            func() { riverjobs.WithQueue("a b") },
		"name of a kind":   func() { riverjobs.New(pool, long, riverjobs.WithWorkers(1)) },
		"long schema":      func() { riverjobs.WithSchema(strings.Repeat("s", 47)) },
		"hyphen in schema": func() { riverjobs.WithSchema("a-b") },
		"quote in schema":  func() { riverjobs.WithSchema("a'b") },
		"digit first":      func() { riverjobs.WithSchema("1a") },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if s, ok := recover().(string); !ok || !strings.HasPrefix(s, "riverjobs: ") {
					t.Errorf("panicked with %v", s)
				}
			}()
			f()
		})
	}
}

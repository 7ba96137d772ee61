//go:build unix

package riverjobs_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/spillgate/spillgate/pool/jobs"
	"github.com/spillgate/spillgate/pool/riverjobs"
)

func TestTooLarge(t *testing.T) {
	t.Parallel()
	m := kinds()
	jobs.Register(m, "big", func(context.Context, int) (string, error) { return strings.Repeat("x", 100), nil }, jobs.WithAttempts(3))
	e := engine(t, connect(t, shared.database(t)), m, riverjobs.WithWorkers(1), riverjobs.WithSizes(10, 50, 20))
	for name, c := range map[string]struct {
		payload string
		o       jobs.SubmitOptions
	}{
		"payload": {"12345678901", jobs.SubmitOptions{}},
		"key":     {"1", jobs.SubmitOptions{Key: strings.Repeat("k", 256)}},
		"client":  {"1", jobs.SubmitOptions{Client: strings.Repeat("c", 256)}},
	} {
		if _, _, err := e.Submit(t.Context(), "n", []byte(c.payload), c.o); !errors.Is(err, jobs.ErrTooLarge) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if end := final(t, e, submit(t, e, "big", "1", jobs.SubmitOptions{}).ID); end.State != jobs.Failed || end.Attempt != 1 || !strings.HasPrefix(end.Err, jobs.ErrTooLarge.Error()) {
		t.Errorf("ended as %+v", end)
	}
}

func TestBounds(t *testing.T) {
	t.Parallel()
	e := engine(t, connect(t, shared.database(t)), kinds(), riverjobs.WithCapacity(6, 2), riverjobs.WithSizes(10, 100, 12))
	try := func(payload string, o jobs.SubmitOptions) (string, error) {
		j, _, err := e.Submit(t.Context(), "n", []byte(payload), o)
		return j.ID, err
	}
	refused := func(what string, err, want error) {
		t.Helper()
		if e, ok := errors.AsType[*jobs.Error](err); !errors.Is(err, want) || !ok || e.RetryAfter <= 0 {
			t.Errorf("%s: %v, want %v and when to come back", what, err, want)
		}
	}
	a := jobs.SubmitOptions{Client: "a"}
	first := submit(t, e, "n", "1234567890", a)
	_, err := try("123", a)
	refused("bytes", err, jobs.ErrShareFull)
	submit(t, e, "n", "12", a)
	_, err = try("1", a)
	refused("places", err, jobs.ErrShareFull)
	soon := time.Now().Add(50 * time.Millisecond)
	for range 4 { // without a client there is no share; with a deadline they are gone by themselves
		submit(t, e, "n", "1", jobs.SubmitOptions{Deadline: soon})
	}
	until(t, "what is late takes no place", func() bool { _, err := try("1", jobs.SubmitOptions{}); return err == nil })
	for range 3 {
		submit(t, e, "n", "1", jobs.SubmitOptions{})
	}
	_, err = try("1", jobs.SubmitOptions{Client: "b"})
	refused("all places", err, jobs.ErrFull)
	if _, err := e.Cancel(t.Context(), first.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := try("1", a); err != nil {
		t.Errorf("after one was cancelled: %v", err)
	}
}

// However many submit at once, on however many machines, a client has its share and no more.
func TestShareUnderConcurrency(t *testing.T) {
	t.Parallel()
	url := shared.database(t)
	var had, full atomic.Int64
	var wg sync.WaitGroup
	for _, o := range []riverjobs.Option{riverjobs.WithPollOnly(), riverjobs.WithSchema("public")} { // which is the one that is found, too
		e := engine(t, connect(t, url), kinds(), riverjobs.WithCapacity(100, 7), o)
		for range 15 {
			wg.Go(func() {
				switch _, _, err := e.Submit(t.Context(), "n", []byte("1"), jobs.SubmitOptions{Client: "a"}); {
				case err == nil:
					had.Add(1)
				case errors.Is(err, jobs.ErrShareFull):
					full.Add(1)
				default:
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	if had.Load() != 7 || full.Load() != 23 {
		t.Errorf("%d accepted and %d refused, want 7 and 23", had.Load(), full.Load())
	}
}

func TestKeyUnderConcurrency(t *testing.T) {
	t.Parallel()
	url := shared.database(t)
	var created, reused atomic.Int64
	var ids sync.Map
	var wg sync.WaitGroup
	for range 2 {
		e := engine(t, connect(t, url), kinds(), riverjobs.WithWorkers(2))
		for i := range 16 {
			wg.Go(func() {
				// The same without a client and with the same one; some with another payload.
				j, fresh, err := e.Submit(t.Context(), "n", fmt.Append(nil, i/14), jobs.SubmitOptions{Key: "k", Client: []string{"", "a"}[i%2]})
				switch {
				case errors.Is(err, jobs.ErrKeyReused):
					reused.Add(1)
				case err != nil:
					t.Error(err)
				default:
					ids.Store(j.ID, true)
				}
				if fresh {
					created.Add(1)
				}
			})
		}
	}
	wg.Wait()
	n := 0
	ids.Range(func(any, any) bool { n++; return true })
	if created.Load() != 2 || n != 2 || reused.Load() == 0 {
		t.Errorf("%d created, %d ids, %d refused; want 2, 2 and some", created.Load(), n, reused.Load())
	}
}

// Times that have no place in JSON or in Postgres.
func TestTimesFarAway(t *testing.T) {
	t.Parallel()
	e := engine(t, connect(t, shared.database(t)), kinds(), riverjobs.WithWorkers(1))
	never := time.Unix(1<<55, 0)
	long := time.Unix(-1<<55, 0)
	if end := final(t, e, submit(t, e, "n", "1", jobs.SubmitOptions{Deadline: never, NotBefore: long}).ID); end.State != jobs.Succeeded {
		t.Errorf("ended as %+v", end)
	}
	if end := final(t, e, submit(t, e, "n", "1", jobs.SubmitOptions{Deadline: long, NotBefore: never}).ID); end.State != jobs.Failed || end.Attempt != 0 {
		t.Errorf("ended as %+v", end)
	}
	if j, err := e.Cancel(t.Context(), submit(t, e, "n", "1", jobs.SubmitOptions{NotBefore: never}).ID); err != nil || j.State != jobs.Cancelled {
		t.Errorf("%+v, %v", j, err)
	}
}

func TestSubmitTx(t *testing.T) {
	t.Parallel()
	url := shared.database(t)
	pool := connect(t, url)
	web := engine(t, pool, kinds(), riverjobs.WithCapacity(3, 2))
	o := jobs.SubmitOptions{Client: "a", Key: "k"}
	var j jobs.Job
	tx := func(commit bool, o jobs.SubmitOptions) {
		t.Helper()
		tx, err := pool.BeginTx(t.Context(), pgx.TxOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(context.Background())
		var created bool
		if j, created, err = web.SubmitTx(t.Context(), tx, "n", []byte("1"), o); err != nil || !created || j.State != jobs.Queued || j.ID == "" {
			t.Fatalf("%+v, %v, %v", j, created, err)
		}
		// A refusal leaves the transaction as it is.
		if _, _, err := web.SubmitTx(t.Context(), tx, "n", []byte("2"), o); o.Key != "" && !errors.Is(err, jobs.ErrKeyReused) {
			t.Errorf("another payload: %v", err)
		}
		if again, created, err := web.SubmitTx(t.Context(), tx, "n", []byte("1"), o); err != nil || created || again.ID != j.ID || again.Version != j.Version {
			t.Errorf("again: %+v, %v, %v", again, created, err)
		}
		if _, err := web.Get(t.Context(), j.ID); !errors.Is(err, jobs.ErrExpired) {
			t.Errorf("seen before the end of the transaction: %v", err)
		}
		if commit {
			err = tx.Commit(t.Context())
		} else {
			err = tx.Rollback(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	tx(false, o)
	if _, err := web.Get(t.Context(), j.ID); !errors.Is(err, jobs.ErrExpired) {
		t.Errorf("after a rollback: %v", err)
	}
	tx(true, o)
	if got, err := web.Get(t.Context(), j.ID); err != nil || got.State != jobs.Queued || got.Version != j.Version {
		t.Errorf("after a commit: %+v, %v", got, err)
	}
	engine(t, connect(t, url), kinds(), riverjobs.WithWorkers(1))
	if end := final(t, web, j.ID); string(end.Result) != "1" {
		t.Errorf("ended as %+v", end)
	}

	// Who submits with the same key waits for the transaction, and gets its job.
	open, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer open.Rollback(context.Background())
	first, _, err := web.SubmitTx(t.Context(), open, "n", []byte("7"), jobs.SubmitOptions{Client: "a", Key: "open"})
	if err != nil {
		t.Fatal(err)
	}
	second := make(chan string, 1)
	go func() {
		j, created, err := web.Submit(t.Context(), "n", []byte("7"), jobs.SubmitOptions{Client: "a", Key: "open"})
		if err != nil || created {
			t.Errorf("%v, %v", created, err)
		}
		second <- j.ID
	}()
	until(t, "somebody waits for the lock", func() bool {
		var n int
		return pool.QueryRow(t.Context(), "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted").Scan(&n) == nil && n > 0
	})
	// For who waits nobody waits.
	bounded, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, _, err := web.Submit(bounded, "n", []byte("7"), jobs.SubmitOptions{Client: "a", Key: "another"}); err != nil {
		t.Errorf("another key of the client: %v", err)
	}
	if err := open.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if id := <-second; id != first.ID {
		t.Errorf("the same key gave %s and %s", first.ID, id)
	}
}

// A transaction that sees less than there is makes no second job.
func TestSubmitTxIsolation(t *testing.T) {
	t.Parallel()
	pool := connect(t, shared.database(t))
	web := engine(t, pool, kinds())
	for _, level := range []pgx.TxIsoLevel{pgx.RepeatableRead, pgx.Serializable} {
		o := jobs.SubmitOptions{Key: string(level)}
		tx, err := pool.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: level})
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(context.Background())
		if _, err := tx.Exec(t.Context(), "SELECT FROM spillgate_job"); err != nil { // from when on it sees nothing new
			t.Fatal(err)
		}
		submit(t, web, "n", "1", o)
		_, _, err = web.SubmitTx(t.Context(), tx, "n", []byte("1"), o)
		if pg, ok := errors.AsType[*pgconn.PgError](err); !ok || pg.Code != "23505" {
			t.Errorf("%s: %v", level, err)
		}
	}
}

// A submission with a key looks at no job but the one with the key, however many have expired since the database last counted them.
func TestKeyAmongExpired(t *testing.T) {
	t.Parallel()
	url := shared.database(t)
	pool := connect(t, url)
	exec := func(sql string) {
		t.Helper()
		if _, err := pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	exec(`WITH r AS (INSERT INTO river_job (args, finalized_at, kind, max_attempts, state) SELECT '{}', now(), 'spillgate:n', 1, 'completed' FROM generate_series(1, 3000) RETURNING id)
		INSERT INTO spillgate_job (id, river_id, kind, client, key, size, retain, open, expires)
		SELECT id, id, 'n', 'a', convert_to('k' || id, 'UTF8'), 1, '1 hour', false, now() + interval '1 hour' FROM r`)
	exec("ANALYZE spillgate_job")
	exec("UPDATE spillgate_job SET expires = now() - interval '1 hour'")
	read := func() (n int) {
		t.Helper()
		until(t, "the sessions before have ended, and with them what they have counted is known", func() bool {
			return pool.QueryRow(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()").Scan(&n) == nil && n == 0
		})
		if err := pool.QueryRow(t.Context(), "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE schemaname = 'public' AND indexrelname = 'spillgate_job_expires'").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := read()
	webPool := connect(t, url)
	web := engine(t, webPool, kinds())
	submit(t, web, "n", "1", jobs.SubmitOptions{Client: "a", Key: "another"})
	submit(t, web, "n", "1", jobs.SubmitOptions{Client: "a", Key: "k7"}) // which has expired, and so is free
	webPool.Close()
	if n := read() - before; n > 10 {
		t.Errorf("two submissions have read %d entries of the index of what has expired", n)
	}
}

// The user of an engine needs no more than what the documentation says.
func TestRights(t *testing.T) {
	t.Parallel()
	url := shared.database(t)
	admin := connect(t, url)
	var role string // those of a server are for all of its databases
	if err := admin.QueryRow(t.Context(), "SELECT 'least_' || current_database()").Scan(&role); err != nil {
		t.Fatal(err)
	}
	for _, sql := range []string{
		"CREATE ROLE %s LOGIN",
		`GRANT USAGE ON SCHEMA "Jobs" TO %s`,
		`GRANT USAGE ON ALL SEQUENCES IN SCHEMA "Jobs" TO %s`,
		`GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "Jobs" TO %s`,
	} {
		if _, err := admin.Exec(t.Context(), fmt.Sprintf(sql, role)); err != nil {
			t.Fatal(err)
		}
	}
	pool := connect(t, strings.Replace(url, "test@", role+"@", 1))
	e := engine(t, pool, kinds(), riverjobs.WithSchema(otherSchema), riverjobs.WithWorkers(2))
	if end := final(t, e, submit(t, e, "n", "7", jobs.SubmitOptions{Client: "a", Key: "k"}).ID); end.State != jobs.Succeeded {
		t.Errorf("ended as %+v", end)
	}
}

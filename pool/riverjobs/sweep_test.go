//go:build unix

package riverjobs_test

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/spillgate/spillgate/pool/jobs"
	"github.com/spillgate/spillgate/pool/riverjobs"
)

// Who takes others for lost has been heard for more than a lease without a gap, by the clock of the database.
func TestSight(t *testing.T) {
	t.Parallel()
	const lease = 4 * time.Second // a tick is a second
	base := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	// heard has one heartbeat at each of these seconds, each after the one before.
	heard := func(at ...float64) (all []riverjobs.Beat) {
		var before time.Time
		for _, s := range at {
			now := base.Add(time.Duration(s * float64(time.Second)))
			all = append(all, riverjobs.Beat{Now: now, Before: before})
			before = now
		}
		return all
	}
	failed := []riverjobs.Beat{{Failed: true}}
	// after changes what the first heartbeat of all finds.
	after := func(before time.Time, all []riverjobs.Beat) []riverjobs.Beat {
		all[0].Before = before
		return all
	}
	second := func(s int) time.Time { return base.Add(time.Duration(s) * time.Second) }
	for name, c := range map[string]struct {
		beats []riverjobs.Beat
		want  bool
	}{
		"never":                                   {nil, false},
		"once":                                    {heard(100), false},
		"for less than a lease":                   {heard(0, 1, 2, 3, 3.9), false},
		"for a lease":                             {heard(0, 1, 2, 3, 4), false},
		"for more than a lease":                   {heard(0, 1, 2, 3, 4.1), true},
		"every half of a lease":                   {heard(0, 2, 4, 6), true},
		"with a gap of more":                      {heard(0, 1, 2, 3, 4, 5, 7.1), false},
		"less than a lease after a gap":           {heard(0, 1, 2, 3, 4, 5, 9, 10, 11, 12, 13), false},
		"more than a lease after a gap":           {heard(0, 1, 2, 3, 4, 5, 9, 10, 11, 12, 13, 14), true},
		"the clock was set ahead":                 {heard(0, 1, 2, 3, 4, 5, 3600, 3601), false},
		"the clock was set back":                  {heard(0, 1, 2, 3, 4, 5, -3600, -3599), false},
		"a lease after it was set back":           {heard(0, 1, 2, 3, 4, 5, -3600, -3599, -3598, -3597, -3596, -3595), true},
		"an outage":                               {slices.Concat(heard(0, 1, 2, 3, 4, 5), failed), false},
		"after an outage":                         {slices.Concat(heard(0, 1, 2, 3, 4, 5), failed, after(second(5), heard(6))), false},
		"a lease after an outage":                 {slices.Concat(heard(0, 1, 2, 3, 4, 5), failed, after(second(5), heard(6, 7, 8, 9, 10, 11))), true},
		"forgotten by the database":               {slices.Concat(heard(0, 1, 2, 3, 4, 5), heard(6, 7)), false},
		"another server, which lacks a heartbeat": {slices.Concat(heard(0, 1, 2, 3, 4, 5), after(second(4), heard(6, 7))), false},
		"said twice, since an answer was lost":    {slices.Concat(heard(0, 1, 2, 3, 4, 5), after(second(6), heard(6.1, 7))), false},
		"a lease after that":                      {slices.Concat(heard(0, 1, 2, 3, 4, 5), after(second(6), heard(6.1, 7, 8, 9, 10, 11))), true},
	} {
		if got := riverjobs.Enough(lease, c.beats...); got != c.want {
			t.Errorf("%s: enough is %v", name, got)
		}
	}
}

// held is a statement of a worker's that is on its way, until it is let go.
type held struct {
	what  string
	letGo chan struct{}
}

// holder has the statements of a worker that tell it and others who is alive wait until the test lets them go.
type holder struct {
	came chan held
	open chan struct{} // closed when none waits any more
}

const (
	theBeat     = "the heartbeat"
	theQuestion = "who is lost"
	theEnd      = "the last of the sweep"
)

func (h *holder) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	var what string
	switch {
	case strings.HasPrefix(data.SQL, "INSERT INTO spillgate_worker"):
		what = theBeat
	case strings.Contains(data.SQL, "the worker that ran the job was lost"):
		what = theQuestion
	case strings.HasPrefix(data.SQL, "DELETE FROM spillgate_worker WHERE seen"):
		what = theEnd
	default:
		return ctx
	}
	s := held{what, make(chan struct{})}
	select {
	case h.came <- s:
		select {
		case <-s.letGo:
		case <-h.open:
		}
	case <-h.open:
	}
	return ctx
}

func (h *holder) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// next waits for a statement, which is held then, and lets those of the others go that are said.
func (h *holder) next(t *testing.T, want string, others ...string) held {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		select {
		case s := <-h.came:
			if s.what == want {
				return s
			}
			if slices.Contains(others, s.what) {
				close(s.letGo)
			}
		case <-deadline:
			t.Fatalf("not within a minute: %s", want)
		}
	}
}

// Who was not heard while the database stood still or could not be reached, or since its clock was set, is alive, also where nobody has had an error of it: the question after
// who is lost, or the heartbeat before it, was only late.
func TestNobodyIsLostAfterAPause(t *testing.T) {
	t.Parallel()
	const lease = shortLease
	// pause has nothing of the others' get to the database for a lease; set has its clock be set ahead, which is the same as what stands there to be older. It is also
	// what is seen where a replica takes over that lacks what was written last.
	type events struct{ pause, set func() }
	// Each returns when the sweep is over that would have taken a job.
	for name, do := range map[string]func(t *testing.T, h *holder, is events){
		"the question is late": func(t *testing.T, h *holder, is events) {
			question := h.next(t, theQuestion, theBeat, theEnd)
			is.pause()
			close(question.letGo)
			h.next(t, theEnd)
		},
		"the question is late, and comes after the heartbeat": func(t *testing.T, h *holder, is events) {
			question := h.next(t, theQuestion, theBeat, theEnd)
			beat := h.next(t, theBeat)
			is.pause()
			close(beat.letGo)
			h.next(t, theBeat) // so that one is over
			close(question.letGo)
			h.next(t, theEnd)
		},
		"the heartbeat is late": func(t *testing.T, h *holder, is events) {
			close(h.next(t, theQuestion, theBeat, theEnd).letGo)
			close(h.next(t, theEnd, theBeat).letGo)
			beat := h.next(t, theBeat)
			is.pause()
			close(beat.letGo)
			h.next(t, theEnd, theQuestion, theBeat)
		},
		"the clock is set before the question": func(t *testing.T, h *holder, is events) {
			question := h.next(t, theQuestion, theBeat, theEnd)
			is.set()
			close(question.letGo)
			h.next(t, theEnd)
		},
		"the clock is set before the heartbeat": func(t *testing.T, h *holder, is events) {
			close(h.next(t, theQuestion, theBeat, theEnd).letGo)
			close(h.next(t, theEnd, theBeat).letGo)
			beat := h.next(t, theBeat)
			is.set()
			close(beat.letGo)
			h.next(t, theEnd, theQuestion, theBeat)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := shared.database(t)
			pool := connect(t, url)
			exec := func(sql string, args ...any) {
				t.Helper()
				if _, err := pool.Exec(t.Context(), sql, args...); err != nil {
					t.Fatal(err)
				}
			}
			web := engine(t, pool, kinds())
			j := submit(t, web, "n", "3", jobs.SubmitOptions{NotBefore: time.Now().Add(time.Hour)})
			exec("UPDATE river_job SET state = 'running', attempt = 1, attempted_at = now() - interval '1 hour', attempted_by = '{other}'")
			exec("INSERT INTO spillgate_worker (name, seen, running) SELECT 'other', now(), array_agg(id) FROM river_job")
			// It says so until it is silenced.
			alive, silence := context.WithCancel(t.Context())
			var speaks sync.WaitGroup
			t.Cleanup(speaks.Wait)
			t.Cleanup(silence)
			speaks.Go(func() {
				tick := time.NewTicker(lease / 20)
				defer tick.Stop()
				for alive.Err() == nil {
					_, _ = pool.Exec(alive, "UPDATE spillgate_worker SET seen = now() WHERE name = 'other'")
					select {
					case <-tick.C:
					case <-alive.Done():
					}
				}
			})

			conf, err := pgxpool.ParseConfig(url)
			if err != nil {
				t.Fatal(err)
			}
			h := &holder{came: make(chan held), open: make(chan struct{})}
			conf.ConnConfig.Tracer = h
			slow, err := pgxpool.NewWithConfig(t.Context(), conf)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(slow.Close)
			go func() { close((<-h.came).letGo) }() // the heartbeat with which it starts
			engine(t, slow, kinds(), riverjobs.WithWorkers(1), riverjobs.WithLease(lease))
			letAll := sync.OnceFunc(func() { close(h.open) })
			t.Cleanup(letAll) // before it is closed
			do(t, h, events{
				pause: func() {
					silence()
					speaks.Wait()
					exec("UPDATE spillgate_worker SET seen = now() WHERE name = 'other'")
					until(t, "a lease has gone by", func() bool {
						var silent bool
						return pool.QueryRow(t.Context(), "SELECT seen < now() - $1::interval FROM spillgate_worker WHERE name = 'other'", lease).Scan(&silent) == nil && silent
					})
				},
				set: func() {
					silence()
					speaks.Wait()
					exec("UPDATE spillgate_worker SET seen = seen - 2 * $1::interval", lease)
				},
			})
			if j, err := web.Get(t.Context(), j.ID); err != nil || j.State != jobs.Running || j.Attempt != 1 {
				t.Errorf("after it: %+v, %v", j, err)
			}
			letAll()
			if end := final(t, web, j.ID); end.State != jobs.Succeeded || end.Attempt != 2 {
				t.Errorf("that of a worker that is not heard of for a lease after that ended as %+v", end)
			}
		})
	}
}

// Where the clock of the database is set back nothing waits until it is as late once more: neither what waited for its turn, nor what a worker had that was lost meanwhile.
// What was to begin at a time does then. To set the clock back is the same as to have what stands there be later.
func TestClockSetBack(t *testing.T) {
	t.Parallel()
	pool := connect(t, shared.database(t))
	web := engine(t, pool, kinds())
	waits, lost := submit(t, web, "n", "1", jobs.SubmitOptions{}), submit(t, web, "n", "2", jobs.SubmitOptions{})
	back := submit(t, web, "n", "3", jobs.SubmitOptions{}) // was put back by its worker
	timed := submit(t, web, "n", "4", jobs.SubmitOptions{NotBefore: time.Now().Add(10 * time.Minute)})
	exec := func(sql string, args ...any) {
		t.Helper()
		if _, err := pool.Exec(t.Context(), sql, args...); err != nil {
			t.Fatal(err)
		}
	}
	of := " WHERE id = (SELECT river_id FROM spillgate_job WHERE id = $1)"
	exec("UPDATE river_job SET state = 'running', attempt = 1, attempted_at = now(), attempted_by = '{other}'"+of, lost.ID)
	exec("UPDATE river_job SET attempted_at = now()"+of, back.ID)
	exec("INSERT INTO spillgate_worker (name, seen, running) SELECT 'other', now(), array_agg(id) FROM river_job")
	exec("UPDATE river_job SET created_at = created_at + interval '1 hour', attempted_at = attempted_at + interval '1 hour', scheduled_at = scheduled_at + interval '1 hour'")
	exec("UPDATE river_job SET created_at = now() - interval '1 hour'"+of, back.ID)
	exec("UPDATE spillgate_worker SET seen = seen + interval '1 hour'")

	engine(t, pool, kinds(), riverjobs.WithWorkers(2), riverjobs.WithLease(shortLease))
	for _, j := range []jobs.Job{waits, lost, back} {
		if end := final(t, web, j.ID); end.State != jobs.Succeeded {
			t.Errorf("ended as %+v", end)
		}
	}
	if j, err := web.Get(t.Context(), timed.ID); err != nil || j.State != jobs.Queued {
		t.Errorf("not to begin yet: %+v, %v", j, err)
	}
}

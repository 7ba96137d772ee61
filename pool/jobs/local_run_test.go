package jobs_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/pool"
	"github.com/spillgate/spillgate/pool/jobs"
)

// errorFunc is an error whose text is made when it is asked for.
type errorFunc func() string

func (f errorFunc) Error() string { return f() }

// noDisk is an error that cannot be used while it is nil, and yet is no nil error.
type noDisk struct{ path string }

func (e *noDisk) Error() string { return "no disk at " + e.path }

func TestErrorOfHandler(t *testing.T) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second) // a lock that is held for ever shows in no bubble
	defer cancel()
	var l *jobs.Local
	m := jobs.NewMux()
	jobs.Register(m, "panics", func(context.Context, args) (int, error) { return 0, (*noDisk)(nil) })
	jobs.Register(m, "calls", func(context.Context, args) (int, error) {
		return 0, errorFunc(func() string { return fmt.Sprintf("%d run", l.Stats().Running) })
	})
	l = jobs.NewLocal(m, pool.New(pool.WithSlots(1)))
	for kind, want := range map[string]string{
		"panics": (&jobs.PanicError{}).Error(),
		"calls":  "1 run",
	} {
		t.Run(kind, func(t *testing.T) {
			ended := make(chan jobs.Job, 1)
			go func() {
				j, _, _ := l.Submit(ctx, kind, []byte(`{}`), jobs.SubmitOptions{})
				for j = range l.Watch(ctx, j.ID) {
				}
				ended <- j
			}()
			select {
			case j := <-ended:
				if j.State != jobs.Failed || j.Err != want {
					t.Errorf("%+v", j)
				}
			case <-ctx.Done():
				t.Fatal("the engine does not answer any more")
			}
		})
	}
}

func TestFarFuture(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := jobs.NewMux()
		jobs.Register(m, "k", func(context.Context, args) (int, error) { return 1, nil }, jobs.WithRetain(math.MaxInt64))
		jobs.Register(m, "fails", func(context.Context, args) (int, error) { return 1, errors.New("broken") },
			jobs.WithAttempts(2), jobs.WithBackoff(math.MaxInt64, math.MaxInt64))
		l := jobs.NewLocal(m, pool.New(pool.WithSlots(1)))
		defer l.Close()
		time.Sleep(time.Second) // in a synctest bubble
		later := submit(t, l, `{}`, jobs.SubmitOptions{NotBefore: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)})
		kept := submit(t, l, `{}`, jobs.SubmitOptions{})
		again, _, _ := l.Submit(ctx, "fails", []byte(`{}`), jobs.SubmitOptions{})
		time.Sleep(time.Hour) // in a synctest bubble
		for id, want := range map[string]jobs.State{later.ID: jobs.Queued, kept.ID: jobs.Succeeded, again.ID: jobs.Retrying} {
			if j, err := l.Get(ctx, id); err != nil || j.State != want {
				t.Errorf("want %s, got %+v, %v", want, j, err)
			}
		}
	})
}

// A time without a monotonic reading, as one has that a client sent, counts by what the wall clock shows now, whatever that
// showed when the engine was made: a machine may begin with a clock that is hours off.
func TestWallClockWasSet(t *testing.T) {
	const hour = 60 * 60
	for _, more := range []int64{-hour, 0, hour} { // that the wall clock showed then
		m := jobs.NewMux()
		jobs.Register(m, "k", func(ctx context.Context, _ args) (int, error) {
			if a, _ := jobs.Current(ctx); a.Number < 3 {
				return 0, errors.New("not yet")
			}
			return 1, nil
		}, jobs.WithAttempts(3), jobs.WithBackoff(time.Millisecond, time.Millisecond))
		l := jobs.NewLocal(m, pool.New(pool.WithSlots(1)))
		if !l.MadeWhenTheWallShowed(more) {
			t.Fatal("time.Time is laid out otherwise: this says nothing")
		}

		in := func(d time.Duration) time.Time { return time.Now().Round(0).Add(d) }
		j := final(t, l, submit(t, l, `{}`, jobs.SubmitOptions{Deadline: in(10 * time.Minute)}).ID)
		if j.State != jobs.Succeeded || j.Attempt != 3 {
			t.Errorf("the clock showed %ds more: with 10 minutes left for another attempt it is %s after %d", more, j.State, j.Attempt)
		}

		soon := submit(t, l, `{}`, jobs.SubmitOptions{NotBefore: in(100 * time.Millisecond)})
		late := submit(t, l, `{}`, jobs.SubmitOptions{NotBefore: in(30 * time.Minute)})
		if left := time.Until(late.Next); (left - 30*time.Minute).Abs() > time.Minute {
			t.Errorf("the clock showed %ds more: a job that may begin in 30 minutes is said to do so in %v", more, left)
		}
		ctx, cancel := context.WithDeadline(ctx, in(10*time.Minute))
		down := make(chan error, 1)
		go func() { down <- l.Shutdown(ctx) }()
		if j := final(t, l, soon.ID); j.State != jobs.Succeeded {
			t.Errorf("the clock showed %ds more: a job that may begin at once is %s after a shutdown within 10 minutes", more, j.State)
		}
		for began := time.Now(); len(down) == 0; runtime.Gosched() {
			if time.Since(began) > 5*time.Second {
				t.Errorf("the clock showed %ds more: a shutdown within 10 minutes waits for a job that may begin in 30", more)
				break
			}
		}
		cancel()
		if err := <-down; !errors.Is(err, jobs.ErrShutdown) {
			t.Error(err)
		}
		l.Close()
	}
}

func TestTextsPinNoMemory(t *testing.T) {
	const n, each = 50, 1 << 20
	m := jobs.NewMux()
	large := func() string { return strings.Repeat("x", each) }
	jobs.Register(m, "error", func(context.Context, args) (int, error) { return 0, errors.New(large()) })
	jobs.Register(m, "panic", func(context.Context, args) (int, error) { panic(large()) })
	jobs.Register(m, "note", func(ctx context.Context, _ args) (int, error) {
		jobs.Report(ctx, jobs.Progress{Note: large()})
		return 0, errors.New("broken")
	})
	jobs.Register(m, "part of a note", func(ctx context.Context, _ args) (int, error) {
		jobs.Report(ctx, jobs.Progress{Note: large()[:20]})
		return 0, errors.New("broken")
	})
	jobs.Register(m, "part of an error", func(context.Context, args) (int, error) { return 0, errors.New(large()[:20]) })
	jobs.Register(m, "none", func(context.Context, args) (int, error) { return 1, nil })
	l := jobs.NewLocal(m, pool.New(pool.WithSlots(1)))
	defer l.Close()
	for _, c := range []struct {
		name, kind string
		long       bool // kind is part of a longer string
		options    func(i int) jobs.SubmitOptions
	}{
		{name: "an error", kind: "error"},
		{name: "a panic", kind: "panic"},
		{name: "a note", kind: "note"},
		{name: "part of an error", kind: "part of an error"},
		{name: "part of a note", kind: "part of a note"},
		{name: "a kind that is part of a URL", kind: "none", long: true},
		{name: "a key that is part of a header", kind: "none", options: func(i int) jobs.SubmitOptions {
			return jobs.SubmitOptions{Key: strings.TrimSpace(fmt.Sprint(i, strings.Repeat(" ", each)))}
		}},
		{name: "a client that is part of a header", kind: "none", options: func(i int) jobs.SubmitOptions {
			return jobs.SubmitOptions{Client: strings.TrimSpace(fmt.Sprint(i, strings.Repeat(" ", each)))}
		}},
	} {
		heap := func() int64 {
			runtime.GC()
			runtime.GC()
			var s runtime.MemStats
			runtime.ReadMemStats(&s)
			return int64(s.HeapAlloc)
		}
		before := heap()
		for i := range n {
			var o jobs.SubmitOptions
			if c.options != nil {
				o = c.options(i)
			}
			kind := c.kind
			if c.long {
				kind = (kind + large())[:len(kind)]
			}
			j, _, err := l.Submit(ctx, kind, []byte(`{}`), o)
			if err != nil {
				t.Fatal(err)
			}
			final(t, l, j.ID)
		}
		if more := (heap() - before) / n; more > each/8 {
			t.Errorf("%s: a job that has ended keeps %d bytes", c.name, more)
		}
	}
}

func TestTextsAreCutBetweenCharacters(t *testing.T) {
	m := jobs.NewMux()
	var text string
	jobs.Register(m, "k", func(ctx context.Context, _ args) (int, error) {
		jobs.Report(ctx, jobs.Progress{Note: text})
		return 0, errors.New(text)
	})
	l := jobs.NewLocal(m, pool.New(pool.WithSlots(1)))
	defer l.Close()
	for _, c := range []struct {
		text      string
		note, err int // bytes that are left
	}{
		{strings.Repeat("x", 2000), 256, 1024},
		{strings.Repeat("ä", 1000), 256, 1024},
		{"x" + strings.Repeat("ä", 1000), 255, 1023},
		{"xxx" + strings.Repeat("\U0001F600", 1000), 255, 1023},
		{strings.Repeat("\x80", 2000), 253, 1021}, // no UTF-8
	} {
		text = c.text
		j := final(t, l, submit(t, l, `{}`, jobs.SubmitOptions{}).ID)
		if len(j.Progress.Note) != c.note || len(j.Err) != c.err || !strings.HasPrefix(text, j.Err) || !strings.HasPrefix(text, j.Progress.Note) {
			t.Errorf("%.8q…: %d and %d bytes are left, want %d and %d", text, len(j.Progress.Note), len(j.Err), c.note, c.err)
		}
	}
}

func TestDeadlineWhileNoSlotIsFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := engine(jobs.WithCapacity(4, 1, 10))
		submit(t, l, `{"n":3600000}`, jobs.SubmitOptions{})
		synctest.Wait()
		began := time.Now()
		soon := began.Add(time.Minute)
		for _, o := range []jobs.SubmitOptions{
			{Client: "a", Deadline: soon},
			{Client: "b", Deadline: soon, NotBefore: soon.Add(time.Hour)},
			{Client: "c", Deadline: soon.Add(time.Second)},
		} {
			j := final(t, l, submit(t, l, `{"n":1}`, o).ID)
			if j.State != jobs.Failed || j.Err != jobs.ErrDeadline.Error() || !j.Finished.Equal(o.Deadline) {
				t.Errorf("after %v: %+v", time.Since(began), j)
			}
			submit(t, l, `{"n":1}`, jobs.SubmitOptions{Client: o.Client}) // its place is free again
		}
		l.Close()
	})
}

func TestMoreSlotsAreUsedSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := jobs.NewMux()
		jobs.Register(m, "k", func(context.Context, args) (int, error) { time.Sleep(time.Hour); return 0, nil }) // in a synctest bubble
		p := pool.New(pool.WithSlots(1))
		l := jobs.NewLocal(m, p)
		for range 5 {
			submit(t, l, `{}`, jobs.SubmitOptions{})
		}
		time.Sleep(10 * time.Minute) // in a synctest bubble
		if err := p.Resize(4); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second) // in a synctest bubble
		synctest.Wait()
		if s := l.Stats(); s.Running != 4 || s.Queued != 1 {
			t.Errorf("%+v", s)
		}
		l.Close()
	})
}

func TestNotStarvedByAFullLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := jobs.NewMux()
		jobs.Register(m, "k", func(context.Context, args) (int, error) { time.Sleep(20 * time.Millisecond); return 0, nil }) // in a synctest bubble
		p := pool.New(pool.WithSlots(1), pool.WithQueue(64, 30*time.Second))
		l := jobs.NewLocal(m, p)
		began := time.Now()
		var requests sync.WaitGroup
		requests.Go(func() {
			for time.Since(began) < time.Minute { // twice what there is a slot for
				requests.Go(func() {
					p.Do(ctx, func(context.Context) error { time.Sleep(20 * time.Millisecond); return nil }) // in a synctest bubble
				})
				time.Sleep(10*time.Millisecond + time.Microsecond) // in a synctest bubble
			}
		})
		time.Sleep(10 * time.Second) // in a synctest bubble
		for range 5 {
			j := final(t, l, submit(t, l, `{}`, jobs.SubmitOptions{}).ID)
			if waited := j.Started.Sub(j.Created); waited > 5*time.Second {
				t.Errorf("waited %v", waited)
			}
		}
		requests.Wait()
		l.Close()
	})
}

// A job that gives its slot to requests does not pay for the time in which these had it.
func TestStandingBackIsNotCharged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pool.New(pool.WithSlots(1))
		m := jobs.NewMux()
		var mu sync.Mutex
		ended := make(map[string]int)
		for _, kind := range []string{"stands back", "does not"} {
			jobs.Register(m, kind, func(ctx context.Context, _ args) (int, error) {
				for range 100 {
					time.Sleep(time.Millisecond) // in a synctest bubble
					if kind != "stands back" {
						continue
					}
					if err := pool.Checkpoint(ctx); err != nil {
						return 0, err
					}
				}
				mu.Lock()
				defer mu.Unlock()
				ended[kind]++
				return 0, nil
			})
		}
		l := jobs.NewLocal(m, p)
		defer l.Close()
		for range 300 {
			for _, kind := range []string{"stands back", "does not"} {
				if _, _, err := l.Submit(ctx, kind, []byte(`{}`), jobs.SubmitOptions{Client: kind}); err != nil {
					t.Fatal(err)
				}
			}
		}
		requests, stop := context.WithCancel(ctx)
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				for requests.Err() == nil {
					p.Do(requests, func(context.Context) error { time.Sleep(30 * time.Millisecond); return nil }) // in a synctest bubble
					time.Sleep(30 * time.Millisecond)                                                             // in a synctest bubble
				}
			})
		}
		time.Sleep(time.Minute) // in a synctest bubble
		stop()
		wg.Wait()
		mu.Lock()
		defer mu.Unlock()
		if a, b := ended["stands back"], ended["does not"]; a < 30 || max(a, b)-min(a, b) > 2 {
			t.Errorf("one client's jobs, which stand back, ended %d times, the other's %d times", a, b)
		}
	})
}

func TestLateReportOfAnEarlierAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := jobs.NewMux()
		jobs.Register(m, "k", func(ctx context.Context, _ args) (int, error) {
			if at, _ := jobs.Current(ctx); at.Number == 1 {
				go func() {
					time.Sleep(time.Minute) // in a synctest bubble
					jobs.Report(ctx, jobs.Progress{Done: 99, Total: 100})
				}()
				return 0, errors.New("broken")
			}
			jobs.Report(ctx, jobs.Progress{Done: 1, Total: 100})
			time.Sleep(time.Hour) // in a synctest bubble
			return 1, nil
		}, jobs.WithAttempts(2), jobs.WithBackoff(time.Second, time.Second))
		l := jobs.NewLocal(m, pool.New(pool.WithSlots(1)))
		defer l.Close()
		j := submit(t, l, `{}`, jobs.SubmitOptions{})
		time.Sleep(2 * time.Minute) // in a synctest bubble
		if j, err := l.Get(ctx, j.ID); err != nil || j.State != jobs.Running || j.Attempt != 2 || j.Progress.Done != 1 {
			t.Errorf("%+v, %v", j, err)
		}
		final(t, l, j.ID)
	})
}

// A handler reports each of very many rows: those who watch are told a few times a second, of the latest soon, and of all else at once.
func TestReportOfEachRow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := jobs.NewMux()
		jobs.Register(m, "k", func(ctx context.Context, _ args) (int, error) {
			for i := range int64(1000) {
				time.Sleep(time.Millisecond) // in a synctest bubble
				jobs.Report(ctx, jobs.Progress{Done: i + 1, Total: 1000})
			}
			time.Sleep(10 * time.Second) // in a synctest bubble
			jobs.Report(ctx, jobs.Progress{Done: 1001, Total: 1000})
			jobs.Report(ctx, jobs.Progress{Done: 1002, Total: 1000})
			time.Sleep(time.Millisecond) // in a synctest bubble
			return 0, errors.New("broken")
		})
		l := jobs.NewLocal(m, pool.New(pool.WithSlots(1)))
		defer l.Close()
		begun := time.Now()
		j := submit(t, l, `{}`, jobs.SubmitOptions{})
		synctest.Wait()
		told, latest := 0, time.Duration(0)
		for now, err := range l.Watch(ctx, j.ID) {
			if err != nil {
				t.Fatal(err)
			}
			at := time.Since(begun)
			switch done := now.Progress.Done; {
			case told == 1 && (done != 1 || at != time.Millisecond):
				t.Errorf("the first report is told after %v, as %+v", at, now.Progress)
			case done == 1000:
				latest = at
			case done == 1001 && at != 11*time.Second:
				t.Errorf("a report after ten seconds is told after %v", at)
			case now.State.Final() && (at != 11*time.Second+time.Millisecond || done != 1002):
				t.Errorf("the end is told after %v, with progress %+v", at, now.Progress)
			}
			told++
		}
		if told > 10 || latest == 0 || latest > 1201*time.Millisecond {
			t.Errorf("told %d times of a thousand reports in a second, and of the last after %v", told, latest)
		}
		if now, err := l.Get(ctx, j.ID); err != nil || now.Version < 1003 {
			t.Errorf("%+v, %v; each report is a version", now, err)
		}
	})
}

// Jobs stand behind the tasks of requests, unless they are told to stand elsewhere.
func TestPoolPriority(t *testing.T) {
	for name, c := range map[string]struct {
		opts []jobs.LocalOption
		want string
	}{
		"by default":   {nil, "task, job"},
		"above":        {[]jobs.LocalOption{jobs.WithPoolPriority(1)}, "job, task"},
		"beyond range": {[]jobs.LocalOption{jobs.WithPoolPriority(1000)}, "job, task"},
		"below":        {[]jobs.LocalOption{jobs.WithPoolPriority(-1000)}, "task, job"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var order []string
				m := jobs.NewMux()
				jobs.Register(m, "k", func(context.Context, args) (int, error) {
					order = append(order, "job")
					return 0, nil
				})
				p := pool.New(pool.WithSlots(1), pool.WithPriorityStep(time.Hour))
				l := jobs.NewLocal(m, p, c.opts...)
				p.Do(ctx, func(context.Context) error {
					submit(t, l, `{}`, jobs.SubmitOptions{})
					synctest.Wait()
					time.Sleep(time.Second) // in a synctest bubble
					go p.Do(ctx, func(context.Context) error {
						order = append(order, "task")
						return nil
					})
					synctest.Wait()
					return nil
				})
				synctest.Wait()
				if got := strings.Join(order, ", "); got != c.want {
					t.Errorf("%s, want %s", got, c.want)
				}
				l.Close()
			})
		})
	}
}

// A pool without a line that is full at each whole second has a slot at other times, and jobs that wait for one find it.
func TestJobsInAPoolWithoutALine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pool.New(pool.WithSlots(2), pool.WithQueue(0, 0))
		m := jobs.NewMux()
		jobs.Register(m, "k", func(context.Context, args) (int, error) { return 0, nil })
		l := jobs.NewLocal(m, p)
		defer l.Close()
		var others sync.WaitGroup
		defer others.Wait()
		for range 2 {
			others.Go(func() {
				for range 3 {
					_ = p.Do(context.Background(), func(context.Context) error {
						time.Sleep(900 * time.Millisecond) // in a synctest bubble
						return nil
					})
					time.Sleep(100 * time.Millisecond) // in a synctest bubble
				}
			})
		}
		time.Sleep(500 * time.Millisecond) // in a synctest bubble
		var all []string
		for range 3 {
			all = append(all, submit(t, l, `{}`, jobs.SubmitOptions{}).ID)
		}
		time.Sleep(time.Second) // in a synctest bubble
		for _, id := range all {
			if j, _ := l.Get(t.Context(), id); j.State != jobs.Succeeded {
				t.Errorf("a second later the job is %v", j.State)
			}
		}
		if got := p.Stats().Refused; got > 2 {
			t.Errorf("%d refusals were counted, want at most one for each slot", got)
		}
	})
}

// When to ask again is not sooner the more jobs wait before, however many these are and however long they take.
func TestRetryAfterOfVeryMuchWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := jobs.NewMux()
		jobs.Register(m, "k", func(context.Context, args) (int, error) {
			time.Sleep(1000 * 24 * time.Hour) // in a synctest bubble
			return 0, nil
		})
		l := jobs.NewLocal(m, pool.New(pool.WithSlots(1)))
		defer l.Close()
		final(t, l, submit(t, l, `{}`, jobs.SubmitOptions{}).ID)
		for range 200 {
			if j := submit(t, l, `{}`, jobs.SubmitOptions{}); j.RetryAfter != time.Minute {
				t.Fatalf("ask again after %v, want 1m", j.RetryAfter)
			}
		}
	})
}

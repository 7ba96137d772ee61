package jobs_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/pool"
	"github.com/spillgate/spillgate/pool/jobs"
)

// Nobody is there to be told of the job.
func TestSubmitOfAContextThatHasEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := engine()
		defer l.Close()
		gone := errors.New("gone")
		ended, end := context.WithCancelCause(ctx)
		end(gone)
		if j, created, err := l.Submit(ended, "k", []byte(`{}`), jobs.SubmitOptions{}); !errors.Is(err, gone) || created || j.ID != "" {
			t.Errorf("%+v, %v, %v; want the cause of the context", j, created, err)
		}
		if n := l.Stats().Submitted; n != 0 {
			t.Errorf("%d submitted", n)
		}
	})
}

func TestRefusalForgetsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := engine(jobs.WithSizes(100, 100, 250))
		defer l.Close()
		done := final(t, l, submit(t, l, `{"n":1}`, jobs.SubmitOptions{}).ID)
		big := `{"x":"` + strings.Repeat("x", 90) + `"}`
		later := jobs.SubmitOptions{NotBefore: time.Now().Add(time.Minute)}
		submit(t, l, big, later)
		submit(t, l, big, later)
		if _, _, err := l.Submit(ctx, "k", []byte(big), later); !errors.Is(err, jobs.ErrFull) {
			t.Fatalf("got %v", err)
		}
		if j, err := l.Get(ctx, done.ID); err != nil || string(j.Result) != "1" {
			t.Errorf("a job that ended before: %+v, %v", j, err)
		}
	})
}

// One client's large payloads must not take the room of all others long before its share of the places is full.
func TestShareOfTheBytes(t *testing.T) {
	big := `{"n":1,"x":"` + strings.Repeat("x", 86) + `"}` // 100 bytes
	for _, c := range []struct {
		share int // of 100 places, and so of 1000 bytes
		jobs  int // that fit
	}{{1, 1}, {9, 1}, {25, 2}, {100, 10}} {
		synctest.Test(t, func(t *testing.T) {
			l, _ := engine(jobs.WithCapacity(100, c.share, 100), jobs.WithSizes(100, 100, 1000))
			defer l.Close()
			greedy := func(notBefore time.Duration) (jobs.Job, error) {
				j, _, err := l.Submit(ctx, "k", []byte(big), jobs.SubmitOptions{Client: "greedy", NotBefore: time.Now().Add(notBefore), Deadline: time.Now().Add(time.Hour)})
				return j, err
			}
			var first jobs.Job
			for i := range c.jobs {
				j, err := greedy(2 * time.Hour)
				if err != nil {
					t.Fatalf("share %d: job %d: %v", c.share, i, err)
				}
				if i == 0 {
					first = j
				}
			}
			want := jobs.ErrShareFull
			if c.share == 100 {
				want = jobs.ErrFull
			}
			if _, err := greedy(0); !errors.Is(err, want) {
				t.Errorf("share %d: one job too many: %v, want %v", c.share, err, want)
			}
			if c.share < 100 {
				submit(t, l, big, jobs.SubmitOptions{Client: "other", NotBefore: time.Now().Add(time.Minute)})
			}
			if _, err := l.Cancel(ctx, first.ID); err != nil {
				t.Fatal(err)
			}
			if _, err := greedy(0); err != nil { // and this one ends in time
				t.Errorf("share %d: after one was cancelled: %v", c.share, err)
			}
			time.Sleep(time.Hour + time.Minute) // in a synctest bubble
			for i := range c.jobs {
				if _, err := greedy(2 * time.Hour); err != nil {
					t.Errorf("share %d: after all had ended, job %d: %v", c.share, i, err)
				}
			}
		})
	}
}

func TestShareOfTheBytesOfWhatIsQueuedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := engine(jobs.WithCapacity(100, 25, 100), jobs.WithSizes(100, 100, 800))
		defer l.Close()
		big := `{"n":1000,"x":"` + strings.Repeat("x", 83) + `"}` // 100 bytes
		o := jobs.SubmitOptions{Client: "greedy", Deadline: time.Now()}
		failed := final(t, l, submit(t, l, big, o).ID)
		o.Deadline = time.Time{}
		submit(t, l, big, o)
		if _, err := l.Requeue(ctx, failed.ID); err != nil {
			t.Fatal(err)
		}
		if _, _, err := l.Submit(ctx, "k", []byte(big), o); !errors.Is(err, jobs.ErrShareFull) {
			t.Errorf("a third job of half the share: %v, want %v", err, jobs.ErrShareFull)
		}
	})
}

// A flood of one client's jobs has its own forgotten and not those of others, of whom each would run a job twice that it submits again.
func TestFinishedJobsOfOthersAreKept(t *testing.T) {
	for name, c := range map[string]struct {
		opts    []jobs.LocalOption
		greedy  string
		payload string
	}{
		"places":           {[]jobs.LocalOption{jobs.WithCapacity(100, 25, 20)}, "greedy", `{}`},
		"bytes":            {[]jobs.LocalOption{jobs.WithSizes(1000, 1000, 10_000)}, "greedy", `{"x":"` + strings.Repeat("x", 900) + `"}`},
		"without a client": {[]jobs.LocalOption{jobs.WithCapacity(100, 25, 20)}, "", `{}`},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := jobs.NewMux()
				jobs.Register(m, "k", func(_ context.Context, a struct{ X string }) (string, error) { return a.X, nil })
				l := jobs.NewLocal(m, pool.New(pool.WithSlots(1)), c.opts...)
				defer l.Close()
				o := jobs.SubmitOptions{Client: "other", Key: "one"}
				first := submit(t, l, `{}`, o)
				for i := range 54 {
					j := final(t, l, submit(t, l, c.payload, jobs.SubmitOptions{Client: c.greedy}).ID)
					if now, err := l.Get(ctx, j.ID); err != nil {
						t.Fatalf("job %d is forgotten as it ends: %+v, %v", i, now, err)
					}
					if i > 50 { // some of a third client's, for which the greedy one makes room
						final(t, l, submit(t, l, `{}`, jobs.SubmitOptions{Client: "third"}).ID)
					}
				}
				if j, created, err := l.Submit(ctx, "k", []byte(`{}`), o); err != nil || created || j.ID != first.ID {
					t.Errorf("submitted again: %+v, %v, %v; want the first", j, created, err)
				}
				if s := l.Stats(); s.Forgotten == 0 || s.Bytes > 10_000 {
					t.Errorf("%+v", s)
				}
				// When all have left nothing is.
				time.Sleep(2 * time.Hour) // in a synctest bubble
				if s := l.Stats(); s.Finished != 0 || s.Bytes != 0 || l.Keepers() != 0 {
					t.Errorf("%+v, %d clients", s, l.Keepers())
				}
			})
		})
	}
}

func TestShortRetentionAmongLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := jobs.NewMux()
		nop := func(context.Context, args) (int, error) { return 1, nil }
		jobs.Register(m, "k", nop)
		jobs.Register(m, "short", nop, jobs.WithRetain(time.Minute))
		l := jobs.NewLocal(m, pool.New(pool.WithSlots(1)), jobs.WithCapacity(10, 10, 5))
		defer l.Close()
		var first jobs.Job
		for i := range 5 {
			if j := final(t, l, submit(t, l, `{}`, jobs.SubmitOptions{}).ID); i == 0 {
				first = j
			}
		}
		j, _, err := l.Submit(ctx, "short", []byte(`{}`), jobs.SubmitOptions{})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if j, err := l.Get(ctx, j.ID); err != nil || j.State != jobs.Succeeded {
			t.Errorf("just ended: %+v, %v", j, err)
		}
		if _, err := l.Get(ctx, first.ID); !errors.Is(err, jobs.ErrExpired) {
			t.Errorf("the one that ended first: %v", err)
		}
	})
}

func TestWatchSeesTheEndOfWhatIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := engine(jobs.WithCapacity(10, 10, 1))
		defer l.Close()
		j := submit(t, l, `{"n":1000}`, jobs.SubmitOptions{})
		synctest.Wait()
		var states []jobs.State
		for j, err := range l.Watch(ctx, j.ID) {
			if err != nil {
				t.Fatalf("after %v: %v", states, err)
			}
			states = append(states, j.State)
			if j.State == jobs.Running { // a slow watcher: meanwhile it ends, and then another does
				time.Sleep(10 * time.Second) // in a synctest bubble
				final(t, l, submit(t, l, `{"n":1}`, jobs.SubmitOptions{}).ID)
			}
		}
		if n := len(states); n != 2 || states[1] != jobs.Succeeded {
			t.Errorf("%v", states)
		}
		if _, err := l.Get(ctx, j.ID); !errors.Is(err, jobs.ErrExpired) {
			t.Errorf("Get: %v", err)
		}
	})
}

// Where timers are late, as they are while all processors compute, a call may be the first to see that a job's time has come.
func TestCancelStartsWhatItFindsDue(t *testing.T) {
	for name, ask := range map[string]func(l *jobs.Local, other string) error{
		"cancel":  func(l *jobs.Local, other string) error { _, err := l.Cancel(ctx, other); return err },
		"get":     func(l *jobs.Local, other string) error { _, err := l.Get(ctx, other); return err },
		"stats":   func(l *jobs.Local, _ string) error { l.Stats(); return nil },
		"requeue": func(l *jobs.Local, other string) error { l.Requeue(ctx, other); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, _ := engine()
				defer l.Close()
				other := submit(t, l, `{"n":1}`, jobs.SubmitOptions{NotBefore: time.Now().Add(time.Hour)})
				j := submit(t, l, `{"n":1}`, jobs.SubmitOptions{NotBefore: time.Now().Add(time.Second)})
				l.TimersAreLate(time.Second)
				if err := ask(l, other.ID); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second) // in a synctest bubble
				synctest.Wait()
				if j, err := l.Get(ctx, j.ID); err != nil || j.Attempt != 1 {
					t.Errorf("%v after %d attempts, %v; want it begun", j.State, j.Attempt, err)
				}
			})
		})
	}
}

package jobs_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/pool"
	"github.com/spillgate/spillgate/pool/jobs"
	"github.com/spillgate/spillgate/pool/jobs/jobstest"
)

var ctx = context.Background()

type args struct {
	N int `json:"n"`
}

func TestConformance(t *testing.T) {
	jobstest.Suite{
		New: func(t *testing.T, m *jobs.Mux) jobs.Engine {
			l := jobs.NewLocal(m, pool.New(pool.WithSlots(2)))
			t.Cleanup(func() { l.Close() })
			return l
		},
		Bubble: synctest.Test,
	}.Run(t)
}

// polling is an engine as one over a network would be: Watch asks again and again.
type polling struct{ *jobs.Local }

func (p polling) Watch(ctx context.Context, id string) iter.Seq2[jobs.Job, error] {
	return func(yield func(jobs.Job, error) bool) {
		for seen := uint64(0); ; {
			j, err := p.Get(ctx, id)
			if err != nil || j.Version != seen {
				if !yield(j, err) || err != nil || j.State.Final() {
					return
				}
				seen = j.Version
			}
			select {
			case <-time.After(time.Millisecond):
			case <-ctx.Done():
				yield(jobs.Job{}, context.Cause(ctx))
				return
			}
		}
	}
}

func TestConformanceOfPollingEngine(t *testing.T) {
	jobstest.Suite{
		New: func(t *testing.T, m *jobs.Mux) jobs.Engine {
			l := jobs.NewLocal(m, pool.New(pool.WithSlots(2)))
			t.Cleanup(func() { l.Close() })
			return polling{l}
		},
		Bubble: synctest.Test,
	}.Run(t)
}

// engine returns an engine of one slot whose kind "k" waits as many milliseconds as it is told.
func engine(opts ...jobs.LocalOption) (*jobs.Local, *jobs.Mux) {
	m := jobs.NewMux()
	jobs.Register(m, "k", func(ctx context.Context, a args) (int, error) {
		select {
		case <-time.After(time.Duration(a.N) * time.Millisecond):
			return a.N, nil
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	})
	return jobs.NewLocal(m, pool.New(pool.WithSlots(1)), opts...), m
}

func submit(t *testing.T, l *jobs.Local, payload string, o jobs.SubmitOptions) jobs.Job {
	t.Helper()
	j, _, err := l.Submit(ctx, "k", []byte(payload), o)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func final(t *testing.T, l *jobs.Local, id string) jobs.Job {
	t.Helper()
	var last jobs.Job
	for j, err := range l.Watch(ctx, id) {
		if err != nil {
			t.Fatal(err)
		}
		last = j
	}
	return last
}

func TestPayloadTooLarge(t *testing.T) {
	l, _ := engine(jobs.WithSizes(100, 100, 1000))
	defer l.Close()
	if _, _, err := l.Submit(ctx, "k", []byte(`{"x":"`+strings.Repeat("x", 100)+`"}`), jobs.SubmitOptions{}); !errors.Is(err, jobs.ErrTooLarge) {
		t.Errorf("payload: %v", err)
	}
	if _, _, err := l.Submit(ctx, "k", []byte(`{}`), jobs.SubmitOptions{Key: strings.Repeat("x", 256)}); !errors.Is(err, jobs.ErrTooLarge) {
		t.Errorf("key: %v", err)
	}
	_, _, err := l.Submit(ctx, "k", []byte(`{}`), jobs.SubmitOptions{Client: strings.Repeat("x", 300)})
	if !errors.Is(err, jobs.ErrTooLarge) || !strings.Contains(err.Error(), "300, 255 are allowed") {
		t.Errorf("client: %v", err)
	}
	if s := l.Stats(); s.Submitted != 0 || s.Bytes != 0 {
		t.Errorf("%+v", s)
	}
}

func TestResultTooLargeOrNotEncodable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := jobs.NewMux()
		jobs.Register(m, "large", func(context.Context, args) (string, error) { return strings.Repeat("x", 1000), nil }, jobs.WithAttempts(3))
		jobs.Register(m, "nan", func(context.Context, args) (float64, error) { return math.NaN(), nil }, jobs.WithAttempts(3))
		l := jobs.NewLocal(m, pool.New(pool.WithSlots(1)), jobs.WithSizes(100, 100, 1000))
		defer l.Close()
		for _, kind := range []string{"large", "nan"} {
			j, _, err := l.Submit(ctx, kind, []byte(`{}`), jobs.SubmitOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if j := final(t, l, j.ID); j.State != jobs.Failed || j.Attempt != 1 || j.Result != nil {
				t.Errorf("%s ended as %+v", kind, j)
			}
		}
	})
}

func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := engine(jobs.WithRetention(time.Minute))
		defer l.Close()
		o := jobs.SubmitOptions{Key: "key"}
		j := final(t, l, submit(t, l, `{"n":1}`, o).ID)
		if got := j.Expires.Sub(j.Finished); got != time.Minute {
			t.Errorf("kept for %v", got)
		}
		time.Sleep(time.Minute - time.Millisecond) // in a synctest bubble
		if _, err := l.Get(ctx, j.ID); err != nil {
			t.Errorf("before its time: %v", err)
		}
		time.Sleep(2 * time.Millisecond) // in a synctest bubble
		if s := l.Stats(); s.Finished != 0 || s.Bytes != 0 {
			t.Errorf("after its time: %+v", s)
		}
		if _, err := l.Get(ctx, j.ID); !errors.Is(err, jobs.ErrExpired) {
			t.Errorf("after its time: %v", err)
		}
		if again := submit(t, l, `{"n":2}`, o); again.ID == j.ID {
			t.Error("the key outlived the job")
		}
		other, _ := engine()
		if _, err := other.Get(ctx, j.ID); !errors.Is(err, jobs.ErrNotFound) {
			t.Errorf("the id of another engine: %v", err)
		}
		other.Close()
	})
}

func TestBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := engine(jobs.WithCapacity(10, 4, 5))
		defer l.Close()
		var e *jobs.Error
		for i := range 5 {
			_, _, err := l.Submit(ctx, "k", []byte(`{"n":1000}`), jobs.SubmitOptions{Client: "greedy"})
			if i < 4 && err != nil || i == 4 && (!errors.Is(err, jobs.ErrShareFull) || !errors.As(err, &e) || e.RetryAfter < time.Second) {
				t.Errorf("job %d of one client: %v", i+1, err)
			}
		}
		for i := range 7 {
			_, _, err := l.Submit(ctx, "k", []byte(`{"n":1000}`), jobs.SubmitOptions{})
			if i < 6 && err != nil || i == 6 && (!errors.Is(err, jobs.ErrFull) || !errors.As(err, &e) || e.RetryAfter < time.Second) {
				t.Errorf("job %d of all: %v", i+5, err)
			}
		}
		time.Sleep(time.Minute) // in a synctest bubble
		if s := l.Stats(); s.Succeeded != 10 || s.Finished != 5 || s.Forgotten != 5 {
			t.Errorf("%+v", s)
		}
	})
	t.Run("bytes", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l, _ := engine(jobs.WithSizes(100, 100, 250))
			defer l.Close()
			big := `{"x":"` + strings.Repeat("x", 90) + `"}`
			later := jobs.SubmitOptions{NotBefore: time.Now().Add(time.Minute)}
			submit(t, l, big, later)
			submit(t, l, big, later)
			if _, _, err := l.Submit(ctx, "k", []byte(big), later); !errors.Is(err, jobs.ErrFull) {
				t.Errorf("got %v", err)
			}
		})
	})
	t.Run("bytes, after many jobs have been forgotten", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l, _ := engine(jobs.WithSizes(100, 100, 250))
			defer l.Close()
			big := `{"x":"` + strings.Repeat("x", 90) + `"}`
			for range 1000 { // of each a result of a byte is kept
				submit(t, l, big, jobs.SubmitOptions{})
				synctest.Wait()
			}
			if s := l.Stats(); s.Succeeded != 1000 || s.Forgotten < 700 {
				t.Fatalf("%+v", s)
			}
			later := jobs.SubmitOptions{NotBefore: time.Now().Add(time.Minute)}
			submit(t, l, big, later)
			submit(t, l, big, later)
			if _, _, err := l.Submit(ctx, "k", []byte(big), later); !errors.Is(err, jobs.ErrFull) {
				t.Errorf("got %v", err)
			}
		})
	})
}

func TestOrder(t *testing.T) {
	run := func(t *testing.T, submits func(l *jobs.Local)) []int {
		m := jobs.NewMux()
		var order []int
		jobs.Register(m, "k", func(_ context.Context, a args) (int, error) {
			time.Sleep(10 * time.Millisecond) // in a synctest bubble
			order = append(order, a.N)
			return 0, nil
		})
		jobs.Register(m, "long", func(context.Context, args) (int, error) {
			time.Sleep(10 * time.Minute) // in a synctest bubble
			return 0, nil
		})
		l := jobs.NewLocal(m, pool.New(pool.WithSlots(1)))
		l.Submit(ctx, "k", []byte(`{"n":-1}`), jobs.SubmitOptions{})
		synctest.Wait() // that one runs; what follows waits
		submits(l)
		if err := l.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		return order[1:]
	}
	t.Run("priority, then order of arrival", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			got := run(t, func(l *jobs.Local) {
				for n, p := range []int{0, -2, 0, 5, 5} {
					submit(t, l, fmt.Sprintf(`{"n":%d}`, n), jobs.SubmitOptions{Priority: p})
				}
			})
			if want := []int{3, 4, 0, 2, 1}; !slices.Equal(got, want) {
				t.Errorf("%v, want %v", got, want)
			}
		})
	})
	t.Run("clients take turns", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			got := run(t, func(l *jobs.Local) {
				for range 50 {
					submit(t, l, `{"n":1}`, jobs.SubmitOptions{Client: "a"})
				}
				for range 5 {
					submit(t, l, `{"n":2}`, jobs.SubmitOptions{Client: "b"})
				}
			})
			if n := slices.Index(slices.Compact(slices.Clone(got)), 2); n != 1 {
				t.Errorf("order %v", got)
			}
			last := 0
			for i, n := range got {
				if n == 2 {
					last = i
				}
			}
			if last > 11 {
				t.Errorf("the small client's last job came %dth: %v", last+1, got)
			}
		})
	})
	t.Run("clients that have had as much go in order of arrival", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var want []int
			got := run(t, func(l *jobs.Local) {
				for n := range 8 {
					want = append(want, n)
					submit(t, l, fmt.Sprintf(`{"n":%d}`, n), jobs.SubmitOptions{Client: fmt.Sprint(n)})
				}
			})
			if !slices.Equal(got, want) {
				t.Errorf("%v, want %v", got, want)
			}
		})
	})
	t.Run("one that was served is next again after a round, though new clients keep coming", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			const others = 9
			got := run(t, func(l *jobs.Local) {
				for range 20 {
					submit(t, l, `{"n":1}`, jobs.SubmitOptions{Client: "regular"})
				}
				for i := range others + 300 {
					submit(t, l, `{"n":0}`, jobs.SubmitOptions{Client: fmt.Sprint(i)})
					if i >= others {
						time.Sleep(10 * time.Millisecond) // in a synctest bubble
					}
				}
			})
			for i := range 20 {
				n := slices.Index(got, 1)
				if n < 0 || n > 4*others { // each of them makes the line one longer
					t.Fatalf("%d new clients were served before the regular one's job %d", n, i+1)
				}
				got = got[n+1:]
			}
		})
	})
	for name, waits := range map[string]bool{
		"debts end when no job waits: it ran while one did":  true,
		"debts end when no job waits: it ran while none did": false,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				got := run(t, func(l *jobs.Local) {
					l.Submit(ctx, "long", []byte(`{}`), jobs.SubmitOptions{Client: "honest"})
					submit(t, l, `{"n":0}`, jobs.SubmitOptions{Client: "honest", NotBefore: time.Now().Add(24 * time.Hour)})
					time.Sleep(9 * time.Minute) // in a synctest bubble
					if waits {
						submit(t, l, `{"n":0}`, jobs.SubmitOptions{Client: "other"})
					}
					time.Sleep(time.Hour) // in a synctest bubble
					submit(t, l, `{"n":0}`, jobs.SubmitOptions{})
					synctest.Wait()
					for range 5 {
						submit(t, l, `{"n":1}`, jobs.SubmitOptions{Client: "flood"})
						submit(t, l, `{"n":2}`, jobs.SubmitOptions{Client: "honest"})
					}
				})
				got = slices.DeleteFunc(got, func(n int) bool { return n == 0 })
				if want := []int{1, 2, 1, 2, 1, 2, 1, 2, 1, 2}; !slices.Equal(got, want) {
					t.Errorf("%v, want %v", got, want)
				}
			})
		})
	}
	t.Run("a job that was too late to begin costs its client nothing", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			got := run(t, func(l *jobs.Local) {
				time.Sleep(time.Second) // in a synctest bubble: it is known how long a job takes
				submit(t, l, `{"n":0}`, jobs.SubmitOptions{})
				synctest.Wait()
				soon := time.Now().Add(time.Millisecond)
				for range 3 {
					submit(t, l, `{"n":0}`, jobs.SubmitOptions{Client: "a", Deadline: soon})
				}
				for range 3 {
					submit(t, l, `{"n":1}`, jobs.SubmitOptions{Client: "a"})
					submit(t, l, `{"n":2}`, jobs.SubmitOptions{Client: "b"})
				}
			})
			if want := []int{0, 1, 2, 1, 2, 1, 2}; !slices.Equal(got, want) {
				t.Errorf("%v, want %v", got, want)
			}
		})
	})
	t.Run("an old job of low priority is not starved", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l, _ := engine()
			submit(t, l, `{"n":100}`, jobs.SubmitOptions{})
			low := submit(t, l, `{"n":1}`, jobs.SubmitOptions{Priority: -8})
			stop := make(chan struct{})
			var wg sync.WaitGroup
			wg.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					case <-time.After(90 * time.Millisecond):
						l.Submit(ctx, "k", []byte(`{"n":100}`), jobs.SubmitOptions{Priority: 7})
					}
				}
			})
			j := final(t, l, low.ID)
			close(stop)
			wg.Wait()
			if waited := j.Started.Sub(j.Created); waited > 18*time.Second {
				t.Errorf("waited %v", waited)
			}
			l.Close()
		})
	})
}

func TestHundredThousandCancelledAtOnce(t *testing.T) {
	const n = 100_000
	m := jobs.NewMux()
	var ran atomic.Int64
	jobs.Register(m, "k", func(context.Context, args) (int, error) { ran.Add(1); return 0, nil })
	l := jobs.NewLocal(m, pool.New(pool.WithSlots(1)), jobs.WithCapacity(n, n, 1000))
	defer l.Close()
	later := time.Now().Add(time.Hour)
	ids := make([]string, n)
	for i := range ids {
		o := jobs.SubmitOptions{Client: fmt.Sprint(i % 100), Priority: i % 8, NotBefore: later}
		j, _, err := l.Submit(ctx, "k", []byte(`{}`), o)
		if err != nil {
			t.Fatal(err)
		}
		ids[i] = j.ID
	}
	var wg sync.WaitGroup
	for part := range slices.Chunk(ids, n/16) {
		wg.Go(func() {
			for _, id := range part {
				if _, err := l.Cancel(ctx, id); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if s := l.Stats(); s.Cancelled != n || s.Queued+s.Delayed+s.Running != 0 || s.Finished != 1000 || ran.Load() != 0 {
		t.Errorf("%+v, %d ran", s, ran.Load())
	}
}

func TestGoexitInHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := jobs.NewMux()
		jobs.Register(m, "exit", func(context.Context, args) (int, error) { runtime.Goexit(); return 0, nil })
		jobs.Register(m, "k", func(context.Context, args) (int, error) { return 1, nil })
		p := pool.New(pool.WithSlots(1))
		l := jobs.NewLocal(m, p)
		defer l.Close()
		j, _, _ := l.Submit(ctx, "exit", []byte(`{}`), jobs.SubmitOptions{})
		if j := final(t, l, j.ID); j.State != jobs.Failed || j.Err != jobs.ErrGoexit.Error() {
			t.Errorf("%+v", j)
		}
		if j := final(t, l, submit(t, l, `{}`, jobs.SubmitOptions{}).ID); j.State != jobs.Succeeded {
			t.Errorf("the next job: %+v", j)
		}
		synctest.Wait()
		if n := p.Stats().Used; n != 0 {
			t.Errorf("%d slots lost", n)
		}
	})
}

func TestDeadLetters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := jobs.NewMux()
		broken := true
		jobs.Register(m, "k", func(ctx context.Context, a args) (int, error) {
			if broken {
				jobs.Report(ctx, jobs.Progress{Done: 3, Total: 4})
				panic("no disk")
			}
			return a.N, nil
		})
		l := jobs.NewLocal(m, pool.New(pool.WithSlots(1)))
		defer l.Close()
		j := final(t, l, submit(t, l, `{"n":5}`, jobs.SubmitOptions{}).ID)
		dead := l.DeadLetters()
		if len(dead) != 1 || dead[0].ID != j.ID || !strings.Contains(dead[0].Detail, "no disk") {
			t.Errorf("%+v", dead)
		}
		broken = false
		if j, err := l.Requeue(ctx, j.ID); err != nil || j.Progress != (jobs.Progress{}) {
			t.Errorf("%v, with the progress of an attempt that is over: %+v", err, j.Progress)
		}
		if j := final(t, l, j.ID); j.State != jobs.Succeeded || string(j.Result) != "5" || j.Detail != "" {
			t.Errorf("%+v", j)
		}
		if _, err := l.Requeue(ctx, j.ID); err != jobs.ErrNotFailed {
			t.Errorf("again: %v", err)
		}
	})
}

// So it is also where the clock does not tell which ended first.
func TestDeadLettersBeginWithTheLatest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := jobs.NewMux()
		jobs.Register(m, "k", func(context.Context, args) (int, error) { return 0, errors.New("no disk") })
		l := jobs.NewLocal(m, pool.New(pool.WithSlots(1)))
		defer l.Close()
		var want []string
		for range 20 {
			want = append(want, final(t, l, submit(t, l, `{}`, jobs.SubmitOptions{}).ID).ID)
		}
		slices.Reverse(want)
		var got []string
		for _, j := range l.DeadLetters() {
			got = append(got, j.ID)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	})
}

func TestShutdown(t *testing.T) {
	t.Run("drains", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l, _ := engine()
			for range 5 {
				submit(t, l, `{"n":1000}`, jobs.SubmitOptions{})
			}
			ctx, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			if err := l.Shutdown(ctx); err != nil || l.Stats().Succeeded != 5 {
				t.Errorf("%v, %+v", err, l.Stats())
			}
			if _, _, err := l.Submit(ctx, "k", []byte(`{}`), jobs.SubmitOptions{}); err != jobs.ErrShutdown {
				t.Errorf("after it: %v", err)
			}
			l.Close()
		})
	})
	t.Run("takes what those submit that run", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m := jobs.NewMux()
			l := jobs.NewLocal(m, pool.New(pool.WithSlots(1)))
			chain := func(ctx context.Context, wait bool, o jobs.SubmitOptions) error {
				time.Sleep(time.Second) // in a synctest bubble: it is shut down by then
				j, _, err := l.Submit(ctx, "k", []byte(`{}`), o)
				if err == nil && wait {
					j, err = end(ctx, l, j.ID)
				}
				return err
			}
			jobs.Register(m, "k", func(context.Context, args) (int, error) { time.Sleep(time.Second); return 0, nil }) // in a synctest bubble
			jobs.Register(m, "waits", func(ctx context.Context, _ args) (int, error) { return 0, chain(ctx, true, jobs.SubmitOptions{}) })
			jobs.Register(m, "leaves", func(ctx context.Context, _ args) (int, error) { return 0, chain(ctx, false, jobs.SubmitOptions{}) })
			jobs.Register(m, "later", func(ctx context.Context, _ args) (int, error) {
				return 0, chain(ctx, false, jobs.SubmitOptions{NotBefore: time.Now().Add(time.Minute)})
			})
			var ids []string
			for _, kind := range []string{"waits", "leaves", "later"} {
				j, _, err := l.Submit(ctx, kind, []byte(`{}`), jobs.SubmitOptions{})
				if err != nil {
					t.Fatal(err)
				}
				ids = append(ids, j.ID)
			}
			synctest.Wait()
			if err := l.Shutdown(ctx); err != nil {
				t.Error(err)
			}
			if s := l.Stats(); s.Succeeded != 4 || s.Failed != 1 || s.Submitted != 5 {
				t.Errorf("%+v", s)
			}
			if j, err := l.Get(ctx, ids[2]); err != nil || j.Err != jobs.ErrShutdown.Error() {
				t.Errorf("what was for later: %+v, %v", j, err)
			}
			l.Close()
		})
	})
	t.Run("at the deadline names what it drops, and Get still works", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l, _ := engine()
			running := submit(t, l, `{"n":60000}`, jobs.SubmitOptions{})
			waiting := submit(t, l, `{"n":1}`, jobs.SubmitOptions{})
			later := submit(t, l, `{"n":1}`, jobs.SubmitOptions{NotBefore: time.Now().Add(time.Hour)})
			synctest.Wait()
			short, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			err := l.Shutdown(short)
			var dropped *jobs.DroppedError
			if !errors.As(err, &dropped) || !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, jobs.ErrShutdown) {
				t.Fatalf("got %v", err)
			}
			if !slices.Equal(dropped.Running, []string{running.ID}) || !slices.Equal(dropped.Waiting, []string{later.ID, waiting.ID}) {
				t.Errorf("%+v", dropped)
			}
			l.Close()
			for _, id := range []string{running.ID, waiting.ID, later.ID} {
				if j, err := l.Get(ctx, id); err != nil || j.State != jobs.Failed {
					t.Errorf("%+v, %v", j, err)
				}
			}
		})
	})
	t.Run("while retrying", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m := jobs.NewMux()
			jobs.Register(m, "k", func(context.Context, args) (int, error) { return 0, errors.New("still broken") },
				jobs.WithAttempts(1000), jobs.WithBackoff(time.Hour, time.Hour))
			l := jobs.NewLocal(m, pool.New(pool.WithSlots(1)))
			var ids []string
			for range 10 {
				ids = append(ids, submit(t, l, `{}`, jobs.SubmitOptions{}).ID)
			}
			synctest.Wait()
			if s := l.Stats(); s.Delayed != 10 || s.Retried != 10 {
				t.Errorf("%+v", s)
			}
			short, cancel := context.WithTimeout(ctx, time.Millisecond)
			defer cancel()
			before := time.Now()
			err := l.Shutdown(short)
			var dropped *jobs.DroppedError
			if !errors.As(err, &dropped) {
				t.Fatalf("got %v", err)
			}
			if time.Since(before) > time.Millisecond {
				t.Errorf("took %v", time.Since(before))
			}
			slices.Sort(ids)
			slices.Sort(dropped.Waiting)
			if !slices.Equal(dropped.Waiting, ids) || len(dropped.Running) != 0 {
				t.Errorf("%+v", dropped)
			}
			l.Close()
		})
	})
	t.Run("a job that fails while it drains is not lost silently", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m := jobs.NewMux()
			jobs.Register(m, "k", func(context.Context, args) (int, error) {
				time.Sleep(time.Second) // in a synctest bubble
				return 0, errors.New("broken")
			}, jobs.WithAttempts(2), jobs.WithBackoff(1000*time.Hour, 1000*time.Hour))
			l := jobs.NewLocal(m, pool.New(pool.WithSlots(1)))
			j := submit(t, l, `{}`, jobs.SubmitOptions{})
			synctest.Wait()
			long, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			err := l.Shutdown(long)
			var dropped *jobs.DroppedError
			if !errors.As(err, &dropped) || !slices.Equal(dropped.Waiting, []string{j.ID}) {
				t.Errorf("got %v", err)
			}
			l.Close()
		})
	})
	t.Run("the pool is shut down first: nothing is waited for that cannot begin", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m := jobs.NewMux()
			jobs.Register(m, "k", func(_ context.Context, a args) (int, error) {
				time.Sleep(time.Duration(a.N) * time.Second) // in a synctest bubble
				return 0, errors.New("broken")
			}, jobs.WithAttempts(2), jobs.WithBackoff(time.Second, time.Second))
			p := pool.New(pool.WithSlots(1))
			l := jobs.NewLocal(m, p)
			var ids []string
			for _, o := range []jobs.SubmitOptions{{}, {}, {NotBefore: time.Now().Add(time.Hour)}} {
				ids = append(ids, submit(t, l, `{"n":10}`, o).ID)
				synctest.Wait()
			}
			p.Shutdown(ctx) // the one that runs ends, and would be repeated
			synctest.Wait()
			for _, id := range ids[1:] {
				if j, err := l.Get(ctx, id); err != nil || j.State != jobs.Failed || j.Err != jobs.ErrShutdown.Error() {
					t.Errorf("%+v, %v", j, err)
				}
			}
			if _, _, err := l.Submit(ctx, "k", []byte(`{}`), jobs.SubmitOptions{}); err != jobs.ErrShutdown {
				t.Errorf("Submit: %v", err)
			}
			before := time.Now()
			long, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			err := l.Shutdown(long)
			var dropped *jobs.DroppedError
			if !errors.As(err, &dropped) || len(dropped.Waiting) != 3 || len(dropped.Running) != 0 {
				t.Errorf("Shutdown: %v", err)
			}
			if d := time.Since(before); d > 2*time.Second {
				t.Errorf("Shutdown took %v", d)
			}
			l.Close()
		})
	})
	t.Run("the pool is shut down first: jobs wait and Close ends it", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m := jobs.NewMux()
			jobs.Register(m, "k", func(context.Context, args) (int, error) { return 0, nil })
			p := pool.New(pool.WithSlots(1))
			l := jobs.NewLocal(m, p)
			p.Shutdown(ctx)
			submit(t, l, `{}`, jobs.SubmitOptions{})
			time.Sleep(10 * time.Second) // in a synctest bubble
			var dropped *jobs.DroppedError
			if err := l.Close(); !errors.As(err, &dropped) || len(dropped.Waiting) != 1 {
				t.Errorf("got %v", err)
			}
		})
	})
}

// TestMemory holds what a finished job costs beside its result.
func TestMemory(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector changes what an object takes")
	}
	const n = 10_000
	l, _ := engine(jobs.WithCapacity(n, n, n))
	defer l.Close()
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		return s.HeapAlloc
	}
	before := heap()
	for i := range n {
		o := jobs.SubmitOptions{Client: fmt.Sprintf("client-%d", i), Key: fmt.Sprintf("key-%032d", i)}
		j, _, err := l.Submit(ctx, "k", []byte(`{"n":0}`), o)
		if err != nil {
			t.Fatal(err)
		}
		final(t, l, j.ID)
	}
	after := heap()
	if s := l.Stats(); s.Finished != n {
		t.Fatalf("%+v", s)
	}
	per := (int64(after) - int64(before)) / n
	t.Logf("%d bytes for each finished job", per)
	if per > 1024 {
		t.Errorf("%d bytes for each finished job, want at most 1024", per)
	}
}

func TestBackoffHasFullJitter(t *testing.T) {
	p := jobs.Policy{BaseDelay: time.Second, MaxDelay: 10 * time.Second}
	for attempt, most := range map[int]time.Duration{1: time.Second, 2: 2 * time.Second, 4: 8 * time.Second, 5: 10 * time.Second, 100: 10 * time.Second} {
		var low, high int
		for range 2000 {
			d := p.Delay(attempt)
			if d < 0 || d > most {
				t.Fatalf("attempt %d: %v, want 0 to %v", attempt, d, most)
			}
			if d < most/4 {
				low++
			}
			if d > most*3/4 {
				high++
			}
		}
		if low < 300 || high < 300 {
			t.Errorf("attempt %d: of 2000 delays %d in the lowest quarter and %d in the highest", attempt, low, high)
		}
	}
}

func TestMisusePanics(t *testing.T) {
	m := jobs.NewMux()
	nop := func(context.Context, args) (int, error) { return 0, nil }
	jobs.Register(m, "k", nop)
	for name, f := range map[string]func(){
		"no kind":       func() { jobs.Register(m, "", nop) },
		"twice":         func() { jobs.Register(m, "k", nop) },
		"no pool":       func() { jobs.NewLocal(m, nil) },
		"nil option":    func() { jobs.NewLocal(m, pool.New(), nil) },
		"nil of a kind": func() { jobs.Register(m, "other", nop, nil) },
		"WithAttempts":  func() { jobs.WithAttempts(0) },
		"WithBackoff":   func() { jobs.WithBackoff(2, 1) },
		"WithTimeout":   func() { jobs.WithTimeout(0) },
		"WithRetain":    func() { jobs.WithRetain(0) },
		"WithRetention": func() { jobs.WithRetention(0) },
		"WithCapacity":  func() { jobs.WithCapacity(1, 2, 1) },
		"WithSizes":     func() { jobs.WithSizes(10, 10, 10) },
		"sizes of all":  func() { jobs.WithSizes(math.MaxInt, math.MaxInt, math.MaxInt32) },
		"no mux":        func() { jobs.Register(nil, "k", nop) },
		"no handler":    func() { jobs.Register[args, int](m, "none", nil) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if s, _ := recover().(string); !strings.HasPrefix(s, "jobs: ") {
					t.Errorf("panic %q", s)
				}
			}()
			f()
		})
	}
}

func ExampleNewLocal() {
	m := jobs.NewMux()
	jobs.Register(m, "sum", func(ctx context.Context, numbers []int) (int, error) {
		sum := 0
		for i, n := range numbers {
			sum += n
			jobs.Report(ctx, jobs.Progress{Done: int64(i + 1), Total: int64(len(numbers))})
		}
		return sum, nil
	})
	engine := jobs.NewLocal(m, pool.New())
	defer engine.Close()

	job, _, err := engine.Submit(context.Background(), "sum", []byte(`[1, 2, 3]`), jobs.SubmitOptions{})
	if err != nil {
		fmt.Println(err)
		return
	}
	for j, err := range engine.Watch(context.Background(), job.ID) {
		if err != nil || j.State.Final() {
			fmt.Println(j.State, string(j.Result), err)
		}
	}
	// Output: succeeded 6 <nil>
}

func ExampleNewMux() {
	m := jobs.NewMux()
	jobs.Register(m, "mail", func(ctx context.Context, address string) (struct{}, error) {
		if address == "" {
			return struct{}{}, jobs.Permanent(errors.New("no address")) // trying again would not help
		}
		return struct{}{}, errors.New("the mail server is away")
	}, jobs.WithAttempts(5), jobs.WithBackoff(time.Second, time.Minute))
	fmt.Println(m.Check("mail", []byte(`"ann@example.org"`)))
	fmt.Println(errors.Is(m.Check("fax", nil), jobs.ErrUnknownKind))
	// Output:
	// <nil>
	// true
}

package jobs_test

import (
	"context"
	"encoding/json"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/pool"
	"github.com/spillgate/spillgate/pool/jobs"
)

// waiting is an engine with a kind "k" and a kind "parent", which submits a job of kind "k" with o and waits for it.
func waiting(p *pool.Pool, o jobs.SubmitOptions, k func(ctx context.Context, a args) (int, error), watch func(context.Context, *jobs.Local, string) (jobs.Job, error), more ...func(*jobs.Mux)) *jobs.Local {
	m := jobs.NewMux()
	for _, register := range more {
		register(m)
	}
	l := jobs.NewLocal(m, p)
	jobs.Register(m, "k", k, jobs.WithAttempts(3), jobs.WithBackoff(time.Second, time.Second))
	jobs.Register(m, "parent", func(ctx context.Context, a args) (jobs.State, error) {
		j, _, err := l.Submit(ctx, "k", []byte(`{"n":1}`), o)
		if err != nil {
			return "", err
		}
		j, err = watch(ctx, l, j.ID)
		return j.State, err
	})
	return l
}

// end is the job's end, as its Watch tells.
func end(ctx context.Context, l *jobs.Local, id string) (last jobs.Job, err error) {
	for j, err := range l.Watch(ctx, id) {
		if err != nil {
			return last, err
		}
		last = j
	}
	return last, nil
}

// A job that waits for another ends, also where there is no slot for that one but its own.
func TestJobThatWaitsForAnother(t *testing.T) {
	short := func(context.Context, args) (int, error) {
		time.Sleep(time.Millisecond) // in a synctest bubble
		return 0, nil
	}
	failed := 0
	for _, c := range []struct {
		rule  string
		slots int
		taken bool // one of them, by a task that does not end
		opts  jobs.SubmitOptions
		k     func(context.Context, args) (int, error)
		watch func(context.Context, *jobs.Local, string) (jobs.Job, error)
		want  jobs.State
		took  time.Duration
	}{
		{rule: "in the only slot", slots: 1, k: short, want: jobs.Succeeded, took: time.Millisecond},
		{rule: "in a slot of its own", slots: 2, k: short, want: jobs.Succeeded, took: time.Millisecond},
		{rule: "where others have all slots for good", slots: 2, taken: true, k: short, want: jobs.Succeeded, took: time.Second + time.Millisecond},
		{rule: "that begins later", slots: 1, opts: jobs.SubmitOptions{NotBefore: time.Date(2000, 1, 1, 0, 1, 0, 0, time.UTC)}, k: short, want: jobs.Succeeded, took: time.Minute + time.Millisecond},
		{rule: "that panics and then ends its goroutine", slots: 1, k: func(context.Context, args) (int, error) {
			if failed++; failed == 1 {
				panic("the first time")
			}
			runtime.Goexit()
			return 0, nil
		}, want: jobs.Failed, took: -1},
		{rule: "for less time than it takes", slots: 1, k: func(context.Context, args) (int, error) {
			time.Sleep(time.Minute) // in a synctest bubble
			return 0, nil
		}, watch: func(ctx context.Context, l *jobs.Local, id string) (jobs.Job, error) {
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			return end(ctx, l, id)
		}, want: jobs.Succeeded, took: time.Minute},
		{rule: "and looks no further than its beginning", slots: 1, k: short, watch: func(ctx context.Context, l *jobs.Local, id string) (jobs.Job, error) {
			for j := range l.Watch(ctx, id) {
				if j.State == jobs.Running {
					break
				}
			}
			return l.Get(ctx, id)
		}, want: jobs.Succeeded, took: time.Millisecond},
		{rule: "and has left before that", slots: 1, k: short, watch: func(ctx context.Context, l *jobs.Local, id string) (jobs.Job, error) {
			ctx, cancel := context.WithCancel(ctx)
			cancel()
			_, err := end(ctx, l, id)
			if !errors.Is(err, context.Canceled) {
				return jobs.Job{}, errors.New("no error of a context that has ended")
			}
			return l.Get(context.WithoutCancel(ctx), id)
		}, want: jobs.Queued},
	} {
		t.Run(c.rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := pool.New(pool.WithSlots(c.slots))
				if c.taken {
					_, s, err := p.Enter(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					defer s.Leave()
				}
				if c.watch == nil {
					c.watch = end
				}
				l := waiting(p, c.opts, c.k, c.watch)
				defer l.Close()
				began := time.Now()
				j, _, err := l.Submit(t.Context(), "parent", []byte(`{}`), jobs.SubmitOptions{})
				if err != nil {
					t.Fatal(err)
				}
				ended := make(chan jobs.Job, 1)
				go func() { ended <- final(t, l, j.ID) }()
				select {
				case j = <-ended:
				case <-time.After(time.Hour):
					t.Fatal("they wait for ever")
				}
				var got jobs.State
				if _ = json.Unmarshal(j.Result, &got); got != c.want {
					t.Errorf("the other was %q to it, want %q (%v: %s)", got, c.want, j.State, j.Err)
				}
				if took := time.Since(began); took != c.took && c.took >= 0 {
					t.Errorf("it took %v, want %v", took, c.took)
				}
				time.Sleep(time.Minute) // in a synctest bubble
				if st := l.Stats(); st.Running+st.Queued != 0 {
					t.Errorf("in the end %+v", st)
				}
			})
		})
	}
}

// Jobs that wait for jobs that wait for jobs end in any number of slots, and no more of them compute at a time than there are.
func TestJobsThatWaitForEachOther(t *testing.T) {
	for slots := 1; slots <= 3; slots++ {
		p := pool.New(pool.WithSlots(slots))
		m := jobs.NewMux()
		l := jobs.NewLocal(m, p)
		var computing, most atomic.Int64
		compute := func() {
			n := computing.Add(1)
			for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
			}
			runtime.Gosched()
			computing.Add(-1)
		}
		jobs.Register(m, "tree", func(ctx context.Context, a args) (sum int, err error) {
			compute()
			if a.N == 0 {
				return 1, nil
			}
			var inner []string
			for range 3 {
				payload, _ := json.Marshal(args{N: a.N - 1})
				j, _, err := l.Submit(ctx, "tree", payload, jobs.SubmitOptions{})
				if err != nil {
					return 0, err
				}
				inner = append(inner, j.ID)
			}
			for _, id := range inner {
				j, err := end(ctx, l, id)
				if err != nil {
					return 0, err
				}
				var n int
				if err := json.Unmarshal(j.Result, &n); err != nil {
					return 0, err
				}
				sum += n
			}
			compute()
			return sum, nil
		})
		j, _, err := l.Submit(t.Context(), "tree", []byte(`{"n":5}`), jobs.SubmitOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if j = final(t, l, j.ID); string(j.Result) != "243" {
			t.Errorf("%d slots: %v, %s, %s", slots, j.State, j.Result, j.Err)
		}
		if n := most.Load(); n > int64(slots) {
			t.Errorf("%d computed in %d slots", n, slots)
		}
		l.Close()
		if st := p.Stats(); st.Used != 0 {
			t.Errorf("%d slots are used", st.Used)
		}
	}
}

// A job that waits for many at a time has one of them run in its slot, and then the next.
func TestJobThatWaitsForMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := jobs.NewMux()
		l := jobs.NewLocal(m, pool.New(pool.WithSlots(1)))
		defer l.Close()
		var computing, most atomic.Int64
		jobs.Register(m, "k", func(context.Context, args) (int, error) {
			most.Store(max(most.Load(), computing.Add(1)))
			time.Sleep(time.Millisecond) // in a synctest bubble
			computing.Add(-1)
			return 0, nil
		})
		jobs.Register(m, "parent", func(ctx context.Context, a args) (int, error) {
			var all sync.WaitGroup
			for range 20 {
				all.Go(func() {
					j, _, err := l.Submit(ctx, "k", []byte(`{}`), jobs.SubmitOptions{})
					if err == nil {
						_, err = end(ctx, l, j.ID)
					}
					if err != nil {
						t.Error(err)
					}
				})
			}
			all.Wait()
			return 0, nil
		})
		began := time.Now()
		j, _, err := l.Submit(t.Context(), "parent", []byte(`{}`), jobs.SubmitOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if j = final(t, l, j.ID); j.State != jobs.Succeeded {
			t.Errorf("it is %v: %s", j.State, j.Err)
		}
		if took := time.Since(began); took != 20*time.Millisecond || most.Load() != 1 {
			t.Errorf("it took %v, and %d ran at a time; want 20ms and 1", took, most.Load())
		}
	})
}

// A job that failed in the slot of the one that waits for it has its next attempt there when its delay is over.
func TestJobThatFailsOnceInTheSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := waiting(pool.New(pool.WithSlots(1)), jobs.SubmitOptions{}, func(ctx context.Context, a args) (int, error) {
			if a, _ := jobs.Current(ctx); a.Number == 1 {
				return 0, errors.New("once")
			}
			return 0, nil
		}, end)
		defer l.Close()
		j, _, err := l.Submit(t.Context(), "parent", []byte(`{}`), jobs.SubmitOptions{})
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if j = final(t, l, j.ID); string(j.Result) != `"succeeded"` {
			t.Errorf("the other was %s to it", j.Result)
		}
		if took := time.Since(began); took >= time.Second {
			t.Errorf("it took %v, for a delay of less than a second", took)
		}
	})
}

// A job that is ready again before the slot is free that its attempt had, has the next one there when it is.
func TestJobThatIsReadyBeforeTheSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l *jobs.Local
		l = waiting(pool.New(pool.WithSlots(1)), jobs.SubmitOptions{}, func(ctx context.Context, a args) (int, error) {
			if a, _ := jobs.Current(ctx); a.Number > 1 {
				return 0, nil
			}
			j, _, err := l.Submit(ctx, "slow", []byte(`{}`), jobs.SubmitOptions{})
			if err != nil {
				return 0, err
			}
			go end(ctx, l, j.ID)
			time.Sleep(time.Millisecond) // in a synctest bubble
			return 0, errors.New("as long as that runs")
		}, end, func(m *jobs.Mux) {
			jobs.Register(m, "slow", func(context.Context, args) (int, error) {
				time.Sleep(time.Minute) // in a synctest bubble
				return 0, nil
			})
		})
		defer l.Close()
		j, _, err := l.Submit(t.Context(), "parent", []byte(`{}`), jobs.SubmitOptions{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if j, err = end(ctx, l, j.ID); string(j.Result) != `"succeeded"` {
			t.Errorf("the other was %s to it, which is %v: %v", j.Result, j.State, err)
		}
	})
}

// A job whose handler does not wait for what it has begun holds its slot until that has ended which runs there.
func TestJobThatDoesNotWaitToTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pool.New(pool.WithSlots(1))
		m := jobs.NewMux()
		l := jobs.NewLocal(m, p)
		defer l.Close()
		used := make(chan int, 1)
		jobs.Register(m, "k", func(context.Context, args) (int, error) {
			time.Sleep(time.Second) // in a synctest bubble
			used <- p.Stats().Used
			return 0, nil
		})
		jobs.Register(m, "parent", func(ctx context.Context, a args) (int, error) {
			j, _, err := l.Submit(ctx, "k", []byte(`{}`), jobs.SubmitOptions{})
			if err == nil {
				go end(ctx, l, j.ID)
				time.Sleep(time.Millisecond) // in a synctest bubble
			}
			return 0, err
		})
		j, _, err := l.Submit(t.Context(), "parent", []byte(`{}`), jobs.SubmitOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if j = final(t, l, j.ID); j.State != jobs.Succeeded {
			t.Errorf("it is %v: %s", j.State, j.Err)
		}
		if n := <-used; n != 1 {
			t.Errorf("%d slots are used while the other runs, want 1", n)
		}
	})
}

package jobs_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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

// A job that waits for others ends, also where the pool becomes smaller while what it waits for has given its slot to somebody more urgent: all slots
// are those of its own goroutines then, and each of them waits.
func TestJobThatWaitsInAPoolThatBecomesSmaller(t *testing.T) {
	type wait func(context.Context) (int, error)
	twice := func(one, other wait) (int, error) {
		errs := make(chan error, 2)
		for _, f := range []wait{one, other} {
			go func() {
				_, err := f(context.Background())
				errs <- err
			}()
		}
		return 0, errors.Join(<-errs, <-errs)
	}
	for _, c := range []struct {
		rule   string
		parent func(ctx context.Context, p *pool.Pool, child wait) (int, error)
	}{
		{"by itself", func(ctx context.Context, _ *pool.Pool, child wait) (int, error) { return child(ctx) }},
		{"in a Map", func(ctx context.Context, p *pool.Pool, child wait) (int, error) {
			_, err := pool.Map(ctx, p, make([]int, 3), func(ctx context.Context, _ int) (int, error) { return child(ctx) })
			return 0, err
		}},
		{"in a Future, after one that runs in its slot", func(ctx context.Context, p *pool.Pool, child wait) (int, error) {
			f := pool.Submit(ctx, p, func(ctx context.Context) (int, error) {
				time.Sleep(10 * time.Millisecond) // in a synctest bubble
				return child(ctx)
			})
			return twice(func(context.Context) (int, error) { return child(ctx) }, f.Wait)
		}},
		{"in a Future, where its slot is given up", func(ctx context.Context, p *pool.Pool, child wait) (int, error) {
			f := pool.Submit(ctx, p, func(ctx context.Context) (int, error) { return child(ctx) })
			return twice(func(context.Context) (int, error) {
				for range 3000 {
					time.Sleep(time.Millisecond) // in a synctest bubble
					if err := pool.Checkpoint(ctx); err != nil {
						return 0, err
					}
				}
				return 0, nil
			}, f.Wait)
		}},
	} {
		for slots := 1; slots <= 4; slots++ {
			t.Run(fmt.Sprintf("%s, %d slots", c.rule, slots), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					p := pool.New(pool.WithSlots(slots), pool.WithPriorityStep(time.Minute))
					m := jobs.NewMux()
					l := jobs.NewLocal(m, p)
					defer l.Close()
					jobs.Register(m, "k", func(ctx context.Context, a args) (int, error) {
						for range 4000 {
							time.Sleep(time.Millisecond) // in a synctest bubble
							if err := pool.Checkpoint(ctx); err != nil {
								return 0, err
							}
						}
						return 0, nil
					})
					jobs.Register(m, "parent", func(ctx context.Context, a args) (int, error) {
						return c.parent(ctx, p, func(ctx context.Context) (int, error) {
							j, _, err := l.Submit(ctx, "k", []byte(`{}`), jobs.SubmitOptions{})
							if err == nil {
								j, err = end(ctx, l, j.ID)
							}
							if err == nil && j.State != jobs.Succeeded {
								err = errors.New(j.Err)
							}
							return 0, err
						})
					})
					j, _, err := l.Submit(t.Context(), "parent", []byte(`{}`), jobs.SubmitOptions{})
					if err != nil {
						t.Fatal(err)
					}
					time.Sleep(2 * time.Second) // in a synctest bubble: what it waits for runs by now
					for range slots {
						go p.Do(context.Background(), func(context.Context) error {
							time.Sleep(time.Second) // in a synctest bubble
							return p.Resize(1)
						}, pool.WithPriority(7))
					}
					limited, cancel := context.WithTimeout(context.Background(), time.Minute)
					defer cancel()
					if j, err = end(limited, l, j.ID); err != nil || j.State != jobs.Succeeded {
						t.Errorf("it is %v: %s, %v", j.State, j.Err, err)
						p.Resize(100) // has them end
					}
					time.Sleep(time.Minute) // in a synctest bubble
					if s, ls := p.Stats(), l.Stats(); s.Used != 0 || s.Waiting != 0 || ls.Running != 0 {
						t.Errorf("in the end %d slots are used, %d wait, and %d jobs run", s.Used, s.Waiting, ls.Running)
					}
				})
			})
		}
	}
}

// A job that another one waits for gives its slot to whoever is more urgent, as often as somebody is, and is not left waiting while the other holds a slot
// for it.
func TestJobThatIsWaitedForGivesWay(t *testing.T) {
	for _, c := range []struct {
		takes time.Duration // each of those that are more urgent
		steps int           // of the job, 1 ms each
	}{
		{50 * time.Millisecond, 20_000},
		{time.Minute, 90_000},
	} {
		t.Run(c.takes.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := pool.New(pool.WithSlots(2), pool.WithQueue(10, time.Hour))
				l := waiting(p, jobs.SubmitOptions{}, func(ctx context.Context, a args) (int, error) {
					for range c.steps {
						time.Sleep(time.Millisecond) // in a synctest bubble
						if err := pool.Checkpoint(ctx); err != nil {
							return 0, err
						}
					}
					return 0, nil
				}, end)
				defer l.Close()
				j, _, err := l.Submit(t.Context(), "parent", []byte(`{}`), jobs.SubmitOptions{})
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second) // in a synctest bubble: both run by now
				began, n := time.Now(), 0
				for ; ; n++ {
					if j, err = l.Get(t.Context(), j.ID); err != nil || j.State.Final() {
						break
					}
					asked := time.Now()
					if err := p.Do(t.Context(), func(context.Context) error {
						if waited := time.Since(asked); waited > 15*time.Millisecond {
							t.Errorf("somebody more urgent has waited for %v", waited)
						}
						time.Sleep(c.takes) // in a synctest bubble
						return nil
					}, pool.WithPriority(7)); err != nil {
						t.Fatal(err)
					}
				}
				if took := time.Since(began); took > 3*time.Duration(c.steps)*time.Millisecond && c.takes > time.Second {
					t.Errorf("it took %v, beside %d tasks, for work of %d ms", took, n, c.steps)
				}
				if j.State != jobs.Succeeded {
					t.Errorf("it is %v: %s, %v", j.State, j.Err, err)
				}
			})
		})
	}
}

// A job that waits for one which does not run in its slot, and so computes nothing, has those use it meanwhile who are more urgent: one that is to be repeated
// in some minutes is waited for as long, and by default a machine of two cores has one slot. It goes on at once, since whoever has the slot by then may wait for what it holds.
func TestJobThatWaitsGivesWay(t *testing.T) {
	for _, c := range []struct {
		rule  string
		slots int
		opts  jobs.SubmitOptions
		k     func(ctx context.Context, a args) (int, error)
	}{
		{"for one that begins later", 1, jobs.SubmitOptions{NotBefore: time.Date(2000, 1, 1, 0, 2, 0, 0, time.UTC)}, func(context.Context, args) (int, error) { return 0, nil }},
		{"for one with a slot of its own", 2, jobs.SubmitOptions{}, func(context.Context, args) (int, error) {
			time.Sleep(2 * time.Minute) // in a synctest bubble
			return 0, nil
		}},
	} {
		t.Run(c.rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := pool.New(pool.WithSlots(c.slots))
				held := make(chan struct{}, 1) // what is held while it waits
				held <- struct{}{}
				l := waiting(p, c.opts, c.k, func(ctx context.Context, l *jobs.Local, id string) (jobs.Job, error) {
					<-held
					defer func() { held <- struct{}{} }()
					return end(ctx, l, id)
				})
				defer l.Close()
				began := time.Now()
				j, _, err := l.Submit(t.Context(), "parent", []byte(`{}`), jobs.SubmitOptions{})
				if err != nil {
					t.Fatal(err)
				}
				for i := range 10 {
					time.Sleep(5 * time.Second) // in a synctest bubble
					asked := time.Now()
					var waited time.Duration
					if err := p.Do(t.Context(), func(context.Context) error {
						waited = time.Since(asked)
						if i == 9 {
							held <- <-held
						}
						return nil
					}); err != nil || waited > 10*time.Millisecond {
						t.Fatalf("somebody more urgent has waited for %v: %v", waited, err)
					}
				}
				if j = final(t, l, j.ID); string(j.Result) != `"succeeded"` {
					t.Errorf("the other was %s to it, which is %v: %s", j.Result, j.State, j.Err)
				}
				if took := time.Since(began); took != 2*time.Minute {
					t.Errorf("it took %v, want 2m", took)
				}
				synctest.Wait()
				if s := p.Stats(); s.Used != 0 {
					t.Errorf("%d slots are used in the end", s.Used)
				}
			})
		})
	}
}

// A task of the pool that is no job, as that of a request, may wait for jobs as well: they run in its slot, which it takes again at once.
func TestTaskThatWaitsForJobs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pool.New(pool.WithSlots(2), pool.WithQueue(100, time.Minute))
		m := jobs.NewMux()
		l := jobs.NewLocal(m, p)
		defer l.Close()
		var computing, most atomic.Int64
		jobs.Register(m, "k", func(context.Context, args) (int, error) {
			most.Store(max(most.Load(), computing.Add(1)))
			time.Sleep(time.Second) // in a synctest bubble
			computing.Add(-1)
			return 0, nil
		})
		began := time.Now()
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() {
				if err := p.Do(t.Context(), func(ctx context.Context) error {
					var both sync.WaitGroup
					for range 2 {
						both.Go(func() {
							j, _, err := l.Submit(ctx, "k", []byte(`{}`), jobs.SubmitOptions{})
							if err == nil {
								j, err = end(ctx, l, j.ID)
							}
							if err != nil || j.State != jobs.Succeeded {
								t.Errorf("%v: %v", j.State, err)
							}
						})
					}
					both.Wait()
					return nil
				}); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		// There is work for 20 s in two slots. Each task has one for 10 ms before, and for up to 100 ms between its two jobs.
		if took := time.Since(began); took > 11*time.Second || most.Load() > 2 {
			t.Errorf("it took %v, and %d jobs ran at a time; want 10s and 2", took, most.Load())
		}
		synctest.Wait()
		if s := p.Stats(); s.Used != 0 {
			t.Errorf("%d slots are used in the end", s.Used)
		}
	})
}

// However many tasks wait for jobs, these have a slot.
func TestManyTasksThatWaitForJobs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pool.New(pool.WithSlots(2), pool.WithQueue(2000, 24*time.Hour))
		m := jobs.NewMux()
		l := jobs.NewLocal(m, p)
		defer l.Close()
		jobs.Register(m, "k", func(context.Context, args) (int, error) { return 0, nil })
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		var all sync.WaitGroup
		for range 1100 {
			all.Go(func() {
				if err := p.Do(ctx, func(ctx context.Context) error {
					j, _, err := l.Submit(ctx, "k", []byte(`{}`), jobs.SubmitOptions{NotBefore: time.Now().Add(time.Minute)})
					if err == nil {
						_, err = end(ctx, l, j.ID)
					}
					return err
				}); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		synctest.Wait()
		if s := p.Stats(); s.Used != 0 {
			t.Errorf("%d slots are used in the end", s.Used)
		}
	})
}

// counted counts how often somebody waits for its end.
type counted struct {
	context.Context
	n *atomic.Int64
}

func (c counted) Done() <-chan struct{} {
	c.n.Add(1)
	return c.Context.Done()
}

// Who waits for a job wakes up seldom: not at all by time where he has no slot, or none any more, and of the goroutines of a job only one looks often whether
// somebody is more urgent, for as long as it waits.
func TestWatchersSleep(t *testing.T) {
	for _, c := range []struct {
		rule  string
		enter func(context.Context, *pool.Pool) context.Context
		job   bool
		most  int64 // of 100 watchers in 10 s
	}{
		{"without a slot", func(ctx context.Context, _ *pool.Pool) context.Context { return ctx }, false, 200},
		{"in a slot that is given back", func(ctx context.Context, p *pool.Pool) context.Context {
			ctx, s, err := p.Enter(ctx)
			if err != nil {
				t.Error(err)
			}
			s.Leave()
			return ctx
		}, false, 200},
		{"in a job", nil, true, 15_000},
	} {
		t.Run(c.rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := pool.New(pool.WithSlots(1))
				m := jobs.NewMux()
				l := jobs.NewLocal(m, p)
				defer l.Close()
				in := make(chan context.Context, 1)
				jobs.Register(m, "child", func(context.Context, args) (int, error) { return 0, nil })
				jobs.Register(m, "parent", func(ctx context.Context, _ args) (int, error) {
					in <- ctx
					<-ctx.Done()
					return 0, nil
				})
				child, _, err := l.Submit(t.Context(), "child", []byte(`{}`), jobs.SubmitOptions{NotBefore: time.Now().Add(time.Hour)})
				if err != nil {
					t.Fatal(err)
				}
				if c.job {
					if _, _, err := l.Submit(t.Context(), "parent", []byte(`{}`), jobs.SubmitOptions{}); err != nil {
						t.Fatal(err)
					}
				} else {
					in <- c.enter(t.Context(), p)
				}
				ctx, cancel := context.WithCancel(<-in)
				first, leave := context.WithTimeout(ctx, 10500*time.Millisecond)
				defer leave()
				var n atomic.Int64
				var all sync.WaitGroup
				watch := func(ctx context.Context) {
					all.Go(func() {
						for range l.Watch(counted{ctx, &n}, child.ID) {
						}
					})
				}
				watch(first)
				time.Sleep(5 * time.Millisecond) // in a synctest bubble
				for range 99 {
					watch(ctx)
				}
				time.Sleep(10 * time.Second) // in a synctest bubble
				if n := n.Load(); n > c.most {
					t.Errorf("they woke up %d times; want at most %d", n, c.most)
				}
				time.Sleep(time.Second) // in a synctest bubble; the first has left by now
				began := time.Now()
				if err := p.Do(t.Context(), func(context.Context) error { return nil }); err != nil || time.Since(began) > 100*time.Millisecond {
					t.Errorf("a request waited for %v: %v", time.Since(began), err)
				}
				cancel()
				all.Wait()
			})
		})
	}
}

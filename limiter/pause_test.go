package limiter_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/limiter"
)

// What pauses leaves its permit to others, and has one again before it goes on.
func TestPause(t *testing.T) {
	for name, c := range map[string]*limiter.Concurrency{
		"fixed":    limiter.NewConcurrency(2, limiter.WithQueue(4, time.Second)),
		"adaptive": limiter.NewAdaptive(limiter.WithLimits(2, 2)),
	} {
		t.Run(name, func(t *testing.T) {
			r := limiter.Request{Weight: 2, Client: "a"}
			old := concMust(t, c, r)
			concFull(t, c)
			p := old.Pause()
			old.Release(limiter.Failure) // what it was is over
			if same := old.Pause(); same != old {
				t.Error("a permit that is released pauses")
			}
			if s := c.Stats(); s.InFlight != 0 || s.Admitted != 1 || s.Failure != 0 {
				t.Errorf("paused: %+v", s)
			}
			other := concMust(t, c, limiter.Request{Weight: 2})
			other.Release(limiter.Success)
			q, err := p.Resume(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			concFull(t, c)
			p.Release(limiter.Failure)
			q.Release(limiter.Success)
			q.Release(limiter.Success)
			if s := c.Stats(); s.InFlight != 0 || s.Admitted != 2 || s.Success != 2 || s.Failure != 0 || s.Ignored != 0 {
				t.Errorf("after all: %+v", s)
			}
			p = concMust(t, c, r).Pause()
			p.Release(limiter.Failure) // it does not go on
			if q, err := p.Resume(t.Context(), r); q != p || err != nil {
				t.Errorf("a permit that is released resumes: %v", err)
			}
			if s := c.Stats(); s.InFlight != 0 || s.Admitted != 3 || s.Failure != 1 {
				t.Errorf("released while paused: %+v", s)
			}
			concMust(t, c, r).Release(limiter.Ignored)
		})
	}
	var none limiter.Permit
	if p, err := none.Pause().Resume(t.Context(), limiter.Request{}); p != none || err != nil {
		t.Errorf("a permit for nothing: %v", err)
	}
}

func TestPauseAllocatesNothing(t *testing.T) {
	if concRace {
		t.Skip("the race detector allocates")
	}
	for name, c := range map[string]*limiter.Concurrency{"fixed": limiter.NewConcurrency(1), "adaptive": limiter.NewAdaptive()} {
		p := concMust(t, c, limiter.Request{})
		if n := testing.AllocsPerRun(100, func() { p, _ = p.Pause().Resume(context.Background(), limiter.Request{}) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// What goes on waits where it would have waited from the beginning: before all that came since, in the queue of its client.
func TestResumeHasItsPlace(t *testing.T) {
	tests := []struct {
		name string
		r    limiter.Request
		join []limiter.Request
		want []string
	}{
		{"before what came since", limiter.Request{}, []limiter.Request{{}, {}}, []string{"it", "0", "1"}},
		{"behind a higher priority", limiter.Request{}, []limiter.Request{{Priority: 1}, {}}, []string{"0", "it", "1"}},
		{"of its client", limiter.Request{Client: "a"}, []limiter.Request{{Client: "b"}, {Client: "b"}, {Client: "a"}}, []string{"0", "it", "1", "2"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				// The places are all taken: who goes on is not refused for that, and drives nobody out.
				c := limiter.NewConcurrency(1, limiter.WithQueue(len(test.join), time.Minute))
				q := concCrowdOf(t, c, 10*time.Millisecond)
				test.r.Arrived = time.Now()
				p := concMust(t, c, test.r).Pause()
				holds := concMust(t, c, limiter.Request{Client: "c"})
				for i, r := range test.join {
					time.Sleep(time.Millisecond) // in a synctest bubble
					q.join(t.Context(), string('0'+rune(i)), r)
				}
				q.wg.Go(func() {
					p, err := p.Resume(t.Context(), test.r)
					if err != nil {
						t.Error(err)
					}
					q.mu.Lock()
					q.served = append(q.served, "it")
					q.mu.Unlock()
					time.Sleep(10 * time.Millisecond) // in a synctest bubble
					if n := c.Stats().InFlight; n != 1 {
						t.Errorf("%d in flight", n)
					}
					p.Release(limiter.Success)
				})
				synctest.Wait()
				holds.Release(limiter.Success)
				q.wg.Wait()
				if !slices.Equal(q.served, test.want) {
					t.Errorf("served %v, want %v", q.served, test.want)
				}
			})
		})
	}
}

// Those that have the permits wait for what the paused work holds: it goes on beyond the limit, one for each time in which nobody else was
// granted a permit, and nobody else begins before there is room again.
func TestResumeBeyondTheLimit(t *testing.T) {
	for name, c := range map[string]func() *limiter.Concurrency{
		"fixed":    func() *limiter.Concurrency { return limiter.NewConcurrency(2, limiter.WithQueue(4, time.Hour)) },
		"adaptive": func() *limiter.Concurrency { return limiter.NewAdaptive(limiter.WithLimits(2, 2)) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const stall = time.Millisecond + 5*time.Second
				c := c()
				began := time.Now()
				var locks [3]chan bool // one for each that pauses; two of them keep all others waiting
				var paused [3]limiter.Permit
				for i := range paused {
					locks[i] = make(chan bool)
					paused[i] = concMust(t, c, limiter.Request{}).Pause()
				}
				time.Sleep(time.Millisecond) // in a synctest bubble
				var wg sync.WaitGroup
				for i := range 2 {
					p := concMust(t, c, limiter.Request{})
					wg.Go(func() {
						<-locks[i]
						p.Release(limiter.Success)
					})
				}
				synctest.Wait()
				var back [3]time.Duration
				for i, p := range paused {
					wg.Go(func() {
						p, err := p.Resume(t.Context(), limiter.Request{Arrived: began.Add(time.Duration(i))})
						if err != nil {
							t.Error(err)
						}
						back[i] = time.Since(began)
						if n := c.Stats().InFlight; i == 0 && n != 3 {
							t.Errorf("%d in flight beyond a limit of 2, want 3", n)
						}
						time.Sleep(10 * time.Millisecond) // in a synctest bubble
						close(locks[i])
						p.Release(limiter.Success)
					})
				}
				wg.Wait()
				want := [3]time.Duration{stall, stall + 10*time.Millisecond, stall + 10*time.Millisecond}
				if back[0] != want[0] || back[1] < want[1] || back[1] > want[1]+10*time.Millisecond || back[2] > want[2]+20*time.Millisecond {
					t.Errorf("back after %v, want about %v", back, want)
				}
				if s := c.Stats(); s.InFlight != 0 || s.Queued != 0 || s.Success != 5 {
					t.Errorf("%+v", s)
				}
			})
		})
	}
}

// How long nobody else may be granted a permit before that follows from how long it usually takes.
func TestResumeBeyondTheLimitInTime(t *testing.T) {
	for _, x := range []struct{ took, want time.Duration }{
		{time.Millisecond, 250 * time.Millisecond},
		{time.Second, 10 * time.Second},
		{time.Hour, time.Minute},
	} {
		t.Run(x.took.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := limiter.NewConcurrency(1, limiter.WithQueue(10, 24*time.Hour))
				q := concCrowdOf(t, c, x.took)
				for range 10 {
					q.join(t.Context(), "", limiter.Request{})
				}
				q.wg.Wait()
				p := concMust(t, c, limiter.Request{}).Pause()
				holds := concMust(t, c, limiter.Request{})
				began := time.Now()
				p, err := p.Resume(t.Context(), limiter.Request{})
				if took := time.Since(began); err != nil || took != x.want {
					t.Errorf("%v after %v, want %v", err, took, x.want)
				}
				p.Release(limiter.Success)
				holds.Release(limiter.Success)
			})
		})
	}
}

// As long as others are granted permits, what goes on waits for its turn, however long that takes.
func TestResumeKeepsTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n, took = 50, 200 * time.Millisecond
		c := limiter.NewConcurrency(2, limiter.WithQueue(1, time.Second))
		var paused []limiter.Permit
		for range n {
			paused = append(paused, concMust(t, c, limiter.Request{}).Pause())
		}
		began := time.Now()
		var wg sync.WaitGroup
		for _, p := range paused {
			wg.Go(func() {
				p, err := p.Resume(t.Context(), limiter.Request{})
				if err != nil {
					t.Error(err)
				}
				if n := c.Stats().InFlight; n > 2 {
					t.Errorf("%d in flight", n)
				}
				time.Sleep(took) // in a synctest bubble
				p.Release(limiter.Success)
			})
		}
		wg.Wait()
		if d := time.Since(began); d != n/2*took {
			t.Errorf("took %v, want %v", d, n/2*took)
		}
	})
}

// Whose context ends while it waits to go on has no permit, and is counted once.
func TestResumeLeaves(t *testing.T) {
	for name, c := range map[string]func() *limiter.Concurrency{
		"fixed":    func() *limiter.Concurrency { return limiter.NewConcurrency(1) },
		"adaptive": func() *limiter.Concurrency { return limiter.NewAdaptive(limiter.WithLimits(1, 1)) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := c()
				p := concMust(t, c, limiter.Request{}).Pause()
				holds := concMust(t, c, limiter.Request{})
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				defer cancel()
				began := time.Now()
				q, err := p.Resume(ctx, limiter.Request{})
				if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || q != (limiter.Permit{}) || took != 100*time.Millisecond {
					t.Errorf("%v after %v", err, took)
				}
				p.Release(limiter.Success)
				holds.Release(limiter.Success)
				if s := c.Stats(); s.InFlight != 0 || s.Queued != 0 || s.Admitted != 2 || s.Success != 1 || s.Ignored != 1 || s.Left != 1 {
					t.Errorf("%+v", s)
				}
				concMust(t, c, limiter.Request{}).Release(limiter.Ignored)
			})
		})
	}
}

// The time of a pause is no time in service, and while everything is paused nothing is at work.
func TestPauseIsNoWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ms = time.Millisecond
		c := limiter.NewAdaptive()
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for range 2000 {
					p := concMust(t, c, limiter.Request{})
					time.Sleep(3 * ms) // in a synctest bubble
					p = p.Pause()
					time.Sleep(50 * ms) // in a synctest bubble
					p, err := p.Resume(t.Context(), limiter.Request{})
					if err != nil {
						t.Error(err)
					}
					time.Sleep(2 * ms) // in a synctest bubble
					p.Release(limiter.Success)
				}
			})
		}
		wg.Wait()
		if s := c.Stats(); (s.Latency-5*ms).Abs() > ms/10 || s.Success != 8000 {
			t.Errorf("%+v", s)
		}
	})
}

// Where nothing is refused there is nothing to wait for, either.
func TestResumeInShadow(t *testing.T) {
	c := limiter.NewConcurrency(1, limiter.WithShadow())
	p := concMust(t, c, limiter.Request{}).Pause()
	holds := concMust(t, c, limiter.Request{})
	p, err := p.Resume(t.Context(), limiter.Request{})
	if err != nil {
		t.Error(err)
	}
	p.Release(limiter.Success)
	holds.Release(limiter.Success)
	if s := c.Stats(); s.InFlight != 0 || s.Success != 2 || s.Shed != 0 {
		t.Errorf("%+v", s)
	}
}

package limiter_test

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/limiter"
)

func concMust(t *testing.T, c *limiter.Concurrency, r limiter.Request) limiter.Permit {
	t.Helper()
	p, ok := c.TryAcquire(r)
	if !ok {
		t.Fatalf("no permit for %+v; %+v", r, c.Stats())
	}
	return p
}

func concFull(t *testing.T, c *limiter.Concurrency) {
	t.Helper()
	if p, ok := c.TryAcquire(limiter.Request{}); ok {
		p.Release(limiter.Ignored)
		t.Fatalf("a permit beyond the limit; %+v", c.Stats())
	}
}

func TestConcurrencyLimitHolds(t *testing.T) {
	c := limiter.NewConcurrency(2)
	a := concMust(t, c, limiter.Request{})
	b := concMust(t, c, limiter.Request{})
	concFull(t, c)
	if _, err := c.Acquire(t.Context(), limiter.Request{}); !errors.Is(err, limiter.ErrSaturated) {
		t.Fatalf("Acquire without a line: %v, want ErrSaturated", err)
	}
	a.Release(limiter.Success)
	a.Release(limiter.Success)
	again := a
	again.Release(limiter.Failure)
	d := concMust(t, c, limiter.Request{})
	a.Release(limiter.Success) // the slot may be d's by now
	concFull(t, c)
	b.Release(limiter.Failure)
	d.Release(limiter.Ignored)
	limiter.Permit{}.Release(limiter.Success)
	s := c.Stats()
	if s.InFlight != 0 || s.Admitted != 3 || s.Success != 1 || s.Failure != 1 || s.Ignored != 1 || s.Shed != 3 || s.Full != 3 {
		t.Errorf("after all: %+v", s)
	}
}

func TestConcurrencyWeights(t *testing.T) {
	c := limiter.NewConcurrency(4)
	p := concMust(t, c, limiter.Request{Weight: 3})
	if _, ok := c.TryAcquire(limiter.Request{Weight: 2}); ok {
		t.Fatal("3 + 2 of 4")
	}
	q := concMust(t, c, limiter.Request{Weight: 1})
	p.Release(limiter.Success)
	q.Release(limiter.Success)
	p = concMust(t, c, limiter.Request{Weight: 100}) // runs alone
	concFull(t, c)
	p.Release(limiter.Success)
	if s := c.Stats(); s.InFlight != 0 {
		t.Errorf("in flight: %d", s.InFlight)
	}
}

func TestConcurrencyHeavyIsNotPassed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := limiter.NewConcurrency(4, limiter.WithQueue(10, time.Minute))
		var light []limiter.Permit
		for range 4 {
			light = append(light, concMust(t, c, limiter.Request{}))
		}
		var order []int
		var mu sync.Mutex
		for i, w := range []int{4, 1} {
			go func() {
				p, err := c.Acquire(t.Context(), limiter.Request{Weight: w})
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				order = append(order, i)
				mu.Unlock()
				p.Release(limiter.Success)
			}()
			synctest.Wait()
		}
		for i, p := range light {
			if i < 3 && len(order) != 0 {
				t.Fatal("admitted past the heavy one at the head")
			}
			p.Release(limiter.Success)
			synctest.Wait()
		}
		if len(order) != 2 || order[0] != 0 {
			t.Errorf("order %v, want the heavy one first", order)
		}
	})
}

func TestConcurrencySetLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := limiter.NewConcurrency(1, limiter.WithQueue(10, time.Minute))
		wrong := []int{0, -3, math.MaxInt}
		if strconv.IntSize == 32 {
			wrong = wrong[:2] // no int is too high
		}
		for _, n := range wrong {
			if err := c.SetLimit(n); err == nil || !strings.Contains(err.Error(), "from 1 to 1125899906842624") || c.Limit() != 1 {
				t.Errorf("SetLimit(%d): error %v, limit %d", n, err, c.Limit())
			}
		}
		var in atomic.Int32
		hold := make(chan struct{})
		for range 5 {
			go func() {
				p, err := c.Acquire(t.Context(), limiter.Request{})
				if err != nil {
					t.Error(err)
				}
				in.Add(1)
				<-hold
				p.Release(limiter.Success)
			}()
		}
		synctest.Wait()
		if in.Load() != 1 {
			t.Fatalf("%d in flight at limit 1", in.Load())
		}
		if err := c.SetLimit(3); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if in.Load() != 3 {
			t.Fatalf("%d in flight at limit 3", in.Load())
		}
		c.SetLimit(1)
		hold <- struct{}{}
		synctest.Wait()
		if in.Load() != 3 {
			t.Fatalf("admitted at 2 in flight with limit 1")
		}
		close(hold)
		synctest.Wait()
	})
}

// Work that weighs more than the limit when it comes weighs what it does if the limit is higher when its turn comes.
func TestConcurrencySetLimitForTheHeavy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := limiter.NewConcurrency(1, limiter.WithQueue(10, time.Minute))
		p := concMust(t, c, limiter.Request{})
		q := concCrowdOf(t, c, time.Second)
		q.join(t.Context(), "heavy", limiter.Request{Weight: 5})
		if err := c.SetLimit(10); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if s := c.Stats(); s.InFlight != 6 || s.Queued != 0 {
			t.Errorf("weights 1 and 5 at limit 10: %+v", s)
		}
		p.Release(limiter.Success)
		q.wg.Wait()
	})
}

func TestConcurrencyLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := limiter.NewConcurrency(1, limiter.WithQueue(2, time.Second))
		p := concMust(t, c, limiter.Request{})
		type result struct {
			i    int
			err  error
			wait time.Duration
		}
		results := make(chan result, 10)
		ctx, cancel := context.WithCancel(t.Context())
		ask := func(i int, ctx context.Context) {
			start := time.Now()
			p, err := c.Acquire(ctx, limiter.Request{})
			results <- result{i, err, time.Since(start)}
			if err == nil {
				p.Release(limiter.Success)
			}
		}
		go ask(0, ctx)
		synctest.Wait()
		go ask(1, t.Context())
		synctest.Wait()
		go ask(2, t.Context()) // no place
		if r := <-results; r.i != 2 || !errors.Is(r.err, limiter.ErrSaturated) || r.wait != 0 {
			t.Errorf("third of a line of two: %+v", r)
		}
		cancel()
		if r := <-results; r.i != 0 || r.err != context.Canceled || r.wait != 0 {
			t.Errorf("context ended: %+v", r)
		}
		if r := <-results; r.i != 1 || !errors.Is(r.err, limiter.ErrSaturated) || r.wait < time.Second || r.wait > time.Second+time.Millisecond {
			t.Errorf("waited too long: %+v", r)
		}
		concFull(t, c)
		p.Release(limiter.Success)
		s := c.Stats()
		if s.Full != 2 || s.Left != 1 || s.Expired != 1 || s.Queued != 0 || s.InFlight != 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestConcurrencyDeadlineRefusedInAdvance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := limiter.NewConcurrency(1, limiter.WithQueue(100, time.Minute))
		for range 20 {
			go func() {
				p, err := c.Acquire(t.Context(), limiter.Request{})
				if err != nil {
					t.Error(err)
					return
				}
				time.Sleep(100 * time.Millisecond) // in a synctest bubble
				p.Release(limiter.Success)
			}()
		}
		time.Sleep(1050 * time.Millisecond) // in a synctest bubble: ten are done, nine wait
		ctx, cancel := context.WithTimeout(t.Context(), 800*time.Millisecond)
		defer cancel()
		_, err := c.Acquire(ctx, limiter.Request{})
		var e *limiter.Error
		if !errors.Is(err, limiter.ErrWouldMissDeadline) || !errors.As(err, &e) || e.RetryAfter < 900*time.Millisecond || e.RetryAfter > 1300*time.Millisecond {
			t.Errorf("nine in front at 100 ms each with 800 ms to go: %v", err)
		}
		ctx, cancel = context.WithTimeout(t.Context(), 1200*time.Millisecond)
		defer cancel()
		if _, err := c.Acquire(ctx, limiter.Request{Work: 500 * time.Millisecond}); !errors.Is(err, limiter.ErrWouldMissDeadline) {
			t.Errorf("the work itself does not fit: %v", err)
		}
		p, err := c.Acquire(ctx, limiter.Request{})
		if err != nil {
			t.Errorf("it can be met: %v", err)
		}
		p.Release(limiter.Success)
	})
}

// Nothing is refused for a deadline that there is not, nor for one that is over where a permit is free and no time was asked for.
func TestConcurrencyFreePermitIsGiven(t *testing.T) {
	over, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Hour))
	defer cancel()
	for name, k := range map[string]struct {
		ctx context.Context
		r   limiter.Request
		ok  bool
	}{
		"work and no deadline":                   {t.Context(), limiter.Request{Work: time.Hour}, true},
		"a deadline that is over, and no work":   {over, limiter.Request{}, true},
		"a deadline that is over, and some work": {over, limiter.Request{Work: 1}, false},
	} {
		for kind, c := range map[string]*limiter.Concurrency{"fixed": limiter.NewConcurrency(1), "adaptive": limiter.NewAdaptive()} {
			p, err := c.Acquire(k.ctx, k.r)
			p.Release(limiter.Ignored)
			if err == nil != k.ok || err != nil && !errors.Is(err, limiter.ErrWouldMissDeadline) {
				t.Errorf("%s, %s: %v", name, kind, err)
			}
		}
	}
}

// What is foretold of the line counts by weight: so much has to be served before a newcomer.
func TestConcurrencyForetellsByWeight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := limiter.NewConcurrency(10, limiter.WithQueue(100, time.Minute))
		q := concCrowdOf(t, c, 100*time.Millisecond)
		for range 20 {
			q.join(t.Context(), "before", limiter.Request{Weight: 10})
		}
		time.Sleep(1050 * time.Millisecond) // in a synctest bubble: ten are done, nine wait
		if d := c.Stats().RetryAfter; d < 900*time.Millisecond || d > 1300*time.Millisecond {
			t.Errorf("nine wait, each for all permits and for 100 ms: come back after %v", d)
		}
		for _, left := range []time.Duration{800 * time.Millisecond, 1200 * time.Millisecond} {
			ctx, cancel := context.WithTimeout(t.Context(), left)
			defer cancel()
			q.join(ctx, left.String(), limiter.Request{Weight: 10})
		}
		q.wg.Wait()
		if err := q.refused["800ms"]; !errors.Is(err, limiter.ErrWouldMissDeadline) {
			t.Errorf("nine in front at 100 ms each with 800 ms to go: %v", err)
		}
		if err := q.refused["1.2s"]; err != nil {
			t.Errorf("it can be met: %v", err)
		}
	})
}

// What is foretold follows the service: it is by the last grants, however many there were before.
func TestConcurrencyForetellsByTheLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := limiter.NewConcurrency(1, limiter.WithQueue(10, time.Hour))
		p := concMust(t, c, limiter.Request{})
		next := make(chan limiter.Permit)
		wait := func() {
			go func() {
				p, err := c.Acquire(t.Context(), limiter.Request{})
				if err != nil {
					t.Error(err)
				}
				next <- p
			}()
			synctest.Wait()
		}
		wait()
		round := func(n int, each time.Duration) {
			for range n {
				wait()
				time.Sleep(each) // in a synctest bubble
				p.Release(limiter.Success)
				p = <-next
			}
		}
		round(1000, 10*time.Millisecond)
		round(100, time.Second)
		if d := c.Stats().RetryAfter; d < 1800*time.Millisecond || d > 2200*time.Millisecond {
			t.Errorf("one waits and one is at work, for a second each, and who is refused is to come back after %v", d)
		}
		p.Release(limiter.Success)
		(<-next).Release(limiter.Success)
	})
}

// Under a lasting overload of work that varies, few wait for as long as they can and then are not served.
func TestConcurrencyFewWaitInVain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const patience = 400 * time.Millisecond
		c := limiter.NewConcurrency(1, limiter.WithQueue(1000, time.Minute))
		rnd := rand.New(rand.NewPCG(1, 1))
		var wg sync.WaitGroup
		var served, vain int
		var mu sync.Mutex
		for range 4000 {
			time.Sleep(time.Duration(10 * rnd.ExpFloat64() * float64(time.Millisecond))) // in a synctest bubble
			takes := time.Duration(20 * rnd.ExpFloat64() * float64(time.Millisecond))
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				came := time.Now()
				p, err := c.Acquire(ctx, limiter.Request{})
				mu.Lock()
				if err == nil {
					served++
				} else if time.Since(came) > 0 {
					vain++
				}
				mu.Unlock()
				if err == nil {
					time.Sleep(takes) // in a synctest bubble
					p.Release(limiter.Success)
				}
			})
		}
		wg.Wait()
		t.Logf("%d were served, %d waited in vain", served, vain)
		if served < 1800 || vain > served/20 {
			t.Errorf("%d were served, want about 2,000, and %d waited in vain, want a twentieth of that at most", served, vain)
		}
	})
}

// A deadline that can be met is no reason to refuse, however long the line is.
func TestConcurrencyDeadlineThatCanBeMet(t *testing.T) {
	const service = 10 * time.Millisecond
	for _, k := range []struct {
		name string
		opts []limiter.ConcurrencyOption
		line func(t *testing.T, q *concCrowd) // brings the others into the line
		r    limiter.Request
		left time.Duration
	}{
		{"a flood, many small clients and some of its own before it",
			[]limiter.ConcurrencyOption{limiter.WithQueue(2000, time.Hour)},
			func(t *testing.T, q *concCrowd) {
				p := concMust(t, q.c, limiter.Request{})
				for range 500 {
					q.join(t.Context(), "flood", limiter.Request{Client: "flood"})
				}
				for i := range 48 {
					q.join(t.Context(), "small", limiter.Request{Client: strconv.Itoa(i)})
				}
				for range 10 {
					q.join(t.Context(), "own", limiter.Request{Client: "own"})
				}
				time.AfterFunc(1, func() { p.Release(limiter.Success) })
			},
			limiter.Request{Client: "own"}, 100 * service},
		{"newest first, and all others have a higher priority",
			[]limiter.ConcurrencyOption{limiter.WithQueue(1000, 2*time.Second), limiter.WithCoDel(time.Second), limiter.WithPriorityStep(time.Millisecond)},
			func(t *testing.T, q *concCrowd) {
				for range 1000 {
					q.join(t.Context(), "other", limiter.Request{Priority: 1})
					time.Sleep(service / 2) // in a synctest bubble
				}
				if !q.c.Stats().NewestFirst {
					t.Fatalf("not a standing queue: %+v", q.c.Stats())
				}
			},
			limiter.Request{}, 30 * service},
	} {
		t.Run(k.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := limiter.NewConcurrency(1, k.opts...)
				q := concCrowdOf(t, c, service)
				for range 20 { // it is known how fast the line moves
					q.join(t.Context(), "first", limiter.Request{})
				}
				q.wg.Wait()
				k.line(t, q)
				ctx, cancel := context.WithTimeout(t.Context(), k.left)
				defer cancel()
				q.join(ctx, "it", k.r)
				q.wg.Wait()
				if err := q.refused["it"]; err != nil {
					t.Errorf("with %v to go: %v", k.left, err)
				}
			})
		})
	}
}

// How slow the line once was is no reason to refuse in one that has formed since.
func TestConcurrencyOldLineForetellsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := limiter.NewConcurrency(4, limiter.WithQueue(100, time.Hour))
		slow := concCrowdOf(t, c, 30*time.Second) // a dependency hangs until its timeout
		for range 60 {
			slow.join(t.Context(), "slow", limiter.Request{})
		}
		slow.wg.Wait()
		if s := c.Stats(); s.Deadline != 0 || s.RetryAfter < 5*time.Second {
			t.Fatalf("%+v", s)
		}
		quick := concCrowdOf(t, c, 5*time.Millisecond)
		for range 20 {
			time.Sleep(10 * time.Second) // in a synctest bubble
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			for range 12 {
				quick.join(ctx, "quick", limiter.Request{})
			}
			quick.wg.Wait()
			cancel()
		}
		if s := c.Stats(); s.Deadline != 0 || s.RetryAfter > 100*time.Millisecond {
			t.Errorf("twelve at a time, 5 ms each, with 5 s to go: %+v", s)
		}
	})
}

// Work that takes longer than its deadline leaves is refused at once, though there is room.
func TestConcurrencyWorkInVain(t *testing.T) {
	for name, k := range map[string]struct {
		make   func(...limiter.ConcurrencyOption) *limiter.Concurrency
		shadow bool
	}{
		"fixed": {func(o ...limiter.ConcurrencyOption) *limiter.Concurrency {
			return limiter.NewConcurrency(1, append(o, limiter.WithQueue(1, time.Second))...)
		}, false},
		"fixed, without a line": {func(o ...limiter.ConcurrencyOption) *limiter.Concurrency { return limiter.NewConcurrency(1, o...) }, false},
		"adaptive":              {limiter.NewAdaptive, false},
		"fixed, shadow": {func(o ...limiter.ConcurrencyOption) *limiter.Concurrency {
			return limiter.NewConcurrency(1, append(o, limiter.WithShadow())...)
		}, true},
		"adaptive, shadow": {func(o ...limiter.ConcurrencyOption) *limiter.Concurrency {
			return limiter.NewAdaptive(append(o, limiter.WithShadow())...)
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var shed, admitted int64
				c := k.make(limiter.WithConcurrencyTrace(limiter.ConcurrencyTrace{
					Admitted: func(limiter.Request, time.Duration) { admitted++ },
					Shed: func(_ limiter.Request, err error, waited time.Duration) {
						if shed++; !errors.Is(err, limiter.ErrWouldMissDeadline) || waited != 0 {
							t.Errorf("told %v after %v", err, waited)
						}
					},
				}))
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				defer cancel()
				for range 100 {
					p, err := c.Acquire(ctx, limiter.Request{Work: 101 * time.Millisecond})
					if k.shadow && err != nil || !k.shadow && !errors.Is(err, limiter.ErrWouldMissDeadline) {
						t.Fatal(err)
					}
					p.Release(limiter.Success)
				}
				want := int64(0)
				if k.shadow {
					want = 100
				}
				s := c.Stats()
				if s.Deadline != 100 || s.Shed != 100 || shed != 100 || s.Admitted != want || admitted != want || s.InFlight != 0 || s.ShedFraction != 0 {
					t.Errorf("told of %d refused and %d admitted; %+v", shed, admitted, s)
				}
				p, err := c.Acquire(ctx, limiter.Request{Work: 100 * time.Millisecond})
				if err != nil {
					t.Errorf("work that fits exactly: %v", err)
				}
				p.Release(limiter.Success)
			})
		})
	}
}

// Who waits is sent away as soon as its work can not be done in time any more, wherever it stands in the line; the others wait on, and who
// could still begin, even if at the last moment, does.
func TestConcurrencyWaitsInVain(t *testing.T) {
	for name, c := range map[string]func(...limiter.ConcurrencyOption) *limiter.Concurrency{
		"fixed": func(o ...limiter.ConcurrencyOption) *limiter.Concurrency {
			return limiter.NewConcurrency(2, append(o, limiter.WithQueue(10, time.Hour))...)
		},
		"adaptive": func(o ...limiter.ConcurrencyOption) *limiter.Concurrency {
			return limiter.NewAdaptive(append(o, limiter.WithStart(2), limiter.WithLimits(2, 2), limiter.WithoutYield())...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const second = time.Second
				var told atomic.Int64
				c := c(limiter.WithConcurrencyTrace(limiter.ConcurrencyTrace{
					Shed: func(limiter.Request, error, time.Duration) { told.Add(1) },
				}))
				first, err := c.Acquire(t.Context(), limiter.Request{Weight: 2})
				if err != nil {
					t.Fatal(err)
				}
				start := time.Now()
				ask := func(deadline time.Duration, r limiter.Request, want error, after time.Duration) {
					go func() {
						ctx, cancel := context.WithDeadline(t.Context(), start.Add(deadline))
						defer cancel()
						p, err := c.Acquire(ctx, r)
						if took := time.Since(start).Truncate(time.Millisecond); !errors.Is(err, want) || took != after {
							t.Errorf("with work of %v and %v to go: %v after %v, want %v after %v", r.Work, deadline, err, took, want, after)
						}
						if err == nil {
							p.Release(limiter.Success)
						}
					}()
					synctest.Wait()
				}
				ask(4*second, limiter.Request{Work: second, Weight: 2}, nil, 3*second)
				ask(4*second, limiter.Request{Work: 3 * second}, limiter.ErrWouldMissDeadline, second)
				ask(4*second, limiter.Request{Work: 2 * second}, limiter.ErrWouldMissDeadline, 2*second)
				ask(2*second, limiter.Request{}, context.DeadlineExceeded, 2*second)
				ask(4*second, limiter.Request{}, nil, 3*second)
				time.Sleep(2*second + second/2) // in a synctest bubble
				if s := c.Stats(); s.Queued != 2 || s.Deadline != 2 || s.Left != 1 || told.Load() != 3 {
					t.Errorf("told of %d: %+v", told.Load(), s)
				}
				time.Sleep(second / 2) // in a synctest bubble
				first.Release(limiter.Success)
				synctest.Wait()
				if s := c.Stats(); s.Queued != 0 || s.InFlight != 0 || s.Admitted != 3 || s.Success != 3 {
					t.Errorf("%+v", s)
				}
			})
		})
	}
}

func TestConcurrencyNeverExceeds(t *testing.T) {
	for name, c := range map[string]*limiter.Concurrency{
		"fixed":         limiter.NewConcurrency(3),
		"fixed, line":   limiter.NewConcurrency(3, limiter.WithQueue(4, time.Minute)),
		"adaptive at 3": limiter.NewAdaptive(limiter.WithLimits(1, 3), limiter.WithStart(3)),
	} {
		t.Run(name, func(t *testing.T) {
			var in, most, done atomic.Int64
			var wg sync.WaitGroup
			for g := range 8 {
				wg.Go(func() {
					for i := range 2000 {
						w := 1 + (i+g)%2
						ctx, cancel := context.WithCancel(t.Context())
						if i%7 == 0 {
							go cancel()
						}
						p, err := c.Acquire(ctx, limiter.Request{Weight: w, Client: "abcdef"[g%6 : g%6+1]})
						if err == nil {
							n := in.Add(int64(w))
							for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
							}
							done.Add(1)
							in.Add(-int64(w))
							p.Release(limiter.Success)
							p.Release(limiter.Success)
						}
						cancel()
					}
				})
			}
			wg.Wait()
			s := c.Stats()
			if most.Load() > 3 || s.InFlight != 0 || s.Queued != 0 || done.Load() == 0 {
				t.Errorf("at most %d in flight at limit 3; %+v", most.Load(), s)
			}
			t.Logf("%d done, most %d, %+v", done.Load(), most.Load(), s)
		})
	}
}

// Who has read the clock before Acquire need not read it again if the permit was given at once.
func TestPermitAtOnce(t *testing.T) {
	acquire := func(t *testing.T, c *limiter.Concurrency) bool {
		p, err := c.Acquire(t.Context(), limiter.Request{})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Release(limiter.Success)
		return p.AtOnce()
	}
	told := limiter.WithConcurrencyTrace(limiter.ConcurrencyTrace{Admitted: func(limiter.Request, time.Duration) {}})
	for name, c := range map[string]struct {
		c    *limiter.Concurrency
		want bool
	}{
		"fixed":                     {limiter.NewConcurrency(1), true},
		"adaptive, without a yield": {limiter.NewAdaptive(limiter.WithoutYield()), true},
		"adaptive, yields":          {limiter.NewAdaptive(), false},
		"adaptive, shadow":          {limiter.NewAdaptive(limiter.WithShadow()), true},
		"a trace was told":          {limiter.NewConcurrency(1, told), false},
	} {
		for range 3 { // slots are used again
			if got := acquire(t, c.c); got != c.want {
				t.Errorf("%s: at once is %v, want %v", name, got, c.want)
			}
		}
	}
	synctest.Test(t, func(t *testing.T) {
		c := limiter.NewConcurrency(1, limiter.WithQueue(1, time.Minute))
		held, _ := c.TryAcquire(limiter.Request{})
		time.AfterFunc(time.Second, func() { held.Release(limiter.Success) })
		if acquire(t, c) {
			t.Error("a permit that was waited for was given at once")
		}
		if !acquire(t, c) {
			t.Error("and the next one was not")
		}
	})
	if (limiter.Permit{}).AtOnce() {
		t.Error("the zero Permit was given at once")
	}
}

// A time that nobody can have read just now, such as one of an empty field or of another unit, teaches an adaptive limit nothing.
func TestTimesThatCannotBe(t *testing.T) {
	for _, at := range []time.Time{
		time.Unix(0, 0), time.Date(1, 1, 2, 0, 0, 0, 0, time.UTC), time.Date(1700, 1, 1, 0, 0, 0, 0, time.UTC),
		time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC),
	} {
		for _, on := range []string{"arrival", "release"} {
			synctest.Test(t, func(t *testing.T) {
				time.Sleep(time.Until(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))) // in a synctest bubble
				c := limiter.NewAdaptive()
				for i := range 2000 {
					var r limiter.Request
					if on == "arrival" && i%3 == 0 {
						r.Arrived = at
					}
					p, err := c.Acquire(t.Context(), r)
					if err != nil {
						t.Fatal(err)
					}
					time.Sleep(time.Millisecond) // in a synctest bubble
					if on == "release" && i%3 == 0 {
						p.ReleaseAt(limiter.Success, at)
					} else {
						p.Release(limiter.Success)
					}
				}
				if s := c.Stats(); s.BaseLatency > time.Second || s.Latency > time.Second || s.Throughput < 100 {
					t.Errorf("%s at %v: base latency %v, latency %v, %v a second", on, at, s.BaseLatency, s.Latency, s.Throughput)
				}
			})
		}
	}
}

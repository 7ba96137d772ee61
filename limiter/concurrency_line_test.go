package limiter_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/limiter"
)

// A level of priority is worth one step of waiting time and no more: 100 ms unless it is told otherwise.
func TestConcurrencyPriorityAges(t *testing.T) {
	t.Run("the default", func(t *testing.T) { concPriorityAges(t) })
	t.Run("100 ms", func(t *testing.T) { concPriorityAges(t, limiter.WithPriorityStep(100*time.Millisecond)) })
}

func concPriorityAges(t *testing.T, opts ...limiter.ConcurrencyOption) {
	synctest.Test(t, func(t *testing.T) {
		c := limiter.NewConcurrency(1, append(opts, limiter.WithQueue(100, time.Minute))...)
		p := concMust(t, c, limiter.Request{})
		var order []string
		var mu sync.Mutex
		ask := func(name string, priority int) {
			go func() {
				p, err := c.Acquire(t.Context(), limiter.Request{Priority: priority})
				if err != nil {
					t.Error(name, err)
				}
				mu.Lock()
				order = append(order, name)
				mu.Unlock()
				p.Release(limiter.Success)
			}()
			synctest.Wait()
		}
		ask("low, 0 ms", 0)
		time.Sleep(50 * time.Millisecond) // in a synctest bubble
		ask("high, 50 ms", 1)
		time.Sleep(110 * time.Millisecond) // in a synctest bubble
		ask("high, 160 ms", 1)
		ask("higher, 160 ms", 2)
		ask("beyond the range", 1000)
		ask("below the range", -1000)
		p.Release(limiter.Success)
		synctest.Wait()
		want := []string{"beyond the range", "high, 50 ms", "higher, 160 ms", "low, 0 ms", "high, 160 ms", "below the range"}
		if !slices.Equal(order, want) {
			t.Errorf("served %q\nwant   %q", order, want)
		}
	})
}

// Age counts from Arrived: whoever came before others to the line did so, also if it asks after them. What arrives in
// the future arrives now.
func TestConcurrencyOrderByArrived(t *testing.T) {
	type ask struct {
		name     string
		after    time.Duration // the one before it
		arrived  time.Duration // since the test began
		priority int
	}
	const ms = time.Millisecond
	for _, k := range []struct {
		name string
		asks []ask
		want []string
	}{
		{"out of order, of one priority", []ask{{"b", 0, 10 * ms, 0}, {"c", 0, 20 * ms, 0}, {"a", 0, 5 * ms, 0}}, []string{"a", "b", "c"}},
		{"out of order, against a higher priority", []ask{{"b", 0, 500 * ms, 0}, {"c", 0, 550 * ms, 1}, {"a", 0, 0, 0}}, []string{"a", "c", "b"}},
		{"in the future", []ask{{"b", 0, time.Second, 0}, {"a", 50 * ms, time.Hour, 1}, {"c", 60 * ms, time.Hour, 1}}, []string{"a", "b", "c"}},
	} {
		t.Run(k.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := limiter.NewConcurrency(1, limiter.WithQueue(10, time.Minute), limiter.WithPriorityStep(100*ms))
				p := concMust(t, c, limiter.Request{})
				began := time.Now()
				time.Sleep(time.Second) // in a synctest bubble
				q := concCrowdOf(t, c, ms)
				for _, a := range k.asks {
					time.Sleep(a.after) // in a synctest bubble
					q.join(t.Context(), a.name, limiter.Request{Priority: a.priority, Arrived: began.Add(a.arrived)})
				}
				p.Release(limiter.Success)
				q.wg.Wait()
				if !slices.Equal(q.served, k.want) {
					t.Errorf("served %q\nwant   %q", q.served, k.want)
				}
			})
		})
	}
}

// A step as long as can be said makes a higher priority always go first.
func TestConcurrencyStrictPriority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := limiter.NewConcurrency(1, limiter.WithQueue(10, time.Minute), limiter.WithPriorityStep(math.MaxInt64))
		p := concMust(t, c, limiter.Request{})
		q := concCrowdOf(t, c, time.Millisecond)
		for _, priority := range []int{0, 7, -8, 6, 1} {
			q.join(t.Context(), strconv.Itoa(priority), limiter.Request{Priority: priority})
			time.Sleep(time.Millisecond) // in a synctest bubble
		}
		p.Release(limiter.Success)
		q.wg.Wait()
		if want := []string{"7", "6", "1", "0", "-8"}; !slices.Equal(q.served, want) {
			t.Errorf("served %q\nwant   %q", q.served, want)
		}
	})
}

// In a line without a bound on the wait there is nothing for the timer to do, and it does nothing.
func TestConcurrencyWaitsForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := limiter.NewConcurrency(1, limiter.WithQueue(10, math.MaxInt64))
		p := concMust(t, c, limiter.Request{})
		time.Sleep(time.Second) // in a synctest bubble
		q := concCrowdOf(t, c, 0)
		q.join(t.Context(), "it", limiter.Request{})
		time.Sleep(10_000 * time.Hour) // in a synctest bubble
		p.Release(limiter.Success)
		q.wg.Wait()
		if q.waited["it"] != 10_000*time.Hour {
			t.Errorf("waited %v, refused with %v", q.waited["it"], q.refused["it"])
		}
	})
}

// While low-priority work waits, higher priorities come without a pause: it waits for at
// most the step times the levels, and one service.
func TestConcurrencyLowestIsNotStarved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const step, service = 20 * time.Millisecond, 10 * time.Millisecond
		c := limiter.NewConcurrency(1, limiter.WithQueue(1000, time.Minute), limiter.WithPriorityStep(step))
		ctx, stop := context.WithCancel(t.Context())
		work := func(priority int) time.Duration {
			start := time.Now()
			p, err := c.Acquire(ctx, limiter.Request{Priority: priority})
			if err != nil {
				return 0
			}
			wait := time.Since(start)
			time.Sleep(service) // in a synctest bubble
			p.Release(limiter.Success)
			return wait
		}
		for range 3 { // always somebody of the highest priority in the line
			go func() {
				for ctx.Err() == nil {
					work(7)
				}
			}()
		}
		time.Sleep(time.Second) // in a synctest bubble
		if wait := work(-8); wait > 15*step+3*service {
			t.Errorf("the lowest priority waited %v, want at most %v", wait, 15*step+3*service)
		}
		stop()
		time.Sleep(time.Second) // in a synctest bubble
	})
}

// One client that floods leaves the other its half.
func TestConcurrencyFairBetweenClients(t *testing.T) {
	for _, k := range []struct {
		name string
		make func() *limiter.Concurrency
		slow time.Duration // a service of the flood
	}{
		{"fixed, first in, first out", func() *limiter.Concurrency {
			return limiter.NewConcurrency(4, limiter.WithQueue(100, time.Second))
		}, 10 * time.Millisecond},
		{"fixed, newest first", func() *limiter.Concurrency {
			return limiter.NewConcurrency(4, limiter.WithQueue(100, time.Second), limiter.WithCoDel(50*time.Millisecond))
		}, 10 * time.Millisecond},
		{"the flood's work is three times longer", func() *limiter.Concurrency {
			return limiter.NewConcurrency(4, limiter.WithQueue(100, time.Second))
		}, 30 * time.Millisecond},
	} {
		t.Run(k.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := k.make()
				var served [2]atomic.Int64 // time in service, ns
				ctx, stop := context.WithTimeout(t.Context(), 5*time.Second)
				defer stop()
				client := func(i int, name string, every, service time.Duration) {
					for ctx.Err() == nil {
						time.Sleep(every) // in a synctest bubble
						go func() {
							p, err := c.Acquire(ctx, limiter.Request{Client: name})
							if err != nil {
								return
							}
							time.Sleep(service) // in a synctest bubble
							served[i].Add(int64(service))
							p.Release(limiter.Success)
						}()
					}
				}
				// The capacity is 400/s of 10 ms: the honest one asks for 300/s, the flood for 15,000/s.
				go client(0, "flood", time.Second/15000, k.slow)
				go client(1, "honest", time.Second/300, 10*time.Millisecond)
				<-ctx.Done()
				time.Sleep(time.Second) // in a synctest bubble
				share := float64(served[1].Load()) / float64(served[0].Load()+served[1].Load())
				if share < .45 || share > .55 {
					t.Errorf("the honest client has %.2f of the permits' time, want its half within 10 %%; %+v", share, c.Stats())
				}
			})
		})
	}
}

// Charge replaces the time that was measured.
func TestConcurrencyCharge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := limiter.NewConcurrency(1, limiter.WithQueue(100, time.Minute))
		var n [2]atomic.Int64
		ctx, stop := context.WithTimeout(t.Context(), 10*time.Second)
		defer stop()
		for i, name := range []string{"cheap", "dear"} {
			for range 10 {
				go func() {
					for ctx.Err() == nil {
						p, err := c.Acquire(ctx, limiter.Request{Client: name})
						if err != nil {
							return
						}
						time.Sleep(10 * time.Millisecond) // in a synctest bubble
						n[i].Add(1)
						p.Charge(time.Duration(1+2*i) * time.Millisecond)
						p.Release(limiter.Success)
					}
				}()
			}
		}
		<-ctx.Done()
		time.Sleep(time.Second) // in a synctest bubble
		if r := float64(n[0].Load()) / float64(n[1].Load()); r < 2.7 || r > 3.3 {
			t.Errorf("at a third of the cost %.2f times as often, want 3", r)
		}
	})
}

// In a standing queue nobody waits longer than the target, and the newest is first.
func TestConcurrencyCoDel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := limiter.NewConcurrency(1, limiter.WithQueue(100, 100*time.Millisecond), limiter.WithCoDel(5*time.Millisecond))
		p := concMust(t, c, limiter.Request{})
		began := time.Now()
		const every = 2 * time.Millisecond
		served := time.Duration(-1)
		for range 125 { // 250 ms without a permit
			go func() {
				start := time.Now()
				q, err := c.Acquire(t.Context(), limiter.Request{})
				came, waited := start.Sub(began), time.Since(start)
				switch {
				case err == nil:
					if served < 0 {
						served = came
					}
					q.Release(limiter.Success)
				case !errors.Is(err, limiter.ErrSaturated):
					t.Error(err)
				case came < 90*time.Millisecond && waited < 10*time.Millisecond:
					t.Errorf("came at %v, before the queue stood, and waited only %v", came, waited)
				case came > 100*time.Millisecond && (waited < 5*time.Millisecond || waited > 5*time.Millisecond+every):
					t.Errorf("came at %v, in a standing queue, and waited %v, want 5ms", came, waited)
				}
			}()
			time.Sleep(every) // in a synctest bubble
		}
		if s := c.Stats(); !s.NewestFirst || s.QueueWait != 5*time.Millisecond || s.Queued == 0 {
			t.Errorf("a standing queue: %+v", s)
		}
		p.Release(limiter.Success)
		synctest.Wait()
		if served != 248*time.Millisecond {
			t.Errorf("the first to be served came at %v, want the newest, at 248ms", served)
		}
		if s := c.Stats(); s.Queued != 0 || s.InFlight != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// When a queue is seen to stand its bound shrinks at once: nobody has to wait for the end of the old one.
func TestConcurrencyTimerFollowsTheBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ms = time.Millisecond
		c := limiter.NewConcurrency(1, limiter.WithQueue(100, 100*ms), limiter.WithCoDel(5*ms))
		p := concMust(t, c, limiter.Request{})
		granted := make(chan limiter.Permit, 10)
		ask := func() <-chan time.Duration { // when it was refused
			refused := make(chan time.Duration, 1)
			start := time.Now()
			go func() {
				q, err := c.Acquire(t.Context(), limiter.Request{})
				if err == nil {
					granted <- q
					return
				}
				refused <- time.Since(start)
			}()
			synctest.Wait()
			return refused
		}
		next := func() {
			p.Release(limiter.Success)
			p = <-granted
		}
		ask()               // at 0: the timer is set for 100
		time.Sleep(5 * ms)  // in a synctest bubble
		next()              // the line is empty
		time.Sleep(5 * ms)  // in a synctest bubble
		ask()               // at 10: it is not empty from here on
		time.Sleep(85 * ms) // in a synctest bubble
		ask()               // at 95
		time.Sleep(ms)      // in a synctest bubble
		next()              // at 96 that of 10 is served; at 100 the timer is set for that of 95, for 195
		time.Sleep(10 * ms) // in a synctest bubble
		refused := ask()    // at 106
		time.Sleep(2 * ms)  // in a synctest bubble
		ask()               // at 108
		time.Sleep(3 * ms)  // in a synctest bubble
		next()              // at 111 the queue stands: that of 108 is served, that of 95 goes, that of 106 has waited for 5
		if d := <-refused; d > 6*ms {
			t.Errorf("one waited %v in a standing queue, want the target of 5ms", d)
		}
		p.Release(limiter.Success)
	})
}

// After an overload the line is as it was before, and says so.
func TestConcurrencyOverloadEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ms = time.Millisecond
		c := limiter.NewConcurrency(1, limiter.WithQueue(100, 100*ms), limiter.WithCoDel(5*ms))
		p := concMust(t, c, limiter.Request{})
		q := concCrowdOf(t, c, ms)
		for range 250 {
			q.join(t.Context(), "it", limiter.Request{})
			time.Sleep(ms) // in a synctest bubble
		}
		if s := c.Stats(); !s.NewestFirst || s.QueueWait != 5*ms {
			t.Errorf("a standing queue: %+v", s)
		}
		p.Release(limiter.Success)
		q.wg.Wait()
		if s := c.Stats(); s.NewestFirst || s.QueueWait != 100*ms || s.Queued != 0 {
			t.Errorf("nobody waits any more: %+v", s)
		}
	})
}

// A time that was read long before the lock was had makes no wait negative, and none that is foretold.
func TestConcurrencyWaitTimeOfAnOldClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := limiter.NewConcurrency(1, limiter.WithQueue(3, time.Minute))
		granted := make(chan limiter.Permit)
		ask := func() {
			go func() {
				p, err := c.Acquire(t.Context(), limiter.Request{})
				if err != nil {
					t.Error(err)
				}
				granted <- p
			}()
			synctest.Wait()
		}
		time.Sleep(time.Second) // in a synctest bubble
		p := concMust(t, c, limiter.Request{})
		ask()
		p.Release(limiter.Success)
		p = <-granted // it has waited: the time that is given to ReleaseAt counts
		now := time.Now()
		time.Sleep(time.Second) // in a synctest bubble
		ask()
		p.ReleaseAt(limiter.Success, now)
		(<-granted).Release(limiter.Success)
		if s := c.Stats(); s.WaitTime < 0 || s.Waited != 2 || s.RetryAfter < 0 {
			t.Errorf("%+v", s)
		}
	})
}

// Many that wait for long soon wait for more than a Duration holds in all: the sum stops there.
func TestWaitTimeStopsAtTheLongestDuration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const century = 100 * 365 * 24 * time.Hour
		c := limiter.NewConcurrency(4, limiter.WithQueue(10, 2*century))
		p, err := c.Acquire(t.Context(), limiter.Request{Weight: 4})
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				if p, err := c.Acquire(t.Context(), limiter.Request{}); err == nil {
					p.Release(limiter.Success)
				}
			})
		}
		synctest.Wait()
		time.Sleep(century) // in a synctest bubble
		p.Release(limiter.Success)
		wg.Wait()
		if s := c.Stats(); s.Waited != 4 || s.WaitTime != math.MaxInt64 {
			t.Errorf("%d waited, for %v", s.Waited, s.WaitTime)
		}
	})
}

// tardy is a context whose end it takes a while to hear of.
type tardy struct{ context.Context }

func (c tardy) Err() error {
	err := c.Context.Err()
	if err != nil {
		time.Sleep(time.Second) // in a synctest bubble
	}
	return err
}

// Who has been sent away before it has left is told what it is counted as.
func TestConcurrencySentAwayWhileItLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := limiter.NewConcurrency(1, limiter.WithQueue(10, 10*time.Second))
		p := concMust(t, c, limiter.Request{})
		defer p.Release(limiter.Success)
		ctx, cancel := context.WithTimeout(t.Context(), 9500*time.Millisecond)
		defer cancel()
		_, err := c.Acquire(tardy{ctx}, limiter.Request{})
		if s := c.Stats(); !errors.Is(err, limiter.ErrSaturated) || s.Expired != 1 || s.Left != 0 {
			t.Errorf("%v, with %d expired and %d left", err, s.Expired, s.Left)
		}
	})
}

// Who is given a permit while it leaves has none, and nobody else has to do without: it is counted as let in, and ignored.
func TestConcurrencyLetInWhileItLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := limiter.NewConcurrency(1, limiter.WithQueue(10, time.Minute))
		p := concMust(t, c, limiter.Request{})
		time.AfterFunc(9700*time.Millisecond, func() { p.Release(limiter.Success) })
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(9500*time.Millisecond, cancel)
		p, err := c.Acquire(tardy{ctx}, limiter.Request{})
		if s := c.Stats(); err != context.Canceled || p != (limiter.Permit{}) || s.Admitted != 2 || s.Ignored != 1 || s.Left != 0 || s.InFlight != 0 {
			t.Errorf("%v: %+v", err, s)
		}
	})
}

// Whose context has ended when there is no room has left, and waits for nothing. One whose deadline is over, which it has not heard of
// yet, is refused for that, and has no place in the line.
func TestConcurrencyComesTooLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := limiter.NewConcurrency(1, limiter.WithQueue(10, time.Minute))
		p := concMust(t, c, limiter.Request{})
		q := concCrowdOf(t, c, 0)
		q.join(t.Context(), "before", limiter.Request{})
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		q.join(gone, "gone", limiter.Request{})
		over, cancel := context.WithDeadline(t.Context(), time.Now().Add(time.Second))
		defer cancel()
		time.Sleep(2 * time.Second) // in a synctest bubble
		q.join(unheard{over}, "over", limiter.Request{})
		if s := c.Stats(); s.Queued != 1 || s.Left != 1 || s.Deadline != 1 || q.refused["gone"] != context.Canceled || !errors.Is(q.refused["over"], limiter.ErrWouldMissDeadline) {
			t.Errorf("refused with %v; %+v", q.refused, s)
		}
		p.Release(limiter.Success)
		q.wg.Wait()
	})
}

// unheard is a context that never hears of its end.
type unheard struct{ context.Context }

func (unheard) Err() error            { return nil }
func (unheard) Done() <-chan struct{} { return nil }

// An error says why it is that one was refused, whatever the last one was refused for.
func TestConcurrencyRefusalsSayWhy(t *testing.T) {
	for name, c := range map[string]*limiter.Concurrency{"fixed": limiter.NewConcurrency(1), "adaptive": limiter.NewAdaptive(limiter.WithStart(1), limiter.WithQueue(0, 0))} {
		concMust(t, c, limiter.Request{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		for range 2 {
			if _, err := c.Acquire(ctx, limiter.Request{}); !errors.Is(err, limiter.ErrSaturated) || errors.Is(err, limiter.ErrWouldMissDeadline) {
				t.Errorf("%s, no room: %v", name, err)
			}
			if _, err := c.Acquire(ctx, limiter.Request{Work: 2 * time.Hour}); !errors.Is(err, limiter.ErrWouldMissDeadline) || errors.Is(err, limiter.ErrSaturated) {
				t.Errorf("%s, no time: %v", name, err)
			}
		}
	}
}

// What leaves a long line costs the same as what leaves a short one, and none is lost.
func TestConcurrencyTenThousandCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := limiter.NewConcurrency(1, limiter.WithQueue(10_000, time.Hour))
		p := concMust(t, c, limiter.Request{})
		ctx, cancel := context.WithCancel(t.Context())
		var left atomic.Int64
		for i := range 10_000 {
			go func() {
				_, err := c.Acquire(ctx, limiter.Request{Client: fmt.Sprint(i % 100), Priority: i % 5})
				if err == context.Canceled {
					left.Add(1)
				}
			}()
		}
		synctest.Wait()
		if s := c.Stats(); s.Queued != 10_000 {
			t.Fatalf("%d wait", s.Queued)
		}
		start := time.Now()
		cancel()
		synctest.Wait()
		if s := c.Stats(); left.Load() != 10_000 || s.Left != 10_000 || s.Queued != 0 || !time.Now().Equal(start) {
			t.Errorf("%d left; %+v", left.Load(), s)
		}
		p.Release(limiter.Success)
		concMust(t, c, limiter.Request{}).Release(limiter.Success)
	})
}

func TestConcurrencyShadow(t *testing.T) {
	var shed int
	c := limiter.NewConcurrency(2, limiter.WithShadow())
	var permits []limiter.Permit
	for range 5 {
		p, err := c.Acquire(t.Context(), limiter.Request{})
		if err != nil {
			shed++
		}
		permits = append(permits, p)
	}
	s := c.Stats()
	if shed != 0 || s.InFlight != 5 || s.Shed != 3 || !s.Shadow {
		t.Errorf("%d refused; %+v", shed, s)
	}
	for _, p := range permits {
		p.Release(limiter.Success)
	}
	if s := c.Stats(); s.InFlight != 0 {
		t.Errorf("in flight: %d", s.InFlight)
	}
}

// In shadow mode the trace is told of as many as are counted: those that would have found no place in the line.
func TestConcurrencyShadowTells(t *testing.T) {
	for name, k := range map[string]struct {
		opts []limiter.ConcurrencyOption
		want int64 // of three beyond the limit
	}{
		"no line":              {nil, 3},
		"a line of two":        {[]limiter.ConcurrencyOption{limiter.WithQueue(2, time.Second)}, 1},
		"a line without bound": {[]limiter.ConcurrencyOption{limiter.WithQueue(math.MaxInt, time.Second)}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			var admitted, shed int64
			c := limiter.NewConcurrency(2, append(k.opts, limiter.WithShadow(), limiter.WithConcurrencyTrace(limiter.ConcurrencyTrace{
				Admitted: func(limiter.Request, time.Duration) { admitted++ },
				Shed: func(_ limiter.Request, err error, waited time.Duration) {
					if shed++; !errors.Is(err, limiter.ErrSaturated) || waited != 0 {
						t.Errorf("told %v after %v", err, waited)
					}
				},
			}))...)
			for i := range 5 {
				if i%2 == 0 {
					concMust(t, c, limiter.Request{})
				} else if _, err := c.Acquire(t.Context(), limiter.Request{}); err != nil {
					t.Error(err)
				}
			}
			if s := c.Stats(); shed != k.want || s.Shed != k.want || admitted != 5 {
				t.Errorf("told of %d admitted and %d shed, want 5 and %d; %+v", admitted, shed, k.want, s)
			}
		})
	}
}

// In shadow mode a request is shed once, though it would find no room either.
func TestConcurrencyShadowShedsOnce(t *testing.T) {
	for name, c := range map[string]*limiter.Concurrency{
		"fixed":    limiter.NewConcurrency(1, limiter.WithShadow()),
		"adaptive": limiter.NewAdaptive(limiter.WithShadow(), limiter.WithStart(1), limiter.WithQueue(0, 0)),
	} {
		t.Run(name, func(t *testing.T) {
			defer concMust(t, c, limiter.Request{}).Release(limiter.Success)
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			defer cancel()
			p, err := c.Acquire(ctx, limiter.Request{Work: 2 * time.Hour})
			if err != nil {
				t.Fatal(err)
			}
			p.Release(limiter.Success)
			if s := c.Stats(); s.Shed != 1 || s.Deadline != 1 || s.Admitted != 2 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// In shadow mode all is let in, however it asks, and weighs no more than the limit.
func TestConcurrencyShadowWeighs(t *testing.T) {
	c := limiter.NewConcurrency(2, limiter.WithShadow())
	p, err := c.Acquire(t.Context(), limiter.Request{Weight: 5})
	if s := c.Stats(); err != nil || s.InFlight != 2 || s.Shed != 0 {
		t.Errorf("weight 5: %v, %+v", err, s)
	}
	q, ok := c.TryAcquire(limiter.Request{Weight: 5})
	if s := c.Stats(); !ok || s.InFlight != 4 || s.Shed != 1 {
		t.Errorf("once more: %v, %+v", ok, s)
	}
	n := c.TryTake(5)
	if s := c.Stats(); n != 2 || s.InFlight != 6 {
		t.Errorf("took %d: %+v", n, s)
	}
	c.Give(n)
	q.Release(limiter.Success)
	p.Release(limiter.Success)
	if s := c.Stats(); s.InFlight != 0 {
		t.Errorf("at rest: %+v", s)
	}
}

// What was given back can be taken again whatever the limit, and nobody is given any before there is room again.
func TestConcurrencyTakeAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := limiter.NewConcurrency(2, limiter.WithQueue(1, time.Hour))
		n := c.TryTake(2)
		c.Give(n)
		p := concMust(t, c, limiter.Request{})
		granted := false
		go func() {
			q, err := c.Acquire(t.Context(), limiter.Request{Weight: 2})
			granted = err == nil
			q.Release(limiter.Success)
		}()
		synctest.Wait()
		c.Give(-n)
		if s := c.Stats(); s.InFlight != 3 || s.Queued != 1 {
			t.Errorf("taken again: %+v", s)
		}
		p.Release(limiter.Success)
		synctest.Wait()
		if granted || c.TryTake(1) != 0 {
			t.Error("somebody got a permit that is not there")
		}
		c.Give(n)
		synctest.Wait()
		if s := c.Stats(); !granted || s.InFlight != 0 || s.Queued != 0 {
			t.Errorf("granted: %v, at rest: %+v", granted, s)
		}
	})
}

// Work that takes no time that can be measured leaves the numbers of a shadow numbers.
func TestConcurrencyShadowNoTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := limiter.NewAdaptive(limiter.WithShadow())
		for range 100 {
			p := concMust(t, c, limiter.Request{})
			time.Sleep(time.Millisecond) // in a synctest bubble
			p.Release(limiter.Ignored)
			concMust(t, c, limiter.Request{}).Release(limiter.Success)
		}
		if s := c.Stats(); math.IsNaN(s.Throughput) {
			t.Errorf("%+v", s)
		}
	})
}

// A hook that panics does so on the goroutine that asks, and leaves no permit held.
func TestConcurrencyHookPanics(t *testing.T) {
	admitted := limiter.WithConcurrencyTrace(limiter.ConcurrencyTrace{Admitted: func(limiter.Request, time.Duration) { panic("hook") }})
	shed := limiter.WithConcurrencyTrace(limiter.ConcurrencyTrace{Shed: func(limiter.Request, error, time.Duration) { panic("hook") }})
	acquire := func(t *testing.T, c *limiter.Concurrency) { c.Acquire(t.Context(), limiter.Request{}) }
	try := func(_ *testing.T, c *limiter.Concurrency) { c.TryAcquire(limiter.Request{}) }
	for name, k := range map[string]struct {
		make func() *limiter.Concurrency
		busy bool // for a second
		ask  func(*testing.T, *limiter.Concurrency)
	}{
		"Admitted, at once":    {func() *limiter.Concurrency { return limiter.NewConcurrency(1, admitted) }, false, acquire},
		"Admitted, adaptive":   {func() *limiter.Concurrency { return limiter.NewAdaptive(admitted) }, false, acquire},
		"Admitted, TryAcquire": {func() *limiter.Concurrency { return limiter.NewConcurrency(1, admitted) }, false, try},
		"Admitted, in shadow":  {func() *limiter.Concurrency { return limiter.NewConcurrency(1, admitted, limiter.WithShadow()) }, true, acquire},
		"Shed, in shadow":      {func() *limiter.Concurrency { return limiter.NewConcurrency(1, shed, limiter.WithShadow()) }, true, acquire},
		"Shed, no room":        {func() *limiter.Concurrency { return limiter.NewConcurrency(1, shed) }, true, try},
		"Admitted, from a line": {func() *limiter.Concurrency {
			return limiter.NewConcurrency(1, admitted, limiter.WithQueue(1, time.Minute))
		}, true, acquire},
		"Admitted, from a line, adaptive": {func() *limiter.Concurrency {
			return limiter.NewAdaptive(limiter.WithStart(1), admitted)
		}, true, acquire},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := k.make()
				if k.busy {
					n := c.TryTake(1)
					time.AfterFunc(time.Second, func() { c.Give(n) })
				}
				var got any
				func() {
					defer func() { got = recover() }()
					k.ask(t, c)
				}()
				time.Sleep(time.Minute) // in a synctest bubble
				if s := c.Stats(); got != "hook" || s.InFlight != 0 || s.Queued != 0 {
					t.Errorf("panicked with %v; %+v", got, s)
				}
			})
		})
	}
}

func TestConcurrencyTrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []string
		c := limiter.NewConcurrency(1, limiter.WithQueue(1, 10*time.Millisecond), limiter.WithConcurrencyTrace(limiter.ConcurrencyTrace{
			Admitted: func(r limiter.Request, waited time.Duration) {
				got = append(got, fmt.Sprintf("admitted %s after %v", r.Client, waited))
			},
			Shed: func(r limiter.Request, err error, waited time.Duration) {
				got = append(got, fmt.Sprintf("shed %s after %v: %v", r.Client, waited, errors.Is(err, limiter.ErrSaturated)))
			},
			Limit: func(from, to int) { got = append(got, fmt.Sprintf("limit %d to %d", from, to)) },
		}))
		p, _ := c.Acquire(t.Context(), limiter.Request{Client: "a"})
		c.TryAcquire(limiter.Request{Client: "b"})
		time.AfterFunc(4*time.Millisecond, func() { p.Release(limiter.Success) })
		q, _ := c.Acquire(t.Context(), limiter.Request{Client: "c"})
		c.SetLimit(2)
		c.SetLimit(2)
		q.Release(limiter.Success)
		want := []string{"admitted a after 0s", "shed b after 0s: true", "admitted c after 4ms", "limit 1 to 2"}
		if !slices.Equal(got, want) {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	})
}

func TestConcurrencyAllocations(t *testing.T) {
	if concRace {
		t.Skip("pools drop values at random under -race")
	}
	ctx := context.Background()
	fixed := limiter.NewConcurrency(10)
	adaptive := limiter.NewAdaptive()
	full := limiter.NewConcurrency(1)
	full.TryAcquire(limiter.Request{})
	line := limiter.NewAdaptive(limiter.WithStart(1), limiter.WithQueue(0, 0))
	line.TryAcquire(limiter.Request{})
	few := limiter.NewConcurrency(10, limiter.WithQueue(10, time.Minute), limiter.WithClients(2))
	passed := limiter.NewConcurrency(1, limiter.WithQueue(10, time.Minute), limiter.WithClients(2))
	held := concMust(t, passed, limiter.Request{})
	next := make(chan limiter.Permit)
	defer close(next)
	go func() { // releases each permit when somebody waits for it
		for p := range next {
			for passed.Stats().Queued == 0 {
				runtime.Gosched()
			}
			p.Release(limiter.Success)
		}
	}()
	for name, do := range map[string]func(){
		"fixed": func() {
			p, _ := fixed.Acquire(ctx, limiter.Request{Client: "c"})
			p.Release(limiter.Success)
		},
		"adaptive": func() {
			p, _ := adaptive.Acquire(ctx, limiter.Request{Client: "c"})
			p.Release(limiter.Success)
		},
		"few clients told apart": func() {
			p, _ := few.Acquire(ctx, limiter.Request{Client: "c"})
			p.Release(limiter.Success)
		},
		"from the line": func() {
			next <- held
			held, _ = passed.Acquire(ctx, limiter.Request{Client: "c"})
		},
		"TryAcquire": func() {
			p, _ := fixed.TryAcquire(limiter.Request{})
			p.Release(limiter.Success)
		},
		"refused":           func() { full.Acquire(ctx, limiter.Request{}) },
		"adaptive, refused": func() { line.Acquire(ctx, limiter.Request{}) },
	} {
		if n := testing.AllocsPerRun(1000, do); n > 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// SetLimit on an adaptive limiter keeps to its bounds.
func TestAdaptiveSetLimit(t *testing.T) {
	c := limiter.NewAdaptive(limiter.WithLimits(2, 50))
	for _, n := range []int{-1, 0, 1, 51} {
		if err := c.SetLimit(n); err == nil || c.Limit() != 8 {
			t.Errorf("SetLimit(%d): %v, limit %d", n, err, c.Limit())
		}
	}
	if err := c.SetLimit(30); err != nil || c.Limit() != 30 {
		t.Errorf("SetLimit(30): %v, limit %d", err, c.Limit())
	}
}

// An adaptive limit begins within its bounds.
func TestAdaptiveStartsWithinItsLimits(t *testing.T) {
	for _, c := range []struct{ start, least, most, want int }{{100, 2, 50, 50}, {1, 2, 50, 2}, {20, 2, 50, 20}} {
		l := limiter.NewAdaptive(limiter.WithStart(c.start), limiter.WithLimits(c.least, c.most))
		if got := l.Limit(); got != c.want {
			t.Errorf("a start of %d within %d to %d: limit %d, want %d", c.start, c.least, c.most, got, c.want)
		}
	}
}

// The highest limit is as much of a limit as any.
func TestConcurrencyHighestLimit(t *testing.T) {
	highest := min(1<<50, int64(math.MaxInt)) // which is less where int has 32 bits
	c := limiter.NewConcurrency(int(highest))
	p := concMust(t, c, limiter.Request{Weight: math.MaxInt})
	concFull(t, c)
	p.Release(limiter.Success)
	if s := c.Stats(); s.InFlight != 0 {
		t.Errorf("in flight: %d", s.InFlight)
	}
}

func TestConcurrencyMisusePanics(t *testing.T) {
	for name, f := range map[string]func(){
		"limit 0":             func() { limiter.NewConcurrency(0) },
		"negative length":     func() { limiter.WithQueue(-1, time.Second) },
		"no wait":             func() { limiter.WithQueue(1, 0) },
		"CoDel 0":             func() { limiter.WithCoDel(0) },
		"negative step":       func() { limiter.WithPriorityStep(-1) },
		"no clients":          func() { limiter.WithClients(0) },
		"limits out of order": func() { limiter.WithLimits(5, 4) },
		"least 0":             func() { limiter.WithLimits(0, 4) },
		"start 0":             func() { limiter.WithStart(0) },
		"limit too high":      func() { limiter.NewConcurrency(math.MaxInt) },
		"limits too high":     func() { limiter.WithLimits(1, math.MaxInt) },
		"nil option":          func() { limiter.NewConcurrency(1, limiter.WithShadow(), nil) },
		"nil option, adapt":   func() { limiter.NewAdaptive(nil) },
	} {
		t.Run(name, func(t *testing.T) {
			if strconv.IntSize == 32 && strings.HasSuffix(name, "too high") {
				t.Skip("no int is too high")
			}
			defer func() {
				if s, _ := recover().(string); len(s) < 9 || s[:9] != "limiter: " {
					t.Errorf("panicked with %q", s)
				}
			}()
			f()
		})
	}
}

package limiter_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/limiter"
)

// A level of priority is worth one step of waiting time and no more.
func TestConcurrencyPriorityAges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := limiter.NewConcurrency(1, limiter.WithQueue(100, time.Minute), limiter.WithPriorityStep(100*time.Millisecond))
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
		time.Sleep(50 * time.Millisecond)
		ask("high, 50 ms", 1)
		time.Sleep(110 * time.Millisecond)
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
			time.Sleep(service)
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
		time.Sleep(time.Second)
		if wait := work(-8); wait > 15*step+3*service {
			t.Errorf("the lowest priority waited %v, want at most %v", wait, 15*step+3*service)
		}
		stop()
		time.Sleep(time.Second)
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
						time.Sleep(every)
						go func() {
							p, err := c.Acquire(ctx, limiter.Request{Client: name})
							if err != nil {
								return
							}
							time.Sleep(service)
							served[i].Add(int64(service))
							p.Release(limiter.Success)
						}()
					}
				}
				// The capacity is 400/s of 10 ms: the honest one asks for 300/s, the flood for 15,000/s.
				go client(0, "flood", time.Second/15000, k.slow)
				go client(1, "honest", time.Second/300, 10*time.Millisecond)
				<-ctx.Done()
				time.Sleep(time.Second)
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
						time.Sleep(10 * time.Millisecond)
						n[i].Add(1)
						p.Charge(time.Duration(1+2*i) * time.Millisecond)
						p.Release(limiter.Success)
					}
				}()
			}
		}
		<-ctx.Done()
		time.Sleep(time.Second)
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
			time.Sleep(every)
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
	for name, do := range map[string]func(){
		"fixed": func() {
			p, _ := fixed.Acquire(ctx, limiter.Request{Client: "c"})
			p.Release(limiter.Success)
		},
		"adaptive": func() {
			p, _ := adaptive.Acquire(ctx, limiter.Request{Client: "c"})
			p.Release(limiter.Success)
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
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if s, _ := recover().(string); len(s) < 9 || s[:9] != "limiter: " {
					t.Errorf("panicked with %q", s)
				}
			}()
			f()
		})
	}
}

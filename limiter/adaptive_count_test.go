package limiter

import (
	"context"
	"math"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Counters that run over, as that of the squares does after some thousands of requests that take a minute, change nothing.
func TestAdaptiveCountersRunOver(t *testing.T) {
	run := func(before uint64) (seen []float64) {
		const each = 100
		c := NewAdaptive()
		for i := range c.cells {
			cell := &c.cells[i]
			cell.squares.Store(before)
			cell.heavy.Store(before)
			cell.lost.Store(before)
			for j := range c.adapt.cells[i] {
				c.adapt.cells[i][j].n.Store(1)
				c.adapt.cells[i][j].sum.Store(int64(before))
			}
		}
		now := time.Duration(1)
		c.adapt.times = c.adapt.spread()
		c.adapt.begin(now, c.adapt.counts(c, now))
		for i := range 40 * each {
			p, ok := c.take(3, now)
			if !ok {
				t.Fatal("no permit")
			}
			now += time.Duration(1+i%3) * 10 * time.Second
			p.ReleaseAt(Outcome(i%7/6), c.base.Add(now))
			seen = append(seen, c.adapt.ctrl.cv2, c.adapt.ctrl.ref.r, c.adapt.ctrl.ref.more)
		}
		return seen
	}
	want := run(0)
	for _, before := range []uint64{math.MaxUint64 / 2, math.MaxUint64 - 1000} {
		for i, x := range run(before) {
			if x != want[i] {
				t.Errorf("counted on from %d: after %d requests %v, want %v", before, i/3+1, x, want[i])
				break
			}
		}
	}
}

// Where work weighs more than the limit, the limit is what it counts as: it takes no less for that.
func TestAdaptiveStarvesByWeight(t *testing.T) {
	const limit, took, n = 2, .1, 20
	for _, weight := range []float64{1, 2, 8} {
		a := NewAdaptive(WithStart(limit)).adapt
		a.ctrl.base, a.ctrl.ref.worth, a.ctrl.ref.more = took, weight, weight
		counts := min(weight, limit)
		lost := concCount{ended: n, lost: uint64(n * took * counts / adaptUnit)}
		now := time.Duration(n * took * counts / limit * float64(time.Second))
		if got := a.starves(&lost, now); math.Abs(got-took) > .001 {
			t.Errorf("weight %v: nothing succeeds, and the time that it takes is %v, want %v", weight, got, took)
		}
	}
}

// A limiter that was made long before anything comes learns from the first burst what one does that was made at once.
func TestAdaptiveIdleFromTheStart(t *testing.T) {
	run := func(idle time.Duration) (s ConcurrencyStats) {
		synctest.Test(t, func(t *testing.T) {
			c := NewAdaptive(WithoutYield())
			time.Sleep(idle) // in a synctest bubble
			var wg sync.WaitGroup
			for i := range 12 {
				wg.Go(func() {
					p, err := c.Acquire(t.Context(), Request{})
					if err != nil {
						t.Error(err)
					}
					time.Sleep(time.Duration(20+i*37%200) * time.Millisecond) // in a synctest bubble
					p.Release(Success)
				})
				time.Sleep(2 * time.Millisecond) // in a synctest bubble
			}
			wg.Wait()
			s = c.Stats()
		})
		return s
	}
	want := run(0)
	for _, idle := range []time.Duration{time.Second, time.Hour} {
		s := run(idle)
		if s.Throughput < .5*want.Throughput || s.Latency > 2*want.Latency || s.BaseLatency > 2*want.BaseLatency || s.QueueWait > 5*time.Second {
			t.Errorf("idle for %v: %.1f/s, %v each, %v of them at least, and the line holds for %v; without that %.1f/s, %v, %v and %v",
				idle, s.Throughput, s.Latency, s.BaseLatency, s.QueueWait, want.Throughput, want.Latency, want.BaseLatency, want.QueueWait)
		}
	}
}

// A limiter rests when nothing is in flight and nobody waits any more, whichever of the two came last.
func TestAdaptiveRestsAfterTheLine(t *testing.T) {
	for name, leaves := range map[string]func(ctx context.Context, c *Concurrency, p Permit){
		"nobody waits": func(_ context.Context, c *Concurrency, p Permit) { p.Release(Success) },
		"who waits is too late": func(ctx context.Context, c *Concurrency, p Permit) {
			go c.Acquire(ctx, Request{Work: 98 * time.Second})
			time.Sleep(3 * time.Second) // in a synctest bubble
			p.Release(Success)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := NewAdaptive(WithoutYield(), WithStart(1), WithLimits(1, 1), WithQueue(10, time.Minute))
				time.Sleep(time.Second) // in a synctest bubble
				p, err := c.Acquire(context.Background(), Request{})
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(context.Background(), 100*time.Second)
				defer cancel()
				leaves(ctx, c, p)
				synctest.Wait()
				ended := time.Since(c.base)
				if s := c.Stats(); s.InFlight != 0 || s.Queued != 0 {
					t.Fatalf("%d in flight, %d wait", s.InFlight, s.Queued)
				}
				time.Sleep(time.Minute) // in a synctest bubble
				c.mu.Lock()
				defer c.mu.Unlock()
				now := time.Since(c.base)
				if idle := c.adapt.counts(c, now).idle; idle != now-ended {
					t.Errorf("at rest for %v, want %v", idle, now-ended)
				}
			})
		})
	}
}

// Something that was at work for hours when the first others come has them wait for no longer than anybody would.
func TestAdaptiveHoldsAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewAdaptive(WithoutYield())
		held, err := c.Acquire(t.Context(), Request{})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Hour) // in a synctest bubble
		held.Release(Success)
		for range 20 {
			p, err := c.Acquire(t.Context(), Request{})
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond) // in a synctest bubble
			p.Release(Success)
		}
		if s := c.Stats(); s.BaseLatency < time.Minute || s.QueueWait != time.Minute {
			t.Errorf("the line holds for %v where work is believed to take %v at least, want %v", s.QueueWait, s.BaseLatency, time.Minute)
		}
	})
}

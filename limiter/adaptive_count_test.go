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

// What a limit is set by is what has happened: each arrival, each end, and the time in service by weight.
func TestAdaptiveCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const unit = 1024 * time.Nanosecond
		const took, units = 10_000 * unit, 10_000
		c := NewAdaptive(WithoutYield(), WithStart(4), WithLimits(4, 4), WithQueue(1, time.Hour))
		var want concCount
		check := func(rule string, flight int64) {
			t.Helper()
			c.mu.Lock()
			defer c.mu.Unlock()
			got := c.adapt.counts(c, time.Since(c.base))
			if got != want {
				t.Errorf("%s:\n%+v, want\n%+v", rule, got, want)
			}
			if n := got.flight(c); n != flight {
				t.Errorf("%s: %d in flight, want %d", rule, n, flight)
			}
		}
		take := func(weight int) Permit {
			t.Helper()
			p, err := c.Acquire(t.Context(), Request{Weight: weight})
			if err != nil {
				t.Fatal(err)
			}
			return p
		}
		time.Sleep(time.Millisecond) // in a synctest bubble
		a, b := take(1), take(3)
		next := make(chan Permit)
		go func() { next <- take(0) }()
		synctest.Wait()
		want.arrivals, want.knocks = 3, 1
		check("one waits", 2)
		if _, err := c.Acquire(t.Context(), Request{}); err == nil {
			t.Fatal("no place in the line, and not refused")
		}
		c.TryAcquire(Request{})
		want.arrivals, want.knocks, want.turn = 5, 3, 2
		check("two are refused", 2)
		time.Sleep(took) // in a synctest bubble
		a.Release(Success)
		d := <-next
		want.n, want.ended, want.squares = 1, 1, units*units
		check("a success, and who waited has its permit", 2)
		time.Sleep(took) // in a synctest bubble
		b.Release(Failure)
		want.ended, want.lost = 2, 3*2*units
		check("a failure of weight 3", 1)
		d.Release(Ignored)
		want.ended, want.lost = 3, want.lost+units
		time.Sleep(took) // in a synctest bubble
		want.idle = took
		check("one that left, and nothing is in flight since", 0)
		e := take(2)
		time.Sleep(took) // in a synctest bubble
		e.Release(Success)
		f := take(9)
		time.Sleep(took) // in a synctest bubble
		f.Release(Success)
		want.n, want.ended, want.arrivals = 3, 5, 7
		want.squares, want.heavy = 3*units*units, units+3*units
		check("weights of 2, and of more than the limit", 0)
		g := take(1)
		g.slot.lag, g.slot.lags = 1000, 8
		h := take(1)
		h.slot.lag, h.slot.lags = 1000, 8
		time.Sleep(10 * time.Hour) // in a synctest bubble
		g.Release(Success)
		h.Release(Failure)
		want.n, want.ended, want.arrivals = 4, 7, 9
		want.lag, want.lags = 2*8000, 2*8
		minute := uint64(time.Minute / unit)
		want.squares += minute * minute
		want.lost += uint64(10 * time.Hour / unit)
		check("two samples that stand for 8 each, whatever came of them; and the square of hours, which would run over", 0)
		var failed, all uint32
		for i := range c.adapt.ages {
			for k := range c.adapt.ages[i].failed {
				n := c.adapt.ages[i].failed[k].Load()
				if all += n; k == timesCell(int64(2*took)) || k == timesCell(int64(took)) || k == timesCell(int64(10*time.Hour)) {
					failed += n
				}
			}
		}
		if failed != 3 || all != 3 {
			t.Errorf("%d of %d that failed are counted by how long they took, want 3", failed, all)
		}
	})
}

// A clock that was read before another one's, as times that callers hand on are, makes no time in service and none at rest that is negative.
func TestAdaptiveClockOutOfOrder(t *testing.T) {
	for _, o := range []Outcome{Success, Failure} {
		c := NewAdaptive()
		p, _ := c.take(1, 2*time.Second)
		p.ReleaseAt(o, c.base.Add(time.Second))
		q, _ := c.take(1, time.Second)
		q.ReleaseAt(o, c.base.Add(2*time.Second))
		r, _ := c.take(1, time.Second)
		got := c.adapt.counts(c, 2*time.Second)
		second := uint64(time.Second / 1024)
		want := concCount{ended: 2, arrivals: 3}
		if o == Success {
			want.n, want.squares = 2, second*second
		} else {
			want.lost = second
		}
		if got != want {
			t.Errorf("%v:\n%+v, want\n%+v", o, got, want)
		}
		r.Release(Ignored)
	}
}

// A limiter does not rest if somebody comes while the last one is on its way out.
func TestAdaptiveRestsUnlessSomebodyCame(t *testing.T) {
	c := NewAdaptive()
	p, _ := c.take(1, time.Second)
	c.rests(time.Second) // by one that found nobody in flight before p came
	if idle := c.adapt.counts(c, time.Minute).idle; idle != 0 {
		t.Errorf("one is in flight, and the limiter rests for %v", idle)
	}
	p.Release(Success)
}

// A window closes with the success that fills it, neither sooner nor later, also where many end at once.
func TestAdaptiveWindowClosesWhenFull(t *testing.T) {
	c := NewAdaptive(WithStart(1000))
	now := time.Second
	var permits []Permit
	for range 200 {
		p, ok := c.take(1, now)
		if !ok {
			t.Fatal("no permit")
		}
		permits = append(permits, p)
	}
	for range 3 {
		now += time.Duration(1e9 * max(1, c.adapt.ctrl.needSecs))
		need, opened := int(math.Ceil(c.adapt.ctrl.needN)), c.adapt.opened
		for n := 1; c.adapt.opened == opened; n++ {
			permits[0].ReleaseAt(Success, c.base.Add(now))
			permits = permits[1:]
			if closed := c.adapt.opened != opened; closed != (n == need) {
				t.Fatalf("of %d successes that fill a window %d have come: closed is %v", need, n, closed)
			}
		}
	}
}

// The share that is shed is of the last arrivals: of those who find a permit, who wait for one and who are sent away.
func TestAdaptiveShares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewAdaptive(WithoutYield(), WithStart(1), WithLimits(1, 1), WithQueue(1, time.Hour))
		share := func(rule string, shed, open float64) {
			t.Helper()
			c.mu.Lock()
			defer c.mu.Unlock()
			if a := c.adapt; math.Abs(a.shedE-shed) > .05 || math.Abs(a.openE-open) > .05 {
				t.Errorf("%s: %.3f are sent away and %.3f find a permit, want %v and %v", rule, a.shedE, a.openE, shed, open)
			}
		}
		share("at first", 0, 1)
		var wg sync.WaitGroup
		for range 2000 { // one is at work, one waits, one is sent away
			for range 2 {
				wg.Go(func() {
					if p, err := c.Acquire(t.Context(), Request{}); err == nil {
						time.Sleep(10 * time.Millisecond) // in a synctest bubble
						p.Release(Success)
					}
				})
			}
			time.Sleep(10 * time.Millisecond) // in a synctest bubble
		}
		share("each other one is sent away, and none finds a permit", .5, 0)
		wg.Wait()
		for range 2000 {
			p, ok := c.TryAcquire(Request{})
			if !ok {
				t.Fatal("no permit")
			}
			time.Sleep(10 * time.Millisecond) // in a synctest bubble
			p.Release(Success)
			time.Sleep(time.Millisecond) // in a synctest bubble
		}
		share("all find one", 0, 1)
	})
	c := NewAdaptive()
	for range 1000 {
		c.adapt.knocked(false)
	}
	for range 1000 { // all at once, when their time is over
		c.adapt.turned()
	}
	if s := c.Stats().ShedFraction; s > 1 || s < .99 {
		t.Errorf("all are sent away, of whom %v", s)
	}
}

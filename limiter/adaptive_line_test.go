package limiter

import (
	"math"
	"runtime"
	"testing"
	"time"
)

// The line is as long as what is known of the service says.
func TestAdaptiveLineLength(t *testing.T) {
	const ms = time.Millisecond
	for _, k := range []struct {
		rule   string
		shed   float64
		gate   int64
		set    func(c *Concurrency, a *adaptive) // of a service that does 500/s of 2 ms each, which vary as chance has it
		bound  time.Duration
		places int
		newest bool
	}{
		{"little is shed: so that chance does not leave it empty", .01, 0, nil, 34 * ms, 28, false},
		{"much is: no longer than the service needs", .5, 0, nil, 12 * ms, 12, true},
		{"more is: five are served in it", .9, 0, nil, 10 * ms, 10, true},
		{"long work: two fifths of it", .9, 0, func(_ *Concurrency, a *adaptive) { a.ctrl.base, a.ctrl.ref.r = .1, .1 }, 40 * ms, 33, true},
		{"long work, little is shed: as long as it takes, and varies", .01, 0, func(_ *Concurrency, a *adaptive) { a.ctrl.base, a.ctrl.ref.r = .1, .1 }, 200 * ms, 153, false},
		{"some wait inside the limit", .01, 0, func(_ *Concurrency, a *adaptive) { a.ctrl.ref.r = .004 }, 32600 * time.Microsecond, 27, false},
		{"work is known to vary", .01, 0, func(_ *Concurrency, a *adaptive) { a.ctrl.ncv = ctrlYoung }, 65500 * time.Microsecond, 52, false},
		{"what comes by the batch", .01, 0, func(_ *Concurrency, a *adaptive) { a.ctrl.ref.r, a.ctrl.ref.y = .003, .001 }, 36 * ms, 30, false},
		{"batches are of 10 ms at most", .01, 0, func(_ *Concurrency, a *adaptive) { a.ctrl.ref.r, a.ctrl.ref.y = .022, .02 }, 44 * ms, 36, false},
		{"what comes in bursts needs a longer one", .9, 0, func(_ *Concurrency, a *adaptive) { a.bridged = .2 }, 200 * ms, 153, true},
		{"nobody waits longer than a minute", .9, 0, func(_ *Concurrency, a *adaptive) { a.bridged = 100 }, time.Minute, 45003, true},
		{"little comes: one permit is at work all the time", .01, 0, func(_ *Concurrency, a *adaptive) { a.ctrl.ref.x = .1 }, 34 * ms, 28, false},
		{"it is at work in a part of the time", .01, 0, func(_ *Concurrency, a *adaptive) { a.ctrl.ref.x, a.ctrl.ref.busy = 1000, .5 }, 34 * ms, 28, false},
		{"nothing speaks against a higher limit", .01, 0, func(_ *Concurrency, a *adaptive) { a.ctrl.fresh = true }, 119 * ms, 160, false},
		{"nor much, yet", .097, 0, func(_ *Concurrency, a *adaptive) { a.ctrl.fresh = true }, 79050 * time.Microsecond, 84, false},
		{"much is shed: it does", .2, 0, func(_ *Concurrency, a *adaptive) { a.ctrl.fresh = true }, 34 * ms, 28, false},
		{"behind a gate a higher limit does not help", .01, 1, func(_ *Concurrency, a *adaptive) { a.ctrl.fresh = true }, 34 * ms, 17, false},
		{"behind a gate, first in first out: whoever has a place is served", .29, 1, nil, 10 * ms, 6, false},
		{"behind a gate, newest first: the end is cut off", .5, 1, nil, 10 * ms, 10, true},
		{"nothing is known", .01, 0, func(_ *Concurrency, a *adaptive) { a.ctrl.base = 0 }, 100 * ms, adaptUnknown, false},
		{"nothing is known at first", .01, 0, func(_ *Concurrency, a *adaptive) { a.ctrl.base, a.ctrl.fresh = 0, true }, 5 * time.Second, adaptUnknown, false},
		{"WithQueue bounds it", .01, 0, func(c *Concurrency, _ *adaptive) { c.conf.queueSet, c.conf.maxWait, c.conf.places = true, 5*ms, 4 }, 5 * ms, 4, false},
		{"and makes it no longer", .01, 0, func(c *Concurrency, _ *adaptive) {
			c.conf.queueSet, c.conf.maxWait, c.conf.places = true, time.Hour, 1000
		}, 34 * ms, 28, false},
		{"no line is none", .01, 0, func(_ *Concurrency, a *adaptive) { a.hasQueue = false }, 5 * time.Second, 0, false},
	} {
		t.Run(k.rule, func(t *testing.T) {
			c := adaptLine(k.shed, 1, k.gate)
			a := c.adapt
			if a.hasQueue {
				c.bound = 5 * time.Second
			}
			if k.set != nil {
				k.set(c, a)
			}
			a.tune(c)
			if bound := c.bound.Round(time.Microsecond); bound != k.bound || c.places != k.places || c.line.lifo != k.newest {
				t.Errorf("it holds %d for %v, newest first is %v; want %d for %v, %v", c.places, bound, c.line.lifo, k.places, k.bound, k.newest)
			}
		})
	}
}

// Where nothing is refused the limit follows what is in flight, as long as the time in service does not double.
func TestAdaptiveShadowLimit(t *testing.T) {
	const most = 100
	for _, k := range []struct {
		rule    string
		limit   int
		base    float64
		flight  float64 // on the average, for a second
		takes   float64 // each, s
		blocked float64 // share of arrivals
		limits  int
		learns  float64 // base
	}{
		{"all find a permit", 8, .1, 20, .1, 0, 8, .1},
		{"some do not", 8, .1, 20, .1, .5, 24, .1},
		{"more than on the average are in flight at times", 30, .1, 20, .1, .5, 31, .1},
		{"up to the most that there may be", 8, .1, 200, .1, .5, most, .1},
		{"it takes nearly twice as long", 8, .1, 20, .19, .5, 24, .1},
		{"it takes twice as long", 8, .1, 20, .21, .5, 8, .1},
		{"nothing is known yet", 8, 0, 20, .3, .5, 24, .3},
		{"it takes less", 8, .1, 20, .05, .5, 24, .05},
		{"it takes longer, and no queue is to blame", 8, .1, 5, .2, 0, 8, .105},
		{"the clock is too coarse", 8, .1, 0, 0, .5, 8, .1},
	} {
		a := NewAdaptive(WithShadow(), WithLimits(1, most)).adapt
		a.ctrl.limit, a.ctrl.base = k.limit, k.base
		n := k.flight / max(k.takes, 1e-9)
		a.watch(ctrlWindow{secs: 1, n: max(n, 1), sum: k.flight, arrivals: 100, blocked: 100 * k.blocked})
		if math.Abs(float64(a.ctrl.limit-k.limits)) > 0 || math.Abs(a.ctrl.base-k.learns) > 1e-9 {
			t.Errorf("%s: limit %d and a base latency of %v, want %d and %v", k.rule, a.ctrl.limit, a.ctrl.base, k.limits, k.learns)
		}
	}
}

// While work waits for a processor the limit is not less than two for each, or the most that there may be.
func TestAdaptiveFloorForProcessors(t *testing.T) {
	floor := 2 * runtime.GOMAXPROCS(0)
	for _, k := range []struct {
		rule        string
		least, most int
		lag         time.Duration // of 10 ms
		want        int
	}{
		{"nothing waits", 1, 1000, 0, 1},
		{"work waits", 1, 1000, 5 * time.Millisecond, floor},
		{"the least is more", floor + 5, floor + 10, 5 * time.Millisecond, floor + 5},
		{"the most is less", 1, 1, 5 * time.Millisecond, 1},
		{"nothing waits, and the least is more", floor + 5, floor + 10, 0, floor + 5},
	} {
		a := NewAdaptive(WithLimits(k.least, k.most)).adapt
		a.ctrl.least = 77 // of a window before
		a.lag = k.lag.Seconds()
		w := ctrlWindow{n: 64, arrivals: 64, sum: .64}
		a.crowd(concCount{lag: int64(64 * k.lag), lags: 64}, &w)
		if a.ctrl.least != k.want {
			t.Errorf("%s: the limit is %d at least, want %d", k.rule, a.ctrl.least, k.want)
		}
		if math.Abs(w.lag-64*k.lag.Seconds()) > 1e-9 {
			t.Errorf("%s: %v s of the window are a wait, want %v", k.rule, w.lag, 64*k.lag.Seconds())
		}
		w.lag = 0
		a.crowd(concCount{}, &w) // without a sample it is as it was
		if math.Abs(w.lag-64*k.lag.Seconds()) > 1e-9 {
			t.Errorf("%s, and there is no sample: %v s of the window are a wait, want %v", k.rule, w.lag, 64*k.lag.Seconds())
		}
	}
}

// A limit that is set from outside begins anew: with nothing of the window that was open, and the base latency that is known.
func TestAdaptiveSetLimitBeginsAnew(t *testing.T) {
	w := adaptOpen(t, 100, 1, 0)
	w.end(10, Success, .5)
	w.end(10, Failure, .5)
	a := w.c.adapt
	a.drains, a.relieved, a.ctrl.base = true, 1000, .25
	a.lacks.Store(70)
	a.restart(w.c, 8, w.now+time.Second)
	if a.drains || a.relieved != 0 || a.lacks.Load() != 0 || a.ctrl.base != .25 || a.ctrl.limit != 8 || a.opened != w.now+time.Second {
		t.Errorf("drains is %v, lowered from %d, it lacks %d, the base latency is %v at limit %d", a.drains, a.relieved, a.lacks.Load(), a.ctrl.base, a.ctrl.limit)
	}
	w.now += time.Second
	a.ctrl.needN, a.ctrl.needSecs = 20, 1
	if n := w.end(50, Success, 2); n != 20 {
		t.Errorf("closed by success %d, want 20", n)
	}
	if n, sum := a.window.total(); n != 20 || math.Abs(sum-20*3) > .1 {
		t.Errorf("the window has %v successes that took %v s, want those 20", n, sum)
	}
	if n := a.aged.failed[timesCell(5e8)]; n != 0 {
		t.Errorf("%v are counted as failed in it that did before", n)
	}
}

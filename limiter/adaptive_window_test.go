package limiter

import (
	"math"
	"testing"
	"time"
)

// Where nobody comes in a window since all came before, what they met who did stands for their work.
func TestAdaptiveUnbunch(t *testing.T) {
	burst := ctrlWindow{n: 80, arrivals: 100, blocked: 95, gated: 10, shed: 20}
	for _, k := range []struct {
		rule          string
		before        ctrlWindow
		w             ctrlWindow
		waits         bool
		blocked, shed float64
		arrivals      float64
	}{
		{"somebody comes", burst, ctrlWindow{n: 40, arrivals: 10, blocked: 1, shed: 2}, false, 1, 2, 10},
		{"nobody ever came", ctrlWindow{}, ctrlWindow{n: 40}, false, 0, 0, 0},
		{"nobody comes, and the limit is no longer full", burst, ctrlWindow{n: 40, shed: 3}, false, 90, 13, 100},
		{"nobody comes, and some wait yet", burst, ctrlWindow{n: 40, shed: 3}, true, 95, 13, 100},
		{"most had found a permit", ctrlWindow{n: 80, arrivals: 100, blocked: 5}, ctrlWindow{n: 40}, false, 5, 0, 100},
	} {
		a := NewAdaptive().adapt
		a.burst = k.before
		w := k.w
		a.unbunch(&w, k.waits)
		if w.blocked != k.blocked || w.shed != k.shed || w.arrivals != k.arrivals {
			t.Errorf("%s: %v of %v found no permit and %v are shed, want %v of %v, and %v", k.rule, w.blocked, w.arrivals, w.shed, k.blocked, k.arrivals, k.shed)
		}
		next := k.before
		if k.w.arrivals > 0 || next.arrivals == 0 {
			next = k.w
		}
		if a.burst != next {
			t.Errorf("%s: what stands for the next window is %+v", k.rule, a.burst)
		}
	}
}

// The line is as long as it has to be so that none of a burst is sent away before there is room to spare, where that comes soon enough.
func TestAdaptiveBridge(t *testing.T) {
	const limit, bound = 10, .02
	full := func(secs, shed float64) ctrlWindow {
		return ctrlWindow{secs: secs, n: 100 * secs, sum: limit * secs, shed: shed}
	}
	part := func(secs, n, busy float64) ctrlWindow { return ctrlWindow{secs: secs, n: n, sum: busy * limit * secs} }
	rest := ctrlWindow{secs: .1, n: 10, sum: .1, idle: .08}
	short := []ctrlWindow{full(.05, 10), part(.1, 20, .5)} // there is room for 50 ms, and the ten that were sent away take as long
	for _, k := range []struct {
		rule    string
		base    float64
		gate    int64
		before  float64
		windows []ctrlWindow
		want    float64
	}{
		{"a burst, and room to spare soon after it", .01, 0, 0, short, bound + .05},
		{"as long as those take who were sent away, and no longer", .01, 0, 0, []ctrlWindow{full(.05, 4), part(.1, 20, .5)}, bound + .02},
		{"no longer than the room lasts", .01, 0, 0, []ctrlWindow{full(.05, 100), part(.1, 20, .5)}, bound + .05},
		{"nothing is known yet of how long work takes", 0, 0, 0, short, 0},
		{"a quarter of a second at most, where work is brief", .01, 0, 0, []ctrlWindow{full(.05, 1000), part(1, 10, .1)}, adaptBridged},
		{"eight times as long as work takes, where that is more", .05, 0, 0, []ctrlWindow{full(.05, 1000), part(1, 10, .1)}, .4},
		{"five seconds at most", 10, 0, 0, []ctrlWindow{full(.05, 1000), part(100, 10, .1)}, 5},
		{"too long without room: no line would do", .01, 0, 0, []ctrlWindow{full(.2, 10), full(.2, 10), part(.1, 20, .5)}, 0},
		{"and what comes after that is another burst", .01, 0, 0, append([]ctrlWindow{full(.2, 10), full(.2, 10), part(.1, 20, .5)}, short...), bound + .05},
		{"a tenth of a window is no room", .01, 0, 0, []ctrlWindow{full(.05, 10), part(.2, 20, .9)}, 0},
		{"nor is less than work takes", .06, 0, 0, short, 0},
		{"a longer one was needed before", .01, 0, .2, short, .2 - .25*.05},
		{"it was long enough", .01, 0, .2, []ctrlWindow{part(.1, 10, .5), part(.1, 10, .5)}, .2 * adaptKeeps * adaptKeeps},
		{"once it was long enough", .01, 0, 0, append(short[:2:2], part(.1, 10, .5)), (bound + .05) * adaptKeeps},
		{"none is sent away, and there is no room", .01, 0, .2, []ctrlWindow{full(.2, 0)}, .2},
		{"some are, and it is of no use", .01, 0, .2, []ctrlWindow{full(.2, 10)}, .15},
		{"until there is none", .01, 0, .2, []ctrlWindow{full(2, 10)}, 0},
		{"behind a gate permits are free since processors are not", .01, 1, 0, short, 0},
		{"and there is room when nothing is in flight", .01, 1, 0, []ctrlWindow{full(.05, 10), rest}, bound + 10/500.},
	} {
		a := NewAdaptive().adapt
		a.ctrl.base, a.bridged = k.base, k.before
		a.gate.Store(k.gate)
		for _, w := range k.windows {
			a.bridge(&w, limit, bound)
		}
		if math.Abs(a.bridged-k.want) > 1e-9 {
			t.Errorf("%s: %v s, want %v s", k.rule, a.bridged, k.want)
		}
	}
}

// Nothing succeeds where so much comes to nothing of which some usually does, and takes the time that it took when it did.
func TestAdaptiveStarves(t *testing.T) {
	const took = .1
	for _, k := range []struct {
		rule    string
		set     func(a *adaptive)
		limit   int
		ended   int64
		each    float64 // how long each took
		over    float64 // seconds
		n       int64   // successes
		starves bool
		anew    bool // what comes after is looked at by itself
	}{
		{"a round of twenty at a limit of two", nil, 2, 20, took, 1, 0, true, false},
		{"fewer than ten", nil, 2, 9, took, .45, 0, false, false},
		{"less than a round", nil, 50, 20, took, .04, 0, false, false},
		{"all of a round", nil, 50, 50, took, .1, 0, true, false},
		{"what the limit before let in is on its way", func(a *adaptive) { a.ctrl.phase, a.ctrl.from = ctrlSettle, 100 }, 50, 50, took, .1, 0, false, false},
		{"and has come to nothing, too", func(a *adaptive) { a.ctrl.phase, a.ctrl.from = ctrlSettle, 100 }, 50, 100, took, .2, 0, true, false},
		{"the limit before was long ago", func(a *adaptive) { a.ctrl.from = 100 }, 50, 50, took, .1, 0, true, false},
		{"nine of ten always came to nothing", func(a *adaptive) { a.ctrl.ref.more = 10 }, 2, 60, took, 3, 0, false, false},
		{"and now all do", func(a *adaptive) { a.ctrl.ref.more = 10 }, 2, 101, took, 5, 0, true, false},
		{"something has succeeded", nil, 2, 20, took, 1, 1, false, true},
		{"something has since the limit was lowered", func(a *adaptive) { a.relieved, a.barren.n, a.last.n = 8, 1, 0 }, 2, 20, took, 1, 1, false, false},
		{"nothing has since the limit was lowered", func(a *adaptive) { a.relieved, a.barren.n, a.last.n = 8, 1, 1 }, 2, 20, took, 1, 1, true, false},
		{"refused elsewhere, at once", nil, 2, 20, took / 4, .2, 0, false, true},
		{"not much quicker than usual", nil, 2, 20, took * .6, .6, 0, true, false},
		{"few are in flight", nil, 2, 20, took, 2.1, 0, false, true},
		{"half of the limit is", nil, 2, 20, took, 1.9, 0, true, false},
	} {
		a := NewAdaptive(WithStart(k.limit)).adapt
		a.ctrl.base, a.ctrl.ref.worth, a.ctrl.ref.more = took, 1, 1
		if k.set != nil {
			k.set(a)
		}
		now := time.Duration(k.over * 1e9)
		counts := concCount{n: k.n, ended: k.n + k.ended, lost: uint64(float64(k.ended) * k.each / adaptUnit)}
		if k.rule == "something has succeeded" {
			counts.ended = k.n
		} else {
			counts.ended = a.barren.ended + k.ended
		}
		got := a.starves(&counts, now)
		if (got > 0) != k.starves || k.starves && math.Abs(got-k.each) > .001 {
			t.Errorf("%s: nothing succeeds and takes %v s; want %v, and %v s", k.rule, got, k.starves, k.each)
		}
		if anew := a.barren == counts && a.sterile == now; anew != k.anew {
			t.Errorf("%s: looked at anew is %v", k.rule, anew)
		}
	}
}

// While nothing succeeds the line is shortened first, unless what ends takes longer than it did; then the limit is lowered to where as much
// would end in the time that it took, or by half at least each time, but to a sixteenth at most.
func TestAdaptiveRelieve(t *testing.T) {
	const limit, took = 160, .1
	for _, k := range []struct {
		rule  string
		base  float64
		took  []float64
		least int
		want  []int
	}{
		{"it takes what it took", took, []float64{took}, 1, []int{160}},
		{"it takes four times as long", took, []float64{4 * took}, 1, []int{40}},
		{"it takes less", took, []float64{took / 2}, 1, []int{160}},
		{"a shorter line has not been enough", took, []float64{took, took, took}, 1, []int{160, 106, 70}},
		{"it takes longer and longer", took, []float64{2 * took, 4 * took}, 1, []int{80, 20}},
		{"to a sixteenth at most", took, []float64{100 * took, 100 * took}, 1, []int{10, 10}},
		{"to the least limit at most", took, []float64{100 * took, 100 * took}, 50, []int{50, 50}},
		{"nothing has ever succeeded", 0, []float64{took, took}, 1, []int{160, 160}},
	} {
		t.Run(k.rule, func(t *testing.T) {
			c := NewAdaptive(WithStart(limit), WithLimits(k.least, 1000))
			a := c.adapt
			a.ctrl.base, a.ctrl.ref.x, a.ctrl.ref.busy = k.base, 100, 1
			held := 0
			for range 30 {
				if _, ok := c.take(1, time.Second); ok {
					held++
				}
			}
			for i, took := range k.took {
				now := time.Duration(i+2) * time.Second
				a.lacks.Store(1000)
				a.drains = false
				before := a.ctrl.limit
				counts := a.counts(c, now)
				a.relieve(c, took, now, counts)
				if a.ctrl.limit != k.want[i] || c.Limit() != k.want[i] {
					t.Errorf("time %d: limit %d, of the controller %d, want %d", i+1, c.Limit(), a.ctrl.limit, k.want[i])
				}
				if !c.line.lifo || a.ctrl.fresh || a.barren != counts || a.sterile != now {
					t.Errorf("time %d: newest first is %v, fresh is %v, and it is looked at anew since %v", i+1, c.line.lifo, a.ctrl.fresh, a.sterile)
				}
				// After a lower limit the next window begins when what is in flight has ended, and at once where it stands.
				lowered, lacks := k.want[i] < before, int64(0)
				if lowered {
					lacks = int64(held)
				}
				if a.drains != lowered || a.lacks.Load() != lacks || !lowered && a.opened != now {
					t.Errorf("time %d: it waits for %d to end, want %d; drains is %v, and the window began at %v", i+1, a.lacks.Load(), lacks, a.drains, a.opened)
				}
			}
		})
	}
}

// adaptWindow is a limiter of which a window is open that has to hold so much, with permits to release.
type adaptWindow struct {
	*testing.T
	c       *Concurrency
	now     time.Duration
	permits []Permit
}

func adaptOpen(t *testing.T, needN, needSecs, mostSecs float64) *adaptWindow {
	w := &adaptWindow{T: t, c: NewAdaptive(WithStart(1000)), now: time.Second}
	for range 500 {
		p, ok := w.c.take(1, w.now)
		if !ok {
			t.Fatal("no permit")
		}
		w.permits = append(w.permits, p)
	}
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	a := w.c.adapt
	a.ctrl.needN, a.ctrl.needSecs, a.ctrl.mostSecs = needN, needSecs, mostSecs
	a.begin(w.now, a.counts(w.c, w.now))
	return w
}

// end has n end at a time since the window began, and returns how many had when it closed; 0 is that it did not.
func (w *adaptWindow) end(n int, o Outcome, secs float64) int {
	a := w.c.adapt
	opened := a.opened
	for i := range n {
		w.permits[0].ReleaseAt(o, w.c.base.Add(w.now+time.Duration(secs*1e9)))
		w.permits = w.permits[1:]
		if a.opened != opened {
			if a.lacks.Load() != 0 {
				w.Errorf("the window that follows lacks %d", a.lacks.Load())
			}
			return i + 1
		}
	}
	return 0
}

// A window is closed with the success that fills it when it has lasted for long enough, or sooner if work is much faster than it was, or later
// with whatever there is.
func TestAdaptiveWindowCloses(t *testing.T) {
	t.Run("full, and not yet long enough", func(t *testing.T) {
		w := adaptOpen(t, 10, 2, 0)
		if n := w.end(50, Success, 1); n != 0 {
			t.Errorf("closed by success %d", n)
		}
		if n := w.end(5, Success, 2.1); n != 1 {
			t.Errorf("closed by success %d when it was time, want the first", n)
		}
	})
	t.Run("eight times as much as it has to hold", func(t *testing.T) {
		for n, want := range map[int]int{78: 0, 79: 1} {
			w := adaptOpen(t, 10, 2, 0)
			if n := w.end(n, Success, .01); n != 0 { // it is not looked at so soon
				t.Errorf("closed by success %d", n)
			}
			if got := w.end(1, Success, .06); got != want {
				t.Errorf("closed by the next after %d: %v, want %v", n, got == 1, want == 1)
			}
		}
	})
	t.Run("that is looked for again", func(t *testing.T) {
		w := adaptOpen(t, 10, 2, 0)
		if n := w.end(20, Success, .06); n != 0 {
			t.Errorf("closed by success %d", n)
		}
		if n := w.end(100, Success, .1); n != 0 { // it was looked at at 60 ms, and is again at 120
			t.Errorf("closed by success %d at 100 ms", n)
		}
		if n := w.end(2, Success, .13); n != 1 {
			t.Errorf("closed by success %d at 130 ms, want the first", n)
		}
	})
	t.Run("it takes too long", func(t *testing.T) {
		w := adaptOpen(t, 101, 1, 4)
		if n := w.end(1, Success, 2); n != 0 {
			t.Errorf("closed by success %d of 101", n)
		}
		// A quarter of what lacks, and it is looked at again.
		if n := w.end(80, Success, 5); n != 25 {
			t.Errorf("closed by success %d when it took too long, want 25", n)
		}
	})
	t.Run("it takes too long, and nothing has succeeded", func(t *testing.T) {
		w := adaptOpen(t, 101, 1, 4)
		if n := w.end(50, Failure, 5); n != 0 {
			t.Errorf("closed by failure %d", n)
		}
		if n := w.end(50, Success, 5); n == 0 {
			t.Error("not closed by any success")
		}
	})
	t.Run("the newest come first as soon as most are sent away", func(t *testing.T) {
		w := adaptOpen(t, 101, 1, 0)
		w.c.adapt.shedE = .9
		if w.end(1, Success, 2); !w.c.line.lifo {
			t.Error("the line is as it was until the window closes, which it may never do")
		}
	})
	t.Run("where the limit was lowered, when what was in flight has ended", func(t *testing.T) {
		w := adaptOpen(t, 10, 1, 0)
		a := w.c.adapt
		a.drains = true
		a.lacks.Store(40)
		if n := w.end(100, Success, .5); n != 40 {
			t.Errorf("closed by success %d, want 40", n)
		}
		if a.ctrl.ref.n != 0 || a.drains {
			t.Errorf("%v that ended before count, drains is %v", a.ctrl.ref.n, a.drains)
		}
		w.end(40, Success, 2)
		if n, sum := a.window.total(); n != 10 || math.Abs(sum-10*2) > .1 {
			t.Errorf("the window that follows has %v successes that took %v s, want 10 that took 20 s", n, sum)
		}
	})
	t.Run("it ends what was lowered since nothing succeeded", func(t *testing.T) {
		w := adaptOpen(t, 10, 1, 0)
		w.c.adapt.relieved = 1000
		if n := w.end(20, Success, 2); n != 10 || w.c.adapt.relieved != 0 {
			t.Errorf("closed by success %d; lowered from %d", n, w.c.adapt.relieved)
		}
	})
}

// Throughput is what is done while anything is in flight.
func TestAdaptiveThroughputOfWhatRests(t *testing.T) {
	c := NewAdaptive()
	for i := range 200 {
		at := time.Duration(i+1) * time.Second
		p, ok := c.take(1, at)
		if !ok {
			t.Fatal("no permit")
		}
		p.ReleaseAt(Success, c.base.Add(at+10*time.Millisecond))
	}
	if s := c.Stats(); s.Throughput < 80 || s.Throughput > 120 {
		t.Errorf("one each second that takes 10 ms: %.1f/s, want 100", s.Throughput)
	}
}

package limitersim_test

import (
	"context"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/limiter/limitersim"
)

const (
	from = 2 * time.Second
	to   = 12 * time.Second
)

func score(sim *limitersim.Simulation, l limitersim.Limiter) limitersim.Score {
	sim.Run(l)
	return sim.Score(from, to)
}

// Whatever the kind of service: at half load nothing is lost, above its capacity it collapses without a limiter.
func TestServicesHaveTheirCapacity(t *testing.T) {
	for _, svc := range append(limitersim.Profiles(), limitersim.Store(16, 10*time.Millisecond), limitersim.Processors(4, 10*time.Millisecond)) {
		t.Run(svc.Name, func(t *testing.T) {
			if s := score(limitersim.New(svc, .5, 1, to), nil); s.Goodput < .97 || s.Rejected != 0 || s.P99 <= 0 {
				t.Errorf("half load: %+v", s)
			}
			if s := score(limitersim.New(svc, 3, 1, to), nil); s.Goodput > .1 {
				t.Errorf("three times the capacity without a limiter: %+v; want a collapse", s)
			}
			best := 0.
			for n := 4; n <= 256; n *= 4 {
				best = max(best, score(limitersim.New(svc, 3, 1, to), &places{free: n}).Goodput)
			}
			if best < .85 || best > 1.1 {
				t.Errorf("three times the capacity with the best number of places: goodput %.3f; want about 1", best)
			}
		})
	}
}

// line keeps callers waiting for a bounded time, with the clock of the simulation.
type line struct {
	sim   *limitersim.Simulation
	free  int
	queue []*limitersim.Request
	bound time.Duration
}

func (l *line) Arrive(r *limitersim.Request) {
	if l.free > 0 {
		l.free--
		r.Admit()
		return
	}
	l.queue = append(l.queue, r)
	l.sim.At(l.sim.Now()+l.bound, func() {
		for i, q := range l.queue {
			if q == r {
				l.queue = append(l.queue[:i], l.queue[i+1:]...)
				r.Reject()
				return
			}
		}
	})
}

func (l *line) Release(*limitersim.Request) {
	if len(l.queue) == 0 {
		l.free++
		return
	}
	next := l.queue[0]
	l.queue = l.queue[1:]
	next.Admit()
}

// The same limiter scores the same with the clock of the simulation and with goroutines in a bubble.
func TestRunFuncDoesWhatRunDoes(t *testing.T) {
	const n, bound = 8, 20 * time.Millisecond
	for _, svc := range limitersim.Profiles() {
		for _, load := range []float64{.9, 3} {
			if svc.Name == "wide" && load > 1 {
				continue // many goroutines, and nothing else
			}
			sim := limitersim.New(svc, load, 7, 2*from)
			sim.Run(&line{sim: sim, free: n, bound: bound})
			want := sim.Score(from, 2*from)
			synctest.Test(t, func(t *testing.T) {
				sim := limitersim.New(svc, load, 7, 2*from)
				slots := make(chan struct{}, n)
				sim.RunFunc(func(work func()) {
					ctx, cancel := context.WithTimeout(t.Context(), bound)
					defer cancel()
					select {
					case slots <- struct{}{}:
						work()
						<-slots
					case <-ctx.Done():
					}
				})
				got := sim.Score(from, 2*from)
				// The clock of a bubble ticks in nanoseconds, so that who comes first may differ in rare cases.
				if d := got.Goodput - want.Goodput; max(d, -d) > .005 || (got.P99-want.P99).Abs() > want.P99/50 || len(slots) != 0 {
					t.Errorf("%s at %v: with goroutines %+v, without %+v; %d still inside", svc.Name, load, got, want, len(slots))
				}
			})
		}
	}
}

// Two runs with one seed are the same, and another seed is another.
func TestSeed(t *testing.T) {
	svc := limitersim.Profiles()[2]
	run := func(seed uint64) limitersim.Score {
		return score(limitersim.New(svc, 1.5, seed, to), &places{free: 20})
	}
	if run(1) != run(1) || run(1) == run(2) {
		t.Errorf("seed 1: %+v and %+v, seed 2: %+v", run(1), run(1), run(2))
	}
	a, b := limitersim.Random(5), limitersim.Random(5)
	if a.Description != b.Description || a.Baseline != b.Baseline || a.Description == limitersim.Random(6).Description {
		t.Errorf("random services: %q, %q", a.Description, b.Description)
	}
	if got := limitersim.Describe(5); got != a.Description {
		t.Errorf("Describe(5) is %q, and of what is drawn %q", got, a.Description)
	}
}

// A random service at its optimum is at its capacity.
func TestRandomServicesHaveTheirOptimum(t *testing.T) {
	good := 0
	for seed := uint64(100); seed < 108; seed++ {
		k := limitersim.Random(seed)
		n := max(1, int(k.Optimum))
		sim := k.New(func() int { return n })
		sim.Run(&places{free: n + n/4 + 2})
		if s := k.Score(sim); s.Goodput > .85 {
			good++
		} else {
			t.Logf("seed %d: %s: optimum %.0f, %+v", seed, k.Description, k.Optimum, s)
		}
	}
	if good < 7 {
		t.Errorf("%d of 8 random services reach 0.85 of what is possible at their optimum; want 7", good)
	}
}

// Bursts come besides what arrives anyway.
func TestBurst(t *testing.T) {
	sim := limitersim.New(limitersim.Store(10, 10*time.Millisecond), 0, 1, 5*time.Second)
	for at := time.Second; at < 4*time.Second; at += time.Second {
		sim.At(at, func() { sim.Burst(15) })
	}
	sim.Run(&places{free: 10})
	if s := sim.Score(0, 4*time.Second); s.Rejected < .33 || s.Rejected > .34 || s.Goodput < .66 || s.Goodput > .67 {
		t.Errorf("3 bursts of 15 to 10 places: %+v, want two thirds and a third", s)
	}
}

// lateNo rejects whatever arrives a second later.
type lateNo struct{ sim *limitersim.Simulation }

func (l lateNo) Arrive(r *limitersim.Request) { l.sim.At(l.sim.Now()+time.Second, r.Reject) }

func (lateNo) Release(*limitersim.Request) {}

// What has waited before it is rejected arrived in another second: no more is rejected in one than has come in it.
func TestRejectedLate(t *testing.T) {
	sim := limitersim.New(limitersim.Store(10, 10*time.Millisecond), 0, 1, 4*time.Second)
	sim.At(1500*time.Millisecond, func() { sim.Burst(15) })
	sim.At(2500*time.Millisecond, func() { sim.Burst(5) })
	sim.Run(lateNo{sim})
	for at := range 3 {
		from := time.Duration(at) * time.Second
		want := 1.
		if at == 0 {
			want = 0
		}
		if s := sim.Score(from, from+time.Second); s.Rejected != want {
			t.Errorf("of what arrived from %v on %.2f was rejected, want %.2f", from, s.Rejected, want)
		}
	}
}

// What no work came to was worth nothing, and is a number all the same.
func TestScoreOfNothing(t *testing.T) {
	sim := limitersim.New(limitersim.Profiles()[0], 0, 1, to)
	if s := score(sim, nil); s != (limitersim.Score{}) {
		t.Errorf("nothing arrived: %+v", s)
	}
}

// At half its speed a service has half its capacity, and so it has if its work is twice as much.
func TestSpeedAndDemand(t *testing.T) {
	halve := func(time.Duration) float64 { return .5 }
	twice := func(*rand.Rand) float64 { return 2 }
	for _, svc := range []limitersim.Service{limitersim.Store(16, 10*time.Millisecond), limitersim.Processors(16, 10*time.Millisecond)} {
		slow, much := svc, svc
		slow.Speed, much.Demand = halve, twice
		for what, svc := range map[string]limitersim.Service{"slow": slow, "much": much} {
			if s := score(limitersim.New(svc, 2, 1, to), &places{free: 20}); s.Goodput < .48 || s.Goodput > .52 {
				t.Errorf("%s, %s: goodput %.3f of the usual capacity, want 0.5", svc.Name, what, s.Goodput)
			}
		}
	}
}

// leaving lets everybody in, and cancels every other request some time after it arrived, or when its work has ended if that is before.
type leaving struct {
	sim       *limitersim.Simulation
	after     time.Duration
	inside    map[*limitersim.Request]bool
	cancelled int
	other     bool
}

func (l *leaving) Arrive(r *limitersim.Request) {
	l.inside[r] = true
	r.Admit()
	if l.other = !l.other; l.other {
		l.sim.At(r.Arrived()+l.after, func() {
			if l.inside[r] {
				delete(l.inside, r)
				l.cancelled++
				r.Cancel()
			}
		})
	}
}

func (l *leaving) Release(r *limitersim.Request) {
	if !l.inside[r] {
		panic("released, and had left")
	}
	delete(l.inside, r)
}

// Work that is cancelled takes up nothing from then on, whether it is served or waits: the rest is served as if half as much
// came, or as much as it had until then.
func TestCancel(t *testing.T) {
	const least = .49 // of what arrives
	for _, tt := range []struct {
		svc   limitersim.Service
		load  float64
		after time.Duration
	}{
		{limitersim.Store(16, 10*time.Millisecond), 1.8, 0},
		{limitersim.Store(16, 10*time.Millisecond), 1.25, 5 * time.Millisecond},
		{limitersim.Processors(16, 10*time.Millisecond), 1.8, 0},
		{limitersim.Processors(16, 10*time.Millisecond), 1.25, 5 * time.Millisecond},
		{limitersim.SlowDependency(), 1.8, 0},
		{limitersim.SlowDependency(), 1.2, 15 * time.Millisecond},
	} {
		sim := limitersim.New(tt.svc, tt.load, 1, to)
		l := &leaving{sim: sim, after: tt.after, inside: map[*limitersim.Request]bool{}}
		sim.Run(l)
		s := sim.Score(from, 10*time.Second)
		good := s.Goodput / max(1, tt.load)
		t.Logf("%s at %v, every other one leaves after %v: %.3f of all are served, p99 %v, %d left", tt.svc.Name, tt.load, tt.after, good, s.P99, l.cancelled)
		if good < least || l.cancelled == 0 {
			t.Errorf("%s at %v, every other one leaves after %v: %.3f of all are served, want %.3f; %d left", tt.svc.Name, tt.load, tt.after, good, least, l.cancelled)
		}
	}
}

// The rate of arrivals may vary, and Watch sees every event in order.
func TestRateAndWatch(t *testing.T) {
	svc := limitersim.Profiles()[0]
	sim := limitersim.New(svc, 0, 1, to)
	sim.Rate = func(now time.Duration) float64 {
		if now < 6*time.Second {
			return .5 * svc.Capacity
		}
		return 2 * svc.Capacity
	}
	var last time.Duration
	sim.Watch = func() {
		if sim.Now() < last {
			t.Fatalf("%v after %v", sim.Now(), last)
		}
		last = sim.Now()
	}
	sim.Run(&places{free: 4})
	if a, b := sim.Score(0, 6*time.Second), sim.Score(6*time.Second, to); a.Rejected > .2 || b.Rejected < .4 || last < to-time.Second {
		t.Errorf("half the capacity: %+v; twice: %+v; last event at %v", a, b, last)
	}
}

// counting counts what arrives in each five seconds.
type counting [6]int

func (c *counting) Arrive(r *limitersim.Request) { c[r.Arrived()/(5*time.Second)]++; r.Reject() }
func (*counting) Release(*limitersim.Request)    {}

// What arrives follows the rate also after a time in which nothing does, or next to nothing.
func TestRateAfterALull(t *testing.T) {
	for _, lull := range []float64{0, .01, .5, 10} {
		sim := limitersim.New(limitersim.Store(16, 10*time.Millisecond), 1, 1, 30*time.Second-1)
		sim.Rate = func(now time.Duration) float64 {
			if now/(5*time.Second)%2 == 0 {
				return lull
			}
			return 800
		}
		var got counting
		sim.Run(&got)
		for i, n := range got {
			if want := []float64{lull * 5, 4000}[i%2]; math.Abs(float64(n)-want) > 4*math.Sqrt(want)+1 {
				t.Errorf("%v a second in a lull: %v arrived in each five seconds; want about %v in the %d.", lull, got, want, i+1)
			}
		}
	}
}

func TestMisusePanics(t *testing.T) {
	svc := limitersim.Profiles()[0]
	speed := func(svc limitersim.Service, v float64) {
		svc.Speed = func(time.Duration) float64 { return v }
		limitersim.New(svc, 1, 1, to).Run(nil)
	}
	demand := func(v float64) {
		svc := svc
		svc.Demand = func(*rand.Rand) float64 { return v }
		limitersim.New(svc, 1, 1, to).Run(nil)
	}
	capacity := func(v float64) {
		svc := svc
		svc.Capacity = v
		limitersim.New(svc, 1, 1, to)
	}
	ran := limitersim.New(svc, 1, 1, to)
	ran.Run(nil)
	for name, f := range map[string]func(){
		"negative load":          func() { limitersim.New(svc, -1, 1, to) },
		"load that is no number": func() { limitersim.New(svc, math.NaN(), 1, to) },
		"infinite load":          func() { limitersim.New(svc, math.Inf(1), 1, to) },
		"no time":                func() { limitersim.New(svc, 1, 1, 0) },
		"run twice":              func() { ran.Run(nil) },
		"score beyond the end":   func() { ran.Score(0, to+time.Second) },
		"score of nothing":       func() { ran.Score(from, from) },
		"score of half a second": func() { ran.Score(from, from+time.Second/2) },
		"score of no whole one":  func() { ran.Score(from+1, from+time.Second+1) },
		"score of a run too short": func() {
			sim := limitersim.New(svc, 1, 1, time.Second/2)
			sim.Run(nil)
			sim.Score(0, time.Second)
		},
		"score before the run":        func() { limitersim.New(svc, 1, 1, to).Score(from, to) },
		"random, not run":             func() { k := limitersim.Random(1); k.Score(k.New(func() int { return 1 })) },
		"a store of no places":        func() { limitersim.Store(0, time.Second) },
		"processors for no time":      func() { limitersim.Processors(1, 0) },
		"cancelled, not admitted":     func() { limitersim.New(svc, 1, 1, to).Run(cancelled{}) },
		"a request decided twice":     func() { limitersim.New(svc, 1, 1, to).Run(twice{}) },
		"a limit of 0":                func() { limitersim.Random(3).New(func() int { return 0 }).Run(nil) },
		"processors that stand still": func() { speed(svc, 0) },
		"places that stand still":     func() { speed(limitersim.Store(1, time.Millisecond), 0) },
		"infinite speed":              func() { speed(svc, math.Inf(1)) },
		"speed that is no number":     func() { speed(svc, math.NaN()) },
		"negative demand":             func() { demand(-1) },
		"demand that is no number":    func() { demand(math.NaN()) },
		"infinite demand":             func() { demand(math.Inf(1)) },
		"a service of one's own":      func() { limitersim.New(limitersim.Service{Capacity: 1}, 1, 1, to) },
		"the baseline of one":         func() { limitersim.Service{Capacity: 1}.Baseline(1) },
		"no capacity":                 func() { capacity(0) },
		"negative capacity":           func() { capacity(-1) },
		"capacity that is no number":  func() { capacity(math.NaN()) },
		"infinite capacity":           func() { capacity(math.Inf(1)) },
		"a load infinite in requests": func() { limitersim.New(svc, math.MaxFloat64, 1, to) },
		"a burst before the run":      func() { limitersim.New(svc, 1, 1, to).Burst(1) },
		"a burst after the run":       func() { ran.Burst(1) },
		"nothing at a time":           func() { limitersim.New(svc, 1, 1, to).At(0, nil) },
		"random, nothing of a limit":  func() { limitersim.Random(3).New(nil) },
		"negative rate":               func() { rate(svc, -1) },
		"rate that is no number":      func() { rate(svc, math.NaN()) },
		"infinite rate":               func() { rate(svc, math.Inf(1)) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if s, _ := recover().(string); !strings.HasPrefix(s, "limitersim: ") {
					t.Errorf("panicked with %q", s)
				}
			}()
			f()
		})
	}
}

// rate runs a simulation with a rate of arrivals.
func rate(svc limitersim.Service, rate float64) {
	sim := limitersim.New(svc, 1, 1, to)
	sim.Rate = func(time.Duration) float64 { return rate }
	sim.Run(nil)
}

// cancelled cancels what has not begun.
type cancelled struct{}

func (cancelled) Arrive(r *limitersim.Request) { r.Cancel() }
func (cancelled) Release(*limitersim.Request)  {}

// twice answers twice.
type twice struct{}

func (twice) Arrive(r *limitersim.Request) { r.Reject(); r.Admit() }
func (twice) Release(*limitersim.Request)  {}

package limiter

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/spillgate/spillgate/limiter/limitersim"
)

// labTrouble is a service that is in trouble for some time, and clients that leave.
type labTrouble struct {
	svc      limitersim.Service
	load     float64
	from, to time.Duration // of the trouble
	end      time.Duration
	seed     uint64

	slower   float64       // how many times the service is slower meanwhile; 0 is not
	outage   time.Duration // all work fails after so long meanwhile; 0 is none
	patience time.Duration // what a client waits for; 0 is any time
	late     Outcome       // of work that takes longer
	cancels  bool          // it ends with its client, and does not run on
}

// in reports whether the trouble is on.
func (k *labTrouble) in(now time.Duration) bool { return now >= k.from && now < k.to }

// run returns the successes of each second with c.
func (k labTrouble) run(c *Concurrency) []float64 {
	if k.slower > 0 {
		k.svc.Speed = func(now time.Duration) float64 {
			if k.in(now) {
				return 1 / k.slower
			}
			return 1
		}
	}
	sim := limitersim.New(k.svc, k.load, k.seed, k.end)
	d := labDrive(sim, c)
	good := make([]float64, int(k.end.Seconds())+1)
	d.outcome = func(r *limitersim.Request) Outcome {
		if k.patience > 0 && sim.Now()-r.Arrived() > k.patience {
			return k.late
		}
		good[int(sim.Now().Seconds())]++
		return Success
	}
	d.work = func(r *limitersim.Request) {
		if k.outage > 0 && k.in(sim.Now()) {
			sim.At(sim.Now()+k.outage, func() { d.end(r, Failure) })
			return
		}
		r.Admit()
		if k.cancels {
			sim.At(r.Arrived()+k.patience, func() {
				if d.slots[r] != nil {
					r.Cancel()
					d.end(r, k.late)
				}
			})
		}
	}
	sim.Run(d)
	return good
}

// labMean is the mean of a span.
func labMean(good []float64, from, to time.Duration) float64 {
	sum := 0.
	for _, n := range good[int(from.Seconds()):int(to.Seconds())] {
		sum += n
	}
	return sum / (to - from).Seconds()
}

// soon returns how many whole seconds it takes after a time until nine tenths of what is possible succeed in one.
func (k *labTrouble) soon(good []float64, after time.Duration, possible float64) int {
	n := 0
	for i := int(after.Seconds()); i < int(k.end.Seconds()) && good[i] < .9*possible; i++ {
		n++
	}
	return n
}

// A service becomes so slow that nobody is answered in time at the limit there is: half a minute later all that is possible is done, since the
// limit comes down where nothing succeeds, whether work runs on after its client has left or not. It is back at once when the slowness ends.
func TestLabStarved(t *testing.T) {
	if labRace {
		t.Skip("no goroutines to race")
	}
	const ms = time.Millisecond
	store, processors := limitersim.Store(64, 20*ms), limitersim.Processors(64, 20*ms)
	tests := []labTrouble{ // where nothing succeeded until it was over
		{svc: store, load: .3, slower: 4, late: Ignored, seed: 2},
		{svc: store, load: .7, slower: 6, late: Ignored, seed: 1},
		{svc: store, load: 1.5, slower: 6, late: Failure, seed: 1},
		{svc: processors, load: .3, slower: 6, late: Ignored, seed: 2},
		{svc: processors, load: .7, slower: 4, late: Ignored, seed: 1},
		{svc: processors, load: 1.5, slower: 6, late: Failure, seed: 1},
	}
	if *labFull {
		tests = nil
		for _, svc := range []limitersim.Service{store, processors} {
			for _, late := range []Outcome{Ignored, Failure} {
				for _, load := range []float64{.3, .7, 1.5} {
					for _, slower := range []float64{3, 4, 6} {
						for seed := range uint64(3) {
							tests = append(tests, labTrouble{svc: svc, load: load, slower: slower, late: late, seed: seed + 1})
						}
					}
				}
			}
		}
	}
	labParallel(len(tests), func(i int) {
		k := tests[i]
		k.patience, k.cancels = 250*ms, k.svc.Name == "processors"
		k.from, k.to, k.end = 30*time.Second, 65*time.Second, 70*time.Second
		if *labFull {
			k.to, k.end = k.to+time.Minute, k.end+time.Minute
		}
		c := NewAdaptive()
		good := k.run(c)
		arrives := k.load * k.svc.Capacity
		during := labMean(good, k.from+30*time.Second, k.to) / min(arrives, k.svc.Capacity/k.slower)
		possible := min(arrives, k.svc.Capacity)
		name := fmt.Sprintf("%s at %v, slower by %v, late is %v, seed %d", k.svc.Name, k.load, k.slower, k.late, k.seed)
		back := k.soon(good, k.to, possible)
		t.Logf("%s: %.3f of what is possible half a minute later, %.3f in the second after", name, during, good[int(k.to.Seconds())]/possible)
		if during < .9 {
			t.Errorf("%s: %.3f of what is possible half a minute later, want 0.9", name, during)
		}
		if back > 1 {
			t.Errorf("%s: %d seconds until all is well, want 1 at most", name, back)
		}
	})
}

// An outage in which everything takes a while and fails says little of the limit: when it is over, all is well within a second and the
// time that work takes.
func TestLabOutage(t *testing.T) {
	if labRace {
		t.Skip("no goroutines to race")
	}
	const ms = time.Millisecond
	store, long := limitersim.Store(64, 20*ms), limitersim.Store(400, time.Second)
	tests := []labTrouble{
		{svc: store, load: .7, seed: 1},
		{svc: store, load: 1.5, seed: 1},
		{svc: long, load: .7, seed: 1},
		{svc: long, load: 1.5, seed: 1},
	}
	if *labFull {
		tests = nil
		for _, svc := range []limitersim.Service{store, long} {
			for _, load := range []float64{.3, .7, 1.5} {
				for seed := range uint64(5) {
					tests = append(tests, labTrouble{svc: svc, load: load, seed: seed + 1})
				}
			}
		}
	}
	labParallel(len(tests), func(i int) {
		k := tests[i]
		k.outage = 250 * ms
		k.from, k.to, k.end = 15*time.Second, 75*time.Second, 82*time.Second
		c := NewAdaptive()
		good := k.run(c)
		possible := min(k.load, 1) * k.svc.Capacity
		well := k.to + time.Second
		if k.svc.Capacity == long.Capacity {
			well += time.Second
		}
		first, after := good[int(k.to.Seconds())]/possible, labMean(good, well, k.end)/possible
		name := fmt.Sprintf("%.0f/s at %v, seed %d", k.svc.Capacity, k.load, k.seed)
		t.Logf("%s: %.2f of what is possible in the first second, %.3f from %v after the outage; limit %d", name, first, after, well-k.to, c.Limit())
		if after < .9 {
			t.Errorf("%s: %.3f of what is possible from %v after the outage, want 0.9", name, after, well-k.to)
		}
	})
}

// Work hangs until a timeout ends it. When it no longer does, all is well within a second or two, however long the timeout is.
func TestLabHang(t *testing.T) {
	if labRace {
		t.Skip("no goroutines to race")
	}
	type hang struct {
		load    float64
		timeout time.Duration
	}
	tests := []hang{{.3, 5 * time.Second}, {.7, 30 * time.Second}, {1.5, 30 * time.Second}, {.7, 5 * time.Minute}}
	labParallel(len(tests), func(i int) {
		k := tests[i]
		from := 10 * time.Second
		to := from + 2*k.timeout
		end := to + 10*time.Second
		svc := limitersim.Store(64, 20*time.Millisecond)
		c := NewAdaptive()
		sim := limitersim.New(svc, k.load, 1, end)
		d := labDrive(sim, c)
		d.work = func(r *limitersim.Request) {
			if now := sim.Now(); now >= from && now < to {
				sim.At(min(now+k.timeout, to), func() { d.end(r, Failure) })
				return
			}
			r.Admit()
		}
		good := 0.
		d.outcome = func(*limitersim.Request) Outcome {
			if sim.Now() >= to+2*time.Second {
				good++
			}
			return Success
		}
		sim.Run(d)
		part := good / (end - to - 2*time.Second).Seconds() / (min(k.load, 1) * svc.Capacity)
		t.Logf("%v at %v: %.3f of what is possible from 2s after it; limit %d", k.timeout, k.load, part, c.Limit())
		if part < .95 {
			t.Errorf("%v at %v: %.3f of what is possible from 2s after it, want 0.95; limit %d", k.timeout, k.load, part, c.Limit())
		}
	})
}

// A limit that is low since little came, and is lowered further in an outage: that nothing succeeded there does not keep it
// from rising past where it was, when more comes than before.
func TestLabOutageAtALowLimit(t *testing.T) {
	if labRace {
		t.Skip("no goroutines to race")
	}
	const ms = time.Millisecond
	const from, to, end = 10 * time.Second, 15 * time.Second, 25 * time.Second
	tests := []struct {
		svc            limitersim.Service
		before, outage float64       // loads
		took           time.Duration // until work fails then
	}{
		{svc: limitersim.Store(64, 20*ms), before: .1, outage: .7, took: 300 * ms},
		{svc: limitersim.Store(64, 20*ms), before: .03, outage: 3, took: 300 * ms},
		{svc: limitersim.Processors(8, 5*ms), before: .3, outage: 3, took: 300 * ms},
		{svc: limitersim.Processors(16, 20*ms), before: .3, outage: 3, took: time.Second},
	}
	labParallel(4*len(tests), func(i int) {
		k, seed := tests[i/4], uint64(i%4)
		c := NewAdaptive()
		sim := limitersim.New(k.svc, 1, seed, end)
		sim.Rate = func(now time.Duration) float64 {
			switch {
			case now < from:
				return k.before * k.svc.Capacity
			case now < to:
				return k.outage * k.svc.Capacity
			}
			return 3 * k.svc.Capacity
		}
		d := labDrive(sim, c)
		d.work = func(r *limitersim.Request) {
			if now := sim.Now(); now >= from && now < to {
				sim.At(now+k.took, func() { d.end(r, Failure) })
				return
			}
			r.Admit()
		}
		sim.Run(d)
		good := sim.Score(end-5*time.Second, end).Goodput
		t.Logf("%s at %v, outage at %v, seed %d: goodput %.3f, limit %d", k.svc.Name, k.before, k.outage, seed, good, c.Limit())
		if good < .9 {
			t.Errorf("%s at %v, outage at %v, seed %d: goodput %.3f, want 0.9; limit %d", k.svc.Name, k.before, k.outage, seed, good, c.Limit())
		}
	})
}

// Everything fails at once for a minute, and then whoever is served has waited for so long that his client has left: that is seen
// as soon as without that minute.
func TestLabAllLate(t *testing.T) {
	if labRace {
		t.Skip("no goroutines to race")
	}
	const ms = time.Millisecond
	const calm, trouble, end = 10 * time.Second, 70 * time.Second, 80 * time.Second
	svc := limitersim.Store(300, 100*ms)
	c := NewAdaptive()
	sim := limitersim.New(svc, 1, 1, end)
	sim.Rate = func(now time.Duration) float64 {
		if now < calm {
			return .003 * svc.Capacity
		}
		return .7 * svc.Capacity
	}
	d := labDrive(sim, c)
	d.work = func(r *limitersim.Request) {
		if now := sim.Now(); now >= calm && now < trouble {
			sim.At(now+30*ms, func() { d.end(r, Failure) })
			return
		}
		r.Admit()
	}
	good := 0.
	d.outcome = func(r *limitersim.Request) Outcome {
		if sim.Now()-r.Arrived() > 250*ms {
			return Ignored
		}
		if sim.Now() >= trouble+5*time.Second {
			good++
		}
		return Success
	}
	sim.Run(d)
	part := good / 5 / (.7 * svc.Capacity)
	t.Logf("%.3f of what is possible five seconds later; limit %d", part, c.Limit())
	if part < .9 {
		t.Errorf("%.3f of what is possible five seconds later, want 0.9; limit %d", part, c.Limit())
	}
}

// A service has become faster, and more comes than it can take: whoever is served has waited for so long that his client has left, and takes
// less than what is known of the service. The line has the newest come first all the same.
func TestLabAllLateAndFaster(t *testing.T) {
	if labRace {
		t.Skip("no goroutines to race")
	}
	const ms = time.Millisecond
	const slow, end = 30 * time.Second, 45 * time.Second
	svc := limitersim.Store(4, 60*ms)
	svc.Speed = func(now time.Duration) float64 {
		if now < slow {
			return .2
		}
		return 1
	}
	c := NewAdaptive()
	sim := limitersim.New(svc, 1, 1, end)
	sim.Rate = func(now time.Duration) float64 {
		if now < slow {
			return .05 * svc.Capacity
		}
		return 3 * svc.Capacity
	}
	d := labDrive(sim, c)
	good := 0.
	d.outcome = func(r *limitersim.Request) Outcome {
		if now := sim.Now(); now >= slow {
			if now-r.Arrived() > 250*ms {
				return Ignored
			}
			if now >= slow+5*time.Second {
				good++
			}
		}
		return Success
	}
	sim.Run(d)
	part := good / (end - slow - 5*time.Second).Seconds() / svc.Capacity
	t.Logf("%.3f of what is possible from five seconds later; limit %d", part, c.Limit())
	if part < .9 {
		t.Errorf("%.3f of what is possible from five seconds later, want 0.9; limit %d", part, c.Limit())
	}
}

// Where it is on the edge whether there are two kinds of work, and they are told apart and no longer again and again, what is believed
// stays finite, and the limit near what is of use.
func TestLabKindsOnTheEdge(t *testing.T) {
	if labRace {
		t.Skip("no goroutines to race")
	}
	type edge struct {
		slow, load float64 // the part that takes ten times as long
		places     int
		seed       uint64
	}
	tests, d := []edge{{.005, 1.2, 16, 5}}, 400*time.Second
	if *labFull {
		tests, d = nil, 1500*time.Second
		for seed := range uint64(3) {
			tests = append(tests, edge{.002, 2, 16, seed + 1}, edge{.003, 2, 16, seed + 1}, edge{.003, 1.2, 8, seed + 1}, edge{.005, 1.2, 16, seed + 1})
		}
	}
	labParallel(len(tests), func(i int) {
		k := tests[i]
		svc := limitersim.Store(k.places, 10*time.Millisecond)
		svc.Demand = func(r *rand.Rand) float64 {
			took := .8 + .4*r.Float64()
			if r.Float64() < k.slow {
				took *= 10
			}
			return took / (1 + 9*k.slow)
		}
		c := NewAdaptive()
		sim := limitersim.New(svc, k.load, k.seed, d)
		most, times, apart := 0, 0, false
		var lost time.Duration
		sim.Watch = func() {
			s := &c.adapt.ctrl
			most = max(most, s.limit)
			if now := s.kinds.gap > 0; now != apart {
				apart = now
				times++
			}
			if lost == 0 && math.IsNaN(s.scratch.p[0][0]) {
				lost = sim.Now()
			}
		}
		labRun(sim, c)
		good := sim.Score(2*time.Second, d).Goodput
		t.Logf("%+v: told apart or no longer %d times; goodput %.3f, limit %d at most", k, times, good, most)
		if lost > 0 {
			t.Errorf("%+v: after %v what is believed is no number", k, lost)
		}
		if good < .9 || most > 6*k.places {
			t.Errorf("%+v: goodput %.3f and a limit of %d at most, want 0.9 and %d", k, good, most, 6*k.places)
		}
	})
}

// A part of all work fails or is ignored, at once or after as long as success takes: it occupies permits for its time and is no
// throughput, and all the successes there can be are there.
func TestLabPartFails(t *testing.T) {
	if labRace {
		t.Skip("no goroutines to race")
	}
	type part struct {
		fails  float64
		quick  bool
		o      Outcome
		places int
		seed   uint64
	}
	tests := []part{
		{.3, false, Failure, 16, 1}, {.5, false, Ignored, 16, 1}, {.8, false, Failure, 16, 1},
		{.3, true, Failure, 16, 1}, {.5, true, Ignored, 16, 1}, {.8, true, Failure, 16, 1}, {.9, true, Ignored, 16, 1},
	}
	if *labFull {
		tests = nil
		for _, fails := range []float64{.3, .5, .8, .9, .99} {
			for seed := range uint64(3) {
				for _, o := range []Outcome{Failure, Ignored} {
					tests = append(tests, part{fails, true, o, 16, seed + 1})
					if fails < .99 { // else there is a success in many seconds to learn from
						tests = append(tests, part{fails, false, o, 16, seed + 1}, part{fails, false, o, 64, seed + 1})
					}
				}
			}
		}
	}
	const load, from, to = 3, 5 * time.Second, 20 * time.Second
	labParallel(len(tests), func(i int) {
		k := tests[i]
		svc := limitersim.Store(k.places, 20*time.Millisecond)
		comes, possible := float64(load), svc.Capacity
		if k.quick {
			comes /= 1 - k.fails
		} else {
			possible *= 1 - k.fails
		}
		c := NewAdaptive()
		sim := limitersim.New(svc, comes, k.seed, to)
		rnd := rand.New(rand.NewPCG(k.seed, 3))
		d := labDrive(sim, c)
		good := 0
		d.work = func(r *limitersim.Request) {
			if k.quick && rnd.Float64() < k.fails {
				sim.At(sim.Now()+200*time.Microsecond, func() { d.end(r, k.o) })
				return
			}
			r.Admit()
		}
		d.outcome = func(*limitersim.Request) Outcome {
			if !k.quick && rnd.Float64() < k.fails {
				return k.o
			}
			if sim.Now() >= from {
				good++
			}
			return Success
		}
		sim.Run(d)
		got := float64(good) / (to - from).Seconds() / possible
		t.Logf("%+v: %.3f of the successes there can be, limit %d", k, got, c.Limit())
		if got < .9 {
			t.Errorf("%+v: %.3f of the successes there can be, want 0.9; limit %d", k, got, c.Limit())
		}
	})
}

// Work of any weight gets the limit that it needs.
func TestLabWeight(t *testing.T) {
	if labRace {
		t.Skip("no goroutines to race")
	}
	end := 20 * time.Second
	if *labFull {
		end = 120 * time.Second
	}
	weights := []int{1, 2, 5, 10, 100}
	labParallel(len(weights), func(i int) {
		w := weights[i]
		c := NewAdaptive()
		sim := limitersim.New(limitersim.Store(16, 10*time.Millisecond), 3, 1, end)
		d := labDrive(sim, c)
		d.weight = w
		sim.Run(d)
		good := sim.Score(5*time.Second, end).Goodput
		t.Logf("weight %d: goodput %.3f, limit %d", w, good, c.Limit())
		if good < .94 {
			t.Errorf("weight %d: goodput %.3f, want 0.94; limit %d, and %d are of use", w, good, c.Limit(), 16*w)
		}
	})
}

// The first work takes long, since something is not there yet, and then all is well: from the second second on no more than a tenth
// is refused.
func TestLabSlowStart(t *testing.T) {
	if labRace {
		t.Skip("no goroutines to race")
	}
	for _, hang := range []time.Duration{2 * time.Second, 10 * time.Second, time.Minute} {
		for _, load := range []float64{.3, .6} {
			c := NewAdaptive()
			sim := limitersim.New(limitersim.Store(64, 20*time.Millisecond), load, 1, hang+6*time.Second)
			d := labDrive(sim, c)
			d.work = func(r *limitersim.Request) {
				if sim.Now() < hang {
					sim.At(hang, func() { d.end(r, Success) })
					return
				}
				r.Admit()
			}
			sim.Run(d)
			var refused []float64
			for from := hang; from < hang+5*time.Second; from += time.Second {
				refused = append(refused, sim.Score(from, from+time.Second).Rejected)
			}
			t.Logf("the first work takes %v, at %v: %.3f is refused in the seconds after", hang, load, refused)
			for _, part := range refused[1:] {
				if part > .1 {
					t.Errorf("the first work takes %v, at %v: %.3f is refused in the seconds after, want 0.1 at most from the second on", hang, load, refused)
					break
				}
			}
		}
	}
}

// Requests that come all at once, now and then, to a service that has room for all of them: after some time next to none is refused.
func TestLabBursts(t *testing.T) {
	if labRace {
		t.Skip("no goroutines to race")
	}
	type burst struct {
		n           int
		every, took time.Duration
		random      bool // the time between two is exponential
		varies      bool // the time in service varies by a fifth
	}
	var tests []burst
	for _, k := range []burst{
		{n: 100, every: time.Second, took: 10 * time.Millisecond},
		{n: 200, every: time.Second, took: 50 * time.Millisecond},
		{n: 1000, every: time.Second, took: 200 * time.Millisecond},
		{n: 300, every: 200 * time.Millisecond, took: 5 * time.Millisecond},
		{n: 100, every: 5 * time.Second, took: 50 * time.Millisecond},
		{n: 300, every: 5 * time.Second, took: 5 * time.Millisecond},
		{n: 60, every: 5 * time.Second, took: 5 * time.Millisecond},
		{n: 200, every: 50 * time.Second, took: 5 * time.Millisecond},
		{n: 300, every: 50 * time.Second, took: 50 * time.Millisecond},
		{n: 40, every: 50 * time.Second, took: 50 * time.Millisecond},
	} {
		for _, random := range []bool{false, true} {
			k.random, k.varies = random, true
			tests = append(tests, k)
			if *labFull {
				k.varies = false
				tests = append(tests, k)
			}
		}
	}
	labParallel(len(tests), func(i int) {
		k := tests[i]
		svc := limitersim.Store(4*k.n, k.took)
		if !k.varies {
			svc.Demand = nil
		}
		const bursts = 300
		rnd := rand.New(rand.NewPCG(1, 3))
		var at time.Duration
		var times []time.Duration
		for range bursts {
			times = append(times, at)
			if k.random {
				at += time.Duration(rnd.ExpFloat64() * float64(k.every))
			} else {
				at += k.every
			}
		}
		c := NewAdaptive()
		end := at.Truncate(time.Second) + 2*time.Second
		sim := limitersim.New(svc, 0, 1, end)
		for _, at := range times {
			sim.At(at, func() { sim.Burst(k.n) })
		}
		labRun(sim, c)
		part := sim.Score(times[bursts/2].Truncate(time.Second), end-time.Second).Rejected
		t.Logf("%+v: %.4f are refused in the second half; limit %d, line %d", k, part, c.Limit(), c.places)
		if part > .02 {
			t.Errorf("%+v: %.4f are refused in the second half, want 0.02 at most; limit %d, line %d", k, part, c.Limit(), c.places)
		}
	})
}

// Requests that come a hundred at once, at times that are random, are served as far as the service can: the limit stays near what is of
// use, and the line is as long as a batch takes.
func TestLabBatches(t *testing.T) {
	if labRace {
		t.Skip("no goroutines to race")
	}
	const end = 70 * time.Second
	seeds := uint64(1)
	if *labFull {
		seeds = 3
	}
	type test struct {
		name  string
		load  float64
		least float64 // of what is possible
		most  int     // a limit
	}
	tests := []test{
		{"cpu", .5, .6, 20},
		{"cpu", 2, .6, 20},
		{"contended", .5, .85, 60},
		{"contended", 2, .7, 60},
		{"io", .5, .85, 100},
	}
	labParallel(len(tests), func(i int) {
		k := tests[i]
		svc := labProfile(k.name)
		for seed := range seeds {
			c := NewAdaptive()
			sim := limitersim.New(svc, 0, seed+1, end)
			rnd := rand.New(rand.NewPCG(1, seed+2))
			const n = 100
			var batch func()
			batch = func() {
				sim.Burst(n)
				sim.At(sim.Now()+time.Duration(rnd.ExpFloat64()*n/(k.load*svc.Capacity)*1e9), batch)
			}
			sim.At(0, batch)
			labRun(sim, c)
			s := sim.Score(10*time.Second, end)
			t.Logf("%-9s at %v: %.2f of what is possible, rejected %.2f, p99 %v; limit %d", k.name, k.load, s.Goodput, s.Rejected, s.P99.Round(time.Millisecond), c.Limit())
			if s.Goodput < k.least || c.Limit() > k.most {
				t.Errorf("%s at %v, seed %d: %.2f of what is possible, limit %d; want %v, and %d at most", k.name, k.load, seed+1, s.Goodput, c.Limit(), k.least, k.most)
			}
		}
	})
}

// Where about as much comes as can be served, and one request in twenty takes ten times as long, the limit is full by chance at times. That
// is no slowness of the service: taken for that, the limit went up without end.
func TestLabNearCapacity(t *testing.T) {
	if labRace {
		t.Skip("no goroutines to race")
	}
	svc := labProfile("mixed")
	loads := []float64{1, 1.05, 1.1}
	seeds := 4
	if *labFull {
		seeds = 60
	}
	const span = 6
	spans := make([][]float64, seeds*len(loads))
	labParallel(len(spans), func(i int) {
		sim := limitersim.New(svc, loads[i%len(loads)], uint64(i/len(loads)+1), time.Minute)
		labRun(sim, NewAdaptive())
		for from := 0; from < 60; from += span {
			spans[i] = append(spans[i], sim.Score(time.Duration(from)*time.Second, time.Duration(from+span)*time.Second).Goodput)
		}
	})
	sum, low, n := 0., 0, 0
	for _, s := range spans {
		for _, g := range s {
			if n++; g < .8 {
				low++
			}
			sum += g
		}
	}
	t.Logf("%s from 1.0 to 1.1 for a minute: goodput %.3f, below .8 in %d of %d spans of %d s", svc.Name, sum/float64(n), low, n, span)
	if sum/float64(n) < .95 || low*50 > n {
		t.Errorf("%s from 1.0 to 1.1 for a minute: goodput %.3f, below .8 in %d of %d spans; want .95, and one in fifty at most", svc.Name, sum/float64(n), low, n)
	}
}

// A dependency that was slow is quick again while more comes than the service can do. The limit is many times too high then, and costs no throughput:
// nothing says that a lower one would not, and work waits for nothing until that is tried.
func TestLabQuickAgain(t *testing.T) {
	if labRace {
		t.Skip("no goroutines to race")
	}
	const slow, quick, from, end = 20 * time.Second, 50 * time.Second, 60 * time.Second, 110 * time.Second
	const took = 50 * time.Millisecond // in the store and before it, so that 40 in flight are best
	type row struct {
		load   float64
		slower time.Duration
		seed   uint64
	}
	var rows []row
	for _, load := range []float64{3, 1.2} {
		for _, slower := range []time.Duration{4, 10} {
			for seed := range uint64(4) {
				rows = append(rows, row{load, slower, seed})
			}
		}
	}
	waits, good := make([]float64, len(rows)), make([]float64, len(rows))
	labParallel(len(rows), func(i int) {
		k := rows[i]
		svc := limitersim.Store(20, took)
		c := NewAdaptive()
		sim := limitersim.New(svc, k.load, 7+k.seed, end)
		d := labDrive(sim, c)
		d.work = func(r *limitersim.Request) {
			dep := took
			if now := sim.Now(); now > slow && now < quick {
				dep *= k.slower
			}
			sim.At(sim.Now()+dep, r.Admit)
		}
		n, sum := 0., 0.
		d.outcome = func(r *limitersim.Request) Outcome {
			if now := sim.Now(); now > from {
				n++
				sum += (now - r.Arrived()).Seconds()
			}
			return Success
		}
		sim.Run(d)
		waits[i], good[i] = sum/n, n/(end-from).Seconds()/svc.Capacity
		t.Logf("load %.1f, %d times slower, seed %d: %.3f s with the wait in the line, throughput %.3f; limit %d", k.load, k.slower, k.seed, waits[i], good[i], c.Limit())
	})
	mean := 0.
	for i, w := range waits {
		mean += w / float64(len(waits))
		if good[i] < .97 {
			t.Errorf("%+v: throughput %.3f, want .97", rows[i], good[i])
		}
	}
	t.Logf("%.3f s in the mean", mean)
	if mean > .5 {
		t.Errorf("%.3f s in the mean, want .5 at most", mean)
	}
}

package limiter

import (
	"flag"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spillgate/spillgate/limiter/limitersim"
)

var labFull = flag.Bool("lab", false, "run the whole laboratory and print its tables")

var labTrace = flag.String("lab.trace", "", "print the steps of the controller for profile:load:seed, or for the seed of a random service")

var labLoads = []float64{.5, .9, 1.5, 3, 10}

// labParallel runs f for 0 to n-1 on all processors.
func labParallel(n int, f func(i int)) {
	var wg sync.WaitGroup
	next := make(chan int)
	for range 2 {
		wg.Go(func() {
			for i := range next {
				f(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
}

// Every kind of service at every load, from a cold start and from the second second on.
// The floors are what was measured, less what seeds differ by.
func TestLabProfiles(t *testing.T) {
	seeds := []uint64{42, 7}
	if *labFull {
		seeds = append(seeds, 8)
	}
	if labRace {
		seeds = seeds[:1]
	}
	type cell struct {
		limitersim.Score
		limit int
	}
	profiles := limitersim.Profiles()
	n := len(profiles) * len(labLoads) * len(seeds)
	cells := make([]cell, n)
	base := make([]time.Duration, len(profiles))
	labParallel(len(base), func(i int) { base[i] = profiles[i].Baseline(42) })
	labParallel(n, func(i int) {
		svc := profiles[i/len(labLoads)/len(seeds)]
		load := labLoads[i/len(seeds)%len(labLoads)]
		if labRace && (load <= 1 || load > 1.5) {
			return
		}
		c := NewAdaptive()
		sim := limitersim.New(svc, load, seeds[i%len(seeds)], 30*time.Second)
		labRun(sim, c)
		cells[i] = cell{sim.Score(2*time.Second, 30*time.Second), c.Limit()}
	})
	var b strings.Builder
	var over []float64
	for p, svc := range profiles {
		fmt.Fprintf(&b, "%-10s %4.0fms", svc.Name, base[p].Seconds()*1e3)
		for i, load := range labLoads {
			if labRace && (load <= 1 || load > 1.5) {
				continue
			}
			w := cells[(p*len(labLoads)+i)*len(seeds)]
			for k := 1; k < len(seeds); k++ {
				v := cells[(p*len(labLoads)+i)*len(seeds)+k]
				w.Goodput, w.P99, w.Rejected = min(w.Goodput, v.Goodput), max(w.P99, v.P99), max(w.Rejected, v.Rejected)
			}
			slower := float64(w.P99) / float64(base[p])
			fmt.Fprintf(&b, " | %.2f %.1fx %4.1f%% L%-4d", w.Goodput, slower, w.Rejected*100, w.limit)
			if w.Goodput < .94 {
				t.Errorf("%s at %v: goodput %.3f of the ideal, want 0.94", svc.Name, load, w.Goodput)
			}
			if load > 1 {
				over = append(over, slower)
				if slower > 2.6 {
					t.Errorf("%s at %v: p99 is %.2f times that at half load, want 2.6 at most", svc.Name, load, slower)
				}
			} else if load <= .5 && w.Rejected > .001 || w.Rejected > .02 {
				t.Errorf("%s at %v: rejected %.2f %%", svc.Name, load, w.Rejected*100)
			}
		}
		fmt.Fprintln(&b)
	}
	slices.Sort(over)
	if m := over[len(over)/2]; m > 2 && !labRace {
		t.Errorf("p99 in overload is %.2f times that at half load in the median, want 2 at most", m)
	}
	t.Logf("goodput of the ideal, p99 in multiples of that at half load, rejected, limit; worst of %d seeds\n%s", len(seeds), b.String())
}

// Five minutes at three times the capacity: no drift and no sawtooth, by the minute.
func TestLabSteady(t *testing.T) {
	if labRace {
		t.Skip("no goroutines to race")
	}
	d := 2 * time.Minute
	if *labFull {
		d = 5 * time.Minute
	}
	profiles := limitersim.Profiles()
	out := make([]string, len(profiles))
	labParallel(len(profiles), func(i int) {
		svc := profiles[i]
		base := float64(svc.Baseline(42))
		sim := limitersim.New(svc, 3, 42, d)
		labRun(sim, NewAdaptive())
		out[i] = fmt.Sprintf("%-10s", svc.Name)
		for from := time.Duration(0); from < d; from += time.Minute {
			s := sim.Score(max(from, 2*time.Second), from+time.Minute)
			slower := float64(s.P99) / base
			out[i] += fmt.Sprintf(" | %.2f %.1fx", s.Goodput, slower)
			if s.Goodput < .95 || slower > 2.2 {
				t.Errorf("%s from %v: goodput %.3f, p99 %.1fx", svc.Name, from, s.Goodput, slower)
			}
		}
	})
	t.Logf("goodput and p99, minute by minute\n%s", strings.Join(out, "\n"))
}

// A surge and a dependency that slows down, both of them over after a while.
func TestLabRecovers(t *testing.T) {
	if labRace {
		t.Skip("no goroutines to race")
	}
	for _, svc := range limitersim.Profiles() {
		sim := limitersim.New(svc, 0, 42, 30*time.Second)
		sim.Rate = func(now time.Duration) float64 {
			if now >= 10*time.Second && now < 15*time.Second {
				return 5 * svc.Capacity
			}
			return .7 * svc.Capacity
		}
		labRun(sim, NewAdaptive())
		if s := sim.Score(16*time.Second, 30*time.Second); s.Goodput < .97 || s.Rejected > .02 {
			t.Errorf("%s: from one second after a surge on: goodput %.3f, rejected %.2f %%", svc.Name, s.Goodput, s.Rejected*100)
		}
	}
	// A dependency ten times slower while the processors have room.
	for _, seed := range []uint64{42, 7, 8} {
		sim := limitersim.New(limitersim.SlowDependency(), .5, seed, time.Minute)
		labRun(sim, NewAdaptive())
		during, after := sim.Score(10*time.Second, 40*time.Second), sim.Score(41*time.Second, time.Minute)
		t.Logf("slow dependency: rejected %.2f %%, goodput %.3f; after it %.3f", during.Rejected*100, during.Goodput, after.Goodput)
		if during.Rejected > .01 || during.Goodput < .97 || after.Goodput < .97 {
			t.Errorf("seed %d: slow dependency: rejected %.2f %%, goodput %.3f; after it %.3f", seed, during.Rejected*100, during.Goodput, after.Goodput)
		}
	}
}

// TestLabTrace prints what the controller does in one run.
func TestLabTrace(t *testing.T) {
	if *labTrace == "" {
		t.Skip("-lab.trace is not set")
	}
	c := NewAdaptive()
	watch := func(sim *limitersim.Simulation) {
		var last ctrlState
		sim.Watch = func() {
			s := c.adapt.ctrl
			if s.limit == last.limit && s.phase == last.phase {
				return
			}
			last = s
			t.Logf("%8.3f L %-4d %-7s x %.0f r %.1fms n %.0f shed %.2f blocked %.2f | base %.1fms cv2 %.2f e %.2f rested %.0f of %.0f | bound %v places %d",
				sim.Now().Seconds(), s.limit, s.phase, s.ref.x, s.ref.r*1e3, s.ref.n, s.ref.shed, s.ref.blocked, s.base*1e3, s.cv2, s.elasticity, s.rested, s.pause, c.bound, c.places)
		}
		labRun(sim, c)
	}
	f := strings.Split(*labTrace, ":")
	if len(f) == 1 {
		seed, err := strconv.ParseUint(f[0], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		k := limitersim.Random(seed)
		sim := k.New(c.Limit)
		watch(sim)
		s := k.Score(sim)
		t.Logf("%s: goodput %.3f, p99 %.1fx", k.Description, s.Goodput, float64(s.P99)/float64(k.Baseline))
		return
	}
	for _, svc := range limitersim.Profiles() {
		if svc.Name == f[0] && len(f) == 3 {
			load, _ := strconv.ParseFloat(f[1], 64)
			seed, _ := strconv.ParseUint(f[2], 10, 64)
			sim := limitersim.New(svc, load, seed, 30*time.Second)
			watch(sim)
			t.Logf("%+v", sim.Score(2*time.Second, 30*time.Second))
		}
	}
}

package limiter

import (
	"flag"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
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

func labBase(svc labService, seed uint64) float64 {
	l := labNew(svc, .5, seed, 30, nil)
	l.run()
	return l.score(2, 30, svc.capacity).p99
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
		labScore
		limit int
	}
	n := len(labProfiles) * len(labLoads) * len(seeds)
	cells := make([]cell, n)
	base := make([]float64, len(labProfiles))
	labParallel(len(base), func(i int) { base[i] = labBase(labProfiles[i], 42) })
	labParallel(n, func(i int) {
		svc := labProfiles[i/len(labLoads)/len(seeds)]
		load := labLoads[i/len(seeds)%len(labLoads)]
		if labRace && (load <= 1 || load > 1.5) {
			return
		}
		c := NewAdaptive()
		l := labNew(svc, load, seeds[i%len(seeds)], 30, c)
		l.run()
		cells[i] = cell{l.score(2, 30, l.ideal(2, 30, svc.capacity)), c.Limit()}
	})
	var b strings.Builder
	var over []float64
	for p, svc := range labProfiles {
		fmt.Fprintf(&b, "%-10s %4.0fms", svc.name, base[p]*1e3)
		for i, load := range labLoads {
			if labRace && (load <= 1 || load > 1.5) {
				continue
			}
			w := cells[(p*len(labLoads)+i)*len(seeds)]
			for k := 1; k < len(seeds); k++ {
				v := cells[(p*len(labLoads)+i)*len(seeds)+k]
				w.good, w.p99, w.rejected = min(w.good, v.good), max(w.p99, v.p99), max(w.rejected, v.rejected)
			}
			slower := w.p99 / base[p]
			fmt.Fprintf(&b, " | %.2f %.1fx %4.1f%% L%-4d", w.good, slower, w.rejected*100, w.limit)
			if w.good < .92 {
				t.Errorf("%s at %v: goodput %.3f of the ideal, want 0.92", svc.name, load, w.good)
			}
			if load > 1 {
				over = append(over, slower)
				if slower > 2.6 {
					t.Errorf("%s at %v: p99 is %.2f times that at half load, want 2.6 at most", svc.name, load, slower)
				}
			} else if load <= .5 && w.rejected > .001 || w.rejected > .02 {
				t.Errorf("%s at %v: rejected %.2f %%", svc.name, load, w.rejected*100)
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
	secs := 120.
	if *labFull {
		secs = 300
	}
	out := make([]string, len(labProfiles))
	labParallel(len(labProfiles), func(i int) {
		svc := labProfiles[i]
		base := labBase(svc, 42)
		c := NewAdaptive()
		l := labNew(svc, 3, 42, secs, c)
		l.run()
		out[i] = fmt.Sprintf("%-10s", svc.name)
		for from := 0.; from < secs; from += 60 {
			s := l.score(max(from, 2), from+60, svc.capacity)
			out[i] += fmt.Sprintf(" | %.2f %.1fx", s.good, s.p99/base)
			if s.good < .95 || s.p99 > 2.2*base {
				t.Errorf("%s from second %v: goodput %.3f, p99 %.1fx", svc.name, from, s.good, s.p99/base)
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
	for _, svc := range labProfiles {
		c := NewAdaptive()
		l := labNew(svc, 0, 42, 30, c)
		l.rate = func(now float64) float64 {
			if now >= 10 && now < 15 {
				return 5 * svc.capacity
			}
			return .7 * svc.capacity
		}
		l.run()
		if s := l.score(16, 30, l.ideal(16, 30, svc.capacity)); s.good < .97 || s.rejected > .02 {
			t.Errorf("%s: from one second after a surge on: goodput %.3f, rejected %.2f %%", svc.name, s.good, s.rejected*100)
		}
	}
	// A dependency ten times slower while the processors have room.
	svc := labService{name: "dependency", capacity: 800, base: .015, deadline: 1, demand: labExp,
		slow: func(now float64) float64 {
			if now >= 10 && now < 40 {
				return 10
			}
			return 1
		},
		build: func(l *labRun) []labStage {
			return []labStage{{labCores(l, 8), .010}, {labDelay{l}, .010}}
		}}
	for _, seed := range []uint64{42, 7, 8} {
		c := NewAdaptive()
		l := labNew(svc, .5, seed, 60, c)
		l.run()
		during, after := l.score(10, 40, l.ideal(10, 40, svc.capacity)), l.score(41, 60, l.ideal(41, 60, svc.capacity))
		t.Logf("slow dependency: rejected %.2f %%, goodput %.3f; after it %.3f", during.rejected*100, during.good, after.good)
		if during.rejected > .05 || during.good < .94 || after.good < .97 {
			t.Errorf("seed %d: slow dependency: rejected %.2f %%, goodput %.3f; after it %.3f", seed, during.rejected*100, during.good, after.good)
		}
	}
}

// TestLabTrace prints what the controller does in one run.
func TestLabTrace(t *testing.T) {
	if *labTrace == "" {
		t.Skip("-lab.trace is not set")
	}
	var last ctrlState
	watch := func(now float64, l *labRun) {
		s := l.c.adapt.ctrl
		if s.limit != last.limit || s.phase != last.phase {
			last = s
			t.Logf("%8.3f L %-4d %-7s x %.0f r %.1fms n %.0f shed %.2f blocked %.2f | base %.1fms cv2 %.2f e %.2f step %.2f pauses %.0f %.0f | bound %v places %d",
				now, s.limit, s.phase, s.ref.x, s.ref.r*1e3, s.ref.n, s.ref.shed, s.ref.blocked, s.base*1e3, s.cv2, s.elasticity, s.grow, s.pauseUp, s.pauseDown, l.c.bound, l.c.places)
		}
	}
	f := strings.Split(*labTrace, ":")
	if len(f) == 1 {
		seed, err := strconv.ParseUint(f[0], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		o := labRunCase(seed, watch)
		t.Logf("%s: goodput %.3f, p99 %.1fx", o.text, o.good, o.p99base)
		return
	}
	for _, svc := range labProfiles {
		if svc.name == f[0] && len(f) == 3 {
			load, _ := strconv.ParseFloat(f[1], 64)
			seed, _ := strconv.ParseUint(f[2], 10, 64)
			l := labNew(svc, load, seed, 30, NewAdaptive())
			l.watcher = watch
			l.run()
			t.Logf("%+v", l.score(2, 30, l.ideal(2, 30, svc.capacity)))
		}
	}
}

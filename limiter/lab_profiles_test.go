package limiter

import (
	"flag"
	"fmt"
	"strings"
	"sync"
	"testing"
)

var labFull = flag.Bool("lab", false, "run the whole laboratory and print its tables")

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

func TestLabProfiles(t *testing.T) {
	seeds := []uint64{42, 7, 8}
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
		c := NewAdaptive()
		l := labNew(svc, load, seeds[i%len(seeds)], 30, c)
		l.run()
		cells[i] = cell{l.score(2, 30, l.ideal(2, 30, svc.capacity)), c.Limit()}
	})
	var b strings.Builder
	for p, svc := range labProfiles {
		fmt.Fprintf(&b, "%-10s %4.0fms", svc.name, base[p]*1e3)
		for i := range labLoads {
			w := cells[(p*len(labLoads)+i)*len(seeds)]
			for k := 1; k < len(seeds); k++ {
				v := cells[(p*len(labLoads)+i)*len(seeds)+k]
				w.good, w.p99, w.rejected = min(w.good, v.good), max(w.p99, v.p99), max(w.rejected, v.rejected)
			}
			fmt.Fprintf(&b, " | %.2f %.1fx %4.1f%% L%-4d", w.good, w.p99/base[p], w.rejected*100, w.limit)
		}
		fmt.Fprintln(&b)
	}
	t.Logf("good, p99/base, rejected; worst of %d seeds\n%s", len(seeds), b.String())
}

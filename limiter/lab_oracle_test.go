package limiter

import (
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"
)

var labOracle = flag.Bool("lab.oracle", false, "also run the random services with the limit known from the start")

// oracle fixes the limit of a case at a multiple of what it would best be, behind the
// same line.
func (k *labCase) oracle(times float64) func(float64, *labRun) {
	was := 0
	return func(now float64, l *labRun) {
		best := k.best
		if now < k.event {
			best = k.svc.capacity * k.svc.base
		}
		limit := max(1, int(best*times+.5))
		if limit != was {
			was = limit
			a := l.c.adapt
			s := ctrlNew(limit, limit, limit)
			s.base, s.ref = a.ctrl.base, a.ctrl.ref
			a.ctrl = s
			a.least, a.most = limit, limit
			l.c.limit.Store(int64(limit))
		}
	}
}

func TestLabOracle(t *testing.T) {
	if !*labOracle {
		t.Skip("-lab.oracle is not set")
	}
	n := *labCount
	times := []float64{1, 1.2, 1.5}
	out := make([][]labOutcome, n)
	labParallel(n, func(i int) {
		seed := *labSeeds + uint64(i)
		out[i] = append(out[i], labRunCase(seed, nil))
		for _, f := range times {
			k := labRandom(seed)
			out[i] = append(out[i], labRunCase(seed, k.oracle(f)))
		}
	})
	var b strings.Builder
	for j := range len(times) + 1 {
		var good []float64
		hit := 0
		for i := range out {
			good = append(good, out[i][j].good)
			if out[i][j].good >= .95 {
				hit++
			}
		}
		slices.Sort(good)
		fmt.Fprintf(&b, "%d: hit %d of %d min %.3f p5 %.3f p10 %.3f\n", j, hit, n, good[0], good[n/20], good[n/10])
	}
	slices.SortFunc(out, func(a, b []labOutcome) int {
		if a[0].good < b[0].good {
			return -1
		}
		return 1
	})
	for _, o := range out {
		if o[0].good < .95 || o[1].good < .95 {
			fmt.Fprintf(&b, "%.2f (%.2f %.2f %.2f) p99 %.1fx (%.1fx) rej %.0f%% L %d of %.0f | %d %s\n", o[0].good, o[1].good, o[2].good, o[3].good, o[0].p99base, o[1].p99base, o[0].rejected*100, o[0].limit, o[0].best, o[0].seed, o[0].text)
		}
	}
	t.Log("\n" + b.String())
}

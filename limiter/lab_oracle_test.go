package limiter

import (
	"flag"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/spillgate/spillgate/limiter/limitersim"
)

var labOracle = flag.Bool("lab.oracle", false, "run the random services with the limit known from the start, too")

// labKnown runs a random service at a multiple of its optimum, behind the line of the adaptive limit.
func labKnown(seed uint64, times float64) float64 {
	k := limitersim.Random(seed)
	n := max(1, int(math.Round(k.Optimum*times)))
	c := NewAdaptive(WithLimits(n, n))
	sim := k.New(c.Limit)
	labRun(sim, c)
	return k.Score(sim).Goodput
}

// TestLabOracle prints what the controller misses, and what nobody could reach: the random services
// with their limit fixed at multiples of the optimum. What falls short there is the
// line's, or the service's.
func TestLabOracle(t *testing.T) {
	if !*labOracle {
		t.Skip("-lab.oracle is not set")
	}
	times := []float64{1, 1.2, 1.5}
	n := *labCount
	own := make([]labOutcome, n)
	known := make([][]float64, n)
	labParallel(n, func(i int) {
		seed := *labSeeds + uint64(i)
		own[i] = labRandom(seed)
		for _, f := range times {
			known[i] = append(known[i], labKnown(seed, f))
		}
	})
	var b strings.Builder
	summary := func(name string, goodput func(i int) float64) {
		var v []float64
		hit := 0
		for i := range n {
			v = append(v, goodput(i))
			if v[i] >= .95 {
				hit++
			}
		}
		slices.Sort(v)
		fmt.Fprintf(&b, "%-18s good >= .95: %d of %d, min %.3f p5 %.3f p10 %.3f\n", name, hit, n, v[0], v[n/20], v[n/10])
	}
	summary("adaptive", func(i int) float64 { return own[i].Goodput })
	for j, f := range times {
		summary(fmt.Sprintf("fixed at %.1f L*", f), func(i int) float64 { return known[i][j] })
	}
	summary("best of the fixed", func(i int) float64 { return slices.Max(known[i]) })
	for i, o := range own {
		if o.Goodput < .95 || slices.Max(known[i]) < .95 {
			fmt.Fprintf(&b, "%.2f, fixed %.2f | L %d of %.0f | %d %s\n", o.Goodput, known[i], o.limit, o.Optimum, o.seed, o.Description)
		}
	}
	t.Log("\n" + b.String())
}

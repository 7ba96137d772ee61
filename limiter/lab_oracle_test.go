package limiter

import (
	"flag"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spillgate/spillgate/limiter/limitersim"
)

var labOracle = flag.Bool("lab.oracle", false, "run the random services with the limit known at every moment, too")

// labKnown runs a random service at a multiple of its optimum, behind the line of the adaptive limit. Where the service
// changes, the limit moves from what it has to be before to what it has to be after, no faster than at four fifths of the
// capacity, since what is admitted at once may be more than the service can take.
func labKnown(seed uint64, times float64) float64 {
	k := limitersim.Random(seed)
	places := func(optimum float64) int { return max(1, int(math.Round(optimum*times))) }
	before, after := places(k.Optimum), places(k.Optimum)
	if k.Changes() > 0 {
		before = places(k.Before)
	}
	c := NewAdaptive(WithLimits(before, before))
	sim := k.New(c.Limit)
	far := max(after-before, before-after)
	took := float64(far) / (.8 * k.Capacity)
	steps := min(1000, far)
	for i := 1; i <= steps; i++ {
		part := float64(i) / float64(steps)
		n := before + int(math.Round(part*float64(after-before)))
		sim.At(k.Changes()+time.Duration(part*took*1e9), func() {
			// SetLimit reads the clock, and forgets what is known of the service.
			a := c.adapt
			a.least, a.most = n, n
			a.ctrl.least, a.ctrl.most, a.ctrl.limit = n, n, n
			c.limit.Store(int64(n))
		})
	}
	labRun(sim, c)
	return k.Score(sim).Goodput
}

// TestLabOracle prints what the controller misses, and what nobody could reach by a limit: the random services with their
// limit known at every moment, at multiples of the optimum. What falls short there is the line's, or the service's.
func TestLabOracle(t *testing.T) {
	if !*labOracle {
		t.Skip("-lab.oracle is not set")
	}
	times := []float64{.6, .8, .9, 1, 1.2, 1.5}
	n := *labCount
	seeds := labDraw(t, n)
	own := make([]labOutcome, n)
	known := make([][]float64, n)
	labParallel(n, func(i int) {
		seed := seeds[i]
		own[i] = labRandom(seed)
		for _, f := range times {
			known[i] = append(known[i], labKnown(seed, f))
		}
	})
	var b strings.Builder
	summary := func(name string, goodput func(i int) float64) {
		var v []float64
		hit, low := 0, 0
		for i := range n {
			v = append(v, goodput(i))
			switch {
			case v[i] >= .95:
				hit++
			case v[i] < .6:
				low++
			}
		}
		slices.Sort(v)
		fmt.Fprintf(&b, "%-18s good >= .95: %d of %d, < .6: %d, min %.3f p5 %.3f p10 %.3f\n", name, hit, n, low, v[0], v[n/20], v[n/10])
	}
	summary("adaptive", func(i int) float64 { return own[i].Goodput })
	for j, f := range times {
		summary(fmt.Sprintf("known, %.1f L*", f), func(i int) float64 { return known[i][j] })
	}
	summary("best of the known", func(i int) float64 { return slices.Max(known[i]) })
	for i, o := range own {
		if o.Goodput < .95 || slices.Max(known[i]) < .95 {
			fmt.Fprintf(&b, "%.2f, known %.2f | L %d of %.0f | %d %s\n", o.Goodput, known[i], o.limit, o.Optimum, o.seed, o.Description)
		}
	}
	t.Log("\n" + b.String())
}

// Where few are in flight and their work varies much, the line has to hold more for the service not to run dry by chance, though
// a fifth to a quarter is refused.
func TestLabRunsDry(t *testing.T) {
	for _, seed := range []uint64{706755, 707124, 708281} {
		good := labKnown(seed, 1)
		t.Logf("%d: goodput %.3f", seed, good)
		if good < .95 {
			t.Errorf("%s: goodput %.3f at a known limit, want 0.95", limitersim.Random(seed).Description, good)
		}
	}
}

// A service that changes while the limit still grows contradicts what was seen before: what fits least badly of all curves was taken
// for certain, and the limit stood at a half or a third of what it had to be.
func TestLabContradicted(t *testing.T) {
	labHolds(t, .95, 800019)
}

// A dependency that slows down in the moment in which the limit is raised: the limit was taken for too high, and when that was
// seen to be wrong, what had been made of it was believed on.
func TestLabBlamed(t *testing.T) {
	labHolds(t, .95, 500342, 500609)
}

// A dependency that slows down while the limit grows, so that no window surprises: what was seen before stood against what has been seen
// since, and the limit at an eighth of what it had to be.
func TestLabForgets(t *testing.T) {
	labHolds(t, .8, 800674)
}

// Slow work of which nothing is known yet: few are completed at a small limit, and before a higher one was tried the dependency had slowed down,
// and most of what had been seen was of a service that was no longer there.
func TestLabSlowWork(t *testing.T) {
	labHolds(t, .95, 500329)
}

// A dependency that slows down where much is in flight and takes long: each step of the limit took two rounds of that, and the time
// was over before it was where it had to be.
func TestLabCatchesUp(t *testing.T) {
	labHolds(t, .9, 800026, 800255, 800537)
}

// A dependency that slows down, where what has ended before it is known what work takes now made a higher limit look as if it brought next to
// nothing, and it was taken back.
func TestLabEarly(t *testing.T) {
	labHolds(t, .95, 1200481)
}

// A store of two places in front of which all of the work waits, so that only the throughput of windows shows how much it varies: that was
// forgotten when the store had become slower, and what chance did next was taken for more of it, until the limit was far above what it had to be.
func TestLabShaken(t *testing.T) {
	labHolds(t, .95, 2000491)
}

// labHolds demands that so much is done of what random services can do.
func labHolds(t *testing.T, want float64, seeds ...uint64) {
	if labRace {
		t.Skip("no goroutines to race")
	}
	labParallel(len(seeds), func(i int) {
		o := labRandom(seeds[i])
		t.Logf("%d: goodput %.3f, the limit is %d of %.0f", o.seed, o.Goodput, o.limit, o.Optimum)
		if o.Goodput < want {
			t.Errorf("%s: goodput %.3f, want %.2f", o.Description, o.Goodput, want)
		}
	})
}

package limiter

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/spillgate/spillgate/limiter/limitersim"
)

// labTails are works of which a few take much longer than most.
var labTails = []struct {
	name   string
	demand func(r *rand.Rand) float64
}{
	{"one of five takes 20 times as long", labTwoKinds(.2, 20)},
	{"one of a hundred takes 30 times as long", labTwoKinds(.01, 30)},
	{"lognormal, sigma 1.5", func(r *rand.Rand) float64 { return math.Exp(1.5*r.NormFloat64() - 1.125) }},
	{"lognormal, sigma 2", func(r *rand.Rand) float64 { return math.Exp(2*r.NormFloat64() - 2) }},
}

func labTwoKinds(part, longer float64) func(r *rand.Rand) float64 {
	short := 1 / (1 - part + part*longer)
	return func(r *rand.Rand) float64 {
		if r.Float64() < part {
			return short * longer
		}
		return short
	}
}

// labTail returns the goodput of a work with a tail, and the highest limit from the tenth second on.
func labTail(svc limitersim.Service, demand func(r *rand.Rand) float64, load float64, seed uint64) (good float64, most int) {
	svc.Demand = demand
	c := NewAdaptive()
	sim := limitersim.New(svc, load, seed, 42*time.Second)
	sim.Watch = func() {
		if sim.Now() > 10*time.Second {
			most = max(most, c.Limit())
		}
	}
	labRun(sim, c)
	return sim.Score(2*time.Second, 40*time.Second).Goodput, most
}

// Where a part of the work takes much longer than most, what ends soon after the limit was raised is short: that was taken for throughput, its end for
// a change of the service, and each raised the limit further, to a hundred times what it had to be.
func TestLabTails(t *testing.T) {
	if labRace {
		t.Skip("no goroutines to race")
	}
	const ms = time.Millisecond
	type row struct {
		svc  limitersim.Service
		tail int
		load float64
	}
	rows := []row{ // where it was .64 and less
		{limitersim.Processors(4, 10*ms), 0, 10},
		{limitersim.Store(4, 10*ms), 1, 3},
		{limitersim.Processors(4, 10*ms), 2, 10},
		{limitersim.Processors(32, 20*ms), 2, 3},
	}
	if *labFull {
		rows = nil
		for i := range labTails {
			for _, svc := range []limitersim.Service{limitersim.Store(4, 10*ms), limitersim.Store(32, 10*ms), limitersim.Store(400, 20*ms), limitersim.Processors(4, 10*ms), limitersim.Processors(32, 20*ms)} {
				for _, load := range []float64{.9, 1.5, 3, 10} {
					rows = append(rows, row{svc, i, load})
				}
			}
		}
	}
	lines := make([]string, len(rows))
	least := make([]float64, len(rows))
	labParallel(len(rows), func(i int) {
		r, tail := rows[i], labTails[rows[i].tail]
		least[i] = 1
		highest := 0
		for seed := range uint64(2) {
			good, most := labTail(r.svc, tail.demand, r.load, 42+seed)
			least[i], highest = min(least[i], good), max(highest, most)
		}
		lines[i] = fmt.Sprintf("%-10s %5.0f/s at %-3v %s: goodput %.3f, limit %d at most", r.svc.Name, r.svc.Capacity, r.load, tail.name, least[i], highest)
		if !*labFull && least[i] < .85 {
			t.Errorf("%s; want .85", lines[i])
		}
	})
	mean, low := 0., 0
	for _, good := range least {
		mean += good / float64(len(rows))
		if good < .9 {
			low++
		}
	}
	t.Logf("goodput %.3f in the mean, below .9 in %d of %d\n%s", mean, low, len(rows), strings.Join(lines, "\n"))
}

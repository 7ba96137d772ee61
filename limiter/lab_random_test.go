package limiter

import (
	"flag"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spillgate/spillgate/limiter/limitersim"
)

var (
	labSeeds = flag.Uint64("lab.seed", 9000, "first seed of the random services")
	labCount = flag.Int("lab.n", 200, "how many random services with -lab")
	labOnly  = flag.String("lab.only", "", "a regular expression: only random services that are described so")
)

// labOutcome is how a random service went.
type labOutcome struct {
	*limitersim.RandomService
	limitersim.Score
	slower float64
	limit  int
	seed   uint64
}

func labRandom(seed uint64) labOutcome {
	k := limitersim.Random(seed)
	c := NewAdaptive()
	sim := k.New(c.Limit)
	labRun(sim, c)
	s := k.Score(sim)
	return labOutcome{k, s, float64(s.P99) / float64(k.Baseline), c.Limit(), seed}
}

// labDraw returns the seeds of n random services.
func labDraw(t *testing.T, n int) []uint64 {
	only, err := regexp.Compile(*labOnly)
	if err != nil {
		t.Fatalf("-lab.only: %v", err)
	}
	var seeds []uint64
	for seed := *labSeeds; len(seeds) < n; seed++ {
		if seed-*labSeeds > 1000*uint64(n) {
			t.Fatalf("-lab.only: %d random services from seed %d on have %d that match %q, want %d", 1000*n, *labSeeds, len(seeds), *labOnly, n)
		}
		if only.MatchString(limitersim.Describe(seed)) {
			seeds = append(seeds, seed)
		}
	}
	return seeds
}

func TestLabRandom(t *testing.T) {
	n := 24
	if labRace {
		n = 2
	}
	if *labFull {
		n = *labCount
	}
	out := make([]labOutcome, n)
	seeds := labDraw(t, n)
	labParallel(n, func(i int) { out[i] = labRandom(seeds[i]) })
	var good, p99, rej []float64
	both, over, hit, low, short := 0, 0, 0, 0, 0.
	var reached []float64 // as a part of what the best number in flight reaches
	most := 0
	for _, o := range out {
		good = append(good, o.Goodput)
		part := o.Goodput * min(1, o.Load) / min(o.Attainable(), o.Load)
		reached = append(reached, part)
		if part >= .95 {
			most++
		}
		if o.Goodput >= .95 {
			hit++
		} else {
			short += .95 - o.Goodput
		}
		if o.Goodput < .6 {
			low++
		}
		if o.Load >= 1.2 {
			over++
			p99 = append(p99, o.slower)
			if o.Goodput >= .95 && o.slower <= 2 {
				both++
			}
		} else if o.Load <= .9 {
			rej = append(rej, o.Rejected)
		}
	}
	var b strings.Builder
	quant := func(name string, v []float64) {
		if len(v) == 0 {
			return
		}
		slices.Sort(v)
		q := func(p float64) float64 { return v[min(int(p*float64(len(v))), len(v)-1)] }
		fmt.Fprintf(&b, "%-9s min %.3f p5 %.3f p10 %.3f p25 %.3f p50 %.3f p75 %.3f p95 %.3f max %.3f (%d)\n", name, v[0], q(.05), q(.10), q(.25), q(.5), q(.75), q(.95), v[len(v)-1], len(v))
	}
	quant("good", good)
	quant("attained", reached)
	quant("p99/base", p99)
	quant("rejected", rej)
	fmt.Fprintf(&b, "good >= .95: %d of %d, missing to it %.2f in all; < .6: %d; both: %d of %d; of what is attainable: %d\n", hit, n, short, low, both, over, most)
	if *labFull {
		b.WriteString(labByKind(out))
	}
	if !labRace && !*labFull && (hit < n*85/100 || good[n/10] < .9) {
		t.Errorf("good >= .95 on %d of %d, 10th percentile %.2f; want 85 %% and .9", hit, n, good[n/10])
	}
	slices.SortFunc(out, func(a, b labOutcome) int { return int(math.Copysign(1, a.Goodput-b.Goodput)) })
	for _, o := range out[:min(n, 25)] {
		if o.Goodput < .95 {
			fmt.Fprintf(&b, "%.2f p99 %.1fx rej %.0f%% L %d of %.0f | %d %s\n", o.Goodput, o.slower, o.Rejected*100, o.limit, o.Optimum, o.seed, o.Description)
		}
	}
	t.Log("\n" + b.String())
}

// labByKind returns a table of how random services went: by what they run on, and by what happened to them.
func labByKind(out []labOutcome) string {
	type row struct {
		n, hit, low int
		least       float64
	}
	rows := map[string]*row{}
	for _, o := range out {
		kind, _, _ := strings.Cut(o.Description, " ")
		event := "unchanged"
		switch {
		case o.Changes() == 0:
		case strings.HasSuffix(o.Description, ", halved"):
			event = "halved"
		default:
			event = "slow dependency"
		}
		key := fmt.Sprintf("%-5s %-15s", kind, event)
		r := rows[key]
		if r == nil {
			r = &row{least: math.Inf(1)}
			rows[key] = r
		}
		r.n++
		if o.Goodput >= .95 {
			r.hit++
		}
		if o.Goodput < .92 {
			r.low++
		}
		r.least = min(r.least, o.Goodput)
	}
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(rows)) {
		r := rows[key]
		fmt.Fprintf(&b, "%s %4d, good >= .95: %4d, < .92: %3d, least %.2f\n", key, r.n, r.hit, r.low, r.least)
	}
	return b.String()
}

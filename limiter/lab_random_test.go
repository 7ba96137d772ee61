package limiter

import (
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

var (
	labSeeds = flag.Uint64("lab.seed", 9000, "first seed of the random services")
	labCount = flag.Int("lab.n", 200, "how many random services with -lab")
)

// labCase is a random service with a load and what happens to it.
type labCase struct {
	svc    labService
	text   string
	load   float64
	calm   float64 // seconds at 0.3 of the capacity before the load begins
	event  float64 // when it changes; 0 is never
	cv2    float64
	best   float64 // L*: work in flight at capacity, in the state that is counted
	r      float64 // time in service at L*
	cap    float64 // capacity in the state that is counted
	length float64 // counted
	slowed func(svc *labService)
}

// labRandom draws a case: what it runs on, how long the work takes and how that varies, how many
// fit, what load, and what changes under way.
func labRandom(seed uint64) labCase {
	r := rand.New(rand.NewPCG(seed, 77))
	logu := func(a, b float64) float64 { return math.Exp(math.Log(a) + r.Float64()*math.Log(b/a)) }
	var k labCase
	kind := []string{"fifo", "ps", "psdep", "usl"}[r.IntN(4)]
	var s, c float64
	for {
		s, c = logu(.001, .4), math.Round(logu(2, 10000))
		if x := c / s; x >= 10 && x <= 20000 {
			break
		}
	}
	dep := 0.
	if kind == "psdep" || r.IntN(4) == 0 {
		dep = s * logu(.3, 5)
	}
	dist := r.IntN(4)
	switch dist {
	case 0:
		k.svc.demand, k.cv2 = labJitter, .0133
	case 1:
		k.svc.demand, k.cv2 = labExp, 1
	case 2:
		k.svc.demand, k.cv2 = labLognormal(.7), math.Exp(.49)-1
	case 3:
		p, f := .05, 10.
		m := 1 - p + p*f
		k.svc.demand, k.cv2 = labBimodal(p, f), (1-p+p*f*f)/(m*m)-1
	}
	k.svc.name = kind
	k.svc.base = s + dep
	k.svc.capacity = c / s
	var alpha, beta float64
	single := s
	if kind == "usl" {
		// The peak is at c; beta c² = 1 - alpha there. It takes 2 to 2.5 times as long there as alone.
		alpha = logu(.1, .5) / c
		beta = (1 - alpha) / (c * c)
		k.svc.capacity = labUSLPeak(single, alpha, beta)
	}
	k.svc.build = func(l *labRun) []labStage {
		var st []labStage
		switch kind {
		case "fifo":
			st = []labStage{{&labStore{l: l, slots: int(c)}, s}}
		case "ps":
			st = []labStage{{labCores(l, c), s}}
		case "psdep":
			cpu := labCores(l, c)
			return []labStage{{cpu, s / 2}, {labDelay{l}, dep}, {cpu, s / 2}}
		case "usl":
			st = []labStage{{labUSL(l, alpha, beta), single}}
		}
		if dep > 0 {
			st = append(st, labStage{labDelay{l}, dep})
		}
		return st
	}
	k.load = logu(.5, 10)
	how := "cold"
	if r.IntN(2) == 0 {
		how = "calm"
		k.calm = 10
	}
	slow, halve := 1., 1.
	switch ev := r.IntN(4); {
	case ev == 0 && dep > 0:
		slow = 5 + 5*r.Float64()
		how += fmt.Sprintf(", dep x%.0f", slow)
	case ev == 1:
		halve = .5
		how += ", halved"
	}
	k.cap = k.svc.capacity * halve
	if slow > 1 || halve < 1 {
		k.event = k.calm + max(5, min(20, 1000/k.svc.capacity))
	}
	work := s / halve
	if kind == "usl" {
		work = c / k.cap
	}
	k.r = work + dep*slow
	k.best = k.cap * k.r
	k.length = 20
	if x := k.cap * k.load; x > 5000 {
		k.length = max(4, 20*5000/x)
	} else if k.cap < 150 {
		k.length = min(60, 3000/k.cap)
	}
	k.slowed = func(svc *labService) {
		svc.slow = func(float64) float64 { return slow }
		svc.speed = func(float64) float64 { return halve }
	}
	if k.event > 0 {
		at := k.event
		k.svc.slow = func(now float64) float64 {
			if now < at {
				return 1
			}
			return slow
		}
		k.svc.speed = func(now float64) float64 {
			if now < at {
				return 1
			}
			return halve
		}
		if kind == "fifo" {
			// A store's own time is not the dependency's.
			k.svc.slow = nil
			k.slowed = func(svc *labService) { svc.speed = func(float64) float64 { return halve } }
			if dep > 0 {
				inner := k.svc.build
				factor := func(now float64) float64 {
					if now < at {
						return 1
					}
					return slow
				}
				k.svc.build = func(l *labRun) []labStage {
					st := inner(l)
					st[len(st)-1].at = labLater{l, factor}
					return st
				}
			}
		}
	}
	k.text = fmt.Sprintf("%s S %.0f ms c %.0f dep %.0f ms cv2 %.1f %.0f/s load %.2f %s", kind, s*1e3, c, dep*1e3, k.cv2, k.svc.capacity, k.load, how)
	return k
}

// labLater is a dependency with a factor of its own.
type labLater struct {
	l      *labRun
	factor func(now float64) float64
}

func (d labLater) enter(j *labJob, secs float64) {
	d.l.at(d.l.now+secs*d.factor(d.l.now), func(float64) { d.l.advance(j) })
}

// labOutcome is how a case went.
type labOutcome struct {
	labScore
	p99base float64
	limit   int
	best    float64
	text    string
	seed    uint64
	load    float64
}

func labRunCase(seed uint64, watch func(float64, *labRun)) labOutcome {
	k := labRandom(seed)
	// The base, in the state that is counted.
	svc := k.svc
	if k.event > 0 {
		k.slowed(&svc)
		if svc.name == "fifo" {
			inner := k.svc.build
			shift := k.event
			svc.build = func(l *labRun) []labStage {
				st := inner(l)
				if d, ok := st[len(st)-1].at.(labLater); ok {
					st[len(st)-1].at = labLater{l, func(now float64) float64 { return d.factor(now + shift) }}
				}
				return st
			}
		}
	}
	svc.capacity = k.cap
	secs := min(30, max(3, 5000/k.cap))
	b := labNew(svc, .5, seed, secs+3, nil)
	b.run()
	base := b.score(2, secs+3, 1).p99

	k.svc.deadline = max(.25, 4*base)
	begin := k.calm
	if k.event > 0 {
		begin = k.event
	}
	c := NewAdaptive()
	l := labNew(k.svc, k.load, seed, 1, c)
	// From when it counts depends on the limit at the time of the event.
	l.rate = func(now float64) float64 {
		if now < k.calm {
			return .3 * k.svc.capacity
		}
		return k.load * k.svc.capacity
	}
	l.end = begin + 240 // for the seconds; cut below
	limit := float64(ctrlStart)
	var from, to float64
	seen := false
	l.watcher = watch
	l.tenth = func(now float64, l *labRun) {
		if now < begin || seen {
			return
		}
		seen = true
		limit = float64(c.Limit())
		rounds := math.Abs(math.Log2(k.best / limit))
		x := k.cap
		from = math.Ceil(begin + min(120, max(2, 300*k.cv2*rounds/x, 3*k.r*rounds)))
		to = from + math.Ceil(k.length)
		l.end = to + .5
	}
	l.run()
	ideal := l.ideal(from, to, k.cap)
	sc := l.score(from, to, ideal)
	return labOutcome{sc, sc.p99 / base, c.Limit(), k.best, k.text, seed, k.load * k.svc.capacity / k.cap}
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
	labParallel(n, func(i int) { out[i] = labRunCase(*labSeeds+uint64(i), nil) })
	var good, p99, rej []float64
	both, over, hit := 0, 0, 0
	for _, o := range out {
		good = append(good, o.good)
		if o.good >= .95 {
			hit++
		}
		if o.load >= 1.2 {
			over++
			p99 = append(p99, o.p99base)
			if o.good >= .95 && o.p99base <= 2 {
				both++
			}
		} else if o.load <= .9 {
			rej = append(rej, o.rejected)
		}
	}
	var b strings.Builder
	quant := func(name string, v []float64) {
		slices.Sort(v)
		q := func(p float64) float64 { return v[min(int(p*float64(len(v))), len(v)-1)] }
		fmt.Fprintf(&b, "%-9s min %.3f p5 %.3f p10 %.3f p25 %.3f p50 %.3f p75 %.3f p95 %.3f max %.3f (%d)\n", name, v[0], q(.05), q(.10), q(.25), q(.5), q(.75), q(.95), v[len(v)-1], len(v))
	}
	quant("good", good)
	quant("p99/base", p99)
	if len(rej) > 0 {
		quant("rejected", rej)
	}
	fmt.Fprintf(&b, "good >= .95: %d of %d; both: %d of %d\n", hit, n, both, over)
	if !labRace && !*labFull && (hit < n*6/10 || good[n/10] < .7) {
		t.Errorf("good >= .95 on %d of %d, 10th percentile %.2f; want 60 %% and .7", hit, n, good[n/10])
	}
	slices.SortFunc(out, func(a, b labOutcome) int { return int(math.Copysign(1, a.good-b.good)) })
	for _, o := range out[:min(n, 25)] {
		if o.good < .95 {
			fmt.Fprintf(&b, "%.2f p99 %.1fx rej %.0f%% L %d of %.0f | %d %s\n", o.good, o.p99base, o.rejected*100, o.limit, o.best, o.seed, o.text)
		}
	}
	t.Log("\n" + b.String())
}

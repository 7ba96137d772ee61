package limitersim

import (
	"fmt"
	"math"
	"math/rand/v2"
	"time"
)

// RandomService is a service drawn at random, with a load and what happens to the service.
type RandomService struct {
	// Description says in one line what was drawn.
	Description string
	// Load is the load in the part of the run that is counted, in multiples of the capacity at that time.
	Load float64
	// Capacity is the most that is done in a second in the state that is counted.
	Capacity float64
	// Optimum is how many requests are in flight at that capacity if none waits.
	Optimum float64
	// Before is the optimum until the service changes; 0 if it does not change.
	Before float64
	// Baseline is the 99th percentile of the time to answer at half that capacity without a limiter. The deadline is
	// four times as long, and at least 250 ms.
	Baseline time.Duration

	svc    Service
	seed   uint64
	load   float64
	calm   float64 // seconds at 0.3 of the capacity before the load begins
	event  float64 // when it changes; 0 is never
	cv2    float64
	r      float64 // time in service at the optimum
	length float64 // counted
	slowed func(svc *Service)
}

// Random draws a service. What it draws is: what the service runs on (places first come, first served; processors;
// processors and a dependency; work that slows down as the universal scalability law says), how long the work takes
// (1 to 400 ms) and how that varies, how many fit (2 to 10,000), what the load is (0.5 to 10 times the capacity),
// whether the load begins at the start or after ten calm seconds, and whether capacity halves or the dependency slows
// down during the run. The same seed draws the same service.
func Random(seed uint64) *RandomService {
	k := draw(seed)
	svc := k.changed()
	// Long enough for the longest work to have come to its end: what is still under way is not counted.
	from := math.Ceil(max(2, 10*k.r))
	to := from + math.Ceil(1+max(min(30, max(3, 5000/k.Capacity)), 10*k.r))
	b := newSimulation(svc, .5, seed, to)
	b.Run(nil)
	k.Baseline = b.score(from, to).P99
	k.svc.deadline = max(.25, 4*k.Baseline.Seconds())
	k.Load = k.load * k.svc.Capacity / k.Capacity
	return k
}

// Describe returns the Description of the service that [Random] draws from a seed. It costs next to nothing, whereas
// Random measures the service.
func Describe(seed uint64) string { return draw(seed).Description }

// Changes returns when the service changes, measured from the beginning of a run; 0 means never.
func (k *RandomService) Changes() time.Duration { return toDuration(k.event) }

// changed returns the service in the state that is counted.
func (k *RandomService) changed() Service {
	svc := k.svc
	if k.event > 0 {
		k.slowed(&svc)
		if svc.Name == "fifo" {
			inner := k.svc.build
			shift := k.event
			svc.build = func(s *Simulation) []stage {
				st := inner(s)
				if d, ok := st[len(st)-1].at.(ownDelay); ok {
					st[len(st)-1].at = ownDelay{s, func(now float64) float64 { return d.factor(now + shift) }}
				}
				return st
			}
		}
	}
	svc.Capacity = k.Capacity
	return svc
}

// New returns a simulation of k. limit is called when the load begins or the service changes, and returns the limit
// at that time. The further the limit is from the optimum, and the fewer and more varied the answers are from which
// the optimum can be found, the later counting begins. For a limiter that has no limit, return 1. New panics if limit
// is nil, and the run panics if limit returns less than 1.
func (k *RandomService) New(limit func() int) *Simulation {
	if limit == nil {
		panic("limitersim: RandomService.New: limit is nil; give a function that tells the limit, or one that says 1")
	}
	begin := k.calm
	if k.event > 0 {
		begin = k.event
	}
	s := newSimulation(k.svc, k.load, k.seed, begin+240) // the end is known when the load has begun
	s.capacity = k.Capacity
	if k.calm > 0 {
		calm := toDuration(k.calm)
		s.Rate = func(now time.Duration) float64 {
			if now < calm {
				return .3 * k.svc.Capacity
			}
			return k.load * k.svc.Capacity
		}
	}
	seen := false
	s.tenth = func() {
		if s.now < begin || seen {
			return
		}
		seen = true
		n := limit()
		if n < 1 {
			panic(fmt.Sprintf("limitersim: RandomService.New: the limit is %d; say 1 or more", n))
		}
		rounds := math.Abs(math.Log2(k.Optimum / float64(n)))
		s.counted.from = math.Ceil(begin + max(2, 300*k.cv2*rounds/k.Capacity, 3*k.r*rounds))
		s.counted.to = s.counted.from + math.Ceil(k.length)
		s.end = s.counted.to + .5
		s.seconds = append(s.seconds, make([]second, max(0, int(math.Ceil(s.end))+1-len(s.seconds)))...)
	}
	return s
}

// Score returns what the counted part of a simulation was worth. The simulation must be one that [RandomService.New]
// of k made and that has run.
func (k *RandomService) Score(s *Simulation) Score {
	if s.counted.to == 0 {
		panic("limitersim: RandomService.Score: the simulation has not run, or was not made by RandomService.New")
	}
	return s.score(s.counted.from, s.counted.to)
}

func draw(seed uint64) *RandomService {
	r := rand.New(rand.NewPCG(seed, 77))
	logu := func(a, b float64) float64 { return math.Exp(math.Log(a) + r.Float64()*math.Log(b/a)) }
	k := &RandomService{seed: seed}
	kind := []string{"fifo", "ps", "psdep", "usl"}[r.IntN(4)]
	var secs, c float64
	for {
		secs, c = logu(.001, .4), math.Round(logu(2, 10000))
		if x := c / secs; x >= 10 && x <= 20000 {
			break
		}
	}
	dep := 0.
	if kind == "psdep" || r.IntN(4) == 0 {
		dep = secs * logu(.3, 5)
	}
	switch r.IntN(4) {
	case 0:
		k.svc.Demand, k.cv2 = jitter, .0133
	case 1:
		k.svc.Demand, k.cv2 = exponential, 1
	case 2:
		k.svc.Demand, k.cv2 = lognormal(.7), math.Exp(.49)-1
	case 3:
		p, f := .05, 10.
		m := 1 - p + p*f
		k.svc.Demand, k.cv2 = bimodal(p, f), (1-p+p*f*f)/(m*m)-1
	}
	k.svc.Name = kind
	k.svc.Capacity = c / secs
	var alpha, beta float64
	if kind == "usl" {
		// The peak is at c; beta c² = 1 - alpha there. It takes 2 to 2.5 times as long there as alone.
		alpha = logu(.1, .5) / c
		beta = (1 - alpha) / (c * c)
		k.svc.Capacity = uslPeak(secs, alpha, beta)
	}
	k.svc.build = func(s *Simulation) []stage {
		var st []stage
		switch kind {
		case "fifo":
			st = []stage{{&store{s: s, slots: int(c)}, secs}}
		case "ps":
			st = []stage{{cores(s, c), secs}}
		case "psdep":
			cpu := cores(s, c)
			return []stage{{cpu, secs / 2}, {delay{s}, dep}, {cpu, secs / 2}}
		case "usl":
			st = []stage{{usl(s, alpha, beta), secs}}
		}
		if dep > 0 {
			st = append(st, stage{delay{s}, dep})
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
	k.Capacity = k.svc.Capacity * halve
	if slow > 1 || halve < 1 {
		k.event = k.calm + max(5, min(20, 1000/k.svc.Capacity))
	}
	work := secs // at the optimum
	if kind == "usl" {
		work = c / k.svc.Capacity
	}
	k.r = work/halve + dep*slow
	k.Optimum = k.Capacity * k.r
	if k.event > 0 {
		k.Before = k.svc.Capacity * (work + dep)
	}
	k.length = 20
	if x := k.Capacity * k.load; x > 5000 {
		k.length = max(4, 20*5000/x)
	} else if k.Capacity < 150 {
		k.length = min(60, 3000/k.Capacity)
	}
	k.slowed = func(svc *Service) {
		svc.slow = func(float64) float64 { return slow }
		svc.Speed = func(time.Duration) float64 { return halve }
	}
	if k.event > 0 {
		at := k.event
		from := func(factor float64) func(now float64) float64 {
			return func(now float64) float64 {
				if now < at {
					return 1
				}
				return factor
			}
		}
		slower := from(halve)
		k.svc.slow, k.svc.Speed = from(slow), func(now time.Duration) float64 { return slower(now.Seconds()) }
		if kind == "fifo" {
			// A store's own time is not the dependency's.
			k.svc.slow = nil
			k.slowed = func(svc *Service) { svc.Speed = func(time.Duration) float64 { return halve } }
			if dep > 0 {
				inner := k.svc.build
				k.svc.build = func(s *Simulation) []stage {
					st := inner(s)
					st[len(st)-1].at = ownDelay{s, from(slow)}
					return st
				}
			}
		}
	}
	k.Description = fmt.Sprintf("%s S %.0f ms c %.0f dep %.0f ms cv2 %.1f %.0f/s load %.2f %s", kind, secs*1e3, c, dep*1e3, k.cv2, k.svc.Capacity, k.load, how)
	return k
}

package limitersim

import (
	"math"
	"math/rand/v2"
	"time"
)

// Service says what the work is made of and what it runs on. It comes from [Profiles] or [SlowDependency].
type Service struct {
	Name string
	// Capacity is the most it can do in a second.
	Capacity float64

	deadline float64 // what a client waits for, s
	build    func(s *Simulation) []stage
	demand   func(r *rand.Rand) float64 // a factor for all demands of one piece of work, mean 1
	// slow is the factor of the demands of dependencies at a time, if they vary.
	slow func(now float64) float64
	// speed is the factor of the speed of the machine at a time, if it varies.
	speed func(now float64) float64
}

// Baseline returns the 99th percentile of the time to answer at half the capacity without a limiter:
// what a latency under overload is measured by.
func (svc Service) Baseline(seed uint64) time.Duration {
	s := newSimulation(svc, .5, seed, 30)
	s.Run(nil)
	return s.score(2, 30).P99
}

// Profiles returns the seven kinds of service, each with a deadline of 250 ms:
//
//   - cpu: 2 ms of computation on one processor, which all work in flight shares;
//   - cpuio: 1 ms of it, 5 ms of waiting for something else, and 1 ms more;
//   - io: a store that takes 10 ms and has 16 places, first come, first served;
//   - mixed: a store with 8 places where one request in twenty takes ten times as long as the others;
//   - contended: 10 ms of work that slows down as the universal scalability law says, best with about 22 in flight;
//   - wide: a store that takes 50 ms and has 160 places;
//   - narrow: a store that takes 60 ms and has 4 places.
//
// Times vary by a fifth either way where nothing else is said.
func Profiles() []Service {
	return []Service{
		{Name: "cpu", Capacity: 500, demand: jitter, build: func(s *Simulation) []stage {
			return []stage{{cores(s, 1), .002}}
		}},
		{Name: "cpuio", Capacity: 500, demand: jitter, build: func(s *Simulation) []stage {
			cpu := cores(s, 1)
			return []stage{{cpu, .001}, {delay{s}, .005}, {cpu, .001}}
		}},
		{Name: "io", Capacity: 1600, demand: jitter, build: func(s *Simulation) []stage {
			return []stage{{&store{s: s, slots: 16}, .010}}
		}},
		{Name: "mixed", Capacity: 8 / .0118, demand: bimodal(.05, 10), build: func(s *Simulation) []stage {
			return []stage{{&store{s: s, slots: 8}, .0118}}
		}},
		{Name: "contended", Capacity: uslPeak(.010, .02, .002), demand: jitter, build: func(s *Simulation) []stage {
			return []stage{{usl(s, .02, .002), .010}}
		}},
		{Name: "wide", Capacity: 3200, demand: jitter, build: func(s *Simulation) []stage {
			return []stage{{&store{s: s, slots: 160}, .050}}
		}},
		{Name: "narrow", Capacity: 4 / .060, demand: jitter, build: func(s *Simulation) []stage {
			return []stage{{&store{s: s, slots: 4}, .060}}
		}},
	}
}

// SlowDependency returns a service that needs 10 ms of one of eight processors, and 10 ms of a dependency which takes
// ten times as long from second 10 to second 40. Times are exponential; the deadline is a second.
func SlowDependency() Service {
	return Service{Name: "dependency", Capacity: 800, deadline: 1, demand: exponential,
		slow: func(now float64) float64 {
			if now >= 10 && now < 40 {
				return 10
			}
			return 1
		},
		build: func(s *Simulation) []stage {
			return []stage{{cores(s, 8), .010}, {delay{s}, .010}}
		}}
}

// Demands, each with mean 1.
func jitter(r *rand.Rand) float64      { return .8 + .4*r.Float64() }
func exponential(r *rand.Rand) float64 { return r.ExpFloat64() }

// bimodal is slow with probability p, where slow takes k times as long as fast.
func bimodal(p, k float64) func(*rand.Rand) float64 {
	fast := 1 / (1 - p + p*k)
	return func(r *rand.Rand) float64 {
		if r.Float64() < p {
			return fast * k
		}
		return fast
	}
}

func lognormal(sigma float64) func(*rand.Rand) float64 {
	return func(r *rand.Rand) float64 { return math.Exp(sigma*r.NormFloat64() - sigma*sigma/2) }
}

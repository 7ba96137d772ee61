package limitersim

import (
	"fmt"
	"math"
	"math/rand/v2"
	"time"
)

// Service says what the work is made of and what it runs on. Get one from [Profiles], [SlowDependency], [Store] or
// [Processors].
type Service struct {
	Name string
	// Capacity is the most that the service can do in a second.
	Capacity float64
	// Demand draws a factor for all demands of one piece of work, 0 or more. Its mean must be 1 for Capacity to hold;
	// nil means 1 for each.
	Demand func(r *rand.Rand) float64
	// Speed is the factor of the speed of places and processors at a time; nil means 1. Capacity does not take it into
	// account. It must be more than 0. What begins in a place keeps the speed of that moment to its end.
	Speed func(now time.Duration) float64

	deadline float64 // what a client waits for, s
	build    func(s *Simulation) []stage
	// slow is the factor of the demands of dependencies at a time, if they vary.
	slow func(now float64) float64
}

// Baseline returns the 99th percentile of the time to answer at half the capacity without a limiter, against which a
// latency under overload is measured. It panics where [New] does.
func (svc Service) Baseline(seed uint64) time.Duration {
	svc.check("Baseline")
	s := newSimulation(svc, .5, seed, 30)
	s.Run(nil)
	return s.score(2, 30).P99
}

// check panics where no run of the service could begin, or would end.
func (svc Service) check(caller string) {
	switch {
	case svc.build == nil:
		panic("limitersim: " + caller + ": the Service runs on nothing; take one from Profiles, SlowDependency, Store or Processors, and change that")
	case !(svc.Capacity > 0) || math.IsInf(svc.Capacity, 1):
		panic(fmt.Sprintf("limitersim: %s: Service.Capacity is %v; give a positive number of requests a second, and finite", caller, svc.Capacity))
	}
}

// Profiles returns the seven kinds of service, each with a deadline of 250 ms:
//
//   - cpu: 2 ms of computation on one processor, which all work in flight shares;
//   - cpuio: 1 ms of computation, 5 ms of waiting for something else, and 1 ms of computation;
//   - io: a store that takes 10 ms and has 16 places, first come, first served;
//   - mixed: a store with 8 places where one request in twenty takes ten times as long as the others;
//   - contended: 10 ms of work that slows down as the universal scalability law says, best with about 22 in flight;
//   - wide: a store that takes 50 ms and has 160 places;
//   - narrow: a store that takes 60 ms and has 4 places.
//
// Times vary by a fifth either way unless stated otherwise.
func Profiles() []Service {
	return []Service{
		{Name: "cpu", Capacity: 500, Demand: jitter, build: func(s *Simulation) []stage {
			return []stage{{cores(s, 1), .002}}
		}},
		{Name: "cpuio", Capacity: 500, Demand: jitter, build: func(s *Simulation) []stage {
			cpu := cores(s, 1)
			return []stage{{cpu, .001}, {delay{s}, .005}, {cpu, .001}}
		}},
		{Name: "io", Capacity: 1600, Demand: jitter, build: func(s *Simulation) []stage {
			return []stage{{&store{s: s, slots: 16}, .010}}
		}},
		{Name: "mixed", Capacity: 8 / .0118, Demand: bimodal(.05, 10), build: func(s *Simulation) []stage {
			return []stage{{&store{s: s, slots: 8}, .0118}}
		}},
		{Name: "contended", Capacity: uslPeak(.010, .02, .002), Demand: jitter, build: func(s *Simulation) []stage {
			return []stage{{usl(s, .02, .002), .010}}
		}},
		{Name: "wide", Capacity: 3200, Demand: jitter, build: func(s *Simulation) []stage {
			return []stage{{&store{s: s, slots: 160}, .050}}
		}},
		{Name: "narrow", Capacity: 4 / .060, Demand: jitter, build: func(s *Simulation) []stage {
			return []stage{{&store{s: s, slots: 4}, .060}}
		}},
	}
}

// SlowDependency returns a service that needs 10 ms of one of eight processors, and 10 ms of a dependency that takes
// ten times as long from second 10 to second 40. Times are exponentially distributed; the deadline is a second.
func SlowDependency() Service {
	return Service{Name: "dependency", Capacity: 800, deadline: 1, Demand: exponential,
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

// Store returns a service that takes the given time and has the given number of places, first come, first served,
// with a deadline of 250 ms. Times vary by a fifth either way. It panics if places or took is not positive.
func Store(places int, took time.Duration) Service {
	mustHave("Store", places, took)
	return Service{Name: "store", Capacity: float64(places) / took.Seconds(), Demand: jitter, build: func(s *Simulation) []stage {
		return []stage{{&store{s: s, slots: places}, took.Seconds()}}
	}}
}

// Processors returns a service that computes for the given time on one of n processors, which all work in flight
// shares, with a deadline of 250 ms. Times vary by a fifth either way. It panics if n or took is not positive.
func Processors(n int, took time.Duration) Service {
	mustHave("Processors", n, took)
	return Service{Name: "processors", Capacity: float64(n) / took.Seconds(), Demand: jitter, build: func(s *Simulation) []stage {
		return []stage{{cores(s, float64(n)), took.Seconds()}}
	}}
}

// speed is that of places and processors now.
func (s *Simulation) speed() float64 {
	if s.svc.Speed == nil {
		return 1
	}
	v := s.svc.Speed(s.Now())
	if !(v > 0) || math.IsInf(v, 1) {
		panic(fmt.Sprintf("limitersim: Service.Speed: %v at %v; give more than 0, and finite", v, s.Now()))
	}
	return v
}

// demand is the factor of the next piece of work.
func (s *Simulation) demand() float64 {
	if s.svc.Demand == nil {
		return 1
	}
	f := s.svc.Demand(s.work)
	if !(f >= 0) || math.IsInf(f, 1) {
		panic(fmt.Sprintf("limitersim: Service.Demand: %v; give 0 or more, and finite", f))
	}
	return f
}

func mustHave(what string, n int, took time.Duration) {
	if n < 1 || took <= 0 {
		panic(fmt.Sprintf("limitersim: %s: %d of them for %v; give 1 or more for a positive time", what, n, took))
	}
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

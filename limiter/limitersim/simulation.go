// Package limitersim is a laboratory for anything that limits the work of a server. It puts services of known
// capacity under open-loop load, in virtual time, and says how much of what was possible came out of them.
//
// A [Simulation] is a discrete-event simulation of one [Service]: requests arrive as a Poisson process, whether the
// service keeps up or not, and each one asks the limiter under test before its work begins. Everything random is
// drawn from a seed, so that two limiters meet the same arrivals with the same work.
//
//	for _, svc := range limitersim.Profiles() {
//		sim := limitersim.New(svc, 3, 42, 30*time.Second) // three times its capacity
//		sim.Run(mine)
//		score := sim.Score(2*time.Second, 30*time.Second)
//		...
//	}
//
// A limiter that can be told the time implements [Limiter] and needs no goroutines. One that reads the clock and
// keeps its callers waiting is driven by [Simulation.RunFunc] in a bubble of [testing/synctest].
//
// The package imports nothing else of this module, so it judges any limiter by the same measure.
package limitersim

import (
	"container/heap"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"
)

// Limiter is a limiter under test that takes the time from the simulation. The goroutine that called [Simulation.Run]
// calls its methods, one at a time.
type Limiter interface {
	// Arrive asks whether the work of r may begin. The limiter answers by calling r.Admit or r.Reject, at once or later:
	// in a call of Release, or in a function that was given to [Simulation.At].
	Arrive(r *Request)
	// Release says that the work of a request that was admitted has ended.
	Release(r *Request)
}

// Request is one piece of work. It may be used as the key of a map.
type Request struct {
	sim     *Simulation
	arrived float64
	decided bool
	factor  float64
	at      station // where the work is; nil is nowhere
	stage   int
	left    float64 // finish in the virtual time of a shared processor
	done    chan struct{}
}

// Admit begins the work of r. It panics if r was admitted or rejected before.
func (r *Request) Admit() {
	r.decide("Admit")
	r.stage = -1
	r.sim.advance(r)
}

// Reject counts r as rejected. It panics if r was admitted or rejected before.
func (r *Request) Reject() {
	r.decide("Reject")
	r.sim.seconds[int(r.arrived)].rejected++
}

// Arrived returns when r arrived, measured from the beginning of the run.
func (r *Request) Arrived() time.Duration { return toDuration(r.arrived) }

// Cancel ends the work of r before it is done, as when work ends because its client left. What it held is free at
// once, and it counts as no answer; Release is not called. Cancel panics unless the work of r has begun and not
// ended.
func (r *Request) Cancel() {
	if r.at == nil {
		panic("limitersim: Cancel: the work has not begun or has ended; cancel what was admitted, until Release is called")
	}
	at := r.at
	r.at = nil
	at.leave(r)
}

func (r *Request) decide(method string) {
	if r.decided {
		panic("limitersim: " + method + ": the request was admitted or rejected before; a limiter answers once")
	}
	r.decided = true
}

// Simulation is one run of one service. Make one with [New] or [RandomService.New]; it runs once. It is not safe for
// concurrent use; different simulations may run at the same time.
type Simulation struct {
	// Rate returns how many requests a second arrive at a given time; nil means the load given to New. It is called at
	// each arrival, and every 10 ms while the next arrival is more than a second away. The run panics unless the rate is
	// finite and 0 or more.
	Rate func(now time.Duration) float64
	// Watch, if not nil, is called after every event.
	Watch func()

	svc    Service
	lim    Limiter // nil: none
	events events
	now    float64
	rand   *rand.Rand
	work   *rand.Rand
	stages []stage

	load     float64
	end      float64
	capacity float64
	counted  struct{ from, to float64 } // of a random service

	seconds []second
	tenth   func() // called about ten times a second
	tenths  float64
	run     bool // has begun
	running bool
}

// second is what happened in one second, and what was rejected of those who arrived in it.
type second struct {
	arrived, rejected, done, good int
	latency                       []float32
}

type event struct {
	at float64
	do func()
}

type events []event

func (e events) Len() int           { return len(e) }
func (e events) Less(i, j int) bool { return e[i].at < e[j].at }
func (e events) Swap(i, j int)      { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)        { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	x := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return x
}

// New returns a simulation of svc for a time d, under a load in multiples of its capacity. Runs with the same seed
// have the same arrivals with the same work. New panics unless load is finite and 0 or more, and d is positive. It
// also panics unless svc comes from one of the functions that [Service] names and has a Capacity that is positive and
// finite.
func New(svc Service, load float64, seed uint64, d time.Duration) *Simulation {
	if !(load >= 0) || math.IsInf(load, 1) || d <= 0 {
		panic(fmt.Sprintf("limitersim: New: load is %v for %v; give 0 or more, and finite, for a positive time", load, d))
	}
	svc.check("New")
	if math.IsInf(load*svc.Capacity, 1) {
		panic(fmt.Sprintf("limitersim: New: load is %v times a capacity of %v a second, which is infinite; give less", load, svc.Capacity))
	}
	return newSimulation(svc, load, seed, d.Seconds())
}

func newSimulation(svc Service, load float64, seed uint64, secs float64) *Simulation {
	if svc.deadline == 0 {
		svc.deadline = .25
	}
	return &Simulation{
		svc: svc, load: load, end: secs, capacity: svc.Capacity,
		rand: rand.New(rand.NewPCG(seed, 1)),
		work: rand.New(rand.NewPCG(seed, 2)),
	}
}

// Now returns the time since the beginning of the run.
func (s *Simulation) Now() time.Duration { return toDuration(s.now) }

// At calls f when the simulation has come to a time, or as the next event if that time has passed. It is the timer of
// a [Limiter], and may be called before the run. It panics if f is nil.
func (s *Simulation) At(t time.Duration, f func()) {
	if f == nil {
		panic("limitersim: At: f is nil; give what is to be called")
	}
	s.at(max(t.Seconds(), s.now), f)
}

// Burst makes n requests arrive now, besides those that arrive by Rate or the load. It may be called in a function
// that was given to At: for a burst at the beginning of the run, use At(0, ...). It panics before the run and after
// it.
func (s *Simulation) Burst(n int) {
	if !s.running {
		panic("limitersim: Burst: the run has not begun or is over; call it in what is given to At")
	}
	for range n {
		s.arrive()
	}
}

func (s *Simulation) at(t float64, do func()) { heap.Push(&s.events, event{t, do}) }

func toDuration(secs float64) time.Duration { return time.Duration(secs * 1e9) }

// Run runs the simulation with l; nil means no limiter. It panics if the simulation has run before.
func (s *Simulation) Run(l Limiter) {
	s.begin(l)
	for s.next() {
		s.step()
	}
	s.running = false
}

func (s *Simulation) begin(l Limiter) {
	if s.run {
		panic("limitersim: Run: the simulation has run before; make a new one")
	}
	s.run, s.running = true, true
	s.lim = l
	s.stages = s.svc.build(s)
	s.seconds = make([]second, int(math.Ceil(s.end))+1)
	s.draw()
}

// next tells whether there is an event before the end.
func (s *Simulation) next() bool { return len(s.events) > 0 && s.events[0].at <= s.end }

func (s *Simulation) step() {
	e := heap.Pop(&s.events).(event)
	s.now = max(s.now, e.at)
	e.do()
	if s.Watch != nil {
		s.Watch()
	}
	if s.tenth != nil && s.now >= s.tenths {
		s.tenths += .1
		s.tenth()
	}
}

// draw draws the next arrival of a Poisson process.
func (s *Simulation) draw() {
	left, from, rate := s.rand.ExpFloat64(), s.now, s.rate(s.now) // left is how many are due by then, on average
	if left/rate > 1 && s.Rate != nil {
		const step = .01
		for ; left > rate*step && from < s.end; from, rate = from+step, s.rate(from+step) {
			left -= rate * step
		}
	}
	s.at(from+left/rate, func() { s.arrive(); s.draw() })
}

func (s *Simulation) rate(now float64) float64 {
	if s.Rate == nil {
		return s.load * s.svc.Capacity
	}
	rate := s.Rate(toDuration(now))
	if !(rate >= 0) || math.IsInf(rate, 1) {
		panic(fmt.Sprintf("limitersim: Simulation.Rate: %v requests a second at %v; give 0 or more, and finite", rate, toDuration(now)))
	}
	return rate
}

func (s *Simulation) second() *second { return &s.seconds[int(s.now)] }

func (s *Simulation) arrive() {
	s.second().arrived++
	r := &Request{sim: s, arrived: s.now, factor: s.demand()}
	if s.lim == nil {
		r.Admit()
		return
	}
	s.lim.Arrive(r)
}

// advance goes on to the next stage of the work.
func (s *Simulation) advance(r *Request) {
	r.stage++
	if r.stage < len(s.stages) {
		st := s.stages[r.stage]
		r.at = st.at
		st.at.enter(r, st.secs*r.factor)
		return
	}
	r.at = nil
	sec := s.second()
	sec.done++
	d := s.now - r.arrived
	sec.latency = append(sec.latency, float32(d))
	if d <= s.svc.deadline {
		sec.good++
	}
	if s.lim != nil {
		s.lim.Release(r)
	}
}

// Score is what a span of a run was worth.
type Score struct {
	// Goodput is what was answered within the deadline, as a fraction of what was possible: the capacity of the service,
	// or all that arrived if that is less. It is 0 if nothing arrived. A span that ends work begun before it may have
	// more than 1.
	Goodput float64
	// P99 is the 99th percentile of the time from arrival to answer of what was admitted; 0 if nothing was.
	P99 time.Duration
	// Rejected is the fraction of what arrived in the span that was rejected, in the span or later.
	Rejected float64
}

// Score returns what the whole seconds of a span were worth. It panics if the span has none, or if the simulation has
// not run that far.
func (s *Simulation) Score(from, to time.Duration) Score {
	first, last := math.Ceil(from.Seconds()), math.Floor(to.Seconds())
	if from < 0 || first >= last || !s.run || to.Seconds() > s.end {
		panic(fmt.Sprintf("limitersim: Score: from %v to %v; give a span of the run that holds a whole second", from, to))
	}
	return s.score(first, last)
}

func (s *Simulation) score(from, to float64) Score {
	var good, arrived, rejected int
	var lat []float32
	for i := int(from); i < int(to); i++ {
		sec := &s.seconds[i]
		good += sec.good
		arrived += sec.arrived
		rejected += sec.rejected
		lat = append(lat, sec.latency...)
	}
	secs := float64(int(to) - int(from))
	ideal := min(s.capacity, float64(arrived)/secs)
	var r Score
	if arrived > 0 {
		r.Goodput, r.Rejected = float64(good)/(ideal*secs), float64(rejected)/float64(arrived)
	}
	if len(lat) > 0 {
		slices.Sort(lat)
		r.P99 = toDuration(float64(lat[len(lat)*99/100]))
	}
	return r
}

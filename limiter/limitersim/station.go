package limitersim

import (
	"container/heap"
	"slices"
)

// stage is one step of the work: some seconds at a station.
type stage struct {
	at   station
	secs float64
}

// station is where work is done.
type station interface {
	enter(r *Request, secs float64)
	// leave is told that the work of a request that is there is no longer wanted.
	leave(r *Request)
}

// delay is a dependency that takes its time whatever the load.
type delay struct{ s *Simulation }

func (d delay) enter(r *Request, secs float64) {
	s := d.s
	if s.svc.slow != nil {
		secs *= s.svc.slow(s.now)
	}
	s.at(s.now+secs, func() { s.waited(r) })
}

func (d delay) leave(*Request) {}

// waited goes on with r, unless that has left.
func (s *Simulation) waited(r *Request) {
	if r.at != nil {
		s.advance(r)
	}
}

// ownDelay is a dependency with a factor of its own.
type ownDelay struct {
	s      *Simulation
	factor func(now float64) float64
}

func (d ownDelay) enter(r *Request, secs float64) {
	d.s.at(d.s.now+secs*d.factor(d.s.now), func() { d.s.waited(r) })
}

func (d ownDelay) leave(*Request) {}

// store serves first come, first served, at most slots at a time.
type store struct {
	s     *Simulation
	slots int
	busy  int
	queue []*Request
	secs  []float64
}

func (st *store) enter(r *Request, secs float64) {
	if st.busy >= st.slots {
		st.queue = append(st.queue, r)
		st.secs = append(st.secs, secs)
		return
	}
	st.serve(r, secs)
}

func (st *store) serve(r *Request, secs float64) {
	st.busy++
	if st.s.svc.slow != nil {
		secs *= st.s.svc.slow(st.s.now)
	}
	st.s.at(st.s.now+secs/st.s.speed(), func() {
		if r.at == nil {
			return // its place is another's
		}
		st.free()
		st.s.advance(r)
	})
}

// free gives a place to who is next.
func (st *store) free() {
	st.busy--
	if len(st.queue) > 0 {
		r, secs := st.queue[0], st.secs[0]
		st.queue, st.secs = st.queue[1:], st.secs[1:]
		st.serve(r, secs)
	}
}

func (st *store) leave(r *Request) {
	if i := slices.Index(st.queue, r); i >= 0 {
		st.queue, st.secs = slices.Delete(st.queue, i, i+1), slices.Delete(st.secs, i, i+1)
		return
	}
	st.free()
}

// shared is shared by all who are in it: each of n goes at speed(n).
type shared struct {
	s     *Simulation
	speed func(n float64) float64
	jobs  byFinish
	v     float64 // virtual time: what each has had
	seen  float64
	turn  int
}

// cores shares n processors.
func cores(s *Simulation, n float64) *shared {
	return &shared{s: s, speed: func(k float64) float64 { return min(1, n/k) }}
}

// usl slows down as the universal scalability law says.
func usl(s *Simulation, alpha, beta float64) *shared {
	return &shared{s: s, speed: func(n float64) float64 { return 1 / (1 + alpha*(n-1) + beta*n*(n-1)) }}
}

// uslPeak is the most that work of secs alone can reach by the universal scalability law.
func uslPeak(secs, alpha, beta float64) float64 {
	best := 0.
	for n := 1.; n < 20000; n++ {
		best = max(best, n/(secs*(1+alpha*(n-1)+beta*n*(n-1))))
	}
	return best
}

func (p *shared) pace() float64 { return p.speed(float64(len(p.jobs))) * p.s.speed() }

func (p *shared) progress() {
	if len(p.jobs) > 0 {
		p.v += (p.s.now - p.seen) * p.pace()
	}
	p.seen = p.s.now
}

func (p *shared) enter(r *Request, secs float64) {
	p.progress()
	r.left = p.v + secs
	heap.Push(&p.jobs, r)
	p.plan()
}

func (p *shared) leave(r *Request) {
	p.progress()
	heap.Remove(&p.jobs, slices.Index(p.jobs, r))
	p.plan()
}

// plan sets the event at which the next one is done. An earlier plan is void.
func (p *shared) plan() {
	p.turn++
	if len(p.jobs) == 0 {
		return
	}
	turn := p.turn
	p.s.at(p.s.now+max(p.jobs[0].left-p.v, 0)/p.pace(), func() {
		if turn != p.turn {
			return
		}
		p.progress()
		r := heap.Pop(&p.jobs).(*Request)
		p.plan()
		p.s.advance(r)
	})
}

type byFinish []*Request

func (e byFinish) Len() int           { return len(e) }
func (e byFinish) Less(i, j int) bool { return e[i].left < e[j].left }
func (e byFinish) Swap(i, j int)      { e[i], e[j] = e[j], e[i] }
func (e *byFinish) Push(x any)        { *e = append(*e, x.(*Request)) }
func (e *byFinish) Pop() any {
	x := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return x
}

package limiter

import (
	"container/heap"
	"math"
	"math/rand/v2"
	"slices"
	"time"
)

// The laboratory: services under open-loop load, in virtual time, behind the real limiter.
// It is a discrete-event simulation, single-threaded and deterministic by its seed; it
// calls the same entry points as Acquire and Release, with its own clock.

// labService says what the work is made of and what it runs on.
type labService struct {
	name string
	// capacity is the most it can do in a second; base is the time of one piece of work alone.
	capacity, base float64
	// deadline is what a client waits for; good is what was answered by then.
	deadline float64
	build    func(l *labRun) []labStage
	demand   func(r *rand.Rand) float64 // a factor for all demands of one piece of work, mean 1
	// slow is the factor of the demands of dependencies at a time, if they vary.
	slow func(now float64) float64
	// speed is the factor of the speed of the machine at a time, if it varies.
	speed func(now float64) float64
}

// labStage is one step of the work: some seconds at a station.
type labStage struct {
	at   labStation
	secs float64
}

type labStation interface {
	enter(j *labJob, secs float64)
}

type labJob struct {
	arrived float64
	slot    *concSlot
	factor  float64
	stage   int
	left    float64 // finish in the virtual time of a shared processor
}

type labEvent struct {
	at float64
	do func(now float64)
}

type labEvents []labEvent

func (e labEvents) Len() int           { return len(e) }
func (e labEvents) Less(i, j int) bool { return e[i].at < e[j].at }
func (e labEvents) Swap(i, j int)      { e[i], e[j] = e[j], e[i] }
func (e *labEvents) Push(x any)        { *e = append(*e, x.(labEvent)) }
func (e *labEvents) Pop() any {
	x := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return x
}

// labRun is one run of one service.
type labRun struct {
	svc    labService
	c      *Concurrency // nil: no limiter
	events labEvents
	now    float64
	rand   *rand.Rand
	work   *rand.Rand
	stages []labStage
	waits  map[*queueWaiter]*labJob
	wakeAt float64

	rate func(now float64) float64 // arrivals a second
	end  float64

	seconds []labSecond
	peak    int
	watcher func(now float64, l *labRun) // called after every event
	tenth   func(now float64, l *labRun) // called about ten times a second
	tenths  float64
}

// labSecond is what happened in one second.
type labSecond struct {
	arrived, rejected, done, good int
	latency                       []float32
}

func (l *labRun) at(t float64, do func(float64)) { heap.Push(&l.events, labEvent{t, do}) }

func labTime(t float64) time.Duration { return time.Duration(t * 1e9) }

func (l *labRun) run() {
	l.stages = l.svc.build(l)
	l.waits = make(map[*queueWaiter]*labJob)
	l.seconds = make([]labSecond, int(math.Ceil(l.end))+1)
	l.next(0)
	for len(l.events) > 0 {
		e := heap.Pop(&l.events).(labEvent)
		if e.at > l.end {
			return
		}
		l.now = e.at
		e.do(e.at)
		if l.watcher != nil {
			l.watcher(l.now, l)
		}
		if l.tenth != nil && l.now >= l.tenths {
			l.tenths += .1
			l.tenth(l.now, l)
		}
	}
}

// next draws the next arrival of a Poisson process.
func (l *labRun) next(now float64) {
	t := now + l.rand.ExpFloat64()/l.rate(now)
	l.at(t, func(now float64) { l.arrive(now); l.next(now) })
}

func (l *labRun) second() *labSecond { return &l.seconds[int(l.now)] }

func (l *labRun) arrive(now float64) {
	l.second().arrived++
	j := &labJob{arrived: now, factor: 1}
	if l.svc.demand != nil {
		j.factor = l.svc.demand(l.work)
	}
	if l.c == nil {
		l.start(j)
		return
	}
	t := labTime(now) + 1
	if p, ok := l.c.take(1, t); ok {
		j.slot = p.slot
		l.start(j)
		return
	}
	w, p, woken, err := l.c.enter(&Request{}, t, 0, nil)
	switch {
	case err != nil:
		l.second().rejected++
	case w == nil:
		j.slot = p.slot
		l.start(j)
	default:
		l.waits[w] = j
	}
	l.wake(woken)
	l.watch()
}

// wake does for those who have been decided what their goroutines would do.
func (l *labRun) wake(w *queueWaiter) {
	for w != nil {
		next := w.wake
		w.wake = nil
		j := l.waits[w]
		delete(l.waits, w)
		j.slot, w.slot = w.slot, nil
		l.c.recycle(w)
		if j.slot != nil {
			l.start(j)
		} else {
			l.second().rejected++
		}
		w = next
	}
}

// watch stands in for the timer of the line.
func (l *labRun) watch() {
	w := l.c.line.oldest
	if w == nil || l.wakeAt > l.now {
		return
	}
	l.wakeAt = max((w.entered + l.c.bound + 2).Seconds(), l.now+1e-6)
	l.at(l.wakeAt, func(now float64) {
		l.wakeAt = 0
		l.wake(l.c.dispatch(labTime(now) + 1))
		l.watch()
	})
}

func (l *labRun) start(j *labJob) {
	j.stage = -1
	l.advance(j)
}

func (l *labRun) advance(j *labJob) {
	j.stage++
	if j.stage < len(l.stages) {
		s := l.stages[j.stage]
		s.at.enter(j, s.secs*j.factor)
		return
	}
	s := l.second()
	s.done++
	d := l.now - j.arrived
	s.latency = append(s.latency, float32(d))
	if d <= l.svc.deadline {
		s.good++
	}
	if l.c != nil {
		l.peak = max(l.peak, l.c.Limit())
		slot := j.slot
		slot.gen.Add(1)
		woken, _, _ := l.c.release(slot, Success, labTime(l.now)+1)
		l.wake(woken)
		l.watch()
	}
}

// labDelay is a dependency that takes its time whatever the load.
type labDelay struct{ l *labRun }

func (d labDelay) enter(j *labJob, secs float64) {
	l := d.l
	if l.svc.slow != nil {
		secs *= l.svc.slow(l.now)
	}
	l.at(l.now+secs, func(float64) { l.advance(j) })
}

// labStore serves first come, first served, at most slots at a time.
type labStore struct {
	l     *labRun
	slots int
	busy  int
	queue []*labJob
	secs  []float64
}

func (s *labStore) enter(j *labJob, secs float64) {
	if s.busy >= s.slots {
		s.queue = append(s.queue, j)
		s.secs = append(s.secs, secs)
		return
	}
	s.serve(j, secs)
}

func (s *labStore) serve(j *labJob, secs float64) {
	s.busy++
	if s.l.svc.slow != nil {
		secs *= s.l.svc.slow(s.l.now)
	}
	if s.l.svc.speed != nil {
		secs /= s.l.svc.speed(s.l.now)
	}
	s.l.at(s.l.now+secs, func(float64) {
		s.busy--
		if len(s.queue) > 0 {
			j, secs := s.queue[0], s.secs[0]
			s.queue, s.secs = s.queue[1:], s.secs[1:]
			s.serve(j, secs)
		}
		s.l.advance(j)
	})
}

// labShared is shared by all who are in it: each of n goes at speed(n).
type labShared struct {
	l     *labRun
	speed func(n float64) float64
	jobs  labJobs
	v     float64 // virtual time: what each has had
	seen  float64
	turn  int
}

type labJobs []*labJob

func (e labJobs) Len() int           { return len(e) }
func (e labJobs) Less(i, j int) bool { return e[i].left < e[j].left }
func (e labJobs) Swap(i, j int)      { e[i], e[j] = e[j], e[i] }
func (e *labJobs) Push(x any)        { *e = append(*e, x.(*labJob)) }
func (e *labJobs) Pop() any {
	x := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return x
}

func (s *labShared) pace() float64 {
	p := s.speed(float64(len(s.jobs)))
	if s.l.svc.speed != nil {
		p *= s.l.svc.speed(s.l.now)
	}
	return p
}

func (s *labShared) progress() {
	if len(s.jobs) > 0 {
		s.v += (s.l.now - s.seen) * s.pace()
	}
	s.seen = s.l.now
}

func (s *labShared) enter(j *labJob, secs float64) {
	s.progress()
	j.left = s.v + secs
	heap.Push(&s.jobs, j)
	s.plan()
}

func (s *labShared) plan() {
	s.turn++
	if len(s.jobs) == 0 {
		return
	}
	turn := s.turn
	s.l.at(s.l.now+max(s.jobs[0].left-s.v, 0)/s.pace(), func(float64) {
		if turn != s.turn {
			return
		}
		s.progress()
		j := heap.Pop(&s.jobs).(*labJob)
		s.plan()
		s.l.advance(j)
	})
}

// labCores shares n processors.
func labCores(l *labRun, n float64) *labShared {
	return &labShared{l: l, speed: func(k float64) float64 { return min(1, n/k) }}
}

// labUSL slows down as the universal scalability law says.
func labUSL(l *labRun, alpha, beta float64) *labShared {
	return &labShared{l: l, speed: func(n float64) float64 { return 1 / (1 + alpha*(n-1) + beta*n*(n-1)) }}
}

// Demands, each with mean 1.
func labJitter(r *rand.Rand) float64 { return .8 + .4*r.Float64() }
func labExp(r *rand.Rand) float64    { return r.ExpFloat64() }

// labBimodal is slow with probability p, where slow takes k times as long as fast.
func labBimodal(p, k float64) func(*rand.Rand) float64 {
	fast := 1 / (1 - p + p*k)
	return func(r *rand.Rand) float64 {
		if r.Float64() < p {
			return fast * k
		}
		return fast
	}
}

func labLognormal(sigma float64) func(*rand.Rand) float64 {
	return func(r *rand.Rand) float64 { return math.Exp(sigma*r.NormFloat64() - sigma*sigma/2) }
}

// labProfiles are the seven kinds of service.
var labProfiles = []labService{
	{name: "cpu", capacity: 500, base: .002, demand: labJitter, build: func(l *labRun) []labStage {
		return []labStage{{labCores(l, 1), .002}}
	}},
	{name: "cpuio", capacity: 500, base: .007, demand: labJitter, build: func(l *labRun) []labStage {
		cpu := labCores(l, 1)
		return []labStage{{cpu, .001}, {labDelay{l}, .005}, {cpu, .001}}
	}},
	{name: "io", capacity: 1600, base: .010, demand: labJitter, build: func(l *labRun) []labStage {
		return []labStage{{&labStore{l: l, slots: 16}, .010}}
	}},
	{name: "mixed", capacity: 8 / .0118, base: .0118, demand: labBimodal(.05, 10), build: func(l *labRun) []labStage {
		return []labStage{{&labStore{l: l, slots: 8}, .0118}}
	}},
	{name: "contended", capacity: labUSLPeak(.010, .02, .002), base: .010, demand: labJitter, build: func(l *labRun) []labStage {
		return []labStage{{labUSL(l, .02, .002), .010}}
	}},
	{name: "wide", capacity: 3200, base: .050, demand: labJitter, build: func(l *labRun) []labStage {
		return []labStage{{&labStore{l: l, slots: 160}, .050}}
	}},
	{name: "narrow", capacity: 4 / .060, base: .060, demand: labJitter, build: func(l *labRun) []labStage {
		return []labStage{{&labStore{l: l, slots: 4}, .060}}
	}},
}

// labUSLPeak is the most that work of s seconds alone can reach by the universal scalability law.
func labUSLPeak(s, alpha, beta float64) float64 {
	best := 0.
	for n := 1.; n < 20000; n++ {
		best = max(best, n/(s*(1+alpha*(n-1)+beta*n*(n-1))))
	}
	return best
}

// labScore is what a span of a run was worth.
type labScore struct {
	good     float64 // of the ideal
	p99      float64 // of what was admitted, s
	rejected float64 // of arrivals
	worst    float64 // good in the worst second
}

// ideal is what could have been served in a second, of what arrived.
func (l *labRun) ideal(from, to, capacity float64) float64 {
	n := 0
	for i := int(from); i < int(to); i++ {
		n += l.seconds[i].arrived
	}
	return min(capacity, float64(n)/float64(int(to)-int(from)))
}

func (l *labRun) score(from, to float64, ideal float64) labScore {
	var good, arrived, rejected int
	var lat []float32
	worst := math.Inf(1)
	for i := int(from); i < int(to); i++ {
		s := &l.seconds[i]
		good += s.good
		arrived += s.arrived
		rejected += s.rejected
		lat = append(lat, s.latency...)
		worst = min(worst, float64(s.good)/ideal)
	}
	slices.Sort(lat)
	r := labScore{good: float64(good) / (ideal * float64(int(to)-int(from))), rejected: float64(rejected) / max(float64(arrived), 1), worst: worst}
	if len(lat) > 0 {
		r.p99 = float64(lat[len(lat)*99/100])
	}
	return r
}

// labNew prepares a run of a service at a multiple of its capacity.
func labNew(svc labService, load float64, seed uint64, secs float64, c *Concurrency) *labRun {
	if svc.deadline == 0 {
		svc.deadline = .25
	}
	return &labRun{
		svc: svc, c: c, end: secs,
		rand: rand.New(rand.NewPCG(seed, 1)),
		work: rand.New(rand.NewPCG(seed, 2)),
		rate: func(float64) float64 { return load * svc.capacity },
	}
}

package limiter

import (
	"math"
	"runtime"
	"sync/atomic"
	"time"
)

// adaptive is the part of a [Concurrency] whose limit is found by experiment: it feeds
// the controller with windows and sets limit and line by what it says. All but the
// atomics belong to the lock of the Concurrency.
type adaptive struct {
	next   atomic.Int64  // when the window is long enough, since base
	lacks  atomic.Int64  // from then on: how many have to end, of any outcome, until it is looked at again
	every  atomic.Int64  // of how many requests one yields before its work: a power of two, at most 64
	tick   atomic.Int64  // when the next period begins by which what is in flight is told apart, since base
	stale  atomic.Int64  // when it does if nothing has ended for long, at the next arrival, since base
	period atomic.Uint32 // the place of the present one
	known  atomic.Int64  // since when they are told apart
	brief  atomic.Bool   // work is over so soon that it is not worth a yield before it
	gate   atomic.Int64  // how many may be between permit and work; 0 is any number
	coming atomic.Int64  // how many are, while there is a gate

	yield bool
	least int
	most  int

	ctrl     ctrlState
	opened   time.Duration // when the window began
	last     concCount     // the counts when it did
	cells    []concTimes   // one for each of those of the Concurrency
	times    concSums      // over them when the window began
	window   ctrlTimes     // and since, when it is closed
	knocks   int64         // arrivals that found no free permit, in all
	gated    int64         // of these, those that found the gate shut and no more
	turns    int64         // arrivals sent away
	shedE    float64       // smoothed share of arrivals that is shed
	openE    float64       // smoothed share of arrivals that finds a free permit
	burst    ctrlWindow    // the last one in which somebody came
	barren   concCount     // the counts when something was last seen to have succeeded
	sterile  time.Duration // and when that was
	relieved int           // the limit before it was lowered since nothing succeeds; 0 is not
	drains   bool          // the next window opens once what is in flight has ended
	still    bool          // for the process stood still
	owed     float64       // how many were sent away since there was room to spare
	taut     float64       // for how long there was none, s
	bridged  float64       // how long the line has to be so that none of those who come in bursts is, s; 0 is as long as it is otherwise
	hasQueue bool
	gates    bool          // there may be a gate: it needs the yield, and a line to wait in
	lag      float64       // mean time that work waits for a processor before it begins lately, s
	sampled  concCount     // the counts when it was last decided of how many requests one yields
	decided  time.Duration // and when that was

	ages    []adaptAges               // one for each of the cells
	aged    ctrlAges                  // of the window that is closed
	failed  [timesCells]uint32        // in all when it began
	periods [adaptPeriods]adaptPeriod // the last ones, by their place
	ancient float64                   // how many were in flight when their period lost its place
	birth   float64                   // and when they were admitted in the mean, s
}

// concCount is a sum over the cells with the counts of the slow path.
type concCount struct {
	n, ended               int64
	squares, heavy, lost   uint64 // they may run over: what counts is the difference
	lag, lags              int64
	arrivals, knocks, turn int64
	gated                  int64
	idle                   time.Duration
}

// flight is how many are in flight.
func (t *concCount) flight(c *Concurrency) int64 {
	return t.arrivals - t.knocks + c.granted - t.ended - c.paused.Load()
}

// concTimes counts successes by their time in service, ns.
type concTimes [timesCells]struct{ n, sum atomic.Int64 }

// add counts one. What took no time by the clock, which may be coarse, is taken to have had the least that is told apart: work that
// has none has no multiple, and other kinds of work are measured in what the quick one takes.
func (t *concTimes) add(took int64) {
	if took == 0 {
		took = 1024
	}
	c := &t[timesCell(took)]
	c.n.Add(1)
	c.sum.Add(took)
}

// total returns how many there were.
func (t *concTimes) total() (n int64) {
	for i := range t {
		n += t[i].n.Load()
	}
	return n
}

// concSums is a sum over several of these.
type concSums [timesCells]struct{ n, sum int64 }

const adaptSmooth = 1 - 1./128

// Until it is known how long work takes, the line is bounded by places rather than time: where
// work is brief they are soon served, and where it is not there is a reason to wait.
const (
	adaptPatience = 5 * time.Second
	adaptUnknown  = 64
)

// adaptLongest is how long anybody waits at most: longer than nearly any client does. Work that was in flight for hours, such as a stream that was not
// released with Ignored, would have the line hold for hours until more is known.
const adaptLongest = time.Minute

// adaptUnit is that of sums of time in service, in seconds.
const adaptUnit = 1.024e-6

// adaptEbbs is the share of arrivals that found no permit at most where nobody came since a burst.
const adaptEbbs = .9

// There is room to spare if adaptSpare of a window is not made use of, and the base latency at least. The line may be
// adaptBridge times the base latency long to bridge it, or adaptBridged, in seconds, which anybody waits for. While there is
// no room it becomes shorter by adaptTaut of the time that goes by, and in each window in which it was long enough it keeps adaptKeeps.
const (
	adaptSpare   = .2
	adaptBridge  = 8
	adaptBridged = .25
	adaptTaut    = .25
	adaptKeeps   = .998
)

// A window closes before it is over if so many times as much has ended as it has to hold: work is much faster than
// it was. That is looked for after adaptGlance, in seconds, and twice that, and so on.
const (
	adaptFaster = 8
	adaptGlance = .05
)

// Nothing succeeds if so many, of those of which one usually does, come to nothing; the limit is lowered for that by a factor of adaptLower at
// least, but of adaptRelief at most in all.
const (
	adaptStarved = 10
	adaptLower   = 1.5
	adaptRelief  = 16
)

// adaptBrief is the work, in seconds, below which its mean makes a yield pointless: to refuse a
// request costs a server about as much as to serve it then, and a yield is a good part of it.
const adaptBrief = 50e-6

// Where the last window found nobody waiting for a processor, one request yields for each 8 ms of work,
// so that the run queue is hidden for no longer than it takes the scheduler to look at the sockets; of
// any work one of 64 does. A yield costs little where it hands a processor on, but on a server with an idle
// one it wakes that up, which takes the work over.
const (
	adaptBlind  = .008
	adaptSpared = 64
)

// The gate is there from the share of the time in service on that goes by before the work begins,
// and stays while at least that share of arrivals waits for it.
const (
	adaptLag   = .05
	adaptGated = .05
)

// The gate lets in one for each processor, since what one ends is followed at once by the next. Work that computes for longer than a turn of the scheduler's ends
// nothing in that time: who comes to the processor has waited for as many turns as there is such work, and one that is let in for each of them takes
// no more than a turn of it. adaptTurns bounds how many, where the processors are busy with something else.
const (
	adaptTurn  = .010 // s: when the runtime has a goroutine give way
	adaptTurns = 8
)

// adaptPlaces is how long a line has to be allowed to be for a gate in front of it: a shorter one would
// refuse a burst that the permits have room for.
const adaptPlaces = 12

// What comes by chance and takes as long as chance has it leaves a line with K places empty for a part of exp(-2 K shed/(1 +
// cv2 (1-shed))) of the time, cv2 being the square of the coefficient of variation of the time in service and shed the
// share of arrivals that is refused: the heavy-traffic approximation of a queue that is cut off at K. adaptRunDry is half
// the -ln of that part which is put up with, 2 %.
const adaptRunDry = 2

// adaptUnseen is the mean wait, in seconds, of what has arrived and nothing in the process knows of yet while no processor is idle:
// the scheduler looks at the sockets every 10 ms then.
const adaptUnseen = .005

// adaptNewest is the share of arrivals that is shed from which on the newest come first. Below it a line from whose end
// requests are dropped holds too few to last through a lull.
const adaptNewest = .3

// adaptCalm is how much more of the variance of the time in service the line makes up for while nobody is sent away.
const adaptCalm = 3

// adaptInTime is the part of what is served within the bound of a line that has a place in it: whoever has one is served before
// the bound is over.
const adaptInTime = .9

// adaptInside is the part of the time in service beyond the base latency that is taken for a wait.
const adaptInside = .7

// NewAdaptive returns a limiter that finds its limit by experiment. It needs no target latency, and no number at all.
//
// It remembers the throughput at each limit that has been in force. From that it works out by Bayes' rule which
// curves of throughput over requests in flight remain possible, and moves to the limit that promises the most
// throughput for the least latency. The more the times in service vary, the more it has to see before it moves;
// variation that comes only from quick requests mixed with slow ones does not count. While requests neither wait for
// a permit nor are refused, it does nothing.
//
// # What it limits
//
// It assumes that everything that asks it for a permit needs the same scarce resource. If some requests do not, such
// as pages served from memory beside a database that is full, more of those get through for a while after each rise
// of the limit. The experiment waits for that to pass if the times of the two kinds differ enough. If nearly all
// requests do without the resource, or next to nothing is shed, the limit may come to several times what it should
// be. With a limiter for each kind of work there is nothing to tell apart.
//
// If, in an overload, work that took many times as long as the rest stops coming, the limit is too high until the
// quicker half of the rest shows it by taking many times as long as before: mostly for some seconds. If the work
// varies much and shares processors, the limit may stay several times too high for minutes. Throughput is not lower
// for it, but what is admitted takes as many times longer.
//
// If processors are scarce, requests wait for them in the queue too, and not in the run queue of Go's scheduler,
// which has neither an order nor a bound: see [WithoutYield] for how, and for what it costs.
//
// # Its queue
//
// How long a request may wait follows from the experiment. While little is shed, it is about the time in service, or
// the time in which a dozen requests are served if that is longer. It is longer in proportion to the variance of the
// times in service: many times their mean if a few take very long. While more is shed, it is as long as needed for
// the service not to run dry by chance, and at least two fifths of the time in service. If few requests come, one
// permit counts as being at work all the time. Until something speaks against a higher limit the queue is several
// times as long, up to 5 s. No request ever waits for more than a minute. In overload the newest request is served
// first.
//
// # What it learns from
//
// The time in service is the time between Acquire and Release of work that ends with [Success]. It learns nothing
// from work that never ends: give the work a timeout. If work turns into something else, such as a connection that
// stays open, release its permit at that moment, also with Success: getting that far is the work that the limit is
// for.
//
// Nor does it learn anything from a time in which the process stood still, as when it is stopped by a signal or its
// machine is moved, if that lasts half a second or more and somebody was waiting in the queue.
//
// It takes about 50 KB, and up to 350 KB on a machine with many processors: make one for each service or route, not
// one for each client.
func NewAdaptive(opts ...ConcurrencyOption) *Concurrency {
	c := concNew(ctrlStart, concConfig{least: 1, most: 1_000_000}, opts)
	start := c.conf.start
	if start == 0 {
		start = ctrlStart
	}
	start = min(max(start, c.conf.least), c.conf.most)
	a := &adaptive{
		yield:    !c.conf.noYield && !c.conf.shadow,
		least:    c.conf.least,
		most:     c.conf.most,
		ctrl:     ctrlNew(start, c.conf.least, c.conf.most),
		openE:    1,
		hasQueue: !c.conf.queueSet || c.conf.places > 0,
	}
	a.cells, a.ages = make([]concTimes, len(c.cells)), make([]adaptAges, len(c.cells))
	a.gates = a.yield && (!c.conf.queueSet || c.conf.places >= adaptPlaces)
	a.every.Store(1)
	c.limit.Store(int64(start))
	c.adapt = a
	a.next.Store(int64(a.ctrl.needSecs * 1e9))
	a.stale.Store(int64(adaptStale * adaptShortest * 1e9))
	a.tune(c)
	return c
}

// shut says that as many are on their way from the permit to a processor as the gate lets
// through.
func (a *adaptive) shut() bool {
	g := a.gate.Load()
	return g > 0 && a.coming.Load() >= g
}

// comes counts a request that has a permit and is on its way to a processor.
func (a *adaptive) comes(s *concSlot) {
	if a.gate.Load() > 0 {
		a.coming.Add(1)
		s.coming = true
	}
}

// knocked counts an arrival that did not get a permit at once, or that would have had one but
// for the gate or the line in front of it.
func (a *adaptive) knocked(gated bool) {
	if gated {
		a.gated++
	}
	a.knocks++
	a.shedE *= adaptSmooth
	a.openE *= adaptSmooth
}

// turned counts one that was sent away.
func (a *adaptive) turned() {
	a.turns++
	a.shedE = min(a.shedE+1-adaptSmooth, 1)
}

func (a *adaptive) counts(c *Concurrency, now time.Duration) concCount {
	var t concCount
	var admitted int64
	for i := range c.cells {
		cell := &c.cells[i]
		n := a.cells[i].total()
		t.n += n
		t.ended += n + cell.done[Failure].Load() + cell.done[Ignored].Load()
		t.squares += cell.squares.Load()
		t.lag += cell.lag.Load()
		t.lags += cell.lags.Load()
		t.heavy += cell.heavy.Load()
		t.lost += cell.lost.Load()
		admitted += a.ages[i].admitted()
	}
	t.arrivals = admitted - c.granted + a.knocks
	t.knocks = a.knocks
	t.gated = a.gated
	t.turn = a.turns
	t.idle = time.Duration(c.idle.Load())
	if at := c.idleAt.Load(); at != 0 {
		t.idle += now - time.Duration(at)
	}
	return t
}

// spread sums the times in service up.
func (a *adaptive) spread() (t concSums) {
	for i := range a.cells {
		for j := range t {
			if c := &a.cells[i][j]; c.n.Load() > 0 {
				t[j].n += c.n.Load()
				t[j].sum += c.sum.Load()
			}
		}
	}
	return t
}

// since sets the times of the window that is closed.
func (a *adaptive) since(t *concSums) {
	for i := range t {
		w := &a.window[i]
		w.n = float64(t[i].n - a.times[i].n)
		w.sum = float64(t[i].sum-a.times[i].sum) / 1e9
	}
	a.times = *t
}

// close closes the window if it is full, and sets limit and line by what the controller
// makes of it. The lock is held.
func (a *adaptive) close(c *Concurrency, now time.Duration) (from, to int) {
	from = a.ctrl.limit
	if int64(now) < a.next.Load() {
		return from, from
	}
	t := a.counts(c, now)
	if a.drains {
		if a.drains = false; a.still {
			a.still = false
			a.barren, a.sterile = t, now
		}
		a.skip(now)
		a.begin(now, t)
		return from, from
	}
	secs := (now - a.opened).Seconds()
	if took := a.starves(&t, now); took > 0 && !c.conf.shadow {
		a.relieve(c, took, now, t)
		return from, a.ctrl.limit
	}
	n := float64(t.n - a.last.n)
	late := a.ctrl.mostSecs > 0 && secs >= a.ctrl.mostSecs && n > 0
	switch {
	case late:
	case secs < a.ctrl.needSecs:
		if n < adaptFaster*a.ctrl.needN {
			a.next.Store(int64(a.opened) + int64(min(2*secs, a.ctrl.needSecs)*1e9))
			a.lacks.Store(0)
			return from, from
		}
	case n < a.ctrl.needN:
		if n == 0 {
			a.spare(&t, now)
		}
		// Windows must close at exactly the completion that fills them: where work takes
		// the same time each, completions come in bursts, and one more or less is a round.
		lacks := math.Ceil(a.ctrl.needN - n)
		if a.ctrl.mostSecs > 0 {
			lacks = min(lacks, max(1, lacks/4))
		}
		a.lacks.Store(int64(lacks))
		a.order(c) // it may be the line that keeps the window from being filled: all who are served come too late
		return from, from
	}
	a.lacks.Store(0)
	times := a.spread()
	a.since(&times)
	n, sum := a.window.total()
	if n == 0 {
		return from, from // counted, and its time not yet
	}
	arrivals := float64(t.arrivals - a.last.arrivals)
	knocks := float64(t.knocks - a.last.knocks)
	a.pass(arrivals - knocks)
	w := ctrlWindow{
		secs:     secs,
		n:        n,
		sum:      sum,
		heavy:    float64(t.heavy-a.last.heavy) * adaptUnit,
		lost:     float64(t.lost-a.last.lost) * adaptUnit,
		times:    &a.window,
		squares:  float64(t.squares-a.last.squares) * (adaptUnit * adaptUnit),
		arrivals: arrivals,
		blocked:  knocks,
		gated:    float64(t.gated - a.last.gated),
		shed:     float64(t.turn - a.last.turn),
		open:     a.openE,
	}
	// The work that was done took some of the time, whatever the order in which it was seen to begin and end.
	w.idle = max(min((t.idle-a.last.idle).Seconds(), secs-w.flight()/float64(from)), 0)
	a.relieved = 0
	a.unbunch(&w, c.line.n > 0)
	a.crowd(t, &w)
	a.bridge(&w, float64(from), c.bound.Seconds())
	if c.conf.shadow {
		a.watch(w)
	} else {
		a.look(now)
		w.ages = &a.aged
		a.ctrl = a.ctrl.step(w)
	}
	a.move(c)
	a.begin(now, t)
	return from, a.ctrl.limit
}

// unbunch makes up for what comes in bursts, where nobody comes in a window since all came before: what they met who came at once
// stands for the whole of their work.
func (a *adaptive) unbunch(w *ctrlWindow, waits bool) {
	b := &a.burst
	if w.arrivals > 0 || b.arrivals == 0 {
		*b = *w
		return
	}
	w.arrivals, w.blocked, w.gated = b.arrivals, b.blocked, b.gated
	if w.shed += w.n * b.shed / b.n; !waits {
		w.blocked = min(w.blocked, adaptEbbs*w.arrivals) // the limit is no longer full
	}
}

// bridge learns how long the line has to be where what comes in bursts is sent away, and soon after there is room to spare: so long
// that there would be none. What is sent away over a longer time would not be served by any line.
func (a *adaptive) bridge(w *ctrlWindow, limit, bound float64) {
	base := a.ctrl.base
	if base <= 0 {
		return
	}
	a.owed += w.shed
	spare := w.idle
	if a.gate.Load() == 0 { // behind one, permits are free since processors are not
		spare = max(spare, w.secs-w.flight()/limit)
	}
	if spare < max(adaptSpare*w.secs, base) {
		a.taut += w.secs
		if w.shed > 0 {
			a.bridged = max(a.bridged-adaptTaut*w.secs, 0)
		}
		return
	}
	switch most := min(max(adaptBridge*base, adaptBridged), adaptPatience.Seconds()); {
	case a.owed == 0:
		a.bridged *= adaptKeeps
	case a.taut < most:
		a.bridged = max(a.bridged, min(bound+min(a.owed/w.counted(), spare), most))
	}
	a.owed, a.taut = 0, 0
}

// begin opens a window.
func (a *adaptive) begin(now time.Duration, t concCount) {
	a.opened, a.last = now, t
	a.decided, a.sampled = now, t
	a.turn(now)
	// It may be that work is over much sooner than it was.
	a.next.Store(int64(now) + int64(min(a.ctrl.needSecs, adaptGlance)*1e9))
}

// move sets limit and line by the state of the controller.
func (a *adaptive) move(c *Concurrency) {
	c.limit.Store(int64(a.ctrl.limit))
	a.tune(c)
}

// starves reports that nothing succeeds of what is let in, though it is given the time that it took when it did: it
// comes too late, or more is in flight than can be served in time. No success need ever close a window then. It returns the mean
// time that it takes; 0 is no.
func (a *adaptive) starves(t *concCount, now time.Duration) (took float64) {
	if t.n != a.barren.n {
		a.barren, a.sterile = *t, now
	}
	s := &a.ctrl
	lost := float64(t.ended - a.barren.ended)
	usual := 1 / (1 - s.ref.lost())                      // it may be that much of it always came to nothing
	weight := min(max(s.ref.worth, 1), float64(s.limit)) // heavier work counts as the limit
	round := s.limit
	if s.phase == ctrlSettle {
		round = max(round, s.from) // what was let in before
	}
	if lost < adaptStarved*usual || lost*weight < float64(round) {
		return 0
	}
	if a.relieved > 0 && t.n > a.last.n {
		return 0 // something succeeds since
	}
	busy := float64(t.lost-a.barren.lost) * adaptUnit
	took = busy / lost / weight
	if took < .5*s.base || 2*busy < (now-a.sterile).Seconds()*float64(s.limit) {
		a.barren, a.sterile = *t, now // refused elsewhere, or few; and what comes after is looked at by itself
		return 0
	}
	return took
}

// relieve shortens the line and has the newest come first; and unless that may be enough it lowers the limit, to where as much
// would end in the time that it used to take or further, by a factor of adaptRelief at most in all until something succeeds.
func (a *adaptive) relieve(c *Concurrency, took float64, now time.Duration, t concCount) {
	s := &a.ctrl
	a.shedE, s.fresh = 1, false
	a.lacks.Store(0)
	a.barren, a.sterile = t, now
	part := 1.
	switch {
	case s.base <= 0: // nothing has ever succeeded: it may be anything
	case a.relieved > 0:
		part = min(1/adaptLower, s.base/took)
	default:
		a.relieved = s.limit
		part = min(1, s.base/took)
	}
	if to := max(int(float64(s.limit)*part), a.relieved/adaptRelief, s.least); to < s.limit {
		s.starved(float64(t.n-a.last.n) / (now - a.opened).Seconds())
		s.try(to)
		// What ends first was let in by the limit before.
		a.drains = true
		a.lacks.Store(max(t.flight(c), 1))
	} else {
		a.skip(now)
		a.begin(now, t)
	}
	a.move(c)
}

// stoodStill has nothing be learned from the window in which the process stood still, nor from what was in flight: that it took as long says nothing of
// the service.
func (a *adaptive) stoodStill(c *Concurrency) {
	t := a.counts(c, c.stillAt+c.stillFor)
	a.drains, a.still = true, true
	a.lacks.Store(max(t.flight(c), 1))
}

// crowd adds to a window how long its work waited for a processor before it began, and sets the
// gate by that. While work waits for a processor, no more of it than there are processors, or turns of work that is
// longer than one, is let come that has not begun: what one ends is followed at once by the next, and the rest waits
// in the line, which has an order and a bound, and not in the run queue, which has none.
func (a *adaptive) crowd(t concCount, w *ctrlWindow) {
	if lags := t.lags - a.last.lags; lags > 0 {
		lag := float64(t.lag-a.last.lag) / float64(lags) / 1e9
		w.lag = lag * w.n
		a.lag += .3 * (lag - a.lag)
	} else {
		w.lag = a.lag * w.n
	}
	work := w.sum/w.n - min(w.lag, w.sum)/w.n
	brief := work < adaptBrief/2 || a.brief.Load() && work < adaptBrief
	a.brief.Store(brief)
	every := int64(adaptSpared)
	if !brief {
		every = adaptYields(w.lag/w.n, work)
	}
	a.ctrl.least = a.least
	gate := int64(0)
	// Behind the gate the run queue is short; then it is the gate that has work to do or not.
	if a.lag > max(adaptLag*w.sum/w.n, adaptBrief) || a.gate.Load() > 0 && w.gated > adaptGated*w.arrivals {
		procs := runtime.GOMAXPROCS(0)
		a.ctrl.least = max(a.least, min(2*procs, a.most))
		if a.gates && !brief {
			gate = int64(procs) * int64(min(max(math.Ceil(a.lag/adaptTurn), 1), adaptTurns))
		}
	}
	if gate > 0 {
		every = 1
	}
	a.gate.Store(gate)
	a.every.Store(every)
}

// adaptYields returns of how many requests one yields, where work takes so long and waited so long for a processor before, s.
func adaptYields(lag, work float64) int64 {
	every := int64(1)
	for lag < adaptBrief && every < adaptSpared && 2*float64(every)*work <= adaptBlind {
		every *= 2
	}
	return every
}

// spare is what crowd does about yields where nothing succeeds and no window is closed, as where all that comes goes on to a pool: no
// work can have taken longer than the processors had time for.
func (a *adaptive) spare(t *concCount, now time.Duration) {
	ended, lags := t.ended-a.sampled.ended, t.lags-a.sampled.lags
	if ended < adaptSpared || lags <= 0 || a.gate.Load() > 0 || a.brief.Load() { // few yield already where work is brief
		return
	}
	work := (now - a.decided).Seconds() * float64(runtime.GOMAXPROCS(0)) / float64(ended)
	a.every.Store(adaptYields(float64(t.lag-a.sampled.lag)/float64(lags)/1e9, work))
	a.sampled, a.decided = *t, now
}

// saw has every request yield again once a sample of them has found others waiting.
func (a *adaptive) saw(lag time.Duration) {
	if lag.Seconds() > adaptBrief && !a.brief.Load() {
		a.every.Store(1)
	}
}

// watch stands in for the controller where nothing is refused, so that there is nothing to
// try: the limit follows what is in flight as long as the time in service does not double.
func (a *adaptive) watch(w ctrlWindow) {
	if w.sum <= 0 {
		return // the clock is too coarse for work so brief
	}
	s := &a.ctrl
	m := w.mean(s.limit)
	if s.base == 0 || m.r < s.base {
		s.base = m.r
	} else if m.blocked == 0 {
		s.base += .05 * (m.r - s.base)
	}
	s.ref = m
	if m.blocked > 0 && m.r < 2*s.base {
		s.limit = min(a.most, max(s.limit+1, int(math.Ceil(1.2*m.counted*m.r))))
	}
}

// pass smooths over n arrivals that found a free permit.
func (a *adaptive) pass(n float64) {
	if n <= 0 {
		return
	}
	k := math.Pow(adaptSmooth, n)
	a.shedE *= k
	a.openE = 1 - (1-a.openE)*k
}

// order has the newest come first, or the oldest, by how many are sent away.
func (a *adaptive) order(c *Concurrency) { c.line.lifo = a.shedE > adaptNewest }

// tune sets the line by the state of the controller.
func (a *adaptive) tune(c *Concurrency) {
	if !a.hasQueue {
		c.places = 0
		return
	}
	a.order(c)
	x, b, gated := a.ctrl.ref.x*a.ctrl.ref.busy, a.ctrl.base, a.gate.Load() > 0
	if x <= 0 || b <= 0 {
		c.bound = 100 * time.Millisecond
		if a.ctrl.fresh {
			c.bound = adaptPatience
		}
		c.places = adaptUnknown
	} else {
		x = max(x, 1/b) // one at a time does as much: if less is done, less comes
		tight := max(.4*b, 5/x)
		// Chance needs room for so many to wait; those that wait inside the limit are of them.
		inside := max(0, a.ctrl.ref.r-a.ctrl.ref.y-b)
		v := a.ctrl.cv2
		if a.ctrl.ncv >= ctrlYoung { // and is no guess
			// While hardly anybody is sent away the line can afford to be as long as it takes for work that varies.
			v *= 1 + adaptCalm*max(0, 1-a.shedE/ctrlShed)
		}
		wide := max(b*(1+v), (11+6*v)/x-adaptInside*inside)
		// What arrives comes by the batch while no processor is idle, and a batch is no overload.
		wide += min(2*a.ctrl.ref.y, 2*adaptUnseen)
		varies, seen := a.ctrl.cv2, 0.
		if gated {
			// There it is the wait for a processor that varies, more than the work; and the sockets are a line, too.
			varies, seen = 0, adaptUnseen
		}
		dry := adaptRunDry*(1+varies*(1-a.shedE))/(a.shedE*x) - seen
		bound := min(max(tight, min(dry, wide), a.bridged), adaptLongest.Seconds())
		c.places = 3 + int(1.5*x*bound)
		if a.ctrl.fresh && !gated && a.shedE < .15 {
			// Nothing speaks against a higher limit yet, and it is on its way. What waits for a
			// processor is another matter: a higher limit does not help it.
			more := 1 + 2.5*min((.15-a.shedE)/.1, 1)
			bound = max(bound, min(more*bound, adaptPatience.Seconds()))
			c.places = max(3+int(1.5*x*bound), int(adaptUnknown*(more-1)))
		}
		c.bound = time.Duration(bound * 1e9)
		if gated && !c.line.lifo {
			// First in, first out at the pace of the processors: whoever would still be waiting when the
			// bound is over can as well be told at once.
			c.places = 2 + int(adaptInTime*x*bound)
		}
	}
	if c.conf.queueSet {
		c.bound = min(c.bound, c.conf.maxWait)
		c.places = min(c.places, c.conf.places)
	}
}

// restart goes on from a limit that was set from outside.
func (a *adaptive) restart(c *Concurrency, limit int, now time.Duration) {
	base := a.ctrl.base
	a.ctrl = ctrlNew(limit, a.least, a.most)
	a.ctrl.base = base
	a.drains, a.still, a.relieved = false, false, 0
	a.skip(now)
	a.lacks.Store(0)
	a.begin(now, a.counts(c, now))
}

func (a *adaptive) stats(s *ConcurrencyStats) {
	s.Adaptive = true
	s.Phase = a.ctrl.phase.String()
	s.Gate = int(a.gate.Load())
	s.BaseLatency = time.Duration(a.ctrl.base * 1e9)
	s.Latency = time.Duration(a.ctrl.ref.r * 1e9)
	s.Throughput = a.ctrl.ref.x
	s.Elasticity = a.ctrl.elasticity
	s.ShedFraction = a.shedE
}

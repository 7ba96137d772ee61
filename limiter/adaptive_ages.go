package limiter

import (
	"sync/atomic"
	"time"
)

// What is in flight is told apart by the period in which it was admitted, of the last adaptPeriods. Each is as long as adaptPart of
// the mean time in service, and adaptShortest at least, in seconds.
const (
	adaptPeriods  = 256
	adaptPart     = .25
	adaptShortest = 500e-6
)

// adaptStale is after how many times that something that comes begins a period itself. Otherwise what ends does: it reads the clock anyway. What
// comes after an hour in which nothing ended would be of a period of an hour, and might be as old. Much sooner, and the periods would not last for
// as long as work takes that varies much.
const adaptStale = 64

// adaptSpread is into how many parts a period is divided that is longer than that part of the age of what was admitted in it.
const adaptSpread = 8

// adaptAges counts some of the permits, on cache lines of its own.
type adaptAges struct {
	came   [adaptPeriods]atomic.Int64  // all that were admitted, by the place of the period in which they were
	went   [adaptPeriods]atomic.Uint32 // and that ended as long as it had the place; it may run over
	old    atomic.Int64                // that ended when it had lost it to another
	failed [timesCells]atomic.Uint32   // that ended otherwise than with success, by how long they took; it may run over
	_      [56]byte
}

// adaptPeriod is a period in which something was admitted.
type adaptPeriod struct {
	from   time.Duration // when it began
	others int32         // alive in its place that are of other periods
}

// admits counts what is admitted.
func (a *adaptive) admits(index int, s *concSlot) {
	s.born = uint8(a.period.Load())
	s.nth = uint8(a.ages[index].came[s.born].Add(1)) + s.born
}

// admitted returns how many were admitted in all.
func (g *adaptAges) admitted() (n int64) {
	for i := range g.came {
		n += g.came[i].Load()
	}
	return n
}

// ends counts what ends, and was admitted in the period that had the place born, at start.
func (a *adaptive) ends(index int, born uint8, start time.Duration) {
	g := &a.ages[index]
	if int64(start) >= a.known.Load() {
		g.went[born].Add(1)
	} else {
		g.old.Add(1)
	}
}

// resumes counts what has stood back, and so ended, as in flight again since its new start: it was admitted once.
func (a *adaptive) resumes(index int, s *concSlot) {
	s.born = uint8(a.period.Load())
	a.ages[index].went[s.born].Add(^uint32(0))
}

// turn begins a period.
func (a *adaptive) turn(now time.Duration) {
	i := uint8(a.period.Load()) + 1
	p := &a.periods[i]
	alive := a.alive(i)
	n := float64(alive - p.others)
	if n > 0 {
		a.birth += n / (n + a.old()) * (p.from.Seconds() - a.birth)
	}
	// Less than none are those of the period before in this place that ended as if they were of this one: they came, or went, while
	// somebody who had read the clock already was on the way to the turn at which they were counted among the ancient.
	a.ancient += n
	*p = adaptPeriod{now, alive}
	a.known.Store(int64(a.periods[i+1].from))
	a.period.Store(uint32(i))
	long := int64(1e9 * max(adaptShortest, adaptPart*a.ctrl.r))
	a.tick.Store(int64(now) + long)
	a.stale.Store(int64(now) + adaptStale*long)
}

// rouse begins a period if nothing has for long, and the window anew if nothing has come or ended in it: what comes first after hours would have
// taken all that time. The lock is not held.
func (a *adaptive) rouse(c *Concurrency, now time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if int64(now) < a.stale.Load() {
		return
	}
	// Else a period has begun since the window did, for what has come or ended: no need to count.
	if a.periods[a.period.Load()].from == a.opened {
		if t := a.counts(c, now); t.arrivals == a.last.arrivals && t.ended == a.last.ended {
			a.begin(now, t)
			return
		}
	}
	a.turn(now)
}

// alive returns how many in the place of a period are.
func (a *adaptive) alive(i uint8) (n int32) {
	for j := range a.ages {
		g := &a.ages[j]
		n += int32(uint32(g.came[i].Load()) - g.went[i].Load())
	}
	return n
}

// old returns how many are in flight whose periods have lost their place.
func (a *adaptive) old() float64 {
	n := a.ancient
	for i := range a.ages {
		n -= float64(a.ages[i].old.Load())
	}
	return max(n, 0)
}

// look sets what is known of the ages at the end of a window.
func (a *adaptive) look(now time.Duration) {
	g := &a.aged
	*g = ctrlAges{}
	for c := range g.failed {
		var n uint32
		for j := range a.ages {
			n += a.ages[j].failed[c].Load()
		}
		g.failed[c] = float64(n - a.failed[c])
		a.failed[c] = n
	}
	to := now
	for k, i := 0, uint8(a.period.Load()); k < adaptPeriods; k, i = k+1, i-1 {
		p := &a.periods[i]
		if n := float64(a.alive(i) - p.others); n > 0 {
			g.enter(n, (now - to).Seconds(), (now - p.from).Seconds())
		}
		to = p.from
	}
	if old := a.old(); old > 0 {
		g.enter(old, now.Seconds()-a.birth, now.Seconds()-a.birth)
	}
}

// enter adds n that are in flight, of any age between two, s.
func (g *ctrlAges) enter(n, young, old float64) {
	parts := 1
	if (old-young)*adaptSpread > young {
		parts = adaptSpread
	}
	for i := range parts {
		age := young + (old-young)*(float64(i)+.5)/float64(parts)
		g.flying[timesCell(int64(max(age, 0)*1e9))] += n / float64(parts)
	}
}

// skip begins to count anew, where nothing is made of a window.
func (a *adaptive) skip(now time.Duration) {
	a.times = a.spread()
	a.look(now)
	a.ctrl.life.flying = a.aged.flying
}

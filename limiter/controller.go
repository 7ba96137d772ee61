package limiter

import "math"

// ctrlPhase is what the controller is doing.
type ctrlPhase uint8

const (
	ctrlHold    ctrlPhase = iota // the limit stands; the reference is being measured
	ctrlSettle                   // another limit is being tried; not measured yet
	ctrlMeasure                  // it is being measured
	ctrlReturn                   // it was refused; the effects of it are to fade
)

func (p ctrlPhase) String() string {
	return [...]string{"hold", "settle", "measure", "return"}[p]
}

// ctrlWindow is what was seen in one window of time.
type ctrlWindow struct {
	secs     float64
	n        float64 // successes
	ended    float64 // whatever the outcome
	extra    float64 // their weight beyond 1
	sum      float64 // their time in service, s
	squares  float64 // its square, s²
	lag      float64 // the part of sum in which the work waited for a processor to begin, s
	arrivals float64
	blocked  float64 // arrivals that found no free permit
	gated    float64 // of these, those that waited for a processor and not for the limit
	shed     float64 // arrivals that were sent away, sooner or later
	open     float64 // smoothed share of arrivals that found a free permit
}

func (w *ctrlWindow) add(v ctrlWindow) {
	w.secs += v.secs
	w.n += v.n
	w.ended += v.ended
	w.extra += v.extra
	w.sum += v.sum
	w.squares += v.squares
	w.lag += v.lag
	w.arrivals += v.arrivals
	w.blocked += v.blocked
	w.gated += v.gated
	w.shed += v.shed
	w.open = v.open
}

// ctrlMean is what a number of windows say: rates and shares.
type ctrlMean struct {
	n        float64 // behind it
	x        float64 // throughput, 1/s, by both of the next
	counted  float64
	inferred float64 // 0 unless the limit was full
	rounds   float64 // of work in flight
	r        float64 // mean time in service, s
	y        float64 // the part of r before the work began: the wait for a processor, s
	shed     float64 // share of those who came that was sent away
	blocked  float64 // share of arrivals that found no free permit
	gated    float64 // share of arrivals that waited for a processor and not for the limit
	ratio    float64 // completions for each arrival
	load     float64 // arrivals, 1/s
}

// mean sums a window up that was seen at a limit.
func (w *ctrlWindow) mean(limit int) ctrlMean {
	m := ctrlMean{n: w.n, counted: w.n / w.secs, r: w.sum / w.n, shed: w.shed / (w.n + w.shed)}
	m.y = min(max(w.lag/w.n, 0), m.r)
	m.rounds = w.secs / m.r
	if w.arrivals > 0 {
		m.blocked = w.blocked / w.arrivals
		m.gated = w.gated / w.arrivals
		m.ratio = w.n / w.arrivals
		m.load = w.arrivals / w.secs
	}
	if m.blocked-m.gated >= .95 {
		m.inferred = float64(limit) * w.n / (max(w.ended, w.n) + w.extra) / m.r
	}
	m.weigh()
	return m
}

// crowd is the share of the time in service that went by before the work began. Permits
// of work that cannot begin are of no use: they are a queue in front of the processors.
func (m *ctrlMean) crowd() float64 { return m.y / max(m.r, 1e-9) }

// work is the time in service without the wait for a processor in front of it.
func (m *ctrlMean) work() float64 { return max(m.r-m.y, .01*m.r) }

// held is how long work took at a limit that was full, by what it held up: the first to
// end are the short ones.
func (m *ctrlMean) held(limit int) float64 {
	if m.inferred > 0 {
		return max(m.r, float64(limit)/m.counted)
	}
	return m.r
}

// weigh makes up its mind about the throughput. A count over a few rounds is off by the part of
// a round that a window cuts, where work that began together ends together. While the
// limit is full, Little's law gives it from the time in service, which is slower to
// follow a change: the more rounds, the more the count is worth.
func (m *ctrlMean) weigh() {
	m.x = m.counted
	if m.inferred > 0 {
		k := m.rounds * m.rounds / (m.rounds*m.rounds + 4)
		m.x = math.Exp(k*math.Log(m.counted) + (1-k)*math.Log(m.inferred))
	}
}

// blend moves m towards v by a share of a.
func (m *ctrlMean) blend(v ctrlMean, a float64) {
	m.counted += a * (v.counted - m.counted)
	if m.inferred > 0 && v.inferred > 0 {
		m.inferred += a * (v.inferred - m.inferred)
	} else {
		m.inferred = 0
	}
	m.rounds = (1-a)*m.rounds + v.rounds
	m.r += a * (v.r - m.r)
	m.y += a * (v.y - m.y)
	m.shed += a * (v.shed - m.shed)
	m.blocked += a * (v.blocked - m.blocked)
	m.gated += a * (v.gated - m.gated)
	m.ratio += a * (v.ratio - m.ratio)
	m.load += a * (v.load - m.load)
	m.weigh()
}

const (
	ctrlUp    = 1.5  // a step up
	ctrlFast  = 2.0  // a step up while every one of them wins
	ctrlLeap  = 4.0  // a step up after a change that looks like a slow dependency
	ctrlSE    = 0.2  // standard error of an elasticity that is good enough
	ctrlShed  = 0.08 // share shed from which a lower limit is looked for
	ctrlHigh  = 2.5  // multiple of the base latency that has to be explained
	ctrlFree  = 1.15 // multiple of the base latency up to which more in flight is free
	ctrlFull  = 0.25 // crowd from which more in flight can only wait for a processor
	ctrlCrowd = 0.33 // crowd from which the limit is tried that would be without it
	ctrlSpare = 1.2  // and how much more than that
	ctrlPrice = .015 // share of the throughput that trials may cost
	ctrlStart = 8
)

// ctrlTried is what is known about a limit beside the one that stands.
type ctrlTried struct {
	limit int
	seen  ctrlWindow
}

// ctrlState is the controller: a limit and an experiment about it. It is a value and
// step is a pure function of it and a window, without a clock.
//
// The limit is found by trial. While requests are shed, a limit beside the present one is
// in force for as long as the variance of the times in service demands, and what throughput
// makes of it is the elasticity e = ln(X'/X) / ln(L'/L): at 1 the limit is the bottleneck, at 0
// what it lets in besides is a queue, below 0 it is contention. That tells a slow dependency from
// a queue of our own, which no latency can, and needs no base latency to be right: that
// is only a prior, which says how much proof a higher limit needs and sizes the line.
//
//	hold -> settle -> measure -> hold, or return -> hold
//
// Where work waits for a processor before it begins, that wait is measured (ctrlMean.y),
// and says at once what trials would take long to: how many permits are of no use. It chooses
// the trial, and throughput decides about it as about any other.
//
// While every trial up wins (ramp), growth doubles and goes on until something speaks
// against it; afterwards steps are as small as the variance allows. Two windows unlike the
// reference begin everything anew.
type ctrlState struct {
	limit, least, most int
	phase              ctrlPhase

	anchor   ctrlMean // the last limit that is proven, while growth goes on without proof
	anchored int      // that limit

	from    int        // the limit that a trial began at
	ref     ctrlMean   // A: measured at limit
	trial   ctrlWindow // measured at the limit on trial
	settled ctrlWindow // seen before the trial had settled
	rounds  int        // of settling

	base  float64 // B: time in service without a queue of our own; 0 is not known yet
	cv2   float64 // square of the coefficient of variation of the time in service
	ncv   float64
	disp  float64 // what the throughput of saturated windows varied by: their size times the squared log
	ndisp float64
	grow  float64 // Q: the next step up
	first bool    // no trial has been made yet
	ramp  bool    // since the start, or since the world changed, every trial up has won

	pauseUp, pauseDown float64 // completions until the next trial in this direction
	lastUp, lastDown   float64 // the last pause
	crowded            bool    // the trial is one to a limit without the crowd
	pauseCrowd         float64 // completions until the next such trial
	doubt              float64 // completions for which the crowd is not believed: throughput followed a limit down
	up, down           ctrlTried
	fresh              bool       // since the start no trial up was refused
	known              bool       // throughput has followed the limit where base was measured
	stood              float64    // completions at limit since it was accepted
	here               float64    // completions measured in this visit
	spent              float64    // completions that the trial would have seen without it
	old                ctrlMean   // the reference when it was put in doubt
	shocks             int        // how often since a trial was accepted
	odd                int        // windows in a row unlike the reference
	oddly              ctrlWindow // these windows
	elasticity         float64    // of the last trial

	x, r float64 // of the last window

	// What the window that is open has to hold, and when it is closed without so many
	// successes; 0 is never.
	needN, needSecs, mostSecs float64
}

func ctrlNew(start, least, most int) ctrlState {
	return ctrlState{limit: start, least: least, most: most, from: start, grow: ctrlFast, first: true, ramp: true, fresh: true,
		needN: 8, needSecs: 0.002}
}

// step returns the state after a window that holds at least needN successes over at
// least needSecs seconds.
func (s ctrlState) step(w ctrlWindow) ctrlState {
	if !(w.n >= 1 && w.secs > 0 && w.sum > 0) {
		return s
	}
	m := w.mean(s.limit)
	cv2 := max(w.squares/w.n/(m.r*m.r)-1, 0)
	if w.n > 1 {
		cv2 *= w.n / (w.n - 1)
	}
	// Until enough has been seen, half is believed of a variance of 1: what ends first
	// is what is short, and alike.
	if s.ncv == 0 {
		s.cv2, s.ncv = 1, 4
	}
	s.ncv = min(s.ncv+w.n, 400)
	s.cv2 += min(w.n/s.ncv, 1) * (cv2 - s.cv2)
	if s.phase != ctrlHold && s.changed(w, m, true) {
		s.limit = s.from
		s.restart()
		return s
	}
	s.x, s.r = m.x, m.r
	s.mostSecs = 0
	s.spent += s.ref.x * w.secs
	switch s.phase {
	case ctrlHold:
		s.hold(w, m)
	case ctrlSettle:
		s.settle(w, m)
	case ctrlMeasure:
		s.measure(w)
	case ctrlReturn:
		s.rounds++
		s.mostSecs = 2 * max(s.r, s.ref.r)
		if float64(s.rounds) >= s.mixing() {
			s.toHold()
		}
	}
	return s
}

// unlike reports that a window differs from the reference beyond chance: in what arrives
// and, unless another limit is on trial, in throughput or time in service.
func (s *ctrlState) unlike(m ctrlMean, open float64, trial bool) bool {
	a := &s.ref
	if a.load > 0 && m.load > 0 && math.Abs(math.Log(m.load/a.load)) > max(.35, 3*math.Sqrt(1/m.n+1/a.n)) {
		// More than before cannot be told from before where the limit was full.
		if !trial || a.blocked < .95 || m.load < a.load {
			return true
		}
	}
	far := max(.35, 3*math.Sqrt((s.cv2+open)/m.n))
	return !trial && (math.Abs(math.Log(m.x/a.x)) > far || math.Abs(math.Log(m.r/a.r)) > far)
}

// changed reports that two windows in a row, or as many as the variance demands, were
// unlike the reference, each of them and together. They are in s.oddly then.
func (s *ctrlState) changed(w ctrlWindow, m ctrlMean, trial bool) bool {
	if s.ref.n == 0 || w.shed == 0 || !s.unlike(m, w.open, trial) {
		s.odd, s.oddly = 0, ctrlWindow{}
		return false
	}
	s.odd++
	s.oddly.add(w)
	if s.odd < 2 {
		return false
	}
	all := s.oddly.mean(s.limit)
	far := math.Abs(math.Log(all.load / s.ref.load))
	if !trial {
		far = max(far, math.Abs(math.Log(all.x/s.ref.x)), math.Abs(math.Log(all.r/s.ref.r)))
	}
	// Five standard errors: windows follow each other while the mixture in flight still
	// comes to rest, and are not independent.
	return s.odd >= 6 || all.n*far*far >= 25*(s.cv2+w.open+.1) && s.unlike(all, w.open, trial)
}

// restart forgets everything but the limit and the base latency.
func (s *ctrlState) restart() {
	s.forget()
	s.pauseUp, s.pauseDown, s.lastUp, s.lastDown, s.pauseCrowd, s.doubt = 0, 0, 0, 0, 0, 0
	s.ref, s.anchor = ctrlMean{}, ctrlMean{}
	s.from = s.limit
	s.ramp, s.grow = true, ctrlFast
	s.toHold()
}

// leap makes the first step up after a restart as large as it has to be if what changed is
// that a dependency has become slower: throughput comes back then, and if not, it is told by
// one trial.
func (s *ctrlState) leap(was ctrlMean) {
	f := s.ref.r / was.r
	if f > 2.5 && was.x/s.ref.x > f/1.3 && was.blocked >= .95 && s.ref.blocked >= .95 {
		// The work itself takes longer: a queue of our own does not grow while the limit stands.
		s.base *= f
	}
	if f > ctrlFast && was.x/s.ref.x > f/2 {
		s.grow = min(f, ctrlLeap)
	}
}

// stay takes a limit on trial for the one to go on from, with m measured there: the world changed
// meanwhile, most likely a dependency became slower, and the way back would be as long as any.
func (s *ctrlState) stay(m ctrlMean) {
	was := s.ref
	was.x *= float64(s.limit) / float64(s.from)
	s.restart()
	s.ref = m
	s.leap(was)
	s.needN = max(8, min(float64(s.limit), m.x*m.r))
	s.needSecs = max(.005, m.r)
}

// hold measures the reference and decides whether to try another limit.
func (s *ctrlState) hold(w ctrlWindow, m ctrlMean) {
	a := &s.ref
	if a.n > 0 {
		if s.changed(w, m, false) {
			was, now := *a, s.oddly.mean(s.limit)
			s.restart()
			*a = now
			s.leap(was)
			s.consider(w.shed, w.open)
			return
		}
		if s.odd > 0 {
			return // wait for the next one before anything is made of it
		}
		if (w.shed > 0 || s.fresh) && m.blocked > .95 && (a.blocked < .5 || s.ramp && a.blocked < .9) {
			*a, s.anchor = ctrlMean{}, ctrlMean{}
		}
	}
	if a.n == 0 {
		*a = m
		if o := s.old; o.n > 0 {
			s.old = ctrlMean{}
			if s.shocks < 2 && math.Log(o.x/m.x) > .7 && math.Log(m.r/o.r) > .7 {
				s.restart()
				*a = m
				s.leap(o)
			}
		}
	} else {
		if m.blocked >= .95 && a.blocked >= .95 {
			l := math.Log(m.x / a.x)
			s.ndisp = min(s.ndisp+1, 16)
			s.disp += (min(l*l/(1/w.n+1/a.n), 8) - s.disp) / s.ndisp
		}
		k := max(.1, w.n/(w.n+a.n))
		a.blend(m, k)
		a.n = 1 / ((1-k)*(1-k)/a.n + k*k/w.n)
	}
	s.stood += w.n
	s.pauseUp = max(s.pauseUp-w.n, 0)
	s.pauseDown = max(s.pauseDown-w.n, 0)
	s.pauseCrowd = max(s.pauseCrowd-w.n, 0)
	s.doubt = max(s.doubt-w.n, 0)

	safe := a.work() * (1 + math.Sqrt(s.cv2/a.n))
	switch {
	case s.base == 0:
		if a.n >= 100 {
			s.base = a.work()
		}
	case safe < s.base:
		s.base += .5 * (safe - s.base)
	}
	if s.base > 0 && w.shed == 0 && m.blocked < .1 {
		s.base += .05 * (m.work() - s.base)
		s.known = true
	}

	s.needN = max(32, min(float64(s.limit), a.x*a.r))
	if s.ramp {
		s.needN = max(8, min(float64(s.limit), a.x*a.r))
	}
	s.needSecs = max(.005, a.r)

	s.consider(w.shed, w.open)
}

// consider begins a trial if there is reason to and the reference is good enough for it.
func (s *ctrlState) consider(shed, open float64) {
	a := &s.ref
	noise := s.cv2 + open
	most := ctrlFull
	if a.shed <= ctrlShed {
		most *= 2 // by chance, now and then: a longer run queue is better than a refusal
	}
	byGate := a.gated > .5*a.blocked             // most wait for a processor and not for the limit
	byLimit := a.blocked-a.gated > .05*a.blocked // some wait for that
	unused := byGate && a.x*a.r < .75*float64(s.limit)
	full := a.crowd() > most && s.doubt == 0
	if full && !unused && a.crowd() > ctrlCrowd && a.shed > ctrlShed && shed > 0 && s.pauseCrowd == 0 {
		to := max(s.least, int(math.Ceil(ctrlSpare*float64(s.limit)*(1-a.crowd()))))
		if d := math.Log(float64(s.limit) / float64(to)); to < s.limit {
			if a.n >= min(s.mostN(), max(16, noise/(.25*d*d))) {
				s.try(to)
				s.crowded = true
			}
			return
		}
	}
	d := math.Log(s.grow)
	if s.grow <= ctrlUp {
		s.grow = s.small(open)
	}
	if s.pauseUp > 0 {
		d = math.Log(s.small(open))
	}
	se := ctrlSE
	if s.ramp {
		se = .5
	}
	if a.n < min(s.mostN(), noise/(se*se*d*d)) {
		return
	}
	high := a.n >= 100 && s.base > 0 && a.r > ctrlHigh*s.base && 2*a.x*a.r > float64(s.limit) && (a.shed > 0 || a.blocked > .5)
	down := high || !unused && a.shed > ctrlShed && (s.pauseUp > 0 || full || s.first && noise < .25)
	if down && !high && !full && s.known && a.r < 1.3*s.base && s.stood < 40*(3*a.x*a.r+noise/(se*se*d*d)) {
		down = false // there is hardly a queue to be got rid of
	}
	up := byLimit && (shed > 0 || s.fresh && a.blocked-a.gated > .9) && s.pauseUp == 0 && (byGate || !full)
	switch {
	case down && s.pauseDown == 0 && s.limit > s.least && !(s.ramp && !s.first):
		f := 1 / s.small(open)
		if s.base > 0 {
			f = min(max(1.2*s.base/a.r, .5), f)
		}
		s.try(max(s.least, min(int(math.Ceil(float64(s.limit)*f)), s.limit-1)))
	case up && s.limit < s.most:
		s.try(min(s.most, max(int(float64(s.limit)*s.grow), s.limit+1)))
	}
}

// mostN is how many completions a trial lasts at most.
func (s *ctrlState) mostN() float64 {
	most := 1000. // small steps take that many
	if s.ramp {
		most = 400
	}
	return min(most, max(64, s.ref.x*max(2, 8*s.ref.r)))
}

func (s *ctrlState) try(limit int) {
	if s.base == 0 {
		s.base = s.ref.work() * (1 + math.Sqrt(s.cv2/s.ref.n))
	}
	s.first, s.crowded = false, false
	s.from, s.limit = s.limit, limit
	s.phase, s.rounds = ctrlSettle, 0
	s.trial = ctrlWindow{}
	if t := s.tried(); t.limit == limit {
		s.trial = t.seen
	}
	s.here, s.spent, s.settled = 0, 0, ctrlWindow{}
	// A round: as many as are in flight at the higher limit. Where throughput follows a
	// limit that is raised, that takes no longer.
	s.needN = s.ref.x * s.ref.r * max(1, float64(limit)/float64(s.from))
	s.needSecs = s.ref.r
	s.mostSecs = 2 * s.ref.r
}

// mixing returns how many rounds it takes until what is in flight is the usual mixture
// again. After a change short work ends first and long work stays.
func (s *ctrlState) mixing() float64 { return 1 + 1.5*min(s.cv2, 2) }

// small returns the step up once the limit is about right: as small as the variance
// allows an answer for, since its latency is felt.
func (s *ctrlState) small(open float64) float64 {
	return math.Exp(min(max(math.Sqrt((s.cv2+open+.05)/6), .2), .405))
}

// tried returns what is known in the direction of the limit on trial.
func (s *ctrlState) tried() *ctrlTried {
	if s.limit > s.from {
		return &s.up
	}
	return &s.down
}

func (s *ctrlState) settle(w ctrlWindow, m ctrlMean) {
	s.rounds++
	s.mostSecs = 2 * s.ref.r
	if s.limit > s.from && s.ref.blocked >= .95 {
		// A higher limit needs time to be of use, but none to do harm.
		t := &s.settled
		t.add(w)
		e := math.Log(t.n / t.secs / s.ref.x)
		se := math.Sqrt((s.cv2 + w.open + .1) * (1/t.n + 1/s.ref.n))
		if t.n >= 8 && -e > .15+2*se {
			d := math.Log(float64(s.limit) / float64(s.from))
			s.elasticity = e / d
			if s.shocks == 0 && -e > 1.4*d+2*se && t.n >= 32 {
				s.shocks++
				s.stay(m)
				return
			}
			s.refuseUp(t.n, e/d, 0, d)
			s.back()
			return
		}
	}
	if s.rounds < 4 && s.ref.blocked >= .95 && m.blocked < .9 {
		return // demand has not filled the new limit yet
	}
	risen := 1.25
	if s.ramp {
		risen = 1.5
	}
	if float64(s.rounds) < s.mixing() && (m.r > risen*s.ref.r || s.limit < s.from) {
		return
	}
	s.phase = ctrlMeasure
	s.needN = max(float64(s.limit), 8+24*min(s.cv2, 1))
	s.needSecs = 0
	s.mostSecs = s.slow()
}

// slow returns when a window that measures is overdue: throughput has fallen.
func (s *ctrlState) slow() float64 {
	return max(1.5*s.needN/(s.ref.x*min(1, float64(s.limit)/float64(s.from))), 2*s.ref.r)
}

// measure decides about the limit on trial once the evidence is clear.
func (s *ctrlState) measure(w ctrlWindow) {
	s.trial.add(w)
	s.here += w.n
	s.mostSecs = s.slow()
	m := s.trial.mean(s.limit)
	a := &s.ref
	n := m.n
	up := s.limit > s.from
	d := math.Log(float64(s.limit) / float64(s.from))
	mean, se := s.evidence(m, w.open, s.ref, s.from)
	rho := a.r / s.base
	if !up {
		rho = m.r / s.base
	}
	thr := .12 + .38*min(max(rho-1.5, 0), 1)
	if !up {
		thr -= .04
	}
	enough := ctrlSE
	if !s.ramp {
		enough = .6 * ctrlSE
	}
	clear := math.Abs(mean-thr) >= se || se <= enough
	if s.ramp && up && !clear && mean > thr-se/2 && a.blocked >= .9 && math.Log(m.r/a.held(s.from)) < d/2 {
		// Nothing speaks against it yet, and with more in flight it is told sooner. What
		// is gained since the last limit that was proven decides.
		if s.anchor.n == 0 {
			s.anchor, s.anchored = s.ref, s.from
		}
		if e, se := s.evidence(m, w.open, s.anchor, s.anchored); e > thr-se/2 {
			s.accept(m, mean, w)
			return
		}
		s.from, s.ref = s.anchored, s.anchor
		a, mean, clear = &s.ref, thr-1, true
		s.spent = 0 // what is tried next is closer
	}
	// All that comes is served at the limit on trial, in the time it took before.
	met := up && a.shed > .1 && m.shed < .02 && n >= 32 && math.Log(m.r/a.r) < .3*d
	// Those who wait no longer wait for the limit, and nothing takes longer for it.
	harmless := up && m.gated > .5*m.blocked && n >= 32 && math.Log(m.r/a.r) < .3*d && mean > -se
	if !clear && !met && !harmless {
		if s.here < min(s.mostN(), max(2*a.n, 32)) {
			return
		}
		// Not clear, and the reference is as weak as the trial: measure that again.
		*s.tried() = ctrlTried{s.limit, s.trial}
		if up {
			s.pauseUp, s.fresh = s.here, false
		} else {
			s.pauseDown = s.here
		}
		s.back()
		return
	}
	s.elasticity = mean
	if up && mean < -1.15-2*se || !up && mean > 1.3+2*se {
		// No service is as elastic as that: the world changed under the trial, or the
		// reference was a fluke. It is measured again.
		s.shocks++
		if up && s.shocks < 2 {
			s.stay(m)
			return
		}
		s.old = *a
		if up {
			s.lastUp = min(max(n, 2*s.lastUp), 12*n)
			s.pauseUp, s.grow, s.ramp = s.lastUp, ctrlUp, false
		} else {
			s.lastDown = min(max(n, 2*s.lastDown), 32*n)
			s.pauseDown = s.lastDown
			s.pauseCrowd = s.lastDown
		}
		s.forget()
		s.back()
		s.ref = ctrlMean{}
		return
	}
	if up {
		if mean > .6 && se < .3 {
			s.known = true
			s.base = min(max(min(a.work(), m.work()), s.base), 2*s.base)
		}
		// Little is shed: by chance, where the limit is about what is needed on average.
		// Throughput cannot follow then, but a limit that costs no time in service is free.
		free := s.cv2 > .2 && a.shed < .1 && m.shed <= a.shed && n >= 32 && m.r < ctrlFree*s.base &&
			math.Log(m.r/a.r) < .3*d
		if mean > thr || free || met || harmless {
			s.anchor = ctrlMean{}
			s.accept(m, mean, w)
			return
		}
		s.refuseUp(n, mean, se, d)
	} else {
		followed := mean > .6 && se < .3
		s.known = s.known || followed
		if followed && w.shed > 0 {
			s.base = min(m.work(), 4*s.base)
		} else if m.work() < s.base {
			s.base += min(1, n/100) * (m.work() - s.base)
		}
		if mean < thr && !(a.shed <= ctrlShed && m.shed > ctrlShed) {
			s.forget()
			s.pauseDown, s.lastDown, s.lastUp, s.pauseCrowd, s.doubt = 0, 0, 0, 0, 0
			s.grow = ctrlUp
			s.pauseUp = 2 * n
			again := m.r > ctrlHigh*s.base || m.crowd() > ctrlCrowd
			s.ref = m
			if !again {
				s.ref = ctrlMean{}
			}
			s.from = s.limit
			s.toHold()
			return
		}
		if mean > .8 && se < .25 && a.shed > ctrlShed && a.blocked >= .95 {
			s.pauseUp, s.grow = 0, ctrlFast // the limit is the bottleneck: it grows as it does at first
		}
		s.refuseDown(n, mean, se, d, followed)
	}
	*s.tried() = ctrlTried{s.limit, s.trial}
	s.back()
}

// refuseUp makes nothing of a trial up that saw n completions.
func (s *ctrlState) refuseUp(n, e, se, d float64) {
	s.fresh = false
	s.grow, s.ramp = ctrlUp, false
	s.lastUp = min(max(n, 2*s.lastUp), 12*n)
	s.pauseUp = max(s.lastUp, s.price(e, se, d))
}

// refuseDown makes nothing of a trial down that saw n completions.
func (s *ctrlState) refuseDown(n, e, se, d float64, followed bool) {
	s.lastDown = min(max(n, 2*s.lastDown), 32*n)
	if followed {
		s.lastDown = 32 * n
		s.doubt = s.lastDown
	}
	s.pauseDown = max(s.lastDown, s.price(e, se, d))
	if s.crowded {
		s.pauseCrowd = s.lastDown
	}
}

// price returns for how many completions there is to be no other trial like the one that was
// refused, so that what such trials cost stays a share ctrlPrice of the throughput.
func (s *ctrlState) price(e, se, d float64) float64 {
	e = min(max(e, -1), 1) // beyond that it was chance
	share := 1 - math.Exp(min(e*d+se*math.Abs(d), 0))
	return s.spent * share / ctrlPrice
}

// evidence returns the elasticity of throughput between a limit with reference a and the
// limit on trial, and its standard error.
func (s *ctrlState) evidence(m ctrlMean, open float64, a ctrlMean, limit int) (e, se float64) {
	d := math.Log(float64(s.limit) / float64(limit))
	var v float64
	if a.blocked >= .95 || m.ratio == 0 || a.ratio == 0 {
		e = math.Log(m.x / a.x)
		v = s.cv2 + open + 2/m.n
		if s.ndisp >= 3 {
			v = max(v, s.disp)
		}
	} else {
		// Below saturation throughput is what arrives; the share of it that is served
		// does without that noise.
		e = math.Log(m.ratio / a.ratio)
		v = s.cv2 + .3 + 50*(1/m.n+1/a.n)
		if s.limit < limit && m.inferred > 0 {
			// What the lower limit can do at most against what the higher one did.
			e = min(e, math.Log(m.inferred/a.counted))
		}
	}
	return e / d, math.Sqrt(v*(1/m.n+1/a.n)) / math.Abs(d)
}

// accept goes on from the limit on trial, upwards.
func (s *ctrlState) accept(m ctrlMean, e float64, w ctrlWindow) {
	s.shocks = 0
	s.forget()
	if s.ramp || e > .6 {
		s.grow = min(ctrlFast, 1.5*s.grow)
	} else {
		s.grow = ctrlUp
	}
	s.ref = m
	s.from = s.limit
	s.toHold()
	s.consider(s.trial.shed, w.open)
}

// back returns to the limit that stood before the trial.
func (s *ctrlState) back() {
	flight := float64(max(s.limit, s.from)) // what has to end first, if the limit was full
	s.limit = s.from
	s.phase, s.rounds = ctrlReturn, 0
	s.needN = min(flight, s.ref.x*max(s.r, s.ref.r))
	s.needSecs = s.ref.r
	s.mostSecs = 2 * max(s.r, s.ref.r)
}

// forget drops what was found about limits beside the one that stood until now.
func (s *ctrlState) forget() {
	s.up, s.down = ctrlTried{}, ctrlTried{}
	s.stood = 0
	s.odd, s.oddly = 0, ctrlWindow{}
}

func (s *ctrlState) toHold() {
	s.phase = ctrlHold
	s.needN = max(32, min(float64(s.limit), s.ref.x*s.ref.r))
	s.needSecs = max(.005, s.ref.r)
	if s.ramp {
		s.needN = max(8, min(float64(s.limit), s.ref.x*s.ref.r))
	}
	if s.ref.n == 0 {
		s.needN, s.needSecs = max(32, float64(s.limit)), max(.005, s.r)
		if s.ramp {
			s.needN = max(8, float64(s.limit))
		}
		s.mostSecs = 4 * s.r
	}
}

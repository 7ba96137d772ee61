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
	s.gather()
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

	s.gather()
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

// forget drops what was found about limits beside the one that stood until now.
func (s *ctrlState) forget() {
	s.up, s.down = ctrlTried{}, ctrlTried{}
	s.stood = 0
	s.odd, s.oddly = 0, ctrlWindow{}
}

func (s *ctrlState) toHold() {
	s.phase = ctrlHold
	s.gather()
	if s.ref.n == 0 {
		s.mostSecs = 4 * s.r
	}
}

// gather sets what the next window of the reference has to hold: a round of work.
func (s *ctrlState) gather() {
	least, flight, r := 32., float64(s.limit), s.r
	if s.ramp {
		least = 8
	}
	if s.ref.n > 0 {
		flight, r = min(flight, s.ref.x*s.ref.r), s.ref.r
	}
	s.needN, s.needSecs = max(least, flight), max(.005, r)
}

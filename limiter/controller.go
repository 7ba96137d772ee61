package limiter

import "math"

// ctrlPhase is what the controller is doing.
type ctrlPhase uint8

const (
	ctrlHold   ctrlPhase = iota // the limit stands, and what it is worth is measured
	ctrlSettle                  // it has just moved: nothing is measured yet
)

func (p ctrlPhase) String() string { return [...]string{"hold", "settle"}[p] }

const (
	ctrlStart  = 8
	ctrlShed   = .08   // share shed that is more than chance
	ctrlOver   = .15   // and from which a lower limit is looked for
	ctrlEager  = .85   // share that is blocked from which the first growth does not wait for refusals
	ctrlFirst  = 8     // how much the square of the variation takes from the first window's word
	ctrlHigh   = 2.5   // multiple of the base latency that has to be explained
	ctrlCalm   = 1.2   // multiple of it up to which there is hardly a queue to be got rid of
	ctrlFree   = 1.15  // and up to which a limit costs no time in service
	ctrlQueue  = 1.3   // and from which on a lower one is tried
	ctrlVain   = .2    // part of what is in flight that comes to nothing from which on more costs
	ctrlNone   = 16.   // part of the throughput before that counts as none, and how many completions say so
	ctrlBinds  = .95   // share that is blocked from which on the limit is full all the time
	ctrlFull   = .25   // crowd from which more in flight can only wait for a processor
	ctrlCrowd  = .33   // crowd from which the limit is tried that would be without it
	ctrlSpare  = 1.2   // and how much more than that
	ctrlGain   = .005  // what a limit has to be worth more to be moved to
	ctrlDoubt  = .2    // and for each standard error of the throughput at the present one
	ctrlLearn  = .1    // what a standard deviation that it would clear up is worth
	ctrlJump   = .6    // change of the share that is blocked during which nothing is at rest
	ctrlBrim   = .9    // part of the limit from which on it counts as full
	ctrlSame   = 1.5   // multiple of the demand before up to which no more comes
	ctrlLong   = 1.4   // multiple of the time in service from which on work has slowed down
	ctrlLess   = .85   // part of the throughput before from which on there is less of it
	ctrlSurer  = .6    // and by the second window
	ctrlSlow   = 2.5   // and standard errors of it that are more than chance
	ctrlUnfair = .25   // standard errors from which on what has ended is no fair sample of the work
	ctrlFew    = 1.    // and of how many completions the time it takes besides
	ctrlAstray = 1.    // and by which Little's law is broken by chance
	ctrlVague  = .1    // part of what is made of such a one that may be a guess
	ctrlGuess  = .5    // standard error of a guess, in ln
	ctrlOdd    = .5    // surprise from which on windows are set aside
	ctrlShock  = 5.    // surprise from which on the service has changed
	ctrlAside  = 10    // how many windows are set aside at most
	ctrlLeap   = 2.2   // slow-down from which on steps up are larger
	ctrlProbe  = 2     // the most that they are after a change of the service, until more has been better, in quarters of an octave
	ctrlFails  = .75   // part of the throughput before from which on a higher limit fails
	ctrlWorse  = 1.5   // multiple of the time in service, if that is longer too
	ctrlSure   = 3.    // and standard errors of the throughput
	ctrlRises  = .25   // power of the limit that throughput has to follow for the next step not to wait
	ctrlHardly = 1.2   // multiple of the time in service up to which work takes hardly longer
	ctrlSinks  = 1.5   // by how much each is lower than the last where a lower limit costs nothing
	ctrlCheap  = .03   // ln of the throughput that all of them may cost, and its standard error
	ctrlEnough = 16.   // and in how many rounds that has to be known
	ctrlSteady = .6    // most variance of each completion with which that is done
	ctrlSoon   = 6.    // rounds until a higher limit is tried against all belief, the first time
	ctrlLate   = 64.   // and at most
	ctrlRisk   = .1    // what that may be worth less by what is believed, before a smaller step is made of it
	ctrlUnsure = 1.3   // standard deviation of the optimum, in ln, from which on nothing is known of it
	ctrlBlind  = 1.2   // and the same while the limit only grows
	ctrlBrief  = .25   // rounds until a higher one is tried then, against no belief
	ctrlIdle   = 16    // windows in which nobody waits until the base latency is asked for again
	ctrlYoung  = 100.  // completions from which on the variance is remembered
	ctrlForget = 1000. // completions in which the variance that once was is forgotten
	ctrlApart  = 4.    // standard errors from which on a window's mean time in service has moved
	ctrlAge    = 20    // rounds in which a belief ages by one unit
	ctrlAgain  = 12.   // rounds after a change of the service in which a limit that is raised is more likely to blame than another change
	ctrlOdds   = 2.    // ln of the odds from which on it is believed that a limit was to blame, or was not
	ctrlMuch   = .8    // ln of how much less throughput there has to be at another limit for it not to be
	ctrlPassed = .2    // ln of how much more throughput than now there was at another limit from which on it was of quick work that passed by
	ctrlEarly  = .3    // standard error of what is seen as soon as the service has changed, for each unit of ln by which it is slower
	ctrlRests  = 2.    // rounds from which on that is at rest; in the one before, it comes to be
	ctrlTwice  = 2.    // slow-down from which on windows do not last the longer for varied work, soon after it
	ctrlBurst  = 1.5   // times in service that a window after such a limit lasts at most, and times what it has to last for any
	ctrlVaries = 1.5   // square of the variation from which on a window has to be longer
	ctrlBehind = 2.    // times that the slow kind takes until what is measured is of a new limit, where it is strained: a window lasts one
	ctrlUnrest = 8.    // most variance of each completion that one window makes believe in
	ctrlShaken = 4     // windows that what was seen of it counts for at most, after a change of the service
)

// ctrlState is the controller: a limit, and what is believed of the service behind it. It
// is a value, and step is a pure function of it and a window, without a clock.
//
// Whatever limit is in force says something about the service: how much throughput there is with so much
// in flight. All of that is kept (ctrlBelief), and Bayes' rule makes of it how probable each curve is of
// throughput over what is in flight, of four shapes and for any optimum (ctrlPosterior). The limit moves to where it is
// expected to be worth most, in throughput less a price for latency. That is growth as long as nothing speaks against
// it, since more may be of use and costs little. How soon enough does depends on the variance of the times in
// service. No latency has to be right, and a slow dependency is told from a queue of our own by what throughput
// does.
//
// What is known ages. Since a belief may be wrong, a higher limit is tried against it now and then and a lower
// one after that, seldom enough to be afforded, and lower ones for as long as they cost nothing; while latency is far above
// what is believed to be the least, it is a lower one each time. What cannot be explained by any curve is a change of the
// service: everything is forgotten but the optimum, which is about where it was, or higher by as much as work takes longer.
//
// What has ended is a fair sample of the work only while the limit stands: short work ends first after it has been raised. So the
// time in service is that of a life table of what is in flight (ctrlLife), where that says otherwise than its mean.
//
// Where there are quick requests and slow ones, both are told apart, and what counts is what each takes (ctrlKinds).
//
//	settle -> hold -> settle, or on with hold
//
// Where work waits for a processor before it begins, that wait is measured (ctrlMean.y), and says at once what
// trials would take long to: how many permits are of no use. It chooses the limit then, and throughput decides about it.
type ctrlState struct {
	limit, least, most int
	phase              ctrlPhase

	belief  ctrlBelief
	life    ctrlLife
	kinds   ctrlKinds
	swift   ctrlSwift
	scratch *ctrlPosterior // room to work in: nothing is kept there

	ref     ctrlMean   // lately, at this limit
	jumped  bool       // of the last window at this limit, and ref is of what was before
	stale   bool       // ref is of another one, or of what was before a jump
	from    int        // the limit before this one
	rounds  int        // of settling
	moved   float64    // seconds of settling
	path    ctrlWindow // all of these
	blocked float64    // share of arrivals in the last window

	base   float64 // B: time in service without a queue of our own; 0 is not known yet
	best   float64 // the same at the optimum, by what is believed; infinite is not known
	idle   int     // windows since that was asked for
	cv2    float64 // square of the coefficient of variation of the time in service
	ncv    float64
	varied float64 // the most that cv2 was lately: where it is mostly a queue, the time in service varies less than the work
	disp   float64 // what the throughput of windows with a full limit varied by: their size times the squared log
	ndisp  float64

	fresh bool // since the start, nothing has spoken against a higher limit
	ramp  bool // since the start, or since the service changed

	odd   int        // windows that were set aside since they surprise
	oddly ctrlWindow // these
	later ctrlWindow // these without the first

	blame ctrlBlame

	slower float64 // how much longer work took after the service last changed
	credit float64 // what a change may have multiplied the optimum by, and the limit not yet
	change float64 // rounds since the service changed; infinite is never
	proven bool    // since the service changed, if it has, a higher limit has brought more, or it had come up to this one with nothing known of the optimum
	rested float64 // rounds since the limit was raised, or one was tried against all belief
	pause  float64 // how many there have to be
	below  bool    // a lower one is tried next

	sinks      bool     // a lower limit is being tried, and lower ones as long as they cost nothing
	crowded    bool     // the limit was moved to be without the crowd
	before     ctrlMean // what was known at the limit before either
	pauseCrowd float64  // completions until it may be moved so again
	doubt      float64  // completions for which the crowd is not believed: throughput followed the limit down
	elasticity float64  // of throughput to the limit, as believed

	r, more float64 // of the last window

	// What the window that is open has to hold, and when it is closed without so many
	// successes; 0 is never.
	needN, needSecs, mostSecs float64
}

// ctrlBlame is what is kept where a limit that was raised had less throughput and was found to be too high. It may be that the service
// has changed in the same moment, which another limit will tell.
type ctrlBlame struct {
	stands bool
	before ctrlBelief // what was believed before that
	less   float64    // ln of how much less there was than that had led to expect
	v      float64    // its variance
	rounds float64    // since
}

func ctrlNew(start, least, most int) ctrlState {
	shapes() // not at the first window, which is closed under a lock
	kindsUnits()
	return ctrlState{belief: ctrlBelief{leant: beliefLeant}, limit: start, least: least, most: most, from: start, scratch: new(ctrlPosterior),
		ramp: true, fresh: true, proven: true, change: math.Inf(1), pause: ctrlSoon, more: 1, needN: 8, needSecs: .002}
}

// step returns the state after a window that holds at least needN successes over at
// least needSecs seconds. Copies of a state share scratch, and must not step at the same time.
func (s ctrlState) step(w ctrlWindow) ctrlState {
	if !(w.n >= 1 && w.secs > 0 && w.sum > 0) {
		return s
	}
	s.even(&w)
	m := w.mean(s.limit)
	mean := w.fair() / w.n
	r, n := mean, w.n
	if a := &s.ref; s.phase == ctrlHold && a.n > 0 && !s.stale {
		// About the mean of more than the window: few of a kind that varies much look alike. But a mean that has moved is
		// no variance: if it were taken for that, and remembered, nothing that is seen after it would count for much.
		chance := a.r * math.Sqrt((s.varied+.05)*(1/a.n+1/w.n)) // even what does not vary waits for other work
		if math.Abs(mean-a.r) < ctrlApart*chance {
			r, n = (a.r*a.n+r*w.n)/(a.n+w.n), a.n+w.n
		}
	}
	cv2 := max(w.squares/(w.n*r*r)-2*mean/r+1, 0)
	if n > 1 {
		cv2 *= n / (n - 1)
	}
	// Until enough has been seen, half is believed of a variance of 1: what ends first
	// is what is short, and alike.
	if s.ncv == 0 {
		s.cv2, s.ncv = 1, 4
	}
	s.ncv = min(s.ncv+w.n, 400)
	s.cv2 += min(w.n/s.ncv, 1) * (cv2 - s.cv2)
	s.varied *= math.Exp(-w.n / ctrlForget)
	if s.varied < s.cv2 || s.ncv < ctrlYoung {
		s.varied = s.cv2 // what is believed before much has been seen is nothing to remember
	}
	s.r, s.more = m.r, m.more
	s.mostSecs = 0
	if s.phase == ctrlSettle {
		s.settle(w, m)
	} else {
		s.hold(w, m, 0)
	}
	return s
}

// even makes up for what has ended being no fair sample of what is admitted, and tells the kinds of work in a window apart.
func (s *ctrlState) even(w *ctrlWindow) {
	if w.times == nil {
		return
	}
	s.swift.see(w.times.faster(w.n), w.sum/w.n, w.n)
	if w.ages != nil {
		fair := &s.scratch.fair
		sum, vague := s.life.see(w, fair)
		w.ages = nil // it is the caller's
		chance := ctrlUnfair*math.Sqrt((1+s.varied)/w.n) + ctrlFew/w.n
		moves := s.ramp || w.shed > ctrlOver*(w.n+w.shed) // else chance does more than the limit
		if sum > 0 && moves && w.idle < (1-ctrlBinds)*w.secs && math.Abs(math.Log(sum/w.sum)) > chance {
			w.times, w.aged, w.vague, w.squares = fair, sum, vague, 0
			for i := range fair {
				if c := &fair[i]; c.n > 0 {
					w.squares += c.sum * c.sum / c.n
				}
			}
		}
	}
	k := &s.kinds
	apart := k.gap > 0
	r, shift := k.see(w.times, float64(s.limit)*w.sum/w.flight(), w.secs)
	w.times = nil // it is the caller's
	if k.gap == 0 {
		if apart {
			s.blame.stands = false
			s.belief.plain()
			s.ref.plain()
			s.before.plain()
		}
		return
	}
	if !(r > 0) {
		return
	}
	w.usual = r * w.n
	if !apart {
		s.blame.stands, s.sinks = false, false
		s.belief.less((k.within + .1) / (s.varied + .1))
	} else if shift != 0 {
		s.belief.shift(shift)
		s.blame.before.shift(shift)
		s.ref.shift(shift)
		s.before.shift(shift)
	}
}

// settle waits until what is measured is of the new limit.
func (s *ctrlState) settle(w ctrlWindow, m ctrlMean) {
	s.rounds++
	s.moved += w.secs
	s.mostSecs = 2 * max(s.r, s.ref.r)
	if s.limit < s.from {
		round := max(8, float64(s.limit)/s.more)
		if s.r < s.ref.r {
			s.needN, s.needSecs = round, s.r // what it is now
		} else {
			s.needN = min(s.needN, round)
		}
	}
	switch {
	case m.blocked <= .9:
	case s.limit < s.from:
		if s.collapsed(w, m) {
			s.toHold(m)
			return
		}
	case s.fails(w, m):
		w = s.path
		w.aged = 0
		m = w.mean(s.limit)
		// The limit is what is in flight, and what was counted is the throughput: the time in service is behind.
		m.x, m.inferred = m.counted, 0
		m.r = min(float64(s.limit)/m.more/m.x, w.sum/w.n+lifeLonger*w.secs) // none is known to have been there for longer
		s.toHold(m)
		s.hold(w, m, beliefFails)
		return
	}
	if s.rises(&m) {
		s.toHold(m)
		s.hold(w, m, 0)
		return
	}
	if s.limit > s.from && s.rounds < 4 && s.ref.blocked >= ctrlBinds && m.blocked < .9 {
		return // demand has not filled the new limit yet
	}
	if s.strained() && m.blocked > .9 && s.moved < ctrlBehind*s.kinds.slow && !s.blame.stands {
		s.needSecs = max(s.needSecs, s.kinds.slow)
		return
	}
	// After a change short work ends first and long work stays. Where a good part of what is made of that is a guess, it takes
	// rounds until what is in flight is the usual mixture again. A higher limit that nothing takes longer for is no such change; and
	// where it is to be told whether the last one was to blame, that cannot wait.
	risen := 1.25
	if s.ramp {
		risen = 1.5
	}
	if m.vague > ctrlVague && !s.blame.stands && float64(s.rounds) < 1+1.5*min(s.cv2, 2) && (m.r > risen*s.ref.r || s.limit < s.from) {
		return
	}
	s.toHold(m)
}

// rises reports that a limit which is raised after a change of the service, or while the slow kind of work is strained, has more
// throughput already, and work takes hardly longer. Where much is refused, how much more is not waited for: a round is long then, and each
// step would take several.
func (s *ctrlState) rises(m *ctrlMean) bool {
	a := &s.ref
	return (s.ramp && !s.fresh || s.strained()) && s.limit > s.from && a.shed > ctrlOver && a.blocked >= ctrlBinds && m.blocked > .5 &&
		m.r <= ctrlHardly*a.r && m.counted >= a.x*math.Pow(float64(s.limit)/float64(s.from), ctrlRises)
}

// fails reports that on the way to a higher limit there is clearly less throughput than there was, and work takes
// longer: it is too high. To wait until it is known how much too high would take the longer the worse it is.
func (s *ctrlState) fails(w ctrlWindow, m ctrlMean) bool {
	if s.belief.used == 0 || s.ref.blocked <= .9 {
		return false
	}
	s.path.add(w)
	part := s.path.counted() / s.ref.x
	return part < ctrlFails && w.sum/w.n > ctrlWorse*s.ref.r &&
		-math.Log(part) > ctrlSure*math.Sqrt(s.noise(&m, w.open)*(1/s.path.n+1/s.ref.n))
}

// starved learns that there is next to no throughput, x, at this limit.
func (s *ctrlState) starved(x float64) {
	a := &s.ref
	if a.n == 0 {
		return // it is not known what there was before, and none at all is no number of any use
	}
	x = max(x, a.x/ctrlNone)
	seen := ctrlBin{at: math.Log(float64(s.limit)), y: math.Log(x * a.worth), n: ctrlNone, kinds: a.kinds, err: beliefOutage}
	s.belief.add(s.limit, seen, 1, 0, ctrlNone)
}

// collapsed reports that on the way to a lower limit there is less throughput than at either end: it is the service
// that has changed.
func (s *ctrlState) collapsed(w ctrlWindow, m ctrlMean) bool {
	s.path.add(w)
	if s.belief.used == 0 || s.path.n < 8 || s.kinds.queues() {
		return false
	}
	v := s.noise(&m, w.open)
	q := s.weigh(v)
	low, high := math.Log(float64(s.limit)), math.Log(float64(s.from))
	y := s.belief.level((low+high)/2, math.Log(m.worth*s.path.counted()*s.path.sum/s.path.even()), m.kinds)
	if y > min(q.lowest(low), q.lowest(high)) {
		return false
	}
	p := s.path.mean(s.limit)
	v = s.unsure(&p, v)
	if min(q.surprise(low, y, v), q.surprise((low+high)/2, y, v), q.surprise(high, y, v)) < ctrlShock {
		return false
	}
	if s.blame.stands {
		// And it has been since before the limit that was raised was found to be too high.
		s.belief = s.blame.before
		q = s.weigh(v)
	}
	s.shock(q, q.predict(low)-s.belief.level(low, math.Log(m.worth*m.counted), m.kinds))
	return true
}

func (s *ctrlState) toHold(m ctrlMean) {
	s.phase, s.stale, s.blocked = ctrlHold, true, m.blocked
	s.gather()
}

// weigh returns how probable each curve is if each completion has variance v. It holds until the next call.
func (s *ctrlState) weigh(v float64) *ctrlPosterior {
	s.belief.weigh(s.scratch, v)
	return s.scratch
}

// noise returns the variance of ln X by one completion.
func (s *ctrlState) noise(m *ctrlMean, open float64) float64 {
	v := s.varied
	if k := &s.kinds; k.gap > 0 {
		v = min(v, 1.2*k.within+.02)
	}
	v += m.lost() + 30/(s.ncv+20)*min(1, s.ncv/20) + open + .02 // the rare and long may not have been seen yet
	switch {
	case m.blocked < ctrlBinds:
		v += 2 * min(1, 2*(ctrlBinds-m.blocked))
	case s.ndisp >= 3:
		v = max(v, s.disp)
	}
	return v
}

// point returns where a window stands: ln of what was in flight, by weight, and of the weight that was done in a second.
func (s *ctrlState) point(w *ctrlWindow, m *ctrlMean) (at, y float64) {
	if m.inferred > 0 {
		return math.Log(float64(s.limit)), math.Log(m.x * m.worth)
	}
	// What is in flight is averaged over more than the window: where the time in service is longer by chance, more
	// is in flight by the same chance, and the two would seem to hang together.
	at = math.Log(min(m.flight(), float64(s.limit)))
	if s.stale && s.limit < s.from && m.flight() > float64(s.limit) {
		return at, math.Log(m.counted * m.worth) // what took so long was let in at the higher limit: it says nothing of this one
	}
	if a := &s.ref; a.n > 0 && !s.stale {
		k := w.n / (w.n + 4*a.n)
		at = k*at + (1-k)*math.Log(min(a.flight(), float64(s.limit)))
	}
	return at, at - math.Log(m.r*m.more/m.worth)
}

// hold learns from a window and decides whether to move. A window that surprises is set aside until the next ones
// have told whether it was chance; one in which the limit has just begun to bind, or ceased to, is of neither state.
// What is not at rest yet has a standard error err besides, and is no surprise.
func (s *ctrlState) hold(w ctrlWindow, m ctrlMean, err float64) {
	jump := math.Abs(m.blocked - s.blocked)
	s.blocked = m.blocked
	if s.slowed(&m, w.open) {
		s.shock(s.weigh(s.noise(&m, w.open)), math.Log(m.r/s.ref.r))
		s.gather()
		return
	}
	s.jumped = false
	if jump > ctrlJump && s.belief.used > 0 {
		s.jumped = !s.stale
		s.stale = true
		s.heed()
		s.gather()
		return
	}
	at, y := s.point(&w, &m)
	v := s.noise(&m, w.open)
	s.thinned(&m, at, y, v)
	failed, changed := err > 0, false
	over := failed || s.overdone(&m)
	switch {
	case s.belief.used == 0:
	case over:
		s.accuse(at, y, s.unsure(&m, v)+err*err, v, m.kinds)
	case s.blame.stands:
		changed = s.acquit(at, y, s.unsure(&m, v), v, m.kinds)
	}
	if s.belief.used > 0 && !over && !changed && (s.odd > 0 || !s.usual(&w, &m, v)) {
		q := s.weigh(v)
		last := w
		w.add(s.oddly)
		m = w.mean(s.limit)
		at, y = s.point(&w, &m)
		// Not enough of a surprise for a change, but more than what they contradict: they are learned from.
		outweigh := s.odd >= 2 && w.n >= s.ref.n
		if surprise := q.surprise(at, s.belief.level(at, y, m.kinds), s.unsure(&m, v)); surprise > ctrlOdd && s.odd < ctrlAside && (surprise >= ctrlShock || !outweigh) {
			if s.odd > 0 {
				s.later.add(last)
			}
			s.odd++
			s.oddly = w
			if s.odd < 2 || surprise < ctrlShock {
				s.gather()
				return
			}
			w = s.later // the first was in part before the change
			m = w.mean(s.limit)
			at, y = s.point(&w, &m)
			if !s.passedBy(at, y, s.unsure(&m, v), v, m.kinds) {
				q = s.weigh(v) // it was asked about less
				s.shock(q, q.predict(at)-s.belief.level(at, y, m.kinds))
				changed = true
			}
		}
	}
	if changed && m.aged {
		// What was admitted before the change is as quick as it was, and is what comes first: work takes longer than it seems to.
		err = ctrlEarly * math.Log(max(s.slower, 1)) * min(max(ctrlRests-m.rounds, 0), 1)
	}
	if s.raised() && s.ref.n > 0 && m.x > s.ref.x {
		s.proven = true
	}
	s.heed()
	round := max(50*max(v, .05), math.Exp(at)/m.more) // or as much as it takes to learn anything
	known := 1.
	if s.belief.used == 0 && s.fresh && s.limit == s.from {
		// From a standing start what is short ends first, and the more so the more it varies.
		known = max(.02, math.Exp(-ctrlFirst*max(0, w.squares/(w.n*m.r*m.r)-1)))
	}
	s.follow(w, m)
	if s.ref.blocked >= ctrlBinds {
		s.swift.stand(s.ref.x*s.ref.worth, w.n, s.ref.flight())
	}
	if m.inferred > 0 || at >= math.Log(ctrlBrim*float64(s.limit)) {
		astray := s.astray(&m)
		seen := ctrlBin{at: at, y: y, mix: m.mixed, n: known / (1/w.n + astray*astray/v), kinds: m.kinds, err: err}
		s.belief.add(s.limit, seen, v, w.n/(ctrlAge*round), 2*ctrlAge*round)
		s.belief.tilt(s.varied + w.open)
	} else {
		a := &s.ref
		s.belief.stand(math.Log(min(a.flight(), float64(s.limit))), math.Log(a.x*a.worth), known*a.n, w.n/(ctrlAge*round))
	}
	s.rested += w.n / round
	s.change += w.n / round
	s.blame.rounds += w.n / round
	s.pauseCrowd = max(s.pauseCrowd-w.n, 0)
	s.doubt = max(s.doubt-w.n, 0)
	s.gather()
	s.consider(w.shed, w.open, failed)
}

// accuse takes note that this limit is found to be too high, where ln of what is in flight is at and of the throughput y, known
// with variance u; each completion has v.
func (s *ctrlState) accuse(at, y, u, v float64, kinds bool) {
	if s.blame.stands {
		return // the first was raised from a limit that was still good
	}
	q := s.weigh(v)
	s.blame = ctrlBlame{stands: true, before: s.belief, less: q.predict(at) - s.belief.level(at, y, kinds), v: u}
}

// acquit compares what a window at another limit is like with what it would be like if that limit was to blame, and if the service
// had changed instead and throughput was as much less at any limit. It reports that it is taken for a change: then all begins anew
// with what was believed before.
func (s *ctrlState) acquit(at, y, u, v float64, kinds bool) bool {
	b := &s.blame
	if b.rounds > ctrlAgain {
		b.stands = false
		return false
	}
	if s.kinds.queues() {
		return false // what comes back was admitted at the higher limit
	}
	own := s.weigh(v).surprise(at, s.belief.level(at, y, kinds), u)
	q := s.scratch
	b.before.weigh(q, v)
	y = b.before.level(at, y, kinds)
	odds := own - q.surprise(at, y+b.less, u+b.v)
	if slower := q.predict(at) - y; odds >= ctrlOdds && slower >= ctrlMuch {
		s.belief = b.before
		s.shock(q, slower)
		return true
	}
	b.stands = math.Abs(odds) < ctrlOdds
	return false
}

// passedBy reports that there is less throughput than before since only the slow kind of work queues, and not since the service has
// changed: what was admitted at a higher limit let the more of the quick kind pass until it came back. Such throughput is forgotten
// then. The arguments are those of accuse.
func (s *ctrlState) passedBy(at, y, u, v float64, kinds bool) bool {
	if !s.kinds.queues() {
		return false
	}
	now := s.belief.level(at, y, kinds)
	rest := s.belief
	rest.drop(now + ctrlPassed)
	if rest.used == s.belief.used {
		return false
	}
	if rest.used > 0 {
		rest.weigh(s.scratch, v)
		if s.scratch.surprise(at, now, u) >= ctrlShock {
			return false
		}
	}
	s.belief = rest
	s.blame.stands = false
	return true
}

// usual reports that a window is so much like those before it at this limit that no curve needs to be asked whether it
// surprises.
func (s *ctrlState) usual(w *ctrlWindow, m *ctrlMean, v float64) bool {
	a := &s.ref
	if s.stale || a.n < w.n {
		return false
	}
	far := math.Log(m.r / a.r)
	if m.inferred > 0 {
		far = math.Log(m.x * m.worth / (a.x * a.worth))
	}
	return beliefSurprise(far, s.unsure(m, v)) < ctrlOdd
}

// unsure returns the variance of ln X of a window where each completion has v.
func (s *ctrlState) unsure(m *ctrlMean, v float64) float64 {
	astray := s.astray(m)
	return v/m.n + astray*astray
}

// astray returns how far off, in ln, the throughput may be beyond chance, since what has ended is no fair sample: as much as is
// a guess where that is made up for, and else as much as it contradicts Little's law.
func (s *ctrlState) astray(m *ctrlMean) float64 {
	switch {
	case m.inferred == 0 || m.busy < ctrlBinds:
		return 0
	case m.aged:
		return ctrlGuess * m.vague
	}
	far := math.Abs(math.Log(m.counted / m.inferred))
	return max(0, far-1/max(m.rounds, 1)-ctrlAstray*math.Sqrt((1+s.varied)/m.n))
}

// overdone reports that a limit which has just been raised has less throughput than the lower one had, while it only grows, soon
// after the service had changed, or since more of the work comes to nothing. It is not likely that the service has changed again in
// that very moment: the limit is too high, or what was let in at once is more than the service can take. To believe in a change would
// raise it further. If it has changed nevertheless, the next limit tells (acquit).
func (s *ctrlState) overdone(m *ctrlMean) bool {
	return s.raised() && m.x*math.Exp(s.astray(m)) < s.ref.x && (s.change < ctrlAgain || s.ramp || m.lost() > s.ref.lost()+ctrlVain)
}

// raised reports that the limit has just been raised.
func (s *ctrlState) raised() bool { return s.stale && s.limit > s.from }

// catchesUp reports that the limit has just been raised, to make up for a change of the service not long ago.
func (s *ctrlState) catchesUp() bool { return s.raised() && s.change < ctrlAgain }

// slowed reports that it is the service that has changed: no more comes than before, and what was in flight no
// longer fits. A surge looks the same but for that, and where about as much comes as can be served, chance fills the limit. Where the first
// window in which it is full may have been a burst, the second decides.
func (s *ctrlState) slowed(m *ctrlMean, open float64) bool {
	a := &s.ref
	if a.n < 64 || a.blocked >= .3 || m.blocked <= .5 {
		return false
	}
	less := ctrlLess
	if s.stale {
		if !s.jumped {
			return false
		}
		less = ctrlSurer
	}
	if m.load >= ctrlSame*a.load || m.r <= ctrlLong*a.r || m.counted >= less*a.x {
		return false
	}
	full := *m
	full.blocked = 1 // what was counted is the throughput, whether the limit was full all the time or not
	return math.Log(a.x/m.counted) > ctrlSlow*math.Sqrt(s.noise(&full, open)*(1/m.n+1/a.n))
}

// heed forgets the windows that were set aside: they have been made something of.
func (s *ctrlState) heed() { s.odd, s.oddly, s.later = 0, ctrlWindow{}, ctrlWindow{} }

// follow has the reference follow a window.
func (s *ctrlState) follow(w ctrlWindow, m ctrlMean) {
	a := &s.ref
	if s.stale || a.n == 0 {
		*a, s.stale = m, false
		return
	}
	if m.blocked >= ctrlBinds && a.blocked >= ctrlBinds {
		l := math.Log(m.x / a.x)
		s.ndisp = min(s.ndisp+1, 16)
		// One window has no great say, but they have no bound in the long run: what makes throughput vary besides,
		// such as a neighbour, does not get less with the size of a window.
		s.disp += (min(l*l/(1/w.n+1/a.n), max(ctrlUnrest, 4*s.disp)) - s.disp) / s.ndisp
	}
	k := max(.1, w.n/(w.n+a.n))
	a.blend(m, k)
	a.n = 1 / ((1-k)*(1-k)/a.n + k*k/w.n)
}

// shock begins anew after a change from q that made throughput fall by slower, in ln.
func (s *ctrlState) shock(q *ctrlPosterior, slower float64) {
	f := math.Exp(slower)
	s.belief.carry(q, f)
	s.blame.stands, s.sinks, s.swift.tried = false, s.sinks && f < 1, false
	s.ref, s.stale, s.jumped = ctrlMean{}, true, false
	s.slower = f
	s.credit = max(f, 1)
	s.pause, s.rested, s.change = ctrlSoon, 0, 0
	_, sd, _, _ := q.optimum()
	s.ramp, s.proven = true, s.limit > s.from && sd > ctrlUnsure
	if s.disp <= ctrlUnrest {
		s.ndisp = min(s.ndisp, ctrlShaken) // else it may well be that which was taken for a change
	}
	s.heed()
}

// consider moves the limit if there is reason to. One that has failed goes back to the one before: that will tell whether it was to
// blame.
func (s *ctrlState) consider(shed, open float64, failed bool) {
	a := &s.ref
	work := a.work() * (1 + math.Sqrt(s.cv2/a.n))
	s.base = work
	if s.idle++; a.blocked+a.shed == 0 && s.idle < ctrlIdle && s.best > 0 {
		s.base, s.sinks = min(s.base, s.best), false
		return // nobody waits: there is nothing to decide
	}
	s.idle = 0
	v := s.noise(a, open)
	q := s.weigh(v)
	if a.lost() < ctrlVain && s.belief.forget(q, s.limit, s.from, v) {
		q = s.weigh(v) // what was seen first was of the service that it has been
	}
	_, sd, lnR, lnSeen := q.optimum()
	s.best = math.Inf(1)
	if sd < ctrlUnsure {
		s.best = math.Exp(lnR)
	}
	s.base = min(s.base, s.best)
	seen := min(work, math.Exp(lnSeen)) // what nobody has seen is no reason to refuse some
	here := math.Log(float64(s.limit))
	s.elasticity = (q.predict(here+.1) - q.predict(here-.1)) / .2
	if failed {
		s.try(s.from)
		return
	}

	most := ctrlFull
	if a.shed <= ctrlShed {
		most *= 2 // by chance, now and then: a longer run queue is better than a refusal
	}
	byGate := a.gated > .5*a.blocked             // most wait for a processor and not for the limit
	byLimit := a.blocked-a.gated > .05*a.blocked // some wait for that
	unused := byGate && a.flight() < .75*float64(s.limit)
	s.judge(v)
	full := a.crowd() > most && s.doubt == 0
	if full && !unused && shed > 0 && s.uncrowd(v) {
		return
	}
	least := s.base
	if a.shed < ctrlOver {
		least = seen
	}
	many := 100.
	if a.blocked >= ctrlBinds && a.shed > ctrlShed && s.limit > s.from {
		many = 24 // it was raised, and that is no chance
	}
	high := a.n >= many && a.r > ctrlHigh*least && 2*a.flight() > float64(s.limit) && (a.shed > 0 || a.blocked > .5)
	up := byLimit && (shed > 0 || (s.fresh || s.ramp) && a.blocked-a.gated > ctrlEager) && (byGate || !full)
	down := high || !unused && a.shed > ctrlOver && a.blocked > .9 && (full || a.r >= ctrlCalm*s.base || a.lost() > ctrlVain)
	// It was raised, and is worth less than the lower one was: those in line wait in vain, whether any has been refused yet or not.
	down = down || s.limit > s.from && a.blocked >= ctrlBinds && q.worth(math.Log(float64(s.from)))-q.worth(here) > ctrlRisk
	if s.thin(v) || s.sink(v) || !up && !down {
		return
	}
	to, gain := s.choose(q, up, down)
	if up && to <= s.limit {
		s.fresh, s.ramp = false, false
	}
	enough := ctrlGain
	if !s.fresh || a.shed > .05 {
		enough += ctrlDoubt * math.Sqrt(v/a.n)
	}
	step := math.Exp(min(max(math.Sqrt(v/6), .2), .405)) // of a trial: as small as the variance allows, since its latency is felt
	switch {
	case gain > enough:
		s.try(to)
	case up && a.shed < .2 && a.blocked < ctrlBinds && a.n >= 32 && a.r < ctrlFree*seen && a.lost() < ctrlVain:
		// Little is shed: by chance, where the limit is about what is needed on average. Throughput
		// cannot follow then, but a limit that costs no time in service is free.
		s.try(s.limit * 3 / 2)
	case down && (s.below || high) && s.limit > s.least && s.rested >= s.pause && a.r > ctrlQueue*s.base:
		s.below, s.rested = false, 0
		s.try(min(int(float64(s.limit)/step), s.limit-1))
		s.sinks, s.before = v <= ctrlSteady, *a
	case up && !high && shed > 0 && s.ramp && sd > ctrlBlind && s.rested >= ctrlBrief && s.rested < s.pause:
		s.try(int(float64(s.limit) * s.stride(q, step)))
	case up && !high && shed > 0 && (s.rested >= s.pause || s.rested >= 1 && sd > ctrlUnsure):
		step = s.stride(q, step)
		s.pause, s.rested, s.below = min(2*s.pause, ctrlLate), 0, true
		s.try(int(float64(s.limit) * step))
	}
}

// sink goes on with a lower limit as long as the trial of one has cost next to nothing: a dependency that is quick again leaves throughput as
// it is at a limit that is many times too high now, and what was seen while it was slow says that a lower one would cost much. It reports that
// this is done, or waits only for more to be known.
func (s *ctrlState) sink(v float64) bool {
	if !s.sinks {
		return false
	}
	a, b := &s.ref, &s.before
	cost, chance := math.Log(b.x*b.worth/(a.x*a.worth)), math.Sqrt(v/a.n+v/b.n)
	switch {
	case a.blocked < ctrlBinds || s.limit <= s.least || cost > ctrlCheap+chance:
		s.sinks = false
	case chance > ctrlCheap && s.rested < ctrlEnough:
	case chance > ctrlCheap || cost > ctrlCheap:
		s.sinks = false
	default:
		s.rested = 0
		s.try(int(float64(s.limit) / ctrlSinks))
		s.sinks = true
	}
	return s.sinks
}

// stride returns how large a step a trial of a higher limit takes against all belief, where the variance demands so large
// a one.
func (s *ctrlState) stride(q *ctrlPosterior, step float64) float64 {
	if s.ref.shed > .9 && s.pause < 2*ctrlSoon {
		step = 2
	}
	here := math.Log(float64(s.limit))
	if q.worth(here)-q.worth(here+math.Log(step)) > ctrlRisk {
		step = math.Sqrt(step) // what would be lost is known well enough for a smaller one to do
	}
	return step
}

// choose returns the limit that promises most, and how much more than the present one.
func (s *ctrlState) choose(q *ctrlPosterior, up, down bool) (to int, gain float64) {
	here := math.Log(float64(s.limit))
	worth := q.worth(here)
	to = s.limit
	highest := 4 // quarters of an octave
	if s.credit > ctrlLeap {
		highest = int(min(8, 4*math.Log2(s.credit)))
	}
	if !s.proven {
		// If it is the machine that has become slower, more will make it worse, and show it the later the more it is.
		highest = min(highest, ctrlProbe)
	}
	for k := -9; k <= highest; k++ {
		c := int(math.Round(float64(s.limit) * math.Exp2(float64(k)/4)))
		switch {
		case k == -9:
			c = s.from // back, to the very limit, or trials that come to nothing would add up
		case k > 0:
			c = max(c, s.limit+1)
		}
		c = min(max(c, s.least), s.most)
		if c == s.limit || c > s.limit && !up || c < s.limit && !down {
			continue
		}
		there := math.Log(float64(c))
		if g := q.worth(there) + ctrlLearn*q.spread(here, there) - worth; g > gain {
			to, gain = c, g
		}
	}
	return to, gain
}

// uncrowd moves the limit to where it would be if nothing in flight waited for a processor; it reports whether that is
// done, or waits only for more to be known.
func (s *ctrlState) uncrowd(v float64) bool {
	a := &s.ref
	if a.crowd() <= ctrlCrowd || a.shed <= ctrlShed || s.pauseCrowd > 0 {
		return false
	}
	to := max(s.least, int(math.Ceil(ctrlSpare*float64(s.limit)*(1-a.crowd()))))
	if to >= s.limit {
		return false
	}
	if d := math.Log(float64(s.limit) / float64(to)); a.n >= min(400, max(16, v/(.25*d*d))) {
		s.try(to)
		s.crowded, s.before = true, *a
	}
	return true
}

// judge decides whether throughput followed a limit that was moved for the crowd. Then the crowd is not its
// own, and nothing is made of it for a while.
func (s *ctrlState) judge(v float64) {
	a, b := &s.ref, &s.before
	if !s.crowded || a.n < min(400, max(16, 4*v)) {
		return
	}
	s.crowded = false
	if d := math.Log(float64(s.from) / float64(s.limit)); math.Log(b.x/a.x) > .5*d {
		s.doubt = 32 * a.n
		s.pauseCrowd = s.doubt
	}
}

// try moves the limit.
func (s *ctrlState) try(limit int) {
	limit = min(max(limit, s.least), s.most)
	if limit == s.limit {
		limit = min(s.limit+1, s.most) // steps up are at least one
	}
	if limit == s.limit {
		return
	}
	s.credit *= float64(s.limit) / float64(limit)
	if limit > s.limit {
		s.rested = 0 // a higher one is being tried
	}
	s.from, s.limit = s.limit, limit
	s.jumped = false
	s.phase, s.rounds, s.moved, s.path = ctrlSettle, 0, 0, ctrlWindow{}
	s.crowded, s.sinks, s.swift.tried = false, false, false
	s.heed()
	s.needN = s.ref.x * s.ref.r
	s.needSecs = s.wide() * s.ref.r
	s.mostSecs = 2 * s.needSecs
	if s.limit < s.from {
		s.needSecs *= float64(s.limit) / float64(s.from) // a round of what stays is shorter
	}
}

// gather sets what the next window has to hold: a round of work.
func (s *ctrlState) gather() {
	flight, r := float64(s.limit)/s.more, s.r // successes
	if s.ref.n > 0 && (!s.stale || s.limit > s.from) {
		flight, r = min(flight, s.ref.x*s.ref.r), s.ref.r
		if s.catchesUp() {
			s.mostSecs = ctrlBurst * r
		}
	} else {
		s.mostSecs = 4 * s.r
	}
	s.needN, s.needSecs = max(8, flight), max(.005, s.wide()*r)
	if s.strained() {
		s.needSecs = max(s.needSecs, s.kinds.slow)
	}
	if s.mostSecs > 0 {
		s.mostSecs = max(s.mostSecs, ctrlBurst*s.needSecs)
	}
}

// strained reports that the slow kind of work is, and not only since it is late to come back while the limit grows.
func (s *ctrlState) strained() bool { return !s.ramp && s.kinds.strained() }

// wide returns how many times the mean time in service a window has to last: where that varies much, it is the long work that is in
// flight, and takes longer.
func (s *ctrlState) wide() float64 {
	if s.kinds.gap > 0 && s.change < ctrlAgain && s.slower > ctrlTwice {
		return 1
	}
	return 1 + max(0, s.cv2-ctrlVaries)
}

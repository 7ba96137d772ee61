package limiter

import "math"

// ctrlTried is what is known about a limit beside the one that stands.
type ctrlTried struct {
	limit int
	seen  ctrlWindow
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

package limiter

import "math"

// ctrlSwift is how long the faster half of the work takes. Where a slow kind of work ends, or what it waited for is quick again, the places that
// it had are taken by a queue of the rest: throughput is what it was, at a limit that is many times too high now, and all that was seen at
// lower ones speaks against these. But even the faster half takes many times as long as it did, without any less being done. So a
// limit is tried at which it would not. The zero value knows nothing.
type ctrlSwift struct {
	now, mean float64 // of the faster half lately, and of all work, s
	least     float64 // the least that now has been with a full limit, since about so much is done
	x         float64 // how much that is, by weight, 1/s
	young     float64 // completions of a service that has become slower which are still of before
	pause     float64 // completions until it may be tried again
	rounds    float64 // of pause after the last trial, if that was in vain
	tried     bool    // it is being tried
}

const (
	swiftSome   = 50. // completions in which what was lately is forgotten
	swiftSlow   = 4.  // rounds in which it is noted that more is done, else
	swiftLong   = 1e5 // completions in which the least is, at least
	swiftTurns  = 1e3 // and rounds
	swiftSame   = 2.  // times the least up to which it is noted how much is done
	swiftLess   = .7  // part of that from which on the service has become slower
	swiftMargin = 1.5 // times the limit that would do
	swiftLower  = 2.  // times that the present one has to be at least
	swiftYoung  = 4.  // rounds after that in which what has ended may be of before
	swiftFew    = 24. // completions that have to be known
	swiftCost   = .1  // ln of the throughput that a trial may cost
	swiftChance = 2.  // and standard errors of it
	swiftVaries = 1.  // least variance of each completion then: what queues takes the same time each, and varies all the same
	swiftOther  = .2  // ln of how much more is done at a lower limit than was believed from which on that was of other work
	swiftFirst  = 32. // rounds between two trials, after one that was in vain
	swiftLast   = 1e3 // and at most
)

// see learns from n successes: of the faster half, and of all.
func (t *ctrlSwift) see(faster, mean, n float64) {
	if !(faster > 0) {
		return
	}
	if t.now == 0 {
		t.now, t.mean = faster, mean
	}
	k := n / (n + swiftSome)
	t.now += k * (faster - t.now)
	t.mean += k * (mean - t.mean)
	t.pause = max(t.pause-n, 0)
}

// stand notes what it is with a full limit, after n more completions; so many are in flight, and x is done.
func (t *ctrlSwift) stand(x, n, flight float64) {
	t.young = max(t.young-n, 0)
	switch {
	case t.now == 0:
	case t.least == 0 || x < swiftLess*t.x:
		if t.least > 0 {
			t.young = swiftYoung * flight
		}
		t.least, t.x = t.now, x
	case t.now <= t.least || t.young > 0:
		t.least, t.x = t.now, x
	case t.now < swiftSame*t.least:
		t.x += n / (n + swiftSome) * (x - t.x)
	default:
		// Not at once: where the work changes, throughput is inferred from times that are no longer those.
		t.x += n / (n + swiftSlow*flight) * max(x-t.x, 0)
		t.least *= math.Pow(t.now/t.least, n/(n+max(swiftLong, swiftTurns*flight)))
	}
}

// limit returns the limit at which the faster half would take the least again. It waits that much longer now, and so does all.
func (t *ctrlSwift) limit(present int) int {
	if t.least == 0 || t.now <= t.least || t.pause > 0 {
		return present
	}
	return int(math.Ceil(swiftMargin * float64(present) * (1 - (t.now-t.least)/t.mean)))
}

// thin tries that limit if it is a much lower one. It reports whether it does.
func (s *ctrlState) thin(v float64) bool {
	a := &s.ref
	if a.blocked < ctrlBinds || a.shed <= ctrlOver || a.n < max(swiftFew, v/(swiftCost*swiftCost)) {
		return false
	}
	to := max(s.swift.limit(s.limit), s.least)
	if swiftLower*float64(to) > float64(s.limit) {
		return false
	}
	s.try(to)
	s.swift.tried, s.before = true, *a
	return true
}

// thinned decides whether such a trial was in vain. The first that is known of it is m, where ln of what is in flight is at and of the throughput y. If
// more is done than was believed, what has been seen at other limits was of other work.
func (s *ctrlState) thinned(m *ctrlMean, at, y, v float64) {
	t, b := &s.swift, &s.before
	if !t.tried {
		return
	}
	t.tried = false
	varies := max(v, swiftVaries)
	if math.Log(b.x*b.worth/(m.x*m.worth)) > swiftCost+swiftChance*math.Sqrt(varies/m.n+varies/b.n) {
		t.rounds = min(max(2*t.rounds, swiftFirst), swiftLast)
		t.pause = t.rounds * b.flight()
		t.least, t.x = t.now, m.x*m.worth // it is the work that takes so long
		return
	}
	t.rounds = 0
	if s.belief.level(at, y, m.kinds)-s.weigh(v).predict(at) < swiftOther {
		return
	}
	s.belief.only(s.from)
	s.blame.stands = false
	s.heed()
}

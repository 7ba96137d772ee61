package limiter

import (
	"math"
	"slices"
)

// What there is room for in a belief.
const (
	beliefBins  = 24
	beliefCells = 128
	beliefCell  = .15 // of ln K
	beliefBin   = .1  // of ln of what is in flight
)

const (
	beliefBelow  = 2.1  // how far below what was seen, and above, the optimum is looked for, in ln
	beliefAbove  = 3.0  //
	beliefFails  = .2   // standard error of a throughput that was still falling
	beliefOutage = 1.   // and of next to none: it may have been an outage, and no fault of the limit's
	beliefModel  = .02  // standard error of a throughput that no number of samples makes up for
	beliefLoose  = .2   // the same where the limit was not full, so that what was in flight varied
	beliefDemand = .3   // what two demands differ by, in ln
	beliefDrift  = .05  // standard deviation of what all throughput changes by in one unit of age, in ln
	beliefBend   = .02  // and of what that of one limit does besides
	beliefFollow = .15  // and for a limit that has come into force again, so that it follows what is new
	beliefRest   = .06  // what windows at rest may differ by besides
	beliefGate   = 1e-3 // probability from which on something is not out of the question
	beliefLeast  = 1e-5 // and from which on it counts at all
	beliefMisfit = 12   // how much more than one for each bin the square of what the best curve is off by may be, in standard errors
	beliefBroken = 4.   // standard errors from which on what was seen lately at two limits contradicts what is believed
	beliefLately = 2.   // units of age that are lately
	beliefTrust  = .7   // in what was believed before a change, against everything else
	beliefFade   = 3.0  // how fast that trust ages
	beliefLean   = .5   // standard deviation of what a higher limit may do to the mixture of kinds, in ln X for each unit of ln L
	beliefSome   = .1   // completions that a bin stands for at least
	beliefLeant  = .03  // probability that it does anything
)

// beliefStand is the key of a bin for what is in flight at some demand, where the limit is not full.
const beliefStand = -1

// ctrlBin is what is known of the throughput with about so much in flight.
type ctrlBin struct {
	key   int     // which limit, or beliefStand
	at    float64 // ln of what is in flight
	y     float64 // ln of throughput
	mix   float64 // how much of that is since it is of the usual mixture of kinds, and not of that which there was
	n     float64 // completions behind it
	kinds bool    // it is of the usual mixture of kinds
	err   float64 // standard error besides
	age   float64 // since it was last seen
}

// ctrlBelief is all that is known of a service: the throughput at the limits that have been in force, and
// a prior for the optimum where there is one. It is a value.
type ctrlBelief struct {
	bins  [beliefBins]ctrlBin
	used  int
	prior [beliefCells]float64 // of ln K at beliefCell*i
	trust float64              // in prior, against a flat one
	lean  float64              // what a higher limit does to the mixture of kinds, in ln X for each unit of ln of what is in flight
	about float64              // and where it does nothing
	leans float64              // probability that it does anything
	leant float64              // and what that was before anything was seen
}

// add enters what was seen while the limit was full: n completions with ln X at y where ln of what is in flight is at. Each
// has variance v. All else ages. A bin that has more than most completions follows what is new; what is at rest takes the place of what was not.
func (b *ctrlBelief) add(limit int, seen ctrlBin, v, age, most float64) {
	seen.key, seen.err = beliefKey(limit), max(seen.err, beliefModel)
	b.grow(age)
	c := b.find(seen.key)
	switch {
	case c == nil:
		c = b.free()
	case c.err <= seen.err:
		c.age -= age
		c.n = 1 / (1/c.n + c.age*beliefFollow*beliefFollow/max(v, 1e-3))
		c.age = 0
		k := seen.n / (c.n + seen.n)
		c.at += k * (seen.at - c.at)
		c.y += k * (seen.y - c.y)
		c.mix += k * (seen.mix - c.mix)
		c.kinds = c.kinds || seen.kinds
		c.n = min(c.n+seen.n, max(most, seen.n))
		return
	}
	*c = seen
}

// beliefKey is the key of the bin of a limit.
func beliefKey(limit int) int { return int(math.Round(math.Log(float64(limit)) / beliefBin)) }

// find returns the bin of a key; nil is that there is none.
func (b *ctrlBelief) find(key int) *ctrlBin {
	for i := range b.bins[:b.used] {
		if b.bins[i].key == key {
			return &b.bins[i]
		}
	}
	return nil
}

// less has what was seen so far count for that part of the completions, but for a tenth of one at least: how often it is
// told so has no bound.
func (b *ctrlBelief) less(part float64) {
	for i := range b.bins[:b.used] {
		c := &b.bins[i]
		c.n = max(c.n*part, min(c.n, beliefSome))
	}
}

// shift adds to ln X of all, since it is known better what the usual mixture of kinds is. What was seen before they were told
// apart was of the mixture that was taken for the usual one then.
func (b *ctrlBelief) shift(ln float64) {
	for i := range b.bins[:b.used] {
		b.bins[i].y += ln
		b.bins[i].mix += ln
	}
}

// plain makes all of it of the mixture that there was.
func (b *ctrlBelief) plain() {
	for i := range b.bins[:b.used] {
		c := &b.bins[i]
		c.y -= c.mix
		c.mix, c.kinds = 0, false
	}
}

// tilt sets lean by what has been seen, where each completion has variance v with the mixture there was. It may be that the
// mixture depends on the limit, the more work being slow the more is in flight. Then that is no kind of work but what
// the limit does to it, and the usual mixture would hide it. Few completions do not tell that from chance and it is taken for
// unlikely; many do.
func (b *ctrlBelief) tilt(v float64) {
	var n, at, mix float64
	for i := range b.bins[:b.used] {
		if c := &b.bins[i]; c.kinds {
			n += c.n
			at += c.n * c.at
			mix += c.n * c.mix
		}
	}
	if n == 0 {
		return
	}
	at /= n
	mix /= n
	var square, product float64
	for i := range b.bins[:b.used] {
		if c := &b.bins[i]; c.kinds {
			square += c.n * (c.at - at) * (c.at - at)
			product += c.n * (c.at - at) * (c.mix - mix)
		}
	}
	b.about, b.lean = at, 0
	if !(product > 0) {
		return
	}
	known, slope := v/square, product/square
	of := beliefLean * beliefLean / (beliefLean*beliefLean + known) // the part of that slope which is no chance, if it is not all chance
	odds := math.Exp(min(.5*slope*slope/known*of, 50)) * math.Sqrt(1-of)
	odds *= b.leant / (1 - b.leant)
	b.leans = odds / (1 + odds)
	b.lean = b.leans * of * slope
}

// level returns ln X of what was seen with the usual mixture, less what the limit does to that.
func (b *ctrlBelief) level(at, y float64, kinds bool) float64 {
	if kinds {
		y -= b.lean * (at - b.about)
	}
	return y
}

// stand notes where the service stands while the limit is not full, from n completions. Then it is the arrivals that say
// what the throughput is, and chance that says how much is in flight for it: there is one point for each demand, and
// no slope from one moment to the next.
func (b *ctrlBelief) stand(at, y, n, age float64) {
	b.grow(age)
	var found *ctrlBin
	best := beliefDemand
	for i := range b.bins[:b.used] {
		c := &b.bins[i]
		if d := math.Abs(c.y - y); c.key == beliefStand && d < best {
			found, best = c, d
		}
	}
	if found == nil {
		found = b.free()
	}
	*found = ctrlBin{key: beliefStand, at: at, y: y, n: n, err: beliefLoose}
}

// drop forgets what had more throughput than y, ln X.
func (b *ctrlBelief) drop(y float64) {
	b.used = len(slices.DeleteFunc(b.bins[:b.used], func(c ctrlBin) bool { return b.level(c.at, c.y, c.kinds) >= y }))
}

// only forgets all but what was seen at a limit.
func (b *ctrlBelief) only(limit int) {
	key := beliefKey(limit)
	b.used = len(slices.DeleteFunc(b.bins[:b.used], func(c ctrlBin) bool { return c.key != key }))
	b.trust = 0
}

// grow makes everything older.
func (b *ctrlBelief) grow(age float64) {
	b.trust *= math.Exp(-beliefFade * age)
	for i := range b.bins[:b.used] {
		b.bins[i].age += age
	}
}

// free returns the bin to be written next: the oldest if there is no other.
func (b *ctrlBelief) free() *ctrlBin {
	if b.used < beliefBins {
		b.used++
		return &b.bins[b.used-1]
	}
	return b.oldest(nil, nil)
}

// oldest returns the bin that was last seen longest ago, but for x and y; nil is that there is no other.
func (b *ctrlBelief) oldest(x, y *ctrlBin) (oldest *ctrlBin) {
	for i := range b.bins[:b.used] {
		if c := &b.bins[i]; c != x && c != y && (oldest == nil || c.age > oldest.age) {
			oldest = c
		}
	}
	return oldest
}

// forget drops what was last seen longest ago where of two limits that have been in force lately the higher one has had so much more
// throughput than the other as q, which is what b says, has next to no room for. Each completion has variance v. It reports whether it
// did.
func (b *ctrlBelief) forget(q *ctrlPosterior, one, other int, v float64) bool {
	x, y := b.find(beliefKey(one)), b.find(beliefKey(other))
	if x == nil || y == nil || x == y || b.used < 3 || max(x.age, y.age) > beliefLately {
		return false
	}
	far := b.level(x.at, x.y, x.kinds) - q.predict(x.at) - b.level(y.at, y.y, y.kinds) + q.predict(y.at)
	known := v/x.n + x.err*x.err + v/y.n + y.err*y.err
	known += beliefBend*beliefBend*(x.age+y.age) + beliefDrift*beliefDrift*math.Abs(x.age-y.age)
	if far*(x.at-y.at) <= 0 || far*far <= beliefBroken*beliefBroken*known {
		return false
	}
	oldest := b.oldest(x, y)
	b.used--
	*oldest = b.bins[b.used]
	return true
}

// carry forgets everything but q, which was believed until a change after which work takes longer by f: the
// machine has become slower, and the optimum is where it was, or a dependency has, and more in flight makes up for it.
func (b *ctrlBelief) carry(q *ctrlPosterior, f float64) {
	*b = ctrlBelief{trust: beliefTrust, lean: b.lean, about: b.about, leans: b.leans, leant: min(max(b.leans, beliefLeant), .9)}
	further := math.Log(max(f, .5))
	put := func(lnK, p float64) {
		b.prior[min(max(int(math.Round(lnK/beliefCell)), 0), beliefCells-1)] += p / 2
	}
	for s := range q.p {
		for k := range q.cells {
			put(q.at(k), q.p[s][k])
			put(q.at(k)+further, q.p[s][k])
		}
	}
	for range 2 { // spread over the neighbours
		last := 0.
		for i, here := range b.prior {
			next := 0.
			if i+1 < beliefCells {
				next = b.prior[i+1]
			}
			b.prior[i] = .25*last + .5*here + .25*next
			last = here
		}
	}
}

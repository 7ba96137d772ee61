package limiter

import "math"

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
	beliefModel  = .02  // standard error of a throughput that no number of samples makes up for
	beliefLoose  = .2   // the same where the limit was not full, so that what was in flight varied
	beliefDemand = .3   // what two demands differ by, in ln
	beliefDrift  = .05  // standard deviation of what all throughput changes by in one unit of age, in ln
	beliefBend   = .02  // and of what that of one limit does besides
	beliefFollow = .15  // and for a limit that has come into force again, so that it follows what is new
	beliefRest   = .06  // what windows at rest may differ by besides
	beliefGate   = 1e-3 // probability from which on something is not out of the question
	beliefLeast  = 1e-5 // and from which on it counts at all
	beliefTrust  = .7   // in what was believed before a change, against everything else
	beliefFade   = 3.0  // how fast that trust ages
)

// beliefStand is the key of a bin for what is in flight at some demand, where the limit is not full.
const beliefStand = -1

// ctrlBin is what is known of the throughput with about so much in flight.
type ctrlBin struct {
	key int     // which limit, or beliefStand
	at  float64 // ln of what is in flight
	y   float64 // ln of throughput
	n   float64 // completions behind it
	err float64 // standard error besides
	age float64 // since it was last seen
}

// ctrlBelief is all that is known of a service: the throughput at the limits that have been in force, and
// a prior for the optimum where there is one. It is a value.
type ctrlBelief struct {
	bins  [beliefBins]ctrlBin
	used  int
	prior [beliefCells]float64 // of ln K at beliefCell*i
	trust float64              // in prior, against a flat one
}

// add enters n completions at a limit that was full, with ln X at y where ln of what is in flight is at. Each has
// variance v. All else ages. A bin that has more than most completions follows what is new.
func (b *ctrlBelief) add(limit int, at, y, n, v, age, most float64) {
	key := int(math.Round(math.Log(float64(limit)) / beliefBin))
	b.grow(age)
	for i := range b.bins[:b.used] {
		c := &b.bins[i]
		if c.key != key {
			continue
		}
		c.age -= age
		c.n = 1 / (1/c.n + c.age*beliefFollow*beliefFollow/max(v, 1e-3))
		c.age = 0
		k := n / (c.n + n)
		c.at += k * (at - c.at)
		c.y += k * (y - c.y)
		c.n = min(c.n+n, max(most, n))
		return
	}
	*b.free() = ctrlBin{key, at, y, n, beliefModel, 0}
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
	*found = ctrlBin{beliefStand, at, y, n, beliefLoose, 0}
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
	oldest := &b.bins[0]
	for i := range b.bins {
		if b.bins[i].age > oldest.age {
			oldest = &b.bins[i]
		}
	}
	return oldest
}

// carry forgets everything but q, which was believed until a change after which work takes longer by f: the
// machine has become slower, and the optimum is where it was, or a dependency has, and more in flight makes up for it.
func (b *ctrlBelief) carry(q *ctrlPosterior, f float64) {
	*b = ctrlBelief{trust: beliefTrust}
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

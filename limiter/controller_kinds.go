package limiter

import (
	"math"
	"math/bits"
	"sync"
)

// ctrlTimes is how many successes took about how long in a window, and how long in all, s.
type ctrlTimes [timesCells]struct{ n, sum float64 }

// A time belongs to a cell by its power of two, in units of 1,024 ns, and by which half of it.
const timesCells = 64

// timesCell returns the cell of a time in service, ns.
func timesCell(took int64) int {
	u := uint64(took) >> 10
	l := bits.Len64(u)
	if l < 2 {
		return l
	}
	return min(2*l-2+int(u>>(l-2)&1), timesCells-1)
}

// timesFrom returns where a cell begins, s.
func timesFrom(c int) float64 {
	if c < 2 {
		return float64(c) * 1.024e-6
	}
	return math.Ldexp(1+.5*float64(c&1), c/2) * 1.024e-6
}

// ctrlKinds tells two kinds of work apart by how long they take, where there are two: many requests that are
// quick and a few that are slow, and hardly any between. Chance decides how many slow ones a window holds, and if
// they are ten times as slow, that makes nearly all of its variance. It says nothing about the limit: what does is how
// long each kind takes. So the mean time in service is that of the usual mixture of what each kind takes in a window
// (post-stratification), and the variance is that within the kinds.
//
// What is quick and what is slow depends on how much is in flight, and is measured in units of what the faster
// half takes. How many are of a kind is counted as they come, since where the gap is moves with how long they take.
//
// It may be that only the slow kind queues, for a dependency that the quick one has no need of. Then it takes longer beside the
// quick one the higher the limit, and it is only as it comes back, late, that what a limit is worth shows: meanwhile the places that it
// will fill let more of the quick kind pass. So the kinds are strained where the slow one takes longer, in what the quick one takes,
// than it once did. Where all work slows down, the quick kind shows it long before the slow one comes back: what the one takes in units
// of the other meanwhile is nothing to compare with later. The zero value knows of no kinds.
type ctrlKinds struct {
	spread [kindsCells]float64 // how many took how many units: by its ln from kindsFrom, in kindsCell
	gap    float64             // units between the kinds; 0 is one kind
	share  float64             // of the slow kind
	many   float64             // of the quick kind lately
	few    float64             // and of the slow one
	quick  float64             // mean of each kind lately, s
	slow   float64
	most   float64 // the longest that anything took while the spread was seen, s
	past   float64 // mean of the quick kind while what is slow now came, s
	ratio  float64 // slow by quick over more than a window
	least  float64 // and the least that it has been while neither changed
	within float64 // square of the coefficient of variation of the time in service without what the mixture does
}

const (
	kindsCells  = 45
	kindsFrom   = -2.
	kindsCell   = .2
	kindsGap    = 3     // cells between two kinds
	kindsEmpty  = .1    // part of the slow kind that may be there
	kindsLess   = .6    // part of the variance that is within the kinds, at most, where they are told apart
	kindsVary   = .25   // and square of the coefficient of variation: a queue alone makes two kinds that vary by less
	kindsMany   = 24.   // successes from which on they are
	kindsFew    = 2.    // and slow ones
	kindsForget = 1000. // successes in which the spread is forgotten, at least
	kindsRounds = 30.   // and rounds: what was admitted at once comes back at once, and what is slow late
	kindsLate   = 1.    // successes that the slow kind's mean before a window counts for
	kindsJump   = 5     // times the share, and standard errors of it, from which on more slow ones are no chance
	kindsMuch   = 5.    // times what the fastest quarter takes from which on the faster half is not of one kind
	kindsRare   = 2.    // times as many of the quick kind as of the slow one there have to be
	kindsSlow   = 8.    // slow successes that the ratio counts for
	kindsLasts  = 100.  // times what is remembered in which the least ratio is forgotten
	kindsPast   = 3.    // times what the slow kind takes in which it is forgotten what the quick one took
	kindsMoves  = .2    // ln of what that has changed by from which on a ratio says nothing
	kindsStrain = 1.7   // times the least ratio from which on the slow kind has slowed down beside the quick one
	kindsQueues = 4.    // and from which on it alone queues: less may be since what was slow had not come back yet when that was seen
	kindsScale  = .2    // how much of what slows the quick kind down multiplies the slow one's time; the rest is added
	kindsBeyond = 2.    // times the longest that was seen, and not more, it may take before it has come
	kindsTimes  = 4.    // and as how many times as long the quick kind counts for that at most: beyond, it is of several kinds, and of another than before
)

// kindsUnits are the units of each cell of a spread.
var kindsUnits = sync.OnceValue(func() *[kindsCells]float64 {
	var at [kindsCells]float64
	for i := range at {
		at[i] = math.Exp(kindsFrom + kindsCell*float64(i))
	}
	return &at
})

// see learns from a window of so many seconds that was seen with so many in flight. It returns the mean time in service with the usual
// mixture, and by how much ln X of what was seen before changes since it is known better what is usual.
func (k *ctrlKinds) see(t *ctrlTimes, flight, secs float64) (r, shift float64) {
	n, sum := t.total()
	r = sum / n
	unit := t.faster(n)
	if !(unit > 0) {
		return r, 0
	}
	forget := max(kindsForget, kindsRounds*flight)
	keep := math.Exp(-n / forget)
	k.learn(t, unit, keep)
	k.most = max(k.most*keep, t.longest())
	gap, share, ratio := k.split()
	if gap == 0 {
		k.gap = 0
		return r, 0
	}
	var quick, slow struct{ n, sum float64 }
	for i := range t {
		switch c := &t[i]; {
		case c.n == 0:
		case c.sum > gap*unit*c.n:
			slow.n += c.n
			slow.sum += c.sum
		default:
			quick.n += c.n
			quick.sum += c.sum
		}
	}
	if quick.n == 0 {
		return r, 0
	}
	if usual := k.share * n; k.gap > 0 && slow.n > kindsFew+kindsJump*(usual+math.Sqrt(usual)) {
		*k = ctrlKinds{within: k.within} // what was quick has become slow: it is the service that has changed
		return r, 0
	}
	m := quick.sum / quick.n
	if k.gap == 0 {
		k.quick, k.slow = m, min(ratio*m, k.most) // the spread may be of another quick kind than this one
		seen := min(k.seen(), kindsForget)
		k.many, k.few = (1-share)*seen, share*seen
	} else {
		k.many = k.many*keep + quick.n
		k.few = k.few*keep + slow.n
		share = k.few / (k.many + k.few)
		more := k.slow/k.quick - 1
		shift = math.Log((1 + k.share*more) / (1 + share*more))
	}
	guess := max(k.slow+m-k.quick+kindsScale*(k.slow-k.quick)*min(m/k.quick-1, kindsTimes), m)
	guess = min(guess, m+kindsBeyond*k.most)
	k.quick = m
	k.slow = (slow.sum + kindsLate*guess) / (slow.n + kindsLate)
	if k.gap == 0 {
		k.ratio = max(k.slow/k.quick, ratio) // what the slow kind is believed to take is bounded by what has come
		k.least = k.ratio
		k.past = k.quick
	} else if slow.n > 0 {
		k.ratio += slow.n / (slow.n + kindsSlow) * (slow.sum/slow.n/k.quick - k.ratio)
	}
	k.past += (1 - math.Exp(-secs/(kindsPast*k.slow))) * (k.quick - k.past)
	if math.Abs(math.Log(k.quick/k.past)) > kindsMoves {
		k.least = k.ratio
	}
	k.least = min(k.least+(1-math.Exp(-n/(kindsLasts*forget)))*(k.ratio-k.least), k.ratio)
	k.gap, k.share = gap, share
	return (1-share)*k.quick + share*k.slow, shift
}

// strained reports that the slow kind takes longer beside the quick one than it once did.
func (k *ctrlKinds) strained() bool { return k.gap > 0 && k.ratio > kindsStrain*k.least }

// queues reports that the slow kind takes so much longer beside the quick one than it once did that it queues for what the quick
// one has no need of.
func (k *ctrlKinds) queues() bool { return k.gap > 0 && k.ratio > kindsQueues*k.least }

// seen returns how many the spread is of.
func (k *ctrlKinds) seen() (n float64) {
	for _, c := range k.spread {
		n += c
	}
	return n
}

// total returns how many there are, and their sum, s.
func (t *ctrlTimes) total() (n, sum float64) {
	for i := range t {
		n += t[i].n
		sum += t[i].sum
	}
	return n, sum
}

// longest returns the mean of those that took longest, or of what is in their cell.
func (t *ctrlTimes) longest() float64 {
	for i := len(t) - 1; i >= 0; i-- {
		if c := &t[i]; c.n > 0 {
			return c.sum / c.n
		}
	}
	return 0
}

// faster returns the mean of the faster half of n successes, or of the fastest quarter where that half is not of one kind.
func (t *ctrlTimes) faster(n float64) float64 {
	half, quarter := t.fastest(n/2), t.fastest(n/4)
	if half > kindsMuch*quarter {
		return quarter
	}
	return half
}

// fastest returns the mean of the n fastest successes.
func (t *ctrlTimes) fastest(n float64) float64 {
	left, sum := n, 0.
	for i := range t {
		if c := &t[i]; c.n > 0 {
			part := min(left, c.n)
			sum += part * c.sum / c.n
			if left -= part; left <= 0 {
				break
			}
		}
	}
	return sum / n
}

// learn enters a window into the spread, of which that part is kept.
func (k *ctrlKinds) learn(t *ctrlTimes, unit, keep float64) {
	for i := range k.spread {
		k.spread[i] *= keep
	}
	for i := range t {
		c := &t[i]
		if c.n == 0 {
			continue
		}
		at := min(max((math.Log(c.sum/c.n/unit)-kindsFrom)/kindsCell, 0), kindsCells-1.001)
		j := int(at)
		k.spread[j] += c.n * (1 - at + float64(j))
		k.spread[j+1] += c.n * (at - float64(j))
	}
}

// split looks for the gap between two kinds in the spread that explains most of the variance. It returns where it
// is, in units, the share of the slow kind, and how many times as long that takes.
func (k *ctrlKinds) split() (gap, share, ratio float64) {
	type moments struct{ n, sum, squares float64 }
	var all, below, between moments
	at := kindsUnits()
	for i := range at {
		n := k.spread[i]
		all.n += n
		all.sum += n * at[i]
		all.squares += n * at[i] * at[i]
	}
	if all.n < kindsMany {
		return 0, 0, 0
	}
	for i := range kindsGap - 1 {
		between.n += k.spread[i]
		between.sum += k.spread[i] * at[i]
	}
	mean := all.sum / all.n
	best, first, last := 0., 0, 0
	for i := 0; i+kindsGap < kindsCells; i++ {
		j := i + kindsGap - 1
		between.n += k.spread[j]
		between.sum += k.spread[j] * at[j]
		n, sum := all.n-below.n-between.n, all.sum-below.sum-between.sum // above
		if n >= kindsFew && below.n >= kindsRare*n && between.n <= kindsEmpty*n {
			d := sum/n - below.sum/below.n
			switch v := below.n * n / (all.n * all.n) * d * d; {
			case v > 1.02*best:
				best, first, last = v, i, i
				share, ratio = n/all.n, sum/n*below.n/below.sum
			case v > .98*best:
				last = i
			}
		}
		below.n += k.spread[i]
		below.sum += k.spread[i] * at[i]
		between.n -= k.spread[i]
		between.sum -= k.spread[i] * at[i]
	}
	whole := all.squares/all.n - mean*mean
	rest := whole - best
	if best == 0 || rest > kindsLess*whole || whole < kindsVary*mean*mean {
		return 0, 0, 0
	}
	k.within = max(rest, 0) / (mean * mean)
	return math.Exp(kindsFrom + kindsCell*(float64(first+last)/2+(kindsGap-1)/2.)), share, ratio
}

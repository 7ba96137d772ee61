package limiter

import "math"

// ctrlLife is a life table of the work in flight: of those that come to each age, what part ends there (an actuary's
// period life table). It makes up for what a mean over those that have ended does not know of. After the limit has been raised what is
// short ends first, and what is long is yet to come; after it has been lowered hardly anything but what is long does. The
// first looks like much throughput and the second like little, and neither has to do with the limit.
//
// Ages are told apart by the cells of ctrlTimes. The zero value is that of a limiter with nothing in flight.
type ctrlLife struct {
	ended  [timesCells]float64 // with success lately
	sum    [timesCells]float64 // and how long these took, s
	failed [timesCells]float64 // that ended otherwise
	older  [timesCells]float64 // that came to be older than the cell lately, less those who were and no longer are
	flying [timesCells]float64 // in flight when the last window ended
}

// ctrlAges is how many are in flight at the end of a window by their age, and how many ended in it otherwise than with success by
// how long that took.
type ctrlAges struct{ flying, failed [timesCells]float64 }

const (
	lifeSome   = 4.   // how many of one age what was seen before counts for at most
	lifeLonger = 2.   // how many times as old what is older than anything that has ended becomes
	lifeNone   = 1e-3 // completions that are none
	lifeLeft   = 1e-6 // part of the work that is none
)

// see learns from a window whose ages are known. It sets fair to the times of as many successes as it has, were they a fair sample of
// what is admitted, and returns the sum, s, and what part of it is a guess. A sum of 0 is that next to nothing succeeds by the table.
func (l *ctrlLife) see(w *ctrlWindow, fair *ctrlTimes) (sum, vague float64) {
	t, now := w.times, &w.ages.flying
	inside := 0.
	for _, n := range now {
		inside += n
	}
	keep := math.Exp(-w.n / max(inside, 8)) // forgotten in about a round
	older, last := 0., -1
	for c := timesCells - 1; c >= 0; c-- {
		k := keep
		if all := l.ended[c] + l.failed[c] + max(l.older[c], 0); all > 0 {
			k = min(keep, lifeSome/all)
		}
		l.ended[c] = k*l.ended[c] + t[c].n
		l.sum[c] = k*l.sum[c] + t[c].sum
		l.failed[c] = k*l.failed[c] + w.ages.failed[c]
		l.older[c] = k*l.older[c] + older
		// It may be less than none: what is known of the ages is about when it was admitted, and what is too much for one window is too
		// little for the next.
		older += t[c].n + w.ages.failed[c] + now[c] - l.flying[c]
		if last < 0 && l.ended[c] > lifeNone {
			last = c
		}
	}
	l.flying = *now
	clear(fair[:])
	part, left := 0., 1.
	for c := range last + 1 {
		ends := l.ended[c] + l.failed[c]
		if ends <= 0 {
			continue
		}
		all := ends + max(l.older[c], 0)
		if l.ended[c] > 0 {
			p := left * l.ended[c] / all
			part += p
			fair[c].n = p
			fair[c].sum = p * l.sum[c] / l.ended[c]
		}
		left = max(left-left*ends/all, 0)
	}
	var long float64
	if left > lifeLeft {
		// Nothing has ended that was so old: it is not known how long it takes, but longer than that.
		long = left * lifeLonger * l.oldest(last+1)
		c := timesCell(int64(long / left * 1e9))
		fair[c].n += left
		fair[c].sum += long
		part += left
	}
	if part < lifeLeft {
		return 0, 0 // all that was younger ended otherwise: what success takes is known by what has ended, or not at all
	}
	for c := range fair {
		fair[c].n *= w.n / part
		fair[c].sum *= w.n / part
		sum += fair[c].sum
	}
	return sum, long * w.n / part / sum
}

// oldest returns how old what is in flight is of at least the age at which a cell begins, s.
func (l *ctrlLife) oldest(from int) float64 {
	var n, age float64
	for c := from; c < timesCells; c++ {
		n += l.flying[c]
		age += l.flying[c] * (timesFrom(c) + timesFrom(c+1)) / 2
	}
	if n < lifeNone {
		return timesFrom(from)
	}
	return age / n
}

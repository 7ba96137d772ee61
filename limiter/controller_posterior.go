package limiter

import "math"

// ctrlPosterior says how probable each curve is with each optimum K.
type ctrlPosterior struct {
	from  float64 // ln K of the first cell
	cells int
	low   float64 // the least ln of what was in flight
	free  float64 // variance of level
	p     [ctrlShapes][beliefCells]float64
	level [ctrlShapes][beliefCells]float64 // ln of the throughput at K

	likely [ctrlShapes * beliefCells]ctrlCell // all that is not negligible
	n      int

	fair ctrlTimes // of a window
}

// ctrlCell is a curve and a cell of its optimum.
type ctrlCell struct{ shape, k uint8 }

func (q *ctrlPosterior) at(k int) float64 { return q.from + beliefCell*float64(k) }

// weigh sets q to what b says if each completion has variance v: Bayes' rule. The height of each curve is a random
// walk from the oldest bin to the present, estimated by a Kalman filter: two bins that are old alike tell as much of the
// slope between them as they did, however far all of it may have moved since.
func (b *ctrlBelief) weigh(q *ctrlPosterior, v float64) {
	var order [beliefBins]int // oldest first
	var gain, spread [beliefBins]float64
	low, high := math.Inf(1), math.Inf(-1)
	bins := b.bins[:b.used]
	for i := range bins {
		c := &bins[i]
		high = max(high, c.at)
		if c.n >= 1 {
			low = min(low, c.at) // what says next to nothing does not say where to look
		}
		j := i
		for ; j > 0 && bins[order[j-1]].age < c.age; j-- {
			order[j] = order[j-1]
		}
		order[j] = i
	}
	for j := range bins {
		c := &bins[order[j]]
		known := v/c.n + c.err*c.err + c.age*beliefBend*beliefBend
		if j == 0 {
			q.free, gain[j] = known, 1
			continue
		}
		q.free += (bins[order[j-1]].age - c.age) * beliefDrift * beliefDrift
		spread[j] = q.free + known
		gain[j] = q.free / spread[j]
		q.free *= 1 - gain[j]
	}
	if b.used > 0 {
		q.free += bins[order[b.used-1]].age * beliefDrift * beliefDrift
	}
	q.low = min(low, high)
	high += beliefAbove
	q.from = max(q.low-beliefBelow, high-beliefCell*(beliefCells-1), -1)
	q.cells = min(max(int((high-q.from)/beliefCell)+1, 1), beliefCells)
	tables := shapes()
	best := math.Inf(-1)
	for s := range q.p {
		l, level := q.p[s][:q.cells], q.level[s][:q.cells]
		clear(l)
		clear(level)
		for j := range bins {
			c := &bins[order[j]]
			less := 0.
			if j > 0 {
				less = .5 / spread[j]
			}
			tables[s].miss(l, level, c.at-q.from, b.level(c.at, c.y, c.kinds), gain[j], less)
		}
		for k := range l {
			if lnK := q.at(k); lnK < 0 {
				l[k] -= 4 * lnK * lnK // there is no less than one
			}
			best = max(best, l[k])
		}
	}
	// Where no curve fits, what fits least badly is not certain.
	temper := min(1, float64(b.used+beliefMisfit)/max(-2*best, 1e-9))
	sum := 0.
	for s := range q.p {
		for k := range q.cells {
			p := 0.
			if l := temper * (q.p[s][k] - best); l > -30 {
				prior := 1. / 80
				if i := int(math.Round(q.at(k) / beliefCell)); 0 <= i && i < beliefCells {
					prior += b.trust * b.prior[i]
				}
				p = prior * math.Exp(l)
			}
			q.p[s][k] = p
			sum += p
		}
	}
	q.n = 0
	for s := range q.p {
		for k := range q.cells {
			if q.p[s][k] /= sum; q.p[s][k] > beliefLeast {
				q.likely[q.n] = ctrlCell{uint8(s), uint8(k)}
				q.n++
			}
		}
	}
}

// miss enters one bin into the likelihood l and the level of each cell, the first of which is z below what
// is in flight.
func (t *ctrlShape) miss(l, level []float64, z, y, gain, less float64) {
	p := (z - shapeFrom) / shapeCell
	last := p - shapeStep*float64(len(l)-1)
	if last < 0 || p >= shapeCells-1 || len(level) < len(l) {
		for k := range l {
			e := y - shapeAt(&t.ln, z-beliefCell*float64(k), 1, -1) - level[k]
			l[k] -= less * e * e
			level[k] += gain * e
		}
		return
	}
	// One cell further is a whole number of steps in the table.
	i := int(p)
	f := p - float64(i)
	for k := range l {
		e := y - t.ln[i] - f*(t.ln[i+1]-t.ln[i]) - level[k]
		l[k] -= less * e * e
		level[k] += gain * e
		i -= shapeStep
	}
}

// worth returns what a limit is expected to be worth, of 1, if ln of what is then in flight is at.
func (q *ctrlPosterior) worth(at float64) (u float64) {
	tables := shapes()
	for _, c := range q.likely[:q.n] {
		u += q.p[c.shape][c.k] * shapeAt(&tables[c.shape].good, at-q.at(int(c.k)), 0, -shapePrice-shapeMore)
	}
	return u
}

// spread returns the standard deviation of ln X(to)/X(from): what a trial would teach.
func (q *ctrlPosterior) spread(from, to float64) float64 {
	tables := shapes()
	var m, mm float64
	for _, c := range q.likely[:q.n] {
		t, lnK, p := &tables[c.shape].ln, q.at(int(c.k)), q.p[c.shape][c.k]
		g := shapeAt(t, to-lnK, 1, -1) - shapeAt(t, from-lnK, 1, -1)
		m += p * g
		mm += p * g * g
	}
	return math.Sqrt(max(mm-m*m, 0))
}

// each calls f with what is likely: its probability and ln X at ln N = at.
func (q *ctrlPosterior) each(at float64, f func(p, y float64)) {
	tables := shapes()
	for _, c := range q.likely[:q.n] {
		f(q.p[c.shape][c.k], q.level[c.shape][c.k]+shapeAt(&tables[c.shape].ln, at-q.at(int(c.k)), 1, -1))
	}
}

// predict returns the expected ln X.
func (q *ctrlPosterior) predict(at float64) (y float64) {
	q.each(at, func(p, x float64) { y += p * x })
	return y
}

// lowest returns the least ln X that is not out of the question.
func (q *ctrlPosterior) lowest(at float64) float64 {
	y := math.Inf(1)
	q.each(at, func(p, x float64) {
		if p > beliefGate {
			y = min(y, x)
		}
	})
	return y
}

// surprise returns how much more probable it is that the service has changed than that ln X, known with variance v,
// is y by chance, as the ln of a ratio. What fits best of all that is not out of the question stands for chance.
func (q *ctrlPosterior) surprise(at, y, v float64) float64 {
	far := math.Inf(1)
	q.each(at, func(p, x float64) {
		if p > beliefGate {
			far = min(far, math.Abs(y-x))
		}
	})
	return beliefSurprise(far, v+q.free)
}

// beliefSurprise is that of something that is far from what was expected, in ln, where v is the variance of both.
func beliefSurprise(far, v float64) float64 {
	v += beliefRest * beliefRest
	return math.Log(.25) + far*far/(2*v) + .5*math.Log(2*math.Pi*v) // a change leads anywhere within four units
}

// optimum returns the expected ln K, its standard deviation, and the expected ln of the time in service: at K, and
// at K or the least that has been seen to be in flight, if that is more.
func (q *ctrlPosterior) optimum() (lnK, sd, lnR, seen float64) {
	tables := shapes()
	var mm float64
	for _, c := range q.likely[:q.n] {
		p, k := q.p[c.shape][c.k], q.at(int(c.k))
		lnK += p * k
		mm += p * k * k
		lnR += p * (k - q.level[c.shape][c.k])
		n := max(k, q.low)
		seen += p * (n - q.level[c.shape][c.k] - shapeAt(&tables[c.shape].ln, n-k, 1, -1))
	}
	return lnK, math.Sqrt(max(mm-lnK*lnK, 0)), lnR, seen
}

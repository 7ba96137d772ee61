package limiter

import "math"

// ctrlWindow is what was seen in one window of time.
type ctrlWindow struct {
	secs     float64
	idle     float64    // the part of it in which nothing was in flight
	n        float64    // successes
	sum      float64    // their time in service, s
	heavy    float64    // the same by weight, as far as that is beyond 1
	lost     float64    // and of all that was no success, by weight
	times    *ctrlTimes // how that is spread; nil is not known
	ages     *ctrlAges  // of what is in flight at its end; nil is not known
	aged     float64    // sum if what ended had been a fair sample of what is admitted; 0 is that it was
	vague    float64    // what part of that is a guess
	usual    float64    // sum for the usual mixture of kinds; 0 is as it is
	squares  float64    // its square, s²
	lag      float64    // the part of sum in which the work waited for a processor to begin, s
	arrivals float64
	blocked  float64 // arrivals that found no free permit
	gated    float64 // of these, those that waited for a processor and not for the limit
	shed     float64 // arrivals that were sent away, sooner or later
	open     float64 // smoothed share of arrivals that found a free permit
}

func (w *ctrlWindow) add(v ctrlWindow) {
	w.secs += v.secs
	w.idle += v.idle
	w.n += v.n
	w.heavy += v.heavy
	w.lost += v.lost
	usual, fair := w.even()+v.even(), w.fair()+v.fair()
	if w.usual > 0 || v.usual > 0 {
		w.usual = usual
	}
	if w.aged > 0 || v.aged > 0 {
		w.vague = (w.vague*w.fair() + v.vague*v.fair()) / fair
		w.aged = fair
	}
	w.sum += v.sum
	w.squares += v.squares
	w.lag += v.lag
	w.arrivals += v.arrivals
	w.blocked += v.blocked
	w.gated += v.gated
	w.shed += v.shed
	w.open = v.open
}

// even is the time in service with the usual mixture of kinds, s.
func (w *ctrlWindow) even() float64 {
	if w.usual > 0 {
		return w.usual
	}
	return w.fair()
}

// fair is the time in service of a fair sample of what is admitted, s.
func (w *ctrlWindow) fair() float64 {
	if w.aged > 0 {
		return w.aged
	}
	return w.sum
}

// flight is what was in flight, by weight, times the seconds that it was.
func (w *ctrlWindow) flight() float64 { return w.sum + w.heavy + w.lost }

// counted is the throughput while anything was in flight, 1/s.
func (w *ctrlWindow) counted() float64 { return w.n / (w.secs - w.idle) }

// ctrlMean is what a number of windows say: rates and shares.
type ctrlMean struct {
	n        float64 // behind it
	x        float64 // throughput, 1/s, by both of the next
	counted  float64
	inferred float64 // 0 unless the limit was full
	busy     float64 // share of the time in which anything was in flight
	rounds   float64 // of work in flight
	aged     bool    // what ended was no fair sample of what was admitted
	vague    float64 // and what is made of it is a guess in this part
	kinds    bool    // these are of the usual mixture of kinds
	mixed    float64 // ln of how much more throughput there is with that than with the mixture there was
	more     float64 // how much more was in flight, by weight, than successes
	worth    float64 // what each of these weighs
	r        float64 // mean time in service, s
	y        float64 // the part of r before the work began: the wait for a processor, s
	shed     float64 // share of those who came that was sent away
	blocked  float64 // share of arrivals that found no free permit
	gated    float64 // share of arrivals that waited for a processor and not for the limit
	load     float64 // arrivals, 1/s
}

// mean sums a window up that was seen at a limit.
func (w *ctrlWindow) mean(limit int) ctrlMean {
	even := w.even()
	m := ctrlMean{n: w.n, counted: w.counted() * w.sum / even, r: even / w.n, shed: w.shed / (w.n + w.shed)}
	if w.usual > 0 {
		m.kinds, m.mixed = true, math.Log(w.fair()/even)
	}
	m.aged, m.vague = w.aged > 0, w.vague
	m.worth = 1 + w.heavy/w.sum
	m.more = m.worth + w.lost/w.sum
	m.y = min(max(w.lag/w.n, 0), m.r)
	m.rounds = (w.secs - w.idle) / m.r
	m.busy = 1 - w.idle/w.secs
	if w.arrivals > 0 {
		m.blocked = w.blocked / w.arrivals
		m.gated = w.gated / w.arrivals
		m.load = w.arrivals / w.secs
	}
	if m.blocked-m.gated >= ctrlBinds {
		m.inferred = float64(limit) / m.more / m.r
	}
	m.weigh()
	return m
}

// crowd is the share of the time in service that went by before the work began. Permits
// of work that cannot begin are of no use: they are a queue in front of the processors.
func (m *ctrlMean) crowd() float64 { return m.y / max(m.r, 1e-9) }

// work is the time in service without the wait for a processor in front of it.
func (m *ctrlMean) work() float64 { return max(m.r-m.y, .01*m.r) }

// flight is what was in flight, by weight.
func (m *ctrlMean) flight() float64 { return m.x * m.r * m.more }

// lost is the part of what was in flight that came to nothing.
func (m *ctrlMean) lost() float64 { return (m.more - m.worth) / max(m.more, 1) }

// weigh makes up its mind about the throughput. A count over a few rounds is off by the part of
// a round that a window cuts, where work that began together ends together. While the
// limit is full, Little's law gives it from the time in service, which is slower to
// follow a change: the more rounds, the more the count is worth. Where kinds are told apart, or what ended was no fair
// sample, the count is worth nothing: slow work that has just been admitted is in flight, and not yet of the mixture.
func (m *ctrlMean) weigh() {
	m.x = m.counted
	switch {
	case m.inferred > 0 && (m.kinds || m.aged):
		m.x = m.inferred
	case m.inferred > 0:
		k := m.rounds * m.rounds / (m.rounds*m.rounds + 4)
		m.x = math.Exp(k*math.Log(m.counted) + (1-k)*math.Log(m.inferred))
	}
}

// shift has throughput be more, by its ln, for work that takes less.
func (m *ctrlMean) shift(ln float64) {
	f := math.Exp(ln)
	m.x *= f
	m.counted *= f
	m.inferred *= f
	m.mixed += ln
	m.r /= f
}

// plain makes it of the mixture that there was.
func (m *ctrlMean) plain() {
	m.kinds = false
	m.shift(-m.mixed)
	m.weigh()
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
	m.busy += a * (v.busy - m.busy)
	m.kinds = m.kinds || v.kinds
	m.aged, m.vague = v.aged, v.vague
	m.mixed += a * (v.mixed - m.mixed)
	m.more += a * (v.more - m.more)
	m.worth += a * (v.worth - m.worth)
	m.r += a * (v.r - m.r)
	m.y += a * (v.y - m.y)
	m.shed += a * (v.shed - m.shed)
	m.blocked += a * (v.blocked - m.blocked)
	m.gated += a * (v.gated - m.gated)
	m.load += a * (v.load - m.load)
	m.weigh()
}

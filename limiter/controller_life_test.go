package limiter

import (
	"math"
	"math/rand/v2"
	"testing"
)

// lifeWork is work that takes what it takes, however much is in flight.
type lifeWork struct {
	rnd   *rand.Rand
	draw  func(r *rand.Rand) float64 // how long it takes, s
	fails func(r *rand.Rand) float64 // and how long until it fails, if that is sooner; nil is never
	now   float64
	works []lifeOne
}

type lifeOne struct {
	from, to float64
	failed   bool
}

// window runs until a time, with so many in flight at any moment or what is left of more.
func (k *lifeWork) window(limit int, until float64) ctrlWindow {
	w := ctrlWindow{secs: until - k.now, times: new(ctrlTimes), ages: new(ctrlAges)}
	admit := func(at float64) {
		o := lifeOne{at, at + k.draw(k.rnd), false}
		if k.fails != nil {
			if to := at + k.fails(k.rnd); to < o.to {
				o.to, o.failed = to, true
			}
		}
		k.works = append(k.works, o)
	}
	for len(k.works) < limit {
		admit(k.now)
	}
	for {
		first := 0
		for i, o := range k.works {
			if o.to < k.works[first].to {
				first = i
			}
		}
		o := k.works[first]
		if o.to > until {
			break
		}
		k.works[first] = k.works[len(k.works)-1]
		k.works = k.works[:len(k.works)-1]
		took := o.to - o.from
		if o.failed {
			w.ages.failed[timesCell(int64(took*1e9))]++
			w.lost += took
		} else {
			w.times.enter(took)
			w.n++
			w.sum += took
		}
		for len(k.works) < limit {
			admit(o.to)
		}
	}
	k.now = until
	for _, o := range k.works {
		w.ages.flying[timesCell(int64((until-o.from)*1e9))]++
	}
	return w
}

// While the limit grows, what has ended is short, and after it has fallen it is long: the life table knows how long work takes, where
// the mean over what has ended is off by a factor.
func TestLifeTable(t *testing.T) {
	const short, long = .01, .2
	kinds := func(r *rand.Rand) float64 {
		if r.Float64() < .2 {
			return long * (.9 + .2*r.Float64())
		}
		return short * (.9 + .2*r.Float64())
	}
	spread := func(r *rand.Rand) float64 { return .03 * math.Exp(1.2*r.NormFloat64()-.72) }
	memoryless := func(r *rand.Rand) float64 { return .05 * r.ExpFloat64() }
	for _, tt := range []struct {
		name         string
		draw         func(*rand.Rand) float64
		mean         float64
		grows, falls float64 // how far off the mean over what has ended is at least, in ln
	}{
		{"two kinds", kinds, .8*short + .2*long, .25, 1},
		{"lognormal", spread, .03, .1, .8},
		{"exponential", memoryless, .05, .05, .4},
		{"all alike", func(*rand.Rand) float64 { return .05 }, .05, -.01, -.01},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var grows, falls [2]float64
			const runs = 16
			for seed := range uint64(runs) {
				k := lifeWork{rnd: rand.New(rand.NewPCG(seed, 3)), draw: tt.draw}
				var l ctrlLife
				var fair ctrlTimes
				see := func(limit int, secs float64) (plain, made float64) {
					w := k.window(limit, k.now+secs)
					sum, vague := l.see(&w, &fair)
					if n, s := fair.total(); math.Abs(n-w.n) > 1e-6*w.n || math.Abs(s-sum) > 1e-9*s || vague < 0 || vague > 1 {
						t.Fatalf("%v successes that take %v in all were made of %v and %v, %v of it a guess", n, s, w.n, sum, vague)
					}
					return math.Log(w.sum / w.n / tt.mean), math.Log(sum / w.n / tt.mean)
				}
				for limit := 50; limit < 400; limit = limit * 5 / 4 {
					see(limit, .05) // it grows in each window
				}
				plain, made := see(400, .05)
				grows[0] += plain / runs
				grows[1] += made / runs
				for range 20 {
					see(400, .05)
				}
				see(100, .03)
				plain, made = see(100, .03)
				falls[0] += plain / runs
				falls[1] += made / runs
			}
			t.Logf("grows: off by %.2f, made up for %.2f; falls: %.2f and %.2f", grows[0], grows[1], falls[0], falls[1])
			for _, off := range [][2]float64{grows, falls} {
				if most := max(.1, .4*math.Abs(off[0])); math.Abs(off[1]) > most {
					t.Errorf("the mean is off by %.2f, and by %.2f as made up for; want %.2f at most", off[0], off[1], most)
				}
			}
			if grows[0] > -tt.grows || falls[0] < tt.falls {
				t.Errorf("the mean over what has ended is off by %.2f and %.2f; want %.2f and %.2f, or there is nothing to make up for", grows[0], falls[0], -tt.grows, tt.falls)
			}
		})
	}
}

// What fails is no success that took so long, nor one that takes for ever: of what succeeds it is known how long it takes.
func TestLifeTableOfWhatFails(t *testing.T) {
	k := lifeWork{rnd: rand.New(rand.NewPCG(1, 1)),
		draw:  func(r *rand.Rand) float64 { return .02 + .08*r.Float64() },
		fails: func(r *rand.Rand) float64 { return []float64{.001, .06, 9}[r.IntN(3)] }}
	var l ctrlLife
	var fair ctrlTimes
	var plain, made float64
	for range 60 {
		w := k.window(200, k.now+.05)
		sum, _ := l.see(&w, &fair)
		plain += w.sum / w.n / 60
		made += sum / w.n / 60
	}
	if math.Abs(math.Log(made/plain)) > .05 {
		t.Errorf("successes took %.4f s, and by the table %.4f s", plain, made)
	}
}

// Cells of times begin where timesFrom says.
func TestTimesFrom(t *testing.T) {
	for c := 1; c < timesCells-1; c++ {
		at := int64(math.Round(timesFrom(c) * 1e9))
		if timesCell(at) != c || timesCell(at-1) != c-1 {
			t.Errorf("cell %d begins at %d ns: that is in cell %d, and what is before in %d", c, at, timesCell(at), timesCell(at-1))
		}
	}
}

// Where all that is young ends otherwise, what is left for success at a later age is nothing but the error of the arithmetic: the table says that
// it knows nothing, and no number of it is negative or none.
func TestLifeWhereNothingSucceeds(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	for range 1000 {
		var l ctrlLife
		w := ctrlWindow{n: 50, secs: 1, times: new(ctrlTimes), ages: new(ctrlAges)}
		for c := range 20 { // each of the young that is of an age fails at it, by what is known of those who are older
			w.ages.failed[c] = 3 * rnd.Float64()
			l.older[c], l.flying[c+1] = -rnd.Float64(), 100
		}
		w.times.enter(.1)
		w.times[timesCell(1e8)].n = 50
		var fair ctrlTimes
		if sum, vague := l.see(&w, &fair); sum != 0 || vague != 0 {
			t.Fatalf("a sum of %v, %v of it a guess, where nothing succeeds: %v", sum, vague, fair)
		}
	}
	for seed := range uint64(1000) { // ages that contradict one another
		rnd := rand.New(rand.NewPCG(seed, 2))
		var l ctrlLife
		for range 20 {
			w := ctrlWindow{n: 0, secs: 1, times: new(ctrlTimes), ages: new(ctrlAges)}
			for range 1 + rnd.IntN(4) {
				c := &w.times[rnd.IntN(timesCells-1)]
				n := float64(1 + rnd.IntN(100))
				c.n += n
				c.sum += n * .01
				w.n += n
			}
			for range rnd.IntN(8) {
				w.ages.failed[rnd.IntN(timesCells)] += float64(rnd.IntN(4))
				w.ages.flying[rnd.IntN(timesCells)] += float64(rnd.IntN(250))
			}
			var fair ctrlTimes
			sum, vague := l.see(&w, &fair)
			if !(sum >= 0 && vague >= 0 && vague <= 1) || math.IsInf(sum, 0) {
				t.Fatalf("seed %d: a sum of %v, %v of it a guess", seed, sum, vague)
			}
			for _, c := range fair {
				if !(c.n >= 0 && c.sum >= 0) {
					t.Fatalf("seed %d: %v", seed, fair)
				}
			}
		}
	}
}

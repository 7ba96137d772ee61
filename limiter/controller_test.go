package limiter

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// ctrlModel is a service in steady state under more load than it can do: what a window at a
// limit looks like.
type ctrlModel struct {
	x     func(limit float64) float64 // throughput, 1/s
	lag   func(limit float64) float64 // share of the time in service before the work begins
	shed  float64                     // share of arrivals that is sent away
	gated float64                     // share of those blocked that has room under the limit
	free  float64                     // the limit from which on it is all of them
	r     func(limit float64) float64 // time in service; nil is that of a limit that is full
}

func (m ctrlModel) window(s ctrlState) ctrlWindow {
	x := m.x(float64(s.limit))
	r := float64(s.limit) / x
	if m.r != nil {
		r = m.r(float64(s.limit))
	}
	n := math.Ceil(max(s.needN, s.needSecs*x, 1))
	w := ctrlWindow{secs: n / x, n: n, sum: n * r, squares: n * r * r, lag: n * r * m.lag(float64(s.limit)), open: 1}
	w.arrivals = n / (1 - m.shed)
	w.shed = w.arrivals - n
	if m.shed > 0 {
		w.blocked, w.open = w.arrivals, 0
		w.gated = m.gated * w.blocked
		if m.free > 0 && float64(s.limit) >= m.free {
			w.gated = w.blocked
		}
	}
	return w
}

// ctrlUneven has a throughput that varies by noise, in ln, from window to window whatever their size. Half is shed.
func ctrlUneven(x func(limit float64) float64, noise float64, seed uint64) ctrlModel {
	rnd := rand.New(rand.NewPCG(1, seed))
	return ctrlModel{lag: ctrlConst(0), shed: .5, x: func(l float64) float64 { return x(l) * math.Exp(noise*rnd.NormFloat64()) }}
}

// ctrlSlows is the throughput of work that slows itself down, in multiples of the most there is, with z times the
// optimum in flight.
func ctrlSlows(z float64) float64 { return 2.3 * z / (1 + .3*z + z*z) }

// ctrlContended is work that slows itself down, best with optimum in flight.
func ctrlContended(optimum float64) ctrlModel {
	return ctrlModel{lag: ctrlConst(0), shed: .5, x: func(l float64) float64 { return 10 * optimum * ctrlSlows(l/optimum) }}
}

// known is a controller that has come to know the service, from a limit on.
func (m ctrlModel) known(limit float64) ctrlState {
	s := ctrlNew(int(limit), 1, 1<<20)
	for range 300 {
		s = s.step(m.window(s))
	}
	return s
}

func ctrlConst(v float64) func(float64) float64 { return func(float64) float64 { return v } }

// ctrlComputes is work of 2 ms of nothing but a processor, of which there are procs: all but
// one for each of them wait.
func ctrlComputes(procs, shed float64) ctrlModel {
	return ctrlModel{
		x:    func(l float64) float64 { return 500 * min(l, procs) },
		lag:  func(l float64) float64 { return max(0, 1-procs/l) },
		shed: shed,
	}
}

// TestControllerCrowd: what waits for a processor is not given more company, and where requests are
// shed the limit goes in one trial to where nothing would wait, if throughput agrees.
func TestControllerCrowd(t *testing.T) {
	waits := ctrlModel{x: func(l float64) float64 { return 100 * l }, lag: ctrlConst(.6), shed: .3}
	tests := []struct {
		rule         string
		model        ctrlModel
		start, least int
		prepare      func(*ctrlState)
		windows      int
		first        int // the first limit other than start; 0 is none
		last         [2]int
		highest      int
	}{
		{"crowded and shedding: straight to 1.2 L (1-Y)", ctrlComputes(1, .5), 8, 1, nil, 30, 2, [2]int{1, 2}, 8},
		{"however high it is", ctrlComputes(2, .5), 128, 1, nil, 30, 3, [2]int{2, 3}, 128},
		{"the floor holds", ctrlComputes(1, .5), 8, 4, nil, 30, 4, [2]int{4, 4}, 8},
		{"nor does it matter what was believed of trials up", ctrlComputes(1, .5), 64, 1,
			func(s *ctrlState) { s.fresh, s.ramp, s.rested = false, false, -1e6 }, 30, 2, [2]int{1, 2}, 64},
		{"nothing is shed: it stands", ctrlComputes(1, 0), 8, 1, nil, 200, 0, [2]int{8, 8}, 8},
		{"little is shed: no trial up where most of the time is a wait", ctrlModel{x: ctrlConst(500), lag: ctrlConst(.6), shed: .05}, 8, 1, nil, 200, 0, [2]int{8, 8}, 8},
		{"not crowded: up, as ever", ctrlModel{x: func(l float64) float64 { return 100 * l }, lag: ctrlConst(.1), shed: .3}, 8, 1, nil, 60, 16, [2]int{64, 1 << 20}, 1 << 20},
		{"little is shed and less waits: up", ctrlModel{x: ctrlConst(500), lag: ctrlConst(.3), shed: .05}, 8, 1, nil, 20, 16, [2]int{8, 32}, 32},
		{"they wait at the gate and not for the limit: it stands", ctrlModel{x: ctrlConst(500), r: ctrlConst(.004), lag: ctrlConst(.5), shed: .5, gated: 1}, 8, 1, nil, 200, 0, [2]int{8, 8}, 8},
		{"and where the gate keeps the run queue short", ctrlModel{x: ctrlConst(500), r: ctrlConst(.004), lag: ctrlConst(.1), shed: .5, gated: 1}, 8, 1, nil, 200, 0, [2]int{8, 8}, 8},
		{"they wait at the gate, and those let in share the processors: the limit counts", ctrlModel{x: ctrlConst(500), lag: ctrlConst(.1), shed: .5, gated: .9}, 8, 1, nil, 200, 16, [2]int{1, 4}, 16},
		{"some wait for the limit too: up, once, since nothing takes longer for it", ctrlModel{x: ctrlConst(500), r: ctrlConst(.014), lag: ctrlConst(.1), shed: .5, gated: .9, free: 12}, 8, 1, nil, 200, 16, [2]int{16, 16}, 16},
		{"most wait for the limit: the crowd counts", ctrlModel{x: ctrlConst(500), lag: ctrlConst(.6), shed: .5, gated: .1}, 8, 1, nil, 30, 4, [2]int{1, 4}, 8},
		{"throughput follows the limit: the crowd is not its own, and it grows", waits, 8, 1, nil, 400, 4, [2]int{12, 1 << 20}, 1 << 20},
	}
	for _, tt := range tests {
		t.Run(tt.rule, func(t *testing.T) {
			s := ctrlNew(tt.start, tt.least, 1<<20)
			if tt.prepare != nil {
				tt.prepare(&s)
			}
			first, highest := 0, s.limit
			for range tt.windows {
				s = s.step(tt.model.window(s))
				if first == 0 && s.limit != tt.start {
					first = s.limit
				}
				highest = max(highest, s.limit)
			}
			if first != tt.first {
				t.Errorf("the first trial is at %d, want %d", first, tt.first)
			}
			if s.limit < tt.last[0] || s.limit > tt.last[1] {
				t.Errorf("after %d windows the limit is %d, want %d to %d", tt.windows, s.limit, tt.last[0], tt.last[1])
			}
			if highest > tt.highest {
				t.Errorf("the limit was %d, want at most %d", highest, tt.highest)
			}
		})
	}
}

// TestControllerBase: the base latency is learnt without the wait for a processor.
func TestControllerBase(t *testing.T) {
	s := ctrlNew(8, 1, 1<<20)
	for range 50 {
		s = s.step(ctrlComputes(1, 0).window(s))
	}
	if s.base < .0019 || s.base > .0021 {
		t.Errorf("the base is %.4f s, want .002: of .016 s, .014 s are the run queue", s.base)
	}
}

// TestControllerDoubts: whatever is believed of a service, it is put to the test: another limit is tried before
// three times as much has been seen as has to be between two trials.
func TestControllerDoubts(t *testing.T) {
	optima := []float64{10, 33}
	if labRace {
		optima = optima[:1]
	}
	curves := map[string]func(z float64) float64{
		"store":      func(z float64) float64 { return min(z, 1) },
		"processors": func(z float64) float64 { return z / math.Pow(1+math.Pow(z, 4), .25) },
		"contended":  ctrlSlows,
	}
	for name, curve := range curves {
		for _, optimum := range optima {
			for _, start := range []int{64, 300} {
				for _, noise := range []float64{0, .1} {
					model := ctrlUneven(func(l float64) float64 { return 10 * optimum * curve(l/optimum) }, noise, 2)
					s := ctrlNew(start, 1, 1<<20)
					for range 4000 {
						if s = s.step(model.window(s)); s.rested > 3*s.pause {
							t.Errorf("%s with its optimum at %.0f, started at %d, noise %.1f: nothing was tried for %.0f rounds at %d, where %.0f have to pass",
								name, optimum, start, noise, s.rested, s.limit, s.pause)
							break
						}
					}
				}
			}
		}
	}
}

// TestControllerUnrest: where throughput varies from window to window by more than the number of completions
// makes it, as beside a neighbour or a garbage collector, that is neither one change of the service after another
// nor a reason to believe in ever higher limits.
func TestControllerUnrest(t *testing.T) {
	windows := 2000
	if labRace {
		windows = 600
	}
	for _, optimum := range []float64{10, 100, 1000, 10000} {
		for _, noise := range []float64{.1, .2} {
			for seed := range uint64(4) {
				model := ctrlUneven(func(l float64) float64 { return 10 * min(l, optimum) }, noise, seed)
				s := ctrlNew(8, 1, 1<<20)
				for i := range windows {
					// At first it is not known how much is noise.
					if s = s.step(model.window(s)); i >= 300 && float64(s.limit) > 16*optimum {
						t.Errorf("optimum %.0f, noise %.1f, seed %d: the limit is %d after %d windows", optimum, noise, seed, s.limit, i)
						break
					}
				}
			}
		}
	}
}

// TestControllerShaken: what throughput varies by from window to window is of the work, and as much after the service has changed as before: where
// all of it waits in a queue, nothing else shows that it varies. Were it forgotten, each change would be followed by others that are chance.
// If it was the change itself, it is soon forgotten.
func TestControllerShaken(t *testing.T) {
	full := ctrlMean{blocked: 1, worth: 1, more: 1}
	x := func(l float64) float64 { return 10 * min(l, 100) }
	for seed := range uint64(4) {
		s := ctrlUneven(x, .2, seed).known(100)
		even := ctrlUneven(x, 0, seed).known(100)
		before, calm := s.noise(&full, 0), even.noise(&full, 0)
		if before < 4*calm {
			t.Fatalf("seed %d: each completion varies by %.2f, without noise %.2f: this says nothing", seed, before, calm)
		}
		s.shock(s.weigh(before), math.Log(2))
		if after := s.noise(&full, 0); after != before {
			t.Errorf("seed %d: each completion varies by %.2f, and by %.2f after the service has changed", seed, before, after)
		}
		model := ctrlUneven(func(l float64) float64 { return x(l) / 2 }, 0, seed)
		for range 40 {
			s = s.step(model.window(s))
		}
		if after := s.noise(&full, 0); after > before/4 {
			t.Errorf("seed %d: each completion varies by %.2f after 40 windows that are all the same; by %.2f before", seed, after, before)
		}
	}
}

// TestControllerLetInHigher: where the limit is not full all the time, and work has ended that was in flight for longer than that limit allows, it
// was let in at a higher one. What was counted is the throughput then, and not what so few in flight would have if all work took so long.
func TestControllerLetInHigher(t *testing.T) {
	for _, r := range []float64{.001, .01, .02, .03, .05, .2, 1} {
		s := ctrlState{limit: 27, from: 65, stale: true}
		w := ctrlWindow{secs: .025, n: 29, sum: 29 * r, arrivals: 39, blocked: 29}
		m := w.mean(s.limit)
		at, y := s.point(&w, &m)
		if in, x := math.Exp(at), math.Exp(y); math.Abs(x-29/.025) > 1e-6 || in > 27+1e-6 {
			t.Errorf("29 that took %v s in 25 ms at a limit of 27: throughput %.0f/s with %.1f in flight, want %.0f/s and at most 27", r, x, in, 29/.025)
		}
	}
}

// TestControllerMoved: work that takes ten times as long as before, all of it, does not vary more than before. Work
// that varies still does.
func TestControllerMoved(t *testing.T) {
	window := func(r, cv2 float64) ctrlWindow {
		return ctrlWindow{secs: 4 * r, n: 32, sum: 32 * r, squares: 32 * r * r * (1 + cv2), arrivals: 32, open: 1}
	}
	for _, cv2 := range []float64{.01, .6, 2, 4} {
		s := ctrlNew(8, 1, 1000)
		for range 20 {
			s = s.step(window(.01, cv2))
		}
		before := s.varied
		for range 8 {
			s = s.step(window(.1, cv2))
			if s.varied > 1.3*before+.05 {
				t.Errorf("varies by %.2f: %.2f was believed, %.2f after it had become slower", cv2, before, s.varied)
				break
			}
		}
	}
}

// TestControllerOverdone: a dependency becomes slower, and more in flight makes up for it until it is too much, where
// throughput collapses. That is not taken for a dependency that has become slower still, which more in flight would have to
// make up for too: the limit comes back at once.
func TestControllerOverdone(t *testing.T) {
	for _, optimum := range []float64{8, 40, 300, 2000} {
		for _, further := range []float64{3, 5, 8} {
			for _, left := range []float64{.05, .15, .4} { // of the throughput, beyond the new optimum
				model := ctrlContended(optimum)
				s := model.known(optimum)
				model.x = func(l float64) float64 {
					if l > further*optimum {
						return 10 * optimum * left
					}
					return 10 * l / further
				}
				most, beyond := 0, 0
				for range 100 {
					s = s.step(model.window(s))
					most = max(most, s.limit)
					if float64(s.limit) > further*optimum {
						beyond++
					} else if beyond > 0 {
						break // it has come back
					}
				}
				if float64(most) > 2.1*further*optimum || beyond == 0 || beyond > 4 {
					t.Errorf("optimum %.0f, then %.0f, and beyond it %.0f %%: the limit went to %d, and was beyond for %d windows",
						optimum, further*optimum, 100*left, most, beyond)
				}
			}
		}
	}
}

// While the limit only grows, less throughput is its own doing too, though work that was let in at once comes to its end at
// once and the time in service rises late: it does not go any further.
func TestControllerOverdoneGrowing(t *testing.T) {
	for _, optimum := range []float64{100, 700, 3000} {
		s := ctrlNew(8, 1, 1<<20)
		model := ctrlModel{lag: ctrlConst(0), shed: .5, x: func(l float64) float64 { return l }}
		for float64(s.limit) <= optimum {
			s = s.step(model.window(s))
		}
		failed := s.limit
		before := float64(s.from)
		for _, w := range []struct{ x, r float64 }{{.35, 1.1}, {.4, 4.2}, {1.2, 4.3}, {.3, 6}} {
			model.x = func(float64) float64 { return w.x * before }
			model.r = ctrlConst(w.r)
			if s = s.step(model.window(s)); s.limit > failed {
				t.Errorf("optimum %.0f: the limit failed at %d and went on to %d", optimum, failed, s.limit)
				break
			}
		}
	}
}

// A limit that was raised in vain is taken back though nobody has been refused yet: the line is patient at first, and who is in
// it waits in vain.
func TestControllerTakesBack(t *testing.T) {
	for _, optimum := range []float64{16, 64, 512, 4096} {
		model := ctrlModel{lag: ctrlConst(0), shed: .5, x: func(l float64) float64 {
			if l > optimum {
				return 7.6 * optimum
			}
			return 10 * l
		}}
		s := ctrlNew(8, 1, 1<<20)
		beyond := 0
		for range 60 {
			w := model.window(s)
			w.arrivals, w.shed, w.blocked = w.n, 0, w.n
			if s = s.step(w); float64(s.limit) > 1.5*optimum {
				beyond++
			} else if beyond > 0 {
				break
			}
		}
		if beyond == 0 || beyond > 6 {
			t.Errorf("optimum %.0f: beyond half as much again for %d windows, the limit is %d", optimum, beyond, s.limit)
		}
	}
}

// A service that slows down in the very moment in which the limit is raised looks like a limit that is too high. The one before tells
// which it was: there is as much less throughput there too, and what was believed before holds again. So the limit goes on from
// where it was, and not from what it was taken for.
func TestControllerAcquits(t *testing.T) {
	const seeds, slower = 10, 10
	for _, raised := range []float64{64, 128, 512} {
		all := 0
		for seed := range uint64(seeds) {
			rnd := rand.New(rand.NewPCG(seed, 4))
			model := ctrlModel{lag: ctrlConst(0), shed: .5, x: func(l float64) float64 { return 10 * l }}
			s := ctrlNew(8, 1, 1<<20)
			step := func() {
				w := model.window(s)
				by := math.Exp(rnd.NormFloat64() * math.Sqrt(2/w.n))
				w.sum *= by
				w.secs *= by
				w.squares *= 2 * by * by
				s = s.step(w)
			}
			for float64(s.limit) < raised || s.phase != ctrlSettle {
				step()
			}
			model.x = func(l float64) float64 { return 10. / slower * l }
			for windows := 0; windows < 60 && float64(s.limit) < 4*raised; windows++ {
				if step(); float64(s.limit) < raised/2 {
					t.Errorf("seed %d: at %.0f the service became slower by %d, and the limit went to %d", seed, raised, slower, s.limit)
				}
				all++
			}
		}
		// Two to go back, and two to come back and for each doubling, less one where more is known at once.
		if all > 7*seeds {
			t.Errorf("at a limit of %.0f the service became slower by %d: it was at four times that after %.1f windows in the mean, want 7 at most",
				raised, slower, float64(all)/seeds)
		}
	}
}

// Where only the slow kind of work queues, there was more throughput before since the quick kind passed by: that is forgotten, and nothing is
// where both have become slower, where there never was more, or where what is left does not fit either.
func TestControllerPassedBy(t *testing.T) {
	type point struct{ limit, x float64 }
	alone := ctrlKinds{gap: 3, ratio: 50, least: 10}
	for _, tt := range []struct {
		name  string
		kinds ctrlKinds
		seen  []point
		now   point
		want  []point // nil is that it is none of its business
	}{
		{"the slow kind queues", alone, []point{{32, 600}, {64, 1000}, {128, 1900}, {256, 3000}}, point{256, 1100}, []point{{32, 600}, {64, 1000}}},
		{"at a lower limit", alone, []point{{32, 600}, {256, 3000}}, point{64, 1000}, []point{{32, 600}}},
		{"there was more everywhere", alone, []point{{64, 2000}, {128, 4000}}, point{128, 1000}, []point{}},
		{"both kinds take longer", ctrlKinds{gap: 3, ratio: 11, least: 10}, []point{{32, 600}, {128, 1900}}, point{128, 600}, nil},
		{"one kind", ctrlKinds{ratio: 50, least: 10}, []point{{32, 600}, {128, 1900}}, point{128, 600}, nil},
		{"there never was more", alone, []point{{32, 600}, {64, 1000}}, point{128, 1050}, nil},
		{"what is left does not fit", alone, []point{{512, 300}, {1024, 3000}}, point{500, 1000}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := ctrlNew(8, 1, 1<<20)
			s.kinds = tt.kinds
			s.blame.stands = true
			at := func(p point) (ln, y float64) { return math.Log(p.limit), math.Log(p.x) }
			for _, p := range tt.seen {
				ln, y := at(p)
				s.belief.add(int(p.limit), ctrlBin{at: ln, y: y, n: 1000, kinds: true}, 1, 0, 1e4)
			}
			ln, y := at(tt.now)
			if got := s.passedBy(ln, y, .001, 1, true); got != (tt.want != nil) {
				t.Errorf("passedBy = %v", got)
			}
			left := tt.want
			if left == nil {
				left = tt.seen
			}
			var got []point
			for _, c := range s.belief.bins[:s.belief.used] {
				got = append(got, point{math.Round(math.Exp(c.at)), math.Round(math.Exp(c.y))})
			}
			if !slices.Equal(got, left) {
				t.Errorf("it is believed that %v, want %v", got, left)
			}
			if s.blame.stands != (tt.want == nil) {
				t.Errorf("a limit is to blame: %v", s.blame.stands)
			}
		})
	}
}

// While only the slow kind of work queues, what comes back tells nothing of a limit that was raised before: neither that it was not to blame,
// nor that the service has changed on the way down.
func TestControllerWaitsForSlowWork(t *testing.T) {
	for _, queues := range []bool{false, true} {
		model := ctrlModel{lag: ctrlConst(0), shed: .5, x: func(l float64) float64 { return 1000 * min(l, 64) / 64 }}
		s := model.known(64)
		s.kinds = ctrlKinds{gap: 3, ratio: 11, least: 10}
		if queues {
			s.kinds.ratio = 50
		}
		v := .5
		s.blame = ctrlBlame{stands: true, before: s.belief, less: 2, v: .01}
		s.belief.add(128, ctrlBin{at: math.Log(128), y: math.Log(1000 / math.Exp(2)), n: 1000}, v, 0, 1e4)
		before := s
		if changed := s.acquit(math.Log(float64(s.limit)), math.Log(1000/math.Exp(2)), .01, v, false); changed == queues {
			t.Errorf("slow work queues alone %v: as much less at the limit before, taken for a change %v", queues, changed)
		}
		s = before
		s.from, s.path = 2*s.limit, ctrlWindow{}
		w := model.window(s)
		w.secs, w.sum = 20*w.secs, 20*w.sum
		if changed := s.collapsed(w, w.mean(s.limit)); changed == queues {
			t.Errorf("slow work queues alone %v: less than at either end, taken for a change %v", queues, changed)
		}
	}
}

// A round that takes much longer than before is not waited for any longer for the work in it being varied, where kinds are told apart.
func TestControllerHurries(t *testing.T) {
	for _, tt := range []struct {
		name           string
		gap            float64
		slower, rounds float64
		wide           float64
	}{
		{"three times as slow", 3, 3, 0, 1},
		{"some time ago", 3, 3, ctrlAgain, 2.5},
		{"half as slow again", 3, 1.5, 0, 2.5},
		{"quicker", 3, .3, 0, 2.5},
		{"one kind", 0, 3, 0, 2.5},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := ctrlContended(64).known(64)
			s.kinds.gap, s.cv2 = tt.gap, ctrlVaries+1.5
			s.shock(s.weigh(1), math.Log(tt.slower))
			s.change += tt.rounds
			if got := s.wide(); got != tt.wide {
				t.Errorf("a window lasts %v rounds, want %v", got, tt.wide)
			}
		})
	}
}

// A change of the service that was no surprise when it came: what was seen before and what was seen since fit no curve, though each
// by itself says that more is better. What is oldest is forgotten when two limits have told so, until a curve fits.
func TestControllerForgets(t *testing.T) {
	for _, slower := range []float64{2, 2.2, 2.5} {
		s := ctrlNew(215, 1, 1<<20)
		s.fresh, s.ramp = false, false
		seen := func(limit int, each float64) {
			at := math.Log(float64(limit))
			s.belief.add(limit, ctrlBin{at: at, y: math.Log(each * float64(limit)), n: 2 * float64(limit)}, .1, .05, 4000)
		}
		for _, limit := range []int{8, 16, 32, 64} {
			seen(limit, 10)
		}
		seen(128, 10/math.Sqrt(slower)) // while it changed
		seen(256, 10/slower)
		model := ctrlModel{lag: ctrlConst(0), shed: .5, x: func(l float64) float64 { return 10 / slower * l }}
		windows := 0
		for ; windows < 100 && s.limit < 3000; windows++ {
			s = s.step(model.window(s))
		}
		t.Logf("slower by %.1f: the limit is %d after %d windows", slower, s.limit, windows)
		if s.limit < 3000 {
			t.Errorf("slower by %.1f: the limit is %d after %d windows, want 3000 and more", slower, s.limit, windows)
		}
	}
}

// Where hardly anything ends at a limit that fails, Little's law has work take as long as it likes: what comes after is not waited for
// any longer for that.
func TestControllerFailsSoon(t *testing.T) {
	s := ctrlNew(8, 1, 1<<20)
	model := ctrlModel{lag: ctrlConst(0), shed: .5, x: func(l float64) float64 { return 10 * l }}
	for s.limit < 512 || s.phase != ctrlSettle {
		s = s.step(model.window(s))
	}
	from := s.from
	const secs = 1.
	w := ctrlWindow{secs: secs, n: 1, sum: .5, squares: .25, arrivals: 1000, blocked: 1000, shed: 999}
	if s = s.step(w); s.limit != from {
		t.Fatalf("one of %d ended in a second: the limit is %d, want %d", 2*from, s.limit, from)
	}
	if s.needSecs > 3*secs {
		t.Errorf("it failed within %.0f s, and the next window is to last %.1f s", secs, s.needSecs)
	}
}

// TestControllerFails: a higher limit at which throughput collapses is given up with the first window that shows it, and
// not after as many rounds of slow work as it takes to be at rest; and the limit that it comes back to is measured in
// rounds of its own.
func TestControllerFails(t *testing.T) {
	for _, optimum := range []float64{100, 700, 3000} {
		for _, left := range []float64{.05, .1, .2} { // of the throughput, beyond it
			for _, cv2 := range []float64{0, 1, 3} {
				model := ctrlModel{lag: ctrlConst(0), shed: .5, x: func(l float64) float64 {
					if l > optimum {
						return 10 * optimum * left
					}
					return 10 * l
				}}
				s := ctrlNew(8, 1, 1<<20)
				beyond, back := 0, 0.
				for range 300 {
					w := model.window(s)
					w.squares *= 1 + cv2
					s = s.step(w)
					if float64(s.limit) > optimum {
						if back > 0 {
							break
						}
						beyond++
					} else if beyond > 0 {
						if back += w.secs; s.phase == ctrlHold && s.ref.n > 0 && !s.stale {
							break
						}
					}
				}
				// The last of the windows beyond is the first of those secs.
				slow := 2 * optimum / model.x(2*optimum)
				if beyond != 1 || back > 2*slow+8*.1 {
					t.Errorf("optimum %.0f, beyond it %.0f %%, variation %.0f: beyond for %d windows and measured again after %.1f s, of which a round beyond is %.1f",
						optimum, 100*left, cv2, beyond, back, slow)
				}
			}
		}
	}
}

// TestControllerProves: work takes longer, and it is not known whether a dependency has become slower, so that more in
// flight makes up for it, or the machine has, so that it makes it worse. Wherever the limit had come from, the first
// step up is a small one, and a dependency is made up for soon all the same.
func TestControllerProves(t *testing.T) {
	for _, optimum := range []float64{16, 100, 700, 3000} {
		for _, slower := range []float64{3, 5, 8} {
			for _, from := range []float64{.75, 1.25} { // the limit before, of the present one
				for _, machine := range []bool{true, false} {
					model := ctrlContended(optimum)
					s := model.known(optimum)
					held := s.limit
					s.from = int(from * float64(held))
					before := model.x
					model.x = func(l float64) float64 {
						if machine {
							return 10 * optimum / slower * math.Pow(max(1, l/optimum*1.5), -2)
						}
						return before(l / slower)
					}
					most, rounds := 0, 0
					for range 40 {
						if s = s.step(model.window(s)); !math.IsInf(s.change, 1) { // it has been noticed
							rounds++
							most = max(most, s.limit)
						}
						if !machine && float64(s.limit) > .7*slower*optimum {
							break
						}
					}
					if machine && float64(most) > 1.6*float64(held) {
						t.Errorf("optimum %.0f, from %.2f of it, the machine is slower by %.0f: the limit was raised from %d to %d", optimum, from, slower, held, most)
					}
					if !machine && (rounds == 0 || rounds > 20) {
						t.Errorf("optimum %.0f, from %.2f of it, the dependency is slower by %.0f: the limit is %d after %d windows", optimum, from, slower, s.limit, rounds)
					}
				}
			}
		}
	}
}

// TestControllerRises: after a dependency has become slower a limit that brings more is raised again at once, and not after a round of it.
func TestControllerRises(t *testing.T) {
	for _, optimum := range []float64{100, 700, 3000} {
		for _, slower := range []float64{4, 8, 16} {
			model := ctrlContended(optimum)
			s := model.known(optimum)
			before := model.x
			model.x = func(l float64) float64 { return before(l / slower) }
			windows := 0
			for ; windows < 100 && float64(s.limit) < .7*slower*optimum; windows++ {
				s = s.step(model.window(s))
				if math.IsInf(s.change, 1) {
					windows = 0 // it has not been noticed
				}
			}
			if windows > 6 {
				t.Errorf("optimum %.0f, slower by %.0f: the limit is %d after %d windows", optimum, slower, s.limit, windows)
			}
		}
	}
}

// TestControllerEarly: what is seen as soon as a dependency has become slower is uncertain as long as what ends is no fair sample of the
// work, the more the slower it is, and what is seen later at that limit takes its place.
func TestControllerEarly(t *testing.T) {
	for _, test := range []struct {
		slower, rounds float64
		aged           bool
		part           float64 // of what it is at most
	}{
		{4, 1, true, 1},
		{8, 1, true, 1},
		{4, 1.5, true, .5},
		{4, 3, true, 0},
		{4, 1, false, 0},
	} {
		model := ctrlContended(100)
		s := model.known(100)
		before := model.x
		model.x = func(l float64) float64 { return before(l / test.slower) }
		for n := 0; math.IsInf(s.change, 1); n++ {
			if n == 10 {
				t.Fatalf("%+v: a change was not noticed in %d windows", test, n)
			}
			w := model.window(s)
			for _, sum := range []*float64{&w.secs, &w.n, &w.sum, &w.squares, &w.arrivals, &w.blocked, &w.shed} {
				*sum *= test.rounds
			}
			if test.aged {
				w.aged = w.sum
			}
			s = s.step(w)
		}
		want := max(test.part*ctrlEarly*math.Log(s.slower), beliefModel)
		if got := s.belief.bins[0].err; s.slower < test.slower/2 || s.belief.used != 1 || math.Abs(got-want) > .1*want {
			t.Errorf("%+v: slower by %.1f, %d limits are known, with a standard error of %.2f; want 1 and %.2f", test, s.slower, s.belief.used, got, want)
		}
	}
	var b ctrlBelief
	b.add(100, ctrlBin{at: 1, y: 2, n: 50, err: .4}, 1, 0, 100)
	seen := ctrlBin{at: 1, y: 3, n: 50}
	b.add(100, seen, 1, 0, 100)
	if c := b.bins[0]; b.used != 1 || c.y != seen.y || c.n != seen.n || c.err != beliefModel {
		t.Errorf("after what is at rest: %d bins, the first is %+v; want just that", b.used, c)
	}
	b.add(100, ctrlBin{at: 1, y: 9, n: 50, err: .4}, 1, 0, 100)
	if c := b.bins[0]; b.used != 1 || c.y >= 9 || c.err != beliefModel {
		t.Errorf("after what is not at rest: %d bins, the first is %+v; want it to be known as well as before", b.used, c)
	}
}

// TestControllerRests: a limit that has just been raised was a trial of a higher one: the next, against all belief, comes
// some rounds after it, and not at once since none was needed on the way up.
func TestControllerRests(t *testing.T) {
	for _, optimum := range []float64{30, 100, 700, 3000} {
		for _, shed := range []float64{.3, .6, .95} {
			model := ctrlContended(optimum)
			model.shed = shed
			s := ctrlNew(ctrlStart, 1, 1<<20)
			trials, since := 0, 0.
			for range 300 {
				w := model.window(s)
				w.squares *= 1.5
				before := s
				s = s.step(w)
				since += w.secs * w.n / w.sum
				if s.limit <= before.limit {
					continue
				}
				if s.pause > before.pause {
					if trials++; since < ctrlSoon {
						t.Errorf("optimum %.0f, %.0f %% shed: %d was tried against all belief, %.1f rounds after the limit had been raised to %d", optimum, shed*100, s.limit, since, before.limit)
						break
					}
				}
				since = 0
			}
			if trials == 0 {
				t.Errorf("optimum %.0f, %.0f %% shed: nothing was tried against all belief", optimum, shed*100)
			}
		}
	}
}

// Where the trial of a lower limit has cost nothing, lower ones follow it at once, and no further than that costs nothing either: what was learned while a
// dependency was slow would have it otherwise.
func TestControllerSinks(t *testing.T) {
	for _, tt := range []struct {
		name    string
		optimum float64 // since the dependency is quick again; it was 400
		shed    float64
		noise   float64 // variance of each completion
		below   float64 // where the lowest limit is
		above   float64
		windows int // at most
	}{
		{"ten times as quick", 40, .5, .01, 40 / 1.55, 60, 30},
		{"four times as quick", 100, .5, .01, 100 / 1.55, 150, 20},
		{"four times as quick, and hardly any sent away", 100, .1, .01, 100 / 1.55, 150, 20},
		{"as slow as before", 400, .5, .01, 250, 400, 3},
		{"nearly as slow as before, and varied", 640, .5, .5, 400, 600, 8},
		{"not known in time", 40, .5, .5, 400, 600, 20},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(5, 6))
			model := ctrlModel{lag: ctrlConst(0), shed: tt.shed, x: func(l float64) float64 { return min(l, 400) }}
			s := ctrlNew(8, 1, 1<<20)
			step := func() {
				w := model.window(s)
				by := math.Exp(rnd.NormFloat64() * math.Sqrt(tt.noise/w.n))
				w.sum *= by
				w.secs *= by
				w.squares *= by * by * (1 + tt.noise)
				s = s.step(w)
			}
			for s.limit < 400 || s.phase != ctrlHold || s.stale {
				step()
			}
			model.x = func(l float64) float64 { return 400 * min(l/tt.optimum, 1) }
			before := s.ref
			s.try(s.limit * 3 / 4)
			s.sinks, s.before, s.rested = true, before, 0
			least := float64(s.limit)
			windows := 0
			for ; s.sinks; windows++ {
				if windows == tt.windows {
					t.Fatalf("after %d windows it still sinks, the limit is %d", windows, s.limit)
				}
				step()
				least = min(least, float64(s.limit))
			}
			t.Logf("%d windows, least %.0f", windows, least)
			if least < tt.below || least > tt.above {
				t.Errorf("the lowest limit was %.0f, want %.0f to %.0f", least, tt.below, tt.above)
			}
			for range 4 {
				step()
			}
			if back := float64(s.limit); back < tt.optimum*.8 {
				t.Errorf("the limit is %.0f, where %.0f is needed", back, tt.optimum)
			}
		})
	}
}

// TestControllerRisks: a trial against all belief takes as long a step as the variance demands where that costs less than a
// tenth by what is believed, and a shorter one beyond the optimum of work that is known to slow itself down.
func TestControllerRisks(t *testing.T) {
	flat := func(l float64) float64 { return min(l, 1) }
	tests := []struct {
		rule string
		x    func(z float64) float64
		at   float64 // in multiples of the optimum
		shed float64
		want float64
	}{
		{"a store that is full: nothing but time in service", flat, 1, .5, 1.5},
		{"nearly all is shed: a long step", flat, .8, .95, 2},
		{"below the optimum: up to it", ctrlSlows, .6, .5, 1.5},
		{"just beyond the optimum: a short step", ctrlSlows, 1.1, .5, math.Sqrt(1.5)},
		{"far beyond it, too", ctrlSlows, 1.3, .5, math.Sqrt(1.5)},
		{"nearly all is shed: as long as another", ctrlSlows, 1, .95, math.Sqrt2},
	}
	for _, tt := range tests {
		t.Run(tt.rule, func(t *testing.T) {
			for _, optimum := range []float64{30, 700, 3000} {
				s := ctrlNew(int(tt.at*optimum), 1, 1<<20)
				s.ref.shed = tt.shed
				for _, z := range []float64{.5, .7, .9, 1.1, 1.4, 1.8} {
					s.belief.add(int(z*optimum), ctrlBin{at: math.Log(z * optimum), y: math.Log(tt.x(z)), n: 4000}, 1, 0, 1e6)
				}
				if got := s.stride(s.weigh(1), 1.5); math.Abs(got-tt.want) > 1e-9 {
					t.Errorf("optimum %.0f: from %d the limit is multiplied by %.3f, want %.3f", optimum, s.limit, got, tt.want)
				}
			}
		})
	}
}

// FuzzController: the limit stays within its bounds and every figure finite whatever a window says.
func FuzzController(f *testing.F) {
	f.Add(uint8(8), []byte{1, 200, 3, 255, 0, 0, 90, 17, 66, 200, 3, 255})
	f.Add(uint8(255), []byte{255, 255, 255, 0, 0, 7, 0, 128, 128, 128, 1, 128})
	f.Fuzz(func(t *testing.T, start uint8, b []byte) {
		const least, most = 2, 300
		b = b[:min(len(b), 2000)] // each six are a window
		s := ctrlNew(min(max(int(start), least), most), least, most)
		for len(b) >= 6 {
			n := 1 + float64(b[0])
			r := math.Exp(float64(b[1])/16 - 12)
			w := ctrlWindow{secs: math.Exp(float64(b[2])/16 - 12), n: n, sum: n * r, squares: n * r * r * (1 + float64(b[3])/64)}
			w.shed = float64(b[4] >> 4)
			w.arrivals = n + w.shed
			w.blocked = min(w.arrivals, w.shed*2)
			w.lag = n * r * float64(b[4]&15) / 10
			slow := float64(b[3]&7) / 16 // takes ten times as long
			w.times = new(ctrlTimes)
			for _, k := range []struct{ n, r float64 }{{n * (1 - slow), r / (1 + 9*slow)}, {n * slow, 10 * r / (1 + 9*slow)}} {
				c := &w.times[timesCell(int64(k.r*1e9))]
				c.n += k.n
				c.sum += k.n * k.r
			}
			if b[2]&1 != 0 {
				w.ages = new(ctrlAges)
				for i, k := range b[:6] {
					w.ages.flying[timesCell(int64(r*math.Exp(float64(k)/32-4)*1e9))] += float64(b[5-i])
					w.ages.failed[k%timesCells] += float64(b[5-i] & 3)
				}
			}
			w.heavy = n * r * float64(b[5]&3)
			w.lost = n * r * (math.Exp(float64(b[5]>>2)/4) - 1)
			if b[5] == 255 && s.ref.n > 0 {
				s.starved(w.n / w.secs)
				s.try(s.limit / 2)
			}
			b = b[6:]
			s = s.step(w)
			if s.limit < least || s.limit > most {
				t.Fatalf("the limit is %d", s.limit)
			}
			for _, v := range []float64{s.base, s.needN, s.needSecs, s.mostSecs, s.ref.x, s.ref.y, s.ref.more, s.ref.worth, s.pause, s.rested, s.credit, s.pauseCrowd, s.doubt, s.disp, s.kinds.share, s.kinds.within, s.varied, s.ref.vague, s.blame.v, s.blame.rounds, s.elasticity} {
				if math.IsNaN(v) || math.IsInf(v, 0) || v < 0 && v != s.elasticity {
					t.Fatalf("%v in %+v", v, s)
				}
			}
		}
	})
}

// TestControllerFull: throughput is inferred from the time in service only where the limit is full, which
// it is not while arrivals wait for a processor.
func TestControllerFull(t *testing.T) {
	w := ctrlWindow{secs: .01, n: 5, sum: .02, arrivals: 10, blocked: 10, shed: 5}
	if m := w.mean(8); m.inferred == 0 || m.x < 600 {
		t.Errorf("a full limit of 8 at 4 ms each: throughput %.0f/s, want more than was counted", m.x)
	}
	w.gated = 9
	if m := w.mean(8); m.inferred != 0 || m.x != 500 {
		t.Errorf("behind the gate: throughput %.0f/s, want the 500/s counted", m.x)
	}
}

// What was seen may be made less of any number of times: it comes to count for next to nothing, and what is believed stays finite.
func TestControllerLess(t *testing.T) {
	b := ctrlBelief{leant: beliefLeant}
	b.add(8, ctrlBin{at: math.Log(8), y: 5, n: 100}, 1, 0, 1e6)
	for range 300 {
		b.less(.08)
		b.add(16, ctrlBin{at: math.Log(16), y: 5.5, n: 100}, 1, .1, 1e6)
	}
	if n := b.bins[0].n; !(n > 0 && n < 1) {
		t.Errorf("100 completions that were made less 300 times count for %v", n)
	}
	var q ctrlPosterior
	b.weigh(&q, 1)
	if y := q.predict(math.Log(16)); math.Abs(y-5.5) > .1 || q.n == 0 {
		t.Errorf("ln X at 16 is believed to be %v by %d likely curves, want 5.5", y, q.n)
	}
}

// BenchmarkController: what a window costs that is full of knowledge, at the lock of the limiter; there is one for
// each round of work and at most one every 5 ms. The baseline is a window that says nothing.
func BenchmarkController(b *testing.B) {
	model := ctrlModel{x: func(l float64) float64 { return 1000 * l / (l + 20) }, lag: ctrlConst(0), shed: .4}
	b.Run("nothing", func(b *testing.B) {
		s := ctrlNew(8, 1, 1<<20)
		for b.Loop() {
			s = s.step(ctrlWindow{})
		}
	})
	b.Run("window", func(b *testing.B) {
		b.ReportAllocs()
		s := ctrlNew(8, 1, 1<<20)
		rnd := rand.New(rand.NewPCG(1, 1))
		var times ctrlTimes // of two kinds
		for range 200 {
			times.enter(.01 * kindsDraw(rnd, .05))
		}
		var ages ctrlAges
		for range 200 {
			ages.flying[timesCell(int64(1e7*rnd.ExpFloat64()))]++
		}
		step := func() {
			w := model.window(s)
			w.times, w.ages = &times, &ages
			s = s.step(w)
		}
		for range 500 {
			step()
		}
		for b.Loop() {
			step()
		}
		b.ReportMetric(float64(s.belief.used), "limits")
		b.ReportMetric(float64(s.scratch.n), "curves")
	})
}

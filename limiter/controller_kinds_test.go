package limiter

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
)

// enter adds one that took so long, in s.
func (t *ctrlTimes) enter(took float64) {
	c := &t[timesCell(int64(took*1e9))]
	c.n++
	c.sum += took
}

// kindsDraw returns one of two kinds of work, where the slow one is a share of all that takes ten times as long. It is 1 on
// average if that share is .05.
func kindsDraw(rnd *rand.Rand, share float64) float64 {
	work := (.8 + .4*rnd.Float64()) / 1.45
	if rnd.Float64() < share {
		work *= 10
	}
	return work
}

// TestTimesCell: a cell is half an octave, they are in order, and everything has one.
func TestTimesCell(t *testing.T) {
	for _, tt := range []struct {
		took int64
		cell int
	}{
		{0, 0}, {1023, 0}, {1024, 1}, {2047, 1}, {2048, 2}, {3071, 2}, {3072, 3}, {4096, 4}, {6143, 4}, {6144, 5},
		{1 << 40, 60}, {1<<42 - 1, 63}, {math.MaxInt64, 63},
	} {
		if got := timesCell(tt.took); got != tt.cell {
			t.Errorf("%d ns: cell %d, want %d", tt.took, got, tt.cell)
		}
	}
	last := 0
	for took := int64(1); took < 1<<45; took += took/64 + 1 {
		got := timesCell(took)
		if got < last || got > last+1 {
			t.Fatalf("%d ns: cell %d after %d", took, got, last)
		}
		last = got
	}
}

// TestKindsMean: where there are two kinds, the mean time in service is known far better than from as many
// completions without telling them apart, whether what is in flight multiplies the time of each or adds to it.
func TestKindsMean(t *testing.T) {
	for _, n := range []int{12, 50, 400} {
		for _, rule := range []string{"multiplies", "adds"} {
			t.Run(fmt.Sprint(rule, "/", n), func(t *testing.T) {
				rnd := rand.New(rand.NewPCG(7, uint64(n)))
				var k ctrlKinds
				var even, plain, bias float64
				windows := 0
				for i := range 2000 {
					more := 1 + .5*float64(i/20%3)
					var times ctrlTimes
					for range n {
						work := kindsDraw(rnd, .05)
						if rule == "adds" {
							work += more - 1
						} else {
							work *= more
						}
						times.enter(.01 * work)
					}
					_, sum := times.total()
					r, _ := kindsSee(&k, &times, 16)
					if i < 200 {
						continue
					}
					// The usual mixture is that of the last thousand, which is known so well and no better.
					usual := 1 + 9./1.45*(k.share-.05)
					if rule == "adds" {
						usual += more - 1
					} else {
						usual *= more
					}
					d := math.Log(r / (.01 * usual))
					even += d * d
					bias += d
					d = math.Log(sum / float64(n) / (.01 * more))
					plain += d * d
					windows++
				}
				even, plain, bias = math.Sqrt(even/float64(windows)), math.Sqrt(plain/float64(windows)), bias/float64(windows)
				t.Logf("the mean of %d is off by %.3f, without telling them apart by %.3f", n, even, plain)
				if even > plain/2 || math.Abs(bias) > .03 {
					t.Errorf("the mean of %d is off by %.3f, %+.3f on average; without telling them apart it is by %.3f: want half of that, and .03", n, even, bias, plain)
				}
			})
		}
	}
}

// TestKindsOne: what is of one kind is not told apart, however much it varies, nor is a queue that some wait in.
func TestKindsOne(t *testing.T) {
	for _, tt := range []struct {
		rule string
		draw func(rnd *rand.Rand) float64
	}{
		{"always the same", func(*rand.Rand) float64 { return 1 }},
		{"a fifth either way", func(rnd *rand.Rand) float64 { return .8 + .4*rnd.Float64() }},
		{"exponential", (*rand.Rand).ExpFloat64},
		{"lognormal", func(rnd *rand.Rand) float64 { return math.Exp(.7 * rnd.NormFloat64()) }},
		{"lognormal, and wide", func(rnd *rand.Rand) float64 { return math.Exp(1.2 * rnd.NormFloat64()) }},
		{"half of it waits for the other half", func(rnd *rand.Rand) float64 { return .9 + .2*rnd.Float64() + float64(rnd.IntN(2)) }},
		{"as slow as it is, it is as frequent as anything between", func(rnd *rand.Rand) float64 { return math.Exp(3 * rnd.Float64()) }},
	} {
		t.Run(tt.rule, func(t *testing.T) {
			apart, windows := 0, 0
			for seed := range uint64(50) {
				rnd := rand.New(rand.NewPCG(3, seed))
				var k ctrlKinds
				for range 60 {
					var times ctrlTimes
					for range 16 {
						times.enter(.01 * tt.draw(rnd))
					}
					kindsSee(&k, &times, 16)
					windows++
					if k.gap > 0 {
						apart++
					}
				}
			}
			if apart > windows/100 {
				t.Errorf("told apart in %d of %d windows", apart, windows)
			}
		})
	}
}

// kindsWindow is what a window of s looks like where the limit is full, half is shed, there is throughput x, and each takes
// what draw says, s.
func kindsWindow(s ctrlState, x float64, draw func() float64) ctrlWindow {
	var times ctrlTimes
	var squares float64
	for range int(math.Ceil(max(s.needN, s.needSecs*x))) {
		took := draw()
		squares += took * took
		times.enter(took)
	}
	n, sum := times.total()
	return ctrlWindow{secs: sum / float64(s.limit), n: n, sum: sum, squares: squares, times: &times,
		arrivals: 2 * n, blocked: 2 * n, shed: n}
}

// TestKindsMixture: another mixture of kinds is not another service. Nothing of what is known of the limit is
// forgotten, and it stays where it is.
func TestKindsMixture(t *testing.T) {
	for seed := range uint64(8) {
		rnd := rand.New(rand.NewPCG(5, seed))
		share := .03
		s := ctrlNew(8, 1, 1<<20)
		for i := range 900 {
			if i == 500 {
				share = .12
			}
			slower := max(1, float64(s.limit)/20) * .01
			s = s.step(kindsWindow(s, float64(s.limit)/(slower*(1+9*share)/1.45), func() float64 {
				return kindsDraw(rnd, share) * slower
			}))
			if i < 300 {
				continue
			}
			if s.kinds.gap == 0 {
				t.Fatalf("seed %d: one kind in window %d", seed, i)
			}
			if s.belief.used < 3 || s.limit < 10 || s.limit > 80 {
				t.Fatalf("seed %d: in window %d the limit is %d with %d known, 20 places", seed, i, s.limit, s.belief.used)
			}
		}
		if math.Abs(s.kinds.share-.12) > .05 {
			t.Errorf("seed %d: a share of %.3f is slow, want about .12", seed, s.kinds.share)
		}
	}
}

// TestKindsBeyond: whatever the mixture is of, and whatever it was before, no kind takes far longer than anything did. One that is a
// thousand times as long as the other is so many units of that, and not of the next.
func TestKindsBeyond(t *testing.T) {
	for seed := range uint64(40) {
		rnd := rand.New(rand.NewPCG(17, seed))
		var k ctrlKinds
		most := 0.
		takes, share := make([]float64, 2+rnd.IntN(3)), make([]float64, 4)
		for i := range takes {
			takes[i] = 1e-6 * math.Exp(12*rnd.Float64())
		}
		for i := range 400 {
			if i%50 == 0 {
				for j := range share {
					share[j] = math.Pow(rnd.Float64(), 3)
				}
			}
			var times ctrlTimes
			for range 8 + rnd.IntN(60) {
				j := rnd.IntN(len(takes))
				for tries := 0; tries < 100 && rnd.Float64() > share[j]; tries++ {
					j = rnd.IntN(len(takes))
				}
				took := takes[j] * (.9 + .2*rnd.Float64())
				times.enter(took)
				most = max(most, took)
			}
			r, _ := kindsSee(&k, &times, 16)
			if far := (1 + kindsBeyond) * most; !(r > 0) || r > far || k.slow > far {
				t.Fatalf("seed %d, window %d: nothing took longer than %v, the mean is %v and the slow kind takes %v", seed, i, most, r, k.slow)
			}
		}
	}
}

// TestKindsChanged: where many of the quick take as long as the slow all at once, it is no other mixture but another service, and the
// mean is that of what there is. Three times as many slow ones as usual are chance, or another mixture.
func TestKindsChanged(t *testing.T) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(13, seed))
		see := func(k *ctrlKinds, share float64) (r, mean float64) {
			var times ctrlTimes
			for range 400 {
				times.enter(.01 * kindsDraw(rnd, share))
			}
			n, sum := times.total()
			r, _ = kindsSee(k, &times, 16)
			return r, sum / n
		}
		var k ctrlKinds
		for range 20 {
			see(&k, .05)
		}
		mixed, changed := k, k
		if see(&mixed, .15); mixed.gap == 0 {
			t.Errorf("seed %d: three times as many slow ones: no longer told apart", seed)
		}
		if r, mean := see(&changed, .45); changed.gap != 0 || r != mean {
			t.Errorf("seed %d: nearly half is slow: the mean is %.4f, want %.4f, with one kind", seed, r, mean)
		}
		if changed.within < k.within/2 {
			t.Errorf("seed %d: the variance within the kinds was %.3f and is %.3f now: what is known was as exact as that", seed, k.within, changed.within)
		}
	}
}

// TestKindsByChance: where two kinds are told apart and it turns out that there is only one, as happens where few are seen, no more is
// made of what was seen meanwhile, and no less: each completion varies by what it varies by.
func TestKindsByChance(t *testing.T) {
	for seed := range uint64(8) {
		rnd := rand.New(rand.NewPCG(17, seed))
		s := ctrlNew(8, 1, 1<<20)
		share, ended := .05, false
		for i := 0; i < 2000 && !ended; i++ {
			if s.kinds.gap > 0 && s.belief.used >= 3 {
				share = 0
			}
			slower := max(1, float64(s.limit)/20) * .01
			w := kindsWindow(s, float64(s.limit)/(slower*(1+9*share)/1.45), func() float64 {
				return kindsDraw(rnd, share) * slower
			})
			before := s
			if s = s.step(w); before.kinds.gap == 0 || s.kinds.gap > 0 {
				continue
			}
			ended = true
			for _, c := range before.belief.bins[:before.belief.used] {
				if c.key == beliefKey(before.limit) {
					continue // it has learned from this window
				}
				if now := s.belief.find(c.key); now == nil || now.n < c.n {
					t.Errorf("seed %d: what was seen at the limits of about %.0f was %.0f completions, and is %+v when there is only one kind", seed, math.Exp(c.at), c.n, now)
				}
			}
		}
		if !ended {
			t.Errorf("seed %d: two kinds to the end: this says nothing", seed)
		}
	}
}

// TestKindsAstray: where it is the limit that makes work slow, it is no other kind of work: beyond 20
// in flight there is no more throughput, and a few that take twenty times as long are what there is instead.
func TestKindsAstray(t *testing.T) {
	apart := false
	for seed := range uint64(8) {
		rnd := rand.New(rand.NewPCG(11, seed))
		s := ctrlNew(8, 1, 1<<20)
		for i := range 1500 {
			mean := max(float64(s.limit)/2000, .01)
			share := min((mean-.01)/.19, .4)
			quick := mean / (1 + 19*share)
			s = s.step(kindsWindow(s, float64(s.limit)/mean, func() float64 {
				took := quick * (.9 + .2*rnd.Float64())
				if rnd.Float64() < share {
					took *= 20
				}
				return took
			}))
			apart = apart || s.kinds.gap > 0
			if s.limit > 16*20 {
				t.Fatalf("seed %d: the limit is %d after %d windows", seed, s.limit, i)
			}
		}
	}
	if !apart {
		t.Error("they were never told apart: this says nothing")
	}
}

// TestKindsStrain: where the slow kind becomes slower and slower beside the quick one, its share is known all the same, and that it does, and
// then that it alone queues, is seen; where both become slower alike nothing of the sort is.
func TestKindsStrain(t *testing.T) {
	for _, beside := range []bool{true, false} {
		for _, share := range []float64{.05, .1, .2} {
			rnd := rand.New(rand.NewPCG(11, uint64(100*share)))
			var k ctrlKinds
			var worst float64
			for i := range 200 {
				longer := math.Exp(3 * min(max(float64(i-100)/40, 0), 1))
				var times ctrlTimes
				for range 50 {
					took := .01 * (.8 + .4*rnd.Float64())
					if slow := rnd.Float64() < share; slow {
						took *= 10
						if beside {
							took *= longer
						}
					}
					if !beside {
						took *= longer
					}
					times.enter(took)
				}
				kindsSee(&k, &times, 8)
				if i >= 40 {
					worst = max(worst, math.Abs(math.Log(k.share/share)))
				}
			}
			if worst > .5 || k.strained() != beside || k.queues() != beside {
				t.Errorf("slower beside the quick kind %v, share %.2f: the share is off by a factor of %.2f, strained %v, queues %v",
					beside, share, math.Exp(worst), k.strained(), k.queues())
			}
		}
	}
}

// TestKindsLate: where all work becomes slower at once, the quick kind ends so much later at once, and the slow one while it still ends that
// came before: that it takes longer in units of the quick one when it comes back is no strain.
func TestKindsLate(t *testing.T) {
	for _, slower := range []float64{3, 7, 10} {
		for _, share := range []float64{.05, .1} {
			const flight, change = 200, 50.
			rnd := rand.New(rand.NewPCG(13, uint64(slower)))
			var came, ends [flight]float64
			admit := func(i int, now float64) {
				took := .1 * (.9 + .2*rnd.Float64())
				if rnd.Float64() < share {
					took *= 10
				}
				if now > change {
					took *= slower
				}
				came[i], ends[i] = now, now+took
			}
			for i := range ends {
				admit(i, rnd.Float64())
			}
			var k ctrlKinds
			told := false
			for from := 1.; from < 2*change; from += .2 {
				var times ctrlTimes
				for i := range ends {
					for ends[i] < from+.2 {
						times.enter(ends[i] - came[i])
						admit(i, ends[i])
					}
				}
				if n, _ := times.total(); n == 0 {
					continue
				}
				k.see(&times, flight, .2)
				if k.strained() {
					t.Fatalf("slower by %v, share %v: strained after %.1f s, the slow kind takes %.1f times as long, and took %.1f", slower, share, from-change, k.ratio, k.least)
				}
				told = told || k.gap > 0 && from > change+1
			}
			if !told {
				t.Errorf("slower by %v, share %v: never told apart after the change: this says nothing", slower, share)
			}
		}
	}
}

// TestKindsRegained: where all work becomes slower the kinds may be lost, since what is quick now is neither of them, and be told apart again
// before any of the slow one has come back. What that takes is not known then, and no ratio to compare it with later.
func TestKindsRegained(t *testing.T) {
	for _, slower := range []float64{2, 3, 6} {
		rnd := rand.New(rand.NewPCG(19, uint64(slower)))
		var k ctrlKinds
		see := func(slower, share float64) {
			var times ctrlTimes
			for range 50 {
				took := .1 * slower * (.9 + .2*rnd.Float64())
				if rnd.Float64() < share {
					took *= 10
				}
				times.enter(took)
			}
			kindsSee(&k, &times, 40)
		}
		for range 20 {
			see(1, .05)
		}
		if k.gap == 0 {
			t.Fatal("the kinds are never told apart: this says nothing")
		}
		k.gap = 0 // they are lost
		see(slower, 0)
		if k.gap == 0 {
			t.Fatalf("slower by %v: the kinds are not told apart again: this says nothing", slower)
		}
		for range 40 {
			if see(slower, .05); k.strained() {
				t.Fatalf("slower by %v: strained, the slow kind takes %.1f times as long, and took %.1f", slower, k.ratio, k.least)
			}
		}
	}
}

// kindsSee has k see what ended while so many were in flight.
func kindsSee(k *ctrlKinds, times *ctrlTimes, flight float64) (r, shift float64) {
	_, sum := times.total()
	return k.see(times, flight, sum/flight)
}

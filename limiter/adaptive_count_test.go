package limiter

import (
	"math"
	"testing"
	"time"
)

// Counters that run over, as that of the squares does after some thousands of requests that take a minute, change nothing.
func TestAdaptiveCountersRunOver(t *testing.T) {
	run := func(before uint64) (seen []float64) {
		const each = 100
		c := NewAdaptive()
		for i := range c.cells {
			cell := &c.cells[i]
			cell.squares.Store(before)
			cell.heavy.Store(before)
			cell.lost.Store(before)
			for j := range c.adapt.cells[i] {
				c.adapt.cells[i][j].n.Store(1)
				c.adapt.cells[i][j].sum.Store(int64(before))
			}
		}
		now := time.Duration(1)
		c.adapt.times = c.adapt.spread()
		c.adapt.begin(now, c.adapt.counts(c, now))
		for i := range 40 * each {
			p, ok := c.take(3, now)
			if !ok {
				t.Fatal("no permit")
			}
			now += time.Duration(1+i%3) * 10 * time.Second
			p.ReleaseAt(Outcome(i%7/6), c.base.Add(now))
			seen = append(seen, c.adapt.ctrl.cv2, c.adapt.ctrl.ref.r, c.adapt.ctrl.ref.more)
		}
		return seen
	}
	want := run(0)
	for _, before := range []uint64{math.MaxUint64 / 2, math.MaxUint64 - 1000} {
		for i, x := range run(before) {
			if x != want[i] {
				t.Errorf("counted on from %d: after %d requests %v, want %v", before, i/3+1, x, want[i])
				break
			}
		}
	}
}

// Where work weighs more than the limit, the limit is what it counts as: it takes no less for that.
func TestAdaptiveStarvesByWeight(t *testing.T) {
	const limit, took, n = 2, .1, 20
	for _, weight := range []float64{1, 2, 8} {
		a := NewAdaptive(WithStart(limit)).adapt
		a.ctrl.base, a.ctrl.ref.worth, a.ctrl.ref.more = took, weight, weight
		counts := min(weight, limit)
		lost := concCount{ended: n, lost: uint64(n * took * counts / adaptUnit)}
		now := time.Duration(n * took * counts / limit * float64(time.Second))
		if got := a.starves(&lost, now); math.Abs(got-took) > .001 {
			t.Errorf("weight %v: nothing succeeds, and the time that it takes is %v, want %v", weight, got, took)
		}
	}
}

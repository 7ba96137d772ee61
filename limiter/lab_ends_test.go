package limiter

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/spillgate/spillgate/limiter/limitersim"
)

// ends is a store of so many places at 10 ms each, asked for three times what it can do, where a part of the work waits for a dependency first, so many
// times as long in the mean, until half a minute has passed.
type ends struct {
	places      int
	times, part float64
	varies      bool // what the store does takes exponentially distributed times
}

// run returns how much of what the store can do was done in 200 ms in each period that ends then, the first of which begins when the slow work ends, and
// the limit at the end of each.
func (e ends) run(until ...time.Duration) (good []float64, limits []int) {
	const took, end = 10 * time.Millisecond, 30 * time.Second
	svc := limitersim.Store(e.places, took)
	if e.varies {
		svc.Demand = func(r *rand.Rand) float64 { return r.ExpFloat64() }
	}
	c := NewAdaptive()
	sim := limitersim.New(svc, 3, 0, until[len(until)-1])
	for _, at := range until {
		sim.At(at, func() { limits = append(limits, c.Limit()) })
	}
	random := rand.New(rand.NewPCG(1, 0))
	d := labDrive(sim, c)
	d.work = func(r *limitersim.Request) {
		if sim.Now() >= end || random.Float64() >= e.part {
			r.Admit()
			return
		}
		sim.At(sim.Now()+time.Duration(e.times*float64(took)*random.ExpFloat64()), r.Admit)
	}
	good = make([]float64, len(until))
	d.outcome = func(r *limitersim.Request) Outcome {
		now, from := sim.Now(), end
		for i, to := range until {
			if from < now && now <= to && now-r.Arrived() < 200*time.Millisecond {
				good[i] += 1 / ((to - from).Seconds() * svc.Capacity)
			}
			from = to
		}
		return Success
	}
	sim.Run(d)
	return good, limits
}

// Where slow work ends in the midst of an overload, the places that it had were taken by a queue of the rest: the limit stayed at many times
// what it had to be, and nobody was served in time, since throughput was what it had been.
func TestLabSlowWorkEnds(t *testing.T) {
	if labRace {
		t.Skip("no goroutines to race")
	}
	rows := []ends{{4, 100, .5, true}, {8, 100, .2, false}, {20, 100, .2, true}, {20, 100, .5, false}}
	if *labFull {
		rows = nil
		for _, places := range []int{2, 4, 8, 20} {
			for _, times := range []float64{20, 100} {
				for _, part := range []float64{.05, .2, .5} {
					rows = append(rows, ends{places, times, part, false}, ends{places, times, part, true})
				}
			}
		}
	}
	good := make([][]float64, len(rows))
	labParallel(len(rows), func(i int) {
		var limits []int
		good[i], limits = rows[i].run(40*time.Second, 50*time.Second, 70*time.Second)
		t.Logf("%+v: done in time %.2f, limits %d", rows[i], good[i], limits)
	})
	var mean [3]float64
	for _, g := range good {
		for i := range mean {
			mean[i] += min(g[i], 1) / float64(len(rows))
		}
	}
	t.Logf("done in time, until 10 s later, 20 s, 40 s: %.3f in the mean", mean)
	if mean[1] < .93 || mean[2] < .97 {
		t.Errorf("done in time from 10 s to 20 s later %.3f, from then to 40 s %.3f; want .93 and .97", mean[1], mean[2])
	}
}

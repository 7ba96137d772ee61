package limiter

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/spillgate/spillgate/limiter/limitersim"
)

// bypass is a store of 20 places at 50 ms each, where a part of all requests does not go there and takes so long.
type bypass struct {
	part, load float64 // load is of the store
	takes      time.Duration
	seed       uint64
	slower     float64 // times 50 ms that the others wait for a dependency before the store, from the twentieth second on; 0 is that there is none
}

// run returns how much of what the store can do was done within ten times as long as it takes without a queue, from one time to another,
// and the highest limit.
func (b bypass) run(from, to time.Duration) (good float64, most int) {
	const took = 50 * time.Millisecond
	svc := limitersim.Store(20, took)
	c := NewAdaptive()
	sim := limitersim.New(svc, b.load, 7+b.seed, to)
	sim.Rate = func(time.Duration) float64 { return b.load * svc.Capacity / (1 - b.part) }
	random := rand.New(rand.NewPCG(1, b.seed))
	d := labDrive(sim, c)
	dep := func() time.Duration {
		times := b.slower
		if sim.Now() < 20*time.Second {
			times = min(times, 1)
		}
		return time.Duration(times * float64(took))
	}
	d.work = func(r *limitersim.Request) {
		switch {
		case random.Float64() < b.part:
			sim.At(sim.Now()+b.takes, func() { d.end(r, Success) })
		case b.slower > 0:
			sim.At(sim.Now()+dep(), r.Admit)
		default:
			r.Admit()
		}
	}
	d.outcome = func(r *limitersim.Request) Outcome {
		if now := sim.Now(); now > from {
			most = max(most, c.Limit())
			if now-r.Arrived() < 10*(took+dep()) {
				good++
			}
		}
		return Success
	}
	sim.Run(d)
	return good / (to - from).Seconds() / svc.Capacity, most
}

// bypassRows returns what is run: with -lab so many seeds of each, and where about as much comes as can be served, too.
func bypassRows(seeds uint64, slower ...float64) (rows []bypass) {
	loads := []float64{3}
	if *labFull {
		loads = append(loads, 1.2)
	} else {
		seeds = 1
	}
	for _, takes := range []time.Duration{100 * time.Microsecond, 5 * time.Millisecond} {
		for _, part := range []float64{.3, .5, .7, .9} {
			for _, s := range slower {
				for seed := range seeds {
					for _, load := range loads {
						rows = append(rows, bypass{part, load, takes, seed, s})
					}
				}
			}
		}
	}
	return rows
}

// bypassMean runs all of rows, and demands that so much is done at each load in the mean.
func bypassMean(t *testing.T, rows []bypass, from, to time.Duration, want map[float64]float64) {
	good := make([]float64, len(rows))
	labParallel(len(rows), func(i int) {
		var most int
		good[i], most = rows[i].run(from, to)
		t.Logf("%+v: goodput %.3f, limit %d at most", rows[i], good[i], most)
	})
	for _, load := range slices.Backward(slices.Sorted(maps.Keys(want))) {
		var of []float64
		mean := 0.
		for i, k := range rows {
			if k.load == load {
				of = append(of, good[i])
				mean += min(good[i], 1)
			}
		}
		if len(of) == 0 {
			continue
		}
		mean /= float64(len(of))
		t.Logf("load %.1f: goodput %.3f in the mean, least %.3f", load, mean, slices.Min(of))
		if mean < want[load] {
			t.Errorf("load %.1f: goodput %.3f in the mean, want %.2f", load, mean, want[load])
		}
	}
}

// Where a part of the requests has no need of what the others queue for, as static files beside pages from a database, a higher limit
// lets more of these pass until the places it adds are full of the others, which come back late: that was taken for throughput each time, and
// the limit went to thousands nearly everywhere. In a few of the runs it still does.
func TestLabBypass(t *testing.T) {
	if labRace {
		t.Skip("no goroutines to race")
	}
	bypassMean(t, bypassRows(4, 0), 10*time.Second, 60*time.Second, map[float64]float64{3: .9, 1.2: .8})
}

// And where it is the service that has changed, so that only the requests which queue take longer, the limit follows: it is not held for the
// quick ones having passed by.
func TestLabBypassSlows(t *testing.T) {
	if labRace {
		t.Skip("no goroutines to race")
	}
	bypassMean(t, bypassRows(3, 4, 10), 30*time.Second, 50*time.Second, map[float64]float64{3: .95, 1.2: .9})
}

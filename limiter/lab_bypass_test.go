package limiter

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/spillgate/spillgate/limiter/limitersim"
)

// labBypass returns, from the tenth second on, how much of what a store of 20 places can do at 50 ms each was done within ten times
// that, where a part of all requests does not go there and takes so long, and the highest limit.
func labBypass(part float64, takes time.Duration, load float64, seed uint64) (good float64, most int) {
	const from, end, late = 10 * time.Second, 60 * time.Second, 500 * time.Millisecond
	svc := limitersim.Store(20, 50*time.Millisecond)
	c := NewAdaptive()
	sim := limitersim.New(svc, load, 7+seed, end)
	sim.Rate = func(time.Duration) float64 { return load * svc.Capacity / (1 - part) }
	random := rand.New(rand.NewPCG(1, seed))
	d := labDrive(sim, c)
	d.work = func(r *limitersim.Request) {
		if random.Float64() < part {
			sim.At(sim.Now()+takes, func() { d.end(r, Success) })
			return
		}
		r.Admit()
	}
	d.outcome = func(r *limitersim.Request) Outcome {
		if now := sim.Now(); now > from {
			most = max(most, c.Limit())
			if now-r.Arrived() < late {
				good++
			}
		}
		return Success
	}
	sim.Run(d)
	return good / (end - from).Seconds() / svc.Capacity, most
}

// Where a part of the requests has no need of what the others queue for, as static files beside pages from a database, a higher limit
// lets more of these pass until the places it adds are full of the others, which come back late: that was taken for throughput each time, and
// the limit went to thousands nearly everywhere. In some of the runs in which nine of ten pass by it still does.
func TestLabBypass(t *testing.T) {
	if labRace {
		t.Skip("no goroutines to race")
	}
	type row struct {
		part, load float64
		takes      time.Duration
		seed       uint64
	}
	var rows []row
	seeds := uint64(1)
	if *labFull {
		seeds = 4
	}
	for _, takes := range []time.Duration{100 * time.Microsecond, 5 * time.Millisecond} {
		for _, part := range []float64{.3, .5, .7, .9} {
			for seed := range seeds {
				rows = append(rows, row{part, 3, takes, seed})
				if *labFull {
					rows = append(rows, row{part, 1.2, takes, seed})
				}
			}
		}
	}
	good := make([]float64, len(rows))
	labParallel(len(rows), func(i int) {
		k := rows[i]
		var most int
		good[i], most = labBypass(k.part, k.takes, k.load, k.seed)
		t.Logf("%2.0f %% take %5v and pass by, load %.1f, seed %d: goodput %.3f, limit %d at most", 100*k.part, k.takes, k.load, k.seed, good[i], most)
	})
	for _, load := range []float64{3, 1.2} {
		var of []float64
		for i, k := range rows {
			if k.load == load {
				of = append(of, good[i])
			}
		}
		if len(of) == 0 {
			continue
		}
		slices.Sort(of)
		mean := 0.
		for _, g := range of {
			mean += min(g, 1) / float64(len(of))
		}
		t.Logf("load %.1f: goodput %.3f in the mean, least %.3f", load, mean, of[0])
		if mean < .8 {
			t.Errorf("load %.1f: goodput %.3f in the mean, want .8", load, mean)
		}
	}
}

package compare

import (
	"context"
	"flag"
	"fmt"
	"math"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/failsafe-go/failsafe-go/adaptivelimiter"
	"github.com/failsafe-go/failsafe-go/bulkhead"
	chimw "github.com/go-chi/chi/v5/middleware"
	"github.com/go-kratos/aegis/ratelimit"
	"github.com/go-kratos/aegis/ratelimit/bbr"
	"github.com/zeromicro/go-zero/core/load"
	"github.com/zeromicro/go-zero/core/logx"

	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/limiter/limitersim"
)

// The laboratory: every limiter of work in flight before the same services, with the same arrivals and the same
// work, in virtual time. What is compared is what a limit is for, not what it costs.

var (
	labFull = flag.Bool("lab", false, "run the whole laboratory: 35 cells of 30 seconds for each limiter, about two minutes")
	labSeed = flag.Uint64("lab.seed", 42, "seed of the laboratory")
)

// labMakers limit how much work is in flight. What they return is called for each request, in a goroutine
// of its own: it calls work if the request is admitted.
//
// Those with 20 in their names have a limit that is set by hand, to the number that is seen most in their users' code;
// it fits services that are best with 8 to 25 in flight.
var labMakers = []struct {
	name string
	make func(load float64) func(work func())
}{
	{"spillgate", func(float64) func(work func()) {
		l := limiter.NewAdaptive()
		return func(work func()) {
			p, err := l.Acquire(context.Background(), limiter.Request{})
			if err != nil {
				return
			}
			work()
			p.Release(limiter.Success)
		}
	}},
	{"failsafe-adaptive", func(float64) func(work func()) {
		l := adaptivelimiter.NewWithDefaults[any]()
		return func(work func()) {
			p, ok := l.TryAcquirePermit()
			if !ok {
				return
			}
			work()
			p.Record()
		}
	}},
	{"failsafe-adaptive-queue", func(float64) func(work func()) {
		l := adaptivelimiter.NewBuilder[any]().WithQueueing(2, 3).Build()
		return func(work func()) {
			p, err := l.AcquirePermitWithMaxWait(context.Background(), 100*time.Millisecond)
			if err != nil {
				return
			}
			work()
			p.Record()
		}
	}},
	// aegis and go-zero limit only while the processor is busy, by meters of their own which read the real machine; both
	// start a goroutine for that when they are imported, outside of every bubble. In virtual time there is nothing to
	// read, so their thresholds are set such that the reading does not matter: below the load at which the processor of a
	// CPU-bound service would be busy enough they are off, above it they are on, as if every service were CPU-bound. On the others
	// the meters would never turn them on, and nothing would be limited: see load 3 without a limiter.
	{"aegis-bbr", func(load float64) func(work func()) {
		threshold := int64(0) // of 1,000
		if load < .8 {
			threshold = 1001
		}
		l := bbr.NewLimiter(bbr.WithCPUThreshold(threshold))
		return func(work func()) {
			done, err := l.Allow()
			if err != nil {
				return
			}
			work()
			done(ratelimit.DoneInfo{})
		}
	}},
	// go-zero besides lowers what it finds, to a tenth at most, by how little of the processor is idle. This threshold makes
	// it a tenth, which is what its meter says of a CPU-bound service in overload. No option makes it another
	// part that does not depend on the real machine.
	{"go-zero-shedder", func(l float64) func(work func()) {
		load.DisableLog()
		logx.Disable()
		threshold := int64(-1 << 40)
		if l <= .9 {
			threshold = 1001
		}
		s := load.NewAdaptiveShedder(load.WithCpuThreshold(threshold))
		return func(work func()) {
			p, err := s.Allow()
			if err != nil {
				return
			}
			work()
			p.Pass()
		}
	}},
	{"chi-Throttle-20", func(float64) func(work func()) { return labHandler(chimw.Throttle(20)) }},
	{"chi-ThrottleBacklog-20", func(float64) func(work func()) {
		return labHandler(chimw.ThrottleBacklog(20, 20, 100*time.Millisecond))
	}},
	{"failsafe-bulkhead-20", func(float64) func(work func()) {
		l := bulkhead.New[any](20)
		return func(work func()) {
			if l.AcquirePermitWithMaxWait(context.Background(), 100*time.Millisecond) != nil {
				return
			}
			work()
			l.ReleasePermit()
		}
	}},
}

// labHandler limits by a middleware: the handler is the work.
func labHandler(wrap func(http.Handler) http.Handler) func(work func()) {
	type key struct{}
	h := wrap(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { r.Context().Value(key{}).(func())() }))
	request := newRequest("/")
	return func(work func()) {
		h.ServeHTTP(newWriter(), request.WithContext(context.WithValue(context.Background(), key{}, work)))
	}
}

var labLoads = []float64{.5, .9, 1.5, 3, 10}

// labCell is one limiter before one service at one load.
type labCell struct {
	limitersim.Score
	slower float64 // P99 in multiples of that at half load without a limiter
}

func (c labCell) String() string {
	if c.P99 == 0 {
		return fmt.Sprintf("%.2f     - ", c.Goodput) // nothing was ever answered
	}
	return fmt.Sprintf("%.2f %5.1fx", c.Goodput, c.slower)
}

// Ours keeps the goodput up everywhere. Where another does so as well, since it began with a limit that happens to fit, ours
// is not behind by more than what the search for the limit costs.
func TestLab(t *testing.T) {
	from, to := 2*time.Second, 10*time.Second
	loads := []float64{.9, 1.5, 3, 10}
	profiles := limitersim.Profiles()
	switch {
	case *labFull:
		to = 30 * time.Second
		loads = labLoads
	case raceEnabled:
		to = 5 * time.Second
		loads = loads[1:2]
		profiles = profiles[6:] // narrow: few requests, so that it takes seconds
	}
	left := func(svc limitersim.Service, load float64) bool {
		return !*labFull && load*svc.Capacity > 10_000 // two cells that take as long as all others together
	}
	until := func(svc limitersim.Service) time.Duration {
		if svc.Capacity < 100 && !raceEnabled {
			return 30 * time.Second // fewer seconds are too few requests to tell anything by
		}
		return to
	}
	base := make([]time.Duration, len(profiles))
	for i, svc := range profiles {
		base[i] = svc.Baseline(*labSeed)
	}
	cells := make([]labCell, len(labMakers)*len(profiles)*len(loads))
	at := func(maker, profile, load int) *labCell {
		return &cells[(maker*len(profiles)+profile)*len(loads)+load]
	}
	var wg sync.WaitGroup
	next := make(chan func())
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for f := range next {
				f()
			}
		})
	}
	for i, m := range labMakers {
		for j, svc := range profiles {
			for k, load := range loads {
				if left(svc, load) {
					continue
				}
				next <- func() {
					synctest.Test(t, func(*testing.T) {
						sim := limitersim.New(svc, load, *labSeed, until(svc))
						sim.RunFunc(m.make(load))
						s := sim.Score(from, until(svc))
						*at(i, j, k) = labCell{s, float64(s.P99) / float64(base[j])}
					})
				}
			}
		}
	}
	close(next)
	wg.Wait()

	var b strings.Builder
	fmt.Fprintf(&b, "goodput of what was possible and p99 in multiples of that at half load, from second %v on, seed %d\n\n", from.Seconds(), *labSeed)
	for j, svc := range profiles {
		fmt.Fprintf(&b, "%-24s", svc.Name)
		for _, load := range loads {
			fmt.Fprintf(&b, " | load %-6v", load)
		}
		fmt.Fprintln(&b)
		for i, m := range labMakers {
			fmt.Fprintf(&b, "%-24s", m.name)
			for k, load := range loads {
				if left(svc, load) {
					continue
				}
				fmt.Fprintf(&b, " | %v", *at(i, j, k))
			}
			fmt.Fprintln(&b)
		}
		fmt.Fprintln(&b)
	}
	fmt.Fprintf(&b, "%-24s | worst goodput        | cells of 0.9 or more | p99 in overload, median and worst\n", "")
	for i, m := range labMakers {
		worst, where, good, n := math.Inf(1), "", 0, 0
		var slower []float64
		for j, svc := range profiles {
			for k, load := range loads {
				if left(svc, load) {
					continue
				}
				c := at(i, j, k)
				n++
				if c.Goodput >= .9 {
					good++
				}
				if c.Goodput < worst {
					worst, where = c.Goodput, fmt.Sprintf("%s %v", svc.Name, load)
				}
				if load > 1 && c.P99 > 0 {
					slower = append(slower, c.slower)
				}
			}
		}
		slices.Sort(slower)
		fmt.Fprintf(&b, "%-24s | %.2f (%s)%*s | %8d of %-8d | %8.1fx %8.1fx\n", m.name, worst, where, 13-len(where), "", good, n, slower[len(slower)/2], slower[len(slower)-1])
	}
	t.Log(b.String())

	for j, svc := range profiles {
		for k, load := range loads {
			if left(svc, load) {
				continue
			}
			ours := at(0, j, k)
			if ours.Goodput < .92 {
				t.Errorf("%s at %v: goodput %.3f, want 0.92", svc.Name, load, ours.Goodput)
			}
			for i, m := range labMakers[1:] {
				if c := at(i+1, j, k); ours.Goodput < min(c.Goodput, 1)-.06 {
					t.Errorf("%s at %v: goodput %.3f, that of %s is %.3f", svc.Name, load, ours.Goodput, m.name, c.Goodput)
				}
			}
		}
	}
}

package limitersim

import (
	"math"
	"strings"
	"testing"
	"time"
)

// held keeps so many in flight, while enough arrive.
type held struct {
	n, flight int
	line      []*Request
}

func (h *held) Arrive(r *Request) {
	if h.line = append(h.line, r); len(h.line) > 8 {
		h.line[0].Reject()
		h.line = h.line[1:]
	}
	h.next()
}

func (h *held) Release(*Request) { h.flight--; h.next() }

func (h *held) next() {
	for h.flight < h.n && len(h.line) > 0 {
		r := h.line[0]
		h.line = h.line[1:]
		h.flight++
		r.Admit()
	}
}

// The stations of the laboratory do what queueing theory says of them: with so many held in flight, work that slows
// itself down and then waits has the throughput of a closed network, whatever it is distributed like.
func TestClosedNetwork(t *testing.T) {
	const alpha, beta, work, wait = .03, .97 / 64, .010, .040 // best with 8 at the station
	for _, how := range []struct {
		name string
		svc  Service
	}{{"exponential", Service{Demand: exponential}}, {"bimodal", Service{Demand: bimodal(.05, 10)}}, {"jitter", Service{Demand: jitter}}} {
		for _, n := range []int{12, 20, 28} {
			svc := how.svc
			svc.Capacity = uslPeak(work, alpha, beta)
			svc.build = func(s *Simulation) []stage {
				return []stage{{usl(s, alpha, beta), work}, {delay{s}, wait}}
			}
			s := New(svc, 3, 7, 100*time.Second)
			s.Run(&held{n: n})
			got := 0.
			for _, sec := range s.seconds[10:100] {
				got += float64(sec.done) / 90
			}
			want := closed(n, wait, func(i int) float64 {
				return float64(i) * usl(s, alpha, beta).speed(float64(i)) / work
			})
			if math.Abs(got/want-1) > .03 {
				t.Errorf("%s, %d in flight: %.1f/s, in theory %.1f", how.name, n, got, want)
			}
			t.Logf("%s, %d in flight: %.1f/s, in theory %.1f, the station alone %.1f", how.name, n, got, want, svc.Capacity)
		}
	}
}

// What is attainable is all of the capacity but where work slows itself down and waits besides, and never more.
func TestAttainable(t *testing.T) {
	less := 0
	for seed := range uint64(60) {
		k := Random(20000 + seed)
		a := k.Attainable()
		if a <= 0 || a > 1 {
			t.Errorf("seed %d: %v is attainable: %s", seed, a, k.Description)
		}
		if a < .95 {
			less++
			t.Logf("%.2f of %s", a, k.Description)
		}
	}
	if less == 0 {
		t.Error("all of the capacity is attainable everywhere; want services where it is not")
	}
}

// The baseline is that of all the work, however long it takes.
func TestBaselineOfSlowWork(t *testing.T) {
	for _, seed := range []uint64{93144, 110164, 140046, 150080} {
		k := Random(seed)
		if k.r < 8 {
			t.Errorf("seed %d: work takes %.1f s; want some that takes longer: %s", seed, k.r, k.Description)
		}
		if k.Baseline.Seconds() < k.r {
			t.Errorf("seed %d: the 99th percentile at half load is %v where work takes %.1f s in the mean: %s", seed, k.Baseline, k.r, k.Description)
		}
	}
}

// However far a limit is from the optimum, and however slow the work, what counts is simulated.
func TestCountingMayBeginLate(t *testing.T) {
	k := Random(93144)
	s := k.New(func() int { return 1 })
	s.Run(&held{n: int(k.Optimum)})
	if s.counted.from < 300 {
		t.Errorf("counted from %v s on; want a service where it is later", s.counted.from)
	}
	if g := k.Score(s).Goodput; g < .9 {
		t.Errorf("goodput with the optimum in flight: %.2f of what is possible", g)
	}
}

// A random service says when it changes, and what is best before: a slower dependency leaves its capacity and takes
// more in flight, a slower machine leaves it half of its capacity and needs no more.
func TestRandomServicesSayWhatChanges(t *testing.T) {
	for seed := range uint64(200) {
		k := draw(seed)
		slower, halved := strings.Contains(k.Description, "dep x"), strings.Contains(k.Description, "halved")
		switch {
		case !slower && !halved:
			if k.Before != 0 || k.Changes() != 0 {
				t.Errorf("%s: changes at %v from an optimum of %.1f; want never", k.Description, k.Changes(), k.Before)
			}
			continue
		case slower && !(k.Capacity == k.svc.Capacity && k.Optimum > k.Before*1.1):
			t.Errorf("%s: capacity %.1f from %.1f, optimum %.1f from %.1f", k.Description, k.Capacity, k.svc.Capacity, k.Optimum, k.Before)
		case halved && !(k.Capacity == k.svc.Capacity/2 && k.Optimum <= k.Before*(1+1e-9) && k.Optimum >= k.Before/2):
			t.Errorf("%s: capacity %.1f from %.1f, optimum %.1f from %.1f", k.Description, k.Capacity, k.svc.Capacity, k.Optimum, k.Before)
		}
		if after := k.Changes() - toDuration(k.calm); after < 5*time.Second || after > 20*time.Second {
			t.Errorf("%s: changes %v after the load begins; want 5 to 20 s", k.Description, after)
		}
	}
}

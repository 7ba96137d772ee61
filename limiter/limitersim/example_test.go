package limitersim_test

import (
	"fmt"
	"time"

	"github.com/spillgate/spillgate/limiter/limitersim"
)

// places lets a fixed number of requests in and rejects the others.
type places struct{ free int }

func (p *places) Arrive(r *limitersim.Request) {
	if p.free == 0 {
		r.Reject()
		return
	}
	p.free--
	r.Admit()
}

func (p *places) Release(*limitersim.Request) { p.free++ }

// What a fixed number of places is worth on services of every kind, at three times their capacity.
func ExampleSimulation_Run() {
	for _, svc := range limitersim.Profiles() {
		sim := limitersim.New(svc, 3, 42, 30*time.Second)
		sim.Run(&places{free: 20})
		s := sim.Score(2*time.Second, 30*time.Second)
		fmt.Printf("%-10s %.1f of what is possible\n", svc.Name, s.Goodput)
	}
	// Output:
	// cpu        1.0 of what is possible
	// cpuio      1.0 of what is possible
	// io         1.0 of what is possible
	// mixed      1.0 of what is possible
	// contended  1.0 of what is possible
	// wide       0.1 of what is possible
	// narrow     0.0 of what is possible
}

// A store that takes twice as long for some time, with room for all requests.
func ExampleStore() {
	svc := limitersim.Store(16, 10*time.Millisecond)
	svc.Speed = func(now time.Duration) float64 {
		if now >= 10*time.Second && now < 20*time.Second {
			return .5
		}
		return 1
	}
	sim := limitersim.New(svc, .4, 42, 30*time.Second)
	sim.Run(&places{free: 100})
	for now := 5 * time.Second; now < 30*time.Second; now += 10 * time.Second {
		fmt.Println(sim.Score(now, now+5*time.Second).P99.Round(time.Millisecond))
	}
	// Output:
	// 12ms
	// 33ms
	// 12ms
}

// Work that computes on four processors: eight places are enough.
func ExampleProcessors() {
	svc := limitersim.Processors(4, 10*time.Millisecond)
	for _, n := range []int{2, 8, 200} {
		sim := limitersim.New(svc, 3, 42, 30*time.Second)
		sim.Run(&places{free: n})
		fmt.Printf("%-3d places: %.1f of what is possible\n", n, sim.Score(2*time.Second, 30*time.Second).Goodput)
	}
	// Output:
	// 2   places: 0.5 of what is possible
	// 8   places: 1.0 of what is possible
	// 200 places: 0.0 of what is possible
}

// The same number of places on a service that was drawn at random.
func ExampleRandom() {
	k := limitersim.Random(3)
	fmt.Println(k.Description)
	sim := k.New(func() int { return 20 })
	sim.Run(&places{free: 20})
	fmt.Printf("%.1f of what is possible; best with %.0f in flight\n", k.Score(sim).Goodput, k.Optimum)
	// Output:
	// ps S 59 ms c 538 dep 0 ms cv2 1.8 9117/s load 5.14 cold
	// 0.0 of what is possible; best with 538 in flight
}

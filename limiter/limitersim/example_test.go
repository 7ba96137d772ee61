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

// What a number of places, chosen in advance, is worth on services of every kind at three times their capacity.
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

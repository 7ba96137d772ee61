package limiter

import (
	"math"
	"testing"
)

// TestSwiftLimit: the limit that would do is known by how much longer the faster half takes than it did. Slow work that is there still needs the places
// that it has.
func TestSwiftLimit(t *testing.T) {
	for _, tt := range []struct {
		name             string
		now, mean, least float64
		pause            float64
		want             int
	}{
		{"all of it queues", .3, .32, .01, 0, 141},
		{"slow work is there, and some of it queues", .3, 1.3, .01, 0, 1166},
		{"as quick as ever", .01, .2, .01, 0, 1000},
		{"quicker than ever with a full limit", .005, .2, .01, 0, 1000},
		{"a trial was in vain not long ago", .3, .32, .01, 1, 1000},
		{"nothing is known", .3, .32, 0, 0, 1000},
	} {
		s := ctrlSwift{now: tt.now, mean: tt.mean, least: tt.least, pause: tt.pause}
		if got := s.limit(1000); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
}

// TestSwiftLeast: the least is of the service as it is. Where less and less is done it has become slower, and what takes longer then does not queue.
func TestSwiftLeast(t *testing.T) {
	const flight = 100.
	for _, tt := range []struct {
		name        string
		takes, done float64 // of what there was
		rounds      int
		want        float64 // times the least before
	}{
		{"a queue of its own", 20, 1, 20, 1},
		{"a service that is twenty times as slow", 20, .05, 20, 20},
		{"one that is a quarter slower", 1.25, .8, 20, 1},
		{"quicker", .5, 1, 20, .5},
		{"a queue for very long", 20, 1, 1e5, 10},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var s ctrlSwift
			see := func(takes, done float64) {
				s.see(takes, takes, flight)
				s.stand(done, flight, flight)
			}
			for range 20 {
				see(.01, 1000)
			}
			for range tt.rounds {
				see(.01*tt.takes, 1000*tt.done)
			}
			if got := s.least / .01; math.Abs(got/tt.want-1) > .15 {
				t.Errorf("the least is %.2f times what it was, want %.2f", got, tt.want)
			}
		})
	}
}

// TestControllerThins: where even the faster half of the work has come to take thirty times as long and no less is done, the limit is tried at which it
// would not. It stays there if that costs nothing, though all that was seen speaks against it, and goes back if it does.
func TestControllerThins(t *testing.T) {
	for _, tt := range []struct {
		name    string
		optimum float64 // it was 400
		most    float64 // the limit afterwards, at most
		least   float64
		pauses  bool
	}{
		{"the slow work has ended", 20, 80, 18, false},
		{"it is there still", 400, 700, 320, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			model := ctrlModel{lag: ctrlConst(0), shed: .5, x: func(l float64) float64 { return 10 * min(l, 400) }}
			s := model.known(8)
			for s.phase != ctrlHold || s.stale || s.limit < 350 {
				s = s.step(model.window(s))
			}
			start := s.limit
			model.x = func(l float64) float64 { return 4000 * min(l/tt.optimum, 1) }
			s.swift = ctrlSwift{now: .098, mean: .1, least: .003, x: 4000}
			s = s.step(model.window(s))
			if !s.swift.tried || s.limit > start/4 {
				t.Fatalf("the limit is %d after %d, trial %t; want a trial of a quarter at most", s.limit, start, s.swift.tried)
			}
			s.swift.now = .003 // it does not wait there
			pause := 0.
			for range 40 {
				s = s.step(model.window(s))
				pause = max(pause, s.swift.pause)
			}
			if l := float64(s.limit); l > tt.most || l < tt.least {
				t.Errorf("the limit is %.0f, want %.0f to %.0f", l, tt.least, tt.most)
			}
			if (pause > 0) != tt.pauses {
				t.Errorf("%.0f completions until the next trial, want any: %t", pause, tt.pauses)
			}
		})
	}
}

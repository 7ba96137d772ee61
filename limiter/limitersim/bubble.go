package limitersim

import (
	"cmp"
	"math"
	"slices"
	"sync"
	"testing/synctest"
	"time"
)

// RunFunc runs the simulation with a limiter that reads the clock itself and may keep its callers waiting. It calls
// do for each request, in a goroutine of its own. do must call work once if the limiter admits it, and return without
// calling it if not:
//
//	sim.RunFunc(func(work func()) {
//		p, err := l.Acquire(ctx, limiter.Request{})
//		if err != nil {
//			return
//		}
//		work()
//		p.Release(limiter.Success)
//	})
//
// RunFunc returns when the simulation has come to its end and all calls of do have returned; work that is under way
// or begins after the end takes no time. It must be called in a bubble of [testing/synctest], whose clock it
// advances; it panics outside of one.
func (s *Simulation) RunFunc(do func(work func())) {
	synctest.Wait() // panics outside of a bubble, before anything has begun
	b := &bubble{sim: s, do: do, start: time.Now(), news: make(chan struct{}, 1), inside: make(map[*Request]struct{})}
	s.begin(b)
	timer := time.NewTimer(time.Hour)
	for s.next() {
		if d := time.Duration(math.Ceil(s.events[0].at*1e9)) - time.Since(b.start); d > 0 {
			timer.Reset(d)
			select {
			case <-timer.C:
			case <-b.news:
				// The limiter has decided by a clock of its own.
				s.now = max(s.now, time.Since(b.start).Seconds())
				b.settle()
				continue // the work that begins may end before the event that was next
			}
		}
		s.step()
	}
	s.running = false
	timer.Stop()
	b.mu.Lock()
	b.over = true
	b.mu.Unlock()
	for r := range b.inside {
		close(r.done)
	}
	b.calls.Wait()
}

// bubble is a Limiter whose requests are calls in goroutines.
type bubble struct {
	sim    *Simulation
	do     func(work func())
	start  time.Time
	calls  sync.WaitGroup
	inside map[*Request]struct{}
	news   chan struct{} // says that decided is not empty

	mu      sync.Mutex
	over    bool
	decided []decision
}

type decision struct {
	r        *Request
	admitted bool
}

func (b *bubble) Arrive(r *Request) {
	b.calls.Go(func() {
		admitted := false
		b.do(func() {
			admitted = true
			r.done = make(chan struct{})
			if b.decide(r, true) {
				<-r.done
			}
		})
		if !admitted {
			b.decide(r, false)
		}
	})
	b.settle()
}

func (b *bubble) Release(r *Request) {
	delete(b.inside, r)
	close(r.done)
	b.settle()
}

// decide tells the simulation of a decision, unless that is over.
func (b *bubble) decide(r *Request, admitted bool) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.over {
		return false
	}
	b.decided = append(b.decided, decision{r, admitted})
	select {
	case b.news <- struct{}{}:
	default:
	}
	return true
}

// settle lets all goroutines go as far as they can without time passing, and does what they have decided.
func (b *bubble) settle() {
	synctest.Wait()
	select {
	case <-b.news:
	default:
	}
	b.mu.Lock()
	decided := b.decided
	b.decided = nil
	b.mu.Unlock()
	// Which of several goroutines was first to say so is up to the scheduler.
	slices.SortFunc(decided, func(x, y decision) int { return cmp.Compare(x.r.arrived, y.r.arrived) })
	for _, d := range decided {
		if d.admitted {
			b.inside[d.r] = struct{}{}
			d.r.Admit()
		} else {
			d.r.Reject()
		}
	}
}

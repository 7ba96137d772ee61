package limiter

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/limiter/limitersim"
)

// labStill is a driver in a process that stands still for some time: nothing comes, what ends is seen when it goes on, and the timer of the line
// is overdue then.
type labStill struct {
	*labDriver
	from, to time.Duration
}

// labStands returns the driver, and has n arrive when the process goes on.
func labStands(sim *limitersim.Simulation, c *Concurrency, from, to time.Duration, n int) *labStill {
	d := &labStill{labDrive(sim, c), from, to}
	sim.At(from, func() {
		d.wake = to
		c.timer, c.timerAt = time.NewTimer(time.Hour), d.now()
	})
	sim.At(to, func() { sim.Burst(n) })
	return d
}

func (d *labStill) Release(r *limitersim.Request) {
	if now := d.sim.Now(); now >= d.from && now < d.to {
		d.sim.At(d.to, func() { d.labDriver.Release(r) })
		return
	}
	d.labDriver.Release(r)
}

// A process that was stopped, or moved with its machine, goes on where it was: that all work took so long says nothing of the service.
func TestLabStandsStill(t *testing.T) {
	for _, svc := range []limitersim.Service{labProfile("io"), labProfile("contended"), limitersim.Store(8, 50*time.Millisecond)} {
		for _, load := range []float64{1.2, 2} {
			for _, long := range []time.Duration{15 * time.Second, time.Minute} {
				if labRace && long == time.Minute {
					continue
				}
				t.Run(fmt.Sprintf("%s/load=%v/%v", svc.Name, load, long), func(t *testing.T) {
					t.Parallel()
					const from = 20 * time.Second
					to := from + long
					sim := limitersim.New(svc, load, 1, to+10*time.Second)
					sim.Rate = func(now time.Duration) float64 {
						if now >= from && now < to {
							return 0
						}
						return load * svc.Capacity
					}
					sim.Run(labStands(sim, NewAdaptive(), from, to, int(2*load*svc.Capacity))) // what clients wait for that are still there
					before, after := sim.Score(from-10*time.Second, from-time.Second), sim.Score(to+2*time.Second, to+10*time.Second)
					if after.Goodput < .95*before.Goodput || after.P99 > 3*before.P99/2 {
						t.Errorf("goodput %.2f and %v at most, it was %.2f and %v", after.Goodput, after.P99, before.Goodput, before.P99)
					}
				})
			}
		}
	}
}

// Where it stands still more often than not, that is what the limit has to live with.
func TestLabStandsStillAgain(t *testing.T) {
	c := NewAdaptive()
	c.timer = time.NewTimer(time.Hour)
	for _, x := range []struct {
		due, now time.Duration
		want     bool
	}{
		{0, 10 * time.Second, false}, // it is not armed
		{10 * time.Second, 10*time.Second + concStill - 1, false},
		{10 * time.Second, 11 * time.Second, true},
		{10 * time.Second, 12 * time.Second, false}, // the same again
		{12500 * time.Millisecond, 20 * time.Second, false},
		{30 * time.Second, 40 * time.Second, false},
		{80 * time.Second, 90 * time.Second, true},
	} {
		c.timerAt = x.due
		if got := c.stoodStill(x.now); got != x.want {
			t.Errorf("due at %v, at %v: %v", x.due, x.now, got)
		}
	}
}

// Nobody pays for that the process stood still: not by his share, nor by how long others are told to stay away.
func TestStoodStillIsNobodys(t *testing.T) {
	c := NewConcurrency(1, WithQueue(100, time.Minute))
	now := time.Duration(1)
	slots := make(map[string][]*queueWaiter)
	enter := func(client string) {
		w, _, _, err := c.enter(&Request{Client: client}, now, 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		slots[client] = append(slots[client], w)
	}
	first, err := c.Acquire(context.Background(), Request{})
	if err != nil {
		t.Fatal(err)
	}
	c.timer, c.timerAt = time.NewTimer(time.Hour), 1 // it is not armed again
	for range 30 {
		enter("a")
		enter("b")
	}
	var order string
	serve := func(s *concSlot, took time.Duration) *concSlot {
		now += took
		s.gen.Add(1)
		w, _, _ := c.release(s, Success, now)
		if w == nil || w.wake != nil {
			t.Fatal("not one was granted")
		}
		for client, all := range slots {
			for _, x := range all {
				if x == w {
					order += client
				}
			}
		}
		return w.slot
	}
	const took = 10 * time.Millisecond
	s := serve(first.slot, took)
	for range 10 {
		s = serve(s, took)
	}
	told := c.Stats().RetryAfter
	c.timerAt = now + took/2
	s = serve(s, 10*time.Second)
	c.timerAt = now + time.Hour
	if after := c.Stats().RetryAfter; after > told {
		t.Errorf("clients are told to come back in %v, it was %v", after, told)
	}
	order = ""
	for range 8 {
		s = serve(s, took)
	}
	if order != "abababab" && order != "babababa" {
		t.Errorf("served %s, want as much for each", order)
	}
}

// What has the timer of the line late is no standing still where others look at the line meanwhile: the goroutine of the timer waits for a processor like any other,
// and behind a hundred that compute that is for as long.
func TestLateTimerIsNoStandstill(t *testing.T) {
	c := NewConcurrency(1, WithQueue(10, time.Minute))
	if _, err := c.Acquire(context.Background(), Request{}); err != nil {
		t.Fatal(err)
	}
	now := time.Second
	c.timer, c.timerAt = time.NewTimer(time.Hour), now+100*time.Millisecond
	for range 8 {
		if _, _, _, err := c.enter(&Request{}, now, 0, nil); err != nil {
			t.Fatal(err)
		}
		now += 200 * time.Millisecond
	}
	if c.stillFor != 0 {
		t.Errorf("stood still for %v", c.stillFor)
	}
	if _, _, _, err := c.enter(&Request{}, now+concStill, 0, nil); err != nil {
		t.Fatal(err)
	}
	if c.stillFor == 0 {
		t.Error("nobody was there for half a second and more")
	}
}

// Whoever is first to look at the line finds out that the process stood still, as one that gives back what TryTake returned, whose context has ended, or
// that yields.
func TestStoodStillIsFoundOutByTheFirst(t *testing.T) {
	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	for name, first := range map[string]func(c *Concurrency, p Permit, cancel func()){
		"Give":      func(c *Concurrency, _ Permit, _ func()) { c.Give(1) },
		"SetLimit":  func(c *Concurrency, _ Permit, _ func()) { c.SetLimit(3) },
		"a context": func(_ *Concurrency, _ Permit, cancel func()) { cancel() },
		"Yield":     func(_ *Concurrency, p Permit, _ func()) { p.Yield(canceled, Request{Priority: -1}) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := NewConcurrency(2, WithQueue(100, time.Minute))
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				c.TryTake(1)
				p, err := c.Acquire(ctx, Request{})
				if err != nil {
					t.Fatal(err)
				}
				got := make(chan Permit, 40)
				for range 40 {
					go func() {
						if p, err := c.Acquire(ctx, Request{}); err == nil {
							got <- p
						}
					}()
					synctest.Wait()
				}
				for range 30 {
					time.Sleep(10 * time.Millisecond) // in a synctest bubble
					p.Release(Success)
					p = <-got
				}
				told := c.Stats().RetryAfter
				c.mu.Lock()
				c.timerAt = time.Since(c.base) + 10*time.Millisecond // as if it were late from then on
				c.mu.Unlock()
				time.Sleep(15 * time.Second) // in a synctest bubble
				first(c, p, cancel)
				synctest.Wait()
				if after := c.Stats().RetryAfter; after > told {
					t.Errorf("clients are told to come back in %v, it was %v", after, told)
				}
				c.mu.Lock()
				if c.stillFor < 14*time.Second {
					t.Errorf("stood still for %v", c.stillFor)
				}
				c.mu.Unlock()
			})
		})
	}
}

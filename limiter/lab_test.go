package limiter

import (
	"time"

	"github.com/spillgate/spillgate/limiter/limitersim"
)

// labDriver puts a Concurrency into the laboratory: it calls the same entry points as Acquire
// and Release, with the laboratory's clock and without goroutines.
type labDriver struct {
	sim   *limitersim.Simulation
	c     *Concurrency
	slots map[*limitersim.Request]*concSlot
	waits map[*queueWaiter]*limitersim.Request
	wake  time.Duration // when the timer of the line fires; 0 is not armed

	weight  int                                 // of each request; 0 is 1
	work    func(r *limitersim.Request)         // begins what was admitted; nil is r.Admit
	outcome func(r *limitersim.Request) Outcome // of what the service has done; nil is success
}

// labRun runs a simulation with c.
func labRun(sim *limitersim.Simulation, c *Concurrency) { sim.Run(labDrive(sim, c)) }

// labDrive returns a driver for a simulation with c.
func labDrive(sim *limitersim.Simulation, c *Concurrency) *labDriver {
	c.timerAt = 1 // never armed: watch does what it would
	return &labDriver{sim: sim, c: c, slots: make(map[*limitersim.Request]*concSlot), waits: make(map[*queueWaiter]*limitersim.Request)}
}

func (d *labDriver) now() time.Duration { return d.sim.Now() + 1 }

func (d *labDriver) Arrive(r *limitersim.Request) {
	if p, ok := d.c.take(int64(max(d.weight, 1)), d.now()); ok {
		d.admit(r, p.slot)
		return
	}
	w, p, woken, err := d.c.enter(&Request{Weight: d.weight}, d.now(), 0, nil)
	switch {
	case err != nil:
		r.Reject()
	case w == nil:
		d.admit(r, p.slot)
	default:
		d.waits[w] = r
	}
	d.tell(woken)
	d.watch()
}

func (d *labDriver) Release(r *limitersim.Request) {
	o := Success
	if d.outcome != nil {
		o = d.outcome(r)
	}
	d.end(r, o)
}

// end gives the permit of r back.
func (d *labDriver) end(r *limitersim.Request, o Outcome) {
	slot := d.slots[r]
	delete(d.slots, r)
	slot.gen.Add(1)
	woken, _, _ := d.c.release(slot, o, d.now())
	d.tell(woken)
	d.watch()
}

func (d *labDriver) admit(r *limitersim.Request, slot *concSlot) {
	d.slots[r] = slot
	if d.work != nil {
		d.work(r)
		return
	}
	r.Admit()
}

// tell does for those who have been decided what their goroutines would do.
func (d *labDriver) tell(w *queueWaiter) {
	for w != nil {
		next := w.wake
		w.wake = nil
		r, slot := d.waits[w], w.slot
		delete(d.waits, w)
		w.slot = nil
		d.c.recycle(w)
		if slot != nil {
			d.admit(r, slot)
		} else {
			r.Reject()
		}
		w = next
	}
}

// watch stands in for the timer of the line.
func (d *labDriver) watch() {
	w := d.c.line.oldest
	if w == nil || d.wake > d.sim.Now() {
		return
	}
	d.wake = max(w.entered+d.c.bound+2, d.sim.Now()+time.Microsecond)
	d.sim.At(d.wake, func() {
		d.wake = 0
		d.tell(d.c.dispatch(d.now()))
		d.watch()
	})
}

// labProfile returns the profile of a name.
func labProfile(name string) limitersim.Service {
	for _, svc := range limitersim.Profiles() {
		if svc.Name == name {
			return svc
		}
	}
	panic("no profile " + name)
}

package pool

import (
	"context"

	"github.com/spillgate/spillgate/limiter"
)

// maxPaused is how many tasks of a pool have paused at a time. They go on when they like, and not when there is room.
const maxPaused = 1000

// Pause gives the slot to others while the task waits for something that needs no core, such as a client that does not
// read what is written to it. It reports whether it did so. Call [Slot.Resume] or [Slot.ResumeInTurn], which take the
// slot again, before the task computes. Pause does nothing if the slot has already been given up, to somebody more urgent ([Checkpoint]) or
// for good, or if 1,000 tasks of the pool have paused.
//
// A paused task counts as running, and [Pool.Shutdown] waits for it; the pause does not count in the run times of its
// kind. Any goroutine may call Pause, Resume and ResumeInTurn, one call at a time.
func (s Slot) Pause() bool { return s.s != nil && s.s.pause(slotPaused|slotCounted) }

// Resume takes back the slot that [Slot.Pause] has given up, and does nothing if it has not given one up. Resume does
// not wait: tasks that have the slots meanwhile may wait for something that this task holds, such as a lock or a
// connection. More tasks than slots may therefore run for a while, and until there are no more tasks than slots, nobody
// else begins. It is for a task that has its work behind it.
func (s Slot) Resume() {
	if s.s != nil {
		s.s.unpause()
	}
}

// ResumeInTurn is [Slot.Resume] for a task that has its work still to do, such as one that has waited for the rest of
// a request body. If there is no slot, the task waits in the queue with the time at which it first arrived. It is not
// refused there. But if nobody gets a slot for ten times as long as that usually takes, the task goes on beside those
// that have the slots, since they may wait for something that it holds: after 250 ms at least and a minute at most, and
// after 5 s if it is not known yet how long work takes.
//
// If the task's context ends first, ResumeInTurn returns its cause, and the task has no slot any more.
func (s Slot) ResumeInTurn() error {
	if s.s == nil {
		return nil
	}
	return s.s.unpauseInTurn()
}

// pause is Pause where how has slotCounted. Without, it is for one who waits for a job of the pool: however many do, that has a slot, or none of them would go on.
func (s *slot) pause(how uint32) bool {
	p := s.kind.pool
	full := how&slotCounted != 0 && p.paused.Add(1) > maxPaused
	if full || !s.move(slotHeld, slotYielded) {
		p.resumed(how)
		return false
	}
	w := s.stand()
	w.paused = p.now()
	if w.arrived == untimed {
		w.arrived = s.began
	}
	if w.permit == (limiter.Permit{}) {
		w.permit = p.line.Permit(int(s.weight))
	}
	w.permit = w.permit.Pause()
	for {
		word := s.word.Load()
		if word&slotPhase == slotLeft { // in the meantime
			s.leftPaused(how)
			return false
		}
		if s.word.CompareAndSwap(word, word|how) {
			p.spare()
			return true
		}
	}
}

func (s *slot) unpause() {
	if s.goOn() {
		w := s.standing.Load()
		w.permit.Release(limiter.Success)
		w.permit = limiter.Permit{}
		s.takeBack()
		s.hasPaused()
	}
}

// goOn takes the sign away that the task has paused, and reports whether it had.
func (s *slot) goOn() bool {
	for {
		word := s.word.Load()
		if word&slotPaused == 0 {
			return false
		}
		if s.word.CompareAndSwap(word, word&^(slotPaused|slotCounted)) {
			s.kind.pool.resumed(word)
			return true
		}
	}
}

func (s *slot) unpauseInTurn() error {
	if s.bound() { // the task around it may wait for it with its slot in hand
		s.unpause()
		return nil
	}
	if s.word.Load()&slotPaused == 0 {
		return nil
	}
	p, w := s.kind.pool, s.standing.Load()
	level := s.level()
	p.waiting[level].Add(1)
	permit, err := w.permit.Resume(s.Context, limiter.Request{
		Priority: s.priority(),
		Weight:   int(s.weight),
		Client:   s.client,
		Arrived:  p.at(w.arrived),
	})
	p.waiting[level].Add(-1)
	p.spare()
	if !s.goOn() { // it has left in the meantime
		permit.Release(limiter.Ignored)
		return nil
	}
	w.permit = permit
	if p.beyond.Store(true); err != nil {
		s.weight = 0 // there is no slot any more
	}
	s.hasPaused()
	if err != nil {
		return context.Cause(s.Context)
	}
	return nil
}

// hasPaused is the end of a pause for a slot that has been taken again, or is not any more.
func (s *slot) hasPaused() {
	p, w := s.kind.pool, s.standing.Load()
	away := p.now() - w.paused
	if s.began != untimed {
		s.began += away
	}
	w.away.Add(int64(away))
	s.resume()
}

// resumed counts a pause out again, if it was counted.
func (p *Pool) resumed(how uint32) {
	if how&slotCounted != 0 {
		p.paused.Add(-1)
	}
}

// leftPaused ends a task in the books that has paused and not gone on.
func (s *slot) leftPaused(how uint32) {
	k := s.kind
	k.pool.resumed(how)
	s.standing.Load().permit.Release(limiter.Success)
	if s.began != untimed {
		k.ran(s.standing.Load().paused - s.began)
	}
	k.pool.end(k, 0, untimed)
}

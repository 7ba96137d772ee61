package pool

import "github.com/spillgate/spillgate/limiter"

// maxPaused is how many tasks of a pool have paused at a time. They go on when they like, and not when there is room.
const maxPaused = 1000

// Pause gives the slot to others while the task waits for something that needs no core, such as a client that does not
// read what is written to it. It reports whether it did so. Call [Slot.Resume], which takes the slot again, before the
// task computes. Pause does nothing if the slot has already been given up, to somebody more urgent ([Checkpoint]) or
// for good, or if 1,000 tasks of the pool have paused.
//
// A paused task counts as running, and [Pool.Shutdown] waits for it; the pause does not count in the run times of its
// kind. Any goroutine may call Pause and Resume, one call at a time.
func (s Slot) Pause() bool { return s.s != nil && s.s.pause(slotPaused|slotCounted) }

// Resume takes back the slot that [Slot.Pause] has given up, and does nothing if it has not given one up. Resume does
// not wait: tasks that have the slots meanwhile may wait for something that this task holds, such as a lock or a
// connection. More tasks than slots may therefore run for a while, and until there are no more tasks than slots, nobody
// else begins.
func (s Slot) Resume() {
	if s.s != nil {
		s.s.unpause()
	}
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
		p.line.Give(int(s.weight))
	} else {
		w.permit.ReleaseAt(limiter.Success, p.at(w.paused))
		w.permit = limiter.Permit{}
	}
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
	word := s.word.Load()
	for ; ; word = s.word.Load() {
		if word&slotPaused == 0 {
			return
		}
		if s.word.CompareAndSwap(word, word&^(slotPaused|slotCounted)) {
			break
		}
	}
	p, w := s.kind.pool, s.standing.Load()
	p.resumed(word)
	s.takeBack()
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
	if s.began != untimed {
		k.ran(s.standing.Load().paused - s.began)
	}
	k.pool.end(k, 0, untimed)
}

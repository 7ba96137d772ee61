package pool

import (
	"context"
	"time"

	"github.com/spillgate/spillgate/limiter"
)

// Checkpoint is for long loops inside a task: called every millisecond or so, it lets the task be stopped and lets more
// urgent work go first.
//
// It returns the cause if ctx has ended, and [ErrShutdown] once the pool's time for draining is over; the task should
// then return that error. If a task of a higher priority waits for a slot and is next in the queue, Checkpoint gives it this
// slot and joins the queue with the time at which its own task first arrived. It is not refused there. It returns when
// the task has a slot again, and does not give way for the next 10 ms. It also returns when the task's own context
// ends; the task then has no slot any more, and what it still does on the pool, under [context.WithoutCancel], takes a
// slot of its own. What a task has submitted does not give way while that task has a slot, since the task may be
// waiting for it. A job of package jobs that another job with a slot of the pool waits for stays in the queue for no
// longer than two seconds. If ctx carries no slot, Checkpoint only reports whether ctx has ended.
//
// While nobody more urgent waits, it costs a few loads of memory and neither allocates nor locks.
func Checkpoint(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	s, _ := ctx.Value(anySlot{}).(*slot)
	if s == nil {
		return nil
	}
	p := s.kind.pool
	if p.stopped.Load() {
		return ErrShutdown
	}
	given := s.word.Load()&slotPhase == slotYielded // by another goroutine of the task: this one waits for it too
	if !given && !p.waits(s.level()+1) || s.bound() || s.keeps() {
		return nil
	}
	return s.standBack(ctx, false)
}

// StoodBack returns for how long the task that ctx belongs to has given its slot to others so far: in [Checkpoint],
// between the elements of a [Map], from a [Slot.Pause] to its Resume, or while, as a job, it waited for another job. It
// is for code that measures what a task takes.
func StoodBack(ctx context.Context) time.Duration {
	if s, _ := ctx.Value(anySlot{}).(*slot); s != nil {
		if w := s.standing.Load(); w != nil {
			return time.Duration(w.away.Load())
		}
	}
	return 0
}

// waits reports whether a task of that level or a higher one waits.
func (p *Pool) waits(level int) bool {
	for i := level; i < len(p.waiting); i++ {
		if p.waiting[i].Load() > 0 {
			return true
		}
	}
	return false
}

// waiters returns how many do.
func (p *Pool) waiters(level int) (n int64) {
	for i := level; i < len(p.waiting); i++ {
		n += p.waiting[i].Load()
	}
	return n
}

// turn is how long a task that has stood back runs before it does so again. It keeps a
// flood of urgent work from leaving it a checkpoint's worth of time in between.
const turn = 10 * time.Millisecond

// next ends one task in the slot's books and begins another of the same sort. If anybody waits
// who is more urgent than work that has only just arrived, the slot goes to him first. Where ctx ends
// meanwhile there may be no slot any more, and the caller must not go on.
func (s *slot) next(ctx context.Context) {
	if s.kind.pool.waits(0) && !s.bound() {
		s.standBack(ctx, true)
	} else if s.move(slotHeld, slotYielded) {
		s.renew()
		s.resume()
	}
}

// renew is the part of next that belongs to the books. The slot belongs to the caller alone.
func (s *slot) renew() {
	k := s.kind
	timed := k.timed(k.begun.Add(1))
	now := untimed
	if timed || s.began != untimed {
		now = k.pool.clock()
	}
	if s.began != untimed {
		k.ran(now - s.began)
	}
	k.ended.Add(1)
	s.began = untimed
	if timed {
		s.began = now
	}
	if w := s.standing.Load(); w != nil {
		w.arrived = s.began
	}
}

// resume is the end of what slotYielded began.
func (s *slot) resume() {
	to := slotHeld
	if s.weight == 0 {
		to = slotLost
	}
	if !s.move(slotYielded, to) {
		s.settle() // left in the meantime
	}
}

// standBack gives the slot to the one who is next in the queue, if that is one more urgent, and
// waits until it comes back. next says that the task has ended and another begins in its slot;
// otherwise the task keeps its place in the queue.
func (s *slot) standBack(ctx context.Context, next bool) error {
	w := s.stand()
	w.begin()
	defer w.end()
	if !s.move(slotHeld, slotYielded) {
		return nil // the task is over
	}
	defer s.resume()
	if next {
		s.renew()
	}
	return s.yield(ctx, w, next)
}

// yield is the part of standBack that waits.
func (s *slot) yield(ctx context.Context, w *standing, next bool) error {
	p := s.kind.pool
	from := p.now()
	if s.began == untimed { // and yet it runs for long enough to be asked to stand back
		s.began = from
	}
	if w.arrived == untimed {
		w.arrived = s.began
	}
	if !next && w.resumed != 0 && from-w.resumed < turn {
		return nil
	}
	if w.permit == (limiter.Permit{}) {
		w.permit = p.line.Permit(int(s.weight))
	}
	until := s.Context // a task that goes on after a part of it was cancelled needs its slot
	if next {
		until = ctx
	}
	line, stop := w.recallable(until, from)
	p.waiting[s.level()].Add(1)
	permit, err := w.permit.Yield(line, limiter.Request{
		Priority: s.priority(),
		Weight:   int(s.weight),
		Client:   s.client,
		Arrived:  p.at(w.arrived),
	})
	p.waiting[s.level()].Add(-1)
	if stop(err) {
		err = nil
		s.takeBack()
	}
	p.spare()
	if permit != w.permit {
		w.permit = permit
		w.resumed = p.now()
		s.began += w.resumed - from // what it waited is no run time
		w.away.Add(int64(w.resumed - from))
	}
	switch {
	case err != nil:
		s.weight = 0 // there is no slot any more
		return context.Cause(until)
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case p.stopped.Load():
		return ErrShutdown
	}
	return nil
}

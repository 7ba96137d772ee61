package pool

import (
	"context"
	"time"

	"github.com/spillgate/spillgate/limiter"
)

// Checkpoint is for long loops inside a task: called every millisecond or so, it lets the
// task be stopped and lets more urgent work go first.
//
// It returns the cause if ctx has ended, and [ErrShutdown] once the pool's time for draining is
// over; the task should then return that error. If a task of a higher priority waits for a
// slot, Checkpoint gives it this one and joins the line with the time at which the task first
// arrived; it returns when there is a slot again, and for 10 ms from then on does not do it
// again. Where ctx carries no slot only its end is reported.
//
// While nobody more urgent waits it costs a few loads of memory and neither allocates nor locks.
func Checkpoint(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	s, _ := ctx.Value(anySlot{}).(*slot)
	if s == nil {
		return nil
	}
	p := s.pool
	if p.stopped.Load() {
		return ErrShutdown
	}
	for i := int(s.level) + 1; i < len(p.waiting); i++ {
		if p.waiting[i].Load() > 0 {
			return s.standBack(ctx, s.arrived, true)
		}
	}
	return nil
}

// turn is how long a task that has stood back runs before it does so again. It keeps a
// flood of urgent work from leaving it a checkpoint's worth of time in between.
const turn = 10 * time.Millisecond

// standBack gives the slot to the one who is next and waits for another, in the line as
// one who arrived at the given time; keep says that this is an earlier time than now and that
// the place in the line that goes with it is to be kept.
func (s *slot) standBack(ctx context.Context, arrived time.Duration, keep bool) error {
	s.yield.Lock()
	defer s.yield.Unlock()
	if !s.state.CompareAndSwap(slotHeld, slotYielded) {
		return nil // the task is over
	}
	p := s.pool
	from := p.now()
	if keep && s.resumed != 0 && from-s.resumed < turn {
		if !s.state.CompareAndSwap(slotYielded, slotHeld) {
			s.settle() // left in the meantime
		}
		return nil
	}
	if s.began == untimed { // and yet it runs for long enough to be asked to stand back
		s.began, arrived = from, from
	}
	priority := int(s.level) - 8
	if keep {
		// Those of one priority stand in the line as they joined it. One level up and one
		// step later is the same rank, and in front of those who came after this task.
		priority++
		arrived += p.conf.step
	}
	s.permit.ReleaseAt(limiter.Success, p.at(from))
	p.waiting[s.level].Add(1)
	s.kind.waiting.Add(1)
	// A line that is full refuses; what runs already then goes on, beyond the limit.
	permit, _ := p.line.Acquire(ctx, limiter.Request{
		Priority: priority,
		Weight:   int(s.weight),
		Client:   s.client,
		Arrived:  p.at(arrived),
	})
	s.kind.waiting.Add(-1)
	p.waiting[s.level].Add(-1)
	to := p.now()
	s.resumed = to
	s.began += to - from // what it waited is not run time
	var err error
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	} else if p.stopped.Load() {
		err = ErrShutdown
	}
	s.permit = permit // the zero permit where there is none
	if !s.state.CompareAndSwap(slotYielded, slotHeld) {
		s.settle() // left in the meantime
	}
	return err
}

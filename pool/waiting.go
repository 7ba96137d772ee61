package pool

import (
	"context"
	"errors"
	"time"
)

// errWanted is the cause with which the wait of a task ends that takes its slot again at once.
var errWanted = errors.New("pool: somebody waits for the task with a slot in hand")

const (
	wantedAfter = time.Second     // how long a task that is waited for is left in the queue
	wantedFor   = 3 * time.Second // and how long what is said of it is true: it is said every second
)

// want has the task come back that has given up its slot, where somebody with the context by waits for it who has another one in hand, or has paused with it. It may be
// that there are none but slots of such, as where the pool has become smaller meanwhile, and nobody would ever go on. More is taken then than there
// are slots, but whoever waits does not compute in his.
func (s *slot) want(by context.Context) {
	p, w := s.kind.pool, s.standing.Load()
	hand := p.held(by)
	if w == nil || hand == nil || hand == s {
		return
	}
	if word := hand.word.Load(); word&slotPhase == slotYielded && word&slotPaused == 0 {
		return // he waits for it himself
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	now := p.now()
	switch {
	case w.back == nil && w.wanted.Load() == 0, w.back != nil && now-w.since < wantedAfter:
		return
	case w.back != nil:
		w.back(errWanted)
	}
	w.wanted.Store(int64(now + wantedFor))
}

// away pauses a task that waits for another one with the context by, if somebody more urgent waits for a slot. As with Slot.Resume it does not wait when it comes
// back: those who have the slots meanwhile may wait for what it holds. Where by is that of a part of the task with a slot of its own, the task may compute.
func (s *slot) away(by context.Context) bool {
	p := s.kind.pool
	if p.held(by) != s || s.bound() {
		return false
	}
	if p.waits(s.level() + 1) {
		s.pause(slotPaused)
	}
	return true
}

// keeps reports whether the task is to keep its slot for those who want it, since nobody could begin in it.
func (s *slot) keeps() bool {
	w := s.standing.Load()
	return w != nil && w.wanted.Load() > int64(s.kind.pool.now()) && s.kind.pool.exceeded()
}

// recallable returns ctx for the wait of a task that has given up its slot since from; it ends also when the task is wanted. stop is to be called after the
// wait, with its error, and reports whether it was that.
func (w *standing) recallable(ctx context.Context, from time.Duration) (line context.Context, stop func(error) bool) {
	line, back := context.WithCancelCause(ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.back, w.since = back, from
	return line, func(err error) bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.back = nil
		back(nil)
		return err != nil && context.Cause(line) == errWanted
	}
}

// takeBack takes the slot again, whether there is room for it or not.
func (s *slot) takeBack() {
	p := s.kind.pool
	s.weight = int32(min(int(s.weight), p.line.Limit())) // what waited has only asked for it
	p.line.Give(-int(s.weight))
	p.beyond.Store(true)
}

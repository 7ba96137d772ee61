package pool

import (
	"context"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/pool/internal/waiting"
)

// slot is a slot that was taken and the context that carries it. It is used for one task and
// never again, because the task may have kept the context. It is 64 bytes long, and no word more:
// the next size costs a quarter more to allocate.
type slot struct {
	context.Context
	kind     *kind // and, through it, the pool
	client   string
	began    time.Duration            // on the pool's clock; later if the slot was given up in between; or untimed
	weight   int32                    // what was taken of the queue, or the weight of a task that waits; more than maxSlots is the whole pool anyway
	word     atomic.Uint32            // phase, and what of it does not change: see below
	standing atomic.Pointer[standing] // set for what has waited for its slot or was asked to give it up
}

// standing is what a slot knows of the queue. What stands below over belongs to the one who moved the slot from
// slotHeld, but for away and what stands below that.
type standing struct {
	mu      sync.Mutex
	busy    bool                    // one of the task's goroutines is at giving the slot up for others
	over    chan struct{}           // closed when it no longer is; made for the first who waits for that
	permit  limiter.Permit          // zero while what TryTake gave is held as it is
	arrived time.Duration           // or untimed
	resumed time.Duration           // when the slot was last taken again after it was given up
	paused  time.Duration           // when the task last paused
	away    atomic.Int64            // how long it was given up for in all, ns
	wanted  atomic.Int64            // until when the task is, on the pool's clock: see want; written under mu
	back    context.CancelCauseFunc // ends the wait for the slot; nil while there is none, and under mu, as is since
	since   time.Duration           // when that began
}

// stand returns the slot's standing, made for the first who needs it.
func (s *slot) stand() *standing {
	if s.standing.Load() == nil {
		s.standing.CompareAndSwap(nil, &standing{arrived: untimed})
	}
	return s.standing.Load()
}

// begin waits until no other goroutine of the task stands back. No lock is held meanwhile: in a test's bubble
// (testing/synctest) time would stand still for whoever waits for it.
func (w *standing) begin() {
	w.mu.Lock()
	for w.busy {
		if w.over == nil {
			w.over = make(chan struct{})
		}
		over := w.over
		w.mu.Unlock()
		<-over
		w.mu.Lock()
	}
	w.busy = true
	w.mu.Unlock()
}

// end is the end of what begin began.
func (w *standing) end() {
	w.mu.Lock()
	w.busy = false
	if w.over != nil {
		close(w.over)
		w.over = nil
	}
	w.mu.Unlock()
}

// waited is a slot that was waited for.
type waited struct {
	slot
	standing standing
}

// The phases of a slot, the low bits of its word. They begin at 0, so that nothing need be
// stored for a task without a priority.
const (
	slotHeld    uint32 = iota // taken; nobody sees a slot before it is
	slotYielded               // given up for others; will be taken again
	slotLeft                  // given back
	slotLost                  // given up for others and not taken again: the task goes on without

	slotPhase   = 3
	slotLocked  = 4  // the goroutine was locked to its thread
	slotApart   = 8  // the task that it belongs to does not wait for it with a slot in hand
	slotPaused  = 16 // it is slotYielded until the task goes on; set and taken away by whoever owns what stands below over
	slotCounted = 32 // and is one of Pool.paused; likewise
	slotShift   = 8  // above: the priority, a byte, off by the lowest and turned so that 0 is the middle

	slotThread = 16 // above: the thread that it was locked to, as much of it as there is room for
)

// fill fills in a new slot all but its time.
func (s *slot) fill(ctx context.Context, k *kind, t *task, weight int) {
	s.Context, s.kind, s.client, s.weight = ctx, k, t.client, int32(min(weight, math.MaxInt32))
	if t.priority != 0 {
		s.word.Store(slotPriority(t.priority))
	}
}

const lowest, highest = -8, 7 // the priorities that package limiter tells apart

func slotPriority(p int) uint32 {
	return uint32(uint8(int8(min(max(p, lowest), highest)))) << slotShift
}

func (s *slot) priority() int { return int(int8(s.word.Load() >> slotShift)) }

// level is the index of its priority in Pool.waiting.
func (s *slot) level() int { return s.priority() - lowest }

// move changes the phase, and reports whether it was from.
func (s *slot) move(from, to uint32) bool {
	w := s.word.Load()
	return w&slotPhase == from && s.word.CompareAndSwap(w, w&^slotPhase|to)
}

type (
	anySlot  struct{}          // key of the innermost slot
	poolSlot struct{ p *Pool } // key of the slot of one pool
)

// Value returns the slot for the keys of this package and else what the caller's context has.
func (s *slot) Value(key any) any {
	switch k := key.(type) {
	case anySlot:
		return s
	case poolSlot:
		if k.p == s.kind.pool {
			return s
		}
	case waiting.Key:
		if k.Pool == any(s.kind.pool) {
			return waiting.Slot{Back: s.want, Away: s.away, Pause: func() bool { return s.pause(slotPaused) }, Here: s.unpause, Held: s.isHeld, Enlist: s.kind.pool.enlist}
		}
	}
	return s.Context.Value(key)
}

// held returns the innermost slot of p that ctx carries and whose task still has it.
func (p *Pool) held(ctx context.Context) *slot {
	s, _ := ctx.Value(poolSlot{p}).(*slot)
	return s.held()
}

// held returns s if its task still has it, or else the innermost slot around it of which that is so. Once there is none
// there is none ever after.
func (s *slot) held() *slot {
	for s != nil && !s.isHeld() {
		s = s.around()
	}
	return s
}

func (s *slot) isHeld() bool { return s.word.Load()&slotPhase <= slotYielded }

// around returns the slot of the task that s was taken in, of the same pool, or nil.
func (s *slot) around() *slot {
	o, _ := s.Context.Value(poolSlot{s.kind.pool}).(*slot)
	return o
}

// bound reports whether the task belongs to another that has a slot of the pool. That one may wait for it with the slot
// in hand, and so it must not wait for one itself.
func (s *slot) bound() bool {
	return s.word.Load()&slotApart == 0 && s.around().held() != nil
}

// lock puts the work on a thread of its own where Overcommit says so. It runs on
// the goroutine that does the work, before anybody else can see the slot.
func (s *slot) lock() {
	if s.kind.pool.extra.Load() != nil {
		runtime.LockOSThread()
		s.word.Store(s.word.Load() | slotLocked | thread()<<slotThread)
	}
}

// leave gives the slot back, once. The task may stand back on another goroutine, or have it back, at this very moment.
func (s *slot) leave() {
	for s.word.Load()&slotPhase != slotLeft {
		if s.move(slotHeld, slotLeft) || s.move(slotLost, slotLeft) {
			s.settle()
			break
		}
		w := s.word.Load()
		if w&slotPhase == slotYielded && s.word.CompareAndSwap(w, w&^(slotPhase|slotPaused|slotCounted)|slotLeft) {
			if w&slotPaused != 0 {
				s.leftPaused(w)
			} // else the one that yielded finds that out and settles
			break
		}
	}
	s.unlock()
}

// unlock takes back what lock did, on the goroutine that it was done on: another one, such as that of a flush, may give the slot back
// first. No other goroutine runs on that thread meanwhile.
func (s *slot) unlock() {
	w := s.word.Load()
	if w&slotLocked != 0 && thread()&0xffff == w>>slotThread && s.word.CompareAndSwap(w, w&^slotLocked) {
		runtime.UnlockOSThread()
	}
}

// settle ends the task in the books and gives its permit back.
func (s *slot) settle() {
	k := s.kind
	w := s.standing.Load()
	if w == nil || w.permit == (limiter.Permit{}) {
		k.pool.end(k, int(s.weight), s.began)
		return
	}
	now := k.pool.now()
	if s.began != untimed {
		k.ran(now - s.began)
	}
	w.permit.ReleaseAt(limiter.Success, k.pool.at(now))
	k.pool.end(k, 0, untimed)
}

package pool

import (
	"slices"
	"sync"
	"sync/atomic"
)

// crew is what the Maps of a pool know of one another: how many goroutines work on the elements, each in a slot.
type crew struct {
	next  atomic.Int64 // the first element that nobody has begun
	count int64        // how many elements there are
	hands atomic.Int64
	each  int64  // slots that each of them takes
	lend  func() // adds one, if there is a free slot that nobody waits for
}

// richer reports whether one of c's goroutines would be of more use to o, and c have no fewer slots than o then.
func (c *crew) richer(o *crew) bool {
	return o.next.Load() < o.count && (c.hands.Load()-1)*c.each >= (o.hands.Load()+1)*o.each
}

// crews are those at work in a pool.
type crews struct {
	n   atomic.Int64
	mu  sync.Mutex
	all []*crew
}

func (s *crews) join(c *crew) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, c)
	s.n.Store(int64(len(s.all)))
}

// part takes c out: nobody adds to it any more.
func (s *crews) part(c *crew) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.all, c)
	s.all = slices.Delete(s.all, i, i+1)
	s.n.Store(int64(len(s.all)))
}

// poorer reports whether there is one to which c is richer.
func (s *crews) poorer(c *crew) bool {
	if s.n.Load() < 2 || c.hands.Load() < 2 {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.all, c.richer)
}

// pass has a goroutine of c leave its slot, for those who wait or else for one that c is richer than.
func (s *crews) pass(c *crew, own *slot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.all, c.richer)
	c.hands.Add(-1)
	own.leave()
	if i >= 0 {
		s.all[i].lend()
	}
}

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
	each  int64       // slots that each of them takes
	lend  func() bool // adds one, if there is a free slot that nobody waits for, and reports whether there was
}

// wants reports whether there are elements that nobody has begun.
func (c *crew) wants() bool { return c.next.Load() < c.count }

// richer reports whether one of c's goroutines would be of more use to o, and c have no fewer slots than o then.
func (c *crew) richer(o *crew) bool {
	return o.wants() && (c.hands.Load()-1)*c.each >= (o.hands.Load()+1)*o.each
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

// offer lends a slot to the one that has the fewest of those with a use for one more, or else, where that one is at its end or needs more
// room than there is, to another. The goroutine that gets it sees to the next.
func (s *crews) offer() {
	s.mu.Lock()
	defer s.mu.Unlock()
	var least *crew
	for _, c := range s.all {
		if c.wants() && (least == nil || c.hands.Load()*c.each < least.hands.Load()*least.each) {
			least = c
		}
	}
	if least == nil || least.lend() {
		return
	}
	for _, c := range s.all {
		if c != least && c.wants() && c.lend() {
			return
		}
	}
}

// spare has a Map go on in a slot that has come free. It is called after each that has, and where somebody who waited no longer does: until
// then slots are his.
func (p *Pool) spare() {
	if p.crews.n.Load() > 0 && !p.waits(0) {
		p.crews.offer()
	}
}

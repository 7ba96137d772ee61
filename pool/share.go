package pool

import (
	"sync"
	"time"

	"github.com/spillgate/spillgate/limiter"
)

// shares counts the tasks of each client that wait. It holds a client for no longer than
// that, so it has no more entries than the queue.
type shares struct {
	mu      sync.Mutex
	waiting map[string]int
	refused int64
}

// join counts a task of the client in, unless most wait already.
func (s *shares) join(client string, most int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting[client] >= most {
		s.refused++
		return false
	}
	if s.waiting == nil {
		s.waiting = make(map[string]int)
	}
	s.waiting[client]++
	return true
}

// part counts it out.
func (s *shares) part(client string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting[client]--; s.waiting[client] == 0 {
		delete(s.waiting, client)
	}
}

// overShare is the refusal of a client whose share of the queue is full. One of its places
// comes free in about the time that one of its tasks takes.
func (p *Pool) overShare(k *kind) error {
	return &limiter.Error{Err: limiter.ErrRateLimited, RetryAfter: max(k.usual(), time.Millisecond), Policy: "pool share"}
}

package middleware

import "sync"

// places bounds how many requests wait for jobs, and how many of them one owner's: a quarter, so that nobody keeps all others out. Without
// an owner there is no bound but that on all. It holds an owner for no longer than he has a place.
type places struct {
	most  int
	mu    sync.Mutex
	taken int
	by    map[string]int
}

func (p *places) take(owner string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken >= p.most || owner != "" && p.by[owner] >= max(1, p.most/4) {
		return false
	}
	p.taken++
	if owner != "" {
		if p.by == nil {
			p.by = make(map[string]int)
		}
		p.by[owner]++
	}
	return true
}

func (p *places) leave(owner string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taken--
	if owner != "" {
		if p.by[owner]--; p.by[owner] == 0 {
			delete(p.by, owner)
		}
	}
}

package pool

// Remembered says what p still holds of those that waited: tasks by priority, and clients with a share of the line.
func Remembered(p *Pool) (waiting int64, clients int) {
	for i := range p.waiting {
		waiting += p.waiting[i].Load()
	}
	p.shares.mu.Lock()
	defer p.shares.mu.Unlock()
	return waiting, len(p.shares.waiting)
}

// Maps returns how many calls of Map p knows of.
func Maps(p *Pool) int {
	p.crews.mu.Lock()
	defer p.crews.mu.Unlock()
	return len(p.crews.all)
}

// Unfinished returns what Shutdown would say now that it has dropped.
func Unfinished(p *Pool) []Dropped { return p.kinds.dropped() }

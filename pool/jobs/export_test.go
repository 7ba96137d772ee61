package jobs

// Owing returns how many clients without unfinished jobs are remembered.
func (l *Local) Owing() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.ready.owing)
}

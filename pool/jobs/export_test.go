package jobs

import (
	"time"
	"unsafe"
)

// Owing returns how many clients without unfinished jobs are remembered.
func (l *Local) Owing() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.ready.owing)
}

// Keepers returns of how many clients finished jobs are kept.
func (l *Local) Keepers() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return max(len(l.keepers), len(l.most))
}

// HaveGiven has every client have had so much more run time.
func (l *Local) HaveGiven(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ready.now += d
	l.ready.most += d
	for _, c := range l.ready.clients {
		c.vtime += d
	}
}

// MadeWhenTheWallShowed has the engine be one that was made when the wall clock showed so many seconds more than it does now. It
// reports whether that could be done.
func (l *Local) MadeWhenTheWallShowed(more int64) bool {
	// A time with a monotonic reading begins with a word of which the lowest 30 bits are nanoseconds and the next 33 seconds on the wall.
	base := l.base
	*(*uint64)(unsafe.Pointer(&l.base)) += uint64(more << 30)
	return l.base.Sub(base) == 0 && l.base.Round(0).Sub(base.Round(0)) == time.Duration(more)*time.Second
}

// TimersAreLate has the engine's clock be so much further than its timer goes by, as that of a busy process may be.
func (l *Local) TimersAreLate(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.base = l.base.Add(-d)
}

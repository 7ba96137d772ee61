// Package waiting is what package jobs has the slots do of those that wait for a job.
package waiting

import "context"

// Slot is a slot of a pool. None of its funcs waits for anything.
type Slot struct {
	// Back has the task take its slot again, if it has stood back for a second, for whoever waits for it with another slot in hand, that of the context
	// by, and keep it for a while.
	Back func(by context.Context)
	// Away gives the slot to others until Here is called, if one of them is more urgent. It reports false, and does nothing, where it is not that of the context by.
	Away func(by context.Context) bool
	// Pause gives the slot to others until Here is called, and reports whether it did. It did not where others have it already.
	Pause func() bool
	// Here takes the slot again.
	Here func()
	// Held reports whether the task has the slot still, or takes it again.
	Held func() bool
	// Enlist has a goroutine that is about to compute in the slot do that on a thread as the pool has it, until it calls what Enlist returns.
	Enlist func() func()
}

// Key is that of the Slot of a pool, a *pool.Pool, in the context of a task.
type Key struct{ Pool any }

// Of returns the slot of that pool in which a task runs, and false if there is none.
func Of(task context.Context, pool any) (Slot, bool) {
	s, ok := task.Value(Key{pool}).(Slot)
	return s, ok
}

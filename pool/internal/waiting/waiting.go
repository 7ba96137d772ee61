// Package waiting is what package jobs has the slots do of jobs that wait for one another.
package waiting

import "context"

// Slot is a slot of a pool. None of its funcs waits for anything.
type Slot struct {
	// Back has the task take its slot again, if it has stood back for a second, for whoever waits for it with another slot in hand, that of the context
	// by, and keep it for a while.
	Back func(by context.Context)
	// Away gives the slot to others until Here is called, if one of them is more urgent, and it is that of the context by.
	Away func(by context.Context)
	// Here takes the slot again that Away has given to others.
	Here func()
}

// Key is that of the Slot in the context of a task.
type Key struct{}

// Of returns the slot of a task.
func Of(task context.Context) Slot {
	s, _ := task.Value(Key{}).(Slot)
	return s
}

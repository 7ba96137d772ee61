// Package want is how a job that waits for another one has that come back which has given up its slot.
package want

import "context"

// Key is that of what a task's context tells package jobs, a func(by context.Context). Called by one who waits for the task with a slot in hand, that
// of the context by, it has the task take its own again, without waiting any longer, and keep it for a while; and not where it is the same slot.
type Key struct{}

// Back calls what the context of a task has under Key, if anything.
func Back(task, by context.Context) {
	if f, ok := task.Value(Key{}).(func(context.Context)); ok {
		f(by)
	}
}

package pool

import (
	"errors"
	"fmt"
	"strings"
)

// Sentinels to branch on with [errors.Is]. A full queue, a client's full share of it and a deadline that would
// be missed are reported as a [limiter.Error] of package limiter.
var (
	// ErrShutdown says that the pool takes no more work, or that it dropped this task because the time for draining was
	// over.
	ErrShutdown = errors.New("pool: shut down")
	// ErrGoexit says that a task ended a goroutine of the pool with [runtime.Goexit] (as testing.T.FailNow does) and so
	// has no result.
	ErrGoexit = errors.New("pool: task called runtime.Goexit")
)

// PanicError is the result of a task that panicked on a goroutine of the pool ([Submit],
// [Stream]) or inside [Map]. A panic inside [Pool.Do] is not converted: it travels on, with
// its stack, on the caller's goroutine.
type PanicError struct {
	// Value is the value that was passed to panic.
	Value any
	// Stack is the stack of the goroutine at the panic, as [runtime/debug.Stack] returns it. It is for the operator, not
	// for a client.
	Stack []byte
}

// Error returns the panic's value, without the stack.
func (e *PanicError) Error() string { return fmt.Sprintf("pool: task panicked: %v", e.Value) }

// Unwrap returns the panic's value if it is an error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// DroppedError is what [Pool.Shutdown] returns if the time for draining was over before all work had ended.
type DroppedError struct {
	// Cause is why draining ended: the cause of the context that was given to Shutdown.
	Cause error
	// Kinds lists what was dropped, by kind, in the order of their names.
	Kinds []Dropped
}

// Dropped is what was dropped of one kind of task.
type Dropped struct {
	Kind    string `json:"kind"`    // as given to WithKind
	Waiting int    `json:"waiting"` // never began: each was answered with ErrShutdown
	Running int    `json:"running"` // still at work: Checkpoint tells them to stop
}

// Error names every kind, with how many of its tasks were waiting and how many were running.
func (e *DroppedError) Error() string {
	var b strings.Builder
	b.WriteString("pool: shut down before the work was done")
	for i, d := range e.Kinds {
		sep := ", "
		if i == 0 {
			sep = ": "
		}
		name := d.Kind
		if name == "" {
			name = "(no kind)"
		}
		fmt.Fprintf(&b, "%s%s: %d waiting, %d running", sep, name, d.Waiting, d.Running)
	}
	return b.String()
}

// Unwrap returns [ErrShutdown] and the cause, for [errors.Is].
func (e *DroppedError) Unwrap() []error { return []error{ErrShutdown, e.Cause} }

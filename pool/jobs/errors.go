package jobs

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Sentinels to branch on with [errors.Is].
var (
	// ErrNotFound says that, as far as can be known, there has never been a job with this id.
	ErrNotFound = errors.New("jobs: no such job")
	// ErrExpired says that there was a job with this id and that it has been forgotten.
	ErrExpired = errors.New("jobs: job expired")
	// ErrFinal says that a job cannot be cancelled because it has ended.
	ErrFinal = errors.New("jobs: job has ended already")
	// ErrNotFailed says that a job cannot be queued again because it did not fail.
	ErrNotFailed = errors.New("jobs: job has not failed")
	// ErrUnknownKind says that no handler is registered for this kind.
	ErrUnknownKind = errors.New("jobs: unknown kind")
	// ErrMalformed says that a payload is not the JSON that its handler accepts.
	ErrMalformed = errors.New("jobs: malformed payload")
	// ErrTooLarge says that a payload, a key, a client's name or a result has more bytes than allowed.
	ErrTooLarge = errors.New("jobs: too large")
	// ErrKeyReused says that the key was used for another payload.
	ErrKeyReused = errors.New("jobs: key was used for a different job")
	// ErrFull says that the engine holds as many jobs as it may; the [*Error] that wraps it says when to come back.
	ErrFull = errors.New("jobs: full")
	// ErrShareFull says that one client has as many unfinished jobs as it may, or as many bytes in their payloads.
	ErrShareFull = errors.New("jobs: the client's share is full")
	// ErrShutdown says that the engine takes no more jobs. It is also the cause with which the context of a running job
	// ends when the time for draining is over.
	ErrShutdown = errors.New("jobs: shut down")
	// ErrCancelled is the cause with which the context of a cancelled job ends.
	ErrCancelled = errors.New("jobs: cancelled")
	// ErrDeadline says that a job had not begun by its deadline.
	ErrDeadline = errors.New("jobs: deadline passed before the job began")
	// ErrGoexit says that a handler ended its goroutine with runtime.Goexit.
	ErrGoexit = errors.New("jobs: the handler called runtime.Goexit")
)

// Error is a refusal, with the time after which to come back.
type Error struct {
	Err        error         // one of the sentinels of this package
	RetryAfter time.Duration // 0 means that it is not known
}

// Error returns the text of the sentinel, and when to come back if that is known.
func (e *Error) Error() string {
	if e.RetryAfter > 0 {
		return fmt.Sprintf("%v, retry after %v", e.Err, e.RetryAfter)
	}
	return e.Err.Error()
}

// Unwrap returns the sentinel.
func (e *Error) Unwrap() error { return e.Err }

// PanicError is the failure of an attempt whose handler panicked. Its text goes to the client, so it does not contain
// the panic's value.
type PanicError struct {
	Value any
	Stack []byte // as runtime/debug.Stack prints it
}

// Error says that the handler panicked, and nothing more.
func (e *PanicError) Error() string { return "jobs: the handler panicked" }

// Permanent marks the error of a handler as one that another attempt would not change, so that the job fails at once.
// It returns nil for nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &permanent{err}
}

type permanent struct{ err error }

func (p *permanent) Error() string { return p.err.Error() }
func (p *permanent) Unwrap() error { return p.err }

// Retryable reports whether another attempt may succeed after err. It may not if err is marked with [Permanent] or is
// an error of this package that will not change.
func Retryable(err error) bool {
	var p *permanent
	if errors.As(err, &p) {
		return false
	}
	for _, never := range []error{ErrUnknownKind, ErrMalformed, ErrTooLarge, ErrDeadline, ErrCancelled, ErrShutdown} {
		if errors.Is(err, never) {
			return false
		}
	}
	return true
}

// DroppedError is what [Local.Shutdown] returns if jobs were unfinished when its time was over. It holds their ids.
type DroppedError struct {
	Cause   error    // why draining ended
	Waiting []string // did not begin, or waited for another attempt
	Running []string // were told to stop
}

// Error says how many jobs were dropped, and gives the ids of the first few.
func (e *DroppedError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "jobs: shut down with %d jobs waiting and %d running", len(e.Waiting), len(e.Running))
	for i, id := range append(e.Waiting[:len(e.Waiting):len(e.Waiting)], e.Running...) {
		if i == 5 {
			b.WriteString(", …")
			break
		}
		if i == 0 {
			b.WriteString(": ")
		} else {
			b.WriteString(", ")
		}
		b.WriteString(id)
	}
	return b.String()
}

// Unwrap returns [ErrShutdown] and the cause.
func (e *DroppedError) Unwrap() []error { return []error{ErrShutdown, e.Cause} }

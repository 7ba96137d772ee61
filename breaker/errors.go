package breaker

import (
	"errors"
	"time"
)

// ErrOpen says that the breaker refused a call: it is open, or half-open with all its probes under way, or the share
// of calls that it lets in after an opening is used up. The errors that this package returns wrap it in an
// [*OpenError].
var ErrOpen = errors.New("breaker: open")

// OpenError is a refusal, with the numbers that a caller needs to answer it. It is shared between calls: do not
// change it.
type OpenError struct {
	// Name is the name of the breaker; in a [Group], its key. A client may have sent it: do not put it into an answer.
	Name string
	// State is the state that refused the call.
	State State
	// RetryAfter is how long to wait before coming back, rounded up to 10 ms; 0 means that it is not known.
	RetryAfter time.Duration
}

// Error returns the state, with the name and the wait if they are known.
func (e *OpenError) Error() string {
	s := "breaker: "
	if e.Name != "" {
		s += e.Name + ": "
	}
	if e.State == Closed {
		s += "letting calls in slowly"
	} else {
		s += e.State.String()
	}
	if e.RetryAfter > 0 {
		s += ", retry after " + e.RetryAfter.String()
	}
	return s
}

// Unwrap returns [ErrOpen].
func (e *OpenError) Unwrap() error { return ErrOpen }

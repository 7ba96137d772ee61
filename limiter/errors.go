package limiter

import (
	"errors"
	"time"
)

// Sentinels to test for with [errors.Is]. The errors that this package returns wrap one of them in an [*Error] that
// carries the numbers.
var (
	// ErrRateLimited says that a key is over its own quota.
	ErrRateLimited = errors.New("limiter: rate limited")
	// ErrSaturated says that every permit is taken and the queue is full, or that the wait in the queue grew too long.
	ErrSaturated = errors.New("limiter: saturated")
	// ErrWouldMissDeadline says that the work was refused, at once or as soon as that was clear, because it could not
	// have begun in time for the deadline of its context.
	ErrWouldMissDeadline = errors.New("limiter: would miss the deadline")
)

// Error is a refusal, with the numbers that a caller needs to answer it.
type Error struct {
	// Err is one of the sentinels of this package.
	Err error
	// RetryAfter is how long to wait before coming back; 0 means that it is not known.
	RetryAfter time.Duration
	// Policy is the name of the rate policy that refused. It is "pool share" if package pool refused because of a
	// client's share, and empty otherwise.
	Policy string
}

// Error returns the text of the sentinel, with the policy and the wait if they are known.
func (e *Error) Error() string {
	s := e.Err.Error()
	if e.Policy != "" {
		s += " by policy " + e.Policy
	}
	if e.RetryAfter > 0 {
		s += ", retry after " + e.RetryAfter.String()
	}
	return s
}

// Unwrap returns the sentinel, for [errors.Is].
func (e *Error) Unwrap() error { return e.Err }

package jobs

import (
	"context"
	"encoding/json"
	"iter"
	"time"
)

// State is the stage that a job has reached in its life.
type State string

// A job is Queued until an attempt begins, then Running; a failed attempt that will be repeated
// makes it Retrying. Succeeded, Failed and Cancelled are final. Failed is the dead-letter
// state: the payload is kept for as long as the job is.
const (
	Queued    State = "queued"
	Running   State = "running"
	Retrying  State = "retrying"
	Succeeded State = "succeeded"
	Failed    State = "failed"
	Cancelled State = "cancelled"
)

// Final reports whether a job in this state has ended.
func (s State) Final() bool { return s == Succeeded || s == Failed || s == Cancelled }

// Progress is how far a running job has come, as its handler reports it.
type Progress struct {
	Done  int64  `json:"done"`           // of Total
	Total int64  `json:"total"`          // 0 means that it is not known
	Note  string `json:"note,omitempty"` // for a person; at most 256 bytes are kept
}

// Fraction returns how much is done, from 0 to 1, or 0 if that is not known.
func (p Progress) Fraction() float64 {
	if p.Total <= 0 {
		return 0
	}
	return min(max(float64(p.Done)/float64(p.Total), 0), 1)
}

// Job is the state of a job at one moment. Its JSON holds what the client of the job may see, and nothing else.
type Job struct {
	ID      string `json:"id"`
	Kind    string `json:"kind"`
	State   State  `json:"state"`
	Version uint64 `json:"version"` // grows with every change

	Attempt     int      `json:"attempt"`             // attempts begun
	MaxAttempts int      `json:"max_attempts"`        // attempts allowed
	Progress    Progress `json:"progress"`            // of the latest attempt; Local drops it when the job has succeeded
	Cancelling  bool     `json:"cancelling,omitzero"` // Cancel was called while it ran

	Created  time.Time `json:"created"`
	Started  time.Time `json:"started,omitzero"`  // the latest attempt
	Finished time.Time `json:"finished,omitzero"` // final since
	Next     time.Time `json:"next,omitzero"`     // not before; while Queued or Retrying
	Expires  time.Time `json:"expires,omitzero"`  // forgotten at; final jobs only

	// RetryAfter is the time after which to ask again; 0 for a final job.
	RetryAfter time.Duration `json:"-"`
	// Result is what the handler returned, as JSON; Succeeded only.
	Result json.RawMessage `json:"result,omitempty"`
	// Err is why the latest attempt failed, in words that the client may see.
	Err string `json:"error,omitempty"`

	// Client is the client given in [SubmitOptions].
	Client string `json:"-"`
	// Detail is what the operator needs to know about a failure and the client must not see: the value and the stack of a
	// panic.
	Detail string `json:"-"`
}

// Engine takes jobs and reports their state. Its methods are safe for concurrent use. [Local] is an Engine; package
// jobstest says what every Engine must do.
type Engine interface {
	// Submit accepts a job and returns it with true. If a job with the same key and payload was accepted earlier, it
	// returns that job with false. Submit does not keep a reference to the payload. Errors wrap [ErrUnknownKind],
	// [ErrMalformed], [ErrTooLarge], [ErrKeyReused], [ErrFull], [ErrShareFull] or [ErrShutdown], or are the cause of ctx
	// if that has ended.
	Submit(ctx context.Context, kind string, payload []byte, o SubmitOptions) (job Job, created bool, err error)
	// Get returns a job. Errors wrap [ErrNotFound] or [ErrExpired].
	Get(ctx context.Context, id string) (Job, error)
	// Cancel ends a job that has not begun; the job it returns is Cancelled. It asks a running job to stop through its
	// context, and returns it as Running with Cancelling set. For a final job it returns the job and [ErrFinal]. Otherwise
	// errors are as of Get.
	Cancel(ctx context.Context, id string) (Job, error)
	// Watch yields the job as it is, and again after each change, or the latest of several changes, until the job is final
	// or ctx ends; the end of ctx is yielded as the last error. A slow watcher misses changes in between and never holds
	// anything up.
	Watch(ctx context.Context, id string) iter.Seq2[Job, error]
}

// SubmitOptions says how a job is to be treated. The zero value is ready to use.
type SubmitOptions struct {
	// Key makes submitting idempotent: for as long as the first job is known, the same key of the same client returns that
	// job. At most 255 bytes; empty means no key.
	Key string
	// Client names the client on whose behalf the job runs. Clients share the engine fairly, and each has a bounded share
	// of its places and bytes. At most 255 bytes; empty means no client, and no bound but the engine's own.
	Client string
	// Priority orders the jobs of one client, from -8 to 7: a higher priority begins sooner. A value beyond that range
	// counts as the nearest end. A waiting job ages, so that none is starved: one level is worth a second of waiting.
	Priority int
	// NotBefore is the earliest time at which the job may begin; the zero time means now.
	NotBefore time.Time
	// Deadline is when the job has to be done: a job that has not begun by then becomes Failed, and the context of a
	// running job ends then. The zero time means never.
	Deadline time.Time
	// MaxAttempts replaces the MaxAttempts of the kind; 0 or less keeps that.
	MaxAttempts int
}

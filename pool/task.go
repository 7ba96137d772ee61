package pool

import (
	"fmt"
	"time"
)

// TaskOption sets one thing about one task. The zero value sets nothing. An option is a plain value: building one and
// passing it on allocates nothing.
type TaskOption struct {
	what taskField
	n    int
	s    string
	t    time.Time
}

type taskField uint8

const (
	setNothing taskField = iota
	setPriority
	setClient
	setWeight
	setKind
	setDeadline
	setArrival
	setPlain
)

// WithPriority orders the waiting tasks of one client (see [WithClient]), or those without one: a higher priority
// begins first, 0 is the default, and negative priorities are for work that can wait. The range is -8 to 7; a value
// beyond it counts as the nearest end. A waiting task ages, so that a lower priority is not starved: one level is worth
// the pool's priority step ([WithPriorityStep]) of waiting. Between clients, the slot time that each has had decides,
// whatever the priorities.
func WithPriority(p int) TaskOption { return TaskOption{what: setPriority, n: p} }

// WithClient names the client that the task is for. Waiting tasks of different clients share the pool fairly, by slot
// time used; tasks without a client together count as one client. The key is forgotten once the client has nothing
// waiting or running.
func WithClient(key string) TaskOption { return TaskOption{what: setClient, s: key} }

// WithWeight says that the task uses k cores and so takes k slots, at least 1. A weight
// above the pool's size counts as the whole pool. It panics if k is less than 1.
func WithWeight(k int) TaskOption {
	if k < 1 {
		panic(fmt.Sprintf("pool: WithWeight(%d): a task takes at least 1 slot; leave the option out for one", k))
	}
	return TaskOption{what: setWeight, n: k}
}

// WithKind names what sort of task this is, for [Stats] and for the estimate of how long it will run. A pool keeps the
// first 64 kinds apart and counts the rest under "other": use one of a few names from the program, not something that a
// client chooses.
func WithKind(name string) TaskOption { return TaskOption{what: setKind, s: name} }

// WithDeadline sets when the task must be finished. A task that would plainly be late is refused with
// [limiter.ErrWouldMissDeadline] before it has used any CPU. It is refused at once if the deadline has passed, or if it
// would have to wait and be late by what is ahead of it and how long its kind usually runs; it is refused in the queue
// once the time left is too short. If a slot is free, the task is tried. If a kind is always refused because of how
// long it once took, one of its tasks is tried now and then. Once a task runs, the deadline is not enforced. The
// earlier of this deadline and the context's own counts.
func WithDeadline(t time.Time) TaskOption { return TaskOption{what: setDeadline, t: t} }

// WithArrival sets when the task arrived, if that was before now: a task that was refused and comes again keeps the age
// it has gained, see [WithPriority]. The time that it may wait in the queue counts from now.
func WithArrival(t time.Time) TaskOption { return TaskOption{what: setArrival, t: t} }

// WithPlainContext makes [Pool.Do] pass on the context that it was given, without the slot in it, and [Pool.Enter]
// return the context that it was given; Do then allocates nothing. It is for short work that does not use the pool
// itself: a Do, Submit or Map under that context waits for a slot of its own, which at worst never becomes free, and
// [Checkpoint] only reports whether the context has ended. It has no effect on [Submit], [Map] and [Stream].
func WithPlainContext() TaskOption { return TaskOption{what: setPlain} }

// task is what the options of one task come to.
type task struct {
	priority int
	weight   int
	client   string
	kind     string
	deadline time.Time
	arrival  time.Time
	plain    bool
}

func gather(opts []TaskOption) task {
	t := task{weight: 1}
	for i := range opts {
		o := &opts[i]
		switch o.what {
		case setPriority:
			t.priority = o.n
		case setClient:
			t.client = o.s
		case setWeight:
			t.weight = min(o.n, maxSlots)
		case setKind:
			t.kind = o.s
		case setDeadline:
			t.deadline = o.t
		case setArrival:
			t.arrival = o.t
		case setPlain:
			t.plain = true
		}
	}
	return t
}

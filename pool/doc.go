// Package pool keeps CPU-bound work from starving everything else in the process.
//
// A [Pool] is a number of slots behind one waiting line, a [limiter.Concurrency]. Work
// runs on the goroutine that asked for it ([Pool.Do], [Pool.Enter]); only [Submit], [Map]
// and [Stream] start goroutines, each while it holds a slot or waits for one. There are
// no workers to start or to stop.
//
//	p := pool.New()
//	err := p.Do(r.Context(), func(ctx context.Context) error {
//		return render(ctx, report)
//	}, pool.WithKind("report"))
//
// # Why fewer slots than cores
//
// Go's scheduler looks at the network only when a core (a P) has nothing to run, or every
// 10 ms. When every P computes, each network event costs up to 10 ms, and every goroutine
// that wakes up stands behind all those that compute. One P kept free avoids both. So the
// default is GOMAXPROCS-1 slots, at least 1, and follows GOMAXPROCS (and with it the
// cgroup's CPU limit) while the program runs. On a machine of c cores this costs at most
// 1/c of the throughput of CPU-bound work; [Overcommit] gets it back and says at what price.
//
// With one P there is none to keep free: the only slot computes on it, whatever else is
// to run waits for turns of 10 ms, and an adaptive limit around may refuse some of it. There
// Overcommit has a second P made: GOMAXPROCS=1 go run ./examples/fairness prints the difference.
//
// # Nested calls
//
// The context that a task receives carries its slot. A Do, Enter, Map or Submit of the
// same pool with that context, or one derived from it, uses the slot that is held already
// and can therefore not deadlock, at any size. What a task starts on other goroutines with
// its context counts as the same slot. After the task has returned the context counts as that of
// the task around it, where it was part of one that still runs; else it is an
// ordinary one again, and work under it takes a slot of its own.
//
// With two pools the order matters: tasks of one that ask for a slot of the other, and tasks of that which ask for one of the first, can wait for
// each other, until the line sends one of them away ([WithQueue]). Have all of them ask in the same order. A task that [Submit] starts and nobody waits for asks
// as if it stood alone.
//
// # Work that waits
//
// A pool bounds work that waits for others just as well, such as the calls of a handler that asks ten backends: a Pool of its own,
// [WithSlots] with as many calls as may be under way at once, and [Map]. Each request has a slot or waits for one, and more of them
// only as long as no other request waits.
//
// # What it costs
//
// A Do that finds a slot free costs about three times what a channel used as a semaphore
// does, most of it for one allocation of 64 bytes, the context that carries the slot; with
// [WithPlainContext] it allocates nothing and costs less than twice the channel. A nested Do
// costs a few nanoseconds. Tasks that find no slot are served in the order of the line, which
// takes a switch between goroutines for each; those of a kind that usually takes less than a
// microsecond look again for up to 10 us before they join it. BenchmarkDo and
// BenchmarkContended print all this.
//
// # What the pool does not do
//
// It protects from the work that goes through it. A goroutine that computes beside it is
// not seen. It does not stop a task that ignores its context: long loops call [Checkpoint].
package pool

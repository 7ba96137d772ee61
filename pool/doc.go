// Package pool keeps CPU-bound work from starving everything else in the process.
//
// A [Pool] is a number of slots behind one queue, a [limiter.Concurrency]. Work runs on the goroutine that asked
// for it ([Pool.Do], [Pool.Enter]); only [Submit], [Map] and [Stream] start goroutines, each while it holds a slot or
// waits for one. There are no workers to start or to stop.
//
//	p := pool.New()
//	err := p.Do(r.Context(), func(ctx context.Context) error {
//		return render(ctx, report)
//	}, pool.WithKind("report"))
//
// # Why fewer slots than cores
//
// Go's scheduler looks at the network only when a core (a P) has nothing to run, or every 10 ms. When every P computes,
// each network event costs up to 10 ms, and every goroutine that wakes up queues behind all those that compute. One P
// kept free avoids both. So the default is GOMAXPROCS-1 slots, at least 1, and follows GOMAXPROCS (and with it the
// cgroup's CPU limit) while the program runs. On a machine of c cores this costs at most 1/c of the throughput of
// CPU-bound work; [Overcommit] gets it back, and says at what price.
//
// With a single P there is none to keep free. The only slot computes on it, everything else waits for turns of 10 ms,
// and an adaptive limit around it may refuse some requests. Overcommit then adds a second P: GOMAXPROCS=1 go run
// ./examples/fairness prints the difference.
//
// # Nested calls
//
// The context that a task receives carries its slot. A Do, Enter, Map or Submit of the same pool with that context, or
// with one derived from it, uses the slot that is already held. It therefore cannot deadlock, however few slots the
// pool has. Goroutines that a task starts with its context share that slot. After a task has returned, its context
// counts as that of the enclosing task, if there is one that still runs. Otherwise it is an ordinary context again, and
// work under it takes a slot of its own.
//
// With two pools the order matters. If tasks of the first ask for a slot of the second, and tasks of the second ask for
// one of the first, they can wait for each other until a queue turns one of them away ([WithQueue]). Have all of them
// ask in the same order. A task that [Submit] starts and nobody waits for asks as if it stood alone.
//
// # Work that waits
//
// A pool can equally bound work that waits for others, such as the calls of a handler that asks ten backends: use a
// Pool of its own, [WithSlots] with as many calls as may be under way at once, and [Map]. Each request has one slot or
// waits for one; it has more only while no other request waits.
//
// # What it costs
//
// A Do that finds a slot free costs about three times what a channel used as a semaphore does. Most of that is one
// allocation of 64 bytes, the context that carries the slot; with [WithPlainContext] it allocates nothing and costs
// less than twice the channel. A nested Do costs a few nanoseconds. Tasks that find no slot are served in the order of
// the queue, which takes a switch between goroutines for each. Tasks of a kind that usually takes less than a
// microsecond keep looking for a slot for up to 10 us before they join the queue. BenchmarkDo and BenchmarkContended
// print all this.
//
// # What the pool does not do
//
// A pool protects from the work that goes through it. It does not see a goroutine that computes outside it. It does not
// stop a task that ignores its context: long loops call [Checkpoint].
package pool

// Package jobs runs work that outlives the request that asked for it: submit, status,
// progress, cancel, retry, result.
//
// A [Mux] holds the handlers, one for each kind of job. An [Engine] takes jobs and says how they
// are. [Local] is the engine in memory, running its jobs in the slots of a [pool.Pool];
// others pass the conformance suite in package jobstest and serve the same Mux: packages riverjobs
// and redisjobs, in modules of their own, keep jobs in Postgres and in Redis.
//
//	m := jobs.NewMux()
//	jobs.Register(m, "report", func(ctx context.Context, a ReportArgs) (Report, error) { … })
//	engine := jobs.NewLocal(m, pool.New())
//	defer engine.Close()
//	job, _, err := engine.Submit(ctx, "report", []byte(`{"year":2026}`), jobs.SubmitOptions{})
//
// # At least once
//
// Every engine may run a job more than once: after a failure if the kind allows several
// attempts, after a lost worker, on an operator's request. A handler has to be such that a
// second run does no harm. An engine in memory forgets its jobs when the process ends;
// [Local.Shutdown] drains it and names what it could not finish.
//
// # Jobs that wait for jobs
//
// A handler may submit another job and wait for it by Watch, with the context that it was given. [Local] runs that one in the slot of the one that
// waits where there may be no other for it, and where that one has given up a slot of its own ([pool.Checkpoint]) has it go on in a second or two, whether there is
// another slot by then or not. While nothing runs in it the slot of the one that waits is used by others that are more urgent, as the tasks of requests are; it goes on at
// once nevertheless, since they may wait for what it holds. With the engines that outlive the process a job that waits holds its place in the worker: where all
// places are held so, none of them goes on.
//
// The package does not import net/http.
package jobs

// Package jobs runs work that outlives the request that asked for it: submit, status, progress, cancel, retry, result.
//
// A [Mux] holds the handlers, one for each kind of job. An [Engine] takes jobs and reports their state. [Local] is the
// engine in memory; it runs its jobs in the slots of a [pool.Pool]. Other engines pass the conformance suite in package
// jobstest and serve the same Mux: packages riverjobs and redisjobs, each in its own module, keep jobs in Postgres and
// in Redis.
//
//	m := jobs.NewMux()
//	jobs.Register(m, "report", func(ctx context.Context, a ReportArgs) (Report, error) { … })
//	engine := jobs.NewLocal(m, pool.New())
//	defer engine.Close()
//	job, _, err := engine.Submit(ctx, "report", []byte(`{"year":2026}`), jobs.SubmitOptions{})
//
// # At least once
//
// Every engine may run a job more than once: after a failure if the kind allows several attempts, after a lost worker,
// on an operator's request. Write handlers so that a second run does no harm. An engine in memory forgets its jobs when
// the process ends; [Local.Shutdown] drains it and names what it could not finish.
//
// # Jobs that wait for jobs
//
// A handler may submit another job and wait for it with Watch and the context that it was given. If there may be no
// other slot for the job waited for, [Local] runs it in the slot of the job that waits. If the job waited for has given
// up a slot of its own ([pool.Checkpoint]), Local lets it go on after a second or two, whether there is another slot by
// then or not. While nothing runs in the slot of the job that waits, more urgent work, such as the tasks of requests,
// uses that slot. The job that waits still goes on at once when it can, since the others may wait for what it holds.
//
// With the engines that outlive the process, a job that waits holds its place in the worker: if all places are held by
// such jobs, none of them goes on.
//
// The package does not import net/http.
package jobs

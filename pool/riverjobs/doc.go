// Package riverjobs is a [jobs.Engine] on River and Postgres: a web server on one machine submits jobs, and
// processes on others run them.
//
// Once, before anything else, as a step of the deployment:
//
//	err := riverjobs.Migrate(ctx, pool, riverjobs.WithSchema("jobs"))
//
// The web server, which submits, answers and watches:
//
//	engine := riverjobs.New(pool, mux, riverjobs.WithSchema("jobs"))
//	http.Handle("/reports/", middleware.Async(engine, "report"))
//
// A worker, with the same handlers in its [jobs.Mux]:
//
//	engine := riverjobs.New(pool, mux, riverjobs.WithSchema("jobs"), riverjobs.WithWorkers(8))
//	err := engine.Start(ctx)
//	defer engine.Close()
//
// One process may do both. A worker takes only kinds that its Mux had when [New] was called: workers may be special,
// and those of the last version do not meet the kinds of the next.
//
// # At least once
//
// A job is in Postgres before Submit returns, and stays there until it has ended and its retention is over. It runs once, unless:
// an attempt fails and there are more; a worker is shut down before the job has ended; a worker is killed, or does
// not reach the database for so long that it is taken for lost ([WithLease]), in which case it may still be running the job
// when another begins to. The last two are no failures of the job, and it runs again also where its kind allows one attempt; but a
// job that three workers were lost with has failed. Nobody takes workers for lost in the lease after an outage, a standstill of the database, or a jump of its
// clock, as when a replica takes over, since none could be heard; that holds where all workers of a schema have the same lease. What has ended is written together with what else ends at that moment: where
// somebody's transaction holds the row of one of these for longer than a lease, or the database is away for as long, all of them may run again. What an engine knows of a job changes in one transaction: state,
// version, result.
//
// [Engine.SubmitTx] submits as a part of the caller's own transaction: the job exists exactly if that commits.
//
// # What is different from jobs.Local
//
// Priorities are the four of River, strictly: 4 to 7 first, then 0 to 3, then -4 to -1, then the rest. Clients have a bounded share of the places and
// bytes, and turns that are not exact: who has 16 unfinished jobs submits the next one of these levels lower, who has 128 two, so that others go
// before it. What has waited for a minute goes with the first, of each client 16 jobs at a time. Otherwise jobs of the same level begin
// in the order of submission. The bound on all unfinished jobs is looked at without a lock, and submissions at the same time
// may exceed it by their number; a client's share is exact, except for what [Engine.SubmitTx] adds. What is due at a time of its own, as a retry
// or by NotBefore, begins up to a poll interval late ([WithPollInterval]), and up to twenty seconds where the worker was killed that had it
// ready for all. A result is at most 16 MiB. An id whose transaction was rolled back is said to have expired. Failed jobs are queued again by an operator
// with River's own JobRetry.
//
// # What it needs of Postgres
//
// Version 14 or newer, and a schema of its own ([WithSchema]) where the program uses River besides: River's
// periodic maintenance goes by the settings of whichever client leads, and these leave the deletion and the rescue of jobs to this package. A worker
// has one connection beside the pool, to say that it is alive, since handlers may have all of the pool's, and takes one out of it to listen, as any
// engine does while somebody watches a job. Behind a proxy that gives connections to transactions, such as PgBouncer, say [WithPollOnly], and give pgx
// the default_query_exec_mode exec, or another that the proxy takes. Where the clock of the database is set back, what could begin still does, a quarter of a lease late;
// retries are later by as much as it was set. Leases and retention go by the clock of the database; when a retry is due, and whether
// a deadline has passed, also by that of the worker. A transaction that is open for hours, whatever its table, keeps what has ended from being
// vacuumed, and submissions slow down by what they have to pass over. Transactions are read committed, which is the default of Postgres: where another one is
// set for the server or the role, as serializable, give the pool's connections default_transaction_isolation "read committed".
//
// Where the machine of the database is gone without a word, as in a failover, a statement on a connection that there was waits for its context, or until TCP gives
// the connection up, which may take a quarter of an hour: submit and ask with a deadline, and give the pool a PingTimeout. Workers and those who watch
// find out after ten seconds.
//
// Tables: those of River, and spillgate_job (one row for each job: id, client, key, version, progress), spillgate_worker (who is alive) and
// spillgate_key (what ids are recognised by). A trigger on river_job counts versions and notifies watchers, so that what River UI or another tool
// does to a job is seen here too; another passes over what a worker says too late that was taken for lost. There a job has the kind "spillgate:" and its own, the id and the payload in its arguments, the latter
// as text since a jsonb would not keep it as it is, and the result, likewise as text, as its output. A job that failed for good before its
// last attempt is "cancelled" there, which is River's word for it, and "failed" here.
package riverjobs

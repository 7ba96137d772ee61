// Package riverjobs is a [jobs.Engine] on River and Postgres: a web server on one machine submits jobs, and processes
// on others run them.
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
// and those of the last version do not know the kinds of the next.
//
// # At least once
//
// A job is in Postgres before Submit returns, and stays there until it has ended and its retention is over. It runs
// once, with three exceptions: an attempt fails and there are more; a worker is shut down before the job has ended; or
// a worker is killed, or cannot reach the database for so long that it is taken for lost ([WithLease]), in which case
// it may still be running the job when another begins to. The last two are no failures of the job, and it runs again
// even if its kind allows only one attempt; but once three workers have been lost with a job, it has failed.
//
// For one lease after an outage, a standstill of the database, or a jump of its clock, as when a replica takes over, no
// worker is taken for lost, since none could be heard; this requires that all workers of a schema have the same lease.
// Jobs that end at the same moment are written together. If somebody's transaction holds the row of one of these for
// longer than a lease, or the database is away for as long, all of them may run again. What an engine knows of a job
// changes in one transaction: state, version, result.
//
// [Engine.SubmitTx] submits as a part of the caller's own transaction: the job exists exactly if that commits.
//
// # What is different from jobs.Local
//
// Priorities are the four of River, strictly: 4 to 7 first, then 0 to 3, then -4 to -1, then the rest. Clients have a
// bounded share of the places and bytes, but take turns only roughly: a client with 16 unfinished jobs submits its next
// one of these levels lower, a client with 128 two levels lower, so that others go first. Jobs that have waited for a
// minute go with the first level, 16 jobs of each client at a time. Otherwise jobs of the same level begin in the order
// of submission.
//
// The bound on all unfinished jobs is checked without a lock, and simultaneous submissions may exceed it by their
// number; a client's share is exact, except for what [Engine.SubmitTx] adds. A job that is due at a time of its own, by
// a retry or by NotBefore, begins up to a poll interval late ([WithPollInterval]), and up to twenty seconds late if the
// worker that makes such jobs available to all was killed. A result is at most 16 MiB. An id whose transaction was
// rolled back is reported as expired. To queue failed jobs again, an operator uses River's own JobRetry.
//
// # What it needs of Postgres
//
// Postgres 14 or newer, and a schema of its own ([WithSchema]) if the program also uses River itself: River's periodic
// maintenance goes by the settings of whichever client leads, and the settings of this package leave the deletion and
// the rescue of jobs to the package. A worker has one connection beside the pool, to report that it is alive, since
// handlers may have all of the pool's. It takes one connection of the pool to listen, as any engine does while somebody
// watches a job. Behind a proxy that assigns connections per transaction, such as PgBouncer, use [WithPollOnly], and
// give pgx the default_query_exec_mode exec, or another that the proxy supports.
//
// Leases and retention go by the clock of the database; when a retry is due, and whether a deadline has passed, also go
// by that of the worker. If the clock of the database is set back, jobs that could begin still do, a quarter of a lease
// late; retries are late by as much as it was set back. A transaction that is open for hours, whatever its table, keeps
// ended jobs from being vacuumed, and submissions slow down by what they have to pass over. Transactions are read
// committed, which is the default of Postgres: if another level, such as serializable, is set for the server or the
// role, give the pool's connections default_transaction_isolation "read committed".
//
// If the machine of the database disappears without a word, as in a failover, a statement on an existing connection
// waits until its context ends, or until TCP gives the connection up, which may take a quarter of an hour: submit and
// ask with a deadline, and give the pool a PingTimeout. Workers and watchers find out after ten seconds.
//
// Tables: those of River, and spillgate_job (one row for each job: id, client, key, version, progress),
// spillgate_worker (which workers are alive) and spillgate_key (what ids are recognised by). A trigger on river_job
// counts versions and notifies watchers, so that what River UI or another tool does to a job is seen here too. Another
// trigger ignores what a worker reports too late, after it was taken for lost. In river_job, the kind is "spillgate:"
// followed by the kind of the job, the id and the payload are in the arguments, and the result is the output; payload
// and result are stored as text, since a jsonb would not keep them as they are. A job that failed for good before its
// last attempt is "cancelled" there, which is River's word for it, and "failed" here.
package riverjobs

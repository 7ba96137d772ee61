// Package redisjobs is a [jobs.Engine] in Redis or Valkey: a web server on one machine submits jobs, and processes on
// others run them.
//
// The web server, which submits, answers and watches:
//
//	client := redis.NewClient(&redis.Options{Addr: "redis:6379", ContextTimeoutEnabled: true})
//	engine := redisjobs.New(client, mux)
//	http.Handle("/reports/", middleware.Async(engine, "report"))
//
// A worker, with the same handlers in its [jobs.Mux]:
//
//	engine := redisjobs.New(client, mux, redisjobs.WithWorkers(8))
//	err := engine.Start(ctx)
//	defer engine.Close()
//
// One process may do both. A worker takes only kinds that its Mux had when [New] was called: workers may be special,
// and those of the last version do not know the kinds of the next. Services that share a server separate their jobs by
// [WithPrefix].
//
// # At least once
//
// A job is on the server before Submit returns, and stays there until it has ended and its retention is over. It runs
// once, with three exceptions: an attempt fails and there are more; a worker is shut down before the job has ended; or
// a worker is killed, or cannot reach the server for so long that it is taken for lost ([WithLease]), in which case it
// may still be running the job when another begins to. The last two are no failures of the job, and it runs again even
// if its kind allows only one attempt; but once three workers have been lost with a job, it has failed. A worker that
// was taken for lost but still runs learns that its job was taken from it when it reaches the server again: the context
// of the handler ends, and what that returns counts only if it is a result and the first one. What an engine knows of a
// job changes in one script: state, version, result.
//
// All of this holds as long as the server keeps what it has. How long it does depends on its settings; if in doubt,
// package riverjobs is the safer place:
//
//   - With appendonly and appendfsync always, an accepted job survives a crash. With everysec, Redis' own advice, the
//     last second of all that happened may be lost: jobs accepted in it are gone, and those that ended in it run again.
//     Without persistence, a restart forgets all jobs.
//   - A replica that takes over knows what it has been told by then, which is not all. Again, jobs may be gone, or run
//     again.
//   - A job that is gone is reported as [jobs.ErrExpired], even while it still runs; its handler is told to stop, and
//     nobody waits for ever.
//   - If memory is full (maxmemory) and nothing is evicted, Submit returns an error that wraps [jobs.ErrFull] and has
//     written nothing. Accepted jobs go on: they begin, end and make room, and their progress and results take as much
//     above the limit as they need.
//   - A finished job takes half a KiB besides its result until its retention is over ([WithRetention]). Only maxmemory
//     bounds how many there are.
//   - The server must not evict unfinished jobs: its maxmemory-policy must be noeviction, or one of volatile-*, with
//     which it forgets finished jobs early if there is no room for others. [Engine.Start] returns an error if it sees
//     another policy.
//
// # What is different from jobs.Local
//
// Clients take turns, and each has its own bounded share, both exactly; but a turn is one job, however long that runs.
// A level of priority is worth a second of waiting among the jobs of one client, of all kinds that a worker runs. A
// result, like a payload, is at most 256 MiB. After the server has lost its data, an expired id may be reported as one
// that never existed. [Engine.DeadLetters] and [Engine.Requeue] ask the server. A job that was lost with its worker,
// cancelled or not, counts as running until there is another worker to notice.
//
// Times are those of the server's clock, except that whoever submits a job sets NotBefore and Deadline by a clock of
// their own. For one lease after an outage, a standstill of the server, or a jump of its clock, as when a replica takes
// over, no worker is taken for lost, since none could be heard; this requires that all engines of a prefix have the
// same [WithLease]. If the clock was set back, retries and the removal of jobs are late by as much.
//
// # What it needs of Redis
//
// Redis 7 or newer, or Valkey: scripts with flags. A worker has at least three connections. One listens, as that of any
// engine does while somebody watches a job, and one reports that the worker is alive, since handlers may have all
// others of the client. (With a PoolSize of less than three there is none for that alone.) Messages only make things
// faster. Without a message, a cancelled job is noticed after a quarter of the lease, a job that may begin after the
// poll interval, and a change by watchers after ten seconds.
//
// In a cluster, all jobs of a prefix are in one slot: use a second prefix to use a second node. A slot must not be
// moved to another node while engines use it, since a script finds only a part of its keys meanwhile. With
// ContextTimeoutEnabled, go-redis keeps to deadlines. With ConnMaxIdleTime of some seconds, in place of half an hour,
// it does not find idle connections dead one by one after the machine of the server has disappeared without a word, as
// in a failover. Commands that go-redis repeats by itself, because an answer was lost, are recognised: a submission is
// accepted once, a worker that asks for jobs gets those that had already begun for it, and a caller that has cancelled
// a job, or queued it again, is told so.
//
// A user of the server may be restricted to the keys ~{PREFIX}:*, the channels &{PREFIX}:* (new users have none, and it
// is slower without), and the commands eval, evalsha, get, set, setnx, hget, hset, hmget, hdel, hincrby, zadd, zrem,
// zrange, zrank, zscore, zremrangebyscore, exists, persist, pexpireat, time, publish, subscribe, unsubscribe, ping,
// hello and info. With fewer permissions, a script would end half way. go-redis needs some more itself: select for a DB
// other than 0, and in a cluster cluster|slots, command and asking, and readonly if it reads from replicas. The file
// lib.lua, with which all scripts begin, describes what the keys hold.
package redisjobs

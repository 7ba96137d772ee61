// Package redisjobs is a [jobs.Engine] in Redis or Valkey: a web server on one machine submits jobs, and
// processes on others run them.
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
// and those of the last version do not meet the kinds of the next. Services that share a server tell their jobs apart by [WithPrefix].
//
// # At least once
//
// A job is on the server before Submit returns, and stays there until it has ended and its retention is over. It runs once, unless:
// an attempt fails and there are more; a worker is shut down before the job has ended; a worker is killed, or does
// not reach the server for so long that it is taken for lost ([WithLease]), in which case it may still be running the job
// when another begins to. The last two are no failures of the job, and it runs again also where its kind allows one attempt; but a
// job that three workers were lost with has failed. A worker that is not lost learns that its job was taken from it when it reaches the server
// again: the context of the handler ends, and what that returns counts only if it is a result and the first. What an engine knows of a job changes in one
// script: state, version, result.
//
// That is as long as the server keeps what it has. How long that is, is a matter of its settings, and in doubt package riverjobs is the safer place:
//
//   - With appendonly and appendfsync always a job that was accepted survives a crash. With everysec, Redis' own advice, the last second of all that happened may
//     be lost: jobs accepted in it are gone, and those that ended in it run again. Without persistence a restart forgets all jobs.
//   - A replica that takes over knows what it has been told by then, which is not all. The same holds: jobs may be gone, or run again.
//   - A job that is gone is [jobs.ErrExpired] to who asks for it, also for one that runs; its handler is told to stop, and nobody waits for ever.
//   - Where memory is full (maxmemory) and nothing is evicted, Submit returns an error that wraps [jobs.ErrFull] and has written nothing. What was accepted goes on: it is
//     begun, ends and makes room, with as much above the limit as progress and results take.
//   - A finished job takes half a KiB besides its result until its retention is over ([WithRetention]). How many there are is not bounded but by maxmemory.
//   - The server must not evict unfinished jobs: its maxmemory-policy has to be noeviction, or one of volatile-*, with which it forgets finished jobs
//     before their time where there is no room for others. [Engine.Start] returns an error where it sees another.
//
// # What is different from jobs.Local
//
// Clients take turns, and each has its own bounded share, both exactly; but a turn is a job, however long that runs. A level of priority
// is worth a second of waiting among the jobs of one client, of all kinds that a worker runs. A result, like a payload, is at most 256 MiB. After the server
// has lost its data an id may be said never to have been that has expired. [Engine.DeadLetters] and [Engine.Requeue] ask the server. A job that was lost
// with its worker, cancelled or not, runs until there is another worker to notice.
//
// Times are those of the server's clock, except that what NotBefore and Deadline mean is up to the clock of who submits. Nobody takes workers for lost in the lease after
// an outage, a standstill of the server, or a jump of its clock, as when a replica takes over, since none could be heard; that holds where all engines of a prefix have the same [WithLease]. Where it was set
// back, retries and what is to be forgotten are later by as much.
//
// # What it needs of Redis
//
// Redis 7 or newer, or Valkey: scripts with flags. A worker has three connections at least: one listens, as that of any engine does while somebody
// watches a job, and one says that it is alive, for handlers may have all others of the client. (With a PoolSize of less than three it has none for that alone.) Messages only make things faster: what none came of is noticed all the same, a cancelled job after a quarter of the lease, a job that may begin after the
// poll interval, and a change by watchers after ten seconds. In a cluster all jobs of a prefix are in one slot: a second prefix is how to use a second node, and a slot must not be moved to another while
// engines use it, since a script finds only a part of its keys meanwhile. ContextTimeoutEnabled has go-redis keep to deadlines, and ConnMaxIdleTime of some seconds, in place of half
// an hour, has it not find idle connections dead one by one where the machine of the server is gone without a word, as in a failover; what it repeats by itself, because an answer was lost,
// is recognised: a submission is accepted once, the worker that asks for jobs gets those that had begun for it, and who has cancelled a job, or queued it again, is told that he has.
//
// A user of the server may be bound to the keys ~{PREFIX}:*, the channels &{PREFIX}:* (new users have none, and it is slower without), and the commands eval, evalsha, get, set, setnx,
// hget, hset, hmget, hdel, hincrby, zadd, zrem, zrange, zrank, zscore, zremrangebyscore, exists, persist, pexpireat, time, publish, subscribe, unsubscribe, ping, hello and info. The
// client needs select besides where it has a DB other than 0, and in a cluster cluster|slots, command and asking, and readonly where it reads from replicas. With
// less than the former a script would end in the middle. What is in the keys says lib.lua, with which all scripts begin.
package redisjobs

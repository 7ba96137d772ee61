-- Returns what ids are recognised by. It is a script so that a primary is asked: a client that reads from replicas asks one of those for a bare GET, which may not know it yet.
return redis.call('GET', P .. 'mint')

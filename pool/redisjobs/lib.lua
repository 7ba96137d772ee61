-- What all scripts begin with. KEYS[1] is what all keys begin with; its hash tag has them in one slot of a cluster. Times are
-- microseconds of this server's clock, since 1970.
--
--   mint                 what ids are recognised by
--   job:ID               hash: the job; it expires by itself when its retention is over
--   key:N:CLIENT KEY     the id that was given for an idempotency key, N being the length of the client
--   turns:KIND           sorted set: clients with jobs that could begin, by when their turn is
--   turn                 hash: when the next turn is of clients that had one and have jobs that have not ended
--   served               the latest turn that anybody had
--   line:N:KIND CLIENT   sorted set: the jobs of a client that could begin, by the time they wait since, less a second for each level of priority
--   later                sorted set: jobs that wait for a time, by that
--   late                 sorted set: jobs that have not begun and have a deadline, by that
--   run                  sorted set: jobs that run, by when their lease is over
--   failed               sorted set: jobs that have failed, by when they are forgotten
--   claim:WORKER         the jobs that a worker was given last, by what name and their ids, for as long as a lease
--   open                 hash: unfinished jobs, "all" of them; and "n" and "b" with the client, how many and how many bytes
--
-- Channels: "changed" is told the id of a job that has changed, "work" is told "ready", or "cancel " and an id.
local P = KEYS[1]
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local batch = 100 -- of what time alone brings about, done at once

local function str(n) return string.format('%.0f', n) end -- tostring rounds
local function jobKey(id) return P .. 'job:' .. id end
local function keyKey(client, key) return P .. 'key:' .. #client .. ':' .. client .. key end
local function turnsKey(kind) return P .. 'turns:' .. kind end
local function lineKey(kind, client) return P .. 'line:' .. #kind .. ':' .. kind .. client end

-- fields returns some of a job, or nil if there is none.
local function fields(id, ...)
	local values = redis.call('HMGET', jobKey(id), 'state', ...)
	if not values[1] then return nil end
	return unpack(values)
end

-- record returns a job as the engine reads it, and the time first; nil if there is none.
local function record(id)
	local values = redis.call('HMGET', jobKey(id), 'state', 'kind', 'version', 'attempt', 'attempts', 'client', 'created', 'started',
		'finished', 'next', 'deadline', 'expires', 'done', 'total', 'note', 'why', 'error', 'detail', 'result', 'cancelling')
	if not values[1] then return nil end
	return {id, str(now), unpack(values)}
end

local function isFinal(state) return state == 'succeeded' or state == 'failed' or state == 'cancelled' end

-- publish tells whoever listens; a user who may not has done his work all the same.
local function publish(channel, message) redis.pcall('PUBLISH', P .. channel, message) end

local function changed(id)
	redis.call('HINCRBY', jobKey(id), 'version', 1)
	publish('changed', id)
end

local function wake() publish('work', 'ready') end

-- ready puts a job into its client's line. A client that had none there has its turn after those whose turn it is.
local function ready(id, kind, client, order)
	if not redis.call('ZSCORE', turnsKey(kind), client) then
		local served = tonumber(redis.call('GET', P .. 'served') or 0)
		local turn = tonumber(redis.call('HGET', P .. 'turn', client) or 0)
		redis.call('ZADD', turnsKey(kind), str(math.max(served + 1, turn)), client)
	end
	redis.call('ZADD', lineKey(kind, client), order, id)
end

local function unready(id, kind, client)
	redis.call('ZREM', lineKey(kind, client), id)
	if redis.call('EXISTS', lineKey(kind, client)) == 0 then
		redis.call('ZREM', turnsKey(kind), client)
	end
end

-- wait has a job wait: until a time, or for its turn.
local function wait(id, at)
	local _, kind, client, order, deadline = fields(id, 'kind', 'client', 'order', 'deadline')
	redis.call('ZREM', P .. 'run', id)
	redis.call('HDEL', jobKey(id), 'worker', 'lease')
	if deadline then redis.call('ZADD', P .. 'late', deadline, id) end
	if at > now then
		redis.call('ZADD', P .. 'later', str(at), id)
		if redis.call('ZRANK', P .. 'later', id) == 0 then wake() end -- workers sleep until what was the first until now
	else
		ready(id, kind, client, order)
		wake()
	end
end

-- count counts a job among those that have not ended, or out of them: n is 1 or -1.
local function count(client, size, n)
	redis.call('HINCRBY', P .. 'open', 'all', n)
	if client == '' then return end
	redis.call('HINCRBY', P .. 'open', 'b' .. client, n * size)
	if redis.call('HINCRBY', P .. 'open', 'n' .. client, n) <= 0 then
		redis.call('HDEL', P .. 'open', 'n' .. client, 'b' .. client)
		redis.call('HDEL', P .. 'turn', client)
	end
end

-- forget forgets which jobs had failed that have expired by now.
local function forget() redis.call('ZREMRANGEBYSCORE', P .. 'failed', '-inf', str(now)) end

-- final ends a job.
local function final(id, state)
	local _, kind, client, key, size, retain = fields(id, 'kind', 'client', 'key', 'size', 'retain')
	redis.call('ZREM', P .. 'run', id)
	redis.call('ZREM', P .. 'later', id)
	redis.call('ZREM', P .. 'late', id)
	unready(id, kind, client)
	local expires = now + retain
	redis.call('HSET', jobKey(id), 'state', state, 'finished', str(now), 'expires', str(expires))
	redis.call('HDEL', jobKey(id), 'next', 'worker', 'lease')
	if state ~= 'failed' then redis.call('HDEL', jobKey(id), 'payload') end
	if state == 'succeeded' then redis.call('HDEL', jobKey(id), 'why', 'error', 'detail', 'done', 'total', 'note') end
	local at = str(math.ceil(expires / 1000))
	redis.call('PEXPIREAT', jobKey(id), at)
	if key and redis.call('GET', keyKey(client, key)) == id then
		redis.call('PEXPIREAT', keyKey(client, key), at)
	end
	count(client, size, -1)
	if state == 'failed' then
		redis.call('ZADD', P .. 'failed', str(expires), id)
		forget()
	end
	changed(id)
end

-- lapse fails jobs that have not begun by their deadline, and returns how many.
local function lapse()
	local ids = redis.call('ZRANGE', P .. 'late', '-inf', str(now), 'BYSCORE', 'LIMIT', 0, batch)
	for _, id in ipairs(ids) do
		if fields(id) then
			redis.call('HSET', jobKey(id), 'why', 'deadline')
			redis.call('HDEL', jobKey(id), 'error', 'detail')
			final(id, 'failed')
		else
			redis.call('ZREM', P .. 'late', id)
		end
	end
	return #ids
end

-- promote puts jobs into line whose time has come, and returns how many.
local function promote()
	local ids = redis.call('ZRANGE', P .. 'later', '-inf', str(now), 'BYSCORE', 'LIMIT', 0, batch)
	for _, id in ipairs(ids) do
		redis.call('ZREM', P .. 'later', id)
		local state, kind, client, order = fields(id, 'kind', 'client', 'order')
		if state then ready(id, kind, client, order) end
	end
	return #ids
end

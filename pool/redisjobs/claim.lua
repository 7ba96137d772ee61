-- Begins at most ARGV[1] jobs of the kinds from ARGV[4] on, for ARGV[2] as the worker's name for them and with a lease of ARGV[3]. Returned is in how
-- long the next job is due that waits for a time, or '', and the jobs.
local n, token, lease = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
lapse()
local due = promote()
local jobs = {}
while #jobs < n do
	-- Of each kind the client whose turn it is has the first in its line; of these the one begins that has waited longest.
	local kind, client, turn, id, order
	for i = 4, #ARGV do
		local c = redis.call('ZRANGE', turnsKey(ARGV[i]), 0, 0, 'WITHSCORES')
		if c[1] then
			local first = redis.call('ZRANGE', lineKey(ARGV[i], c[1]), 0, 0, 'WITHSCORES')
			if not first[1] then
				redis.call('ZREM', turnsKey(ARGV[i]), c[1]) -- what is not there, somebody else has deleted
			elseif not order or tonumber(first[2]) < order then
				kind, client, turn, id, order = ARGV[i], c[1], c[2], first[1], tonumber(first[2])
			end
		end
	end
	if not id then break end
	redis.call('HSET', P .. 'served', kind, turn)
	redis.call('ZADD', turnsKey(kind), str(tonumber(turn) + 1), client)
	unready(id, kind, client)
	local state, deadline, payload = fields(id, 'deadline', 'payload')
	if state and deadline and tonumber(deadline) <= now then
		redis.call('HSET', jobKey(id), 'why', 'deadline')
		redis.call('HDEL', jobKey(id), 'error', 'detail')
		final(id, 'failed')
	elseif state then
		redis.call('ZREM', P .. 'late', id)
		redis.call('ZADD', P .. 'run', str(now + lease), id)
		redis.call('HSET', jobKey(id), 'state', 'running', 'started', str(now), 'worker', token)
		redis.call('HDEL', jobKey(id), 'next', 'done', 'total', 'note')
		local attempt = redis.call('HINCRBY', jobKey(id), 'attempt', 1)
		changed(id)
		jobs[#jobs + 1] = {id, kind, payload, str(attempt), deadline or ''}
	end
end
if due > #jobs then wake() end -- it may be for others
local soonest = redis.call('ZRANGE', P .. 'later', 0, 0, 'WITHSCORES')[2]
return {soonest and str(math.max(0, soonest - now)) or '', jobs}

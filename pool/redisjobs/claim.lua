-- Begins at most ARGV[1] jobs, and no more after a MiB of payloads, of the kinds from ARGV[5] on, for the worker ARGV[2], with ARGV[3] as its name for them and a lease of ARGV[4]. Returned is in how
-- long the next job is due that waits for a time, or '', and the jobs. A worker that asks again by the same name, because an answer was lost, gets the same.
local n, worker, token, lease = tonumber(ARGV[1]), ARGV[2], ARGV[3], tonumber(ARGV[4])
local last = P .. 'claim:' .. worker
local before = redis.call('GET', last)
if before and before:sub(1, #token) == token then
	local jobs = {}
	for id in before:sub(#token + 1):gmatch('%S+') do
		local state, name, kind, payload, attempt, deadline = fields(id, 'worker', 'kind', 'payload', 'attempt', 'deadline')
		if state == 'running' and name == token then
			redis.call('ZADD', P .. 'run', str(now + lease), id)
			jobs[#jobs + 1] = {id, kind, payload, attempt, deadline or ''}
		end
	end
	return {'0', jobs}
end
lapse()
local due = promote()
local jobs, ids, bytes, looked, empty = {}, {}, 0, 0, false
local enough = 1048576 -- of bytes: an answer of any size would hold up this server, and come later than the worker waits for it
while #jobs < n and bytes < enough and looked < batch do -- of any number that have missed their deadlines as well
	looked = looked + 1
	-- Of each kind the client whose turn it is has the first in its line; of these the first turn counts, and for the same turn who has waited longest.
	local kind, client, turn, id, order
	for i = 5, #ARGV do
		local c = redis.call('ZRANGE', turnsKey(ARGV[i]), 0, 0, 'WITHSCORES')
		if c[1] then
			local first = redis.call('ZRANGE', lineKey(ARGV[i], c[1]), 0, 0, 'WITHSCORES')
			if not first[1] then
				redis.call('ZREM', turnsKey(ARGV[i]), c[1]) -- what is not there, somebody else has deleted
			else
				local t, o = tonumber(c[2]), tonumber(first[2])
				if not id or t < turn or t == turn and o < order then
					kind, client, turn, id, order = ARGV[i], c[1], t, first[1], o
				end
			end
		end
	end
	if not id then
		empty = true
		break
	end
	-- Of another kind it may have one that goes before, behind somebody whose turn it is as well.
	for i = 5, #ARGV > 5 and #ARGV or 4 do
		local t = redis.call('ZSCORE', turnsKey(ARGV[i]), client)
		local first = t and tonumber(t) <= turn and redis.call('ZRANGE', lineKey(ARGV[i], client), 0, 0, 'WITHSCORES')
		if first and first[1] and tonumber(first[2]) < order then
			kind, id, order = ARGV[i], first[1], tonumber(first[2])
		end
	end
	-- Its next turn is after those whose turn it is, for all kinds; turns that nobody was there to serve are not made up for.
	local served = math.max(turn, tonumber(redis.call('GET', P .. 'served') or 0))
	redis.call('SET', P .. 'served', str(served))
	redis.call('HSET', P .. 'turn', client, str(served + 1))
	for i = 5, #ARGV do redis.call('ZADD', turnsKey(ARGV[i]), 'XX', str(served + 1), client) end
	unready(id, kind, client)
	local state, deadline, payload = fields(id, 'deadline', 'payload')
	if state and deadline and tonumber(deadline) <= now then
		redis.call('HSET', jobKey(id), 'why', 'deadline')
		redis.call('HDEL', jobKey(id), 'error', 'detail')
		final(id, 'failed')
	elseif state then
		redis.call('ZREM', P .. 'late', id)
		redis.call('ZADD', P .. 'run', str(now + lease), id)
		redis.call('HSET', jobKey(id), 'state', 'running', 'started', str(now), 'worker', token, 'lease', ARGV[4])
		redis.call('HDEL', jobKey(id), 'next', 'done', 'total', 'note')
		local attempt = redis.call('HINCRBY', jobKey(id), 'attempt', 1)
		changed(id)
		jobs[#jobs + 1] = {id, kind, payload, str(attempt), deadline or ''}
		ids[#ids + 1] = id
		bytes = bytes + #payload
	end
end
if #ids > 0 then redis.call('SET', last, token .. ' ' .. table.concat(ids, ' '), 'PX', str(lease / 1000)) end
if due > #jobs then wake() end -- it may be for others
if #jobs < n and not empty then return {'0', jobs} end -- it asks for the rest
local soonest = redis.call('ZRANGE', P .. 'later', 0, 0, 'WITHSCORES')[2]
return {soonest and str(math.max(0, soonest - now)) or '', jobs}

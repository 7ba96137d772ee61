-- Accepts a job. It is not run where memory is full, and so writes all or nothing.
local mint, id, kind, payload, client, key, hash = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local level, notBefore, deadline, attempts, retain = tonumber(ARGV[8]), tonumber(ARGV[9]), ARGV[10], ARGV[11], ARGV[12]
local most, share, shareBytes, closed = tonumber(ARGV[13]), tonumber(ARGV[14]), tonumber(ARGV[15]), ARGV[16] == '1'

-- Others may have made another since this server forgot ours.
local theirs = redis.call('GET', P .. 'mint')
if not theirs then
	redis.call('SET', P .. 'mint', mint)
elseif theirs ~= mint then
	return {'mint', theirs}
end
if fields(id) then
	return {'created', record(id)} -- the client of Redis asks again when an answer is lost
end
lapse()
if key ~= '' then
	local first = redis.call('GET', keyKey(client, key))
	if first and fields(first) then
		local _, was = fields(first, 'hash')
		if was ~= hash then return {'reused'} end
		return {'known', record(first)}
	end
end
if closed then return {'closed'} end
if tonumber(redis.call('HGET', P .. 'open', 'all') or 0) >= most then return {'full'} end
if client ~= '' then
	local open = redis.call('HMGET', P .. 'open', 'n' .. client, 'b' .. client)
	if tonumber(open[1] or 0) >= share or tonumber(open[2] or 0) + #payload > shareBytes then return {'share'} end
end
count(client, #payload, 1)
local since = math.max(now, notBefore)
redis.call('HSET', jobKey(id), 'state', 'queued', 'kind', kind, 'payload', payload, 'client', client, 'version', 1, 'attempt', 0,
	'attempts', attempts, 'created', str(now), 'size', #payload, 'retain', retain, 'level', ARGV[8], 'order', str(since - level * 1000000))
if key ~= '' then
	redis.call('HSET', jobKey(id), 'key', key, 'hash', hash)
	redis.call('SET', keyKey(client, key), id)
end
if deadline ~= '' then redis.call('HSET', jobKey(id), 'deadline', deadline) end
if notBefore > now then redis.call('HSET', jobKey(id), 'next', str(notBefore)) end
wait(id, notBefore)
return {'created', record(id)}

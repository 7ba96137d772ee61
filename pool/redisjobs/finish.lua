-- Takes over how an attempt ended. A result is taken from whoever brings it first, a failure only from the worker that has the job.
local id, token, outcome = ARGV[1], ARGV[2], ARGV[3]
local state, worker, cancelling, attempt, attempts, deadline, level = fields(id, 'worker', 'cancelling', 'attempt', 'attempts', 'deadline', 'level')
if not state then return 'gone' end
if isFinal(state) then return 'ended' end
if outcome == 'result' then
	redis.call('HSET', jobKey(id), 'result', ARGV[4])
	final(id, 'succeeded')
	return 'ok'
end
if state ~= 'running' or worker ~= token then return 'lost' end
if outcome == 'back' then -- it was no attempt
	if cancelling then
		final(id, 'cancelled')
		return 'ok'
	end
	attempt = redis.call('HINCRBY', jobKey(id), 'attempt', -1)
	redis.call('HSET', jobKey(id), 'state', attempt > 0 and 'retrying' or 'queued')
	if attempt == 0 then redis.call('HDEL', jobKey(id), 'started') end
	wait(id, now)
	changed(id)
	return 'ok'
end
redis.call('HSET', jobKey(id), 'error', ARGV[4], 'detail', ARGV[5])
redis.call('HDEL', jobKey(id), 'why')
local at = now + (tonumber(ARGV[6]) or 0)
if cancelling then
	final(id, 'cancelled')
elseif outcome == 'fail' or tonumber(attempt) >= tonumber(attempts) or deadline and at > tonumber(deadline) then
	final(id, 'failed')
else
	redis.call('HSET', jobKey(id), 'state', 'retrying', 'next', str(at), 'order', str(at - level * 1000000))
	wait(id, at)
	changed(id)
end
return 'ok'

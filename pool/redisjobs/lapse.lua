-- Fails a job that waits and has missed its deadline, and returns the job.
local id = ARGV[1]
local state, deadline = fields(id, 'deadline')
if state and state ~= 'running' and not isFinal(state) and deadline and tonumber(deadline) <= now then
	redis.call('HSET', jobKey(id), 'why', 'deadline')
	redis.call('HDEL', jobKey(id), 'error', 'detail')
	final(id, 'failed')
end
return record(id)

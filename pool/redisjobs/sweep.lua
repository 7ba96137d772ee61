-- Does what time alone brings about; with ARGV[1] = 1 it takes jobs whose lease is over from workers that are lost. Returned is whether there may be more to do.
forget()
local more = lapse() == batch
local due = promote()
if due > 0 then wake() end
more = more or due == batch
if ARGV[1] == '1' then
	local ids = redis.call('ZRANGE', P .. 'run', '-inf', str(now), 'BYSCORE', 'LIMIT', 0, batch)
	more = more or #ids == batch
	for _, id in ipairs(ids) do
		local state, cancelling = fields(id, 'cancelling')
		if state ~= 'running' then
			redis.call('ZREM', P .. 'run', id)
		elseif cancelling then
			final(id, 'cancelled')
		else
			local lost = redis.call('HINCRBY', jobKey(id), 'lost', 1)
			redis.call('HINCRBY', jobKey(id), 'attempts', 1) -- it was no failure of the job
			redis.call('HSET', jobKey(id), 'why', 'lost')
			redis.call('HDEL', jobKey(id), 'error', 'detail')
			if lost >= 3 then
				final(id, 'failed')
			else
				redis.call('HSET', jobKey(id), 'state', 'retrying')
				wait(id, now)
				changed(id)
			end
		end
	end
end
return more and 1 or 0

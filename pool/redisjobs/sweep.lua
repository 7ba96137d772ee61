-- Does what time alone brings about. Where this server has been there for a whole lease of ARGV[1], it also takes jobs whose lease is over from workers that are
-- lost: ARGV[2] is since when it has been, and ARGV[3] when it was last asked. Returned is whether there may be more to do, both times by now, and how many jobs
-- were taken.
local lease, since, last = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
-- Who is asked every quarter and was not for half of it, did not hear the workers either; or its clock was set, and their leases are not over.
if now < last or now - last > lease / 2 then since = now end
forget()
local more = lapse() == batch
local due = promote()
if due > 0 then wake() end
more = more or due == batch
local taken = 0
if now - since > lease then
	local ids = redis.call('ZRANGE', P .. 'run', '-inf', str(now), 'BYSCORE', 'LIMIT', 0, batch)
	more = more or #ids == batch
	-- What is to be over in more than its lease was said before the clock was set back, which is by more than a lease of ours: else it may not have been seen.
	local ahead = redis.call('ZRANGE', P .. 'run', '+inf', '(' .. str(now + 2 * lease), 'BYSCORE', 'REV', 'LIMIT', 0, batch, 'WITHSCORES')
	for i = 1, #ahead, 2 do
		local _, its = fields(ahead[i], 'lease')
		if its and tonumber(ahead[i + 1]) > now + its + math.max(its, lease) then ids[#ids + 1] = ahead[i] end
	end
	for _, id in ipairs(ids) do
		local state, cancelling = fields(id, 'cancelling')
		if state == 'running' then taken = taken + 1 end
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
return {more and '1' or '', str(since), str(now), str(taken)}

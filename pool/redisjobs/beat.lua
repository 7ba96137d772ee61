-- Extends the leases of a worker's jobs to ARGV[1] from now; then come an id and the name for it of each. Returned is of each what the worker does not
-- know: '', 'cancel', or 'lost'.
local answer = {}
for i = 2, #ARGV, 2 do
	local id = ARGV[i]
	local state, worker, cancelling = fields(id, 'worker', 'cancelling')
	if state ~= 'running' or worker ~= ARGV[i + 1] then
		answer[#answer + 1] = 'lost'
	else
		redis.call('ZADD', P .. 'run', str(now + tonumber(ARGV[1])), id)
		answer[#answer + 1] = cancelling and 'cancel' or ''
	end
end
return answer

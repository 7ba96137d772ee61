-- Ends a job that waits, and has one that runs be told.
local id = ARGV[1]
local state, cancelling = fields(id, 'cancelling')
if not state then return {'gone'} end
if isFinal(state) then return {'ended', record(id)} end
if state ~= 'running' then
	final(id, 'cancelled')
elseif not cancelling then
	redis.call('HSET', jobKey(id), 'cancelling', 1)
	changed(id)
	publish('work', 'cancel ' .. id)
end
return {'ok', record(id)}

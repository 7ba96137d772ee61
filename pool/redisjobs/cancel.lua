-- Ends a job that waits, and has one that runs be told. Who asks again by the same name ARGV[2], because an answer was lost, is told of what he has done.
local id, name = ARGV[1], ARGV[2]
local state, cancelling = fields(id, 'cancelling')
if not state then return {'gone'} end
if state == 'cancelled' and cancelling == name then return {'ok', record(id)} end
if isFinal(state) then return {'ended', record(id)} end
if not cancelling then redis.call('HSET', jobKey(id), 'cancelling', name) end
if state ~= 'running' then
	final(id, 'cancelled')
elseif not cancelling then
	changed(id)
	publish('work', 'cancel ' .. id)
end
return {'ok', record(id)}

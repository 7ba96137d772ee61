-- Takes over how far an attempt is.
local id, token = ARGV[1], ARGV[2]
local state, worker = fields(id, 'worker')
if state == 'running' and worker == token then
	redis.call('HSET', jobKey(id), 'done', ARGV[3], 'total', ARGV[4], 'note', ARGV[5])
	changed(id)
end
return 1

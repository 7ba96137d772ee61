-- Gives a failed job all its attempts again, and no deadline. Who asks again by the same name ARGV[4], because an answer was lost, is told of what he has done.
local id, most, closed, name = ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1', ARGV[4]
local state, client, key, size, level, attempts, lost, requeued = fields(id, 'client', 'key', 'size', 'level', 'attempts', 'lost', 'requeued')
if not state then return {'gone'} end
if requeued == name then return {'ok', record(id)} end
if state ~= 'failed' then return {'not failed', record(id)} end
if closed then return {'closed', record(id)} end
lapse()
if tonumber(redis.call('HGET', P .. 'open', 'all') or 0) >= most then return {'full', record(id)} end
redis.call('PERSIST', jobKey(id))
if key and redis.call('GET', keyKey(client, key)) == id then redis.call('PERSIST', keyKey(client, key)) end
redis.call('ZREM', P .. 'failed', id)
count(client, size, 1)
redis.call('HDEL', jobKey(id), 'started', 'finished', 'expires', 'next', 'deadline', 'why', 'error', 'detail', 'done', 'total', 'note', 'lost', 'cancelling')
redis.call('HSET', jobKey(id), 'state', 'queued', 'attempt', 0, 'attempts', attempts - (lost or 0), 'order', str(now - level * 1000000), 'requeued', name)
wait(id, now)
changed(id)
return {'ok', record(id)}

-- Returns at most ARGV[2] failed jobs after the first ARGV[1]: first what is known for longest.
local from, n = tonumber(ARGV[1]), tonumber(ARGV[2])
local all = {}
for _, id in ipairs(redis.call('ZRANGE', P .. 'failed', from, from + n - 1, 'REV')) do
	all[#all + 1] = record(id) or {}
end
return all

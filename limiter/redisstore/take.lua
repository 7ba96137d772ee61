-- Takes tokens from the buckets of one key, all or none: KEYS[1] is the key, ARGV[1] is 1 if the tokens are taken whether they are
-- there or not, ARGV[2] how many, and then come the limit (tokens a second) and the burst of each policy. A burst of -1 admits everything.
-- The value holds numbers of 8 bytes: when it was written, in microseconds of this server's clock, and what was spent of each bucket then.
-- Returned is 1 or 0 and what is spent of each bucket.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local force, cost = ARGV[1] == '1', tonumber(ARGV[2])
local policies = (#ARGV - 2) / 2
local limit, burst = {}, {}
for i = 1, policies do
	limit[i], burst[i] = tonumber(ARGV[2 * i + 1]), tonumber(ARGV[2 * i + 2])
end
local format = '<' .. string.rep('d', policies + 1)

local held = redis.call('GET', KEYS[1])
local values = {}
if held then
	if #held ~= 8 * (policies + 1) then
		return redis.error_reply('ERR the value is not one of this script')
	end
	values = {struct.unpack(format, held)}
end
-- A clock that was set back, as by a failover, brings nothing and holds up nothing.
local passed = math.max(0, now - (values[1] or now)) / 1000000

local ok, spent = true, {}
for i = 1, policies do
	spent[i] = 0
	if burst[i] >= 0 then
		spent[i] = math.max(0, (values[i + 1] or 0) - passed * limit[i])
		-- What is missing is not more than the rounding of these numbers.
		ok = ok and spent[i] + cost <= burst[i] + 1e-6 + burst[i] * 1e-14
	end
end

local take = force or ok and cost > 0
local most = 0 -- seconds until all are full
for i = 1, policies do
	if burst[i] >= 0 then
		if take then
			-- No debt is larger than a burst, unless it was before.
			spent[i] = math.max(0, math.min(spent[i] + cost, math.max(spent[i], 2 * burst[i])))
		end
		if spent[i] > 0 then
			most = math.max(most, spent[i] / limit[i])
		end
	end
end

local write = take
if held and not take and most > 0 then
	-- Nothing is written but where a clock was set back, by which no token would flow in before it has caught up, or where a limit is lower
	-- than it was, and the value would expire before its buckets are full.
	local left = redis.call('PTTL', KEYS[1])
	write = now < values[1] or left >= 0 and left + 10 < most * 1000
end
if write then
	if most > 0 then
		local value = struct.pack(format, now, unpack(spent))
		if most < 1e9 then
			redis.call('SET', KEYS[1], value, 'PX', string.format('%.0f', math.ceil(most * 1000) + 1))
		else
			redis.call('SET', KEYS[1], value) -- a limit of 0, or about
		end
	elseif held then
		redis.call('DEL', KEYS[1])
	end
end

local answer = {(force or ok) and '1' or '0'}
for i = 1, policies do
	answer[i + 1] = string.format('%.17g', spent[i])
end
return answer

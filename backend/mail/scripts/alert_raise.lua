#!lua flags=allow-oom
-- Queues one alert for the webhook, and notes what has been told with it. Only if nobody else did since the caller
-- looked: then there is one alert per change, over all processes.
local _, version, told, id, body = unpack(ARGV)
local key = P .. 'alerts'
if (redis.call('HGET', key, 'version') or '0') ~= version then return {now, 0} end
redis.call('HSET', key, 'told', told)
redis.call('HINCRBY', key, 'version', 1)
redis.call('RPUSH', P .. 'alerts:pending', id .. ' ' .. body)
return {now, 1}

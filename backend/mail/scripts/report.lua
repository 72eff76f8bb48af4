#!lua flags=allow-oom
-- Keeps what a worker node says about itself, for a while after it has fallen silent.
local _, node, report, ttl = unpack(ARGV)
redis.call('HSET', P .. 'reports', node, now .. ' ' .. report)
redis.call('ZADD', P .. 'reported', now, node)
for _, silent in ipairs(redis.call('ZRANGEBYSCORE', P .. 'reported', '-inf', now - ttl, 'LIMIT', 0, 100)) do
  redis.call('HDEL', P .. 'reports', silent)
  redis.call('ZREM', P .. 'reported', silent)
end
return {now}

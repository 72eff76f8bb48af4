#!lua flags=allow-oom
-- Keeps what a worker node says about itself, for a while after it has fallen silent.
local _, node, report, ttl = unpack(ARGV)
redis.call('HSET', P .. 'reports', node, now .. ' ' .. report)
redis.call('ZADD', P .. 'reported', now, node)
for _, silent in ipairs(redis.call('ZRANGEBYSCORE', P .. 'reported', '-inf', now - ttl, 'LIMIT', 0, 100)) do
  redis.call('HDEL', P .. 'reports', silent)
  redis.call('ZREM', P .. 'reported', silent)
end

-- Once a minute: how many emails had come to each state by then. Pages show the differences.
local minute = math.floor(now / 60000)
local last = redis.call('LINDEX', P .. 'history', -1)
if not last or tonumber(last:match('^%d+')) < minute then
  local flat, reached = redis.call('HGETALL', P .. 'counts'), {}
  for i = 1, #flat, 2 do
    local after = flat[i]:match('^%S+ %S+ %S+ (%l+)')
    if after then reached[after] = (reached[after] or 0) + tonumber(flat[i + 1]) end
  end
  redis.call('RPUSH', P .. 'history', minute .. ' ' .. cjson.encode(reached))
  redis.call('LTRIM', P .. 'history', -61, -1)
end
return {now}

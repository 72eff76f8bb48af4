#!lua flags=allow-oom
-- Writes down what came of sending an alert: the receiver has it (no `delay`), or it is tried again after `delay`.
local _, token, id, delay = unpack(ARGV)
local key, pending = P .. 'alerts', P .. 'alerts:pending'
local first = redis.call('LINDEX', pending, 0)
if not first or first:match('^%S+') ~= id then return {now} end
if delay == '' then
  redis.call('LPOP', pending)
  redis.call('HDEL', key, 'token', 'lease', 'next', 'tries')
elseif redis.call('HGET', key, 'token') == token then
  redis.call('HINCRBY', key, 'tries', 1)
  redis.call('HSET', key, 'next', now + tonumber(delay))
  redis.call('HDEL', key, 'token', 'lease')
end
return {now}

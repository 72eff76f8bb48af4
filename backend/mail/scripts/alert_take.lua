#!lua flags=allow-oom
-- Gives the oldest alert to one process to send, if it is time: id and body, and how often it was tried.
local _, token, lease_ms = unpack(ARGV)
local key = P .. 'alerts'
local first = redis.call('LINDEX', P .. 'alerts:pending', 0)
local state = redis.call('HMGET', key, 'token', 'lease', 'next', 'tries')
if not first or tonumber(state[3] or '0') > now then return {now} end
if state[1] and state[1] ~= token and tonumber(state[2]) > now then return {now} end
redis.call('HSET', key, 'token', token, 'lease', now + tonumber(lease_ms))
local id, body = first:match('^(%S+) (.*)$')
return {now, id, body, tonumber(state[4] or '0')}

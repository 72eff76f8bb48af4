#!lua flags=allow-oom
-- Sends a dead letter again, by hand.
local _, id, token, first_look = unpack(ARGV)
local record = load(id, 'state', 'lane', 'created', 'expires', 'rivals', 'settled', 'has_secret', 'secret')
if not record.state then return {'unknown', now} end
if record.settled == token then return {'ok', now} end
if record.state ~= 'failed' and record.state ~= 'held' then return {'state', now, record.state} end
if record.expires and tonumber(record.expires) <= now then return {'expired', now} end
if record.has_secret and not record.secret then return {'erased', now} end
redis.call('ZREM', P .. 'secrets', id)
redis.call('HSET', email_key(id), 'settled', token, 'attempts', 0, 'deaths', 0)
redis.call('HDEL', email_key(id), 'error', 'code', 'reply')
set_state(id, record, 'queued')
log(id, {state = 'queued', note = 'sent again by hand'})
if record.rivals then redis.call('SADD', record.rivals, id) end
if record.expires then redis.call('ZADD', P .. 'ends', record.expires, id) end
look_again(id, record, now + tonumber(first_look))
return {'ok', now}

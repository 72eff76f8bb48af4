#!lua
-- Makes a batch live, all of it in one step.
local _, batch, deadline, kind, mailing, subject, course_id, total, duplicates, on_unknown, send_at, expires,
  fingerprint, idempotency_ttl, request_id = unpack(ARGV)
local key = batch_key(batch)
local state = redis.call('HGET', key, 'state')
if not state or state == 'erasing' then return {'gone', now} end
if state ~= 'accepting' then return {'accepted', now, state} end
if now > tonumber(deadline) then return {'late', now} end
send_at, expires = tonumber(send_at), tonumber(expires)
if send_at > 0 and send_at <= now then return {'invalid', now, 'send_at', 'must lie in the future'} end
if expires > 0 and expires <= math.max(now, send_at) then
  return {'invalid', now, 'expires_at', 'must lie in the future and after send_at'}
end
redis.call('SET', P .. 'mailing:' .. batch, mailing)
redis.call('HSET', key, 'state', 'queued', 'kind', kind, 'subject', subject, 'total', total, 'open', total,
  'duplicates', duplicates, 'on_unknown', on_unknown, 'created', now, 'n:queued', total, 'version', 1,
  'request_id', request_id)
redis.call('HDEL', key, 'touched')
count(kind, 'bulk', '-', 'queued', total)
if course_id ~= '' then redis.call('HSET', key, 'course_id', course_id) end
if send_at > 0 then redis.call('HSET', key, 'send_at', send_at) end
if expires > 0 then redis.call('HSET', key, 'expires', expires) end
local idempotency = redis.call('HGET', key, 'idem')
if idempotency ~= '' then
  redis.call('SET', P .. 'idem:' .. idempotency, fingerprint .. ' ' .. batch .. ' queued', 'PX', idempotency_ttl)
end
redis.call('ZADD', P .. 'batches', now, batch)
redis.call('ZADD', P .. 'batches:live', now, batch)
redis.call('ZADD', P .. 'due:bulk', send_at > 0 and send_at or now, batch)
return {'accepted', now, 'queued'}

#!lua
-- Takes one email in: record, due entry, indexes, idempotency key, limits, all or nothing.
local _, id, deadline, kind, lane, to, person, mailbox, payload, secret, send_at, expires, valid_for,
  idempotency, fingerprint, idempotency_ttl, limit, supersedes, first_look, request_id,
  queue, wake_up = unpack(ARGV)
deadline, send_at, expires, valid_for = tonumber(deadline), tonumber(send_at), tonumber(expires), tonumber(valid_for)

local known = redis.call('HGET', email_key(id), 'first_state')
if known then return {'accepted', now, id, known} end

-- A frozen Redis runs this when it thaws, long after the caller was told 503.
if now > deadline then return {'late', now} end

if idempotency ~= '' then
  local earlier = redis.call('GET', P .. 'idem:' .. idempotency)
  if earlier then
    local seen, earlier_id, state = earlier:match('^(%S+) (%S+) (%S+)$')
    if seen ~= fingerprint then return {'conflict', now} end
    return {'replayed', now, earlier_id, state}
  end
end

if send_at > 0 and send_at <= now then return {'invalid', now, 'send_at', 'must lie in the future'} end
if expires == 0 and valid_for > 0 then
  expires = now + valid_for
  if send_at >= expires then
    return {'invalid', now, 'send_at', 'lies after the link in this mail has ended; pass expires_at if it lives longer'}
  end
end
if expires > 0 and expires <= math.max(now, send_at) then
  return {'invalid', now, 'expires_at', 'must lie in the future and after send_at'}
end

if tonumber(limit) > 0 then
  local wait = over_limit(kind, mailbox, tonumber(limit), id)
  if wait then return {'limited', now, wait} end
end

local rivals = P .. 'rivals:' .. kind .. ':' .. person
if supersedes == '1' then
  if send_at == 0 then
    for _, older in ipairs(redis.call('SMEMBERS', rivals)) do
      local record = load(older)
      if not record.state then
        redis.call('SREM', rivals, older)
      elseif record.state == 'sending' then
        redis.call('HSET', email_key(older), 'superseded_by', id)
      else
        end_unsent(older, record, 'cancelled', {error = 'superseded by a newer mail of the same kind', by = id})
      end
    end
  end
  redis.call('SADD', rivals, id)
end

local state = send_at > 0 and 'scheduled' or 'queued'
local record = {kind = kind, lane = lane, created = now, expires = expires > 0 and expires or nil}
redis.call('HSET', email_key(id), 'kind', kind, 'lane', lane, 'to', to, 'person', person, 'payload', payload,
  'created', now, 'first_state', state, 'attempts', 0, 'request_id', request_id)
if secret ~= '' then redis.call('HSET', email_key(id), 'secret', secret, 'has_secret', 1) end
if send_at > 0 then redis.call('HSET', email_key(id), 'send_at', send_at) end
if expires > 0 then redis.call('HSET', email_key(id), 'expires', expires) end
if supersedes == '1' then redis.call('HSET', email_key(id), 'rivals', rivals) end
set_state(id, record, state)
log(id, {state = state})
look_again(id, record, send_at > 0 and send_at or now + tonumber(first_look))
if expires > 0 then redis.call('ZADD', P .. 'ends', expires, id) end
redis.call('ZADD', P .. 'all', now, id)
redis.call('ZADD', P .. 'to:' .. person, now, id)
if idempotency ~= '' then
  redis.call('SET', P .. 'idem:' .. idempotency, fingerprint .. ' ' .. id .. ' ' .. state, 'PX', idempotency_ttl)
end
if state == 'queued' and queue ~= '' then redis.call('LPUSH', queue, wake_up) end
return {'accepted', now, id, state}

#!lua flags=allow-oom
-- Grants one worker the right to send one email, or says why not.
local _, id, token, worker, lease_ms, lapsed_until, death_limit, death_pause, permit, per_second, per_day,
  connections = unpack(ARGV)
lease_ms, per_second, per_day, connections = tonumber(lease_ms), tonumber(per_second), tonumber(per_day),
  tonumber(connections)

local record = load(id, 'token', 'lease', 'superseded_by', 'deaths', 'attempts', 'send_at', 'next')
if not record.state then return {'unknown', now} end
redis.call('HSET', P .. 'lane:' .. record.lane, 'woken', now)
if FINAL[record.state] then
  redis.call('ZREM', due_key(record), id)
  return {'done', now, record.state}
end

local function grant(delay)
  local content = redis.call('HMGET', email_key(id), 'kind', 'to', 'payload', 'secret', 'request_id')
  return {'claimed', now, content[1], content[2], content[3], content[4] or '', record.attempts or '0', record.lane,
    record.expires and record.expires - record.created or '', record.batch or '', delay,
    content[5] or ''}
end

local DIED = 'possible duplicate: the worker before died while sending'
local copy = nil
local function wait(at, reason)
  if copy then log(id, {state = 'retrying', note = DIED, next = now}) end
  return {'wait', now, record.state, math.max(1, math.ceil((at - now) / 1000)), reason}
end

if record.state == 'sending' then
  if record.token == token then return grant(0) end
  local lease = tonumber(record.lease)
  if lease > now then
    redis.call('ZADD', due_key(record), lease, id)
    return wait(lease, 'another worker is sending it')
  end
  if now > tonumber(lapsed_until) then
    look_again(id, record, now + 1000)
    return wait(now + 1000, 'its worker gets time to come back')
  end
  -- The worker died with this mail in hand: whether the server took it, nobody can tell.
  if holds(record) then
    end_unsent(id, record, 'held', {cause = 'worker_died',
      error = 'its worker died while sending it; whether the server took it, nobody can tell'})
    return {'done', now, 'held'}
  end
  local deaths = redis.call('HINCRBY', email_key(id), 'deaths', 1)
  note_copy(id, record)
  tell('warning', 'lease.taken_over', {email_id = id, kind = record.kind, lane = record.lane, deaths = deaths,
    note = DIED, request_id = redis.call('HGET', email_key(id), 'request_id') or nil})
  if deaths >= tonumber(death_limit) then
    end_unsent(id, record, 'failed', {cause = 'worker_died',
      error = 'its worker died ' .. deaths .. ' times while sending it'})
    return {'done', now, 'failed'}
  end
  -- From now on nobody has it, also if something makes it wait: a death counts once.
  local at = deaths > 1 and now + tonumber(death_pause) * 4 ^ (deaths - 2) or now
  redis.call('HDEL', email_key(id), 'token', 'lease', 'worker')
  redis.call('HSET', email_key(id), 'next', at)
  set_state(id, record, 'retrying')
  if deaths > 1 then
    log(id, {state = 'retrying', note = 'its worker died ' .. deaths .. ' times', next = at})
    look_again(id, record, at)
    return wait(at, 'its worker died')
  end
  copy = 1
end

if record.superseded_by then
  end_unsent(id, record, 'cancelled',
    {error = 'superseded by a newer mail of the same kind', by = record.superseded_by, copy = copy})
  return {'done', now, 'cancelled'}
end
if record.expires and tonumber(record.expires) <= now then
  end_unsent(id, record, 'expired', {error = 'its time ran out before it could be sent', copy = copy})
  return {'done', now, 'expired'}
end
local not_before = tonumber(record.state == 'scheduled' and record.send_at or record.state == 'retrying' and record.next or 0)
if not_before > now then
  look_again(id, record, not_before)
  return wait(not_before, record.state == 'scheduled' and 'not yet due' or 'waiting for its next attempt')
end

if record.batch then
  local state = redis.call('HGET', batch_key(record.batch), 'state')
  if state == 'cancelled' then
    end_unsent(id, record, 'cancelled', {error = 'its batch was cancelled', copy = copy})
    return {'done', now, 'cancelled'}
  end
  if state == 'paused' then
    redis.call('ZADD', due_key(record), now, id)
    return wait(now + 60000, 'its batch is paused')
  end
end

local held = held_until(record.lane)
if held > now then
  -- Due at once: the sweep starts it again as soon as the gate opens.
  look_again(id, record, now)
  return wait(held, 'the SMTP server is not taking mail; see /health/ready')
end
if not take_connection(record.lane, permit, connections, lease_ms) then
  look_again(id, record, now + 250)
  return {'full', now, record.state, 1, 'SMTP_MAX_CONNECTIONS are in use'}
end
local slots, at, why = take_slots(record.lane, 1, per_second, per_day)
if slots == 0 then
  look_again(id, record, at - HORIZON)
  return wait(at, why .. ' allows no more now')
end
note_probe(record.lane, token, email_key(id))

redis.call('HSET', email_key(id), 'token', token, 'lease', now + lease_ms, 'worker', worker)
redis.call('HDEL', email_key(id), 'next')
redis.call('ZADD', due_key(record), now + lease_ms, id)
set_state(id, record, 'sending')
log(id, {state = 'sending', worker = worker, attempt = tonumber(record.attempts or '0') + 1,
  note = copy and DIED or nil})
return grant(math.max(0, math.ceil(at - now)))

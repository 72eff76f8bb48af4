#!lua flags=allow-oom
-- Grants one worker the right to send the next few recipients of a chunk, or says why not.
local _, batch, n, token, worker, lease_ms, lapsed_until, size, permit, per_second, per_day, connections = unpack(ARGV)
n, lease_ms, size, per_second, per_day, connections = tonumber(n), tonumber(lease_ms), tonumber(size),
  tonumber(per_second), tonumber(per_day), tonumber(connections)

local due, key, states = P .. 'due:' .. batch, chunk_key(batch, n), states_key(batch)
local shared = redis.call('HMGET', batch_key(batch), 'state', 'send_at', 'expires', 'on_unknown', 'request_id')
local state, send_at, expires = shared[1], tonumber(shared[2] or '0'), tonumber(shared[3] or '0')
if not state or state == 'accepting' or state == 'erasing' then return {'unknown', now} end
redis.call('HSET', P .. 'lane:bulk', 'woken', now)

local first, last = n * CHUNK, n * CHUNK + CHUNK - 1
local function find(letter, most)
  local letters, found, from = redis.call('GETRANGE', states, first, last), {}, 1
  while #found < most do
    local at = letters:find(letter, from, true)
    if not at then break end
    found[#found + 1], from = first + at - 1, at + 1
  end
  return found
end

local function wait(at, reason)
  return {'wait', now, math.max(1, math.ceil(at - now)), reason}
end

local function done(why)
  redis.call('ZREM', due, n)
  redis.call('HDEL', key, 'token', 'lease', 'worker', 'at')
  return {'done', now, why}
end

local function grant(positions, delay, gap)
  local reply = {'claimed', now, delay, gap, shared[5] or ''}
  for _, pos in ipairs(positions) do reply[#reply + 1] = pos end
  return reply
end

local holder = redis.call('HMGET', key, 'token', 'lease')
if holder[1] == token then return grant(find('i', CHUNK), 0, 0) end
if holder[1] then
  local lease = tonumber(holder[2])
  if lease > now then
    redis.call('ZADD', due, lease, n)
    call_batch(batch, lease)
    return wait(lease, 'another worker is sending it')
  end
  if now > tonumber(lapsed_until) then
    redis.call('ZADD', due, now + 1000, n)
    call_batch(batch, now + 1000)
    return wait(now + 1000, 'its worker gets time to come back')
  end
  -- The worker died. What it had sent it said; what it had not begun waits again; of the one that was in SMTP nobody
  -- can tell whether the server took it.
  local contents, at = {}, tonumber(redis.call('HGET', key, 'at') or '-1')
  for _, pos in ipairs(find('i', CHUNK)) do
    if redis.call('HEXISTS', key, pos) == 1 then
      mark(batch, pos, 's')
      move(batch, 'sending', 'sent', 1)
    elseif pos ~= at then
      mark(batch, pos, state == 'cancelled' and 'c' or 'q')
      move(batch, 'sending', state == 'cancelled' and 'cancelled' or 'queued', 1)
    else
      local id = promote(batch, pos, contents)
      local record = load(id)
      if shared[4] == 'hold' then
        end_unsent(id, record, 'held', {cause = 'worker_died',
          error = 'its worker died while it was being sent; whether the server took it, nobody can tell'})
      elseif state == 'cancelled' then
        note_copy(id, record)
        end_unsent(id, record, 'cancelled', {error = 'its batch was cancelled', copy = 1})
      else
        note_copy(id, record)
        redis.call('HSET', email_key(id), 'next', now)
        set_state(id, record, 'retrying')
        log(id, {state = 'retrying', note = 'possible duplicate: the worker before died while sending', next = now})
        look_again(id, record, now)
        tell('warning', 'lease.taken_over', {email_id = id, kind = record.kind, lane = 'bulk',
          request_id = shared[5] or nil, note = 'possible duplicate: the worker before died while sending'})
      end
    end
  end
  redis.call('HDEL', key, 'token', 'lease', 'worker', 'at')
end

if state == 'cancelled' then
  -- Whoever cancelled it may have died before it came here.
  local rest = find('q', CHUNK)
  for _, pos in ipairs(rest) do mark(batch, pos, 'c') end
  if #rest > 0 then move(batch, 'queued', 'cancelled', #rest) end
  return done('cancelled')
end
local left = find('q', size)
if #left == 0 then return done('finished') end
if expires > 0 and expires <= now then
  left = find('q', CHUNK)
  for _, pos in ipairs(left) do mark(batch, pos, 'e') end
  move(batch, 'queued', 'expired', #left)
  return done('expired')
end

local function later(at, reason)
  redis.call('ZADD', due, at, n)
  call_batch(batch, at)
  return wait(at, reason)
end
if state == 'paused' then
  later(now, '')
  return wait(now + 60000, 'its batch is paused')
end
if send_at > now then return later(send_at, 'not yet due') end
local held = held_until('bulk')
if held > now then
  later(now, '')
  return wait(held, 'the SMTP server is not taking mail; see /health/ready')
end
if not take_connection('bulk', permit, connections, lease_ms) then
  later(now + 500, '')
  return {'full', now, 500, 'SMTP_MAX_CONNECTIONS are in use'}
end
local slots, at, gap = take_slots('bulk', is_probing('bulk') and 1 or #left, per_second, per_day)
if slots == 0 then
  later(math.max(now, at - HORIZON), '')
  return {'slot', now, math.max(1, math.ceil(at - now)), gap .. ' allows no more now'}
end
note_probe('bulk', token, key)

for i = #left, slots + 1, -1 do left[i] = nil end
for _, pos in ipairs(left) do mark(batch, pos, 'i') end
move(batch, 'queued', 'sending', #left)
if state == 'queued' then redis.call('HSET', batch_key(batch), 'state', 'sending', 'started', now) end
redis.call('HSET', key, 'token', token, 'lease', now + lease_ms, 'worker', worker)
redis.call('ZADD', due, now + lease_ms, n)
call_batch(batch, now + lease_ms)
return grant(left, math.max(0, math.ceil(at - now)), math.ceil(gap))

-- What holds mail back: gates, the pace of a lane, and the limits of the SMTP account.

-- Gates: `smtp` for the whole account, and one per lane. A closed gate keeps mail back and lets one probe through
-- at a time; the probe is alive while it holds the lease it was granted with.
local function gate(name)
  local values = redis.call('HMGET', P .. 'gate:' .. name, 'next', 'probe', 'probe_key')
  if not values[1] then return nil end
  local free_at = tonumber(values[1])
  if values[2] then
    local probe = redis.call('HMGET', values[3], 'token', 'lease')
    if probe[1] == values[2] and tonumber(probe[2]) > now then free_at = math.max(free_at, tonumber(probe[2])) end
  end
  return {free_at = free_at, probe = values[2]}
end

-- When the gates let the next mail of this lane through: 0 for at once, else a time in the future.
local function held_until(lane)
  local at = 0
  for _, name in ipairs({'smtp', lane}) do
    local closed = gate(name)
    if closed and closed.free_at > now then at = math.max(at, closed.free_at) end
  end
  return at
end

local function is_probing(lane) return gate('smtp') or gate(lane) end

local function note_probe(lane, token, key)
  for _, name in ipairs({'smtp', lane}) do
    if gate(name) then redis.call('HSET', P .. 'gate:' .. name, 'probe', token, 'probe_key', key) end
  end
end

-- Mails per second lately: an average whose weights fade with `FADE`.
local FADE = 10000
local function meter(key, n)
  local seen = redis.call('HMGET', key, 'sum', 'at', 'since')
  local sum, at, since = tonumber(seen[1] or '0'), tonumber(seen[2] or now), tonumber(seen[3] or now)
  if now - at > 3 * FADE then sum, since = 0, now end
  sum = sum * math.exp((at - now) / FADE) + n
  if n > 0 then redis.call('HSET', key, 'sum', sum, 'at', now, 'since', since) end
  return sum / (FADE / 1000 * (1 - math.exp(-math.max(1000, now - since) / FADE)))
end

-- When a worker last asked for mail of this lane, and when the sweep first saw some due after that.
local function lane_clock(lane)
  local seen = redis.call('HMGET', P .. 'lane:' .. lane, 'woken', 'owed')
  return tonumber(seen[1] or '0'), tonumber(seen[2] or '0')
end

-- A worker may be told to wait so long with a mail in its hand; what must wait longer goes back.
local HORIZON = 1000
-- Of the account's limits this part is kept for critical and standard mail.
local BULK_SHARE = 0.95
-- A mail takes its slot from its own lane and from all that come after it here: those wait, it does not.
local LANES = {critical = {'critical', 'standard', 'bulk'}, standard = {'standard', 'bulk'}, bulk = {'bulk'}}

-- How many more mails of this lane the day allows, and when there will be more. Servers count any 24 hours; by
-- whole hours this errs to the safe side.
local function left_today(lane, per_day)
  local hour = math.floor(now / 3600000)
  local used, oldest, past = 0, hour, {}
  local hours = redis.call('HGETALL', P .. 'day')
  for i = 1, #hours, 2 do
    local at = tonumber(hours[i])
    if at < hour - 24 then
      past[#past + 1] = hours[i]
    else
      used, oldest = used + tonumber(hours[i + 1]), math.min(oldest, at)
    end
  end
  return math.floor(per_day * (lane == 'bulk' and BULK_SHARE or 1)) - used, (oldest + 25) * 3600000, past
end

-- The rule that every mail of this lane obeys: the time of its next slot, the milliseconds between two, why.
local function next_slot(lane, per_second)
  local at, gap, why = now, 0, nil
  if per_second > 0 then
    gap = 1000 / per_second / (lane == 'bulk' and BULK_SHARE or 1)
    at, why = math.max(at, tonumber(redis.call('HGET', P .. 'slots', lane) or '0')), 'SMTP_MAX_PER_SECOND'
  end
  local pace = redis.call('HMGET', P .. 'pace:' .. lane, 'limit', 'slot')
  if pace[1] then
    gap, at = math.max(gap, 1000 / tonumber(pace[1])), math.max(at, tonumber(pace[2]))
    why = 'the SMTP server asked for patience'
  end
  return at, gap, why
end

-- Takes up to `n` slots: how many, when the first one is, the milliseconds between two. With none: 0, when, why.
local function take_slots(lane, n, per_second, per_day)
  local at, gap, why = next_slot(lane, per_second)
  if at > now + HORIZON then return 0, at, why end
  if gap > 0 then n = math.min(n, 1 + math.floor((now + HORIZON - at) / gap)) end
  if per_day > 0 then
    local left, more_at, past = left_today(lane, per_day)
    if #past > 0 then redis.call('HDEL', P .. 'day', unpack(past)) end
    if left < 1 then return 0, more_at, 'SMTP_MAX_PER_DAY' end
    n = math.min(n, left)
    redis.call('HINCRBY', P .. 'day', math.floor(now / 3600000), n)
  end
  if per_second > 0 then
    for _, name in ipairs(LANES[lane]) do
      local from = math.max(now, tonumber(redis.call('HGET', P .. 'slots', name) or '0'))
      redis.call('HSET', P .. 'slots', name, from + n * (name == lane and gap or 1000 / per_second))
    end
  end
  if redis.call('EXISTS', P .. 'pace:' .. lane) == 1 then
    redis.call('HSET', P .. 'pace:' .. lane, 'slot', at + n * gap)
  end
  return n, at, gap
end

-- A mail that was not tried after all does not count for the day.
local function give_back(n)
  local key, hour = P .. 'day', math.floor(now / 3600000)
  if tonumber(redis.call('HGET', key, hour) or '0') >= n then redis.call('HINCRBY', key, hour, -n) end
end

-- Connections to the SMTP server, over all processes: a permit each, which lapses with its holder. Bulk mail leaves
-- one to the others; where there is but one, it makes way as soon as another lane asks.
local function room_for_connection(lane, most)
  local share = (lane == 'bulk' and most > 1) and most - 1 or most
  return share - redis.call('ZCOUNT', P .. 'connections', '(' .. now, '+inf')
end

local function take_connection(lane, permit, most, lease_ms)
  if most == 0 then return true end
  local key, wanted = P .. 'connections', P .. 'connections:wanted'
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
  local yields = lane == 'bulk' and redis.call('EXISTS', wanted) == 1
  if redis.call('ZSCORE', key, permit) and not (yields and most == 1) then
    redis.call('ZADD', key, now + lease_ms, permit)
    return true
  end
  redis.call('ZREM', key, permit)
  if yields or room_for_connection(lane, most) < 1 then
    if lane ~= 'bulk' then redis.call('SET', wanted, 1, 'PX', 3000) end
    return false
  end
  redis.call('ZADD', key, now + lease_ms, permit)
  return true
end

#!lua flags=no-writes
-- All that is watched, at one moment, as JSON. It looks at a bounded number of keys, however much mail there is, and
-- answers also where Redis takes no writes.
local _, per_second, per_day, connections = unpack(ARGV)
per_second, per_day, connections = tonumber(per_second), tonumber(per_day), tonumber(connections)

local function hash(key)
  local flat, found = redis.call('HGETALL', P .. key), {}
  for i = 1, #flat, 2 do found[flat[i]] = flat[i + 1] end
  return found
end

-- How much of a lane is due (of bulk: chunks), and since when the oldest is.
local function due_in(lane)
  local sources = {lane}
  if lane == 'bulk' then sources = redis.call('ZRANGEBYSCORE', P .. 'due:bulk', '-inf', now, 'LIMIT', 0, 1000) end
  local due, oldest = 0, now
  for _, source in ipairs(sources) do
    local first = redis.call('ZRANGE', P .. 'due:' .. source, 0, 0, 'WITHSCORES')
    if first[1] and tonumber(first[2]) <= now then
      due = due + redis.call('ZCOUNT', P .. 'due:' .. source, '-inf', now)
      oldest = math.min(oldest, tonumber(first[2]))
    end
  end
  return due, oldest
end

local function look(lane)
  local due, oldest = due_in(lane)
  local nodes = redis.call('ZCOUNT', P .. 'nodes:' .. lane, now - 30000, '+inf')
  local speed = meter(P .. 'meter:' .. lane, 0)
  local gate, pace = hash('gate:' .. lane), hash('pace:' .. lane)
  local closed = is_probing(lane) and true or false
  local at, gap = next_slot(lane, per_second)
  local limits = {
    gate = closed,
    day = per_day > 0 and left_today(lane, per_day) < 1,
    pace = pace.limit ~= nil,
    rate = per_second > 0 and gap > 0 and not pace.limit and speed > 0.8 * 1000 / gap,
    connections = connections > 0 and room_for_connection(lane, connections) < 1,
  }
  -- Since when a worker should have asked for mail of this lane and none has.
  local woken, owed = lane_clock(lane)
  local still = due > 0 and math.max(oldest, woken) or now
  if owed > woken then still = math.min(still, owed) end
  -- Held back on purpose; or its workers live, and only the SMTP server is why.
  if limits.day or at > now + HORIZON or (closed and nodes > 0) then still = now end
  return {due = due, oldest_ms = now - oldest, still_ms = now - still, nodes = nodes, speed = speed, gate = gate,
    pace = pace, limits = limits}
end

local lanes = {}
for _, lane in ipairs({'critical', 'standard', 'bulk'}) do lanes[lane] = look(lane) end
return {now, cjson.encode({
  counts = hash('counts'),
  lanes = lanes,
  account = {
    gate = hash('gate:smtp'),
    -- Of the lane that may use all of it.
    used_today = per_day > 0 and per_day - left_today('critical', per_day) or 0,
    connections = redis.call('ZCOUNT', P .. 'connections', '(' .. now, '+inf'),
  },
  nodes = hash('reports'),
  alerts = redis.call('LLEN', P .. 'alerts:pending'),
})}

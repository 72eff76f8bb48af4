#!lua flags=allow-oom
-- Picks what is due in one lane, no more than `room`, and moves it on so that nobody else picks it too.
local _, lane, room, bump, node, node_ttl, per_second, per_day, connections = unpack(ARGV)
room, per_second, per_day, connections = tonumber(room), tonumber(per_second), tonumber(per_day), tonumber(connections)
bump = now + tonumber(bump)

redis.call('ZADD', P .. 'nodes:' .. lane, now, node)
redis.call('ZREMRANGEBYSCORE', P .. 'nodes:' .. lane, '-inf', now - tonumber(node_ttl))

end_expired()

-- One index of due things per running batch; the others have one for the lane.
local sources, batches = {P .. 'due:' .. lane}, {}
if lane == 'bulk' then
  sources, batches = {}, redis.call('ZRANGEBYSCORE', P .. 'due:bulk', '-inf', now, 'LIMIT', 0, 100)
  for i, batch in ipairs(batches) do sources[i] = P .. 'due:' .. batch end
end

local waiting = 0
for _, source in ipairs(sources) do waiting = waiting + redis.call('ZCOUNT', source, '-inf', now) end

local at, gap = next_slot(lane, per_second)
local held = held_until(lane) > now or at > now + HORIZON
if connections > 0 then
  local free = room_for_connection(lane, connections)
  held, room = held or free < 1, math.min(room, free)
end
if per_day > 0 then held = held or left_today(lane, per_day) < 1 end
if held then
  room = 0
elseif is_probing(lane) then
  room = math.min(room, 1)
elseif gap > 0 then
  room = math.min(room, math.floor(1000 / gap) + 1)
end

-- What is published is not due for a while: this tells of a lane whose wake-ups nobody takes.
local woken, owed = lane_clock(lane)
if waiting > 0 and not held and woken >= owed then redis.call('HSET', P .. 'lane:' .. lane, 'owed', now) end

local reply = {now, held and 1 or 0, waiting, woken}
if room < 1 then return reply end

local function say(...)
  for _, value in ipairs({...}) do reply[#reply + 1] = value end
  room = room - 1
end

local function pick(source, most)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', source, '-inf', now, 'LIMIT', 0, most)) do
    if id:match('^%d+$') then
      redis.call('ZADD', source, bump, id)
      say(source:sub(#P + 5) .. ':' .. id, 'bulk_chunk', '')
    else
      local record = load(id, 'to')
      if not record.state or FINAL[record.state] then
        redis.call('ZREM', source, id)
      else
        if record.state == 'scheduled' then
          set_state(id, record, 'queued')
          log(id, {state = 'queued'})
        end
        redis.call('ZADD', source, bump, id)
        say(id, record.kind, record.to)
      end
    end
  end
end

-- Batches share what room there is, so that a small one does not wait behind a large one.
for i, source in ipairs(sources) do
  local share = lane == 'bulk' and math.ceil(room / (#sources - i + 1)) or room
  if share > 0 then pick(source, share) end
end
-- What a small one left over.
for _, source in ipairs(sources) do
  if room > 0 then pick(source, room) end
end
for i, batch in ipairs(batches) do
  local first = redis.call('ZRANGE', sources[i], 0, 0, 'WITHSCORES')
  if first[1] then
    redis.call('ZADD', P .. 'due:bulk', 'XX', first[2], batch)
  else
    redis.call('ZREM', P .. 'due:bulk', batch)
  end
end
return reply

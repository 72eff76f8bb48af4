#!lua flags=allow-oom
-- Picks what is due in one lane, no more than `room`, and moves it on so that nobody else picks it too.
local _, lane, room, bump, node, node_ttl = unpack(ARGV)
room = tonumber(room)

redis.call('ZADD', P .. 'nodes:' .. lane, now, node)
redis.call('ZREMRANGEBYSCORE', P .. 'nodes:' .. lane, '-inf', now - tonumber(node_ttl))

end_expired()

local waiting = redis.call('ZCOUNT', due_key(lane), '-inf', now)
local held = held_until(lane) > now
local interval = redis.call('HGET', P .. 'pace:' .. lane, 'interval')
if held then
  room = 0
elseif gate('smtp') or gate(lane) then
  room = math.min(room, 1)
elseif interval then
  room = math.min(room, math.floor(1000 / tonumber(interval)) + 1)
end

local reply = {now, held and 1 or 0, waiting, tonumber(redis.call('HGET', P .. 'lane:' .. lane, 'woken') or '0')}
if room < 1 then return reply end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', due_key(lane), '-inf', now, 'LIMIT', 0, room)) do
  local record = load(id, 'state', 'created', 'kind', 'to')
  if not record.state or FINAL[record.state] then
    redis.call('ZREM', due_key(lane), id)
  else
    if record.state == 'scheduled' then
      set_state(id, record, 'queued')
      log(id, {state = 'queued'})
    end
    redis.call('ZADD', due_key(lane), now + tonumber(bump), id)
    for _, value in ipairs({id, record.kind, record.to}) do reply[#reply + 1] = value end
  end
end
return reply

#!lua flags=allow-oom
-- Finds batches that need a hand: taken in by halves, cancelled by halves, run out of time. Their ids, each with why.
local _, patience = unpack(ARGV)
local reply = {now}
for _, batch in ipairs(redis.call('ZRANGE', P .. 'batches:live', 0, 999)) do
  local shared = redis.call('HMGET', batch_key(batch), 'state', 'touched', 'expires', 'n:queued', 'n:retrying')
  local waiting = tonumber(shared[4] or '0') + tonumber(shared[5] or '0')
  local why = nil
  if not shared[1] then
    redis.call('ZREM', P .. 'batches:live', batch)
  elseif shared[1] == 'accepting' then
    if tonumber(shared[2]) < now - tonumber(patience) then
      -- Before the first chunk goes: from now on nobody can go on with it.
      redis.call('HSET', batch_key(batch), 'state', 'erasing')
      why = 'erase'
    end
  elseif shared[1] == 'erasing' then
    why = 'erase'
  elseif waiting > 0 and shared[1] == 'cancelled' then
    why = 'cancel'
  elseif waiting > 0 and shared[3] and tonumber(shared[3]) <= now then
    why = 'expire'
  end
  if why then
    reply[#reply + 1], reply[#reply + 2] = batch, why
  end
end
return reply

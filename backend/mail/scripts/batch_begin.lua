#!lua
-- Begins to take a batch in. Until it is flipped nobody sees it; one that nobody goes on with is erased.
local _, batch, deadline, idempotency, patience = unpack(ARGV)
if redis.call('EXISTS', batch_key(batch)) == 1 then return {'begun', now} end
if now > tonumber(deadline) then return {'late', now} end
if idempotency ~= '' then
  local earlier = redis.call('GET', P .. 'idem:' .. idempotency)
  if earlier then
    local seen, id, state = earlier:match('^(%S+) (%S+) (%S+)$')
    if seen == 'accepting' then return {'accepting', now} end
    return {'known', now, seen, id, state}
  end
  redis.call('SET', P .. 'idem:' .. idempotency, 'accepting ' .. batch .. ' accepting', 'PX', patience)
end
redis.call('HSET', batch_key(batch), 'state', 'accepting', 'touched', now, 'chunks', 0, 'idem', idempotency)
redis.call('ZADD', P .. 'batches:live', now, batch)
return {'begun', now}

#!lua flags=allow-oom
-- Pauses, resumes or cancels a batch: one step, from which on every claim obeys.
local _, batch, verb = unpack(ARGV)
local key = batch_key(batch)
local state = redis.call('HGET', key, 'state')
if not state or state == 'accepting' or state == 'erasing' then return {'unknown', now} end

local function become(new)
  redis.call('HSET', key, 'state', new)
  redis.call('HINCRBY', key, 'version', 1)
  return {'ok', now, state}
end

if verb == 'pause' then
  if state == 'paused' then return {'ok', now, state} end
  if state ~= 'queued' and state ~= 'sending' then return {'state', now, state} end
  redis.call('ZREM', P .. 'due:bulk', batch)
  return become('paused')
end
if verb == 'resume' then
  if state == 'queued' or state == 'sending' then return {'ok', now, state} end
  if state ~= 'paused' then return {'state', now, state} end
  local answer = become(redis.call('HEXISTS', key, 'started') == 1 and 'sending' or 'queued')
  call_batch(batch, now)
  return answer
end
if state == 'cancelled' then return {'ok', now, state} end
if state ~= 'queued' and state ~= 'sending' and state ~= 'paused' then return {'state', now, state} end
local answer = become('cancelled')
call_batch(batch, now)
return answer

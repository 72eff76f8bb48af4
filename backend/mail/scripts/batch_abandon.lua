#!lua flags=allow-oom
-- Gives up taking a batch in: from now on it can only be erased. One that has become live stays as it is.
local _, batch = unpack(ARGV)
local state = redis.call('HGET', batch_key(batch), 'state')
if state == 'accepting' then
  redis.call('HSET', batch_key(batch), 'state', 'erasing')
  state = 'erasing'
end
return {state or 'gone', now}

#!lua flags=allow-oom
-- From now on a batch can only be erased: one that is given up while it is taken in, or one that is old. Only if it is
-- in one of the states given; answers with the state it is in now.
local _, batch = unpack(ARGV)
local state = redis.call('HGET', batch_key(batch), 'state')
for i = 3, #ARGV do
  if state == ARGV[i] then
    redis.call('HSET', batch_key(batch), 'state', 'erasing')
    state = 'erasing'
  end
end
return {state or 'gone', now}

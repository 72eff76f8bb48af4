#!lua
-- Writes some chunks of a batch that is being taken in: number, content, and the persons in it, each as JSON.
local _, batch, deadline, patience = unpack(ARGV)
if now > tonumber(deadline) then return {'late', now} end
if redis.call('HGET', batch_key(batch), 'state') ~= 'accepting' then return {'gone', now} end
for i = 5, #ARGV, 3 do
  local n, persons = tonumber(ARGV[i]), cjson.decode(ARGV[i + 2])
  redis.call('HSET', chunk_key(batch, n), 'content', ARGV[i + 1])
  redis.call('SETRANGE', states_key(batch), n * CHUNK, ('q'):rep(#persons))
  redis.call('ZADD', P .. 'due:' .. batch, now, n)
  for offset, person in ipairs(persons) do
    redis.call('ZADD', P .. 'to:' .. person, now, email_id(batch, n * CHUNK + offset - 1))
  end
  redis.call('HSET', batch_key(batch), 'chunks', n + 1)
end
redis.call('HSET', batch_key(batch), 'touched', now)
local idempotency = redis.call('HGET', batch_key(batch), 'idem')
if idempotency ~= '' then redis.call('PEXPIRE', P .. 'idem:' .. idempotency, patience) end
return {'filled', now}

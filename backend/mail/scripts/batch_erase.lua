#!lua flags=allow-oom
-- Removes one chunk of a batch with what belongs to its recipients, the last one first; in the end the batch.
-- `persons` is a JSON list, as it was given to batch_fill.
local _, batch, n, persons = unpack(ARGV)
local key = batch_key(batch)
n = tonumber(n)
-- One that was never accepted has no kind, and was never counted.
local kind = redis.call('HGET', key, 'kind')
if kind and redis.call('EXISTS', chunk_key(batch, n)) == 1 then
  local gone = {}
  for letter in redis.call('GETRANGE', states_key(batch), n * CHUNK, n * CHUNK + CHUNK - 1):lower():gmatch('.') do
    gone[letter] = (gone[letter] or 0) + 1
  end
  for letter, many in pairs(gone) do count(kind, 'bulk', NAMES[letter], '-', many) end
end
for offset, person in ipairs(cjson.decode(persons)) do
  local id = email_id(batch, n * CHUNK + offset - 1)
  redis.call('ZREM', P .. 'to:' .. person, id)
  local record = load(id)
  if record.state then
    redis.call('ZREM', P .. 'state:' .. record.state, id)
    redis.call('ZREM', P .. 'ends', id)
    redis.call('DEL', email_key(id))
  end
end
if n >= 0 then
  redis.call('DEL', chunk_key(batch, n))
  redis.call('HSET', key, 'chunks', n)
end
if n <= 0 then
  local idempotency = redis.call('HGET', key, 'idem')
  if idempotency and idempotency ~= '' then
    local held = redis.call('GET', P .. 'idem:' .. idempotency)
    if held and held:find(batch, 1, true) then redis.call('DEL', P .. 'idem:' .. idempotency) end
  end
  redis.call('UNLINK', key, states_key(batch), P .. 'mailing:' .. batch, P .. 'due:' .. batch, P .. 'meter:' .. batch)
  redis.call('ZREM', P .. 'batches', batch)
  redis.call('ZREM', P .. 'batches:live', batch)
  redis.call('ZREM', P .. 'due:bulk', batch)
end
return {now}

#!lua flags=allow-oom
-- Removes a bounded number of old records with their index entries, and secrets that have outlived their mail.
local _, keep_ms, skip, most = unpack(ARGV)
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'secrets', '-inf', now, 'LIMIT', 0, most)) do
  drop_secret(id)
end
local cutoff = now - tonumber(keep_ms)
local removed, kept = 0, 0
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'all', '-inf', cutoff, 'LIMIT', skip, most)) do
  local record = load(id, 'updated', 'person')
  if record.state and not (FINAL[record.state] and tonumber(record.updated) <= cutoff) then
    kept = kept + 1
  else
    redis.call('DEL', email_key(id))
    redis.call('ZREM', P .. 'all', id)
    redis.call('ZREM', P .. 'secrets', id)
    redis.call('ZREM', P .. 'ends', id)
    if record.state then
      count(record.kind, record.lane, record.state, '-', 1)
      redis.call('ZREM', P .. 'to:' .. record.person, id)
      redis.call('ZREM', P .. 'state:' .. record.state, id)
    end
    removed = removed + 1
  end
end
return {now, removed, kept}

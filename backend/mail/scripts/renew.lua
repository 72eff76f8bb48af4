#!lua flags=allow-oom
-- Extends leases that are still held with their token, of emails and of chunks; answers with the ids that are. And
-- permits for connections, which lapse otherwise.
local _, lease_ms, permits = unpack(ARGV)
local lease = now + tonumber(lease_ms)
for i = 4, 3 + tonumber(permits) do
  redis.call('ZADD', P .. 'connections', 'XX', lease, ARGV[i])
end
local kept = {now}
for i = 4 + tonumber(permits), #ARGV, 2 do
  local id, token = ARGV[i], ARGV[i + 1]
  local batch, n = id:match('^(.*):(%d+)$')
  if batch then
    if redis.call('HGET', chunk_key(batch, n), 'token') == token then
      redis.call('HSET', chunk_key(batch, n), 'lease', lease)
      redis.call('ZADD', P .. 'due:' .. batch, lease, n)
      kept[#kept + 1] = id
    end
  else
    local record = load(id, 'token')
    if record.state == 'sending' and record.token == token then
      redis.call('HSET', email_key(id), 'lease', lease)
      redis.call('ZADD', due_key(record), lease, id)
      kept[#kept + 1] = id
    end
  end
end
return kept

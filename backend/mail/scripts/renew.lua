#!lua flags=allow-oom
-- Extends leases that are still held with their token; answers with the ids that are.
local lease = now + tonumber(ARGV[2])
local kept = {now}
for i = 3, #ARGV, 2 do
  local id, token = ARGV[i], ARGV[i + 1]
  local record = load(id, 'state', 'token', 'lane')
  if record.state == 'sending' and record.token == token then
    redis.call('HSET', email_key(id), 'lease', lease)
    redis.call('ZADD', due_key(record.lane), lease, id)
    kept[#kept + 1] = id
  end
end
return kept

#!lua
-- How fast a batch is going, and what holds it back now. Reads only.
local _, batch, per_second, per_day, connections = unpack(ARGV)
per_second, per_day, connections = tonumber(per_second), tonumber(per_day), tonumber(connections)
local speed = meter(P .. 'meter:' .. batch, 0)

local function why()
  for _, name in ipairs({'smtp', 'bulk'}) do
    local reason = redis.call('HGET', P .. 'gate:' .. name, 'reason')
    if reason then return 'kept back: ' .. reason end
  end
  local gap, rule = select(2, next_slot('bulk', per_second))
  if per_day > 0 and left_today('bulk', per_day) < 1 then return 'SMTP_MAX_PER_DAY' end
  local pace = redis.call('HMGET', P .. 'pace:bulk', 'limit', 'reason')
  if pace[1] then
    return string.format('slowed to %.3g mails per second: %s', tonumber(pace[1]), pace[2])
  end
  if redis.call('ZCOUNT', P .. 'nodes:bulk', now - 30000, '+inf') == 0 then
    return 'no worker node serves the lane bulk; run ./start_celery.sh'
  end
  if gap > 0 and speed > 0.8 * 1000 / gap then return rule end
  if connections > 0 and room_for_connection('bulk', connections) < 1 then return 'SMTP_MAX_CONNECTIONS' end
  return 'the speed of the SMTP server and of the workers'
end

return {now, tostring(speed), why()}

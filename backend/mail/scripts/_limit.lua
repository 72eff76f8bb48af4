-- A sliding hour per kind and mailbox. Returns nil and counts `id`, or the seconds until the next one may come.
local function over_limit(kind, mailbox, limit, id)
  local key = P .. 'limit:' .. kind .. ':' .. mailbox
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now - 3600000)
  if redis.call('ZSCORE', key, id) then return nil end
  if redis.call('ZCARD', key) >= limit then
    local oldest = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
    return math.max(1, math.ceil((tonumber(oldest[2]) + 3600000 - now) / 1000))
  end
  redis.call('ZADD', key, now, id)
  redis.call('PEXPIRE', key, 3600000)
  return nil
end

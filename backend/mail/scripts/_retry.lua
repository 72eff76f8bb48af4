-- Sends a dead letter again, by hand. Returns 'ok' or what stands in the way.
local function retry_email(id, token, at)
  local record = load(id, 'settled', 'has_secret', 'secret', 'doubt')
  if not record.state then return 'unknown' end
  if record.settled == token then return 'ok' end
  if record.state ~= 'failed' and record.state ~= 'held' then return 'state', record.state end
  if record.expires and tonumber(record.expires) <= now then return 'expired' end
  if record.has_secret and not record.secret then return 'erased' end
  if record.batch and redis.call('HGET', batch_key(record.batch), 'state') == 'cancelled' then return 'cancelled' end
  -- Of one that is held, or was, the server may have taken the first copy.
  local copy = record.state == 'held' or record.doubt
  if copy then note_copy(id, record) end
  redis.call('ZREM', P .. 'secrets', id)
  redis.call('HSET', email_key(id), 'settled', token, 'attempts', 0, 'deaths', 0)
  redis.call('HDEL', email_key(id), 'error', 'code', 'reply')
  set_state(id, record, 'queued')
  log(id, {state = 'queued', note = copy and 'possible duplicate: sent again by hand' or 'sent again by hand'})
  if record.rivals then redis.call('SADD', record.rivals, id) end
  if record.expires then redis.call('ZADD', P .. 'ends', record.expires, id) end
  look_again(id, record, at)
  return 'ok'
end

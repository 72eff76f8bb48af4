-- How an attempt ended, written down: shared by single mails and by the chunks of a batch.

local function close(name, token, reason, cap)
  local key = P .. 'gate:' .. name
  local state = redis.call('HMGET', key, 'step', 'probe')
  -- Twenty threads find the same fault at once; only the first one and later probes count.
  if state[1] and state[2] ~= token then return end
  local step = tonumber(state[1] or '0')
  redis.call('HSET', key, 'step', step + 1, 'next', now + math.min(cap, 1000 * 2 ^ step), 'reason', reason)
  redis.call('HSETNX', key, 'since', now)
  redis.call('HDEL', key, 'probe', 'probe_key')
  if not state[1] then tell('warning', 'gate.closed', {gate = name, reason = reason}) end
end

local function open_gate(name)
  if redis.call('DEL', P .. 'gate:' .. name) == 1 then tell('info', 'gate.opened', {gate = name}) end
end

-- Halves the pace that the lane had.
local function slow(lane, reason)
  local key = P .. 'pace:' .. lane
  local state = redis.call('HMGET', key, 'limit', 'slowed')
  if state[2] and now - tonumber(state[2]) < 1000 then return end
  local speed = math.max(8, meter(P .. 'meter:' .. lane, 0))
  local limit = math.max(1 / 60, tonumber(state[1] or speed) / 2)
  redis.call('HSET', key, 'limit', limit, 'slot', now + 1000 / limit, 'slowed', now, 'grown', now, 'reason', reason)
  redis.call('HSETNX', key, 'since', now)
  redis.call('HSETNX', key, 'full', speed)
  tell('warning', 'lane.slowed', {lane = lane, per_second = math.floor(limit * 100) / 100, reason = reason})
end

-- A tenth more with each second in which mail was taken, until the lane is as fast as it was.
local function recover(lane)
  local key = P .. 'pace:' .. lane
  local state = redis.call('HMGET', key, 'limit', 'grown', 'full')
  if not state[1] then return end
  local limit = tonumber(state[1]) * 1.1 ^ (math.min(5000, now - tonumber(state[2])) / 1000)
  if limit >= math.max(20, tonumber(state[3])) then
    redis.call('DEL', key)
    tell('info', 'lane.recovered', {lane = lane})
  else
    redis.call('HSET', key, 'limit', limit, 'grown', now)
  end
end

-- The last verdicts on different recipients. Returns true when most of twenty are refusals: then it is not the
-- recipients, it is us (a blocked address or domain).
local function blocked(lane, person)
  local verdicts = P .. 'verdicts:' .. lane
  redis.call('LREM', verdicts, 0, 'refused ' .. person)
  redis.call('LPUSH', verdicts, 'refused ' .. person)
  redis.call('LTRIM', verdicts, 0, 19)
  local last, refusals = redis.call('LRANGE', verdicts, 0, -1), 0
  for _, entry in ipairs(last) do if entry ~= 'taken' then refusals = refusals + 1 end end
  return #last == 20 and refusals > 10
end

-- The server has taken `n` mails.
local function taken(lane, n)
  open_gate('smtp')
  open_gate(lane)
  recover(lane)
  meter(P .. 'meter:' .. lane, n)
  local verdicts = P .. 'verdicts:' .. lane
  -- Counting begins with a refusal, so that the common case costs nothing.
  for _ = 1, math.min(n, 20) do
    if redis.call('LPUSHX', verdicts, 'taken') == 0 then return end
  end
  redis.call('LTRIM', verdicts, 0, 19)
end

local function settle_email(id, token, outcome, args)
  local record = load(id, 'token', 'settled', 'superseded_by', 'attempts', 'person', 'error', 'worker', 'deaths')
  if not record.state then return {'unknown', now} end
  -- The same call again, because its first answer was lost.
  if record.settled == token then return {record.state, now} end

  local mine = record.state == 'sending' and record.token == token
  if not mine and outcome ~= 'sent' then return {'stale', now} end
  local lane = record.lane

  redis.call('HSET', email_key(id), 'settled', token)
  if args.code then redis.call('HSET', email_key(id), 'code', args.code) end
  if args.reply then redis.call('HSET', email_key(id), 'reply', args.reply) end
  local entry = {worker = record.worker, code = args.code, reply = args.reply, error = args.error, note = args.note}

  local function put_back(at, next)
    if record.superseded_by then
      finish(id, record, 'cancelled', {error = 'superseded by a newer mail of the same kind', by = record.superseded_by})
      return
    end
    if record.batch and redis.call('HGET', batch_key(record.batch), 'state') == 'cancelled' then
      finish(id, record, 'cancelled', {error = 'its batch was cancelled'})
      return
    end
    redis.call('HDEL', email_key(id), 'token', 'lease', 'worker')
    redis.call('HSET', email_key(id), 'next', next)
    set_state(id, record, 'retrying')
    look_again(id, record, at)
    -- A day without a server must not fill the timeline with one sentence, nor with the probes that ended in it.
    if outcome ~= 'release' or record.error ~= args.error then
      entry.state, entry.next = 'retrying', next
      log(id, entry)
    else
      unlog(id)
    end
    redis.call('HSET', email_key(id), 'error', args.error)
  end

  if outcome == 'release' then
    if args.gate then close(args.gate, token, args.error, args.cap) end
    if args.slow then slow(lane, args.error) end
    give_back(1)
    local at = math.max(held_until(lane), now + 1000)
    -- Due at once, so that the sweep starts it as soon as the gate opens, whoever opens it.
    put_back(now, now)
    return {record.state, now, math.ceil((at - now) / 1000)}
  end

  -- From here on the server has spoken about this mail, so it is there and it takes ours; unless it was never asked.
  if not args.unasked then open_gate('smtp') end

  if outcome == 'sent' then
    taken(lane, 1)
    if record.batch then meter(P .. 'meter:' .. record.batch, 1) end
    if record.state == 'sent' then
      note_copy(id, record)
      entry.state, entry.note = 'sent', 'possible duplicate: the server has taken it more than once'
      log(id, entry)
      return {'sent', now}
    end
    if not mine then entry.note = 'recorded late, by a worker that had lost its lease' end
    finish(id, record, 'sent', entry)
    redis.call('HSET', email_key(id), 'sent', now, 'attempts', tonumber(record.attempts) + 1)
    redis.call('HDEL', email_key(id), 'error')
    return {'sent', now}
  end

  if outcome == 'failed' then
    local probing = redis.call('HGET', P .. 'gate:' .. lane, 'probe') == token
    if args.refused and (probing or blocked(lane, record.person)) then
      close(lane, token, 'most of the last 20 mails were refused; the last reply: ' .. (args.reply or ''), args.cap)
      redis.call('DEL', P .. 'verdicts:' .. lane)
      -- Later than its neighbours, so that the next probe is another mail.
      local at = now + args.cap
      put_back(at, at)
      return {record.state, now, math.ceil(args.cap / 1000)}
    end
    redis.call('HSET', email_key(id), 'attempts', tonumber(record.attempts) + 1)
    entry.cause = args.code and 'refused' or 'unfit'
    finish(id, record, 'failed', entry)
    return {'failed', now}
  end

  local attempts = tonumber(record.attempts) + 1
  redis.call('HSET', email_key(id), 'attempts', attempts)
  if args.unknown and holds(record) then
    entry.note = nil
    entry.error = args.error .. '; whether the server took it, nobody can tell'
    entry.cause = 'reply_lost'
    finish(id, record, 'held', entry)
    return {'held', now}
  end
  if args.unknown then note_copy(id, record) end
  if attempts >= args.attempts then
    entry.error = args.error .. ' (attempts used up)'
    entry.cause = 'attempts_used_up'
    finish(id, record, 'failed', entry)
    return {'failed', now}
  end
  put_back(now + args.delay, now + args.delay)
  return {record.state, now, math.ceil(args.delay / 1000)}
end

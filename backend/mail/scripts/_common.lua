-- Shared by every script of the outbox. The caller passes the key prefix as the first argument; keys are built
-- here, which Redis Cluster would not allow (the service refuses to start on one).
-- Redis TIME is the only clock: it does not differ between machines, and it does not stop with a frozen worker.
local P = ARGV[1]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local FINAL = {sent = true, failed = true, held = true, cancelled = true, expired = true, suppressed = true}
local KEEPS_SECRET = {failed = true, held = true}
local LOG_LIMIT = 20000

local function email_key(id) return P .. 'email:' .. id end
local function due_key(lane) return P .. 'due:' .. lane end

local function load(id, ...)
  local names = {...}
  local values = redis.call('HMGET', email_key(id), unpack(names))
  local record = {}
  for i, name in ipairs(names) do record[name] = values[i] or nil end
  return record
end

-- Appends one line to the timeline. A mail that retries for a day must not grow without bound: past the limit
-- the oldest half goes.
local function log(id, entry)
  entry.at = now
  local line = cjson.encode(entry)
  local old = redis.call('HGET', email_key(id), 'log')
  if old and #old > LOG_LIMIT then
    old = old:sub(old:find('\n', #old - LOG_LIMIT / 2, true) + 1)
  end
  redis.call('HSET', email_key(id), 'log', old and (old .. '\n' .. line) or line)
end

-- Takes the last line of the timeline back, if it says that sending began.
local function unlog(id)
  local lines = redis.call('HGET', email_key(id), 'log')
  local rest, last = lines:match('^(.*)\n([^\n]*)$')
  if rest and cjson.decode(last).state == 'sending' then redis.call('HSET', email_key(id), 'log', rest) end
end

-- `sent` has no index of its own: nearly every mail ends there, so reading `all` finds them as fast.
local function set_state(id, record, state)
  if record.state ~= state then
    if record.state and record.state ~= 'sent' then redis.call('ZREM', P .. 'state:' .. record.state, id) end
    if state ~= 'sent' then redis.call('ZADD', P .. 'state:' .. state, record.created, id) end
  end
  redis.call('HSET', email_key(id), 'state', state, 'updated', now)
  record.state = state
end

local function drop_secret(id)
  redis.call('HDEL', email_key(id), 'secret')
  redis.call('ZREM', P .. 'secrets', id)
end

-- Ends an email. Needs lane, created, state, expires, rivals in `record`.
local function finish(id, record, state, entry)
  redis.call('ZREM', due_key(record.lane), id)
  redis.call('ZREM', P .. 'ends', id)
  redis.call('HDEL', email_key(id), 'token', 'lease', 'worker', 'next')
  if record.rivals then redis.call('SREM', record.rivals, id) end
  if not KEEPS_SECRET[state] then
    drop_secret(id)
  elseif record.expires and redis.call('HEXISTS', email_key(id), 'secret') == 1 then
    redis.call('ZADD', P .. 'secrets', record.expires, id)
  end
  set_state(id, record, state)
  if entry.error then redis.call('HSET', email_key(id), 'error', entry.error) end
  entry.state = state
  log(id, entry)
end

local function look_again(id, record, at)
  redis.call('ZADD', due_key(record.lane), at, id)
end

-- Waiting mail whose time has run out ends here, also while no server takes mail: its secret must not outlive it.
local function end_expired()
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'ends', '-inf', now, 'LIMIT', 0, 200)) do
    local record = load(id, 'state', 'lane', 'created', 'expires', 'rivals')
    if not record.state then
      redis.call('ZREM', P .. 'ends', id)
    elseif record.state ~= 'sending' then
      finish(id, record, 'expired', {error = 'its time ran out before it could be sent'})
    end
  end
end

-- Gates: `smtp` for the whole account, and one per lane. A closed gate keeps mail back and lets one probe through
-- at a time; the probe is alive while its email holds the lease it was granted with.
local function gate(name)
  local values = redis.call('HMGET', P .. 'gate:' .. name, 'next', 'probe', 'probe_id')
  if not values[1] then return nil end
  local free_at = tonumber(values[1])
  if values[2] then
    local probe = redis.call('HMGET', email_key(values[3]), 'token', 'lease')
    if probe[1] == values[2] and tonumber(probe[2]) > now then free_at = math.max(free_at, tonumber(probe[2])) end
  end
  return {free_at = free_at, probe = values[2]}
end

-- When the next mail of this lane may go: 0 for at once, else a time in the future.
local function held_until(lane)
  local at = 0
  for _, name in ipairs({'smtp', lane}) do
    local closed = gate(name)
    if closed and closed.free_at > now then at = math.max(at, closed.free_at) end
  end
  local slot = redis.call('HGET', P .. 'pace:' .. lane, 'slot')
  if slot and tonumber(slot) > now then at = math.max(at, tonumber(slot)) end
  return at
end

-- Shared by every script of the outbox. The caller passes the key prefix as the first argument; keys are built
-- here, which Redis Cluster would not allow (the service refuses to start on one).
-- Redis TIME is the only clock: it does not differ between machines, and it does not stop with a frozen worker.
local P = ARGV[1]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local FINAL = {sent = true, failed = true, held = true, cancelled = true, expired = true, suppressed = true}
local KEEPS_SECRET = {failed = true, held = true}
local LOG_LIMIT = 20000

local BASE = {'state', 'kind', 'lane', 'created', 'expires', 'rivals', 'batch', 'pos'}

-- What a script brings about besides what it was asked for. Wire takes it off the reply and logs it.
local NEWS = {}
local function tell(level, event, facts)
  facts.level, facts.event = level, event
  NEWS[#NEWS + 1] = cjson.encode(facts)
end
local function with_news(reply)
  if #NEWS > 0 then reply[#reply + 1] = NEWS end
  return reply
end

local function email_key(id) return P .. 'email:' .. id end
local function batch_key(batch) return P .. 'batch:' .. batch end
-- Mail of a batch is due in an index of its own, so that a batch is paused by one step and none hides another.
local function due_key(record) return P .. 'due:' .. (record.batch or record.lane) end

local function load(id, ...)
  local names = {...}
  for _, name in ipairs(BASE) do names[#names + 1] = name end
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

-- Takes the last line of the timeline back, if it says that sending began and nothing else.
local function unlog(id)
  local lines = redis.call('HGET', email_key(id), 'log')
  local rest, last = lines:match('^(.*)\n([^\n]*)$')
  if not rest then return end
  local entry = cjson.decode(last)
  if entry.state == 'sending' and not entry.note then redis.call('HSET', email_key(id), 'log', rest) end
end

-- The state of each recipient of a batch is one letter in one string: small while the recipient has no record of its
-- own, capital as soon as it has.
local CHUNK = 100
local LETTERS = {queued = 'q', sending = 'i', retrying = 'r', sent = 's', failed = 'f', held = 'h', cancelled = 'c',
  expired = 'e', suppressed = 'u'}

local function states_key(batch) return P .. 'states:' .. batch end
local function chunk_key(batch, n) return P .. 'chunk:' .. batch .. ':' .. n end

-- Counts emails that go from one state to another; '-' is where they come from when they are accepted, and where they
-- go when their records are removed. The script that moves them counts them, so the counts are as exact as the states.
-- `cause`: why they failed or are held, a word of those in mail/measures.py.
local function count(kind, lane, from, to, n, cause)
  local move = kind .. ' ' .. lane .. ' ' .. from .. ' ' .. to
  redis.call('HINCRBY', P .. 'counts', cause and move .. ' ' .. cause or move, n)
end

-- Notes that a second copy of an email is possible, and counts it the first time.
local function note_copy(id, record)
  if redis.call('HSET', email_key(id), 'duplicate', 1) == 1 then
    redis.call('HINCRBY', P .. 'counts', record.kind .. ' ' .. record.lane .. ' duplicate', 1)
  end
end

local function mark(batch, pos, letter)
  redis.call('SETRANGE', states_key(batch), pos, letter)
end

-- Whether the lane may look at this batch.
local function is_running(batch)
  local state = redis.call('HGET', batch_key(batch), 'state')
  return state == 'queued' or state == 'sending' or state == 'cancelled'
end

local function call_batch(batch, at)
  if is_running(batch) then redis.call('ZADD', P .. 'due:bulk', 'LT', at, batch) end
end

local function tell_end_of(batch)
  local shared = redis.call('HMGET', batch_key(batch), 'kind', 'state', 'total', 'request_id')
  local facts = {batch = batch, kind = shared[1], state = shared[2], total = tonumber(shared[3]),
    request_id = shared[4] or nil}
  for state in pairs(LETTERS) do
    local n = tonumber(redis.call('HGET', batch_key(batch), 'n:' .. state) or '0')
    if n > 0 then facts[state] = n end
  end
  tell('info', 'batch.finished', facts)
end

-- Counts recipients of a batch that change their state; the batch has finished when none is left to do.
local function move(batch, from, to, n, cause)
  local key = batch_key(batch)
  local shared = redis.call('HMGET', key, 'state', 'kind')
  local state = shared[1]
  count(shared[2], 'bulk', from, to, n, cause)
  redis.call('HINCRBY', key, 'n:' .. from, -n)
  redis.call('HINCRBY', key, 'n:' .. to, n)
  redis.call('HINCRBY', key, 'version', 1)
  local change = (FINAL[from] and n or 0) - (FINAL[to] and n or 0)
  if change == 0 then return end
  local open = redis.call('HINCRBY', key, 'open', change)
  if open == 0 then
    if state ~= 'cancelled' then redis.call('HSET', key, 'state', 'finished') end
    redis.call('HSET', key, 'finished', now)
    redis.call('ZREM', P .. 'batches:live', batch)
    tell_end_of(batch)
  elseif state == 'finished' then
    redis.call('HSET', key, 'state', 'sending')
    redis.call('HDEL', key, 'finished')
    redis.call('ZADD', P .. 'batches:live', now, batch)
  end
end

-- `sent` has no index of its own: nearly every mail ends there, so reading `all` finds them as fast.
local function set_state(id, record, state, cause)
  if record.state ~= state then
    if record.state and record.state ~= 'sent' then redis.call('ZREM', P .. 'state:' .. record.state, id) end
    if state ~= 'sent' then redis.call('ZADD', P .. 'state:' .. state, record.created, id) end
    if record.batch and record.state then
      mark(record.batch, record.pos, LETTERS[state]:upper())
      move(record.batch, record.state, state, 1, cause)
    else
      count(record.kind, record.lane, record.state or '-', state, 1, cause)
    end
  end
  redis.call('HSET', email_key(id), 'state', state, 'updated', now)
  record.state = state
end

local function drop_secret(id)
  redis.call('HDEL', email_key(id), 'secret')
  redis.call('ZREM', P .. 'secrets', id)
end

-- Ends an email. `entry.cause`: see count.
local function finish(id, record, state, entry)
  redis.call('ZREM', due_key(record), id)
  redis.call('ZREM', P .. 'ends', id)
  redis.call('HDEL', email_key(id), 'token', 'lease', 'worker', 'next')
  if record.rivals then redis.call('SREM', record.rivals, id) end
  if not KEEPS_SECRET[state] then
    drop_secret(id)
  elseif record.expires and redis.call('HEXISTS', email_key(id), 'secret') == 1 then
    redis.call('ZADD', P .. 'secrets', record.expires, id)
  end
  set_state(id, record, state, entry.cause)
  entry.cause = nil
  if entry.error then redis.call('HSET', email_key(id), 'error', entry.error) end
  entry.state = state
  log(id, entry)
end

-- Ends an email by what happened elsewhere, not by an attempt to send it, which its worker tells of.
local function end_unsent(id, record, state, entry)
  finish(id, record, state, entry)
  tell((state == 'failed' or state == 'held') and 'error' or 'info', 'email.' .. state, {email_id = id,
    kind = record.kind, lane = record.lane, error = entry.error, by = entry.by,
    request_id = redis.call('HGET', email_key(id), 'request_id') or nil})
end

local function look_again(id, record, at)
  redis.call('ZADD', due_key(record), at, id)
  if record.batch then call_batch(record.batch, at) end
end

-- Waiting mail whose time has run out ends here, also while no server takes mail: its secret must not outlive it.
local function end_expired()
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'ends', '-inf', now, 'LIMIT', 0, 200)) do
    local record = load(id)
    if not record.state then
      redis.call('ZREM', P .. 'ends', id)
    elseif record.state ~= 'sending' then
      end_unsent(id, record, 'expired', {error = 'its time ran out before it could be sent'})
    end
  end
end

-- Recipients of a batch: compact in their chunk until something happens to them that takes a record of their own.

local NAMES = {}
for state, letter in pairs(LETTERS) do NAMES[letter] = state end

local function email_id(batch, pos) return batch .. '-' .. pos end

-- The batch and the position that an email id names, or nothing.
local function address_of(id)
  local batch, pos = id:match('^(batch%-%x+)%-(%d+)$')
  return batch, tonumber(pos)
end

local function letter_at(batch, pos)
  return redis.call('GETRANGE', states_key(batch), pos, pos)
end

-- Gives a recipient its own record, in the state it has. `contents` keeps chunks that were read before.
local function promote(batch, pos, contents, worker, token)
  local n = math.floor(pos / CHUNK)
  if not contents[n] then contents[n] = cjson.decode(redis.call('HGET', chunk_key(batch, n), 'content')) end
  local recipient = contents[n][pos % CHUNK + 1]
  local shared = redis.call('HMGET', batch_key(batch), 'kind', 'created', 'expires', 'request_id')
  local id, letter = email_id(batch, pos), letter_at(batch, pos)
  redis.call('HSET', email_key(id), 'kind', shared[1], 'lane', 'bulk', 'to', recipient[1],
    'person', recipient[1]:lower(), 'payload', cjson.encode(recipient), 'created', shared[2], 'batch', batch,
    'pos', pos, 'state', NAMES[letter], 'updated', now, 'attempts', 0)
  if shared[4] then redis.call('HSET', email_key(id), 'request_id', shared[4]) end
  if shared[3] then
    redis.call('HSET', email_key(id), 'expires', shared[3])
    redis.call('ZADD', P .. 'ends', shared[3], id)
  end
  if token then redis.call('HSET', email_key(id), 'token', token, 'worker', worker, 'lease', now) end
  redis.call('ZADD', P .. 'state:' .. NAMES[letter], shared[2], id)
  mark(batch, pos, letter:upper())
  log(id, {state = NAMES[letter], worker = worker, attempt = token and 1 or nil})
  return id
end

-- Whether a mail of this record must not go a second time when nobody can tell whether the first one arrived.
local function holds(record)
  return record.batch and redis.call('HGET', batch_key(record.batch), 'on_unknown') == 'hold'
end

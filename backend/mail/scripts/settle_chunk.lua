#!lua flags=allow-oom
-- Writes down how the mails of one claim of a chunk ended: `results` is a list of {position, outcome, arguments}.
-- What was sent stays compact; everything else becomes a record of its own and goes the way of single mails.
local _, batch, n, token, worker, results, leave = unpack(ARGV)
local key, contents, sent, freed = chunk_key(batch, n), {}, 0, {}
if redis.call('EXISTS', key) == 0 then return {'unknown', now} end
-- Else what is being sent is in the hands of another worker, and the only news about it would be that it was sent.
local mine = redis.call('HGET', key, 'token') == token

results = cjson.decode(results)
local from, reply = {}, {'ok', now}
local function report(pos, settled)
  reply[#reply + 1], reply[#reply + 2], reply[#reply + 3] = pos, settled[1], settled[3] or 0
end
for _, result in ipairs(results) do
  local pos, args = result[1], result[3]
  local letter = letter_at(batch, pos)
  if result[2] == 'sent' and letter ~= 's' and letter == letter:lower() then
    redis.call('HSET', key, pos, cjson.encode({now, worker, args.code, args.reply}))
    mark(batch, pos, 's')
    from[NAMES[letter]] = (from[NAMES[letter]] or 0) + 1
    sent = sent + 1
  end
end
for state, count in pairs(from) do move(batch, state, 'sent', count) end
if sent > 0 then
  -- Before the failures, which came after: a gate that they close stays closed.
  taken('bulk', sent)
  meter(P .. 'meter:' .. batch, sent)
end

for _, result in ipairs(results) do
  local pos, outcome, args = result[1], result[2], result[3]
  local letter = letter_at(batch, pos)
  if letter ~= letter:lower() then
    report(pos, settle_email(email_id(batch, pos), token, outcome, args))
  elseif mine and letter == 'i' and outcome == 'release' then
    if args.gate then close(args.gate, token, args.error, args.cap) end
    if args.slow then slow('bulk', args.error) end
    freed[#freed + 1] = pos
  elseif mine and letter == 'i' then
    report(pos, settle_email(promote(batch, pos, contents, worker, token), token, outcome, args))
  end
end
if #freed > 0 then
  give_back(#freed)
  local cancelled = redis.call('HGET', batch_key(batch), 'state') == 'cancelled'
  for _, pos in ipairs(freed) do mark(batch, pos, cancelled and 'c' or 'q') end
  move(batch, 'sending', cancelled and 'cancelled' or 'queued', #freed)
end
if mine then
  redis.call('HDEL', key, 'token', 'lease', 'worker', 'at')
  if #freed > 0 or leave == '1' then
    redis.call('ZADD', P .. 'due:' .. batch, now, n)
    call_batch(batch, now)
  end
end
return reply

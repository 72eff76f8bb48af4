#!lua flags=allow-oom
-- Does one thing to the recipients between two positions, as far as they are in a state for it; one slice of a walk
-- through a batch. Answers with the position to go on from, or -1 at the end.
--   cancel, expire   what waits ends
--   retry, release   failed or held mail is sent again
--   drop             held mail becomes failed
local _, batch, verb, from, token, most = unpack(ARGV)
from, most = tonumber(from), tonumber(most)
local key = batch_key(batch)
local shared = redis.call('HMGET', key, 'state', 'total')
if not shared[1] then return {now, -1} end
local total = tonumber(shared[2])
local last = math.min(total, from + 50000) - 1
local letters = redis.call('GETRANGE', states_key(batch), from, last)

local ends = {cancel = 'cancelled', expire = 'expired'}
local wanted = ({cancel = '[qQR]', expire = '[qQR]', retry = 'F', release = 'H', drop = 'H'})[verb]
local reasons = {cancel = 'its batch was cancelled', expire = 'its time ran out before it could be sent',
  drop = 'dropped by hand: whether the server took it, nobody can tell'}
local compact, at, done = 0, 1, 0
while done < most and compact < 10 * most do
  at = letters:find(wanted, at)
  if not at then break end
  local pos, letter = from + at - 1, letters:sub(at, at)
  local id = email_id(batch, pos)
  if letter == 'q' then
    mark(batch, pos, LETTERS[ends[verb]])
    compact = compact + 1
  else
    -- Reading and writing a record costs much more than a letter.
    done = done + 1
    if verb == 'retry' or verb == 'release' then
      retry_email(id, token, now)
    else
      if verb == 'drop' then redis.call('HSET', email_key(id), 'doubt', 1) end
      finish(id, load(id), ends[verb] or 'failed', {error = reasons[verb], cause = verb == 'drop' and 'dropped' or nil})
    end
  end
  at = at + 1
end
if compact > 0 then move(batch, 'queued', ends[verb], compact) end
if at then return {now, from + at - 1} end
return {now, last + 1 < total and last + 1 or -1}

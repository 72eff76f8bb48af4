#!lua flags=allow-oom
-- Stops one email that has not been sent, a recipient of a batch too.
local _, id, token, reason = unpack(ARGV)
local record = load(id)
local batch, pos = address_of(id)
local of_batch = batch and redis.call('HGET', batch_key(batch), 'state')
if of_batch and of_batch ~= 'accepting' and of_batch ~= 'erasing' and not record.state and letter_at(batch, pos) == 'q' then
  record = load(promote(batch, pos, {}))
end
if not record.state then return {'unknown', now} end
if record.state == 'cancelled' then return {'ok', now} end
if record.state == 'sending' or (FINAL[record.state] and record.state ~= 'held') then return {'state', now, record.state} end
finish(id, record, 'cancelled', {error = reason})
return {'ok', now}

#!lua flags=allow-oom
-- Gives a dead letter up, by hand.
local _, id, token, reason = unpack(ARGV)
local record = load(id)
if not record.state then return {'unknown', now} end
if record.state == 'cancelled' then return {'ok', now} end
if record.state ~= 'failed' and record.state ~= 'held' then return {'state', now, record.state} end
finish(id, record, 'cancelled', {error = reason})
return {'ok', now}

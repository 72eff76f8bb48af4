#!lua flags=allow-oom
local _, id, token, reason = unpack(ARGV)
local record = load(id, 'state', 'lane', 'created', 'expires', 'rivals')
if not record.state then return {'unknown', now} end
if record.state == 'cancelled' then return {'ok', now} end
if record.state == 'sending' or (FINAL[record.state] and record.state ~= 'held') then return {'state', now, record.state} end
finish(id, record, 'cancelled', {error = reason})
return {'ok', now}

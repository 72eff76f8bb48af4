#!lua
-- Counts a mail that is sent in the request, past the outbox, against the same hourly limit.
local _, id, deadline, kind, mailbox, limit = unpack(ARGV)
if now > tonumber(deadline) then return {'late', now} end
local wait = over_limit(kind, mailbox, tonumber(limit), id)
if wait then return {'limited', now, wait} end
return {'admitted', now}

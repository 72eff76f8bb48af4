#!lua flags=allow-oom
-- Sends a dead letter again, by hand.
local _, id, token = unpack(ARGV)
local answer, state = retry_email(id, token, now)
return {answer, now, state}

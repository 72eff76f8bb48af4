#!lua flags=allow-oom
-- Sends a dead letter again, by hand.
local _, id, token, first_look = unpack(ARGV)
local answer, state = retry_email(id, token, now + tonumber(first_look))
return {answer, now, state}

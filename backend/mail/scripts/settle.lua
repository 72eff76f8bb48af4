#!lua flags=allow-oom
-- Writes down how an attempt ended.
--   sent     the server's 250; recorded even under a token that is no longer valid, because it is a fact
--   failed   refused for good
--   retry    this mail's own fault or bad luck: uses up an attempt
--   release  the server's fault: uses up none; closes a gate or slows the lane
local _, id, token, outcome, arguments = unpack(ARGV)
return settle_email(id, token, outcome, cjson.decode(arguments))

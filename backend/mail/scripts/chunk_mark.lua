#!lua flags=allow-oom
-- Says which mail of a claim begins now, and that the one before was sent: a crash leaves in doubt only what was in
-- SMTP.
-- Answers 0 when the claim is no longer this worker's.
local _, batch, n, token, pos, worker, before, code, reply = unpack(ARGV)
local key = chunk_key(batch, n)
if redis.call('HGET', key, 'token') ~= token then return {now, 0} end
redis.call('HSET', key, 'at', pos)
if before ~= '' then redis.call('HSET', key, before, cjson.encode({now, worker, tonumber(code), reply})) end
return {now, 1}

#!lua flags=allow-oom
-- Gives permits for connections back.
for i = 2, #ARGV do redis.call('ZREM', P .. 'connections', ARGV[i]) end
return {now}

#!lua
-- Asks for Redis's time.
return {now}

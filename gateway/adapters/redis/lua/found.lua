-- A generation is founded, unless there is a later one at this server; nobody is admitted to a budget before it opens.
--
-- Payload: {number, run of the server}. Answer: the number that is in force.

local found = redis.call('HMGET', KEYS[1], 'number', 'run')
local current = tonumber(found[1]) or 0
if current >= payload[1] and found[2] == payload[2] then
  return cmsgpack.pack({current})
end
redis.call('HSET', KEYS[1], 'number', payload[1], 'run', payload[2], 'founded', now, 'latest', now, 'open', 0)
return cmsgpack.pack({payload[1]})

-- A worker enters the generation in force; it is a member once it has told all that it knows (finish.lua). A
-- generation of another server, or older than one that was heard of, is void: then the answer is {0, its number}.
--
-- Payload: {run of the server, least number, session}. Answer: {number, when it was founded, 1 if it is open}.


local found = redis.call('HMGET', KEYS[1], 'number', 'run', 'founded', 'open')
local current = tonumber(found[1]) or 0
if current == 0 or found[2] ~= payload[1] or current < payload[2] then
  return cmsgpack.pack({0, current})
end
redis.call('SET', base .. found[1] .. ':worker:' .. worker, payload[3] .. ':0', 'PX', WORKER_KEPT_MS)
return cmsgpack.pack({current, tonumber(found[3]), tonumber(found[4])})

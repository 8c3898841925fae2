-- A generation opens when every worker that lives has told what it knows, or when it has been waited for long enough.
--
-- Payload: {how long to wait, workers that live}; no list where nobody knows. Answer: {0, 1 if it is open}.

if not is_member then
  return REFUSED
end

if generation[2] == '1' then
  return cmsgpack.pack({0, 1})
end
local founded = tonumber(redis.call('HGET', KEYS[1], 'founded'))
local is_complete = payload[2] and true or false
for _, other in ipairs(payload[2] or {}) do
  local entry = redis.call('GET', prefix .. 'worker:' .. other)
  if not entry or string.sub(entry, -2) ~= ':1' then
    is_complete = false
  end
end
if not is_complete and now - founded < payload[1] then
  return cmsgpack.pack({0, 0})
end
redis.call('HSET', KEYS[1], 'open', 1)
return cmsgpack.pack({0, 1})

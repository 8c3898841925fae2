-- A worker has told all that it knows and is a member from now on. Of its holds only these are left; what it took and
-- does not know of is free again.
--
-- Payload: {session, holds}.


if not is_member then
  return REFUSED
end

local is_open = {}
for _, hold_id in ipairs(payload[2]) do
  is_open[hold_id] = true
end
for _, hold_id in ipairs(redis.call('HKEYS', holds_key(worker))) do
  if not is_open[hold_id] then
    end_hold(worker, hold_id, hold_of(worker, hold_id))
  end
end
save()
redis.call('SET', KEYS[2], payload[1] .. ':1', 'PX', WORKER_KEPT_MS)
return cmsgpack.pack({0})

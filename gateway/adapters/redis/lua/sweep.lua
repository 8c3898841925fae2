-- Releases holds whose lease is over, whoever took them, at most so many at once; the caller is alive. Answers their
-- identities.


if not is_member then
  return REFUSED
end

redis.call('PEXPIRE', KEYS[2], WORKER_KEPT_MS)
local swept = {}
for _, member in ipairs(redis.call('ZRANGE', prefix .. 'leases', '-inf', now, 'BYSCORE', 'LIMIT', 0, payload)) do
  local owner, hold_id = string.match(member, '^([^/]*)/(.*)$')
  local hold = hold_of(owner, hold_id)
  if hold then
    end_hold(owner, hold_id, hold)
    swept[#swept + 1] = hold_id
  else
    redis.call('ZREM', prefix .. 'leases', member)
  end
end
save()
return cmsgpack.pack({0, swept})

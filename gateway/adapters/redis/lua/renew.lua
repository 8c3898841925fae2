-- These holds are still under way. Answers those of which nothing is known.

if not is_member then
  return REFUSED
end

local missing = {}
for _, hold_id in ipairs(payload) do
  local member = lease(worker, hold_id)
  if redis.call('ZSCORE', prefix .. 'leases', member) then
    redis.call('ZADD', prefix .. 'leases', now + LEASE_MS, member)
  else
    missing[#missing + 1] = hold_id
  end
end
return cmsgpack.pack({0, missing})

-- These holds are still under way. Answers those of which nothing is known.

if not is_member then
  return REFUSED
end

local missing = {}
for _, hold_id in ipairs(payload) do
  if redis.call('ZSCORE', prefix .. 'leases', lease(worker, hold_id)) then
    renew_lease(hold_id)
  else
    missing[#missing + 1] = hold_id
  end
end
return cmsgpack.pack({0, missing})

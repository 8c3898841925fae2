-- Sliding minutes, as core/limits.py has them: one hash for each scope, its fields `r` and `t` with a second for the
-- requests and tokens taken in it, `u` and `v` with a second for the last moments of both, `r` and `t` alone for their
-- sums. Before `due` nothing of the oldest second is given back.

local MINUTE_MS = 60000
local MINUTE_KEPT_MS = 120000
local LAST = {r = 'u', t = 'v'}
local second = math.floor(now / 1000)
local minutes = {}

local function minute_key(scope)
  return prefix .. 'minute:' .. scope
end

-- The values of these kinds from one second to another, and the fields that they are in.
local function slots(minute, kinds, from, to)
  local fields = {}
  for slot = from, to do
    for _, kind in ipairs(kinds) do
      fields[#fields + 1] = kind .. slot
    end
  end
  return redis.call('HMGET', minute.key, unpack(fields)), fields
end

-- Gives back what of the second that is a minute ago is a minute old.
local function advance_within(minute, slot)
  local found = redis.call('HMGET', minute.key, 'r' .. slot, 'u' .. slot, 't' .. slot, 'v' .. slot)
  for place, kind in ipairs({'r', 't'}) do
    local amount, last = tonumber(found[2 * place - 1]), tonumber(found[2 * place])
    if amount and last + MINUTE_MS <= now then
      minute[kind] = minute[kind] - amount
      redis.call('HDEL', minute.key, kind .. slot, LAST[kind] .. slot)
    elseif amount then
      minute.due = math.min(minute.due, last + MINUTE_MS)
    end
  end
end

local function advance(minute)
  local ago = second - 60
  minute.due = math.huge
  if minute.latest < ago then
    redis.call('DEL', minute.key)
    minute.r, minute.t, minute.oldest = 0, 0, second
  elseif minute.oldest <= ago then
    if minute.oldest < ago then
      local values = slots(minute, {'r', 't'}, minute.oldest, ago - 1)
      for place = 1, #values, 2 do
        minute.r = minute.r - (tonumber(values[place]) or 0)
        minute.t = minute.t - (tonumber(values[place + 1]) or 0)
      end
      local _, fields = slots(minute, {'r', 't', 'u', 'v'}, minute.oldest, ago - 1)
      redis.call('HDEL', minute.key, unpack(fields))
    end
    minute.oldest = ago
    advance_within(minute, ago)
    minute.is_changed = true
  end
  minute.latest = math.max(minute.latest, second)
end

local function minute_of(scope)
  local minute = minutes[scope]
  if minute then
    return minute
  end
  local key = minute_key(scope)
  local found = redis.call('HMGET', key, 'latest', 'oldest', 'r', 't', 'due')
  minute = {
    key = key,
    stored = tonumber(found[1]),
    latest = tonumber(found[1]) or second,
    oldest = tonumber(found[2]) or second,
    r = tonumber(found[3]) or 0,
    t = tonumber(found[4]) or 0,
    due = tonumber(found[5]) or math.huge,
  }
  if second > minute.latest or now >= minute.due then
    advance(minute)
  end
  minutes[scope] = minute
  return minute
end

-- Counts in a second that is not older than the minute; this one, unless a hold is brought back: nobody knows when in
-- its second that was, and so it counts to its end.
local function count_in(minute, slot, requests, tokens)
  local last = slot == second and now or slot * 1000 + 999
  if requests then
    minute.r = minute.r + requests
    redis.call('HINCRBY', minute.key, 'r' .. slot, requests)
    redis.call('HSET', minute.key, 'u' .. slot, last)
  end
  if tokens then
    minute.t = minute.t + tokens
    redis.call('HINCRBY', minute.key, 't' .. slot, tokens)
    redis.call('HSET', minute.key, 'v' .. slot, last)
  end
  minute.oldest = math.min(minute.oldest, slot)
  if slot <= second - 60 then
    minute.due = math.min(minute.due, last + MINUTE_MS)
  end
  minute.is_changed = true
end

-- Tokens that were counted in a second were really so many more, or less; too late when the second is over.
local function correct(scope, slot, difference)
  local minute, field = minute_of(scope), 't' .. slot
  local before = tonumber(redis.call('HGET', minute.key, field))
  if before then
    difference = math.max(difference, -before)
    redis.call('HINCRBY', minute.key, field, difference)
    minute.t = minute.t + difference
    minute.is_changed = true
  end
end

local function save_minutes()
  for _, minute in pairs(minutes) do
    if minute.is_changed then
      redis.call('HSET', minute.key, 'latest', minute.latest, 'oldest', minute.oldest, 'r', minute.r, 't', minute.t,
        'due', minute.due == math.huge and '' or minute.due)
      if minute.stored ~= minute.latest then
        redis.call('PEXPIRE', minute.key, MINUTE_KEPT_MS)
      end
    end
  end
end

local function back_in(minute, kind, slot)
  return tonumber(redis.call('HGET', minute.key, LAST[kind] .. slot)) + MINUTE_MS - now
end

-- How long until `needed` fits under `limit` if nobody takes more; the whole minute for what never fits.
local function wait_ms(minute, kind, needed, limit)
  local excess = minute[kind] + needed - limit
  local values = slots(minute, {kind}, minute.oldest, minute.latest)
  for place, value in ipairs(values) do
    excess = excess - (tonumber(value) or 0)
    if value and excess <= 0 then
      return math.max(1, back_in(minute, kind, minute.oldest + place - 1))
    end
  end
  return MINUTE_MS
end

-- How long until all of it has been given back.
local function reset_ms(minute, kind)
  local newest = tonumber(redis.call('HGET', minute.key, kind .. minute.latest)) or 0
  if newest > 0 then
    return math.max(0, back_in(minute, kind, minute.latest))
  end
  local values = slots(minute, {kind}, minute.oldest, minute.latest)
  for place = #values, 1, -1 do
    if (tonumber(values[place]) or 0) > 0 then
      return math.max(0, back_in(minute, kind, minute.oldest + place - 1))
    end
  end
  return 0
end

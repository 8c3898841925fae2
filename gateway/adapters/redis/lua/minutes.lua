-- Sliding minutes in whole seconds, as core/limits.py has them: one hash for each scope, its fields `r` and `t` with a
-- second for requests and tokens taken in it, `r` and `t` alone for their sums.

local MINUTE_SLOTS = 61
local MINUTE_KEPT_MS = 120000
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

local function advance(minute)
  if second >= minute.latest + MINUTE_SLOTS then
    redis.call('DEL', minute.key)
    minute.r, minute.t, minute.oldest = 0, 0, second
  elseif second >= minute.oldest + MINUTE_SLOTS then
    local values, fields = slots(minute, {'r', 't'}, minute.oldest, second - MINUTE_SLOTS)
    for place = 1, #values, 2 do
      minute.r = minute.r - (tonumber(values[place]) or 0)
      minute.t = minute.t - (tonumber(values[place + 1]) or 0)
    end
    minute.oldest = second - MINUTE_SLOTS + 1
    redis.call('HDEL', minute.key, unpack(fields))
    redis.call('HSET', minute.key, 'r', minute.r, 't', minute.t, 'oldest', minute.oldest)
  end
  minute.latest = second
end

local function minute_of(scope)
  local minute = minutes[scope]
  if minute then
    return minute
  end
  local key = minute_key(scope)
  local found = redis.call('HMGET', key, 'latest', 'oldest', 'r', 't')
  minute = {
    key = key,
    stored = tonumber(found[1]),
    latest = tonumber(found[1]) or second,
    oldest = tonumber(found[2]) or second,
    r = tonumber(found[3]) or 0,
    t = tonumber(found[4]) or 0,
  }
  if second > minute.latest then
    advance(minute)
  end
  minutes[scope] = minute
  return minute
end

-- Counts in a second that is not older than the minute; the latest one, unless a hold is brought back.
local function count_in(minute, slot, requests, tokens)
  if requests then
    minute.r = minute.r + requests
    redis.call('HINCRBY', minute.key, 'r' .. slot, requests)
  end
  if tokens then
    minute.t = minute.t + tokens
    redis.call('HINCRBY', minute.key, 't' .. slot, tokens)
  end
  minute.oldest = math.min(minute.oldest, slot)
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
      redis.call('HSET', minute.key,
        'latest', minute.latest, 'oldest', minute.oldest, 'r', minute.r, 't', minute.t)
      if minute.stored ~= minute.latest then
        redis.call('PEXPIRE', minute.key, MINUTE_KEPT_MS)
      end
    end
  end
end

-- How long until `needed` fits under `limit` if nobody takes more; the whole minute for what never fits.
local function wait_ms(minute, kind, needed, limit)
  local excess = minute[kind] + needed - limit
  local values = slots(minute, {kind}, minute.oldest, minute.latest)
  for place, value in ipairs(values) do
    excess = excess - (tonumber(value) or 0)
    if excess <= 0 then
      return math.max(1, (minute.oldest + place - 1 + MINUTE_SLOTS) * 1000 - now)
    end
  end
  return MINUTE_SLOTS * 1000
end

-- How long until all of it has been given back.
local function reset_ms(minute, kind)
  local newest = tonumber(redis.call('HGET', minute.key, kind .. minute.latest)) or 0
  if newest > 0 then
    return math.max(0, (minute.latest + MINUTE_SLOTS) * 1000 - now)
  end
  local values = slots(minute, {kind}, minute.oldest, minute.latest)
  for place = #values, 1, -1 do
    if (tonumber(values[place]) or 0) > 0 then
      return math.max(0, (minute.oldest + place - 1 + MINUTE_SLOTS) * 1000 - now)
    end
  end
  return 0
end

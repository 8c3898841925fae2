-- What every script begins with: who calls, when it is, exact money, windows and holds.
--
-- KEYS: the generation, the caller's entry in it. Other keys are made from these; all share one hash tag, so that a
-- cluster keeps them together. ARGV: base of all names, number of the generation, worker, token, moment in
-- milliseconds (empty: the server's own), payload.
--
-- Numbers here are doubles, exact to 2^53; money is more than that. An amount is a pair: whole dollars, which may be
-- negative, and 0 <= pico-dollars < 10^12.

local PICO = 1000000000000
local LEASE_MS = 60000
local DAY_MS = 86400000
local WORKER_KEPT_MS = 3600000
local UNDATED_MS = 35 * DAY_MS
local REFUSED = cmsgpack.pack({6})

local base, number, worker, token = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local prefix = base .. number .. ':'
local payload = cmsgpack.unpack(ARGV[6])
local now = tonumber(ARGV[5])
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- Time never runs backwards in a generation; whether the caller belongs to the generation in force, with the session that it entered last.
local generation = redis.call('HMGET', KEYS[1], 'number', 'open', 'latest')
local is_member = generation[1] == number and redis.call('GET', KEYS[2]) == token
if is_member then
  local latest = tonumber(generation[3])
  if now > latest then
    redis.call('HSET', KEYS[1], 'latest', now)
  else
    now = latest
  end
end

local function add(dollars, pico, more_dollars, more_pico)
  dollars, pico = dollars + more_dollars, pico + more_pico
  if pico >= PICO then
    return dollars + 1, pico - PICO
  end
  return dollars, pico
end

local function subtract(dollars, pico, less_dollars, less_pico)
  dollars, pico = dollars - less_dollars, pico - less_pico
  if pico < 0 then
    return dollars - 1, pico + PICO
  end
  return dollars, pico
end

local function is_less(dollars, pico, than_dollars, than_pico)
  return dollars < than_dollars or (dollars == than_dollars and pico < than_pico)
end

local function window_key(name)
  return prefix .. 'window:' .. name
end

-- A window lives a day longer than its days; one without an end for as long as somebody tells of it.
local function keep_window(name, ends_ms)
  local left = UNDATED_MS
  if ends_ms > 0 then
    left = math.max(ends_ms - now, 0) + DAY_MS
  end
  redis.call('PEXPIRE', window_key(name), left)
end

-- What a journal has posted, as it stands; one who knows of fewer rows is not listened to.
local function tell(name, ends_ms, journal, dollars, pico, rows)
  local key, field = window_key(name), 'j:' .. journal
  local found = redis.call('HMGET', key, field, 'spent_dollars', 'spent_pico')
  local before = found[1] and cmsgpack.unpack(found[1]) or {0, 0, 0}
  if rows < before[3] then
    return
  end
  local spent_dollars, spent_pico = add(tonumber(found[2]) or 0, tonumber(found[3]) or 0, dollars, pico)
  spent_dollars, spent_pico = subtract(spent_dollars, spent_pico, before[1], before[2])
  redis.call('HSET', key, field, cmsgpack.pack({dollars, pico, rows}),
    'spent_dollars', spent_dollars, 'spent_pico', spent_pico)
  if not found[2] or ends_ms == 0 then
    keep_window(name, ends_ms)
  end
end

-- Adds to what is held in a window, or takes from it with a change of add for subtract.
local function change_held(name, dollars, pico, change)
  local key = window_key(name)
  local held = redis.call('HMGET', key, 'held_dollars', 'held_pico')
  local held_dollars, held_pico = change(tonumber(held[1]) or 0, tonumber(held[2]) or 0, dollars, pico)
  assert(held_dollars >= 0, 'what is held is the sum of the holds')
  redis.call('HSET', key, 'held_dollars', held_dollars, 'held_pico', held_pico)
end

local function begin(scope)
  redis.call('HINCRBY', prefix .. 'running', scope, 1)
end

local function finish(scope)
  if redis.call('HINCRBY', prefix .. 'running', scope, -1) <= 0 then
    redis.call('HDEL', prefix .. 'running', scope)
  end
end

-- A hold: {dollars, pico, tokens, second, limits, windows, account, budget that shortened it}; of each limit, and of
-- the account: {scope, 1 if it counts requests at once, 1 if it counts tokens}, {} for no account; '' for no budget.
local function holds_key(owner)
  return prefix .. 'holds:' .. owner
end

local function hold_of(hold_id)
  local packed = redis.call('HGET', holds_key(worker), hold_id)
  return packed and cmsgpack.unpack(packed)
end

local function keep_hold(hold_id, hold)
  redis.call('HSET', holds_key(worker), hold_id, cmsgpack.pack(hold))
end

local function lease(owner, hold_id)
  return owner .. '/' .. hold_id
end

local function end_hold(owner, hold_id, hold)
  redis.call('HDEL', holds_key(owner), hold_id)
  redis.call('ZREM', prefix .. 'leases', lease(owner, hold_id))
  for _, limits in ipairs(hold[5]) do
    if limits[2] == 1 then
      finish(limits[1])
    end
  end
  if hold[7][2] == 1 then
    finish(hold[7][1])
  end
  for _, name in ipairs(hold[6]) do
    change_held(name, hold[1], hold[2], subtract)
  end
end

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
local FIELDS_AT_ONCE_MAX = 1000
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

-- What a script has read it does not read again, and what it has changed it writes once, at its end (`save`).

local windows, running, holds = {}, {}, {}

local function window_key(name)
  return prefix .. 'window:' .. name
end

local function window_of(name)
  local window = windows[name]
  if not window then
    local found = redis.call('HMGET', window_key(name),
      'opened', 'spent_dollars', 'spent_pico', 'held_dollars', 'held_pico')
    window = {
      is_open = found[1] and true or false,
      is_new = not (found[1] or found[2] or found[4]),
      spent = {tonumber(found[2]) or 0, tonumber(found[3]) or 0},
      held = {tonumber(found[4]) or 0, tonumber(found[5]) or 0},
      journals = {},
    }
    windows[name] = window
  end
  return window
end

-- A window is kept for a day longer than its days; one without an end for as long as somebody tells of it.
local function kept_ms(ends_ms)
  return ends_ms > 0 and math.max(ends_ms - now, 0) + DAY_MS or UNDATED_MS
end

-- What a journal has posted, as it stands; one who knows of fewer rows is not listened to.
local function tell(name, ends_ms, journal, dollars, pico, rows)
  local window = window_of(name)
  local before = window.journals[journal]
  if not before then
    local found = redis.call('HGET', window_key(name), 'j:' .. journal)
    before = found and cmsgpack.unpack(found) or {0, 0, 0}
  end
  if rows < before[3] then
    return
  end
  local spent = window.spent
  spent[1], spent[2] = add(spent[1], spent[2], dollars, pico)
  spent[1], spent[2] = subtract(spent[1], spent[2], before[1], before[2])
  window.journals[journal] = {dollars, pico, rows}
  window.is_told = true
  if window.is_new or ends_ms == 0 then
    window.kept_ms = kept_ms(ends_ms)
  end
end

-- Adds to what is held in a window, or takes from it with a change of subtract for add.
local function change_held(name, dollars, pico, change)
  local window = window_of(name)
  local held = window.held
  held[1], held[2] = change(held[1], held[2], dollars, pico)
  assert(held[1] >= 0, 'what is held is the sum of the holds')
  window.is_held = true
end

local function running_of(scope)
  local count = running[scope]
  if not count then
    count = {tonumber(redis.call('HGET', prefix .. 'running', scope)) or 0}
    running[scope] = count
  end
  return count
end

local function change_running(scope, by)
  local count = running_of(scope)
  count[1] = count[1] + by
  count.is_changed = true
end

-- A hold: {dollars, pico, tokens, second, limits, windows, account, budget that shortened it}; of each limit, and of
-- the account: {scope, 1 if it counts requests at once, 1 if it counts tokens}, {} for no account; '' for no budget.
local function holds_key(owner)
  return prefix .. 'holds:' .. owner
end

local function lease(owner, hold_id)
  return owner .. '/' .. hold_id
end

-- Nil for one that is not open.
local function hold_of(owner, hold_id)
  local name = lease(owner, hold_id)
  local entry = holds[name]
  if not entry then
    local packed = redis.call('HGET', holds_key(owner), hold_id)
    entry = {owner = owner, id = hold_id, hold = packed and cmsgpack.unpack(packed) or nil}
    holds[name] = entry
  end
  return entry.hold
end

local function keep_hold(hold_id, hold)
  holds[lease(worker, hold_id)] = {owner = worker, id = hold_id, hold = hold, is_changed = true}
end

local function renew_lease(hold_id)
  redis.call('ZADD', prefix .. 'leases', now + LEASE_MS, lease(worker, hold_id))
end

local function end_hold(owner, hold_id, hold)
  holds[lease(owner, hold_id)] = {owner = owner, id = hold_id, is_changed = true}
  for _, limits in ipairs(hold[5]) do
    if limits[2] == 1 then
      change_running(limits[1], -1)
    end
  end
  if hold[7][2] == 1 then
    change_running(hold[7][1], -1)
  end
  for _, name in ipairs(hold[6]) do
    change_held(name, hold[1], hold[2], subtract)
  end
end

local function save_window(name, window)
  local key, fields = window_key(name), {}
  local function put(field, value)
    fields[#fields + 1] = field
    fields[#fields + 1] = value
    if #fields >= FIELDS_AT_ONCE_MAX then
      redis.call('HSET', key, unpack(fields))
      fields = {}
    end
  end
  if window.is_told then
    put('spent_dollars', window.spent[1])
    put('spent_pico', window.spent[2])
    for journal, balance in pairs(window.journals) do
      put('j:' .. journal, cmsgpack.pack(balance))
    end
  end
  if window.is_held then
    put('held_dollars', window.held[1])
    put('held_pico', window.held[2])
  end
  if window.opens then
    put('opened', 1)
  end
  if #fields > 0 then
    redis.call('HSET', key, unpack(fields))
  end
  if window.kept_ms then
    redis.call('PEXPIRE', key, window.kept_ms)
  end
end

local function save()
  for name, window in pairs(windows) do
    save_window(name, window)
  end
  for scope, count in pairs(running) do
    if count.is_changed and count[1] > 0 then
      redis.call('HSET', prefix .. 'running', scope, count[1])
    elseif count.is_changed then
      redis.call('HDEL', prefix .. 'running', scope)
    end
  end
  for name, entry in pairs(holds) do
    if entry.is_changed and entry.hold then
      redis.call('HSET', holds_key(entry.owner), entry.id, cmsgpack.pack(entry.hold))
    elseif entry.is_changed then
      redis.call('HDEL', holds_key(entry.owner), entry.id)
      redis.call('ZREM', prefix .. 'leases', name)
    end
  end
end

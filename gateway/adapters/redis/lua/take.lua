-- Everything that a request asks for, as one hold, or nothing; or the same hold for one more attempt. Answers as
-- AllowanceBook.take and AllowanceBook.retry do (core/allowance.py); the first number of the answer says which.
--
-- Payload: {1 for a retry else 0, hold, tokens, amount, least amount (two numbers each), limits, claims, accounts};
-- limits and accounts: {scope, requests, tokens, at once}, -1 for none; claims: {window, 0 strict 1 clamp 2 soft,
-- limit (two numbers), budget}.

local GRANTED, LIMITED, EXCEEDED, FULL, UNOPENED, CLOSED, KNOWN, AGAIN = 0, 1, 2, 3, 4, 5, 7, 8
local STRICT, CLAMP, SOFT = 0, 1, 2
local REQUESTS, TOKENS, CONCURRENCY = 0, 1, 2
local FULL_RETRY_MS = 1000

if not is_member then
  return REFUSED
end

local is_retry, hold_id, tokens = payload[1] == 1, payload[2], payload[3]
local asked_dollars, asked_pico, least_dollars, least_pico = payload[4], payload[5], payload[6], payload[7]
local all_limits, claims, accounts = payload[8], payload[9], payload[10]

-- What of these limits has no room, its limit, what is needed of it, and for how long it has none; nil for room.
local function no_room(limits)
  local scope, requests_max, tokens_max, at_once_max = limits[1], limits[2], limits[3], limits[4]
  if requests_max >= 0 then
    local minute = minute_of(scope)
    if minute.r + 1 > requests_max then
      return REQUESTS, requests_max, 1, wait_ms(minute, 'r', 1, requests_max)
    end
  end
  if tokens_max >= 0 then
    local minute = minute_of(scope)
    if minute.t + tokens > tokens_max then
      return TOKENS, tokens_max, tokens, wait_ms(minute, 't', tokens, tokens_max)
    end
  end
  if at_once_max >= 0 then
    if running_of(scope)[1] >= at_once_max then
      return CONCURRENCY, at_once_max, 1, FULL_RETRY_MS
    end
  end
  return nil
end

local function count(limits)
  if limits[2] >= 0 or limits[3] >= 0 then
    local minute = minute_of(limits[1])
    count_in(minute, minute.latest, limits[2] >= 0 and 1, limits[3] >= 0 and tokens)
  end
  if limits[4] >= 0 then
    change_running(limits[1], 1)
  end
end

-- The tightest limit of each kind with what was taken just now: limit, what remains, when all of it is back; -1 for
-- none.
local function with_rates(answer)
  for kind, place in pairs({r = 2, t = 3}) do
    local tightest, remains, reset = -1, -1, -1
    for _, limits in ipairs(all_limits) do
      local limit = limits[place]
      if limit >= 0 then
        local minute = minute_of(limits[1])
        local left = math.max(0, limit - minute[kind])
        if tightest < 0 or left < remains then
          tightest, remains, reset = limit, left, minute
        end
      end
    end
    if tightest >= 0 then
      reset = reset_ms(reset, kind)
    end
    local at = kind == 'r' and 1 or 4
    answer.rates[at], answer.rates[at + 1], answer.rates[at + 2] = tightest, remains, reset
  end
  for _, figure in ipairs(answer.rates) do
    answer[#answer + 1] = figure
  end
  answer.rates = nil
  return cmsgpack.pack(answer)
end

local function limited()
  for place, limits in ipairs(all_limits) do
    local kind, limit, needed, wait = no_room(limits)
    if kind then
      return with_rates({LIMITED, place - 1, kind, limit, needed, wait, rates = {0, 0, 0, 0, 0, 0}})
    end
  end
  return nil
end

-- The first account with room, from 1; or nothing and the answer where all are full. 0 where none is asked for.
local function first_with_room()
  local answer, soonest = {FULL, 0}, nil
  for place, limits in ipairs(accounts) do
    local kind, _, _, wait = no_room(limits)
    if not kind then
      return place
    end
    answer[#answer + 1] = kind
    soonest = math.min(soonest or wait, wait)
  end
  if not soonest then
    return 0
  end
  answer[2] = soonest
  return nil, cmsgpack.pack(answer)
end

-- Of a window that nobody has opened it is not known what was spent.
local unopened = {UNOPENED}
if #claims > 0 and generation[2] ~= '1' then
  return cmsgpack.pack({CLOSED})
end
for place, claim in ipairs(claims) do
  if not window_of(claim[1]).is_open then
    unopened[#unopened + 1] = place - 1
  end
end
if #unopened > 1 then
  return cmsgpack.pack(unopened)
end

local function available(place)
  local claim = claims[place]
  local window = window_of(claim[1])
  local dollars, pico = subtract(claim[3], claim[4], window.spent[1], window.spent[2])
  return subtract(dollars, pico, window.held[1], window.held[2])
end

local function exceeded(place, needed_dollars, needed_pico, dollars, pico)
  return cmsgpack.pack({EXCEEDED, place - 1, needed_dollars, needed_pico, dollars, pico})
end

-- What every budget can bear and the claim that shortened it, 0 for none; or nothing and the answer.
local function affordable()
  local dollars, pico, clamped_by = asked_dollars, asked_pico, 0
  for place, claim in ipairs(claims) do
    if claim[2] == CLAMP then
      local free_dollars, free_pico = available(place)
      if is_less(free_dollars, free_pico, dollars, pico) then
        if is_less(free_dollars, free_pico, least_dollars, least_pico) then
          return nil, exceeded(place, least_dollars, least_pico, free_dollars, free_pico)
        end
        dollars, pico, clamped_by = free_dollars, free_pico, place
      end
    end
  end
  for place, claim in ipairs(claims) do
    if claim[2] == STRICT then
      local free_dollars, free_pico = available(place)
      if is_less(free_dollars, free_pico, dollars, pico) then
        return nil, exceeded(place, dollars, pico, free_dollars, free_pico)
      end
    end
  end
  return dollars, pico, clamped_by
end

-- What a hold keeps of limits.
local function kept(limits)
  return {limits[1], limits[4] >= 0 and 1 or 0, limits[3] >= 0 and 1 or 0}
end

local function place_of(account)
  for place, limits in ipairs(accounts) do
    if limits[1] == account[1] then
      return place - 1
    end
  end
  return -1
end

-- What the owner of a hold is told.
local function granted(hold, answer)
  local clamped_by = -1
  for place, claim in ipairs(claims) do
    if clamped_by < 0 and claim[5] == hold[8] then
      clamped_by = place - 1
    end
  end
  return with_rates({answer, hold[1], hold[2], place_of(hold[7]), clamped_by, hold[4], rates = {0, 0, 0, 0, 0, 0}})
end

local function take()
  local refusal = limited()
  if refusal then
    return refusal
  end
  local dollars, pico, clamped_by = affordable()
  if not dollars then
    return pico
  end
  local account, full = first_with_room()
  if not account then
    return full
  end
  local held_limits, held_windows = {}, {}
  for place, limits in ipairs(all_limits) do
    count(limits)
    held_limits[place] = kept(limits)
  end
  if account > 0 then
    count(accounts[account])
  end
  for place, claim in ipairs(claims) do
    held_windows[place] = claim[1]
    change_held(claim[1], dollars, pico, add)
  end
  local hold = {
    dollars, pico, tokens, second, held_limits, held_windows,
    account > 0 and kept(accounts[account]) or {}, clamped_by > 0 and claims[clamped_by][5] or '',
  }
  keep_hold(hold_id, hold)
  renew_lease(hold_id)
  return granted(hold, GRANTED)
end

local function again(hold)
  local more_dollars, more_pico = 0, 0
  if is_less(hold[1], hold[2], asked_dollars, asked_pico) then
    more_dollars, more_pico = subtract(asked_dollars, asked_pico, hold[1], hold[2])
  end
  local is_held = {}
  for _, name in ipairs(hold[6]) do
    is_held[name] = true
  end
  for place, claim in ipairs(claims) do
    if (more_dollars > 0 or more_pico > 0) and is_held[claim[1]] and claim[2] ~= SOFT then
      local free_dollars, free_pico = available(place)
      if is_less(free_dollars, free_pico, more_dollars, more_pico) then
        return exceeded(place, more_dollars, more_pico, free_dollars, free_pico)
      end
    end
  end
  local account, full = first_with_room()
  if not account then
    return full
  end
  if hold[7][2] == 1 then
    change_running(hold[7][1], -1)
  end
  hold[7] = account > 0 and kept(accounts[account]) or {}
  if account > 0 then
    count(accounts[account])
  end
  hold[1], hold[2] = add(hold[1], hold[2], more_dollars, more_pico)
  for _, name in ipairs(hold[6]) do
    change_held(name, more_dollars, more_pico, add)
  end
  keep_hold(hold_id, hold)
  return cmsgpack.pack({AGAIN, hold[1], hold[2], account - 1})
end

local hold = hold_of(worker, hold_id)
local answer
if not hold then
  answer = take()
elseif is_retry then
  answer = again(hold)
else
  answer = granted(hold, KNOWN)
end
save()
save_minutes()
return answer

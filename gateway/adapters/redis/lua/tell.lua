-- What a worker tells without waiting: balances, costs, ends, and holds as they stand; in the order it came to pass.
--
-- Payload: a list of
--   {1, window, end, {{journal, dollars, pico, rows}…}}  what journals have posted in a window
--   {2, hold, dollars, pico}                            so much of what is held is posted
--   {3, hold, tokens}                                   the request is over and has used so many tokens; -1: unknown
--   {4, hold, dollars, pico, tokens, second, limits, {{window, end}…}, account, budget}   the hold, as it stands
--   {5, window, end, {{journal, dollars, pico, rows}…}}  a window is opened with what is posted in it

local TOLD = cmsgpack.pack({0})

if not is_member then
  return REFUSED
end

local does = {}

does[1] = function(told)
  for _, balance in ipairs(told[4]) do
    tell(told[2], told[3], balance[1], balance[2], balance[3], balance[4])
  end
end

does[2] = function(told)
  local hold = hold_of(worker, told[2])
  if not hold or told[3] < 0 then
    return
  end
  local dollars, pico = told[3], told[4]
  if is_less(hold[1], hold[2], dollars, pico) then
    dollars, pico = hold[1], hold[2]
  end
  hold[1], hold[2] = subtract(hold[1], hold[2], dollars, pico)
  for _, name in ipairs(hold[6]) do
    change_held(name, dollars, pico, subtract)
  end
  keep_hold(told[2], hold)
end

does[3] = function(told)
  local hold = hold_of(worker, told[2])
  if not hold then
    return
  end
  end_hold(worker, told[2], hold)
  if told[3] < 0 then
    return
  end
  for _, limits in ipairs(hold[5]) do
    if limits[3] == 1 then
      correct(limits[1], hold[4], told[3] - hold[3])
    end
  end
end

does[4] = function(told)
  local known = hold_of(worker, told[2])
  if known then
    end_hold(worker, told[2], known)
  end
  local hold = {told[3], told[4], told[5], told[6], {}, {}, {}, told[10]}
  local is_recent = hold[4] >= second - 60 and hold[4] <= second
  local function enter(limits)
    if not known and is_recent and (limits[2] >= 0 or limits[3] >= 0) then
      count_in(minute_of(limits[1]), hold[4], limits[2] >= 0 and 1, limits[3] >= 0 and hold[3])
    end
    if limits[4] >= 0 then
      change_running(limits[1], 1)
    end
    return {limits[1], limits[4] >= 0 and 1 or 0, limits[3] >= 0 and 1 or 0}
  end
  for place, limits in ipairs(told[7]) do
    hold[5][place] = enter(limits)
  end
  if #told[9] > 0 then
    hold[7] = enter(told[9])
  end
  for place, window in ipairs(told[8]) do
    hold[6][place] = window[1]
    change_held(window[1], hold[1], hold[2], add)
    window_of(window[1]).kept_ms = kept_ms(window[2])
  end
  keep_hold(told[2], hold)
  renew_lease(told[2])
end

does[5] = function(told)
  does[1](told)
  local window = window_of(told[2])
  window.opens, window.kept_ms = true, kept_ms(told[3])
end

for _, told in ipairs(payload) do
  does[told[1]](told)
end
save()
save_minutes()
return TOLD

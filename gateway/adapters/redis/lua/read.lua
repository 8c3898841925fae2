-- Windows as they are: {1 if opened, spent and held (two numbers each), {{journal, dollars, pico, rows}…}} for each.

if not is_member then
  return REFUSED
end

local answer = {0}
for _, name in ipairs(payload) do
  local fields = redis.call('HGETALL', window_key(name))
  local of, journals = {}, {}
  for place = 1, #fields, 2 do
    local field, value = fields[place], fields[place + 1]
    if string.sub(field, 1, 2) == 'j:' then
      local balance = cmsgpack.unpack(value)
      journals[#journals + 1] = {string.sub(field, 3), balance[1], balance[2], balance[3]}
    else
      of[field] = tonumber(value)
    end
  end
  answer[#answer + 1] = {
    of.opened or 0, of.spent_dollars or 0, of.spent_pico or 0, of.held_dollars or 0, of.held_pico or 0, journals,
  }
end
return cmsgpack.pack(answer)

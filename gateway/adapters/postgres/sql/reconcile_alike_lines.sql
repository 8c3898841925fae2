-- Lines that may be told by their tokens: those without a request id, or those of an id that nobody knows.
SELECT md5(concat_ws('|', lower(model), input_tokens, output_tokens, {cached})) COLLATE "C" AS likeness, at, number
FROM statement_lines AS l
WHERE at IS NOT NULL AND model IS NOT NULL AND input_tokens IS NOT NULL AND output_tokens IS NOT NULL
  AND (request_id IS NULL) = %(is_nameless)s
  AND NOT EXISTS (SELECT FROM pairs WHERE pairs.number = l.number)
  AND NOT EXISTS (SELECT FROM ours WHERE ours.request_id = l.request_id)
ORDER BY likeness, at, number

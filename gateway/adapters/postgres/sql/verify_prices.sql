-- The first row of a month whose cost is not its tokens times the price row that it names, as far as that is known.
SELECT l.attempt_id, l.started_at, l.price_id, l.cost_pico::text AS cost_pico
FROM ledger AS l
JOIN unnest(%(price_ids)s::text[], %(inputs)s::bigint[], %(cached)s::bigint[], %(outputs)s::bigint[], %(writes)s::text[])
    AS p (price_id, input, cached, output, writes) USING (price_id)
WHERE l.started_at >= %(start)s AND l.started_at < %(end)s AND l.usage_source <> 'none'
  AND (
      l.input_pico <> p.input * (l.input_tokens - coalesce(l.cached_tokens, 0) - l.cache_write_tokens)
      OR l.cached_pico <> p.cached * coalesce(l.cached_tokens, 0)
      OR l.output_pico <> p.output * l.output_tokens
      OR (l.cache_write_tokens <> 0 OR l.cache_write_pico <> 0) AND NOT EXISTS (
          SELECT FROM jsonb_array_elements_text(p.writes::jsonb) AS unit
          WHERE unit::bigint * l.cache_write_tokens = l.cache_write_pico
      )
  )
ORDER BY l.started_at, l.attempt_id
LIMIT 1

-- What went to some providers' models since a moment, by caller: whole quarter hours of the roll-up.
SELECT
    provider, model, team, key_id, max(key_name) AS key_name, sum(requests)::bigint AS requests,
    sum(input_tokens)::bigint AS input_tokens, sum(cached_tokens)::bigint AS cached_tokens,
    sum(cache_write_tokens)::bigint AS cache_write_tokens, sum(output_tokens)::bigint AS output_tokens,
    sum(cost_pico) AS cost_pico
FROM spend_rollup JOIN spend_groups USING (group_id)
WHERE grain = 'quarter' AND bucket >= %(since)s
  AND (provider, model) IN (SELECT * FROM unnest(%(providers)s::text[], %(models)s::text[]))
GROUP BY provider, model, team, key_id
HAVING sum(attempts) > 0
ORDER BY provider, model, cost_pico DESC, key_id

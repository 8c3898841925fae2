-- Lines whose tokens are agreed on, of models and prices where many amounts are not, in order of time.
SELECT
    model, price_id, coalesce(at, started_at) AS at, input_tokens - cached_tokens - cache_write_tokens AS uncached,
    cached_tokens, cache_write_tokens, output_tokens, amount_pico, cost_pico
FROM compared
JOIN (
    SELECT model, price_id FROM compared WHERE class = 'price' AND NOT is_unattributed
    GROUP BY model, price_id HAVING count(*) >= %(lines_min)s
) AS drifted USING (model, price_id)
WHERE class IN ('price', 'matched') AND NOT is_unattributed AND usage_source <> 'none'
ORDER BY model, price_id, coalesce(at, started_at), number

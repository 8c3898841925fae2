-- The first roll-up row of a month that is not the sum of its ledger rows, in any grain; none where all of them are.
WITH added AS (
    SELECT
        date_bin('15 minutes', started_at, 'epoch') AS bucket, key_id, key_name, team, tags, model, provider, account,
        price_id, status, usage_source, restates IS NOT NULL AS is_restated,
        cache_write_unit(cache_write_tokens, cache_write_pico) AS cache_write_unit,
        count(*) FILTER (WHERE is_final AND corrects IS NULL) AS requests,
        count(*) FILTER (WHERE corrects IS NULL) AS attempts,
        sum(input_tokens) AS input_tokens, coalesce(sum(cached_tokens), 0) AS cached_tokens,
        sum(cache_write_tokens) AS cache_write_tokens, sum(output_tokens) AS output_tokens,
        coalesce(sum(reasoning_tokens), 0) AS reasoning_tokens, sum(input_pico) AS input_pico,
        sum(cached_pico) AS cached_pico, sum(cache_write_pico) AS cache_write_pico, sum(output_pico) AS output_pico,
        sum(fee_pico) AS fee_pico, sum(cost_pico) AS cost_pico, sum(list_pico) AS list_pico
    FROM ledger
    WHERE started_at >= %(start)s AND started_at < %(end)s
    GROUP BY 1, key_id, key_name, team, tags, model, provider, account, price_id, status, usage_source, 12, 13
),
expected AS (
    SELECT
        grain, of_grain AS bucket,
        spend_group_id(
            key_id, key_name, team, tags, model, provider, account, price_id, status, usage_source, is_restated,
            cache_write_unit
        ) AS group_id,
        key_name, sum(requests) AS requests, sum(attempts) AS attempts, sum(input_tokens) AS input_tokens,
        sum(cached_tokens) AS cached_tokens, sum(cache_write_tokens) AS cache_write_tokens,
        sum(output_tokens) AS output_tokens, sum(reasoning_tokens) AS reasoning_tokens, sum(input_pico) AS input_pico,
        sum(cached_pico) AS cached_pico, sum(cache_write_pico) AS cache_write_pico, sum(output_pico) AS output_pico,
        sum(fee_pico) AS fee_pico, sum(cost_pico) AS cost_pico, sum(list_pico) AS list_pico
    FROM added
    CROSS JOIN LATERAL (VALUES
        ('quarter', bucket), ('day', date_trunc('day', bucket, 'UTC')), ('month', date_trunc('month', bucket, 'UTC'))
    ) AS grains (grain, of_grain)
    GROUP BY
        grain, of_grain, key_id, key_name, team, tags, model, provider, account, price_id, status, usage_source,
        is_restated, cache_write_unit
)
SELECT
    grain, bucket, coalesce(e.key_name, g.key_name) AS key_name, coalesce(e.attempts, 0)::text AS attempts,
    coalesce(e.cost_pico, 0)::text AS cost_pico, coalesce(k.attempts, 0)::text AS kept_attempts,
    coalesce(k.cost_pico, 0)::text AS kept_pico
FROM expected AS e
FULL JOIN (SELECT * FROM spend_rollup WHERE bucket >= %(start)s AND bucket < %(end)s) AS k
    USING (grain, bucket, group_id)
LEFT JOIN spend_groups AS g USING (group_id)
WHERE ROW(
    e.requests, e.attempts, e.input_tokens, e.cached_tokens, e.cache_write_tokens, e.output_tokens, e.reasoning_tokens,
    e.input_pico, e.cached_pico, e.cache_write_pico, e.output_pico, e.fee_pico, e.cost_pico, e.list_pico
) IS DISTINCT FROM ROW(
    k.requests, k.attempts, k.input_tokens, k.cached_tokens, k.cache_write_tokens, k.output_tokens, k.reasoning_tokens,
    k.input_pico, k.cached_pico, k.cache_write_pico, k.output_pico, k.fee_pico, k.cost_pico, k.list_pico
)
ORDER BY bucket, grain, group_id
LIMIT 1

-- The first roll-up of a month, by grain, time and group, that is not the sum of its ledger rows; none where all of them
-- are.
WITH summed AS MATERIALIZED (
    SELECT
        date_bin('15 minutes', started_at, 'epoch') AS bucket, key_id, key_name, team, tags, model, provider, account,
        price_id, status, usage_source, restates IS NOT NULL AS is_restated,
        cache_write_unit(cache_write_tokens, cache_write_pico) AS cache_write_unit,
        count(*) FILTER (WHERE is_final AND corrects IS NULL) AS requests,
        count(*) FILTER (WHERE corrects IS NULL) AS attempts,
        count(*) FILTER (WHERE corrects IS NULL AND status IN ('failed', 'abandoned')) AS failed_attempts,
        count(*) FILTER (WHERE corrects IS NULL AND status = 'aborted') AS aborted_attempts,
        sum(input_tokens) AS input_tokens, coalesce(sum(cached_tokens), 0) AS cached_tokens,
        sum(cache_write_tokens) AS cache_write_tokens, sum(output_tokens) AS output_tokens,
        coalesce(sum(reasoning_tokens), 0) AS reasoning_tokens, sum(input_pico) AS input_pico,
        sum(cached_pico) AS cached_pico, sum(cache_write_pico) AS cache_write_pico, sum(output_pico) AS output_pico,
        sum(fee_pico) AS fee_pico, sum(cost_pico) AS cost_pico, sum(list_pico) AS list_pico,
        coalesce(sum(cost_pico) FILTER (WHERE status IN ('failed', 'abandoned')), 0) AS failed_pico,
        coalesce(sum(cost_pico) FILTER (WHERE status = 'aborted'), 0) AS aborted_pico,
        coalesce(sum(cost_pico) FILTER (WHERE usage_source = 'estimated'), 0) AS estimated_pico,
        coalesce(sum(cost_pico) FILTER (WHERE restates IS NOT NULL), 0) AS restated_pico
    FROM ledger
    WHERE started_at >= %(start)s AND started_at < %(end)s
    GROUP BY 1, key_id, key_name, team, tags, model, provider, account, price_id, status, usage_source, 12, 13
),
-- What is rolled up of a day or a month is a group without status, source, correction and unit.
expected AS (
    SELECT
        grain, of_grain AS bucket,
        spend_group_id(
            key_id, key_name, team, tags, model, provider, account, price_id, of_status, of_source, of_restated, of_unit
        ) AS group_id,
        key_name, sum(requests) AS requests, sum(attempts) AS attempts, sum(failed_attempts) AS failed_attempts,
        sum(aborted_attempts) AS aborted_attempts, sum(input_tokens) AS input_tokens,
        sum(cached_tokens) AS cached_tokens, sum(cache_write_tokens) AS cache_write_tokens,
        sum(output_tokens) AS output_tokens, sum(reasoning_tokens) AS reasoning_tokens, sum(input_pico) AS input_pico,
        sum(cached_pico) AS cached_pico, sum(cache_write_pico) AS cache_write_pico, sum(output_pico) AS output_pico,
        sum(fee_pico) AS fee_pico, sum(cost_pico) AS cost_pico, sum(list_pico) AS list_pico,
        sum(failed_pico) AS failed_pico, sum(aborted_pico) AS aborted_pico, sum(estimated_pico) AS estimated_pico,
        sum(restated_pico) AS restated_pico
    FROM summed
    CROSS JOIN LATERAL (VALUES
        ('quarter', bucket, status, usage_source, is_restated, cache_write_unit),
        ('day', date_trunc('day', bucket, 'UTC'), NULL, NULL, NULL, NULL),
        ('month', date_trunc('month', bucket, 'UTC'), NULL, NULL, NULL, NULL)
    ) AS grains (grain, of_grain, of_status, of_source, of_restated, of_unit)
    GROUP BY
        grain, of_grain, key_id, key_name, team, tags, model, provider, account, price_id, of_status, of_source,
        of_restated, of_unit
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
    e.requests, e.attempts, e.failed_attempts, e.aborted_attempts, e.input_tokens, e.cached_tokens,
    e.cache_write_tokens, e.output_tokens, e.reasoning_tokens, e.input_pico, e.cached_pico, e.cache_write_pico,
    e.output_pico, e.fee_pico, e.cost_pico, e.list_pico, e.failed_pico, e.aborted_pico, e.estimated_pico,
    e.restated_pico
) IS DISTINCT FROM ROW(
    k.requests, k.attempts, k.failed_attempts, k.aborted_attempts, k.input_tokens, k.cached_tokens,
    k.cache_write_tokens, k.output_tokens, k.reasoning_tokens, k.input_pico, k.cached_pico, k.cache_write_pico,
    k.output_pico, k.fee_pico, k.cost_pico, k.list_pico, k.failed_pico, k.aborted_pico, k.estimated_pico,
    k.restated_pico
)
ORDER BY bucket, grain, group_id
LIMIT 1

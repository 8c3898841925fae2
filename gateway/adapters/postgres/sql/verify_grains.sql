-- The first day or month of the roll-up that is not the sum of its quarter hours: what is left to compare where the rows
-- themselves are archived.
WITH expected AS (
    SELECT
        grains.grain, of_grain AS bucket, sum(requests) AS requests, sum(attempts) AS attempts,
        sum(input_tokens) AS input_tokens, sum(output_tokens) AS output_tokens, sum(cost_pico) AS cost_pico,
        sum(failed_pico) AS failed_pico, sum(estimated_pico) AS estimated_pico, sum(restated_pico) AS restated_pico
    FROM spend_rollup AS r
    CROSS JOIN LATERAL (VALUES
        ('day', date_trunc('day', bucket, 'UTC')), ('month', date_trunc('month', bucket, 'UTC'))
    ) AS grains (grain, of_grain)
    WHERE r.grain = 'quarter' AND bucket >= %(start)s AND bucket < %(end)s
    GROUP BY grains.grain, of_grain
),
kept AS (
    SELECT
        grain, bucket, sum(requests) AS requests, sum(attempts) AS attempts, sum(input_tokens) AS input_tokens,
        sum(output_tokens) AS output_tokens, sum(cost_pico) AS cost_pico, sum(failed_pico) AS failed_pico,
        sum(estimated_pico) AS estimated_pico, sum(restated_pico) AS restated_pico
    FROM spend_rollup
    WHERE grain <> 'quarter' AND bucket >= %(start)s AND bucket < %(end)s
    GROUP BY grain, bucket
)
SELECT
    grain, bucket, 'all keys' AS key_name, coalesce(e.attempts, 0)::text AS attempts,
    coalesce(e.cost_pico, 0)::text AS cost_pico, coalesce(k.attempts, 0)::text AS kept_attempts,
    coalesce(k.cost_pico, 0)::text AS kept_pico
FROM expected AS e
FULL JOIN kept AS k USING (grain, bucket)
WHERE ROW(
    e.requests, e.attempts, e.input_tokens, e.output_tokens, e.cost_pico, e.failed_pico, e.estimated_pico,
    e.restated_pico
) IS DISTINCT FROM ROW(
    k.requests, k.attempts, k.input_tokens, k.output_tokens, k.cost_pico, k.failed_pico, k.estimated_pico,
    k.restated_pico
)
ORDER BY bucket, grain
LIMIT 1

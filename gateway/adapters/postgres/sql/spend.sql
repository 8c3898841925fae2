-- Spend by groups: whole quarter hours from the roll-up, the ragged ends of the period from the ledger.
-- start <= first <= last <= end; first and last are on quarter hours, or both the end where no whole one is within.
SELECT
    {groups},
    sum(requests), sum(attempts), sum(input_tokens), sum(cached_tokens), sum(cache_write_tokens), sum(output_tokens),
    sum(reasoning_tokens), sum(cost_pico), sum(estimated_cost_pico)
FROM (
    SELECT
        bucket AS at, key_id, key_name, team, model, provider, account, tags, requests, attempts, input_tokens,
        cached_tokens, cache_write_tokens, output_tokens, reasoning_tokens, cost_pico, estimated_cost_pico
    FROM spend_rollup
    WHERE bucket >= %(first)s AND bucket < %(last)s AND (%(team)s::text IS NULL OR team = %(team)s)
    UNION ALL
    SELECT
        started_at, key_id, key_name, team, model, provider, account, tags, is_final::int, (corrects IS NULL)::int,
        input_tokens, coalesce(cached_tokens, 0), cache_write_tokens, output_tokens, coalesce(reasoning_tokens, 0),
        cost_pico, CASE usage_source WHEN 'estimated' THEN cost_pico ELSE 0 END
    FROM ledger
    WHERE ((started_at >= %(start)s AND started_at < %(first)s)
        OR (started_at >= %(last)s AND started_at < %(end)s))
      AND (%(team)s::text IS NULL OR team = %(team)s)
) AS spent
GROUP BY {order}
ORDER BY {order}

-- What was spent, by who and what, as finely as the period needs it: whole months, days and quarter hours of the roll-up,
-- and rows of the ledger for ragged ends. Every report is a sum of these, so no two of them differ. Days and months are of
-- who, what and price alone: their status, source of usage, whether they restate and unit of a cache write are null.
-- OFFSET 0 has each part looked up by its own bounds in an index; joined, they would all be looked for in every row.
SELECT
    r.bucket AS at, g.key_id, g.key_name, g.team, g.tags, g.model, g.provider, g.account, g.price_id, g.status,
    g.usage_source, g.is_restated, g.cache_write_unit, r.requests, r.attempts, r.input_tokens, r.cached_tokens,
    r.cache_write_tokens, r.output_tokens, r.reasoning_tokens, r.input_pico, r.cached_pico, r.cache_write_pico,
    r.output_pico, r.fee_pico, r.cost_pico, r.list_pico, r.failed_attempts, r.aborted_attempts, r.failed_pico,
    r.aborted_pico, r.estimated_pico, r.restated_pico
FROM unnest(%(grains)s::text[], %(grain_begins)s::timestamptz[], %(grain_ends)s::timestamptz[])
    AS part (grain, begins, ends)
CROSS JOIN LATERAL (
    SELECT * FROM spend_rollup
    WHERE grain = 'quarter' AND bucket >= part.begins AND bucket < part.ends
    OFFSET 0
) AS r
JOIN spend_groups AS g USING (group_id)
WHERE part.grain = 'quarter' AND (%(team)s::text IS NULL OR g.team = %(team)s)
UNION ALL
SELECT
    r.bucket, g.key_id, g.key_name, g.team, g.tags, g.model, g.provider, g.account, g.price_id, g.status,
    g.usage_source, g.is_restated, g.cache_write_unit, r.requests, r.attempts, r.input_tokens, r.cached_tokens,
    r.cache_write_tokens, r.output_tokens, r.reasoning_tokens, r.input_pico, r.cached_pico, r.cache_write_pico,
    r.output_pico, r.fee_pico, r.cost_pico, r.list_pico, r.failed_attempts, r.aborted_attempts, r.failed_pico,
    r.aborted_pico, r.estimated_pico, r.restated_pico
FROM unnest(%(grains)s::text[], %(grain_begins)s::timestamptz[], %(grain_ends)s::timestamptz[])
    AS part (grain, begins, ends)
CROSS JOIN LATERAL (
    SELECT * FROM spend_rollup
    WHERE grain = part.grain AND bucket >= part.begins AND bucket < part.ends
    OFFSET 0
) AS r
JOIN spend_groups AS g ON g.group_id = r.group_id AND g.status IS NULL
WHERE part.grain IN ('day', 'month') AND (%(team)s::text IS NULL OR g.team = %(team)s)
UNION ALL
SELECT
    l.started_at, l.key_id, l.key_name, l.team, l.tags, l.model, l.provider, l.account, l.price_id, l.status,
    l.usage_source, l.restates IS NOT NULL, cache_write_unit(l.cache_write_tokens, l.cache_write_pico),
    (l.is_final AND l.corrects IS NULL)::int, (l.corrects IS NULL)::int, l.input_tokens, coalesce(l.cached_tokens, 0),
    l.cache_write_tokens, l.output_tokens, coalesce(l.reasoning_tokens, 0), l.input_pico, l.cached_pico,
    l.cache_write_pico, l.output_pico, l.fee_pico, l.cost_pico, l.list_pico,
    (l.corrects IS NULL AND l.status IN ('failed', 'abandoned'))::int,
    (l.corrects IS NULL AND l.status = 'aborted')::int,
    CASE WHEN l.status IN ('failed', 'abandoned') THEN l.cost_pico ELSE 0 END,
    CASE l.status WHEN 'aborted' THEN l.cost_pico ELSE 0 END,
    CASE l.usage_source WHEN 'estimated' THEN l.cost_pico ELSE 0 END,
    CASE WHEN l.restates IS NOT NULL THEN l.cost_pico ELSE 0 END
FROM unnest(%(row_begins)s::timestamptz[], %(row_ends)s::timestamptz[]) AS part (begins, ends)
CROSS JOIN LATERAL (
    SELECT * FROM ledger WHERE started_at >= part.begins AND started_at < part.ends OFFSET 0
) AS l
WHERE (%(team)s::text IS NULL OR l.team = %(team)s)

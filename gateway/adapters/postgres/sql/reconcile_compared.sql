-- Every line of the period, every attempt that has one, and every attempt of the period that costs and has none. What a
-- line does not tell is not compared; an amount counts as the same within the quantum of its printing.
INSERT INTO compared (
    class, line_name, number, attempt_id, matched_by, request_id, account, model, at, started_at, status, usage_source,
    price_id, is_unattributed, revision, is_ours_within, their_input_tokens, their_cached_tokens,
    their_cache_write_tokens, their_output_tokens, input_tokens, cached_tokens, cache_write_tokens, output_tokens,
    amount_pico, cost_pico
)
WITH lines AS (
    SELECT
        l.*,
        line_name,
        at IS NULL OR (at >= %(start)s AND at < %(end)s) AS is_within,
        row_number() OVER (PARTITION BY request_id ORDER BY number) AS nth
    FROM statement_lines AS l
    JOIN line_names USING (number)
)
SELECT
    CASE
        WHEN NOT is_unattributed AND (
            l.input_tokens <> o.input_tokens
            OR l.cached_tokens <> o.cached_tokens
            OR l.cache_write_tokens <> o.cache_write_tokens
            OR l.output_tokens <> o.output_tokens
        ) THEN 'tokens'
        WHEN abs(amount_pico - cost_pico) > %(quantum)s THEN 'price'
        ELSE 'matched'
    END,
    line_name, l.number, o.attempt_id, matched_by, coalesce(l.request_id, o.request_id), account, o.model, at,
    started_at, status, usage_source, price_id, is_unattributed, revision, o.is_within, l.input_tokens,
    l.cached_tokens, l.cache_write_tokens, l.output_tokens, o.input_tokens, o.cached_tokens, o.cache_write_tokens,
    o.output_tokens, amount_pico, cost_pico
FROM pairs
JOIN lines AS l USING (number)
JOIN ours AS o USING (attempt_id)
WHERE l.is_within OR o.is_within
UNION ALL
SELECT
    CASE
        WHEN nth > 1 AND request_id IS NOT NULL THEN 'duplicate'
        WHEN amount_pico = 0 THEN 'free'
        ELSE 'missing_here'
    END,
    line_name, number, NULL, NULL, request_id, NULL, model, at, NULL, NULL, NULL, NULL, NULL, NULL, NULL, input_tokens,
    cached_tokens, cache_write_tokens, output_tokens, NULL, NULL, NULL, NULL, amount_pico, NULL
FROM lines AS l
WHERE is_within AND NOT EXISTS (SELECT FROM pairs WHERE pairs.number = l.number)
UNION ALL
SELECT
    CASE
        WHEN started_at - %(early)s::interval < %(start)s
          OR least(started_at + %(lag)s::interval, finished_at + %(late)s::interval) >= %(end)s THEN 'at_edge'
        ELSE 'missing_there'
    END,
    NULL, NULL, attempt_id, NULL, request_id, account, model, NULL, started_at, status, usage_source, price_id,
    is_unattributed, revision, true, NULL, NULL, NULL, NULL, input_tokens, cached_tokens, cache_write_tokens,
    output_tokens, NULL, cost_pico
FROM ours
WHERE is_within AND cost_pico <> 0 AND NOT EXISTS (SELECT FROM pairs WHERE pairs.attempt_id = ours.attempt_id)

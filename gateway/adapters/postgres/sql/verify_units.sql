-- The first price row that nobody knows any more and whose tokens of one class did not all cost the same.
WITH units AS (
    SELECT
        price_id, class, count(*) FILTER (WHERE pico <> 0 AND coalesce(pico %% nullif(tokens, 0), 1) <> 0) AS odd,
        count(DISTINCT pico / nullif(tokens, 0)) AS units
    FROM (
        SELECT
            price_id, class, tokens, pico
        FROM ledger
        CROSS JOIN LATERAL (VALUES
            ('input', input_tokens - coalesce(cached_tokens, 0) - cache_write_tokens, input_pico),
            ('cached_input', coalesce(cached_tokens, 0), cached_pico), ('output', output_tokens, output_pico)
        ) AS classes (class, tokens, pico)
        WHERE started_at >= %(start)s AND started_at < %(end)s AND usage_source <> 'none'
          AND price_id <> ALL (%(price_ids)s::text[])
    ) AS classes
    GROUP BY price_id, class
)
SELECT price_id, class FROM units WHERE odd > 0 OR units > 1 ORDER BY price_id, class LIMIT 1

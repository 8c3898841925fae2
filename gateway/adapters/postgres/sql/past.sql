-- The requests of a period in order of their first attempt, each with the attempt that ended it, what all of its
-- attempts cost, with what corrected them while their month was open, and the prefixes that were kept with its plan; of
-- one model or team, or of all. Every step follows an index, so that the first rows come at once and nothing is sorted.
SELECT
    opened.request_id,
    opened.started_at,
    opened.model,
    coalesce(e.tenant, opened.team, opened.key_id) AS tenant,
    coalesce(e.turn, 0) AS turn,
    e.prompt,
    ended.provider,
    ended.account,
    ended.price_id,
    ended.input_tokens,
    coalesce(ended.cached_tokens, 0) AS cached_tokens,
    ended.output_tokens,
    ended.usage_source,
    ended.final_pico,
    paid.cost_pico,
    paid.failed_pico
FROM ledger AS opened
CROSS JOIN LATERAL (
    SELECT
        l.provider, l.account, l.price_id, l.input_tokens, l.cached_tokens, l.output_tokens, l.usage_source,
        l.cost_pico AS final_pico, l.attempt
    FROM ledger AS l
    WHERE l.request_id = opened.request_id
      AND l.started_at >= opened.started_at AND l.started_at < opened.started_at + interval '1 day'
      AND l.corrects IS NULL
    ORDER BY l.is_final DESC, l.attempt DESC
    LIMIT 1
) AS ended
CROSS JOIN LATERAL (
    SELECT
        sum(l.cost_pico) AS cost_pico,
        coalesce(sum(l.cost_pico) FILTER (WHERE l.status IN ('failed', 'abandoned') OR l.attempt <> ended.attempt), 0)
            AS failed_pico
    FROM ledger AS l
    WHERE l.request_id = opened.request_id
      AND l.started_at >= opened.started_at AND l.started_at < opened.started_at + interval '1 day'
) AS paid
LEFT JOIN LATERAL (
    SELECT x.prompt, x.tenant, x.turn
    FROM exchanges AS x
    WHERE x.request_id = opened.request_id
      AND x.made_at > opened.started_at - interval '1 day' AND x.made_at < opened.started_at + interval '1 day'
      AND x.prompt IS NOT NULL
    LIMIT 1
) AS e ON true
WHERE opened.started_at >= %(start)s AND opened.started_at < %(end)s
  AND opened.attempt = 1 AND opened.corrects IS NULL
  AND (%(model)s::text IS NULL OR opened.model = %(model)s)
  AND (%(team)s::text IS NULL OR opened.team = %(team)s)
ORDER BY opened.started_at, opened.attempt_id

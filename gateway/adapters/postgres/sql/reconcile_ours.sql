-- Attempts of a provider (and account) in a period, and of a margin around it, with everything that corrects them.
INSERT INTO ours
WITH corrections AS (
    SELECT
        corrects,
        coalesce(sum(input_tokens), 0) AS input_tokens,
        coalesce(sum(cached_tokens), 0) AS cached_tokens,
        coalesce(sum(cache_write_tokens), 0) AS cache_write_tokens,
        coalesce(sum(output_tokens), 0) AS output_tokens,
        sum(cost_pico) AS cost_pico,
        (array_agg(usage_source ORDER BY substring(attempt_id FROM '~(\d+)\+$')::bigint DESC)
            FILTER (WHERE attempt_id LIKE '%%+'))[1] AS usage_source,
        (array_agg(price_id ORDER BY substring(attempt_id FROM '~(\d+)\+$')::bigint DESC)
            FILTER (WHERE attempt_id LIKE '%%+'))[1] AS price_id
    FROM ledger
    WHERE corrects IS NOT NULL
      AND key_id <> 'unattributed'
      AND provider = %(provider)s
      AND started_at >= %(start)s::timestamptz - %(margin)s::interval
    GROUP BY corrects
)
SELECT
    l.attempt_id, l.upstream_request_id, l.account, l.model, l.upstream_model, coalesce(l.restates, l.started_at),
    l.finished_at, l.status, coalesce(c.usage_source, l.usage_source), coalesce(c.price_id, l.price_id),
    l.input_tokens + coalesce(c.input_tokens, 0),
    coalesce(l.cached_tokens, 0) + coalesce(c.cached_tokens, 0),
    l.cache_write_tokens + coalesce(c.cache_write_tokens, 0),
    l.output_tokens + coalesce(c.output_tokens, 0),
    l.cost_pico + coalesce(c.cost_pico, 0),
    false,
    0,
    coalesce(l.restates, l.started_at) >= %(start)s AND coalesce(l.restates, l.started_at) < %(end)s
FROM ledger AS l
LEFT JOIN corrections AS c ON c.corrects = l.attempt_id
WHERE l.corrects IS NULL
  AND l.provider = %(provider)s
  AND (%(account)s::text IS NULL OR l.account = %(account)s)
  AND l.started_at >= %(start)s::timestamptz - %(margin)s::interval
  AND (l.started_at < %(end)s::timestamptz + %(margin)s::interval
       OR l.restates < %(end)s::timestamptz + %(margin)s::interval)
  AND coalesce(l.restates, l.started_at) >= %(start)s::timestamptz - %(margin)s::interval
UNION ALL
SELECT
    corrects, max(upstream_request_id), max(account), max(model), max(upstream_model),
    min(coalesce(restates, started_at)), min(coalesce(restates, started_at)), 'succeeded', 'provider', '', 0, 0, 0, 0,
    sum(cost_pico), true,
    max(substring(attempt_id FROM '~(\d+)[-+=]$')::bigint),
    min(coalesce(restates, started_at)) >= %(start)s AND min(coalesce(restates, started_at)) < %(end)s
FROM ledger
WHERE key_id = 'unattributed'
  AND corrects IS NOT NULL
  AND provider = %(provider)s
  AND (%(account)s::text IS NULL OR account = %(account)s)
  AND started_at >= %(start)s::timestamptz - %(margin)s::interval
GROUP BY corrects
HAVING min(coalesce(restates, started_at)) >= %(start)s::timestamptz - %(margin)s::interval
   AND min(coalesce(restates, started_at)) < %(end)s::timestamptz + %(margin)s::interval

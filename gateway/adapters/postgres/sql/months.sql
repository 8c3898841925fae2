-- Every month that something counts in or that was closed; how many rows an open one has is counted.
SELECT
    (coalesce(s.month, c.month)::timestamp AT TIME ZONE 'UTC') AS month, coalesce(s.cost_pico, 0)::text AS cost_pico,
    coalesce(s.estimated_pico, 0)::text AS estimated_pico, coalesce(s.restated_pico, 0)::text AS restated_pico,
    CASE WHEN c.month IS NULL THEN (
        SELECT count(*) FROM ledger
        WHERE started_at >= s.month::timestamp AT TIME ZONE 'UTC'
          AND started_at < (s.month::timestamp + interval '1 month') AT TIME ZONE 'UTC'
    ) ELSE c.rows END AS rows,
    c.closed_at, c.closed_by, c.reason, c.organisation_name, c.cost_pico::text AS closed_pico, c.ledger_sha256,
    c.focus_sha256, c.days, c.archived_at, c.archive
FROM (
    SELECT
        (bucket AT TIME ZONE 'UTC')::date AS month, sum(cost_pico) AS cost_pico,
        sum(estimated_pico) AS estimated_pico, sum(restated_pico) AS restated_pico
    FROM spend_rollup
    WHERE grain = 'month' AND (%(month)s::date IS NULL OR bucket = %(month)s::date::timestamp AT TIME ZONE 'UTC')
    GROUP BY bucket
) AS s
FULL JOIN (SELECT * FROM ledger_closings WHERE %(month)s::date IS NULL OR month = %(month)s) AS c
    ON s.month = c.month
ORDER BY 1

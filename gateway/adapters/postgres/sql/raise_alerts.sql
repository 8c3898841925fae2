-- Raises an alert for every share of a budget that is passed in a window, and answers which. Once for each budget,
-- window and share; again only when the limit was raised since and the share of the new one is passed too.
-- Looked at are budgets that were changed within `seconds`, or all of them, in the window of `now`; and those whose
-- scope has posted within `seconds`, in the window of that posting unless it was over before today began: what was
-- spent just before midnight is posted after it. Alerts are inserted in one order, so that two workers that see the
-- same wait for each other and never lock up.
WITH today AS (
    SELECT time_zone, (%(now)s::timestamptz AT TIME ZONE time_zone)::date AS day
    FROM organisation
    LIMIT 1 -- there is no other; now the planner knows, and reads only what is touched
),
touched AS (
    SELECT scope, day FROM budget_postings WHERE moved_at > now() - %(seconds)s * interval '1 second'
    UNION
    SELECT b.scope, today.day
    FROM budgets AS b CROSS JOIN today
    WHERE b.changed_at > CASE WHEN %(all)s THEN '-infinity' ELSE now() - %(seconds)s * interval '1 second' END
),
windows AS (
    SELECT DISTINCT b.budget_id, first.first_day, until.until_day
    FROM touched AS t
    JOIN budgets AS b ON b.scope = t.scope
    CROSS JOIN today
    CROSS JOIN LATERAL (
        SELECT CASE b.period
            WHEN 'day' THEN t.day
            WHEN 'week' THEN date_trunc('week', t.day::timestamp)::date
            WHEN 'month' THEN date_trunc('month', t.day::timestamp)::date
        END AS first_day
    ) AS first
    CROSS JOIN LATERAL (
        SELECT CASE b.period
            WHEN 'day' THEN first.first_day + 1
            WHEN 'week' THEN first.first_day + 7
            WHEN 'month' THEN (first.first_day + interval '1 month')::date
        END AS until_day
    ) AS until
    WHERE until.until_day IS NULL OR until.until_day >= today.day
),
untold AS (
    SELECT w.budget_id, w.first_day, w.until_day, array_agg(DISTINCT s.share) AS shares
    FROM windows AS w
    JOIN budgets AS b USING (budget_id)
    CROSS JOIN LATERAL unnest(b.alert_at) AS s (share)
    WHERE s.share > 0
    AND NOT EXISTS (
        SELECT FROM budget_alerts AS a
        WHERE a.budget_id = w.budget_id
        AND coalesce(a.first_day, '-infinity') = coalesce(w.first_day, '-infinity')
        AND a.share = s.share
        AND a.limit_pico >= b.limit_pico
    )
    GROUP BY w.budget_id, w.first_day, w.until_day
),
spent AS (
    SELECT u.*, b.scope, b.period, b.mode, b.limit_pico, p.spent_pico
    FROM untold AS u
    JOIN budgets AS b USING (budget_id)
    CROSS JOIN LATERAL (
        SELECT sum(posted_pico) AS spent_pico
        FROM budget_postings
        WHERE scope = b.scope
        AND day >= coalesce(u.first_day, '-infinity')
        AND day < coalesce(u.until_day, 'infinity')
    ) AS p
    WHERE p.spent_pico > 0
)
INSERT INTO budget_alerts (
    budget_id, scope, name, period, mode, limit_pico, first_day, time_zone, share, spent_pico
)
SELECT
    spent.budget_id,
    spent.scope,
    CASE
        WHEN k.key_id IS NOT NULL THEN 'key "' || k.name || '"'
        WHEN spent.scope LIKE 'team:%%' THEN 'team "' || substr(spent.scope, 6) || '"'
        ELSE spent.scope
    END,
    spent.period,
    spent.mode,
    spent.limit_pico,
    spent.first_day,
    today.time_zone,
    share,
    spent.spent_pico
FROM spent
CROSS JOIN today
CROSS JOIN LATERAL unnest(spent.shares) AS share
LEFT JOIN api_keys AS k ON spent.scope LIKE 'key:%%' AND k.key_id = substr(spent.scope, 5)
WHERE spent.spent_pico * 100 >= spent.limit_pico * share
ORDER BY spent.budget_id, spent.first_day, share
ON CONFLICT DO NOTHING
RETURNING share

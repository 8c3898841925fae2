-- The alert that has waited longest for its next try, ours for `lease_seconds`; nobody's who is at it already. Whoever
-- is killed meanwhile leaves it to the next one.
UPDATE budget_alerts
SET tries = tries + 1, next_try_at = clock_timestamp() + %(lease_seconds)s * interval '1 second'
WHERE alert_id = (
    SELECT alert_id
    FROM budget_alerts
    WHERE delivered_at IS NULL AND given_up_at IS NULL AND next_try_at <= now()
    ORDER BY next_try_at
    LIMIT 1
    FOR UPDATE SKIP LOCKED
)
RETURNING *

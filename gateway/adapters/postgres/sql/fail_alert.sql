-- A try has failed: the next one is in so many seconds, and none after an alert's `seconds_max`. Nothing happens where
-- somebody else has taken the alert over since, or told it.
UPDATE budget_alerts
SET
    last_error = %(error)s,
    next_try_at = clock_timestamp() + %(seconds)s * interval '1 second',
    given_up_at = CASE
        WHEN clock_timestamp() + %(seconds)s * interval '1 second' > raised_at + %(seconds_max)s * interval '1 second'
        THEN clock_timestamp()
    END
WHERE alert_id = %(alert_id)s AND tries = %(tries)s AND delivered_at IS NULL
RETURNING given_up_at IS NOT NULL AS is_given_up

-- Alerts, the latest first, after the one that a page ended with.
SELECT *
FROM budget_alerts
WHERE %(before)s::text IS NULL
OR (raised_at, alert_id) < (SELECT raised_at, alert_id FROM budget_alerts WHERE alert_id = %(before)s)
ORDER BY raised_at DESC, alert_id DESC
LIMIT %(limit)s

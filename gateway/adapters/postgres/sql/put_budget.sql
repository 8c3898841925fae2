-- One limit of a scope and a period, as it is from now on; what was spent is not touched by it.
INSERT INTO budgets (scope, period, limit_pico, mode, on_outage, alert_at, created_at)
VALUES (
    %(scope)s, %(period)s, %(limit_pico)s, %(mode)s, %(on_outage)s, %(alert_at)s, %(created_at)s
)
ON CONFLICT (scope, period) DO UPDATE SET
    limit_pico = excluded.limit_pico,
    mode = excluded.mode,
    on_outage = excluded.on_outage,
    alert_at = excluded.alert_at,
    created_at = least(budgets.created_at, excluded.created_at)

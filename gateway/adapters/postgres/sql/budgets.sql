-- Budgets by scope and period: those of some scopes, or a page of all; of one tenant or of the whole organisation.
SELECT
    b.budget_id, b.scope, b.period, b.limit_pico::text AS limit_pico, b.mode, b.on_outage, b.alert_at, b.created_at,
    coalesce(k.team, t.name) AS team, organisation.time_zone
FROM budgets AS b
CROSS JOIN organisation
LEFT JOIN api_keys AS k ON b.scope = 'key:' || k.key_id
LEFT JOIN teams AS t ON b.scope = 'team:' || t.name
WHERE (%(scopes)s::text[] IS NULL OR b.scope = ANY (%(scopes)s))
  AND (%(team)s::text IS NULL OR coalesce(k.team, t.name) = %(team)s)
  AND (%(after_scope)s::text IS NULL OR (b.scope, b.period) > (%(after_scope)s, %(after_period)s::text))
ORDER BY b.scope, b.period
LIMIT %(limit)s

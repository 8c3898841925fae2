-- Who holds the key with this digest: its rights, the limits of the key and of its team, and every budget it falls under.
SELECT
    k.key_id, k.name, k.team, k.role, k.models, k.providers, k.tags,
    least(k.expires_at, s.expires_at) AS expires_at,
    least(coalesce(k.rpm, t.key_default_rpm), t.key_max_rpm) AS rpm,
    least(coalesce(k.tpm, t.key_default_tpm), t.key_max_tpm) AS tpm,
    least(coalesce(k.concurrency, t.key_default_concurrency), t.key_max_concurrency) AS concurrency,
    t.models AS team_models, t.providers AS team_providers, t.tags AS team_tags,
    t.rpm AS team_rpm, t.tpm AS team_tpm, t.concurrency AS team_concurrency,
    organisation.time_zone,
    (
        SELECT coalesce(jsonb_agg(jsonb_build_object(
            'budget_id', b.budget_id, 'scope', b.scope, 'period', b.period, 'limit_pico', b.limit_pico::text,
            'mode', b.mode, 'on_outage', b.on_outage, 'alert_at', b.alert_at
        )), '[]')
        FROM budgets AS b
        WHERE b.scope IN ('key:' || k.key_id, 'team:' || k.team, 'organisation')
    ) AS budgets
FROM api_key_secrets AS s
JOIN api_keys AS k USING (key_id)
LEFT JOIN teams AS t ON t.name = k.team
CROSS JOIN organisation
WHERE s.digest = %s AND k.revoked_at IS NULL

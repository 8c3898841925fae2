-- Teams as administrators see them, by name: one of them, or a page.
SELECT
    t.name, t.models, t.providers, t.rpm, t.tpm, t.concurrency, t.key_default_rpm, t.key_default_tpm,
    t.key_default_concurrency, t.key_max_rpm, t.key_max_tpm, t.key_max_concurrency, t.tags, t.created_at,
    (SELECT count(*) FROM api_keys AS k WHERE k.team = t.name AND k.revoked_at IS NULL) AS keys
FROM teams AS t
WHERE (%(name)s::text IS NULL OR t.name = %(name)s)
  AND (%(after)s::text IS NULL OR t.name > %(after)s)
ORDER BY t.name
LIMIT %(limit)s

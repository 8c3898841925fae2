-- Keys as administrators see them, by id: one by its id or name, or a page of them; of one team or of all.
SELECT
    k.key_id, k.name, k.team, k.role, k.models, k.providers, k.rpm, k.tpm, k.concurrency, k.tags, k.created_at,
    k.expires_at, k.revoked_at,
    (SELECT s.hint FROM api_key_secrets AS s WHERE s.key_id = k.key_id ORDER BY s.created_at DESC LIMIT 1) AS hint
FROM api_keys AS k
WHERE (%(key_id)s::text IS NULL OR k.key_id = %(key_id)s)
  AND (%(name)s::text IS NULL OR (k.name = %(name)s AND k.revoked_at IS NULL))
  AND (%(team)s::text IS NULL OR k.team = %(team)s)
  AND (%(after)s::text IS NULL OR k.key_id > %(after)s)
ORDER BY k.key_id
LIMIT %(limit)s

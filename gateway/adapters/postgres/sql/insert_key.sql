-- A new key, without a secret yet.
INSERT INTO api_keys (
    key_id, name, team, role, models, providers, rpm, tpm, concurrency, tags, created_at, expires_at
)
VALUES (
    %(key_id)s, %(name)s, %(team)s, %(role)s, %(models)s, %(providers)s, %(rpm)s, %(tpm)s, %(concurrency)s, %(tags)s,
    %(now)s, %(expires_at)s
)

-- What may change of a key; its team and role are what it was made for.
UPDATE api_keys
SET
    name = %(name)s, models = %(models)s, providers = %(providers)s, rpm = %(rpm)s, tpm = %(tpm)s,
    concurrency = %(concurrency)s, tags = %(tags)s, expires_at = %(expires_at)s
WHERE key_id = %(key_id)s

-- A team as it is from now on.
INSERT INTO teams (
    name, models, providers, rpm, tpm, concurrency, key_default_rpm, key_default_tpm, key_default_concurrency,
    key_max_rpm, key_max_tpm, key_max_concurrency, tags, created_at
)
VALUES (
    %(name)s, %(models)s, %(providers)s, %(rpm)s, %(tpm)s, %(concurrency)s, %(key_default_rpm)s, %(key_default_tpm)s,
    %(key_default_concurrency)s, %(key_max_rpm)s, %(key_max_tpm)s, %(key_max_concurrency)s, %(tags)s, %(now)s
)
ON CONFLICT (name) DO UPDATE SET
    models = excluded.models,
    providers = excluded.providers,
    rpm = excluded.rpm,
    tpm = excluded.tpm,
    concurrency = excluded.concurrency,
    key_default_rpm = excluded.key_default_rpm,
    key_default_tpm = excluded.key_default_tpm,
    key_default_concurrency = excluded.key_default_concurrency,
    key_max_rpm = excluded.key_max_rpm,
    key_max_tpm = excluded.key_max_tpm,
    key_max_concurrency = excluded.key_max_concurrency,
    tags = excluded.tags

-- The staged rows that are new become ledger rows, and only those count in the roll-up and in the postings that budgets
-- are measured by (laws L4, L5, L6). Answers how many. The roll-up is updated in the order of its key, so that two
-- shippers wait for each other and never lock up; postings are the journal's own.
WITH added AS (
    INSERT INTO ledger (
        attempt_id, request_id, attempt, is_final, key_id, key_name, team, tags, surface, model, provider, account,
        upstream_model, served_model, upstream_request_id, started_at, finished_at, ttft_ms, status, http_status,
        error_type, usage_source, input_tokens, cached_tokens, cache_write_tokens, output_tokens, reasoning_tokens,
        reasoning_source, price_id, input_pico, cached_pico, cache_write_pico, output_pico, fee_pico, cost_pico,
        list_pico, flags, corrects, admitted_at, held_pico
    )
    SELECT
        attempt_id, request_id, attempt, is_final, key_id, key_name, team, tags, surface, model, provider, account,
        upstream_model, served_model, upstream_request_id, started_at, finished_at, ttft_ms, status, http_status,
        error_type, usage_source, input_tokens, cached_tokens, cache_write_tokens, output_tokens, reasoning_tokens,
        reasoning_source, price_id, input_pico, cached_pico, cache_write_pico, output_pico, fee_pico, cost_pico,
        list_pico, flags, corrects, admitted_at, held_pico
    FROM ledger_staging
    ON CONFLICT DO NOTHING
    RETURNING
        started_at, key_id, key_name, team, model, provider, account, tags, is_final, corrects, status, usage_source,
        input_tokens, cached_tokens, cache_write_tokens, output_tokens, reasoning_tokens, cost_pico, admitted_at
),
summed AS (
    SELECT
        date_bin('15 minutes', started_at, 'epoch') AS bucket,
        key_id, key_name, team, model, provider, account, tags,
        count(*) FILTER (WHERE is_final) AS requests,
        count(*) FILTER (WHERE corrects IS NULL) AS attempts,
        count(*) FILTER (WHERE corrects IS NULL AND status IN ('failed', 'abandoned')) AS failed_attempts,
        sum(input_tokens) AS input_tokens,
        coalesce(sum(cached_tokens), 0) AS cached_tokens,
        sum(cache_write_tokens) AS cache_write_tokens,
        sum(output_tokens) AS output_tokens,
        coalesce(sum(reasoning_tokens), 0) AS reasoning_tokens,
        sum(cost_pico) AS cost_pico,
        coalesce(sum(cost_pico) FILTER (WHERE usage_source = 'estimated'), 0) AS estimated_cost_pico,
        coalesce(sum(cost_pico) FILTER (WHERE status IN ('failed', 'abandoned')), 0) AS failed_cost_pico
    FROM added
    GROUP BY 1, key_id, key_name, team, model, provider, account, tags
),
rolled_up AS (
    INSERT INTO spend_rollup AS r (
        bucket, group_digest, key_id, key_name, team, model, provider, account, tags, requests, attempts,
        failed_attempts, input_tokens, cached_tokens, cache_write_tokens, output_tokens, reasoning_tokens, cost_pico,
        estimated_cost_pico, failed_cost_pico
    )
    SELECT
        bucket,
        sha256(convert_to(jsonb_build_array(key_id, key_name, team, model, provider, account, tags)::text, 'UTF8'))
            AS group_digest,
        key_id, key_name, team, model, provider, account, tags, requests, attempts, failed_attempts, input_tokens,
        cached_tokens, cache_write_tokens, output_tokens, reasoning_tokens, cost_pico, estimated_cost_pico,
        failed_cost_pico
    FROM summed
    ORDER BY bucket, group_digest
    ON CONFLICT (bucket, group_digest) DO UPDATE SET
        requests = r.requests + excluded.requests,
        attempts = r.attempts + excluded.attempts,
        failed_attempts = r.failed_attempts + excluded.failed_attempts,
        input_tokens = r.input_tokens + excluded.input_tokens,
        cached_tokens = r.cached_tokens + excluded.cached_tokens,
        cache_write_tokens = r.cache_write_tokens + excluded.cache_write_tokens,
        output_tokens = r.output_tokens + excluded.output_tokens,
        reasoning_tokens = r.reasoning_tokens + excluded.reasoning_tokens,
        cost_pico = r.cost_pico + excluded.cost_pico,
        estimated_cost_pico = r.estimated_cost_pico + excluded.estimated_cost_pico,
        failed_cost_pico = r.failed_cost_pico + excluded.failed_cost_pico
),
posted AS (
    INSERT INTO budget_postings AS p (scope, day, journal_id, posted_pico, rows)
    SELECT
        scopes.scope,
        (coalesce(admitted_at, started_at) AT TIME ZONE organisation.time_zone)::date AS day,
        %(journal_id)s,
        sum(cost_pico),
        count(*)
    FROM added
    CROSS JOIN organisation
    CROSS JOIN LATERAL (VALUES ('key:' || key_id), ('team:' || team), ('organisation')) AS scopes (scope)
    WHERE scopes.scope IS NOT NULL
    GROUP BY 1, 2
    ORDER BY 1, 2
    ON CONFLICT (scope, day, journal_id) DO UPDATE SET
        posted_pico = p.posted_pico + excluded.posted_pico,
        rows = p.rows + excluded.rows,
        moved_at = clock_timestamp()
)
SELECT count(*) FROM added

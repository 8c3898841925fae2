-- The staged rows that are new become ledger rows, and only those count in the roll-ups and in the postings that budgets
-- are measured by (laws L4, L5, L6). Answers how many. What arrives after its month was closed counts when the first open
-- month begins, once. Groups, roll-ups and postings are written in the order of their keys, so that two shippers wait for
-- each other and never lock up. Whoever runs this holds the lock of closing, shared.
WITH closed AS MATERIALIZED (
    SELECT closed_until() AS closed_until
),
staged AS (
    SELECT s.*, closed_until, corrects IS NULL AND started_at < closed_until AS is_late
    FROM ledger_staging AS s
    CROSS JOIN closed
),
late AS (
    INSERT INTO late_attempts (attempt_id, started_at, counted_at)
    SELECT attempt_id, started_at, closed_until
    FROM staged
    WHERE is_late AND NOT EXISTS (
        SELECT FROM ledger AS l WHERE l.started_at = staged.started_at AND l.attempt_id = staged.attempt_id
    )
    ON CONFLICT DO NOTHING
    RETURNING attempt_id
),
added AS (
    INSERT INTO ledger (
        attempt_id, request_id, attempt, is_final, key_id, key_name, team, tags, surface, model, provider, account,
        upstream_model, served_model, upstream_request_id, started_at, finished_at, ttft_ms, status, http_status,
        error_type, usage_source, input_tokens, cached_tokens, cache_write_tokens, output_tokens, reasoning_tokens,
        reasoning_source, price_id, input_pico, cached_pico, cache_write_pico, output_pico, fee_pico, cost_pico,
        list_pico, flags, corrects, admitted_at, held_pico, correction_id, restates
    )
    SELECT
        attempt_id, request_id, attempt, is_final, key_id, key_name, team, tags, surface, model, provider, account,
        upstream_model, served_model, upstream_request_id, CASE WHEN is_late THEN closed_until ELSE started_at END,
        finished_at, ttft_ms, status, http_status, error_type, usage_source, input_tokens, cached_tokens,
        cache_write_tokens, output_tokens, reasoning_tokens, reasoning_source, price_id, input_pico, cached_pico,
        cache_write_pico, output_pico, fee_pico, cost_pico, list_pico, flags, corrects, admitted_at, held_pico,
        correction_id, CASE WHEN is_late THEN started_at ELSE restates END
    FROM staged
    WHERE NOT is_late OR attempt_id IN (SELECT attempt_id FROM late)
    ON CONFLICT DO NOTHING
    RETURNING *
),
-- A batch's sums are bigints, which are far cheaper to add up again than numerics; nine million dollars of one group in
-- one batch are refused, and come again in smaller ones.
summed AS (
    SELECT
        date_bin('15 minutes', started_at, 'epoch') AS bucket,
        key_id, key_name, team, tags, model, provider, account, price_id, status, usage_source,
        restates IS NOT NULL AS is_restated,
        cache_write_unit(cache_write_tokens, cache_write_pico) AS cache_write_unit,
        count(*) FILTER (WHERE is_final AND corrects IS NULL) AS requests,
        count(*) FILTER (WHERE corrects IS NULL) AS attempts,
        sum(input_tokens)::bigint AS input_tokens,
        coalesce(sum(cached_tokens), 0)::bigint AS cached_tokens,
        sum(cache_write_tokens)::bigint AS cache_write_tokens,
        sum(output_tokens)::bigint AS output_tokens,
        coalesce(sum(reasoning_tokens), 0)::bigint AS reasoning_tokens,
        sum(input_pico)::bigint AS input_pico,
        sum(cached_pico)::bigint AS cached_pico,
        sum(cache_write_pico)::bigint AS cache_write_pico,
        sum(output_pico)::bigint AS output_pico,
        sum(fee_pico)::bigint AS fee_pico,
        sum(cost_pico)::bigint AS cost_pico,
        sum(list_pico)::bigint AS list_pico
    FROM added
    GROUP BY 1, key_id, key_name, team, tags, model, provider, account, price_id, status, usage_source, 12, 13
),
counted AS MATERIALIZED (
    SELECT
        *,
        spend_group_id(
            key_id, key_name, team, tags, model, provider, account, price_id, status, usage_source, is_restated,
            cache_write_unit
        ) AS group_id,
        spend_group_id(
            key_id, key_name, team, tags, model, provider, account, price_id, NULL, NULL, NULL, NULL
        ) AS whole_id,
        CASE WHEN status IN ('failed', 'abandoned') THEN attempts ELSE 0 END AS failed_attempts,
        CASE WHEN status = 'aborted' THEN attempts ELSE 0 END AS aborted_attempts,
        CASE WHEN status IN ('failed', 'abandoned') THEN cost_pico ELSE 0 END AS failed_pico,
        CASE WHEN status = 'aborted' THEN cost_pico ELSE 0 END AS aborted_pico,
        CASE WHEN usage_source = 'estimated' THEN cost_pico ELSE 0 END AS estimated_pico,
        CASE WHEN is_restated THEN cost_pico ELSE 0 END AS restated_pico
    FROM summed
),
named AS (
    INSERT INTO spend_groups (
        group_id, key_id, key_name, team, tags, model, provider, account, price_id, status, usage_source, is_restated,
        cache_write_unit
    )
    SELECT DISTINCT ON (id)
        id, key_id, key_name, team, tags, model, provider, account, price_id, of_status, of_source, of_restated, of_unit
    FROM counted
    CROSS JOIN LATERAL (VALUES
        (group_id, status, usage_source, is_restated, cache_write_unit), (whole_id, NULL, NULL, NULL, NULL)
    ) AS ids (id, of_status, of_source, of_restated, of_unit)
    ORDER BY id
    ON CONFLICT DO NOTHING
),
rolled_up AS (
    INSERT INTO spend_rollup AS r (
        grain, bucket, group_id, requests, attempts, failed_attempts, aborted_attempts, input_tokens, cached_tokens,
        cache_write_tokens, output_tokens, reasoning_tokens, input_pico, cached_pico, cache_write_pico, output_pico,
        fee_pico, cost_pico, list_pico, failed_pico, aborted_pico, estimated_pico, restated_pico
    )
    SELECT
        'quarter' AS grain, bucket AS of_grain, group_id AS id, requests, attempts, failed_attempts, aborted_attempts,
        input_tokens, cached_tokens, cache_write_tokens, output_tokens, reasoning_tokens, input_pico, cached_pico,
        cache_write_pico, output_pico, fee_pico, cost_pico, list_pico, failed_pico, aborted_pico, estimated_pico,
        restated_pico
    FROM counted
    UNION ALL
    SELECT
        grains.grain, grains.of_grain, whole_id, sum(requests), sum(attempts), sum(failed_attempts),
        sum(aborted_attempts), sum(input_tokens), sum(cached_tokens), sum(cache_write_tokens), sum(output_tokens),
        sum(reasoning_tokens), sum(input_pico), sum(cached_pico), sum(cache_write_pico), sum(output_pico),
        sum(fee_pico), sum(cost_pico), sum(list_pico), sum(failed_pico), sum(aborted_pico), sum(estimated_pico),
        sum(restated_pico)
    FROM counted
    CROSS JOIN LATERAL (VALUES
        ('day', date_trunc('day', bucket, 'UTC')), ('month', date_trunc('month', bucket, 'UTC'))
    ) AS grains (grain, of_grain)
    GROUP BY grains.grain, grains.of_grain, whole_id
    ORDER BY grain, of_grain, id
    ON CONFLICT (grain, bucket, group_id) DO UPDATE SET
        requests = r.requests + excluded.requests,
        attempts = r.attempts + excluded.attempts,
        failed_attempts = r.failed_attempts + excluded.failed_attempts,
        aborted_attempts = r.aborted_attempts + excluded.aborted_attempts,
        input_tokens = r.input_tokens + excluded.input_tokens,
        cached_tokens = r.cached_tokens + excluded.cached_tokens,
        cache_write_tokens = r.cache_write_tokens + excluded.cache_write_tokens,
        output_tokens = r.output_tokens + excluded.output_tokens,
        reasoning_tokens = r.reasoning_tokens + excluded.reasoning_tokens,
        input_pico = r.input_pico + excluded.input_pico,
        cached_pico = r.cached_pico + excluded.cached_pico,
        cache_write_pico = r.cache_write_pico + excluded.cache_write_pico,
        output_pico = r.output_pico + excluded.output_pico,
        fee_pico = r.fee_pico + excluded.fee_pico,
        cost_pico = r.cost_pico + excluded.cost_pico,
        list_pico = r.list_pico + excluded.list_pico,
        failed_pico = r.failed_pico + excluded.failed_pico,
        aborted_pico = r.aborted_pico + excluded.aborted_pico,
        estimated_pico = r.estimated_pico + excluded.estimated_pico,
        restated_pico = r.restated_pico + excluded.restated_pico
),
posted AS (
    INSERT INTO budget_postings AS p (scope, day, journal_id, posted_pico, rows)
    SELECT
        scopes.scope,
        (coalesce(admitted_at, restates, started_at) AT TIME ZONE organisation.time_zone)::date AS day,
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

-- Attempts of a period as they count now, each once: its original, or its last replacement, with the sum of its
-- adjustments and the number of its last correction. An attempt belongs to the period in which it happened, wherever it
-- and what corrects it count.
WITH corrected AS MATERIALIZED (
    SELECT
        corrects AS attempt_id,
        coalesce(sum(fee_pico) FILTER (WHERE sign = '='), 0)::bigint AS adjusted_pico,
        max(number) AS revision,
        max(number) FILTER (WHERE sign = '+') AS replaced_by
    FROM (
        SELECT
            corrects, fee_pico, right(attempt_id, 1) AS sign,
            substring(attempt_id FROM '~([0-9]+)[-+=]$')::bigint AS number
        FROM {rows} AS c
        WHERE corrects IS NOT NULL
          AND coalesce(restates, started_at) >= %(start)s AND coalesce(restates, started_at) < %(end)s
          AND started_at >= %(start)s
          AND (%(attempt_id)s::text IS NULL OR corrects = %(attempt_id)s)
    ) AS numbered
    GROUP BY corrects
)
SELECT {columns}, coalesce(restates, started_at) AS original_started_at, adjusted_pico, revision
FROM (
    SELECT l.*, coalesce(c.adjusted_pico, 0) AS adjusted_pico, coalesce(c.revision, 0) AS revision
    FROM {rows} AS l
    LEFT JOIN corrected AS c USING (attempt_id)
    WHERE l.started_at >= %(start)s AND l.started_at < %(end)s AND l.corrects IS NULL AND l.restates IS NULL
      AND c.replaced_by IS NULL
    UNION ALL
    SELECT l.*, coalesce(c.adjusted_pico, 0), coalesce(c.revision, 0)
    FROM late_attempts AS late
    JOIN {rows} AS l ON l.started_at = late.counted_at AND l.attempt_id = late.attempt_id
    LEFT JOIN corrected AS c ON c.attempt_id = late.attempt_id
    WHERE late.started_at >= %(start)s AND late.started_at < %(end)s AND c.replaced_by IS NULL
    UNION ALL
    SELECT l.*, c.adjusted_pico, c.revision
    FROM corrected AS c
    JOIN {rows} AS l ON l.corrects = c.attempt_id AND l.attempt_id = c.attempt_id || '~' || c.replaced_by || '+'
    WHERE c.replaced_by IS NOT NULL AND l.started_at >= %(start)s
) AS in_force
WHERE (%(attempt_id)s::text IS NULL OR coalesce(corrects, attempt_id) = %(attempt_id)s)
  AND (%(provider)s::text IS NULL OR provider = %(provider)s)
  AND (%(account)s::text IS NULL OR account = %(account)s)
  AND (%(model)s::text IS NULL OR model = %(model)s)
  AND (
      %(price_ids)s::text[] IS NULL
      OR usage_source <> 'none' AND NOT EXISTS (
          SELECT
          FROM unnest(%(price_ids)s::text[], %(price_begins)s::timestamptz[], %(price_ends)s::timestamptz[])
              AS span (price_id, begins, ends)
          WHERE span.price_id = in_force.price_id
            AND coalesce(in_force.restates, in_force.started_at) >= span.begins
            AND coalesce(in_force.restates, in_force.started_at) < span.ends
      )
  )

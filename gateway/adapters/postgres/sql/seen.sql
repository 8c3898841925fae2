-- This worker lives; whoever else was seen lately does too. The generation is the last that anybody has founded.
WITH
seen AS (
    INSERT INTO workers (worker_id) VALUES (%(worker_id)s)
    ON CONFLICT (worker_id) DO UPDATE SET seen_at = clock_timestamp()
),
gone AS (
    DELETE FROM workers WHERE seen_at < clock_timestamp() - interval '1 day' AND worker_id <> %(worker_id)s
)
SELECT
    generation,
    ARRAY(
        SELECT worker_id FROM workers WHERE seen_at > clock_timestamp() - %(live_seconds)s * interval '1 second'
    ) AS live
FROM shared_state

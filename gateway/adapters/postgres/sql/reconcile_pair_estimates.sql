-- An estimate without a request id, and the one line of its model and time that nobody else stands for: where both have
-- no other choice.
INSERT INTO pairs
WITH left_there AS MATERIALIZED (
    SELECT number, request_id, at, lower(model) AS model
    FROM statement_lines AS l
    WHERE NOT EXISTS (SELECT FROM pairs WHERE pairs.number = l.number)
      AND NOT EXISTS (SELECT FROM ours WHERE ours.request_id = l.request_id)
),
left_here AS MATERIALIZED (
    SELECT
        attempt_id, request_id, lower(upstream_model) AS model, started_at - %(early)s::interval AS earliest,
        least(started_at + %(lag)s::interval, finished_at + %(late)s::interval) AS latest
    FROM ours
    WHERE usage_source = 'estimated'
      AND NOT is_unattributed
      AND NOT EXISTS (SELECT FROM pairs WHERE pairs.attempt_id = ours.attempt_id)
),
counted AS (
    SELECT
        number, attempt_id,
        count(*) OVER (PARTITION BY number) AS attempts,
        count(*) OVER (PARTITION BY attempt_id) AS lines
    FROM left_there AS l
    JOIN left_here AS o ON l.model = o.model AND l.at >= earliest AND l.at <= latest
    WHERE o.request_id IS NULL OR l.request_id IS NULL
)
SELECT number, attempt_id, 'model and time' FROM counted WHERE attempts = 1 AND lines = 1

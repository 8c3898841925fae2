-- An estimate without a request id, and the one line of its model and time that nobody else stands for: where both have
-- no other choice.
INSERT INTO pairs
WITH candidates AS (
    SELECT l.number, o.attempt_id
    FROM statement_lines AS l
    JOIN ours AS o
        ON lower(o.upstream_model) = lower(l.model)
        AND l.at >= o.started_at - %(early)s::interval
        AND l.at <= least(o.started_at + %(lag)s::interval, o.finished_at + %(late)s::interval)
    WHERE o.usage_source = 'estimated'
      AND NOT o.is_unattributed
      AND (o.request_id IS NULL OR l.request_id IS NULL)
      AND NOT EXISTS (SELECT FROM pairs WHERE pairs.number = l.number)
      AND NOT EXISTS (SELECT FROM pairs WHERE pairs.attempt_id = o.attempt_id)
      AND NOT EXISTS (SELECT FROM ours AS known WHERE known.request_id = l.request_id)
),
counted AS (
    SELECT
        number, attempt_id,
        count(*) OVER (PARTITION BY number) AS attempts,
        count(*) OVER (PARTITION BY attempt_id) AS lines
    FROM candidates
)
SELECT number, attempt_id, 'model and time' FROM counted WHERE attempts = 1 AND lines = 1

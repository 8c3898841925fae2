-- Lines and attempts of one request id, the first with the first; then what was booked from an earlier statement for a
-- line without one.
INSERT INTO pairs
WITH theirs AS (
    SELECT number, request_id, row_number() OVER (PARTITION BY request_id ORDER BY number) AS nth
    FROM statement_lines
    WHERE request_id IS NOT NULL
),
known AS (
    SELECT
        attempt_id, request_id,
        row_number() OVER (PARTITION BY request_id ORDER BY is_unattributed, started_at, attempt_id) AS nth
    FROM ours
    WHERE request_id IS NOT NULL
)
SELECT number, attempt_id, 'request id' FROM theirs JOIN known USING (request_id, nth)
UNION ALL
SELECT number, attempt_id, 'an earlier statement'
FROM statement_lines
JOIN line_names USING (number)
JOIN ours ON line_name = substr(attempt_id, length(%(provider)s) + length(account) + 3)
WHERE statement_lines.request_id IS NULL AND ours.request_id IS NULL AND is_unattributed

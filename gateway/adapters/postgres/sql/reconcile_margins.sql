-- How far lines of known attempts are from them in time: before the start, after it, after the end.
SELECT
    count(*) AS pairs,
    greatest(max(started_at - at - %(resolution)s::interval), '0') AS early,
    greatest(max(at - started_at), '0') AS lag,
    greatest(max(at - finished_at), '0') AS late
FROM pairs
JOIN statement_lines USING (number)
JOIN ours USING (attempt_id)
WHERE at IS NOT NULL AND NOT is_unattributed

-- What is not as it should be, class by class, in order of time.
SELECT *
FROM compared
WHERE class = ANY (%(classes)s)
ORDER BY array_position(%(classes)s, class), coalesce(at, started_at), number, attempt_id

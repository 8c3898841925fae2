-- Every attempt of a request, with what corrects it; of one team or of all.
SELECT *
FROM ledger
WHERE request_id = %(request_id)s AND (%(team)s::text IS NULL OR team = %(team)s)
ORDER BY attempt, recorded_at

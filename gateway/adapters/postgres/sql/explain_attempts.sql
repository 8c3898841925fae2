-- Every attempt of a request, with what corrects it and why; of one team or of all.
SELECT
    l.*, c.kind AS correction_kind, c.actor AS correction_actor,
    c.reason AS correction_reason, c.made_at AS correction_made_at
FROM ledger AS l
LEFT JOIN corrections AS c USING (correction_id)
WHERE l.request_id = %(request_id)s AND (%(team)s::text IS NULL OR l.team = %(team)s)
ORDER BY l.attempt, l.corrects IS NOT NULL, l.recorded_at, l.attempt_id

-- What was decided for a request; for one team only if its key is the team's.
SELECT e.plan::text AS plan
FROM exchanges AS e
WHERE e.request_id = %(request_id)s
  AND (
      %(team)s::text IS NULL
      OR EXISTS (SELECT FROM api_keys AS k WHERE k.key_id = e.key_id AND k.team = %(team)s)
  )
ORDER BY e.made_at
LIMIT 1

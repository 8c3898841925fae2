-- Audit entries, newest first.
SELECT entry_id, at, actor, action, target, team, before, after, request_id, previous_hash, hash
FROM audit_entries
WHERE (%(before)s::bigint IS NULL OR entry_id < %(before)s)
  AND (%(action)s::text IS NULL OR action = %(action)s)
  AND (%(target)s::text IS NULL OR target = %(target)s)
  AND (%(team)s::text IS NULL OR team = %(team)s)
ORDER BY entry_id DESC
LIMIT %(limit)s

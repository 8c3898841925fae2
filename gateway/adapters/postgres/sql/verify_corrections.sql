-- The first correction of a month that corrects nothing there is, or that no batch gives a reason for. What corrects an
-- archived month is not looked for.
SELECT c.attempt_id, c.corrects, c.correction_id
FROM ledger AS c
WHERE c.started_at >= %(start)s AND c.started_at < %(end)s AND c.corrects IS NOT NULL
  AND (
      NOT EXISTS (SELECT FROM corrections AS b WHERE b.correction_id = c.correction_id)
      OR c.key_id <> %(unattributed)s AND coalesce(c.restates, c.started_at) >= archived_until()
      AND NOT EXISTS (
          SELECT FROM ledger AS l
          WHERE l.started_at = coalesce(c.restates, c.started_at) AND l.attempt_id = c.corrects
      )
      AND NOT EXISTS (
          SELECT FROM late_attempts AS late JOIN ledger AS l ON l.started_at = late.counted_at
          WHERE late.attempt_id = c.corrects AND l.attempt_id = c.corrects
      )
  )
ORDER BY c.started_at, c.attempt_id
LIMIT 1

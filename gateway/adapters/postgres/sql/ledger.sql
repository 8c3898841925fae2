-- Every attempt and correction of a period; of one team or of all. In one order for ever, however the database sorts its
-- texts.
SELECT *
FROM ledger
WHERE started_at >= %(start)s AND started_at < %(end)s AND (%(team)s::text IS NULL OR team = %(team)s)
  AND {where} AND {found}
ORDER BY started_at, attempt_id COLLATE "C"

-- The request behind a provider's own id, latest first: reads every row of the period, since bills are looked up rarely
-- and every shipped row would pay for an index.
SELECT request_id
FROM ledger
WHERE started_at >= %(start)s AND started_at < %(end)s AND upstream_request_id = %(upstream)s AND corrects IS NULL
ORDER BY started_at DESC
LIMIT 1

-- What the ledger has of each account in the period, and how much of it a line stands for.
SELECT
    account,
    count(*) FILTER (WHERE cost_pico <> 0 OR EXISTS (SELECT FROM pairs WHERE pairs.attempt_id = o.attempt_id))
        AS attempts,
    sum(cost_pico) AS cost_pico,
    count(*) FILTER (WHERE EXISTS (SELECT FROM pairs WHERE pairs.attempt_id = o.attempt_id)) AS paired
FROM ours AS o
WHERE is_within
GROUP BY account
ORDER BY account

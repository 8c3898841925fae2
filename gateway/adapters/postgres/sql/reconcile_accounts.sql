-- What the ledger has of each account in the period, and how much of it a line stands for.
SELECT
    account,
    count(*) FILTER (WHERE cost_pico <> 0 OR number IS NOT NULL) AS attempts,
    sum(cost_pico) AS cost_pico,
    count(number) AS paired
FROM ours
LEFT JOIN pairs USING (attempt_id)
WHERE is_within
GROUP BY account
ORDER BY account

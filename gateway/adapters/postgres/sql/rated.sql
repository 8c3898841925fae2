-- What the ledger cost, by the price rows that it was rated with, and the months in which; what corrections have taken
-- back, in whatever month, is nothing any more.
SELECT
    g.provider, g.model, g.price_id, sum(r.cost_pico) AS cost_pico,
    min(r.bucket) FILTER (WHERE r.attempts > 0) AS begins,
    (max(r.bucket) FILTER (WHERE r.attempts > 0) AT TIME ZONE 'UTC' + interval '1 month') AT TIME ZONE 'UTC' AS ends
FROM spend_rollup AS r
JOIN spend_groups AS g USING (group_id)
WHERE r.grain = 'month'
GROUP BY g.provider, g.model, g.price_id
HAVING sum(r.cost_pico) <> 0 AND sum(r.attempts) > 0
ORDER BY g.provider, g.model, g.price_id

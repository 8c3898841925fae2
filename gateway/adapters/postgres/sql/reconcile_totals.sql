-- The sums of each class; of those that were paired also what came of estimates, and what lies outside of the period.
SELECT
    class,
    count(*) AS count,
    coalesce(sum(amount_pico), 0) AS amount_pico,
    coalesce(sum(cost_pico), 0) AS cost_pico,
    count(*) FILTER (WHERE usage_source = 'estimated' AND number IS NOT NULL) AS estimates,
    count(*) FILTER (WHERE NOT is_ours_within) AS outside,
    coalesce(sum(cost_pico) FILTER (WHERE NOT is_ours_within), 0) AS outside_pico
FROM compared
GROUP BY class

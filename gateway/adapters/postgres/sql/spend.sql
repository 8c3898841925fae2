-- Spend by groups, costs in pico-dollars; of these sums only those that are asked for are made.
-- The order is that of bytes, in every database.
SELECT {asked}
FROM (
    SELECT
        {groups},
        sum(requests) AS requests,
        sum(attempts) AS attempts,
        sum(input_tokens) AS input_tokens,
        sum(cached_tokens) AS cached_tokens,
        sum(cache_write_tokens) AS cache_write_tokens,
        sum(output_tokens) AS output_tokens,
        sum(reasoning_tokens) AS reasoning_tokens,
        sum(cost_pico) AS cost,
        sum(estimated_pico) AS estimated_cost,
        sum(failed_attempts) AS failed_attempts,
        sum(failed_pico) AS failed_cost,
        sum(aborted_attempts) AS aborted_attempts,
        sum(aborted_pico) AS aborted_cost,
        sum(restated_pico) AS restated_cost,
        sum(input_pico) AS input_cost,
        sum(cached_pico) AS cached_cost,
        sum(cache_write_pico) AS cache_write_cost,
        sum(output_pico) AS output_cost,
        sum(fee_pico) AS fee_cost
    FROM ({facts}) AS facts
    WHERE {where}
    GROUP BY {grouped}
) AS summed
ORDER BY {order}

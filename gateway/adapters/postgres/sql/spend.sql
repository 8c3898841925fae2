-- Spend by groups; of these sums only those that are asked for are made. The order is that of bytes, in every database.
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
        sum(cost_pico) AS cost_pico,
        sum(estimated_pico) AS estimated_pico,
        sum(failed_attempts) AS failed_attempts,
        sum(failed_pico) AS failed_pico,
        sum(aborted_attempts) AS aborted_attempts,
        sum(aborted_pico) AS aborted_pico,
        sum(restated_pico) AS restated_pico,
        sum(input_pico) AS input_pico,
        sum(cached_pico) AS cached_pico,
        sum(cache_write_pico) AS cache_write_pico,
        sum(output_pico) AS output_pico,
        sum(fee_pico) AS fee_pico
    FROM ({facts}) AS facts
    WHERE {where}
    GROUP BY {grouped}
) AS summed
ORDER BY {order}

-- Spend by groups.
SELECT
    {groups},
    sum(requests), sum(attempts), sum(input_tokens), sum(cached_tokens), sum(cache_write_tokens), sum(output_tokens),
    sum(reasoning_tokens), sum(cost_pico), sum(estimated_pico)
FROM ({facts}) AS facts
GROUP BY {order}
ORDER BY {order}

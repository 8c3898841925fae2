-- What each class of tokens cost in each hour, by whom and at which price. A price is what the facts say a token cost:
-- where tokens of one class do not cost a whole number of pico-dollars each, they have none, and are an amount alone.
SELECT
    date_trunc('hour', at, 'UTC') AS hour, key_id, key_name, team, tags::text, model, provider, account, price_id,
    is_restated, class, unit, sum(tokens)::int8, sum(pico),
    sum(tokens) FILTER (WHERE usage_source = 'estimated')::int8,
    sum(pico) FILTER (WHERE status IN ('failed', 'abandoned')), sum(requests)::int8, sum(reasoning)::int8
FROM ({facts}) AS facts
CROSS JOIN LATERAL (VALUES
    (1, 'input', input_tokens - cached_tokens - cache_write_tokens, input_pico, 0::numeric),
    (2, 'cached_input', cached_tokens, cached_pico, 0),
    (3, 'cache_write', cache_write_tokens, cache_write_pico, 0),
    (4, 'output', output_tokens, output_pico, reasoning_tokens),
    (5, 'fee', 0, fee_pico, 0)
) AS classes (number, class, tokens, pico, reasoning)
CROSS JOIN LATERAL (
    SELECT CASE WHEN tokens <> 0 AND mod(pico, tokens) = 0 AND pico / tokens >= 0 THEN div(pico, tokens) END
) AS prices (unit)
WHERE tokens <> 0 OR pico <> 0
GROUP BY hour, key_id, key_name, team, tags, model, provider, account, price_id, is_restated, number, class, unit
HAVING sum(tokens) <> 0 OR sum(pico) <> 0
ORDER BY
    hour, key_id COLLATE "C", provider COLLATE "C", model COLLATE "C", number, price_id COLLATE "C",
    account COLLATE "C", team COLLATE "C", key_name COLLATE "C", tags::text COLLATE "C", is_restated, unit

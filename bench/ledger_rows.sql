-- Attempts of October 2026 from number %(first)s up to number %(last)s of %(rows)s in all, evenly over the month in the
-- order of their ids. Few keys do most of the work: of 1,000 keys the first hundred have a third of it. Keys are in 50
-- teams and have a tag; every fifth tells its features apart as well. Two models, three providers of two accounts each,
-- one of which says nothing of its cache; 3 %% fail, 1 %% are estimated. One provider's price changes on the 15th.
INSERT INTO ledger (
    attempt_id, request_id, attempt, is_final, key_id, key_name, team, tags, surface, model, provider, account,
    upstream_model, upstream_request_id, started_at, finished_at, ttft_ms, status, http_status, error_type,
    usage_source, input_tokens, cached_tokens, cache_write_tokens, output_tokens, reasoning_tokens, reasoning_source,
    price_id, input_pico, cached_pico, cache_write_pico, output_pico, fee_pico, cost_pico, list_pico, flags,
    admitted_at, held_pico
)
SELECT
    'att_' || id, 'req_' || id, 1, NOT is_refused, 'key_' || lpad(key::text, 4, '0'),
    'service-' || lpad(key::text, 4, '0'), 'team-' || lpad((key %% 50)::text, 2, '0'), tags, 'chat_completions', model,
    provider, account, model, 'chatcmpl-' || id, at, at + make_interval(secs => 2 + a %% 40), 300 + a %% 900,
    CASE WHEN is_refused OR is_cut THEN 'failed' WHEN is_left THEN 'aborted' ELSE 'succeeded' END,
    CASE WHEN is_refused THEN 429 ELSE 200 END,
    CASE WHEN is_refused THEN 'rate_limited' WHEN is_cut THEN 'broken' END,
    CASE WHEN is_refused THEN 'none' WHEN is_cut OR is_left THEN 'estimated' ELSE 'provider' END,
    uncached + cached, CASE WHEN provider <> 'evolink' THEN cached END, 0, answered,
    CASE WHEN NOT (is_refused OR is_cut OR is_left) THEN answered / 2 END,
    CASE WHEN is_refused OR is_cut OR is_left THEN 'none' ELSE 'provider' END,
    concat(provider, '/', model, '@', CASE WHEN is_later THEN '2026-10-15' ELSE '2025-11-06' END, 'T00:00:00Z#', '5c0de'),
    uncached * miss, cached * hit, 0, answered * output, 0, uncached * miss + cached * hit + answered * output,
    uncached * miss + cached * hit + answered * output, '{}', at, 8000000000
FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS n
CROSS JOIN LATERAL (
    SELECT
        timestamptz '2026-10-01Z' + n * (interval '31 days' / %(rows)s) AS at, md5(n::text) AS digest,
        abs(hashint8extended(n, 1) %% 1000000007) AS a, abs(hashint8extended(n, 2) %% 1000000007) AS b
) AS drawn
CROSS JOIN LATERAL (
    SELECT
        lpad(to_hex(n), 12, '0') || left(digest, 20) AS id,
        (999 * power(a %% 100003 / 100003.0::float8, 2))::bigint AS key,
        CASE WHEN b %% 5 = 0 THEN 'kimi-k2-thinking-turbo' ELSE 'kimi-k2-thinking' END AS model,
        CASE WHEN b %% 10 < 5 THEN 'moonshot' WHEN b %% 10 < 8 THEN 'cometapi' ELSE 'evolink' END AS provider,
        CASE WHEN b %% 7 < 5 THEN 'main' ELSE 'spare' END AS account,
        a %% 1000 < 25 AS is_refused, a %% 1000 BETWEEN 25 AND 29 AS is_cut, a %% 1000 BETWEEN 30 AND 34 AS is_left
) AS who
CROSS JOIN LATERAL (
    SELECT
        jsonb_build_object('env', CASE WHEN key %% 4 = 0 THEN 'test' ELSE 'live' END)
            || CASE WHEN key %% 5 = 0 THEN jsonb_build_object('feature', b %% 11 / 4) ELSE '{}' END AS tags,
        provider = 'moonshot' AND at >= timestamptz '2026-10-15Z' AS is_later,
        CASE WHEN is_refused THEN 0 ELSE 200 + b %% 6000 END AS uncached,
        CASE WHEN is_refused OR is_cut OR is_left OR provider = 'evolink' THEN 0 ELSE b %% 9000 END AS cached,
        CASE WHEN is_refused THEN 0 ELSE 50 + a %% 4000 END AS answered
) AS used
CROSS JOIN LATERAL (
    SELECT CASE WHEN is_later THEN 650000 ELSE 600000 END AS miss, 150000 AS hit, 2500000 AS output
) AS price

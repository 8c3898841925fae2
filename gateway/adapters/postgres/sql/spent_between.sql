-- What an account's attempts cost that ended between two moments, with all that corrects them; and of those that were
-- under way at either.
SELECT
    coalesce(sum(cost_pico) FILTER (WHERE finished_at > %(first)s AND finished_at <= %(last)s), 0) AS cost_pico,
    coalesce(sum(cost_pico) FILTER (
        WHERE began_at <= %(first)s AND finished_at > %(first)s AND finished_at <= %(last)s
    ), 0) AS under_way_before_pico,
    coalesce(sum(cost_pico) FILTER (WHERE began_at <= %(last)s AND finished_at > %(last)s), 0) AS under_way_after_pico
FROM (
    SELECT cost_pico, coalesce(restates, started_at) AS began_at, finished_at
    FROM ledger
    WHERE provider = %(provider)s
      AND account = %(account)s
      AND started_at >= %(first)s::timestamptz - interval '1 day'
) AS counted

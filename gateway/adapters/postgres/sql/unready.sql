-- What the database knows that stands in the way of closing a month.
SELECT
    (
        SELECT date_trunc('month', min(started_at), 'UTC') FROM ledger
        WHERE started_at >= closed_until() AND started_at < %(month)s
    ) AS open_before,
    (SELECT count(*) FROM ledger_dead_letters) AS dead_letters,
    ARRAY(
        SELECT worker_id FROM workers
        WHERE seen_at < clock_timestamp() - interval '1 minute' AND seen_at > clock_timestamp() - interval '1 day'
        ORDER BY seen_at DESC
    ) AS absent,
    ARRAY(
        SELECT seen_at FROM workers
        WHERE seen_at < clock_timestamp() - interval '1 minute' AND seen_at > clock_timestamp() - interval '1 day'
        ORDER BY seen_at DESC
    ) AS absent_since

"""The fourth migration goes up, down and up again: every sum of the roll-ups is as it was, in every grain."""

from __future__ import annotations

import psycopg
import pytest

from gateway.adapters.postgres.schema import downgrade, head_revision, migrate
from tests.integration.samples import ROLLED_UP
from tests.integration.test_migrations_0001 import objects

pytestmark = pytest.mark.integration

ROWS = """
INSERT INTO ledger (
    attempt_id, request_id, attempt, is_final, key_id, key_name, team, tags, surface, model, provider, account,
    upstream_model, started_at, finished_at, status, usage_source, input_tokens, cached_tokens, cache_write_tokens,
    output_tokens, reasoning_tokens, reasoning_source, price_id, input_pico, cached_pico, cache_write_pico, output_pico,
    fee_pico, cost_pico, list_pico, flags
)
SELECT
    'a' || n, 'r' || n, 1, n % 3 <> 0, 'k' || n % 4, 'name', NULLIF('t' || n % 2, 't0'), jsonb_build_object('n', n % 2),
    'chat_completions', 'm', 'p', 'main', 'm', '2025-11-22T10:00Z'::timestamptz + n * interval '7 hours',
    '2025-11-22T10:00Z', CASE n % 5 WHEN 0 THEN 'failed' ELSE 'succeeded' END,
    CASE n % 7 WHEN 0 THEN 'estimated' ELSE 'provider' END, 10 * n, NULLIF(n, 3), 0, n, NULL, 'none', 'p/m@1', 6 * n, n,
    0, 3 * n, 0, 10 * n, 10 * n, '{}'
FROM generate_series(1, 90) AS n
"""
OLD_SUMS = """
INSERT INTO spend_rollup
SELECT
    date_bin('15 minutes', started_at, 'epoch'),
    sha256(convert_to(jsonb_build_array(key_id, key_name, team, model, provider, account, tags)::text, 'UTF8')),
    key_id, key_name, team, model, provider, account, tags, count(*) FILTER (WHERE is_final), count(*),
    count(*) FILTER (WHERE status = 'failed'), sum(input_tokens), coalesce(sum(cached_tokens), 0), 0,
    sum(output_tokens), 0, sum(cost_pico), coalesce(sum(cost_pico) FILTER (WHERE usage_source = 'estimated'), 0),
    coalesce(sum(cost_pico) FILTER (WHERE status = 'failed'), 0)
FROM ledger
GROUP BY 1, 2, key_id, key_name, team, model, provider, account, tags
"""
MEASURES = (
    "sum(requests)::bigint, sum(attempts)::bigint, sum(failed_attempts)::bigint, sum(input_tokens)::bigint, "
    "sum(cached_tokens)::bigint, sum(output_tokens)::bigint, sum(cost_pico)::bigint, sum(estimated_cost_pico)::bigint, "
    "sum(failed_cost_pico)::bigint"
)
BELOW = f"SELECT date_trunc('month', bucket), key_id, team, {MEASURES} FROM spend_rollup GROUP BY 1, 2, 3 ORDER BY 1, 2"
ABOVE = (
    f"SELECT date_trunc('month', bucket), key_id, team, {MEASURES} FROM {ROLLED_UP} WHERE grain = %s "
    "GROUP BY 1, 2, 3 ORDER BY 1, 2"
)


def test_sums_survive_both_ways(postgres_url: str) -> None:
    """Up, down and up: the same sums by month and key in every grain, those of a detached month too."""
    migrate(postgres_url)
    downgrade(postgres_url, "0003")
    with psycopg.connect(postgres_url, autocommit=True) as db:
        db.execute("SET TIME ZONE 'UTC'")
        below_objects = objects(postgres_url)
        for month in ("2025-11", "2025-12"):
            db.execute("SELECT ensure_month(%s)", [f"{month}-01T00:00Z"])
        db.execute(ROWS)
        db.execute(OLD_SUMS)
        below = db.execute(BELOW).fetchall()
        assert len(below) == 8
        db.execute("ALTER TABLE ledger DETACH PARTITION ledger_2025_11; DROP TABLE ledger_2025_11")
        assert migrate(postgres_url) == head_revision()
        above = {grain: db.execute(ABOVE, [grain]).fetchall() for grain in ("quarter", "day", "month")}
        for grain, found in above.items():
            assert found == below, grain
        downgrade(postgres_url, "0003")
        assert db.execute(BELOW).fetchall() == below
        db.execute("DROP TABLE ledger_2025_12, exchanges_2025_11, exchanges_2025_12")
        assert objects(postgres_url) == below_objects
        migrate(postgres_url)
        assert db.execute(ABOVE, ["month"]).fetchall() == above["month"]
    downgrade(postgres_url, "base")

"""How long a FOCUS export of so many rows takes, in how much memory, and whether every row of it is right.

A month of roll-ups is made in a database of its own, in quarter hours whose sums make that many FOCUS rows. It is
exported as users do it, a tenth of it first: what the export keeps in memory must not grow with its rows. Each runs in
a process of its own, so that its peak is its own. Limit: 1,000,000 rows in 60 s.

    python -m bench.focus [--rows 1000000] [--unchecked]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import psycopg

from bench.launch import working_folder
from gateway.adapters.embedded import embedded
from gateway.adapters.postgres.reports import Reports
from gateway.adapters.postgres.schema import migrate
from gateway.cli.focus_files import write_focus

MONTH: Final = datetime(2026, 10, 1, tzinfo=UTC)
HOURS: Final = 720
CLASSES: Final = 3
SECONDS_MAX: Final = 60.0
GROWTH_MAX: Final = 1.25
ROWS_TO_TELL: Final = 500_000
"""A tenth of them fills every buffer that there is."""
EXPORT_SECONDS_MAX: Final = 1_800
_GROUPS: Final = """
INSERT INTO spend_groups
SELECT
    md5(kind || n)::uuid, 'key_' || lpad((n %% 1000)::text, 24, '0'), 'key ' || n %% 1000, 'team ' || n %% 20,
    jsonb_build_object('env', CASE n %% 2 WHEN 0 THEN 'production' ELSE 'staging' END, 'project', 'p' || n %% 50),
    CASE n %% 3 WHEN 0 THEN 'kimi-k2.6' ELSE 'kimi-k2-thinking' END,
    (ARRAY['moonshot', 'cometapi', 'evolink'])[1 + n %% 3], 'main', 'price@2026-09-01T00:00:00Z#' || n %% 3,
    CASE kind WHEN 'quarter' THEN 'succeeded' END,
    CASE WHEN kind = 'quarter' THEN CASE n %% 10 WHEN 0 THEN 'estimated' ELSE 'provider' END END,
    CASE kind WHEN 'quarter' THEN false END, NULL
FROM generate_series(1, %(groups)s) AS n
CROSS JOIN (VALUES ('quarter'), ('day')) AS kinds (kind)
"""
_ROLLUP: Final = """
INSERT INTO spend_rollup (
    grain, bucket, group_id, requests, attempts, failed_attempts, aborted_attempts, input_tokens, cached_tokens,
    cache_write_tokens, output_tokens, reasoning_tokens, input_pico, cached_pico, cache_write_pico, output_pico,
    fee_pico, cost_pico, list_pico, failed_pico, aborted_pico, estimated_pico, restated_pico
)
SELECT
    kind, CASE kind
        WHEN 'quarter' THEN at + part * interval '15 minutes' ELSE date_trunc('day', at, 'UTC')
    END,
    md5(kind || n)::uuid, sum(5), sum(6), 0, 0, sum(input + cached), sum(cached), 0, sum(output), sum(output / 2),
    sum(input) * 600000, sum(cached) * 150000, 0, sum(output) * 2500000, 0, sum(cost), sum(cost), 0, 0,
    CASE n %% 10 WHEN 0 THEN sum(cost) ELSE 0 END, 0
FROM generate_series(0, %(hours)s - 1) AS hour
CROSS JOIN generate_series(1, %(groups)s) AS n
CROSS JOIN generate_series(0, 2, 2) AS part
CROSS JOIN (VALUES ('quarter'), ('day')) AS kinds (kind)
CROSS JOIN LATERAL (SELECT %(month)s::timestamptz + hour * interval '1 hour') AS hours (at)
CROSS JOIN LATERAL (
    VALUES (1000::bigint + hour * 7 + n, 500::bigint + n * 3, 100::bigint + hour)
) AS used (input, cached, output)
CROSS JOIN LATERAL (VALUES (input * 600000 + cached * 150000 + output * 2500000)) AS costs (cost)
GROUP BY 1, 2, n, kind
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.focus", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--unchecked", action="store_true", help="leave out the row checker, which takes longest")
    parser.add_argument("--export", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.export:
        print(json.dumps(asyncio.run(_export(**json.loads(asked.export)))))
        return
    with working_folder() as folder, _database(folder, asked.rows) as url:
        print(f"{'':9} {'rows':>10} {'seconds':>8} {'own CPU s':>10} {'rows/s':>8} {'peak MiB':>9}")
        peaks = {}
        is_fast = True
        for form in ("csv", "parquet"):
            for share, hours in (("10 %", HOURS // 10), ("100 %", HOURS)):
                found = _in_a_process(url=url, folder=str(folder), form=form, hours=hours)
                peaks[form, share] = found["peak_mib"]
                print(
                    f"{form:9} {found['rows']:>10,} {found['seconds']:>8.1f} {found['cpu']:>10.1f} "
                    f"{found['rows'] / found['seconds']:>8,.0f} {found['peak_mib']:>9.0f}"
                )
                is_fast = is_fast and (
                    form != "csv" or found["seconds"] <= SECONDS_MAX * max(1, asked.rows / 1_000_000)
                )
        flat = asked.rows < ROWS_TO_TELL or all(
            peaks[form, "100 %"] <= GROWTH_MAX * peaks[form, "10 %"] for form in ("csv", "parquet")
        )
        grown = "of too few rows to tell whether it grows" if asked.rows < ROWS_TO_TELL else "flat" if flat else "GROWS"
        print(f"memory {grown}; {'within' if is_fast else 'OVER'} {SECONDS_MAX:.0f} s per million")
        is_clean = asked.unchecked or _is_clean(next(folder.glob("*100*.csv")))
    sys.exit(0 if flat and is_fast and is_clean else 1)


@contextmanager
def _database(folder: Path, rows: int) -> Iterator[str]:
    """A month of roll-ups that makes about so many FOCUS rows."""
    asked = {"groups": max(1, round(rows / CLASSES / HOURS)), "hours": HOURS, "month": MONTH}
    with embedded(folder / "data", settings={"fsync": "off", "full_page_writes": "off"}) as url:
        migrate(url)
        with psycopg.connect(url, autocommit=True) as db:
            for statement in (_GROUPS, _ROLLUP):
                db.execute(statement, asked)
            db.execute("VACUUM ANALYZE spend_rollup")
            db.execute("VACUUM ANALYZE spend_groups")
        yield url


def _in_a_process(**asked: Any) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.focus", "--export", json.dumps(asked)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=EXPORT_SECONDS_MAX)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


async def _export(url: str, folder: str, form: str, hours: int) -> dict[str, Any]:
    """One export, and what it took."""
    end = MONTH + timedelta(hours=hours)
    reports = Reports(url)
    started = time.monotonic()
    try:
        written = await write_focus(
            reports.charges(MONTH, end),
            await reports.billing_account(MONTH, end),
            version="1.2",
            folder=Path(folder),
            stem=f"focus-{hours * 100 // HOURS}",
            forms=(form,),
            created_at=end,
        )
    finally:
        await reports.close()
    return {
        "rows": written.rows,
        "seconds": time.monotonic() - started,
        "cpu": time.process_time(),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _is_clean(path: Path) -> bool:
    """Whether the row checker of the tests finds nothing."""
    from tests.focus.checker import check_file

    started = time.monotonic()
    found = check_file(path, version="1.2")
    print(f"row checker: {found.rows:,} rows, {len(found.problems)} problems, {time.monotonic() - started:.0f} s")
    for problem in found.problems[:10]:
        print(f"  {problem}")
    return not found.problems


if __name__ == "__main__":
    main()

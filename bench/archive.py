"""What leaving for files costs, and what asking them costs: a month of made-up rows in an embedded PostgreSQL.

    python -m bench.archive [--rows 1000000] [--folder DIR]

Prints seconds, sizes and the peak of resident memory of archiving at a tenth of the rows and at all of them, then of
questions to the archived month: a ragged quarter of an hour, one request, a provider's id, and the whole list. Every
row has a plan of about a kilobyte. The month's checksum is worked out first, as closing it would.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import msgspec
import psycopg

from gateway.adapters.archive.folder import ArchiveFolder
from gateway.adapters.clock import SystemClock
from gateway.adapters.embedded import embedded
from gateway.adapters.postgres.archiving import PostgresArchiving
from gateway.adapters.postgres.reports import Reports
from gateway.adapters.postgres.schema import migrate
from gateway.core.closing import month_end
from gateway.core.grants import COMMAND_LINE
from gateway.core.spend import Selection, SpendQuery

BEGINS: Final = datetime(2026, 8, 1, tzinfo=UTC)

LEDGER: Final = """
INSERT INTO ledger
SELECT
    lpad(to_hex((n * 1000000)::bigint), 12, '0') || '-' || md5('a' || n),
    'req_' || lpad(to_hex(n), 8, '0') || md5('r' || n),
    1, true, 'key_' || n %% 1000, 'key number ' || n %% 1000, 'team ' || n %% 40,
    jsonb_build_object('env', 'prod', 'job', n %% 200), 'chat_completions', 'kimi-k2-thinking',
    (ARRAY['moonshot', 'cometapi', 'evolink'])[1 + n %% 3], 'main', 'kimi-k2-thinking', 'kimi-k2-thinking',
    'chatcmpl-' || md5('u' || n), at, at + interval '9 s', 400 + n %% 900, 'succeeded', 200, NULL, 'provider',
    4000 + n %% 9000, 3000, 0, 300 + n %% 900, 100, 'provider',
    'evolink/kimi-k2-thinking@2025-11-06#0a1b2c3d', (1000 + n %% 9000) * 556000, 3000 * 139000, 0,
    (300 + n %% 900) * 2222000, 0, (1000 + n %% 9000) * 556000 + 3000 * 139000 + (300 + n %% 900) * 2222000::bigint,
    (1000 + n %% 9000) * 556000 + 3000 * 139000 + (300 + n %% 900) * 2222000::bigint, '{}', NULL, at, at, 5000000000
FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS n
CROSS JOIN LATERAL (SELECT %(begins)s::timestamptz + n * (interval '31 days' / %(rows)s::float8) AS at) AS moment
"""
PLANS: Final = """
INSERT INTO exchanges
SELECT
    'req_' || lpad(to_hex(n), 8, '0') || md5('r' || n), at, 'key_' || n %% 1000,
    jsonb_build_object('model', 'kimi-k2-thinking', 'policy', 'expected_cost', 'input_tokens_estimate',
        4000 + n %% 9000,
        'candidates', (SELECT jsonb_agg(jsonb_build_object('provider', p, 'account', 'main', 'upstream_model',
            'kimi-k2-thinking', 'expected_cost_usd', (n %% 977)::numeric / 100000, 'expected_cached_tokens', n %% 3000,
            'state', 'closed', 'excluded', NULL, 'score', jsonb_build_object('request_usd', (n %% 977)::numeric / 1e5,
            'failure_usd', (n %% 91)::numeric / 1e6, 'future_usd', (n %% 77)::numeric / 1e6, 'quota_usd', 0)))
        FROM unnest(ARRAY['moonshot', 'cometapi', 'evolink']) AS p)),
    decode(repeat(md5('p' || n), 6), 'hex'), 'team ' || n %% 40, n %% 9
FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS n
CROSS JOIN LATERAL (SELECT %(begins)s::timestamptz + n * (interval '31 days' / %(rows)s::float8) AS at) AS moment
"""
CLOSE: Final = """
INSERT INTO ledger_closings (month, closed_at, closed_by, reason, organisation_name, rows, cost_pico, ledger_sha256,
    focus_sha256)
VALUES (%s, now(), 'bench', 'bench', '', %s, 0, %s, %s)
"""
PORTION: Final = 100_000


def fill(url: str, rows: int) -> None:
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("SELECT ensure_month(%s)", [BEGINS])
        for first in range(0, rows, PORTION):
            asked = {"first": first, "last": min(first + PORTION, rows) - 1, "begins": BEGINS, "rows": rows}
            db.execute(LEDGER, asked)
            db.execute(PLANS, asked)
        db.execute("VACUUM ANALYZE ledger, exchanges")


async def close(url: str, rows: int) -> None:
    digest, reports = hashlib.sha256(), Reports(url)
    async for row in reports.ledger(Selection(start=BEGINS, end=month_end(BEGINS))):
        digest.update(msgspec.json.encode(row) + b"\n")
    await reports.close()
    with psycopg.connect(url, autocommit=True) as db:
        db.execute(CLOSE, [BEGINS.date(), rows, digest.digest(), digest.digest()])


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def archive(url: str, folder: Path) -> None:
    """In a process of its own, so that its peak of memory is its own."""
    archiving = PostgresArchiving(url, ArchiveFolder(folder), clock=SystemClock())
    seconds: dict[str, float] = {}
    began = time.monotonic()

    def told(what: str, _done: int, _of: int) -> None:
        seconds[what] = time.monotonic() - began

    archived = await archiving.archive(COMMAND_LINE, BEGINS, told=told)
    await archiving.close()
    took, cpu = time.monotonic() - began, time.process_time()
    print(f"archived {archived.ledger.rows:,} rows in {took:.1f} s ({cpu:.1f} s of CPU here), peak {peak_mb():.0f} MB")
    print("  until", ", ".join(f"{what} {at:.1f} s" for what, at in seconds.items()))
    for file in (archived.ledger, archived.exchanges):
        print(f"  {file.name}: {file.bytes / 1e6:.1f} MB, {file.bytes / max(1, file.rows):.1f} bytes a row")


async def ask(url: str, folder: Path, rows: int) -> None:
    reports = Reports(url, ArchiveFolder(folder))
    start = BEGINS + timedelta(days=13, minutes=7, seconds=30)
    request = f"req_{rows // 2:08x}{hashlib.md5(f'r{rows // 2}'.encode(), usedforsecurity=False).hexdigest()}"
    bill = f"chatcmpl-{hashlib.md5(f'u{rows // 2}'.encode(), usedforsecurity=False).hexdigest()}"

    async def listed() -> int:
        return sum([1 async for _ in reports.ledger(Selection(start=BEGINS, end=month_end(BEGINS)))])

    async def summed() -> int:
        selection = Selection(start=start, end=start + timedelta(minutes=15))
        return len([row async for row in reports.spend(SpendQuery(selection=selection))])

    questions: dict[str, Callable[[], Awaitable[Any]]] = {
        "a quarter of an hour, ragged": summed,
        "one request": lambda: reports.explain(request),
        "one unknown request": lambda: reports.explain("req_nobody"),
        "a provider's id": lambda: reports.find_upstream(bill, BEGINS, month_end(BEGINS)),
        "the whole list": listed,
    }
    for name, question in questions.items():
        times = []
        for _ in range(1 if name == "the whole list" else 5):
            began = time.monotonic()
            found = await question()
            times.append(time.monotonic() - began)
        shown = found if isinstance(found, int | str) or found is None else "found"
        print(
            f"{name}: {sorted(times)[len(times) // 2]:.3f} s (first {times[0]:.3f} s), {shown}; peak {peak_mb():.0f} MB"
        )
    await reports.close()


def alone(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "bench.archive", *arguments], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.archive")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.step is not None:
        step, url = asked.step
        asyncio.run(archive(url, asked.folder) if step == "archive" else ask(url, asked.folder, asked.rows))
        return
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        for rows in sorted({asked.rows // 10, asked.rows}):
            with embedded(Path(folder) / f"{rows}") as url:
                migrate(url)
                fill(url, rows)
                began = time.monotonic()
                asyncio.run(close(url, rows))
                print(f"checksum of {rows:,} rows: {time.monotonic() - began:.1f} s", flush=True)
                common = ("--rows", str(rows), "--folder", str(Path(folder) / f"archive-{rows}"))
                alone("--step", "archive", url, *common)
                alone("--step", "ask", url, *common)


if __name__ == "__main__":
    main()

"""What finance waits for: reports over a month of many rows, each beside its limit, and why more rows cost no more.

    python -m bench.ledger [--rows N]…

For each N (1,000,000 without any) an embedded PostgreSQL of its own gets a month of N attempts of 1,000 keys
(``ledger_rows.sql``), written below the schema that rolls spend up and then migrated, so that the roll-ups are those of
the migration and its time is a figure as well. Rows are loaded without syncing; everything that is measured runs with
the settings that the embedded database has for everybody. Questions go through ``Reports`` and the rendering of
``/admin/reports/spend``, 20 times each while they take less than half a minute together.

With two or more N the month by key is carried on to 100,000,000 rows: it reads the groups of a month and no row of the
ledger, and of groups there are no more than keys and what they are told apart by.

10,000,000 rows need about 15 GB of disk, gone afterwards. Exit status 1 if a figure is over its limit, the ledger is
read where it should not be, or a roll-up differs from it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import psutil
import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bench.launch import working_folder
from gateway.adapters.embedded import embedded
from gateway.adapters.postgres.reports import Reports
from gateway.adapters.postgres.schema import downgrade, migrate
from gateway.adapters.postgres.selecting import spend_question
from gateway.core.spend import Selection, SpendQuery
from gateway.http.books import ledger_pieces, report_pieces

BELOW_ROLLUPS: Final = "0003"
CHUNK_ROWS: Final = 250_000
LOADING: Final = {
    "fsync": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "30min",
    "shared_buffers": "256MB",
    "autovacuum": "off",
}
RUNS: Final = 20
SECONDS_MAX: Final = 30.0
STREAMED_ROWS_MAX: Final = 200_000
STREAM_MEMORY_MAX: Final = 50_000_000
FAR_ROWS: Final = 100_000_000
MONTH_MS_MAX: Final = 100.0
EXPLAIN_MS_MAX: Final = 50.0
FILL: Final = (Path(__file__).parent / "ledger_rows.sql").read_text(encoding="utf-8")
BEGINS: Final = datetime(2026, 10, 1, tzinfo=UTC)
ENDS: Final = datetime(2026, 11, 1, tzinfo=UTC)
BERLIN: Final = ZoneInfo("Europe/Berlin")

_SUMS: Final = """
SELECT 'ledger' AS of, count(*) AS rows, count(*) AS attempts, sum(cost_pico) AS pico FROM ledger
UNION ALL SELECT grain, count(*), sum(attempts), sum(cost_pico) FROM spend_rollup GROUP BY grain
"""
_CELLS: Final = """
SELECT
    (SELECT count(*) FROM (SELECT DISTINCT key_id, key_name, team, tags FROM spend_groups) AS callers)
    * (SELECT count(*) FROM (SELECT DISTINCT model, provider, account, price_id FROM spend_groups) AS served) AS cells
"""
_SOME_REQUEST: Final = "SELECT request_id FROM ledger WHERE started_at >= %s LIMIT 1"
_DISK: Final = "SELECT pg_database_size(current_database())"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A report, and how long it may take. ``reads_rows``: its ends are ragged, so it needs rows of the ledger."""

    name: str
    groups: tuple[str, ...]
    start: datetime = BEGINS
    end: datetime = ENDS
    timezone: str = "UTC"
    ms_max: float | None = None
    detail: bool = False
    reads_rows: bool = False

    def query(self) -> SpendQuery:
        selection = Selection(start=self.start, end=self.end, timezone=self.timezone)
        return SpendQuery(selection=selection, groups=self.groups, detail=self.detail)


MONTH_BY_KEY: Final = Question(name="month by key", groups=("key",), ms_max=MONTH_MS_MAX)
QUESTIONS: Final = (
    MONTH_BY_KEY,
    Question(name="month by key, in detail", groups=("key",), detail=True),
    Question(name="month by team", groups=("team",), ms_max=MONTH_MS_MAX),
    Question(name="month by key, model, provider", groups=("key", "model", "provider")),
    Question(name="month by price", groups=("price",)),
    Question(name="month by status", groups=("status",)),
    Question(name="month by a tag", groups=("tag:feature",)),
    Question(name="month by day", groups=("day",)),
    Question(name="month by hour", groups=("hour",)),
    Question(name="day by key", groups=("key",), start=BEGINS + timedelta(days=9), end=BEGINS + timedelta(days=10)),
    Question(
        name="Berlin's month by key", groups=("key",), timezone="Europe/Berlin",
        start=datetime(2026, 10, 1, tzinfo=BERLIN), end=datetime(2026, 11, 1, tzinfo=BERLIN),
    ),
    Question(
        name="ragged ends by key", groups=("key",), reads_rows=True,
        start=BEGINS + timedelta(minutes=7, seconds=3), end=ENDS - timedelta(minutes=7, seconds=3),
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A figure beside its limit; ``touched`` is how many rows of which table were read for it."""

    name: str
    median_ms: float
    p95_ms: float
    rows: int
    touched: str
    groups_touched: int
    limit_ms: float | None
    wrong: str = ""

    @property
    def is_over(self) -> bool:
        return bool(self.wrong) or (self.limit_ms is not None and self.median_ms > self.limit_ms)


# -- the ledger --------------------------------------------------------------------------------------------------------


def fill(url: str, rows: int, step: Callable[[int, int], None]) -> None:
    """Rows as they were before spend was rolled up by month."""
    migrate(url)
    downgrade(url, BELOW_ROLLUPS)
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("SELECT ensure_month(%s)", [BEGINS])
        for first in range(0, rows, CHUNK_ROWS):
            last = min(rows, first + CHUNK_ROWS) - 1
            db.execute(FILL, {"first": first, "last": last, "rows": rows})  # type: ignore[call-overload]
            step(last + 1, rows)


def differences(url: str) -> tuple[list[str], dict[str, int]]:
    """Where a roll-up is not the sum of the ledger, and how many rows each of them has."""
    with psycopg.connect(url, row_factory=dict_row) as db:
        found = {row["of"]: row for row in db.execute(_SUMS).fetchall()}
    expected = (found["ledger"]["attempts"], found["ledger"]["pico"])
    wrong = [
        f"{grain}: {row['attempts']} attempts of {row['pico']} pico-dollars, in the ledger {expected}"
        for grain, row in found.items()
        if (row["attempts"], row["pico"]) != expected
    ]
    return wrong, {grain: row["rows"] for grain, row in found.items()}


# -- questions ---------------------------------------------------------------------------------------------------------


async def measure(url: str, question: Question) -> Measured:
    """Asks, renders as JSON, and asks the database what it read."""
    reports = Reports(url)
    query, taken, rows = question.query(), [], 0
    try:
        begun = time.monotonic()
        while len(taken) < RUNS and (len(taken) < 3 or time.monotonic() - begun < SECONDS_MAX):
            at, rows = time.perf_counter(), -1
            async for piece in report_pieces(query, reports.spend(query), "json"):
                rows += piece.count(b"\n")
            taken.append((time.perf_counter() - at) * 1000)
    finally:
        await reports.close()
    read = await asyncio.to_thread(asyncio.run, touched(url, query))
    ledger_rows = sum(count for table, count in read.items() if table.startswith("ledger"))
    return Measured(
        name=question.name,
        median_ms=statistics.median(taken),
        p95_ms=sorted(taken)[int(len(taken) * 0.95)],
        rows=rows,
        touched=", ".join(f"{count:,} {table}" for table, count in sorted(read.items()) if count),
        groups_touched=read.get("spend_rollup_month", 0),
        limit_ms=question.ms_max,
        wrong="" if question.reads_rows or not ledger_rows else f"{ledger_rows:,} rows of the ledger were read",
    )


async def touched(url: str, query: SpendQuery) -> dict[str, int]:
    """How many rows of each table were read for a report, those that were dropped again included."""
    async with await psycopg.AsyncConnection.connect(url, row_factory=dict_row) as db:
        asked = await spend_question(db, query)
        explained = await db.execute(
            sql.SQL("EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) ") + asked.statement, dict(asked.parameters)
        )
        row = await explained.fetchone()
    assert row is not None
    counts: dict[str, int] = {}
    for node in _nodes(row["QUERY PLAN"][0]["Plan"]):
        if "Relation Name" in node:
            read = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
            name = node["Relation Name"]
            counts[name] = counts.get(name, 0) + int(read * node["Actual Loops"])
    return counts


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from _nodes(below)


async def explain(url: str) -> Measured:
    """How long the question for one request takes."""
    with psycopg.connect(url) as db:
        row = db.execute(_SOME_REQUEST, [BEGINS + timedelta(days=13)]).fetchone()
    assert row is not None
    reports, taken = Reports(url), []
    try:
        for _ in range(RUNS):
            at = time.perf_counter()
            found = await reports.explain(row[0])
            taken.append((time.perf_counter() - at) * 1000)
            assert found is not None
    finally:
        await reports.close()
    return Measured(
        name="explain one request", median_ms=statistics.median(taken), p95_ms=sorted(taken)[int(RUNS * 0.95)],
        rows=1, touched="", groups_touched=0, limit_ms=EXPLAIN_MS_MAX,
    )  # fmt: skip


async def stream(url: str, rows: int) -> tuple[float, int]:
    """Rows a second of ``/admin/ledger`` as JSON Lines, and by how many bytes this process grew meanwhile."""
    reports = Reports(url)
    share = min(1.0, STREAMED_ROWS_MAX / rows)
    selection = Selection(start=BEGINS, end=BEGINS + share * (ENDS - BEGINS))
    memory = psutil.Process().memory_info
    before, highest, lines, begun = memory().rss, 0, 0, time.monotonic()
    try:
        pieces: AsyncIterator[bytes] = ledger_pieces(reports.ledger(selection), "jsonl")
        async for piece in pieces:
            lines += piece.count(b"\n")
            highest = max(highest, memory().rss)
    finally:
        await reports.close()
    return lines / (time.monotonic() - begun), highest - before


# -- the command -------------------------------------------------------------------------------------------------------


def bench(rows: int, console: Console) -> tuple[Measured, int, bool]:
    """Prints the figures of a ledger of that many rows. Answers the month by key, the most groups that a month may have,
    and whether all is well."""
    with working_folder() as folder, _progress(console, rows) as (step, said):
        (folder / "data").mkdir(mode=0o711)
        began = time.monotonic()
        with embedded(folder / "data", settings=LOADING) as url:
            fill(url, rows, step)
            filled = time.monotonic() - began
        with embedded(folder / "data") as url:
            said("rolling up")
            began = time.monotonic()
            migrate(url)
            migrated = time.monotonic() - began
            said("vacuuming")
            with psycopg.connect(url, autocommit=True) as db:
                db.execute("VACUUM ANALYZE")
                disk = db.execute(_DISK).fetchone()
                cells = db.execute(_CELLS).fetchone()
            said("comparing the sums")
            wrong, counts = differences(url)
            found = []
            for question in QUESTIONS:
                said(question.name)
                found.append(asyncio.run(measure(url, question)))
            found.append(asyncio.run(explain(url)))
            said("streaming the ledger")
            speed, grown = asyncio.run(stream(url, rows))
    assert disk is not None
    assert cells is not None
    console.print(
        f"{rows:,} attempts in a month, {disk[0] / 1e9:.1f} GB: loaded in {filled:.0f} s, rolled up by the migration in "
        f"{migrated:.0f} s; rows of the roll-ups: " + ", ".join(f"{counts[name]:,} by {name}" for name in _GRAINS)
    )
    is_well = _show(found, console)
    console.print(f"  /admin/ledger          {speed:>9,.0f} rows/s, memory grew by {grown / 1e6:.0f} MB")
    for each in wrong:
        console.print(f"  a roll-up differs: {each}", style="red")
    if not wrong:
        console.print("  every grain sums to the ledger: 0 attempts and 0 pico-dollars of difference")
    return found[0], cells[0], is_well and not wrong and grown <= STREAM_MEMORY_MAX


_GRAINS: Final = ("quarter", "day", "month")


def _show(found: Sequence[Measured], console: Console) -> bool:
    console.print(f"  {'question':30} {'median ms':>10} {'p95':>8} {'limit':>7} {'rows':>7}  read")
    for each in found:
        limit = "" if each.limit_ms is None else f"{each.limit_ms:.0f}"
        verdict = each.wrong or ("over" if each.is_over else "")
        console.print(
            f"  {each.name:30} {each.median_ms:>10.1f} {each.p95_ms:>8.1f} {limit:>7} {each.rows:>7,}  {each.touched} "
            f"{verdict}".rstrip(),
            style="red" if each.is_over else None,
            soft_wrap=True,
        )
    return not any(each.is_over for each in found)


def carry_on(measured: Sequence[tuple[int, Measured, int]], console: Console) -> bool:
    """Prints what the month by key would take over ``FAR_ROWS``; whether that is within its limit."""
    rows, last, cells = measured[-1]
    per_group = last.median_ms / last.groups_touched
    far = max(last.median_ms, per_group * cells)
    console.print(f"Month by key over {FAR_ROWS:,} rows: it reads the month's groups, and of the ledger nothing.")
    for each, figure, most in measured:
        console.print(
            f"  {each:>13,} rows: {figure.groups_touched:>7,} groups of at most {most:,}; {figure.median_ms:.1f} ms, "
            f"{figure.median_ms / figure.groups_touched * 1000:.2f} µs a group"
        )
    is_well = far <= MONTH_MS_MAX
    console.print(
        f"  {FAR_ROWS:>13,} rows: at most {cells:,} groups (every caller with everything that served anybody) at "
        f"{per_group * 1000:.2f} µs: {far:.1f} ms, limit {MONTH_MS_MAX:.0f}",
        style=None if is_well else "red",
    )
    return is_well


@contextlib.contextmanager
def _progress(console: Console, rows: int) -> Iterator[tuple[Callable[[int, int], None], Callable[[str], None]]]:
    """A bar on a terminal, nothing in a pipe."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"loading {rows:,} rows", total=rows)
        yield (
            lambda done, total: bar.update(task, completed=done, total=total),
            lambda what: bar.update(task, description=f"{rows:,} rows: {what}"),
        )


def main() -> None:
    """Exit status 0 when every figure is within its limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, action="append", help="attempts of the month; may be said again")
    sizes = sorted(parser.parse_args().rows or [1_000_000])
    console = Console(highlight=False)
    console = console if console.is_terminal else Console(width=160, highlight=False)
    measured, is_well = [], True
    for rows in sizes:
        month_by_key, cells, went_well = bench(rows, console)
        measured.append((rows, month_by_key, cells))
        is_well = is_well and went_well
    if len(measured) > 1:
        is_well = carry_on(measured, console) and is_well
    sys.exit(0 if is_well else 1)


if __name__ == "__main__":
    main()

"""What closing, verifying and rating a month again cost: seconds, rows a second, memory, and how long shippers wait.

    python -m bench.closing [--rows N]

An embedded PostgreSQL of its own gets October 2026 with N attempts of 1,000 keys (1,000,000 without --rows,
``ledger_rows.sql``), loaded without syncing and measured with the settings that everybody has. The month is closed,
verified, and then rated again whole: two rows for each attempt, since every price is another one. 1,000,000 rows need
about 4 GB of disk, gone afterwards. Exit status 1 if a closed month does not verify, or memory is not flat.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import psutil
import psycopg

from bench.launch import working_folder
from gateway.adapters.clock import SystemClock
from gateway.adapters.embedded import embedded
from gateway.adapters.postgres.closings import PostgresClosings
from gateway.adapters.postgres.corrections import CHUNK_ENTRIES, PostgresCorrections
from gateway.adapters.postgres.reports import Reports
from gateway.adapters.postgres.schema import downgrade, migrate
from gateway.cli.digesting import digest_month
from gateway.core.closing import first_difference
from gateway.core.corrections import CorrectionBatch, repriced
from gateway.core.grants import COMMAND_LINE
from gateway.core.ledger import LedgerEntry
from gateway.core.money import UnitPrice
from gateway.core.pricing import Price, PriceTable

MONTH: Final = datetime(2026, 10, 1, tzinfo=UTC)
CHUNK_ROWS: Final = 250_000
GROWTH_BYTES_MAX: Final = 100_000_000
LOADING: Final = {"fsync": "off", "full_page_writes": "off", "max_wal_size": "8GB", "autovacuum": "off"}
FILL: Final = (Path(__file__).parent / "ledger_rows.sql").read_bytes()


def fill(url: str, rows: int) -> None:
    """The month, with the roll-ups that the migration makes of it."""
    migrate(url)
    downgrade(url, "0003")
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("SELECT ensure_month(%s)", [MONTH])
        for first in range(0, rows, CHUNK_ROWS):
            db.execute(FILL, {"first": first, "last": min(first + CHUNK_ROWS, rows) - 1, "rows": rows})
    migrate(url)
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("VACUUM ANALYZE")


def other_prices() -> PriceTable:
    """Every model of the month at a price that none of its rows names."""
    return PriceTable(
        Price(
            provider=provider,
            model=model,
            effective_from=datetime(2025, 1, 1, tzinfo=UTC),
            input=UnitPrice(700_000),
            cached_input=UnitPrice(100_000),
            output=UnitPrice(3_000_000),
        )
        for provider in ("moonshot", "cometapi", "evolink")
        for model in ("kimi-k2-thinking", "kimi-k2-thinking-turbo")
    )


class Waits:
    """The longest that a shipper would have waited: one asks for its lock over and over."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.longest = 0.0

    async def watch(self, stop: asyncio.Event) -> None:
        db = await psycopg.AsyncConnection.connect(self._url, autocommit=True)
        async with db:
            while not stop.is_set():
                begun = time.perf_counter()
                await db.execute("SELECT pg_advisory_xact_lock_shared(hashtextextended('gateway.closing', 0))")
                self.longest = max(self.longest, time.perf_counter() - begun)
                await asyncio.sleep(0.005)


async def measure(url: str, rows: int) -> bool:
    process = psutil.Process()
    closings, reports = PostgresClosings(url, clock=SystemClock()), Reports(url)
    seen, resident = 0, [0]

    def told(count: int) -> None:
        nonlocal seen
        seen += count
        if seen % (rows // 10) == 0:
            resident.append(process.memory_info().rss)

    stop, waits = asyncio.Event(), Waits(url)
    watching = asyncio.create_task(waits.watch(stop))
    with timed("close", rows):
        closing = await closings.close_month(
            MONTH, lambda: digest_month(reports, MONTH, told), reason="bench", by=COMMAND_LINE
        )
    stop.set()
    await watching
    print(f"  a shipper waited at the most {waits.longest * 1000:,.0f} ms for it, this process's own pauses included")
    with timed("verify: exports", rows):
        found, _ = await digest_month(reports, MONTH, told)
    is_same = first_difference(closing.digest, found) is None and found.focus_sha256 == closing.digest.focus_sha256
    with timed("verify: sums", rows):
        sums = await closings.sums_differ(MONTH, is_archived=False)
    with timed("verify: prices", rows):
        await closings.prices_differ(MONTH, ())
    with timed("verify: corrections", rows):
        corrections = await closings.corrections_differ(MONTH)
    await reprice(url, rows, told)
    growth = max(resident) - resident[1]
    print(
        f"  memory: {resident[1] / 1e6:,.0f} MB after a tenth of the first look at the month, at the most "
        f"{max(resident) / 1e6:,.0f} MB (growth limit {GROWTH_BYTES_MAX / 1e6:,.0f} MB)"
    )
    await closings.close()
    await reports.close()
    return is_same and sums is None and corrections is None and growth <= GROWTH_BYTES_MAX


async def reprice(url: str, rows: int, told: Any) -> None:
    store, prices = PostgresCorrections(url, clock=SystemClock()), other_prices()
    batch = CorrectionBatch(correction_id="cor_bench", kind="reprice", reason="bench", facts={})
    closed_until = await store.closed_until()
    end = MONTH + timedelta(days=31)
    entries: list[LedgerEntry] = []
    with timed("reprice, dry", rows):
        async for now in store.in_force_by_day(MONTH, end, but_priced_by=prices):
            assert repriced(now, prices, correction_id="cor_bench", closed_until=closed_until) is not None
            told(1)
    written = 0
    with timed("reprice, written", rows):
        async for now in store.in_force_by_day(MONTH, end, but_priced_by=prices):
            pair = repriced(now, prices, correction_id="cor_bench", closed_until=closed_until)
            assert pair is not None
            entries += pair
            told(1)
            if len(entries) >= CHUNK_ENTRIES:
                written += await store.write(batch, entries, by=COMMAND_LINE)
                entries.clear()
        written += await store.write(batch, entries, by=COMMAND_LINE)
    print(f"  {written:,} rows were written")
    await store.close()


@contextmanager
def timed(name: str, rows: int) -> Iterator[None]:
    begun, cpu = time.perf_counter(), time.process_time()
    yield
    seconds, own = time.perf_counter() - begun, time.process_time() - cpu
    print(f"{name:22} {seconds:8.1f} s  {rows / seconds:12,.0f} rows/s  {own:8.1f} s of CPU here", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.closing", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    with working_folder() as folder:
        begun = time.perf_counter()
        with embedded(folder / "postgres", settings=LOADING) as url:
            fill(url, rows)
        print(f"{rows:,} rows in {time.perf_counter() - begun:,.0f} s", flush=True)
        with embedded(folder / "postgres") as url:
            is_well = asyncio.run(measure(url, rows))
    sys.exit(0 if is_well else 1)


if __name__ == "__main__":
    main()

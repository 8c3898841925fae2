"""What it costs to bring settlements into the ledger: rows a second, and CPU of the shipper and of PostgreSQL a row.

    python -m bench.shipping [--rows N] [--shippers N]

Every shipper is a process of its own with journals that a dead worker left, like those of a fleet after an outage of
its database; all of them share one embedded PostgreSQL with the settings that it has for everybody, and write the same
keys. Rows are of 1,000 keys, so hardly two of a batch fall into one group: the dearest traffic there is. Afterwards the
ledger's sum is compared with that of every grain of the roll-ups. Exit status 1 if they differ or a shipper failed.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Final

import psutil
import psycopg

from bench.launch import working_folder
from bench.process import cpu_seconds, descendants
from gateway.adapters.clock import SystemClock
from gateway.adapters.embedded import embedded
from gateway.adapters.journal import JournalWriter
from gateway.adapters.journal.outbox import Outbox
from gateway.adapters.postgres.schema import migrate
from gateway.adapters.postgres.shipper import Shipper
from gateway.core.ledger import LedgerEntry

KEYS: Final = 1_000
TEAMS: Final = 50
ROWS_PER_JOURNAL: Final = 20_000
ROWS_PER_SYNC: Final = 5_000
BEGIN: Final = datetime(2026, 10, 14, 12, tzinfo=UTC)
SECONDS_PER_ROW: Final = 0.01
"""A hundred attempts a second come in."""
SHIP_SECONDS_MAX: Final = 900.0

_SUMS: Final = """
SELECT 'ledger', count(*)::bigint, sum(cost_pico)::text FROM ledger
UNION ALL SELECT grain, sum(attempts)::bigint, sum(cost_pico)::text FROM spend_rollup GROUP BY grain
"""


_SIZES: Final = """
SELECT
    relname, n_live_tup, n_dead_tup, 100 * n_tup_hot_upd / nullif(n_tup_upd, 0),
    pg_size_pretty(pg_total_relation_size(relid))
FROM pg_stat_user_tables WHERE relname ~ '^(spend_|ledger_20)' AND n_live_tup > 0 ORDER BY relname
"""


def entries(shipper: int, rows: int) -> Iterator[LedgerEntry]:
    """Attempts of one worker, as mixed as those of ``bench.ledger``."""
    chance = Random(shipper)
    for number in range(rows):
        key, drawn = int(KEYS * chance.random() ** 2), chance.random()
        refused, told = drawn < 0.025, drawn >= 0.035
        uncached = 0 if refused else chance.randrange(200, 6_200)
        cached = chance.randrange(9_000) if told else 0
        answered = 0 if refused else chance.randrange(50, 4_050)
        picos = (uncached * 600_000, cached * 150_000, answered * 2_500_000)
        provider = chance.choices(("moonshot", "cometapi", "evolink"), (5, 3, 2))[0]
        model = chance.choices(("kimi-k2-thinking", "kimi-k2-thinking-turbo"), (4, 1))[0]
        begun = BEGIN + timedelta(seconds=number * SECONDS_PER_ROW)
        tags = {"env": "live"} | ({"feature": str(chance.randrange(3))} if key % 5 == 0 else {})
        yield LedgerEntry(
            attempt_id=f"att_{shipper:04x}{number:012x}",
            request_id=f"req_{shipper:04x}{number:012x}",
            attempt=1,
            is_final=not refused,
            key_id=f"key_{key:04}",
            key_name=f"service-{key:04}",
            team=f"team-{key % TEAMS:02}",
            tags=tags,
            surface="chat_completions",
            model=model,
            provider=provider,
            account=chance.choices(("main", "spare"), (5, 2))[0],
            upstream_model=model,
            served_model=None,
            upstream_request_id=f"chatcmpl-{number:016x}",
            started_at=begun,
            finished_at=begun + timedelta(seconds=9),
            ttft_ms=700,
            status="failed" if refused else "succeeded" if told else "aborted",
            http_status=429 if refused else 200,
            error_type="rate_limited" if refused else None,
            usage_source="none" if refused else "provider" if told else "estimated",
            input_tokens=uncached + cached,
            cached_tokens=cached if told else None,
            cache_write_tokens=0,
            output_tokens=answered,
            reasoning_tokens=answered // 2 if told else None,
            reasoning_source="provider" if told else "none",
            price_id=f"{provider}/{model}@2025-11-06T00:00:00Z#5c0de",
            input_pico=picos[0],
            cached_pico=picos[1],
            cache_write_pico=0,
            output_pico=picos[2],
            fee_pico=0,
            cost_pico=sum(picos),
            list_pico=sum(picos),
            admitted_at=begun,
            held_pico=8 * 10**9,
        )


async def write(data_dir: Path, shipper: int, rows: int) -> None:
    """The journals of a worker that died again and again."""
    made = entries(shipper, rows)
    for number in range(-(-rows // ROWS_PER_JOURNAL)):
        journal = JournalWriter.open(data_dir, f"bench-{shipper}-{number:04}")
        for count, each in zip(range(ROWS_PER_JOURNAL), made, strict=False):
            position = journal.append(each)
            if count % ROWS_PER_SYNC == 0:
                await journal.durable(position)
        journal.close()


def ship(url: str, data_dir: str, told: multiprocessing.SimpleQueue[tuple[int, float, str]]) -> None:
    """Ships a folder; tells how many rows were new, CPU seconds of this process, and what went wrong."""

    async def shipped() -> tuple[int, str]:
        shipper = Shipper(url, Outbox(Path(data_dir)), clock=SystemClock(), chance=lambda: 0.5)
        error = ""
        try:
            async with asyncio.timeout(SHIP_SECONDS_MAX):
                await shipper.ship()
        except (psycopg.Error, OSError) as wrong:
            error = f"{type(wrong).__name__}: {wrong}"
        finally:
            await shipper.close()
        state = shipper.state()
        aside = f"{state.records_set_aside} set aside" if state.records_set_aside else ""
        return state.rows_added, error or aside

    before = time.process_time()
    added, error = asyncio.run(shipped())
    told.put((added, time.process_time() - before, error))


def postmaster(url: str) -> int:
    """The server's first process, which has the CPU of connections that are gone in its books."""
    with psycopg.connect(url) as db:
        row = db.execute("SELECT pg_backend_pid()").fetchone()
        assert row is not None
        return psutil.Process(row[0]).ppid()


def measure(url: str, folders: list[Path]) -> tuple[int, float, float, float, list[str]]:
    """Rows that were added, elapsed seconds, CPU seconds of the shippers and of PostgreSQL, and what went wrong."""
    server = postmaster(url)
    spawn = multiprocessing.get_context("spawn")
    told = spawn.SimpleQueue()
    processes = [spawn.Process(target=ship, args=(url, str(folder), told)) for folder in folders]
    cpu, began = cpu_seconds(descendants([server])), time.monotonic()
    for process in processes:
        process.start()
    found = [told.get() for _ in processes]
    elapsed = time.monotonic() - began
    for process in processes:
        process.join()
    cpu = cpu_seconds(descendants([server])) - cpu
    return sum(each[0] for each in found), elapsed, sum(each[1] for each in found), cpu, [e for *_, e in found if e]


def bench(rows: int, shippers: int, settings: dict[str, str]) -> bool:
    """Prints the figures; whether everything arrived once and every grain sums to the ledger."""
    with working_folder() as folder:
        folders = [folder / f"worker-{number}" for number in range(shippers)]
        for number, each in enumerate(folders):
            each.mkdir()
            asyncio.run(write(each, number, rows // shippers))
        (folder / "data").mkdir(mode=0o711)
        with embedded(folder / "data", settings=settings) as url:
            migrate(url)
            added, elapsed, shipping, serving, wrong = measure(url, folders)
            with psycopg.connect(url) as db:
                sums = {row[0]: row[1:] for row in db.execute(_SUMS).fetchall()}
                sizes = db.execute(_SIZES).fetchall()
    print(
        f"{added:,} rows by {shippers} shippers in {elapsed:.1f} s: {added / elapsed:,.0f} rows/s; CPU a row: "
        f"{shipping / added * 1e6:.0f} µs shipper, {serving / added * 1e6:.0f} µs PostgreSQL"
    )
    for name, live, dead, hot, size in sizes:
        print(f"  {name:24} {live:>9,} rows, {dead:>7,} dead, {hot or 0:>4} % of updates in place, {size}")
    for each in wrong:
        print(f"  went wrong: {each}")
    equal = len(set(sums.values())) == 1 and added == rows // shippers * shippers
    print(f"  ledger and roll-ups {'are equal' if equal else f'DIFFER: {sums}'}")
    return equal and not wrong


def main() -> None:
    """Exit status 0 when everything arrived once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="settlements in all")
    parser.add_argument("--shippers", type=int, default=1, help="processes that ship at once")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the server")
    arguments = parser.parse_args()
    settings = dict(each.split("=", 1) for each in arguments.set)
    sys.exit(0 if bench(arguments.rows, arguments.shippers, settings) else 1)


if __name__ == "__main__":
    main()

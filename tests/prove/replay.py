"""Replaying any journal, in any order, by several shippers at once, inserts nothing a second time (laws L4 and L5)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Final

import psycopg

from gateway.adapters.clock import SystemClock
from gateway.adapters.journal import JournalWriter
from gateway.adapters.journal.folders import FOLDER, LOCK
from gateway.adapters.journal.outbox import Outbox
from gateway.adapters.journal.segments import segment_numbers, segment_path
from gateway.adapters.postgres.shipper import Shipper
from gateway.core.ledger import LedgerEntry
from tests.integration.samples import ROLLED_UP, plan
from tests.prove.proof import Ground, Proven, told
from tests.prove.records import SUMS, settlements, sums_of

ROUNDS: Final = 3
SHIPPERS: Final = 2
SEGMENTS: Final = 20
PLANS_EVERY: Final = 10
SHIP_SECONDS_MAX: Final = 600.0
_ROLLED_UP: Final = (
    f"SELECT {', '.join(f'coalesce(sum({name}), 0)::bigint' for name in SUMS)} FROM {ROLLED_UP} WHERE grain = %s"
)
_GRAINS: Final = ("quarter", "day", "month")
_STATE: Final = """
SELECT (SELECT count(*) FROM ledger), (SELECT count(*) FROM exchanges),
    (SELECT md5(string_agg(md5(r::text), '' ORDER BY grain, bucket, group_id)) FROM spend_rollup AS r)
"""


def prove(size: int, ground: Ground) -> Proven:
    """``size`` settlements, each shipped ``SHIPPERS`` times in each of ``ROUNDS``."""
    entries = list(settlements(size, seed=5))
    written = ground.folder / "replay"
    segments = asyncio.run(_write(written, entries))
    violations: list[str] = []
    with ground.database() as url, psycopg.connect(url, autocommit=True) as db:
        added, states = [], []
        for number in range(ROUNDS):
            added.append(asyncio.run(_ship(url, segments, ground.folder, number)))
            states.append(db.execute(_STATE).fetchone())
            ground.tick(size)
        rolled_up = {db.execute(_ROLLED_UP, [grain]).fetchone() for grain in _GRAINS}
    if added != [size, *[0] * (ROUNDS - 1)]:
        violations.append(f"rows added by the rounds: {added}, expected {size} and then none")
    if len(set(states)) != 1:
        violations.append(f"ledger and roll-ups moved between the rounds: {states}")
    if rolled_up != {expected := sums_of(entries)}:
        violations.append(f"roll-ups sum to {rolled_up}, the entries to {expected}")
    figure = (
        f"{size:,} settlements in {len(segments)} segments, {ROUNDS} times shuffled by {SHIPPERS} shippers at once: "
        f"inserted {', '.join(f'{rows:,}' for rows in added)}; roll-ups {'wrong' if violations else 'unchanged'}"
    )
    return Proven(figure=figure, violations=told(violations))


async def _write(data_dir: Path, entries: Sequence[LedgerEntry]) -> list[Path]:
    """A journal of many segments with all of the entries, some of them twice, and plans among them."""
    bytes_of_one = 900
    journal = JournalWriter.open(
        data_dir, "replayed", segment_bytes_max=max(bytes_of_one, len(entries) * bytes_of_one // SEGMENTS)
    )
    try:
        for number, each in enumerate(entries):
            position = journal.append(each)
            if number % PLANS_EVERY == 0:
                journal.append(plan(number))
                position = journal.append(entries[number // 2])
            if number % 1_000 == 0:
                await journal.durable(position)
    finally:
        journal.close()
    return [segment_path(journal.path, number) for number in segment_numbers(journal.path)]


async def _ship(url: str, segments: Sequence[Path], folder: Path, number: int) -> int:
    """All segments by every shipper, each in an order of its own. Returns how many rows were new."""
    shippers = []
    for place in range(SHIPPERS):
        data_dir = folder / f"round-{number}-{place}"
        _lay_out(segments, data_dir, Random(f"{number}/{place}"))
        shippers.append(Shipper(url, Outbox(data_dir), clock=SystemClock(), chance=lambda: 0.5))
    try:
        async with asyncio.timeout(SHIP_SECONDS_MAX), asyncio.TaskGroup() as group:
            for shipper in shippers:
                group.create_task(shipper.ship())
        return sum(shipper.state().rows_added for shipper in shippers)
    finally:
        for shipper in shippers:
            await shipper.close()


def _lay_out(segments: Sequence[Path], data_dir: Path, chance: Random) -> None:
    """Each segment as the journal of a dead worker of its own; a shipper takes them in the order of their names."""
    for place, segment in enumerate(chance.sample(segments, len(segments))):
        journal = data_dir / FOLDER / f"{place:08d}-{data_dir.name}"
        journal.mkdir(parents=True)
        (journal / LOCK).touch()
        os.link(segment, segment_path(journal, 1))

"""Journals become ledger rows exactly once, whatever is replayed, refused or away (laws L3, L4, L5)."""

from __future__ import annotations

import asyncio
import random
import shutil
import struct
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import psycopg
import pytest

from gateway.adapters.journal import JournalWriter, claim, journals
from gateway.adapters.journal.outbox import Outbox
from gateway.adapters.postgres.shipper import Shipper, ShipperState, backoff_seconds
from gateway.core.exchange import AttemptStatus
from gateway.core.ledger import LedgerEntry, Record
from gateway.core.usage import NO_USAGE, Usage, UsageSource
from tests.integration.lines import Line
from tests.integration.samples import ROLLED_UP, T0, entry, intent, plan, progress

pytestmark = pytest.mark.integration

WAIT_SECONDS_MAX = 30
ROLLUP = """
SELECT requests, attempts, failed_attempts, input_tokens, cached_tokens, cache_write_tokens, output_tokens,
    reasoning_tokens, cost_pico, estimated_cost_pico, failed_cost_pico
FROM (SELECT {sums} FROM {rolled_up} WHERE grain = {grain}) AS summed
"""
GRAINS = ("quarter", "day", "month")
SUMS = ", ".join(
    f"sum({name})::bigint AS {name}"
    for name in (
        *("requests", "attempts", "failed_attempts", "input_tokens", "cached_tokens", "cache_write_tokens"),
        *("output_tokens", "reasoning_tokens", "cost_pico", "estimated_cost_pico", "failed_cost_pico"),
    )
)

OUTAGE = """
CREATE FUNCTION outage() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'away' USING ERRCODE = 'cannot_connect_now';
END $$;
CREATE TRIGGER outage BEFORE INSERT ON ledger FOR EACH ROW WHEN (NEW.attempt_id = 'att_00000035')
    EXECUTE FUNCTION outage();
"""


class SteppedClock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.at = T0
        self.seconds = 0.0

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return self.seconds

    def move(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)
        self.seconds += seconds


@pytest.fixture
def clock() -> SteppedClock:
    return SteppedClock()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[JournalWriter]:
    writer = JournalWriter.open(tmp_path, "j1", segment_bytes_max=20_000)
    yield writer
    writer.close()


@pytest.fixture
def db(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def shipper(url: str, data_dir: Path, writer: JournalWriter | None, clock: SteppedClock) -> Shipper:
    return Shipper(url, Outbox(data_dir, writer), clock=clock, chance=lambda: 0.5)


async def at_once(seconds: float) -> None:
    """A pause that takes no time."""
    await asyncio.sleep(0)


async def write(journal: JournalWriter, *records: Record) -> None:
    for record in records[:-1]:
        journal.append(record)
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        await journal.durable(journal.append(records[-1]))


def ship_once(journal: JournalWriter, url: str, clock: SteppedClock, *records: Record) -> Shipper:
    async def scenario() -> Shipper:
        await write(journal, *records)
        shipping = shipper(url, journal.path.parents[1], journal, clock)
        await shipping.ship()
        await shipping.close()
        return shipping

    return asyncio.run(scenario())


def rolled_up(db: psycopg.Connection) -> tuple[int, ...] | None:
    """The sums, which are the same in every grain."""
    found = {
        db.execute(ROLLUP.format(sums=SUMS, rolled_up=ROLLED_UP, grain=f"'{grain}'").encode()).fetchone()
        for grain in GRAINS
    }
    assert len(found) == 1
    return found.pop()


def expected(entries: list[LedgerEntry]) -> tuple[int, ...]:
    """What the roll-ups must sum to, by hand and in Python integers."""
    failed = [each for each in entries if each.status in {"failed", "abandoned"}]
    return (
        sum(each.is_final for each in entries),
        sum(each.corrects is None for each in entries),
        sum(each.corrects is None for each in failed),
        sum(each.input_tokens for each in entries),
        sum(each.cached_tokens or 0 for each in entries),
        sum(each.cache_write_tokens for each in entries),
        sum(each.output_tokens for each in entries),
        sum(each.reasoning_tokens or 0 for each in entries),
        sum(each.cost_pico for each in entries),
        sum(each.cost_pico for each in entries if each.usage_source == "estimated"),
        sum(each.cost_pico for each in failed),
    )


def mixed_entries(count: int) -> list[LedgerEntry]:
    """Entries of several keys, tags, hours and ends, by a fixed seed."""
    chance = random.Random(7)
    entries = []
    for number in range(count):
        status = chance.choice(list(AttemptStatus))
        source = chance.choice([UsageSource.PROVIDER, UsageSource.ESTIMATED, UsageSource.NONE])
        prompt, completion = chance.randrange(1, 200_000), chance.randrange(50_000)
        used = Usage.from_wire(prompt=prompt, completion=completion, cached=chance.choice([None, 0, prompt // 2]))
        entries.append(
            entry(
                number,
                used=NO_USAGE if source is UsageSource.NONE else used,
                status=status,
                source=source,
                is_final=chance.random() < 0.8,
                key_id=f"key_{chance.randrange(3)}",
                team=chance.choice([None, "blue", "red"]),
                tags=chance.choice([{}, {"env": "a", "app": "x"}, {"app": "x", "env": "a"}]),
                started_at=T0 + timedelta(minutes=chance.randrange(-50_000, 200)),
            )
        )
    return entries


def test_a_record_arrives_with_every_field(
    journal: JournalWriter, db: psycopg.Connection, database_url: str, clock: SteppedClock
) -> None:
    """A row holds what the entry holds, column by column."""
    written = msgspec.structs.replace(entry(1), flags=["one", 'two "2"'], served_model="k2\0\\\t", corrects=None)
    ship_once(journal, database_url, clock, plan(1), intent(1), progress(1), written)
    names = LedgerEntry.__struct_fields__
    row = db.execute(f"SELECT {', '.join(names)} FROM ledger".encode()).fetchone()
    assert row is not None
    assert dict(zip(names, row, strict=True)) == msgspec.structs.asdict(
        msgspec.structs.replace(written, served_model="k2\ufffd\\\t")
    )
    assert db.execute("SELECT request_id, made_at, key_id, plan FROM exchanges").fetchall() == [
        ("req_00000001", plan(1).made_at, "key_1", {"model": "kimi-k2-thinking", "candidates": []})
    ]


def test_replaying_every_segment_shuffled_adds_nothing(
    journal: JournalWriter, db: psycopg.Connection, database_url: str, clock: SteppedClock, tmp_path: Path
) -> None:
    """L4, L5: three replays in any order insert 0 rows, and the roll-ups stay the sum of the rows."""
    entries = mixed_entries(400)
    first = ship_once(journal, database_url, clock, *entries)
    assert first.state().rows_added == 400
    assert rolled_up(db) == expected(entries)
    segments = sorted(journal.path.glob("*.seg"))
    assert len(segments) > 5
    for seed in range(3):
        replay = tmp_path / f"replay{seed}"
        folder = replay / "journal" / f"r{seed}"
        folder.mkdir(parents=True)
        order = random.Random(seed).sample(segments, len(segments))
        for number, segment in enumerate(order, start=1):
            shutil.copy(segment, folder / f"{number:08d}.seg")

        async def scenario(replay: Path = replay) -> Shipper:
            shipping = shipper(database_url, replay, None, clock)
            await shipping.ship()
            await shipping.close()
            return shipping

        assert asyncio.run(scenario()).state().rows_added == 0
    assert db.execute("SELECT count(*), sum(cost_pico) FROM ledger").fetchone() == (
        400,
        sum(each.cost_pico for each in entries),
    )
    assert rolled_up(db) == expected(entries)
    assert db.execute("SELECT count(*) FROM journal_offsets").fetchone() == (4,)


def test_the_same_journal_from_its_beginning_adds_nothing(
    journal: JournalWriter, db: psycopg.Connection, database_url: str, clock: SteppedClock
) -> None:
    """A database restored without its offsets is brought up to date, and nothing counts twice."""
    entries = mixed_entries(50)
    ship_once(journal, database_url, clock, *entries)
    db.execute("DELETE FROM journal_offsets")
    again = ship_once(journal, database_url, clock, entry(900))
    assert again.state().rows_added == 1
    assert rolled_up(db) == expected([*entries, entry(900)])


def test_two_shippers_at_once_ship_everything_once(
    journal: JournalWriter, db: psycopg.Connection, database_url: str, clock: SteppedClock, tmp_path: Path
) -> None:
    """L4: whoever loses the race for a batch looks up where the other one is, and goes on from there."""
    entries = mixed_entries(3_000)

    async def scenario() -> list[int]:
        await write(journal, *entries)
        shippers = [shipper(database_url, tmp_path, journal, clock) for _ in range(3)]
        await asyncio.gather(*(each.ship() for each in shippers))
        for each in shippers:
            await each.close()
        return [each.state().rows_added for each in shippers]

    assert sum(asyncio.run(scenario())) == 3_000
    assert rolled_up(db) == expected(entries)


def test_an_offset_that_somebody_else_moved_is_believed(
    journal: JournalWriter, db: psycopg.Connection, database_url: str, clock: SteppedClock, tmp_path: Path
) -> None:
    """Whoever finds the offset elsewhere goes on from there, and not from where they thought they were."""

    async def scenario() -> None:
        shipping = shipper(database_url, tmp_path, journal, clock)
        await write(journal, entry(1))
        await shipping.ship()
        await write(journal, entry(2))
        end = journal.durable_end
        db.execute("UPDATE journal_offsets SET segment = %s, byte_offset = %s", [end.segment, end.offset])
        await write(journal, entry(3))
        await shipping.ship()
        await shipping.close()

    asyncio.run(scenario())
    assert [name for (name,) in db.execute("SELECT attempt_id FROM ledger ORDER BY 1")] == [
        entry(1).attempt_id,
        entry(3).attempt_id,
    ]


def test_a_batch_in_halves_that_is_cut_short_goes_on_where_it_was(
    journal: JournalWriter, db: psycopg.Connection, database_url: str, clock: SteppedClock, tmp_path: Path
) -> None:
    """L3: a refused record splits the batch, and the database goes away between the halves: the rest still arrives."""
    entries = mixed_entries(40)
    negative = msgspec.structs.replace(entry(701), output_tokens=-1)
    db.execute(OUTAGE)

    async def scenario() -> None:
        shipping = shipper(database_url, tmp_path, journal, clock)
        await write(journal, negative, *entries)
        with pytest.raises(psycopg.errors.CannotConnectNow):
            await shipping.ship()
        await shipping.close()
        db.execute("DROP TRIGGER outage ON ledger")
        again = shipper(database_url, tmp_path, journal, clock)
        await again.ship()
        await again.close()

    asyncio.run(scenario())
    assert rolled_up(db) == expected(entries)
    assert db.execute("SELECT count(*) FROM ledger_dead_letters").fetchone() == (1,)


def test_a_refused_record_is_set_aside_whole_and_the_batch_goes_on(
    journal: JournalWriter, db: psycopg.Connection, database_url: str, clock: SteppedClock
) -> None:
    """A number that no bigint holds, tokens below zero, an id that no index holds: three dead letters with their
    reasons, and every other row of the batch shipped."""
    entries = mixed_entries(100)
    huge = msgspec.structs.replace(entry(700), output_pico=2**63, cost_pico=2**63, input_pico=0, cached_pico=0)
    negative = msgspec.structs.replace(entry(701), output_tokens=-1)
    chance = random.Random(1)
    long = entry(702, request_id="".join(chance.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=9_000)))
    written = [*entries[:40], huge, *entries[40:99], negative, entries[99], long]
    shipping = ship_once(journal, database_url, clock, *written)
    assert shipping.state().rows_added == 100
    assert shipping.state().records_set_aside == 3
    assert rolled_up(db) == expected(entries)
    letters = db.execute("SELECT payload, reason FROM ledger_dead_letters ORDER BY segment, byte_offset").fetchall()
    assert [msgspec.msgpack.decode(payload)["attempt_id"] for payload, _ in letters] == [
        each.attempt_id for each in (huge, negative, long)
    ]
    for (_, reason), words in zip(letters, ("too big", "only_a_correction_is_negative", "index row"), strict=True):
        assert words in reason


def test_a_record_of_another_version_is_set_aside(
    db: psycopg.Connection, database_url: str, clock: SteppedClock, tmp_path: Path
) -> None:
    """A whole frame that this version cannot read is kept for one that can."""
    folder = tmp_path / "journal" / "j0"
    folder.mkdir(parents=True)
    payload = msgspec.msgpack.encode({"t": "refund", "amount": 1})
    (folder / "00000001.seg").write_bytes(struct.pack("<II", len(payload), zlib.crc32(payload)) + payload)

    async def scenario() -> None:
        shipping = shipper(database_url, tmp_path, None, clock)
        await shipping.ship()
        await shipping.close()

    asyncio.run(scenario())
    row = db.execute("SELECT journal_id, segment, byte_offset, payload, reason FROM ledger_dead_letters").fetchone()
    assert row is not None
    assert row[:4] == ("j0", 1, 0, payload)
    assert "refund" in row[4]


def test_a_row_of_any_time_finds_its_month(
    journal: JournalWriter, db: psycopg.Connection, database_url: str, clock: SteppedClock
) -> None:
    """A late row and one of a wrong clock are rows too; a month that was detached meanwhile is made again."""
    moments = [datetime(1999, 1, 1, tzinfo=UTC), datetime(2040, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)]

    async def scenario() -> None:
        shipping = shipper(database_url, journal.path.parents[1], journal, clock)
        await write(journal, *(entry(n, started_at=moment) for n, moment in enumerate(moments)))
        await shipping.ship()
        db.execute("DROP TABLE ledger_1999_01")
        await write(journal, entry(5, started_at=moments[0]), entry(6))
        await shipping.ship()
        await shipping.close()

    asyncio.run(scenario())
    assert db.execute("SELECT attempt_id FROM ledger ORDER BY 1").fetchall() == [
        ("att_00000001",),
        ("att_00000005",),
        ("att_00000006",),
    ]
    assert db.execute("SELECT count(*) FROM ledger_dead_letters").fetchone() == (0,)


def test_only_what_is_durable_is_shipped(
    journal: JournalWriter, db: psycopg.Connection, database_url: str, clock: SteppedClock, tmp_path: Path
) -> None:
    """L3: the database never knows more than a power cut would leave in the journal."""

    async def scenario() -> None:
        await write(journal, entry(1))
        end = journal.durable_end
        journal.append(entry(2))
        if journal.durable_end != end:
            return  # the sync that comes by itself each second was faster
        shipping = shipper(database_url, tmp_path, journal, clock)
        await shipping.ship()
        assert db.execute("SELECT count(*) FROM ledger").fetchone() == (1,)
        await shipping.close()

    asyncio.run(scenario())


def test_the_journal_of_a_killed_worker_is_settled_shipped_kept_and_removed(
    db: psycopg.Connection, database_url: str, clock: SteppedClock, tmp_path: Path
) -> None:
    """L2: its open attempt becomes one flagged row; its files stay for a week and then go."""
    dead = JournalWriter.open(tmp_path, "j0")
    dead.append(entry(1))
    dead.append(intent(2))
    dead.close()

    async def scenario() -> None:
        shipping = shipper(database_url, tmp_path, None, clock)
        await shipping.ship()
        assert [(found.journal_id, found.is_shipped) for found in journals(tmp_path)] == [("j0", True)]
        clock.at = datetime.now(UTC) + timedelta(days=6.9)
        clock.seconds += 3_601
        await shipping.ship()
        assert len(journals(tmp_path)) == 1
        clock.move(86_400)
        await shipping.ship()
        assert journals(tmp_path) == ()
        await shipping.close()

    asyncio.run(scenario())
    assert db.execute("SELECT attempt_id, status, flags FROM ledger ORDER BY 1").fetchall() == [
        ("att_00000001", "succeeded", []),
        ("att_00000002", "abandoned", ["recovered"]),
    ]


def test_a_living_journal_of_somebody_else_is_left_alone(
    journal: JournalWriter, db: psycopg.Connection, database_url: str, clock: SteppedClock, tmp_path: Path
) -> None:
    """Each worker ships its own."""

    async def scenario() -> None:
        await write(journal, entry(1))
        other = shipper(database_url, tmp_path, None, clock)
        await other.ship()
        await other.close()

    asyncio.run(scenario())
    assert db.execute("SELECT count(*) FROM ledger").fetchone() == (0,)
    assert claim(journal.path) is None


def test_old_segments_of_a_living_journal_go_when_shipped(
    journal: JournalWriter, database_url: str, clock: SteppedClock, tmp_path: Path
) -> None:
    """A worker that runs for months does not fill the disk with what the database has had for a week."""
    clock.at = datetime.now(UTC) + timedelta(days=8)
    ship_once(journal, database_url, clock, *mixed_entries(200))
    assert len(list(journal.path.glob("*.seg"))) == 1


def test_a_database_that_is_away_delays_and_loses_nothing(
    journal: JournalWriter, db: psycopg.Connection, database_url: str, clock: SteppedClock, tmp_path: Path
) -> None:
    """The state says so, the pauses grow, and what was durable arrives when the database is back."""
    entries = mixed_entries(30)
    pauses: list[float] = []
    states: list[ShipperState] = []

    async def scenario() -> None:
        line, stop = Line(database_url), asyncio.Event()
        shipping = Shipper(
            line.url, Outbox(tmp_path, journal), clock=clock, chance=lambda: 0.5, pause=lambda seconds: pause(seconds)
        )

        async def pause(seconds: float) -> None:
            pauses.append(seconds)
            clock.move(seconds)
            if len(pauses) == 3:
                states.append(shipping.state())
                await line.open()
            await asyncio.sleep(0)

        await write(journal, *entries)
        running = asyncio.create_task(shipping.run(stop))
        assert await shipping.flush(WAIT_SECONDS_MAX)
        states.append(shipping.state())
        stop.set()
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            await running
        await line.cut()

    asyncio.run(scenario())
    assert pauses[:3] == [0.375, 0.75, 1.5]
    away, back = states
    assert away.last_error is not None
    assert "refused" in away.last_error
    assert away.backlog_bytes > 5_000
    assert away.lag_seconds == 0.375 + 0.75 + 1.5
    assert (back.backlog_bytes, back.lag_seconds, back.rows_added) == (0, 0.0, 30)
    assert rolled_up(db) == expected(entries)


def test_a_connection_lost_in_the_middle_is_no_loss(
    journal: JournalWriter, db: psycopg.Connection, database_url: str, clock: SteppedClock, tmp_path: Path
) -> None:
    """The line is cut between batches and comes back; every row arrives once."""

    async def scenario() -> None:
        line, stop = Line(database_url), asyncio.Event()
        await line.open()
        shipping = Shipper(line.url, Outbox(tmp_path, journal), clock=clock, chance=lambda: 0.5, pause=at_once)
        running = asyncio.create_task(shipping.run(stop))
        for number in range(5):
            await write(journal, entry(number))
            assert await shipping.flush(WAIT_SECONDS_MAX)
            await line.cut()
            await line.open()
        stop.set()
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            await running
        await line.cut()

    asyncio.run(scenario())
    assert db.execute("SELECT count(*) FROM ledger").fetchone() == (5,)


def test_flush_says_no_when_the_time_is_up(
    journal: JournalWriter, database_url: str, clock: SteppedClock, tmp_path: Path
) -> None:
    """A stop does not wait for a database that is away; the journal keeps what is not shipped."""

    async def scenario() -> None:
        shipping = shipper(Line(database_url).url, tmp_path, journal, clock)
        assert await shipping.flush(0.01)
        await write(journal, entry(1))
        assert not await shipping.flush(0.01)

    asyncio.run(scenario())


def test_pauses_grow_are_bounded_and_differ() -> None:
    """Half of each pause is left to chance, so that workers do not come back all at once."""
    assert [backoff_seconds(n, 0.999_999) for n in (1, 2, 3)] == pytest.approx([0.5, 1.0, 2.0], rel=1e-3)
    assert backoff_seconds(1, 0.0) == 0.25
    assert backoff_seconds(10_000, 0.0) == 15.0

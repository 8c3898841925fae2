"""The shipper moves journals into PostgreSQL: rows, roll-ups, plans and the journal's offset in one transaction.

Whatever is replayed, by whomever and how often, an attempt becomes one row and counts once (laws L4, L5): the rows'
primary key decides, and roll-ups are summed from the rows that were really added. A record that the database refuses
is set aside whole with the reason; the rest of its batch goes on. While the database is away nothing is lost, and the
state says how far behind it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

import msgspec
import psycopg
from psycopg.types.json import set_json_dumps

from gateway.adapters.postgres.entries import HOLD_OPEN, add_entries
from gateway.adapters.postgres.prompts import packed
from gateway.adapters.postgres.sql import statement
from gateway.adapters.postgres.tables import without_nul
from gateway.core.ledger import LedgerEntry, PlanRecord, Record
from gateway.pipeline.ports import Clock

log = logging.getLogger(__name__)

BATCH_ITEMS_MAX: Final = 1_000
SLICE_ITEMS_MAX: Final = 100
"""So many records are read before the requests in flight have their turn: about a millisecond."""
POLL_SECONDS: Final = 1.0
LINGER_SECONDS: Final = 0.05
"""At most one transaction per this long while records trickle in: each one costs as much as a hundred rows."""
ORPHANS_SECONDS: Final = 10.0
CATCH_UP_SECONDS: Final = 1.0
"""Until the journals of the dead have all been shipped once, budgets wait for them."""
TIDY_SECONDS: Final = 3_600.0
BACKOFF_SECONDS_MIN: Final = 0.5
BACKOFF_SECONDS_MAX: Final = 30.0
CONNECT_SECONDS_MAX: Final = 5
TCP_SECONDS_MAX: Final = 60
REASON_LENGTH_MAX: Final = 1_000
_ARCHIVED_REASON: Final = "its month is archived: whether it was counted then is to be looked up in the archive"

_LOCK: Final = b"SELECT pg_advisory_xact_lock(hashtextextended('gateway.journal/' || %s, 0))"
_OFFSET: Final = b"SELECT segment, byte_offset FROM journal_offsets WHERE journal_id = %s"
_ARCHIVED: Final = b"SELECT nullif(archived_until(), '-infinity')"
_MOVE: Final = b"""
INSERT INTO journal_offsets (journal_id, segment, byte_offset) VALUES (%s, %s, %s)
ON CONFLICT (journal_id) DO UPDATE
    SET segment = excluded.segment, byte_offset = excluded.byte_offset, shipped_at = now()
"""
_PLANS: Final = b"""
INSERT INTO exchanges (request_id, made_at, key_id, plan, prompt, tenant, turn)
SELECT request_id, made_at, key_id, plan, decode(prompt, 'base64'), tenant, turn
FROM jsonb_to_recordset(%s::jsonb) AS made (
    request_id text, made_at timestamptz, key_id text, plan jsonb, prompt text, tenant text, turn bigint
)
ON CONFLICT DO NOTHING
"""
_SET_ASIDE: Final = b"""
INSERT INTO ledger_dead_letters (journal_id, segment, byte_offset, payload, reason) VALUES (%s, %s, %s, %s, %s)
ON CONFLICT DO NOTHING
"""

# SQLSTATE classes that speak of the data and not of the database: data exception, constraint, limit exceeded.
_POISON_CLASSES: Final = ("22", "23", "54")

Place = tuple[int, int]
"""Segment and byte offset; (0, 0) is before everything."""


class Item(Protocol):
    """One record and where it begins. ``record`` is the reason where it cannot be read."""

    @property
    def segment(self) -> int: ...
    @property
    def byte_offset(self) -> int: ...
    @property
    def payload(self) -> bytes: ...
    @property
    def record(self) -> Record | str: ...


class Reading(Protocol):
    """Records in order, and the place up to which everything has been looked at."""

    @property
    def items(self) -> Sequence[Item]: ...
    @property
    def segment(self) -> int: ...
    @property
    def byte_offset(self) -> int: ...


class Source(Protocol):
    """One journal, as far as it is certain to be on the disk."""

    @property
    def journal_id(self) -> str: ...
    def end(self) -> Place: ...
    def read(self, segment: int, byte_offset: int, *, items_max: int) -> Reading: ...
    def backlog_bytes(self, segment: int, byte_offset: int) -> int: ...
    def finish(self) -> None: ...
    def release(self) -> None: ...


class Outbox(Protocol):
    """The journals there are to ship."""

    def own(self) -> Source | None: ...
    def orphan(self) -> Source | None: ...
    def tidy(self, now: datetime, *, shipped_segment: int) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ShipperState:
    """How far behind the database is. ``lag_seconds`` is how long something has been waiting to be shipped."""

    backlog_bytes: int
    lag_seconds: float
    rows_added: int
    records_set_aside: int
    last_error: str | None


class _MovedError(Exception):
    """Another shipper has moved this journal's offset."""


class Shipper:
    """Ships one worker's journal, and those of dead workers, over a connection of its own."""

    def __init__(
        self,
        database_url: str,
        outbox: Outbox,
        *,
        clock: Clock,
        chance: Callable[[], float],
        pause: Callable[[float], Awaitable[None]] | None = None,
        connect: Callable[[str], Awaitable[psycopg.AsyncConnection]] | None = None,
    ) -> None:
        """``chance`` answers numbers in [0, 1) for the jitter; ``pause`` waits that many seconds, by default on the
        event loop and not past a stop; ``connect`` opens a connection in autocommit mode."""
        self._database_url = database_url
        self._outbox = outbox
        self._clock = clock
        self._chance = chance
        self._pause = pause or self._wait
        self._connect = connect or connected
        self._db: psycopg.AsyncConnection | None = None
        self._stored: dict[str, Place] = {}  # what the database says
        self._seen: dict[str, Place] = {}  # what was looked at: past the former where there was nothing to ship
        self._months: set[tuple[int, int]] = set()
        self._ahead_for: tuple[int, int] | None = None
        self._next_orphans = self._next_tidy = clock.monotonic()
        self._behind_since: float | None = None
        self._rows_added = 0
        self._records_set_aside = 0
        self._last_error: str | None = None
        self._caught_up = asyncio.Event()
        self._woken = asyncio.Event()
        self._stopped = asyncio.Event()
        self._flushes: list[tuple[Place, asyncio.Future[None]]] = []

    # --- for others ------------------------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event) -> None:
        """Ships until ``stop`` is set. Errors of the database end in the state and in a longer pause, never here."""
        failures = 0
        stopping = asyncio.create_task(self._stop_when(stop), name="shipper-stop")
        try:
            while not stop.is_set():
                self._woken.clear()
                try:
                    await self.ship()
                except (psycopg.Error, OSError) as error:
                    failures += 1
                    await self._failed(error)
                    await self._pause(backoff_seconds(failures, self._chance()))
                    continue
                failures, self._last_error = 0, None
                if not self._flushes:
                    await self._pause(LINGER_SECONDS)
                await self._idle()
        finally:
            stopping.cancel()
            await self.close()

    async def ship(self) -> None:
        """Ships all there is just now. Raises psycopg.Error when the database is away, OSError for the files."""
        await self._connected()
        own = self._outbox.own()
        if own is not None:
            await self._drain(own)
        now = self._clock.monotonic()
        if now >= self._next_orphans:
            # also when one of them cannot be read or shipped
            self._next_orphans = now + (ORPHANS_SECONDS if self._caught_up.is_set() else CATCH_UP_SECONDS)
            while (orphan := await asyncio.to_thread(self._outbox.orphan)) is not None:
                await self._adopt(orphan)
            self._caught_up.set()
        if now >= self._next_tidy:
            shipped = 0 if own is None else self._seen[own.journal_id][0]
            self._next_tidy = now + TIDY_SECONDS
            await asyncio.to_thread(self._outbox.tidy, self._clock.now(), shipped_segment=shipped)

    async def caught_up(self) -> None:
        """Returns once everything that was in the journals when this shipper started, those of the dead as well, is in
        the database."""
        await self._caught_up.wait()

    async def flush(self, timeout_seconds: float) -> bool:
        """Whether all that was durable at the time of the call is in the database; waits for it at most so long.
        Somebody must ``run`` meanwhile."""
        own = self._outbox.own()
        if own is None or self._seen.get(own.journal_id, (0, 0)) >= own.end():
            return True
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._flushes.append((own.end(), waiter))
        self._woken.set()
        try:
            async with asyncio.timeout(timeout_seconds):
                await waiter
        except TimeoutError:
            return False
        finally:
            self._flushes = [flush for flush in self._flushes if flush[1] is not waiter]
        return True

    def wake(self) -> None:
        """Something has become durable: ship it soon. Call on the event loop."""
        self._woken.set()

    def state(self) -> ShipperState:
        """For /metrics and /readyz; looks at the sizes of the journal's files."""
        own = self._outbox.own()
        behind = 0 if own is None else own.backlog_bytes(*self._seen.get(own.journal_id, (0, 0)))
        now = self._clock.monotonic()
        if behind == 0:
            self._behind_since = None
        elif self._behind_since is None:
            self._behind_since = now
        return ShipperState(
            backlog_bytes=behind,
            lag_seconds=0.0 if self._behind_since is None else now - self._behind_since,
            rows_added=self._rows_added,
            records_set_aside=self._records_set_aside,
            last_error=self._last_error,
        )

    async def close(self) -> None:
        """Gives the connection back; ``ship`` opens another."""
        db, self._db = self._db, None
        if db is not None:
            with contextlib.suppress(psycopg.Error, OSError):
                await db.close()

    # --- one journal -----------------------------------------------------------------------------------------------

    async def _drain(self, source: Source) -> None:
        """Ships a journal to its present end, batch by batch; what comes meanwhile is for the next time."""
        end = source.end()
        place = self._seen.get(source.journal_id)
        if place is None:
            place = await self._look_up(source)
        while place < end:
            items, reached = await _read_batch(source, place)
            if items:
                try:
                    await self._ship(source, items, reached)
                except _MovedError:
                    place = await self._look_up(source)
                    continue
            elif reached == place:
                break  # a torn end: there is nothing after it
            place = self._seen[source.journal_id] = reached
        self._answer_flushes(place)
        self.state()

    async def _adopt(self, orphan: Source) -> None:
        """Ships a dead journal, which is ours alone meanwhile, and marks it so."""
        try:
            await self._drain(orphan)
            orphan.finish()
        finally:
            orphan.release()
            self._stored.pop(orphan.journal_id, None)
            self._seen.pop(orphan.journal_id, None)

    async def _look_up(self, source: Source) -> Place:
        db = await self._connected()
        row = await (await db.execute(_OFFSET, [source.journal_id])).fetchone()
        place = (0, 0) if row is None else (row[0], row[1])
        self._stored[source.journal_id] = self._seen[source.journal_id] = place
        return place

    async def _ship(self, source: Source, items: Sequence[Item], reached: Place) -> None:
        """Ships records in order: as they are, else without NUL and with their months made sure of, else in halves
        until the refused record is alone."""
        if await self._refused(source, items, reached) is None:
            return
        self._months.clear()  # a month that somebody removed looks like a refusal too
        reason = await self._refused(source, items, reached, clean=True)
        if reason is None:
            return
        if len(items) == 1:
            await self._commit(source, items, reached, set_aside=reason)
            return
        middle = len(items) // 2
        await self._ship(source, items[:middle], (items[middle].segment, items[middle].byte_offset))
        await self._ship(source, items[middle:], reached)

    async def _refused(
        self, source: Source, items: Sequence[Item], reached: Place, *, clean: bool = False
    ) -> str | None:
        """Commits, or answers why the database refuses this data. Raises for everything else."""
        try:
            await self._commit(source, items, reached, clean=clean)
        except (psycopg.Error, OverflowError) as error:
            if not is_poison(error):
                raise
            return _reason(error)
        return None

    async def _commit(
        self,
        source: Source,
        items: Sequence[Item],
        reached: Place,
        *,
        clean: bool = False,
        set_aside: str | None = None,
    ) -> None:
        """One transaction. ``set_aside`` is the reason to set all of the items aside."""
        unreadable = [(item, item.record) for item in items if isinstance(item.record, str)]
        if set_aside is not None:
            unreadable = [(item, set_aside) for item in items]
        kept = [] if set_aside is not None else [item.record for item in items]
        entries = [record for record in kept if isinstance(record, LedgerEntry)]
        if clean:
            entries = [without_nul(entry) for entry in entries]
        plans = [record for record in kept if isinstance(record, PlanRecord)]
        await self._ensure_months(entries, plans)
        db = await self._connected()
        added = 0
        async with db.transaction(), db.cursor() as cursor:
            archived_until = await self._hold(cursor, source.journal_id)
            if archived_until is not None and set_aside is None:
                unreadable += [(item, _ARCHIVED_REASON) for item in items if _is_before(item.record, archived_until)]
                entries = [entry for entry in entries if not _is_before(entry, archived_until)]
            if entries:
                added = await add_entries(cursor, entries, source.journal_id)
            if plans:
                await _add_plans(cursor, plans)
            for item, reason in unreadable:
                place = (item.segment, item.byte_offset)
                await cursor.execute(_SET_ASIDE, [source.journal_id, *place, item.payload, reason])
            await cursor.execute(_MOVE, [source.journal_id, *reached])
        self._stored[source.journal_id] = reached
        self._rows_added += added
        self._records_set_aside += len(unreadable)
        for item, reason in unreadable:
            log.error(
                "a record at %s/%d/%d was set aside: %s", source.journal_id, item.segment, item.byte_offset, reason
            )

    async def _hold(self, cursor: psycopg.AsyncCursor, journal_id: str) -> datetime | None:
        """Alone with this journal until the end of the transaction, still where we thought it was, and no month is
        closed meanwhile. Answers until when months are archived."""
        await cursor.execute(_LOCK, [journal_id])
        await cursor.execute(HOLD_OPEN)
        row = await (await cursor.execute(_OFFSET, [journal_id])).fetchone()
        if ((0, 0) if row is None else (row[0], row[1])) != self._stored.get(journal_id, (0, 0)):
            raise _MovedError
        archived = await (await cursor.execute(_ARCHIVED)).fetchone()
        return None if archived is None else archived[0]

    async def _ensure_months(self, entries: Sequence[LedgerEntry], plans: Sequence[PlanRecord]) -> None:
        moments = [entry.started_at for entry in entries] + [plan.made_at for plan in plans]
        missing = {(moment.year, moment.month): moment for moment in moments}
        for month in self._months & missing.keys():
            del missing[month]
        db = await self._connected()
        for month, moment in missing.items():
            await db.execute(b"SELECT ensure_month(%s)", [moment])
            self._months.add(month)

    # --- the connection --------------------------------------------------------------------------------------------

    async def _connected(self) -> psycopg.AsyncConnection:
        if self._db is None or self._db.closed:
            db = await self._connect(self._database_url)
            self._db = db
            await db.execute(statement("session"))
        today = self._clock.now()
        if self._ahead_for != (today.month, today.day):
            await self._db.execute(b"SELECT ensure_months_ahead(%s)", [today])
            self._ahead_for = (today.month, today.day)
        return self._db

    async def _failed(self, error: Exception) -> None:
        reason = _reason(error)
        if self._last_error is None:
            log.warning("the ledger cannot be shipped (%s); the journal keeps it and this is tried again", reason)
        self._last_error = reason
        await self.close()
        self.state()

    # --- waiting ---------------------------------------------------------------------------------------------------

    async def _idle(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL_SECONDS):
                await self._woken.wait()

    async def _wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopped.wait()

    async def _stop_when(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._stopped.set()
        self._woken.set()

    def _answer_flushes(self, place: Place) -> None:
        for wanted, waiter in self._flushes:
            if place >= wanted and not waiter.done():
                waiter.set_result(None)
        self._flushes = [flush for flush in self._flushes if not flush[1].done()]


async def connected(database_url: str) -> psycopg.AsyncConnection:
    """A connection as the shipper needs it. Raises psycopg.Error."""
    db = await psycopg.AsyncConnection.connect(
        database_url,
        autocommit=True,
        connect_timeout=CONNECT_SECONDS_MAX,
        application_name="gateway-shipper",
        tcp_user_timeout=TCP_SECONDS_MAX * 1000,
    )
    set_json_dumps(msgspec.json.encode, db)
    return db


def backoff_seconds(failures: int, chance: float) -> float:
    """Twice as long after each failure, up to BACKOFF_SECONDS_MAX, of which half is left to chance."""
    longest = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN * 2.0 ** min(failures - 1, 16))
    return longest * (0.5 + chance / 2)


def is_poison(error: psycopg.Error | OverflowError) -> bool:
    """Whether the database refuses this data, and would refuse it again."""
    if isinstance(error, OverflowError) or error.sqlstate is None:
        return isinstance(error, OverflowError | psycopg.DataError)  # psycopg itself could not write a value down
    return error.sqlstate[:2] in _POISON_CLASSES


def _is_before(record: Record | str, moment: datetime) -> bool:
    return isinstance(record, LedgerEntry) and record.started_at < moment


async def _read_batch(source: Source, place: Place) -> tuple[list[Item], Place]:
    """What there is to ship next, up to BATCH_ITEMS_MAX, and the place up to which everything has been looked at."""
    items: list[Item] = []
    while True:
        reading = source.read(*place, items_max=SLICE_ITEMS_MAX)
        items += reading.items
        before, place = place, (reading.segment, reading.byte_offset)
        if not reading.items or place == before or len(items) >= BATCH_ITEMS_MAX:
            return items, place
        await asyncio.sleep(0)


async def _add_plans(cursor: psycopg.AsyncCursor, plans: Sequence[PlanRecord]) -> None:
    """All plans as one JSON text: psycopg would escape an array of them element by element, in Python."""
    rows = [
        {
            "request_id": plan.request_id,
            "made_at": plan.made_at,
            "key_id": plan.key_id,
            "plan": plan.plan,
            "prompt": None if plan.prompt is None else packed(plan.prompt),
            "tenant": None if plan.prompt is None else plan.tenant,
            "turn": None if plan.prompt is None else plan.turn,
        }
        for plan in plans
    ]
    await cursor.execute(_PLANS, [msgspec.json.encode(rows).decode("utf-8", "replace")])


def _reason(error: Exception) -> str:
    """An error in one bounded line. PostgreSQL's detail repeats the row, so only its first line is told."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:REASON_LENGTH_MAX]

"""A ledger in memory that the real shipper ships to: transactions are whole or absent, and an attempt is one row.

It stands where PostgreSQL does, behind the few statements that the shipper sends: a constraint may refuse a row, the
server may be away, and a commit may succeed and its answer be lost. Whoever asks for balances meets the same troubles.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from random import Random
from typing import Any, Final, NamedTuple
from zoneinfo import ZoneInfo

import psycopg

from gateway.adapters.postgres import entries, shipper
from gateway.adapters.postgres.sql import statement
from gateway.adapters.postgres.tables import LEDGER_COLUMNS
from tests.simulation.life import Life, never

BUCKET: Final = timedelta(minutes=15)
GROUP: Final = ("key_id", "key_name", "team", "model", "provider", "account", "tags")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
Row = dict[str, Any]


@dataclass(slots=True)
class Tables:
    """What is committed. The ledger's key is that of the real one."""

    ledger: dict[tuple[datetime, str], Row] = field(default_factory=dict)
    rollup: dict[tuple[object, ...], dict[str, int]] = field(default_factory=dict)
    exchanges: dict[str, str] = field(default_factory=dict)
    dead_letters: dict[tuple[str, int, int], tuple[bytes, str]] = field(default_factory=dict)
    offsets: dict[str, tuple[int, int]] = field(default_factory=dict)
    postings: dict[tuple[str, date, str], Posted] = field(default_factory=dict)
    """By scope, day and journal."""


class Posted(NamedTuple):
    """One row of ``budget_postings``."""

    pico: int
    rows: int
    moved_at: float


NOTHING: Final = Posted(0, 0, 0.0)


@dataclass(slots=True, kw_only=True)
class Troubles:
    """What goes wrong by chance, as shares of 1; ``away`` are spans of virtual time; ``slow`` is how many questions
    after balances take seconds."""

    fails: float = 0.0
    loses_answer: float = 0.0
    away: list[tuple[float, float]] = field(default_factory=list)
    refuses: float = 0.0
    slow: float = 0.0

    @property
    def are_none(self) -> bool:
        return not (self.fails or self.loses_answer or self.away or self.refuses or self.slow)


class SimulatedDatabase:
    """One server, for one shipper at a time."""

    def __init__(self, *, chance: Random, time_zone: str, now: Callable[[], float], note: Callable[..., None]) -> None:
        self.chance = chance
        self.time_zone = ZoneInfo(time_zone)
        self.now = now
        self.note = note
        self.tables = Tables()
        self.troubles = Troubles()
        self.refused: set[str] = set()
        self._judged: set[str] = set()

    @property
    def is_away(self) -> bool:
        return any(begins <= self.now() < ends for begins, ends in self.troubles.away)

    def check(self) -> None:
        """Raises where the server cannot be asked just now."""
        if self.is_away:
            raise psycopg.OperationalError("the server is away")
        if self.chance.random() < self.troubles.fails:
            raise psycopg.OperationalError("the connection broke")

    def refuses(self, attempt_id: str) -> bool:
        """Whether a constraint speaks against this row: decided once, and kept to."""
        if attempt_id not in self._judged:
            self._judged.add(attempt_id)
            if self.chance.random() < self.troubles.refuses:
                self.refused.add(attempt_id)
        return attempt_id in self.refused

    def connector(self, life: Life) -> Callable[[str], Any]:
        """How one process connects."""

        async def connect(_: str) -> Connection:
            await asyncio.sleep(0.003)
            self.check()
            return Connection(self, life)

        return connect


class Connection:
    """What the shipper uses of an asynchronous connection of psycopg, in autocommit mode."""

    def __init__(self, database: SimulatedDatabase, life: Life) -> None:
        self._database = database
        self._life = life
        self._draft: Tables | None = None
        self._staged: list[Row] = []
        self.closed = False

    async def execute(self, sql: bytes, params: Sequence[Any] = ()) -> Connection:
        if not self._life.is_alive:
            await never()
        self._database.check()
        values = params.values() if isinstance(params, dict) else params
        self._answer = _STATEMENTS[sql](self, self._draft or self._database.tables, *values)
        return self

    async def fetchone(self) -> Sequence[Any] | None:
        answer: Sequence[Any] | None = self._answer
        return answer

    @asynccontextmanager
    async def transaction(self):  # type: ignore[no-untyped-def]
        """All of it or none; after a lost answer nobody here knows which."""
        database = self._database
        self._draft = _draft_of(database.tables)
        try:
            yield
            await asyncio.sleep(0.002)
            database.check()
            if not self._life.passes("commit"):
                await never()
            database.tables = self._draft
            database.note("commit", len(database.tables.ledger))
            if not self._life.is_alive:
                await never()
            if database.chance.random() < database.troubles.loses_answer:
                database.note("the answer to a commit is lost")
                raise psycopg.OperationalError("the connection broke before the answer came")
        finally:
            self._draft, self._staged = None, []

    @asynccontextmanager
    async def cursor(self):  # type: ignore[no-untyped-def]
        yield self

    @asynccontextmanager
    async def copy(self, sql: bytes):  # type: ignore[no-untyped-def]
        assert sql == entries._COPY
        yield self

    def set_types(self, types: Sequence[str]) -> None:
        assert len(types) == len(LEDGER_COLUMNS)

    async def write_row(self, values: Sequence[Any]) -> None:
        self._staged.append(dict(zip(LEDGER_COLUMNS, values, strict=True)))

    async def close(self) -> None:
        self.closed = True

    def ship(self, tables: Tables, journal_id: str) -> tuple[int]:
        """The staged rows that are new become ledger rows, and only those count in the roll-up and the postings."""
        poison = [row["attempt_id"] for row in self._staged if self._database.refuses(row["attempt_id"])]
        if poison:
            raise psycopg.errors.CheckViolation("a row violates a check constraint")
        added = []
        for row in self._staged:
            key = (row["started_at"], row["attempt_id"])
            if key not in tables.ledger:
                tables.ledger[key] = row
                added.append(row)
        roll_up(tables.rollup, added)
        self._post(tables, added, journal_id)
        return (len(added),)

    def _post(self, tables: Tables, rows: Sequence[Row], journal_id: str) -> None:
        database = self._database
        for row in rows:
            day = (row["admitted_at"] or row["started_at"]).astimezone(database.time_zone).date()
            team = () if row["team"] is None else (f"team:{row['team']}",)
            for scope in (f"key:{row['key_id']}", *team, "organisation"):
                before = tables.postings.get((scope, day, journal_id), NOTHING)
                tables.postings[scope, day, journal_id] = Posted(
                    before.pico + row["cost_pico"], before.rows + 1, database.now()
                )


def roll_up(rollup: dict[tuple[object, ...], dict[str, int]], rows: Sequence[Row]) -> None:
    """Adds rows to the sums of their quarter of an hour and their group."""
    for row in rows:
        bucket = _EPOCH + (row["started_at"] - _EPOCH) // BUCKET * BUCKET
        tags = tuple(sorted(row["tags"].items()))
        key = (bucket, *(tags if name == "tags" else row[name] for name in GROUP))
        sums = dict(rollup.get(key) or dict.fromkeys(_SUMS, 0))
        for name, amount in _amounts(row).items():
            sums[name] += amount
        rollup[key] = sums


def _amounts(row: Mapping[str, Any]) -> dict[str, int]:
    is_bad = row["status"] in ("failed", "abandoned")
    return {
        "requests": int(row["is_final"]),
        "attempts": 1,
        "failed_attempts": int(is_bad),
        "input_tokens": row["input_tokens"],
        "cached_tokens": row["cached_tokens"] or 0,
        "output_tokens": row["output_tokens"],
        "cost_pico": row["cost_pico"],
        "estimated_cost_pico": row["cost_pico"] if row["usage_source"] == "estimated" else 0,
        "failed_cost_pico": row["cost_pico"] if is_bad else 0,
    }


_SUMS: Final = (
    "requests", "attempts", "failed_attempts", "input_tokens", "cached_tokens", "output_tokens", "cost_pico",
    "estimated_cost_pico", "failed_cost_pico",
)  # fmt: skip


def _draft_of(tables: Tables) -> Tables:
    """A draft of them; rows and sums themselves are never edited."""
    return Tables(
        dict(tables.ledger),
        dict(tables.rollup),
        dict(tables.exchanges),
        dict(tables.dead_letters),
        dict(tables.offsets),
        dict(tables.postings),
    )


def _move(_: Connection, tables: Tables, journal_id: str, segment: int, byte_offset: int) -> None:
    tables.offsets[journal_id] = (segment, byte_offset)


def _plans(_: Connection, tables: Tables, plans: str) -> None:
    for made in json.loads(plans):
        tables.exchanges.setdefault(made["request_id"], json.dumps(made["plan"]))


def _set_aside(_: Connection, tables: Tables, journal: str, segment: int, at: int, payload: bytes, why: str) -> None:
    tables.dead_letters.setdefault((journal, segment, at), (payload, why))


def _nothing(*_: object) -> None:
    return None


_STATEMENTS: Final[Mapping[bytes, Callable[..., Any]]] = {
    statement("session"): _nothing,
    statement("ship_ledger"): Connection.ship,
    shipper._LOCK: _nothing,
    entries.HOLD_OPEN: _nothing,
    shipper._ARCHIVED: _nothing,
    shipper._OFFSET: lambda _, tables, journal_id: tables.offsets.get(journal_id),
    shipper._MOVE: _move,
    shipper._PLANS: _plans,
    shipper._SET_ASIDE: _set_aside,
    b"SELECT ensure_month(%s)": _nothing,
    b"SELECT ensure_months_ahead(%s)": _nothing,
}
__all__ = ["Connection", "Posted", "Row", "SimulatedDatabase", "Tables", "Troubles", "roll_up"]

"""Evidence is all that was seen of a world from outside, sorted for looking up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import msgspec

from tests.simulation.clients import Connection
from tests.simulation.database import Tables
from tests.simulation.life import Life
from tests.simulation.providers import Call
from tests.simulation.scenario import Scenario

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Closing:
    """What a process held at its orderly end. ``held`` is by window; ``spent`` by scope, period and first day."""

    life: Life
    holds: tuple[str, ...]
    running: Mapping[str, int]
    waiting: int
    held: Mapping[str, int]
    spent: Mapping[tuple[str, str, date | None], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that was seen from outside."""

    scenario: Scenario
    calls: Sequence[Call]
    connections: Sequence[Connection]
    tables: Tables
    refused: set[str]
    segments: Sequence[tuple[Path, bytes]]
    logs: Sequence[str]
    secrets: tuple[str, ...]
    closings: Sequence[Closing]
    lives: Sequence[Life]


@dataclass(slots=True)
class Auditor:
    """The evidence, sorted for looking up."""

    evidence: Evidence
    rows: dict[str, Row] = field(init=False)
    calls: dict[str, Call] = field(init=False)
    by_connection: dict[int, list[Call]] = field(init=False)
    by_request: dict[str, list[Row]] = field(init=False)

    def __post_init__(self) -> None:
        tables = self.evidence.tables
        self.rows = {row["attempt_id"]: row for row in tables.ledger.values()}
        for payload, _ in tables.dead_letters.values():
            letter = msgspec.msgpack.decode(payload)
            if letter.get("attempt_id") in self.evidence.refused:
                self.rows.setdefault(letter["attempt_id"], letter)
        self.calls = {call.attempt_id: call for call in self.evidence.calls}
        self.by_connection = defaultdict(list)
        for call in self.evidence.calls:
            self.by_connection[call.connection].append(call)
        self.by_request = defaultdict(list)
        for row in self.rows.values():
            self.by_request[row["request_id"]].append(row)

    def life_of(self, row: Row) -> int:
        """The number of the process that made this attempt; that of a call which no provider knows by its time."""
        call = self.calls.get(row["attempt_id"])
        if call is not None:
            return call.life.number
        at = (row["started_at"] - self.evidence.scenario.begins).total_seconds()
        return max(life.number for life in self.evidence.lives if life.started_at <= at + 0.001)

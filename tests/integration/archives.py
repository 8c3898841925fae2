"""Months for tests of the archive: shipped whole, closed, archived, and everything that can be asked of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from gateway.adapters.archive.folder import ArchiveFolder, Draft
from gateway.adapters.journal import JournalWriter
from gateway.adapters.postgres.archiving import ArchiveFiles, PostgresArchiving
from gateway.adapters.postgres.closings import PostgresClosings
from gateway.adapters.postgres.reports import Reports
from gateway.cli.digesting import digest_month
from gateway.core.archive import ArchivedFile, ArchivedMonth
from gateway.core.closing import parse_month
from gateway.core.exchange import AttemptStatus
from gateway.core.grants import COMMAND_LINE
from gateway.core.ledger import LedgerEntry, Record
from gateway.core.prefix import Prompt
from gateway.core.spend import Selection, SpendQuery, SpendRow, parse_conditions
from gateway.core.usage import NO_USAGE, UsageSource
from tests.integration.samples import entry, plan, usage
from tests.integration.test_shipper import SteppedClock, ship_once

T = TypeVar("T")
MAY = datetime(2025, 5, 1, tzinfo=UTC)
JULY = datetime(2025, 7, 1, tzinfo=UTC)
LATER = datetime(2025, 9, 1, tzinfo=UTC)
"""When everything that is shipped here may be archived."""
ODD = ("", "NULL", r"\N", r"\.", '"', "a,b", "two\nlines\r\n", "tab\t", "'; --", "ünï ☃ 𝄞", "  ", "{}", "x" * 70_000)
PIECE_BYTES = 1_500
"""A few rows: a month is many pieces."""


@dataclass
class StillClock:
    """A clock that stands."""

    at: datetime = LATER

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return 0.0


def two_months() -> list[Record]:
    """Plain and odd attempts from May to July, some of them on the edges, with retries, corrections and plans."""
    made: list[Record] = []
    for number, text in enumerate(ODD):
        begun = MAY + timedelta(hours=number, microseconds=number)
        made.append(odd(number, text, begun))
        made.append(plan(number, request_id=f"req_{number:08d}", made_at=begun, plan=msgspec.Raw(
            msgspec.json.encode({"model": text, "candidates": [], "turn": number})
        )))  # fmt: skip
    for number in range(100, 160):
        begun = MAY + (JULY - MAY) / 60 * (number - 100)
        made.append(plan(number, made_at=begun, prompt=Prompt((number, 7), (100, 1_000)), tenant="blue", turn=number))
        made.append(entry(number, started_at=begun))
    june = MAY.replace(month=6)
    tick = timedelta(microseconds=1)
    made += [entry(200, started_at=june - tick), plan(200, made_at=june - tick, prompt=Prompt((1, 2), (3, 4)))]
    made += [entry(201, attempt=2, request_id="req_00000200", started_at=june), entry(202, started_at=JULY - tick)]
    made += [entry(203, started_at=JULY), plan(203, made_at=JULY - tick, prompt=Prompt((5, 6), (7, 8)), tenant="red")]
    return made


def odd(number: int, text: str, begun: datetime) -> LedgerEntry:
    """An attempt whose every text is odd, and whose figures are at their edges."""
    is_even = number % 2 == 0
    made = entry(
        number,
        used=NO_USAGE if number == 2 else usage(cached=None if is_even else 600, reasoning=None),
        status=AttemptStatus.FAILED if is_even else AttemptStatus.SUCCEEDED,
        source=UsageSource.ESTIMATED,
        started_at=begun,
        key_name=text,
        team=text if is_even else None,
        tags={text: text, "b": "1"} if is_even else {},
        admitted_at=begun if is_even else None,
        held_pico=2**62,
    )
    changes = {"upstream_request_id": f"up_{number}", "served_model": text, "error_type": text, "flags": [text, "x"]}
    return msgspec.structs.replace(made, **changes, fee_pico=1, cost_pico=made.cost_pico + 1)


def ship(url: str, folder: Path, *records: Record) -> None:
    """The records' whole way from a journal into the ledger."""
    writer = JournalWriter.open(folder, f"j{len(list(folder.glob('journal/*')))}")
    ship_once(writer, url, SteppedClock(), *records)
    writer.close()


def close_month(url: str, month: str) -> None:
    """Closes a month as the command does."""
    begins = parse_month(month)

    async def scenario() -> None:
        reports, closings = Reports(url), PostgresClosings(url, clock=StillClock())
        try:
            await closings.close_month(
                begins, lambda: digest_month(reports, begins, lambda _: None), reason="test", by=COMMAND_LINE
            )
        finally:
            await closings.close()
            await reports.close()

    asyncio.run(scenario())


def archive_month(
    url: str, files: Path | ArchiveFiles, month: str, *, at: datetime = LATER, piece_bytes: int = PIECE_BYTES
) -> ArchivedMonth:
    """Archives a closed month in small pieces."""

    async def scenario() -> ArchivedMonth:
        async with archiving(url, files, at=at, piece_bytes=piece_bytes) as made:
            return await made.archive(COMMAND_LINE, parse_month(month), told=lambda *_: None)

    return asyncio.run(scenario())


@asynccontextmanager
async def archiving(
    url: str, files: Path | ArchiveFiles, *, at: datetime = LATER, piece_bytes: int = PIECE_BYTES
) -> AsyncIterator[PostgresArchiving]:
    kept = ArchiveFolder(files) if isinstance(files, Path) else files
    made = PostgresArchiving(url, kept, clock=StillClock(at), piece_bytes=piece_bytes)
    try:
        yield made
    finally:
        await made.close()


class KilledError(BaseException):
    """Nothing catches this, like a kill."""


class MortalFolder(ArchiveFolder):
    """A folder whose user is killed at its call number ``dies_at``, before or after it was done."""

    def __init__(self, folder: Path, *, dies_at: float, is_after: bool) -> None:
        super().__init__(folder)
        self.calls = 0
        self._dies_at = dies_at
        self._is_after = is_after

    def step(self, done: Callable[[], T]) -> T:
        self.calls += 1
        if self.calls == self._dies_at and not self._is_after:
            raise KilledError
        result = done()
        if self.calls == self._dies_at:
            raise KilledError
        return result

    def writer(self, month: str, table: str, columns: Mapping[str, str]) -> MortalDraft:  # type: ignore[override]
        return MortalDraft(self.step(lambda: super(MortalFolder, self).writer(month, table, columns)), self)

    def seal(self, month: str, archived: ArchivedMonth) -> None:
        self.step(lambda: super(MortalFolder, self).seal(month, archived))

    def check(self, file: ArchivedFile) -> None:
        self.step(lambda: super(MortalFolder, self).check(file))

    def cuts(self, table: str, file: ArchivedFile, begins: datetime, ends: datetime) -> list[datetime]:
        return self.step(lambda: super(MortalFolder, self).cuts(table, file, begins, ends))

    def columns(self, table: str, file: ArchivedFile) -> list[str]:
        return self.step(lambda: super(MortalFolder, self).columns(table, file))


class MortalDraft:
    """A file of a MortalFolder; who is killed does not tidy up."""

    def __init__(self, draft: Draft, folder: MortalFolder) -> None:
        self._draft = draft
        self._folder = folder

    def write(self, text: bytes) -> None:
        self._folder.step(lambda: self._draft.write(text))

    def finish(self) -> ArchivedFile:
        return self._folder.step(self._draft.finish)

    def give_up(self) -> None:
        """Only what was finished has nothing to tidy."""


async def asked(url: str, folder: Path | None, question: Callable[[Reports], Awaitable[T]]) -> T:
    reports = Reports(url, None if folder is None else ArchiveFolder(folder))
    try:
        return await question(reports)
    finally:
        await reports.close()


async def sums(reports: Reports, start: datetime, end: datetime, *groups: str) -> list[SpendRow]:
    """A report in detail."""
    query = SpendQuery(selection=Selection(start=start, end=end), groups=groups, detail=True)
    return [row async for row in reports.spend(query)]


async def attempts(reports: Reports, start: datetime, end: datetime) -> int:
    """How many attempts a report without groups counts."""
    query = SpendQuery(selection=Selection(start=start, end=end), groups=())
    return sum([row.sums[query.sums.index("attempts")] async for row in reports.spend(query)])


async def everything(reports: Reports) -> dict[str, Any]:
    """All that is known of May to July, and of ragged parts of it."""
    end = JULY + timedelta(days=1)
    ragged = [
        (MAY + timedelta(minutes=7, microseconds=1), MAY + timedelta(minutes=9)),
        (MAY + timedelta(hours=3, minutes=1), JULY - timedelta(microseconds=1)),
        (MAY.replace(day=20, minute=5), MAY.replace(month=6, day=2, second=1)),
        (MAY + timedelta(minutes=31), MAY + timedelta(minutes=61)),  # two ends in one piece of a file
        (MAY, JULY),
    ]
    begins, ends = ragged[2]
    narrow = Selection(
        start=begins, end=ends, team="blue", where=parse_conditions(["month=2025-05", "source=provider"])
    )
    rows = [row async for row in reports.ledger(Selection(start=MAY, end=end))]
    async with aclosing(reports.past(MAY, end)) as past:
        requests = [each async for each in past]
    return {
        "rows": rows,
        "team": [row async for row in reports.ledger(narrow)],
        "spend": [await sums(reports, *each, "key", "day", "source") for each in ragged],
        "explained": [await reports.explain(name) for name in sorted({str(row["request_id"]) for row in rows})],
        "past": requests,
        "charges": [[fact async for fact in reports.charges(*each)] for each in ragged],
        "behind": [await reports.find_upstream(f"up_{number}", MAY, end) for number in range(len(ODD) + 1)],
    }

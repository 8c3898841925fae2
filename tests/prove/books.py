"""Every report in every form is the sum of the ledger's rows, and a closed month stays as it is (laws L1, L5).

Attempts of three months come through real shippers, two at once, some of them after their month was closed. In between
attempts are rated again, given back for, and charged without any attempt, and months are closed. After each of these,
reports are asked for at random: any groups, conditions and detail, in any zone, of any period, in every form; and each
cell of each is compared with a sum of the rows in plain integers. The exports of closed months are compared byte by
byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, Final
from zoneinfo import ZoneInfo

import psycopg
from psycopg.rows import dict_row

from gateway.adapters.clock import SystemClock
from gateway.adapters.journal import JournalWriter
from gateway.adapters.journal.outbox import Outbox
from gateway.adapters.postgres.closings import PostgresClosings
from gateway.adapters.postgres.corrections import PostgresCorrections
from gateway.adapters.postgres.reports import Reports
from gateway.adapters.postgres.shipper import Shipper
from gateway.cli.digesting import digest_month
from gateway.cli.spend import show_spend
from gateway.core.corrections import CorrectionBatch, InForce, adjusted, rewritten, unattributed
from gateway.core.exchange import AttemptStatus
from gateway.core.focus import FocusRows
from gateway.core.grants import COMMAND_LINE
from gateway.core.ledger import LedgerEntry, PinnedPrice
from gateway.core.money import PICO_PER_USD, Money, UnitPrice, decimal_text
from gateway.core.pricing import Price
from gateway.core.spend import COLUMNS, Condition, Selection, SpendQuery, tag_of
from gateway.core.usage import NO_USAGE, Usage, UsageSource
from gateway.http.books import ledger_pieces, report_pieces
from gateway.http.focus import focus_csv
from tests.integration.samples import entry
from tests.prove.proof import Ground, Proven, told

SEED: Final = 6_006
SHIPPERS: Final = 2
ROWS_PER_REPORT: Final = 60
REPORTS_MIN: Final = 20
"""Asked for after each thing that happens to the books."""
FIRST_SHARE: Final = 0.8
CORRECTED_SHARE: Final = 0.05
MONTHS: Final = tuple(datetime(2025, month, 1, tzinfo=UTC) for month in (8, 9, 10, 11))
ZONES: Final = ("UTC", "Europe/Berlin", "Asia/Kathmandu", "America/New_York")
FORMS: Final = ("json", "jsonl", "csv", "table")
TAG: Final = 'a "tag", 50%'
GROUPS: Final = (*COLUMNS, f"tag:{TAG}")
TIMES: Final = {"month": "%Y-%m", "day": "%Y-%m-%d", "hour": "%Y-%m-%dT%H:00"}
SOURCES: Final = {"key": "key_name", "price": "price_id", "source": "usage_source"}
TOKENS: Final = ("input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")
FOCUS_VERSIONS: Final = ("1.2", "1.4")
Row = dict[str, Any]


def _price(provider: str, model: str, *amounts: str, write: str | None = None) -> Price:
    uncached, cached, output = map(UnitPrice.from_usd_per_million, amounts)
    return Price(
        provider=provider,
        model=model,
        effective_from=datetime(2025, 7, 1, tzinfo=UTC),
        input=uncached,
        cached_input=cached,
        output=output,
        cache_write=None if write is None else {"5m": UnitPrice.from_usd_per_million(write)},
    )


PRICES: Final = (
    _price("moonshot", "kimi-k2-thinking", "0.6", "0.15", "2.5"),
    _price("moonshot", "kimi-k2-thinking", "0.600001", "0.149999", "2.499999"),
    _price("evolink", "kimi-k2-thinking", "0.556", "0.139", "2.222"),
    _price("evolink", "kimi-k2.6", "0.95", "0.16", "4", write="1.1875"),
)


def prove(size: int, ground: Ground) -> Proven:
    """``size`` attempts, and a report for every ``ROWS_PER_REPORT`` of them after each thing that happens."""
    with ground.database() as url:
        return asyncio.run(_Books(url, size, ground).proven())


class _Books:
    """One ledger and what was found wrong with it."""

    def __init__(self, url: str, size: int, ground: Ground) -> None:
        self._url = url
        self._size = size
        self._ground = ground
        self._chance = Random(SEED)
        self._reports = 0
        self._corrections = 0
        self._wrong: list[str] = []
        self._closed: dict[datetime, list[bytes]] = {}

    async def proven(self) -> Proven:
        attempts = list(_attempts(self._size, self._chance))
        self._chance.shuffle(attempts)
        first = int(len(attempts) * FIRST_SHARE)
        await self._ship(attempts[:first], "first")
        await self._check()
        await self._correct()
        await self._check()
        await self._close(MONTHS[0])
        await self._ship(attempts[first:], "late")
        await self._correct()
        await self._close(MONTHS[1])
        await self._correct()
        await self._check()
        rows = await self._rows()
        if (found := sum(row["corrects"] is None for row in rows)) != len(attempts):
            self._wrong.append(f"{len(attempts)} attempts were settled, and {found} are in the ledger")
        late = sum(row["corrects"] is None and row["restates"] is not None for row in rows)
        figure = (
            f"{len(attempts):,} attempts ({late:,} came after their month was closed) and {self._corrections:,} "
            f"corrections: {self._reports:,} reports and FOCUS files, difference "
            f"{'of some' if self._wrong else '0'} pico-dollars; {len(self._closed)} closed months "
            f"{'moved' if any('closed month' in each for each in self._wrong) else 'byte-identical'}"
        )
        return Proven(figure=figure, violations=told(self._wrong))

    # --- what happens to the books ----------------------------------------------------------------------------------

    async def _ship(self, entries: Sequence[LedgerEntry], name: str) -> None:
        """Through as many journals as there are shippers, which ship them at once."""
        shippers = []
        for number in range(SHIPPERS):
            data_dir = self._ground.folder / f"{name}-{number}"
            _write(data_dir, f"{name}-{number}", entries[number::SHIPPERS])
            shippers.append(Shipper(self._url, Outbox(data_dir), clock=SystemClock(), chance=lambda: 0.5))
        try:
            async with asyncio.TaskGroup() as group:
                for shipper in shippers:
                    group.create_task(shipper.ship())
        finally:
            for shipper in shippers:
                await shipper.close()
        self._ground.tick(len(entries))

    async def _correct(self) -> None:
        """Some attempts, open or closed, and two amounts that no attempt stands for."""
        chance, corrections = self._chance, PostgresCorrections(self._url, clock=SystemClock())
        batch = CorrectionBatch(
            correction_id=f"cor_{chance.randbytes(6).hex()}", kind="restatement", reason="proof", facts={}
        )
        try:
            closed = await corrections.closed_until()
            found = [each async for each in corrections.in_force(MONTHS[0], MONTHS[-1])]
            found.sort(key=lambda each: each.attempt_id)
            chosen = chance.sample(found, int(len(found) * CORRECTED_SHARE))
            entries = [row for each in chosen for row in self._corrected(each, batch.correction_id, closed)]
            entries += [self._unattributed(batch.correction_id, number, closed) for number in range(2)]
            self._corrections += await corrections.write(batch, entries, by=COMMAND_LINE)
        finally:
            await corrections.close()

    def _corrected(self, now: InForce, correction_id: str, closed: datetime | None) -> tuple[LedgerEntry, ...]:
        chance = self._chance
        if now.entry.usage_source == "none" or chance.random() < 0.4:
            amount = Money(chance.randrange(-(10**9), 10**9))
            return (adjusted(now, correction_id=correction_id, amount=amount, closed_until=closed),)
        return rewritten(
            now,
            correction_id=correction_id,
            usage=_usage(chance),
            usage_source=UsageSource.PROVIDER,
            price=chance.choice([price for price in PRICES if price.provider == now.entry.provider]),
            closed_until=closed,
        )

    def _unattributed(self, correction_id: str, number: int, closed: datetime | None) -> LedgerEntry:
        return unattributed(
            correction_id=correction_id,
            provider="evolink",
            account="main",
            model="kimi-k2.6",
            line=f"{correction_id}-{number}",
            at=_moment(self._chance),
            amount=Money(self._chance.randrange(-(10**12), 10**12)),
            closed_until=closed,
            upstream_request_id=None,
        )

    async def _close(self, month: datetime) -> None:
        closings = PostgresClosings(self._url, clock=SystemClock())
        try:
            async with _asking(self._url) as reports:
                await closings.close_month(
                    month, lambda: digest_month(reports, month, lambda _: None), reason="proof", by=COMMAND_LINE
                )
        finally:
            await closings.close()
        self._closed[month] = await self._exports(month)
        async with await psycopg.AsyncConnection.connect(self._url, autocommit=True) as db:
            await db.execute("UPDATE organisation SET name = %s", [f"another since {month:%Y-%m}"])

    async def _exports(self, month: datetime) -> list[bytes]:
        """The files of a month: FOCUS in two versions, and the ledger."""
        end = MONTHS[MONTHS.index(month) + 1]
        async with _asking(self._url) as reports:
            files = [await self._focus(reports, month, end, version) for version in FOCUS_VERSIONS]
            rows = ledger_pieces(reports.ledger(Selection(start=month, end=end)), "jsonl")
            return [*files, b"".join([piece async for piece in rows])]

    # --- what must be so --------------------------------------------------------------------------------------------

    async def _check(self) -> None:
        """Reports at random against the rows, and the exports of closed months against what they were."""
        rows = await self._rows()
        async with _asking(self._url) as reports:
            for _ in range(max(REPORTS_MIN, self._size // ROWS_PER_REPORT)):
                await self._check_report(reports, rows)
            for month, end in pairwise(MONTHS):
                await self._check_focus(reports, rows, month, end)
            start, end = sorted((_moment(self._chance), _moment(self._chance)))
            await self._check_focus(reports, rows, start, end)
        for month, files in self._closed.items():
            if await self._exports(month) != files:
                self._wrong.append(f"the closed month {month:%Y-%m} exports other bytes than when it was closed")

    async def _check_report(self, reports: Reports, rows: Sequence[Row]) -> None:
        query, form = self._query(), self._chance.choice(FORMS)
        expected = _summed(query, rows)
        self._reports += 1
        if form == "table":
            total = decimal_text(sum(sums["cost"] for sums in expected.values()))
            if expected and total not in await _table(query, reports):
                self._wrong.append(f"{_words(query)} as a table does not have the total {total}")
            return
        pieces = report_pieces(query, reports.spend(query), form)  # type: ignore[arg-type]
        found = _parsed(query, b"".join([piece async for piece in pieces]), form)
        if found == expected:
            return
        keys = [key for key in {**found, **expected} if found.get(key) != expected.get(key)]
        self._wrong.append(f"{_words(query)} as {form}: {keys[0]}: {found.get(keys[0])}, rows {expected.get(keys[0])}")

    async def _check_focus(self, reports: Reports, rows: Sequence[Row], start: datetime, end: datetime) -> None:
        text = await self._focus(reports, start, end, self._chance.choice(FOCUS_VERSIONS))
        self._reports += 1
        lines = csv.DictReader(io.StringIO(text.decode()))
        found = sum(int(Decimal(line["BilledCost"]) * PICO_PER_USD) for line in lines)
        expected = sum(row["cost_pico"] for row in rows if start <= row["started_at"] < end)
        if found != expected:
            self._wrong.append(f"FOCUS from {start} to {end} comes to {found}, the rows to {expected}")

    async def _focus(self, reports: Reports, start: datetime, end: datetime, version: str) -> bytes:
        rows = FocusRows(await reports.billing_account(start, end), version=version)
        return b"".join([piece async for piece in focus_csv(reports.charges(start, end), rows)])

    async def _rows(self) -> list[Row]:
        async with (
            await psycopg.AsyncConnection.connect(self._url, row_factory=dict_row) as db,
            await db.execute("SELECT * FROM ledger") as found,
        ):
            return await found.fetchall()

    def _query(self) -> SpendQuery:
        chance = self._chance
        zone = chance.choice(ZONES)
        begins = [month.replace(tzinfo=ZoneInfo(chance.choice((zone, "UTC")))) for month in MONTHS]
        start, end = sorted(chance.choice((_moment(chance), chance.choice(begins))) for _ in range(2))
        where = (Condition("status", ("succeeded", "aborted")),) if chance.random() < 0.2 else ()
        groups = tuple(chance.sample(GROUPS, chance.choice((0, 1, 1, 2, 3))))
        selection = Selection(start=start, end=end, timezone=zone, where=where)
        return SpendQuery(selection=selection, groups=groups)


# --- attempts ---------------------------------------------------------------------------------------------------------


def _attempts(count: int, chance: Random) -> Iterator[LedgerEntry]:
    for number in range(count):
        price, source = chance.choice(PRICES), chance.choice((*UsageSource, UsageSource.PROVIDER, UsageSource.PROVIDER))
        key = f"key_{chance.randrange(7)}"
        yield entry(
            number,
            used=NO_USAGE if source is UsageSource.NONE else _usage(chance),
            status=chance.choice(list(AttemptStatus)),
            source=source,
            is_final=chance.random() < 0.9,
            attempt_id=f"att_books_{number:08d}",
            request_id=f"req_books_{number:08d}",
            key_id=key,
            key_name=chance.choice((key, "shared name", "=1+1")),
            team=chance.choice((None, "blue", "red")),
            tags=chance.choice(({}, {TAG: "x"}, {TAG: "ü", "b": "y"})),
            provider=price.provider,
            model=price.model,
            upstream_model=price.model,
            account=chance.choice(("main", "spare")),
            price=PinnedPrice.of(price),
            started_at=_moment(chance),
        )


def _usage(chance: Random) -> Usage:
    prompt = chance.randrange(200_000)
    return Usage.from_wire(
        prompt=prompt,
        completion=chance.randrange(50_000),
        cached=chance.choice((None, 0, prompt // 3)),
        cache_write=chance.choice((0, prompt // 5)),
        reasoning=chance.choice((None, 7)),
    )


def _moment(chance: Random) -> datetime:
    """Any, and often one of those at which something begins, or the one just before."""
    at = MONTHS[0] + timedelta(microseconds=chance.randrange(int((MONTHS[-1] - MONTHS[0]).total_seconds()) * 10**6))
    if chance.random() < 0.6:
        return at
    midnight = at.replace(hour=0, minute=0, second=0, microsecond=0)
    edges = (midnight, midnight.replace(day=1), midnight + timedelta(hours=22), midnight + timedelta(minutes=15 * 73))
    edge = chance.choice(edges) - timedelta(microseconds=chance.choice((0, 1)))
    return max(MONTHS[0], min(edge, MONTHS[-1] - timedelta(microseconds=1)))


def _write(data_dir: Path, name: str, entries: Sequence[LedgerEntry]) -> None:
    journal = JournalWriter.open(data_dir, f"{name}-{os.getpid()}")
    try:
        for each in entries:
            journal.append(each)
    finally:
        journal.close()


# --- sums in plain integers -------------------------------------------------------------------------------------------


def _summed(query: SpendQuery, rows: Sequence[Row]) -> dict[tuple[str | None, ...], dict[str, int]]:
    """Every cell of a report, of the rows that it is about."""
    selection, zone = query.selection, ZoneInfo(query.selection.timezone)
    cells: dict[tuple[str | None, ...], Counter[str]] = {}
    for row in rows:
        if not selection.start <= row["started_at"] < selection.end:
            continue
        if any(row[condition.group] not in condition.values for condition in selection.where):
            continue
        sums = cells.setdefault(tuple(_value(row, name, zone) for name in query.columns), Counter())
        sums["requests"] += row["corrects"] is None and row["is_final"]
        sums["attempts"] += row["corrects"] is None
        for name in TOKENS:
            sums[name] += row[name] or 0
        sums["cost"] += row["cost_pico"]
        sums["estimated_cost"] += row["cost_pico"] * (row["usage_source"] == "estimated")
    return {key: dict(sums) for key, sums in cells.items()}


def _value(row: Row, name: str, zone: ZoneInfo) -> str | None:
    value: str | None
    if name in TIMES:
        value = f"{row['started_at'].astimezone(zone):{TIMES[name]}}"
    elif (tag := tag_of(name)) is not None:
        value = row["tags"].get(tag)
    else:
        value = row[SOURCES.get(name, name)]
    return value


def _parsed(query: SpendQuery, text: bytes, form: str) -> dict[tuple[str | None, ...], dict[str, int]]:
    """The cells of a rendered report; of JSON also that its total is the sum of them."""
    report = json.loads(text) if form == "json" else {}
    rows: list[dict[str, Any]]
    match form:
        case "json":
            rows = report["rows"]
        case "jsonl":
            rows = [json.loads(line) for line in text.splitlines()]
        case _:
            lines = csv.DictReader(io.StringIO(text.decode()))
            rows = [{name: value or None for name, value in line.items()} for line in lines]
    cells = {}
    for row in rows:
        key = tuple(None if row[name] is None else str(row[name]).removeprefix("'") for name in query.columns)
        cells[key] = {name: _number(name, value) for name, value in row.items() if name not in query.columns}
    total: Counter[str] = Counter()
    for sums in cells.values():
        total.update(sums)
    if any(_number(name, value) != total[name] for name, value in report.get("total", {}).items()):
        cells[("the total is not that of the rows",)] = dict(total)
    return cells


def _number(name: str, value: Any) -> int:
    return int(Decimal(value) * PICO_PER_USD) if name.endswith("cost") else int(value)


async def _table(query: SpendQuery, reports: Reports) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        await show_spend(query, reports.spend(query))
    return out.getvalue()


def _words(query: SpendQuery) -> str:
    selection = query.selection
    return f"{','.join(query.groups) or 'all'} from {selection.start} to {selection.end} in {selection.timezone}"


@contextlib.asynccontextmanager
async def _asking(url: str) -> AsyncIterator[Reports]:
    """Reports of their own: what was remembered would prove nothing."""
    reports = Reports(url)
    try:
        yield reports
    finally:
        await reports.close()

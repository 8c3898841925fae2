"""What a month exports is digested as it is exported: the very bytes, piece by piece, never all of them at once."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from gateway.adapters.postgres.reports import Reports
from gateway.core.closing import FOCUS_VERSION, DayDigest, MonthDigest, month_end
from gateway.core.focus import ChargeFact, FocusRows
from gateway.core.money import Money
from gateway.core.spend import Selection
from gateway.http.books import json_line
from gateway.http.focus import focus_csv

DATE_LENGTH: Final = len("2026-10-01")
Told = Callable[[int], None]
"""Hears how many rows more were digested."""


@dataclass(slots=True)
class _Day:
    rows: int = 0
    cost: Money = field(default=Money(0))
    lines: Any = field(default_factory=hashlib.sha256)


async def digest_month(reports: Reports, month: datetime, told: Told) -> tuple[MonthDigest, Money]:
    """Both exports of a month, and what its charges come to. Raises StoreUnavailableError."""
    days, ledger = await _ledger(reports, month, told)
    charged, focus = await _focus(reports, month)
    digest = MonthDigest(
        rows=sum(day.rows for day in days.values()),
        cost=Money.total(day.cost for day in days.values()),
        ledger_sha256=ledger,
        focus_sha256=focus,
        days={
            name: DayDigest(rows=day.rows, cost=str(day.cost), sha256=day.lines.hexdigest())
            for name, day in days.items()
        },
    )
    return digest, charged


async def _ledger(reports: Reports, month: datetime, told: Told) -> tuple[dict[str, _Day], bytes]:
    """The JSON Lines of ``/admin/ledger``: by day, and all of them."""
    days: dict[str, _Day] = {}
    whole = hashlib.sha256()
    async for row in reports.ledger(Selection(start=month, end=month_end(month))):
        line = json_line(row)
        day = days.setdefault(str(row["started_at"])[:DATE_LENGTH], _Day())
        day.rows += 1
        day.cost += Money.from_usd(str(row["cost"]))
        day.lines.update(line)
        whole.update(line)
        told(1)
    return days, whole.digest()


async def _focus(reports: Reports, month: datetime) -> tuple[Money, bytes]:
    """The FOCUS file, and what its charges come to."""
    charged = 0
    end = month_end(month)

    async def summed(facts: AsyncIterator[ChargeFact]) -> AsyncIterator[ChargeFact]:
        nonlocal charged
        async for fact in facts:
            charged += fact.cost_pico
            yield fact

    whole = hashlib.sha256()
    rows = FocusRows(await reports.billing_account(month, end), version=FOCUS_VERSION)
    async for piece in focus_csv(summed(reports.charges(month, end)), rows):
        whole.update(piece)
    return Money(charged), whole.digest()

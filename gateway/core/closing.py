"""A month is closed once, in order and whole; what it exports then it exports for ever.

Months are calendar months in UTC, named by the moment they begin at.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from gateway.core.money import ZERO, Money

FOCUS_VERSION: Final = "1.2"
"""What a month's charges are digested as, whichever version is exported by default one day."""
GRACE: Final = timedelta(hours=1)
"""So long after a month's end what was settled in it has long been on its way to the ledger."""
NAMED_MAX: Final = 3
_MONTH: Final = re.compile(r"([0-9]{4})-(0[1-9]|1[0-2])")


def parse_month(text: str) -> datetime:
    """The beginning of a month such as ``2026-10``; raises ValueError for anything else."""
    found = _MONTH.fullmatch(text)
    if found is None or found[1] == "0000":
        raise ValueError(f"{text[:40]!r} is not a month such as 2026-10")
    return datetime(int(found[1]), int(found[2]), 1, tzinfo=UTC)


def month_text(month: datetime) -> str:
    return month.astimezone(UTC).strftime("%Y-%m")


def month_end(month: datetime) -> datetime:
    """When the next one begins."""
    begins = month.astimezone(UTC)
    return begins.replace(year=begins.year + begins.month // 12, month=begins.month % 12 + 1)


class DayDigest(msgspec.Struct, frozen=True, kw_only=True):
    """One day of a month's export: how many rows, what they cost, and SHA-256 of their lines in hexadecimal."""

    rows: int
    cost: str
    sha256: str


class MonthDigest(msgspec.Struct, frozen=True, kw_only=True):
    """What a month exports: its ledger as JSON Lines and its charges as FOCUS, both by SHA-256; ``days`` by date."""

    rows: int
    cost: Money
    ledger_sha256: bytes
    focus_sha256: bytes
    days: dict[str, DayDigest] = {}


class Closing(msgspec.Struct, frozen=True, kw_only=True):
    """How a month was closed, and where it went if it was archived."""

    month: datetime
    closed_at: datetime
    closed_by: str
    reason: str
    organisation_name: str
    digest: MonthDigest
    archived_at: datetime | None = None
    archive: dict[str, Any] | None = None


class MonthState(msgspec.Struct, frozen=True, kw_only=True):
    """A month of the books: what counts in it, how much of that is estimated or restates earlier months, and its
    closing."""

    month: datetime
    rows: int
    cost: Money
    estimated: Money
    restated: Money
    closing: Closing | None

    @property
    def is_archived(self) -> bool:
        return self.closing is not None and self.closing.archived_at is not None

    @property
    def state(self) -> str:
        if self.closing is None:
            return "open"
        return "archived" if self.is_archived else "closed"

    @property
    def estimated_percent(self) -> str:
        share = 0 if self.cost == ZERO else 100 * self.estimated.pico / self.cost.pico
        return f"{share:.2f} %"


class Unready(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in the way of closing a month, as far as it was found. ``absent`` are workers that were seen within
    a day, have not signed off and are silent, with when they were last seen."""

    open_before: datetime | None
    dead_letters: int
    unshipped: int
    left_behind: int
    absent: Sequence[tuple[str, datetime]]


def obstacles(month: datetime, now: datetime, unready: Unready) -> list[str]:
    """Why a month cannot be closed now, and what to do about each; none if it can."""
    found = []
    ripe = month_end(month) + GRACE
    if now < ripe:
        found.append(
            f"{month_text(month)} can be closed from {ripe:%Y-%m-%dT%H:%MZ} on: an hour after its end, when what was "
            "settled in it has arrived. Wait until then."
        )
    if unready.open_before is not None:
        earlier = month_text(unready.open_before)
        found.append(f"{earlier} has rows and is open. Close it first: gateway ledger close {earlier}")
    if unready.dead_letters:
        found.append(
            f"{unready.dead_letters} records were set aside, and money may be in them. Read `reason` in "
            "ledger_dead_letters, and settle each first (docs/ledger.md)."
        )
    if unready.unshipped:
        found.append(
            f"{unready.unshipped} attempts in the journals of this machine are not in the database yet. Wait for the "
            "gateway to ship them, or start it: gateway serve"
        )
    if unready.left_behind:
        found.append(
            f"{unready.left_behind} journals of stopped gateways on this machine were not taken up yet. Start the "
            "gateway, which does that at once: gateway serve"
        )
    return found


def absences(unready: Unready) -> list[str]:
    """Workers whose journals may hold attempts of the month; one may close all the same, and they will come late."""
    return [
        f"The worker {worker_id} was last seen at {seen_at.astimezone(UTC):%Y-%m-%dT%H:%MZ} and has not signed off: "
        "its journal may hold attempts. Start the gateway on its machine again, or close with --despite-absent: what "
        "arrives later counts in the next month, and says so."
        for worker_id, seen_at in unready.absent[:NAMED_MAX]
    ]


class NotClosedError(Exception):
    """The month was not closed; nothing has changed. The text says why and what to do, a line for each reason."""

    def __init__(self, reasons: Iterable[str]) -> None:
        self.reasons = list(reasons)
        super().__init__("\n".join(self.reasons))


def closed_already(closing: Closing) -> NotClosedError:
    at = closing.closed_at.astimezone(UTC)
    reason = (
        f"{month_text(closing.month)} was closed already, by {closing.closed_by} at {at:%Y-%m-%dT%H:%M:%SZ} "
        f"({closing.reason}). Corrections of it count in the first open month."
    )
    return NotClosedError([reason])


def first_difference(closed: MonthDigest, found: MonthDigest) -> str | None:
    """The first day on which a month's rows are not those it was closed with, in words; None where they all are."""
    if (closed.rows, closed.ledger_sha256) == (found.rows, found.ledger_sha256):
        return None
    for day in sorted(closed.days.keys() | found.days.keys()):
        was, is_now = closed.days.get(day), found.days.get(day)
        if was != is_now:
            return f"{day}: {_day(is_now)} now, {_day(was)} when it was closed"
    return f"{found.rows:,} rows ({found.cost} USD) now, {closed.rows:,} ({closed.cost} USD) when it was closed"


def _day(digest: DayDigest | None) -> str:
    return "no rows" if digest is None else f"{digest.rows:,} rows ({digest.cost} USD, {digest.sha256[:12]})"

"""A budget is a limit of money over a window of days; what is posted and held in its window never passes it unseen.

Windows are whole days of the organisation's time zone. The window's key names what is counted, not the limit: a
budget that is raised or lowered keeps what was spent. Source: INTERFACE §3 and §4; law L6.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, tzinfo
from enum import StrEnum
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

from gateway.core.money import Money

ORGANISATION: Final = "organisation"
"""The scope that everything belongs to."""
ALERT_AT: Final = (80, 100)
"""Shares of a budget, in percent, at which somebody is told, unless the budget says otherwise."""


class Period(StrEnum):
    """The window of a budget. A week begins on Monday."""

    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    TOTAL = "total"


class BudgetMode(StrEnum):
    """What a budget does about a request that might overrun it: refuse, shorten its answer, or only tell."""

    STRICT = "strict"
    CLAMP = "clamp"
    SOFT = "soft"


class OnOutage(StrEnum):
    """What a budget does while nobody knows what is spent."""

    REFUSE = "refuse"
    ADMIT = "admit"


@dataclass(frozen=True, slots=True)
class BudgetWindow:
    """What is counted together: one scope's spend in ``[first_day, until_day)``, both None for the whole of time.

    ``scope`` is ``key:ID``, ``team:NAME`` or ``organisation``; ``begins_at`` and ``ends_at`` are its moments in UTC;
    ``key`` is its name in every store: ``team:research/month/2026-11-01``.
    """

    scope: str
    period: Period
    first_day: date | None
    until_day: date | None
    begins_at: datetime | None
    ends_at: datetime | None
    key: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        first = "" if self.first_day is None else self.first_day.isoformat()
        object.__setattr__(self, "key", f"{self.scope}/{self.period.value}/{first}")

    def holds_day(self, day: date) -> bool:
        """Whether what is spent on that day counts here."""
        return (self.first_day is None or self.first_day <= day) and (self.until_day is None or day < self.until_day)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """One limit of money. ``name`` is what a caller is told: ``key "ci"``, ``team "research"``, ``organisation``."""

    budget_id: str
    scope: str
    name: str
    period: Period
    limit: Money
    mode: BudgetMode = BudgetMode.STRICT
    on_outage: OnOutage = OnOutage.REFUSE
    alert_at: tuple[int, ...] = ALERT_AT
    time_zone: str = "UTC"


def scope_of_key(key_id: str) -> str:
    return f"key:{key_id}"


def scope_of_team(team: str) -> str:
    return f"team:{team}"


@lru_cache(maxsize=64)
def zone_of(time_zone: str) -> tzinfo:
    """The zone of an IANA name; raises ValueError for an unknown one."""
    try:
        return UTC if time_zone == "UTC" else ZoneInfo(time_zone)
    except (OSError, KeyError, ValueError):
        raise ValueError(f"{time_zone[:64]!r} is not a time zone such as Europe/Berlin") from None


def day_of(now: datetime, time_zone: str) -> date:
    """The day that a moment belongs to in a zone."""
    return now.date() if time_zone == "UTC" and now.tzinfo is UTC else now.astimezone(zone_of(time_zone)).date()


def window_of(scope: str, period: Period, now: datetime, time_zone: str = "UTC") -> BudgetWindow:
    """The window of a scope that a moment falls into."""
    return window_of_day(scope, period, day_of(now, time_zone), time_zone)


def window_of_day(scope: str, period: Period, day: date, time_zone: str) -> BudgetWindow:
    """The window of a scope that a day in a zone falls into."""
    return _window(scope, period, None if period is Period.TOTAL else day, time_zone)


@lru_cache(maxsize=4096)
def _window(scope: str, period: Period, day: date | None, time_zone: str) -> BudgetWindow:
    if day is None:
        return BudgetWindow(scope, period, None, None, None, None)
    zone = zone_of(time_zone)
    match period:
        case Period.DAY:
            first, until = day, day + timedelta(days=1)
        case Period.WEEK:
            first = day - timedelta(days=day.weekday())
            until = first + timedelta(days=7)
        case _:
            first = day.replace(day=1)
            until = (first + timedelta(days=32)).replace(day=1)
    return BudgetWindow(scope, period, first, until, _midnight(first, zone), _midnight(until, zone))


def _midnight(day: date, zone: tzinfo) -> datetime:
    return datetime.combine(day, datetime.min.time(), zone).astimezone(UTC)

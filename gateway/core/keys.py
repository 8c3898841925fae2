"""A virtual key as administrators see it: its name, rights and limits, never its secret."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Final

from gateway.core.exchange import Role
from gateway.core.money import Money

NAME_CHARACTERS_MAX: Final = 200
_GRACE: Final = re.compile(r"(\d{1,6})([smhd])")
_GRACE_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class Period(StrEnum):
    """The window of a budget."""

    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    TOTAL = "total"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyGrant:
    """What a key is created with. None = no limit; ``models`` and ``providers`` None = all."""

    name: str
    team: str | None = None
    role: Role = Role.INFERENCE
    models: tuple[str, ...] | None = None
    providers: tuple[str, ...] | None = None
    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None
    budget: Money | None = None
    period: Period | None = None
    expires_at: datetime | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """A key that exists. ``hint`` is the end of its newest secret."""

    key_id: str
    grant: KeyGrant
    hint: str
    created_at: datetime
    revoked_at: datetime | None = None


def parse_grace(text: str) -> timedelta:
    """``24h``, ``30m``, ``7d``, ``90s`` or ``0s``; raises ValueError."""
    found = _GRACE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not a duration such as 24h, 30m or 7d")
    return timedelta(**{_GRACE_UNITS[found[2]]: int(found[1])})


def parse_moment(text: str) -> datetime:
    """A date (its midnight UTC) or an RFC 3339 moment; raises ValueError."""
    try:
        if len(text) == len("2026-11-22"):
            return datetime.combine(date.fromisoformat(text), datetime.min.time(), UTC)
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is not a date such as 2026-11-22 or a moment such as 2026-11-22T08:00:00Z"
        ) from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)

"""A virtual key as administrators see it: its name, rights and limits, never its secret."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, tzinfo
from enum import StrEnum
from typing import Final, TypeVar

from gateway.core.budget import Period
from gateway.core.catalogue import Catalogue
from gateway.core.exchange import Role
from gateway.core.money import Money

NAME_CHARACTERS_MAX: Final = 200
LIMIT_MAX: Final = 10**12
TAGS_MAX: Final = 16
TAG_CHARACTERS_MAX: Final = 128
_TAG_NAME: Final = re.compile(r"[a-zA-Z0-9_.:-]{1,64}")
E = TypeVar("E", bound=StrEnum)
_GRACE: Final = re.compile(r"(\d{1,6})([smhd])")
_GRACE_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


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


class FieldError(ValueError):
    """A field of a key breaks a rule. ``field`` is its public name."""

    def __init__(self, field_name: str, message: str) -> None:
        super().__init__(message)
        self.field = field_name


def check_grant(
    catalogue: Catalogue,
    *,
    name: str,
    team: str | None = None,
    role: str = Role.INFERENCE,
    models: Iterable[str] | None = None,
    providers: Iterable[str] | None = None,
    rpm: int | None = None,
    tpm: int | None = None,
    concurrency: int | None = None,
    budget: str | None = None,
    period: str | None = None,
    expires: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> KeyGrant:
    """What an administrator asked for as a grant; models by any of their names. Raises FieldError."""
    if (budget is None) != (period is None):
        missing = "budget" if budget is None else "period"
        raise FieldError(missing, "budget and period go together: an amount of USD per day, week, month or total.")
    return KeyGrant(
        name=_named("name", name),
        team=_named("team", team) if team else None,
        role=_one_of("role", role, Role),
        models=None if models is None else _models(models, catalogue),
        providers=None if providers is None else _known("providers", providers, catalogue.providers),
        rpm=_limit("rpm", rpm),
        tpm=_limit("tpm", tpm),
        concurrency=_limit("concurrency", concurrency),
        budget=None if budget is None else _budget(budget),
        period=None if period is None else _one_of("period", period, Period),
        expires_at=None if expires is None else _expiry(expires),
        tags=_tags(tags or {}),
    )


def _named(field_name: str, text: str) -> str:
    name = text.strip()
    if not name or len(name) > NAME_CHARACTERS_MAX or not name.isprintable():
        raise FieldError(field_name, f"{field_name} is 1 to {NAME_CHARACTERS_MAX} printable characters.")
    return name


def _one_of(field_name: str, text: str, kind: type[E]) -> E:
    try:
        return kind(text)
    except ValueError:
        raise FieldError(field_name, f"{field_name} is one of {', '.join(kind)}, not {text!r}.") from None


def _models(names: Iterable[str], catalogue: Catalogue) -> tuple[str, ...]:
    resolved = {name: catalogue.resolve(name) for name in names}
    found = [name if model is None else model.name for name, model in resolved.items()]
    return _known("models", found, catalogue.models)


def _known(field_name: str, names: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    """Every name once, in order; all of them known, and at least one, for none at all may mean two things."""
    found = tuple(sorted(set(names)))
    unknown = [name for name in found if name not in known]
    if unknown:
        raise FieldError(field_name, f"unknown {field_name}: {', '.join(unknown)}; known: {', '.join(sorted(known))}.")
    if not found:
        raise FieldError(field_name, f"{field_name} names none; leave it out to allow all of them.")
    return found


def _limit(field_name: str, limit: int | None) -> int | None:
    if limit is not None and not 1 <= limit <= LIMIT_MAX:
        raise FieldError(field_name, f"{field_name} is a whole number from 1 to {LIMIT_MAX}.")
    return limit


def _budget(text: str) -> Money:
    try:
        amount = Money.from_usd(text)
    except ValueError:
        raise FieldError("budget", f'{text[:40]!r} is not an amount of USD such as "25.00".') from None
    if amount.pico < 0:
        raise FieldError("budget", "a budget is not negative.")
    return amount


def _expiry(text: str) -> datetime:
    try:
        return parse_moment(text)
    except ValueError as error:
        raise FieldError("expires", f"{error}.") from None


def _tags(tags: Mapping[str, str]) -> dict[str, str]:
    if len(tags) > TAGS_MAX:
        raise FieldError("tags", f"{len(tags)} tags are more than {TAGS_MAX}.")
    for name, value in tags.items():
        if _TAG_NAME.fullmatch(name) is None:
            raise FieldError("tags", f"the tag name {name[:64]!r} is not 1 to 64 letters, digits or any of _ . : -")
        if len(value) > TAG_CHARACTERS_MAX or not value.isprintable():
            raise FieldError("tags", f"the value of tag {name} is not up to {TAG_CHARACTERS_MAX} printable characters.")
    return dict(tags)


def parse_grace(text: str) -> timedelta:
    """``24h``, ``30m``, ``7d``, ``90s`` or ``0s``; raises ValueError."""
    found = _GRACE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not a duration such as 24h, 30m or 7d")
    return timedelta(**{_GRACE_UNITS[found[2]]: int(found[1])})


def parse_moment(text: str, zone: tzinfo = UTC) -> datetime:
    """A date (its midnight in the zone) or an RFC 3339 moment, in UTC; raises ValueError."""
    try:
        if len(text) == len("2026-11-22"):
            moment = datetime.combine(date.fromisoformat(text), datetime.min.time(), zone)
        else:
            moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=zone)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text[:40]!r} is not a date such as 2026-11-22 or a moment such as 2026-11-22T08:00:00Z"
        ) from None

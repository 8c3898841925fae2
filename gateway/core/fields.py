"""What an administrator writes is checked field by field, each by one rule; an error names the field and the mend."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime, timedelta, tzinfo
from enum import StrEnum
from typing import Any, Final, Protocol, TypeVar

from gateway.core.budget import BudgetMode, Period
from gateway.core.catalogue import Catalogue
from gateway.core.money import Money

NAME_CHARACTERS_MAX: Final = 200
LIMIT_MAX: Final = 10**12
TAGS_MAX: Final = 16
TAG_CHARACTERS_MAX: Final = 128
SHARES_MAX: Final = 10
SHARE_MAX: Final = 1_000
_TAG_NAME: Final = re.compile(r"[a-zA-Z0-9_.:-]{1,64}")
_GRACE: Final = re.compile(r"(\d{1,6})([smhd])")
_GRACE_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
E = TypeVar("E", bound=StrEnum)


class FieldError(ValueError):
    """A field breaks a rule. ``field`` is its public name."""

    def __init__(self, field_name: str, message: str) -> None:
        super().__init__(message)
        self.field = field_name


def check_name(field_name: str, text: str) -> str:
    """A name of its own kind: printable, neither empty nor long."""
    name = text.strip()
    if not name or len(name) > NAME_CHARACTERS_MAX or not name.isprintable():
        raise FieldError(field_name, f"{field_name} is 1 to {NAME_CHARACTERS_MAX} printable characters.")
    return name


def check_choice(field_name: str, text: str, kind: type[E]) -> E:
    """One of the values of an enumeration."""
    try:
        return kind(text)
    except ValueError:
        raise FieldError(field_name, f"{field_name} is one of {', '.join(kind)}, not {text!r}.") from None


def check_models(names: Iterable[str], catalogue: Catalogue) -> tuple[str, ...]:
    """Models by any of their names, as their public names."""
    resolved = {name: catalogue.resolve(name) for name in names}
    found = [name if model is None else model.name for name, model in resolved.items()]
    return _known("models", found, catalogue.models)


def check_providers(names: Iterable[str], catalogue: Catalogue) -> tuple[str, ...]:
    """Providers that are configured."""
    return _known("providers", names, catalogue.providers)


def _known(field_name: str, names: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    """Every name once, in order; all of them known, and at least one, for none at all may mean two things."""
    found = tuple(sorted(set(names)))
    unknown = [name for name in found if name not in known]
    if unknown:
        raise FieldError(field_name, f"unknown {field_name}: {', '.join(unknown)}; known: {', '.join(sorted(known))}.")
    if not found:
        raise FieldError(field_name, f"{field_name} names none; leave it out to allow all of them.")
    return found


def check_limit(field_name: str, limit: int) -> int:
    """A whole number above nothing."""
    if not 1 <= limit <= LIMIT_MAX:
        raise FieldError(field_name, f"{field_name} is a whole number from 1 to {LIMIT_MAX}.")
    return limit


def check_amount(field_name: str, text: str) -> Money:
    """An amount of USD that is not negative."""
    try:
        amount = Money.from_usd(text)
    except ValueError:
        raise FieldError(field_name, f'{text[:40]!r} is not an amount of USD such as "25.00".') from None
    if amount.pico < 0:
        raise FieldError(field_name, "a budget is not negative.")
    return amount


def check_together(budget: object, period: object, mode: object = None) -> None:
    """A budget is an amount and a period; a mode alone is no budget."""
    if (budget is None) != (period is None):
        missing = "budget" if budget is None else "period"
        raise FieldError(missing, f"budget and period go together: an amount of USD per {', '.join(Period)}.")
    if budget is None and mode is not None:
        raise FieldError("budget_mode", "budget_mode says how a budget refuses; give budget and period as well.")


class HasBudget(Protocol):
    """An amount and a period, or neither."""

    @property
    def budget(self) -> Money | None: ...
    @property
    def period(self) -> Period | None: ...


def consistent(before: HasBudget, values: dict[str, Any]) -> dict[str, Any]:
    """The values of an update that leave a whole budget or none: who clears the amount clears all of it. Raises
    FieldError where half is left."""
    if "budget" in values and values["budget"] is None:
        values = {"period": None, "budget_mode": BudgetMode.STRICT, **values}
    budget, period = values.get("budget", before.budget), values.get("period", before.period)
    check_together(budget, period, values.get("budget_mode") if "budget" not in values else None)
    return values


def check_shares(shares: Iterable[int]) -> tuple[int, ...]:
    """Shares of a budget in percent at which somebody is told, each once, in order; none at all is nobody."""
    found = tuple(sorted(set(shares)))
    if len(found) > SHARES_MAX or any(not 1 <= share <= SHARE_MAX for share in found):
        raise FieldError("alert_at", f"alert_at is up to {SHARES_MAX} whole percentages from 1 to {SHARE_MAX}.")
    return found


def check_moment(field_name: str, text: str) -> datetime:
    """A date (its midnight in UTC) or a moment."""
    try:
        return parse_moment(text)
    except ValueError as error:
        raise FieldError(field_name, f"{error}.") from None


def check_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Names and values that a report can be grouped by."""
    if len(tags) > TAGS_MAX:
        raise FieldError("tags", f"{len(tags)} tags are more than {TAGS_MAX}.")
    for name, value in tags.items():
        if _TAG_NAME.fullmatch(name) is None:
            raise FieldError("tags", f"the tag name {name[:64]!r} is not 1 to 64 letters, digits or any of _ . : -")
        if len(value) > TAG_CHARACTERS_MAX or not value.isprintable():
            raise FieldError("tags", f"the value of tag {name} is not up to {TAG_CHARACTERS_MAX} printable characters.")
    return dict(tags)


def checked_fields(
    fields: Mapping[str, Any], checks: Mapping[str, Callable[[str, Any], Any]], catalogue: Catalogue
) -> dict[str, Any]:
    """Every given field by its own rule; None is no limit, and no tags. Raises FieldError."""
    checked: dict[str, Any] = {}
    for name, value in fields.items():
        if value is None:
            checked[name] = {"tags": {}, "budget_mode": BudgetMode.STRICT}.get(name)
        elif name == "models":
            checked[name] = check_models(value, catalogue)
        elif name == "providers":
            checked[name] = check_providers(value, catalogue)
        else:
            checked[name] = checks[name](name, value)
    return checked


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

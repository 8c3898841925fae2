"""Spend is asked for by groups and conditions of one vocabulary, and answered in exact sums; ratios alone are rounded.

A row of a report has the columns of its groups, then those of ``MEASURES``, and after them those of ``DETAIL`` where
more is asked for. The total is a row without groups. What has no team, or not the tag, is null.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

import msgspec

from gateway.core.fields import FieldError
from gateway.core.money import decimal_text

COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "key": ("key", "key_id"),
    "key_id": ("key_id",),
    "team": ("team",),
    "model": ("model",),
    "provider": ("provider",),
    "account": ("provider", "account"),
    "price": ("price",),
    "status": ("status",),
    "source": ("source",),
    "month": ("month",),
    "day": ("day",),
    "hour": ("hour",),
}
"""The columns of each group. ``price`` is a price row's id, ``source`` where the usage is from; times are those of the
zone in which the report is asked for. ``tag:NAME`` is a group as well."""
TIMES: Final = ("month", "day", "hour")
"""From coarse to fine; each is the beginning of the text of the next."""

TOKENS: Final = ("input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")
MEASURES: Final = ("requests", "attempts", *TOKENS, "cost", "estimated_cost")
COSTS_BY_CLASS: Final = ("input_cost", "cached_cost", "cache_write_cost", "output_cost", "fee_cost")
RATIOS: Final = ("estimated_share", "cache_hit_rate", "usd_per_million")
DETAIL: Final = (
    *("failed_attempts", "failed_cost", "aborted_attempts", "aborted_cost", "restated_cost"),
    *COSTS_BY_CLASS,
    *RATIOS,
)
"""``failed_…``: of attempts that failed or that the gateway gave up, which bought no answer; ``aborted_…``: the caller
hung up. ``restated_cost``: what puts closed months right, and what arrived after its month was closed.
``COSTS_BY_CLASS`` add up to the cost. ``estimated_share``: estimated cost / cost. ``cache_hit_rate``: cached tokens /
input tokens; a provider that tells nothing of its cache counts as having none. ``usd_per_million``: cost per 1,000,000
tokens, input and output together."""

DETAIL_SUMS: Final = tuple(name for name in DETAIL if name not in RATIOS)

RATIO_DECIMALS: Final = 6
EMPTY: Final = '""'
"""How a condition spells a text that is there and empty; nothing at all is what is not there."""
CONDITIONS_MAX: Final = 100

_TAG: Final = re.compile(r"tag:(.{1,64})", re.DOTALL)
_MOMENTS: Final = {"month": "%Y-%m", "day": "%Y-%m-%d", "hour": "%Y-%m-%dT%H:00"}
_EXAMPLES: Final = {"month": "2026-10", "day": "2026-10-31", "hour": "2026-10-31T14:00"}
_CHOICES: Final = {
    "status": ("succeeded", "failed", "aborted", "abandoned"),
    "source": ("provider", "estimated", "none"),
}
_LAST: Final = datetime.max  # noqa: DTZ901 - of any zone


class Condition(msgspec.Struct, frozen=True):
    """Only what has one of these values in a group; None among them is what has none."""

    group: str
    values: tuple[str | None, ...]


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """What of the ledger is asked for: a period, start inclusive and end exclusive, and all conditions at once.
    ``timezone`` is that of months, days and hours; ``team`` is whose eyes it is for, None for everybody's."""

    start: datetime
    end: datetime
    timezone: str = "UTC"
    where: tuple[Condition, ...] = ()
    team: str | None = None


class SpendRow(NamedTuple):
    """One cell of a report: the value of each of its columns, and of each of its sums."""

    groups: tuple[str | None, ...]
    sums: tuple[int, ...]


class SpendQuery(msgspec.Struct, frozen=True, kw_only=True):
    """A report: what is selected, by groups."""

    selection: Selection
    groups: tuple[str, ...] = ("key",)
    detail: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """Of the groups, each once, in the order in which they were named."""
        return tuple(dict.fromkeys(column for group in self.groups for column in COLUMNS.get(group, (group,))))

    @property
    def sums(self) -> tuple[str, ...]:
        """The names of the sums that a row has: its measures but for the ratios; costs are in pico-dollars."""
        return (*MEASURES, *DETAIL_SUMS) if self.detail else MEASURES

    def shown(self, row: SpendRow) -> dict[str, object]:
        """A row under its public names. Amounts are exact decimal strings; ratios are decimal strings of up to six
        decimals, and null where there is nothing to divide by."""
        return {**dict(zip(self.columns, row.groups, strict=True)), **_measures(row.sums, detail=self.detail)}


def tag_of(group: str) -> str | None:
    """The name of the tag that a group is of."""
    found = _TAG.fullmatch(group)
    return None if found is None else found[1]


def parse_groups(text: str) -> tuple[str, ...]:
    """Groups separated by commas, each once. Raises FieldError for ``group_by``."""
    groups = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for group in groups:
        _check_group("group_by", group, "group by")
    return groups


def parse_conditions(texts: Iterable[str]) -> tuple[Condition, ...]:
    """``GROUP=VALUE`` each: of one group any of the values, of several groups all. Raises FieldError for ``where``."""
    found: dict[str, dict[str | None, None]] = {}
    for count, text in enumerate(texts, start=1):
        if count > CONDITIONS_MAX:
            raise FieldError("where", f"more than {CONDITIONS_MAX} conditions are more than a report takes.")
        group, equals, value = text.partition("=")
        if not equals:
            raise FieldError("where", f"{text[:80]!r} is not of the form GROUP=VALUE.")
        _check_group("where", group, "filter by")
        found.setdefault(group, {})[_value(group, value)] = None
    return tuple(Condition(group, tuple(values)) for group, values in found.items())


def _check_group(field: str, group: str, purpose: str) -> None:
    if group not in COLUMNS and (tag_of(group) is None or not _is_text(group)):
        known = ", ".join((*COLUMNS, "tag:NAME"))
        raise FieldError(field, f"{group[:80]!r} is not something to {purpose}; choose from {known}.")


def _value(group: str, value: str) -> str | None:
    if group in TIMES and not _is_moment(group, value):
        raise FieldError("where", f"{value[:40]!r} is not a {group} such as {_EXAMPLES[group]}.")
    if value not in _CHOICES.get(group, (value,)):
        raise FieldError("where", f"{value[:40]!r} is not a {group}; choose from {', '.join(_CHOICES[group])}.")
    if not _is_text(value):
        raise FieldError("where", f"the {group[:80]} {value[:40]!r} is not a text.")
    if value == EMPTY:
        return ""
    return None if not value and (group == "team" or tag_of(group) is not None) else value


def _is_moment(group: str, value: str) -> bool:
    try:
        return f"{datetime.strptime(value, _MOMENTS[group]):{_MOMENTS[group]}}" == value  # noqa: DTZ007 - of any zone
    except ValueError:
        return False


def _is_text(text: str) -> bool:
    """What a database can hold: no NUL, and no half of a character."""
    return "\0" not in text and text.encode(errors="replace").decode() == text


def selected_times(selection: Selection) -> tuple[datetime, datetime]:
    """The period as far as conditions on times leave anything of it: outside it there is nothing, inside it there may
    be what the conditions do not want."""
    start, end = selection.start, selection.end
    for condition in selection.where:
        if condition.group in TIMES:
            spans = [_span(condition.group, str(value), ZoneInfo(selection.timezone)) for value in condition.values]
            start = max(start, min(begins for begins, _ in spans))
            end = min(end, max(ends for _, ends in spans))
    return start, max(start, end)


def month_starts(start: datetime, end: datetime, zone: ZoneInfo) -> list[datetime]:
    """Where months of the zone begin from ``start`` to ``end``; one that begins at a time that there is twice, or not
    at all, may begin at either."""
    found = []
    month = _local(start, zone).replace(day=1, hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    while month < _LAST and (moments := _moments(month, zone))[0] < end:
        found += moments
        month = _following("month", month)
    return found


def _span(group: str, label: str, zone: ZoneInfo) -> tuple[datetime, datetime]:
    """From the first moment that may be called so in the zone to the last."""
    begins = datetime.strptime(label, _MOMENTS[group])  # noqa: DTZ007 - of the zone
    return min(_moments(begins, zone)), max(_moments(_following(group, begins), zone))


def _following(group: str, begins: datetime) -> datetime:
    try:
        if group == "month":
            return (begins + timedelta(days=31)).replace(day=1)
        return begins + (timedelta(days=1) if group == "day" else timedelta(hours=1))
    except OverflowError:
        return _LAST


def _moments(local: datetime, zone: ZoneInfo) -> list[datetime]:
    """When it is that time in the zone, in UTC; at the edges of time, that edge."""
    found = {_in_utc(local.replace(tzinfo=zone, fold=fold)) for fold in (0, 1)}
    return sorted(found)


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        return moment.replace(tzinfo=UTC)


def _local(moment: datetime, zone: ZoneInfo) -> datetime:
    try:
        return moment.astimezone(zone)
    except OverflowError:
        return moment


def moment_in(zone: str, moment: datetime) -> str:
    """A moment as it is called in the zone, in UTC with Z; one at the very edge of time has no other name than that."""
    if zone != "UTC":
        try:
            return moment.astimezone(ZoneInfo(zone)).isoformat()
        except OverflowError:
            pass
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _measures(sums: Sequence[int], *, detail: bool) -> dict[str, object]:
    of = dict(zip((*MEASURES, *DETAIL_SUMS) if detail else MEASURES, sums, strict=True))
    shown: dict[str, object] = {
        name: decimal_text(sum_) if name.endswith("cost") else sum_ for name, sum_ in of.items()
    }
    if detail:
        shown["estimated_share"] = ratio(of["estimated_cost"], of["cost"])
        shown["cache_hit_rate"] = ratio(of["cached_tokens"], of["input_tokens"])
        # pico-dollars per token are micro-dollars per million
        tokens = of["input_tokens"] + of["output_tokens"]
        shown["usd_per_million"] = ratio(of["cost"], tokens * 10**RATIO_DECIMALS)
    return shown


def ratio(numerator: int, denominator: int) -> str | None:
    """Rounded once, half to even; None unless it divides by more than nothing."""
    if denominator <= 0:
        return None
    whole, rest = divmod(numerator * 10**RATIO_DECIMALS, denominator)
    if 2 * rest > denominator or (2 * rest == denominator and whole % 2):
        whole += 1
    return decimal_text(whole, decimals=RATIO_DECIMALS)


class Total:
    """What the rows that have gone by add up to."""

    def __init__(self, query: SpendQuery) -> None:
        self._detail = query.detail
        self._sums = [0] * len(query.sums)
        self.rows = 0

    def add(self, row: SpendRow) -> None:
        self.rows += 1
        self._sums = [one + other for one, other in zip(self._sums, row.sums, strict=True)]

    def shown(self) -> dict[str, object]:
        """Under the names of the measures, like a row without groups."""
        return _measures(self._sums, detail=self._detail)

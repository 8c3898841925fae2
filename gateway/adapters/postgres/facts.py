"""A period is covered once: by whole months, days and quarter hours of the roll-up, and by rows where it is ragged.

Which parts those are is worked out here; ``sql/facts.sql`` reads them. Where a report tells times of a zone apart, no
part reaches over the moment where such a time begins (``cuts``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, Final, Literal, NamedTuple

Grain = Literal["quarter", "day", "month"]
QUARTER: Final = timedelta(minutes=15)
GRAINS: Final[tuple[Grain, ...]] = ("quarter", "day", "month")


class Part(NamedTuple):
    """Whole buckets of one grain, or rows where ``grain`` is None; ``begins`` inclusive, ``ends`` exclusive, UTC."""

    grain: Grain | None
    begins: datetime
    ends: datetime


def parts(start: datetime, end: datetime, *, coarsest: Grain = "month", cuts: Iterable[datetime] = ()) -> list[Part]:
    """Every moment from ``start`` to ``end`` in one part, in the coarsest grain that fits, in order of time."""
    begins, ends = start.astimezone(UTC), end.astimezone(UTC)
    inside = sorted(cut for cut in (each.astimezone(UTC) for each in cuts) if begins < cut < ends)
    grains = GRAINS[: GRAINS.index(coarsest) + 1]
    return [part for one, next_one in pairwise([begins, *inside, ends]) for part in _cover(one, next_one, grains)]


def bounds(covered: Iterable[Part]) -> dict[str, Any]:
    """The parts as ``facts.sql`` names them."""
    whole = [part for part in covered if part.grain is not None]
    rows = [part for part in covered if part.grain is None]
    return {
        "grains": [part.grain for part in whole],
        "grain_begins": [part.begins for part in whole],
        "grain_ends": [part.ends for part in whole],
        "row_begins": [part.begins for part in rows],
        "row_ends": [part.ends for part in rows],
    }


def _cover(begins: datetime, ends: datetime, grains: tuple[Grain, ...]) -> Iterator[Part]:
    """Whole buckets of the coarsest grain, and what is left on both sides in the finer ones."""
    if begins >= ends:
        return
    if not grains:
        yield Part(None, begins, ends)
        return
    *finer, grain = grains
    floor, following = _STEPS[grain]
    first, last = floor(begins), floor(ends)
    if first < begins:
        first = following(first)
    if first >= last:
        yield from _cover(begins, ends, tuple(finer))
        return
    yield from _cover(begins, first, tuple(finer))
    yield Part(grain, first, last)
    yield from _cover(last, ends, tuple(finer))


def _quarter(moment: datetime) -> datetime:
    return moment.replace(minute=moment.minute // 15 * 15, second=0, microsecond=0)


def _day(moment: datetime) -> datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)


def _month(moment: datetime) -> datetime:
    return _day(moment).replace(day=1)


def _after(step: timedelta) -> Callable[[datetime], datetime]:
    def following(moment: datetime) -> datetime:
        try:
            return moment + step
        except OverflowError:  # the last one of all time
            return datetime.max.replace(tzinfo=UTC)

    return following


def next_month(month: datetime) -> datetime:
    """When the month after the one that begins then begins."""
    if month.month < 12:
        return month.replace(month=month.month + 1)
    return datetime.max.replace(tzinfo=UTC) if month.year == 9999 else month.replace(year=month.year + 1, month=1)


_STEPS: Final[dict[Grain, tuple[Callable[[datetime], datetime], Callable[[datetime], datetime]]]] = {
    "quarter": (_quarter, _after(QUARTER)),
    "day": (_day, _after(timedelta(days=1))),
    "month": (_month, next_month),
}

"""Any period is covered once, by whole buckets where there are any; what reaches over a cut is in none."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from gateway.adapters.postgres.facts import GRAINS, QUARTER, Grain, next_month, parts

T0 = datetime(2026, 10, 1, tzinfo=UTC)
moments = st.integers(0, 4 * 10**8).map(lambda seconds: T0 + timedelta(seconds=seconds - 2 * 10**8))


def begins_a(grain: Grain, moment: datetime) -> bool:
    is_midnight = moment.time() == datetime.min.time()
    match grain:
        case "quarter":
            return (moment - T0) % QUARTER == timedelta(0)
        case "day":
            return is_midnight
        case "month":
            return is_midnight and moment.day == 1


@given(moments, moments, st.sampled_from(GRAINS), st.lists(moments, max_size=5))
@example(T0, next_month(T0), "month", [])
@example(T0, T0, "month", [])
@example(T0 + timedelta(seconds=1), T0 + timedelta(seconds=2), "month", [T0])
@example(datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC), "quarter", [])
def test_every_moment_is_in_one_part(one: datetime, other: datetime, coarsest: Grain, cuts: list[datetime]) -> None:
    """Parts follow each other from the first moment to the last, of whole buckets, none over a cut, none too coarse."""
    start, end = min(one, other), max(one, other)
    covered = parts(start, end, coarsest=coarsest, cuts=cuts)
    edges = [part.begins for part in covered] + [end]
    assert edges[0] == start or start == end
    assert all(part.ends == following for part, following in zip(covered, edges[1:], strict=True))
    assert all(before < after for before, after in pairwise(edges))
    for part in covered:
        assert not any(part.begins < cut < part.ends for cut in cuts)
        assert part.grain in (None, *GRAINS[: GRAINS.index(coarsest) + 1])
        if part.grain is not None:
            assert begins_a(part.grain, part.begins)
            assert begins_a(part.grain, part.ends)


@given(moments, moments)
def test_no_part_could_have_been_coarser(one: datetime, other: datetime) -> None:
    """Rows are read for less than a quarter hour at either end, quarter hours for less than a day, days for less than
    a month."""
    for part in parts(min(one, other), max(one, other)):
        match part.grain:
            case None:
                assert part.ends - part.begins < 2 * QUARTER
            case "quarter":
                assert part.ends - part.begins < timedelta(days=2)
            case "day":
                assert part.ends - part.begins < timedelta(days=62)


def test_a_month_of_a_zone_is_days_between_hours() -> None:
    """A month of a zone two hours east: its first hours, whole days of UTC, and the rest of its last day."""
    begins, ends = T0 - timedelta(hours=2), next_month(T0) - timedelta(hours=1)  # the clocks go back in between
    covered = parts(begins - timedelta(days=1), ends, cuts=[begins])
    assert [(part.grain, part.begins, part.ends) for part in covered[-3:]] == [
        ("quarter", begins, T0),
        ("day", T0, next_month(T0) - timedelta(days=1)),
        ("quarter", next_month(T0) - timedelta(days=1), ends),
    ]

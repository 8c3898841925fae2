"""The windows of budgets are whole days of a zone: they follow each other without a gap, whatever its clocks do."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest

from gateway.core.budget import BudgetWindow, Period, day_of, scope_of_key, scope_of_team, window_of, zone_of

ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Asia/Kathmandu",
    "Africa/Cairo",
    "America/Havana",
    "Asia/Shanghai",
)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    "case",
    [
        "day UTC 2026-11-24T23:59:59.999999 2026-11-24 2026-11-25 2026-11-24T00:00 2026-11-25T00:00",
        "day UTC 2026-11-25T00:00 2026-11-25 2026-11-26 2026-11-25T00:00 2026-11-26T00:00",
        "day Asia/Shanghai 2026-11-24T16:00 2026-11-25 2026-11-26 2026-11-24T16:00 2026-11-25T16:00",
        "day Europe/Berlin 2026-03-29T12:00 2026-03-29 2026-03-30 2026-03-28T23:00 2026-03-29T22:00",
        "day Europe/Berlin 2026-10-25T12:00 2026-10-25 2026-10-26 2026-10-24T22:00 2026-10-25T23:00",
        # In Cairo the clocks go from midnight to one, and the day begins at one.
        "day Africa/Cairo 2026-04-24T09:00 2026-04-24 2026-04-25 2026-04-23T22:00 2026-04-24T21:00",
        # In Havana they go from one back to midnight, and the day begins at the first of its two midnights.
        "day America/Havana 2026-11-01T09:00 2026-11-01 2026-11-02 2026-11-01T04:00 2026-11-02T05:00",
        "week UTC 2026-11-23T00:00 2026-11-23 2026-11-30 2026-11-23T00:00 2026-11-30T00:00",
        "week UTC 2026-11-22T23:59 2026-11-16 2026-11-23 2026-11-16T00:00 2026-11-23T00:00",
        "week Europe/Berlin 2026-11-22T23:00 2026-11-23 2026-11-30 2026-11-22T23:00 2026-11-29T23:00",
        "week UTC 2027-01-01T12:00 2026-12-28 2027-01-04 2026-12-28T00:00 2027-01-04T00:00",
        "month UTC 2026-12-31T23:59 2026-12-01 2027-01-01 2026-12-01T00:00 2027-01-01T00:00",
        "month UTC 2028-02-29T12:00 2028-02-01 2028-03-01 2028-02-01T00:00 2028-03-01T00:00",
        "month America/New_York 2026-12-01T04:59 2026-11-01 2026-12-01 2026-11-01T04:00 2026-12-01T05:00",
    ],
)
def test_a_moment_falls_into_its_window(case: str):
    """Worked by hand: first and last day in the zone, their midnights in UTC; a week begins on Monday."""
    period, zone, moment, first, until, begins, ends = case.split()
    window = window_of("key:a", Period(period), at(moment), zone)
    assert window == BudgetWindow(
        "key:a", Period(period), date.fromisoformat(first), date.fromisoformat(until), at(begins), at(ends)
    )
    assert window.key == f"key:a/{period}/{first}"


def test_the_whole_of_time_has_neither_beginning_nor_end():
    """Its key is the same on every day."""
    window = window_of("organisation", Period.TOTAL, at("2026-11-24 12:00"), "Europe/Berlin")
    assert window == window_of("organisation", Period.TOTAL, at("1999-01-01 00:00"))
    assert window.key == "organisation/total/"
    assert (window.first_day, window.until_day, window.begins_at, window.ends_at) == (None, None, None, None)
    assert all(window.holds_day(day) for day in (date.min, date(2026, 1, 1), date.max))


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("period", [Period.DAY, Period.WEEK, Period.MONTH])
def test_windows_follow_each_other_without_gap_or_overlap(period: Period, zone: str):
    """Hour by hour over two years: each moment is in its window, and one window ends where the next begins."""
    now = at("2026-01-01 00:30")
    before = window_of("key:a", period, now, zone)
    while now < at("2028-01-01 00:00"):
        now += timedelta(hours=1)
        window = window_of("key:a", period, now, zone)
        assert window.begins_at is not None
        assert window.ends_at is not None
        assert window.begins_at <= now < window.ends_at
        assert window.holds_day(day_of(now, zone))
        if window != before:
            assert before.ends_at == window.begins_at
            assert before.until_day == window.first_day
            assert not before.holds_day(day_of(now, zone))
        before = window


def test_what_the_limit_is_does_not_name_the_window():
    """Two scopes never share a window, whatever a team is called."""
    now = at("2026-11-24 12:00")
    keys = {window_of(scope, period, now).key for scope in ("key:a", "team:a", "organisation") for period in Period}
    assert len(keys) == 12
    assert scope_of_key("key_1") == "key:key_1"
    assert scope_of_team("blue/day") == "team:blue/day"


@pytest.mark.parametrize("name", ["Mars/Olympus", "", "../../etc/passwd", "Europe/Berlin\0", "x" * 500])
def test_a_zone_that_is_none_is_said_to_be(name: str):
    """A ValueError in words for an operator, whatever the library raises, and not the whole of what was given."""
    with pytest.raises(ValueError, match=r"is not a time zone such as Europe/Berlin") as caught:
        zone_of(name)
    assert len(str(caught.value)) < 150

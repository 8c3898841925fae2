"""Bars on a terminal: the same lines for the same rows, no wider than asked, and what is folded is said."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from gateway.cli.chart import BARS_MAX, Chart
from gateway.core.spend import Selection, SpendQuery, SpendRow

OCTOBER = Selection(start=datetime(2026, 10, 1, tzinfo=UTC), end=datetime(2026, 11, 1, tzinfo=UTC))
TITLE = "Cost in USD from 2026-10-01T00:00:00Z to 2026-11-01T00:00:00Z"
USD = 10**12


def drawn(groups: tuple[str, ...], rows: Iterable[tuple[tuple[str | None, ...], int]], width: int = 48) -> list[str]:
    query = SpendQuery(selection=OCTOBER, groups=groups)
    chart = Chart(query)
    for values, cost in rows:
        chart.add(SpendRow(values, tuple(cost if name == "cost" else 0 for name in query.sums)))
    return list(chart.lines(width))


def test_groups_from_the_dearest_down():
    """Names of one spelling are told apart by their ids, little is not nothing, and less than nothing has no bar."""
    rows = [(("ci", "k1"), 5 * USD), (("日本", "k2"), 25 * USD // 2), ((None, "k3"), -USD), (("ci", "k4"), 10**7)]
    assert drawn(("key",), rows) == [
        TITLE,
        "日本     12.50  ████████████████████████████████",
        "ci / k1   5.00  ████████████▊",
        "ci / k4   0.00  ▏",
        "–        -1.00",
        "total    16.50",
    ]


def test_days_without_spend_are_there():
    """Time runs down without a gap, from the first day with spend to the last."""
    rows = [((f"2026-10-{day:02}",), day * USD) for day in (1, 4)]
    assert drawn(("day",), rows) == [
        TITLE,
        "2026-10-01  1.000  ███████▎",
        "2026-10-02  0.000",
        "2026-10-03  0.000",
        "2026-10-04  4.000  █████████████████████████████",
        "total       5.000",
    ]


def test_a_time_and_a_group_are_stacked():
    """The dearest three have a shade each, all others share one, and the amount is the whole bar's."""
    rows = [
        ((f"2026-10-0{day}", provider), day * cost * USD)
        for day in (1, 2)
        for provider, cost in (("a", 1), ("b", 4), ("c", 3), ("d", 1), ("e", 1))
    ]
    assert drawn(("day", "provider"), rows, 50) == [
        TITLE,
        "  █ b  12.00",
        "  ▓ c  9.00",
        "  ▒ a  3.00",
        "  ░ 2 others  6.00",
        "2026-10-01  10.00  ██████▓▓▓▓▓▒░░░░",
        "2026-10-02  20.00  ████████████▓▓▓▓▓▓▓▓▓▓▒▒▒░░░░░░",
        "total       30.00",
    ]


def test_many_groups_are_folded():
    """What is not among the dearest is one bar, and the total has it."""
    lines = drawn(("model",), [((f"m{number:03}",), number * USD) for number in range(100)])
    assert len(lines) == 1 + BARS_MAX + 1 + 1
    assert lines[1].startswith("m099 ")
    assert lines[-2].startswith(f"{100 - BARS_MAX} others ")
    assert lines[-1].split() == ["total", "4,950.00"]


@pytest.mark.parametrize(
    ("hours", "unit"),
    [
        (40, "hour"),
        (41, "day"),
        (40 * 24, "day"),
        (40 * 24 + 1, "month"),
        (24 * 365 * 5, "year"),
        (24 * 365 * 60, "year"),
    ],
)
def test_many_times_are_folded(hours: int, unit: str):
    """Hours become days, days months and months years, where there would be too many bars; it is said, none is lost."""
    at = [datetime.fromtimestamp(3_600 * hour, UTC) for hour in (0, hours // 2, hours - 1)]
    lines = drawn(("hour",), [((f"{each:%Y-%m-%dT%H:00}",), USD) for each in at], 80)
    assert lines[1].split()[0] == {"hour": "1970-01-01T00:00", "day": "1970-01-01", "month": "1970-01"}.get(
        unit, "1970"
    )
    is_folded = unit != "hour"
    assert (lines[-1] == f"A bar is a {unit}: with one for each hour there would be more than {BARS_MAX}.") == is_folded
    assert lines[-1 - is_folded].split() == ["total", "3.000"]


def test_nothing():
    """A chart of nothing says so; one without groups is one bar."""
    assert drawn(("key",), []) == ["Nothing was spent from 2026-10-01T00:00:00Z to 2026-11-01T00:00:00Z."]
    assert drawn((), [((), USD)], 24)[1:] == ["all    1.000  ██████████", "total  1.000"]


names = st.none() | st.text(max_size=60)
costs = st.integers(-(10**20), 10**20)


@given(rows=st.lists(st.tuples(names, names, costs), max_size=80), width=st.integers(72, 120), is_timed=st.booleans())
def test_no_line_is_wider_than_asked(rows: list[tuple[str | None, str | None, int]], width: int, *, is_timed: bool):
    """Whatever the names hold, each bar is one line that fits."""
    if is_timed:
        cells = [
            ((f"2026-10-{number % 28 + 1:02}", team, name), cost) for number, (team, name, cost) in enumerate(rows)
        ]
        lines = drawn(("day", "team", "tag:x"), cells, width)
    else:
        lines = drawn(("team", "tag:x"), [((team, name), cost) for team, name, cost in rows], width)
    assert all(cell_len(line) <= width and line.isprintable() for line in lines)

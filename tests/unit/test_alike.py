"""Calls without a name, told by what they are like and when."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.alike import paired

START = datetime(2026, 10, 12, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def test_only_the_same_likeness_in_time_is_a_pair() -> None:
    """Neither another likeness, nor a moment before or after what the attempt allows."""
    lines = [("a", at(1), 1), ("a", at(50), 2), ("b", at(1), 3), ("d", at(1), 4)]
    attempts = [("a", at(0), at(2), "one"), ("b", at(2), at(9), "two"), ("c", at(0), at(9), "three")]
    assert list(paired(lines, attempts)) == [(1, "one")]


def test_the_attempt_whose_time_runs_out_first_goes_first() -> None:
    """So both lines find one: the second would be too late for it."""
    lines = [("a", at(5), 1), ("a", at(8), 2)]
    attempts = [("a", at(0), at(9), "long"), ("a", at(1), at(6), "short")]
    assert list(paired(lines, attempts)) == [(1, "short"), (2, "long")]


def test_neither_side_is_used_twice() -> None:
    """Three lines and two attempts make two pairs."""
    lines = [("a", at(each), each) for each in (1, 2, 3)]
    attempts = [("a", at(0), at(9), "one"), ("a", at(0), at(9), "two")]
    assert list(paired(lines, attempts)) == [(1, "one"), (2, "two")]


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 6)), max_size=5),
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 6), st.integers(0, 4)), max_size=5),
)
def test_as_many_are_paired_as_can_be(lines: list[tuple[str, int]], attempts: list[tuple[str, int, int]]) -> None:
    """No other assignment has more pairs, and every pair is allowed."""
    theirs = sorted((likeness, at(moment), number) for number, (likeness, moment) in enumerate(lines))
    ours = sorted(
        (likeness, at(begin), at(begin + length), str(number))
        for number, (likeness, begin, length) in enumerate(attempts)
    )
    found = list(paired(theirs, ours))
    allowed = {
        (number, name)
        for likeness, moment, number in theirs
        for other, earliest, latest, name in ours
        if likeness == other and earliest <= moment <= latest
    }
    assert set(found) <= allowed
    assert len({number for number, _ in found}) == len({name for _, name in found}) == len(found)
    numbers, names = range(len(lines)), [str(number) for number in range(len(attempts))] + ["-"] * len(lines)
    most = max(
        sum(pair in allowed for pair in zip(numbers, order, strict=False)) for order in permutations(names, len(lines))
    )
    assert len(found) == most

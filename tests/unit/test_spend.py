"""Groups and conditions are read in one vocabulary, sums shown under their names, ratios rounded once."""

from __future__ import annotations

from datetime import UTC, datetime
from fractions import Fraction
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.fields import FieldError
from gateway.core.spend import (
    COSTS_BY_CLASS,
    DETAIL,
    DETAIL_SUMS,
    MEASURES,
    Condition,
    Selection,
    SpendQuery,
    SpendRow,
    Total,
    moment_in,
    month_starts,
    parse_conditions,
    parse_groups,
    ratio,
    selected_times,
)

OCTOBER = Selection(start=datetime(2026, 10, 1, tzinfo=UTC), end=datetime(2026, 11, 1, tzinfo=UTC))


def test_groups_are_named_once_each():
    """Spaces and repetitions mean nothing; an account is one of a provider, whose column comes once."""
    assert parse_groups(" day,key ,day,,tag:a b") == ("day", "key", "tag:a b")
    query = SpendQuery(selection=OCTOBER, groups=parse_groups("account,provider,key,key_id"))
    assert query.columns == ("provider", "account", "key", "key_id")
    assert parse_groups("") == ()


@pytest.mark.parametrize(
    "group", ["keys", "tag:", "tag:a\0b", "key; DROP TABLE ledger", "tag:" + "x" * 65, "tag:\ud800"]
)
def test_an_unknown_group(group: str):
    """What is no group is refused under the parameter's name, with what there is to choose from."""
    with pytest.raises(FieldError, match="choose from key, key_id, team") as refused:
        parse_groups(group)
    assert refused.value.field == "group_by"


def test_conditions_of_one_group_are_alternatives():
    """The first equals sign ends the group; none, empty and some are three things for a tag, two for a team."""
    texts = ("key=a=b", "team=", "tag:env=", 'tag:env=""', "tag:env=x", "key=c", "key=c", "month=2026-10")
    assert parse_conditions(texts) == (
        Condition("key", ("a=b", "c")),
        Condition("team", (None,)),
        Condition("tag:env", (None, "", "x")),
        Condition("month", ("2026-10",)),
    )
    assert parse_conditions(()) == ()


WRONG = [
    ("key", "GROUP=VALUE"), ("colour=red", "choose from"), ("=x", "choose from"), ("status=lost", "succeeded, failed"),
    ("source=guess", "provider, estimated, none"), ("month=2026-13", "2026-10"), ("month=2026-1", "2026-10"),
    ("day=2026-10", "2026-10-31"), ("hour=2026-10-31T14:30", "T14:00"), ("hour=", "T14:00"), ("key=a\0", "not a text"),
    ("tag:a=\ud800", "not a text"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), WRONG)
def test_a_wrong_condition(text: str, said: str):
    """What is no condition is refused, and the mend is named."""
    with pytest.raises(FieldError, match=said) as refused:
        parse_conditions([text])
    assert refused.value.field == "where"


def test_too_many_conditions():
    """No more than a statement is the better for."""
    parse_conditions(f"key={number}" for number in range(100))
    with pytest.raises(FieldError, match="more than 100"):
        parse_conditions(f"key={number}" for number in range(101))


def times(selection: Selection) -> tuple[str, str]:
    start, end = selected_times(selection)
    return f"{start:%m-%dT%H:%M}", f"{end:%m-%dT%H:%M}"


def test_conditions_on_times_narrow_the_period():
    """All of them hold at once; of one of them every value; an hour that there is twice is two hours long."""
    berlin = {"start": OCTOBER.start, "end": OCTOBER.end, "timezone": "Europe/Berlin"}
    for texts, expected in (
        (("day=2026-10-05",), ("10-04T22:00", "10-05T22:00")),
        (("day=2026-10-05", "day=2026-10-07"), ("10-04T22:00", "10-07T22:00")),
        (("month=2026-10", "day=2026-10-31"), ("10-30T23:00", "10-31T23:00")),
        (("month=2026-10",), ("10-01T00:00", "10-31T23:00")),
        (("hour=2026-10-25T02:00",), ("10-25T00:00", "10-25T02:00")),
        (("day=2026-12-01",), ("11-30T23:00", "11-30T23:00")),
        (("key=x",), ("10-01T00:00", "11-01T00:00")),
    ):
        assert times(Selection(**berlin, where=parse_conditions(texts))) == expected, texts
    assert (
        times(Selection(**{**berlin, "timezone": "UTC"}, where=parse_conditions(["month=9999-12"])))[0] == "12-01T00:00"
    )


def test_months_of_a_zone():
    """Each month of the zone begins once, or twice where clocks are set at its midnight."""
    zone = ZoneInfo("Europe/Berlin")
    begins = [f"{each:%m-%dT%H}" for each in month_starts(datetime(2026, 9, 5, tzinfo=UTC), OCTOBER.end, zone)]
    assert begins == ["08-31T22", "09-30T22", "10-31T23"]
    assert month_starts(OCTOBER.end, OCTOBER.start, zone) == []


def test_a_moment_in_its_zone():
    """UTC has Z, other zones their offset, and the edges of time the name that they have."""
    assert moment_in("UTC", OCTOBER.start) == "2026-10-01T00:00:00Z"
    assert moment_in("Europe/Berlin", OCTOBER.start) == "2026-10-01T02:00:00+02:00"
    assert moment_in("Asia/Tokyo", datetime(9999, 12, 31, 23, tzinfo=UTC)) == "9999-12-31T23:00:00Z"


def test_what_a_row_shows():
    """Amounts are exact, ratios have six decimals, classes add up; the total is made of sums and not of ratios."""
    query = SpendQuery(selection=OCTOBER, groups=("team",), detail=True)
    sums = dict.fromkeys((*MEASURES, *DETAIL_SUMS), 0)
    sums |= {"input_tokens": 3, "cached_tokens": 1, "output_tokens": 4, "cost": 14_000_001, "estimated_cost": 7_000_000}
    row = SpendRow(("blue",), tuple(sums.values()))
    shown = query.shown(row)
    assert tuple(shown) == ("team", *MEASURES, *DETAIL)
    assert (shown["cost"], shown["cache_hit_rate"], shown["estimated_share"]) == ("0.000014000001", "0.333333", "0.5")
    assert shown["usd_per_million"] == "2"  # 14.000001 USD for 7,000,000 tokens
    total = Total(query)
    total.add(row)
    total.add(SpendRow((None,), tuple(-each for each in row.sums)))
    assert total.rows == 2
    assert total.shown()["cost"] == "0"
    assert total.shown()["cache_hit_rate"] is None
    assert set(COSTS_BY_CLASS) <= set(DETAIL)
    assert tuple(SpendQuery(selection=OCTOBER).shown(SpendRow(("a", "k"), (0,) * len(MEASURES))))[2:] == MEASURES


@given(st.integers(-(10**30), 10**30), st.integers(-(10**9), 10**24))
def test_a_ratio_is_rounded_once(numerator: int, denominator: int):
    """Half to even, six decimals; nothing to divide by is no ratio."""
    found = ratio(numerator, denominator)
    if denominator <= 0:
        assert found is None
    else:
        rounded = round(Fraction(numerator, denominator) * 10**6)
        assert found is not None
        assert Fraction(found) * 10**6 == rounded

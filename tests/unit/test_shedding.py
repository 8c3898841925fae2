"""Who is turned away when a gateway is nearly full: never somebody with little while there is room for anybody."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.shedding import Shed, shed

CASES = [
    # limit, open in all, of this key, keys with any; why it is turned away
    (2000, 0, 0, 0, None),
    (2000, 1600, 1600, 1, None),
    (2000, 1601, 1601, 1, Shed.SHARE),
    (2000, 1601, 0, 1, None),
    (2000, 1999, 399, 4, None),
    (2000, 1999, 400, 4, Shed.SHARE),
    (2000, 2000, 0, 1, Shed.FULL),
    (2000, 2000, 2000, 1, Shed.FULL),
    (1, 0, 0, 0, None),
    (1, 1, 1, 1, Shed.FULL),
]


@pytest.mark.parametrize(("limit", "total", "of_key", "keys", "expected"), CASES)
def test_worked_by_hand(limit: int, total: int, of_key: int, keys: int, expected: Shed | None):
    """Four fifths for everybody, the rest for who has less than the limit by keys and one more."""
    assert shed(open_total=total, open_of_key=of_key, keys_open=keys, limit=limit) == expected


@given(limit=st.integers(1, 60), asking=st.lists(st.integers(0, 8), max_size=200))
def test_a_newcomer_is_let_in_while_there_is_room(limit: int, asking: list[int]):
    """Whoever has nothing open is turned away only when all is full, whatever the others do; never more than all."""
    of_key: Counter[int] = Counter()
    for key in asking:
        total = of_key.total()
        told = shed(open_total=total, open_of_key=of_key[key], keys_open=len(+of_key), limit=limit)
        assert (told is Shed.FULL) == (total >= limit)
        assert told is not Shed.SHARE or of_key[key] > 0
        if told is None:
            of_key[key] += 1


@given(limit=st.integers(10, 500), keys=st.integers(1, 5))
def test_busy_keys_leave_room(limit: int, keys: int):
    """Keys that ask without end are let in alike, and leave a newcomer a place."""
    of_key: Counter[int] = Counter()
    for _ in range(2 * limit):
        for key in range(keys):
            if shed(open_total=of_key.total(), open_of_key=of_key[key], keys_open=len(+of_key), limit=limit) is None:
                of_key[key] += 1
    assert of_key.total() < limit
    assert max(of_key.values()) - min(of_key.values()) <= 1

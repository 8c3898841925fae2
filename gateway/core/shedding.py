"""Who is turned away when a gateway is nearly full: whoever has much open, before anybody who has little.

Up to four fifths of the limit everybody is let in. The last fifth is for callers who have less than their fair share:
the limit, divided by the keys that have something open and by one more, for whoever comes next. One busy key alone
therefore gets four fifths, and a newcomer is let in as long as there is any room at all.
"""

from __future__ import annotations

from enum import StrEnum


class Shed(StrEnum):
    """Why a request is turned away."""

    FULL = "full"
    SHARE = "share"


def shed(*, open_total: int, open_of_key: int, keys_open: int, limit: int) -> Shed | None:
    """Whether one more request of a key is turned away, and why.

    ``open_total`` are the requests now open, ``open_of_key`` those of the key that asks, and ``keys_open`` the keys
    that have any.
    """
    assert 0 <= open_of_key <= open_total
    assert keys_open <= open_total
    assert limit >= 1
    if open_total >= limit:
        return Shed.FULL
    if 5 * open_total > 4 * limit and (open_of_key + 1) * (keys_open + 1) > limit:
        return Shed.SHARE
    return None

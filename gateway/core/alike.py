"""Calls without a name are told by what they are like and when: one of each side for the other, as many as can be.

Who is alike to the token is the same to money, so that any of them may stand for any other; none stands for two.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import groupby
from operator import itemgetter

Line = tuple[str, datetime, int]
"""Likeness, moment, number; in that order."""
Attempt = tuple[str, datetime, datetime, str]
"""Likeness, the earliest and the latest moment that its line may have, id; in that order."""


def paired(lines: Iterable[Line], attempts: Iterable[Attempt]) -> Iterator[tuple[int, str]]:
    """Numbers of lines with ids of attempts. Both sides come sorted."""
    others = groupby(attempts, key=itemgetter(0))
    likeness, candidates = next(others, ("", iter(())))
    for wanted, those in groupby(lines, key=itemgetter(0)):
        while likeness < wanted:
            following = next(others, None)
            if following is None:
                return
            likeness, candidates = following
        if likeness == wanted:
            yield from _in_time(those, candidates)


def _in_time(lines: Iterable[Line], attempts: Iterable[Attempt]) -> Iterator[tuple[int, str]]:
    """Each line with the attempt whose time runs out first, which leaves most for the lines that follow."""
    open_now: list[tuple[datetime, str]] = []
    coming = iter(attempts)
    upcoming = next(coming, None)
    for _, at, number in lines:
        while upcoming is not None and upcoming[1] <= at:
            heapq.heappush(open_now, (upcoming[2], upcoming[3]))
            upcoming = next(coming, None)
        while open_now and open_now[0][0] < at:
            heapq.heappop(open_now)
        if open_now:
            yield number, heapq.heappop(open_now)[1]

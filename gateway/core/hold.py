"""A request waits for a full account only if what that saves is worth more than the time it is known to take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from gateway.core.catalogue import RoutingTerms
from gateway.core.exchange import Candidate, Plan
from gateway.core.warmth import AccountKey


class Hold(NamedTuple):
    """Wait ``seconds``, then ask this candidate again; that saves ``saves_usd`` against the best that has room now."""

    candidate: Candidate
    seconds: float
    saves_usd: float


def worth_holding(
    made: Plan, room_in: Mapping[AccountKey, float], terms: RoutingTerms, *, waited_seconds: float = 0.0
) -> Hold | None:
    """What to wait for, None = go now. ``room_in`` names the full accounts and the seconds until each has room.

    The quota's own price is left out of the comparison: it says who should have the next slice, and whoever waits
    for it has decided that already.
    """
    if terms.hold_usd_per_second <= 0:
        return None
    open_costs = [_cost(each) for each in made.routable if (each.provider, each.account) not in room_in]
    if not open_costs:
        return None
    best: Hold | None = None
    for each in made.routable:
        seconds = room_in.get((each.provider, each.account))
        if seconds is None or waited_seconds + seconds > terms.hold_seconds_max:
            continue
        saves = min(open_costs) - _cost(each)
        gain = saves - seconds * terms.hold_usd_per_second
        if gain > 0 and (best is None or gain > best.saves_usd - best.seconds * terms.hold_usd_per_second):
            best = Hold(each, seconds, saves)
    return best


def _cost(candidate: Candidate) -> float:
    assert candidate.score is not None
    return candidate.score.total_usd - candidate.score.quota_usd

"""Where a model is in its life changes at midnight UTC, and only certain dates end it."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from gateway.core.catalogue import Deployment, Stage, last_end

DAY = date(2027, 1, 1)
EVE = date(2026, 12, 31)


def served(provider: str = "moonshot", **days: date) -> Deployment:
    more: dict[str, Any] = days
    return Deployment(provider=provider, model="m", upstream="m", context=8, max_output=8, **more)


@pytest.mark.parametrize(
    ("days", "on_the_eve", "on_the_day"),
    [
        ({}, Stage.AVAILABLE, Stage.AVAILABLE),
        ({"available_until": DAY}, Stage.RETIRING, Stage.RETIRED),
        ({"available_from": DAY}, Stage.UPCOMING, Stage.AVAILABLE),
        ({"retirement_reported": DAY}, Stage.AVAILABLE, Stage.REPORTED_RETIRED),
        ({"retirement_reported": EVE, "available_until": DAY}, Stage.REPORTED_RETIRED, Stage.RETIRED),
    ],
)
def test_a_stage_changes_on_its_day(days: dict[str, date], on_the_eve: Stage, on_the_day: Stage) -> None:
    """A certain end is the first day on which it is not routed; what is only reported is still tried."""
    assert served(**days).stage(EVE) is on_the_eve
    assert served(**days).stage(DAY) is on_the_day
    assert served(**days).is_available(DAY) is (on_the_day in (Stage.AVAILABLE, Stage.REPORTED_RETIRED))


def test_a_model_ends_with_its_last_provider() -> None:
    """Where one goes on, or has not said until when, there is no certain end."""
    one, other = served(available_until=DAY), served("evolink", available_until=date(2027, 2, 1))
    assert last_end([one], EVE) == DAY
    assert last_end([one, other], EVE) == date(2027, 2, 1)
    assert last_end([one, other], DAY) == date(2027, 2, 1)
    assert last_end([one, served("evolink")], EVE) is None
    assert last_end([one, served("evolink", retirement_reported=EVE)], EVE) is None
    assert last_end([one, served("evolink", available_from=DAY)], EVE) is None
    assert last_end([one], DAY) is None
    assert last_end([], DAY) is None

"""Budgets and limits hold in any life (law L6): fifty thousand steps beside a model that only sums up events."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.properties.allowance_trial import STEPS_OF_A_LIFE, Trial

LIVES = 250
PARTS = 5


@pytest.mark.parametrize("part", range(PARTS))
def test_no_life_breaks_a_budget(part: int):
    """Reserve, retry, settle, expire, crash, tell again, flush, change of limits, windows that roll."""
    seen: Counter[str] = Counter()
    for seed in range(part * LIVES // PARTS, (part + 1) * LIVES // PARTS):
        trial = Trial(seed)
        try:
            trial.live(STEPS_OF_A_LIFE)
        except AssertionError as violation:
            raise AssertionError(f"seed {seed}: {violation}") from violation
        seen += Counter(admitted=trial.admitted, refused=trial.refused)
    assert seen["admitted"] > 500
    assert seen["refused"] > 500

"""No life of an allowance book, whatever happens in it, passes a budget (law L6) or keeps a hold that is over."""

from __future__ import annotations

from typing import Final

from tests.properties.allowance_trial import STEPS_OF_A_LIFE, Trial
from tests.prove.proof import Ground, Proven, told

SEED: Final = 1_000_000
"""Other lives than those that every run of the tests lives."""


def prove(size: int, ground: Ground) -> Proven:
    """``size`` steps in lives of a few hundred, each beside a model that sums up its events anew."""
    violations: list[str] = []
    lives = -(-size // STEPS_OF_A_LIFE)
    admitted = refused = ended = 0
    for seed in range(SEED, SEED + lives):
        trial = Trial(seed)
        try:
            trial.live()
        except AssertionError as violation:
            violations.append(f"seed {seed}: {str(violation).splitlines()[0] if str(violation) else 'see Trial'}")
        admitted += trial.admitted
        refused += trial.refused
        ended += sum(trial.ends.values())
        ground.tick(STEPS_OF_A_LIFE)
    if not admitted or not refused:
        violations.append("nothing was admitted, or nothing was refused, so nothing was proven")
    return Proven(
        figure=(
            f"{lives * STEPS_OF_A_LIFE:,} steps in {lives:,} lives: {admitted:,} admitted, {refused:,} refused, "
            f"{ended:,} holds ended, each once; {len(violations)} violations"
        ),
        violations=told(violations),
    )

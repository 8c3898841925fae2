"""How likely a cache still has what it was sent, by age: learned from what was billed as cached, and from nothing else.

Lifetime, eviction and the times when a provider just does not look are one curve per provider and model, pooled over
its accounts: with a curve for each account, the luck of one would draw all new conversations to it.
"""

from __future__ import annotations

from bisect import bisect_left
from math import log
from typing import Final

AGES: Final = (5.0, 15.0, 30.0, 60.0, 120.0, 180.0, 240.0, 300.0, 450.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0)
"""Upper ends, in seconds, of the ages that are told apart; one more is for all beyond."""
AGES_COUNT: Final = len(AGES) + 1
LIFETIME_MIN, LIFETIME_MAX = 300.0, 3_600.0
"""Nobody has been seen to forget sooner, or to promise longer; in between, any factor is as likely as any other."""
RELIABILITY_PRIOR: Final = 0.95
PRIOR_WEIGHT: Final = 8.0
"""Answers that the prior counts for in each age."""
WEIGHT_MAX: Final = 400.0
"""Answers that an age remembers: a provider that changes its ways is believed after as many."""
FADES_SECONDS: Final = 6 * 3_600.0
"""Half of what was learned is forgotten in so long: whoever was found wanting is tried again, without dice."""


def age_index(age: float) -> int:
    return bisect_left(AGES, age)


def _prior(index: int) -> float:
    """At the geometric middle of an age: the chance that the lifetime is longer."""
    longest = AGES[index] if index < len(AGES) else 2 * AGES[-1]
    shortest = AGES[index - 1] if index else longest / 2
    middle = (longest * shortest) ** 0.5
    if middle <= LIFETIME_MIN:
        return RELIABILITY_PRIOR
    return RELIABILITY_PRIOR * max(0.01, 1 - log(middle / LIFETIME_MIN) / log(LIFETIME_MAX / LIFETIME_MIN))


PRIOR: Final = tuple(_prior(index) for index in range(AGES_COUNT))


class Survival:
    """Hits and answers by age, fading; the curve is their ratio with the prior mixed in."""

    __slots__ = ("_answers", "_curve", "_curve_at", "_hits", "_learned_at")

    def __init__(self) -> None:
        self._hits = [0.0] * AGES_COUNT
        self._answers = [0.0] * AGES_COUNT
        self._learned_at = [0.0] * AGES_COUNT
        self._curve: tuple[float, ...] = PRIOR
        self._curve_at = float("inf")

    def learn(self, age: float, *, is_hit: bool, at: float) -> None:
        """One answer told whether a boundary of this age was still there."""
        index = age_index(age)
        kept = self._kept(index, at) * min(1.0, WEIGHT_MAX / (self._answers[index] + 1.0))
        self._hits[index] = self._hits[index] * kept + is_hit
        self._answers[index] = self._answers[index] * kept + 1.0
        self._learned_at[index] = max(at, self._learned_at[index])
        self._curve_at = float("-inf")

    def curve(self, now: float) -> tuple[float, ...]:
        """The chance by age; computed again after an answer and, as it fades, for each minute of the clock: what is
        told does not depend on who has asked before."""
        minute = now - now % 60.0
        if self._curve_at != minute and self._curve_at != float("inf"):
            self._curve = tuple(self._chance(index, minute) for index in range(AGES_COUNT))
            self._curve_at = minute
        return self._curve

    def _kept(self, index: int, now: float) -> float:
        return float(0.5 ** (max(0.0, now - self._learned_at[index]) / FADES_SECONDS))

    def _chance(self, index: int, now: float) -> float:
        kept = self._kept(index, now)
        hits, answers = self._hits[index] * kept, self._answers[index] * kept
        return (hits + PRIOR[index] * PRIOR_WEIGHT) / (answers + PRIOR_WEIGHT)


UNKNOWN: Final = Survival()
"""Of a provider that has answered nothing yet: the prior."""

"""How often a model's tool-call answers are right at a provider: evidence that fades, and is never one caller's alone.

A fold over ``Checked``: the same happenings in the same order, the same belief. Half of an answer's weight is gone
after half an hour, so a provider that is passed by for its faults, and shows no new ones, is tried again: its bound of
confidence rises as its evidence fades. When it is still bad it is out again after a few answers; ``WEIGHT_MAX`` bounds
how long that goes on, to a little over two hours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple, TypeVar

from gateway.core.happenings import Checked
from gateway.core.quality import Fault

K = TypeVar("K")
V = TypeVar("V")

HALF_LIFE_SECONDS: Final = 1800.0
CHECKS_MIN: Final = 20
"""Fewer answers prove nothing."""
OTHERS_MIN: Final = 5
"""With so many answers of other tenants, what one of them sees is not believed against theirs."""
WEIGHT_MAX: Final = 400.0
"""What a tenant's answers weigh together at the most."""
SIGMAS: Final = 2.0
"""How sure one must be: 97.7 %, one-sided."""
PAIRS_MAX: Final = 1_000
TENANTS_MAX: Final = 64
"""Bounds, for what other replicas tell is believed; the pair or tenant heard of least recently goes first."""


class Standing(NamedTuple):
    """What the evidence weighs at one moment: answers that were checked, and the faulty ones by their fault."""

    checked: float
    faults: dict[Fault, float]

    @property
    def invalid(self) -> float:
        return sum(self.faults.values())

    @property
    def valid_share(self) -> float | None:
        """None where nothing was checked."""
        return None if self.checked <= 0 else max(0.0, 1 - self.invalid / self.checked)

    @property
    def valid_share_max(self) -> float:
        """As good as it can still be, by Wilson's interval."""
        number = self.checked
        share = self.valid_share
        if share is None:
            return 1.0
        square = SIGMAS * SIGMAS / number
        spread = SIGMAS * math.sqrt(share * (1 - share) / number + square / (4 * number))
        return min(1.0, (share + square / 2 + spread) / (1 + square))


class _Tally:
    """One tenant's answers, as they weigh at ``at``."""

    __slots__ = ("at", "checked", "faults")

    def __init__(self, at: float) -> None:
        self.at = at
        self.checked = 0.0
        self.faults: dict[Fault, float] = {}

    def add(self, fault: Fault | None, at: float) -> None:
        if at > self.at:
            self._scale(_faded(at - self.at))
            self.at = at
        weight = _faded(self.at - at)
        self.checked += weight
        if fault is not None:
            self.faults[fault] = self.faults.get(fault, 0.0) + weight
        if self.checked > WEIGHT_MAX:
            self._scale(WEIGHT_MAX / self.checked)

    def _scale(self, factor: float) -> None:
        self.checked *= factor
        for fault in self.faults:
            self.faults[fault] *= factor

    def weight(self, now: float) -> float:
        return _faded(max(0.0, now - self.at))


class Validity:
    """What is believed of every model at every provider. ``now`` and ``at`` are Unix seconds."""

    __slots__ = ("_pairs",)

    def __init__(self) -> None:
        self._pairs: dict[tuple[str, str], dict[str, _Tally]] = {}

    def apply(self, checked: Checked) -> None:
        """One more answer, ours or another replica's."""
        pair = (checked.provider, checked.model)
        tenants = _touched(self._pairs, pair, PAIRS_MAX, {})
        _touched(tenants, checked.tenant, TENANTS_MAX, _Tally(checked.at)).add(checked.fault, checked.at)

    def of(self, provider: str, model: str, now: float) -> Standing:
        """All of the evidence there is."""
        return _sum(self._pairs.get((provider, model), {}).values(), now)

    def is_below(self, provider: str, model: str, share_min: float, now: float) -> bool:
        """Whether surely fewer than this share of the answers are right. What one tenant alone sees is its schemas'
        doing, or its prompts': where others have evidence of their own, theirs must say the same without it."""
        tallies = self._pairs.get((provider, model))
        if not tallies:
            return False
        standing = _sum(tallies.values(), now)
        if standing.checked < CHECKS_MIN or standing.valid_share_max >= share_min:
            return False
        worst = max(tallies, key=lambda tenant: (sum(tallies[tenant].faults.values()), tenant))
        others = _sum((tally for tenant, tally in tallies.items() if tenant != worst), now)
        return others.checked < OTHERS_MIN or others.valid_share_max < share_min

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Every provider and model that something is known of."""
        return iter(sorted(self._pairs))


def _sum(tallies: Iterable[_Tally], now: float) -> Standing:
    checked = 0.0
    faults: dict[Fault, float] = {}
    for tally in tallies:
        weight = tally.weight(now)
        checked += weight * tally.checked
        for fault, amount in tally.faults.items():
            faults[fault] = faults.get(fault, 0.0) + weight * amount
    return Standing(checked, faults)


def _faded(seconds: float) -> float:
    return math.exp2(-seconds / HALF_LIFE_SECONDS)


def _touched(kept: dict[K, V], key: K, size_max: int, otherwise: V) -> V:
    """The value of a key, which is now the one heard of last."""
    value = kept.pop(key, otherwise)
    kept[key] = value
    if len(kept) > size_max:
        del kept[next(iter(kept))]
    return value

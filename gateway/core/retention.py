"""How much of a prefix a provider still bills as cached, by the age of its last use; learned from bills, in tokens.

The router wants to know the present; a report wants the whole period, and money. So this counts every token once and
forgets nothing: of the tokens that an account had read `age` seconds before, so many were billed as cached. Expiry,
eviction, noise and the blocks in which providers count are all in that share. Because a cost is linear in its cached
tokens, the share by tokens is what makes the sum right, and a period can be valued when all of its bills are known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from gateway.core.survival import PRIOR, age_index

PER_OCTAVE: Final = 4
"""Buckets per doubling of the age: a cache's expiry is somewhere in one of them, and is blurred by a fifth of it."""
OCTAVES: Final = 17  # from one second to a day and a half
GAP: Final = 1 + PER_OCTAVE * OCTAVES
"""The bucket of what follows the deepest match, up to the next boundary: a cache of blocks may know a part of it."""
BUCKETS: Final = GAP + 1
OCTAVE_EVIDENCE: Final = 2.0
PRIOR_EVIDENCE: Final = 4.0
"""A bucket with few bills borrows from its octave, as much as so many bills would say; an octave from the prior."""
NEVER: Final = math.inf
"""The age of what was not seen to be used before."""


class Segment(NamedTuple):
    """Tokens of a prompt between two boundaries that were last used ``age`` seconds before, or NEVER."""

    tokens: int
    age: float


def bucket_of(age: float) -> int:
    """The bucket of an age in seconds; the first holds everything up to one second, the last all beyond."""
    if age == NEVER:
        return GAP
    return 0 if age <= 1.0 else min(GAP - 1, 1 + int(PER_OCTAVE * math.log2(age)))


def _prior_of(bucket: int) -> float:
    """What the router believes of a provider that nobody has used yet, in the middle of a bucket."""
    return 0.0 if bucket == GAP else PRIOR[age_index(2.0 ** ((bucket - 0.5) / PER_OCTAVE))]


PRIOR_SHARES: Final = tuple(_prior_of(bucket) for bucket in range(BUCKETS))
_ALL_UNSEEN: Final = tuple(0.0 if bucket == GAP else 1.0 for bucket in range(BUCKETS))
"""Of what was never sent to a cache it is known without a bill that it is not in there."""
_OCTAVE_OF: Final = tuple(-(-bucket // PER_OCTAVE) for bucket in range(BUCKETS))
_OCTAVES: Final = tuple(
    tuple(bucket for bucket in range(BUCKETS) if _OCTAVE_OF[bucket] == octave) for octave in range(_OCTAVE_OF[-1] + 1)
)


class Evidence:
    """Tokens that could have been billed as cached, and those that were, by age. Sums of it are evidence too."""

    __slots__ = ("bills", "could", "were")

    def __init__(self) -> None:
        self.could = [0] * BUCKETS
        self.were = [0] * BUCKETS
        self.bills = 0

    def learn(self, segments: Iterable[Segment], cached_tokens: int) -> None:
        """With one more bill. What is read from a cache is a prefix: the deeper segments are those that were missed."""
        depth = 0
        for segment in segments:
            bucket = bucket_of(segment.age)
            self.could[bucket] += segment.tokens
            self.were[bucket] += min(max(cached_tokens - depth, 0), segment.tokens)
            depth += segment.tokens
            self.bills += 1

    def without(self, other: Evidence) -> Evidence:
        """The rest, where the other is a part of it."""
        rest = Evidence()
        rest.could = [mine - its for mine, its in zip(self.could, other.could, strict=True)]
        rest.were = [mine - its for mine, its in zip(self.were, other.were, strict=True)]
        rest.bills = self.bills - other.bills
        return rest

    def shares(self) -> Shares:
        """What is to be expected of each age after all these bills."""
        if not self.bills or not any(self.could):
            return Shares(PRIOR_SHARES, _ALL_UNSEEN)
        bill = sum(self.could) / self.bills  # so many tokens weigh as much as one bill
        octaves = [_shrunk(self, octave, bill) for octave in _OCTAVES]
        values: list[float] = []
        unseen: list[float] = []
        for bucket, octave in enumerate(_OCTAVE_OF):
            share, borrowed = octaves[octave]
            of_octave = share + borrowed * PRIOR_SHARES[bucket]
            mine = OCTAVE_EVIDENCE * bill / (self.could[bucket] + OCTAVE_EVIDENCE * bill)
            own = self.were[bucket] / self.could[bucket] if self.could[bucket] else 0.0
            values.append((1.0 - mine) * own + mine * of_octave)
            unseen.append(mine * borrowed * _ALL_UNSEEN[bucket])
        return Shares(tuple(values), tuple(unseen))


def _shrunk(evidence: Evidence, octave: Sequence[int], bill: float) -> tuple[float, float]:
    """The octave's own share times the weight of its evidence, and the weight that is left to the prior."""
    could, were = sum(evidence.could[bucket] for bucket in octave), sum(evidence.were[bucket] for bucket in octave)
    prior = PRIOR_EVIDENCE * bill / (could + PRIOR_EVIDENCE * bill)
    return (1.0 - prior) * were / could if could else 0.0, prior


class Shares(NamedTuple):
    """By age: the share of a prefix that is billed as cached, and how much of that figure is prior and not evidence."""

    values: Sequence[float]
    unseen: Sequence[float]

    def of(self, weights: Sequence[int]) -> float:
        """The sum of what is billed as cached, of weights by age."""
        return math.fsum(value * weight for value, weight in zip(self.values, weights, strict=True))

    def more(self, weights: Sequence[int]) -> float:
        """By how much that sum would be larger, were everything cached that nobody has seen."""
        columns = zip(self.unseen, PRIOR_SHARES, weights, strict=True)
        return math.fsum(unseen * (1.0 - prior) * weight for unseen, prior, weight in columns)

    def less(self, weights: Sequence[int]) -> float:
        """By how much it would be smaller, were nothing of that cached."""
        columns = zip(self.unseen, PRIOR_SHARES, weights, strict=True)
        return math.fsum(unseen * prior * weight for unseen, prior, weight in columns)

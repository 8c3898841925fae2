"""Retries live within a budget: a fifth of traffic, with a reserve for a burst that hits a provider as it falls."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

FIFTHS_PER_RETRY: Final = 5
RESERVE_RETRIES: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryBudget:
    """Counted in fifths of a retry: every request earns one fifth, every retry spends five.

    The reserve is there from the start as an advance: the first requests pay it back, so that ``n`` requests never
    make more than a fifth of ``n`` retries, or the reserve if that is more.
    """

    fifths: int = RESERVE_RETRIES * FIFTHS_PER_RETRY
    advanced: int = RESERVE_RETRIES * FIFTHS_PER_RETRY

    def earn(self) -> RetryBudget:
        if self.advanced:
            return replace(self, advanced=self.advanced - 1)
        return replace(self, fifths=min(RESERVE_RETRIES * FIFTHS_PER_RETRY, self.fifths + 1))

    def spend(self) -> RetryBudget | None:
        """The budget after one more retry; None when there is none left."""
        if self.fifths < FIFTHS_PER_RETRY:
            return None
        return replace(self, fifths=self.fifths - FIFTHS_PER_RETRY)

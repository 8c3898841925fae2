"""A result is what one policy did with all rows: money, tokens, time; expected money has the luck taken out of it.

Whether a provider ignores its cache is chance. ``billed`` is what this luck cost; ``expected`` weighs both bills of
each request by how likely they are, so that policies differ by what they decided. Both are exact in pico-dollars.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.core.money import Money
from gateway.replay.world import PARTS_PER_MILLION, AccountKey


@dataclass(slots=True, kw_only=True)
class AccountTally:
    """What one account was given to do."""

    requests: int = 0
    failures: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    billed_pico: int = 0
    expected_micropico: int = 0  # of a pico-dollar the millionth part: chances are parts of a million

    @property
    def billed(self) -> Money:
        return Money(self.billed_pico)

    @property
    def expected(self) -> Money:
        return Money(_rounded(self.expected_micropico))


@dataclass(slots=True, kw_only=True)
class Tally:
    """What one policy did. Lists have a number for every request that was answered."""

    accounts: dict[AccountKey, AccountTally] = field(default_factory=dict)
    refusals: int = 0
    unserved: int = 0
    held: int = 0
    held_seconds: float = 0.0
    moves: int = 0
    output_tokens: int = 0
    waited_seconds: list[float] = field(default_factory=list)
    first_token_seconds: list[float] = field(default_factory=list)

    def of(self, account: AccountKey) -> AccountTally:
        found = self.accounts.get(account)
        if found is None:
            found = self.accounts[account] = AccountTally()
        return found

    @property
    def requests(self) -> int:
        return sum(each.requests for each in self.accounts.values())

    @property
    def failures(self) -> int:
        return sum(each.failures for each in self.accounts.values())

    @property
    def input_tokens(self) -> int:
        return sum(each.input_tokens for each in self.accounts.values())

    @property
    def cached_share(self) -> float:
        """Of all input tokens, those that were billed as cached."""
        read = self.input_tokens
        return sum(each.cached_tokens for each in self.accounts.values()) / read if read else 0.0

    @property
    def billed(self) -> Money:
        return Money.total(each.billed for each in self.accounts.values())

    @property
    def expected(self) -> Money:
        return Money(_rounded(sum(each.expected_micropico for each in self.accounts.values())))


def _rounded(micropico: int) -> int:
    """To whole pico-dollars, halves up: once, when everything is summed."""
    return (2 * micropico + PARTS_PER_MILLION) // (2 * PARTS_PER_MILLION)


def percentile(sorted_values: list[float], share: float) -> float:
    """The value that this share of them does not exceed; 0 of none."""
    if not sorted_values:
        return 0.0
    return sorted_values[min(len(sorted_values) - 1, int(len(sorted_values) * share))]

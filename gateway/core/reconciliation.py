"""A provider's statement against the ledger: every line and every attempt is in one class, and the sums add up.

``statement = ledger + what the classes explain``, to the pico-dollar. What is off is a finding; what a person could
decide about it is proposed as corrections, which leave the ledger as the statement says and change nothing when they
are made again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

import msgspec

from gateway.core.corrections import InForce, adjusted, cache_ttl_of, rewritten, unattributed, usage_of
from gateway.core.ledger import LedgerEntry
from gateway.core.money import ZERO, Money
from gateway.core.pricing import Price, rate
from gateway.core.usage import NO_USAGE, Usage, UsageSource


class FindingClass(StrEnum):
    """What became of a line or an attempt. Only the first two and ``free`` are no finding.

    ``matched``: tokens agree, and the amount within its rounding. ``free``: a line that costs nothing and nobody knows.
    ``at_edge``: an attempt of the period whose line may stand in the statement before or after. ``missing_there``: the
    ledger has it, the statement does not. ``missing_here``: the statement has it, the ledger does not.
    """

    MATCHED = "matched"
    FREE = "free"
    TOKENS = "tokens"
    PRICE = "price"
    MISSING_THERE = "missing_there"
    MISSING_HERE = "missing_here"
    DUPLICATE = "duplicate"
    AT_EDGE = "at_edge"


FINDINGS: Final = (
    *(FindingClass.TOKENS, FindingClass.PRICE, FindingClass.MISSING_THERE, FindingClass.MISSING_HERE),
    FindingClass.DUPLICATE,
)


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of one side; None = not told."""

    input: int | None = None
    cached: int | None = None
    cache_write: int | None = None
    output: int | None = None


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A line, an attempt, or both where they do not agree. ``difference`` is what it explains: statement less ledger.

    ``is_unattributed``: the ledger's side is an earlier statement's line that no attempt stands for.
    """

    kind: FindingClass
    line: int | None
    line_name: str | None
    attempt_id: str | None
    matched_by: str | None
    request_id: str | None
    account: str | None
    model: str | None
    at: datetime | None
    started_at: datetime | None
    status: str | None
    usage_source: str | None
    price_id: str | None
    is_unattributed: bool
    revision: int
    theirs: Tokens
    ours: Tokens
    amount: Money | None
    cost: Money | None

    @property
    def difference(self) -> Money:
        return (self.amount or ZERO) - (self.cost or ZERO)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassTotal:
    """The sums of one class. ``estimates`` were estimated here and have a line; ``outside`` started outside of the
    period, before it or after, though their lines are in it."""

    count: int = 0
    amount: Money = ZERO
    cost: Money = ZERO
    estimates: int = 0
    outside: int = 0
    outside_cost: Money = ZERO

    @property
    def difference(self) -> Money:
        return self.amount - self.cost


NOTHING: Final = ClassTotal()


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What a statement comes to and what the ledger does, and every step between them."""

    classes: Mapping[FindingClass, ClassTotal]
    ledger: Money

    def of(self, kind: FindingClass) -> ClassTotal:
        return self.classes.get(kind, NOTHING)

    @property
    def statement(self) -> Money:
        return Money.total(each.amount for each in self.classes.values())

    @property
    def findings(self) -> int:
        return sum(self.of(kind).count for kind in FINDINGS)

    def steps(self) -> dict[str, Money]:
        """From the ledger's total to the statement's."""
        pairs = [self.of(kind) for kind in (FindingClass.MATCHED, FindingClass.TOKENS, FindingClass.PRICE)]
        return {
            "started_outside_of_the_period": Money.total(each.outside_cost for each in pairs),
            "lines_at_the_edge": -self.of(FindingClass.AT_EDGE).cost,
            "missing_there": -self.of(FindingClass.MISSING_THERE).cost,
            "missing_here": self.of(FindingClass.MISSING_HERE).amount,
            "duplicate": self.of(FindingClass.DUPLICATE).amount,
            "tokens": self.of(FindingClass.TOKENS).difference,
            "price": self.of(FindingClass.PRICE).difference,
            "rounding": self.of(FindingClass.MATCHED).difference,
        }

    @property
    def residual(self) -> Money:
        """What no step explains: nothing, ever."""
        return self.statement - self.ledger - Money.total(self.steps().values())


class Unproposed(StrEnum):
    """Why nothing is proposed for a finding: somebody has to decide."""

    REPRICE = (
        "another price explains it: put that into prices.toml and run `gateway prices reprice`, or --adjust-prices"
    )
    DUPLICATE = "the provider billed it twice: ask for it back, and book the refund when it comes"
    TOLD_BY_PROVIDER = "the provider's own answer told these tokens: ask why the statement has no line"
    ANOTHER_ACCOUNT = "no line is about their account, so the statement may be of another: name it with --account"
    NO_ACCOUNT = "the provider has several accounts: name the statement's with --account"


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What a batch of corrections goes by.

    ``account`` is the statement's, None where it may be any; ``accounts`` are those that it has lines of;
    ``public_models`` maps the provider's names of models, in lower case, to ours; ``booked_at`` is when a line counts
    that has no time.
    """

    correction_id: str
    provider: str
    account: str | None
    accounts: frozenset[str]
    public_models: Mapping[str, str]
    booked_at: datetime
    quantum_pico: int
    closed_until: datetime | None


def proposed(
    finding: Finding, now: InForce | None, price: Price | None, terms: Terms
) -> tuple[LedgerEntry, ...] | Unproposed:
    """The rows that leave the ledger as the statement has it. ``now`` is the finding's attempt, where it has one;
    ``price`` the row that it was charged by, None where nobody has it any more."""
    match finding.kind:
        case FindingClass.DUPLICATE:
            return Unproposed.DUPLICATE
        case FindingClass.MISSING_HERE:
            return Unproposed.NO_ACCOUNT if terms.account is None else (_booked(finding, terms.account, terms),)
        case FindingClass.MISSING_THERE if finding.account not in terms.accounts:
            return Unproposed.ANOTHER_ACCOUNT
        case FindingClass.MISSING_THERE if finding.usage_source != UsageSource.ESTIMATED.value:
            return Unproposed.TOLD_BY_PROVIDER
        case FindingClass.MISSING_THERE:
            return _rewritten(now, price, NO_USAGE, ZERO, terms)
        case FindingClass.TOKENS:
            assert now is not None and finding.amount is not None, "a pair has both sides"
            return _rewritten(now, price, _usage(finding, usage_of(now.entry)), finding.amount, terms)
        case _:
            assert now is not None and finding.amount is not None, "a pair has both sides"
            return _adjusted(now, finding.amount - now.cost, terms)


def booked_before(finding: Finding, terms: Terms) -> InForce:
    """What an earlier statement's line was booked as, as it counts now."""
    assert finding.attempt_id is not None and finding.started_at is not None and finding.cost is not None
    account = finding.account or ""
    entry = unattributed(
        correction_id=terms.correction_id,
        provider=terms.provider,
        account=account,
        model=finding.model or "",
        line=finding.attempt_id.removeprefix(f"{terms.provider}/{account}/"),
        at=finding.started_at,
        amount=finding.cost,
        closed_until=terms.closed_until,
        upstream_request_id=finding.request_id,
    )
    return InForce(entry=entry, original_started_at=finding.started_at, adjusted=ZERO, revision=finding.revision)


def _booked(finding: Finding, account: str, terms: Terms) -> LedgerEntry:
    assert finding.amount is not None and finding.line_name is not None
    model = finding.model or ""
    return unattributed(
        correction_id=terms.correction_id,
        provider=terms.provider,
        account=account,
        model=terms.public_models.get(model.lower(), model),
        line=finding.line_name,
        at=finding.at or terms.booked_at,
        amount=finding.amount,
        closed_until=terms.closed_until,
        upstream_request_id=finding.request_id,
    )


def _rewritten(
    now: InForce | None, price: Price | None, usage: Usage, amount: Money, terms: Terms
) -> tuple[LedgerEntry, ...]:
    """The provider's tokens at our price, and what its amount is beyond that as an adjustment; the amount alone where
    nobody knows the price."""
    assert now is not None, "an attempt is in force"
    if price is None:
        return _adjusted(now, amount - now.cost, terms)
    ttl = cache_ttl_of(now.entry, price)
    ends = rewritten(
        now,
        correction_id=terms.correction_id,
        usage=usage,
        usage_source=UsageSource.PROVIDER,
        price=price,
        cache_ttl=ttl,
        closed_until=terms.closed_until,
    )
    rest = amount - rate(usage, price, cache_ttl=ttl, fee=Money(now.entry.fee_pico)).cost - now.adjusted
    return ends if abs(rest.pico) <= terms.quantum_pico else (*ends, *_adjusted(now, rest, terms))


def _adjusted(now: InForce | None, amount: Money, terms: Terms) -> tuple[LedgerEntry, ...]:
    assert now is not None, "an attempt is in force"
    if not amount.pico:
        return ()
    return (adjusted(now, correction_id=terms.correction_id, amount=amount, closed_until=terms.closed_until),)


def _usage(finding: Finding, before: Usage) -> Usage:
    """The provider's tokens; of what it does not tell, ours as far as they fit into what it does."""
    theirs = finding.theirs
    prompt = before.input_tokens if theirs.input is None else theirs.input
    cached = before.cache_read if theirs.cached is None else theirs.cached
    written = before.cache_write if theirs.cache_write is None else theirs.cache_write
    output = before.output if theirs.output is None else theirs.output
    return msgspec.structs.replace(
        Usage.from_wire(prompt=prompt, completion=output, cached=cached, cache_write=written),
        reasoning=None if before.reasoning is None else min(before.reasoning, output),
        reasoning_source=before.reasoning_source,
    )

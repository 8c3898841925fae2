"""What keys, teams, the organisation and provider accounts may use, as a seed decides it, and when it is changed.

Kept in plain numbers, for the auditor; what the product is given is made from them here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from random import Random
from typing import Final
from zoneinfo import ZoneInfo

from gateway.core import api_key
from gateway.core.budget import Budget, BudgetMode, OnOutage, Period
from gateway.core.catalogue import Account, ProviderCard
from gateway.core.exchange import Principal
from gateway.core.limits import RateLimits
from gateway.core.money import Money
from tests.pipeline.virtual_time import START

ORGANISATION: Final = "organisation"
MIDNIGHTS: Final = (
    ("UTC", date(2026, 4, 1)),
    ("UTC", date(2026, 3, 2)),
    ("Europe/Berlin", date(2026, 3, 30)),
    ("America/New_York", date(2026, 3, 9)),
    ("Asia/Kathmandu", date(2026, 3, 16)),
)
"""Moments at which days, weeks and months end, two of them after a day of 23 hours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyHolder:
    """A key. Its secret is made from ``number``."""

    number: int
    key_id: str
    name: str
    team: str | None
    tags: Mapping[str, str]

    @property
    def secret(self) -> str:
        return api_key.new_secret(bytes(range(self.number, self.number + 32)))

    @property
    def scopes(self) -> tuple[str, ...]:
        team = () if self.team is None else (f"team:{self.team}",)
        return (f"key:{self.key_id}", *team, ORGANISATION)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Requests and tokens per minute, and requests at once; None = no limit."""

    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetRow:
    """A budget: ``mode`` strict, clamp or soft, ``on_outage`` refuse or admit, both as an administrator writes them."""

    scope: str
    period: str
    limit_pico: int
    mode: str
    on_outage: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """All limits and budgets, in force ``since`` a moment. At most one budget of a scope has a period."""

    since: float
    rates: Mapping[str, Rates]
    budgets: tuple[BudgetRow, ...]

    def budgets_of(self, holder: KeyHolder) -> list[BudgetRow]:
        return [row for scope in holder.scopes for row in self.budgets if row.scope == scope]

    def budget(self, scope: str, period: str) -> BudgetRow | None:
        return next((row for row in self.budgets if (row.scope, row.period) == (scope, period)), None)

    def rates_of(self, scope: str) -> Rates:
        return self.rates.get(scope, Rates())


@dataclass(frozen=True, slots=True, kw_only=True)
class Rights:
    """Everything about one world's allowances."""

    holders: tuple[KeyHolder, ...]
    time_zone: str
    policies: tuple[Policy, ...]
    accounts: Mapping[tuple[str, str], Rates]
    waiting_max: int
    waiting_of_key_max: int

    def policy_at(self, at: float) -> Policy:
        return next(policy for policy in reversed(self.policies) if policy.since <= at)

    def policies_between(self, begin: float, end: float) -> list[Policy]:
        """Those in force at any moment of it."""
        first = self.policy_at(max(begin, 0.0))
        return [policy for policy in self.policies if policy is first or begin < policy.since <= end]


SOLE_HOLDER: Final = KeyHolder(number=0, key_id="key_sim", name="sim", team="team-a", tags={"env": "sim"})
NO_RIGHTS: Final = Rights(
    holders=(SOLE_HOLDER,),
    time_zone="UTC",
    policies=(Policy(since=0.0, rates={}, budgets=()),),
    accounts={},
    waiting_max=1_000,
    waiting_of_key_max=250,
)
"""Nobody is limited."""
HOLDERS: Final = (
    KeyHolder(number=2, key_id="key_ann", name="ann", team="alpha", tags={"env": "sim"}),
    KeyHolder(number=3, key_id="key_ben", name="ben", team="alpha", tags={}),
    KeyHolder(number=4, key_id="key_cid", name="cid", team="beta", tags={}),
    KeyHolder(number=5, key_id="key_dot", name="dot", team=None, tags={}),
)
SCOPES: Final = ("key:key_ann", "key:key_ben", "key:key_cid", "key:key_dot", "team:alpha", "team:beta", ORGANISATION)
_USD: Final = ("0.002", "0.006", "0.02", "0.05", "0.3", "1.5")


def rights(chance: Random, horizon: float, accounts: Mapping[str, tuple[str, ...]]) -> tuple[Rights, datetime]:
    """The allowances of a world, and when it begins: sometimes shortly before a midnight."""
    time_zone, begins = chance.choice(("UTC", "Asia/Kathmandu")), START
    if chance.random() < 0.6:
        time_zone, midnight = chance.choice(MIDNIGHTS)
        before = timedelta(seconds=round(chance.uniform(2.0, horizon), 3))
        begins = datetime.combine(midnight, time(), ZoneInfo(time_zone)).astimezone(UTC) - before
    first = Policy(since=0.0, rates=_some_rates(chance), budgets=_some_budgets(chance))
    policies = [first]
    while len(policies) < 4 and chance.random() < 0.5:
        since = policies[-1].since + chance.uniform(0.5, horizon / 2)
        policies.append(_changed(chance, policies[-1], since))
    narrow = chance.choice((0.0, 0.0, 0.5, 1.0))
    made = Rights(
        holders=HOLDERS,
        time_zone=time_zone,
        policies=tuple(policies),
        accounts={
            (provider, name): _rates_of_account(chance)
            for provider, names in accounts.items()
            for name in names
            if chance.random() < narrow
        },
        waiting_max=chance.choice((3, 10, 1_000)),
        waiting_of_key_max=chance.choice((2, 250)),
    )
    return made, begins


def _some_rates(chance: Random) -> dict[str, Rates]:
    share = chance.choice((0.0, 0.3, 0.6))
    return {scope: _rates(chance) for scope in SCOPES if chance.random() < share}


def _rates(chance: Random) -> Rates:
    return Rates(
        rpm=chance.choice((None, None, 1, 3, 8, 20)),
        tpm=chance.choice((None, None, 700, 3_000, 12_000, 90_000)),
        concurrency=chance.choice((None, None, 1, 2, 5)),
    )


def _rates_of_account(chance: Random) -> Rates:
    return Rates(
        rpm=chance.choice((None, 1, 3, 10)),
        tpm=chance.choice((None, None, 3_000, 40_000)),
        concurrency=chance.choice((None, 1, 1, 2, 4)),
    )


def _some_budgets(chance: Random) -> tuple[BudgetRow, ...]:
    share = chance.choice((0.0, 0.3, 0.6))
    rows: list[BudgetRow] = []
    for scope in SCOPES:
        while chance.random() < share:
            row = _budget(chance, scope)
            if all((row.scope, row.period) != (other.scope, other.period) for other in rows):
                rows.append(row)
    return tuple(rows)


def _budget(chance: Random, scope: str) -> BudgetRow:
    return BudgetRow(
        scope=scope,
        period=chance.choice(("day", "day", "week", "month", "total")),
        limit_pico=Money.from_usd(chance.choice(_USD)).pico,
        mode=chance.choice(("strict", "strict", "clamp", "clamp", "soft")),
        on_outage=chance.choice(("refuse", "refuse", "refuse", "admit")),
    )


def _changed(chance: Random, before: Policy, since: float) -> Policy:
    """Limits and budgets are raised, lowered, set for the first time or taken away."""
    rates = {scope: each for scope, each in before.rates.items() if chance.random() < 0.7}
    rates |= {scope: _rates(chance) for scope in SCOPES if chance.random() < 0.15}
    budgets = [
        replace(row, limit_pico=row.limit_pico * chance.choice((1, 2, 4, 10)) // chance.choice((1, 2, 4, 10)))
        for row in before.budgets
        if chance.random() < 0.85
    ]
    for scope in SCOPES:
        if chance.random() < 0.15:
            row = _budget(chance, scope)
            budgets = [each for each in budgets if (each.scope, each.period) != (row.scope, row.period)]
            budgets.append(row)
    return Policy(since=since, rates=rates, budgets=tuple(budgets))


# --- what the product is given ---------------------------------------------------------------------------------------


def principal(holder: KeyHolder, policy: Policy, time_zone: str) -> Principal:
    """The key with its limits and budgets, as the key store tells it."""
    names = {ORGANISATION: ORGANISATION, f"key:{holder.key_id}": f'key "{holder.name}"'}
    names[f"team:{holder.team}"] = f'team "{holder.team}"'
    return Principal(
        key_id=holder.key_id,
        key_name=holder.name,
        team=holder.team,
        tags=holder.tags,
        limits=tuple(
            RateLimits(scope=scope, name=names[scope], rpm=each.rpm, tpm=each.tpm, concurrency=each.concurrency)
            for scope in holder.scopes
            if (each := policy.rates_of(scope)) != Rates()
        ),
        budgets=tuple(
            Budget(
                budget_id=f"{row.scope}/{row.period}",
                scope=row.scope,
                name=names[row.scope],
                period=Period(row.period),
                limit=Money(row.limit_pico),
                mode=BudgetMode(row.mode),
                on_outage=OnOutage(row.on_outage),
                time_zone=time_zone,
            )
            for row in policy.budgets_of(holder)
        ),
        time_zone=time_zone,
    )


def with_rates(made: ProviderCard, accounts: Mapping[tuple[str, str], Rates]) -> ProviderCard:
    """The provider's card with its accounts' limits."""
    return replace(made, accounts=tuple(_limited(account, accounts) for account in made.accounts))


def _limited(account: Account, accounts: Mapping[tuple[str, str], Rates]) -> Account:
    rates = accounts.get((account.provider, account.name), Rates())
    return replace(account, rpm=rates.rpm, tpm=rates.tpm, concurrency=rates.concurrency)

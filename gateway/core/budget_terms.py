"""A budget as administrators see it: whose, how much, how it refuses, and what is spent of it in its window."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, Protocol

from gateway.core.budget import ALERT_AT, ORGANISATION, BudgetMode, OnOutage, Period, scope_of_key, scope_of_team
from gateway.core.fields import FieldError, check_amount, check_choice, check_name, check_shares
from gateway.core.money import ZERO, Money, decimal_text

# A window of the period on the left lies within a single window of each on the right.
_LIES_WITHIN: Final = {
    Period.DAY: frozenset(Period),
    Period.WEEK: frozenset({Period.WEEK, Period.TOTAL}),
    Period.MONTH: frozenset({Period.MONTH, Period.TOTAL}),
    Period.TOTAL: frozenset({Period.TOTAL}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetTerms:
    """What is promised: one limit of a scope and a period; a scope has at most one of each period."""

    scope: str
    period: Period
    limit: Money
    mode: BudgetMode = BudgetMode.STRICT
    on_outage: OnOutage = OnOutage.REFUSE
    alert_at: tuple[int, ...] = ALERT_AT

    @property
    def key_id(self) -> str | None:
        """Whose it is, if a key's."""
        return self.scope.removeprefix("key:") if self.scope.startswith("key:") else None

    @property
    def team(self) -> str | None:
        """Whose it is, if a team's."""
        return self.scope.removeprefix("team:") if self.scope.startswith("team:") else None

    def keeps(self, own: BudgetTerms) -> bool:
        """Whether who keeps this budget cannot spend more than ``own``, another scope's, allows."""
        return self.period in _LIES_WITHIN[own.period] and self.is_no_looser_than(own)

    def is_no_looser_than(self, other: BudgetTerms) -> bool:
        """Whether neither amount, mode nor outage lets more through."""
        return (
            self.limit <= other.limit
            and (self.mode is not BudgetMode.SOFT or other.mode is BudgetMode.SOFT)
            and (self.on_outage is OnOutage.REFUSE or other.on_outage is OnOutage.ADMIT)
        )

    def __str__(self) -> str:
        return f"{self.limit} USD per {self.period.value} ({self.mode.value})"


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetRecord:
    """A budget that exists. ``team`` is whose tenant it belongs to, ``spent`` what its window has posted so far;
    ``resets_at`` None for the whole of time."""

    budget_id: str
    terms: BudgetTerms
    created_at: datetime
    team: str | None = None
    spent: Money = ZERO
    resets_at: datetime | None = None

    @property
    def share(self) -> str | None:
        """How much of the limit is spent, in percent, rounded down to hundredths; None of a limit of nothing."""
        limit = self.terms.limit.pico
        return decimal_text(self.spent.pico * 10_000 // limit, decimals=2) if limit else None


def scope_of(*, key: str | None = None, team: str | None = None, organisation: bool = False) -> str:
    """The one scope that is named. Raises FieldError."""
    if (key is not None) + (team is not None) + organisation != 1:
        raise FieldError("scope", "name one of key, team and organisation.")
    if key is not None:
        return scope_of_key(check_name("key", key))
    return ORGANISATION if team is None else scope_of_team(check_name("team", team))


def check_budget(
    scope: str,
    *,
    period: str,
    limit: str,
    mode: str = BudgetMode.STRICT,
    on_outage: str = OnOutage.REFUSE,
    alert_at: Iterable[int] = ALERT_AT,
) -> BudgetTerms:
    """What an administrator asked for as terms. Raises FieldError."""
    return BudgetTerms(
        scope=scope,
        period=check_choice("period", period, Period),
        limit=check_amount("limit", limit),
        mode=check_choice("mode", mode, BudgetMode),
        on_outage=check_choice("on_outage", on_outage, OnOutage),
        alert_at=check_shares(alert_at),
    )


def budget_json(record: BudgetRecord) -> dict[str, object]:
    """A budget under its public names; amounts and the share in percent are decimal strings."""
    return {
        "id": record.budget_id,
        **terms_json(record.terms),
        "spent": str(record.spent),
        "share": record.share,
        "resets_at": None if record.resets_at is None else record.resets_at.isoformat(),
        "created_at": record.created_at.isoformat(),
    }


def terms_json(terms: BudgetTerms) -> dict[str, object]:
    """What is promised, without what came of it."""
    return {
        "scope": terms.scope,
        "key": terms.key_id,
        "team": terms.team,
        "period": terms.period.value,
        "limit": str(terms.limit),
        "mode": terms.mode.value,
        "on_outage": terms.on_outage.value,
        "alert_at": list(terms.alert_at),
    }


class FirstBudget(Protocol):
    """The fields by which a key or a team speaks of its first budget."""

    @property
    def budget(self) -> Money | None: ...
    @property
    def period(self) -> Period | None: ...
    @property
    def budget_mode(self) -> BudgetMode: ...


def first_budget(records: Sequence[BudgetRecord]) -> BudgetRecord | None:
    """The one that a key's or a team's own fields speak of."""
    return min(records, key=lambda record: (record.created_at, record.terms.period), default=None)


def first_fields(records: Sequence[BudgetRecord]) -> dict[str, Any]:
    """Those fields, as the budgets have them."""
    first = first_budget(records)
    if first is None:
        return {}
    return {"budget": first.terms.limit, "period": first.terms.period, "budget_mode": first.terms.mode}


def first_terms(
    scope: str, wanted: FirstBudget, records: Sequence[BudgetRecord]
) -> tuple[BudgetRecord | None, BudgetTerms | None]:
    """The first budget that there is, and what those fields want it to be; None = no budget."""
    first = first_budget(records)
    if wanted.budget is None or wanted.period is None:
        return first, None
    before = BudgetTerms(scope=scope, period=wanted.period, limit=wanted.budget) if first is None else first.terms
    return first, replace(before, period=wanted.period, limit=wanted.budget, mode=wanted.budget_mode)


def with_first(scope: str, wanted: FirstBudget, records: Sequence[BudgetRecord]) -> list[BudgetTerms]:
    """A scope's budgets with its first one as those fields want it."""
    first, terms = first_terms(scope, wanted, records)
    others = [record for record in records if record is not first]
    return [record.terms for record in others] if terms is None else with_terms(others, terms)


def with_terms(records: Sequence[BudgetRecord], terms: BudgetTerms) -> list[BudgetTerms]:
    """A scope's budgets with these terms for their period."""
    return [terms, *(record.terms for record in records if record.terms.period is not terms.period)]

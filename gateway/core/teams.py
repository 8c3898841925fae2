"""A team as administrators see it: what its keys share, what each has unless it says otherwise, and the most of each.

``models`` and ``providers`` are the most that its keys may use; ``rpm``, ``tpm`` and ``concurrency`` are shared by all
of them; ``key_default_…`` is what a key has that names no limit, ``key_max_…`` what no key has more of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

from gateway.core.budget import BudgetMode, Period
from gateway.core.budget_terms import BudgetRecord, budget_json
from gateway.core.catalogue import Catalogue
from gateway.core.fields import (
    FieldError,
    check_amount,
    check_choice,
    check_limit,
    check_name,
    check_tags,
    check_together,
    checked_fields,
    consistent,
)
from gateway.core.money import Money

RATES: Final = ("rpm", "tpm", "concurrency")
KEY_DEFAULTS: Final = tuple(f"key_default_{name}" for name in RATES)
KEY_CEILINGS: Final = tuple(f"key_max_{name}" for name in RATES)
LIMITS: Final = (*RATES, *KEY_DEFAULTS, *KEY_CEILINGS)


@dataclass(frozen=True, slots=True, kw_only=True)
class TeamTerms:
    """What a team may do. None = no limit; ``models`` and ``providers`` None = all.

    ``budget``, ``period`` and ``budget_mode`` are its first budget.
    """

    name: str
    models: tuple[str, ...] | None = None
    providers: tuple[str, ...] | None = None
    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None
    key_default_rpm: int | None = None
    key_default_tpm: int | None = None
    key_default_concurrency: int | None = None
    key_max_rpm: int | None = None
    key_max_tpm: int | None = None
    key_max_concurrency: int | None = None
    budget: Money | None = None
    period: Period | None = None
    budget_mode: BudgetMode = BudgetMode.STRICT
    tags: Mapping[str, str] = field(default_factory=dict)


TeamChange = Callable[[TeamTerms], TeamTerms]
"""What an update makes of a team. Raises FieldError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeamRecord:
    """A team that exists. ``keys`` is how many of its keys are not revoked."""

    terms: TeamTerms
    created_at: datetime
    keys: int = 0
    budgets: tuple[BudgetRecord, ...] = ()


def check_team(catalogue: Catalogue, **fields: Any) -> TeamTerms:
    """What an administrator asked for as terms: ``name``, and any of the other fields, as JSON or options have them;
    models by any of their names. Raises FieldError."""
    check_together(fields.get("budget"), fields.get("period"), fields.get("budget_mode"))
    given = {name: value for name, value in fields.items() if value is not None}
    return _sensible(TeamTerms(**checked_fields(given, _CHECKS, catalogue)))


def team_change(catalogue: Catalogue, **fields: Any) -> TeamChange:
    """An update of the fields that are given; None clears. Raises FieldError."""
    values = checked_fields(fields, _CHECKS, catalogue)
    return lambda terms: _sensible(replace(terms, **consistent(terms, values)))


_CHECKS: Final[Mapping[str, Callable[[str, Any], Any]]] = {
    "name": check_name,
    **dict.fromkeys(LIMITS, check_limit),
    "budget": check_amount,
    "period": lambda name, value: check_choice(name, value, Period),
    "budget_mode": lambda name, value: check_choice(name, value, BudgetMode),
    "tags": lambda _, value: check_tags(value),
}


def _sensible(terms: TeamTerms) -> TeamTerms:
    """What a key has without saying so is no more than what it may say."""
    for default, ceiling in zip(KEY_DEFAULTS, KEY_CEILINGS, strict=True):
        given, most = getattr(terms, default), getattr(terms, ceiling)
        if given is not None and most is not None and given > most:
            raise FieldError(default, f"{default} is {given}, more than {ceiling}, which is {most}.")
    return terms


def team_json(record: TeamRecord) -> dict[str, object]:
    """A team under its public names."""
    return {
        **team_terms_json(record.terms),
        "keys": record.keys,
        "budgets": [budget_json(budget) for budget in record.budgets],
        "created_at": record.created_at.isoformat(),
    }


def team_terms_json(terms: TeamTerms) -> dict[str, object]:
    """What a team may do and spend."""
    return {
        "name": terms.name,
        "models": None if terms.models is None else list(terms.models),
        "providers": None if terms.providers is None else list(terms.providers),
        **{name: getattr(terms, name) for name in LIMITS},
        "budget": None if terms.budget is None else str(terms.budget),
        "period": None if terms.period is None else terms.period.value,
        "budget_mode": None if terms.budget is None else terms.budget_mode.value,
        "tags": dict(terms.tags),
    }

"""A virtual key as administrators see it: its name, rights and limits, never its secret."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

from gateway.core.budget import BudgetMode, Period
from gateway.core.budget_terms import BudgetRecord, budget_json
from gateway.core.catalogue import Catalogue
from gateway.core.exchange import Role
from gateway.core.fields import (
    FieldError,
    check_amount,
    check_choice,
    check_limit,
    check_moment,
    check_name,
    check_tags,
    check_together,
    checked_fields,
    consistent,
)
from gateway.core.money import Money


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyGrant:
    """What a key is created with. None = no limit; ``models`` and ``providers`` None = all.

    ``budget``, ``period`` and ``budget_mode`` are its first budget.
    """

    name: str
    team: str | None = None
    role: Role = Role.INFERENCE
    models: tuple[str, ...] | None = None
    providers: tuple[str, ...] | None = None
    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None
    budget: Money | None = None
    period: Period | None = None
    budget_mode: BudgetMode = BudgetMode.STRICT
    expires_at: datetime | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


KeyChange = Callable[[KeyGrant], KeyGrant]
"""What an update makes of a key. Raises FieldError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """A key that exists. ``hint`` is the end of its newest secret."""

    key_id: str
    grant: KeyGrant
    hint: str
    created_at: datetime
    revoked_at: datetime | None = None
    budgets: tuple[BudgetRecord, ...] = ()


def check_grant(catalogue: Catalogue, **fields: Any) -> KeyGrant:
    """What an administrator asked for as a grant: ``name``, and any of the fields of ``_CHECKS``, as JSON or options
    have them; models by any of their names. Raises FieldError."""
    check_together(fields.get("budget"), fields.get("period"), fields.get("budget_mode"))
    given = {name: value for name, value in fields.items() if value is not None}
    return KeyGrant(**_as_granted(checked_fields(given, _CHECKS, catalogue)))


def key_change(catalogue: Catalogue, **fields: Any) -> KeyChange:
    """An update of the fields that are given, as they are given to ``check_grant``; None clears. Raises FieldError."""
    if fields.get("name", "") is None:
        raise FieldError("name", "a key has a name; leave it out to keep the one it has.")
    values = _as_granted(checked_fields(fields, _CHECKS, catalogue))
    return lambda grant: replace(grant, **consistent(grant, values))


def _as_granted(values: dict[str, Any]) -> dict[str, Any]:
    """The same under the grant's names."""
    if "expires" in values:
        values["expires_at"] = values.pop("expires")
    return values


_CHECKS: Final[Mapping[str, Callable[[str, Any], Any]]] = {
    "name": check_name,
    "team": check_name,
    "role": lambda name, value: check_choice(name, value, Role),
    "rpm": check_limit,
    "tpm": check_limit,
    "concurrency": check_limit,
    "budget": check_amount,
    "period": lambda name, value: check_choice(name, value, Period),
    "budget_mode": lambda name, value: check_choice(name, value, BudgetMode),
    "expires": check_moment,
    "tags": lambda _, value: check_tags(value),
}


def key_json(record: KeyRecord) -> dict[str, object]:
    """A key under the interface's names."""
    return {
        "id": record.key_id,
        **grant_json(record.grant),
        "budgets": [budget_json(budget) for budget in record.budgets],
        "hint": f"…{record.hint}",
        "created_at": record.created_at.isoformat(),
        "revoked_at": None if record.revoked_at is None else record.revoked_at.isoformat(),
    }


def grant_json(grant: KeyGrant) -> dict[str, object]:
    """What a key may do and spend."""
    return {
        "name": grant.name,
        "team": grant.team,
        "role": grant.role.value,
        "models": None if grant.models is None else list(grant.models),
        "providers": None if grant.providers is None else list(grant.providers),
        "rpm": grant.rpm,
        "tpm": grant.tpm,
        "concurrency": grant.concurrency,
        "budget": None if grant.budget is None else str(grant.budget),
        "period": None if grant.period is None else grant.period.value,
        "budget_mode": None if grant.budget is None else grant.budget_mode.value,
        "expires": None if grant.expires_at is None else grant.expires_at.isoformat(),
        "tags": dict(grant.tags),
    }

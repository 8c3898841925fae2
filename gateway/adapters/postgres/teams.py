"""Teams in PostgreSQL: their terms, how many keys they have, and their budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from gateway.adapters.postgres.budgets import budgets_by_scope, put_first_budget
from gateway.adapters.postgres.changes import Change, Store
from gateway.adapters.postgres.connections import Connection
from gateway.adapters.postgres.sql import statement
from gateway.core.budget import scope_of_team
from gateway.core.budget_terms import BudgetRecord, first_fields, with_first
from gateway.core.fields import FieldError
from gateway.core.grants import Administrator, NotGrantedError, check_budgets, check_team_terms
from gateway.core.teams import LIMITS, TeamChange, TeamRecord, TeamTerms, team_terms_json


class TeamStore(Store):
    """Implements the TeamAdministration port."""

    async def create(self, terms: TeamTerms, *, by: Administrator) -> TeamRecord:
        if by.team is not None:
            raise NotGrantedError("name", f'A key of the team "{by.team}" makes no other teams.')
        async with self._change(by) as change:
            if await find_team(change.db, change.now, terms.name) is not None:
                raise FieldError("name", f'there is a team "{terms.name}" already; change that one.')
            return await create_team(change, terms)

    async def list_teams(self, *, after: str | None, limit: int) -> Sequence[TeamRecord]:
        async with self._connections.transaction() as db:
            return await _teams(db, self._clock.now(), name=None, after=after, limit=limit)

    async def show(self, name: str) -> TeamRecord | None:
        async with self._connections.transaction() as db:
            return await find_team(db, self._clock.now(), name)

    async def update(self, name: str, make: TeamChange, *, by: Administrator) -> TeamRecord | None:
        if by.team not in (None, name):
            return None
        async with self._change(by) as change:
            before = await find_team(change.db, change.now, name)
            if before is None:
                return None
            terms = make(before.terms)
            if terms == before.terms:
                return before
            check_team_terms(by, terms, before.terms)
            check_budgets(
                by, with_first(scope_of_team(name), terms, before.budgets), [each.terms for each in before.budgets]
            )
            facts = team_terms_json(before.terms)
            return await _put(change, terms, budgets=before.budgets, action="team.update", before=facts)


async def create_team(change: Change, terms: TeamTerms) -> TeamRecord:
    """A team that is not there yet."""
    return await _put(change, terms, budgets=(), action="team.create", before=None)


async def find_team(db: Connection, now: datetime, name: str) -> TeamRecord | None:
    found = await _teams(db, now, name=name, after=None, limit=1)
    return found[0] if found else None


async def _put(
    change: Change,
    terms: TeamTerms,
    *,
    budgets: Sequence[BudgetRecord],
    action: str,
    before: dict[str, object] | None,
) -> TeamRecord:
    scope = scope_of_team(terms.name)
    await change.db.execute(statement("put_team"), _values(terms, change.now))
    await put_first_budget(change, scope, terms, budgets)
    await change.record(action, scope, team=terms.name, before=before, after=team_terms_json(terms))
    record = await find_team(change.db, change.now, terms.name)
    assert record is not None
    return record


async def _teams(db: Connection, now: datetime, *, name: str | None, after: str | None, limit: int) -> list[TeamRecord]:
    asked = {"name": name, "after": after, "limit": limit}
    rows = await (await db.execute(statement("teams"), asked)).fetchall()
    budgets = await budgets_by_scope(db, now, [scope_of_team(row["name"]) for row in rows])
    return [_record(row, budgets[scope_of_team(row["name"])]) for row in rows]


def _values(terms: TeamTerms, now: datetime) -> dict[str, object]:
    return {
        "name": terms.name,
        "models": None if terms.models is None else list(terms.models),
        "providers": None if terms.providers is None else list(terms.providers),
        **{name: getattr(terms, name) for name in LIMITS},
        "tags": Jsonb(dict(terms.tags)),
        "now": now,
    }


def _record(row: Mapping[str, Any], budgets: tuple[BudgetRecord, ...]) -> TeamRecord:
    terms = TeamTerms(
        name=row["name"],
        models=None if row["models"] is None else tuple(row["models"]),
        providers=None if row["providers"] is None else tuple(row["providers"]),
        **{name: row[name] for name in LIMITS},
        **first_fields(budgets),
        tags=row["tags"],
    )
    return TeamRecord(terms=terms, created_at=row["created_at"], keys=row["keys"], budgets=budgets)

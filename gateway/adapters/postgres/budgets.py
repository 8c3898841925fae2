"""Budgets in PostgreSQL: one limit for each scope and period, beside what its window has posted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from gateway.adapters.postgres.changes import Change, Store
from gateway.adapters.postgres.connections import Connection
from gateway.adapters.postgres.sql import statement
from gateway.core.budget import ORGANISATION, BudgetMode, OnOutage, Period, window_of
from gateway.core.budget_terms import BudgetRecord, BudgetTerms, FirstBudget, first_terms, terms_json, with_terms
from gateway.core.grants import Administrator, NotGrantedError, check_budgets
from gateway.core.money import Money


class BudgetStore(Store):
    """Implements the BudgetAdministration port."""

    async def list_budgets(
        self,
        *,
        after: tuple[str, str] | None,
        limit: int,
        scope: str | None = None,
        team: str | None = None,
    ) -> Sequence[BudgetRecord]:
        scopes = None if scope is None else [scope]
        async with self._connections.transaction() as db:
            return await _budgets(db, self._clock.now(), scopes=scopes, team=team, after=after, limit=limit)

    async def put(self, terms: BudgetTerms, *, by: Administrator) -> BudgetRecord | None:
        async with self._change(by) as change:
            owner = await _owner(change, terms.scope)
            if owner is None:
                return None
            records = await budgets_of(change.db, change.now, [terms.scope])
            check_budgets(by, with_terms(records, terms), [record.terms for record in records])
            before = _of_period(records, terms.period)
            await put_budget(change.db, terms, change.now)
            if before is None or before.terms != terms:
                await _tell(change, "budget.set", terms, team=owner, before=before, after=terms)
            return _of_period(await budgets_of(change.db, change.now, [terms.scope]), terms.period)

    async def remove(self, scope: str, period: Period, *, by: Administrator) -> BudgetRecord | None:
        async with self._change(by) as change:
            owner = await _owner(change, scope)
            records = [] if owner is None else await budgets_of(change.db, change.now, [scope])
            before = _of_period(records, period)
            if owner is None or before is None:
                return None
            rest = [record.terms for record in records if record is not before]
            check_budgets(by, rest, [record.terms for record in records])
            await _delete(change.db, scope, period)
            await _tell(change, "budget.remove", before.terms, team=owner, before=before, after=None)
            return before


async def budgets_of(db: Connection, now: datetime, scopes: Sequence[str]) -> list[BudgetRecord]:
    """Every budget of these scopes."""
    return await _budgets(db, now, scopes=list(scopes), team=None, after=None, limit=None)


async def budgets_by_scope(
    db: Connection, now: datetime, scopes: Sequence[str]
) -> Mapping[str, tuple[BudgetRecord, ...]]:
    """Every budget of these scopes, by scope."""
    found: defaultdict[str, tuple[BudgetRecord, ...]] = defaultdict(tuple)
    for record in await budgets_of(db, now, scopes):
        found[record.terms.scope] += (record,)
    return found


async def put_first_budget(change: Change, scope: str, wanted: FirstBudget, records: Sequence[BudgetRecord]) -> None:
    """Makes the first budget of a scope what its key's or team's own fields say."""
    first, terms = first_terms(scope, wanted, records)
    if first is not None and (terms is None or terms.period is not first.terms.period):
        await _delete(change.db, scope, first.terms.period)
    if terms is not None:
        await put_budget(change.db, terms, change.now if first is None else first.created_at)


async def put_budget(db: Connection, terms: BudgetTerms, created_at: datetime) -> None:
    values = {
        "scope": terms.scope,
        "period": terms.period.value,
        "limit_pico": terms.limit.pico,
        "mode": terms.mode.value,
        "on_outage": terms.on_outage.value,
        "alert_at": list(terms.alert_at),
        "created_at": created_at,
    }
    await db.execute(statement("put_budget"), values)


async def _delete(db: Connection, scope: str, period: Period) -> None:
    await db.execute("DELETE FROM budgets WHERE scope = %s AND period = %s", (scope, period.value))


async def _owner(change: Change, scope: str) -> str | None:
    """The team whose scope it is, "" for nobody's; None for a scope that does not exist for who asks. Raises
    NotGrantedError for a tenant that asks for the organisation's."""
    asked = BudgetTerms(scope=scope, period=Period.TOTAL, limit=Money(0))
    if scope == ORGANISATION:
        if change.by.team is not None:
            raise NotGrantedError("organisation", "The organisation's budgets are not for a key with a team to change.")
        return ""
    if asked.key_id is not None:
        query, name = "SELECT team FROM api_keys WHERE key_id = %s AND revoked_at IS NULL", asked.key_id
    else:
        query, name = "SELECT name AS team FROM teams WHERE name = %s", asked.team or ""
    row = await (await change.db.execute(query, (name,))).fetchone()
    if row is None or change.by.team not in (None, row["team"]):
        return None
    return row["team"] or ""


async def _tell(
    change: Change,
    action: str,
    terms: BudgetTerms,
    *,
    team: str,
    before: BudgetRecord | None,
    after: BudgetTerms | None,
) -> None:
    await change.record(
        action,
        f"{terms.scope}/{terms.period.value}",
        team=team or None,
        before=None if before is None else terms_json(before.terms),
        after=None if after is None else terms_json(after),
    )


def _of_period(records: Sequence[BudgetRecord], period: Period) -> BudgetRecord | None:
    return next((record for record in records if record.terms.period is period), None)


async def _budgets(
    db: Connection,
    now: datetime,
    *,
    scopes: list[str] | None,
    team: str | None,
    after: tuple[str, str] | None,
    limit: int | None,
) -> list[BudgetRecord]:
    after_scope, after_period = after or (None, None)
    asked = {"scopes": scopes, "team": team, "after_scope": after_scope, "after_period": after_period, "limit": limit}
    rows = await (await db.execute(statement("budgets"), asked)).fetchall()
    records = [_record(row) for row in rows]
    windows = [
        window_of(each.terms.scope, each.terms.period, now, row["time_zone"])
        for each, row in zip(records, rows, strict=True)
    ]
    spent: defaultdict[str, int] = defaultdict(int)
    if windows:
        bounds = {
            "keys": [window.key for window in windows],
            "scopes": [window.scope for window in windows],
            "first_days": [window.first_day for window in windows],
            "until_days": [window.until_day for window in windows],
        }
        for row in await (await db.execute(statement("balances"), bounds)).fetchall():
            spent[row["key"]] += int(row["posted_pico"])
    return [
        replace(each, spent=Money(spent[window.key]), resets_at=window.ends_at)
        for each, window in zip(records, windows, strict=True)
    ]


def _record(row: Mapping[str, Any]) -> BudgetRecord:
    terms = BudgetTerms(
        scope=row["scope"],
        period=Period(row["period"]),
        limit=Money(int(row["limit_pico"])),
        mode=BudgetMode(row["mode"]),
        on_outage=OnOutage(row["on_outage"]),
        alert_at=tuple(row["alert_at"]),
    )
    return BudgetRecord(budget_id=row["budget_id"], terms=terms, created_at=row["created_at"], team=row["team"])

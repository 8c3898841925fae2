"""Virtual keys in PostgreSQL, as administrators change them: only digests of secrets are kept."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from psycopg.types.json import Jsonb

from gateway.adapters.postgres.budgets import budgets_by_scope, put_first_budget
from gateway.adapters.postgres.changes import Change, Store
from gateway.adapters.postgres.connections import Connection
from gateway.adapters.postgres.sql import statement
from gateway.adapters.postgres.teams import create_team, find_team
from gateway.core.budget import scope_of_key
from gateway.core.budget_terms import BudgetRecord, first_fields, with_first
from gateway.core.exchange import Role
from gateway.core.grants import Administrator, check_budgets, check_key, check_spending, placed
from gateway.core.keys import KeyChange, KeyGrant, KeyRecord, grant_json
from gateway.core.teams import TeamTerms

_ADD_DIGEST: Final = "INSERT INTO api_key_secrets (digest, key_id, hint, created_at) VALUES (%s, %s, %s, %s)"
_END_SECRETS: Final = (
    "UPDATE api_key_secrets SET expires_at = least(coalesce(expires_at, 'infinity'), %s) WHERE key_id = %s"
)
_REVOKE: Final = "UPDATE api_keys SET revoked_at = %s WHERE key_id = %s"


class KeyStore(Store):
    """Implements the KeyAdministration port."""

    async def create(self, grant: KeyGrant, *, digest: bytes, hint: str, by: Administrator) -> tuple[KeyRecord, bool]:
        grant = placed(by, grant)
        async with self._change(by) as change:
            team, team_created = await _team_made(change, grant.team)
            key_id = f"key_{int(change.now.timestamp() * 1000):012x}{os.urandom(6).hex()}"
            scope = scope_of_key(key_id)
            check_key(by, grant, team)
            check_spending(by, with_first(scope, grant, ()))
            await change.db.execute(statement("insert_key"), _values(key_id, grant, change.now))
            await put_first_budget(change, scope, grant, ())
            await change.db.execute(_ADD_DIGEST, (digest, key_id, hint, change.now))
            await change.record("key.create", scope, team=grant.team, before=None, after=grant_json(grant))
            return await _existing(change, key_id), team_created

    async def list_keys(self, *, after: str | None, limit: int, team: str | None = None) -> Sequence[KeyRecord]:
        async with self._connections.transaction() as db:
            return await _keys(db, self._clock.now(), after=after, limit=limit, team=team)

    async def show(self, key: str, *, team: str | None = None) -> KeyRecord | None:
        async with self._connections.transaction() as db:
            now = self._clock.now()
            found = await _keys(db, now, key_id=key, team=team) or await _keys(db, now, name=key, team=team, limit=2)
            return found[0] if len(found) == 1 else None

    async def update(self, key_id: str, make: KeyChange, *, by: Administrator) -> KeyRecord | None:
        async with self._change(by) as change:
            before = await _active(change, key_id)
            if before is None:
                return None
            grant, scope = make(before.grant), scope_of_key(key_id)
            if grant == before.grant:
                return before
            check_key(by, grant, await _terms(change, grant.team), before=before.grant)
            check_budgets(by, with_first(scope, grant, before.budgets), [each.terms for each in before.budgets])
            await change.db.execute(statement("update_key"), _values(key_id, grant, change.now))
            await put_first_budget(change, scope, grant, before.budgets)
            facts = {"before": grant_json(before.grant), "after": grant_json(grant)}
            await change.record("key.update", scope, team=grant.team, **facts)
            return await _existing(change, key_id)

    async def revoke(self, key_id: str, *, by: Administrator) -> KeyRecord | None:
        async with self._change(by) as change:
            before = await _visible(change, key_id)
            if before is None or before.revoked_at is not None:
                return before
            await change.db.execute(_REVOKE, (change.now, key_id))
            facts: dict[str, dict[str, object]] = {
                "before": {"revoked_at": None},
                "after": {"revoked_at": change.now.isoformat()},
            }
            await change.record("key.revoke", scope_of_key(key_id), team=before.grant.team, **facts)
            return await _existing(change, key_id)

    async def rotate(
        self, key_id: str, *, digest: bytes, hint: str, grace: timedelta, by: Administrator
    ) -> KeyRecord | None:
        async with self._change(by) as change:
            record = await _active(change, key_id)
            if record is None:
                return None
            # Whoever is handed a key's secret is granted what that key may do.
            check_key(by, record.grant, await _terms(change, record.grant.team))
            check_spending(by, [each.terms for each in record.budgets])
            ends_at = change.now + grace
            await change.db.execute(_END_SECRETS, (ends_at, key_id))
            await change.db.execute(_ADD_DIGEST, (digest, key_id, hint, change.now))
            facts = {"old_secrets_end_at": ends_at.isoformat()}
            await change.record("key.rotate", scope_of_key(key_id), team=record.grant.team, before=None, after=facts)
            return await _existing(change, key_id)


async def _team_made(change: Change, name: str | None) -> tuple[TeamTerms | None, bool]:
    """The terms of a key's team, which is made if it does not exist yet; and whether it was."""
    if name is None:
        return None, False
    found = await find_team(change.db, change.now, name)
    if found is not None:
        return found.terms, False
    return (await create_team(change, TeamTerms(name=name))).terms, True


async def _terms(change: Change, team: str | None) -> TeamTerms | None:
    found = None if team is None else await find_team(change.db, change.now, team)
    return None if found is None else found.terms


async def _visible(change: Change, key_id: str) -> KeyRecord | None:
    """A key of the administrator's tenant."""
    found = await _keys(change.db, change.now, key_id=key_id, team=change.by.team)
    return found[0] if found else None


async def _active(change: Change, key_id: str) -> KeyRecord | None:
    record = await _visible(change, key_id)
    return None if record is None or record.revoked_at is not None else record


async def _existing(change: Change, key_id: str) -> KeyRecord:
    (record,) = await _keys(change.db, change.now, key_id=key_id)
    return record


async def _keys(
    db: Connection,
    now: datetime,
    *,
    key_id: str | None = None,
    name: str | None = None,
    after: str | None = None,
    team: str | None = None,
    limit: int = 1,
) -> list[KeyRecord]:
    asked = {"key_id": key_id, "name": name, "after": after, "team": team, "limit": limit}
    rows = await (await db.execute(statement("keys"), asked)).fetchall()
    budgets = await budgets_by_scope(db, now, [scope_of_key(row["key_id"]) for row in rows])
    return [_record(row, budgets[scope_of_key(row["key_id"])]) for row in rows]


def _values(key_id: str, grant: KeyGrant, now: datetime) -> dict[str, object]:
    return {
        "key_id": key_id,
        "name": grant.name,
        "team": grant.team,
        "role": grant.role.value,
        "models": None if grant.models is None else list(grant.models),
        "providers": None if grant.providers is None else list(grant.providers),
        "rpm": grant.rpm,
        "tpm": grant.tpm,
        "concurrency": grant.concurrency,
        "tags": Jsonb(dict(grant.tags)),
        "now": now,
        "expires_at": grant.expires_at,
    }


def _record(row: Mapping[str, Any], budgets: tuple[BudgetRecord, ...]) -> KeyRecord:
    grant = KeyGrant(
        name=row["name"],
        team=row["team"],
        role=Role(row["role"]),
        models=None if row["models"] is None else tuple(row["models"]),
        providers=None if row["providers"] is None else tuple(row["providers"]),
        rpm=row["rpm"],
        tpm=row["tpm"],
        concurrency=row["concurrency"],
        **first_fields(budgets),
        expires_at=row["expires_at"],
        tags=row["tags"],
    )
    return KeyRecord(
        key_id=row["key_id"],
        grant=grant,
        hint=row["hint"],
        created_at=row["created_at"],
        revoked_at=row["revoked_at"],
        budgets=budgets,
    )

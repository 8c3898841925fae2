"""Virtual keys are looked up by digest and found from memory, and forgotten within a second of a change.

Every change of a key or team moves one counter; a worker looks at it twice a second and asks again for what it knew
before. While the database is away, what was known goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import psycopg

from gateway.adapters.postgres.connections import WAIT_SECONDS_MAX, Connections
from gateway.adapters.postgres.sql import statement
from gateway.core.budget import ORGANISATION, Budget, BudgetMode, OnOutage, Period, scope_of_key, scope_of_team
from gateway.core.exchange import Principal, Role
from gateway.core.limits import RateLimits
from gateway.core.money import Money
from gateway.pipeline.ports import Clock, StoreUnavailableError

log = logging.getLogger(__name__)

CACHED_KEYS_MAX: Final = 100_000
CACHED_STRANGERS_MAX: Final = 10_000
POLL_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class _Known:
    """What was looked up: the holder, or None for a digest that means nothing; and when that was true."""

    principal: Principal | None
    version: int


class PostgresApiKeys:
    """Implements the ApiKeys port with a bounded memory of what was asked before."""

    def __init__(
        self,
        database_url: str,
        *,
        clock: Clock,
        holders_max: int = CACHED_KEYS_MAX,
        strangers_max: int = CACHED_STRANGERS_MAX,
        wait_seconds_max: float = WAIT_SECONDS_MAX,
    ) -> None:
        self._connections = Connections(database_url, wait_seconds_max=wait_seconds_max)
        self._clock = clock
        self._holders_max = holders_max
        self._strangers_max = strangers_max
        self._version = 0
        self._counted: int | None = None
        self._is_away = False  # as far as the last question showed
        self._is_watched = False  # by `run`, which notices when the database is back
        self._holders: OrderedDict[bytes, _Known] = OrderedDict()
        self._strangers: OrderedDict[bytes, _Known] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[_Known]] = {}

    async def find(self, digest: bytes) -> Principal | None:
        known = self._holders.get(digest)
        if known is not None:
            self._holders.move_to_end(digest)
        else:
            known = self._strangers.get(digest)
        if known is None or known.version != self._version:
            known = await self._ask(digest, known)
        principal = known.principal
        if principal is None or (principal.expires_at is not None and self._clock.now() >= principal.expires_at):
            return None
        return principal

    async def _ask(self, digest: bytes, before: _Known | None) -> _Known:
        """Asks once for all who want to know the same; nobody waits for a database that is known to be away."""
        if self._is_away and before is not None and before.principal is not None:
            return before
        if self._is_away and self._is_watched:
            raise StoreUnavailableError("the database is away")
        asking = self._asking.get(digest)
        if asking is None:
            asking = asyncio.create_task(self._look_up(digest), name="key-look-up")
            self._asking[digest] = asking
            asking.add_done_callback(lambda asked: self._asked(digest, asked))
        try:
            return await asyncio.shield(asking)  # one caller's hang-up is not the others'
        except StoreUnavailableError:
            if before is not None and before.principal is not None:
                return before
            raise

    def _asked(self, digest: bytes, asked: asyncio.Task[_Known]) -> None:
        del self._asking[digest]
        if not asked.cancelled():
            asked.exception()  # seen, also when all who wanted to know have gone

    async def _look_up(self, digest: bytes) -> _Known:
        version = self._version
        try:
            async with self._connections.transaction() as db:
                row = await (await db.execute(statement("find_key"), (digest,))).fetchone()
        except StoreUnavailableError:
            self._is_away = True
            raise
        self._is_away = False
        known = _Known(None if row is None else _principal(row), version)
        self._holders.pop(digest, None)
        self._strangers.pop(digest, None)
        memory, most = (self._strangers, self._strangers_max) if row is None else (self._holders, self._holders_max)
        memory[digest] = known
        if len(memory) > most:
            memory.popitem(last=False)
        return known

    async def refresh(self) -> None:
        """Looks at the counter of changes: after this, what has changed is asked again. Raises
        StoreUnavailableError."""
        try:
            async with self._connections.transaction() as db:
                row = await (await db.execute("SELECT version FROM key_changes")).fetchone()
        except StoreUnavailableError:
            self._is_away = True
            raise
        self._is_away = False
        if row is not None and row["version"] != self._counted:
            self._counted = row["version"]
            self._version += 1

    async def run(self, stop: asyncio.Event) -> None:
        """Refreshes twice a second until ``stop``; while the database is away, what is known stays."""
        was_away, self._is_watched = False, True
        while not stop.is_set():
            try:
                await self.refresh()
                was_away = False
            except (StoreUnavailableError, psycopg.Error) as error:
                if not was_away:
                    log.warning("keys cannot be looked up; those already known go on: %s", error)
                was_away = True
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), POLL_SECONDS)
        self._is_watched = False
        await self.close()

    async def close(self) -> None:
        await self._connections.close()


def _principal(row: Mapping[str, Any]) -> Principal:
    """A key's holder, with what its team adds: no more models and providers, common limits, budgets, tags."""
    key_id, team = row["key_id"], row["team"]
    names = {scope_of_key(key_id): f'key "{row["name"]}"', ORGANISATION: "organisation"}
    limits = [RateLimits(scope=scope_of_key(key_id), name=names[scope_of_key(key_id)], **_rates(row, ""))]
    if team is not None:
        scope = scope_of_team(team)
        names[scope] = f'team "{team}"'
        limits.append(RateLimits(scope=scope, name=names[scope], **_rates(row, "team_")))
    budgets = [
        Budget(
            budget_id=each["budget_id"],
            scope=each["scope"],
            name=names[each["scope"]],
            period=Period(each["period"]),
            limit=Money(int(each["limit_pico"])),
            mode=BudgetMode(each["mode"]),
            on_outage=OnOutage(each["on_outage"]),
            alert_at=tuple(each["alert_at"]),
            time_zone=row["time_zone"],
        )
        for each in row["budgets"]
    ]
    return Principal(
        key_id=key_id,
        key_name=row["name"],
        team=team,
        role=Role(row["role"]),
        models=_both(row["models"], row["team_models"]),
        providers=_both(row["providers"], row["team_providers"]),
        tags={**(row["team_tags"] or {}), **row["tags"]},
        expires_at=row["expires_at"],
        limits=tuple(each for each in limits if not each.are_none),
        budgets=tuple(sorted(budgets, key=lambda budget: (list(names).index(budget.scope), budget.period))),
        time_zone=row["time_zone"],
    )


def _rates(row: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name: row[prefix + name] for name in ("rpm", "tpm", "concurrency")}


def _both(own: Sequence[str] | None, team: Sequence[str] | None) -> frozenset[str] | None:
    """What the key and its team both allow; None = all."""
    if own is None or team is None:
        allowed = own if team is None else team
        return None if allowed is None else frozenset(allowed)
    return frozenset(own) & frozenset(team)

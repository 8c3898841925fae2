"""The ports in memory: a second implementation that keeps the same promises for as long as the process lives.

For tests and simulations. What a test wants to go wrong it says beforehand (``refuses``, ``is_away``); what it wants
to know afterwards it reads from public attributes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from gateway.core.allowance import Balance
from gateway.core.budget import BudgetWindow
from gateway.core.exchange import Principal
from gateway.core.ledger import Intent, LedgerEntry, PlanRecord, Progress, Record
from gateway.pipeline.ports import Clock, MeteringUnavailableError, Sighting, StoreUnavailableError


class MemoryJournal:
    """The port ``Journal``. ``refuses``: the disk is full; ``is_stuck``: syncs fail while this is set."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.durable_count = 0
        self.refuses = False
        self.is_stuck = False

    @property
    def available(self) -> bool:
        return not (self.refuses or self.is_stuck)

    def append(self, record: Record) -> int:
        if self.refuses and isinstance(record, Intent | PlanRecord):
            raise MeteringUnavailableError("the journal takes no records")
        self.records.append(record)
        return len(self.records)

    async def durable(self, position: int) -> None:
        assert position <= len(self.records)
        if position <= self.durable_count:
            return
        reached = len(self.records)
        await asyncio.sleep(0)
        if self.refuses or self.is_stuck:
            raise MeteringUnavailableError("the journal does not reach the disk")
        self.durable_count = max(self.durable_count, reached)

    def entries(self) -> list[LedgerEntry]:
        return [record for record in self.records if isinstance(record, LedgerEntry)]

    def intents(self) -> list[Intent]:
        return [record for record in self.records if isinstance(record, Intent)]

    def progress(self) -> list[Progress]:
        return [record for record in self.records if isinstance(record, Progress)]

    def plans(self) -> list[PlanRecord]:
        return [record for record in self.records if isinstance(record, PlanRecord)]

    def lose_power(self) -> None:
        """What was not durable is gone."""
        del self.records[self.durable_count :]


@dataclass(slots=True)
class MemoryBalances:
    """The port ``Balances``: what tests say has been posted, by window and journal. ``is_away``: cannot be asked."""

    posted: dict[str, dict[str, Balance]] = field(default_factory=dict)
    moves: set[tuple[str, str]] = field(default_factory=set)
    is_away: bool = False

    async def of(self, windows: Sequence[BudgetWindow]) -> Mapping[str, Mapping[str, Balance]]:
        self._check()
        return {window.key: dict(self.posted[window.key]) for window in windows if window.key in self.posted}

    async def moved(self, *, seconds: float, but: str) -> frozenset[str]:  # noqa: ARG002 - moves stay until cleared
        self._check()
        return frozenset(scope for scope, journal_id in self.moves if journal_id != but)

    def tell(self, window: BudgetWindow, journal_id: str, balance: Balance) -> None:
        """Somebody's journal has posted so much in a window."""
        self.posted.setdefault(window.key, {})[journal_id] = balance
        self.moves.add((window.scope, journal_id))

    def _check(self) -> None:
        if self.is_away:
            raise StoreUnavailableError("the database is away")


@dataclass(slots=True)
class MemorySharedState:
    """The port ``SharedState``. ``live``: who said so and has not left. ``is_away``: cannot be asked."""

    generation: int = 0
    live: set[str] = field(default_factory=set)
    is_away: bool = False

    async def seen(self, worker_id: str) -> Sighting:
        self._check()
        self.live.add(worker_id)
        return Sighting(self.generation, frozenset(self.live))

    async def next_generation(self, *, after: int, above: int) -> int | None:
        self._check()
        if self.generation != after:
            return None
        self.generation = max(self.generation, above) + 1
        return self.generation

    async def leave(self, worker_id: str) -> None:
        self._check()
        self.live.discard(worker_id)

    def _check(self) -> None:
        if self.is_away:
            raise StoreUnavailableError("the database is away")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Secret:
    key_id: str
    expires_at: datetime | None


@dataclass(slots=True)
class MemoryApiKeys:
    """The port ``ApiKeys``. ``is_away``: the store cannot be asked; keys found before are still known."""

    clock: Clock
    is_away: bool = False
    _keys: dict[str, Principal] = field(default_factory=dict)
    _secrets: dict[bytes, _Secret] = field(default_factory=dict)
    _found: set[bytes] = field(default_factory=set)

    async def find(self, digest: bytes) -> Principal | None:
        if self.is_away and digest not in self._found:
            raise StoreUnavailableError("the key store is away")
        secret = self._secrets.get(digest)
        if secret is None:
            return None
        principal = self._keys.get(secret.key_id)
        if principal is None:
            return None
        self._found.add(digest)
        ends = [moment for moment in (principal.expires_at, secret.expires_at) if moment is not None]
        if ends and self.clock.now() >= min(ends):
            return None
        return principal

    def add(self, digest: bytes, principal: Principal) -> None:
        """A new key with its first secret."""
        assert digest not in self._secrets
        self._keys[principal.key_id] = principal
        self._secrets[digest] = _Secret(key_id=principal.key_id, expires_at=None)

    def rotate(self, key_id: str, digest: bytes, *, old_until: datetime) -> None:
        """A second secret for a key; the others end at ``old_until``."""
        for known, secret in self._secrets.items():
            if secret.key_id == key_id:
                ends = old_until if secret.expires_at is None else min(secret.expires_at, old_until)
                self._secrets[known] = replace(secret, expires_at=ends)
        self._secrets[digest] = _Secret(key_id=key_id, expires_at=None)

    def revoke(self, key_id: str) -> None:
        """The key is unknown from now on."""
        del self._keys[key_id]

    def principals(self) -> Mapping[str, Principal]:
        return dict(self._keys)

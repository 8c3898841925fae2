"""One suite for the port ApiKeys: keys in memory and keys in PostgreSQL answer alike."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol

import psycopg
import pytest

from gateway.adapters.memory import MemoryApiKeys
from gateway.adapters.postgres.administration import PostgresAdministration
from gateway.adapters.postgres.keys import PostgresApiKeys
from gateway.core.exchange import Principal, Role
from gateway.core.grants import COMMAND_LINE
from gateway.core.keys import KeyGrant
from gateway.pipeline.ports import ApiKeys

T0 = datetime(2025, 11, 22, 10, 0, tzinfo=UTC)
WAIT_SECONDS_MAX = 20


class SteppedClock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.at = T0

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return (self.at - T0).total_seconds()


class Keyring(Protocol):
    """What a test does to keys, whatever holds them."""

    keys: ApiKeys

    async def add(self, digest: bytes, grant: KeyGrant) -> str: ...
    async def rotate(self, key_id: str, digest: bytes, grace: timedelta) -> None: ...
    async def revoke(self, key_id: str) -> None: ...


class MemoryKeyring:
    """Keys in memory."""

    def __init__(self, clock: SteppedClock) -> None:
        self.keys = MemoryApiKeys(clock)
        self._clock = clock

    async def add(self, digest: bytes, grant: KeyGrant) -> str:
        key_id = f"key_{len(self.keys.principals())}"
        principal = Principal(
            key_id=key_id,
            key_name=grant.name,
            team=grant.team,
            role=grant.role,
            models=None if grant.models is None else frozenset(grant.models),
            providers=None if grant.providers is None else frozenset(grant.providers),
            tags=grant.tags,
            expires_at=grant.expires_at,
        )
        self.keys.add(digest, principal)
        return key_id

    async def rotate(self, key_id: str, digest: bytes, grace: timedelta) -> None:
        self.keys.rotate(key_id, digest, old_until=self._clock.now() + grace)

    async def revoke(self, key_id: str) -> None:
        self.keys.revoke(key_id)


class PostgresKeyring:
    """Keys in PostgreSQL, changed by another process than the one that looks them up."""

    def __init__(self, url: str, clock: SteppedClock) -> None:
        self.keys = PostgresApiKeys(url, clock=clock)
        self._administration = PostgresAdministration(url, clock=clock)
        self._store = self._administration.keys

    async def add(self, digest: bytes, grant: KeyGrant) -> str:
        record, _ = await self._store.create(grant, digest=digest, hint="abcd", by=COMMAND_LINE)
        await self.keys.refresh()
        return record.key_id

    async def rotate(self, key_id: str, digest: bytes, grace: timedelta) -> None:
        await self._store.rotate(key_id, digest=digest, hint="abcd", grace=grace, by=COMMAND_LINE)
        await self.keys.refresh()

    async def revoke(self, key_id: str) -> None:
        await self._store.revoke(key_id, by=COMMAND_LINE)
        await self.keys.refresh()

    async def close(self) -> None:
        await self._administration.close()
        await self.keys.close()


Scenario = Callable[[Keyring], Awaitable[None]]
Play = Callable[[Scenario], None]


def digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


@pytest.fixture
def clock() -> SteppedClock:
    return SteppedClock()


@pytest.fixture(params=["memory", pytest.param("postgres", marks=pytest.mark.integration)])
def play(request: pytest.FixtureRequest, clock: SteppedClock) -> Play:
    """Runs a scenario against one of the implementations."""
    url: str | None = request.getfixturevalue("database_url") if request.param == "postgres" else None

    async def run(scenario: Scenario) -> None:
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            if url is None:
                await scenario(MemoryKeyring(clock))
                return
            keyring = PostgresKeyring(url, clock)
            try:
                await scenario(keyring)
            finally:
                await keyring.close()

    return lambda scenario: asyncio.run(run(scenario))


def test_a_key_is_found_with_all_its_rights(play: Play) -> None:
    """The principal carries name, team, role, models, providers, tags and expiry."""

    async def scenario(keyring: Keyring) -> None:
        ends = T0 + timedelta(days=1)
        grant = KeyGrant(
            name="ci",
            team="blue",
            role=Role.FINANCE,
            models=("a", "b"),
            providers=("p",),
            tags={"env": "x"},
            expires_at=ends,
        )
        key_id = await keyring.add(digest("one"), grant)
        found = await keyring.keys.find(digest("one"))
        assert found == Principal(
            key_id=key_id,
            key_name="ci",
            team="blue",
            role=Role.FINANCE,
            models=frozenset({"a", "b"}),
            providers=frozenset({"p"}),
            tags={"env": "x"},
            expires_at=ends,
        )

    play(scenario)


def test_a_key_without_limits_may_everything(play: Play) -> None:
    """None is not the empty list: no list of models means all of them, an empty one none."""

    async def scenario(keyring: Keyring) -> None:
        await keyring.add(digest("all"), KeyGrant(name="all"))
        await keyring.add(digest("none"), KeyGrant(name="none", models=(), providers=()))
        found = await keyring.keys.find(digest("all"))
        assert found is not None
        assert (found.models, found.providers, found.team, found.expires_at) == (None, None, None, None)
        found = await keyring.keys.find(digest("none"))
        assert found is not None
        assert (found.models, found.providers) == (frozenset(), frozenset())

    play(scenario)


def test_an_unknown_key_is_nobody_until_it_is_made(play: Play) -> None:
    """That a digest meant nothing a moment ago is not held against a key made since."""

    async def scenario(keyring: Keyring) -> None:
        assert await keyring.keys.find(digest("one")) is None
        await keyring.add(digest("one"), KeyGrant(name="one"))
        assert await keyring.keys.find(digest("one")) is not None

    play(scenario)


def test_a_revoked_key_is_nobody(play: Play) -> None:
    """Revoking ends a key that is in use."""

    async def scenario(keyring: Keyring) -> None:
        key_id = await keyring.add(digest("one"), KeyGrant(name="one"))
        await keyring.add(digest("two"), KeyGrant(name="two"))
        assert await keyring.keys.find(digest("one")) is not None
        await keyring.revoke(key_id)
        assert await keyring.keys.find(digest("one")) is None
        assert await keyring.keys.find(digest("two")) is not None

    play(scenario)


def test_a_key_ends_at_its_expiry_and_not_before(play: Play, clock: SteppedClock) -> None:
    """The moment itself is already too late, also for a key that was found before."""

    async def scenario(keyring: Keyring) -> None:
        await keyring.add(digest("one"), KeyGrant(name="one", expires_at=T0 + timedelta(hours=1)))
        clock.at = T0 + timedelta(minutes=59, seconds=59)
        assert await keyring.keys.find(digest("one")) is not None
        clock.at = T0 + timedelta(hours=1)
        assert await keyring.keys.find(digest("one")) is None

    play(scenario)


def test_a_rotated_key_has_two_secrets_for_the_grace(play: Play, clock: SteppedClock) -> None:
    """Old and new lead to the same key; then the old one ends; a second rotation does not lengthen the first."""

    async def scenario(keyring: Keyring) -> None:
        key_id = await keyring.add(digest("old"), KeyGrant(name="one"))
        await keyring.rotate(key_id, digest("new"), timedelta(hours=1))
        old, new = await keyring.keys.find(digest("old")), await keyring.keys.find(digest("new"))
        assert old is not None
        assert new is not None
        assert old.key_id == new.key_id == key_id
        await keyring.rotate(key_id, digest("newer"), timedelta(hours=9))
        clock.at = T0 + timedelta(hours=1)
        assert await keyring.keys.find(digest("old")) is None
        assert await keyring.keys.find(digest("new")) is not None
        clock.at = T0 + timedelta(hours=9)
        assert await keyring.keys.find(digest("new")) is None
        assert await keyring.keys.find(digest("newer")) is not None

    play(scenario)


def test_a_rotation_without_grace_ends_the_old_secret_at_once(play: Play) -> None:
    """A leaked secret must be able to stop now."""

    async def scenario(keyring: Keyring) -> None:
        key_id = await keyring.add(digest("old"), KeyGrant(name="one"))
        assert await keyring.keys.find(digest("old")) is not None
        await keyring.rotate(key_id, digest("new"), timedelta(0))
        assert await keyring.keys.find(digest("old")) is None
        assert await keyring.keys.find(digest("new")) is not None

    play(scenario)


def test_no_secret_and_no_digest_prefix_finds_a_key(play: Play) -> None:
    """Only the whole digest will do."""

    async def scenario(keyring: Keyring) -> None:
        await keyring.add(digest("one"), KeyGrant(name="one"))
        assert await keyring.keys.find(digest("one")[:31] + b"\0") is None
        assert await keyring.keys.find(b"") is None

    play(scenario)


@pytest.mark.integration
def test_a_table_of_keys_holds_no_secret(database_url: str, clock: SteppedClock) -> None:
    """L13: what is stored of a secret is its digest and four characters."""

    async def scenario() -> None:
        keyring = PostgresKeyring(database_url, clock)
        await keyring.add(digest("kgw_secret"), KeyGrant(name="one"))
        await keyring.close()

    asyncio.run(scenario())
    with psycopg.connect(database_url) as db:
        rows = db.execute("SELECT s::text, k::text FROM api_key_secrets s, api_keys k").fetchall()
    assert rows
    assert "kgw_" not in str(rows)

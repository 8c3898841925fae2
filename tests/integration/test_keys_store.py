"""Keys in PostgreSQL: administration, and looking keys up while the database is slow, changing or away."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from gateway.adapters.postgres.administration import PostgresAdministration
from gateway.adapters.postgres.key_store import KeyStore
from gateway.adapters.postgres.keys import PostgresApiKeys
from gateway.core.budget import Period
from gateway.core.exchange import Principal, Role
from gateway.core.grants import COMMAND_LINE
from gateway.core.keys import KeyGrant
from gateway.core.money import Money
from gateway.pipeline.ports import StoreUnavailableError
from tests.integration.lines import Line

pytestmark = pytest.mark.integration

T0 = datetime(2025, 11, 22, 10, 0, tzinfo=UTC)
WAIT_SECONDS_MAX = 30


class StillClock:
    """A clock that stands at ``at``."""

    at = T0

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return 0.0


@pytest.fixture
def db(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def with_store(url: str, scenario: Callable[[KeyStore], Awaitable[None]]) -> None:
    async def run() -> None:
        administration = PostgresAdministration(url, clock=StillClock())
        try:
            async with asyncio.timeout(WAIT_SECONDS_MAX):
                await scenario(administration.keys)
        finally:
            await administration.close()

    asyncio.run(run())


def with_keys(url: str, scenario: Callable[[PostgresApiKeys, KeyStore], Awaitable[None]], **bounds: int) -> None:
    async def run() -> None:
        keys = PostgresApiKeys(url, clock=StillClock(), **bounds)
        administration = PostgresAdministration(url, clock=StillClock())
        try:
            async with asyncio.timeout(WAIT_SECONDS_MAX):
                await scenario(keys, administration.keys)
        finally:
            await administration.close()
            await keys.close()

    asyncio.run(run())


async def until(
    look: Callable[[], Awaitable[Principal | None]], is_reached: Callable[[Principal | None], bool]
) -> None:
    """Looks again and again at what tells nobody when it changes; the scenario has a deadline."""
    while not is_reached(await look()):  # noqa: ASYNC110
        await asyncio.sleep(0)


def queries(db: psycopg.Connection) -> int:
    """How often secrets were looked for by index since the database was made."""
    db.execute("SELECT pg_stat_force_next_flush()")
    row = db.execute("SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'api_key_secrets_pkey'").fetchone()
    return 0 if row is None else int(row[0])


def test_what_is_granted_is_what_is_shown(database_url: str) -> None:
    """Every limit comes back exactly, also a budget that no bigint of pico-dollars holds."""

    async def scenario(store: KeyStore) -> None:
        grant = KeyGrant(
            name="ci",
            team="blue",
            role=Role.ADMIN,
            models=("a", "b"),
            providers=("p",),
            rpm=10,
            tpm=1_000_000,
            concurrency=3,
            budget=Money.from_usd("12345678901.000000000001"),
            period=Period.MONTH,
            expires_at=T0 + timedelta(days=30),
            tags={"cost-centre": "42", "app": "x"},
        )
        record, team_created = await store.create(grant, digest=digest("one"), hint="abcd", by=COMMAND_LINE)
        assert team_created
        assert record.grant == grant
        assert (record.hint, record.created_at, record.revoked_at) == ("abcd", T0, None)
        assert await store.show(record.key_id) == record
        assert await store.show("ci") == record
        _, team_created = await store.create(
            KeyGrant(name="two", team="blue"), digest=digest("two"), hint="efgh", by=COMMAND_LINE
        )
        assert not team_created

    with_store(database_url, scenario)


def test_a_name_that_two_keys_have_shows_neither(database_url: str) -> None:
    """A revoked key gives its name free; two living ones are told apart by id."""

    async def scenario(store: KeyStore) -> None:
        first, _ = await store.create(KeyGrant(name="ci"), digest=digest("one"), hint="1", by=COMMAND_LINE)
        second, _ = await store.create(KeyGrant(name="ci"), digest=digest("two"), hint="2", by=COMMAND_LINE)
        assert await store.show("ci") is None
        revoked = await store.revoke(first.key_id, by=COMMAND_LINE)
        assert revoked is not None
        assert revoked.revoked_at == T0
        assert await store.show("ci") == second
        assert await store.show("nobody") is None

    with_store(database_url, scenario)


def test_keys_are_listed_page_by_page(database_url: str) -> None:
    """A cursor goes through every key once, in the order of their ids; a team has its own list."""

    async def scenario(store: KeyStore) -> None:
        made = set()
        for number in range(7):
            grant = KeyGrant(name=f"k{number}", team="blue" if number % 2 else None)
            record, _ = await store.create(grant, digest=digest(str(number)), hint="abcd", by=COMMAND_LINE)
            made.add(record.key_id)
        seen: list[str] = []
        while page := await store.list_keys(after=seen[-1] if seen else None, limit=3):
            seen += [record.key_id for record in page]
        assert seen == sorted(made)
        blue = await store.list_keys(after=None, limit=100, team="blue")
        assert sorted(record.grant.name for record in blue) == ["k1", "k3", "k5"]

    with_store(database_url, scenario)


def test_revoking_and_rotating_what_is_not_there(database_url: str) -> None:
    """An unknown key is answered with None; a revoked one is not rotated and keeps its moment."""

    async def scenario(store: KeyStore) -> None:
        assert await store.revoke("key_x", by=COMMAND_LINE) is None
        assert await store.rotate("key_x", digest=digest("a"), hint="a", grace=timedelta(0), by=COMMAND_LINE) is None
        record, _ = await store.create(KeyGrant(name="ci"), digest=digest("one"), hint="1", by=COMMAND_LINE)
        first = await store.revoke(record.key_id, by=COMMAND_LINE)
        assert await store.revoke(record.key_id, by=COMMAND_LINE) == first
        assert (
            await store.rotate(record.key_id, digest=digest("b"), hint="b", grace=timedelta(0), by=COMMAND_LINE) is None
        )

    with_store(database_url, scenario)


def test_a_secret_is_asked_for_once(database_url: str, db: psycopg.Connection) -> None:
    """Holders and strangers are both remembered, and a crowd with one key asks one question."""

    async def scenario(keys: PostgresApiKeys, store: KeyStore) -> None:
        await store.create(KeyGrant(name="one"), digest=digest("one"), hint="1", by=COMMAND_LINE)
        before = queries(db)
        for name in ("one", "stranger"):
            found = await asyncio.gather(*(keys.find(digest(name)) for _ in range(50)))
            assert len(set(map(id, found))) == 1
            await keys.find(digest(name))
        await keys.close()
        assert queries(db) - before == 2

    with_keys(database_url, scenario)


def test_one_caller_s_hang_up_is_not_the_others(database_url: str) -> None:
    """Two ask for the same key; the first one goes away, and the second gets the answer."""

    async def scenario(keys: PostgresApiKeys, store: KeyStore) -> None:
        await store.create(KeyGrant(name="one"), digest=digest("one"), hint="1", by=COMMAND_LINE)
        first, second = (asyncio.create_task(keys.find(digest("one"))) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        assert await second is not None
        assert first.cancelled()

    with_keys(database_url, scenario)


def test_a_restart_of_the_database_costs_nobody_a_request(database_url: str, db: psycopg.Connection) -> None:
    """Connections that the server has ended are noticed before they are used."""

    async def scenario(keys: PostgresApiKeys, store: KeyStore) -> None:
        assert await keys.find(digest("one")) is None
        ended = db.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        assert ended.fetchall() == [(True,)]
        assert await keys.find(digest("two")) is None

    with_keys(database_url, scenario)


def test_the_memory_of_strangers_and_holders_is_bounded(database_url: str) -> None:
    """Random keys cost memory for some and no more; the key used last is forgotten last."""

    async def scenario(keys: PostgresApiKeys, store: KeyStore) -> None:
        for name in ("a", "b", "c"):
            await store.create(KeyGrant(name=name), digest=digest(name), hint=name, by=COMMAND_LINE)
        for number in range(30):
            assert await keys.find(digest(str(number))) is None
        for name in ("a", "b", "a", "c"):
            await keys.find(digest(name))
        assert len(keys._strangers) == 5
        assert list(keys._holders) == [digest("a"), digest("c")]

    with_keys(database_url, scenario, holders_max=2, strangers_max=5)


def test_known_keys_go_on_while_the_database_is_away(database_url: str) -> None:
    """INTERFACE §3: a known key is served, an unknown one is told to come back; then everything works again."""

    async def run() -> None:
        line = Line(database_url)
        await line.open()
        administration = PostgresAdministration(database_url, clock=StillClock())
        store = administration.keys
        keys = PostgresApiKeys(line.url, clock=StillClock(), wait_seconds_max=1.0)
        await store.create(KeyGrant(name="one"), digest=digest("one"), hint="1", by=COMMAND_LINE)
        await store.create(KeyGrant(name="two"), digest=digest("two"), hint="2", by=COMMAND_LINE)
        await keys.refresh()
        assert await keys.find(digest("one")) is not None
        await store.create(KeyGrant(name="three"), digest=digest("three"), hint="3", by=COMMAND_LINE)
        await keys.refresh()  # a change was seen, and the database went before it could be asked about
        await line.cut()
        with pytest.raises(StoreUnavailableError):
            await keys.find(digest("two"))
        assert await keys.find(digest("one")) is not None
        with pytest.raises(StoreUnavailableError):
            await keys.refresh()
        await line.open()
        await keys.refresh()
        assert await keys.find(digest("two")) is not None
        await keys.close()
        await administration.close()
        await line.cut()

    async def in_time() -> None:
        async with asyncio.timeout(60):
            await run()

    asyncio.run(in_time())


def test_a_change_is_noticed_by_itself(database_url: str) -> None:
    """The background task sees the counter move, and stops when told to."""

    async def scenario(keys: PostgresApiKeys, store: KeyStore) -> None:
        stop = asyncio.Event()
        running = asyncio.create_task(keys.run(stop))
        record, _ = await store.create(KeyGrant(name="one"), digest=digest("one"), hint="1", by=COMMAND_LINE)
        await until(lambda: keys.find(digest("one")), lambda found: found is not None)
        await store.revoke(record.key_id, by=COMMAND_LINE)
        await until(lambda: keys.find(digest("one")), lambda found: found is None)
        stop.set()
        await running

    with_keys(database_url, scenario)

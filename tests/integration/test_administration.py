"""Teams, budgets, organisation and audit in PostgreSQL: what is written is what is shown, bound, and on the record."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from gateway.adapters.postgres.administration import PostgresAdministration
from gateway.adapters.postgres.keys import PostgresApiKeys
from gateway.core.audit import entry_json
from gateway.core.budget import BudgetMode, OnOutage, Period
from gateway.core.budget_terms import BudgetTerms
from gateway.core.exchange import Role
from gateway.core.fields import FieldError
from gateway.core.grants import COMMAND_LINE, Administrator, NotGrantedError
from gateway.core.keys import KeyGrant, KeyRecord
from gateway.core.money import Money
from gateway.core.teams import TeamTerms

pytestmark = pytest.mark.integration

T0 = datetime(2025, 11, 22, 23, 30, tzinfo=UTC)  # a Saturday in UTC, and already Sunday in Berlin
WAIT_SECONDS_MAX = 60
BLUE = replace(COMMAND_LINE, actor="key_blue", team="blue", request_id="req_1")
USD = Money.from_usd

Scenario = Callable[[PostgresAdministration], Awaitable[None]]


class TickingClock:
    """A clock that is a microsecond further each time it is looked at, from T0 on."""

    def __init__(self) -> None:
        self._looks = 0

    def now(self) -> datetime:
        self._looks += 1
        return T0 + timedelta(microseconds=self._looks)

    def monotonic(self) -> float:
        return 0.0


@pytest.fixture
def db(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def play(database_url: str) -> Callable[[Scenario], None]:
    """Runs a scenario with an administration of its own."""

    async def run(scenario: Scenario) -> None:
        administration = PostgresAdministration(database_url, clock=TickingClock())
        try:
            async with asyncio.timeout(WAIT_SECONDS_MAX):
                await scenario(administration)
        finally:
            await administration.close()

    return lambda scenario: asyncio.run(run(scenario))


async def make_key(
    to: PostgresAdministration, name: str = "k", *, by: Administrator = COMMAND_LINE, **grant: Any
) -> KeyRecord:
    digest = hashlib.sha256(name.encode()).digest()
    record, _ = await to.keys.create(KeyGrant(name=name, **grant), digest=digest, hint="abcd", by=by)
    return record


async def entries(to: PostgresAdministration, **asked: Any) -> list[dict[str, Any]]:
    """The audit, oldest first, without what is about the chain."""
    found = [entry_json(entry) for entry in await to.audit.list_entries(before=None, limit=1_000, **asked)]
    names = ("actor", "action", "target", "team", "before", "after", "request_id")
    return [{name: entry[name] for name in names} for entry in reversed(found)]


# -- teams -------------------------------------------------------------------------------------------------------------

EVERYTHING = TeamTerms(
    name="blue/sky",
    models=("a", "b"),
    providers=("p",),
    rpm=100,
    tpm=10_000,
    concurrency=10,
    key_default_rpm=5,
    key_default_tpm=500,
    key_default_concurrency=1,
    key_max_rpm=50,
    key_max_tpm=5_000,
    key_max_concurrency=4,
    budget=USD("50"),
    period=Period.MONTH,
    budget_mode=BudgetMode.CLAMP,
    tags={"env": "test"},
)


def test_a_team_with_everything(play: Callable[[Scenario], None]) -> None:
    """What is asked for is what is shown, also after a change; there is one team of a name."""

    async def scenario(to: PostgresAdministration) -> None:
        made = await to.teams.create(EVERYTHING, by=COMMAND_LINE)
        assert made.terms == EVERYTHING
        assert (made.keys, len(made.budgets)) == (0, 1)
        assert await to.teams.show("blue/sky") == made
        with pytest.raises(FieldError, match="already"):
            await to.teams.create(TeamTerms(name="blue/sky"), by=COMMAND_LINE)
        bare = TeamTerms(name="blue/sky", rpm=7)
        changed = await to.teams.update("blue/sky", lambda _: bare, by=COMMAND_LINE)
        assert changed is not None
        assert (changed.terms, changed.budgets) == (bare, ())
        assert await to.teams.update("none", lambda terms: terms, by=COMMAND_LINE) is None

    play(scenario)


def test_teams_are_listed_page_by_page(play: Callable[[Scenario], None]) -> None:
    """By name, once each, with how many of their keys are in use."""

    async def scenario(to: PostgresAdministration) -> None:
        for name in ("c", "a", "b"):
            await to.teams.create(TeamTerms(name=name), by=COMMAND_LINE)
        for number in range(3):
            key = await make_key(to, str(number), team="b")
        await to.keys.revoke(key.key_id, by=COMMAND_LINE)
        first = await to.teams.list_teams(after=None, limit=2)
        rest = await to.teams.list_teams(after=first[-1].terms.name, limit=2)
        assert [(team.terms.name, team.keys) for team in (*first, *rest)] == [("a", 0), ("b", 2), ("c", 0)]

    play(scenario)


def test_a_key_has_what_its_team_leaves_it(play: Callable[[Scenario], None], database_url: str) -> None:
    """Defaults for what it does not say; ceilings for what it says, also when they were lowered after it was made."""

    async def scenario(to: PostgresAdministration) -> None:
        await to.teams.create(EVERYTHING, by=COMMAND_LINE)
        await make_key(to, "silent", team="blue/sky")
        await make_key(to, "loud", team="blue/sky", rpm=50, models=("b",))
        found = await holders(database_url, "silent", "loud")
        assert [(each.limits[0].rpm, each.limits[0].tpm, each.limits[0].concurrency) for each in found] == [
            (5, 500, 1), (50, 500, 1),
        ]  # fmt: skip
        assert [each.models for each in found] == [{"a", "b"}, {"b"}]
        assert (found[0].limits[1].rpm, found[0].limits[1].scope) == (100, "team:blue/sky")
        lower = replace(EVERYTHING, models=("a",), key_max_rpm=3, key_default_rpm=None, key_default_tpm=None)
        await to.teams.update("blue/sky", lambda _: lower, by=COMMAND_LINE)
        found = await holders(database_url, "silent", "loud")
        assert [(each.limits[0].rpm, each.limits[0].tpm) for each in found] == [(3, 5_000), (3, 5_000)]
        assert [each.models for each in found] == [{"a"}, set()]

    play(scenario)


async def holders(url: str, *names: str) -> list[Any]:
    """Whom a gateway finds behind these keys."""
    keys = PostgresApiKeys(url, clock=TickingClock())
    try:
        return [await keys.find(hashlib.sha256(name.encode()).digest()) for name in names]
    finally:
        await keys.close()


def test_ceilings_bind_the_bootstrap_administrator(play: Callable[[Scenario], None]) -> None:
    """New keys and updates alike, and what was refused is not there."""

    async def scenario(to: PostgresAdministration) -> None:
        await to.teams.create(EVERYTHING, by=COMMAND_LINE)
        with pytest.raises(FieldError, match=r'rpm: 51 was asked for; the team "blue/sky" allows its keys at most 50'):
            await make_key(to, "k", team="blue/sky", rpm=51)
        assert await to.keys.list_keys(after=None, limit=9) == []
        key = await make_key(to, "k", team="blue/sky", rpm=50)
        with pytest.raises(FieldError, match="concurrency: 5 was asked for"):
            await to.keys.update(key.key_id, lambda grant: replace(grant, concurrency=5), by=COMMAND_LINE)
        assert await to.keys.show(key.key_id) == key

    play(scenario)


# -- keys --------------------------------------------------------------------------------------------------------------


def test_the_budget_in_a_key_s_own_fields_is_its_first(play: Callable[[Scenario], None]) -> None:
    """Amount, mode and window of it change and it stays the first; cleared, the next one is."""

    async def scenario(to: PostgresAdministration) -> None:
        key = await make_key(to, budget=USD("10"), period=Period.MONTH, budget_mode=BudgetMode.SOFT)
        scope = f"key:{key.key_id}"
        await to.budgets.put(BudgetTerms(scope=scope, period=Period.DAY, limit=USD("1")), by=COMMAND_LINE)
        wide = BudgetTerms(scope=scope, period=Period.MONTH, limit=USD("10"), mode=BudgetMode.SOFT, alert_at=(5,))
        await to.budgets.put(wide, by=COMMAND_LINE)

        async def changed(**changes: Any) -> KeyRecord:
            record = await to.keys.update(key.key_id, lambda grant: replace(grant, **changes), by=COMMAND_LINE)
            assert record is not None
            return record

        record = await changed(budget=USD("20"))
        assert (record.grant.budget, record.grant.period, record.grant.budget_mode) == (
            USD("20"), Period.MONTH, BudgetMode.SOFT,
        )  # fmt: skip
        record = await changed(period=Period.WEEK, budget_mode=BudgetMode.STRICT)
        assert (record.grant.budget, record.grant.period) == (USD("20"), Period.WEEK)
        assert {(each.terms.period, each.terms.alert_at) for each in record.budgets} == {
            (Period.DAY, (80, 100)), (Period.WEEK, (5,)),
        }  # fmt: skip
        record = await changed(budget=None, period=None)
        assert (record.grant.budget, record.grant.period) == (USD("1"), Period.DAY)
        record = await changed(budget=None, period=None)
        assert (record.grant.budget, record.budgets) == (None, ())

    play(scenario)


def test_a_window_that_another_budget_has_is_that_one(play: Callable[[Scenario], None]) -> None:
    """The first budget moved onto the second one's period takes its place."""

    async def scenario(to: PostgresAdministration) -> None:
        key = await make_key(to, budget=USD("10"), period=Period.MONTH)
        terms = BudgetTerms(scope=f"key:{key.key_id}", period=Period.DAY, limit=USD("1"), mode=BudgetMode.SOFT)
        await to.budgets.put(terms, by=COMMAND_LINE)
        record = await to.keys.update(key.key_id, lambda grant: replace(grant, period=Period.DAY), by=COMMAND_LINE)
        assert record is not None
        assert [(each.terms.period, each.terms.limit) for each in record.budgets] == [(Period.DAY, USD("10"))]

    play(scenario)


def test_a_revoked_key_is_past_changing(play: Callable[[Scenario], None]) -> None:
    """Neither update nor budget; and an update that changes nothing leaves no trace."""

    async def scenario(to: PostgresAdministration) -> None:
        key = await make_key(to)
        assert await to.keys.update(key.key_id, lambda grant: grant, by=COMMAND_LINE) == key
        await to.keys.revoke(key.key_id, by=COMMAND_LINE)
        await to.keys.revoke(key.key_id, by=COMMAND_LINE)
        assert await to.keys.update(key.key_id, lambda grant: replace(grant, rpm=1), by=COMMAND_LINE) is None
        terms = BudgetTerms(scope=f"key:{key.key_id}", period=Period.DAY, limit=USD("1"))
        assert await to.budgets.put(terms, by=COMMAND_LINE) is None
        assert [entry["action"] for entry in await entries(to)] == ["key.create", "key.revoke"]

    play(scenario)


def test_a_secret_handed_over_is_a_grant(play: Callable[[Scenario], None]) -> None:
    """Who may not grant what a key has cannot have its secret by rotating it."""

    async def scenario(to: PostgresAdministration) -> None:
        limited = replace(COMMAND_LINE, actor="key_limited", rpm=60)
        mighty, modest = await make_key(to, "mighty"), await make_key(to, "modest", rpm=60)
        asked: dict[str, Any] = {"digest": bytes(32), "hint": "abcd", "grace": timedelta(0), "by": limited}
        with pytest.raises(NotGrantedError, match=r"^rpm: no limit was asked for; your own key has 60"):
            await to.keys.rotate(mighty.key_id, **asked)
        assert await to.keys.rotate(modest.key_id, **asked) is not None
        spender = replace(limited, rpm=None, budgets=(BudgetTerms(scope="k", period=Period.DAY, limit=USD("1")),))
        with pytest.raises(NotGrantedError, match=r"^budget"):
            await to.keys.rotate(modest.key_id, **{**asked, "by": spender})

    play(scenario)


# -- budgets -----------------------------------------------------------------------------------------------------------

POST = "INSERT INTO budget_postings (scope, day, journal_id, posted_pico, rows) VALUES (%s, %s, %s, %s, 1)"


def test_what_is_spent_is_what_every_journal_posted_in_the_window(
    play: Callable[[Scenario], None], db: psycopg.Connection
) -> None:
    """Windows are whole days, weeks from Monday and months, of the organisation's zone; a change keeps what was
    spent."""
    for day, journal, usd in (
        ("2025-10-31", "j1", "100"), ("2025-11-01", "j1", "7"), ("2025-11-16", "j1", "3"), ("2025-11-17", "j1", "0.5"),
        ("2025-11-22", "j1", "0.25"), ("2025-11-22", "j2", "0.125"), ("2025-11-23", "j2", "40"),
    ):  # fmt: skip
        db.execute(POST, ("team:blue", day, journal, USD(usd).pico))

    async def scenario(to: PostgresAdministration) -> None:
        await to.teams.create(TeamTerms(name="blue"), by=COMMAND_LINE)

        async def spent(period: Period, limit: str = "50") -> tuple[str, str | None, datetime | None]:
            terms = BudgetTerms(scope="team:blue", period=period, limit=USD(limit))
            record = await to.budgets.put(terms, by=COMMAND_LINE)
            assert record is not None
            return str(record.spent), record.share, record.resets_at

        assert await spent(Period.DAY) == ("0.375", "0.75", datetime(2025, 11, 23, tzinfo=UTC))
        assert await spent(Period.WEEK) == ("40.875", "81.75", datetime(2025, 11, 24, tzinfo=UTC))
        assert await spent(Period.MONTH) == ("50.875", "101.75", datetime(2025, 12, 1, tzinfo=UTC))
        assert await spent(Period.TOTAL, "0") == ("150.875", None, None)
        await to.organisation.update(name=None, time_zone="Europe/Berlin", by=COMMAND_LINE)
        assert await spent(Period.DAY, "10") == ("40", "400", datetime(2025, 11, 23, 23, tzinfo=UTC))

    play(scenario)


def test_budgets_are_listed_by_scope_and_period(play: Callable[[Scenario], None]) -> None:
    """Page by page, once each; those of one scope; those of one tenant, its keys' among them."""

    async def scenario(to: PostgresAdministration) -> None:
        await to.teams.create(TeamTerms(name="blue", budget=USD("5"), period=Period.DAY), by=COMMAND_LINE)
        key = await make_key(to, team="blue", budget=USD("1"), period=Period.WEEK)
        await make_key(to, "other", budget=USD("1"), period=Period.WEEK)
        for period in (Period.MONTH, Period.TOTAL):
            terms = BudgetTerms(scope="organisation", period=period, limit=USD("9"))
            await to.budgets.put(terms, by=COMMAND_LINE)
        seen: list[tuple[str, str]] = []
        while page := await to.budgets.list_budgets(after=seen[-1] if seen else None, limit=2):
            seen += [(each.terms.scope, each.terms.period.value) for each in page]
        assert len(seen) == len(set(seen)) == 5
        assert seen == sorted(seen)
        own = await to.budgets.list_budgets(after=None, limit=9, team="blue")
        assert [each.terms.scope for each in own] == [f"key:{key.key_id}", "team:blue"]
        assert [each.team for each in own] == ["blue", "blue"]
        one = await to.budgets.list_budgets(after=None, limit=9, scope="organisation")
        assert [each.terms.period for each in one] == [Period.MONTH, Period.TOTAL]
        assert await to.budgets.list_budgets(after=None, limit=9, scope="organisation", team="blue") == []

    play(scenario)


def test_a_budget_reaches_the_gateway_and_goes(play: Callable[[Scenario], None], database_url: str) -> None:
    """A gateway finds it with all its terms, one for each period; removed, it is gone."""

    async def scenario(to: PostgresAdministration) -> None:
        await make_key(to, "k", team="blue")
        terms = BudgetTerms(
            scope="team:blue", period=Period.MONTH, limit=USD("50"), mode=BudgetMode.CLAMP, on_outage=OnOutage.ADMIT,
            alert_at=(50, 90),
        )  # fmt: skip
        for limit in ("40", "50"):
            assert await to.budgets.put(replace(terms, limit=USD(limit)), by=COMMAND_LINE) is not None
        (principal,) = await holders(database_url, "k")
        (found,) = principal.budgets
        assert (found.scope, found.period, found.limit, found.mode, found.on_outage, found.alert_at) == (
            terms.scope, terms.period, terms.limit, terms.mode, terms.on_outage, terms.alert_at,
        )  # fmt: skip
        removed = await to.budgets.remove("team:blue", Period.MONTH, by=COMMAND_LINE)
        assert removed is not None
        assert removed.terms == terms
        assert await to.budgets.remove("team:blue", Period.MONTH, by=COMMAND_LINE) is None
        assert await to.budgets.put(replace(terms, scope="team:none"), by=COMMAND_LINE) is None
        (principal,) = await holders(database_url, "k")
        assert principal.budgets == ()

    play(scenario)


# -- tenants -----------------------------------------------------------------------------------------------------------


def test_another_tenant_does_not_exist(play: Callable[[Scenario], None]) -> None:
    """A tenant's administrator finds and changes its own team's things alone, and says nothing about the others'."""

    async def scenario(to: PostgresAdministration) -> None:
        for team in ("blue", "red"):
            await to.teams.create(TeamTerms(name=team), by=COMMAND_LINE)
        other = await make_key(to, "other", team="red", budget=USD("1"), period=Period.DAY)
        homeless = await make_key(to, "homeless")
        before = await entries(to)
        asked: dict[str, Any] = {"digest": bytes(32), "hint": "abcd", "grace": timedelta(0), "by": BLUE}
        for key in (other, homeless):
            assert await to.keys.show(key.key_id, team="blue") is None
            assert await to.keys.show(key.grant.name, team="blue") is None
            assert await to.keys.update(key.key_id, lambda grant: replace(grant, rpm=1), by=BLUE) is None
            assert await to.keys.revoke(key.key_id, by=BLUE) is None
            assert await to.keys.rotate(key.key_id, **asked) is None
            terms = BudgetTerms(scope=f"key:{key.key_id}", period=Period.DAY, limit=USD("1"))
            assert await to.budgets.put(terms, by=BLUE) is None
            assert await to.budgets.remove(terms.scope, Period.DAY, by=BLUE) is None
        assert await to.teams.update("red", lambda terms: replace(terms, rpm=1), by=BLUE) is None
        red = BudgetTerms(scope="team:red", period=Period.DAY, limit=USD("1"))
        assert await to.budgets.put(red, by=BLUE) is None
        for refused in (
            to.budgets.put(replace(red, scope="organisation"), by=BLUE),
            to.organisation.update(name="mine", time_zone=None, by=BLUE),
            to.teams.create(TeamTerms(name="green"), by=BLUE),
            make_key(to, "mine", team="red", by=BLUE),
        ):
            with pytest.raises(NotGrantedError):
                await refused
        assert await entries(to) == before
        own = await make_key(to, "own", by=BLUE, role=Role.ADMIN)
        assert own.grant.team == "blue"
        assert {entry["target"] for entry in await entries(to, team="blue")} == {"team:blue", f"key:{own.key_id}"}

    play(scenario)


# -- organisation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zone", ["Mars/Base", "", "localtime", "../etc/passwd", "europe/berlin", "UTC+1", "a\0b"])
def test_a_zone_that_is_none(play: Callable[[Scenario], None], zone: str) -> None:
    """Only IANA names: what the database did not know would stop the ledger."""

    async def scenario(to: PostgresAdministration) -> None:
        with pytest.raises(FieldError) as refused:
            await to.organisation.update(name=None, time_zone=zone, by=COMMAND_LINE)
        assert refused.value.field == "time_zone"
        assert (await to.organisation.show()).time_zone == "UTC"

    play(scenario)


# -- audit -------------------------------------------------------------------------------------------------------------


def test_every_write_is_on_the_record(play: Callable[[Scenario], None], db: psycopg.Connection) -> None:
    """Who, what, before and after, in order, and neither a secret nor a digest."""

    async def scenario(to: PostgresAdministration) -> None:
        by = Administrator(actor="key_boss", request_id="req_7")
        key = await make_key(to, "k", team="blue", by=by)
        scope = f"key:{key.key_id}"
        await to.keys.update(key.key_id, lambda grant: replace(grant, rpm=5), by=by)
        secret = bytes(range(32))
        await to.keys.rotate(key.key_id, digest=secret, hint="wxyz", grace=timedelta(hours=1), by=by)
        await to.budgets.put(BudgetTerms(scope=scope, period=Period.DAY, limit=USD("1")), by=by)
        await to.budgets.put(BudgetTerms(scope=scope, period=Period.DAY, limit=USD("1")), by=by)
        await to.budgets.remove(scope, Period.DAY, by=by)
        await to.teams.update("blue", lambda terms: replace(terms, rpm=9), by=by)
        await to.organisation.update(name="acme", time_zone=None, by=by)
        await to.keys.revoke(key.key_id, by=by)
        await to.audit.record("config.reload", "config", before={"digest": "a"}, after={"digest": "b"}, by=by)
        found = await entries(to)
        assert [(entry["action"], entry["target"], entry["team"]) for entry in found] == [
            ("team.create", "team:blue", "blue"), ("key.create", scope, "blue"), ("key.update", scope, "blue"),
            ("key.rotate", scope, "blue"), ("budget.set", f"{scope}/day", "blue"),
            ("budget.remove", f"{scope}/day", "blue"), ("team.update", "team:blue", "blue"),
            ("organisation.update", "organisation", None), ("key.revoke", scope, "blue"),
            ("config.reload", "config", None),
        ]  # fmt: skip
        assert {(entry["actor"], entry["request_id"]) for entry in found} == {("key_boss", "req_7")}
        assert (found[2]["before"]["rpm"], found[2]["after"]["rpm"]) == (None, 5)
        assert (found[4]["before"], found[4]["after"]["limit"]) == (None, "1")
        assert (found[5]["before"]["limit"], found[5]["after"]) == ("1", None)
        assert [entry["action"] for entry in await entries(to, action="key.rotate")] == ["key.rotate"]
        assert len(await entries(to, target="team:blue")) == 2
        assert (await to.audit.verify()).entries == 10
        kept = str(db.execute("SELECT e::text FROM audit_entries e").fetchall())
        assert secret.hex() not in kept
        assert "wxyz" not in kept

    play(scenario)


def test_the_list_of_entries_page_by_page(play: Callable[[Scenario], None]) -> None:
    """Newest first, before a cursor, each once."""

    async def scenario(to: PostgresAdministration) -> None:
        for number in range(5):
            await to.audit.record("test", str(number), before=None, after=None, by=COMMAND_LINE)
        seen: list[int] = []
        while page := await to.audit.list_entries(before=seen[-1] if seen else None, limit=2):
            seen += [entry.entry_id for entry in page]
        assert seen == [5, 4, 3, 2, 1]

    play(scenario)


def test_concurrent_writes_keep_the_chain_whole(database_url: str) -> None:
    """Four processes' worth of administrators write at once; every write has its entry, and each follows on one."""

    async def run() -> None:
        several = [PostgresAdministration(database_url, clock=TickingClock()) for _ in range(4)]
        try:
            async with asyncio.timeout(WAIT_SECONDS_MAX):
                writes = [make_key(several[number % 4], f"k{number}", team=f"t{number % 3}") for number in range(40)]
                await asyncio.gather(*writes)
                assert await several[0].audit.verify() == await several[1].audit.verify()
                verdict = await several[0].audit.verify()
                assert (verdict.entries, verdict.broken) == (43, None)
        finally:
            for each in several:
                await each.close()

    asyncio.run(run())


def test_a_write_that_fails_leaves_no_entry(play: Callable[[Scenario], None]) -> None:
    """The entry and what it is about are one transaction: the digest is taken, so there is neither key nor team."""

    async def scenario(to: PostgresAdministration) -> None:
        await make_key(to, "k")
        before = await entries(to)
        with pytest.raises(psycopg.errors.UniqueViolation):
            await make_key(to, "k", team="new")
        assert await entries(to) == before
        assert await to.teams.show("new") is None

    play(scenario)


TAMPER = {
    "another actor": ("UPDATE audit_entries SET actor = 'nobody' WHERE entry_id = 2", "entry 2 was changed"),
    "other facts": ("UPDATE audit_entries SET after = '{\"rpm\": 1}' WHERE entry_id = 2", "entry 2 was changed"),
    "another moment": ("UPDATE audit_entries SET at = at + interval '1 microsecond' WHERE entry_id = 2",
                       "entry 2 was changed"),
    "removed": ("DELETE FROM audit_entries WHERE entry_id = 2", "entry 2 is missing"),
    "removed from the beginning": ("DELETE FROM audit_entries WHERE entry_id = 1", "entry 1 is missing"),
    "removed and renumbered": (
        """DELETE FROM audit_entries WHERE entry_id = 2;
        UPDATE audit_entries SET entry_id = entry_id - 1 WHERE entry_id > 2""",
        "entry 2 does not follow",
    ),
    "another hash": ("UPDATE audit_entries SET hash = sha256('x') WHERE entry_id = 2", "entry 2 was changed"),
}  # fmt: skip


@pytest.mark.parametrize("how", TAMPER)
def test_tampering_is_found(play: Callable[[Scenario], None], db: psycopg.Connection, how: str) -> None:
    """Whoever switches the table's own defence off leaves a chain that is broken where it was touched."""
    statement, expected = TAMPER[how]

    async def scenario(to: PostgresAdministration) -> None:
        for number in range(4):
            await make_key(to, str(number), rpm=number + 1)
        assert (await to.audit.verify()).broken is None
        db.execute("ALTER TABLE audit_entries DISABLE TRIGGER append_only")
        db.execute(statement.encode())
        verdict = await to.audit.verify()
        assert verdict.broken is not None
        assert verdict.broken.startswith(expected)

    play(scenario)


@pytest.mark.parametrize(
    "statement", ["UPDATE audit_entries SET actor = 'x'", "DELETE FROM audit_entries", "TRUNCATE audit_entries"]
)
def test_the_table_defends_itself(play: Callable[[Scenario], None], db: psycopg.Connection, statement: str) -> None:
    """No entry changes or goes, for its owner neither."""

    async def scenario(to: PostgresAdministration) -> None:
        await make_key(to)
        with pytest.raises(psycopg.errors.RestrictViolation, match="never changed"):
            db.execute(statement.encode())

    play(scenario)

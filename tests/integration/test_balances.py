"""What budgets are measured by is what the ledger has: by scope, day and journal, whatever was replayed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from gateway.adapters.allowances import LocalAllowances
from gateway.adapters.clock import SystemClock
from gateway.adapters.journal import JournalWriter
from gateway.adapters.journal.outbox import Outbox
from gateway.adapters.postgres.balances import PostgresBalances
from gateway.adapters.postgres.shipper import Shipper
from gateway.core.allowance import Balance, BudgetClaim, Demand, Exceeded, Granted, Posting, Unknowable, Verdict
from gateway.core.budget import Budget, Period, window_of
from gateway.core.exchange import AttemptStatus
from gateway.core.ledger import LedgerEntry
from gateway.core.money import Money
from gateway.core.usage import NO_USAGE, UsageSource
from tests.integration.lines import Line
from tests.integration.samples import T0, entry, intent

pytestmark = pytest.mark.integration

SECONDS_MAX = 30
COST = entry(1).cost_pico
POSTINGS = "SELECT scope, day, journal_id, posted_pico::bigint, rows FROM budget_postings"
Place = tuple[str, date, str]


@pytest.fixture
def db(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def ship(url: str, folder: Path, journal: JournalWriter | None) -> None:
    """Everything that is in the journal, and in those of the dead."""

    async def scenario() -> None:
        shipper = Shipper(url, Outbox(folder, journal), clock=SystemClock(), chance=lambda: 0.5)
        async with asyncio.timeout(SECONDS_MAX):
            await shipper.ship()
        await shipper.close()

    asyncio.run(scenario())


def written(folder: Path, name: str, *entries: LedgerEntry) -> JournalWriter:
    journal = JournalWriter.open(folder, name)
    asyncio.run(journal.durable([journal.append(each) for each in entries][-1]))
    return journal


def expected(journal_id: str, *entries: LedgerEntry, hours: int = 0) -> dict[Place, tuple[int, int]]:
    """What these rows come to, in a zone so many hours east of UTC."""
    cost, rows = Counter[Place](), Counter[Place]()
    for each in entries:
        day = ((each.admitted_at or each.started_at) + timedelta(hours=hours)).date()
        scopes = [f"key:{each.key_id}", "organisation", *([] if each.team is None else [f"team:{each.team}"])]
        cost.update({(scope, day, journal_id): each.cost_pico for scope in scopes})
        rows.update((scope, day, journal_id) for scope in scopes)
    return {place: (cost[place], rows[place]) for place in rows}


def found(db: psycopg.Connection) -> dict[Place, tuple[int, int]]:
    return {(scope, day, journal_id): (posted, rows) for scope, day, journal_id, posted, rows in db.execute(POSTINGS)}


def some_entries(first: int = 1) -> list[LedgerEntry]:
    """Of several keys, teams and days; retries, refusals that cost nothing, and one of nobody's team."""
    midnight = datetime(2025, 11, 22, tzinfo=UTC)
    refused = {"used": NO_USAGE, "status": AttemptStatus.FAILED, "source": UsageSource.NONE}
    return [
        entry(first),
        entry(first + 1, key_id="key_2"),
        entry(first + 2, team=None),
        entry(first + 3, started_at=midnight + timedelta(seconds=1), admitted_at=midnight - timedelta(seconds=1)),
        entry(first + 4, started_at=midnight - timedelta(hours=1)),
        entry(first + 5, is_final=False, **refused),
    ]


# --- postings --------------------------------------------------------------------------------------------------------


def test_every_row_of_the_ledger_is_posted_once(tmp_path: Path, database_url: str, db: psycopg.Connection) -> None:
    """In the scopes of its key, its team and the organisation, on the day of its admission; nothing costs a row too."""
    entries = some_entries()
    written(tmp_path, "j1", *entries).close()
    ship(database_url, tmp_path, None)
    assert found(db) == expected("j1", *entries)
    assert (
        db.execute("SELECT sum(cost_pico)::bigint, count(*) FROM ledger").fetchone()
        == db.execute(
            "SELECT sum(posted_pico)::bigint, sum(rows) FROM budget_postings WHERE scope = 'organisation'"
        ).fetchone()
    )


def test_a_replay_posts_nothing(tmp_path: Path, database_url: str, db: psycopg.Connection) -> None:
    """L4: a database that has forgotten how far a journal was shipped gets all of it again, and more."""
    entries = some_entries()
    journal = written(tmp_path, "j1", *entries[:4])
    try:
        ship(database_url, tmp_path, journal)
        db.execute("DELETE FROM journal_offsets")
        asyncio.run(journal.durable([journal.append(each) for each in entries[4:]][-1]))
        ship(database_url, tmp_path, journal)
        db.execute("DELETE FROM journal_offsets")
        ship(database_url, tmp_path, journal)
    finally:
        journal.close()
    assert found(db) == expected("j1", *entries)


def test_each_journal_has_its_own_part(tmp_path: Path, database_url: str, db: psycopg.Connection) -> None:
    """Also of the same scope on the same day: whoever knows of more rows of one knows nothing of the other."""
    one, two = some_entries(1), some_entries(101)
    written(tmp_path, "j1", *one).close()
    written(tmp_path, "j2", *two).close()
    ship(database_url, tmp_path, None)
    assert found(db) == {**expected("j1", *one), **expected("j2", *two)}


def test_what_a_dead_worker_had_open_is_posted_in_its_journal(
    tmp_path: Path, database_url: str, db: psycopg.Connection
) -> None:
    """Recovery settles it as an estimate, on the day of its admission."""
    admitted = datetime(2025, 11, 21, 23, 59, 59, tzinfo=UTC)
    journal = JournalWriter.open(tmp_path, "j1")
    journal.append(entry(1))
    journal.append(intent(2, admitted_at=admitted, held_pico=10**9))
    journal.close()
    ship(database_url, tmp_path, None)
    recovered = db.execute(
        "SELECT cost_pico::bigint, held_pico FROM ledger WHERE attempt_id = 'att_00000002'"
    ).fetchone()
    assert recovered is not None
    assert recovered[0] > 0
    assert recovered[1] == 10**9
    assert found(db)["key:key_1", date(2025, 11, 21), "j1"] == (recovered[0], 1)
    assert found(db)["key:key_1", date(2025, 11, 22), "j1"] == (COST, 1)


def test_days_are_those_of_the_organisation(tmp_path: Path, database_url: str, db: psycopg.Connection) -> None:
    """In Shanghai it is tomorrow for a third of the day."""
    db.execute("UPDATE organisation SET time_zone = 'Asia/Shanghai'")
    late = entry(9, started_at=datetime(2025, 11, 22, 16, 0, tzinfo=UTC))
    entries = [*some_entries(), late]
    written(tmp_path, "j1", *entries).close()
    ship(database_url, tmp_path, None)
    assert found(db) == expected("j1", *entries, hours=8)
    assert found(db)["key:key_1", date(2025, 11, 23), "j1"] == (late.cost_pico, 1)


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "../etc"])
def test_a_zone_that_is_none_is_not_kept(db: psycopg.Connection, zone: str) -> None:
    """Every row that is shipped would be refused for it, and set aside."""
    with pytest.raises(psycopg.errors.DataError):
        db.execute("UPDATE organisation SET time_zone = %s", [zone])


# --- asking ----------------------------------------------------------------------------------------------------------


def test_a_window_is_the_sum_of_its_days(tmp_path: Path, database_url: str) -> None:
    """By journal; days before and after it are not in it, and of what nobody has posted in there is nothing."""
    days = [T0 - timedelta(days=1), T0, T0 + timedelta(days=1), T0 + timedelta(days=8), T0 - timedelta(days=40)]
    written(tmp_path, "j1", *(entry(n, started_at=day) for n, day in enumerate(days, start=1))).close()
    written(tmp_path, "j2", entry(50)).close()
    ship(database_url, tmp_path, None)

    async def scenario() -> None:
        balances = PostgresBalances(database_url)
        windows = {period: window_of("key:key_1", period, T0) for period in Period}
        stranger = window_of("key:stranger", Period.DAY, T0)
        told = await balances.of([*windows.values(), stranger])
        await balances.close()
        rows = {period: told[window.key]["j1"].rows for period, window in windows.items()}
        # 22 November 2025 is a Saturday: the week has the day before and the day after.
        assert rows == {Period.DAY: 1, Period.WEEK: 3, Period.MONTH: 4, Period.TOTAL: 5}
        assert told[windows[Period.TOTAL].key] == {"j1": Balance(5 * COST, 5), "j2": Balance(COST, 1)}
        assert stranger.key not in told

    asyncio.run(scenario())


def test_what_has_moved_lately_is_found(tmp_path: Path, database_url: str, db: psycopg.Connection) -> None:
    """The scopes in which another journal has posted; not one's own, and not those of long ago."""
    written(tmp_path, "j1", entry(1)).close()
    written(tmp_path, "j2", entry(2, key_id="key_2", team=None)).close()
    ship(database_url, tmp_path, None)
    db.execute("UPDATE budget_postings SET moved_at = now() - interval '2 minutes' WHERE scope = 'organisation'")

    async def scenario() -> None:
        balances = PostgresBalances(database_url)
        assert await balances.moved(seconds=60, but="j1") == {"key:key_2"}
        assert await balances.moved(seconds=60, but="j3") == {"key:key_1", "team:blue", "key:key_2"}
        assert await balances.moved(seconds=180, but="j1") == {"key:key_2", "organisation"}
        await balances.close()

    asyncio.run(scenario())


def test_what_is_posted_again_has_moved_again(tmp_path: Path, database_url: str, db: psycopg.Connection) -> None:
    """A part that is there already and grows is looked for like a new one."""
    journal = written(tmp_path, "j1", entry(1))
    try:
        ship(database_url, tmp_path, journal)
        db.execute("UPDATE budget_postings SET moved_at = now() - interval '1 hour'")
        asyncio.run(journal.durable(journal.append(entry(2, team=None))))
        ship(database_url, tmp_path, journal)
    finally:
        journal.close()

    async def scenario() -> None:
        balances = PostgresBalances(database_url)
        assert await balances.moved(seconds=60, but="j2") == {"key:key_1", "organisation"}
        await balances.close()

    asyncio.run(scenario())


# --- a gateway over it -----------------------------------------------------------------------------------------------


class Moving:
    """A clock that a test moves."""

    def __init__(self, at: datetime = T0) -> None:
        self.at = at
        self.seconds = 0.0

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return self.seconds

    def move(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)
        self.seconds += seconds


BUDGET = Budget(
    budget_id="b", scope="key:key_1", name='key "one"', period=Period.DAY, limit=Money(2 * COST + COST // 2)
)


def asked(hold_id: str, now: datetime, budget: Budget = BUDGET) -> Demand:
    claim = BudgetClaim(budget, window_of(budget.scope, budget.period, now))
    return Demand(hold_id=hold_id, tokens=1, amount=Money(COST), amount_min=Money(COST), budgets=(claim,))


async def buy(gateway: LocalAllowances, hold_id: str, now: datetime) -> Verdict:
    """One request that costs what it holds, posted and released."""
    verdict = await gateway.take(asked(hold_id, now))
    if isinstance(verdict, Granted):
        gateway.post(Posting(hold_id, ("key:key_1", "team:blue", "organisation"), now.date(), Money(COST)))
        gateway.release(hold_id, 1)
    return verdict


def test_a_restart_knows_what_was_spent(tmp_path: Path, database_url: str) -> None:
    """Yesterday's journal and today's are one window; the exact rest is admitted, and no more."""
    written(tmp_path, "j1", entry(1)).close()
    ship(database_url, tmp_path, None)

    async def scenario() -> None:
        balances, clock = PostgresBalances(database_url), Moving()
        gateway = LocalAllowances("j2", balances, clock=clock)
        assert isinstance(await buy(gateway, "r1", clock.now()), Granted)
        refused = await buy(gateway, "r2", clock.now())
        assert isinstance(refused, Exceeded)
        assert refused.available == Money(COST // 2)
        await balances.close()

    asyncio.run(scenario())


def test_what_another_gateway_spends_is_seen(tmp_path: Path, database_url: str, db: psycopg.Connection) -> None:
    """Once it is in the database: in windows that were asked for before, and in those that were opened empty."""

    async def scenario() -> None:
        balances = PostgresBalances(database_url)
        clock = Moving(T0 - timedelta(days=1))
        gateway = LocalAllowances("j2", balances, clock=clock)
        clock.move(86_400)  # the day of T0 has begun while this gateway lives
        await gateway.refresh()
        await asyncio.to_thread(lambda: written(tmp_path, "j1", entry(1)).close())
        await asyncio.to_thread(ship, database_url, tmp_path, None)
        db.execute("UPDATE budget_postings SET moved_at = now() - interval '6 hours'")  # longer than is looked back
        assert isinstance(await buy(gateway, "r1", clock.now()), Granted)
        clock.move(2)
        await gateway.refresh()
        assert isinstance(await buy(gateway, "r2", clock.now()), Exceeded)
        raised = replace(BUDGET, limit=Money(4 * COST))
        assert isinstance(await gateway.take(asked("r3", clock.now(), raised)), Granted)
        gateway.release("r3", 1)
        await asyncio.to_thread(lambda: written(tmp_path, "j3", entry(3), entry(4)).close())
        await asyncio.to_thread(ship, database_url, tmp_path, None)
        await gateway.refresh()
        assert isinstance(await gateway.take(asked("r4", clock.now(), raised)), Exceeded)
        await balances.close()

    asyncio.run(scenario())


def test_what_was_spent_during_an_outage_of_ours_is_seen_after_it(
    tmp_path: Path, database_url: str, db: psycopg.Connection
) -> None:
    """The database was away for us only, for longer than is looked back: all of it is asked for."""

    async def scenario() -> None:
        line = Line(database_url)
        await line.open()
        balances, clock = PostgresBalances(line.url), Moving()
        gateway = LocalAllowances("j2", balances, clock=clock)
        assert isinstance(await buy(gateway, "r1", clock.now()), Granted)
        await line.cut()
        await asyncio.to_thread(lambda: written(tmp_path, "j1", entry(1), entry(2)).close())
        await asyncio.to_thread(ship, database_url, tmp_path, None)
        db.execute("UPDATE budget_postings SET moved_at = now() - interval '10 minutes'")
        clock.move(900)
        await line.open()
        await gateway.refresh()
        assert isinstance(await buy(gateway, "r2", clock.now()), Exceeded)
        await balances.close()
        await line.cut()

    asyncio.run(scenario())


def test_our_own_part_is_known_better_than_the_database_does(tmp_path: Path, database_url: str) -> None:
    """It may have rows of ours that carry nothing yet; what we have posted stands."""
    nothing = {"used": NO_USAGE, "status": AttemptStatus.FAILED, "source": UsageSource.NONE}
    written(tmp_path, "j2", *(entry(n, **nothing) for n in range(1, 6))).close()
    ship(database_url, tmp_path, None)

    async def scenario() -> None:
        balances, clock = PostgresBalances(database_url), Moving()
        gateway = LocalAllowances("j2", balances, clock=clock)
        for number in range(2):
            assert isinstance(await buy(gateway, f"r{number}", clock.now()), Granted)
        gateway._unasked.update({w.key: w for w in gateway._windows.of_scopes(["key:key_1"])})
        await gateway.refresh()
        assert isinstance(await buy(gateway, "r9", clock.now()), Exceeded)
        await balances.close()

    asyncio.run(scenario())


def test_nothing_is_known_before_the_dead_are_in_the_database(tmp_path: Path, database_url: str) -> None:
    """A journal that nobody has shipped yet was spent from; whoever asks meanwhile waits for it."""
    written(tmp_path, "j1", entry(1), entry(2)).close()

    async def scenario() -> None:
        balances = PostgresBalances(database_url)
        shipper = Shipper(database_url, Outbox(tmp_path, None), clock=SystemClock(), chance=lambda: 0.5)
        gateway = LocalAllowances("j2", balances, clock=Moving(), caught_up=shipper.caught_up)
        asking = asyncio.create_task(gateway.take(asked("r1", T0)))
        await asyncio.sleep(0)
        assert not asking.done()
        async with asyncio.timeout(SECONDS_MAX):
            await shipper.ship()
            assert isinstance(await asking, Exceeded)
        await shipper.close()
        await balances.close()

    asyncio.run(scenario())


def test_a_database_that_is_away_is_said_to_be(database_url: str) -> None:
    """A hard budget refuses, and when the database is back the next request is admitted."""

    async def scenario() -> None:
        line, clock = Line(database_url), Moving()
        balances = PostgresBalances(line.url)
        gateway = LocalAllowances("j2", balances, clock=clock)
        assert isinstance(await gateway.take(asked("r1", T0)), Unknowable)
        await line.open()
        clock.move(3)
        assert isinstance(await gateway.take(asked("r1", T0)), Granted)
        await balances.close()
        await line.cut()

    asyncio.run(scenario())

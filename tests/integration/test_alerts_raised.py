"""An alert is raised once for each budget, window and share, whoever looks, however often, and however late."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from gateway.adapters.journal import JournalWriter
from gateway.adapters.journal.outbox import Outbox
from gateway.adapters.postgres.alerts import AlertBook
from gateway.adapters.postgres.shipper import Shipper
from gateway.adapters.postgres.sql import statement
from gateway.core.budget import Period, day_of, window_of
from gateway.core.money import Money
from tests.integration.alerting import DAY, StillClock, add_budget, alerts, book, post
from tests.integration.samples import T0, entry

pytestmark = pytest.mark.integration

WAIT_SECONDS_MAX = 60


@pytest.fixture
def db(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def with_book(url: str, scenario: Callable[[AlertBook], Awaitable[None]], clock: StillClock | None = None) -> None:
    async def run() -> None:
        worker = book(url, clock=clock)
        try:
            async with asyncio.timeout(WAIT_SECONDS_MAX):
                await scenario(worker)
        finally:
            await worker.close()

    asyncio.run(run())


def look_back(db: psycopg.Connection, interval: str) -> None:
    """What moved and changed did so that much earlier."""
    db.execute("UPDATE budget_postings SET moved_at = moved_at - %s::interval", [interval])
    db.execute("ALTER TABLE budgets DISABLE TRIGGER budget_changed")
    db.execute("UPDATE budgets SET changed_at = changed_at - %s::interval", [interval])
    db.execute("ALTER TABLE budgets ENABLE TRIGGER budget_changed")


def test_a_share_is_raised_when_it_is_reached_and_never_again(database_url: str, db: psycopg.Connection) -> None:
    """79.99 % is silent, 80 % is told, and so is 100 %; each of them once."""
    add_budget(db, "team:blue", "100")

    async def scenario(worker: AlertBook) -> None:
        post(db, "team:blue", "79.99")
        assert await worker.raise_passed() == []
        post(db, "team:blue", "0.01")
        assert await worker.raise_passed() == [80]
        post(db, "team:blue", "19")
        assert await worker.raise_passed() == []
        post(db, "team:blue", "1")
        assert await worker.raise_passed() == [100]
        post(db, "team:blue", "50")
        assert await worker.raise_passed() == []

    with_book(database_url, scenario)
    assert alerts(db, "share, spent_pico") == [(80, Money.from_usd("80").pico), (100, Money.from_usd("100").pico)]


def test_a_jump_over_several_shares_raises_all_of_them(database_url: str, db: psycopg.Connection) -> None:
    """From nothing to 120 % at once: 50, 80 and 100 are passed, and 150 is not."""
    add_budget(db, "key:a", "10", alert_at=[50, 80, 100, 150])
    post(db, "key:a", "12")

    async def scenario(worker: AlertBook) -> None:
        assert sorted(await worker.raise_passed()) == [50, 80, 100]

    with_book(database_url, scenario)


def test_two_workers_that_see_the_same_raise_it_once(database_url: str, db: psycopg.Connection) -> None:
    """Eight rounds of fifty budgets, looked at by four workers at the same moment: one alert for each share."""
    numbers = range(50)
    for number in numbers:
        add_budget(db, f"key:{number:02}", "1")

    async def scenario(_: AlertBook) -> None:
        workers = [book(database_url) for _ in range(4)]
        raised = 0
        for round_number in range(8):
            for number in numbers:
                if number % 8 == round_number:
                    post(db, f"key:{number:02}", "1")
            answers = await asyncio.gather(*(worker.raise_passed() for worker in workers))
            raised += sum(map(len, answers))
        for worker in workers:
            await worker.close()
        assert raised == 100

    with_book(database_url, scenario)
    assert db.execute("SELECT count(*), count(DISTINCT (budget_id, share)) FROM budget_alerts").fetchone() == (100, 100)


def test_what_several_journals_posted_on_several_days_is_one_sum(database_url: str, db: psycopg.Connection) -> None:
    """A window is the sum of its days and journals, and of no other scope."""
    add_budget(db, "organisation", "100", "month", alert_at=[80])
    post(db, "organisation", "30", DAY - timedelta(days=2), journal="j1")
    post(db, "organisation", "30", DAY, journal="j1")
    post(db, "team:blue", "90")
    post(db, "organisation", "900", DAY - timedelta(days=20))  # last month
    post(db, "organisation", "60", DAY + timedelta(days=22))  # next month

    async def scenario(worker: AlertBook) -> None:
        assert await worker.raise_passed() == []
        post(db, "organisation", "20", DAY, journal="j2")
        assert await worker.raise_passed() == [80]

    with_book(database_url, scenario)
    assert alerts(db, "name, spent_pico") == [("organisation", Money.from_usd("80").pico)]


def test_a_new_window_tells_again(database_url: str, db: psycopg.Connection) -> None:
    """Yesterday's alert says nothing about today."""
    add_budget(db, "team:blue", "10", "day", alert_at=[100])
    clock = StillClock()

    async def scenario(worker: AlertBook) -> None:
        post(db, "team:blue", "10")
        assert await worker.raise_passed() == [100]
        clock.move(days=1)
        assert await worker.raise_passed() == []
        post(db, "team:blue", "10", DAY + timedelta(days=1))
        assert await worker.raise_passed() == [100]

    with_book(database_url, scenario, clock)
    assert [row[0].day for row in alerts(db, "first_day")] == [10, 11]


def test_a_total_budget_has_one_window(database_url: str, db: psycopg.Connection) -> None:
    """What was passed once is never new again, on whatever day more is spent."""
    add_budget(db, "team:blue", "10", "total", alert_at=[100])
    clock = StillClock()

    async def scenario(worker: AlertBook) -> None:
        post(db, "team:blue", "6", DAY - timedelta(days=400))
        post(db, "team:blue", "6")
        assert await worker.raise_passed() == [100]
        clock.move(days=40)
        post(db, "team:blue", "6", DAY + timedelta(days=40))
        assert await worker.raise_passed() == []

    with_book(database_url, scenario, clock)
    assert alerts(db, "first_day") == [(None,)]


def test_a_raised_limit_tells_again_when_it_is_passed_again(database_url: str, db: psycopg.Connection) -> None:
    """More money is another promise; less money repeats nothing that was told of more."""
    budget_id = add_budget(db, "team:blue", "100")

    def limit(usd: str) -> None:
        db.execute("UPDATE budgets SET limit_pico = %s WHERE budget_id = %s", [Money.from_usd(usd).pico, budget_id])

    async def scenario(worker: AlertBook) -> None:
        post(db, "team:blue", "100")
        assert await worker.raise_passed() == [80, 100]
        limit("200")
        assert await worker.raise_passed() == []
        post(db, "team:blue", "60")
        assert await worker.raise_passed() == [80]
        limit("150")
        assert await worker.raise_passed() == [100]
        limit("100")
        assert await worker.raise_passed() == []

    with_book(database_url, scenario)
    assert alerts(db, "share, limit_pico / 1000000000000") == [(80, 100), (80, 200), (100, 100), (100, 150)]


def test_a_lowered_limit_tells_though_nothing_more_is_spent(database_url: str, db: psycopg.Connection) -> None:
    """A budget that is cut below what was spent refuses everything, so no posting would ever bring it up."""
    budget_id = add_budget(db, "team:blue", "100", alert_at=[100])
    post(db, "team:blue", "50")

    async def scenario(worker: AlertBook) -> None:
        assert await worker.raise_passed() == []
        look_back(db, "10 minutes")
        assert await worker.raise_passed() == []
        db.execute("UPDATE budgets SET limit_pico = %s WHERE budget_id = %s", [Money.from_usd("40").pico, budget_id])
        assert await worker.raise_passed() == [100]

    with_book(database_url, scenario)


def test_a_worker_that_starts_sees_what_moved_while_nobody_looked(database_url: str, db: psycopg.Connection) -> None:
    """All gateways were down, or killed between the posting and the look: the next one's first look goes further."""
    add_budget(db, "team:blue", "10")
    post(db, "team:blue", "12")
    look_back(db, "3 days")

    async def scenario(worker: AlertBook) -> None:
        assert await worker.raise_passed() == [80, 100]

    with_book(database_url, scenario)


def test_a_look_after_an_outage_goes_back_to_the_last_one(database_url: str, db: psycopg.Connection) -> None:
    """What moved since the last look is seen, also when that was an hour ago."""
    add_budget(db, "team:blue", "10")
    clock = StillClock()

    async def scenario(worker: AlertBook) -> None:
        assert await worker.raise_passed() == []
        post(db, "team:blue", "12")
        look_back(db, "50 minutes")
        clock.seconds += 3_600.0
        assert await worker.raise_passed() == [80, 100]

    with_book(database_url, scenario, clock)


def test_a_look_goes_back_to_the_one_before(database_url: str, db: psycopg.Connection) -> None:
    """A worker that was busy, or whose database was slow, misses nothing of the meantime."""
    add_budget(db, "team:blue", "10")
    clock = StillClock()

    async def scenario(worker: AlertBook) -> None:
        assert await worker.raise_passed() == []
        post(db, "team:blue", "12")
        look_back(db, "20 seconds")
        clock.seconds += 30.0
        assert await worker.raise_passed() == [80, 100]

    with_book(database_url, scenario, clock)


def test_what_was_committed_late_is_seen_within_a_minute(database_url: str, db: psycopg.Connection) -> None:
    """A posting is dated when it is made, and other workers see it when its transaction is over."""
    add_budget(db, "team:blue", "10")
    clock = StillClock()

    async def scenario(worker: AlertBook) -> None:
        assert await worker.raise_passed() == []
        with psycopg.connect(database_url) as shipper:
            post(shipper, "team:blue", "12")
            clock.seconds += 2.0
            assert await worker.raise_passed() == []
            shipper.commit()
        look_back(db, "40 seconds")
        for _ in range(28):
            clock.seconds += 2.0
            assert await worker.raise_passed() == []
        clock.seconds += 2.0
        assert await worker.raise_passed() == [80, 100]

    with_book(database_url, scenario, clock)


def test_what_is_posted_after_midnight_for_the_day_before_is_told(database_url: str, db: psycopg.Connection) -> None:
    """A request of 23:59 is settled later; but what happened the day before that is no news."""
    add_budget(db, "team:late", "10", "day", alert_at=[100])
    add_budget(db, "team:older", "10", "day", alert_at=[100])
    post(db, "team:late", "11", DAY - timedelta(days=1))
    post(db, "team:older", "11", DAY - timedelta(days=2))

    async def scenario(worker: AlertBook) -> None:
        assert await worker.raise_passed() == [100]

    with_book(database_url, scenario)
    assert alerts(db, "scope, first_day") == [("team:late", DAY - timedelta(days=1))]


def test_nothing_spent_is_no_alert(database_url: str, db: psycopg.Connection) -> None:
    """A budget of nothing blocks a key on purpose; it is told when something was spent all the same."""
    add_budget(db, "team:blue", "0", alert_at=[100])

    async def scenario(worker: AlertBook) -> None:
        assert await worker.raise_passed() == []
        post(db, "team:blue", "0")
        assert await worker.raise_passed() == []
        post(db, "team:blue", "0.000000000001")
        assert await worker.raise_passed() == [100]

    with_book(database_url, scenario)


def test_a_budget_that_was_removed_raises_nothing(database_url: str, db: psycopg.Connection) -> None:
    """What is spent is still counted, and nobody asked to be told."""
    budget_id = add_budget(db, "team:blue", "10")
    post(db, "team:blue", "12")
    db.execute("DELETE FROM budgets WHERE budget_id = %s", [budget_id])

    async def scenario(worker: AlertBook) -> None:
        assert await worker.raise_passed() == []

    with_book(database_url, scenario)


def test_an_alert_has_the_name_that_people_know(database_url: str, db: psycopg.Connection) -> None:
    """A key by its name, a team by its own; a key that is not there by its scope."""
    db.execute(
        "INSERT INTO api_keys (key_id, name, role, tags, created_at) VALUES ('key_1', 'ci \"x\"', 'admin', '{}', now())"
    )
    for scope in ("key:key_1", "key:key_2", "organisation", "team:blue"):
        add_budget(db, scope, "1", alert_at=[100])
        post(db, scope, "1")

    async def scenario(worker: AlertBook) -> None:
        assert await worker.raise_passed() == [100] * 4

    with_book(database_url, scenario)
    assert alerts(db, "name") == [('key "ci "x""',), ("key:key_2",), ("organisation",), ('team "blue"',)]


@pytest.mark.parametrize(
    "zone",
    [
        *("UTC", "Europe/Berlin", "America/Los_Angeles", "Pacific/Auckland", "Asia/Kathmandu"),
        *("America/Havana", "Africa/Cairo", "Asia/Beirut"),  # where the clocks change at midnight
    ],
)
def test_windows_are_those_that_budgets_are_held_by(zone: str, database_url: str, db: psycopg.Connection) -> None:
    """The statement's days, weeks and months begin and end when the admission's do."""
    moments = [
        datetime(2026, month, day, hour, 30, tzinfo=UTC)
        for month, day in ((1, 1), (3, 8), (3, 29), (4, 24), (10, 25), (11, 1), (12, 31))
        for hour in (0, 11, 23)
    ]
    db.execute("UPDATE organisation SET time_zone = %s", [zone])
    for period in Period:
        add_budget(db, "team:blue", "1", period.value, alert_at=[100])

    async def scenario(worker: AlertBook) -> None:
        for moment in moments:
            db.execute("DELETE FROM budget_postings")
            db.execute("DELETE FROM budget_alerts")
            post(db, "team:blue", "1", day_of(moment, zone))
            clock.at = moment
            assert await worker.raise_passed() == [100] * 4
            found = {told.alert.period: told.alert for told in await worker.recent()}
            for period in Period:
                window = window_of("team:blue", period, moment, zone)
                assert found[period].begins_at == window.begins_at, (period, moment)
                assert found[period].ends_at == window.ends_at, (period, moment)

    clock = StillClock()
    with_book(database_url, scenario, clock)


def test_what_the_ledger_adds_is_what_alerts_are_raised_by(
    database_url: str, db: psycopg.Connection, tmp_path: Path
) -> None:
    """From a settled attempt in the journal to the alerts of its key, team and organisation, through the shipper."""
    attempt = entry(1)
    for scope in ("key:key_1", "organisation", "team:blue"):
        add_budget(db, scope, str(Money(attempt.cost_pico)), "day", alert_at=[100])
    clock = StillClock(T0 + timedelta(minutes=1))

    async def scenario(worker: AlertBook) -> None:
        journal = JournalWriter.open(tmp_path, "j1")
        try:
            await journal.durable(journal.append(attempt))
            shipper = Shipper(database_url, Outbox(tmp_path, journal), clock=clock, chance=lambda: 0.5)
            await shipper.ship()
            await shipper.close()
        finally:
            journal.close()
        assert await worker.raise_passed() == [100] * 3

    with_book(database_url, scenario, clock)
    assert alerts(db, "scope, spent_pico") == [
        (scope, attempt.cost_pico) for scope in ("key:key_1", "organisation", "team:blue")
    ]


def test_a_look_at_which_nothing_moved_reads_no_table(database_url: str, db: psycopg.Connection) -> None:
    """Two years of postings and a thousand budgets are not gone through every two seconds."""
    db.execute(
        """
        INSERT INTO budget_postings (scope, day, journal_id, posted_pico, rows, moved_at)
        SELECT 'key:' || key, date '2026-03-10' - day, 'j1', 1, 1, now() - interval '1 day'
        FROM generate_series(1, 100) AS key, generate_series(1, 300) AS day
        """
    )
    db.execute(
        """
        INSERT INTO budgets (scope, period, limit_pico, changed_at)
        SELECT 'key:' || key, 'month', 1, now() - interval '1 day' FROM generate_series(1, 1000) AS key
        """
    )
    db.execute("ANALYZE budget_postings, budgets")
    asked = {"now": StillClock().now(), "seconds": 67.0, "all": False}
    with psycopg.ClientCursor(db) as cursor:
        plan = [row[0] for row in cursor.execute(b"EXPLAIN " + statement("raise_alerts"), asked).fetchall()]
    text = "\n".join(plan)
    assert "budget_postings_moved" in text, text
    assert "budgets_changed" in text, text
    costs = re.search(r"cost=[\d.]+\.\.([\d.]+)", plan[0])
    assert costs is not None
    assert float(costs[1]) < 10_000, "the planner thinks of far more rows, and would compile the statement each time"
    assert not {"Seq Scan on budget_postings", "Seq Scan on budgets"} & set(re.findall(r"Seq Scan on \w+", text)), text

"""Corrections are written once, under a batch that says why, and everything that sums the ledger follows."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import psycopg
import pytest

from gateway.adapters.allowances import LocalAllowances
from gateway.adapters.clock import SystemClock
from gateway.adapters.postgres.balances import PostgresBalances
from gateway.adapters.postgres.corrections import CHUNK_ENTRIES, PostgresCorrections
from gateway.core.allowance import BudgetClaim, Demand, Exceeded, Granted
from gateway.core.budget import Budget, Period, window_of
from gateway.core.corrections import CorrectedMeanwhileError, InForce, adjusted, rewritten, unattributed
from gateway.core.grants import COMMAND_LINE
from gateway.core.ledger import LedgerEntry
from gateway.core.money import Money, UnitPrice
from gateway.core.pricing import Price, PriceTable
from gateway.core.usage import NO_USAGE, UsageSource
from tests.integration.bookkeeping import (
    ALL,
    DECEMBER,
    NOVEMBER,
    OCTOBER,
    SUMS_DIFFER,
    batch,
    closed,
    correct,
    in_force,
    more_output,
    october,
    ship,
)
from tests.integration.samples import PRICE, T0, entry

pytestmark = pytest.mark.integration

DAY = timedelta(days=1)


@pytest.fixture
def db(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def rows(db: psycopg.Connection) -> dict[str, tuple[datetime, datetime | None, int]]:
    found = db.execute("SELECT attempt_id, started_at, restates, cost_pico FROM ledger").fetchall()
    return {attempt_id: (at, restates, cost) for attempt_id, at, restates, cost in found}


def pair(now: InForce, correction_id: str = "cor_1", price: Price = PRICE) -> tuple[LedgerEntry, LedgerEntry]:
    """One more correction of an attempt: 100 output tokens more."""
    return rewritten(
        now,
        correction_id=correction_id,
        usage=more_output(now),
        usage_source=UsageSource.PROVIDER,
        price=price,
        closed_until=None,
    )


def write(url: str, *entries: LedgerEntry, name: str = "cor_1") -> int:
    return correct(url, lambda store: store.write(batch(name), entries, by=COMMAND_LINE))


def test_what_is_in_force(tmp_path: Path, database_url: str, db: psycopg.Connection) -> None:
    """Originals, last replacements, sums of adjustments and the last number, wherever they count."""
    ship(database_url, tmp_path, entry(1), entry(2), entry(3), entry(4, provider="cometapi"))
    first = in_force(database_url, *ALL)
    assert {now.revision for now in first.values()} == {0}
    assert first["att_00000002"].entry == entry(2)

    one = first["att_00000001"]
    assert write(database_url, *pair(one), *pair(first["att_00000002"])) == 4
    once = in_force(database_url, *ALL)["att_00000001"]
    assert (once.revision, once.entry.attempt_id) == (1, "att_00000001~1+")
    assert once.entry.output_tokens == one.entry.output_tokens + 100
    assert once.original_started_at == one.original_started_at

    closed(db, "2025-11-01")
    assert write(database_url, *pair(once, "cor_2"), name="cor_2") == 2
    amounts = [Money(-7), Money(3)]
    for number, amount in enumerate(amounts):
        now = in_force(database_url, *ALL)["att_00000001"]
        name = f"cor_{3 + number}"
        assert write(database_url, adjusted(now, correction_id=name, amount=amount, closed_until=None), name=name) == 1
    last = in_force(database_url, *ALL)
    assert set(last) == {f"att_{number:08d}" for number in range(1, 5)}
    assert (last["att_00000001"].revision, last["att_00000001"].adjusted) == (4, Money(-4))
    assert last["att_00000001"].entry.output_tokens == one.entry.output_tokens + 200
    assert last["att_00000001"].original_started_at == one.original_started_at
    assert sum(now.cost.pico for now in last.values()) == sum(cost for _, _, cost in rows(db).values())
    assert not db.execute(SUMS_DIFFER).fetchall()


def test_only_what_was_asked_for(tmp_path: Path, database_url: str) -> None:
    """A period, a provider, an account, a model, an attempt; the end of a period is not in it."""
    ship(database_url, tmp_path, entry(1), entry(2, provider="cometapi"), entry(3, account="b"), entry(4, model="m"))
    assert set(in_force(database_url, T0, T0 + timedelta(seconds=2))) == {"att_00000001"}
    assert set(in_force(database_url, *ALL, provider="cometapi")) == {"att_00000002"}
    assert set(in_force(database_url, *ALL, account="b")) == {"att_00000003"}
    assert set(in_force(database_url, *ALL, model="m")) == {"att_00000004"}
    now = correct(database_url, lambda store: store.attempt("att_00000003"))
    assert now is not None
    assert now.entry == entry(3, account="b")
    assert correct(database_url, lambda store: store.attempt("att_9")) is None


def test_corrections_of_one_period_are_not_those_of_another(
    tmp_path: Path, database_url: str, db: psycopg.Connection
) -> None:
    """An attempt belongs to the period in which it happened; its corrections go with it from later months."""
    ship(database_url, tmp_path, october(1), entry(2))
    closed(db)
    now = in_force(database_url, OCTOBER, NOVEMBER)["att_00000001"]
    write(database_url, *pair(now))
    assert in_force(database_url, OCTOBER, NOVEMBER)["att_00000001"].revision == 1
    assert set(in_force(database_url, NOVEMBER, DECEMBER)) == {"att_00000002"}
    assert rows(db)["att_00000001~1+"][:2] == (NOVEMBER, now.original_started_at)
    assert not db.execute(SUMS_DIFFER).fetchall()


def test_those_at_another_price(tmp_path: Path, database_url: str) -> None:
    """By the table of today: metered attempts whose row is not the one in force when they began."""
    cut = T0 + timedelta(seconds=2)
    dearer = Price(
        provider="evolink",
        model="kimi-k2-thinking",
        effective_from=cut,
        input=PRICE.input,
        output=UnitPrice(3_000_000),
        cached_input=PRICE.cached_input,
    )
    refused = entry(4, used=NO_USAGE, source=UsageSource.NONE)
    ship(database_url, tmp_path, entry(1), entry(2), entry(3), refused)
    assert set(in_force(database_url, *ALL, but_priced_by=PriceTable([PRICE]))) == set()
    table = PriceTable([PRICE, dearer])
    due = in_force(database_url, *ALL, but_priced_by=table)
    assert set(due) == {"att_00000002", "att_00000003"}
    write(database_url, *pair(due["att_00000002"], price=dearer))
    assert set(in_force(database_url, *ALL, but_priced_by=table)) == {"att_00000003"}
    everything = in_force(database_url, *ALL, but_priced_by=PriceTable([]))
    assert set(everything) == {"att_00000001", "att_00000002", "att_00000003"}


def test_a_batch_is_told_once(tmp_path: Path, database_url: str, db: psycopg.Connection) -> None:
    """However many parts it has: one row with its reason, one entry of the audit, and every row names it."""
    ship(database_url, tmp_path, entry(1), entry(2))
    found = in_force(database_url, *ALL)
    why = batch(reason="billed wrongly", facts={"lines": 3})

    async def in_two_parts(store: PostgresCorrections) -> None:
        for now in found.values():
            assert await store.write(why, pair(now), by=COMMAND_LINE) == 2

    correct(database_url, in_two_parts)
    assert db.execute("SELECT correction_id, kind, actor, reason, facts FROM corrections").fetchall() == [
        ("cor_1", "restatement", "cli", "billed wrongly", {"lines": 3})
    ]
    assert db.execute("SELECT actor, action, target, after FROM audit_entries").fetchall() == [
        ("cli", "ledger.correct", "cor_1", {"kind": "restatement", "reason": "billed wrongly", "lines": 3})
    ]
    assert db.execute("SELECT count(*) FROM ledger WHERE correction_id = 'cor_1'").fetchone() == (4,)
    assert correct(database_url, lambda store: store.write(batch("cor_2"), [], by=COMMAND_LINE)) == 0
    assert db.execute("SELECT count(*) FROM corrections").fetchone() == (1,)


def test_the_same_again_is_nothing(tmp_path: Path, database_url: str, db: psycopg.Connection) -> None:
    """Entries that are there already are not written again, also if their month was closed meanwhile."""
    ship(database_url, tmp_path, entry(1))
    entries = pair(in_force(database_url, *ALL)["att_00000001"])
    assert write(database_url, *entries) == 2
    closed(db, "2025-11-01")
    before = rows(db)
    assert write(database_url, *entries) == 0
    assert rows(db) == before


def test_a_month_that_is_closed_meanwhile(tmp_path: Path, database_url: str, db: psycopg.Connection) -> None:
    """What was worked out for an open month counts in the next one, if that is closed when it is written."""
    ship(database_url, tmp_path, entry(1))
    entries = pair(in_force(database_url, *ALL)["att_00000001"])
    closed(db, "2025-11-01")
    assert write(database_url, *entries) == 2
    assert {rows(db)[each.attempt_id][:2] for each in entries} == {(DECEMBER, entry(1).started_at)}


def test_two_who_correct_the_same(tmp_path: Path, database_url: str, db: psycopg.Connection) -> None:
    """One of them is told, and nothing of that part is written; nothing is ever doubled."""
    ship(database_url, tmp_path, entry(1), entry(2))
    found = in_force(database_url, *ALL)

    async def both(store: PostgresCorrections) -> list[int | BaseException]:
        def of(name: str) -> list[LedgerEntry]:
            return [row for now in found.values() for row in pair(now, name)]

        names = [f"cor_{number}" for number in range(6)]
        writes = [store.write(batch(name), of(name), by=COMMAND_LINE) for name in names]
        return await asyncio.gather(*writes, return_exceptions=True)

    told = correct(database_url, both)
    assert sorted(map(str, told))[0] == "4"
    assert sum(isinstance(each, CorrectedMeanwhileError) for each in told) == 5
    assert db.execute("SELECT count(*) FROM ledger").fetchone() == (2 + 4,)
    assert db.execute("SELECT count(*) FROM corrections").fetchone() == (1,)
    assert not db.execute(SUMS_DIFFER).fetchall()


def test_a_long_batch_that_is_cut_off(tmp_path: Path, database_url: str, db: psycopg.Connection) -> None:
    """Whole attempts are there or not; who asks again finds the rest, and nothing is corrected twice."""
    count = CHUNK_ENTRIES * 3 // 4
    ship(database_url, tmp_path, *(entry(number) for number in range(1, count + 1)))
    found = in_force(database_url, *ALL)
    entries = [row for now in found.values() for row in pair(now)]
    stop = entries[CHUNK_ENTRIES + 11].attempt_id
    db.execute(
        f"""
        CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'stopped'; END $$;
        CREATE TRIGGER stop BEFORE INSERT ON ledger FOR EACH ROW WHEN (NEW.attempt_id = '{stop}')
            EXECUTE FUNCTION stop();
        """
    )
    with pytest.raises(psycopg.Error):
        write(database_url, *entries)
    db.execute("DROP TRIGGER stop ON ledger")
    written = {each.attempt_id for each in entries} & set(rows(db))
    assert written == {each.attempt_id for each in entries[:CHUNK_ENTRIES]}
    assert write(database_url, *entries) == len(entries) - CHUNK_ENTRIES
    assert {now.revision for now in in_force(database_url, *ALL).values()} == {1}
    assert not db.execute(SUMS_DIFFER).fetchall()


def test_parts_divide_no_attempt(tmp_path: Path, database_url: str, db: psycopg.Connection) -> None:
    """An attempt's reversal is never there without its replacement."""
    ship(database_url, tmp_path, *(entry(number) for number in range(1, CHUNK_ENTRIES + 2)))
    found = list(in_force(database_url, *ALL).values())
    extra = adjusted(found[0], correction_id="cor_1", amount=Money(1), closed_until=None)
    write(database_url, extra, *(row for now in found[1:] for row in pair(now)))
    halves = db.execute(
        "SELECT corrects FROM ledger WHERE right(attempt_id, 1) IN ('-', '+') "
        "GROUP BY xmin, corrects HAVING count(*) <> 2"
    ).fetchall()
    assert halves == []


def test_a_line_of_nobodys_is_booked_once(tmp_path: Path, database_url: str, db: psycopg.Connection) -> None:
    """By its name, whoever finds it again and whatever was closed meanwhile."""

    def line(name: str) -> LedgerEntry:
        return unattributed(
            correction_id=name,
            provider="evolink",
            account="main",
            model="kimi-k2-thinking",
            line="17",
            at=OCTOBER,
            amount=Money(-5),
            closed_until=None,
            upstream_request_id=None,
        )

    assert write(database_url, line("cor_1")) == 1
    assert write(database_url, line("cor_1")) == 0
    closed(db)
    with pytest.raises(CorrectedMeanwhileError):
        write(database_url, line("cor_2"), name="cor_2")
    assert rows(db) == {"evolink/main/17~1=": (OCTOBER, None, -5)}
    assert in_force(database_url, *ALL) == {}


# --- budgets ---------------------------------------------------------------------------------------------------------


def test_a_refund_of_a_closed_month_counts_on_the_day_of_the_attempt(
    tmp_path: Path, database_url: str, db: psycopg.Connection
) -> None:
    """In the ledger it counts when the first open month begins; for budgets when the attempt was admitted."""
    admitted = OCTOBER - DAY
    made = october(1, admitted_at=admitted)
    ship(database_url, tmp_path, made)
    closed(db)
    now = in_force(database_url, OCTOBER, NOVEMBER)["att_00000001"]
    write(database_url, adjusted(now, correction_id="cor_1", amount=Money(-9), closed_until=None))
    found = db.execute(
        "SELECT day, journal_id, posted_pico::bigint, rows FROM budget_postings WHERE scope = 'key:key_1'"
    ).fetchall()
    assert sorted(found, key=str) == [
        (admitted.date(), "cor_1", -9, 1),
        (admitted.date(), "j1", made.cost_pico, 1),
    ]


def test_a_living_gateway_sees_a_refund(tmp_path: Path, database_url: str) -> None:
    """What was refused for want of money is admitted once a refund is written and looked for."""
    now = datetime.now(UTC)
    made = entry(1, started_at=now)
    ship(database_url, tmp_path, made)
    cost = Money(made.cost_pico)
    budget = Budget(budget_id="b", scope="key:key_1", name="one", period=Period.DAY, limit=cost)

    def asked(hold_id: str) -> Demand:
        claim = BudgetClaim(budget, window_of(budget.scope, budget.period, now))
        return Demand(hold_id=hold_id, tokens=1, amount=cost, amount_min=cost, budgets=(claim,))

    async def scenario() -> None:
        balances = PostgresBalances(database_url)
        store = PostgresCorrections(database_url, clock=SystemClock())
        gateway = LocalAllowances("j2", balances, clock=SystemClock())
        assert isinstance(await gateway.take(asked("r1")), Exceeded)
        found = await store.attempt("att_00000001")
        assert found is not None
        refund = adjusted(found, correction_id="cor_1", amount=-cost, closed_until=None)
        await store.write(batch(kind="refund"), [refund], by=COMMAND_LINE)
        await gateway.refresh()
        assert isinstance(await gateway.take(asked("r2")), Granted)
        await store.close()
        await balances.close()

    asyncio.run(scenario())


# --- late arrivals ---------------------------------------------------------------------------------------------------


def test_what_arrives_after_its_month_was_closed(tmp_path: Path, database_url: str, db: psycopg.Connection) -> None:
    """It counts when the first open month begins, once, says when it happened, and for budgets on its own day."""
    closed(db)
    late = october(1)
    ship(database_url, tmp_path / "a", late, entry(2))
    for number in range(3):
        ship(database_url, tmp_path / f"b{number}", late, journal_id=f"j_again_{number}")
    closed(db, "2025-11-01")
    ship(database_url, tmp_path / "c", late, journal_id="j_after_another_close")
    assert rows(db) == {
        late.attempt_id: (NOVEMBER, late.started_at, late.cost_pico),
        "att_00000002": (entry(2).started_at, None, entry(2).cost_pico),
    }
    assert db.execute("SELECT attempt_id, started_at, counted_at FROM late_attempts").fetchall() == [
        (late.attempt_id, late.started_at, NOVEMBER)
    ]
    days = db.execute(
        "SELECT day, sum(rows)::int FROM budget_postings WHERE scope = 'organisation' GROUP BY 1 ORDER BY 1"
    )
    assert days.fetchall() == [(late.started_at.date(), 1), (T0.date(), 1)]
    assert not db.execute(SUMS_DIFFER).fetchall()


def test_what_was_there_before_its_month_was_closed(tmp_path: Path, database_url: str, db: psycopg.Connection) -> None:
    """Shipped again after the close it is no late arrival: it is known."""
    ship(database_url, tmp_path / "a", october(1))
    closed(db)
    ship(database_url, tmp_path / "b", october(1), journal_id="j2")
    assert set(rows(db)) == {"att_00000001"}
    assert db.execute("SELECT count(*) FROM late_attempts").fetchone() == (0,)


def test_two_shippers_of_the_same_late_attempts(tmp_path: Path, database_url: str, db: psycopg.Connection) -> None:
    """At the same time from two journals: each attempt once."""
    closed(db)
    late = [october(number) for number in range(1, 301)]

    async def both() -> None:
        one = asyncio.to_thread(ship, database_url, tmp_path / "a", *late, journal_id="j1")
        other = asyncio.to_thread(ship, database_url, tmp_path / "b", *reversed(late), journal_id="j2")
        await asyncio.gather(one, other)

    asyncio.run(both())
    assert db.execute("SELECT count(*), sum(cost_pico)::bigint FROM ledger").fetchone() == (
        300,
        sum(each.cost_pico for each in late),
    )
    assert db.execute("SELECT count(*) FROM ledger_dead_letters").fetchone() == (0,)
    assert not db.execute(SUMS_DIFFER).fetchall()


def test_a_late_attempt_is_corrected(tmp_path: Path, database_url: str, db: psycopg.Connection) -> None:
    """It is found in the period in which it happened, and in no other; so is what corrects it."""
    closed(db)
    ship(database_url, tmp_path, october(1))
    assert in_force(database_url, NOVEMBER, DECEMBER) == {}
    now = in_force(database_url, OCTOBER, NOVEMBER)["att_00000001"]
    assert now.original_started_at == october(1).started_at
    assert msgspec.structs.replace(now.entry, started_at=now.original_started_at, restates=None) == october(1)
    write(database_url, *pair(now))
    again = in_force(database_url, OCTOBER, NOVEMBER)["att_00000001"]
    assert (again.revision, again.original_started_at) == (1, now.original_started_at)
    assert correct(database_url, lambda store: store.attempt("att_00000001")) == again
    assert rows(db)["att_00000001~1+"][:2] == (NOVEMBER, october(1).started_at)


def test_rows_of_an_archived_month_are_set_aside(tmp_path: Path, database_url: str, db: psycopg.Connection) -> None:
    """Whether they were counted then is not known to the database any more; the reason says so."""
    closed(db)
    db.execute("UPDATE ledger_closings SET archived_at = now(), archive = '{}'")
    ship(database_url, tmp_path, october(1), entry(2))
    assert set(rows(db)) == {"att_00000002"}
    found = db.execute("SELECT reason FROM ledger_dead_letters").fetchall()
    assert len(found) == 1
    assert "archive" in found[0][0]

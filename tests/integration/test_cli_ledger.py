"""`gateway ledger`: a closed month takes nothing more and exports the same bytes for ever; what is wrong is named."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from gateway.adapters.clock import SystemClock
from gateway.adapters.journal import JournalWriter
from gateway.adapters.postgres.closings import PostgresClosings
from gateway.adapters.postgres.reports import Reports
from gateway.cli.digesting import digest_month
from gateway.cli.root import cli
from gateway.core.closing import Closing, MonthDigest, NotClosedError, month_end
from gateway.core.corrections import adjusted
from gateway.core.focus import FocusRows
from gateway.core.grants import COMMAND_LINE
from gateway.core.ledger import LedgerEntry
from gateway.core.money import Money
from gateway.core.spend import Selection
from gateway.core.usage import UsageSource
from gateway.http.books import ledger_pieces
from gateway.http.focus import focus_csv
from tests.integration.bookkeeping import (
    DECEMBER,
    NOVEMBER,
    OCTOBER,
    SUMS_DIFFER,
    batch,
    correct,
    in_force,
    october,
    ship,
)
from tests.integration.samples import T0, entry

pytestmark = pytest.mark.integration

CONFIG = Path(__file__).parents[2] / "config"
MONTH = datetime(2025, 10, 1, tzinfo=UTC)
CLOSE = ("close", "2025-10", "--reason", "signed", "--yes")
Run = Callable[..., Result]


@pytest.fixture
def db(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def run(tmp_path: Path, database_url: str) -> Run:
    environment = {
        "GATEWAY_DATABASE_URL": database_url,
        "GATEWAY_DATA_DIR": str(tmp_path / "var"),
        "GATEWAY_CONFIG_DIR": str(CONFIG),
    }

    def one(*arguments: str, status: int = 0) -> Result:
        done = CliRunner().invoke(cli, ["ledger", *arguments], env=environment)
        assert done.exit_code == status, (done.output, done.exception)
        return done

    return one


def told(run: Run, *arguments: str, status: int = 0) -> Any:
    return json.loads(run(*arguments, "--json", status=status).stdout)


def exports(url: str, month: datetime = MONTH) -> tuple[bytes, bytes]:
    """The ledger's JSON Lines and the FOCUS file of a month."""

    async def scenario() -> tuple[bytes, bytes]:
        reports = Reports(url)
        rows = reports.ledger(Selection(start=month, end=month_end(month)))
        ledger = [piece async for piece in ledger_pieces(rows, "jsonl")]
        focus_rows = FocusRows(await reports.billing_account(month, month_end(month)))
        focus = [piece async for piece in focus_csv(reports.charges(month, month_end(month)), focus_rows)]
        await reports.close()
        return b"".join(ledger), b"".join(focus)

    return asyncio.run(scenario())


def some(count: int = 5) -> list[LedgerEntry]:
    return [october(number, key_id=f"key_{number % 2}", team=[None, "blue"][number % 2]) for number in range(1, count)]


def test_a_month_is_closed(tmp_path: Path, database_url: str, db: psycopg.Connection, run: Run) -> None:
    """With the checksums of what it exports, the name of the organisation, who and why; the audit knows."""
    ship(database_url, tmp_path / "var", *some(), entry(9))
    db.execute("UPDATE organisation SET name = 'Example Ltd.'")
    ledger, focus = exports(database_url)
    done = told(run, *CLOSE)
    assert done["ledger_sha256"] == hashlib.sha256(ledger).hexdigest()
    assert done["focus_sha256"] == hashlib.sha256(focus).hexdigest()
    assert (done["month"], done["rows"], done["organisation"]) == ("2025-10", 4, "Example Ltd.")
    assert done["cost"] == str(Money(sum(each.cost_pico for each in some())))
    audit = db.execute("SELECT actor, action, target, after ->> 'reason' FROM audit_entries").fetchall()
    assert audit == [("cli", "ledger.close", "2025-10", "signed")]
    months = {row["month"]: row for row in told(run, "months")["data"]}
    assert [(name, row["state"], row["rows"]) for name, row in months.items()] == [
        ("2025-10", "closed", 4), ("2025-11", "open", 1),
    ]  # fmt: skip
    assert (months["2025-10"]["ledger_sha256"], months["2025-11"]["ledger_sha256"]) == (done["ledger_sha256"], None)
    assert "closed" in run("months").stdout


def test_nothing_is_added_to_a_closed_month(
    tmp_path: Path, database_url: str, db: psycopg.Connection, run: Run
) -> None:
    """Not even by hand."""
    ship(database_url, tmp_path / "var", *some())
    run(*CLOSE)
    with pytest.raises(psycopg.errors.RestrictViolation, match="is closed"):
        db.execute(
            "INSERT INTO ledger SELECT (l).* FROM (SELECT l FROM ledger AS l LIMIT 1) AS one ON CONFLICT DO NOTHING"
        )


def test_the_same_bytes_for_ever(tmp_path: Path, database_url: str, db: psycopg.Connection, run: Run) -> None:
    """After late arrivals, corrections, renamings and closings of later months; all of which the next month shows."""
    ship(database_url, tmp_path / "var", *some(), entry(9))
    before = exports(database_url)
    run(*CLOSE)
    ship(database_url, tmp_path / "var", october(77), journal_id="j_late")
    now = in_force(database_url, OCTOBER, NOVEMBER)["att_00000001"]
    refund = adjusted(now, correction_id="cor_1", amount=Money(-5), closed_until=None)
    correct(database_url, lambda store: store.write(batch(), [refund], by=COMMAND_LINE))
    db.execute("UPDATE organisation SET name = 'Another Ltd.'")
    db.execute("INSERT INTO teams (name, created_at) VALUES ('blue', now()) ON CONFLICT DO NOTHING")
    db.execute(
        "INSERT INTO api_keys (key_id, name, team, role, tags, created_at) "
        "VALUES ('key_1', 'renamed', 'blue', 'inference', '{}', now())"
    )
    assert exports(database_url) == before
    told(run, "close", "2025-11", "--reason", "signed", "--yes")
    assert exports(database_url) == before
    assert told(run, "verify")["ok"]
    ledger, focus = exports(database_url, NOVEMBER)
    assert [json.loads(line)["attempt_id"] for line in ledger.splitlines()] == [
        "att_00000001~1=", "att_00000077", "att_00000009",
    ]  # fmt: skip
    assert b"Correction" in focus
    assert b"Another Ltd." in focus
    assert b"Another Ltd." not in before[1]
    assert not db.execute(SUMS_DIFFER).fetchall()


def test_an_empty_month(tmp_path: Path, database_url: str, run: Run) -> None:
    """A month without rows can be closed, and its exports are what exports of nothing are."""
    ship(database_url, tmp_path / "var", entry(9))
    done = told(run, *CLOSE)
    assert (done["rows"], done["cost"]) == (0, "0")
    assert done["ledger_sha256"] == hashlib.sha256(b"").hexdigest()
    assert told(run, "verify", "2025-10")["ok"]


# --- what is refused -------------------------------------------------------------------------------------------------


def test_only_once_and_in_order(tmp_path: Path, database_url: str, run: Run) -> None:
    """A closed month says who closed it; one before it that is open comes first; one that was passed over is closed."""
    ship(database_url, tmp_path / "var", *some(), entry(9))
    assert "gateway ledger close 2025-10" in run("close", "2025-11", "--reason", "x", "--yes", status=1).stderr
    run(*CLOSE)
    assert "closed already, by cli" in run(*CLOSE, status=1).stderr
    assert "later month" in run("close", "2025-09", "--reason", "x", "--yes", status=1).stderr


def test_a_month_that_is_not_over(run: Run) -> None:
    """It says from when on it can be closed."""
    month = f"{datetime.now(UTC):%Y-%m}"
    done = run("close", month, "--reason", "x", "--yes", status=1)
    assert f"{month_end(datetime.now(UTC).replace(day=1)):%Y-%m-01T01:00Z}" in done.stderr


def test_what_is_set_aside(tmp_path: Path, database_url: str, db: psycopg.Connection, run: Run) -> None:
    """Money may be in it."""
    ship(database_url, tmp_path / "var", *some())
    db.execute("INSERT INTO ledger_dead_letters VALUES ('j', 1, 1, '', 'broken')")
    assert "ledger_dead_letters" in run(*CLOSE, status=1).stderr


def test_what_is_still_in_a_journal(tmp_path: Path, database_url: str, run: Run) -> None:
    """Attempts of that month that are not shipped, and journals that nobody has taken up; later ones do not matter."""
    ship(database_url, tmp_path / "var", *some())
    writer = JournalWriter.open(tmp_path / "var", "j_new")
    asyncio.run(writer.durable(writer.append(entry(50))))
    assert "is closed" in run(*CLOSE).stdout
    asyncio.run(writer.durable(writer.append(entry(51))))
    writer.close()
    done = run("close", "2025-11", "--reason", "x", "--yes", status=1)
    assert "2 attempts" in done.stderr
    assert "1 journals of stopped gateways" in done.stderr


def test_sums_that_are_not_those_of_the_rows(
    tmp_path: Path, database_url: str, db: psycopg.Connection, run: Run
) -> None:
    """Nothing is signed whose two exports cost different amounts."""
    ship(database_url, tmp_path / "var", *some())
    db.execute("UPDATE spend_rollup SET cost_pico = cost_pico + 1, fee_pico = fee_pico + 1 WHERE grain = 'quarter'")
    assert "gateway ledger verify" in run(*CLOSE, status=1).stderr
    assert db.execute("SELECT count(*) FROM ledger_closings").fetchone() == (0,)


def test_a_worker_that_has_vanished(tmp_path: Path, database_url: str, db: psycopg.Connection, run: Run) -> None:
    """Its journal is elsewhere: it is named, and one may close all the same. One that lives is no obstacle."""
    ship(database_url, tmp_path / "var", *some())
    db.execute("INSERT INTO workers (worker_id, seen_at) VALUES ('w_gone', now() - interval '2 hours'), ('w', now())")
    done = run(*CLOSE, status=1)
    assert "w_gone" in done.stderr
    assert "worker w " not in done.stderr
    assert "is closed" in run(*CLOSE, "--despite-absent").stdout


def test_nobody_is_there_to_ask(tmp_path: Path, database_url: str, db: psycopg.Connection, run: Run) -> None:
    """In a pipe it says what would be frozen and wants --yes; bad usage is named."""
    ship(database_url, tmp_path / "var", *some(), october(8, used=None, source=UsageSource.ESTIMATED))
    done = run("close", "2025-10", "--reason", "x", status=1)
    assert "5 rows" in done.stderr
    assert "20.00 %" in done.stderr
    assert "--yes" in done.stderr
    assert db.execute("SELECT count(*) FROM ledger_closings").fetchone() == (0,)
    assert "2025-13" in run("close", "2025-13", "--reason", "x", status=2).stderr
    assert "--reason" in run("close", "2025-10", status=2).stderr
    assert "--reason" in run("close", "2025-10", "--reason", " ", "--yes", status=2).stderr


async def _close(url: str, digest: Callable[[Reports], Any] | None = None, reason: str = "signed") -> Closing:
    store, reports = PostgresClosings(url, clock=SystemClock()), Reports(url)

    async def digested() -> tuple[MonthDigest, Money]:
        if digest is not None:
            await digest(reports)
        return await digest_month(reports, MONTH, lambda _: None)

    try:
        return await store.close_month(MONTH, digested, reason=reason, by=COMMAND_LINE)
    finally:
        await store.close()
        await reports.close()


def test_two_who_close_at_once(tmp_path: Path, database_url: str, db: psycopg.Connection) -> None:
    """One wins, and the other says so."""
    ship(database_url, tmp_path, *some())

    async def both() -> list[Closing | BaseException]:
        return await asyncio.gather(*(_close(database_url) for _ in range(4)), return_exceptions=True)

    found = asyncio.run(both())
    assert sum(isinstance(each, Closing) for each in found) == 1
    assert sum(isinstance(each, NotClosedError) and "closed already" in str(each) for each in found) == 3
    assert db.execute("SELECT count(*) FROM audit_entries").fetchone() == (1,)


def test_rows_that_come_while_a_month_is_digested(tmp_path: Path, database_url: str, db: psycopg.Connection) -> None:
    """They are in what is signed, or they come late: never in between."""
    ship(database_url, tmp_path, *some())
    names = iter(("late_1", "late_2"))

    async def meanwhile(reports: Reports) -> None:
        name = next(names, None)
        if name is not None:
            number = {"late_1": 31, "late_2": 32}[name]
            await asyncio.to_thread(ship, database_url, tmp_path / name, october(number), journal_id=name)

    async def after_digesting() -> Closing:
        store, reports = PostgresClosings(database_url, clock=SystemClock()), Reports(database_url)

        async def digested() -> tuple[MonthDigest, Money]:
            found = await digest_month(reports, MONTH, lambda _: None)
            await meanwhile(reports)
            return found

        try:
            return await store.close_month(MONTH, digested, reason="signed", by=COMMAND_LINE)
        finally:
            await store.close()
            await reports.close()

    closing = asyncio.run(after_digesting())
    assert closing.digest.rows == 6
    assert hashlib.sha256(exports(database_url)[0]).digest() == closing.digest.ledger_sha256
    assert hashlib.sha256(exports(database_url)[1]).digest() == closing.digest.focus_sha256


def test_shippers_at_work_while_a_month_is_closed(
    tmp_path: Path, database_url: str, db: psycopg.Connection, run: Run
) -> None:
    """Whatever the order, every attempt counts once, nothing is set aside, and the closed month verifies."""
    ship(database_url, tmp_path / "var", *some())
    journals = [[october(1000 * number + each) for each in range(200)] for number in range(1, 5)]

    async def everything() -> Closing:
        shipping = [
            asyncio.to_thread(ship, database_url, tmp_path / f"s{number}", *entries, journal_id=f"s{number}")
            for number, entries in enumerate(journals)
        ]
        closing, *_ = await asyncio.gather(_close(database_url), *shipping)
        return closing

    closing = asyncio.run(everything())
    late = db.execute("SELECT count(*) FROM late_attempts").fetchone()
    assert late is not None
    assert closing.digest.rows + late[0] == 4 + 800
    assert db.execute("SELECT count(*), count(DISTINCT attempt_id) FROM ledger").fetchone() == (804, 804)
    assert db.execute("SELECT count(*) FROM ledger_dead_letters").fetchone() == (0,)
    assert told(run, "verify")["ok"]


# --- verify ----------------------------------------------------------------------------------------------------------


def tampered(db: psycopg.Connection, *statements: str) -> None:
    with db.transaction():
        db.execute("SET LOCAL gateway.maintenance = 'on'")
        for statement in statements:
            db.execute(statement.encode())


TAMPERED = [
    ("UPDATE ledger SET key_name = 'other' WHERE attempt_id = 'att_00000002'", {"ledger", "sums"}, "2025-10-20"),
    ("DELETE FROM ledger WHERE attempt_id = 'att_00000002'", {"ledger", "sums"}, "3 rows"),
    (
        "UPDATE ledger SET output_pico = output_pico + 1, cost_pico = cost_pico + 1 WHERE attempt_id = 'att_00000003'",
        {"ledger", "sums", "prices"},
        "att_00000003",
    ),
    ("UPDATE spend_rollup SET cost_pico = cost_pico + 1 WHERE grain = 'month'", {"sums"}, "the month of 2025-10-01"),
    ("UPDATE spend_rollup SET requests = requests + 1 WHERE grain = 'quarter'", {"sums", "focus"}, "the quarter of"),
    ("UPDATE ledger_closings SET focus_sha256 = sha256('x')", {"focus"}, "SHA-256"),
]


@pytest.mark.parametrize(("statement", "checks", "named"), TAMPERED)
def test_what_was_tampered_with_is_named(
    tmp_path: Path, database_url: str, db: psycopg.Connection, run: Run, statement: str, checks: set[str], named: str
) -> None:
    """By month, check, and the first day, row or sum that is not what it was."""
    ship(database_url, tmp_path / "var", *some(), entry(9))
    run(*CLOSE)
    assert told(run, "verify")["ok"]
    tampered(db, statement)
    found = told(run, "verify", status=1)
    october_found = found["months"][0]
    assert (found["ok"], october_found["ok"], october_found["month"]) == (False, False, "2025-10")
    wrong = {each["check"]: each["difference"] for each in october_found["checks"] if each["difference"]}
    assert set(wrong) == checks
    assert named in " ".join(wrong.values())
    text = run("verify", "2025-10", status=1).stdout
    assert named in text
    assert "fail" in text


def test_prices_that_are_gone_are_compared_with_each_other(
    tmp_path: Path, database_url: str, db: psycopg.Connection, run: Run
) -> None:
    """A row at a price that prices.toml has no more still has to cost what its fellows cost."""
    ship(database_url, tmp_path / "var", *some())
    tampered(db, "UPDATE ledger SET price_id = 'evolink/gone@2020-01-01T00:00:00Z#00000000'")
    odd = "UPDATE ledger SET input_pico = input_pico + {}, cost_pico = cost_pico + {} WHERE attempt_id = 'att_00000003'"
    checks = {each["check"]: each["difference"] for each in told(run, "verify", status=1)["months"][0]["checks"]}
    assert checks["prices"] is None
    for amount in (400, 1):
        tampered(db, odd.format(amount, amount))
        checks = {each["check"]: each["difference"] for each in told(run, "verify", status=1)["months"][0]["checks"]}
        assert "evolink/gone" in checks["prices"]


def test_corrections_of_nothing(tmp_path: Path, database_url: str, db: psycopg.Connection, run: Run) -> None:
    """A correction names an attempt that is there and a batch that says why; those of late attempts and lines do."""
    ship(database_url, tmp_path / "var", *some(), entry(9))
    run(*CLOSE)
    ship(database_url, tmp_path / "var", october(77), journal_id="j_late")
    for attempt in ("att_00000001", "att_00000077", "att_00000009"):
        run("refund", attempt, "--amount", "0.00000001", "--reason", "x")
    run("refund", "--provider", "evolink", "--account", "main", "--amount", "1", "--reason", "x")
    assert told(run, "verify")["ok"]
    for statement in (
        "UPDATE ledger SET corrects = 'att_none' WHERE attempt_id = 'att_00000009~1='",
        "UPDATE ledger SET correction_id = 'cor_none' WHERE attempt_id = 'att_00000009~1='",
    ):
        tampered(db, statement)
        november = told(run, "verify", "2025-11", status=1)["months"][0]
        wrong = {each["check"]: each["difference"] for each in november["checks"] if each["difference"]}
        assert "att_00000009~1=" in wrong["corrections"]
        tampered(
            db,
            "UPDATE ledger SET corrects = 'att_00000009' WHERE attempt_id = 'att_00000009~1='",
        )


def test_a_month_of_nothing(run: Run) -> None:
    """A month that is not in the books is status 1; no books at all are in order."""
    assert "2024-01" in run("verify", "2024-01", status=1).stderr
    assert told(run, "verify") == {"months": [], "ok": True}


# --- refund and restate ----------------------------------------------------------------------------------------------


def test_a_refund(tmp_path: Path, database_url: str, db: psycopg.Connection, run: Run) -> None:
    """It is told before and after; more than the attempt costs is not given back."""
    ship(database_url, tmp_path / "var", *some())
    run(*CLOSE)
    cost = Money(october(1).cost_pico)
    done = told(run, "refund", "att_00000001", "--amount", "0.0001", "--reason", "credit note 7")
    assert (done["cost_before"], done["difference"]) == (str(cost), "-0.0001")
    assert "credit note 7" in str(db.execute("SELECT reason FROM corrections WHERE kind = 'refund'").fetchone())
    assert db.execute("SELECT started_at, fee_pico FROM ledger WHERE corrects IS NOT NULL").fetchall() == [
        (NOVEMBER, -100_000_000)
    ]
    assert (
        "cannot be given back" in run("refund", "att_00000001", "--amount", str(cost), "--reason", "x", status=1).stderr
    )
    assert "att_none" in run("refund", "att_none", "--amount", "1", "--reason", "x", status=1).stderr
    for amount in ("0", "-1", "some", "0.0000000000001"):
        assert "--amount" in run("refund", "att_00000001", f"--amount={amount}", "--reason", "x", status=2).stderr


def test_a_credit_of_nobodys(database_url: str, db: psycopg.Connection, run: Run) -> None:
    """A provider's credit without an attempt is booked once by its reference."""
    credit = ("refund", "--provider", "evolink", "--account", "main", "--amount", "2.5", "--reason", "goodwill")
    done = told(run, *credit, "--reference", "CN-1", "--at", "2025-11-22")
    assert (done["corrects"], done["cost"]) == ("evolink/main/CN-1", "-2.5")
    assert "CN-1" in run(*credit, "--reference", "CN-1", "--at", "2025-11-22", status=1).stderr
    assert db.execute("SELECT started_at, key_id, cost_pico FROM ledger").fetchall() == [
        (datetime(2025, 11, 22, tzinfo=UTC), "unattributed", -2_500_000_000_000)
    ]
    assert run("refund", "--provider", "evolink", "--amount", "1", "--reason", "x", status=2).exit_code == 2
    assert run("refund", "a", "--reference", "b", "--amount", "1", "--reason", "x", status=2).exit_code == 2


def test_a_restatement(tmp_path: Path, database_url: str, db: psycopg.Connection, run: Run) -> None:
    """What is not named stays; the price row stays; nonsense is refused."""
    ship(database_url, tmp_path / "var", entry(1, source=UsageSource.ESTIMATED), entry(2))
    done = told(run, "restate", "att_00000001", "--output-tokens", "300", "--reason", "their log")
    assert (done["input_tokens"], done["cached_tokens"], done["output_tokens"]) == (1000, 600, 300)
    assert done["difference"] == str(Money(100 * 2_222_000))
    now = in_force(database_url, T0, DECEMBER)["att_00000001"]
    assert now.entry.usage_source == "provider"
    again = told(run, "restate", "att_00000001", "--cached-tokens", "0", "--reason", "their log")
    assert again["cost_before"] == done["cost"]
    assert "att_00000001" in run("restate", "att_00000001", "--output-tokens", "1", "--reason", "x").stdout
    for options in (["--cached-tokens", "2000"], ["--reasoning-tokens", "2000"], []):
        assert run("restate", "att_00000002", *options, "--reason", "x", status=2).exit_code == 2
    tampered(db, "UPDATE ledger SET price_id = 'evolink/gone@2020-01-01T00:00:00Z#00000000'")
    assert "reprice" in run("restate", "att_00000002", "--output-tokens", "1", "--reason", "x", status=1).stderr

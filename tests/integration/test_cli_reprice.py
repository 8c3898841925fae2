"""`gateway prices reprice`: a price learned late is put into the books, once, by rows that say why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from gateway.cli.root import cli
from gateway.core.corrections import adjusted
from gateway.core.exchange import AttemptStatus
from gateway.core.grants import COMMAND_LINE
from gateway.core.money import Money
from gateway.core.usage import NO_USAGE, UsageSource
from tests.integration.bookkeeping import ALL, DECEMBER, SUMS_DIFFER, batch, closed, correct, in_force, ship
from tests.integration.samples import PRICE, T0, entry, usage

pytestmark = pytest.mark.integration

CONFIG = Path(__file__).parents[2] / "config"
LATER = """
[[prices]]
provider       = "evolink"
model          = "kimi-k2-thinking"
effective_from = 2025-11-22T10:00:03Z
input          = "0.500"
cached_input   = "0.100"
output         = "3.000"
source         = "told late"
checked_at     = 2025-12-01

[[prices]]
provider       = "evolink"
model          = "kimi-k2-thinking"
effective_from = 2025-11-22T10:01:00Z
input          = "0.556"
cached_input   = "0.139"
output         = "2.222"
source         = "and taken back a minute later"
checked_at     = 2025-12-01
"""
PERIOD = ("--from", "2025-11-01", "--to", "2025-12-01")
NEW_COST = 400 * 500_000 + 600 * 100_000 + 200 * 3_000_000
OLD_COST = entry(1).cost_pico
Run = Callable[..., Result]


@pytest.fixture
def db(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def run(tmp_path: Path, database_url: str) -> Run:
    """One command on the test's database, with a configuration of its own."""
    config = tmp_path / "config"
    shutil.copytree(CONFIG, config)
    prices = config / "prices.toml"
    prices.write_text(prices.read_text() + LATER)
    environment = {
        "GATEWAY_DATABASE_URL": database_url,
        "GATEWAY_DATA_DIR": str(tmp_path / "var"),
        "GATEWAY_CONFIG_DIR": str(config),
    }

    def one(*arguments: str, status: int = 0) -> Result:
        done = CliRunner().invoke(cli, ["prices", "reprice", *arguments], env=environment)
        assert done.exit_code == status, done.output
        return done

    return one


def told(run: Run, *options: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(*PERIOD, *options, "--json").stdout)
    return found


def test_a_price_learned_late(tmp_path: Path, database_url: str, db: psycopg.Connection, run: Run) -> None:
    """Attempts from then on are rated again, to the pico-dollar; those before, refusals and other rows are left."""
    refused = entry(5, used=NO_USAGE, source=UsageSource.NONE, status=AttemptStatus.FAILED)
    estimated = entry(4, source=UsageSource.ESTIMATED, status=AttemptStatus.ABANDONED)
    ship(database_url, tmp_path / "var", entry(1), entry(2), entry(3), estimated, refused)
    dry = told(run, "--dry-run")
    assert db.execute("SELECT count(*) FROM ledger").fetchone() == (5,)
    assert dry["total"] == {
        "attempts": 2,
        "old_cost": str(Money(2 * OLD_COST)),
        "new_cost": str(Money(2 * NEW_COST)),
        "difference": str(Money(2 * (NEW_COST - OLD_COST))),
    }
    assert (dry["correction_id"], dry["dry_run"]) == (None, True)

    done = told(run, "--reason", "the provider told us on 1 December")
    assert done["total"] == dry["total"]
    assert [row["counts_in"] for row in done["rows"]] == ["2025-11"]
    assert done["rows"][0]["price_id"] == PRICE.price_id
    assert done["rows"][0]["new_price_id"].startswith("evolink/kimi-k2-thinking@2025-11-22T10:00:03Z#")
    found = db.execute(
        "SELECT kind, actor, reason, facts ->> 'from' FROM corrections WHERE correction_id = %s",
        [done["correction_id"]],
    ).fetchall()
    assert found == [("reprice", "cli", "the provider told us on 1 December", "2025-11-01T00:00:00+00:00")]
    now = in_force(database_url, *ALL)
    assert [now[f"att_{number:08d}"].cost.pico for number in range(1, 6)] == [OLD_COST, OLD_COST, NEW_COST, NEW_COST, 0]
    assert now["att_00000004"].entry.usage_source == "estimated"
    assert now["att_00000003"].entry.reasoning_tokens == usage().reasoning
    assert not db.execute(SUMS_DIFFER).fetchall()


def test_twice_is_nothing_the_second_time(tmp_path: Path, database_url: str, db: psycopg.Connection, run: Run) -> None:
    """Also in words."""
    ship(database_url, tmp_path / "var", entry(3))
    told(run)
    again = told(run)
    assert (again["rows"], again["correction_id"], again["total"]["difference"]) == ([], None, "0")
    assert db.execute("SELECT count(*) FROM corrections").fetchone() == (1,)
    assert "Nothing is to be rated again." in run(*PERIOD).stdout


def test_a_closed_month_is_corrected_in_the_next(
    tmp_path: Path, database_url: str, db: psycopg.Connection, run: Run
) -> None:
    """The command names the month, and the rows say for when."""
    ship(database_url, tmp_path / "var", entry(3))
    closed(db, "2025-11-01")
    assert [row["counts_in"] for row in told(run, "--dry-run")["rows"]] == ["2025-12"]
    text = run(*PERIOD).stdout
    assert "counts in 2025-12" in text
    assert str(Money(NEW_COST - OLD_COST)) in text
    found = db.execute("SELECT DISTINCT started_at, restates FROM ledger WHERE corrects IS NOT NULL").fetchall()
    assert [(f"{at:%Y-%m-%d}", restates) for at, restates in found] == [("2025-12-01", entry(3).started_at)]
    assert told(run)["rows"] == []


def test_what_arrived_late_is_rated_again_too(
    tmp_path: Path, database_url: str, db: psycopg.Connection, run: Run
) -> None:
    """On a day of a closed month that has nothing else; beside days on both edges of the period."""
    closed(db, "2025-11-01")
    begins, late = T0 + timedelta(seconds=4), entry(5)
    ship(database_url, tmp_path / "var", entry(3), late, entry(9), entry(8, started_at=begins + timedelta(days=2)))
    assert db.execute("SELECT DISTINCT bucket FROM spend_rollup WHERE grain = 'day'").fetchall() == [(DECEMBER,)]
    period = ("--from", begins.isoformat(), "--to", (T0 + timedelta(seconds=9)).isoformat())
    found = json.loads(run(*period, "--json").stdout)
    assert (found["total"]["attempts"], [row["counts_in"] for row in found["rows"]]) == (1, ["2025-12"])
    now = in_force(database_url, *ALL)
    assert {name for name, each in now.items() if each.revision} == {late.attempt_id}
    assert told(run)["total"]["attempts"] == 3


def test_adjustments_are_kept(tmp_path: Path, database_url: str, run: Run) -> None:
    """A refund stays a refund of the same amount."""
    ship(database_url, tmp_path / "var", entry(3))
    refund = adjusted(
        in_force(database_url, *ALL)["att_00000003"], correction_id="cor_1", amount=Money(-77), closed_until=None
    )
    correct(database_url, lambda store: store.write(batch(), [refund], by=COMMAND_LINE))
    told(run)
    now = in_force(database_url, *ALL)["att_00000003"]
    assert (now.cost, now.adjusted, now.revision) == (Money(NEW_COST - 77), Money(-77), 2)


def test_what_has_no_price_is_left_and_named(tmp_path: Path, database_url: str, run: Run) -> None:
    """No price is no reason to make something free."""
    nowhere = entry(7, model="kimi-k0", provider="elsewhere")
    ship(database_url, tmp_path / "var", entry(3), nowhere)
    found = told(run, "--provider", "elsewhere")
    assert found["rows"] == []
    assert [(row["provider"], row["attempts"]) for row in found["unpriced"]] == [("elsewhere", 1)]
    assert Decimal(found["unpriced"][0]["cost"]) == nowhere.cost_pico / Decimal(10**12)
    assert "no price" in run(*PERIOD).stdout
    assert in_force(database_url, *ALL)["att_00000007"].revision == 0


def test_only_one_provider_or_model(tmp_path: Path, database_url: str, run: Run) -> None:
    """Aliases of a model are known."""
    ship(database_url, tmp_path / "var", entry(3), entry(4))
    assert told(run, "--dry-run", "--provider", "moonshot")["rows"] == []
    assert told(run, "--dry-run", "--model", "kimi-k2.6")["rows"] == []
    assert told(run, "--dry-run", "--model", "moonshotai/Kimi-K2-Thinking")["total"]["attempts"] == 2


def test_an_archived_month_is_not_looked_into(
    tmp_path: Path, database_url: str, db: psycopg.Connection, run: Run
) -> None:
    """Its rows are elsewhere; a period that begins there is refused and the first that may be is named."""
    ship(database_url, tmp_path / "var", entry(3))
    closed(db)
    db.execute("UPDATE ledger_closings SET archived_at = now(), archive = '{}'")
    done = run("--from", "2025-10-01", "--to", "2025-12-01", status=1)
    assert "2025-11-01" in done.stderr
    assert run(*PERIOD, "--dry-run").exit_code == 0


def test_bad_usage(run: Run) -> None:
    """A period must be named, and a reason that is none is refused."""
    assert "--from" in run("--to", "2025-12-01", status=2).stderr
    assert "--reason" in run(*PERIOD, "--reason", " ", status=2).stderr

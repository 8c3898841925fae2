"""`gateway teams|budgets|organisation|audit` and `keys update` from the command line: what they print and refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from gateway.cli.root import cli
from gateway.core.money import Money
from tests.http.house import CONFIG

pytestmark = pytest.mark.integration

Run = Callable[..., Result]


@pytest.fixture
def run(database_url: str, tmp_path: Path) -> Run:
    """Runs one command in this process and checks its exit status."""
    environment = {
        "GATEWAY_DATABASE_URL": database_url,
        "GATEWAY_DATA_DIR": str(tmp_path / "data"),
        "GATEWAY_CONFIG_DIR": str(CONFIG),
    }

    def invoke(*arguments: str, status: int = 0) -> Result:
        done = CliRunner().invoke(cli, arguments, env=environment)
        assert done.exit_code == status, done.output
        assert done.exception is None or isinstance(done.exception, SystemExit)
        return done

    return invoke


def shown(done: Result) -> Any:
    return json.loads(done.stdout)


TEAM = [
    "--models", "kimi-thinking", "--providers", "evolink,moonshot", "--rpm", "600", "--tpm", "1000000",
    "--concurrency", "40", "--key-default-rpm", "60", "--key-default-tpm", "1000", "--key-default-concurrency", "2",
    "--key-max-rpm", "120", "--key-max-tpm", "2000", "--key-max-concurrency", "4", "--budget", "50", "--period",
    "month", "--budget-mode", "clamp", "--tag", "env=test",
]  # fmt: skip


def test_a_team_from_its_beginning(run: Run):
    """Every option is kept, shown, listed and changed; what is not named stays; `--clear` takes away."""
    made = shown(run("teams", "create", "research", *TEAM, "--json"))
    assert (made["models"], made["providers"]) == (["kimi-k2-thinking"], ["evolink", "moonshot"])
    assert (made["rpm"], made["key_default_rpm"], made["key_max_rpm"], made["tags"]) == (600, 60, 120, {"env": "test"})
    assert (made["budget"], made["period"], made["budget_mode"]) == ("50", "month", "clamp")
    assert shown(run("teams", "show", "research", "--json")) == made
    change = ["--rpm", "700", "--clear", "models", "--clear", "key-max-rpm", "--clear", "budget"]
    changed = shown(run("teams", "update", "research", *change, "--json"))
    gone = {"models": None, "key_max_rpm": None, "budget": None, "period": None, "budget_mode": None, "budgets": []}
    assert changed == {**made, **gone, "rpm": 700}
    assert shown(run("teams", "list", "--json"))["data"] == [changed]
    assert "research" in run("teams", "list").output
    assert "700" in run("teams", "show", "research").output


def test_a_ceiling_binds_the_command_line(run: Run):
    """More than a team allows its keys could not be done, with field, asked and allowed."""
    run("teams", "create", "bound", "--key-max-rpm", "10")
    done = run("keys", "create", "--name", "k", "--team", "bound", "--rpm", "11", status=1)
    assert 'rpm: 11 was asked for; the team "bound" allows its keys at most 10' in done.stderr
    assert shown(run("keys", "list", "--json")) == {"data": []}


def test_a_key_changes(run: Run):
    """By name or id; what is not named stays."""
    made = shown(run("keys", "create", "--name", "ci", "--rpm", "5", "--budget", "9", "--period", "day", "--json"))
    kept = {name: value for name, value in made.items() if name not in ("key", "team_created")}
    change = ["--rpm", "6", "--models", "kimi-thinking", "--tag", "a=b", "--expires", "2099-01-01", "--clear", "budget"]
    changed = shown(run("keys", "update", "ci", *change, "--json"))
    assert changed == {
        **kept, "rpm": 6, "models": ["kimi-k2-thinking"], "tags": {"a": "b"}, "expires": "2099-01-01T00:00:00+00:00",
        "budget": None, "period": None, "budget_mode": None, "budgets": [],
    }  # fmt: skip
    renamed = shown(run("keys", "update", made["id"], "--name", "cd", "--models", "", "--json"))
    assert (renamed["name"], renamed["models"], renamed["rpm"]) == ("cd", None, 6)
    assert "none" in run("keys", "update", "none", "--rpm", "1", status=1).stderr


BAD_UPDATES = [
    ([], "--clear"), (["--rpm", "0"], "--rpm"), (["--models", "gpt"], "--models"), (["--clear", "name"], "--clear"),
    (["--clear", "colour"], "--clear"), (["--rpm", "1", "--clear", "rpm"], "--clear"), (["--tag", "x"], "--tag"),
    (["--budget", "much"], "--budget"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "named"), BAD_UPDATES)
def test_bad_updates(run: Run, options: list[str], named: str):
    """What makes no sense is bad usage, names its option and changes nothing."""
    before = shown(run("keys", "create", "--name", "ci", "--json"))
    assert named in run("keys", "update", "ci", *options, status=2).stderr
    assert shown(run("keys", "show", "ci", "--json"))["rpm"] == before["rpm"]


def test_budgets_of_all_kinds(run: Run, database_url: str):
    """Set for a key by name, a team and the organisation; listed with what is spent; removed."""
    key = shown(run("keys", "create", "--name", "ci", "--team", "blue", "--json"))["id"]
    made = shown(run("budgets", "set", "--key", "ci", "--period", "day", "--limit", "2.50", "--json"))
    assert (made["scope"], made["limit"], made["mode"], made["on_outage"], made["alert_at"]) == (
        f"key:{key}", "2.5", "strict", "refuse", [80, 100],
    )  # fmt: skip
    options = ["--mode", "clamp", "--on-outage", "admit", "--alert-at", "50,80"]
    made = shown(run("budgets", "set", "--team", "blue", "--period", "total", "--limit", "50", *options, "--json"))
    assert (made["mode"], made["on_outage"], made["alert_at"]) == ("clamp", "admit", [50, 80])
    run("budgets", "set", "--organisation", "--period", "month", "--limit", "1000", "--alert-at", "")
    with psycopg.connect(database_url, autocommit=True) as db:
        db.execute(
            "INSERT INTO budget_postings (scope, day, journal_id, posted_pico, rows) VALUES (%s, %s, 'j', %s, 1)",
            ("team:blue", "2025-11-22", Money.from_usd("12.5").pico),
        )
    listed = shown(run("budgets", "list", "--json"))["data"]
    assert [each["scope"] for each in listed] == [f"key:{key}", "organisation", "team:blue"]
    assert (listed[2]["spent"], listed[2]["share"], listed[2]["resets_at"]) == ("12.5", "25", None)
    assert shown(run("budgets", "list", "--team", "blue", "--json"))["data"] == [listed[2]]
    assert "25 %" in run("budgets", "list").output
    removed = shown(run("budgets", "remove", "--team", "blue", "--period", "total", "--json"))
    assert removed == listed[2]
    assert "no such budget" in run("budgets", "remove", "--team", "blue", "--period", "total", status=1).stderr


BAD_BUDGETS = [
    (["--period", "day", "--limit", "1"], 2, "--organisation"),
    (["--team", "a", "--organisation", "--period", "day", "--limit", "1"], 2, "--organisation"),
    (["--team", "a", "--limit", "1"], 2, "--period"), (["--team", "a", "--period", "day"], 2, "--limit"),
    (["--team", "a", "--period", "day", "--limit", "much"], 2, "--limit"),
    (["--team", "a", "--period", "day", "--limit", "-1"], 2, "--limit"),
    (["--team", "a", "--period", "day", "--limit", "1", "--alert-at", "often"], 2, "--alert-at"),
    (["--team", "a", "--period", "day", "--limit", "1", "--alert-at", "0"], 2, "--alert-at"),
    (["--team", "none", "--period", "day", "--limit", "1"], 1, "no team 'none'"),
    (["--key", "none", "--period", "day", "--limit", "1"], 1, "no key 'none'"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "status", "named"), BAD_BUDGETS)
def test_bad_budgets(run: Run, options: list[str], status: int, named: str):
    """What makes no sense is bad usage; what is not there could not be done; nothing is set."""
    assert named in run("budgets", "set", *options, status=status).stderr
    assert shown(run("budgets", "list", "--json")) == {"data": []}


def test_the_organisation(run: Run):
    """Name and zone are shown and set; a zone that is none could not be."""
    assert shown(run("organisation", "show", "--json")) == {"name": "organisation", "time_zone": "UTC"}
    assert shown(run("organisation", "set", "--time-zone", "Europe/Berlin", "--json"))["time_zone"] == "Europe/Berlin"
    assert shown(run("organisation", "set", "--name", "Acme", "--json")) == {
        "name": "Acme", "time_zone": "Europe/Berlin",
    }  # fmt: skip
    assert "Mars" in run("organisation", "set", "--time-zone", "Mars/Base", status=1).stderr
    run("organisation", "set", status=2)


def test_the_audit(run: Run, database_url: str):
    """Every write of the command line is there as its own; a chain that was touched is told by status 1."""
    run("keys", "create", "--name", "ci", "--team", "blue")
    run("keys", "update", "ci", "--rpm", "5")
    run("budgets", "set", "--team", "blue", "--period", "day", "--limit", "1")
    found = shown(run("audit", "list", "--json"))["data"]
    assert [(each["id"], each["actor"], each["action"]) for each in found] == [
        (4, "cli", "budget.set"), (3, "cli", "key.update"), (2, "cli", "key.create"), (1, "cli", "team.create"),
    ]  # fmt: skip
    assert [each["id"] for each in shown(run("audit", "list", "--action", "key.update", "--json"))["data"]] == [3]
    page = shown(run("audit", "list", "--limit", "2", "--before", "4", "--json"))["data"]
    assert [each["id"] for each in page] == [3, 2]
    table = run("audit", "list").output
    assert "team:blue/day" in table
    assert "rpm: – → 5" in table
    assert shown(run("audit", "verify", "--json")) == {"entries": 4, "head": found[0]["hash"], "broken": None}
    assert "4 entries are whole" in run("audit", "verify").stdout
    with psycopg.connect(database_url, autocommit=True) as db:
        db.execute("ALTER TABLE audit_entries DISABLE TRIGGER append_only")
        db.execute("UPDATE audit_entries SET actor = 'somebody' WHERE entry_id = 3")
    assert "entry 3 was changed" in run("audit", "verify", status=1).stderr
    assert shown(run("audit", "verify", "--json", status=1))["entries"] == 2

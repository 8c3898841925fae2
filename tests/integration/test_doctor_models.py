"""The doctor reads from the books who still calls a model that is going, and whose tool calls are wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from gateway.catalog import load
from gateway.cli.examination import Check, Examination
from gateway.cli.model_checks import check_tool_calls, check_traffic
from gateway.core.catalogue import Catalogue, RoutingTerms
from gateway.core.ledger import LedgerEntry, PinnedPrice
from tests.integration.samples import entry
from tests.integration.test_reports import ship

pytestmark = pytest.mark.integration

CONFIG = Path(__file__).resolve().parents[2] / "config"
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
CATALOGUE = load(CONFIG, now=NOW).catalogue
MODEL = "kimi-k2-thinking"


def asked(number: int, provider: str = "moonshot", *, days_ago: float = 1.0, **changes: Any) -> LedgerEntry:
    """1,000 tokens in, 600 of them cached, and 200 out: at Moonshot $0.00083, at kimi-k2.6's prices $0.001276."""
    price = CATALOGUE.prices.in_force(provider, MODEL, NOW)
    assert price is not None
    flags = changes.pop("flags", [])
    values = {"provider": provider, "price": PinnedPrice.of(price), "started_at": NOW - timedelta(days=days_ago)}
    settled = entry(number, **{**values, **changes})
    settled.flags.extend(flags)
    return settled


@pytest.fixture
def database(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database_url, autocommit=True) as db:
        yield db


def traffic(db: psycopg.Connection[Any], *, now: datetime = NOW, catalogue: Catalogue = CATALOGUE) -> list[Check]:
    found = Examination()
    check_traffic(found, db, catalogue, now=now)
    return found.checks


def test_traffic_on_a_model_that_is_reported_retired(
    database: psycopg.Connection[Any], database_url: str, tmp_path: Path
) -> None:
    """By key and team, the dearest first, with what the same tokens would cost at the successor."""
    loud = [asked(number, key_id="key_1", key_name="robot", team="blue") for number in range(1, 4)]
    quiet = asked(4, key_id="key_2", key_name="human", team=None)
    others = [asked(5, days_ago=31), asked(6, "evolink"), asked(7, model="kimi-k2.6")]
    ship(database_url, tmp_path, *loud, quiet, *others)
    (check,) = traffic(database)
    assert check.status == "warn"
    assert check.message == (
        "moonshot kimi-k2-thinking, reported retired since 2026-05-25: 4 requests, $0.003320 in the last 30 days "
        "(robot of blue: 3 requests, $0.002490; human: 1 request, $0.000830). The same tokens cost $0.005104 at its "
        "successor kimi-k2.6 at moonshot: $0.001784 more (+53.7 %)."
    )
    assert check.mend == "Tell these callers to use kimi-k2.6."


def test_nobody_on_a_model_that_is_going(database: psycopg.Connection[Any], database_url: str, tmp_path: Path) -> None:
    """Traffic that stays is not listed."""
    ship(database_url, tmp_path, asked(1, "evolink"))
    (check,) = traffic(database)
    assert (check.status, check.message) == ("ok", "Nobody called a retired or retiring model in the last 30 days.")


def test_many_callers_are_a_few_names_and_a_number(
    database: psycopg.Connection[Any], database_url: str, tmp_path: Path
) -> None:
    """Five are named."""
    callers = [asked(number, key_id=f"key_{number}", key_name=f"n{number}") for number in range(1, 9)]
    ship(database_url, tmp_path, *callers)
    (check,) = traffic(database)
    assert "; and 3 more keys)" in check.message
    assert "n5 of blue" in check.message
    assert "n6 of blue" not in check.message


def tool_calls(db: psycopg.Connection[Any], *, share_min: float = 0.0) -> list[Check]:
    found = Examination()
    catalogue = replace(CATALOGUE, routing=RoutingTerms(min_tool_call_validity=share_min))
    check_tool_calls(found, db, catalogue, now=NOW)
    return found.checks


def test_whose_tool_calls_are_wrong(database: psycopg.Connection[Any], database_url: str, tmp_path: Path) -> None:
    """Of the last day, and sure enough to be said; an answer counts once, under its gravest fault."""
    assert [(each.status, each.message) for each in tool_calls(database)] == [
        ("ok", "No tool-call answer was checked in the last day.")
    ]
    day = {"days_ago": 0.5}
    checked = ["tool_calls_checked"]
    right = [asked(number, "evolink", flags=checked, **day) for number in range(1, 31)]
    wrong = [
        asked(number, flags=[*checked, "finish_reason_false", "arguments_not_json"], **day) for number in range(31, 56)
    ]
    mixed = [asked(number, flags=checked, **day) for number in range(56, 81)]
    old = [asked(number, "evolink", flags=[*checked, "unknown_function"], days_ago=2) for number in range(81, 120)]
    ship(database_url, tmp_path, *right, *wrong, *mixed, *old, asked(120, "evolink", **day))
    poor, well = tool_calls(database)
    assert (poor.status, poor.message) == (
        "warn",
        "moonshot kimi-k2-thinking: 50.0% of 50 tool-call answers were right in the last day (arguments_not_json 25).",
    )
    assert (well.status, well.message) == (
        "ok",
        "evolink kimi-k2-thinking: 100.0% of 30 tool-call answers were right in the last day.",
    )
    assert [each.status for each in tool_calls(database, share_min=0.5)] == ["ok"]

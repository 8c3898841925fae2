"""Fields of keys and teams one by one: what an update may clear, and what half a budget is."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from gateway.catalog import load
from gateway.core.budget import BudgetMode, Period
from gateway.core.catalogue import Catalogue
from gateway.core.fields import FieldError
from gateway.core.keys import KeyGrant, check_grant, key_change
from gateway.core.money import Money
from gateway.core.teams import TeamTerms, check_team, team_change
from tests.http.house import CONFIG

BUDGET: dict[str, Any] = {"budget": Money(5), "period": Period.DAY, "budget_mode": BudgetMode.SOFT}


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return load(CONFIG, now=datetime(2025, 11, 22, tzinfo=UTC)).catalogue


def test_a_name_is_not_cleared(catalogue: Catalogue) -> None:
    """Everything else of a key may be."""
    with pytest.raises(FieldError, match="a key has a name"):
        key_change(catalogue, name=None)
    fields = ("models", "providers", "rpm", "tpm", "concurrency", "budget", "expires", "tags")
    whole = KeyGrant(
        name="n", models=("a",), providers=("p",), rpm=1, tpm=1, concurrency=1, expires_at=datetime.now(UTC),
        tags={"a": "b"}, **BUDGET,
    )  # fmt: skip
    assert key_change(catalogue, **dict.fromkeys(fields))(whole) == KeyGrant(name="n")


def test_clearing_the_amount_clears_the_budget(catalogue: Catalogue) -> None:
    """Of teams as of keys; an amount alone keeps window and mode, a window alone the amount."""
    team = TeamTerms(name="t", **BUDGET)
    assert team_change(catalogue, budget=None)(team) == TeamTerms(name="t")
    key = KeyGrant(name="n", **BUDGET)
    assert key_change(catalogue, budget="0.5")(key) == KeyGrant(name="n", **{**BUDGET, "budget": Money(5 * 10**11)})
    assert key_change(catalogue, period="total")(key) == KeyGrant(name="n", **{**BUDGET, "period": Period.TOTAL})


@pytest.mark.parametrize(
    ("changes", "field"), [({"period": None}, "period"), ({"budget": None, "period": "day"}, "budget")]
)
def test_half_a_budget_is_none(catalogue: Catalogue, changes: dict[str, Any], field: str) -> None:
    """Neither left over nor asked for."""
    with pytest.raises(FieldError) as refused:
        key_change(catalogue, **changes)(KeyGrant(name="n", **BUDGET))
    assert refused.value.field == field


def test_models_are_kept_under_their_public_names(catalogue: Catalogue) -> None:
    """Whatever they were asked for by, once each, in order."""
    for check in (check_grant, check_team):
        found = check(catalogue, name="n", models=["kimi-thinking", "kimi-k2.6", "moonshotai/Kimi-K2-Thinking"])
        assert found.models == ("kimi-k2-thinking", "kimi-k2.6")

"""Nobody grants more than they have, worked by hand: models, numbers, budgets, expiry, team, and a team's ceilings."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gateway.core.budget import ORGANISATION, Budget, BudgetMode, OnOutage, Period, scope_of_key, scope_of_team
from gateway.core.budget_terms import BudgetTerms
from gateway.core.exchange import Principal, Role
from gateway.core.fields import FieldError
from gateway.core.grants import (
    COMMAND_LINE,
    Administrator,
    NotGrantedError,
    administrator,
    check_budgets,
    check_key,
    check_spending,
    check_team_terms,
    placed,
    within,
)
from gateway.core.keys import KeyGrant
from gateway.core.limits import RateLimits
from gateway.core.money import Money
from gateway.core.teams import TeamTerms

T0 = datetime(2025, 11, 22, 10, 0, tzinfo=UTC)
MONTH = BudgetTerms(scope="key:own", period=Period.MONTH, limit=Money.from_usd("100"))
OWN = Administrator(
    actor="key_own",
    models=frozenset({"a", "b"}),
    providers=frozenset({"p"}),
    rpm=60,
    tpm=1_000,
    concurrency=4,
    budgets=(MONTH,),
    expires_at=T0 + timedelta(days=30),
)
GRANT = KeyGrant(
    name="n", models=("a",), providers=("p",), rpm=60, tpm=1_000, concurrency=4, expires_at=T0 + timedelta(days=30)
)


def budget(limit: str, period: Period = Period.MONTH, scope: str = "key:x", **changes: Any) -> BudgetTerms:
    return BudgetTerms(scope=scope, period=period, limit=Money.from_usd(limit), **changes)


TOO_MUCH = [
    ("models", {"models": ("a", "c")}), ("models", {"models": None}), ("providers", {"providers": ("q",)}),
    ("rpm", {"rpm": 61}), ("rpm", {"rpm": None}), ("tpm", {"tpm": 1_001}), ("concurrency", {"concurrency": 5}),
    ("expires", {"expires_at": None}), ("expires", {"expires_at": T0 + timedelta(days=30, microseconds=1)}),
]  # fmt: skip


def test_what_the_grantor_has_is_granted() -> None:
    """A grant of exactly the grantor's own is not too much; the bootstrap administrator grants anything."""
    check_key(OWN, GRANT, None)
    check_key(OWN, replace(GRANT, models=("a", "b"), role=Role.ADMIN), None)
    for _, changes in TOO_MUCH:
        check_key(COMMAND_LINE, replace(GRANT, **changes), None)


@pytest.mark.parametrize(("field", "changes"), TOO_MUCH)
def test_more_than_the_grantor_has_is_refused(field: str, changes: dict[str, Any]) -> None:
    """Each field alone is enough; the error names the field, what was asked, and what is allowed."""
    with pytest.raises(NotGrantedError, match=rf"^{field}: .+ was asked for; your own .+\.$") as refused:
        check_key(OWN, replace(GRANT, **changes), None)
    assert refused.value.field == field


@pytest.mark.parametrize(("field", "changes"), TOO_MUCH)
def test_an_update_beyond_the_grantor_is_refused(field: str, changes: dict[str, Any]) -> None:
    """What an update changes is looked at, and what it leaves alone is not."""
    with pytest.raises(NotGrantedError) as refused:
        check_key(OWN, replace(GRANT, **changes), None, before=GRANT)
    assert refused.value.field == field
    mighty = replace(GRANT, **changes)
    check_key(OWN, replace(mighty, name="renamed"), None, before=mighty)


def test_no_role_above_its_own() -> None:
    """Finance cannot make an administrator."""
    with pytest.raises(NotGrantedError, match=r"^role: admin was asked for"):
        check_key(replace(OWN, role=Role.FINANCE), replace(GRANT, role=Role.ADMIN), None)


def test_a_tenant_grants_in_its_own_team() -> None:
    """Without a team the key falls into the grantor's; another team is refused; without a tenant nothing is said."""
    tenant = replace(COMMAND_LINE, team="blue")
    assert placed(tenant, KeyGrant(name="n")).team == "blue"
    assert placed(tenant, KeyGrant(name="n", team="blue")).team == "blue"
    with pytest.raises(NotGrantedError, match=r'"red" was asked for; this key grants only in "blue"'):
        placed(tenant, KeyGrant(name="n", team="red"))
    assert placed(COMMAND_LINE, KeyGrant(name="n", team="red")).team == "red"


TEAM = TeamTerms(
    name="blue",
    models=("a", "b"),
    providers=("p",),
    key_max_rpm=100,
    key_default_tpm=500,
    key_max_tpm=900,
    key_default_concurrency=2,
)
BEYOND_TEAM = [
    ("models", {"models": ("a", "c")}), ("providers", {"providers": ("q",)}), ("rpm", {"rpm": 101}),
    ("tpm", {"tpm": 901}),
]  # fmt: skip


@pytest.mark.parametrize(("field", "changes"), BEYOND_TEAM)
def test_a_team_s_ceiling_binds_everybody(field: str, changes: dict[str, Any]) -> None:
    """Also the bootstrap administrator, and updates as well; the error names the team and its ceiling."""
    grant = KeyGrant(name="n", team="blue", models=("a",), providers=("p",), rpm=100, tpm=900)
    check_key(COMMAND_LINE, grant, TEAM)
    for before in (None, grant):
        with pytest.raises(FieldError, match=rf'^{field}: .+ was asked for; the team "blue" allows') as refused:
            check_key(COMMAND_LINE, replace(grant, **changes), TEAM, before=before)
        assert refused.value.field == field
        assert not isinstance(refused.value, NotGrantedError)


def test_what_a_grant_does_not_say_is_the_team_s() -> None:
    """The default, or the ceiling where there is none; and what it says, within what the team allows."""
    silent = within(KeyGrant(name="n"), TEAM)
    assert (silent.models, silent.providers) == (("a", "b"), ("p",))
    assert (silent.rpm, silent.tpm, silent.concurrency) == (100, 500, 2)
    spoken = within(KeyGrant(name="n", models=("b", "c"), rpm=1_000, concurrency=9), TEAM)
    assert (spoken.models, spoken.rpm, spoken.concurrency) == (("b",), 100, 9)


def test_silence_in_a_team_is_measured_by_what_it_comes_to() -> None:
    """A grant without limits is fine for a limited grantor if the team's defaults are within its own, and only then."""
    grantor = replace(COMMAND_LINE, models=frozenset({"a", "b"}), rpm=100, tpm=500, concurrency=2)
    check_key(grantor, KeyGrant(name="n"), TEAM)
    with pytest.raises(NotGrantedError) as refused:
        check_key(replace(grantor, tpm=499), KeyGrant(name="n"), TEAM)
    assert refused.value.field == "tpm"


KEEPS = [
    (budget("100"), True), (budget("0"), True), (budget("100.000000000001"), False),
    (budget("100", Period.TOTAL), True), (budget("100", Period.DAY), False), (budget("1", Period.WEEK), False),
    (budget("50", mode=BudgetMode.CLAMP), True), (budget("50", mode=BudgetMode.SOFT), False),
    (budget("50", on_outage=OnOutage.ADMIT), False),
]  # fmt: skip


@pytest.mark.parametrize(("terms", "keeps"), KEEPS)
def test_a_budget_that_keeps_the_grantor_s(terms: BudgetTerms, keeps: bool) -> None:
    """No more, over a window that the grantor's lies within, that refuses, also while nobody knows what is spent."""
    if keeps:
        check_spending(OWN, [budget("7", Period.DAY), terms])
        return
    with pytest.raises(NotGrantedError, match=r"your own key spends at most 100 USD per month"):
        check_spending(OWN, [terms])


WINDOWS = {
    Period.DAY: set(Period),
    Period.WEEK: {Period.WEEK, Period.TOTAL},
    Period.MONTH: {Period.MONTH, Period.TOTAL},
    Period.TOTAL: {Period.TOTAL},
}


@pytest.mark.parametrize("own", Period)
@pytest.mark.parametrize("granted", Period)
def test_windows_that_keep_another_s(own: Period, granted: Period) -> None:
    """A week may lie in two months: who spends all of both has spent twice as much in that week."""
    assert budget("5", granted).keeps(budget("5", own)) == (granted in WINDOWS[own])


def test_a_key_without_a_budget_is_too_much_for_who_has_one() -> None:
    """No budget is no limit."""
    with pytest.raises(NotGrantedError, match=r"^budget: no budget was asked for"):
        check_spending(OWN, [])
    check_spending(COMMAND_LINE, [])


def test_tightening_budgets_is_free_and_loosening_is_not() -> None:
    """Lower, more, stricter: always. Higher, fewer, softer: within the grantor's own."""
    before = [budget("200"), budget("10", Period.DAY)]
    check_budgets(OWN, [budget("150"), budget("10", Period.DAY)], before)
    check_budgets(OWN, [*before, budget("500", Period.TOTAL)], before)
    check_budgets(OWN, [budget("90")], before)  # fewer, and still within its own
    for loose in ([budget("201"), before[1]], [before[1]], [budget("150", mode=BudgetMode.SOFT), before[1]]):
        with pytest.raises(NotGrantedError):
            check_budgets(OWN, loose, before)
        check_budgets(COMMAND_LINE, loose, before)


def test_a_tenant_may_not_loosen_its_team_s_budget() -> None:
    """Whoever belongs to the team may lower its budget, and neither raise nor remove it."""
    tenant, scope = replace(COMMAND_LINE, team="blue"), scope_of_team("blue")
    before = [budget("100", scope=scope)]
    check_budgets(tenant, [budget("50", scope=scope)], before)
    check_budgets(tenant, [budget("100", scope=scope), budget("5", Period.DAY, scope=scope)], before)
    for loose in ([budget("101", scope=scope)], []):
        with pytest.raises(NotGrantedError, match="may only lower"):
            check_budgets(tenant, loose, before)
    check_budgets(tenant, [budget("101")], [budget("100")])  # a key's budget in its team is its to raise


LOOSER = [
    {"models": None}, {"models": ("a", "b", "c")}, {"providers": None}, {"key_max_rpm": 101}, {"key_max_tpm": None},
    {"key_default_tpm": 501}, {"key_default_concurrency": None},
]  # fmt: skip


@pytest.mark.parametrize("changes", LOOSER)
def test_a_tenant_may_not_loosen_its_team(changes: dict[str, Any]) -> None:
    """Neither lists nor limits nor what keys have by default; an administrator of everything may."""
    tenant = replace(COMMAND_LINE, team="blue")
    with pytest.raises(NotGrantedError) as refused:
        check_team_terms(tenant, replace(TEAM, **changes), TEAM)
    assert refused.value.field in changes
    check_team_terms(COMMAND_LINE, replace(TEAM, **changes), TEAM)


def test_a_tenant_may_tighten_its_team() -> None:
    """Fewer models, lower limits, a limit where there was none, other tags."""
    tighter = replace(TEAM, models=("a",), key_max_rpm=50, rpm=10_000, key_default_rpm=10, tags={"x": "y"})
    check_team_terms(replace(COMMAND_LINE, team="blue"), tighter, TEAM)


def test_a_limited_administrator_loosens_a_team_within_its_own() -> None:
    """Up to what its own key has and no further."""
    limited = replace(COMMAND_LINE, rpm=60, models=frozenset({"a", "b", "c"}))
    before = TeamTerms(name="t", models=("a",), rpm=10, key_max_rpm=10)
    check_team_terms(limited, replace(before, models=("a", "c"), rpm=60, key_max_rpm=60), before)
    for changes in ({"models": None}, {"rpm": 61}, {"key_max_rpm": None}):
        with pytest.raises(NotGrantedError):
            check_team_terms(limited, replace(before, **changes), before)


def test_an_administrator_is_the_holder_of_its_key() -> None:
    """Its own limits and hard budgets bind its grants; the team's and the organisation's bind its keys anyway."""
    own, team = scope_of_key("key_1"), scope_of_team("blue")

    def of(scope: str, mode: BudgetMode = BudgetMode.STRICT, period: Period = Period.DAY) -> Budget:
        return Budget(budget_id="b", scope=scope, name="n", period=period, limit=Money(5), mode=mode)

    found = administrator(
        Principal(
            key_id="key_1",
            key_name="one",
            team="blue",
            role=Role.ADMIN,
            models=frozenset({"a"}),
            expires_at=T0,
            limits=(RateLimits(scope=own, name="n", rpm=5), RateLimits(scope=team, name="t", rpm=1, tpm=1)),
            budgets=(of(own), of(own, BudgetMode.SOFT, Period.WEEK), of(team), of(ORGANISATION)),
        ),
        request_id="req_1",
    )
    assert found == Administrator(
        actor="key_1",
        team="blue",
        models=frozenset({"a"}),
        rpm=5,
        budgets=(BudgetTerms(scope=own, period=Period.DAY, limit=Money(5)),),
        expires_at=T0,
        request_id="req_1",
    )

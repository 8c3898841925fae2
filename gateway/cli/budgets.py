"""`gateway budgets`: limits of money for keys, teams and the organisation, and what is spent of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from gateway.adapters.postgres.administration import PostgresAdministration
from gateway.cli.administering import PAGE, ask, every, tell, tell_all, usage
from gateway.cli.common import JSON, expected_errors, fail
from gateway.core.budget import ALERT_AT, BudgetMode, OnOutage, Period
from gateway.core.budget_terms import BudgetRecord, budget_json, check_budget, scope_of
from gateway.core.fields import FieldError
from gateway.core.grants import COMMAND_LINE

C = TypeVar("C", bound=Callable[..., Any])
LISTED = ("scope", "period", "limit", "spent", "share", "mode", "on_outage", "alert_at", "resets_at")
SCOPES = (
    click.option("--key", help="A key, by id or name."),
    click.option("--team", help="A team."),
    click.option("--organisation", is_flag=True, help="The whole organisation."),
)
PERIOD = click.option(
    "--period", type=click.Choice([period.value for period in Period]), required=True, help="Window of the budget."
)


def scoped(command: C) -> C:
    """The options of whose budget it is."""
    for option in reversed(SCOPES):
        command = option(command)
    return command


@click.group()
def budgets() -> None:
    """Budgets of keys, teams and the organisation."""


@budgets.command("set")
@scoped
@PERIOD
@click.option("--limit", required=True, help="USD, a decimal number.")
@click.option("--mode", type=click.Choice([mode.value for mode in BudgetMode]), default="strict", show_default=True)
@click.option(
    "--on-outage", type=click.Choice([each.value for each in OnOutage]), default="refuse", show_default=True,
    help="What it does while nobody knows what is spent.",
)  # fmt: skip
@click.option(
    "--alert-at", default=",".join(map(str, ALERT_AT)), show_default=True, help='Shares in percent; "" for none.'
)
@JSON
@expected_errors
def set_budget(
    key: str | None, team: str | None, *, organisation: bool, as_json: bool, alert_at: str, **fields: Any
) -> None:
    """Set the budget of a scope and a period; what is spent of it stays."""
    usage(lambda: scope_of(key=key, team=team, organisation=organisation))
    shares = usage(lambda: _shares(alert_at))
    terms = usage(lambda: check_budget("", **fields, alert_at=shares))

    async def question(to: PostgresAdministration) -> BudgetRecord | None:
        scope = await _scope(to, key=key, team=team, organisation=organisation)
        found = check_budget(scope, **fields, alert_at=terms.alert_at)
        return await to.budgets.put(found, by=COMMAND_LINE)

    record = ask(question)
    if record is None:
        fail(f"there is no team {team!r}." if key is None else f"the key {key!r} is revoked.")
    tell(budget_json(record), as_json=as_json)


@budgets.command("list")
@scoped
@JSON
@expected_errors
def list_budgets(key: str | None, team: str | None, *, organisation: bool, as_json: bool) -> None:
    """List budgets, all of them or those of one scope, with what is spent in their windows."""
    is_one = key is not None or team is not None or organisation
    if is_one:
        usage(lambda: scope_of(key=key, team=team, organisation=organisation))

    async def question(to: PostgresAdministration) -> list[BudgetRecord]:
        scope = await _scope(to, key=key, team=team, organisation=organisation) if is_one else None

        async def page(last: BudgetRecord | None) -> Sequence[BudgetRecord]:
            after = None if last is None else (last.terms.scope, last.terms.period.value)
            return await to.budgets.list_budgets(after=after, limit=PAGE, scope=scope)

        return await every(page)

    rows = [budget_json(record) for record in ask(question)]
    if not as_json:
        rows = [{**row, "share": None if row["share"] is None else f"{row['share']} %"} for row in rows]
    tell_all(rows, LISTED, as_json=as_json)


@budgets.command("remove")
@scoped
@PERIOD
@JSON
@expected_errors
def remove(key: str | None, team: str | None, period: str, *, organisation: bool, as_json: bool) -> None:
    """Remove the budget of a scope and a period."""
    usage(lambda: scope_of(key=key, team=team, organisation=organisation))

    async def question(to: PostgresAdministration) -> BudgetRecord | None:
        scope = await _scope(to, key=key, team=team, organisation=organisation)
        return await to.budgets.remove(scope, Period(period), by=COMMAND_LINE)

    record = ask(question)
    if record is None:
        fail(f"there is no such budget per {period}.")
    tell(budget_json(record), as_json=as_json)


async def _scope(to: PostgresAdministration, *, key: str | None, team: str | None, organisation: bool) -> str:
    """The scope, with a key's name as its id. Raises FieldError for a key that does not exist."""
    if key is not None:
        record = await to.keys.show(key)
        if record is None:
            raise FieldError("key", f"there is no key {key!r}.")
        key = record.key_id
    return scope_of(key=key, team=team, organisation=organisation)


def _shares(text: str) -> list[int]:
    try:
        return [int(share) for share in text.split(",") if share.strip()]
    except ValueError:
        raise FieldError("alert_at", f"{text!r} is not a list of percentages such as 50,80,100.") from None

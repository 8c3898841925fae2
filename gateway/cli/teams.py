"""`gateway teams`: what a team's keys share, what each has unless it says otherwise, and the most of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from gateway.adapters.postgres.administration import PostgresAdministration
from gateway.cli.administering import PAGE, ask, catalogue_in, changes, every, listed, tags, tell, tell_all, usage
from gateway.cli.common import CONFIG, JSON, expected_errors, fail
from gateway.core.budget import BudgetMode, Period
from gateway.core.grants import COMMAND_LINE
from gateway.core.teams import TeamRecord, check_team, team_change, team_json

C = TypeVar("C", bound=Callable[..., Any])
LISTED = ("name", "keys", "models", "providers", "rpm", "tpm", "concurrency", "budgets")
TERMS = (
    click.option("--models", help="The most that its keys may use, comma-separated."),
    click.option("--providers", help="The most that its keys may use, comma-separated."),
    click.option("--rpm", type=int, help="Requests per minute of all its keys together."),
    click.option("--tpm", type=int, help="Tokens per minute of all its keys together."),
    click.option("--concurrency", type=int, help="Requests at once of all its keys together."),
    click.option("--key-default-rpm", type=int, help="Requests per minute of a key that names no limit."),
    click.option("--key-default-tpm", type=int, help="Tokens per minute of a key that names no limit."),
    click.option("--key-default-concurrency", type=int, help="Requests at once of a key that names no limit."),
    click.option("--key-max-rpm", type=int, help="The most requests per minute of any key."),
    click.option("--key-max-tpm", type=int, help="The most tokens per minute of any key."),
    click.option("--key-max-concurrency", type=int, help="The most requests at once of any key."),
    click.option("--budget", help="USD per --period of all its keys together, a decimal number."),
    click.option("--period", type=click.Choice([period.value for period in Period]), help="Window of the budget."),
    click.option(
        "--budget-mode", type=click.Choice([mode.value for mode in BudgetMode]), help="How the budget refuses."
    ),
    click.option("--tag", "tags", multiple=True, metavar="K=V", help="Report tag of all its keys; may be repeated."),
)


def terms(command: C) -> C:
    """The options of what a team may do and spend."""
    for option in reversed(TERMS):
        command = option(command)
    return command


@click.group()
def teams() -> None:
    """Teams: shared limits, and what their keys may have."""


@teams.command("create")
@click.argument("name")
@terms
@CONFIG
@JSON
@expected_errors
def create(name: str, *, as_json: bool, config_dir: Path | None, **fields: Any) -> None:
    """Create a team."""
    catalogue = catalogue_in(config_dir)
    lists = {each: listed(fields[each]) for each in ("models", "providers")}
    made = usage(lambda: check_team(catalogue, **{**fields, **lists, "name": name, "tags": tags(fields["tags"])}))
    tell(team_json(ask(lambda to: to.teams.create(made, by=COMMAND_LINE))), as_json=as_json)


@teams.command("list")
@JSON
@expected_errors
def list_teams(*, as_json: bool) -> None:
    """List every team."""

    async def question(to: PostgresAdministration) -> list[TeamRecord]:
        async def page(last: TeamRecord | None) -> Sequence[TeamRecord]:
            return await to.teams.list_teams(after=None if last is None else last.terms.name, limit=PAGE)

        return await every(page)

    tell_all([team_json(record) for record in ask(question)], LISTED, as_json=as_json)


@teams.command("show")
@click.argument("name")
@JSON
@expected_errors
def show(name: str, *, as_json: bool) -> None:
    """Show one team."""
    tell(team_json(_found(ask(lambda to: to.teams.show(name)), name)), as_json=as_json)


@teams.command("update")
@click.argument("name")
@terms
@click.option("--clear", "cleared", multiple=True, metavar="FIELD", help="Takes a limit away; may be repeated.")
@CONFIG
@JSON
@expected_errors
def update(name: str, *, as_json: bool, config_dir: Path | None, cleared: tuple[str, ...], **fields: Any) -> None:
    """Change a team; what is not named stays."""
    catalogue = catalogue_in(config_dir)
    make = usage(lambda: team_change(catalogue, **changes(fields, cleared)))
    record = ask(lambda to: to.teams.update(name, make, by=COMMAND_LINE))
    tell(team_json(_found(record, name)), as_json=as_json)


def _found(record: TeamRecord | None, name: str) -> TeamRecord:
    if record is None:
        fail(f"there is no team {name!r}.")
    return record

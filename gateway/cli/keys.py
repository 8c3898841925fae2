"""`gateway keys`: virtual API keys. A secret is printed once, when it is made, and never kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from gateway.adapters.postgres.administration import PostgresAdministration
from gateway.cli.administering import PAGE, ask, catalogue_in, changes, every, listed, tags, tell, tell_all, usage
from gateway.cli.common import CONFIG, JSON, expected_errors, fail, print_json
from gateway.core.budget import BudgetMode, Period
from gateway.core.exchange import Role
from gateway.core.fields import parse_grace
from gateway.core.grants import COMMAND_LINE
from gateway.core.keys import KeyRecord, check_grant, key_change, key_json
from gateway.http.admin.keys import new_secret

LISTED = ("id", "name", "team", "role", "models", "providers", "hint", "expires", "state")


@click.group()
def keys() -> None:
    """Virtual API keys."""


@keys.command("create")
@click.option("--name", required=True, help="What it is for.")
@click.option("--team", help="Who pays; a team that does not exist yet is created.")
@click.option("--role", type=click.Choice([role.value for role in Role]), default="inference", show_default=True)
@click.option("--models", help="Only these models, comma-separated.")
@click.option("--providers", help="Only these providers, comma-separated.")
@click.option("--rpm", type=click.IntRange(min=1), help="Requests per minute.")
@click.option("--tpm", type=click.IntRange(min=1), help="Tokens per minute.")
@click.option("--concurrency", type=click.IntRange(min=1), help="Requests at once.")
@click.option("--budget", help="USD per --period, a decimal number.")
@click.option("--period", type=click.Choice([period.value for period in Period]), help="Window of the budget.")
@click.option("--budget-mode", type=click.Choice([mode.value for mode in BudgetMode]), help="How the budget refuses.")
@click.option("--expires", help="Date or moment from which it is refused.")
@click.option("--tag", "tags", multiple=True, metavar="K=V", help="Report tag; may be repeated.")
@CONFIG
@JSON
@expected_errors
def create(*, as_json: bool, config_dir: Path | None, **fields: Any) -> None:
    """Create a key and print its secret, once."""
    catalogue = catalogue_in(config_dir)
    lists = {name: _names(fields[name]) for name in ("models", "providers")}
    grant = usage(lambda: check_grant(catalogue, **{**fields, **lists, "tags": tags(fields["tags"])}))
    secret, digest, hint = new_secret()
    record, team_created = ask(lambda to: to.keys.create(grant, digest=digest, hint=hint, by=COMMAND_LINE))
    if as_json:
        print_json({"id": record.key_id, "key": secret, **key_json(record), "team_created": team_created})
        return
    if team_created:
        click.echo(f"Team {grant.team} did not exist yet and was created.", err=True)
    click.echo(f"Key {record.key_id} ({grant.name}) was created. Its secret, shown only now:", err=True)
    click.echo(secret)


@keys.command("list")
@click.option("--team", help="Only this team's.")
@JSON
@expected_errors
def list_keys(team: str | None, *, as_json: bool) -> None:
    """List every key."""

    async def question(to: PostgresAdministration) -> list[KeyRecord]:
        async def page(last: KeyRecord | None) -> Sequence[KeyRecord]:
            return await to.keys.list_keys(after=None if last is None else last.key_id, limit=PAGE, team=team)

        return await every(page)

    rows = [key_json(record) for record in ask(question)]
    if not as_json:
        rows = [{**row, "state": "revoked" if row["revoked_at"] else "active"} for row in rows]
    tell_all(rows, LISTED, as_json=as_json)


@keys.command("show")
@click.argument("key")
@JSON
@expected_errors
def show(key: str, *, as_json: bool) -> None:
    """Show one key, by id or name."""
    tell(key_json(_found(ask(lambda to: to.keys.show(key)), key)), as_json=as_json)


@keys.command("update")
@click.argument("key")
@click.option("--name", help="What it is for.")
@click.option("--models", help='Only these models, comma-separated; "" for all.')
@click.option("--providers", help='Only these providers, comma-separated; "" for all.')
@click.option("--rpm", type=int, help="Requests per minute.")
@click.option("--tpm", type=int, help="Tokens per minute.")
@click.option("--concurrency", type=int, help="Requests at once.")
@click.option("--budget", help="USD per --period, a decimal number.")
@click.option("--period", type=click.Choice([period.value for period in Period]), help="Window of the budget.")
@click.option("--budget-mode", type=click.Choice([mode.value for mode in BudgetMode]), help="How the budget refuses.")
@click.option("--expires", help="Date or moment from which it is refused.")
@click.option("--tag", "tags", multiple=True, metavar="K=V", help="Instead of the tags it has; may be repeated.")
@click.option("--clear", "cleared", multiple=True, metavar="FIELD", help="Takes a limit away; may be repeated.")
@CONFIG
@JSON
@expected_errors
def update(key: str, *, as_json: bool, config_dir: Path | None, cleared: tuple[str, ...], **fields: Any) -> None:
    """Change a key, by id or name; what is not named stays."""
    catalogue = catalogue_in(config_dir)
    make = usage(lambda: key_change(catalogue, **changes(fields, cleared)))

    async def question(to: PostgresAdministration) -> KeyRecord | None:
        record = await to.keys.show(key)
        return None if record is None else await to.keys.update(record.key_id, make, by=COMMAND_LINE)

    tell(key_json(_found(ask(question), key)), as_json=as_json)


@keys.command("revoke")
@click.argument("key")
@JSON
@expected_errors
def revoke(key: str, *, as_json: bool) -> None:
    """Revoke a key, by id or name, at once and for good."""

    async def question(to: PostgresAdministration) -> KeyRecord | None:
        record = await to.keys.show(key)
        return None if record is None else await to.keys.revoke(record.key_id, by=COMMAND_LINE)

    tell(key_json(_found(ask(question), key)), as_json=as_json)


@keys.command("rotate")
@click.argument("key")
@click.option("--grace", default="0s", show_default=True, help="How long the old secret goes on: 24h, 30m, 7d.")
@JSON
@expected_errors
def rotate(key: str, grace: str, *, as_json: bool) -> None:
    """Give a key a new secret and print it, once."""
    try:
        length = parse_grace(grace)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--grace") from None
    secret, digest, hint = new_secret()

    async def question(to: PostgresAdministration) -> KeyRecord | None:
        record = await to.keys.show(key)
        if record is None:
            return None
        return await to.keys.rotate(record.key_id, digest=digest, hint=hint, grace=length, by=COMMAND_LINE)

    record = _found(ask(question), key)
    if as_json:
        print_json({"id": record.key_id, "key": secret, **key_json(record)})
        return
    click.echo(f"Key {record.key_id} has a new secret; the old one ends after {grace}. Shown only now:", err=True)
    click.echo(secret)


def _names(text: str | None) -> list[str] | None:
    """Of a new key, a list without a name in it is a mistake."""
    return None if text is None else listed(text) or []


def _found(record: KeyRecord | None, key: str) -> KeyRecord:
    if record is None:
        fail(f"there is no key {key!r}, or it is revoked.")
    return record

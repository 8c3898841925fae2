"""`gateway keys`: virtual API keys. A secret is printed once, when it is made, and never kept."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table

from gateway.adapters.clock import SystemClock
from gateway.adapters.postgres.keys import KeyStore
from gateway.catalog import load
from gateway.cli.common import CONFIG, JSON, database, expected_errors, fail, print_json, settings_with
from gateway.core import api_key
from gateway.core.budget import Period
from gateway.core.exchange import Role
from gateway.core.keys import FieldError, KeyGrant, KeyRecord, check_grant, parse_grace
from gateway.http.admin import SECRET_BYTES, key_json
from gateway.pipeline.ports import StoreUnavailableError

T = TypeVar("T")


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
@click.option("--expires", help="Date or moment from which it is refused.")
@click.option("--tag", "tags", multiple=True, metavar="K=V", help="Report tag; may be repeated.")
@CONFIG
@JSON
@expected_errors
def create(*, as_json: bool, config_dir: Any, **fields: Any) -> None:
    """Create a key and print its secret, once."""
    grant = _grant(fields, config_dir)
    secret = api_key.new_secret(os.urandom(SECRET_BYTES))
    record, team_created = _ask(
        lambda store: store.create(grant, digest=api_key.digest(secret), hint=api_key.hint(secret))
    )
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
    found = _ask(lambda store: _all(store, team))
    if as_json:
        print_json({"data": [key_json(record) for record in found]})
        return
    table = Table()
    for name in ("id", "name", "team", "role", "models", "providers", "hint", "expires", "state"):
        table.add_column(name, overflow="fold")
    for record in found:
        shown = key_json(record)
        state = "revoked" if record.revoked_at else "active"
        values = [shown[name] for name in ("id", "name", "team", "role", "models", "providers", "hint", "expires")]
        table.add_row(*(_text(value) for value in values), state)
    console = Console()
    (console if console.is_terminal else Console(width=200)).print(table)


@keys.command("show")
@click.argument("key")
@JSON
@expected_errors
def show(key: str, *, as_json: bool) -> None:
    """Show one key, by id or name."""
    _tell(_found(_ask(lambda store: store.show(key)), key), as_json=as_json)


@keys.command("revoke")
@click.argument("key")
@JSON
@expected_errors
def revoke(key: str, *, as_json: bool) -> None:
    """Revoke a key, by id or name, at once and for good."""

    async def ask(store: KeyStore) -> KeyRecord | None:
        record = await store.show(key)
        return None if record is None else await store.revoke(record.key_id)

    _tell(_found(_ask(ask), key), as_json=as_json)


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
    secret = api_key.new_secret(os.urandom(SECRET_BYTES))

    async def ask(store: KeyStore) -> KeyRecord | None:
        record = await store.show(key)
        if record is None:
            return None
        return await store.rotate(record.key_id, digest=api_key.digest(secret), hint=api_key.hint(secret), grace=length)

    record = _found(_ask(ask), key)
    if as_json:
        print_json({"id": record.key_id, "key": secret, **key_json(record)})
        return
    click.echo(f"Key {record.key_id} has a new secret; the old one ends after {grace}. Shown only now:", err=True)
    click.echo(secret)


def _grant(fields: dict[str, Any], config_dir: Any) -> KeyGrant:
    """The options as a checked grant. Raises click.UsageError."""
    catalogue = load(settings_with(config_dir=config_dir).config_dir, now=SystemClock().now()).catalogue
    listed = {name: None if fields[name] is None else _listed(fields[name]) for name in ("models", "providers")}
    try:
        return check_grant(catalogue, **{**fields, **listed, "tags": _tags(fields["tags"])})
    except FieldError as error:
        option = "--tag" if error.field == "tags" else f"--{error.field}"
        raise click.BadParameter(str(error), param_hint=option) from None


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _tags(given: tuple[str, ...]) -> dict[str, str]:
    tags = {}
    for tag in given:
        name, equals, value = tag.partition("=")
        if not equals:
            raise FieldError("tags", f"{tag!r} is not of the form name=value")
        tags[name] = value
    return tags


async def _all(store: KeyStore, team: str | None) -> list[KeyRecord]:
    found: list[KeyRecord] = []
    after: str | None = None
    while page := await store.list_keys(after=after, limit=500, team=team):
        found.extend(page)
        after = page[-1].key_id
    return found


def _ask(question: Callable[[KeyStore], Awaitable[T]]) -> T:
    with database(settings_with()) as url:

        async def ask() -> T:
            store = KeyStore(url, clock=SystemClock())
            try:
                return await question(store)
            finally:
                await store.close()

        try:
            return asyncio.run(ask())
        except StoreUnavailableError:
            fail("the database cannot be reached.")


def _found(record: KeyRecord | None, key: str) -> KeyRecord:
    if record is None:
        fail(f"there is no key {key!r}, or it is revoked.")
    return record


def _tell(record: KeyRecord, *, as_json: bool) -> None:
    shown = key_json(record)
    if as_json:
        print_json(shown)
        return
    for name, value in shown.items():
        click.echo(f"{name:12} {_text(value)}")


def _text(value: Any) -> str:
    if value is None:
        return "–"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)

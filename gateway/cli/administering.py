"""What the commands of administration share: they act as the bootstrap administrator, on the database in force."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table

from gateway.adapters.clock import SystemClock
from gateway.adapters.postgres.administration import PostgresAdministration
from gateway.catalog import load
from gateway.cli.common import database, fail, print_json, settings_with
from gateway.core.catalogue import Catalogue
from gateway.core.fields import FieldError
from gateway.pipeline.ports import StoreUnavailableError

T = TypeVar("T")
PAGE = 500


def ask(question: Callable[[PostgresAdministration], Awaitable[T]]) -> T:
    """What the administration answers; ends with status 1 where it will not, or is away."""
    with database(settings_with()) as url:

        async def asking() -> T:
            administration = PostgresAdministration(url, clock=SystemClock())
            try:
                return await question(administration)
            finally:
                await administration.close()

        try:
            return asyncio.run(asking())
        except StoreUnavailableError:
            fail("the database cannot be reached.")
        except FieldError as error:
            fail(str(error))


async def every(fetch: Callable[[T | None], Awaitable[Sequence[T]]]) -> list[T]:
    """All pages of a list, each fetched after the last one of the page before."""
    everything: list[T] = []
    while page := await fetch(everything[-1] if everything else None):
        everything.extend(page)
    return everything


def catalogue_in(config_dir: Path | None) -> Catalogue:
    """The configuration in force, for the names of models and providers."""
    return load(settings_with(config_dir=config_dir).config_dir, now=SystemClock().now()).catalogue


def usage(check: Callable[[], T]) -> T:
    """What a check of fields makes of the options. Raises click.UsageError naming the option."""
    try:
        return check()
    except FieldError as error:
        option = {"tags": "--tag", "scope": "--key, --team or --organisation"}.get(
            error.field, f"--{error.field.replace('_', '-')}"
        )
        raise click.BadParameter(str(error), param_hint=option) from None


def listed(text: str | None) -> list[str] | None:
    """Comma-separated names; none at all is null, which clears."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()] or None


def tags(pairs: Sequence[str]) -> dict[str, str]:
    """``K=V`` pairs as tags. Raises FieldError."""
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise FieldError("tags", f"{pair!r} is not of the form name=value")
        found[name] = value
    return found


def tell(shown: Mapping[str, Any], *, as_json: bool) -> None:
    """One thing, as JSON or as lines."""
    if as_json:
        print_json(shown)
        return
    for name, value in shown.items():
        click.echo(f"{name:24} {text(value)}")


def tell_all(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, as_json: bool) -> None:
    """A list, as JSON or as a table of some of its columns."""
    if as_json:
        print_json({"data": rows})
        return
    table = Table()
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(text(row[name]) for name in columns))
    console = Console()
    (console if console.is_terminal else Console(width=200)).print(table)


def text(value: Any) -> str:
    """A value of JSON as people read it."""
    if value is None or value in ([], {}):
        return "–"
    if isinstance(value, list | tuple):
        return ", ".join(map(text, value))
    if isinstance(value, Mapping):
        if "spent" in value:
            return f"{value['spent']} of {value['limit']} USD per {value['period']} ({value['mode']})"
        return ", ".join(f"{name}={each}" for name, each in value.items())
    return str(value)


def changes(fields: Mapping[str, Any], cleared: Sequence[str]) -> dict[str, Any]:
    """The options of an update that were given, and None for what is cleared. Raises FieldError."""
    given = {name: value for name, value in fields.items() if value is not None and name != "tags"}
    given |= {name: listed(given[name]) for name in ("models", "providers") if name in given}
    if fields["tags"]:
        given["tags"] = tags(fields["tags"])
    for name in (each.replace("-", "_") for each in cleared):
        if name not in fields or name == "name":
            known = ", ".join(sorted(known for known in fields if known != "name"))
            raise FieldError("clear", f"{name!r} is nothing to clear; choose from {known}.")
        if name in given:
            raise FieldError("clear", f"{name} is given and cleared.")
        given[name] = None
    if not given:
        raise FieldError("clear", "nothing is named that should change.")
    return given

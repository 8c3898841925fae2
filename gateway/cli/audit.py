"""`gateway audit`: who changed what, and whether the record of it is whole."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import click

from gateway.cli.administering import ask, tell_all, text
from gateway.cli.common import JSON, expected_errors, fail, print_json
from gateway.core.audit import entry_json

LISTED = ("id", "at", "actor", "action", "target", "team", "change")


@click.group()
def audit() -> None:
    """Who changed what."""


@audit.command("list")
@click.option("--action", help="Only this action, such as key.create.")
@click.option("--target", help="Only this target, such as team:research.")
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=100, show_default=True, help="How many, newest first."
)
@click.option("--before", type=click.IntRange(min=1), help="Only entries older than this one.")
@JSON
@expected_errors
def list_entries(action: str | None, target: str | None, limit: int, before: int | None, *, as_json: bool) -> None:
    """List changes, newest first."""
    found = ask(lambda to: to.audit.list_entries(before=before, limit=limit, action=action, target=target))
    rows = [entry_json(entry) for entry in found]
    tell_all(rows if as_json else [{**row, "change": _change(row)} for row in rows], LISTED, as_json=as_json)


def _change(row: Mapping[str, Any]) -> str:
    """What is not what it was, field by field."""
    before, after = row["before"] or {}, row["after"] or {}
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return ", ".join(f"{name}: {text(before.get(name))} → {text(after.get(name))}" for name in names)


@audit.command("verify")
@JSON
@expected_errors
def verify(*, as_json: bool) -> None:
    """Follow the chain from its first entry; status 1 names the first one that is broken.

    Keep the last hash somewhere else: entries cut off at the end leave a chain that is whole.
    """
    verdict = ask(lambda to: to.audit.verify())
    if as_json:
        print_json({"entries": verdict.entries, "head": verdict.head.hex(), "broken": verdict.broken})
        sys.exit(0 if verdict.broken is None else 1)
    if verdict.broken is not None:
        fail(f"the audit is broken: {verdict.broken}.")
    click.echo(f"{verdict.entries} entries are whole; the last hash is {verdict.head.hex()}.")

"""What commands about months share: how one is named, and how far a long look at one has come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from gateway.core.closing import parse_month


class Month(click.ParamType[datetime]):
    """A calendar month in UTC, as the moment it begins."""

    name = "month"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            return parse_month(value)
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)


MONTH: Final = Month()


@contextmanager
def counted(words: str, rows: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal; nothing in a pipe."""
    console = Console(stderr=True)
    columns = (TextColumn(words), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=rows)

        def told(count: int) -> None:
            bar.advance(task, count)

        yield told
